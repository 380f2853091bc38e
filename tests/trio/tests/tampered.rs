//! What was altered never serves. Needs root, the image, its Secure Boot keys and minutes: `./justw trio test`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use trilith_trio::boot::boot;
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
    Ok(())
}

/// Each section that decides what runs.
#[test]
#[ignore = "needs root, the image and minutes"]
fn secure_boot_refuses_an_image_with_one_byte_flipped() -> Result<()> {
    let plan = Plan { firmware: Firmware::Secure, ..Plan::alone(trio::prepare()?)? };
    let patience = patience(&plan)?;
    for section in [".linux", ".initrd", ".cmdline"] {
        let copy = Copy::of(&plan.disk)?;
        flip_in_uki(&copy.path, section)?;
        let altered = Plan { disk: copy.path.clone(), ..plan.clone() };
        never_serves(&altered, patience, &format!("{section} of the UKI altered"))?;
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
        ("the root's superblock", root.from + 1024),
        ("somewhere in the root", somewhere(&root, written(&plan.disk, &root)?)?),
        ("somewhere else in the root", somewhere(&root, written(&plan.disk, &root)?)?),
        ("verity's superblock", verity.from + 8),
        ("the top of the hash tree", verity.from + 4096),
        ("somewhere in the hash tree", verity.from + 4096 + (written(&plan.disk, &verity)? - 4096) / 2),
    ];
    let patience = patience(&plan)?;
    for (what, at) in cases {
        let copy = Copy::of(&plan.disk)?;
        flip(&copy.path, at)?;
        let altered = Plan { disk: copy.path.clone(), ..plan.clone() };
        never_serves(&altered, patience, &format!("{what}, byte {at} of the disk"))?;
    }
    Ok(())
}

/// Boots the untouched image: how long an altered one has to serve, twice as long as that, is far more than it would need.
fn patience(plan: &Plan) -> Result<Duration> {
    let trio = Trio::make(std::slice::from_ref(plan))?;
    let start = Instant::now();
    boot(&trio, &trio.machines[0])?;
    Ok(start.elapsed() * 2)
}

/// Boots it and watches for so long.
fn never_serves(plan: &Plan, patience: Duration, what: &str) -> Result<()> {
    let trio = Trio::power_on(std::slice::from_ref(plan))?;
    let machine = &trio.machines[0];
    let start = Instant::now();
    while start.elapsed() < patience && !gave_up(machine) {
        if let Ok(node) = trio.network.get(VIP.into(), "/") {
            bail!("{what}: {} serves all the same\n{}", node.trim(), machine.last_words());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let last = machine.last_words();
    let last = last.lines().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join(" | ");
    say(&format!("{what}: did not serve within {:.0?}; it said: {last}", start.elapsed()));
    Ok(())
}

/// Whether the machine is off, or nothing will come of it any more: its firmware has come to its shell.
fn gave_up(machine: &Machine) -> bool {
    !machine.is_on() || machine.said_since(0).contains("Shell>")
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

/// Flips a byte in the middle of a section of the UKI on the disk's ESP.
fn flip_in_uki(disk: &Path, section: &str) -> Result<()> {
    let esp = partitions(disk)?.into_iter().find(|partition| partition.label == "esp").context("no partition esp")?;
    let directory = disk.parent().context("a disk image lies in a directory")?;
    let drive = format!("{}@@{}", disk.display(), esp.from);
    let listing = tools::run(directory, "mdir", &["-b", "-i", &drive, "::/EFI/Linux"])?;
    let name = listing.lines().find(|line| line.ends_with(".efi")).context("no UKI in EFI/Linux of the ESP")?;
    let local = directory.join("trio-uki.efi").display().to_string();
    tools::run(directory, "mcopy", &["-n", "-o", "-i", &drive, name, &local])?;
    let mut bytes = fs::read(&local)?;
    let place = pe::section(&bytes, section).with_context(|| format!("the UKI has no section {section}"))?;
    ensure!(!place.is_empty(), "section {section} is empty");
    bytes[(place.start + place.end) / 2] ^= 1;
    File::create(&local)?.write_all(&bytes)?;
    tools::run(directory, "mcopy", &["-n", "-o", "-i", &drive, &local, name])?;
    Ok(fs::remove_file(&local)?)
}

/// A copy of a disk image, beside it so that it is on the same file system; gone when this is.
struct Copy {
    path: PathBuf,
}

impl Copy {
    fn of(disk: &Path) -> Result<Copy> {
        let path = disk.with_file_name("trio-tampered.raw");
        let (from, to) = (disk.display().to_string(), path.display().to_string());
        trilith_lab::command::run("cp", &["--sparse=always", "--reflink=auto", &from, &to])?;
        Ok(Copy { path })
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // What cannot be removed is overwritten by the next.
        let _ = fs::remove_file(&self.path);
    }
}

const BLOCK: u64 = 4096;
