//! `trio power-cuts`: the plug is pulled at random moments of an upgrade. The machine always comes back on a whole version, the rollout
//! ends in a state that it names, and clients notice nothing.
//!
//! The plug is that of a node which owns no VIP: what a proxy carries ends with its machine, whatever the machine was doing.
//! `bench failover` measures that.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use trilith_lab::load::{Steady, SteadyOptions, Window, now_ns};
use trilith_lab::wait::wait_until;

use crate::machine::Machine;
use crate::plan::VIP;
use crate::trio::{self, Trio, UP_DEADLINE, say};
use crate::upgrade::{LOOK, bundle, plans, ready, start, state, upload, wait_held};

/// What was seen.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// How often the plug was pulled, by what the machine was doing.
    cuts: BTreeMap<&'static str, usize>,
    /// Boots after it, by the version that came up.
    booted: BTreeMap<String, usize>,
    /// Rollouts that ended with the new version on all nodes.
    done: usize,
    /// Those that halted, were told to go on, and how often.
    resumed: usize,
    /// Those that were given up, with the reason that the set gave.
    given_up: Vec<String>,
    /// Requests that have ended, a connection each.
    requests: u64,
    /// Those that failed.
    failed: u64,
    /// All of it.
    seconds: u64,
}

/// When the plug is pulled: what the victim is doing, and for how long that takes at most.
#[derive(Clone, Copy)]
struct Moment {
    name: &'static str,
    lasts: Duration,
    begins: fn(&Value) -> Option<String>,
}

/// Moments of a rollout, in their order.
const MOMENTS: [Moment; 4] = [
    Moment { name: "staging", lasts: Duration::from_secs(40), begins: |rollout| fetching(rollout) },
    // Draining, writing the other slot, and ending.
    Moment {
        name: "switching",
        lasts: Duration::from_secs(25),
        begins: |rollout| at(rollout, &["draining", "acting"]),
    },
    // From the restart to the first word of the new version.
    Moment { name: "booting", lasts: Duration::from_secs(60), begins: |rollout| at(rollout, &["acting"]) },
    Moment {
        name: "blessing",
        lasts: Duration::from_secs(20),
        begins: |rollout| at(rollout, &["verifying", "settling"]),
    },
];

/// Pulls the plug so often.
///
/// # Errors
/// When a machine does not come back on a whole version, a rollout does not end, or a client saw a failure.
pub fn run(cuts: usize) -> Result<()> {
    let accel = trio::prepare()?;
    let version = |number: usize| format!("0.{}.0", number + 2);
    // A rollout takes at least one cut for each node.
    let bundles =
        (0..cuts.div_ceil(3)).map(|number| bundle(&version(number), &[])).collect::<Result<Vec<PathBuf>>>()?;
    let trio = Trio::power_on(&plans(accel)?)?;
    say("three machines are on");
    trio.wait_serving(UP_DEADLINE)?;
    wait_held(&trio, "a set that has agreed on its configuration", |state| ready(state, None))?;
    let target = SocketAddr::new(VIP.into(), 80);
    let timeout = Duration::from_secs(20);
    let netns = Some(trio.network.client.path());
    let load = Steady::start(SteadyOptions { netns, rate: 5, timeout, prompt: timeout, ..SteadyOptions::new(target) })?;
    let (from_ns, begun) = (now_ns(), Instant::now());
    let mut summary = Summary::default();
    for (number, bundle) in bundles.iter().enumerate() {
        let left = cuts - summary.cuts.values().sum::<usize>();
        if left == 0 {
            break;
        }
        upload(&trio, bundle)?;
        start(&trio, &version(number))?;
        rollout(&trio, &version(number), left.min(MAX_CUTS), &mut summary)?;
    }
    summary.seconds = begun.elapsed().as_secs();
    let report = load.report(Window::new(from_ns, now_ns()));
    summary.failed = report.failures.values().sum();
    summary.requests = report.ok + summary.failed;
    println!("{}", serde_json::to_string(&summary)?);
    ensure!(summary.failed == 0, "clients saw failures: {:?}", report.failures);
    ensure!(summary.done > 0, "not one rollout came to its end: {:?}", summary.given_up);
    ensure!(summary.cuts.values().sum::<usize>() == cuts, "fewer cuts than asked for: the rollouts ended before them");
    Ok(())
}

/// One rollout, with so many cuts at most: until all nodes have the version, or it was given up.
fn rollout(trio: &Trio, version: &str, cuts: usize, summary: &mut Summary) -> Result<()> {
    let (mut done, mut resumed, mut gone) = (0, 0, 0);
    let begun = Instant::now();
    let mut next = one_of(&MOMENTS);
    loop {
        thread::sleep(LOOK);
        ensure!(begun.elapsed() < DEADLINE, "the rollout of {version} has not ended within {DEADLINE:?}");
        let Ok(seen) = state(trio) else { continue };
        let rollout = &seen["state"]["rollout"];
        if ready(&seen, Some(version)) {
            summary.done += 1;
            return Ok(());
        }
        if rollout.is_null() {
            // A node that has just started may not know of it yet.
            gone += 1;
            ensure!(gone < MAX_GONE, "the rollout of {version} is gone, and not all nodes have it: {seen:#}");
            continue;
        }
        gone = 0;
        if rollout["phase"] != "staging" && next.name == MOMENTS[0].name {
            // That moment does not come any more.
            next = one_of(&MOMENTS[1..]);
        }
        if rollout["hold"]["hold"] != "going" {
            let why = rollout["hold"].to_string();
            say(&format!("{version} waits: {why}"));
            let told = trio.ssh(&trio.machines[0], &["trilith", "upgrade", "resume"])?;
            if told.status.success() && resumed < MAX_RESUMED {
                (resumed, summary.resumed) = (resumed + 1, summary.resumed + 1);
                continue;
            }
            summary.given_up.push(why);
            let told = trio.ssh(&trio.machines[0], &["trilith", "upgrade", "abort"])?;
            ensure!(told.status.success(), "upgrade abort: {}", String::from_utf8_lossy(&told.stderr).trim());
            wait_held(trio, "no rollout", |state| ready(state, None))?;
            return Ok(());
        }
        if done < cuts
            && let Some(victim) = (next.begins)(rollout)
            && owner(trio).is_some_and(|owner| owner != victim)
        {
            // The random moment itself, not a condition.
            thread::sleep(next.lasts.mul_f64(random()));
            cut(trio, trio.machine(&victim)?, next.name, version, summary)?;
            done += 1;
            next = one_of(&MOMENTS);
        }
    }
}

/// Pulls the plug and puts it back in. The machine must come up by itself, on the version that it had or on the new one.
fn cut(trio: &Trio, victim: &Machine, doing: &'static str, version: &str, summary: &mut Summary) -> Result<()> {
    let name = victim.name();
    let part = state(trio)?["state"]["rollout"]["nodes"][name].clone();
    let old = part["from"].as_str().unwrap_or_default().to_owned();
    victim.power_cut()?;
    victim.power_on()?;
    let mut running = String::new();
    wait_until(&format!("node {name} back after a power cut while {doing}"), UP_DEADLINE, || {
        thread::sleep(LOOK);
        let Some(status) = status(trio, victim) else { return false };
        running = status["version"].as_str().unwrap_or_default().to_owned();
        true
    })
    .with_context(|| victim.last_words())?;
    say(&format!("  cut while {doing}: {name} is back with {running}"));
    ensure!(running == old || running == version, "{name} came up with {running}, not {old} or {version}");
    // The set was told that it is blessed there.
    ensure!(part["new"] != true || running == version, "{name} had {version} for good, and came up with {running}");
    *summary.cuts.entry(doing).or_default() += 1;
    *summary.booted.entry(running).or_default() += 1;
    Ok(())
}

/// A node that still fetches, or checks what it has fetched.
fn fetching(rollout: &Value) -> Option<String> {
    let nodes = rollout["nodes"].as_object().filter(|_| rollout["phase"] == "staging")?;
    let mut left = nodes.iter().filter(|(_, part)| part["staged"] != true);
    // The last one: the first would be the one whose bundle the others fetch.
    left.next_back().map(|(name, _)| name.clone())
}

/// The node whose turn it is, if it is that far.
fn at(rollout: &Value, steps: &[&str]) -> Option<String> {
    let step = rollout["turn"]["step"].as_str().filter(|step| steps.contains(step));
    step.and_then(|_| rollout["turn"]["node"].as_str()).map(str::to_owned)
}

/// Who owns the VIP, as the first node that answers has it.
fn owner(trio: &Trio) -> Option<String> {
    let status = trio.machines.iter().find_map(|machine| status(trio, machine))?;
    status["vips"][0]["owner"].as_str().map(str::to_owned)
}

/// A node's own status; `None` when it does not answer.
fn status(trio: &Trio, machine: &Machine) -> Option<Value> {
    let said = trio.ssh(machine, &["trilith", "status", "--json"]).ok().filter(|said| said.status.success())?;
    serde_json::from_slice(&said.stdout).ok()
}

/// One of these, at random.
fn one_of(moments: &[Moment]) -> Moment {
    moments[(random() * moments.len() as f64) as usize]
}

/// From 0 to 1, without 1.
fn random() -> f64 {
    // Where the system has no randomness there are no keys either, and nothing has come so far.
    f64::from(getrandom::u32().unwrap_or_default()) / (f64::from(u32::MAX) + 1.0)
}

/// Cuts in one rollout: a version that is interrupted on each try is given up, as it should be.
const MAX_CUTS: usize = 5;
/// Looks in a row that find no rollout.
const MAX_GONE: usize = 6;
/// How often a rollout is told to go on.
const MAX_RESUMED: usize = 5;
/// A rollout with all its cuts, on translated machines.
const DEADLINE: Duration = Duration::from_secs(2400);
