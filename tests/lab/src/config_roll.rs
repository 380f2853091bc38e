//! `lab config-roll`: the configuration changes and versions of a service come, again and again, while clients use the set, and
//! nobody notices.
//!
//! Among the changes are documents that make a node unfit, that its supervisor does not survive, and that nobody confirms: those
//! must be taken back on all nodes by themselves.
//!
//! Clients of four kinds watch: kept HTTP connections, one connection a request and HTTP/2 all the time, and long-lived TCP
//! connections that are made before each change and must live beyond it. They do not last for all of them, because HAProxy ends what is older
//! than eight documents (`mworker-max-reloads`).

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use trilith_core::set::{Hold, Outcome, Past, Pause};
use trilith_shell::coordinator::server::Shown;

use crate::lab::{Lab, Mode, VIP};
use crate::load::{
    Established, EstablishedOptions, KeepAlive, KeepAliveOptions, Steady, SteadyOptions, Streams, StreamsOptions,
    Window, now_ns,
};
use crate::node::Node;
use crate::set::DOCUMENT;
use crate::wait::wait_until;

pub mod document;
mod upgrade;

use document::{Change, Fate};
use upgrade::{Build, SERVICE};

/// How much is done.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Documents that are applied.
    #[arg(long, default_value_t = 50)]
    changes: usize,
    /// Versions of a service that are rolled out after that.
    #[arg(long, default_value_t = 10)]
    upgrades: usize,
}

/// What was measured.
#[derive(Debug, Default, Serialize)]
struct Summary {
    changes: usize,
    /// Those that were taken back, as they had to be.
    reverted: usize,
    /// Versions of a service, the bad ones included.
    upgrades: usize,
    /// Rollouts that stood still because another node failed by itself, on a machine that is too busy, and that were told to go on.
    paused: usize,
    #[serde(flatten)]
    seen: Seen,
    /// TCP connections that lived through a change.
    long_lived: usize,
    seconds: u64,
}

/// Brings the laboratory up, changes the configuration, and says what the clients saw.
///
/// # Errors
/// When a change does not end as it must, or a client saw a failure.
pub fn run(options: &Options) -> Result<()> {
    let lab = Lab::up(Mode::Trilith)?;
    agreed(&lab)?;
    let home = Scratch::new()?;
    let load = Load::start(&lab)?;
    let begun = Instant::now();
    let mut summary = Summary::default();
    let mut good = DOCUMENT.to_owned();
    for number in 0..options.changes {
        let change = Change::of(number, &good);
        let node = &lab.nodes[number % NODES];
        let connections = Established::start(connections(&lab))?;
        let from = Instant::now();
        let (past, paused) = carry_out(&lab, node, &change)?;
        summary.paused += paused;
        say(&format!("{:>3}: {}: {} ({:.0} s)", number + 1, change.what, past.outcome, from.elapsed().as_secs_f64()));
        check(&change, &past)?;
        if change.fate == Fate::Kept {
            good.clone_from(&change.text);
        } else {
            summary.reverted += 1;
        }
        for node in &lab.nodes {
            let text = std::fs::read_to_string(node.path(DOCUMENT_FILE)?)?;
            ensure!(text == good, "change {}: node {} has another document than the set", number + 1, node.name());
        }
        summary.changes += 1;
        finish(connections, &mut summary);
    }
    let mut version = None;
    for number in 0..options.upgrades {
        let (node, build) = (&lab.nodes[number % NODES], Build::of(number));
        let next = format!("1.0.{}", number + 1);
        let bundle = upgrade::bundle(home.path(), &next, build)?;
        std::fs::copy(&bundle, node.path("/run")?.join("web.bundle"))?;
        let connections = Established::start(connections(&lab))?;
        let from = Instant::now();
        let before = shown(node)?.state.rollouts;
        let what = format!("{SERVICE} {next}, {}", build.words());
        order(node, &["service", "upgrade", "/run/web.bundle"], "", &what, before)?;
        let (past, paused) = ends(&lab, node, before, &what, || ())?;
        say(&format!("{:>3}: {what}: {} ({:.0} s)", number + 1, past.outcome, from.elapsed().as_secs_f64()));
        summary.paused += paused;
        match (build, &past.outcome) {
            (Build::Good, Outcome::Done) => version = Some(next),
            (Build::Dead | Build::Ill, Outcome::Back { reason }) if reason.contains("does not answer") => {
                summary.reverted += 1;
            }
            (_, outcome) => bail!("{what}: {outcome}"),
        }
        for node in &lab.nodes {
            let url = format!("http://{}:8080/version", node.address());
            let found = lab.client.run("curl", &["--silent", &url])?;
            ensure!(version.as_ref() == Some(&found), "node {} serves {found}, not {version:?}", node.name());
        }
        summary.upgrades += 1;
        finish(connections, &mut summary);
    }
    summary.seconds = begun.elapsed().as_secs();
    summary.seen.add(load.finish());
    println!("{}", serde_json::to_string(&summary)?);
    summary.seen.nothing()?;
    let rollouts = summary.changes + summary.upgrades;
    ensure!(summary.paused <= 1 + rollouts / 5, "{} of {rollouts} rollouts were paused by failures", summary.paused);
    Ok(())
}

/// Waits until the set has agreed on its configuration.
///
/// # Errors
/// When that takes too long.
pub fn agreed(lab: &Lab) -> Result<()> {
    let all = || lab.nodes.iter().all(|node| shown(node).is_ok_and(|shown| shown.state.nodes.len() == NODES));
    wait_until("a set that has agreed on its configuration", READY, all).map(drop)
}

fn finish(connections: Established, summary: &mut Summary) {
    let report = connections.finish();
    report.broken_at.iter().for_each(|broken| say(&format!("a long-lived connection broke: {:?}", broken.failure)));
    summary.seen.broken += report.broken as u64;
    summary.long_lived += report.established - report.broken;
}

/// Applies a document at that node, and waits until that has ended, however. Says how often it was told to go on meanwhile.
///
/// # Errors
/// When it is not taken, or does not end.
pub fn carry_out(lab: &Lab, node: &Node, change: &Change) -> Result<(Past, usize)> {
    let before = shown(node)?.state.rollouts;
    let within = change.confirm_within_s.map(|seconds| seconds.to_string());
    let mut args = vec!["config", "apply", "-"];
    args.extend(within.iter().flat_map(|within| ["--confirm-within", within]));
    order(node, &args, &change.text, change.what, before)?;
    ends(lab, node, before, change.what, || {
        if change.fate == Fate::Crashes {
            crash(lab, &change.text);
        }
        if change.fate == Fate::Kept && change.confirm_within_s.is_some() {
            // Refused until all nodes have it.
            let _ = node.output("trilith", &["config", "confirm"]);
        }
    })
}

/// Gives an order that begins the rollout after that one.
fn order(node: &Node, args: &[&str], input: &str, what: &str, before: u64) -> Result<()> {
    let mut said = String::new();
    // The node that had its turn last may not be heard again by all.
    wait_until(&format!("{what}: taken by node {}", node.name()), TAKEN, || {
        feed(node, args, input).inspect_err(|error| said = format!("{error:#}")).is_ok()
            // One that was told to have failed may have been taken all the same.
            || shown(node).is_ok_and(|shown| shown.state.rollouts > before)
    })
    .with_context(|| said.clone())
    .map(drop)
}

/// Waits until the rollout after that one has ended on all nodes, doing `meanwhile` all the time.
fn ends(lab: &Lab, node: &Node, before: u64, what: &str, meanwhile: impl Fn()) -> Result<(Past, usize)> {
    let (mut ended, mut paused) = (None, 0);
    let done = wait_until(&format!("the end of: {what}"), ROLLOUT, || {
        std::thread::sleep(LOOK);
        meanwhile();
        let Ok(shown) = shown(node) else { return false };
        let hold = shown.state.rollout.as_ref().map(|rollout| &rollout.hold);
        if let Some(Hold::Paused { why: Pause::SecondFailure { node: failed, reason } }) = hold
            && node.output("trilith", &["upgrade", "resume"]).is_ok_and(|output| output.status.success())
        {
            say(&format!("paused: node {failed} {reason}; told to go on"));
            paused += 1;
        }
        ended = shown.state.history.into_iter().find(|past| past.id > before);
        let all = || lab.nodes.iter().all(|node| self::shown(node).is_ok_and(|shown| shown.state.rollout.is_none()));
        ended.is_some() && all()
    });
    done.with_context(|| node.run("trilith", &["upgrade", "status"]).unwrap_or_default())?;
    Ok((ended.context("a rollout that has ended")?, paused))
}

/// Whether it ended as it must.
fn check(change: &Change, past: &Past) -> Result<()> {
    match (&change.fate, &past.outcome) {
        (Fate::Kept, Outcome::Done) => Ok(()),
        (Fate::Reverted(why), Outcome::Back { reason }) if reason.contains(why) => Ok(()),
        (Fate::Crashes, Outcome::Back { reason }) if reason.contains("starts of the supervisor") => Ok(()),
        (fate, outcome) => {
            let notes: Vec<&str> = past.notes.iter().map(|note| note.text.as_str()).collect();
            bail!("{}: {fate:?} was due, but: {outcome}\n{}", change.what, notes.join("\n"))
        }
    }
}

/// Kills every supervisor that runs with that document.
fn crash(lab: &Lab, text: &str) {
    let has_it = |node: &&Node| {
        node.path(DOCUMENT_FILE).and_then(|path| Ok(std::fs::read_to_string(path)?)).is_ok_and(|found| found == text)
    };
    for pid in lab.nodes.iter().filter(has_it).flat_map(|node| node.unit_pids("trilith.service")) {
        // One that has just ended is as good.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Runs `trilith` inside, with that standard input.
///
/// # Errors
/// When it fails, with what it said.
pub fn feed(node: &Node, args: &[&str], input: &str) -> Result<()> {
    let mut command = node.command("trilith", args)?;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("a piped child has a standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "trilith {}: {}", args.join(" "), error.trim());
    Ok(())
}

/// The replicated state, as that node has it.
///
/// # Errors
/// When its coordinator does not answer.
pub fn shown(node: &Node) -> Result<Shown> {
    Ok(serde_json::from_str(&node.run("trilith", &["upgrade", "status", "--json"])?)?)
}

pub(crate) fn connections(lab: &Lab) -> EstablishedOptions {
    EstablishedOptions {
        netns: Some(lab.client.path()),
        connections: 50,
        interval: Duration::from_millis(500),
        ..EstablishedOptions::new(SocketAddr::new(VIP.into(), 9000))
    }
}

fn say(line: &str) {
    eprintln!("config-roll: {line}");
}

/// Clients of HTTP.
pub(crate) struct Load {
    kept: KeepAlive,
    steady: Steady,
    streams: Streams,
    from_ns: u64,
}

/// What clients have seen.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Seen {
    requests: u64,
    failed: u64,
    pub(crate) broken: u64,
    /// Connections that HAProxy ended in HTTP's own words.
    polite_closes: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, more: Seen) {
        self.requests += more.requests;
        self.failed += more.failed;
        self.broken += more.broken;
        self.polite_closes += more.polite_closes;
    }

    /// # Errors
    /// When a client saw a failure.
    pub(crate) fn nothing(&self) -> Result<()> {
        ensure!(self.failed == 0 && self.broken == 0, "clients saw failures");
        Ok(())
    }
}

impl Load {
    pub(crate) fn start(lab: &Lab) -> Result<Load> {
        let (netns, target) = (Some(lab.client.path()), SocketAddr::new(VIP.into(), 80));
        // A busy machine may be slow; it may not fail.
        let timeout = Duration::from_secs(5);
        let pause = Duration::from_millis(200);
        let kept =
            KeepAliveOptions { netns: netns.clone(), connections: 20, pause, timeout, ..KeepAliveOptions::new(target) };
        let streams =
            StreamsOptions { netns: netns.clone(), target, connections: 5, streams: 4, pause: pause * 5, timeout };
        let steady = SteadyOptions { netns, rate: 20, timeout, prompt: timeout, ..SteadyOptions::new(target) };
        let (kept, steady, streams) = (KeepAlive::start(kept)?, Steady::start(steady)?, Streams::start(streams)?);
        Ok(Load { kept, steady, streams, from_ns: now_ns() })
    }

    pub(crate) fn finish(self) -> Seen {
        let window = Window::new(self.from_ns, now_ns());
        let (kept, steady) = (self.kept.report(window), self.steady.report(window));
        let streams = self.streams.report(window);
        for (who, failures) in
            [("kept", &kept.failures), ("one connection a request", &steady.failures), ("streams", &streams.failures)]
        {
            if !failures.is_empty() {
                say(&format!("{who}: {failures:?}"));
            }
        }
        Seen {
            requests: kept.requests + steady.attempts + streams.requests,
            failed: kept.failed + kept.connect_failures + (steady.attempts - steady.ok) + streams.failed,
            broken: kept.broken + streams.broken,
            polite_closes: kept.polite_closes + streams.polite_closes,
        }
    }
}

/// A directory for as long as it is used.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let path = std::env::temp_dir().join(format!("trilith-config-roll-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Scratch(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is found by its name.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const NODES: usize = crate::set::NODES.len();
/// Where a node keeps its document.
pub const DOCUMENT_FILE: &str = "/var/lib/trilith/set.toml";
/// From the last node's start until the set has founded itself.
const READY: Duration = Duration::from_secs(60);
/// Until a node takes an order.
const TAKEN: Duration = Duration::from_secs(30);
/// Three restarts, a trial, and all the way back, on a machine that has much else to do.
const ROLLOUT: Duration = Duration::from_secs(600);
/// How often the set is looked at. A supervisor that is killed as often comes so far that it counts its start, and no further.
const LOOK: Duration = Duration::from_millis(500);
