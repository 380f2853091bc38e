//! dm-verity: the root is read through a tree of hashes whose top is the root hash of the signed command line.
//!
//! The superblock in front of the tree is the only thing on the disk that nothing vouches for. So it is not believed: see
//! [`crate::superblock`]; what decides the tree's shape is checked by the tree itself, and the length must be that of the file
//! system in it.

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
use crate::superblock::{BLOCK, SUPERBLOCK, Tree, parse};

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

impl Tree {
    /// Documentation/admin-guide/device-mapper/verity.rst. The tree starts one block behind the superblock.
    fn parameters(&self, data: &str, tree: &str, hash: &RootHash) -> String {
        let (blocks, salt) = (self.blocks, hex(&self.salt));
        format!("1 {data} {tree} {BLOCK} {BLOCK} {blocks} 1 sha256 {} {salt} 1 panic_on_corruption", hash.hex())
    }
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

/// Bytes read at once: enough for several processors to hash at the same time.
const CHUNK: usize = 4 << 20;
/// Sectors in a block.
const SECTORS: u64 = 8;
/// Where erofs keeps the number of its blocks (`struct erofs_super_block`, at byte 1024).
const EROFS_BLOCKS: u64 = 1024 + 36;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_what_the_superblock_and_the_command_line_say() {
        let tree = Tree { blocks: 7000, salt: [0xa5; 32] };
        let hash = crate::command_line::root_hash(&format!("roothash={}", "1f".repeat(32))).unwrap();
        let expected =
            format!("1 8:2 8:3 4096 4096 7000 1 sha256 {} {} 1 panic_on_corruption", "1f".repeat(32), "a5".repeat(32));
        assert_eq!(tree.parameters("8:2", "8:3", &hash), expected);
    }
}
