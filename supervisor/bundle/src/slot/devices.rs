//! The real disk: block devices, and a mounted ESP.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::sys::uio::preadv;

use super::{Disk, Partition};
use crate::BLOCK;

/// Where the partitions are, and the boot loader's directory.
///
/// Plain files do for tests. Nothing is kept open.
#[derive(Clone, Debug)]
pub struct SlotDevices {
    /// `root-a` and `root-b`.
    pub root: [PathBuf; 2],
    /// `verity-a` and `verity-b`.
    pub verity: [PathBuf; 2],
    /// `EFI/Linux` on the ESP, which is mounted.
    pub entries: PathBuf,
}

impl SlotDevices {
    fn path(&self, partition: Partition) -> &Path {
        match partition {
            Partition::Root(slot) => &self.root[slot as usize],
            Partition::Verity(slot) => &self.verity[slot as usize],
        }
    }

    /// Removes what fsck.fat has kept of files that a power cut left without a name (`FSCK0000.REC` at the top of the ESP): nobody wants
    /// it, and a few of those are all the room that there is.
    ///
    /// # Errors
    /// The ESP fails.
    pub fn remove_salvage(&self) -> io::Result<()> {
        let Some(top) = self.entries.ancestors().nth(2) else { return Ok(()) };
        for entry in fs::read_dir(top)? {
            let entry = entry?;
            if is_salvage(&entry.file_name().to_string_lossy()) && entry.file_type()?.is_file() {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// A name of the directory, and nothing else.
    fn file(&self, name: &str) -> io::Result<PathBuf> {
        match name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            true => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no name of a boot entry"))),
            false => Ok(self.entries.join(name)),
        }
    }
}

impl Disk for SlotDevices {
    fn write(&mut self, to: Partition, from: u64, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.path(to))?.write_all_at(bytes, from)
    }

    fn flush(&mut self, partition: Partition) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.path(partition))?.sync_all()
    }

    fn read(&mut self, of: Partition, from: u64, buffer: &mut [u8]) -> io::Result<()> {
        read_medium(self.path(of), from, buffer)
    }

    fn names(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.entries)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        Ok(names)
    }

    fn read_file(&mut self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let file = File::open(self.file(name)?)?;
        forget(&file)?;
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write_file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        File::create(self.file(name)?)?.write_all(bytes)
    }

    fn flush_file(&mut self, name: &str) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.file(name)?)?.sync_all()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.file(from)?, self.file(to)?)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.file(name)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn flush_names(&mut self) -> io::Result<()> {
        File::open(&self.entries)?.sync_all()
    }
}

fn is_salvage(name: &str) -> bool {
    let number = name.strip_prefix("FSCK").and_then(|rest| rest.strip_suffix(".REC"));
    number.is_some_and(|number| number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Reads past the page cache, into buffers as a device wants them; where a file system knows no such way, the cache is dropped.
fn read_medium(path: &Path, from: u64, buffer: &mut [u8]) -> io::Result<()> {
    let Ok(file) = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(path) else {
        let file = File::open(path)?;
        forget(&file)?;
        return file.read_exact_at(buffer, from);
    };
    let mut blocks = vec![Aligned([0; BLOCK]); buffer.len().div_ceil(BLOCK).min(AT_ONCE)];
    let mut at = from;
    for piece in buffer.chunks_mut(AT_ONCE * BLOCK) {
        let count = piece.len().div_ceil(BLOCK);
        let mut slices: Vec<_> = blocks[..count].iter_mut().map(|block| IoSliceMut::new(&mut block.0)).collect();
        let read = preadv(&file, &mut slices, at as i64)?;
        if read < piece.len() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("it ends at byte {}", at + read as u64)));
        }
        for (piece, block) in piece.chunks_mut(BLOCK).zip(&blocks) {
            piece.copy_from_slice(&block.0[..piece.len()]);
        }
        at += piece.len() as u64;
    }
    Ok(())
}

/// What was flushed is dropped from the page cache, and is read from the medium again.
fn forget(file: &File) -> io::Result<()> {
    Ok(posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

/// What O_DIRECT asks for, on any device.
#[derive(Clone)]
#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

/// Blocks in one call: fewer than IOV_MAX.
const AT_ONCE: usize = 256;
