//! The few things that the store does to files. All of it passes here, so that a test can write down what was done and in which
//! order, and then cut the power at every byte of it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Creates a file, empty, or empties it.
pub(super) fn create(path: &Path) -> io::Result<File> {
    #[cfg(test)]
    trace::note(trace::Op::Create { path: path.into() });
    File::options().read(true).write(true).create(true).truncate(true).open(path)
}

/// Writes `bytes` at `offset`.
pub(super) fn write_at(file: &File, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
    #[cfg(test)]
    {
        trace::note(trace::Op::Write { path: path.into(), offset, bytes: bytes.into() });
        if trace::is_full() {
            file.write_all_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
    }
    let _ = path;
    file.write_all_at(bytes, offset)
}

/// Waits until all that was written to the file would survive a power cut.
pub(super) fn sync(file: &File, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    trace::note(trace::Op::Sync { path: path.into() });
    let _ = path;
    file.sync_data()
}

/// Gives a file or folder another name, in place of what had it. Durable only after [`sync_folder`].
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(test)]
    trace::note(trace::Op::Rename { from: from.into(), to: to.into() });
    fs::rename(from, to)
}

/// Waits until the names in a folder would survive a power cut.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(test)]
    trace::note(trace::Op::SyncFolder);
    File::open(folder)?.sync_all()
}

/// What was done to the files, in order.
#[cfg(test)]
pub(super) mod trace {
    use std::cell::{Cell, RefCell};
    use std::path::PathBuf;

    /// One deed.
    #[derive(Clone, Debug)]
    pub enum Op {
        Create { path: PathBuf },
        Write { path: PathBuf, offset: u64, bytes: Vec<u8> },
        Sync { path: PathBuf },
        Rename { from: PathBuf, to: PathBuf },
        SyncFolder,
    }

    thread_local! {
        static OPS: RefCell<Option<Vec<Op>>> = const { RefCell::new(None) };
        static ROOM: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// From now on there is room for so many writes, and then, once, for half of one; `None`: for all.
    pub fn fill(room: Option<usize>) {
        ROOM.set(room);
    }

    /// Whether there is no room for this write.
    pub fn is_full() -> bool {
        let room = ROOM.get();
        ROOM.set(room.and_then(|room| room.checked_sub(1)));
        room == Some(0)
    }

    pub fn note(op: Op) {
        OPS.with_borrow_mut(|ops| {
            if let Some(ops) = ops {
                ops.push(op);
            }
        });
    }

    /// From now on all is written down.
    pub fn begin() {
        OPS.set(Some(Vec::new()));
    }

    /// As if [`end`] had not been.
    pub fn resume(ops: Vec<Op>) {
        OPS.set(Some(ops));
    }

    /// How many deeds were written down so far.
    pub fn count() -> usize {
        OPS.with_borrow(|ops| ops.as_ref().map_or(0, Vec::len))
    }

    /// What was written down.
    pub fn end() -> Vec<Op> {
        OPS.take().unwrap_or_default()
    }
}
