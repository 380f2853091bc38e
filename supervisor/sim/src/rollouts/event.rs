//! What happens in these worlds, and what is counted of it.

use std::ops::AddAssign;

use trilith_core::set::{Release, Request};

use crate::stats::counters;

counters! {
    /// True time, in microseconds.
    rollout_us,
    /// Steps of agents.
    agent_steps,
    /// Entries committed.
    commits,
    /// Turns that were taken.
    turns,
    /// Turns that were given back.
    given_back,
    /// Switches.
    switches,
    /// Reverts by a node itself.
    reverts,
    /// Versions of before that were brought back.
    rollbacks,
    /// Returns by the boot loader.
    boot_fallbacks,
    /// Blessings.
    blessings,
    /// Rollouts that ended done.
    rollouts_done,
    /// Rollouts that were taken back.
    rollouts_back,
    /// Rollouts that halted.
    rollouts_halted,
    /// Pauses because of a second failure.
    second_failures,
    /// Machines that lost their power.
    power_cuts,
    /// Steps of slot writing that were cut off.
    torn_steps,
    /// Names of running systems that a disk lost with the power.
    lost_names,
    /// Disks that were lost.
    wipes,
    /// Leaders.
    elections,
    /// Singletons' leases that were given to somebody.
    leases,
}

/// Something that happens.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// The machine's kernel starts.
    Boot(usize, u32),
    /// The supervisor starts.
    Start(usize, u32),
    /// The machine restarts by itself: a panic, a watchdog, `FailureAction`.
    Restart(usize, u32, &'static str),
    /// The supervisor dies.
    Die(usize, u32),
    /// A node looks around.
    Look(usize),
    /// A node applies what is committed.
    View(usize),
    /// An agent wanted to be called.
    Wake(usize, u32, u64),
    /// A step of slot writing ends.
    Step(usize, u32),
    /// The same, in the middle, where the power fails.
    Tear(usize, u32, u64),
    /// A drain ends.
    Drained(usize, u32),
    /// A job ends.
    Job(usize, u32, Release),
    /// The service that was switched runs.
    Service(usize, u32),
    /// The singleton's unit has stopped.
    Stopped(usize),
    /// A request reaches the leader.
    Commit(usize, Box<Request>),
    /// The VIP finds another owner.
    Vip,
    /// A leader is chosen.
    Elect,
    /// A fault strikes.
    Fault(usize),
    /// A fault that lasts ends.
    Mend(usize, Mend),
    /// An operator acts.
    Order(usize),
    /// Is everything as it should be?
    Judge,
}

/// What ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mend {
    Power,
    Network,
    Fitness,
}

/// What is wrong: the invariant and what was seen.
pub(super) type Broken = (&'static str, String);
