//! The measuring side of the laboratory: what a client of the VIP sees, and what a third party on the LAN hears.
//!
//! Every generator and observer is one thread that enters a network namespace by its path, makes its sockets there
//! and waits in one epoll. So a single process can inject faults and measure at the same time, and all times are
//! nanoseconds of this host's `CLOCK_MONOTONIC` ([`now_ns`]): an event and an observation can be compared directly.
//!
//! | piece | question |
//! |---|---|
//! | [`Established`] | does a long-lived TCP connection break, and how long does it stall? |
//! | [`Steady`] | how long can nobody open a new connection? |
//! | [`KeepAlive`] | does an HTTP/1.1 client on a kept connection see an error, or a TCP client another end than a polite one? |
//! | [`Streams`] | does an HTTP/2 client see an error? |
//! | [`Transfers`] | does a large download stall, break or come short? |
//! | [`ArpWatch`] | who claims the VIP, and how many answer for it at once? |
//! | [`neighbour`] | whom does the client itself take for the VIP's owner? |
//! | [`throughput`] | how many requests per second, at what latency? |
//!
//! A generator is started with its options, read while it runs (`report(Some(window))`, `live()`), and ended with
//! `finish()`, which returns the last report. Dropping it ends it as well.
//!
//! Measuring shares two cores with what is measured. Each report therefore says what it cost (`cpu_ms`) and by how
//! much the generator itself was late (`lag_ms_max`): a stall no longer than that may be our own.

mod arp;
mod attempts;
mod echoes;
mod established;
mod failure;
mod frames;
mod http;
mod keepalive;
mod neighbour;
mod poller;
mod quantile;
mod stamped;
mod steady;
mod streams;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod throughput;
mod transfers;
mod worker;

pub use arp::{ArpLive, ArpReport, ArpWatch, ArpWatchOptions, Claim, OwnerChange};
pub use attempts::{Attempt, SteadyReport};
pub use echoes::{Break, EstablishedReport, Stall};
pub use established::{Established, EstablishedLive, EstablishedOptions};
pub use failure::Failure;
pub use frames::{ClaimKind, Mac};
pub use keepalive::{KeepAlive, KeepAliveOptions, KeepAliveReport};
pub use neighbour::{Neighbour, neighbour};
pub use quantile::{Histogram, Quantiles};
pub use steady::{Ask, Steady, SteadyLive, SteadyOptions};
pub use streams::{Streams, StreamsOptions, StreamsReport};
pub use throughput::{ThroughputOptions, ThroughputReport, throughput};
pub use transfers::{Transfers, TransfersOptions, TransfersReport};

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Nanoseconds of `CLOCK_MONOTONIC` (clock_gettime(2)): the one clock of the laboratory.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("Linux always has CLOCK_MONOTONIC");
    now.tv_sec() as u64 * NS_PER_S + now.tv_nsec() as u64
}

/// A span of the laboratory's clock, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Window {
    /// First nanosecond.
    pub from_ns: u64,
    /// Last nanosecond.
    pub to_ns: u64,
}

impl Window {
    /// All of time.
    pub const ALL: Window = Window { from_ns: 0, to_ns: u64::MAX };

    /// From one instant to another.
    pub fn new(from_ns: u64, to_ns: u64) -> Window {
        Window { from_ns, to_ns }
    }

    /// Whether the instant lies inside.
    pub fn holds(&self, at_ns: u64) -> bool {
        self.from_ns <= at_ns && at_ns <= self.to_ns
    }

    /// Whether any part of the span `from_ns..=to_ns` lies inside.
    pub fn touches(&self, from_ns: u64, to_ns: u64) -> bool {
        from_ns <= self.to_ns && to_ns >= self.from_ns
    }
}

/// One line of JSON for one row of results.
///
/// # Errors
/// When the value has a map key that is no string.
pub fn json_row<T: Serialize>(row: &T) -> serde_json::Result<String> {
    serde_json::to_string(row)
}

fn ms(ns: u64) -> f64 {
    round3(ns as f64 / NS_PER_MS as f64)
}

/// Three decimals of a millisecond are a microsecond, which is finer than anything measured here.
fn round3(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn us(ns: u64) -> u32 {
    u32::try_from(ns / 1000).unwrap_or(u32::MAX)
}

/// A panic in one thread must not hide what was measured until then.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

const NS_PER_S: u64 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;

/// Connections of one generator. One of each kind together stay below [`FILE_LIMIT`].
const MAX_CONNECTIONS: usize = 2_000;
/// File descriptors that the measuring side may use in all.
const FILE_LIMIT: u64 = 8_000;
