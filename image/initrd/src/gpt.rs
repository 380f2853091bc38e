//! The partition table, as far as partitions' UUIDs go (UEFI specification 2.10, section 5.3).

use std::io::{self, Read, Seek, SeekFrom};

/// The UUIDs of all partitions of a disk by their numbers, from the first table that is whole: the one at the disk's start, else
/// the one at its end, as the kernel chooses it with `gpt` on its command line.
pub fn partition_uuids(disk: &mut (impl Read + Seek)) -> io::Result<Vec<(u32, String)>> {
    let last = disk.seek(SeekFrom::End(0))? / SECTOR;
    for sector in [1, last.saturating_sub(1)] {
        if let Some(entries) = entries_of(disk, sector)? {
            return Ok(entries);
        }
    }
    Ok(Vec::new())
}

/// The entries that the header in this sector describes, if it and they are whole.
fn entries_of(disk: &mut (impl Read + Seek), sector: u64) -> io::Result<Option<Vec<(u32, String)>>> {
    let mut header = [0; SECTOR as usize];
    read_at(disk, sector, &mut header)?;
    let Some(table) = parse_header(&header) else { return Ok(None) };
    let mut entries = vec![0; table.count as usize * table.size as usize];
    read_at(disk, table.sector, &mut entries)?;
    if crc32(&entries) != table.crc {
        return Ok(None);
    }
    let used = (1..).zip(entries.chunks(table.size as usize)).filter(|(_, entry)| entry[..16] != [0; 16]);
    Ok(Some(used.map(|(number, entry)| (number, uuid(&entry[16..32]))).collect()))
}

/// Where the entries are, and what they must add up to.
#[derive(Debug, PartialEq, Eq)]
struct Table {
    sector: u64,
    count: u32,
    size: u32,
    crc: u32,
}

fn parse_header(header: &[u8; SECTOR as usize]) -> Option<Table> {
    let u32_at = |at: usize| header[at..at + 4].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
    let length = u32_at(12) as usize;
    if header[..8] != *b"EFI PART" || !(HEADER_LENGTH..=header.len()).contains(&length) {
        return None;
    }
    let mut checked = header[..length].to_vec();
    checked[16..20].fill(0);
    let sector = u64::from(u32_at(76)) << 32 | u64::from(u32_at(72));
    let table = Table { sector, count: u32_at(80), size: u32_at(84), crc: u32_at(88) };
    let sane = crc32(&checked) == u32_at(16) && (1..=MOST_ENTRIES).contains(&table.count);
    (sane && (128..=4096).contains(&table.size)).then_some(table)
}

/// The first three fields of a GUID are little-endian on disk.
fn uuid(bytes: &[u8]) -> String {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::with_capacity(36);
    for (place, at) in ORDER.into_iter().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{:02x}", bytes[at]));
    }
    text
}

fn read_at(disk: &mut (impl Read + Seek), sector: u64, into: &mut [u8]) -> io::Result<()> {
    disk.seek(SeekFrom::Start(sector.saturating_mul(SECTOR)))?;
    disk.read_exact(into)
}

/// CRC-32 as in Ethernet, bit by bit: a table has 16 KiB.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
        crc
    })
}

/// Logical sectors of 512 bytes: what every virtual disk has that this image is made for.
const SECTOR: u64 = 512;
/// The specification's least length of a header.
const HEADER_LENGTH: usize = 92;
/// No tool makes more; a broken header must not take the memory.
const MOST_ENTRIES: u32 = 1024;

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A disk of 200 sectors with one entry, in both tables.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 200 * 512];
        let mut entries = vec![0; 128 * 128];
        entries[128..144].fill(7);
        entries[144..160].copy_from_slice(&(0..16).collect::<Vec<u8>>());
        for (header, table) in [(1, 2), (199, 167)] {
            let mut sector = vec![0; 512];
            sector[..8].copy_from_slice(b"EFI PART");
            sector[12] = 92;
            sector[72] = table as u8;
            sector[80] = 128;
            sector[84] = 128;
            sector[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
            let crc = crc32(&sector[..92]);
            sector[16..20].copy_from_slice(&crc.to_le_bytes());
            disk[header * 512..][..512].copy_from_slice(&sector);
            disk[table * 512..][..entries.len()].copy_from_slice(&entries);
        }
        disk
    }

    fn read(disk: Vec<u8>) -> Vec<(u32, String)> {
        partition_uuids(&mut Cursor::new(disk)).unwrap()
    }

    #[test]
    fn crc32_is_the_one_of_the_specification() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn a_partition_is_found_by_its_uuid() {
        assert_eq!(read(disk()), [(2, "03020100-0504-0706-0809-0a0b0c0d0e0f".to_owned())]);
    }

    #[test]
    fn a_broken_first_table_is_replaced_by_the_last() {
        for at in [512 + 20, 2 * 512 + 150] {
            let mut disk = disk();
            disk[at] ^= 1;
            assert_eq!(read(disk.clone()).len(), 1);
            disk[199 * 512 + 72] ^= 1;
            assert_eq!(read(disk), []);
        }
    }

    #[test]
    fn what_is_no_disk_with_a_table_has_no_partitions() {
        assert_eq!(read(vec![0; 4096]), []);
        assert!(partition_uuids(&mut Cursor::new([0; 100])).is_err());
    }
}
