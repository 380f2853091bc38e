//! The partition table of a disk that has grown: pure edits, as bytes and where they belong.
//!
//! Source: UEFI specification 2.10, section 5.3, "GUID Partition Table (GPT) Disk Layout".

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};

use crate::crc;
use crate::disk::SECTOR;

/// Bytes that replace those of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// The first byte's place on the disk.
    pub from: u64,
    /// What stands there.
    pub bytes: Vec<u8>,
}

impl Patch {
    /// Whether it concerns a range of the disk.
    pub fn touches(&self, from: u64, length: u64) -> bool {
        self.from < from + length && from < self.from + self.bytes.len() as u64
    }

    /// Puts its part of a range in.
    pub fn apply(&self, from: u64, range: &mut [u8]) {
        if !self.touches(from, range.len() as u64) {
            return;
        }
        for (place, byte) in (self.from..).zip(&self.bytes) {
            if let Some(there) = place.checked_sub(from).and_then(|place| range.get_mut(place as usize)) {
                *there = *byte;
            }
        }
    }
}

/// What has to change when a disk of `before` bytes becomes one of `after`: the protective MBR and the first header, which name
/// the end, and the second table, which moves there. Partitions stay as they are.
///
/// # Errors
/// The disk has no such table.
pub fn moved(disk: &File, before: u64, after: u64) -> Result<Vec<Patch>> {
    if before == after {
        return Ok(Vec::new());
    }
    let mut mbr = [0; SECTOR as usize];
    disk.read_exact_at(&mut mbr, 0)?;
    let mut header = [0; SECTOR as usize];
    disk.read_exact_at(&mut header, SECTOR)?;
    ensure!(header.starts_with(b"EFI PART"), "this disk has no partition table (GPT)");
    let size = number(&header[12..16]) as usize;
    let (first, count, entry) = (number(&header[72..80]), number(&header[80..84]), number(&header[84..88]));
    let table = count * entry;
    ensure!((92..=SECTOR as usize).contains(&size) && table <= LARGEST_TABLE, "this disk's partition table is strange");
    let mut entries = vec![0; table.next_multiple_of(SECTOR) as usize];
    disk.read_exact_at(&mut entries, first * SECTOR)?;

    let last = after / SECTOR - 1;
    let second_table = last - entries.len() as u64 / SECTOR;
    // The protective partition reaches to the end of the disk, as far as its field goes.
    mbr[458..462].copy_from_slice(&u32::try_from(last).unwrap_or(u32::MAX).to_le_bytes());
    header[32..40].copy_from_slice(&last.to_le_bytes());
    header[48..56].copy_from_slice(&(second_table - 1).to_le_bytes());
    sealed(&mut header[..size]);
    let mut second = header;
    second[24..32].copy_from_slice(&last.to_le_bytes());
    second[32..40].copy_from_slice(&1_u64.to_le_bytes());
    second[72..80].copy_from_slice(&second_table.to_le_bytes());
    sealed(&mut second[..size]);

    // What was the end is within the disk now, and free.
    let old_table = before - (entries.len() as u64 + SECTOR);
    let patch = |from, bytes: &[u8]| Patch { from, bytes: bytes.to_vec() };
    Ok(vec![
        patch(0, &mbr),
        patch(SECTOR, &header),
        patch(old_table, &vec![0; entries.len() + SECTOR as usize]),
        patch(second_table * SECTOR, &entries),
        patch(last * SECTOR, &second),
    ])
}

/// Puts the header's checksum in.
fn sealed(header: &mut [u8]) {
    header[16..20].fill(0);
    let sum = crc::ieee(header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// 128 entries of 128 bytes are usual.
const LARGEST_TABLE: u64 = 64 * 1024;
