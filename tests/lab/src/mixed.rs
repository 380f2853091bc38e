//! `lab mixed`: nodes of two versions are one set, for as long as it takes.
//!
//! A set of the older version is patched node by node, as a rollout does it, and one node is taken back and patched again: what the
//! newer version has written is read by the older one. After each step the VIP goes to every node and back, under connections
//! that the others carry, and another document is rolled out: heartbeats, relay, Raft and all files are of both versions.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use trilith_core::set::Outcome;

use crate::bench::{holders, settle, until};
use crate::config_roll::document::Change;
use crate::config_roll::{Load, Seen, agreed, carry_out, connections};
use crate::lab::{Lab, Mode, NODES};
use crate::load::Established;
use crate::node::Node;
use crate::root::Version;
use crate::set::DOCUMENT;
use crate::wait::wait_until;

/// What was measured.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Nodes that got another version, one after the other.
    patched: usize,
    /// The VIP went from one node to another.
    moves: usize,
    /// Documents that were rolled out.
    documents: usize,
    #[serde(flatten)]
    seen: Seen,
    /// TCP connections that lived through the moves and a rollout.
    long_lived: usize,
    seconds: u64,
}

/// Brings the laboratory up with the older version, and patches it.
///
/// # Errors
/// When the nodes are no set at some point, or a client saw a failure.
pub fn run() -> Result<()> {
    let (old, new) = (Version::first()?, Version::this()?);
    let lab = Lab::up(Mode::Trilith)?;
    agreed(&lab)?;
    let load = Load::start(&lab)?;
    let begun = Instant::now();
    let mut summary = Summary::default();
    works(&lab, &mut summary)?;
    for (name, version) in [("b", &new), ("c", &new), ("b", &old), ("a", &new), ("b", &new)] {
        let to = if *version == old { "the version of before" } else { "this version" };
        patch(&lab, lab.node(name)?, version).with_context(|| format!("node {name} to {to}"))?;
        summary.patched += 1;
        eprintln!("mixed: node {name} runs {to}");
        works(&lab, &mut summary)?;
    }
    summary.seconds = begun.elapsed().as_secs();
    summary.seen.add(load.finish());
    println!("{}", serde_json::to_string(&summary)?);
    summary.seen.nothing()
}

/// Out of service, off, another version, on, back into service.
fn patch(lab: &Lab, node: &Node, version: &Version) -> Result<()> {
    order(node, &["node", "drain", node.name()])?;
    node.run("systemctl", &["kill", "--kill-whom=main", "--signal=SIGUSR1", "haproxy.service"])?;
    wait_until("the end of HAProxy", PATIENCE, || node.unit_pids("haproxy.service").is_empty())?;
    node.kill()?;
    node.install(version)?;
    node.boot()?;
    node.wait_ready()?;
    order(node, &["node", "undrain", node.name()])?;
    settle(lab).map(drop)
}

/// The VIP goes round, and another document comes to all, while connections live on.
fn works(lab: &Lab, summary: &mut Summary) -> Result<()> {
    let connections = Established::start(connections(lab))?;
    for name in NODES {
        order(lab.node(name)?, &["vip", "move", "public", name])?;
        wait_until("the VIP on its new owner alone", PATIENCE, || holders(lab, 0).is_ok_and(|all| all == [name]))?;
        summary.moves += 1;
    }
    summary.documents += 1;
    // Each time another deadline.
    let change = Change::of(10 * summary.documents, DOCUMENT);
    let (past, _) = carry_out(lab, &lab.nodes[summary.documents % NODES.len()], &change)?;
    ensure!(past.outcome == Outcome::Done, "{}: {}", change.what, past.outcome);
    let report = connections.finish();
    summary.seen.broken += report.broken as u64;
    summary.long_lived += report.established - report.broken;
    Ok(())
}

/// Has a command done on that node, again if it was not done in time.
fn order(node: &Node, args: &[&str]) -> Result<()> {
    until(&format!("{} on node {}", args.join(" "), node.name()), PATIENCE, || node.run("trilith", args).map(drop))
        .map(drop)
}

/// For whatever ends by itself in seconds, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
