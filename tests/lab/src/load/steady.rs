//! New connections at a steady rate, each independent of how the others fare (open loop).
//!
//! The **gap** of an event is the longest interval between the starts of two consecutive good attempts. Only an
//! attempt that was quick counts as good: Linux sends a lost SYN again after 1 s, so an attempt that started in the
//! middle of an outage may succeed after it, and would make the outage look half as long as it was.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::epoll::EpollFlags;
use serde::Serialize;

use super::attempts::Record;
use super::poller::{Poller, Ready, dial};
use super::worker::{Nice, Worker};
use super::{Attempt, Failure, NS_PER_MS, NS_PER_S, SteadyReport, Window, http, lock, ms, now_ns, us};

/// What one attempt does after it has connected.
#[derive(Debug, Clone)]
pub enum Ask {
    /// `GET path` with `Connection: close`; good is a whole answer with status 200, whose body names the node.
    Http {
        /// Absolute path, such as `/`.
        path: String,
    },
    /// Sends a few bytes and expects them back.
    Echo,
}

/// Where to connect, how often, and what is good.
#[derive(Debug, Clone)]
pub struct SteadyOptions {
    /// Network namespace to connect from, by path; `None` is the caller's own.
    pub netns: Option<PathBuf>,
    /// The service.
    pub target: SocketAddr,
    /// Attempts per second, evenly spaced. The resolution of a gap is `1/rate`. With [`Ask::Echo`] the client closes
    /// first and keeps the port for 60 s (TIME_WAIT), so more than 400 per second run out of ports in time.
    pub rate: u32,
    /// An attempt that is not complete after this has failed. `rate × timeout` attempts at most are in flight.
    pub timeout: Duration,
    /// An attempt counts for the gap only if it was complete (or connected) within this.
    pub prompt: Duration,
    /// What an attempt does.
    pub ask: Ask,
}

impl SteadyOptions {
    /// 200 times `GET /` per second from the caller's namespace, 1 s for each, prompt is 250 ms.
    pub fn new(target: SocketAddr) -> SteadyOptions {
        SteadyOptions {
            netns: None,
            target,
            rate: 200,
            timeout: Duration::from_secs(1),
            prompt: Duration::from_millis(250),
            ask: Ask::Http { path: "/".to_owned() },
        }
    }
}

/// What to show while it runs.
#[derive(Debug, Clone, Serialize)]
pub struct SteadyLive {
    /// Attempts that have ended so far.
    pub attempts: u64,
    /// Good ones.
    pub ok: u64,
    /// Failed ones.
    pub failed: u64,
    /// Time since the start of the latest good attempt, in milliseconds.
    pub current_gap_ms: f64,
    /// Who served the latest good attempt.
    pub node: Option<String>,
}

/// A steady stream of new connections.
pub struct Steady {
    shared: Arc<Mutex<Record>>,
    target: SocketAddr,
    prompt: Duration,
    worker: Worker<()>,
}

impl Steady {
    /// Starts at once; whether anybody answers is what is measured.
    ///
    /// # Errors
    /// When more attempts would be in flight than the laboratory has descriptors for.
    pub fn start(options: SteadyOptions) -> Result<Steady> {
        let in_flight = options.rate as f64 * options.timeout.as_secs_f64();
        ensure!(
            options.rate > 0 && in_flight <= MAX_IN_FLIGHT as f64,
            "rate {} per second with a timeout of {:?}: rate × timeout must be above 0 and at most {MAX_IN_FLIGHT}",
            options.rate,
            options.timeout
        );
        let shared = Arc::new(Mutex::new(Record::default()));
        let (target, prompt, for_run) = (options.target, options.prompt, Arc::clone(&shared));
        let worker = Worker::start(
            "steady",
            options.netns.clone(),
            Nice::First,
            |_| Ok(()),
            move |(), poller| Runner::new(options, poller, for_run).run(),
        )?;
        Ok(Steady { shared, target, prompt, worker })
    }

    /// How it stands now.
    pub fn live(&self) -> SteadyLive {
        let record = lock(&self.shared);
        SteadyLive {
            attempts: record.ended,
            ok: record.ok,
            failed: record.ended - record.ok,
            current_gap_ms: ms(now_ns().saturating_sub(record.latest_ok_ns)),
            node: record.latest_node.and_then(|index| record.nodes.name(index)).map(str::to_owned),
        }
    }

    /// What happened to attempts that started within `window` so far. Those still in flight are not in it: ask
    /// `timeout` after the window's end to have them all.
    pub fn report(&self, window: Window) -> SteadyReport {
        lock(&self.shared).report(self.target, self.prompt, window)
    }

    /// All attempts that have ended, in order of their start; the latest million.
    pub fn attempts(&self) -> Vec<Attempt> {
        lock(&self.shared).in_order()
    }

    /// Starts no more attempts, waits for those in flight, and reports on the whole time.
    pub fn finish(self) -> SteadyReport {
        let ended = self.worker.finish();
        let mut report = lock(&self.shared).report(self.target, self.prompt, Window::ALL);
        report.cpu_ms = Some(ended.cpu_ms);
        report
    }
}

/// One attempt in flight.
struct Flight {
    stream: TcpStream,
    started_ns: u64,
    connect_us: Option<u32>,
    answer: Vec<u8>,
    /// The answer is complete and counted; only the server's close is awaited, so that the server and not we keep
    /// the port in TIME_WAIT.
    done: bool,
}

struct Runner {
    options: SteadyOptions,
    poller: Poller,
    shared: Arc<Mutex<Record>>,
    request: Vec<u8>,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// Slots in order of their start, which is the order of their timeouts as well.
    started: VecDeque<(u64, usize)>,
}

impl Runner {
    fn new(options: SteadyOptions, poller: Poller, shared: Arc<Mutex<Record>>) -> Runner {
        let request = match &options.ask {
            Ask::Http { path } => http::request(options.target, path, true),
            Ask::Echo => ECHO.to_vec(),
        };
        let (flights, free, started) = (Vec::new(), Vec::new(), VecDeque::new());
        Runner { options, poller, shared, request, flights, free, started }
    }

    fn run(mut self) {
        let start = now_ns();
        let rate = u64::from(self.options.rate);
        let timeout_ns = self.options.timeout.as_nanos() as u64;
        let due_at = |turn: u64| start + turn / rate * NS_PER_S + turn % rate * NS_PER_S / rate;
        let mut turn = 0;
        let mut ready = Vec::new();
        lock(&self.shared).latest_ok_ns = start;
        loop {
            for Ready { token, .. } in &ready {
                self.advance(*token);
            }
            let now = now_ns();
            while let Some((started_ns, slot)) = self.started.front().copied() {
                let current = self.flights[slot].as_ref().is_some_and(|flight| flight.started_ns == started_ns);
                if current && started_ns + timeout_ns > now {
                    break;
                }
                self.started.pop_front();
                if current {
                    self.end(slot, Some(Failure::Timeout));
                }
            }
            if !self.poller.stopping() {
                let lag_ns = now.saturating_sub(due_at(turn));
                let mut record = lock(&self.shared);
                record.lag_ns = record.lag_ns.max(lag_ns);
                drop(record);
                // After a long sleep of our own, what was missed is left out instead of sent in one burst.
                while due_at(turn) + MAX_LATE_NS < now {
                    turn += 1;
                }
                while due_at(turn) <= now {
                    turn += 1;
                    self.launch();
                }
            } else if self.flights.iter().flatten().all(|flight| flight.done) {
                return;
            }
            let next_timeout = self.started.front().map_or(u64::MAX, |(started_ns, _)| started_ns + timeout_ns);
            let until = if self.poller.stopping() { next_timeout } else { next_timeout.min(due_at(turn)) };
            if self.poller.wait(until, &mut ready).is_err() {
                return;
            }
        }
    }

    fn launch(&mut self) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        let started_ns = now_ns();
        let opened = dial(self.options.target).and_then(|mut stream| {
            // On a virtual wire the handshake is often over when connect returns; then one waking is saved.
            let connected = match stream.write_all(&self.request) {
                Ok(()) => true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => false,
                Err(error) => return Err(error),
            };
            let connect_us = connected.then(|| us(now_ns() - started_ns));
            let awaited = if connected { EpollFlags::EPOLLIN } else { EpollFlags::EPOLLOUT };
            self.poller.add(&stream, slot, awaited)?;
            Ok(Flight { stream, started_ns, connect_us, answer: Vec::new(), done: false })
        });
        match opened {
            Ok(flight) => {
                self.flights[slot] = Some(flight);
                self.started.push_back((started_ns, slot));
            }
            Err(error) => {
                self.free.push(slot);
                let (took_us, failure) = (us(now_ns() - started_ns), Some(Failure::from(&error)));
                lock(&self.shared).ended(Attempt { started_ns, connect_us: None, took_us, failure, node: None });
            }
        }
    }

    fn advance(&mut self, slot: usize) {
        let Some(flight) = &mut self.flights[slot] else { return };
        let outcome = if flight.connect_us.is_none() {
            flight.connected(&self.request).map(|()| {
                // A socket just connected is open, so epoll can only fail for lack of memory; the timeout covers it.
                let _ = self.poller.modify(&flight.stream, slot, EpollFlags::EPOLLIN);
                false
            })
        } else {
            flight.read(&self.options.ask)
        };
        match outcome {
            Ok(false) => {}
            Ok(true) if matches!(self.options.ask, Ask::Http { .. }) => self.complete(slot, None),
            Ok(true) => self.end(slot, None),
            Err(failure) => self.end(slot, Some(failure)),
        }
    }

    /// Counts the attempt, once.
    fn complete(&mut self, slot: usize, failure: Option<Failure>) {
        let Some(flight) = self.flights[slot].as_mut().filter(|flight| !flight.done) else { return };
        flight.done = true;
        let mut record = lock(&self.shared);
        let name = match &self.options.ask {
            Ask::Http { .. } if failure.is_none() => flight.node(),
            _ => None,
        };
        let node = name.and_then(|name| record.nodes.index(&name));
        let (started_ns, connect_us) = (flight.started_ns, flight.connect_us);
        record.ended(Attempt { started_ns, connect_us, took_us: us(now_ns() - started_ns), failure, node });
    }

    /// Counts the attempt if it is not counted yet, and closes it.
    fn end(&mut self, slot: usize, failure: Option<Failure>) {
        self.complete(slot, failure);
        self.flights[slot] = None;
        self.free.push(slot);
    }
}

impl Flight {
    fn connected(&mut self, request: &[u8]) -> Result<(), Failure> {
        let error = self.stream.take_error().unwrap_or_else(Some);
        if let Some(error) = error {
            return Err(Failure::from(&error));
        }
        self.connect_us = Some(us(now_ns() - self.started_ns));
        self.stream.write_all(request).map_err(|error| Failure::from(&error))
    }

    /// Whether the answer is complete now. End of stream is an error here, also the one that is due after a complete
    /// answer; [`Runner::end`] counts only the first outcome.
    fn read(&mut self, ask: &Ask) -> Result<bool, Failure> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Err(Failure::Eof),
            Ok(count) => self.answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(Failure::from(&error)),
        }
        match ask {
            Ask::Http { .. } => {
                let Some(head) = http::head(&self.answer)? else { return Ok(false) };
                if head.status != 200 {
                    return Err(Failure::BadStatus(head.status));
                }
                if head.body_len > MAX_ANSWER {
                    return Err(Failure::BadAnswer);
                }
                Ok(self.answer.len() >= head.len + head.body_len)
            }
            Ask::Echo if !ECHO.starts_with(&self.answer) => Err(Failure::BadAnswer),
            Ask::Echo => Ok(self.answer.len() == ECHO.len()),
        }
    }

    fn node(&self) -> Option<String> {
        let head = http::head(&self.answer).ok()??;
        http::node(self.answer.get(head.len..)?)
    }
}

const ECHO: &[u8] = b"are you there?\n";
const MAX_IN_FLIGHT: usize = 1_000;
const MAX_ANSWER: usize = 64 * 1024;
const MAX_LATE_NS: u64 = 100 * NS_PER_MS;
