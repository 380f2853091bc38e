//! dm-verity: the root is read through a tree of hashes whose top is the root hash of the signed command line.
//!
//! The superblock in front of the tree is the only thing on the disk that nothing vouches for. So it is not believed: every
//! byte of it must be what this build writes, what decides the tree's shape is checked by the tree itself, and the length must
//! be that of the file system in it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sha2::{Digest, Sha256};

use crate::command_line::RootHash;
use crate::device_mapper;
use crate::disk::Slot;
use crate::fault::{Context, Fault, Result, WRONG_DISK};

/// Whether the tree on this block device has the root hash at its top. A device that cannot be read has not.
pub fn is_of(device: &str, hash: &RootHash) -> bool {
    let mut blocks = [0; SUPERBLOCK + BLOCK as usize];
    let read = File::open(Path::new("/dev").join(device)).and_then(|device| device.read_exact_at(&mut blocks, 0));
    let (superblock, top) = blocks.split_at(SUPERBLOCK);
    let salt = superblock.try_into().ok().and_then(|superblock| parse(superblock).ok()).map(|tree| tree.salt);
    let digest = salt.map(|salt| Sha256::new().chain_update(salt).chain_update(top).finalize());
    read.is_ok() && digest.is_some_and(|digest| hex(&digest) == hash.hex())
}

/// Opens the root under its hash, reads all of it once, and returns the device's path.
///
/// A block that does not match panics the kernel, and `panic=` starts the machine anew. Because all blocks are read here, a
/// root that was altered anywhere never starts, instead of failing when the altered block is needed. That takes a tenth of a
/// second on today's processors, a second under emulation.
pub fn open(hash: &RootHash, slot: &Slot) -> Result<String> {
    let verity = format!("/dev/{}", slot.verity);
    let mut superblock = [0; SUPERBLOCK];
    let read = File::open(&verity).and_then(|mut device| device.read_exact(&mut superblock));
    read.or_fault(&verity, WRONG_DISK)?;
    let tree = parse(&superblock).map_err(|what| Fault::new(format!("{verity}: {what}"), WRONG_DISK))?;
    let parameters = tree.parameters(&number(&slot.root)?, &number(&slot.verity)?, hash);
    let device = device_mapper::create("root", tree.blocks * SECTORS, "verity", &parameters, WRONG_DISK)?;
    let root = File::open(&device).or_fault(&device, WRONG_DISK)?;
    let mut count = [0; 4];
    root.read_exact_at(&mut count, EROFS_BLOCKS).or_fault(&device, WRONG_DISK)?;
    let blocks = u64::from(u32::from_le_bytes(count));
    if blocks != tree.blocks {
        let what = format!("{verity}: for {} blocks, but the root has {blocks}", tree.blocks);
        return Err(Fault::new(what, WRONG_DISK));
    }
    read_all(&root).or_fault(&device, WRONG_DISK)?;
    Ok(device)
}

fn read_all(mut device: &File) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while device.read(&mut chunk)? > 0 {}
    // The file system reads past this cache: it would only fill the memory.
    Ok(posix_fadvise(device, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

/// What a superblock says that is not the same for every image.
#[derive(Debug, PartialEq, Eq)]
struct Tree {
    /// Of the data, 4096 bytes each.
    blocks: u64,
    salt: [u8; SALT],
}

impl Tree {
    /// Documentation/admin-guide/device-mapper/verity.rst. The tree starts one block behind the superblock.
    fn parameters(&self, data: &str, tree: &str, hash: &RootHash) -> String {
        let (blocks, salt) = (self.blocks, hex(&self.salt));
        format!("1 {data} {tree} {BLOCK} {BLOCK} {blocks} 1 sha256 {} {salt} 1 panic_on_corruption", hash.hex())
    }
}

/// Reads a superblock (cryptsetup's `struct verity_sb`), without believing anything but the count of blocks and the salt.
fn parse(superblock: &[u8; SUPERBLOCK]) -> std::result::Result<Tree, &'static str> {
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
fn written(tree: &Tree) -> [u8; SUPERBLOCK] {
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A block device as `MAJOR:MINOR`.
fn number(name: &str) -> Result<String> {
    let path = Path::new("/dev").join(name);
    let number = path.metadata().or_fault(&path.display().to_string(), WRONG_DISK)?.rdev();
    Ok(format!("{}:{}", nix::sys::stat::major(number), nix::sys::stat::minor(number)))
}

/// Bytes in a block of data or tree.
const BLOCK: u32 = 4096;
/// Bytes read at once: enough for several processors to hash at the same time.
const CHUNK: usize = 4 << 20;
/// Sectors in a block.
const SECTORS: u64 = 8;
/// Bytes of the superblock with what is unused behind it, up to the tree.
const SUPERBLOCK: usize = 4096;
const SALT: usize = 32;
/// 4 GiB, far more than a slot: keeps a damaged number from overflowing others.
const MOST_BLOCKS: u64 = 1 << 20;
/// Where erofs keeps the number of its blocks (`struct erofs_super_block`, at byte 1024).
const EROFS_BLOCKS: u64 = 1024 + 36;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_is_read_as_it_is_written() {
        let tree = Tree { blocks: 7000, salt: [0xa5; SALT] };
        let read = parse(&written(&tree)).unwrap();
        assert_eq!(read, tree);
        let hash = crate::command_line::root_hash(&format!("roothash={}", "1f".repeat(32))).unwrap();
        let expected =
            format!("1 8:2 8:3 4096 4096 7000 1 sha256 {} {} 1 panic_on_corruption", "1f".repeat(32), "a5".repeat(32));
        assert_eq!(read.parameters("8:2", "8:3", &hash), expected);
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
