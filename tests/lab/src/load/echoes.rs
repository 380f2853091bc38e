//! What became of each ping of the long-lived connections, and what follows from all of them: stalls and breaks.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Mutex;

use serde::Serialize;

use super::{Failure, Quantiles, Window, lock, ms, now_ns, us};

/// A connection that broke.
#[derive(Debug, Clone, Serialize)]
pub struct Break {
    /// When it was seen.
    pub at_ns: u64,
    /// Its local TCP port, by which a node's HAProxy knows it.
    pub local_port: u16,
    /// How.
    pub failure: Failure,
}

/// A ping that waited long for its echo.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Stall {
    /// When the ping was sent.
    pub from_ns: u64,
    /// How long its echo took, in milliseconds; for a ping not yet answered, until now.
    pub stall_ms: f64,
    /// Local TCP port of the connection.
    pub local_port: u16,
}

/// What happened to the connections within a window.
#[derive(Debug, Clone, Serialize)]
pub struct EstablishedReport {
    /// Where they were connected to.
    pub target: SocketAddr,
    /// Connections at the start.
    pub established: usize,
    /// Connections broken within the window.
    pub broken: usize,
    /// Each of them.
    pub broken_at: Vec<Break>,
    /// Pings that were answered or are waiting.
    pub pings: u64,
    /// Time from ping to echo, over all pings.
    pub rtt_ms: Quantiles,
    /// The longest stall of each connection, over connections.
    pub stall_ms: Quantiles,
    /// The longest stalls of at least 10 ms, at most 1,000, in order of time.
    pub stalls: Vec<Stall>,
    /// Pings of the start that are no longer remembered, because only the latest four million are.
    pub forgotten: u64,
    /// How late our own thread was at worst, in milliseconds, since the start.
    pub lag_ms_max: f64,
    /// Processor time of our own thread, in milliseconds; known at the end.
    pub cpu_ms: Option<f64>,
}

/// What is known about one connection while it lives.
#[derive(Default)]
pub(super) struct Tally {
    pub local_port: u16,
    /// When each unanswered ping was sent, oldest first.
    pub waiting: VecDeque<u64>,
    pub broken: bool,
}

/// All pings and breaks.
#[derive(Default)]
pub(super) struct Record {
    pub tallies: Vec<Tally>,
    pub breaks: Vec<Break>,
    /// The longest stall since somebody last looked.
    pub recent_ns: u64,
    pub lag_ns: u64,
    pings: VecDeque<Ping>,
    forgotten: u64,
}

#[derive(Clone, Copy)]
struct Ping {
    sent_ns: u64,
    took_us: u32,
    connection: u32,
}

/// A copy of what concerns a window, to be evaluated without holding up the pings.
pub(super) struct Extract {
    pings: Vec<Ping>,
    breaks: Vec<Break>,
    ports: Vec<u16>,
    forgotten: u64,
    lag_ns: u64,
}

impl Tally {
    pub fn waits_ns(&self, now: u64) -> u64 {
        match self.waiting.front() {
            Some(sent) if !self.broken => now.saturating_sub(*sent),
            _ => 0,
        }
    }
}

impl Record {
    pub fn echoed(&mut self, connection: usize, came_ns: u64) {
        let Some(sent_ns) = self.tallies[connection].waiting.pop_front() else { return };
        let took_ns = came_ns.saturating_sub(sent_ns);
        self.recent_ns = self.recent_ns.max(took_ns);
        if self.pings.len() == MAX_PINGS {
            self.pings.pop_front();
            self.forgotten += 1;
        }
        self.pings.push_back(Ping { sent_ns, took_us: us(took_ns), connection: connection as u32 });
    }

    pub fn broke(&mut self, connection: usize, failure: Failure) {
        let tally = &mut self.tallies[connection];
        tally.broken = true;
        self.breaks.push(Break { at_ns: now_ns(), local_port: tally.local_port, failure });
    }
}

impl Ping {
    fn is_in(&self, window: Window) -> bool {
        window.touches(self.sent_ns, self.sent_ns.saturating_add(u64::from(self.took_us) * 1_000))
    }
}

impl Extract {
    /// Every ping any part of whose wait is in the window, those still waiting on a live connection included.
    pub fn of(record: &Mutex<Record>, window: Window) -> Extract {
        let record = lock(record);
        let now = now_ns();
        let mut pings: Vec<Ping> = record.pings.iter().filter(|ping| ping.is_in(window)).copied().collect();
        for (connection, tally) in record.tallies.iter().enumerate().filter(|(_, tally)| !tally.broken) {
            let connection = connection as u32;
            let waiting = tally.waiting.iter().map(|sent_ns| Ping {
                sent_ns: *sent_ns,
                took_us: us(now.saturating_sub(*sent_ns)),
                connection,
            });
            pings.extend(waiting.filter(|ping| ping.is_in(window)));
        }
        Extract {
            pings,
            breaks: record.breaks.iter().filter(|it| window.holds(it.at_ns)).cloned().collect(),
            ports: record.tallies.iter().map(|tally| tally.local_port).collect(),
            forgotten: record.forgotten,
            lag_ns: record.lag_ns,
        }
    }

    /// The longest stall within the window of each connection that had a ping in it.
    pub fn worst_us(&self, window: Window) -> Vec<u32> {
        let mut worst = vec![None; self.ports.len()];
        for ping in self.pings.iter().filter(|ping| ping.is_in(window)) {
            let worst = &mut worst[ping.connection as usize];
            *worst = (*worst).max(Some(ping.took_us));
        }
        worst.into_iter().flatten().collect()
    }

    pub fn report(self, target: SocketAddr) -> EstablishedReport {
        let rtt_ms = Quantiles::of_us(self.pings.iter().map(|ping| ping.took_us).collect());
        let stall_ms = Quantiles::of_us(self.worst_us(Window::ALL));
        let mut long: Vec<&Ping> = self.pings.iter().filter(|ping| ping.took_us >= STALL_FLOOR_US).collect();
        long.sort_unstable_by_key(|ping| std::cmp::Reverse(ping.took_us));
        long.truncate(MAX_STALLS);
        long.sort_unstable_by_key(|ping| ping.sent_ns);
        let stalls = long.into_iter().map(|ping| Stall {
            from_ns: ping.sent_ns,
            stall_ms: f64::from(ping.took_us) / 1_000.0,
            local_port: self.ports[ping.connection as usize],
        });
        EstablishedReport {
            target,
            established: self.ports.len(),
            broken: self.breaks.len(),
            pings: rtt_ms.count,
            rtt_ms,
            stall_ms,
            stalls: stalls.collect(),
            broken_at: self.breaks,
            forgotten: self.forgotten,
            lag_ms_max: ms(self.lag_ns),
            cpu_ms: None,
        }
    }
}

/// 64 MB; with 1,000 connections and a ping each 100 ms, the last 400 s.
const MAX_PINGS: usize = 4_000_000;
const MAX_STALLS: usize = 1_000;
const STALL_FLOOR_US: u32 = 10_000;
