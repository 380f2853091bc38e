//! The slot that holds the system of the root hash, on whatever disk it is.
//!
//! It is found by what is in it, not by the partitions' UUIDs: a tree whose top adds up to the root hash is the right one. So a
//! new version needs no change of the partition table, which no disk can make in one piece.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::command_line::RootHash;
use crate::fault::{Fault, NO_DISK, Result, WRONG_DISK};
use crate::modules::Modules;
use crate::uevent::Uevents;
use crate::verity;

/// Names of block devices, as in `/dev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// What holds the root file system: the partition before its hash tree's.
    pub root: String,
    /// What holds its hash tree.
    pub verity: String,
}

/// Loads drivers until the slot is there.
///
/// # Errors
/// When it is not within [`DISK_DEADLINE`], or [`SLOTS_DEADLINE`] after a disk has come up with slots of others.
pub fn wait_for(hash: &RootHash, modules: &Modules) -> Result<Slot> {
    let events = Uevents::listen()?;
    let mut deadline = Instant::now() + DISK_DEADLINE;
    loop {
        modules.load_for_devices();
        let (mut slots, others): (Vec<_>, Vec<_>) = slots().partition(|slot| verity::is_of(&slot.verity, hash));
        if let Some(slot) = slots.pop() {
            return Ok(slot);
        }
        if !others.is_empty() {
            deadline = deadline.min(Instant::now() + SLOTS_DEADLINE);
        }
        if !events.wait(deadline)? {
            return Err(not_found(hash, &others));
        }
    }
}

fn not_found(hash: &RootHash, others: &[Slot]) -> Fault {
    let disks = names().collect::<Vec<_>>().join(", ");
    if disks.is_empty() {
        return Fault::new(format!("no disk has been found within {} s", DISK_DEADLINE.as_secs()), NO_DISK);
    }
    let others = others.iter().map(|slot| format!("{} and {}", slot.root, slot.verity)).collect::<Vec<_>>();
    let seen = if others.is_empty() { format!("no slot on {disks}") } else { others.join(", ") };
    Fault::new(format!("no slot holds the system with root hash {}: there is {seen}", hash.hex()), WRONG_DISK)
}

/// Neighbours on a disk that bear the names of a slot's two partitions.
fn slots() -> impl Iterator<Item = Slot> {
    names().filter_map(|verity| {
        let facts = fs::read_to_string(Path::new(SYS_BLOCK).join(&verity).join("uevent")).ok()?;
        let fact = |key: &str| facts.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        fact("PARTNAME")?.starts_with("verity-").then_some(())?;
        let number: u32 = fact("PARTN")?.parse().ok()?;
        let root = format!("{}{}", verity.strip_suffix(&number.to_string())?, number.checked_sub(1)?);
        Some(Slot { root, verity })
    })
}

fn names() -> impl Iterator<Item = String> {
    let entries = fs::read_dir(SYS_BLOCK).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

const SYS_BLOCK: &str = "/sys/class/block";

/// ESX and Hyper-V hosts under load take seconds to show a disk; a minute is more than any of them takes.
const DISK_DEADLINE: Duration = Duration::from_secs(60);
/// The disk that the firmware has read the kernel from comes up with the first ones; this is for a second one beside it.
const SLOTS_DEADLINE: Duration = Duration::from_secs(5);
