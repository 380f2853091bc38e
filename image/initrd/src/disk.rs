//! The two partitions that the root hash names, on whatever disk they are.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::command_line::RootHash;
use crate::fault::{Fault, NO_DISK, Result, WRONG_DISK};
use crate::gpt;
use crate::modules::Modules;
use crate::uevent::Uevents;

/// Names of block devices, as in `/dev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partitions {
    /// What holds the root file system.
    pub root: String,
    /// What holds its hash tree.
    pub verity: String,
}

/// Loads drivers until both partitions are there.
///
/// # Errors
/// When they are not within [`DISK_DEADLINE`].
pub fn wait_for(hash: &RootHash, modules: &mut Modules) -> Result<Partitions> {
    let events = Uevents::listen()?;
    let deadline = Instant::now() + DISK_DEADLINE;
    loop {
        modules.load_for_devices();
        let (root, verity) = (find(&hash.root_partition()), find(&hash.verity_partition()));
        match (root, verity) {
            (Some(root), Some(verity)) => return Ok(Partitions { root, verity }),
            (root, verity) => {
                if !events.wait(deadline)? {
                    return Err(not_found(hash, root, verity));
                }
            }
        }
    }
}

fn not_found(hash: &RootHash, root: Option<String>, verity: Option<String>) -> Fault {
    let seconds = DISK_DEADLINE.as_secs();
    let disks = names().collect::<Vec<_>>();
    if disks.is_empty() {
        return Fault::new(format!("no disk has been found within {seconds} s"), NO_DISK);
    }
    let mut missing = Vec::new();
    if root.is_none() {
        missing.push(format!("root (PARTUUID {})", hash.root_partition()));
    }
    if verity.is_none() {
        missing.push(format!("hash tree (PARTUUID {})", hash.verity_partition()));
    }
    let what = format!("no partition with the {} within {seconds} s, only {}", missing.join(" or "), disks.join(", "));
    Fault::new(what, WRONG_DISK)
}

/// The partition with that UUID. Disks are read anew each time: there are few, and one that has just come may be any.
fn find(uuid: &str) -> Option<String> {
    names().find(|name| {
        let number = fs::read_to_string(Path::new(SYS_BLOCK).join(name).join("partition"));
        let number = number.ok().and_then(|number| number.trim().parse::<u32>().ok());
        number.is_some_and(|number| uuids_beside(name).contains(&(number, uuid.to_owned())))
    })
}

/// What the table says of the disk that this partition is on. A disk that cannot be read has nothing that is looked for.
fn uuids_beside(partition: &str) -> Vec<(u32, String)> {
    let place = fs::canonicalize(Path::new(SYS_BLOCK).join(partition)).unwrap_or_default();
    let disk = place.parent().and_then(Path::file_name).map(|disk| Path::new("/dev").join(disk));
    let disk = disk.and_then(|disk| File::open(disk).ok());
    disk.and_then(|mut disk| gpt::partition_uuids(&mut disk).ok()).unwrap_or_default()
}

fn names() -> impl Iterator<Item = String> {
    let entries = fs::read_dir(SYS_BLOCK).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

const SYS_BLOCK: &str = "/sys/class/block";

/// ESX and Hyper-V hosts under load take seconds to show a disk; a minute is more than any of them takes.
const DISK_DEADLINE: Duration = Duration::from_secs(60);
