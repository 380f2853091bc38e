//! What the nodes say of the set, whether they agree, and asking them to move a VIP.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::haproxy;
use crate::lab::{Lab, Mode};
use crate::node::Node;

/// The set's VIPs by name: the one that is measured first.
pub const VIPS: [&str; 2] = ["public", "public6"];

/// What `trilith status --json` shows, as far as it is needed here.
#[derive(Debug, Deserialize)]
pub struct Said {
    pub vips: Vec<VipSaid>,
    nodes: Vec<NodeSaid>,
    pub decisions: Vec<DecisionSaid>,
}

#[derive(Debug, Deserialize)]
pub struct DecisionSaid {
    pub ago_ms: u64,
    pub text: String,
}

#[derive(Debug, Deserialize)]
pub struct VipSaid {
    pub name: String,
    pub owner: Option<String>,
    pub lone: bool,
}

#[derive(Debug, Deserialize)]
struct NodeSaid {
    name: String,
    fitness: String,
    reason: Option<String>,
    heard: bool,
    in_ring: bool,
}

/// Asks a node's supervisor for its status: over the socket that `trilith status` asks, without a process for each time.
///
/// # Errors
/// When it is not there or does not answer in time.
pub fn status(node: &Node) -> Result<Said> {
    let what = || format!("status of node {}", node.name());
    let mut stream = UnixStream::connect(node.path(SOCKET)?).with_context(what)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(REQUEST).with_context(what)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).with_context(what)?;
    let answer: Answer = serde_json::from_str(&line).with_context(what)?;
    Ok(answer.status)
}

/// The owner of each VIP if all witnesses name the same one, else what is wrong.
pub fn agreed(witnesses: &[&Node]) -> Result<Vec<String>> {
    let mut owners: Option<Vec<String>> = None;
    for node in witnesses {
        let said = status(node)?;
        let its = VIPS.map(|name| {
            let vip = said.vips.iter().find(|vip| vip.name == name);
            vip.and_then(|vip| vip.owner.clone()).with_context(|| format!("{name} has no owner, says {}", node.name()))
        });
        let its: Vec<String> = its.into_iter().collect::<Result<_>>()?;
        match &owners {
            Some(owners) if *owners != its => {
                bail!("{} says {}, another {}", node.name(), its.join(" and "), owners.join(" and "))
            }
            _ => owners = Some(its),
        }
    }
    owners.context("nobody was asked")
}

/// What keeps the whole set from being at rest: all nodes fit, heard and in the ring, one owner for each VIP in everybody's
/// eyes and on its interface alone, all backends in use. Returns the owners.
pub fn at_rest(lab: &Lab) -> Result<Vec<String>> {
    let nodes: Vec<&Node> = lab.nodes.iter().collect();
    let owners = match lab.mode {
        Mode::Trilith => {
            for node in &nodes {
                for other in status(node)?.nodes {
                    if other.fitness != "fit" || !other.heard || !other.in_ring {
                        let reason = other.reason.unwrap_or_default();
                        bail!("{} is {} {reason}, says {}", other.name, other.fitness, node.name());
                    }
                }
            }
            agreed(&nodes)?
        }
        // The highest priority wins.
        Mode::Peer => vec![nodes[0].name().to_owned(); VIPS.len()],
    };
    for (at, owner) in owners.iter().enumerate() {
        let holders = holders(lab, at)?;
        if holders != [owner.as_str()] {
            bail!("{} on the interface of: {}", VIPS[at], holders.join(" "));
        }
    }
    for node in &nodes {
        if let Some(down) = haproxy::servers_down(node)?.first() {
            bail!("HAProxy of {}: {down}", node.name());
        }
    }
    Ok(owners)
}

/// Waits until the set is [`at_rest`].
///
/// # Errors
/// When it is not within [`REST_DEADLINE`], with what was wrong last.
pub fn settle(lab: &Lab) -> Result<Duration> {
    until("the set at rest", REST_DEADLINE, || at_rest(lab).map(drop))
}

/// The nodes that have a VIP (by its index in [`VIPS`]) on their interface.
pub fn holders(lab: &Lab, vip: usize) -> Result<Vec<&'static str>> {
    let address = if vip == 0 { crate::lab::VIP.to_string() } else { crate::lab::VIP6.to_string() };
    let mut holders = Vec::new();
    for node in lab.nodes.iter().filter(|node| node.netns().exists()) {
        let list = node.netns().run("ip", &["-brief", "address", "show", "dev", "eth0"])?;
        if list.split_whitespace().any(|word| word.split('/').next() == Some(address.as_str())) {
            holders.push(node.name());
        }
    }
    Ok(holders)
}

/// `trilith vip move`, asked of the node `by`.
///
/// # Errors
/// What it says when it fails.
pub fn move_vip(by: &Node, vip: &str, to: &str) -> Result<()> {
    by.run("trilith", &["vip", "move", vip, to]).map(drop)
}

/// Asks again every [`ASK_EVERY`] until there is nothing to complain of; returns how long that took.
///
/// # Errors
/// When there still is at the deadline: the last complaint.
pub fn until(what: &str, deadline: Duration, mut ask: impl FnMut() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let Err(complaint) = ask() else { return Ok(start.elapsed()) };
        if start.elapsed() >= deadline {
            let what = format!("{what}: not within {:.1} s", deadline.as_secs_f64());
            return Err(complaint.context(what));
        }
        sleep(ASK_EVERY);
    }
}

#[derive(Deserialize)]
struct Answer {
    status: Said,
}

const SOCKET: &str = "/run/trilith/control.sock";
const REQUEST: &[u8] = b"{\"version\":1,\"request\":\"status\"}\n";
/// A supervisor answers within milliseconds, unless its HAProxy hangs.
const PATIENCE: Duration = Duration::from_millis(1000);
/// Each answer costs the node a look at HAProxy and nftables, so this is not asked as often as it could be.
pub const ASK_EVERY: Duration = Duration::from_millis(25);
/// From the end of a fault until all is as before: a node boots in two seconds, HAProxy needs two checks to trust it again; a busy
/// machine may need many times that.
pub const REST_DEADLINE: Duration = Duration::from_secs(120);
