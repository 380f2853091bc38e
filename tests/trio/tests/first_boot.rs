//! One machine and its first boot: with little memory, with its power cut at any moment, and again when its state is gone or its
//! ESP torn. Needs root, the image and minutes: `./justw trio test`.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use trilith_lab::wait::wait_until;
use trilith_trio::boot::{BOOT_DEADLINE, Boot, boot};
use trilith_trio::gpt::{Partition, partitions};
use trilith_trio::plan::{Hardware, Plan, VIP};
use trilith_trio::status::said;
use trilith_trio::tools;
use trilith_trio::trio::{self, Trio, say};

#[test]
#[ignore = "needs root, the image and minutes"]
fn a_machine_with_256_mib_serves() -> Result<()> {
    let plan = Plan { memory_mib: 256, ..Plan::alone(trio::prepare()?)? };
    let trio = Trio::make(&[plan])?;
    let Boot { kernel_s, used_mib, .. } = boot(&trio, &trio.machines[0])?;
    say(&format!("256 MiB: serves {kernel_s:.1} s after the kernel's start, uses {used_mib:.1} MiB"));
    ensure!(used_mib < 110.0, "{used_mib} MiB in use");
    Ok(())
}

#[test]
#[ignore = "needs root, the image and minutes"]
fn nothing_is_started_from_where_something_can_be_written() -> Result<()> {
    let trio = Trio::make(&[Plan::alone(trio::prepare()?)?])?;
    let machine = &trio.machines[0];
    boot(&trio, machine)?;
    let mut mounts = String::new();
    wait_until("a support bundle", BOOT_DEADLINE, || {
        mounts = trio.support(machine, "mounts.txt").unwrap_or_default();
        !mounts.is_empty()
    })?;
    let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(1).zip(line.split(' ').nth(3)));
    let has = |options: &str, all: &[&str]| all.iter().all(|one| options.split(',').any(|option| option == *one));
    for (at, options) in mounts {
        let asked: &[&str] = if at == "/" { &["ro", "nosuid", "nodev"] } else { &["noexec", "nosuid"] };
        ensure!(has(options, asked), "{at} is mounted {options}, not {asked:?}");
    }
    Ok(())
}

/// The firmware's time is left out: nothing is written then.
#[test]
#[ignore = "needs root, the image and minutes"]
fn a_first_boot_that_loses_power_at_any_moment_is_finished_by_the_next() -> Result<()> {
    let plan = Plan { hardware: Hardware::Esx, ..Plan::alone(trio::prepare()?)? };
    let trio = Trio::make(&[plan])?;
    let machine = &trio.machines[0];
    let whole = boot(&trio, machine)?;
    let before_s = whole.power_on_s - whole.kernel_s;
    let shares = shares()?;
    say(&format!("a first boot takes {:.1} s after {before_s:.1} s of firmware", whole.kernel_s));
    for (number, share) in shares.into_iter().enumerate() {
        machine.power_cut()?;
        machine.make()?;
        let start = Instant::now();
        machine.power_on()?;
        // The moment is what is random here.
        sleep(Duration::from_secs_f64(before_s + whole.kernel_s * share).saturating_sub(start.elapsed()));
        machine.power_cut()?;
        let Boot { kernel_s, .. } = boot(&trio, machine)?;
        let name = trio.network.get(IpAddr::from(VIP), "/")?;
        let at_s = whole.kernel_s * share;
        say(&format!("cut {}: after {at_s:.1} s; the next boot serves after {kernel_s:.1} s", number + 1));
        assert_eq!(name.trim(), machine.name(), "it kept what it was told");
    }
    Ok(())
}

#[test]
#[ignore = "needs root, the image and minutes"]
fn a_state_partition_that_is_broken_or_lost_is_made_anew_and_the_console_says_so() -> Result<()> {
    let plan = Plan { disk_mib: None, ..Plan::alone(trio::prepare()?)? };
    let trio = Trio::make(&[plan])?;
    boot(&trio, &trio.machines[0])?;
    serves_anew(&trio, break_state, "no ext4 file system on")?;
    serves_anew(&trio, lose_state, "the partition table had no trilith-state")
}

/// Damages the disk between two boots; `why` is what the second says of it.
fn serves_anew(trio: &Trio, damage: impl FnOnce(&Path) -> Result<()>, why: &str) -> Result<()> {
    let machine = &trio.machines[0];
    machine.power_off()?;
    machine.alter_disk(damage)?;
    let from = machine.said_bytes();
    let Boot { kernel_s, .. } = boot(trio, machine)?;
    let name = trio.network.get(IpAddr::from(VIP), "/")?;
    assert_eq!(name.trim(), machine.name(), "it takes its answers again");
    let told = || machine.said_since(from).contains("State was broken and has been made anew");
    wait_until("the console's word of it", BOOT_DEADLINE, told).with_context(|| machine.last_words())?;
    let alarms = said(trio, machine)?["alarms"].to_string();
    ensure!(alarms.contains(why), "no alarm says {why:?}: {alarms}");
    say(&format!("serves {kernel_s:.1} s after the kernel's start, and says: {alarms}"));
    Ok(())
}

/// Nothing of the file system is left, no copy of its superblock either.
fn break_state(disk: &Path) -> Result<()> {
    let (_, state) = state(disk)?;
    let file = File::options().write(true).open(disk)?;
    Ok(file.write_all_at(&vec![0xa5; state.bytes as usize], state.from)?)
}

fn lose_state(disk: &Path) -> Result<()> {
    let home = disk.parent().context("a disk image lies in a directory")?;
    let (number, _) = state(disk)?;
    tools::run(home, "sfdisk", &["--quiet", "--delete", &disk.display().to_string(), &number.to_string()]).map(drop)
}

/// Linux makes a FAT file system read-only when it is to remove a file whose clusters are free, and nobody can install anything then.
#[test]
#[ignore = "needs root, the image and minutes"]
fn an_esp_that_a_power_cut_has_torn_is_whole_after_the_next_boot() -> Result<()> {
    let trio = Trio::make(&[Plan::alone(trio::prepare()?)?])?;
    let machine = &trio.machines[0];
    machine.alter_disk(|disk| {
        tear_esp(disk)?;
        ensure!(check_esp(disk).is_err(), "fsck.fat finds nothing wrong with it");
        Ok(())
    })?;
    boot(&trio, machine)?;
    wait_until("fsck.fat's word in the journal", BOOT_DEADLINE, || {
        trio.support(machine, "journal.txt").is_ok_and(|journal| journal.contains("Truncating file to"))
    })?;
    machine.power_off()?;
    machine.alter_disk(check_esp)
}

/// A file of which the power took the second half of its clusters, and a chain of clusters whose file it took.
fn tear_esp(disk: &Path) -> Result<()> {
    let esp = esp(disk)?;
    let home = disk.parent().context("a disk image lies in a directory")?;
    let drive = format!("{}@@{}", disk.display(), esp.from);
    let local = home.join("torn").display().to_string();
    std::fs::write(&local, vec![0xa5; 1 << 20])?;
    let on_esp = "::/EFI/Linux/trilith_9.0.0.new";
    tools::run(home, "mcopy", &["-i", &drive, &local, on_esp])?;
    // "::/EFI/Linux/trilith_9.0.0.new <29000-31047>"
    let chain = tools::run(home, "mshowfat", &["-i", &drive, on_esp])?;
    let first = chain.split_once('<').and_then(|(_, clusters)| clusters.split_once('-')?.0.parse::<u64>().ok());
    let first = first.with_context(|| format!("no one chain: {chain}"))?;
    let file = File::options().read(true).write(true).open(disk)?;
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, esp.from)?;
    // Microsoft's FAT32 specification, "Boot Sector and BPB".
    let word = |at: usize| u64::from(u16::from_le_bytes([sector[at], sector[at + 1]]));
    let (bytes_per_sector, reserved, fats) = (word(11), word(14), u64::from(sector[16]));
    let sectors_per_fat = u64::from(u32::from_le_bytes([sector[36], sector[37], sector[38], sector[39]]));
    for fat in 0..fats {
        let at = (reserved + fat * sectors_per_fat) * bytes_per_sector + (first + HALF) * 4;
        file.write_all_at(&[0; 4], esp.from + at)?;
    }
    Ok(())
}

/// What fsck.fat says of it.
fn check_esp(disk: &Path) -> Result<()> {
    let esp = esp(disk)?;
    let home = disk.parent().context("a disk image lies in a directory")?;
    let mut bytes = vec![0; esp.bytes as usize];
    File::open(disk)?.read_exact_at(&mut bytes, esp.from)?;
    let copy = home.join("esp.raw");
    std::fs::write(&copy, bytes)?;
    tools::run(home, "fsck.fat", &["-n", &copy.display().to_string()]).map(drop)
}

fn esp(disk: &Path) -> Result<Partition> {
    partitions(disk)?.into_iter().find(|partition| partition.label == "esp").context("no partition esp")
}

/// The state's partition with its number.
fn state(disk: &Path) -> Result<(usize, Partition)> {
    let mut numbered = (1..).zip(partitions(disk)?);
    numbered.find(|(_, partition)| partition.label == "trilith-state").context("no partition trilith-state")
}

/// Ten random moments, as shares of the first boot.
fn shares() -> Result<Vec<f64>> {
    let mut bytes = [0; CUTS];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| f64::from(*byte) / 255.0).collect())
}

const CUTS: usize = 10;
/// Clusters of the torn file that stay.
const HALF: u64 = 1000;
