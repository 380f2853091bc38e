//! `trilith-sim`: runs seeds, replays one, plants bugs, explores small cases. The last line is one JSON object.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use serde_json::json;
use trilith_core::plant::Bug;
use trilith_sim::check::Violation;
use trilith_sim::explore;
use trilith_sim::run::{self, Summary, Worlds};
use trilith_sim::trace::{Fnv, Trace};

/// Simulates sets in a lying world, and checks ARCHITECTURE.md's invariants.
#[derive(Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many seeds to run, on all cores.
    #[arg(default_value_t = 2_000)]
    count: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Run this seed alone.
    #[arg(long, conflicts_with_all = ["count", "from"])]
    seed: Option<u64>,
    /// Show what happens in it.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Plant a bug in it, by its name in `plant.rs`.
    #[arg(long, requires = "seed")]
    bug: Option<String>,
    /// Only the worlds of rollouts.
    #[arg(long)]
    rollouts: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Plant each bug and count the seeds until it is found.
    Bugs {
        /// Give up after so many.
        #[arg(long, default_value_t = 20_000)]
        bound: u64,
        /// Only this one, by its name in `plant.rs`.
        #[arg(long)]
        bug: Option<String>,
    },
    /// Try every order of events from a few critical moments on.
    Explore {
        /// How many states to look at from each start: a million take about a minute.
        #[arg(long, default_value_t = 20_000)]
        states: usize,
        /// Plant a bug, by its name in `plant.rs`.
        #[arg(long)]
        bug: Option<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let worlds = if arguments.rollouts { Worlds::Rollouts } else { Worlds::All };
    match (arguments.command, arguments.seed) {
        (Some(Command::Bugs { bound, bug }), _) => {
            named(bug.as_deref()).map_or_else(unknown, |only| plant_all(bound, only))
        }
        (Some(Command::Explore { states, bug }), _) => {
            named(bug.as_deref()).map_or_else(unknown, |bug| explore_all(states, bug))
        }
        (None, Some(seed)) => {
            named(arguments.bug.as_deref()).map_or_else(unknown, |bug| run_one(seed, worlds, arguments.trace, bug))
        }
        (None, None) => run_many(arguments.from, arguments.count, worlds),
    }
}

fn run_many(from: u64, count: u64, worlds: Worlds) -> ExitCode {
    let shown = Mutex::new(Instant::now());
    let progress = |done: u64| {
        let mut shown = shown.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if std::io::stderr().is_terminal() && shown.elapsed() > Duration::from_millis(500) {
            *shown = Instant::now();
            eprint!("\r{done} of {count} seeds");
        }
    };
    let summary = run::many(from, count, worlds, None, threads(), &progress);
    if std::io::stderr().is_terminal() {
        eprintln!("\r{} of {count} seeds", summary.seeds);
    }
    if let Some((seed, violation)) = &summary.broken {
        show(*seed, violation);
    }
    println!("{}", as_json(&summary));
    if summary.broken.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The bug of this name, if one was given.
fn named(name: Option<&str>) -> Result<Option<Bug>, String> {
    let Some(name) = name else { return Ok(None) };
    let bug = all_bugs().find(|bug| format!("{bug:?}") == name);
    bug.map(Some).ok_or_else(|| format!("no bug is named {name}; there are {:?}", all_bugs().collect::<Vec<_>>()))
}

fn all_bugs() -> impl Iterator<Item = Bug> {
    Bug::ALL.into_iter().chain(Bug::OF_ROLLOUTS)
}

fn unknown(error: String) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(2)
}

fn run_one(seed: u64, worlds: Worlds, trace: bool, bug: Option<Bug>) -> ExitCode {
    let trace = if trace { Trace::Text } else { Trace::Hash(Fnv::new()) };
    let verdict = run::one(seed, worlds, bug, trace);
    if let Some(violation) = &verdict.violation {
        show(seed, violation);
    }
    let violations = u64::from(verdict.violation.is_some());
    println!("{}", json!({ "seed": seed, "violations": violations, "trace": format!("{:016x}", verdict.trace) }));
    if violations > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn plant_all(bound: u64, only: Option<Bug>) -> ExitCode {
    let mut found = BTreeMap::new();
    let mut missed = Vec::new();
    let bugs: Vec<Bug> = all_bugs().filter(|bug| only.is_none_or(|only| only == *bug)).collect();
    for bug in bugs.iter().copied() {
        let summary = run::many(1, bound, Worlds::All, Some(bug), threads(), &|_| {});
        let name = format!("{bug:?}");
        match summary.broken {
            Some((seed, violation)) => {
                println!("{name:<20} found by seed {seed:>6}: {}: {}", violation.invariant, violation.what);
                found.insert(name, seed);
            }
            None => {
                println!("{name:<20} NOT FOUND in {bound} seeds");
                missed.push(name);
            }
        }
    }
    println!("{}", json!({ "bugs": bugs.len(), "found": found, "missed": missed }));
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn explore_all(states: usize, bug: Option<Bug>) -> ExitCode {
    let start = Instant::now();
    let explored = explore::all(states, bug, threads());
    for found in &explored {
        println!("{:<16} {:>8} states, all within {} choices", format!("{:?}", found.start), found.states, found.depth);
        if let Some((violation, choices)) = &found.broken {
            println!("    breaks \"{}\": {}\n    after {choices:?}", violation.invariant, violation.what);
        }
    }
    let broken = explored.iter().filter(|found| found.broken.is_some()).count();
    let states: usize = explored.iter().map(|found| found.states).sum();
    let seconds = start.elapsed().as_secs();
    println!("{{\"states\":{states},\"violations\":{broken},\"seconds\":{seconds}}}");
    if broken > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn show(seed: u64, violation: &Violation) {
    let ms = violation.at / 1000;
    println!("seed {seed} breaks \"{}\" at {ms} ms: {}", violation.invariant, violation.what);
    println!("repeat it with: {}", run::repeat(seed));
}

/// One line; the words that one looks for first come first.
fn as_json(summary: &Summary) -> String {
    let seconds = summary.took.as_secs_f64();
    let mut fields = vec![
        ("seeds", summary.seeds),
        ("violations", u64::from(summary.broken.is_some())),
        ("seeds_per_second", (summary.seeds as f64 / seconds) as u64),
        ("threads", threads() as u64),
        ("simulated_seconds", summary.stats.simulated_us / 1_000_000),
        ("settled_ms_mean", summary.stats.settled_us / 1000 / summary.seeds.max(1)),
        ("twins", summary.twins),
    ];
    fields.push(("rollout_hours", summary.rollouts.rollout_us / 3_600_000_000));
    let counters = summary.stats.all().chain(summary.rollouts.all());
    fields.extend(counters.filter(|(name, _)| !name.ends_with("_us")));
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
