//! `bench forged`: 100,000 hostile datagrams at the owner's peer port, as fast as one core can send them.
//!
//! Forged, informed (a real header, a counter to come, random bytes), replayed, truncated and random ones in turn, in the
//! names of real nodes. Nothing may come of it: the same owners and epochs in the eyes of all nodes, no automatic decision, no
//! moment without an answer for the VIP, bounded memory, and `status` answers all the while.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use trilith_core::config::PEER_PORT;

use super::flows::at_home;
use super::idle::{UNIT, memory_mib};
use super::said::settle;
use super::{say, tenth};
use crate::forge::{Blast, Kind, Report, listen};
use crate::lab::{Lab, Mode, NODES, VIP};
use crate::load::{ArpWatch, ArpWatchOptions, Window, json_row, now_ns};
use crate::node::Node;

/// How many.
#[derive(Debug, Args)]
pub struct Options {
    /// Datagrams.
    #[arg(long, default_value_t = 100_000)]
    count: u32,
}

/// Attacks; the last line is one JSON object.
///
/// # Errors
/// When anything came of it, or the laboratory cannot be used.
pub fn run(options: &Options) -> Result<()> {
    let lab = Lab::up(Mode::Trilith)?;
    at_home(&lab, NODES[0])?;
    settle(&lab)?;
    let came = attack(&lab, NODES[0], options.count)?;
    println!("{}", json_row(&came)?);
    let complaints = came.complaints();
    if !complaints.is_empty() {
        bail!("forged datagrams had an effect: {}", complaints.join("; "));
    }
    Ok(())
}

/// What came of an attack.
#[derive(Debug, Serialize)]
pub struct Came {
    /// Datagrams that left.
    pub sent: u32,
    /// In a second.
    pub per_second: u64,
    /// Those that the supervisor read and refused; the others its kernel dropped, because its buffer was full.
    pub refused: u64,
    /// VIPs whose owner or epoch changed in the eyes of a node: `node: VIP before → after`.
    pub changes: Vec<String>,
    /// Automatic decisions that nodes took meanwhile.
    pub decisions: Vec<String>,
    /// The longest time without an answer for the VIP to a third party on the link, in milliseconds.
    pub longest_none_ms: f64,
    /// The most nodes that answered for it at once.
    pub owners_max: usize,
    /// Resident memory of the attacked supervisor, in MiB.
    pub rss_mib_before: f64,
    /// The most that it ever had, by its end.
    pub rss_mib_peak: f64,
    /// Times that it was asked for its status meanwhile.
    pub status_asked: u32,
    /// Those that it did not answer.
    pub status_unanswered: u32,
    /// The longest that an answer took, the command's own start included.
    pub status_ms_max: f64,
}

impl Came {
    /// What must not have come of it; empty when all is well.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = self.changes.clone();
        // The sender takes a whole core of the machine that the nodes run on as well: that a lease follows the lateness which comes of
        // that is no effect of the datagrams.
        complaints.extend(self.decisions.iter().filter(|it| !it.contains("the lease is ")).cloned());
        let grown = self.rss_mib_peak - self.rss_mib_before;
        let asked = self.status_asked;
        for (wrong, complaint) in [
            (self.refused == 0, "not one datagram was refused: the attack missed".to_owned()),
            (self.longest_none_ms > 0.0, format!("nobody answered for the VIP for {} ms", self.longest_none_ms)),
            (self.owners_max != 1, format!("{} nodes answered for the VIP at once", self.owners_max)),
            (grown > MAX_GROWTH_MIB, format!("the supervisor grew by {grown:.1} MiB")),
            (asked == 0, "status was never asked".to_owned()),
            (self.status_unanswered > 0, format!("{} of {asked} questions unanswered", self.status_unanswered)),
        ] {
            if wrong {
                complaints.push(complaint);
            }
        }
        complaints
    }
}

/// Attacks the node, which owns the VIP, from where the clients are.
///
/// # Errors
/// When the attack itself fails.
pub fn attack(lab: &Lab, owner: &str, count: u32) -> Result<Came> {
    let node = lab.node(owner)?;
    let pid = node.main_pid(UNIT)?;
    let (index, peer) = lab.nodes.iter().enumerate().find(|(_, it)| it.name() != owner).context("a node has peers")?;
    say(&format!("listening for datagrams of the peers of {owner}"));
    let heard = listen(&node.netns().path(), PEER_PORT, HEARD, LISTEN)?;
    let blast = Blast {
        netns: lab.client.path(),
        to: SocketAddr::from((node.address(), PEER_PORT)),
        from: peer.address().into(),
        sender: u8::try_from(index)?,
        kinds: Kind::ALL.to_vec(),
        heard,
        count,
    };
    let arp = ArpWatch::start(ArpWatchOptions {
        netns: Some(lab.client.path()),
        ..ArpWatchOptions::new("eth0", VIP.into())
    })?;
    let before: Vec<Value> = lab.nodes.iter().map(status).collect::<Result<_>>()?;
    let rss_mib_before = tenth(memory_mib(pid, "VmRSS:")?);
    let start = (Instant::now(), now_ns());
    let (report, asked) = fire(&blast, node)?;
    // Whatever comes of it may come a lease later.
    thread::sleep(AFTERMATH);
    let window = Window::new(start.1, now_ns());
    let after: Vec<Value> = lab.nodes.iter().map(status).collect::<Result<_>>()?;
    let lasted_ms = start.0.elapsed().as_millis() as u64;
    let claims = arp.report(window);
    let refused = |said: &Value| said["channel"]["refused"].as_u64().unwrap_or(0);
    say(&format!("{} datagrams, {} a second", report.sent, report.per_second()));
    Ok(Came {
        sent: report.sent,
        per_second: report.per_second(),
        refused: refused(&after[position(owner)]) - refused(&before[position(owner)]),
        changes: changes(&before, &after),
        decisions: after.iter().flat_map(|said| decisions(said, lasted_ms)).collect(),
        longest_none_ms: claims.longest_none_ms,
        owners_max: claims.owners_max,
        rss_mib_before,
        rss_mib_peak: tenth(memory_mib(node.main_pid(UNIT)?, "VmHWM:")?),
        status_asked: asked.times,
        status_unanswered: asked.unanswered,
        status_ms_max: tenth(asked.longest.as_secs_f64() * 1e3),
    })
}

#[derive(Default)]
struct Asked {
    times: u32,
    unanswered: u32,
    longest: Duration,
}

fn fire(blast: &Blast, node: &Node) -> Result<(Report, Asked)> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut asked = Asked::default();
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                asked.unanswered += u32::from(status(node).is_err());
                asked.times += 1;
                asked.longest = asked.longest.max(start.elapsed());
                thread::sleep(ASK_EVERY);
            }
            asked
        });
        let report = blast.fire();
        over.store(true, Ordering::Relaxed);
        let asked = asking.join().ok().context("the thread that asks for the status has panicked")?;
        Ok((report?, asked))
    })
}

fn status(node: &Node) -> Result<Value> {
    let text = node.run("trilith", &["status", "--json"])?;
    serde_json::from_str(&text).with_context(|| format!("trilith status --json on node {}", node.name()))
}

fn changes(before: &[Value], after: &[Value]) -> Vec<String> {
    let vips = |said: &Value| said["vips"].as_array().cloned().unwrap_or_default();
    let mut changes = Vec::new();
    for (before, after) in before.iter().zip(after) {
        for (was, is) in vips(before).iter().zip(vips(after)) {
            let word = |vip: &Value| format!("{} in epoch {}", vip["owner"], vip["epoch"]);
            if word(was) != word(&is) {
                changes.push(format!("{}: {} {} → {}", after["node"], is["name"], word(was), word(&is)));
            }
        }
    }
    changes
}

fn decisions(said: &Value, within_ms: u64) -> Vec<String> {
    let all = said["decisions"].as_array().cloned().unwrap_or_default();
    let fresh = all.iter().filter(|it| it["ago_ms"].as_u64().is_some_and(|ago_ms| ago_ms < within_ms));
    fresh.map(|it| format!("{}: {}", said["node"], it["text"])).collect()
}

fn position(node: &str) -> usize {
    NODES.iter().position(|name| *name == node).unwrap_or(0)
}

/// Datagrams to learn from, and how long to listen for them; at rest a node hears and says 160 in a second.
const HEARD: usize = 200;
const LISTEN: Duration = Duration::from_secs(10);
const ASK_EVERY: Duration = Duration::from_millis(100);
/// A lease is at most 500 ms.
const AFTERMATH: Duration = Duration::from_secs(1);
/// For the socket's buffer, the log's lines and the allocator's taste.
const MAX_GROWTH_MIB: f64 = 4.0;
