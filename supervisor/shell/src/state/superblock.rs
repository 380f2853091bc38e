//! What of ext4's superblock is looked at (Documentation/filesystems/ext4/super.rst).

/// The parts that matter here.
#[derive(Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Bytes.
    pub block_size: u64,
    /// Of the file system.
    pub blocks: u64,
    /// The kernel found some.
    pub has_errors: bool,
}

impl Superblock {
    /// From the start of a partition, if it looks like one.
    pub fn of(start: &[u8; START]) -> Option<Superblock> {
        let superblock = &start[1024..];
        let u16_at = |at: usize| u16::from_le_bytes([superblock[at], superblock[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let magic = u16_at(56) == 0xEF53;
        let (shift, blocks) = (u32_at(24), u64::from(u32_at(4)));
        (magic && shift <= 6).then(|| Superblock { block_size: 1024 << shift, blocks, has_errors: u16_at(58) & 2 != 0 })
    }
}

/// What of a partition says whether it is blank, and holds the superblock.
pub const START: usize = 4096;
