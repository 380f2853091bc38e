//! Many seeds, on all cores; one seed, to be read; the same seed twice, with and without an attacker.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use trilith_core::command::Command;
use trilith_core::plant::Bug;
use trilith_core::wire::Heartbeat;

use crate::check::Violation;
use crate::plan::Plan;
use crate::rollouts;
use crate::stats::Stats;
use crate::trace::Trace;
use crate::world::{Options, Outcome, World};

/// One of so many attacked seeds is run a second time without the attacker, to be compared (invariant 8).
pub const TWIN_EVERY: u64 = 8;

/// What many seeds came to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Seeds that were run.
    pub seeds: u64,
    /// Sum over all worlds of VIPs.
    pub stats: Stats,
    /// Sum over all worlds of rollouts.
    pub rollouts: rollouts::Stats,
    /// Pairs of runs that were compared.
    pub twins: u64,
    /// The broken one with the lowest number, if any.
    pub broken: Option<(u64, Violation)>,
    /// How long it took.
    pub took: Duration,
}

/// Runs seeds `from .. from + count` on `threads` threads; stops at the first broken invariant.
pub fn many(
    from: u64,
    count: u64,
    worlds: Worlds,
    bug: Option<Bug>,
    threads: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Summary {
    let start = Instant::now();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let sum = Mutex::new((Stats::default(), 0, 0, None::<(u64, Violation)>, rollouts::Stats::default()));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let at = next.fetch_add(BATCH, Ordering::Relaxed);
                    if at >= count {
                        break;
                    }
                    let (mut stats, mut seeds, mut twins, mut broken) = (Stats::default(), 0, 0, None);
                    let mut rollouts = rollouts::Stats::default();
                    for seed in from + at..from + (at + BATCH).min(count) {
                        let verdict = one(seed, worlds, bug, Trace::Off);
                        stats += verdict.stats;
                        rollouts += verdict.rollouts;
                        seeds += 1;
                        twins += u64::from(verdict.twin);
                        if let Some(violation) = verdict.violation {
                            broken = Some((seed, violation));
                            stop.store(true, Ordering::Relaxed);
                            break;
                        }
                    }
                    // A thread that panicked has ended the whole program.
                    let mut sum = sum.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    sum.0 += stats;
                    sum.1 += seeds;
                    sum.2 += twins;
                    sum.4 += rollouts;
                    if let Some((seed, _)) = &broken
                        && sum.3.as_ref().is_none_or(|(lowest, _)| seed < lowest)
                    {
                        sum.3 = broken;
                    }
                    progress(sum.1);
                }
            });
        }
    });
    let (stats, seeds, twins, broken, rollouts) = sum.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    Summary { seeds, stats, rollouts, twins, broken, took: start.elapsed() }
}

/// What one seed came to.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What was broken, if anything.
    pub violation: Option<Violation>,
    /// What has happened in its world of VIPs.
    pub stats: Stats,
    /// What has happened in its world of rollouts.
    pub rollouts: rollouts::Stats,
    /// Hash of the trace, if one was asked for.
    pub trace: u64,
    /// It was run twice, with and without the attacker.
    pub twin: bool,
}

/// Which worlds of a seed are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worlds {
    /// Those that a planted bug concerns; without one, all.
    All,
    /// Those of VIPs only.
    Vips,
    /// Those of rollouts only.
    Rollouts,
}

/// Runs the worlds of one seed.
pub fn one(seed: u64, worlds: Worlds, bug: Option<Bug>, trace: Trace) -> Verdict {
    let of_rollouts = bug.is_some_and(|bug| Bug::OF_ROLLOUTS.contains(&bug));
    let vips = worlds != Worlds::Rollouts && !of_rollouts;
    let rollouts = worlds != Worlds::Vips && (bug.is_none() || of_rollouts);
    let mut verdict = Verdict {
        violation: None,
        stats: Stats::default(),
        rollouts: rollouts::Stats::default(),
        trace: 0,
        twin: false,
    };
    if vips {
        verdict = one_of_vips(seed, bug, trace.clone());
    }
    if verdict.violation.is_none() && rollouts {
        let outcome = guarded(
            seed,
            || rollouts::run(seed, bug, trace),
            |violation| rollouts::Outcome { violation: Some(violation), stats: rollouts::Stats::default(), trace: 0 },
        );
        verdict.violation = outcome.violation;
        verdict.rollouts = outcome.stats;
        verdict.trace ^= outcome.trace.rotate_left(1);
    }
    verdict
}

/// Runs the world of VIPs of one seed, and its twin when it has one.
fn one_of_vips(seed: u64, bug: Option<Bug>, trace: Trace) -> Verdict {
    let plan = Plan::of(seed);
    let twin = plan.attacks_per_s > 0 && seed.is_multiple_of(TWIN_EVERY);
    let options = Options { bug, trace, strict: twin, record: twin, ..Options::default() };
    let panicked =
        |violation| Outcome { violation: Some(violation), stats: Stats::default(), trace: 0, commands: Vec::new() };
    let outcome = guarded(seed, || World::run(&plan, options), panicked);
    let mut violation = outcome.violation;
    if twin && violation.is_none() {
        let options = Options { bug, strict: true, record: true, attack: false, ..Options::default() };
        let calm = guarded(seed, || World::run(&plan, options), panicked);
        violation = calm.violation.or_else(|| first_difference(&outcome.commands, &calm.commands));
    }
    Verdict { violation, stats: outcome.stats, rollouts: rollouts::Stats::default(), trace: outcome.trace, twin }
}

fn first_difference(attacked: &[crate::world::Recorded], calm: &[crate::world::Recorded]) -> Option<Violation> {
    let place = (0..attacked.len().max(calm.len())).find(|at| match (attacked.get(*at), calm.get(*at)) {
        (Some(a), Some(b)) => (a.0, a.1) != (b.0, b.1) || !same(&a.2, &b.2),
        _ => true,
    })?;
    let (with, without) = (attacked.get(place), calm.get(place));
    let at = with.or(without).map_or(0, |(at, _, _)| *at);
    let what = format!("with replayed and forged datagrams {with:?}, without {without:?}");
    Some(Violation { invariant: "8 only fresh datagrams change state", what, at })
}

/// Equal, but for what a node echoes of peers that it does not believe: that is a challenge to them, and changes nothing here.
fn same(a: &Command, b: &Command) -> bool {
    let (Command::Broadcast(a), Command::Broadcast(b)) = (a, b) else { return a == b };
    let believed = |heartbeat: &Heartbeat| {
        let heard = heartbeat.heard.map(|echo| echo.filter(|echo| echo.live));
        Heartbeat { heard, ..heartbeat.clone() }
    };
    a == b || believed(a) == believed(b)
}

/// A run whose panics are violations too: impossible transitions are assertions.
///
/// Where panics abort (the release profile), the seed is printed before.
fn guarded<T>(seed: u64, run: impl FnOnce() -> T, panicked: impl FnOnce(Violation) -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match SEED.get() {
            Some(seed) if cfg!(panic = "abort") => eprintln!("{info}\nrepeat it with: {}", repeat(seed)),
            Some(_) => {}
            None => usual(info),
        }));
    });
    SEED.set(Some(seed));
    let outcome = catch_unwind(AssertUnwindSafe(run));
    SEED.set(None);
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let what = format!("the core panics: {}", text.unwrap_or_default());
        panicked(Violation { invariant: "no panic", what, at: 0 })
    })
}

/// The one line that repeats a seed.
pub fn repeat(seed: u64) -> String {
    format!("./justw sim --seed {seed}")
}

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Seeds that a thread takes at a time.
const BATCH: u64 = 16;
