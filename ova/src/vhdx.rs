//! A dynamic VHDX, as Hyper-V's generation 2 takes it.
//!
//! ```text
//!  0      identifier, two headers, two region tables
//!  1 MiB  log, empty
//!  2 MiB  metadata: sizes, identity
//!  3 MiB  block allocation table, then the blocks, each on a whole MiB
//! ```
//!
//! Written here and not by `qemu-img convert`, which puts random GUIDs in, so that equal disks give equal files. Source:
//! Microsoft, [MS-VHDX], "Virtual Hard Disk v2 (VHDX) File Format".

use std::io::{self, Write};

use crate::crc;
use crate::disk::{BLOCK, Disk, SECTOR};

/// Writes the disk. Returns how many bytes were written.
///
/// # Errors
/// Those of the disk and of `out`.
pub fn write(disk: &Disk, out: &mut impl Write) -> io::Result<u64> {
    let per_block = MIB as usize / BLOCK;
    let used: Vec<bool> = (0..disk.capacity().div_ceil(MIB) as usize)
        .map(|number| within(disk, number * per_block).any(|part| disk.is_used(part)))
        .collect();
    // After so many blocks comes an entry for a bitmap of sectors, which only disks with a parent have.
    let chunk = ((1_u64 << 23) * SECTOR / MIB) as usize;
    let entries = used.len() + (used.len() - 1) / chunk;
    let table_bytes = (entries as u64 * 8).next_multiple_of(MIB);

    out.write_all(&head(disk, table_bytes))?;
    out.write_all(&vec![0; MIB as usize])?;
    out.write_all(&metadata(disk))?;
    let mut next = (BLOCK_TABLE_AT + table_bytes) / MIB;
    let mut table = Vec::with_capacity(table_bytes as usize);
    for (number, used) in used.iter().enumerate() {
        if number > 0 && number.is_multiple_of(chunk) {
            table.extend(0_u64.to_le_bytes());
        }
        let entry = if *used { next << 20 | FULLY_PRESENT } else { 0 };
        next += u64::from(*used);
        table.extend(entry.to_le_bytes());
    }
    table.resize(table_bytes as usize, 0);
    out.write_all(&table)?;
    let mut block = vec![0; BLOCK];
    for number in (0..used.len()).filter(|number| used[*number]) {
        for part in within(disk, number * per_block) {
            disk.read(part, &mut block)?;
            out.write_all(&block)?;
        }
        let missing = per_block - within(disk, number * per_block).count();
        out.write_all(&vec![0; missing * BLOCK])?;
    }
    Ok(next * MIB)
}

/// The parts of the disk that a block of the file holds; at the end of the disk they may be fewer.
fn within(disk: &Disk, from: usize) -> std::ops::Range<usize> {
    from..disk.blocks().min(from + MIB as usize / BLOCK)
}

/// The first MiB.
fn head(disk: &Disk, table_bytes: u64) -> Vec<u8> {
    let mut head = vec![0; MIB as usize];
    let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"vhdxfile");
    put(8, &"Trilith".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>());
    for (at, sequence) in [(64 * KIB, 1_u64), (128 * KIB, 2)] {
        let mut header = vec![0; 4 * KIB];
        header[..4].copy_from_slice(b"head");
        header[8..16].copy_from_slice(&sequence.to_le_bytes());
        header[16..32].copy_from_slice(&identity(disk, b"file"));
        header[32..48].copy_from_slice(&identity(disk, b"data"));
        // No log to replay (its GUID is zero), its version 0, the file's version 1.
        header[66..68].copy_from_slice(&1_u16.to_le_bytes());
        header[68..72].copy_from_slice(&(MIB as u32).to_le_bytes());
        header[72..80].copy_from_slice(&LOG_AT.to_le_bytes());
        put(at, &sealed(header));
    }
    for at in [192 * KIB, 256 * KIB] {
        let mut table = vec![0; 64 * KIB];
        table[..4].copy_from_slice(b"regi");
        table[8] = 2;
        for (place, (guid, from, bytes)) in
            [(BLOCK_TABLE, BLOCK_TABLE_AT, table_bytes), (METADATA, METADATA_AT, MIB)].into_iter().enumerate()
        {
            let entry = &mut table[16 + 32 * place..][..32];
            entry[..16].copy_from_slice(&guid_bytes(guid));
            entry[16..24].copy_from_slice(&from.to_le_bytes());
            entry[24..28].copy_from_slice(&(bytes as u32).to_le_bytes());
            entry[28] = 1;
        }
        put(at, &sealed(table));
    }
    head
}

fn metadata(disk: &Disk) -> Vec<u8> {
    let items: [(&str, u8, Vec<u8>); 5] = [
        (FILE_PARAMETERS, REQUIRED, [(MIB as u32).to_le_bytes(), [0; 4]].concat()),
        (DISK_SIZE, REQUIRED | OF_DISK, disk.capacity().to_le_bytes().to_vec()),
        (DISK_ID, REQUIRED | OF_DISK, identity(disk, b"disk").to_vec()),
        (LOGICAL_SECTOR, REQUIRED | OF_DISK, (SECTOR as u32).to_le_bytes().to_vec()),
        // Says what writes are aligned to best; the image's file systems have blocks of 4096 bytes.
        (PHYSICAL_SECTOR, REQUIRED | OF_DISK, 4096_u32.to_le_bytes().to_vec()),
    ];
    let mut region = vec![0; MIB as usize];
    region[..8].copy_from_slice(b"metadata");
    region[10] = items.len() as u8;
    let mut at = 64 * KIB;
    for (place, (guid, flags, value)) in items.iter().enumerate() {
        let entry = &mut region[32 + 32 * place..][..32];
        entry[..16].copy_from_slice(&guid_bytes(guid));
        entry[16..20].copy_from_slice(&(at as u32).to_le_bytes());
        entry[20..24].copy_from_slice(&(value.len() as u32).to_le_bytes());
        entry[24] = *flags;
        region[at..at + value.len()].copy_from_slice(value);
        at += value.len();
    }
    region
}

/// Puts the checksum in, after the signature.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = crc::castagnoli(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// A GUID made of the disk's content and a name.
fn identity(disk: &Disk, name: &[u8]) -> [u8; 16] {
    use sha2::{Digest, Sha256};
    let digest = Sha256::new().chain_update(disk.identity).chain_update(name).finalize();
    let mut guid = [0; 16];
    guid.copy_from_slice(&digest[..16]);
    // RFC 9562: version 8, "made in a way of one's own". The first three fields are little-endian.
    guid[7] = guid[7] & 0x0f | 0x80;
    guid[8] = guid[8] & 0x3f | 0x80;
    guid
}

/// A GUID as it lies on disk: its first three fields little-endian.
fn guid_bytes(text: &str) -> [u8; 16] {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16).expect("GUIDs here are constants") as u8;
        *byte = digit(0) << 4 | digit(1);
    }
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

const KIB: usize = 1024;
/// The smallest block that the format knows: the least room is lost to half-filled ones, and what Microsoft advises for Linux
/// guests, whose file systems write here and there.
const MIB: u64 = 1024 * 1024;
const LOG_AT: u64 = MIB;
const METADATA_AT: u64 = 2 * MIB;
const BLOCK_TABLE_AT: u64 = 3 * MIB;
const FULLY_PRESENT: u64 = 6;
const OF_DISK: u8 = 2;
const REQUIRED: u8 = 4;
const BLOCK_TABLE: &str = "2DC27766-F623-4200-9D64-115E9BFD4A08";
const METADATA: &str = "8B7CA206-4790-4B9A-B8FE-575F050F886E";
const FILE_PARAMETERS: &str = "CAA16737-FA36-4D43-B3B6-33F0AA44E76B";
const DISK_SIZE: &str = "2FA54224-CD1B-4876-B211-5DBED83BF4B8";
const DISK_ID: &str = "BECA12AB-B2E6-4523-93EF-C309E000C746";
const LOGICAL_SECTOR: &str = "8141BF1D-A96F-4709-BA47-F233A8FAAB5F";
const PHYSICAL_SECTOR: &str = "CDA348C7-445D-4471-9CC9-E9885251C556";
