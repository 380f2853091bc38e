//! `bench idle`: what the supervisor costs when nothing happens.
//!
//! All three nodes are measured, one of which owns at least one VIP; the worst counts. Processor time is the kernel's own, in
//! nanoseconds, and that of ended children (`haproxy -c`) is added, so that nothing is hidden in short processes.
//!
//! Containers share a kernel, and `veth` runs a datagram's whole way through the switch and into the peer's socket within the sender's
//! system call. Machines of their own do not pay for that. So it is measured twice: as it is, and with supervisors on the first processor
//! while the switch hands what it receives to the last one (receive packet steering). The latter is what a supervisor costs.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
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
    say(&format!("measuring for {} s, with the peers' receiving", options.seconds));
    let with_receiving = measure(&pids, options.seconds)?.into_iter().fold(0.0, f64::max);
    say(&format!("at most {with_receiving:.3} % of a core; for {} s without", options.seconds));
    let processors = std::thread::available_parallelism()?.get();
    steer(&lab, &pids, &[0], 1 << (processors - 1))?;
    let measured = measure(&pids, options.seconds);
    steer(&lab, &pids, &(0..processors).collect::<Vec<_>>(), 0)?;
    let mut nodes = Vec::new();
    for ((node, pid), cpu_percent) in lab.nodes.iter().zip(&pids).zip(measured?) {
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
        cpu_percent_with_receiving: thousandth(with_receiving),
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
    /// Of the worst node, with what its datagrams cost the others.
    cpu_percent_with_receiving: f64,
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

/// Percent of a core that each of these processes uses while so many seconds pass.
fn measure(pids: &[i32], seconds: u64) -> Result<Vec<f64>> {
    let from = Instant::now();
    let before: Vec<u64> = pids.iter().map(|pid| used_ns(*pid)).collect::<Result<_>>()?;
    sleep(Duration::from_secs(seconds));
    let took_ns = from.elapsed().as_nanos() as f64;
    pids.iter().zip(before).map(|(pid, before)| Ok((used_ns(*pid)? - before) as f64 / took_ns * 100.0)).collect()
}

/// Lets these processes run on these processors, and the switch receive on those of the mask `receivers`.
fn steer(lab: &Lab, pids: &[i32], processors: &[usize], receivers: u64) -> Result<()> {
    let mut set = CpuSet::new();
    processors.iter().try_for_each(|processor| set.set(*processor))?;
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = thread?.file_name().to_string_lossy().parse()?;
            sched_setaffinity(Pid::from_raw(thread), &set).context("sched_setaffinity")?;
        }
    }
    lab.nodes.iter().try_for_each(|node| lab.switch.receive_on(node.name(), receivers))
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
