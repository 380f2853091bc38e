//! The superblock in front of a hash tree (cryptsetup's `struct verity_sb`). Nothing vouches for it, so every byte of it must be what
//! this build writes.

/// What a superblock says that is not the same for every image.
#[derive(Debug, PartialEq, Eq)]
pub struct Tree {
    /// Of the data, [`BLOCK`] bytes each.
    pub blocks: u64,
    /// What every hash begins with.
    pub salt: [u8; SALT],
}

/// Reads a superblock, without believing anything but the count of blocks and the salt.
pub fn parse(superblock: &[u8; SUPERBLOCK]) -> Result<Tree, &'static str> {
    let mut blocks = [0; 8];
    blocks.copy_from_slice(&superblock[72..80]);
    let mut salt = [0; SALT];
    salt.copy_from_slice(&superblock[88..88 + SALT]);
    let tree = Tree { blocks: u64::from_le_bytes(blocks), salt };
    if superblock[..8] != *b"verity\0\0" {
        return Err("no hash tree is there");
    }
    if *superblock != written(&tree) {
        return Err("the superblock of the hash tree has been altered, or is another version's");
    }
    if !(1..=MOST_BLOCKS).contains(&tree.blocks) {
        return Err("the superblock of the hash tree gives an impossible length");
    }
    Ok(tree)
}

/// The superblock that the image's build writes for such a tree.
pub fn written(tree: &Tree) -> [u8; SUPERBLOCK] {
    let mut bytes = [0; SUPERBLOCK];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"verity\0\0");
    put(8, &1_u32.to_le_bytes());
    // The hash type of all but the oldest Chrome OS. A UUID of zeros follows: nothing needs it.
    put(12, &1_u32.to_le_bytes());
    put(32, b"sha256");
    put(64, &BLOCK.to_le_bytes());
    put(68, &BLOCK.to_le_bytes());
    put(72, &tree.blocks.to_le_bytes());
    put(80, &(SALT as u16).to_le_bytes());
    put(88, &tree.salt);
    bytes
}

/// Bytes in a block of data or tree.
pub const BLOCK: u32 = 4096;
/// Bytes of the superblock with what is unused behind it, up to the tree.
pub const SUPERBLOCK: usize = 4096;
const SALT: usize = 32;
/// 4 GiB, far more than a slot: keeps a damaged number from overflowing others.
pub const MOST_BLOCKS: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_is_read_as_it_is_written() {
        let tree = Tree { blocks: 7000, salt: [0xa5; SALT] };
        assert_eq!(parse(&written(&tree)), Ok(tree));
    }

    #[test]
    fn a_flipped_bit_is_refused_or_changes_what_the_tree_checks() {
        let tree = Tree { blocks: 7000, salt: [0xa5; SALT] };
        for bit in 0..SUPERBLOCK * 8 {
            let mut bytes = written(&tree);
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(parse(&bytes), Ok(Tree { blocks: 7000, salt: [0xa5; SALT] }), "bit {bit}");
        }
    }

    #[test]
    fn nothing_and_garbage_are_no_superblock() {
        assert!(parse(&[0; SUPERBLOCK]).is_err());
        assert!(parse(&[0xff; SUPERBLOCK]).is_err());
        assert!(parse(&written(&Tree { blocks: u64::MAX, salt: [0; SALT] })).is_err());
    }
}
