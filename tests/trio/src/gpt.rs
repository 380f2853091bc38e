//! Where the partitions of a disk image lie.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// A partition of a disk with sectors of 512 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its label.
    pub label: String,
    /// Its first byte.
    pub from: u64,
    /// How many bytes it has.
    pub bytes: u64,
}

/// The partitions of a disk image, in the order of its table.
///
/// Source: UEFI specification, "GUID Partition Table (GPT) Disk Layout".
///
/// # Errors
/// When there is no such table.
pub fn partitions(disk: &Path) -> Result<Vec<Partition>> {
    let file = File::open(disk).with_context(|| format!("no {}", disk.display()))?;
    let mut header = [0; SECTOR as usize];
    file.read_exact_at(&mut header, SECTOR)?;
    ensure!(header.starts_with(b"EFI PART"), "{} has no GPT", disk.display());
    let (first, count, size) = (number(&header[72..80]), number(&header[80..84]), number(&header[84..88]));
    ensure!(count <= MAX_ENTRIES && (128..=4096).contains(&size), "{} has a strange GPT", disk.display());
    let mut found = Vec::new();
    for index in 0..count {
        let mut entry = [0; 128];
        file.read_exact_at(&mut entry, first * SECTOR + index * size)?;
        if entry[..16] == [0; 16] {
            continue;
        }
        let (from, to) = (number(&entry[32..40]), number(&entry[40..48]));
        let name: Vec<u16> = entry[56..].chunks(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
        let label = String::from_utf16_lossy(&name).trim_end_matches('\0').to_owned();
        ensure!(from <= to, "{}: partition {label} ends before it begins", disk.display());
        found.push(Partition { label, from: from * SECTOR, bytes: (to - from + 1) * SECTOR });
    }
    Ok(found)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

const SECTOR: u64 = 512;
const MAX_ENTRIES: u64 = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_found_by_label() -> Result<()> {
        let path = std::env::temp_dir().join(format!("trilith-gpt-{}", std::process::id()));
        let mut disk = vec![0; 4096];
        disk[512..520].copy_from_slice(b"EFI PART");
        (disk[512 + 72], disk[512 + 80], disk[512 + 84]) = (2, 4, 128);
        let entry = &mut disk[1024 + 128..];
        (entry[0], entry[32], entry[40], entry[56], entry[58]) = (1, 3, 4, b'a', b'b');
        std::fs::write(&path, &disk)?;
        assert_eq!(partitions(&path)?, [Partition { label: "ab".to_owned(), from: 1536, bytes: 1024 }]);
        disk[512] = 0;
        std::fs::write(&path, &disk)?;
        assert!(partitions(&path).is_err(), "not a GPT");
        std::fs::remove_file(&path)?;
        Ok(())
    }
}
