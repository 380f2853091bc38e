//! Room that is held back, so that a full disk does not end a node's part in the set.
//!
//! When the disk is full, this room is given to the store, and what was refused is written once more. So the set still decides, and
//! may decide what makes room again: `trilith upgrade remove` is one of its entries, too. Only when this room is used up as well, the
//! node's part ends, as it does when its disk fails.
//!
//! The alternative is to wait for room. Raft's one task would wait along, and with it votes, answers and an end in order.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

/// What is held back, in bytes: a log that is due to be compacted, and a snapshot as long as it may be.
pub const RESERVE: u64 = 16 * 1024 * 1024;

/// The room that is held back, as a file.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    held: bool,
}

impl Reserve {
    /// Nothing is held back yet.
    pub fn in_folder(folder: &Path) -> Reserve {
        Reserve { path: folder.join("reserve"), held: false }
    }

    /// Holds it back, unless that was done: if as much again is left for all others.
    ///
    /// # Errors
    /// Too little is free, or the file system can't do it.
    pub fn hold(&mut self) -> io::Result<()> {
        if !self.held {
            self.allocate()?;
            self.held = true;
        }
        Ok(())
    }

    fn allocate(&self) -> io::Result<()> {
        if fs::metadata(&self.path).is_ok_and(|file| file.blocks() * 512 >= RESERVE) {
            return Ok(());
        }
        let disk = statvfs(self.path.parent().unwrap_or(Path::new("/")))?;
        let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
        if free < 2 * RESERVE {
            return Err(io::Error::other(format!("{} MiB are free", free >> 20)));
        }
        let file = File::options().write(true).create(true).truncate(false).open(&self.path)?;
        // What came of it in part is no use to anybody.
        nix::fcntl::posix_fallocate(&file, 0, RESERVE as i64).or_else(|error| file.set_len(0).and(Err(error.into())))
    }

    /// Gives it to whoever writes next. Whether there was any.
    pub fn spend(&mut self) -> bool {
        if !std::mem::take(&mut self.held) {
            return false;
        }
        // ext4 gives out what was freed only once that is sure to last.
        let spent = File::options().write(true).open(&self.path).and_then(|file| {
            file.set_len(0)?;
            file.sync_all()
        });
        spent.inspect_err(|error| tracing::error!("set: {}: {error}", self.path.display())).is_ok()
    }
}
