//! Benchmarks: what moving or losing a node costs those who talk to the VIP. Each is a recipe whose last line on standard
//! output is one JSON object; progress goes to standard error. It fails when a promise is broken, after that line.
//!
//! | recipe | question |
//! |---|---|
//! | [`handover`] | do 1,000 connections and steady new ones notice planned moves? |
//! | [`failover`] | how long can nobody connect when the owner is cut off, against keepalived? |
//! | [`faults`] | what does each of the faults that we know of do? |
//! | [`proxy`] | what do Trilith's rules cost HAProxy? |
//! | [`idle`] | what does a supervisor at rest cost? |
//! | [`forged`] | does anything come of 100,000 forged datagrams? |

pub mod failover;
pub mod faults;
pub(crate) mod flows;
pub mod forged;
pub mod handover;
mod haproxy;
pub mod idle;
pub mod proxy;
pub(crate) mod said;

pub use flows::{Carrier, Fate, Flows, at_home};
pub use said::{VIPS, holders, move_vip, settle, until};

use anyhow::Result;
use clap::Subcommand;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// Planned moves under 1,000 established connections and steady new ones.
    Handover(handover::Options),
    /// The owner cut off, Trilith and keepalived in turn.
    Failover(failover::Options),
    /// One row for each fault.
    Faults(faults::Options),
    /// HAProxy with Trilith's rules, and the same one without them.
    Proxy(proxy::Options),
    /// The supervisors at rest.
    Idle(idle::Options),
    /// Forged, replayed, truncated and random datagrams at the owner's peer port.
    Forged(forged::Options),
}

/// Runs one benchmark.
///
/// # Errors
/// When the laboratory cannot be used, or when what was measured breaks a promise.
pub fn run(bench: Bench) -> Result<()> {
    match bench {
        Bench::Handover(options) => handover::run(&options),
        Bench::Failover(options) => failover::run(&options),
        Bench::Faults(options) => faults::run(&options),
        Bench::Proxy(options) => proxy::run(&options),
        Bench::Idle(options) => idle::run(&options),
        Bench::Forged(options) => forged::run(&options),
    }
}

fn say(line: &str) {
    eprintln!("bench: {line}");
}

/// Milliseconds from one instant of the laboratory's clock to a later one, to a tenth.
fn ms_between(from_ns: u64, to_ns: u64) -> f64 {
    tenth(to_ns.saturating_sub(from_ns) as f64 / 1e6)
}

fn tenth(ms: f64) -> f64 {
    (ms * 10.0).round() / 10.0
}
