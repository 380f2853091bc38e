//! `bench faults`: each fault that we know of, and what it does to those who talk to the VIP.
//!
//! ```text
//!   at rest ─▶ connections on every node ─▶ fault ─▶ the living agree, one answers ARP, clients are served ─▶ repair ─▶ at rest
//!                                            └──────────────────── what is measured ────────────────────────────────────────┘
//! ```

mod rows;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};
use clap::Args;
use serde::Serialize;

use self::rows::{ROWS, Row};
use super::flows::{AFTERMATH_NS, Carrier, Fate, Flows, HTTP_PORT, at_home};
use super::said::{ASK_EVERY, VIPS, agreed, holders, settle, status};
use super::{ms_between, say, tenth};
use crate::lab::{Lab, Mode, NODES, VIP};
use crate::load::{ArpWatch, ArpWatchOptions, Break, Steady, SteadyOptions, Window, json_row, now_ns};
use crate::node::Node;
use crate::wait::wait_until;

/// Which.
#[derive(Debug, Args)]
pub struct Options {
    /// Only the rows whose name begins so; may be given again.
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Also show what each node decided during each row, with its reasons.
    #[arg(long)]
    explain: bool,
}

/// Makes every fault; the last line is one JSON object, before it a table.
///
/// # Errors
/// When a row ends without an owner or with two, breaks a connection that living nodes carried, or cannot be measured.
pub fn run(options: &Options) -> Result<()> {
    let wanted =
        |row: &&Row| options.only.is_empty() || options.only.iter().any(|only| row.name.starts_with(only.as_str()));
    let rows: Vec<&Row> = ROWS.iter().filter(wanted).collect();
    if rows.is_empty() {
        let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        bail!("no row {:?}: {}", options.only, names.join(", "));
    }
    let lab = Lab::up(Mode::Trilith)?;
    let mut found = Vec::new();
    for row in rows {
        say(row.what);
        let start_ns = now_ns();
        let finding = measure(&lab, row).unwrap_or_else(|error| {
            // The next row may tell more.
            let finding =
                Finding { row: row.name, what: row.what, failed: Some(format!("{error:#}")), ..Finding::default() };
            if let Err(error) = lab.revive() {
                say(&format!("cannot mend the laboratory: {error:#}"));
            }
            finding
        });
        say(&finding.line());
        if options.explain {
            explain(&lab, start_ns);
        }
        found.push(finding);
    }
    println!("{HEAD}");
    found.iter().for_each(|finding| println!("{}", finding.line()));
    let failed: Vec<&str> =
        found.iter().filter(|finding| finding.failed.is_some()).map(|finding| finding.row).collect();
    println!("{}", json_row(&Summary { rows: found.len(), failed: failed.clone(), faults: &found })?);
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

#[derive(Debug, Serialize)]
struct Summary<'a> {
    rows: usize,
    failed: Vec<&'static str>,
    faults: &'a [Finding],
}

/// What one fault did.
#[derive(Debug, Default, Serialize)]
struct Finding {
    row: &'static str,
    what: &'static str,
    /// The longest time between the starts of good new connections.
    gap_ms: f64,
    /// Connections that living nodes carried, and how many of them broke.
    live: usize,
    broken: usize,
    /// The longest stall of those that did not; 0 if below 10 ms.
    stall_ms: f64,
    /// Connections that only the victim could have saved, and how many broke.
    lost: usize,
    lost_broken: usize,
    /// How many answered one ARP question at most; how long two did, or nobody.
    owners_max: usize,
    many_ms: f64,
    none_ms: f64,
    /// From the fault until the living agreed on the owner, for good.
    agree_ms: f64,
    /// From the repair until the whole set was at rest.
    rest_ms: f64,
    /// The owner while the fault lasted, and in the end.
    owner: String,
    owner_at_end: String,
    /// What went wrong.
    failed: Option<String>,
}

const HEAD: &str = "fault                                          gap ms  broken  stall ms   lost  owners  two ms  none ms  agree ms  rest ms  owner";

impl Finding {
    fn line(&self) -> String {
        let mut line = format!(
            "{:<45} {:>7} {:>7} {:>9} {:>6} {:>7} {:>7} {:>8} {:>9} {:>8}  {} {}",
            self.what,
            self.gap_ms.round(),
            format!("{}/{}", self.broken, self.live),
            self.stall_ms.round(),
            format!("{}/{}", self.lost_broken, self.lost),
            self.owners_max,
            self.many_ms.round(),
            self.none_ms.round(),
            self.agree_ms.round(),
            self.rest_ms.round(),
            self.owner,
            self.owner_at_end,
        );
        if let Some(failed) = &self.failed {
            let _ = write!(line, "  FAILED: {failed}");
        }
        line
    }
}

fn measure(lab: &Lab, row: &Row) -> Result<Finding> {
    at_home(lab, NODES[0])?;
    (row.before)(lab)?;
    let flows = Flows::on(lab, row.carriers, FLOWS_EACH, PING_EVERY)?;
    let quiet_ns = now_ns() + AFTERMATH_NS;
    let netns = Some(lab.client.path());
    let ask_every = Some(Duration::from_millis(5));
    let arp = ArpWatchOptions { netns: netns.clone(), ask_every, ..ArpWatchOptions::new("eth0", VIP.into()) };
    let arp = ArpWatch::start(arp)?;
    let web = SteadyOptions { netns, rate: NEW_PER_S, ..SteadyOptions::new(SocketAddr::from((VIP, HTTP_PORT))) };
    let steady = Steady::start(web)?;
    wait_until("new connections before the fault", DEADLINE, || steady.live().ok >= u64::from(NEW_PER_S) / 4)?;

    wait_until("the moves before the fault forgotten", DEADLINE, || now_ns() >= quiet_ns)?;
    let fault_ns = now_ns();
    (row.inject)(lab)?;
    say(&format!("{} after {} ms", row.name, ms_between(fault_ns, now_ns())));
    let outcome = settled_in_fault(lab, row, fault_ns, &steady, &arp);
    let repair_ns = now_ns();
    (row.repair)(lab)?;
    let owner = outcome?;
    settle(lab)?;
    let rest_ns = now_ns();
    wait_until("one node that answers ARP", DEADLINE, || arp.live().owners.len() == 1)?;
    let end = verdict(lab)?;

    let steady = steady.report(Window::new(fault_ns, now_ns()));
    let arp = arp.report(Window::new(fault_ns, now_ns()));
    let fate = flows.finish()?;
    let lost =
        |it: &Carrier| row.lost_fronts.contains(&it.front.as_str()) || row.lost_backs.contains(&it.back.as_str());
    let live = |it: &Carrier| !lost(it);
    let broken = fate.breaks(live);
    let failed = (!broken.is_empty()).then(|| broke(&fate, &broken, fault_ns));
    Ok(Finding {
        row: row.name,
        what: row.what,
        gap_ms: tenth(steady.longest_gap_ms),
        live: fate.count(live),
        broken: broken.len(),
        stall_ms: tenth(fate.stall_ms(live)),
        lost: fate.count(lost),
        lost_broken: fate.breaks(lost).len(),
        owners_max: arp.owners_max,
        many_ms: arp.longest_many_ms,
        none_ms: arp.longest_none_ms,
        agree_ms: owner.agree_ms,
        rest_ms: ms_between(repair_ns, rest_ns),
        owner: owner.name,
        owner_at_end: end,
        failed,
    })
}

/// How many broke on which way, and when, from the fault on.
fn broke(fate: &Fate, broken: &[&Break], fault_ns: u64) -> String {
    let mut ways: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for it in broken {
        let Some(Carrier { front, back }) = fate.carrier(it.local_port) else { continue };
        ways.entry((front, back, it.failure.to_string())).or_default().push((it.at_ns as f64 - fault_ns as f64) / 1e6);
    }
    let told = ways.into_iter().map(|((front, back, failure), at_ms)| {
        let (first, last) =
            (at_ms.iter().copied().fold(f64::MAX, f64::min), at_ms.iter().copied().fold(f64::MIN, f64::max));
        format!(
            "{} by way of {front} to {back} broke {first:.1} to {last:.1} ms after the fault ({failure})",
            at_ms.len()
        )
    });
    told.collect::<Vec<_>>().join(", ")
}

/// Every node's decisions since then in one order, timed from then.
fn explain(lab: &Lab, start_ns: u64) {
    let mut lines = Vec::new();
    for node in &lab.nodes {
        let Ok(said) = status(node) else { continue };
        let since_ms = (now_ns() - start_ns) / 1_000_000;
        let recent = said.decisions.into_iter().filter(|decision| decision.ago_ms <= since_ms);
        lines.extend(recent.map(|decision| (since_ms - decision.ago_ms, node.name(), decision.text)));
    }
    lines.sort();
    lines.iter().for_each(|(at_ms, node, text)| say(&format!("  {at_ms:>6} ms  {node} {text}")));
}

/// Whom the living agreed on.
struct Owner {
    name: String,
    agree_ms: f64,
}

/// Waits until the fault has lasted long enough, the witnesses agree on an owner that may be one, only one node answers ARP
/// and new connections are served; the time of the last disagreement is what counts.
fn settled_in_fault(lab: &Lab, row: &Row, fault_ns: u64, steady: &Steady, arp: &ArpWatch) -> Result<Owner> {
    let witnesses: Vec<&Node> = row.witnesses.iter().map(|name| lab.node(name)).collect::<Result<_>>()?;
    let mut disagreed_ns = fault_ns;
    loop {
        let owners = agreed(&witnesses).and_then(|owners| {
            ensure!(
                owners.iter().all(|owner| Some(owner.as_str()) != row.not_owner),
                "the owner is still {}",
                owners[0]
            );
            Ok(owners)
        });
        let now = now_ns();
        let complaint = match owners {
            Err(complaint) => {
                disagreed_ns = now;
                complaint
            }
            Ok(mut owners) => {
                let (live, answering) = (steady.live(), arp.live().owners.len());
                let served = live.current_gap_ms < SERVED_MS;
                // A frozen container's kernel still answers; it is the fence that ends this, and not while it is frozen.
                let single = answering == 1 || lab.nodes.iter().any(|node| node.cgroup().is_frozen());
                if served && single && now >= fault_ns + row.lasts.as_nanos() as u64 {
                    return Ok(Owner { name: owners.swap_remove(0), agree_ms: ms_between(fault_ns, disagreed_ns) });
                }
                anyhow!("{answering} answer ARP, the last good connection began {} ms ago", live.current_gap_ms)
            }
        };
        if now >= fault_ns + (row.lasts + DEADLINE).as_nanos() as u64 {
            return Err(
                complaint.context(format!("not well within {} s of the fault", (row.lasts + DEADLINE).as_secs()))
            );
        }
        sleep(ASK_EVERY);
    }
}

/// The owner in the end, of a set that was at rest: what a cut had already lost may still cost a server one check.
///
/// # Errors
/// When a VIP has none, or more than one node has it.
fn verdict(lab: &Lab) -> Result<String> {
    let mut owners = agreed(&lab.nodes.iter().collect::<Vec<_>>())?;
    for (at, vip) in VIPS.iter().enumerate() {
        let holders = holders(lab, at)?;
        ensure!(holders.len() == 1, "{vip} ends with {} owners: {}", holders.len(), holders.join(" "));
    }
    Ok(owners.swap_remove(0))
}

/// From a fault until all is well without the victim, and for what comes before it.
const DEADLINE: Duration = Duration::from_secs(15);
const FLOWS_EACH: usize = 20;
const PING_EVERY: Duration = Duration::from_millis(100);
/// A gap is then known to 5 ms.
const NEW_PER_S: u32 = 200;
/// Whoever had a good connection this short ago is served.
const SERVED_MS: f64 = 100.0;
