//! The short simulation of `cargo test`. The long one is `./justw sim 100000`.

use trilith_core::plant::Bug;
use trilith_sim::check::Violation;
use trilith_sim::run::{self, Worlds};
use trilith_sim::trace::{Fnv, Trace};

#[test]
fn nothing_breaks_in_the_short_simulation() {
    let summary = run::many(1, SHORT, Worlds::Vips, None, threads(), &|_| {});
    assert_sound(summary.broken);
    assert_eq!(summary.seeds, SHORT);
    // A world in which nothing goes wrong would prove nothing.
    let rare =
        ["owners", "moves", "failovers", "crashes", "stuns", "freezes", "conflicts", "relayed", "replays", "gaps"];
    for (name, count) in summary.stats.all().filter(|(name, _)| rare.contains(name)) {
        assert!(count > 0, "not one of {name} in {SHORT} seeds");
    }
}

#[test]
fn no_rollout_breaks_anything_in_the_short_simulation() {
    let summary = run::many(1, SHORT_ROLLOUTS, Worlds::Rollouts, None, threads(), &|_| {});
    assert_sound(summary.broken);
    for (name, count) in summary.rollouts.all() {
        assert!(count > 0, "not one of {name} in {SHORT_ROLLOUTS} seeds");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..=20 {
        let hash = || run::one(seed, Worlds::All, None, Trace::Hash(Fnv::new())).trace;
        assert_eq!(hash(), hash(), "seed {seed}");
    }
    let hash = |seed| run::one(seed, Worlds::All, None, Trace::Hash(Fnv::new())).trace;
    assert_ne!(hash(1), hash(2));
}

#[test]
fn seeds_that_once_broke_something_do_so_no_more() {
    for line in include_str!("../seeds.txt").lines().filter(|line| !line.starts_with('#')) {
        let number = line.split_whitespace().next().unwrap_or_default();
        let seed = number.parse().unwrap_or_else(|_| panic!("seeds.txt: {line:?} does not begin with a seed"));
        assert_sound(run::one(seed, Worlds::All, None, Trace::Off).violation.map(|violation| (seed, violation)));
    }
}

#[test]
fn every_planted_bug_is_found() {
    let bugs = Bug::ALL.into_iter().chain(Bug::OF_ROLLOUTS);
    for (bug, hint) in bugs.zip(HINTS.into_iter().chain(HINTS_OF_ROLLOUTS)) {
        let found = run::one(hint, Worlds::All, Some(bug), Trace::Off).violation.is_some()
            || run::many(1, BOUND, Worlds::All, Some(bug), threads(), &|_| {}).broken.is_some();
        assert!(found, "{bug:?} is not found within {BOUND} seeds");
    }
}

fn assert_sound(broken: Option<(u64, Violation)>) {
    if let Some((seed, Violation { invariant, what, at })) = broken {
        panic!("seed {seed} breaks \"{invariant}\" at {at} us: {what}\nrepeat it with: {}", run::repeat(seed));
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

const SHORT: u64 = if cfg!(debug_assertions) { 1_000 } else { 2_000 };
const SHORT_ROLLOUTS: u64 = if cfg!(debug_assertions) { 300 } else { 2_000 };
/// Seeds that find the bugs, in the order of [`Bug::ALL`], as `trilith-sim bugs` tells them. Only where one fails to is more tried.
const HINTS: [u64; Bug::ALL.len()] = [80, 292, 40, 1, 6, 667, 16, 12, 35, 17, 14, 440, 1, 18, 1, 275, 19];
/// The same for [`Bug::OF_ROLLOUTS`].
const HINTS_OF_ROLLOUTS: [u64; Bug::OF_ROLLOUTS.len()] = [15, 12, 601, 3, 3, 12, 84, 189, 3, 1, 13337, 7];
/// More seeds than any bug needs.
const BOUND: u64 = 20_000;
