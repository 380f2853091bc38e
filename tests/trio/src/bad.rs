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

use crate::status::said;
use crate::trio::{self, Trio, UP_DEADLINE, say};
use crate::upgrade::{self, Load, Seen, bundle, image, mkbundle, plans, ready, start, upload, wait};

/// Trees of `tests/trio/bad` that are laid over the root, and what becomes of them.
pub const WAYS: [&str; 5] = ["kernel-panics", "init-hangs", "supervisor-crashes", "cannot-serve", "no-network"];
/// What everybody must say of each, in the order of [`WAYS`]: one of these. A HAProxy that is started again and again may look active at
/// the moment of the verdict, and a node without a card has two true things to say.
const REASONS: [&[&str]; WAYS.len()] = [
    &["its tries are used up"],
    &["its tries are used up"],
    &["its supervisor does not answer"],
    &["haproxy.service is not active", "HAProxy does not answer through the VIP"],
    &["has no carrier", "it has heard no other node"],
];
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
    #[serde(flatten)]
    seen: Seen,
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
    let load = Load::start(&trio, 0)?;
    let done = all(&trio, ways, &bundles, &good, &bad, load);
    if done.is_err() && keep {
        trio.keep()?;
    }
    done
}

fn all(trio: &Trio, ways: &[String], bundles: &[PathBuf], good: &Path, bad: &[PathBuf], load: Load) -> Result<()> {
    let done = bad_and_good(trio, ways, bundles, good, bad);
    let seen = load.finish();
    let Seen { requests, failed, broken, longest_gap_ms, .. } = seen;
    // Also when it goes no further: how clients were served until then is half of it.
    say(&format!(
        "{requests} requests: {failed} failed, {broken} connections broken; longest gap {longest_gap_ms:.0} ms"
    ));
    let (seconds, reasons, refused) = done?;
    let (bad, reverted) = (ways.len(), reasons.len());
    let summary = Summary { bad, reverted, seconds, reasons, refused, good: true, seen };
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
        let (version, words) = (version(way)?, REASONS[place(way)?]);
        let (took, reason) = one(trio, &version, bundle, words).with_context(|| format!("a version that {way}"))?;
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
    Ok(format!("0.1.{}", place(way)? + 1))
}

/// Its place in [`WAYS`].
fn place(way: &str) -> Result<usize> {
    let place = WAYS.iter().position(|known| *known == way);
    place.with_context(|| format!("no way {way:?}: {}", WAYS.join(", ")))
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

/// One bad version: how long it took until its node was back and served, and the reason, which has some of these words.
fn one(trio: &Trio, version: &str, bundle: &Path, words: &[&str]) -> Result<(u64, String)> {
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
    let reason =
        back["state"]["nodes"][&node]["fallback"]["reason"].as_str().context("a fallback has a reason")?.to_owned();
    ensure!(has_one_of(&reason, words), "node {node} says {reason:?}, which has none of {words:?}");
    let ban = &back["state"]["bans"][version];
    let why = ban["reason"].as_str().unwrap_or_default();
    ensure!(
        ban["node"] == node && has_one_of(why, words),
        "{version} is not banned for that: {}",
        back["state"]["bans"]
    );
    for machine in &trio.machines {
        let mut alarms = Value::Null;
        wait_until(&format!("{} to say why", machine.name()), UP_DEADLINE, || {
            alarms = said(trio, machine).unwrap_or_default()["alarms"].take();
            tells(&alarms, version, words)
        })
        .with_context(|| format!("one of {words:?} of {version}; it says {alarms}"))?;
    }
    let output = trio.ssh(&trio.machines[0], &["trilith", "upgrade", "abort"])?;
    ensure!(output.status.success(), "upgrade abort: {}", String::from_utf8_lossy(&output.stderr).trim());
    upgrade::wait_held(trio, "no rollout", |state| ready(state, None))?;
    Ok((took, reason))
}

/// Whether one of the alarms in a node's own status says of the version that failed why it did.
fn tells(alarms: &Value, version: &str, words: &[&str]) -> bool {
    let alarms = alarms.as_array().into_iter().flatten().filter_map(Value::as_str);
    alarms.filter(|alarm| alarm.contains(version)).any(|alarm| has_one_of(alarm, words))
}

fn has_one_of(text: &str, words: &[&str]) -> bool {
    words.iter().any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cause_counts_only_where_it_is_said_of_the_version_that_failed() {
        let words = REASONS[0];
        let said = "rollout 1 of system 0.1.1 has halted on node c: its tries are used up; resume or abort it";
        assert!(tells(&json!(["node b is not heard", said]), "0.1.1", words));
        assert!(!tells(&json!([said]), "0.1.2", words));
        assert!(!tells(&json!(["rollout 1 of system 0.1.1 has halted on node c: no room"]), "0.1.1", words));
        assert!(!tells(&Value::Null, "0.1.1", words), "a node that does not answer says nothing");
    }
}
