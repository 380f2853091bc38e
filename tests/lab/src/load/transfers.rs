//! Large downloads, paced, each followed by the next: does one come short, break or stall?
//!
//! Paced, because downloads at full speed would take the two cores away from what is measured. The receive buffer is
//! small, so that bytes keep flowing and a stall of the network can't hide behind what the kernel has stored.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::epoll::EpollFlags;
use serde::Serialize;
use socket2::SockRef;

use super::poller::{Poller, Ready, dial};
use super::worker::{Nice, Worker};
use super::{Failure, NS_PER_MS, NS_PER_S, Quantiles, Stall, Window, http, lock, now_ns, us};

/// What to download, and how fast.
#[derive(Debug, Clone)]
pub struct TransfersOptions {
    /// Network namespace to connect from, by path; `None` is the caller's own.
    pub netns: Option<PathBuf>,
    /// The HTTP service, which answers `GET /bytes/N` with N bytes.
    pub target: SocketAddr,
    /// How many downloads at a time, 1 to 100.
    pub transfers: usize,
    /// Size of each, in bytes.
    pub bytes: u64,
    /// Pace of each, in bytes per second.
    pub bytes_per_s: u64,
    /// A download that gets nothing for this long has failed.
    pub timeout: Duration,
}

impl TransfersOptions {
    /// 4 downloads of 64 MiB at 8 MiB/s each, from the caller's namespace; 10 s without a byte is a failure.
    pub fn new(target: SocketAddr) -> TransfersOptions {
        TransfersOptions {
            netns: None,
            target,
            transfers: 4,
            bytes: 64 << 20,
            bytes_per_s: 8 << 20,
            timeout: Duration::from_secs(10),
        }
    }
}

/// What happened to the downloads within a window.
#[derive(Debug, Clone, Serialize)]
pub struct TransfersReport {
    /// Where they came from.
    pub target: SocketAddr,
    /// Downloads that came whole, with the length that was asked for.
    pub complete: u64,
    /// Downloads that broke, came short or were refused.
    pub failed: u64,
    /// Every kind of failure by name.
    pub failures: BTreeMap<String, u64>,
    /// Body bytes received since the start.
    pub bytes: u64,
    /// How long a reader had to wait for the next bytes when it wanted them, over all such waits.
    pub wait_ms: Quantiles,
    /// The longest of these, in milliseconds, one that lasts included.
    pub longest_stall_ms: f64,
    /// Waits of at least 10 ms, in order of time; at most the latest 10,000.
    pub stalls: Vec<Stall>,
    /// Processor time of our own thread, in milliseconds; known at the end.
    pub cpu_ms: Option<f64>,
}

/// K downloads, one after the other on each of K connections.
pub struct Transfers {
    shared: Arc<Mutex<Record>>,
    target: SocketAddr,
    worker: Worker<()>,
}

impl Transfers {
    /// Starts at once.
    ///
    /// # Errors
    /// When the number, size or pace is out of range.
    pub fn start(options: TransfersOptions) -> Result<Transfers> {
        ensure!(
            (1..=MAX_TRANSFERS).contains(&options.transfers) && options.bytes > 0 && options.bytes_per_s > 0,
            "{} transfers of {} bytes at {} bytes/s: 1 to {MAX_TRANSFERS} transfers, size and pace above 0",
            options.transfers,
            options.bytes,
            options.bytes_per_s
        );
        let shared = Arc::new(Mutex::new(Record::default()));
        let (target, for_run) = (options.target, Arc::clone(&shared));
        let worker = Worker::start(
            "transfers",
            options.netns.clone(),
            Nice::First,
            |_| Ok(()),
            move |(), poller| Runner::new(&options, poller, for_run).run(),
        )?;
        Ok(Transfers { shared, target, worker })
    }

    /// What happened within `window` so far. A stall belongs to it if any part of it does.
    pub fn report(&self, window: Window) -> TransfersReport {
        lock(&self.shared).report(self.target, window)
    }

    /// Breaks the downloads off, which counts neither way, and reports on the whole time.
    pub fn finish(self) -> TransfersReport {
        let ended = self.worker.finish();
        let mut report = lock(&self.shared).report(self.target, Window::ALL);
        report.cpu_ms = Some(ended.cpu_ms);
        report
    }
}

#[derive(Default)]
struct Record {
    /// (when, how) each download ended.
    ended: Vec<(u64, Option<Failure>)>,
    /// (from, how long, local port).
    waits: VecDeque<(u64, u32, u16)>,
    /// The wait of each transfer that lasts.
    waiting: Vec<Option<(u64, u16)>>,
    bytes: u64,
}

impl Record {
    fn waited(&mut self, index: usize, now: u64) {
        let Some((from_ns, port)) = self.waiting[index].take() else { return };
        if self.waits.len() == MAX_WAITS {
            self.waits.pop_front();
        }
        self.waits.push_back((from_ns, us(now.saturating_sub(from_ns)), port));
    }

    fn report(&self, target: SocketAddr, window: Window) -> TransfersReport {
        let now = now_ns();
        let lasting =
            self.waiting.iter().flatten().map(|(from_ns, port)| (*from_ns, us(now.saturating_sub(*from_ns)), *port));
        let waits: Vec<(u64, u32, u16)> = self.waits.iter().copied().chain(lasting).collect();
        let waits: Vec<_> = waits
            .into_iter()
            .filter(|(from, took, _)| window.touches(*from, from + u64::from(*took) * 1_000))
            .collect();
        let mut failures = BTreeMap::new();
        let ended: Vec<Option<Failure>> =
            self.ended.iter().filter(|(at_ns, _)| window.holds(*at_ns)).map(|(_, failure)| *failure).collect();
        for failure in ended.iter().flatten() {
            *failures.entry(failure.to_string()).or_default() += 1;
        }
        let failed = failures.values().sum();
        let wait_ms = Quantiles::of_us(waits.iter().map(|(_, took_us, _)| *took_us).collect());
        let long = waits.iter().filter(|(_, took_us, _)| *took_us >= STALL_FLOOR_US);
        let stalls: Vec<Stall> = long
            .map(|(from_ns, took_us, port)| Stall {
                from_ns: *from_ns,
                stall_ms: f64::from(*took_us) / 1_000.0,
                local_port: *port,
            })
            .collect();
        TransfersReport {
            target,
            complete: ended.len() as u64 - failed,
            failed,
            failures,
            bytes: self.bytes,
            wait_ms,
            longest_stall_ms: wait_ms.max,
            stalls: stalls[stalls.len().saturating_sub(MAX_STALLS)..].to_vec(),
            cpu_ms: None,
        }
    }
}

/// One connection; it reads a chunk when the pace allows it, and waits for readiness only if there is nothing to read.
struct Download {
    stream: Option<TcpStream>,
    port: u16,
    asked: bool,
    head: Vec<u8>,
    /// Body bytes still to come; `None` before the head is complete.
    left: Option<u64>,
    close: bool,
    /// When the pace allows the next step (read, or connect).
    next_ns: u64,
    /// Since when it waits for bytes.
    waits_since_ns: Option<u64>,
}

struct Runner<'a> {
    options: &'a TransfersOptions,
    poller: Poller,
    shared: Arc<Mutex<Record>>,
    request: Vec<u8>,
    downloads: Vec<Download>,
    buffer: Vec<u8>,
}

impl Runner<'_> {
    fn new(options: &TransfersOptions, poller: Poller, shared: Arc<Mutex<Record>>) -> Runner<'_> {
        let request = http::request(options.target, &format!("/bytes/{}", options.bytes), false);
        let now = now_ns();
        let fresh = |_| Download {
            stream: None,
            port: 0,
            asked: false,
            head: Vec::new(),
            left: None,
            close: false,
            next_ns: now,
            waits_since_ns: None,
        };
        lock(&shared).waiting = vec![None; options.transfers];
        let downloads = (0..options.transfers).map(fresh).collect();
        Runner { options, poller, shared, request, downloads, buffer: vec![0; CHUNK] }
    }

    fn run(mut self) {
        let mut ready = Vec::new();
        let timeout_ns = self.options.timeout.as_nanos() as u64;
        while !self.poller.stopping() {
            for Ready { token, .. } in &ready {
                // Edge-triggered: readiness concerns only who waits; the others read when their pace allows it.
                if self.downloads[*token].waits_since_ns.is_some() {
                    self.step(*token);
                }
            }
            let now = now_ns();
            let mut until = u64::MAX;
            for index in 0..self.downloads.len() {
                match self.downloads[index].waits_since_ns {
                    Some(since_ns) if since_ns + timeout_ns <= now => self.ended(index, Some(Failure::Timeout)),
                    None if self.downloads[index].next_ns <= now => self.step(index),
                    _ => {}
                }
                let download = &self.downloads[index];
                until = until.min(download.waits_since_ns.map_or(download.next_ns, |since_ns| since_ns + timeout_ns));
            }
            if self.poller.wait(until, &mut ready).is_err() {
                return;
            }
        }
    }

    fn step(&mut self, index: usize) {
        let outcome = match &self.downloads[index].stream {
            None => self.connect(index),
            Some(_) => self.read(index),
        };
        if let Err(failure) = outcome {
            self.ended(index, Some(failure));
        }
    }

    fn connect(&mut self, index: usize) -> Result<(), Failure> {
        let fail = |error: std::io::Error| Failure::from(&error);
        let stream = dial(self.options.target).map_err(fail)?;
        SockRef::from(&stream).set_recv_buffer_size(RECEIVE_BUFFER).map_err(fail)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.poller.add(&stream, index, flags).map_err(fail)?;
        let download = &mut self.downloads[index];
        download.port = stream.local_addr().map_err(fail)?.port();
        download.stream = Some(stream);
        self.wait(index);
        Ok(())
    }

    fn wait(&mut self, index: usize) {
        let download = &mut self.downloads[index];
        let since_ns = *download.waits_since_ns.get_or_insert_with(now_ns);
        // Until it is asked, it is connecting; a refused or slow connect is no stall of a transfer.
        if download.asked {
            lock(&self.shared).waiting[index] = Some((since_ns, download.port));
        }
    }

    fn read(&mut self, index: usize) -> Result<(), Failure> {
        let download = &mut self.downloads[index];
        let Some(stream) = &mut download.stream else { return Ok(()) };
        if !download.asked {
            if let Some(error) = stream.take_error().unwrap_or_else(Some) {
                return Err(Failure::from(&error));
            }
            match stream.write_all(&self.request) {
                Ok(()) => download.asked = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(Failure::from(&error)),
            }
            download.waits_since_ns = None;
            self.wait(index);
            return Ok(());
        }
        let count = match stream.read(&mut self.buffer) {
            Ok(0) => return Err(Failure::Eof),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.wait(index);
                return Ok(());
            }
            Err(error) => return Err(Failure::from(&error)),
        };
        let now = now_ns();
        download.waits_since_ns = None;
        lock(&self.shared).waited(index, now);
        // A slow reader is never owed more than one chunk, so a stall is not followed by a burst.
        let pace_ns = count as u64 * NS_PER_S / self.options.bytes_per_s;
        download.next_ns = download.next_ns.max(now.saturating_sub(MAX_DEBT_NS)) + pace_ns;
        let mut body = count as u64;
        if download.left.is_none() {
            download.head.extend_from_slice(&self.buffer[..count]);
            let Some(head) = http::head(&download.head)? else { return Ok(()) };
            if head.status != 200 {
                return Err(Failure::BadStatus(head.status));
            }
            if head.body_len as u64 != self.options.bytes {
                return Err(Failure::BadAnswer);
            }
            download.left = Some(self.options.bytes);
            download.close = head.close;
            body = (download.head.len() - head.len) as u64;
            download.head.clear();
        }
        lock(&self.shared).bytes += body;
        let left = download.left.get_or_insert(0);
        *left = left.checked_sub(body).ok_or(Failure::BadAnswer)?;
        if *left == 0 {
            self.ended(index, None);
        }
        Ok(())
    }

    /// Counts one download; the next begins on the same connection if it may, or on a new one.
    fn ended(&mut self, index: usize, failure: Option<Failure>) {
        let now = now_ns();
        let mut record = lock(&self.shared);
        record.waited(index, now);
        record.ended.push((now, failure));
        drop(record);
        let download = &mut self.downloads[index];
        download.left = None;
        download.head.clear();
        download.asked = false;
        download.waits_since_ns = None;
        if failure.is_some() || download.close {
            download.stream = None;
        }
        if failure.is_some() {
            download.next_ns = now + AGAIN_AFTER_NS;
        }
    }
}

const MAX_TRANSFERS: usize = 100;
const CHUNK: usize = 64 * 1024;
const RECEIVE_BUFFER: usize = 128 * 1024;
const MAX_DEBT_NS: u64 = 20 * NS_PER_MS;
const AGAIN_AFTER_NS: u64 = 50 * NS_PER_MS;
const MAX_WAITS: usize = 1_000_000;
const MAX_STALLS: usize = 10_000;
const STALL_FLOOR_US: u32 = 10_000;
