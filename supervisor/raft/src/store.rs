//! What a node keeps on its disk.
//!
//! ```text
//! raft/current/identity   who this node is in Raft, and in which set: written once
//! raft/current/log        entries and vote                           (log.rs)
//! raft/current/snapshot   the state that the log starts from
//! raft/new/               the next `current`, while it is made
//! raft/reserve            room for when the disk is full             (reserve.rs)
//! raft/replaced/          the `current` before this one, after the node was replaced or the set recovered
//! ```
//!
//! A folder without `current` is empty: the node never was in a set, or has lost its disk. `current` comes into being by one rename,
//! with all that belongs to it. What is damaged is refused, with file and offset, and never taken for less than it was.
//!
//! It is not set aside by itself either, although an empty node can't vote as who it was: what damages one disk (a version that
//! misreads it, a power cut) may damage all, and nodes that are all empty found a new set, without what was decided. Price: an
//! admin makes that machine anew.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub mod log;
mod medium;
mod reserve;
pub mod sealed;
#[cfg(test)]
mod tests;

use crate::types::{Entry, Image, LogId, RaftId, SnapshotMeta, Vote};
use log::{Content, Log};
pub use reserve::RESERVE;
use reserve::Reserve;
use sealed::Fault;

/// The longest snapshot, in bytes.
pub const MAX_SNAPSHOT: usize = 8 * 1024 * 1024;
/// How many former sets an identity remembers.
const MAX_PREVIOUS: usize = 16;

/// Who a node is in Raft. It never changes; a node that is replaced begins anew with another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// Drawn at random when the set was founded or recovered: 32 hexadecimal digits.
    pub set: String,
    /// The node's number in Raft.
    pub id: RaftId,
    /// The node's name in the document.
    pub name: String,
    /// The sets that this one was recovered from, the last one first.
    pub previous: Vec<String>,
}

impl Identity {
    /// The identity of `name` in a set that takes the place of this one.
    pub fn recovered(&self, set: String, id: RaftId) -> Identity {
        let mut previous = vec![self.set.clone()];
        previous.extend(self.previous.iter().take(MAX_PREVIOUS - 1).cloned());
        Identity { set, id, name: self.name.clone(), previous }
    }
}

/// What a node that is not replicated to by others starts from: the first of a new or recovered set.
#[derive(Clone, Debug)]
pub(crate) struct Seed {
    /// What the log starts behind.
    pub base: LogId,
    /// Its vote.
    pub vote: Vote,
    /// State and membership up to there.
    pub snapshot: (SnapshotMeta, Image),
}

/// Why the store can't be used.
#[derive(Debug)]
pub enum StoreError {
    /// The system refused something.
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        file: PathBuf,
        /// Its words.
        error: io::Error,
    },
    /// What was acknowledged is not all there.
    Damaged {
        /// Which file.
        file: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// Written by a version that says that this one must not read it.
    Newer {
        /// Which file.
        file: PathBuf,
        /// The oldest format that may.
        format: u32,
    },
}

impl StoreError {
    fn of(file: &Path, offset: u64, fault: Fault) -> StoreError {
        match fault {
            Fault::Damaged(what) => StoreError::Damaged { file: file.into(), offset, what },
            Fault::Newer(format) => StoreError::Newer { file: file.into(), format },
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Io { doing, file, error } => write!(f, "{doing} {} failed: {error}", file.display()),
            StoreError::Damaged { file, offset, what } => write!(
                f,
                "{} is damaged at byte {offset}: {what}. It is not used, because it may lack what this node has promised. \
                 If the other nodes are well, make this machine anew with the same first-boot answers, then run `trilith node \
                 replace` for it on one of them",
                file.display(),
            ),
            StoreError::Newer { file, format } => write!(
                f,
                "{} needs a version that reads format {format}, this one reads up to {}: upgrade this node",
                file.display(),
                sealed::FORMAT
            ),
        }
    }
}

impl std::error::Error for StoreError {}

impl StoreError {
    /// It failed only because the disk is full.
    fn is_full(&self) -> bool {
        matches!(self, StoreError::Io { error, .. } if error.kind() == io::ErrorKind::StorageFull)
    }
}

/// The open store. Its methods return when what they did is durable, and take as long as the disk does.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    log: Log,
    reserve: Reserve,
}

/// What an open store held.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub identity: Identity,
    pub content: Content,
    pub snapshot: Option<(SnapshotMeta, Image)>,
}

/// Opens what is under `directory`; `None` when it is empty. What a power cut left half made is finished or removed.
pub(crate) fn open(directory: &Path) -> Result<Option<(Store, Loaded)>, StoreError> {
    fs::create_dir_all(directory).map_err(failed("creating", directory))?;
    let (current, new) = (directory.join(CURRENT), directory.join(NEW));
    let there = |path: &Path| path.try_exists().map_err(failed("looking for", path));
    if !there(&current)? && there(&new)? && read::<Identity>(&new.join(IDENTITY), "identity", MAX_IDENTITY).is_ok() {
        // The identity is written last, so all of it is there.
        medium::rename(&new, &current).map_err(failed("renaming", &new))?;
        medium::sync_folder(directory).map_err(failed("syncing", directory))?;
    }
    remove(&new)?;
    if there(&current)? { Store::open(current).map(Some) } else { Ok(None) }
}

/// Makes a store for `identity`. One that is there is kept as `replaced`.
pub(crate) fn create(directory: &Path, identity: &Identity, seed: Option<Seed>) -> Result<(Store, Loaded), StoreError> {
    let (current, new, replaced) = (directory.join(CURRENT), directory.join(NEW), directory.join(REPLACED));
    remove(&new)?;
    fs::create_dir_all(&new).map_err(failed("creating", &new))?;
    let (base, vote, snapshot) = match seed {
        Some(seed) => (Some(seed.base), Some(seed.vote), Some(seed.snapshot)),
        None => (None, None, None),
    };
    if let Some(snapshot) = &snapshot {
        write(&new.join(SNAPSHOT), "snapshot", &Kept::of(snapshot))?;
    }
    let log = new.join(LOG);
    Log::create(&log, base, vote, base).map_err(failed("writing", &log))?;
    write(&new.join(IDENTITY), "identity", identity)?;
    medium::sync_folder(directory).map_err(failed("syncing", directory))?;
    if current.try_exists().map_err(failed("looking for", &current))? {
        remove(&replaced)?;
        medium::rename(&current, &replaced).map_err(failed("renaming", &current))?;
    }
    medium::rename(&new, &current).map_err(failed("renaming", &new))?;
    medium::sync_folder(directory).map_err(failed("syncing", directory))?;
    Store::open(current)
}

impl Store {
    fn open(folder: PathBuf) -> Result<(Store, Loaded), StoreError> {
        let identity = read(&folder.join(IDENTITY), "identity", MAX_IDENTITY)?;
        let path = folder.join(SNAPSHOT);
        let snapshot = match path.try_exists().map_err(failed("looking for", &path))? {
            true => Some(read::<Kept>(&path, "snapshot", MAX_SNAPSHOT_FILE)?.into_parts()),
            false => None,
        };
        let path = folder.join(LOG);
        let opened = Log::open(&path).map_err(failed("reading", &path))?;
        let (log, content) = opened.map_err(|(offset, fault)| StoreError::of(&path, offset, fault))?;
        // Entries are dropped only after a snapshot holds what they led to.
        let reached = snapshot.as_ref().and_then(|(meta, _)| meta.last_log_id);
        if content.base > reached {
            let begin = content.base.map_or(0, |base| base.index + 1);
            let end = reached.map_or("there is none".to_owned(), |last| format!("ends with entry {}", last.index));
            let what = format!("the log begins with entry {begin}, but its snapshot {end}");
            return Err(StoreError::Damaged { file: folder.join(SNAPSHOT), offset: 0, what });
        }
        let reserve = Reserve::in_folder(folder.parent().unwrap_or(&folder));
        Ok((Store { folder, log, reserve }, Loaded { identity, content, snapshot }))
    }

    /// Holds room back for when the disk is full, unless that was done. Why it can't be; `None`: it is.
    pub fn hold_room(&mut self) -> Option<String> {
        self.reserve.hold().err().map(|error| error.to_string())
    }

    /// Appends entries to the log.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), StoreError> {
        self.keep("appending to", |log| log.append(entries))
    }

    /// Drops the entry `index` and all behind it.
    pub fn truncate(&mut self, index: u64) -> Result<(), StoreError> {
        self.keep("truncating", |log| log.truncate(index))
    }

    /// Drops all entries up to `upto`, which a snapshot holds.
    pub fn purge(&mut self, upto: LogId) -> Result<(), StoreError> {
        self.keep("compacting", |log| log.purge(upto))
    }

    /// Keeps the vote.
    pub fn save_vote(&mut self, vote: Vote) -> Result<(), StoreError> {
        self.keep("writing the vote to", |log| log.save_vote(vote))
    }

    /// Keeps how far the log is known to be committed.
    pub fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StoreError> {
        self.keep("writing the committed end to", |log| log.save_committed(committed))
    }

    /// Replaces the snapshot. One of more than [`MAX_SNAPSHOT`] bytes is refused: it could not be read again.
    pub fn save_snapshot(&mut self, meta: &SnapshotMeta, image: &Image) -> Result<(), StoreError> {
        let file = self.folder.join(SNAPSHOT);
        let length = image.state.to_string().len();
        if length > MAX_SNAPSHOT {
            let error = io::Error::other(format!("it has {length} bytes, more than {MAX_SNAPSHOT}"));
            return Err(failed("writing", &file)(error));
        }
        let kept = Kept::of(&(meta.clone(), image.clone()));
        self.in_the_reserve(|_| write(&file, "snapshot", &kept))
    }

    fn keep(&mut self, doing: &'static str, mut act: impl FnMut(&mut Log) -> io::Result<()>) -> Result<(), StoreError> {
        let file = self.folder.join(LOG);
        self.in_the_reserve(|store| act(&mut store.log).map_err(failed(doing, &file)))
    }

    /// Does it; if the disk is full, once more in the room that was held back for that. What is done must bear to be done again.
    fn in_the_reserve(&mut self, mut act: impl FnMut(&mut Store) -> Result<(), StoreError>) -> Result<(), StoreError> {
        match act(self) {
            Err(error) if error.is_full() && self.reserve.spend() => {
                tracing::warn!("set: {error}: it is done again in the room that was held back");
                act(self)
            }
            done => done,
        }
    }

    /// Length of the log in bytes.
    pub fn log_bytes(&self) -> u64 {
        self.log.length()
    }
}

/// The snapshot's file.
#[derive(Serialize, Deserialize)]
struct Kept {
    meta: SnapshotMeta,
    image: Image,
}

impl Kept {
    fn of((meta, image): &(SnapshotMeta, Image)) -> Kept {
        Kept { meta: meta.clone(), image: image.clone() }
    }

    fn into_parts(self) -> (SnapshotMeta, Image) {
        (self.meta, self.image)
    }
}

/// Reads a sealed file.
fn read<T: DeserializeOwned>(path: &Path, kind: &str, most: usize) -> Result<T, StoreError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed("opening", path))?;
    file.take(most as u64).read_to_end(&mut bytes).map_err(failed("reading", path))?;
    sealed::open(kind, &bytes).map_err(|fault| StoreError::of(path, 0, fault))
}

/// Replaces a sealed file: after a power cut there is the old one or the new one, whole.
fn write(path: &Path, kind: &str, value: &impl Serialize) -> Result<(), StoreError> {
    let beside = path.with_extension("new");
    let written = medium::create(&beside).and_then(|file| {
        medium::write_at(&file, &beside, 0, &sealed::seal(kind, value))?;
        medium::sync(&file, &beside)?;
        medium::rename(&beside, path)?;
        medium::sync_folder(path.parent().unwrap_or(Path::new("/")))
    });
    written.map_err(failed("writing", path))
}

fn remove(folder: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", folder)(error)),
        _ => Ok(()),
    }
}

fn failed(doing: &'static str, file: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let file = file.to_owned();
    move |error| StoreError::Io { doing, file, error }
}

const CURRENT: &str = "current";
const NEW: &str = "new";
const REPLACED: &str = "replaced";
const IDENTITY: &str = "identity";
const LOG: &str = "log";
const SNAPSHOT: &str = "snapshot";
const MAX_IDENTITY: usize = 16 * 1024;
/// A snapshot with its first line and its meta.
const MAX_SNAPSHOT_FILE: usize = MAX_SNAPSHOT + 64 * 1024;
