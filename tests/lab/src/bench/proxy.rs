//! `bench proxy`: what Trilith's rules cost a HAProxy, with kept connections and with one connection for each request.
//!
//! Both sides are the same HAProxy process on the same owner, with the same configuration, backends, VIP and supervisor:
//! only the hooks of Trilith's tables are taken out of the packets' way and put back (nft's table flag `dormant`), many
//! times in turns. The two sides of a round lie within a second and change their order from round to round, so a machine that
//! gets slower or faster meanwhile favours neither. What counts is the median of the rounds' ratios.
//!
//! The other two nodes carry nothing but a third of the backends' work each: no connections, no clients, and heartbeats,
//! which are the same on both sides. Client, HAProxy and services share this machine's processors, so a request costs
//! all of them together; `cpu` is the time that all of the laboratory's processes and the client used for a request, which
//! foreign work on the machine disturbs less than it does the rate.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use serde::Serialize;

use super::flows::{HTTP_PORT, at_home};
use super::{say, tenth};
use crate::lab::{Lab, Mode, NODES, VIP};
use crate::load::{ThroughputOptions, ThroughputReport, json_row, throughput};
use crate::node::Node;

/// How much.
#[derive(Debug, Args)]
pub struct Options {
    /// Rounds for each way to connect; a round is one measurement with the rules and one without.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(2..=1000))]
    rounds: u32,
    /// Milliseconds of each measurement.
    #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    each_ms: u64,
    /// Connections at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
}

/// Measures both ways to connect; the last line is one JSON object.
///
/// # Errors
/// When a ratio is below [`BAR`], a request failed, or the laboratory cannot be used.
pub fn run(options: &Options) -> Result<()> {
    let lab = Lab::up(Mode::Trilith)?;
    at_home(&lab, NODES[0])?;
    let owner = lab.node(NODES[0])?;
    let measured = both_ways(&lab, owner, options);
    // Rules that are out of the way must not stay there, whatever happened.
    set_rules(owner, true)?;
    let summary = measured?;
    println!("{}", json_row(&summary)?);
    let worst = summary.keepalive.ratio.min(summary.close.ratio);
    if worst < BAR {
        bail!(
            "with Trilith's rules HAProxy serves {worst} of what it serves without them: at least {BAR} was promised"
        );
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct Summary {
    keepalive: Way,
    close: Way,
    bar: f64,
    rounds: u32,
    each_ms: u64,
    connections: u32,
}

/// One way to connect.
#[derive(Debug, Serialize)]
struct Way {
    /// Requests per second with the rules over those without: the median of all rounds.
    ratio: f64,
    /// The same over the rounds' quarters.
    ratio_p25: f64,
    ratio_p75: f64,
    /// Processor time of a request without the rules over that with them: the median of all rounds.
    cpu_ratio: f64,
    with_rules: Side,
    bare: Side,
}

/// One side: medians over the rounds.
#[derive(Debug, Serialize)]
struct Side {
    requests_per_s: f64,
    p99_ms: f64,
    cpu_us: f64,
    haproxy_cpu_us: f64,
}

struct Measured {
    load: ThroughputReport,
    /// Of the laboratory and the client, for a request.
    cpu_us: f64,
    /// Of the owner's HAProxy alone, for a request.
    haproxy_us: f64,
}

fn both_ways(lab: &Lab, owner: &Node, options: &Options) -> Result<Summary> {
    Ok(Summary {
        keepalive: way(lab, owner, options, true)?,
        close: way(lab, owner, options, false)?,
        bar: BAR,
        rounds: options.rounds,
        each_ms: options.each_ms,
        connections: options.connections,
    })
}

fn way(lab: &Lab, owner: &Node, options: &Options, keep_alive: bool) -> Result<Way> {
    let (mut with, mut bare) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let first = round % 2 == 0;
        for rules in [first, !first] {
            set_rules(owner, rules)?;
            let measured = measure(lab, owner, options, keep_alive)?;
            ensure!(rules_in_force(owner)? == rules, "somebody else changed the rules of node {}", owner.name());
            if rules { &mut with } else { &mut bare }.push(measured);
        }
    }
    let rates: Vec<f64> = with.iter().zip(&bare).map(|(w, b)| w.load.requests_per_s / b.load.requests_per_s).collect();
    let cpus: Vec<f64> = with.iter().zip(&bare).map(|(w, b)| b.cpu_us / w.cpu_us).collect();
    let way = Way {
        ratio: thousandth(quantile(rates.clone(), 0.5)),
        ratio_p25: thousandth(quantile(rates.clone(), 0.25)),
        ratio_p75: thousandth(quantile(rates, 0.75)),
        cpu_ratio: thousandth(quantile(cpus, 0.5)),
        with_rules: side(&with),
        bare: side(&bare),
    };
    say(&format!(
        "{}: {} requests/s with the rules, {} without, ratio {} (half of the rounds {} to {}); {} and {} µs of processor time",
        if keep_alive { "kept connections" } else { "a connection for each request" },
        way.with_rules.requests_per_s,
        way.bare.requests_per_s,
        way.ratio,
        way.ratio_p25,
        way.ratio_p75,
        way.with_rules.cpu_us,
        way.bare.cpu_us,
    ));
    Ok(way)
}

fn measure(lab: &Lab, owner: &Node, options: &Options, keep_alive: bool) -> Result<Measured> {
    let options = ThroughputOptions {
        netns: Some(lab.client.path()),
        concurrency: options.connections as usize,
        keep_alive,
        warm_up: WARM_UP,
        duration: Duration::from_millis(options.each_ms),
        ..ThroughputOptions::new(SocketAddr::from((VIP, HTTP_PORT)))
    };
    let haproxy = owner.unit_pids("haproxy.service");
    let everything: Vec<i32> =
        lab.nodes.iter().flat_map(|node| UNITS.iter().flat_map(|it| node.unit_pids(it))).collect();
    let before = (cpu_ns(&haproxy)?, cpu_ns(&everything)?);
    let load = throughput(&options)?;
    let after = (cpu_ns(&haproxy)?, cpu_ns(&everything)?);
    if let Some((failure, times)) = load.failures.iter().next() {
        bail!("{times} requests failed ({failure}): nothing was done to the owner");
    }
    // Both clocks run from the first request on, so the requests of the warm-up are to be counted, too.
    let seconds = (options.warm_up + options.duration).as_secs_f64();
    let requests = load.requests_per_s * seconds;
    let client_us = load.client_cpu * seconds * 1e6;
    Ok(Measured {
        cpu_us: ((after.1 - before.1) as f64 / 1e3 + client_us) / requests,
        haproxy_us: (after.0 - before.0) as f64 / 1e3 / requests,
        load,
    })
}

fn side(all: &[Measured]) -> Side {
    let median = |value: fn(&Measured) -> f64| quantile(all.iter().map(value).collect(), 0.5);
    Side {
        requests_per_s: median(|it| it.load.requests_per_s).round(),
        p99_ms: thousandth(median(|it| it.load.latency_ms.p99)),
        cpu_us: tenth(median(|it| it.cpu_us)),
        haproxy_cpu_us: tenth(median(|it| it.haproxy_us)),
    }
}

/// Puts the rules into the packets' way, or takes them out of it. Adding a table that is there changes its flags (nft(8)).
fn set_rules(node: &Node, on: bool) -> Result<()> {
    let flags = if on { "" } else { " { flags dormant; }" };
    for family in FAMILIES {
        // The node's own nft, since an older one of the host may not be able to read newer rules.
        node.run("nft", &[&format!("add table {family} trilith{flags}")])?;
    }
    ensure!(rules_in_force(node)? == on, "nft did not change the tables of node {}", node.name());
    Ok(())
}

fn rules_in_force(node: &Node) -> Result<bool> {
    let listing = node.run("nft", &["list", "table", "ip", "trilith"])?;
    ensure!(listing.contains("hook input"), "node {} has no rules of Trilith: nothing to compare", node.name());
    Ok(!listing.contains("flags dormant"))
}

/// Processor time of these processes, ended threads included, in nanoseconds (clock_getcpuclockid(3)).
pub(super) fn cpu_ns(pids: &[i32]) -> Result<u64> {
    let mut total = 0;
    for pid in pids {
        let clock = clock_getcpuclockid(Pid::from_raw(*pid)).with_context(|| format!("process {pid} has ended"))?;
        let time = clock.now().with_context(|| format!("process {pid} has ended"))?;
        total += Duration::from(time).as_nanos() as u64;
    }
    Ok(total)
}

/// By nearest rank; 0 for no values.
fn quantile(mut values: Vec<f64>, q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (q * values.len() as f64).ceil().max(1.0) as usize;
    values.get(rank - 1).copied().unwrap_or(0.0)
}

fn thousandth(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// The bar.
const BAR: f64 = 0.95;
/// By then all connections are made.
const WARM_UP: Duration = Duration::from_millis(80);
const FAMILIES: [&str; 2] = ["ip", "ip6"];
/// Everything that a request passes, and the supervisor.
const UNITS: [&str; 3] = ["haproxy.service", "lab-service.service", "trilith.service"];
