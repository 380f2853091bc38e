//! How many requests per second a service answers, and how fast: a closed loop as lean as it can be, so that the proxy
//! and not the client is what saturates. No request allocates memory.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nix::sys::epoll::EpollFlags;
use serde::Serialize;

use super::poller::{Poller, Ready, dial};
use super::worker::{Nice, Worker};
use super::{Failure, Histogram, MAX_CONNECTIONS, NS_PER_MS, Quantiles, http, now_ns, round3};

/// What to ask, how much of it at a time, and for how long.
#[derive(Debug, Clone)]
pub struct ThroughputOptions {
    /// Network namespace to connect from, by path; `None` is the caller's own.
    pub netns: Option<PathBuf>,
    /// The HTTP service.
    pub target: SocketAddr,
    /// Absolute path, such as `/`.
    pub path: String,
    /// Requests in flight at a time, 1 to 2,000.
    pub concurrency: usize,
    /// Keep connections, or open one for each request. Then the server closes first and keeps TIME_WAIT.
    pub keep_alive: bool,
    /// Time before measuring begins.
    pub warm_up: Duration,
    /// How long to measure.
    pub duration: Duration,
}

impl ThroughputOptions {
    /// 64 kept connections from the caller's namespace asking for `/` for 5 s after 1 s.
    pub fn new(target: SocketAddr) -> ThroughputOptions {
        ThroughputOptions {
            netns: None,
            target,
            path: "/".to_owned(),
            concurrency: 64,
            keep_alive: true,
            warm_up: Duration::from_secs(1),
            duration: Duration::from_secs(5),
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct ThroughputReport {
    /// Where the requests went.
    pub target: SocketAddr,
    /// Whether connections were kept.
    pub keep_alive: bool,
    /// Good answers while measuring.
    pub ok: u64,
    /// Failures while measuring, by name.
    pub failures: BTreeMap<String, u64>,
    /// Good answers per second.
    pub requests_per_s: f64,
    /// From the request (or, with one connection per request, from the start of connecting) to the whole answer;
    /// within 1 %.
    pub latency_ms: Quantiles,
    /// Share of one core that our own thread used, warm-up included. Near 1 the client was the limit, not the service.
    pub client_cpu: f64,
}

/// Runs the load in a thread of its own and waits for its end.
///
/// # Errors
/// When the concurrency is out of range, or not one request was answered (with the failures in its place).
pub fn throughput(options: &ThroughputOptions) -> Result<ThroughputReport> {
    ensure!(
        (1..=MAX_CONNECTIONS).contains(&options.concurrency) && !options.duration.is_zero(),
        "concurrency {} for {:?}: between 1 and {MAX_CONNECTIONS}, for some time",
        options.concurrency,
        options.duration
    );
    let for_run = options.clone();
    let worker = Worker::start(
        "throughput",
        options.netns.clone(),
        Nice::Fair,
        |_| Ok(()),
        move |(), poller| Runner::new(&for_run, poller).run(),
    )?;
    let ended = worker.wait();
    let (outcome, seconds) = (ended.result, options.duration.as_secs_f64());
    if outcome.latency.quantiles().count == 0 {
        bail!("{} answered not one request: {:?}", options.target, outcome.failures);
    }
    let latency_ms = outcome.latency.quantiles();
    let total_ms = (options.warm_up + options.duration).as_secs_f64() * 1_000.0;
    Ok(ThroughputReport {
        target: options.target,
        keep_alive: options.keep_alive,
        ok: latency_ms.count,
        failures: outcome.failures,
        requests_per_s: round3(latency_ms.count as f64 / seconds),
        latency_ms,
        client_cpu: round3(ended.cpu_ms / total_ms),
    })
}

#[derive(Default)]
struct Outcome {
    latency: Histogram,
    failures: BTreeMap<String, u64>,
}

/// One connection's place; with one connection per request it is filled again and again.
struct Client {
    stream: Option<TcpStream>,
    since_ns: u64,
    asked: bool,
    /// Bytes of a head that did not come in one piece; kept, so that it is allocated once.
    head: Vec<u8>,
    /// Body bytes still to come; `None` before the head is complete.
    left: Option<usize>,
    close: bool,
    /// The answer is counted and only the server's close is awaited.
    done: bool,
}

struct Runner<'a> {
    options: &'a ThroughputOptions,
    poller: Poller,
    request: Vec<u8>,
    clients: Vec<Client>,
    buffer: Vec<u8>,
    outcome: Outcome,
    measuring: bool,
    /// Those that failed, to start again at the next turn and not in an endless loop.
    again: Vec<usize>,
}

impl Runner<'_> {
    fn new(options: &ThroughputOptions, poller: Poller) -> Runner<'_> {
        let fresh = |_| Client {
            stream: None,
            since_ns: 0,
            asked: false,
            head: Vec::new(),
            left: None,
            close: false,
            done: false,
        };
        Runner {
            options,
            poller,
            request: http::request(options.target, &options.path, !options.keep_alive),
            clients: (0..options.concurrency).map(fresh).collect(),
            buffer: vec![0; CHUNK],
            outcome: Outcome::default(),
            measuring: false,
            again: (0..options.concurrency).collect(),
        }
    }

    fn run(mut self) -> Outcome {
        let measure_at = now_ns() + self.options.warm_up.as_nanos() as u64;
        let end_at = measure_at + self.options.duration.as_nanos() as u64;
        let mut ready = Vec::new();
        let mut checked_at = now_ns();
        while !self.poller.stopping() {
            let now = now_ns();
            if now >= end_at {
                break;
            }
            self.measuring = now >= measure_at;
            for index in std::mem::take(&mut self.again) {
                self.open(index);
            }
            for Ready { token, flags } in &ready {
                self.advance(*token, *flags);
            }
            if checked_at + CHECK_NS <= now {
                checked_at = now;
                self.time_out(now);
            }
            let until = if self.again.is_empty() { end_at.min(checked_at + CHECK_NS) } else { now + AGAIN_AFTER_NS };
            if self.poller.wait(until, &mut ready).is_err() {
                break;
            }
        }
        self.outcome
    }

    fn time_out(&mut self, now: u64) {
        for index in 0..self.clients.len() {
            let client = &self.clients[index];
            if client.stream.is_some() && client.since_ns + TIMEOUT_NS <= now {
                self.failed(index, Failure::Timeout);
            }
        }
    }

    fn open(&mut self, index: usize) {
        let client = &mut self.clients[index];
        (client.left, client.close, client.done, client.asked) = (None, false, false, false);
        client.head.clear();
        client.since_ns = now_ns();
        // One registration for the connection's whole life: edge-triggered, both directions.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        let opened = dial(self.options.target).and_then(|stream| {
            self.poller.add(&stream, index, flags)?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => {
                client.stream = Some(stream);
                // On a virtual wire the handshake is often over when connect returns, which saves a waking.
                self.ask(index);
            }
            Err(error) => self.failed(index, Failure::from(&error)),
        }
    }

    fn advance(&mut self, index: usize, flags: EpollFlags) {
        if !self.clients[index].asked {
            return self.ask(index);
        }
        if flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP)
        {
            self.read(index, flags);
        }
    }

    fn ask(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(stream) = &mut client.stream else { return };
        match stream.write_all(&self.request) {
            Ok(()) => client.asked = true,
            // Not connected yet; edge-triggered readiness comes again.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => self.failed(index, Failure::from(&error)),
        }
    }

    fn read(&mut self, index: usize, flags: EpollFlags) {
        loop {
            let client = &mut self.clients[index];
            let Some(stream) = &mut client.stream else { return };
            let count = match stream.read(&mut self.buffer) {
                Ok(0) if client.done => return self.open(index),
                Ok(0) => return self.failed(index, Failure::Eof),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // Counted already, so a reset instead of a close loses nothing.
                Err(_) if client.done => return self.open(index),
                Err(error) => return self.failed(index, Failure::from(&error)),
            };
            if let Err(failure) = self.took(index, count) {
                return self.failed(index, failure);
            }
            // A short read has emptied the socket (epoll(7)), unless its end is there to be read as well.
            if count < CHUNK && !flags.contains(EpollFlags::EPOLLRDHUP) {
                return;
            }
        }
    }

    /// Takes `count` bytes of the buffer as the next part of an answer.
    fn took(&mut self, index: usize, count: usize) -> Result<(), Failure> {
        let client = &mut self.clients[index];
        let left = match client.left {
            Some(left) => left.checked_sub(count).ok_or(Failure::BadAnswer)?,
            None => {
                // An answer in one piece, which is nearly every one, is parsed where it lies.
                let whole = client.head.is_empty();
                if !whole {
                    client.head.extend_from_slice(&self.buffer[..count]);
                }
                let bytes = if whole { &self.buffer[..count] } else { &client.head[..] };
                let Some(head) = http::head(bytes)? else {
                    if whole {
                        client.head.extend_from_slice(&self.buffer[..count]);
                    }
                    return Ok(());
                };
                if head.status != 200 {
                    return Err(Failure::BadStatus(head.status));
                }
                client.close = head.close;
                let body = bytes.len() - head.len;
                client.head.clear();
                head.body_len.checked_sub(body).ok_or(Failure::BadAnswer)?
            }
        };
        client.left = Some(left);
        if left > 0 {
            return Ok(());
        }
        if self.measuring && !client.done {
            self.outcome.latency.record_us((now_ns() - client.since_ns) / 1_000);
        }
        if client.close || !self.options.keep_alive {
            // Whoever closes first keeps the port for 60 s; we would run out of them within seconds.
            client.done = true;
        } else {
            client.left = None;
            client.since_ns = now_ns();
            self.ask(index);
        }
        Ok(())
    }

    fn failed(&mut self, index: usize, failure: Failure) {
        if self.measuring {
            *self.outcome.failures.entry(failure.to_string()).or_default() += 1;
        }
        self.clients[index].stream = None;
        self.again.push(index);
    }
}

const CHUNK: usize = 16 * 1024;
const TIMEOUT_NS: u64 = 2_000 * NS_PER_MS;
const CHECK_NS: u64 = 50 * NS_PER_MS;
const AGAIN_AFTER_NS: u64 = 5 * NS_PER_MS;
