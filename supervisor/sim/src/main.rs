//! `trilith-sim`: runs seeds, replays one, plants bugs, explores small cases. The last line is one JSON object.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use trilith_core::plant::Bug;
use trilith_sim::check::Violation;
use trilith_sim::run::{self, Summary};
use trilith_sim::trace::{Fnv, Trace};

/// Simulates sets of three nodes in a lying world, and checks the design's invariants.
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
}

#[derive(Subcommand)]
enum Command {
    /// Plant each bug and count the seeds until it is found.
    Bugs {
        /// Give up after so many.
        #[arg(long, default_value_t = 20_000)]
        bound: u64,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match (arguments.command, arguments.seed) {
        (Some(Command::Bugs { bound }), _) => plant_all(bound),
        (None, Some(seed)) => run_one(seed, arguments.trace, arguments.bug.as_deref()),
        (None, None) => run_many(arguments.from, arguments.count),
    }
}

fn run_many(from: u64, count: u64) -> ExitCode {
    let shown = Mutex::new(Instant::now());
    let progress = |done: u64| {
        let mut shown = shown.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if std::io::stderr().is_terminal() && shown.elapsed() > Duration::from_millis(500) {
            *shown = Instant::now();
            eprint!("\r{done} of {count} seeds");
        }
    };
    let summary = run::many(from, count, None, threads(), &progress);
    if std::io::stderr().is_terminal() {
        eprintln!("\r{} of {count} seeds", summary.seeds);
    }
    if let Some((seed, violation)) = &summary.broken {
        show(*seed, violation);
    }
    println!("{}", as_json(&summary));
    if summary.broken.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn run_one(seed: u64, trace: bool, bug: Option<&str>) -> ExitCode {
    let bug = match bug.map(|name| Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name).ok_or(name)) {
        Some(Err(name)) => {
            eprintln!("no bug is named {name}; there are {:?}", Bug::ALL);
            return ExitCode::from(2);
        }
        bug => bug.and_then(Result::ok),
    };
    let trace = if trace { Trace::Text } else { Trace::Hash(Fnv::new()) };
    let verdict = run::one(seed, bug, trace);
    if let Some(violation) = &verdict.violation {
        show(seed, violation);
    }
    let violations = u64::from(verdict.violation.is_some());
    println!("{}", json!({ "seed": seed, "violations": violations, "trace": format!("{:016x}", verdict.trace) }));
    if violations > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn plant_all(bound: u64) -> ExitCode {
    let mut found = BTreeMap::new();
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        let summary = run::many(1, bound, Some(bug), threads(), &|_| {});
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
    println!("{}", json!({ "bugs": Bug::ALL.len(), "found": found, "missed": missed }));
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(seed: u64, violation: &Violation) {
    let ms = violation.at / 1000;
    println!("seed {seed} breaks \"{}\" at {ms} ms: {}", violation.invariant, violation.what);
    println!("repeat it with: {}", run::repeat(seed));
}

fn as_json(summary: &Summary) -> Value {
    let seconds = summary.took.as_secs_f64();
    let mut object = json!({
        "seeds": summary.seeds,
        "violations": u64::from(summary.broken.is_some()),
        "seeds_per_second": (summary.seeds as f64 / seconds).round(),
        "threads": threads(),
        "simulated_seconds": summary.stats.simulated_us / 1_000_000,
        "settled_ms_mean": summary.stats.settled_us / 1000 / summary.seeds.max(1),
        "twins": summary.twins,
    });
    for (name, count) in summary.stats.all().filter(|(name, _)| !name.ends_with("_us")) {
        object[name] = json!(count);
    }
    object
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
