//! The hash tree of a root: checked from the root hash down to the last block, and used as the list of its blocks.
//!
//! ```text
//!   block 0      superblock: salt, number of data blocks
//!   block 1      the top: its hash is the root hash            128 hashes of 32 bytes in a block
//!   …            the levels below
//!   the last     the leaves: the hash of each data block, in order
//! ```
//!
//! Each hash is SHA-256 of the salt and a block of 4096 bytes. All images have the same salt, so a block has the same hash in every
//! version. Source: cryptsetup's wiki, "DMVerity"; Documentation/admin-guide/device-mapper/verity.rst.

use std::io;

use sha2::{Digest as _, Sha256};

use crate::{BLOCK, Hash};

/// Blocks of a root, at most: 4 GiB, as in `image/initrd`.
pub const MOST_BLOCKS: u64 = 1 << 20;

/// A whole tree, of which every block fits the root hash.
#[derive(Clone, PartialEq, Eq)]
pub struct Tree {
    salt: [u8; SALT],
    leaves: Vec<Hash>,
}

impl Tree {
    /// Reads a tree and checks it up to the root hash; `bytes` is the superblock and all levels.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn open(bytes: &[u8], root: Hash) -> Result<Tree, String> {
        let superblock = Superblock::parse(bytes)?;
        let levels = levels(superblock.blocks);
        let tree = levels.iter().sum::<u64>() as usize * BLOCK;
        let body = bytes.get(BLOCK..BLOCK + tree).ok_or_else(|| format!("the hash tree has less than {tree} bytes"))?;
        let mut expected = vec![root];
        let mut at = 0;
        for (level, blocks) in levels.iter().enumerate() {
            let mut found = Vec::with_capacity(*blocks as usize * PER_BLOCK);
            for (number, block) in body[at..at + *blocks as usize * BLOCK].chunks_exact(BLOCK).enumerate() {
                if Some(&superblock.hash(block)) != expected.get(number) {
                    return Err(format!(
                        "block {number} of level {level} of the hash tree does not fit the level above"
                    ));
                }
                found.extend(block.chunks_exact(32).map(to_hash));
            }
            at += *blocks as usize * BLOCK;
            expected = found;
        }
        // The superblock's count is in no hash, but what follows the last leaf is zeros, and a leaf is not.
        let (leaves, rest) = expected.split_at(superblock.blocks as usize);
        if leaves.last() == Some(&Hash([0; 32])) || rest.iter().any(|hash| *hash != Hash([0; 32])) {
            return Err("the superblock's number of blocks is not that of the hash tree".into());
        }
        expected.truncate(superblock.blocks as usize);
        Ok(Tree { salt: superblock.salt, leaves: expected })
    }

    /// The hashes of the data blocks, in order.
    pub fn leaves(&self) -> &[Hash] {
        &self.leaves
    }

    /// The hash of a block under this tree's salt.
    pub fn hash(&self, block: &[u8]) -> Hash {
        salted(&self.salt, block)
    }

    /// Two trees with the same salt give the same block the same hash.
    pub fn same_salt(&self, other: &Tree) -> bool {
        self.salt == other.salt
    }

    /// Checks data against the tree. `read` fills the buffer from a byte on; it is called from the first block to the last.
    ///
    /// # Errors
    /// The first block that does not fit, or cannot be read.
    pub fn check(&self, mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>) -> Result<(), String> {
        let mut buffer = vec![0; AT_ONCE * BLOCK];
        for (chunk, leaves) in self.leaves.chunks(AT_ONCE).enumerate() {
            let (first, bytes) = (chunk * AT_ONCE, leaves.len() * BLOCK);
            let from = (first * BLOCK) as u64;
            read(from, &mut buffer[..bytes]).map_err(|error| format!("cannot be read from byte {from} on: {error}"))?;
            for (number, (block, leaf)) in buffer.chunks_exact(BLOCK).zip(leaves).enumerate() {
                if self.hash(block) != *leaf {
                    return Err(format!("block {} does not fit the hash tree", first + number));
                }
            }
        }
        Ok(())
    }
}

/// Bytes of the tree of that many bytes of data, superblock included; nothing when there is none.
pub fn tree_bytes(data: u64) -> Option<u64> {
    let blocks = data / BLOCK as u64;
    let whole = data.is_multiple_of(BLOCK as u64) && (1..=MOST_BLOCKS).contains(&blocks);
    whole.then(|| (1 + levels(blocks).iter().sum::<u64>()) * BLOCK as u64)
}

/// Bytes that a tree has in front of its end by its own superblock, which nothing vouches for.
///
/// # Errors
/// It is no superblock of ours.
pub fn claimed_bytes(superblock: &[u8]) -> Result<u64, String> {
    let Superblock { blocks, .. } = Superblock::parse(superblock)?;
    tree_bytes(blocks * BLOCK as u64).ok_or_else(|| "an impossible length".into())
}

/// The root hash of a tree by its own top block, which nothing vouches for. `bytes`: at least superblock and top.
///
/// # Errors
/// It is no tree of ours.
pub fn claimed_root(bytes: &[u8]) -> Result<Hash, String> {
    let superblock = Superblock::parse(bytes)?;
    let top = bytes.get(BLOCK..2 * BLOCK).ok_or("the hash tree has no top")?;
    Ok(superblock.hash(top))
}

/// Makes the tree of some data, as `veritysetup format` does: the bytes of the hash device, and the root hash.
pub fn make(data: &[u8], salt: [u8; 32]) -> (Vec<u8>, Hash) {
    let mut levels = Vec::new();
    let mut below: Vec<u8> = data.chunks(BLOCK).flat_map(|block| salted(&salt, block).0).collect();
    loop {
        below.resize(below.len().div_ceil(BLOCK) * BLOCK, 0);
        levels.push(below.clone());
        if below.len() == BLOCK {
            break;
        }
        below = below.chunks_exact(BLOCK).flat_map(|block| salted(&salt, block).0).collect();
    }
    let root = salted(&salt, &below);
    let mut bytes = Superblock { blocks: (data.len() / BLOCK) as u64, salt }.bytes().to_vec();
    levels.iter().rev().for_each(|level| bytes.extend_from_slice(level));
    (bytes, root)
}

/// cryptsetup's `struct verity_sb`, version 1, without a UUID.
struct Superblock {
    blocks: u64,
    salt: [u8; SALT],
}

impl Superblock {
    fn parse(bytes: &[u8]) -> Result<Superblock, String> {
        let bytes = bytes.get(..BLOCK).ok_or("no hash tree is there")?;
        let number = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let mut salt = [0; SALT];
        salt.copy_from_slice(&bytes[88..88 + SALT]);
        let superblock = Superblock { blocks: number(72), salt };
        if bytes[..8] != *b"verity\0\0" {
            return Err("no hash tree is there".into());
        }
        if *bytes != superblock.bytes() || !(1..=MOST_BLOCKS).contains(&superblock.blocks) {
            return Err("the superblock of the hash tree is not one of ours".into());
        }
        Ok(superblock)
    }

    fn bytes(&self) -> [u8; BLOCK] {
        let mut bytes = [0; BLOCK];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"verity\0\0");
        put(8, &1_u32.to_le_bytes());
        put(12, &1_u32.to_le_bytes());
        put(32, b"sha256");
        put(64, &(BLOCK as u32).to_le_bytes());
        put(68, &(BLOCK as u32).to_le_bytes());
        put(72, &self.blocks.to_le_bytes());
        put(80, &(SALT as u16).to_le_bytes());
        put(88, &self.salt);
        bytes
    }

    fn hash(&self, block: &[u8]) -> Hash {
        salted(&self.salt, block)
    }
}

fn salted(salt: &[u8], block: &[u8]) -> Hash {
    Hash(Sha256::new().chain_update(salt).chain_update(block).finalize().into())
}

fn to_hash(bytes: &[u8]) -> Hash {
    let mut hash = Hash([0; 32]);
    hash.0.copy_from_slice(bytes);
    hash
}

/// Blocks of each level, from the top to the leaves.
fn levels(data: u64) -> Vec<u64> {
    let mut levels = vec![data.div_ceil(PER_BLOCK as u64)];
    while levels[0] > 1 {
        levels.insert(0, levels[0].div_ceil(PER_BLOCK as u64));
    }
    levels
}

/// Hashes in a block.
const PER_BLOCK: usize = BLOCK / 32;
const SALT: usize = 32;
/// Blocks read at once: 1 MiB.
const AT_ONCE: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn data(blocks: usize) -> Vec<u8> {
        (0..blocks * BLOCK).map(|at| (at / BLOCK * 7 + at % 251) as u8).collect()
    }

    #[test]
    fn a_tree_is_made_read_and_holds_every_block() {
        for blocks in [1, 2, 127, 128, 129, 300] {
            let data = data(blocks);
            let (bytes, root) = make(&data, [7; 32]);
            assert_eq!(tree_bytes(data.len() as u64), Some(bytes.len() as u64));
            assert_eq!((claimed_root(&bytes), claimed_bytes(&bytes)), (Ok(root), Ok(bytes.len() as u64)));
            let tree = Tree::open(&bytes, root).unwrap_or_else(|what| panic!("{blocks} blocks: {what}"));
            assert_eq!(tree.leaves().len(), blocks);
            let read = |data: &[u8], from: u64, buffer: &mut [u8]| {
                buffer.copy_from_slice(&data[from as usize..from as usize + buffer.len()]);
                Ok(())
            };
            tree.check(|from, buffer| read(&data, from, buffer)).unwrap();
            let mut spoilt = data.clone();
            spoilt[data.len() - 1] ^= 1;
            let what = tree.check(|from, buffer| read(&spoilt, from, buffer)).unwrap_err();
            assert_eq!(what, format!("block {} does not fit the hash tree", blocks - 1));
        }
    }

    #[test]
    fn a_flipped_byte_of_a_tree_is_found() {
        let (bytes, root) = make(&data(130), [7; 32]);
        let (superblock, step) = (120, 37);
        for at in (0..superblock).chain((superblock..bytes.len()).step_by(step)) {
            let mut spoilt = bytes.clone();
            spoilt[at] ^= 1;
            assert!(Tree::open(&spoilt, root).is_err(), "byte {at}");
        }
        for length in [0, 1, BLOCK, 2 * BLOCK, bytes.len() - 1] {
            assert!(Tree::open(&bytes[..length], root).is_err(), "{length} bytes");
        }
    }
}
