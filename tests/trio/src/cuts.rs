//! `trio power-cuts`: the plug is pulled at random moments of an upgrade. The machine always comes back on a whole version, the rollout
//! ends in a state that it names, and clients notice nothing.
//!
//! The plug is that of a node which owns no VIP: what a proxy carries ends with its machine, whatever the machine was doing.
//! `bench failover` measures that.
//!
//! Each part of each node's way in a rollout is cut at most once, most of them are, at a random time from its beginning on. It is counted
//! as what the node was doing then: another node is asked just before. Between its word and the plug is one login by ssh. Power that
//! goes often goes twice: half of the machines lose it again while they come up, in the firmware, the boot loader or the system.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use trilith_lab::load::{Steady, SteadyOptions, Window, now_ns};
use trilith_lab::wait::wait_until;

use crate::machine::Machine;
use crate::plan::VIP;
use crate::status::said;
use crate::trio::{self, Trio, UP_DEADLINE, say};
use crate::upgrade::{PROMPT, bundle, image, plans, ready, shown, start, state, upload, wait_held};

/// What was seen.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// How often the plug was pulled, by what the machine was doing ([`doing`]).
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
    /// How long new clients waited at worst: up to [`PROMPT`] more if one was answered late, in milliseconds.
    longest_gap_ms: f64,
    /// 99 % of the requests were answered within so many milliseconds.
    latency_p99_ms: f64,
    /// All of them.
    latency_max_ms: f64,
    /// All of it.
    seconds: u64,
}

/// What a victim is doing, and for how long that takes, less the two logins that a cut begins with.
struct Moment {
    name: &'static str,
    lasts: Duration,
    begins: fn(&Value) -> Option<String>,
}

/// Moments of a rollout, in their order.
const MOMENTS: [Moment; 4] = [
    Moment { name: "staging", lasts: Duration::from_secs(6), begins: |rollout| fetching(rollout) },
    // Draining, writing the other slot, and ending.
    Moment { name: "switching", lasts: Duration::from_secs(8), begins: |rollout| at(rollout, &["draining", "acting"]) },
    // From the restart to the first word of the new version.
    Moment { name: "booting", lasts: Duration::from_secs(45), begins: |rollout| at(rollout, &["acting"]) },
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
    // Most rollouts take so many cuts. Further versions are made beside the machines.
    (0..cuts.div_ceil(USUAL)).try_for_each(|number| image(&version(number), &[]).map(drop))?;
    let trio = Trio::power_on(&plans(accel)?)?;
    say("three machines are on");
    trio.wait_serving(UP_DEADLINE)?;
    wait_held(&trio, "a set that has agreed on its configuration", |state| ready(state, None))?;
    let target = SocketAddr::new(VIP.into(), 80);
    let timeout = Duration::from_secs(20);
    let netns = Some(trio.network.client.path());
    let load = Steady::start(SteadyOptions { netns, rate: 5, timeout, prompt: PROMPT, ..SteadyOptions::new(target) })?;
    let (from_ns, begun) = (now_ns(), Instant::now());
    let mut summary = Summary::default();
    for number in 0.. {
        let left = cuts.saturating_sub(summary.cuts.values().sum());
        if left == 0 {
            break;
        }
        ensure!(number < cuts, "fewer cuts than asked for: the rollouts ended before them");
        if let Some(old) = number.checked_sub(KEPT) {
            let told = trio.ssh(&trio.machines[0], &["trilith", "upgrade", "remove", &version(old)])?;
            ensure!(told.status.success(), "upgrade remove: {}", String::from_utf8_lossy(&told.stderr).trim());
        }
        upload(&trio, &bundle(&version(number), &[])?)?;
        start(&trio, &version(number))?;
        rollout(&trio, &version(number), left, &mut summary)?;
        let report = load.report(Window::new(from_ns, now_ns()));
        summary.seconds = begun.elapsed().as_secs();
        summary.failed = report.failures.values().sum();
        summary.requests = report.ok + summary.failed;
        summary.longest_gap_ms = report.longest_gap_ms;
        (summary.latency_p99_ms, summary.latency_max_ms) = (report.latency_ms.p99, report.latency_ms.max);
        // Hours pass until the last one: what was seen by then is not to be lost with it.
        say(&format!("so far: {}", serde_json::to_string(&summary)?));
        ensure!(summary.failed == 0, "clients saw failures: {:?}", report.failures);
    }
    say(&format!("for {:.0} ms at most nobody who came was answered promptly", summary.longest_gap_ms));
    println!("{}", serde_json::to_string(&summary)?);
    ensure!(summary.done > 0, "not one rollout came to its end: {:?}", summary.given_up);
    Ok(())
}

/// One rollout, with so many cuts at most: until all nodes have the version, or it was given up.
fn rollout(trio: &Trio, version: &str, cuts: usize, summary: &mut Summary) -> Result<()> {
    let (mut done, mut resumed, mut gone) = (0, 0, 0);
    let begun = Instant::now();
    let mut met = BTreeSet::new();
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
        if rollout["hold"]["hold"] != "going" {
            let why = rollout["hold"].to_string();
            say(&format!("{version} waits: {why}"));
            let ask = |words: &[&str]| trio.ssh(&trio.machines[0], &[&["trilith", "upgrade"], words].concat());
            // Where cuts have used up the tries of a version it is banned, and good all the same.
            let unbanned = || ask(&["unban", version]).is_ok_and(|told| told.status.success());
            let goes_on = || ask(&["resume"]).is_ok_and(|told| told.status.success());
            if resumed < MAX_RESUMED && (goes_on() || unbanned() && goes_on()) {
                (resumed, summary.resumed) = (resumed + 1, summary.resumed + 1);
                continue;
            }
            summary.given_up.push(why);
            let told = ask(&["abort"])?;
            ensure!(told.status.success(), "upgrade abort: {}", String::from_utf8_lossy(&told.stderr).trim());
            wait_held(trio, "no rollout", |state| ready(state, None))?;
            return Ok(());
        }
        let mut begins = MOMENTS.iter().filter_map(|moment| Some((moment, (moment.begins)(rollout)?)));
        if done < cuts
            && let Some((moment, victim)) =
                begins.find(|(moment, victim)| !met.contains(&(moment.name, victim.clone())))
            && first_said(trio).is_some_and(|said| !owns(&said, &victim))
            && met.insert((moment.name, victim.clone()))
            && random() < CHANCE
        {
            // The random moment itself, not a condition.
            thread::sleep(moment.lasts.mul_f64(random()));
            done += cut(trio, trio.machine(&victim)?, moment.name, version, summary)?;
        }
    }
}

/// Pulls the plug and puts it back in, perhaps twice, if another node can be asked and the victim has not become the owner of a VIP: how
/// often it has. The machine must come up by itself, on the version that it had or on the new one, in the slot where that lies, and say so to the set.
fn cut(trio: &Trio, victim: &Machine, meant: &str, version: &str, summary: &mut Summary) -> Result<usize> {
    let name = victim.name();
    let Some((near, before)) = seen_by_others(trio, victim).filter(|(near, _)| !owns(near, name)) else {
        return Ok(0);
    };
    let twice = random() < TWICE;
    victim.power_cut()?;
    victim.power_on()?;
    if twice {
        // As above.
        thread::sleep(BOOT.mul_f64(random()));
        victim.power_cut()?;
        victim.power_on()?;
        *summary.cuts.entry("booting again").or_default() += 1;
    }
    let doing = doing(&before["state"]["rollout"], &near, name, version);
    let had = &before["state"]["nodes"][name];
    let part = &before["state"]["rollout"]["nodes"][name];
    let (mut booted, mut node) = (String::new(), Value::Null);
    wait_until(
        &format!("node {name} back after a power cut while {doing}, and known as what it runs"),
        UP_DEADLINE,
        || {
            thread::sleep(LOOK);
            let Ok(status) = said(trio, victim) else { return false };
            let running = status["version"].as_str().unwrap_or_default().to_owned();
            node = shown(trio, victim).unwrap_or_default()["state"]["nodes"][name].take();
            // The set was told that the new one is blessed there.
            let blessed = part["new"] != true || running != version || node["blessed"] == true;
            let known = node["running"] == running.as_str() && blessed;
            if booted.is_empty() {
                booted = running;
            }
            known
        },
    )
    .with_context(|| format!("it came up with {booted:?}, and the set has {node}\n{}", victim.last_words()))?;
    let word = if twice { "cut twice" } else { "cut" };
    say(&format!("  {word} while {doing} (meant: {meant}): {name} is back with {booted}; it says {}", words(&node)));
    let old = part["from"].as_str().or(had["running"].as_str()).unwrap_or_default();
    for running in [booted.as_str(), node["running"].as_str().unwrap_or_default()] {
        ensure!(running == old || running == version, "{name} came up with {running}, not {old} or {version}");
        ensure!(part["new"] != true || running == version, "{name} had {version} for good, and came up with {running}");
    }
    // A version stays in its slot, and the other one is in the other.
    let (same, stayed) = (node["running"] == had["running"], node["slot"] == had["slot"]);
    ensure!(same == stayed, "{name} had {}, and now: {}", words(had), words(&node));
    *summary.cuts.entry(doing).or_default() += 1;
    *summary.booted.entry(booted).or_default() += 1;
    Ok(1 + usize::from(twice))
}

/// The status and the state of the set by the first other node that answers both.
fn seen_by_others(trio: &Trio, victim: &Machine) -> Option<(Value, Value)> {
    let mut others = trio.machines.iter().filter(|machine| machine.name() != victim.name());
    let both = |machine| Some((said(trio, machine).ok()?, shown(trio, machine).ok()?));
    others.find_map(both)
}

/// What a node is doing, by the rollout and by another node's status: `between` when nothing of it is under way.
fn doing(rollout: &Value, near: &Value, name: &str, version: &str) -> &'static str {
    if rollout["turn"]["node"] == name {
        let mut nodes = near["nodes"].as_array().into_iter().flatten();
        let seen = nodes.find(|node| node["name"] == name).unwrap_or(&Value::Null);
        let gone = || seen["heard"] != true || seen["version"] == version;
        return match rollout["turn"]["step"].as_str() {
            Some("draining") => "draining",
            Some("acting") if gone() => "booting",
            Some("acting") => "switching",
            Some("verifying" | "settling") => "blessing",
            Some("returning") => "returning",
            _ => "between",
        };
    }
    let fetches = rollout["phase"] == "staging" && rollout["nodes"][name]["staged"] == false;
    if fetches { "staging" } else { "between" }
}

/// A node in the set's table, as a line.
fn words(node: &Value) -> String {
    let Value::Object(_) = node else { return "nothing".to_owned() };
    let or_none = |key: &str| node[key].as_str().unwrap_or("none").to_owned();
    let blessed = if node["blessed"] == true { "blessed" } else { "on trial" };
    format!("{} in slot {}, {blessed}, other {}", or_none("running"), or_none("slot"), or_none("other"))
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

/// The status of the first node that answers.
fn first_said(trio: &Trio) -> Option<Value> {
    trio.machines.iter().find_map(|machine| said(trio, machine).ok())
}

/// Whether that node owns a VIP, by this status.
fn owns(status: &Value, name: &str) -> bool {
    status["vips"].as_array().into_iter().flatten().any(|vip| vip["owner"] == name)
}

/// From 0 to 1, without 1.
fn random() -> f64 {
    // Where the system has no randomness there are no keys either, and nothing has come so far.
    f64::from(getrandom::u32().unwrap_or_default()) / (f64::from(u32::MAX) + 1.0)
}

/// Versions that are kept: more than the slots have, and fewer than a disk has room for.
const KEPT: usize = 3;
/// Cuts that a rollout takes at least, as a rule.
const USUAL: usize = 5;
/// Of the moments that begin, as many are taken.
const CHANCE: f64 = 0.85;
/// Of the machines that lose their power, as many lose it again.
const TWICE: f64 = 0.5;
/// What a machine needs until it serves, at least: firmware, boot loader, kernel, services.
const BOOT: Duration = Duration::from_secs(25);
/// Pause between two looks, each of which is a login or two: a moment is over soon.
const LOOK: Duration = Duration::from_secs(2);
/// Looks in a row that find no rollout.
const MAX_GONE: usize = 20;
/// How often a rollout is told to go on.
const MAX_RESUMED: usize = 12;
/// A rollout with all its cuts, on translated machines.
const DEADLINE: Duration = Duration::from_secs(2400);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_moment_is_what_the_set_and_the_neighbour_say_of_the_victim() {
        let turn = |node: &str, step: &str| json!({"phase": "rolling", "turn": {"node": node, "step": step}});
        let near = |heard: bool, version: &str| json!({"nodes": [{"name": "b", "heard": heard, "version": version}]});
        let staging =
            json!({"phase": "staging", "nodes": {"b": {"staged": false}, "c": {"staged": true}}, "turn": null});
        let old = near(true, "0.1.0");
        for (rollout, near, moment) in [
            (&staging, &old, "staging"),
            (&turn("b", "offered"), &old, "between"),
            (&turn("b", "draining"), &old, "draining"),
            (&turn("b", "acting"), &old, "switching"),
            (&turn("b", "acting"), &near(false, "0.1.0"), "booting"),
            (&turn("b", "acting"), &near(true, "0.2.0"), "booting"),
            (&turn("b", "settling"), &near(true, "0.2.0"), "blessing"),
            (&turn("a", "acting"), &old, "between"),
            (&Value::Null, &old, "between"),
        ] {
            assert_eq!(doing(rollout, near, "b", "0.2.0"), moment, "{rollout}");
        }
        assert_eq!(doing(&staging, &old, "c", "0.2.0"), "between", "it has all that it needs");
    }
}
