//! The disk that all formats carry: the image's bytes, and nothing up to the capacity that the virtual disk has.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::gpt;

/// A disk image, laid out for a larger disk.
///
/// The room behind the image is free: no format stores zeroes. Only the second partition table must move to the new end, or
/// firmware and partitioning tools call the disk damaged; that is done here, in memory ([`gpt::moved`]), so every format says
/// the same.
#[derive(Debug)]
pub struct Disk {
    file: File,
    image_bytes: u64,
    capacity: u64,
    patches: Vec<gpt::Patch>,
    /// Which blocks hold anything but zeroes.
    used: Vec<bool>,
    /// SHA-256 over the blocks that are used and where they stand: equal disks have it equal.
    pub identity: [u8; 32],
}

impl Disk {
    /// Reads the image once, for a virtual disk of that many bytes.
    ///
    /// # Errors
    /// The image can't be read, has no partition table, or is larger than the virtual disk.
    pub fn open(path: &Path, capacity: u64) -> Result<Disk> {
        let place = path.display();
        let file = File::open(path).with_context(|| format!("{place}: build it with: just image"))?;
        let image_bytes = file.metadata()?.len();
        ensure!(
            capacity.is_multiple_of(BLOCK as u64) && capacity >= image_bytes && image_bytes.is_multiple_of(SECTOR),
            "{place} has {image_bytes} bytes, which does not go into a disk of {capacity}: choose a larger capacity"
        );
        let patches = gpt::moved(&file, image_bytes, capacity).with_context(|| place.to_string())?;
        let blocks = (capacity / BLOCK as u64) as usize;
        let mut disk = Disk { file, image_bytes, capacity, patches, used: vec![true; blocks], identity: [0; 32] };
        let mut hash = Sha256::new();
        let mut block = vec![0; BLOCK];
        for number in 0..blocks {
            disk.used[number] = disk.may_hold(number);
            if !disk.used[number] {
                continue;
            }
            disk.read(number, &mut block)?;
            disk.used[number] = block.iter().any(|byte| *byte != 0);
            if disk.used[number] {
                hash.update((number as u64).to_le_bytes());
                hash.update(&block);
            }
        }
        hash.update(capacity.to_le_bytes());
        disk.identity = hash.finalize().into();
        Ok(disk)
    }

    /// How many bytes the virtual disk has.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// How many blocks of [`BLOCK`] bytes it has.
    pub fn blocks(&self) -> usize {
        self.used.len()
    }

    /// Whether a block holds anything but zeroes.
    pub fn is_used(&self, number: usize) -> bool {
        self.used[number]
    }

    /// How many bytes are in use.
    pub fn populated(&self) -> u64 {
        self.used.iter().filter(|used| **used).count() as u64 * BLOCK as u64
    }

    /// Reads one block.
    ///
    /// # Errors
    /// Those of the file.
    pub fn read(&self, number: usize, block: &mut [u8]) -> io::Result<()> {
        let from = (number * BLOCK) as u64;
        let there = self.image_bytes.saturating_sub(from).min(BLOCK as u64) as usize;
        self.file.read_exact_at(&mut block[..there], from)?;
        block[there..].fill(0);
        for patch in &self.patches {
            patch.apply(from, block);
        }
        Ok(())
    }

    /// Writes it as a raw file with holes, which other tools take.
    ///
    /// # Errors
    /// Those of the files.
    pub fn write_raw(&self, out: &mut File) -> io::Result<()> {
        let mut block = vec![0; BLOCK];
        for number in (0..self.blocks()).filter(|number| self.used[*number]) {
            self.read(number, &mut block)?;
            out.seek(SeekFrom::Start((number * BLOCK) as u64))?;
            out.write_all(&block)?;
        }
        out.set_len(self.capacity)
    }

    /// Whether a block has to be read to know.
    fn may_hold(&self, number: usize) -> bool {
        let from = (number * BLOCK) as u64;
        from < self.image_bytes || self.patches.iter().any(|patch| patch.touches(from, BLOCK as u64))
    }
}

/// What is compressed, stored or left out as one: a grain of a VMDK, and a part of a block of a VHDX.
pub const BLOCK: usize = 64 * 1024;
/// What all virtual disks of these hypervisors count in, in bytes.
pub const SECTOR: u64 = 512;
