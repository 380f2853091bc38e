//! What of ext4's superblock is looked at (Documentation/filesystems/ext4/super.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The parts that matter here.
#[derive(Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Bytes.
    pub block_size: u64,
    /// Of the file system.
    pub blocks: u64,
    /// The kernel found some.
    pub has_errors: bool,
    /// The group of blocks that it stands in: 0, or another one's for a copy.
    group: u16,
    /// When it was written, in seconds since 1970. (The kernel writes copies only when the size changes.)
    written: u32,
    uuid: [u8; 16],
}

impl Superblock {
    /// From the start of a partition, if it looks like one.
    pub fn of(start: &[u8; START]) -> Option<Superblock> {
        Superblock::read(&start[1024..])
    }

    fn read(bytes: &[u8]) -> Option<Superblock> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let magic = u16_at(56) == 0xEF53;
        let (shift, blocks) = (u32_at(24), u64::from(u32_at(4)));
        (magic && shift <= 6).then(|| Superblock {
            block_size: 1024 << shift,
            blocks,
            has_errors: u16_at(58) & 2 != 0,
            group: u16_at(90),
            written: u32_at(48),
            uuid: std::array::from_fn(|at| bytes[104 + at]),
        })
    }
}

/// A copy of the superblock, as e2fsck(8) is told of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Backup {
    /// `-b`, in blocks.
    pub block: u64,
    /// `-B`, in bytes.
    pub block_size: u64,
}

/// The copies that mkfs.ext4 has left behind the start of this partition (`sparse_super`). Of an older file system, whose blocks may
/// have been of another size, some may be left, too: the one with the newest copy is meant.
///
/// # Errors
/// The partition can't be read there.
pub fn backups(partition: &File) -> io::Result<Vec<Backup>> {
    let mut found = Vec::new();
    for block_size in BLOCK_SIZES {
        for group in GROUPS {
            // A group has as many blocks as a block has bits; with blocks of 1 KiB the first one lies before all groups.
            let block = u64::from(group) * block_size * 8 + u64::from(block_size == 1024);
            let mut bytes = [0; 1024];
            match partition.read_exact_at(&mut bytes, block * block_size) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
            if let Some(copy) =
                Superblock::read(&bytes).filter(|copy| (copy.block_size, copy.group) == (block_size, group))
            {
                found.push((copy, Backup { block, block_size }));
            }
        }
    }
    let newest = found.iter().max_by_key(|(copy, _)| copy.written).map(|(copy, _)| copy.uuid);
    Ok(found.into_iter().filter(|(copy, _)| Some(copy.uuid) == newest).map(|(_, backup)| backup).collect())
}

/// What of a partition says whether it is blank, and holds the superblock.
pub const START: usize = 4096;
/// mke2fs.conf(5) of the image: below 512 MiB, and from there on.
const BLOCK_SIZES: [u64; 2] = [1024, 4096];
/// The first groups of blocks that have a copy: 1, and powers of 3, 5 and 7.
const GROUPS: [u16; 5] = [1, 3, 5, 7, 9];
