//! `bench boot`: from the kernel's start until the VIP answers HTTP, on a set of one, against a stock Debian 13 with
//! keepalived and HAProxy (`tests/trio/debian`). Same QEMU, same hardware, same service, in turn, so that what else the
//! host does meanwhile concerns both.
//!
//! The kernel's start is asked of the guest itself: the first answer over the VIP is its `/proc/uptime`. Firmware and boot
//! loader are not in it; `power_on_s` has all.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::Serialize;

use trilith_core::config::PEER_PORT;
use trilith_lab::command::run as host;
use trilith_lab::wait::wait_until;

use crate::machine::Machine;
use crate::plan::{Plan, VIP};
use crate::tools::{self, build_directory, repository};
use crate::trio::{self, Trio, say};

/// How much.
#[derive(Debug, Args)]
pub struct Options {
    /// Boots of each, after the first one of a new disk.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
}

/// Measures; the last line is one JSON object.
///
/// # Errors
/// When Trilith takes more than [`BAR_RATIO`] of Debian's time or more than [`BAR_USED_MIB`] of memory, or one of the two does
/// not come up.
pub fn run(options: &Options) -> Result<()> {
    let accel = trio::prepare()?;
    let ours = Plan::alone(accel)?;
    // Its disk is larger than ours: cut to our size it has no partitions.
    let theirs = Plan { disk: debian()?, disk_mib: None, ..ours.clone() };
    let (mut trilith, mut debian) = (Vec::new(), Vec::new());
    boots(&ours, &LATER, options.runs, &mut trilith)?;
    boots(&theirs, &[], options.runs, &mut debian)?;
    let summary = Summary::of(&trilith, &debian);
    println!("{}", serde_json::to_string(&summary)?);
    ensure!(summary.ratio <= BAR_RATIO, "Trilith takes more than {BAR_RATIO} of Debian's time");
    ensure!(summary.trilith_used_mib <= BAR_USED_MIB, "Trilith uses more than {BAR_USED_MIB} MiB of memory");
    Ok(())
}

#[derive(Debug, Serialize)]
struct Summary {
    /// Medians of the boots after the first one, in seconds since the kernel's start.
    trilith_s: f64,
    debian_s: f64,
    ratio: f64,
    /// The first boot of a new disk.
    trilith_first_s: f64,
    debian_first_s: f64,
    /// Medians from the power button to the answer, firmware included.
    trilith_power_on_s: f64,
    debian_power_on_s: f64,
    /// Memory in use after boot, page cache aside, at most.
    trilith_used_mib: f64,
    debian_used_mib: f64,
    runs: usize,
}

impl Summary {
    fn of(trilith: &[Boot], debian: &[Boot]) -> Summary {
        let kernel = |boots: &[Boot]| median(boots[1..].iter().map(|boot| boot.kernel_s).collect());
        let power_on = |boots: &[Boot]| median(boots[1..].iter().map(|boot| boot.power_on_s).collect());
        let used = |boots: &[Boot]| boots.iter().map(|boot| boot.used_mib).fold(0.0, f64::max);
        let (trilith_s, debian_s) = (kernel(trilith), kernel(debian));
        Summary {
            trilith_s,
            debian_s,
            ratio: (trilith_s / debian_s * 1000.0).round() / 1000.0,
            trilith_first_s: trilith[0].kernel_s,
            debian_first_s: debian[0].kernel_s,
            trilith_power_on_s: power_on(trilith),
            debian_power_on_s: power_on(debian),
            trilith_used_mib: used(trilith),
            debian_used_mib: used(debian),
            runs: trilith.len() - 1,
        }
    }
}

/// What one boot took.
#[derive(Debug, Clone, Copy)]
pub struct Boot {
    /// From the kernel's start to the first answer over the VIP, in seconds.
    pub kernel_s: f64,
    /// From power-on to the same, in seconds.
    pub power_on_s: f64,
    /// Memory in use when all has started, page cache aside, in MiB.
    pub used_mib: f64,
}

/// Powers a machine of ours on and waits until its service answers over the VIP, and until all has started.
///
/// # Errors
/// When that takes longer than [`BOOT_DEADLINE`], with the end of its serial log.
pub fn boot(trio: &Trio, machine: &Machine) -> Result<Boot> {
    boot_with(trio, machine, &LATER)
}

fn boot_with(trio: &Trio, machine: &Machine, later: &[u16]) -> Result<Boot> {
    let start = Instant::now();
    machine.power_on()?;
    let uptime = loop {
        match trio.network.get(IpAddr::from(VIP), "/proc/uptime") {
            Ok(uptime) => break uptime,
            Err(error) if start.elapsed() > BOOT_DEADLINE => {
                let what = format!("no answer over {} within {BOOT_DEADLINE:.0?}", SocketAddr::new(VIP.into(), 80));
                bail!("{what}: {error:#}\n{}", machine.last_words());
            }
            Err(_) => std::thread::sleep(ASK_EVERY),
        }
    };
    let power_on_s = tenth(start.elapsed().as_secs_f64());
    let kernel_s = uptime.split(' ').next().and_then(|seconds| seconds.parse::<f64>().ok());
    let kernel_s = tenth(kernel_s.with_context(|| format!("no uptime but {uptime:?}"))?);
    for port in later {
        let to = SocketAddr::new(machine.plan.address().into(), *port);
        let open = || trio.network.as_client(|| Ok(TcpStream::connect_timeout(&to, BOOT_DEADLINE)?)).is_ok();
        wait_until(&format!("{to} open"), BOOT_DEADLINE, open).with_context(|| machine.last_words())?;
    }
    let memory = trio.network.get(IpAddr::from(VIP), "/proc/meminfo")?;
    Ok(Boot { kernel_s, power_on_s, used_mib: tenth(used_mib(&memory)?) })
}

fn boots(plan: &Plan, later: &[u16], runs: u32, into: &mut Vec<Boot>) -> Result<()> {
    let trio = Trio::make(std::slice::from_ref(plan))?;
    let machine = &trio.machines[0];
    let what = plan.disk.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    for run in 0..=runs {
        let took = boot_with(&trio, machine, later)?;
        let Boot { kernel_s, power_on_s, used_mib } = took;
        let which = if run == 0 { "first boot" } else { "boot" };
        say(&format!(
            "{what}: {which}: {kernel_s:.1} s from the kernel's start, {power_on_s:.1} s in all, {used_mib:.1} MiB"
        ));
        into.push(took);
        machine.power_off()?;
    }
    Ok(())
}

/// `MemTotal` without what is free and what can be dropped at once (proc_meminfo(5)), in MiB.
fn used_mib(meminfo: &str) -> Result<f64> {
    let kib = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let number = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<f64>().ok());
        number.with_context(|| format!("no {key} in /proc/meminfo"))
    };
    let cache = kib("Buffers")? + kib("Cached")? - kib("Shmem")? + kib("SReclaimable")?;
    Ok((kib("MemTotal")? - kib("MemFree")? - cache) / 1024.0)
}

/// Builds the Debian to compare with, unless it is there and none of its inputs changed.
pub fn debian() -> Result<PathBuf> {
    let repo = repository()?;
    let build = build_directory(&repo).join("trio-debian");
    let disk = build.join("out/debian.raw");
    let text = |path: PathBuf| path.display().to_string();
    tools::prepare()?;
    fs::create_dir_all(&build).with_context(|| format!("cannot make {}", build.display()))?;
    let service = trilith_lab::root::binaries()?.join("lab-service");
    let inputs = host("sh", &["-c", INPUTS, "sh", &text(repo.clone()), &text(service.clone())])?;
    if disk.exists() && fs::read_to_string(build.join("stamp")).is_ok_and(|stamp| stamp == inputs) {
        return Ok(disk);
    }
    say("a stock Debian 13 to compare with: mkosi (a few minutes, once)");
    fs::remove_dir_all(&build)?;
    for directory in ["out", "work", "sandbox/etc/apt/sources.list.d", "extra/usr/bin"] {
        fs::create_dir_all(build.join(directory))?;
    }
    fs::copy(build.with_file_name("sources"), build.join("sandbox/etc/apt/sources.list.d/mkosi.sources"))?;
    fs::copy(&service, build.join("extra/usr/bin/lab-service")).with_context(|| format!("no {}", service.display()))?;
    let options = [
        ("--directory", repo.join("tests/trio/debian")),
        ("--extra-tree", repo.join("overlays/services/lab")),
        ("--extra-tree", build.join("extra")),
        ("--output-directory", build.join("out")),
        ("--workspace-directory", build.join("work")),
        ("--package-cache-directory", build.with_file_name("cache")),
        ("--sandbox-tree", build.join("sandbox")),
    ];
    let options: Vec<String> = options.into_iter().flat_map(|(option, path)| [option.to_owned(), text(path)]).collect();
    let mut arguments: Vec<&str> = options.iter().map(String::as_str).collect();
    arguments.extend(["--force", "build"]);
    fs::create_dir_all(build.with_file_name("cache"))?;
    tools::run(&repo, "mkosi", &arguments)?;
    fs::write(build.join("stamp"), inputs)?;
    Ok(disk)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// What that Debian is made of, by content.
const INPUTS: &str =
    "cd \"$1\"; find tests/trio/debian overlays/services/lab -type f -exec sha256sum {} + | sort; sha256sum \"$2\"";
/// What starts after what serves: SSH, and the coordinator.
const LATER: [u16; 2] = [22, PEER_PORT];
/// What the specification allows.
const BAR_RATIO: f64 = 0.4;
const BAR_USED_MIB: f64 = 110.0;
/// A translated stock Debian takes somewhat more than a minute.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(180);
const ASK_EVERY: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_use_is_what_is_neither_free_nor_cache() -> Result<()> {
        let meminfo = "MemTotal: 102400 kB\nMemFree: 20480 kB\nBuffers: 1024 kB\nCached: 10240 kB\nShmem: 1024 kB\n\
                       SReclaimable: 2048 kB\n";
        assert_eq!(used_mib(meminfo)?, 68.0);
        assert!(used_mib("MemTotal: 1 kB\n").is_err());
        Ok(())
    }
}
