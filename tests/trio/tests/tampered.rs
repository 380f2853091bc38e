//! What was altered never serves, and whoever found it out says so. Needs root, the image, its Secure Boot keys and minutes:
//! `./justw trio test`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use trilith_lab::wait::wait_until;
use trilith_trio::boot::{BOOT_DEADLINE, boot};
use trilith_trio::gpt::{Partition, partitions};
use trilith_trio::machine::Machine;
use trilith_trio::plan::{Firmware, Plan, VIP};
use trilith_trio::trio::{self, Trio, say};
use trilith_trio::{pe, tools};

#[test]
#[ignore = "needs root, the image and minutes"]
fn secure_boot_takes_the_signed_image() -> Result<()> {
    let plan = Plan { firmware: Firmware::Secure, ..Plan::alone(trio::prepare()?)? };
    let trio = Trio::make(&[plan])?;
    let took = boot(&trio, &trio.machines[0])?;
    say(&format!("Secure Boot, untouched: serves {:.1} s after the kernel's start", took.kernel_s));
    wait_secure_boot(&trio, &trio.machines[0])
}

/// As the admin guide says: a key held down shows the boot menu, whose last line enrols the keys that lie on the ESP.
#[test]
#[ignore = "needs root, the image and minutes"]
fn keys_enrolled_in_the_boot_menu_take_the_signed_image_and_no_altered_one() -> Result<()> {
    let plan = Plan { firmware: Firmware::Setup, ..Plan::alone(trio::prepare()?)? };
    let trio = Trio::power_on(&[plan])?;
    let machine = &trio.machines[0];
    let start = Instant::now();
    while !machine.said_since(0).contains("Enroll Secure Boot keys: auto") {
        ensure!(start.elapsed() < BOOT_DEADLINE, "no boot menu that offers to enrol keys\n{}", machine.last_words());
        machine.press("spc")?;
        // Held down, a key says so ten times a second.
        std::thread::sleep(Duration::from_millis(100));
    }
    machine.press("end")?;
    machine.press("ret")?;
    wait_until("keys enrolled", BOOT_DEADLINE, || machine.said_since(0).contains("keys successfully enrolled"))
        .with_context(|| machine.last_words())?;
    // They are the firmware's from then on.
    machine.power_cut()?;
    boot(&trio, machine)?;
    wait_secure_boot(&trio, machine)?;
    machine.power_off()?;
    machine.alter_disk(|disk| flip_in_efi(disk, "BOOT", ".text"))?;
    let from = machine.said_bytes();
    machine.power_on()?;
    let refused = || line_with(&machine.said_since(from), BY_FIRMWARE).is_some();
    wait_until("the firmware's refusal", BOOT_DEADLINE, refused).map(drop).with_context(|| machine.last_words())
}

/// The boot loader, and each section of the UKI that decides what runs.
#[test]
#[ignore = "needs root, the image and minutes"]
fn secure_boot_refuses_an_image_with_one_byte_flipped() -> Result<()> {
    let plan = Plan { firmware: Firmware::Secure, ..Plan::alone(trio::prepare()?)? };
    let patience = patience(&plan)?;
    for (directory, section, refusal) in [
        ("BOOT", ".text", BY_FIRMWARE),
        ("Linux", ".linux", BY_BOOT_LOADER),
        ("Linux", ".initrd", BY_BOOT_LOADER),
        ("Linux", ".cmdline", BY_BOOT_LOADER),
    ] {
        let what = format!("{section} of the program in EFI/{directory} altered");
        never_serves(&plan, patience, &what, refusal, |disk| flip_in_efi(disk, directory, section))?;
    }
    Ok(())
}

/// Whatever the firmware lets run: the hash in the UKI decides.
#[test]
#[ignore = "needs root, the image and minutes"]
fn an_image_with_a_byte_of_root_or_verity_flipped_never_serves() -> Result<()> {
    let plan = Plan::alone(trio::prepare()?)?;
    let (root, verity) = root_and_verity(&plan.disk)?;
    let mut random = File::open("/dev/urandom")?;
    let mut somewhere = |partition: &Partition, bytes: u64| -> Result<u64> {
        let mut number = [0; 8];
        random.read_exact(&mut number)?;
        Ok(partition.from + u64::from_le_bytes(number) % bytes)
    };
    let cases = [
        // erofs' superblock lies there (EROFS_SUPER_OFFSET).
        ("the root's superblock", root.from + 1024, BY_VERITY),
        ("somewhere in the root", somewhere(&root, written(&plan.disk, &root)?)?, BY_VERITY),
        ("somewhere else in the root", somewhere(&root, written(&plan.disk, &root)?)?, BY_VERITY),
        ("verity's superblock", verity.from + 8, BY_INITRD),
        ("the top of the hash tree", verity.from + 4096, BY_INITRD),
        ("somewhere in the hash tree", verity.from + 4096 + (written(&plan.disk, &verity)? - 4096) / 2, BY_VERITY),
    ];
    let patience = patience(&plan)?;
    for (what, at, refusal) in cases {
        never_serves(&plan, patience, &format!("{what}, byte {at} of the disk"), refusal, |disk| flip(disk, at))?;
    }
    Ok(())
}

/// Waits until the kernel's own word for it is in the machine's support bundle.
fn wait_secure_boot(trio: &Trio, machine: &Machine) -> Result<()> {
    let mut seen = String::new();
    let said = || {
        seen = trio.support(machine, "journal.txt").unwrap_or_else(|error| format!("{error:#}"));
        seen.contains("secureboot: Secure boot enabled")
    };
    let waited = wait_until("the kernel's word that Secure Boot is on", BOOT_DEADLINE, said).map(drop);
    waited.with_context(|| format!("the journal begins with: {}", seen.lines().next().unwrap_or_default()))
}

/// Boots the untouched image: how long an altered one has to serve, twice as long as that, is far more than it would need.
fn patience(plan: &Plan) -> Result<Duration> {
    let trio = Trio::make(std::slice::from_ref(plan))?;
    let start = Instant::now();
    boot(&trio, &trio.machines[0])?;
    Ok(start.elapsed() * 2)
}

/// Boots it with an altered disk and watches for so long; `refusal` are words of whoever does not take it, all of one line.
fn never_serves(
    plan: &Plan,
    patience: Duration,
    what: &str,
    refusal: &[&str],
    alter: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let trio = Trio::make(std::slice::from_ref(plan))?;
    let machine = &trio.machines[0];
    machine.alter_disk(alter)?;
    machine.power_on()?;
    let start = Instant::now();
    while start.elapsed() < patience && !gave_up(machine) {
        if let Ok(node) = trio.network.get(VIP.into(), "/") {
            bail!("{what}: {} serves all the same\n{}", node.trim(), machine.last_words());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let said = machine.said_since(0);
    let refused = line_with(&said, refusal);
    let refused = refused.with_context(|| format!("{what}: nobody said {refusal:?}\n{}", machine.last_words()))?;
    say(&format!("{what}: did not serve within {:.0?}; it said: {refused}", start.elapsed()));
    Ok(())
}

/// The first line that has all of these words.
fn line_with<'s>(said: &'s str, words: &[&str]) -> Option<&'s str> {
    said.lines().find(|line| words.iter().all(|word| line.contains(word)))
}

/// Whether the machine is off, or nothing will come of it any more: its firmware has nothing left to start.
fn gave_up(machine: &Machine) -> bool {
    let said = machine.said_since(0);
    !machine.is_on() || said.contains("Shell>") || said.contains("No bootable option")
}

/// The first root and its verity data, by their labels.
fn root_and_verity(disk: &Path) -> Result<(Partition, Partition)> {
    let all = partitions(disk)?;
    let labels = || all.iter().map(|partition| partition.label.clone()).collect::<Vec<_>>().join(", ");
    let verity = |partition: &&Partition| partition.label.contains("verity");
    let root = |partition: &&Partition| {
        !verity(partition) && (partition.label.contains("root") || partition.label.starts_with("trilith_"))
    };
    let found = all.iter().find(root).cloned().zip(all.iter().find(verity).cloned());
    found.with_context(|| format!("no root and verity among the partitions {}", labels()))
}

/// How many bytes of a partition, from its first on, hold data: up to the last byte that is not 0.
fn written(disk: &Path, partition: &Partition) -> Result<u64> {
    let file = File::open(disk)?;
    let mut block = vec![0; BLOCK as usize];
    for number in (0..partition.bytes / BLOCK).rev() {
        file.read_exact_at(&mut block, partition.from + number * BLOCK)?;
        if block.iter().any(|byte| *byte != 0) {
            return Ok((number + 1) * BLOCK);
        }
    }
    bail!("partition {} of {} is empty", partition.label, disk.display())
}

fn flip(file: &Path, at: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(file)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1;
    Ok(file.write_all_at(&byte, at)?)
}

/// Flips a byte in the middle of a section of the program in that directory of EFI on the disk's ESP.
fn flip_in_efi(disk: &Path, directory: &str, section: &str) -> Result<()> {
    let esp = partitions(disk)?.into_iter().find(|partition| partition.label == "esp").context("no partition esp")?;
    let home = disk.parent().context("a disk image lies in a directory")?;
    let drive = format!("{}@@{}", disk.display(), esp.from);
    let listing = tools::run(home, "mdir", &["-b", "-i", &drive, &format!("::/EFI/{directory}")])?;
    let program = listing.lines().find(|line| line.to_lowercase().ends_with(".efi"));
    let program = program.with_context(|| format!("no program in EFI/{directory} of the ESP"))?;
    let local = home.join("altered.efi").display().to_string();
    tools::run(home, "mcopy", &["-n", "-o", "-i", &drive, program, &local])?;
    let mut bytes = fs::read(&local)?;
    let place = pe::section(&bytes, section).with_context(|| format!("{program} has no section {section}"))?;
    ensure!(!place.is_empty(), "section {section} of {program} is empty");
    bytes[(place.start + place.end) / 2] ^= 1;
    File::create(&local)?.write_all(&bytes)?;
    tools::run(home, "mcopy", &["-n", "-o", "-i", &drive, &local, program])?;
    Ok(fs::remove_file(&local)?)
}

const BLOCK: u64 = 4096;
/// What OVMF says of a boot loader whose signature does not hold.
const BY_FIRMWARE: &[&str] = &["BdsDxe: failed to load Boot", "Access Denied"];
/// What systemd-boot says when the firmware, which it asks, does not take a kernel.
const BY_BOOT_LOADER: &[&str] = &["Error loading \\EFI\\Linux\\", "Access denied"];
/// What the kernel says of a block that the tree of hashes does not vouch for.
const BY_VERITY: &[&str] = &["device-mapper: verity:", "is corrupted"];
/// What `/init` says when no tree on the disk has the root hash at its top.
const BY_INITRD: &[&str] = &["the system cannot be started: no slot holds the system with root hash"];
