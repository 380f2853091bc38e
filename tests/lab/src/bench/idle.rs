//! `bench idle`: what the supervisor costs when nothing happens.
//!
//! All three nodes are measured, one of which owns at least one VIP; the worst counts. Processor time is the kernel's own, in
//! nanoseconds, and that of ended children (`nft`, `haproxy -c`) is added, so that nothing is hidden in short processes.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use super::proxy::cpu_ns;
use super::said::settle;
use super::{say, tenth};
use crate::lab::{Lab, Mode};
use crate::load::json_row;

/// How long.
#[derive(Debug, Args)]
pub struct Options {
    /// Seconds to measure.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

/// Measures all three supervisors at once; the last line is one JSON object.
///
/// # Errors
/// When a bar is missed, a supervisor was restarted meanwhile, or the laboratory cannot be used.
pub fn run(options: &Options) -> Result<()> {
    let lab = Lab::up(Mode::Trilith)?;
    settle(&lab)?;
    say(&format!("the set is at rest; {} s until what came with the start is over", REST.as_secs()));
    // What is measured is the passing of time itself: there is nothing to wait for.
    sleep(REST);
    let pids: Vec<i32> = lab.nodes.iter().map(|node| node.main_pid(UNIT)).collect::<Result<_>>()?;
    say(&format!("measuring for {} s", options.seconds));
    let before = Instant::now();
    let used: Vec<u64> = pids.iter().map(|pid| used_ns(*pid)).collect::<Result<_>>()?;
    sleep(Duration::from_secs(options.seconds));
    let took_ns = before.elapsed().as_nanos() as f64;
    let mut nodes = Vec::new();
    for ((node, pid), used) in lab.nodes.iter().zip(&pids).zip(used) {
        let cpu_percent = (used_ns(*pid)? - used) as f64 / took_ns * 100.0;
        let memory = |key| memory_mib(*pid, key);
        let row = Row {
            node: node.name(),
            cpu_percent: thousandth(cpu_percent),
            rss_mib: tenth(memory("VmRSS:")?),
            of_its_own_mib: tenth(memory("RssAnon:")?),
        };
        let Row { node, cpu_percent, rss_mib, of_its_own_mib } = &row;
        say(&format!("{node}: {cpu_percent:.3} % of a core, {rss_mib} MiB resident, {of_its_own_mib} MiB its own"));
        nodes.push(row);
    }
    let worst = |value: fn(&Row) -> f64| nodes.iter().map(value).fold(0.0, f64::max);
    let summary = Summary {
        cpu_percent: worst(|row| row.cpu_percent),
        rss_mib: worst(|row| row.rss_mib),
        seconds: options.seconds,
        nodes,
    };
    println!("{}", json_row(&summary)?);
    if summary.cpu_percent > BAR_CPU_PERCENT || summary.rss_mib > BAR_RSS_MIB {
        bail!("a supervisor at rest may use {BAR_CPU_PERCENT} % of a core and {BAR_RSS_MIB} MiB");
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct Summary {
    cpu_percent: f64,
    rss_mib: f64,
    seconds: u64,
    nodes: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    node: &'static str,
    cpu_percent: f64,
    rss_mib: f64,
    /// Without the pages that it shares with its own file.
    of_its_own_mib: f64,
}

fn used_ns(pid: i32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("the supervisor with process id {pid} has ended"))?;
    // The name may hold blanks; what follows its bracket does not (proc_pid_stat(5), fields 16 and 17: cutime, cstime).
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    Ok(cpu_ns(&[pid])? + (ticks(13) + ticks(14)) * TICK_NS)
}

/// A line of `/proc/PID/status`, in MiB.
pub(super) fn memory_mib(pid: i32, key: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("the supervisor with process id {pid} has ended"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("/proc/{pid}/status has no {key}"))? / 1024.0)
}

fn thousandth(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// The bars.
const BAR_CPU_PERCENT: f64 = 0.5;
const BAR_RSS_MIB: f64 = 15.0;
/// Announcements after a start go on for 5 s.
const REST: Duration = Duration::from_secs(8);
/// USER_HZ is 100 on all architectures that we build for.
const TICK_NS: u64 = 10_000_000;
/// The supervisor's unit.
pub(super) const UNIT: &str = "trilith.service";
