//! HTTP/1.1 clients that keep their connections, each asking again when it has its answer (closed loop).
//!
//! A server may end a kept connection politely at any time: it says `Connection: close` in an answer, or closes while
//! nothing is asked. Neither loses anything, and the client connects again. Whatever else ends a connection is a failure.
//!
//! Or TCP clients whose words come back. Between them and their service nobody can announce an end, so on a connection that has
//! carried an echo its end (FIN) is polite whenever it comes, and what was on its way is no failure. A reset is one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::epoll::EpollFlags;
use serde::Serialize;

use super::http::Nodes;
use super::poller::{Poller, Ready, dial};
use super::worker::{Nice, Worker};
use super::{Failure, MAX_CONNECTIONS, NS_PER_MS, Quantiles, Window, http, lock, now_ns, us};

/// Who asks what, and how often.
#[derive(Debug, Clone)]
pub struct KeepAliveOptions {
    /// Network namespace to connect from, by path; `None` is the caller's own.
    pub netns: Option<PathBuf>,
    /// The HTTP service.
    pub target: SocketAddr,
    /// How many connections, 1 to 2,000.
    pub connections: usize,
    /// Absolute path, such as `/`.
    pub path: String,
    /// Sends a few bytes and expects them back, instead of asking for `path`.
    pub echo: bool,
    /// Pause between an answer and the next request on the same connection; zero asks again at once.
    pub pause: Duration,
    /// Time allowed for connecting, and for an answer.
    pub timeout: Duration,
}

impl KeepAliveOptions {
    /// 50 connections from the caller's namespace that ask for `/` and pause 50 ms; 2 s for an answer.
    pub fn new(target: SocketAddr) -> KeepAliveOptions {
        KeepAliveOptions {
            netns: None,
            target,
            connections: 50,
            path: "/".to_owned(),
            echo: false,
            pause: Duration::from_millis(50),
            timeout: Duration::from_secs(2),
        }
    }
}

/// What happened to requests that ended within a window.
#[derive(Debug, Clone, Serialize)]
pub struct KeepAliveReport {
    /// Where they went.
    pub target: SocketAddr,
    /// Requests sent that have ended.
    pub requests: u64,
    /// Those answered with 200 and a whole body.
    pub ok: u64,
    /// Those that failed, an unexpected end of the connection included.
    pub failed: u64,
    /// Connections that broke, under a request or (by a reset) while idle.
    pub broken: u64,
    /// Attempts to connect again that failed.
    pub connect_failures: u64,
    /// Connections that the server ended politely: announced, or closed while idle.
    pub polite_closes: u64,
    /// Every kind of failure by name.
    pub failures: BTreeMap<String, u64>,
    /// From sending a request to having its whole answer, over good requests.
    pub latency_ms: Quantiles,
    /// Good requests by the node that served them.
    pub nodes: BTreeMap<String, u64>,
    /// Processor time of our own thread, in milliseconds; known at the end.
    pub cpu_ms: Option<f64>,
}

/// M kept connections asking on.
pub struct KeepAlive {
    shared: Arc<Mutex<Record>>,
    target: SocketAddr,
    worker: Worker<()>,
}

impl KeepAlive {
    /// Starts at once.
    ///
    /// # Errors
    /// When there are too many connections.
    pub fn start(options: KeepAliveOptions) -> Result<KeepAlive> {
        ensure!(
            (1..=MAX_CONNECTIONS).contains(&options.connections),
            "{} connections asked for, between 1 and {MAX_CONNECTIONS} are possible",
            options.connections
        );
        let shared = Arc::new(Mutex::new(Record::default()));
        let (target, for_run) = (options.target, Arc::clone(&shared));
        let worker = Worker::start(
            "keepalive",
            options.netns.clone(),
            Nice::First,
            |_| Ok(()),
            move |(), poller| Runner::new(&options, poller, for_run).run(),
        )?;
        Ok(KeepAlive { shared, target, worker })
    }

    /// What happened within `window` so far.
    pub fn report(&self, window: Window) -> KeepAliveReport {
        lock(&self.shared).report(self.target, window)
    }

    /// Sends no more requests, waits for the answers still due, and reports on the whole time.
    pub fn finish(self) -> KeepAliveReport {
        let ended = self.worker.finish();
        let mut report = lock(&self.shared).report(self.target, Window::ALL);
        report.cpu_ms = Some(ended.cpu_ms);
        report
    }
}

#[derive(Debug, Clone, Copy)]
enum Happening {
    Answered {
        took_us: u32,
        node: Option<u8>,
    },
    PoliteClose,
    /// While a request was out.
    RequestFailed(Failure),
    IdleReset(Failure),
    ConnectFailed(Failure),
}

#[derive(Default)]
struct Record {
    /// The latest two million, by time.
    happenings: VecDeque<(u64, Happening)>,
    nodes: Nodes,
}

impl Record {
    fn push(&mut self, happening: Happening) {
        if self.happenings.len() == MAX_HAPPENINGS {
            self.happenings.pop_front();
        }
        self.happenings.push_back((now_ns(), happening));
    }

    fn report(&self, target: SocketAddr, window: Window) -> KeepAliveReport {
        let mut report = KeepAliveReport {
            target,
            requests: 0,
            ok: 0,
            failed: 0,
            broken: 0,
            connect_failures: 0,
            polite_closes: 0,
            failures: BTreeMap::new(),
            latency_ms: Quantiles::default(),
            nodes: BTreeMap::new(),
            cpu_ms: None,
        };
        let mut latencies_us = Vec::new();
        for (_, happening) in self.happenings.iter().filter(|(at_ns, _)| window.holds(*at_ns)) {
            let failure = match *happening {
                Happening::Answered { took_us, node } => {
                    latencies_us.push(took_us);
                    if let Some(name) = node.and_then(|index| self.nodes.name(index)) {
                        *report.nodes.entry(name.to_owned()).or_default() += 1;
                    }
                    continue;
                }
                Happening::PoliteClose => {
                    report.polite_closes += 1;
                    continue;
                }
                Happening::RequestFailed(failure) => {
                    report.failed += 1;
                    // A bad status is the service's word on a connection that lives.
                    report.broken += u64::from(!matches!(failure, Failure::BadStatus(_)));
                    failure
                }
                Happening::IdleReset(failure) => {
                    report.broken += 1;
                    failure
                }
                Happening::ConnectFailed(failure) => {
                    report.connect_failures += 1;
                    failure
                }
            };
            *report.failures.entry(failure.to_string()).or_default() += 1;
        }
        report.ok = latencies_us.len() as u64;
        report.requests = report.ok + report.failed;
        report.latency_ms = Quantiles::of_us(latencies_us);
        report
    }
}

/// ```text
/// Closed ─due→ Connecting ─writable→ Asked ─answer→ Idle ─due→ Asked
///    ▲             │                   │               │
///    └── failure, polite close ────────┴───────────────┘
/// ```
enum State {
    Closed,
    Connecting,
    Idle,
    Asked { since_ns: u64 },
}

struct Client {
    state: State,
    stream: Option<TcpStream>,
    answer: Vec<u8>,
    /// This connection has had an answer.
    answered: bool,
    /// When its state changes by itself: connect, ask, or time out.
    due_ns: u64,
}

struct Runner<'a> {
    options: &'a KeepAliveOptions,
    poller: Poller,
    shared: Arc<Mutex<Record>>,
    request: Vec<u8>,
    clients: Vec<Client>,
    /// (due, client), one for each client.
    timers: BTreeSet<(u64, usize)>,
}

impl Runner<'_> {
    fn new(options: &KeepAliveOptions, poller: Poller, shared: Arc<Mutex<Record>>) -> Runner<'_> {
        let request = if options.echo { ECHO.to_vec() } else { http::request(options.target, &options.path, false) };
        let (start, count) = (now_ns(), options.connections as u64);
        let spread_ns = (options.pause.as_nanos() as u64).max(NS_PER_MS);
        let clients: Vec<Client> = (0..count)
            .map(|i| Client {
                state: State::Closed,
                stream: None,
                answer: Vec::new(),
                answered: false,
                due_ns: start + spread_ns * i / count,
            })
            .collect();
        let timers = clients.iter().enumerate().map(|(i, client)| (client.due_ns, i)).collect();
        Runner { options, poller, shared, request, clients, timers }
    }

    fn run(mut self) {
        let mut ready = Vec::new();
        loop {
            for Ready { token, .. } in &ready {
                self.advance(*token);
            }
            if self.poller.stopping() && self.clients.iter().all(|it| !matches!(it.state, State::Asked { .. })) {
                return;
            }
            let now = now_ns();
            while let Some((due_ns, index)) = self.timers.first().copied().filter(|(due_ns, _)| *due_ns <= now) {
                self.timers.remove(&(due_ns, index));
                self.fire(index);
            }
            let until = self.timers.first().map_or(u64::MAX, |(due_ns, _)| *due_ns);
            if self.poller.wait(until, &mut ready).is_err() {
                return;
            }
        }
    }

    fn fire(&mut self, index: usize) {
        // Nothing new begins once we are to stop, and nothing else would be due any more.
        match self.clients[index].state {
            State::Connecting => self.failed(index, Happening::ConnectFailed(Failure::Timeout)),
            State::Asked { .. } => self.failed(index, Happening::RequestFailed(Failure::Timeout)),
            State::Closed | State::Idle if self.poller.stopping() => {}
            State::Closed => self.connect(index),
            State::Idle => self.ask(index),
        }
    }

    fn connect(&mut self, index: usize) {
        let opened = dial(self.options.target).and_then(|stream| {
            self.poller.add(&stream, index, EpollFlags::EPOLLOUT)?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => {
                self.clients[index].stream = Some(stream);
                self.enter(index, State::Connecting, self.options.timeout);
            }
            Err(error) => self.failed(index, Happening::ConnectFailed(Failure::from(&error))),
        }
    }

    fn ask(&mut self, index: usize) {
        let Some(stream) = &mut self.clients[index].stream else { return };
        match stream.write_all(&self.request) {
            Ok(()) => self.enter(index, State::Asked { since_ns: now_ns() }, self.options.timeout),
            Err(error) => self.failed(index, Happening::RequestFailed(Failure::from(&error))),
        }
    }

    fn advance(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(stream) = &mut client.stream else { return };
        if let State::Connecting = client.state {
            let error = stream.take_error().unwrap_or_else(Some);
            let error = error.or_else(|| self.poller.modify(&*stream, index, EpollFlags::EPOLLIN).err());
            return match error {
                Some(error) => self.failed(index, Happening::ConnectFailed(Failure::from(&error))),
                None => self.ask(index),
            };
        }
        let mut buffer = [0; 16 * 1024];
        let outcome = match stream.read(&mut buffer) {
            Ok(0) => Err(Failure::Eof),
            Ok(count) => {
                client.answer.extend_from_slice(&buffer[..count]);
                if self.options.echo { echoed(&client.answer) } else { http::head(&client.answer) }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => Err(Failure::from(&error)),
        };
        match (&client.state, outcome) {
            (_, Err(Failure::Eof)) if self.options.echo && client.answered => self.polite_close(index),
            (State::Asked { .. }, Err(failure)) => self.failed(index, Happening::RequestFailed(failure)),
            (_, Err(Failure::Eof)) => self.polite_close(index),
            (_, Err(failure)) => self.failed(index, Happening::IdleReset(failure)),
            (State::Asked { since_ns }, Ok(Some(head))) if client.answer.len() >= head.len + head.body_len => {
                let took_us = us(now_ns().saturating_sub(*since_ns));
                self.answered(index, head, took_us);
            }
            (State::Asked { .. }, Ok(_)) => {}
            // Bytes that nobody asked for.
            (_, Ok(_)) => self.failed(index, Happening::IdleReset(Failure::BadAnswer)),
        }
    }

    fn answered(&mut self, index: usize, head: http::Head, took_us: u32) {
        let client = &mut self.clients[index];
        let name = http::node(&client.answer[head.len..]);
        client.answer.clear();
        client.answered = true;
        let mut record = lock(&self.shared);
        let happening = match head.status {
            200 => Happening::Answered { took_us, node: name.and_then(|name| record.nodes.index(&name)) },
            status => Happening::RequestFailed(Failure::BadStatus(status)),
        };
        record.push(happening);
        drop(record);
        if head.close {
            self.polite_close(index);
        } else if self.options.pause.is_zero() && !self.poller.stopping() {
            self.ask(index);
        } else {
            self.enter(index, State::Idle, self.options.pause);
        }
    }

    fn polite_close(&mut self, index: usize) {
        lock(&self.shared).push(Happening::PoliteClose);
        self.close(index, self.options.pause);
    }

    fn failed(&mut self, index: usize, happening: Happening) {
        lock(&self.shared).push(happening);
        // At once would spin while everything is refused.
        self.close(index, self.options.pause.max(RECONNECT_AFTER));
    }

    fn close(&mut self, index: usize, again_after: Duration) {
        let client = &mut self.clients[index];
        (client.stream, client.answered) = (None, false);
        client.answer.clear();
        self.enter(index, State::Closed, again_after);
    }

    fn enter(&mut self, index: usize, state: State, due_after: Duration) {
        let client = &mut self.clients[index];
        self.timers.remove(&(client.due_ns, index));
        client.state = state;
        client.due_ns = now_ns() + due_after.as_nanos() as u64;
        self.timers.insert((client.due_ns, index));
    }
}

/// What was sent, as if it were the head of an answer without a body; `None` while it has not all come back.
fn echoed(answer: &[u8]) -> Result<Option<http::Head>, Failure> {
    let whole = http::Head { status: 200, len: ECHO.len(), body_len: 0, close: false };
    if ECHO.starts_with(answer) { Ok((answer == ECHO).then_some(whole)) } else { Err(Failure::BadAnswer) }
}

const ECHO: &[u8] = b"are you still there?\n";
const RECONNECT_AFTER: Duration = Duration::from_millis(20);
const MAX_HAPPENINGS: usize = 2_000_000;
