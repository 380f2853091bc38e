//! Worlds of rollouts: whole machines with slots and reboots under the real agents, and a committed log in place of Raft.
//!
//! They run minutes where the worlds of VIPs run seconds, and take a step only when something changes, so they are cheap. What is
//! real: `trilith_core::set`, `rollout`, `slots`, `set::holder`. What is modelled: machines, the boot loader, networks, and
//! consensus as one log that each node stores and sees after a delay, and to which only a majority can add.

mod check;
mod deeds;
mod event;
mod finale;
mod log;
mod machine;
mod plan;
mod sight;
mod slots;
mod strike;
mod world;

use trilith_core::plant::Bug;

use crate::check::Violation;
use crate::trace::Trace;

pub use event::Stats;
pub use plan::Plan;

/// What one run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was broken, if anything.
    pub violation: Option<Violation>,
    /// What has happened.
    pub stats: Stats,
    /// Hash of the trace, if one was asked for.
    pub trace: u64,
}

/// Runs the rollout of a seed.
pub fn run(seed: u64, bug: Option<Bug>, trace: Trace) -> Outcome {
    world::World::new(Plan::of(seed), bug, trace).run()
}
