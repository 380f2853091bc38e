//! Long-lived TCP connections to an echo service, each with a numbered ping at a fixed interval.
//!
//! Open loop: a ping is sent when it is due, also while earlier ones are still unanswered, as a user goes on typing.
//! A **stall** is the time from sending a ping until its whole echo has come to this host, by the kernel's own stamp:
//! that our thread reads it up to 2 ms later, or much later on a busy machine, is not counted.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::epoll::EpollFlags;
use serde::Serialize;

use super::echoes::{EstablishedReport, Extract, Record, Tally};
use super::poller::{Poller, Ready, dial};
use super::stamped::{StampedReader, stamp};
use super::worker::{Nice, Worker};
use super::{Failure, MAX_CONNECTIONS, NS_PER_MS, Quantiles, Window, lock, ms, now_ns};

/// What to connect and how to ping.
#[derive(Debug, Clone)]
pub struct EstablishedOptions {
    /// Network namespace to connect from, by path; `None` is the caller's own.
    pub netns: Option<PathBuf>,
    /// The echo service.
    pub target: SocketAddr,
    /// How many connections, 1 to 2,000.
    pub connections: usize,
    /// Time between two pings of one connection; the connections' pings are spread evenly over it.
    pub interval: Duration,
    /// By when all must be connected and have echoed once.
    pub connect_within: Duration,
    /// A connection with a ping unanswered for this long counts as broken by timeout.
    pub dead_after: Duration,
}

impl EstablishedOptions {
    /// 1,000 connections from the caller's namespace within 30 s, a ping each 100 ms, dead after 10 s.
    pub fn new(target: SocketAddr) -> EstablishedOptions {
        EstablishedOptions {
            netns: None,
            target,
            connections: 1_000,
            interval: Duration::from_millis(100),
            connect_within: Duration::from_secs(30),
            dead_after: Duration::from_secs(10),
        }
    }
}

/// What to show while it runs.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct EstablishedLive {
    /// Connections that live.
    pub alive: usize,
    /// Connections broken so far.
    pub broken: usize,
    /// Age of the oldest unanswered ping, in milliseconds.
    pub outstanding_ms: f64,
    /// The longest stall since the last call of [`Established::live`], in milliseconds, unanswered pings included.
    pub recent_stall_ms: f64,
}

/// N long-lived connections under observation.
pub struct Established {
    shared: Arc<Mutex<Record>>,
    target: SocketAddr,
    worker: Worker<()>,
}

impl Established {
    /// Connects, and returns when every connection has echoed once.
    ///
    /// # Errors
    /// When a connection fails or is not ready in time: it names which, and how.
    pub fn start(options: EstablishedOptions) -> Result<Established> {
        ensure!(
            (1..=MAX_CONNECTIONS).contains(&options.connections),
            "{} connections asked for, between 1 and {MAX_CONNECTIONS} are possible",
            options.connections
        );
        let target = options.target;
        let shared = Arc::new(Mutex::new(Record::default()));
        let (for_setup, for_run) = (Arc::clone(&shared), Arc::clone(&shared));
        let (netns, setup_options) = (options.netns.clone(), options.clone());
        let worker = Worker::start(
            "established",
            netns,
            Nice::First,
            move |poller| connect_all(&setup_options, poller, &for_setup),
            move |conns, poller| ping_all(&options, conns, poller, &for_run),
        )?;
        Ok(Established { shared, target, worker })
    }

    /// The local TCP ports of all connections, in order.
    pub fn local_ports(&self) -> Vec<u16> {
        lock(&self.shared).tallies.iter().map(|tally| tally.local_port).collect()
    }

    /// How it stands now.
    pub fn live(&self) -> EstablishedLive {
        let mut record = lock(&self.shared);
        let now = now_ns();
        let outstanding_ns = record.tallies.iter().map(|tally| tally.waits_ns(now)).max().unwrap_or(0);
        let recent_ns = outstanding_ns.max(std::mem::take(&mut record.recent_ns));
        EstablishedLive {
            alive: record.tallies.len() - record.breaks.len(),
            broken: record.breaks.len(),
            outstanding_ms: ms(outstanding_ns),
            recent_stall_ms: ms(recent_ns),
        }
    }

    /// What happened within `window` so far. A ping belongs to it if any part of its wait does.
    pub fn report(&self, window: Window) -> EstablishedReport {
        Extract::of(&self.shared, window).report(self.target)
    }

    /// The longest stall of each connection around each window (one for a move of the VIP, say), over
    /// connections × windows.
    pub fn stalls_per(&self, windows: &[Window]) -> Quantiles {
        let all = Extract::of(&self.shared, Window::ALL);
        Quantiles::of_us(windows.iter().flat_map(|window| all.worst_us(*window)).collect())
    }

    /// Sends no more pings, waits for the echoes still to come (at most 5 s; a connection that still waits then
    /// is broken by timeout), closes, and reports on the whole time.
    pub fn finish(self) -> EstablishedReport {
        let ended = self.worker.finish();
        let mut report = Extract::of(&self.shared, Window::ALL).report(self.target);
        report.cpu_ms = Some(ended.cpu_ms);
        report
    }
}

/// One socket; what is known about it is the [`Tally`] with the same index.
struct Conn {
    stream: TcpStream,
    next_seq: u64,
    echo_seq: u64,
    /// Bytes of the echo of `echo_seq` that have come already.
    echoed: usize,
}

impl Conn {
    /// Sends the next ping; `Ok(false)` if the socket's buffer is full.
    fn ping(&mut self, connection: usize) -> Result<bool, Failure> {
        match self.stream.write(&ping(connection, self.next_seq)) {
            Ok(PING_LEN) => {
                self.next_seq += 1;
                Ok(true)
            }
            Ok(_) => Err(Failure::BadAnswer),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(Failure::from(&error)),
        }
    }

    /// Reads what has come and compares every byte; returns how many echoes became complete, and when.
    fn read(&mut self, reader: &mut StampedReader, connection: usize) -> Result<(usize, u64), Failure> {
        let mut buffer = [0; READ_LEN];
        let (mut got, came_ns) = match reader.read(&self.stream, &mut buffer) {
            Ok((0, _)) => return Err(Failure::Eof),
            Ok((count, came_ns)) => (&buffer[..count], came_ns),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok((0, 0)),
            Err(error) => return Err(Failure::from(&error)),
        };
        let mut complete = 0;
        while !got.is_empty() {
            let expected = ping(connection, self.echo_seq);
            let count = got.len().min(PING_LEN - self.echoed);
            if self.echo_seq == self.next_seq || got[..count] != expected[self.echoed..self.echoed + count] {
                return Err(Failure::BadAnswer);
            }
            got = &got[count..];
            self.echoed += count;
            if self.echoed == PING_LEN {
                self.echoed = 0;
                self.echo_seq += 1;
                complete += 1;
            }
        }
        Ok((complete, came_ns))
    }
}

/// No two pings of any two connections are alike, so an echo that went astray is noticed.
fn ping(connection: usize, seq: u64) -> [u8; PING_LEN] {
    let mut bytes = [0; PING_LEN];
    bytes[..8].copy_from_slice(&seq.to_le_bytes());
    bytes[8..12].copy_from_slice(&(connection as u32).to_le_bytes());
    bytes[12..].copy_from_slice(b"ping");
    bytes
}

/// At most [`MAX_CONNECTING`] at once, so that no accept queue overflows because of us.
fn connect_all(options: &EstablishedOptions, poller: &mut Poller, shared: &Mutex<Record>) -> Result<Vec<Conn>> {
    let deadline = now_ns() + options.connect_within.as_nanos() as u64;
    let mut conns: Vec<Conn> = Vec::with_capacity(options.connections);
    let (mut echoed, mut ready, mut reader) = (0, Vec::new(), StampedReader::new());
    let what = |index| format!("connection {index} of {} to {}", options.connections, options.target);
    while echoed < options.connections {
        while conns.len() < options.connections && conns.len() - echoed < MAX_CONNECTING {
            let stream = dial(options.target).with_context(|| what(conns.len()))?;
            stamp(&stream)?;
            poller.add(&stream, conns.len(), EpollFlags::EPOLLOUT)?;
            conns.push(Conn { stream, next_seq: 0, echo_seq: 0, echoed: 0 });
        }
        poller.wait(deadline, &mut ready)?;
        for Ready { token, .. } in &ready {
            let conn = &mut conns[*token];
            if conn.next_seq == 0 {
                if let Some(error) = conn.stream.take_error()? {
                    bail!("{}: {error}; is the echo service up there?", what(*token));
                }
                poller.modify(&conn.stream, *token, EpollFlags::EPOLLIN)?;
                if let Err(failure) = conn.ping(*token) {
                    bail!("{}: first ping: {failure}", what(*token));
                }
            } else {
                match conn.read(&mut reader, *token) {
                    Ok((count, _)) => echoed += count,
                    Err(failure) => bail!("{}: first echo: {failure}", what(*token)),
                }
            }
        }
        if now_ns() > deadline {
            bail!(
                "only {echoed} of {} connections to {} were ready after {:?}; is maxconn of HAProxy above that?",
                options.connections,
                options.target,
                options.connect_within
            );
        }
    }
    let tally = |conn: &Conn| Ok(Tally { local_port: conn.stream.local_addr()?.port(), ..Tally::default() });
    lock(shared).tallies = conns.iter().map(tally).collect::<Result<_>>()?;
    Ok(conns)
}

fn ping_all(options: &EstablishedOptions, conns: Vec<Conn>, mut poller: Poller, shared: &Mutex<Record>) {
    let dead_after_ns = options.dead_after.as_nanos() as u64;
    let interval_ns = (options.interval.as_nanos() as u64).max(1);
    let count = conns.len() as u64;
    // A broken connection is dropped, which closes it and takes it out of epoll.
    let mut conns: Vec<Option<Conn>> = conns.into_iter().map(Some).collect();
    let start = now_ns();
    let due_at = |turn: u64| start + turn / count * interval_ns + turn % count * interval_ns / count;
    let (mut turn, mut tick_at, mut checked_at, mut drain_until) = (0, start, start, None);
    let (mut ready, mut reader) = (Vec::new(), StampedReader::new());
    loop {
        let mut record = lock(shared);
        let now = now_ns();
        reader.sync();
        for Ready { token, .. } in &ready {
            let Some(conn) = &mut conns[*token] else { continue };
            match conn.read(&mut reader, *token) {
                Ok((echoes, came_ns)) => (0..echoes).for_each(|_| record.echoed(*token, came_ns)),
                Err(failure) => {
                    conns[*token] = None;
                    record.broke(*token, failure);
                }
            }
        }
        if poller.stopping() && drain_until.is_none() {
            drain_until = Some(now + DRAIN_NS);
        }
        if drain_until.is_none() {
            record.lag_ns = record.lag_ns.max(now.saturating_sub(tick_at));
            // After a long sleep of our own, what was missed is left out instead of sent in one burst.
            while due_at(turn) + interval_ns < now {
                turn += count;
            }
            while due_at(turn) <= now {
                let index = (turn % count) as usize;
                turn += 1;
                let Some(conn) = &mut conns[index] else { continue };
                if record.tallies[index].waiting.len() >= MAX_WAITING {
                    continue;
                }
                let sent_ns = now_ns();
                match conn.ping(index) {
                    Ok(true) => record.tallies[index].waiting.push_back(sent_ns),
                    Ok(false) => {}
                    Err(failure) => {
                        conns[index] = None;
                        record.broke(index, failure);
                    }
                }
            }
        }
        if checked_at + CHECK_NS <= now {
            checked_at = now;
            let drained = drain_until.is_some_and(|until| until <= now);
            let mut waiting = false;
            for (index, conn) in conns.iter_mut().enumerate() {
                let waits_ns = record.tallies[index].waits_ns(now);
                if waits_ns > dead_after_ns || (drained && waits_ns > 0) {
                    *conn = None;
                    record.broke(index, Failure::Timeout);
                } else {
                    waiting |= waits_ns > 0;
                }
            }
            if drain_until.is_some() && !waiting {
                return;
            }
        }
        drop(record);
        tick_at = (tick_at + TICK_NS).max(now_ns());
        if poller.collect(tick_at, &mut ready).is_err() {
            return;
        }
    }
}

const PING_LEN: usize = 16;
const READ_LEN: usize = 4096;
/// One waking for the pings and echoes of this long: a fifth of the processor time of waking for each.
const TICK_NS: u64 = 2 * NS_PER_MS;
const MAX_CONNECTING: usize = 64;
/// Pings in flight on one connection; with one each 100 ms that is 25 s, longer than any connection is left waiting.
const MAX_WAITING: usize = 256;
const CHECK_NS: u64 = 20 * NS_PER_MS;
const DRAIN_NS: u64 = 5_000 * NS_PER_MS;
