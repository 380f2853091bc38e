//! `bench failover`: the owner is cut off, from one frame to the next, while new connections come in at a steady rate.
//!
//! Trilith and keepalived take turns in blocks, on the same wire, with the same HAProxy, service and clients, so that what
//! the machine is doing meanwhile concerns both. Under Trilith each node also carries connections of its own: those of the
//! nodes that live must not break, those of the dead one must learn of it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use super::flows::{AFTERMATH_NS, Carrier, Flows, HTTP_PORT};
use super::said::{agreed, settle, until};
use super::{ms_between, say, tenth};
use crate::lab::{Lab, Mode, NODES, VIP};
use crate::load::{Failure, Quantiles, Steady, SteadyOptions, Window, json_row, now_ns};
use crate::node::Node;
use crate::switch::Direction;
use crate::wait::wait_until;

/// How much.
#[derive(Debug, Args)]
pub struct Options {
    /// Runs of each of the two.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Trilith alone, for a quick look.
    #[arg(long)]
    alone: bool,
}

/// Measures; the last line is one JSON object.
///
/// # Errors
/// When Trilith takes more than half of keepalived's time, a connection of a living node broke, or one of the dead node was
/// not reset in time; or when the laboratory cannot be used.
pub fn run(options: &Options) -> Result<()> {
    let (mut trilith, mut keepalived) = (Vec::new(), Vec::new());
    while (trilith.len() as u32) < options.runs {
        let block = BLOCK.min(options.runs - trilith.len() as u32);
        let done = trilith.len();
        block_of(Mode::Trilith, block, done, &mut trilith)?;
        if !options.alone {
            block_of(Mode::Peer, block, done, &mut keepalived)?;
        }
    }
    let summary = Summary::of(&trilith, &keepalived);
    println!("{}", json_row(&summary)?);
    let mut missed = Vec::new();
    if summary.ratio_p50.is_some_and(|ratio| ratio > BAR_RATIO) {
        missed.push(format!("more than {BAR_RATIO} of keepalived's time"));
    }
    if summary.broken_live > 0 {
        missed.push(format!("{} connections broke that living nodes carried", summary.broken_live));
    }
    if summary.not_reset > 0 || summary.rst_ms_max > BAR_RESET_MS {
        missed.push(format!("connections of the dead node were not all reset within {BAR_RESET_MS} ms"));
    }
    ensure!(missed.is_empty(), "{}", missed.join("; "));
    Ok(())
}

#[derive(Debug, Serialize)]
struct Summary {
    runs: usize,
    trilith_ms: Quantiles,
    keepalived_ms: Option<Quantiles>,
    ratio_p50: Option<f64>,
    /// From the end of the cut until the set was at rest and clients were served, at worst.
    trilith_back_ms_max: f64,
    keepalived_back_ms_max: f64,
    /// Runs of keepalived after which the clients were not served within 10 s of the end of the cut.
    keepalived_black_holes: usize,
    /// Connections of living nodes, over all runs, and how many of them broke.
    flows_live: usize,
    broken_live: usize,
    /// Connections of the dead node, over all runs; how long after the cut the last one was reset; how many never were.
    flows_dead: usize,
    rst_ms_p50: f64,
    rst_ms_max: f64,
    not_reset: usize,
    /// From the cut until both survivors name the same new owner.
    agree_ms_max: f64,
}

impl Summary {
    fn of(trilith: &[Run], keepalived: &[Run]) -> Summary {
        let gaps = |runs: &[Run]| Quantiles::of_us(runs.iter().map(|run| (run.gap_ms * 1000.0) as u32).collect());
        let (ours, theirs) = (gaps(trilith), gaps(keepalived));
        let compared = !keepalived.is_empty();
        let resets = trilith.iter().flat_map(|run| &run.rst_ms).map(|ms| (ms * 1000.0) as u32);
        let resets = Quantiles::of_us(resets.collect());
        Summary {
            runs: trilith.len(),
            trilith_ms: ours,
            keepalived_ms: compared.then_some(theirs),
            ratio_p50: compared.then(|| (ours.p50 / theirs.p50 * 1000.0).round() / 1000.0),
            trilith_back_ms_max: trilith.iter().map(|run| run.back_ms).fold(0.0, f64::max),
            keepalived_back_ms_max: keepalived.iter().map(|run| run.back_ms).fold(0.0, f64::max),
            keepalived_black_holes: keepalived.iter().filter(|run| run.black_hole).count(),
            flows_live: trilith.iter().map(|run| run.flows_live).sum(),
            broken_live: trilith.iter().map(|run| run.broken_live).sum(),
            flows_dead: trilith.iter().map(|run| run.flows_dead).sum(),
            rst_ms_p50: resets.p50,
            rst_ms_max: resets.max,
            not_reset: trilith.iter().map(|run| run.flows_dead - run.rst_ms.len()).sum(),
            agree_ms_max: trilith.iter().map(|run| run.agree_ms).fold(0.0, f64::max),
        }
    }
}

/// What one cut did.
#[derive(Debug, Default)]
struct Run {
    gap_ms: f64,
    /// From the end of the cut until the set was at rest and new connections were served.
    back_ms: f64,
    /// That did not come about by itself within [`BACK_DEADLINE`].
    black_hole: bool,
    agree_ms: f64,
    flows_live: usize,
    broken_live: usize,
    flows_dead: usize,
    rst_ms: Vec<f64>,
}

fn block_of(mode: Mode, runs: u32, done: usize, into: &mut Vec<Run>) -> Result<()> {
    let lab = Lab::up(mode)?;
    for turn in 0..runs as usize {
        let number = done + turn;
        let run = match mode {
            Mode::Trilith => cut_trilith(&lab, NODES[number % NODES.len()]),
            Mode::Peer => cut_keepalived(&lab),
        };
        let run = run.with_context(|| format!("run {}", number + 1))?;
        let name = if mode == Mode::Trilith { "trilith" } else { "keepalived" };
        let flows = if mode == Mode::Trilith {
            let last = run.rst_ms.iter().copied().fold(0.0, f64::max);
            format!(
                ", agreed after {} ms, broken {} of {}, reset {} of {} within {last} ms",
                run.agree_ms,
                run.broken_live,
                run.flows_live,
                run.rst_ms.len(),
                run.flows_dead
            )
        } else {
            String::new()
        };
        say(&format!(
            "{name} run {}: nobody could connect for {} ms, back after {} ms{flows}",
            number + 1,
            run.gap_ms,
            run.back_ms
        ));
        into.push(run);
    }
    Ok(())
}

fn cut_keepalived(lab: &Lab) -> Result<Run> {
    settle(lab)?;
    let steady = connect(lab)?;
    let cut_ns = now_ns();
    lab.switch.cut(NODES[0], Direction::Both)?;
    wait_served(&steady, cut_ns + CUT_TAKES_NS, DEADLINE)?;
    let gap_ms = gap(&steady, cut_ns);
    lab.heal()?;
    let healed_ns = now_ns();
    settle(lab)?;
    let black_hole = wait_served(&steady, healed_ns, BACK_DEADLINE).is_err();
    if black_hole {
        // The clients still send to a node that is the owner no longer. Their neighbour entry would age in half a minute.
        lab.client.ip(&format!("neigh flush to {VIP} dev eth0\n"))?;
        wait_served(&steady, now_ns(), DEADLINE)?;
    }
    let back_ms = ms_between(healed_ns, now_ns());
    Ok(Run { gap_ms, back_ms, black_hole, ..Run::default() })
}

fn cut_trilith(lab: &Lab, owner: &str) -> Result<Run> {
    settle(lab)?;
    let others: Vec<&str> = NODES.into_iter().filter(|name| *name != owner).collect();
    let flows = Flows::on(lab, &[others[0], others[1], owner], FLOWS_EACH, PING_EVERY)?;
    let quiet_ns = now_ns() + AFTERMATH_NS;
    let steady = connect(lab)?;
    wait_until("the moves before the cut forgotten", DEADLINE, || now_ns() >= quiet_ns)?;
    let cut_ns = now_ns();
    lab.switch.cut(owner, Direction::Both)?;
    let witnesses: Vec<&Node> = lab.nodes.iter().filter(|node| node.name() != owner).collect();
    until("the survivors agree on a new owner", DEADLINE, || {
        let owners = agreed(&witnesses)?;
        ensure!(owners.iter().all(|it| it != owner), "the owner is still {owner}");
        Ok(())
    })?;
    let agree_ms = ms_between(cut_ns, now_ns());
    wait_served(&steady, cut_ns + CUT_TAKES_NS, DEADLINE)?;
    let dead = |it: &Carrier| it.front == owner;
    // Who waits for the dead node's service waits as if there were no Trilith; who waits for its HAProxy must not.
    let live = |it: &Carrier| it.front != owner && it.back != owner;
    let all_gone = || {
        let fate = flows.fate();
        fate.breaks(dead).len() == fate.count(dead)
    };
    // What is missing then is in the report.
    let _ = wait_until("every connection of the dead node reset", RESET_DEADLINE, all_gone);
    let gap_ms = gap(&steady, cut_ns);
    let fate = flows.fate();
    let resets = fate.breaks(dead).into_iter().filter(|it| it.failure == Failure::Reset);
    let rst_ms = resets.map(|it| ms_between(cut_ns, it.at_ns)).collect();
    lab.heal()?;
    let healed_ns = now_ns();
    settle(lab)?;
    wait_served(&steady, healed_ns, BACK_DEADLINE)?;
    let back_ms = ms_between(healed_ns, now_ns());
    let fate = flows.finish()?;
    for it in fate.breaks(|it| live(it) || dead(it)) {
        let carrier = fate.carrier(it.local_port);
        if it.failure != Failure::Reset || carrier.is_some_and(live) {
            let after_ms = ms_between(cut_ns, it.at_ns);
            say(&format!("{owner} cut off: {} {after_ms} ms later, carried by {carrier:?}", it.failure));
        }
    }
    let broken_live = fate.breaks(live).len();
    Ok(Run {
        gap_ms,
        back_ms,
        black_hole: false,
        agree_ms,
        flows_live: fate.count(live),
        broken_live,
        flows_dead: fate.count(dead),
        rst_ms,
    })
}

/// New connections at a steady rate, when it runs well.
fn connect(lab: &Lab) -> Result<Steady> {
    let target = SocketAddr::from((VIP, HTTP_PORT));
    let options = SteadyOptions { netns: Some(lab.client.path()), rate: NEW_PER_S, ..SteadyOptions::new(target) };
    let steady = Steady::start(options)?;
    wait_until("new connections before the cut", DEADLINE, || steady.live().ok >= u64::from(NEW_PER_S) / 4)?;
    Ok(steady)
}

/// Waits until connections that began after that instant are answered, one after the other.
fn wait_served(steady: &Steady, after_ns: u64, deadline: Duration) -> Result<()> {
    let before = steady.live().ok;
    let again = || {
        let live = steady.live();
        let latest_ns = now_ns().saturating_sub((live.current_gap_ms * 1e6) as u64);
        live.ok >= before + AGAIN && latest_ns > after_ns && live.current_gap_ms < 100.0
    };
    wait_until("new connections served again", deadline, again).map(drop)
}

fn gap(steady: &Steady, cut_ns: u64) -> f64 {
    tenth(steady.report(Window::new(cut_ns, now_ns())).longest_gap_ms)
}

/// The bars.
const BAR_RATIO: f64 = 0.5;
const BAR_RESET_MS: f64 = 300.0;
/// Runs before the other one's turn; bringing a laboratory up takes longer than a run.
const BLOCK: u32 = 5;
/// A gap is then known to 5 ms.
const NEW_PER_S: u32 = 200;
/// Good new connections after which the VIP counts as served again.
const AGAIN: u64 = 50;
/// Longer than the command that cuts takes: an attempt begun later than this cannot have been answered by the old owner.
const CUT_TAKES_NS: u64 = 20_000_000;
const FLOWS_EACH: usize = 30;
/// A connection learns that its node is dead when it next sends something, so it says something often.
const PING_EVERY: Duration = Duration::from_millis(50);
const RESET_DEADLINE: Duration = Duration::from_secs(3);
/// From the end of the cut until clients are served; what takes longer is a black hole.
const BACK_DEADLINE: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(15);
