//! HTTP/2 clients (RFC 9113, without TLS, "prior knowledge"): several streams on each connection, each asking on and on.
//!
//! A server may end a connection politely at any time: it says GOAWAY without an error, and answers what it has taken. What it has
//! not taken is asked again on the next connection, as the RFC allows. Whatever else ends a connection or a stream is a failure.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::join_all;
use h2::client::SendRequest;
use h2::{Error, Reason};
use http::Request;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::poller::Poller;
use super::worker::{Nice, Worker};
use super::{Failure, Window, lock, now_ns};

/// Who asks what, and how often.
#[derive(Debug, Clone)]
pub struct StreamsOptions {
    /// Network namespace to connect from, by path; `None` is the caller's own.
    pub netns: Option<PathBuf>,
    /// The HTTP service.
    pub target: SocketAddr,
    /// How many connections.
    pub connections: usize,
    /// How many streams on each, which ask at the same time.
    pub streams: usize,
    /// Pause between an answer and the next request of a stream.
    pub pause: Duration,
    /// Time allowed for connecting, and for an answer.
    pub timeout: Duration,
}

/// What happened to requests that ended within a window.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StreamsReport {
    /// Requests that have ended.
    pub requests: u64,
    /// Those that failed.
    pub failed: u64,
    /// Connections that ended without GOAWAY, or with one that names an error.
    pub broken: u64,
    /// Connections that the server ended politely.
    pub polite_closes: u64,
    /// Every kind of failure by name.
    pub failures: BTreeMap<String, u64>,
}

/// M connections of N streams, asking on.
pub struct Streams {
    shared: Arc<Mutex<Record>>,
    // It ends the thread when it is dropped.
    _worker: Worker<()>,
}

impl Streams {
    /// Starts at once.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn start(options: StreamsOptions) -> Result<Streams> {
        let shared = Arc::new(Mutex::new(Record::default()));
        let for_run = Arc::clone(&shared);
        let setup = |_: &mut Poller| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime for HTTP/2 clients")
        };
        let netns = options.netns.clone();
        let worker = Worker::start("streams", netns, Nice::First, setup, move |runtime, mut poller| {
            runtime.block_on(async {
                for _ in 0..options.connections {
                    tokio::spawn(client(options.clone(), Arc::clone(&for_run)));
                }
                // Only a look, which waits for nothing: a poller that fails has nobody to stop it.
                while poller.wait(0, &mut Vec::new()).is_ok() && !poller.stopping() {
                    sleep(STOP_WITHIN).await;
                }
            });
        })?;
        Ok(Streams { shared, _worker: worker })
    }

    /// What happened within `window` so far.
    pub fn report(&self, window: Window) -> StreamsReport {
        lock(&self.shared).report(window)
    }
}

#[derive(Debug, Clone, Copy)]
enum Happening {
    Answered,
    RequestFailed(Failure),
    PoliteClose,
    Broken(Failure),
}

#[derive(Default)]
struct Record(VecDeque<(u64, Happening)>);

impl Record {
    fn push(&mut self, happening: Happening) {
        if self.0.len() == MAX_HAPPENINGS {
            self.0.pop_front();
        }
        self.0.push_back((now_ns(), happening));
    }

    fn report(&self, window: Window) -> StreamsReport {
        let mut report = StreamsReport::default();
        for (_, happening) in self.0.iter().filter(|(at_ns, _)| window.holds(*at_ns)) {
            report.requests += u64::from(matches!(happening, Happening::Answered | Happening::RequestFailed(_)));
            let failure = match happening {
                Happening::Answered => continue,
                Happening::PoliteClose => {
                    report.polite_closes += 1;
                    continue;
                }
                Happening::RequestFailed(failure) => {
                    report.failed += 1;
                    failure
                }
                Happening::Broken(failure) => {
                    report.broken += 1;
                    failure
                }
            };
            *report.failures.entry(failure.to_string()).or_default() += 1;
        }
        report
    }
}

/// One connection after the other.
async fn client(options: StreamsOptions, record: Arc<Mutex<Record>>) {
    loop {
        let end = connection(&options, &record).await.map_or_else(Happening::Broken, |()| Happening::PoliteClose);
        lock(&record).push(end);
        sleep(RECONNECT_AFTER).await;
    }
}

/// One connection, until it takes no more requests.
async fn connection(options: &StreamsOptions, record: &Mutex<Record>) -> Result<(), Failure> {
    let connected = timeout(options.timeout, TcpStream::connect(options.target)).await;
    let stream = connected.map_err(|_| Failure::Timeout)?.map_err(|error| Failure::from(&error))?;
    let shaken = timeout(options.timeout, h2::client::handshake(stream)).await.map_err(|_| Failure::Timeout)?;
    let (send, driver) = shaken.map_err(|error| failure(&error))?;
    // What ends it, its streams see as well.
    let driver = tokio::spawn(driver);
    let ends = join_all((0..options.streams).map(|_| ask_on(send.clone(), options, record))).await;
    drop(send);
    driver.abort();
    ends.into_iter().collect()
}

/// One stream after the other, until the connection takes no more.
async fn ask_on(
    mut send: SendRequest<bytes::Bytes>,
    options: &StreamsOptions,
    record: &Mutex<Record>,
) -> Result<(), Failure> {
    loop {
        send = match send.ready().await {
            Ok(send) => send,
            Err(error) if is_polite(&error) => return Ok(()),
            Err(error) => return Err(failure(&error)),
        };
        let asked = timeout(options.timeout, ask(&mut send, options.target)).await;
        let happening = match asked.unwrap_or(Ok(Err(Failure::Timeout))) {
            Ok(Ok(())) => Happening::Answered,
            Ok(Err(failure)) => Happening::RequestFailed(failure),
            Err(error) if is_polite(&error) => return Ok(()),
            Err(error) => Happening::RequestFailed(failure(&error)),
        };
        lock(record).push(happening);
        sleep(options.pause).await;
    }
}

/// One request; the inner error is of the answer, the outer one of the protocol.
async fn ask(send: &mut SendRequest<bytes::Bytes>, target: SocketAddr) -> Result<Result<(), Failure>, Error> {
    let request = Request::get(format!("http://{target}/")).body(()).expect("an address is a valid authority");
    let (answer, _) = send.send_request(request, true)?;
    let answer = answer.await?;
    let status = answer.status().as_u16();
    let mut body = answer.into_body();
    let mut length = 0;
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        length += piece.len();
    }
    Ok(match (status, length) {
        (200, 0) => Err(Failure::BadAnswer),
        (200, _) => Ok(()),
        (status, _) => Err(Failure::BadStatus(status)),
    })
}

/// The server ends the connection without an error, or has not taken the stream.
fn is_polite(error: &Error) -> bool {
    let reason = error.reason();
    error.is_go_away() && reason == Some(Reason::NO_ERROR) || error.is_reset() && reason == Some(Reason::REFUSED_STREAM)
}

fn failure(error: &Error) -> Failure {
    match error.get_io() {
        Some(error) if error.raw_os_error().is_some() => Failure::from(error),
        Some(_) => Failure::Eof,
        None if error.is_reset() || error.is_go_away() => Failure::Reset,
        None => Failure::BadAnswer,
    }
}

const RECONNECT_AFTER: Duration = Duration::from_millis(20);
const STOP_WITHIN: Duration = Duration::from_millis(50);
const MAX_HAPPENINGS: usize = 1_000_000;

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread::JoinHandle;

    use crate::wait::wait_until;

    use super::*;

    /// Where a server is, and what stops it.
    type Served = (SocketAddr, JoinHandle<Result<()>>, Arc<Mutex<bool>>);

    /// A server that answers so many requests on each connection, and then ends it, with GOAWAY or without a word.
    fn server(answers: usize, goodbye: bool) -> Result<Served> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let (address, stop) = (listener.local_addr()?, Arc::new(Mutex::new(false)));
        let stopped = Arc::clone(&stop);
        let body = async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, answers, goodbye));
                }
            });
            while !*lock(&stopped) {
                sleep(STOP_WITHIN).await;
            }
            Ok(())
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok((address, std::thread::spawn(move || runtime.block_on(body)), stop))
    }

    async fn serve(stream: TcpStream, answers: usize, goodbye: bool) -> Result<(), Error> {
        let mut connection = h2::server::handshake(stream).await?;
        let mut answered = 0;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut body = respond.send_response(http::Response::new(()), false)?;
            body.send_data("a".into(), true)?;
            answered += 1;
            if answered == answers {
                if !goodbye {
                    break;
                }
                connection.graceful_shutdown();
            }
        }
        Ok(())
    }

    fn seen(answers: usize, goodbye: bool, enough: impl Fn(&StreamsReport) -> bool) -> Result<StreamsReport> {
        let (target, thread, stop) = server(answers, goodbye)?;
        let (pause, timeout) = (Duration::from_millis(1), Duration::from_secs(20));
        let options = StreamsOptions { netns: None, target, connections: 2, streams: 3, pause, timeout };
        let streams = Streams::start(options)?;
        wait_until("enough answers", timeout, || enough(&streams.report(Window::ALL)))?;
        let report = streams.report(Window::ALL);
        drop(streams);
        *lock(&stop) = true;
        thread.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
        Ok(report)
    }

    #[test]
    fn connections_that_end_politely_cost_no_request() -> Result<()> {
        let report = seen(20, true, |report| report.requests > 100 && report.polite_closes > 2)?;
        assert_eq!((report.failed, report.broken), (0, 0), "{report:?}");
        Ok(())
    }

    #[test]
    fn connections_that_end_without_a_word_are_broken() -> Result<()> {
        let report = seen(20, false, |report| report.broken > 2)?;
        assert_eq!(report.polite_closes, 0, "{report:?}");
        Ok(())
    }
}
