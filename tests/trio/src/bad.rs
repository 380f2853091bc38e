//! `trio bad-upgrades`: versions that break in every way. The node that gets one goes back by itself, the rollout halts, everybody
//! says why, clients notice nothing, and a good version is taken afterwards.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use trilith_lab::wait::wait_until;

use crate::machine::Machine;
use crate::trio::{self, Trio, UP_DEADLINE, say};
use crate::upgrade::{self, Load, bundle, image, mkbundle, plans, ready, start, upload, wait};

/// Trees of `tests/trio/bad` that are laid over the root, and what becomes of them.
pub const WAYS: [&str; 5] = ["kernel-panics", "init-hangs", "supervisor-crashes", "cannot-serve", "no-network"];
/// What comes after the bad ones.
const GOOD: &str = "0.2.0";
/// What would come after that.
const NEXT: &str = "0.3.0";
/// Size of disks with room for one bundle, beside what nodes write for themselves.
const DISK_MIB: u32 = 400;
/// What another bundle takes of them.
const BUNDLE_MIB: u32 = 56;

/// Bundles that no node may take, and words of the refusal.
const REFUSED: [(&str, &str); 3] =
    [("a flipped byte", "corrupted"), ("another product", "wrong product"), (FULL, "no room")];
const FULL: &str = "a full disk";

/// What was seen.
#[derive(Debug, Serialize)]
struct Summary {
    /// Versions that broke.
    bad: usize,
    /// Those whose node came back on the old version by itself, with the reason told by all nodes.
    reverted: usize,
    /// Seconds from each start until the node was back.
    seconds: Vec<u64>,
    /// What each node gave as its reason.
    reasons: Vec<String>,
    /// Bundles that were refused at the door, with the refusals.
    refused: Vec<String>,
    /// The good version at the end came to all nodes.
    good: bool,
    /// Requests of all clients that have ended.
    requests: u64,
    /// Those that failed.
    failed: u64,
    /// Connections that broke.
    broken: u64,
}

/// Tries these ways, one after the other.
///
/// # Errors
/// When a node stays where it should not, or a client saw a failure.
pub fn run(ways: &[String], keep: bool) -> Result<()> {
    let accel = trio::prepare()?;
    let mut bundles = Vec::new();
    for way in ways {
        bundles.push(bundle(&version(way)?, &[&format!("tests/trio/bad/{way}")])?);
    }
    let good = bundle(GOOD, &[])?;
    let bad = refusals()?;
    let mut plans = plans(accel)?;
    // Bad ones stay until an operator removes them, and then there is room for the good one and no other.
    plans.iter_mut().for_each(|plan| plan.disk_mib = Some(DISK_MIB + BUNDLE_MIB * ways.len() as u32));
    let trio = Trio::power_on(&plans)?;
    say("three machines are on");
    trio.wait_serving(UP_DEADLINE)?;
    wait(&trio, "a set that has agreed on its configuration", |state| ready(state, None))?;
    let load = Load::start(&trio)?;
    let done = all(&trio, ways, &bundles, &good, &bad, load);
    if done.is_err() && keep {
        trio.keep()?;
    }
    done
}

fn all(trio: &Trio, ways: &[String], bundles: &[PathBuf], good: &Path, bad: &[PathBuf], load: Load) -> Result<()> {
    let done = bad_and_good(trio, ways, bundles, good, bad);
    let seen = load.finish(0.0, Vec::new(), Vec::new());
    let (requests, failed, broken) = (seen.requests, seen.failed, seen.broken);
    // Also when it goes no further: how clients were served until then is half of it.
    say(&format!("{requests} requests: {failed} failed, {broken} connections broken"));
    let (seconds, reasons, refused) = done?;
    let (bad, reverted) = (ways.len(), reasons.len());
    let summary = Summary { bad, reverted, seconds, reasons, refused, good: true, requests, failed, broken };
    println!("{}", serde_json::to_string(&summary)?);
    ensure!(failed == 0 && broken == 0, "clients saw failures");
    Ok(())
}

/// Seconds and reasons of the bad ones, and the refusals of those that are not taken.
fn bad_and_good(
    trio: &Trio,
    ways: &[String],
    bundles: &[PathBuf],
    good: &Path,
    bad: &[PathBuf],
) -> Result<(Vec<u64>, Vec<String>, Vec<String>)> {
    let (mut seconds, mut reasons, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for (way, bundle) in ways.iter().zip(bundles) {
        let (took, reason) = one(trio, &version(way)?, bundle).with_context(|| format!("a version that {way}"))?;
        say(&format!("{way}: back after {took} s: {reason}"));
        seconds.push(took);
        reasons.push(reason);
    }
    for ((what, words), bundle) in REFUSED.iter().zip(bad) {
        if *what == FULL {
            // Until then there was room for one.
            upload(trio, good)?;
        }
        let Err(refusal) = upload(trio, bundle) else { bail!("a bundle with {what} was taken") };
        let refusal = format!("{refusal:#}");
        say(&format!("{what}: {refusal}"));
        ensure!(refusal.contains(words), "{what}: the refusal does not say {words:?}: {refusal}");
        refused.push(refusal);
    }
    start(trio, GOOD)?;
    wait(trio, "three nodes with the good version", |state| ready(state, Some(GOOD)))?;
    Ok((seconds, reasons, refused))
}

/// The version that is bad in that way.
fn version(way: &str) -> Result<String> {
    let place = WAYS.iter().position(|known| *known == way);
    place.map(|place| format!("0.1.{}", place + 1)).with_context(|| format!("no way {way:?}: {}", WAYS.join(", ")))
}

/// Bundles in the order of [`REFUSED`], all of them well signed.
fn refusals() -> Result<Vec<PathBuf>> {
    let next = image(NEXT, &[])?;
    let flipped = PathBuf::from(format!("{}-flipped", next.display()));
    fs::create_dir_all(&flipped)?;
    for file in ["root.erofs", "root.verity", "trilith.efi"] {
        fs::copy(next.join(file), flipped.join(file)).with_context(|| next.join(file).display().to_string())?;
    }
    let root = File::options().read(true).write(true).open(flipped.join("root.erofs"))?;
    let (at, mut byte) = (root.metadata()?.len() / 2, [0]);
    root.read_exact_at(&mut byte, at)?;
    root.write_all_at(&[byte[0] ^ 1], at)?;
    Ok(vec![
        mkbundle(&flipped, "bundle", &["--flawed"])?,
        mkbundle(&next, "other.bundle", &["--flawed", "--product", "millstone"])?,
        bundle(NEXT, &[])?,
    ])
}

/// One bad version: how long it took until its node was back and served, and the reason.
fn one(trio: &Trio, version: &str, bundle: &Path) -> Result<(u64, String)> {
    upload(trio, bundle)?;
    start(trio, version)?;
    let from = Instant::now();
    let state = upgrade::wait_held(trio, &format!("the rollout of {version} to halt"), |state| {
        state["state"]["rollout"]["hold"]["hold"] == "halted"
    })?;
    let node = state["state"]["rollout"]["hold"]["node"].as_str().context("a halted rollout names a node")?.to_owned();
    let back = upgrade::wait_held(trio, "its node to be back", |state| {
        let node = &state["state"]["nodes"][&node];
        node["running"] != version && node["blessed"] == true && node["fallback"]["version"] == version
    })?;
    let took = from.elapsed().as_secs();
    ensure!(!back["state"]["bans"][version].is_null(), "{version} is not banned: {}", back["state"]["bans"]);
    let reason =
        back["state"]["nodes"][&node]["fallback"]["reason"].as_str().context("a fallback has a reason")?.to_owned();
    for machine in &trio.machines {
        wait_until(&format!("{} to say why", machine.name()), UP_DEADLINE, || tells(trio, machine, version))?;
    }
    let output = trio.ssh(&trio.machines[0], &["trilith", "upgrade", "abort"])?;
    ensure!(output.status.success(), "upgrade abort: {}", String::from_utf8_lossy(&output.stderr).trim());
    upgrade::wait_held(trio, "no rollout", |state| ready(state, None))?;
    Ok((took, reason))
}

/// Whether the node's own status names the version that failed.
fn tells(trio: &Trio, machine: &Machine, version: &str) -> bool {
    let output = trio.ssh(machine, &["trilith", "status", "--json"]);
    let status =
        output.ok().and_then(|output| serde_json::from_slice::<Value>(&output.stdout).ok()).unwrap_or_default();
    let alarms = status["alarms"].as_array().cloned().unwrap_or_default();
    alarms.iter().filter_map(Value::as_str).any(|alarm| alarm.contains(version))
}
