//! The log file: entries, vote, and how far all of it was acknowledged.
//!
//! ```text
//!      0  header: what the log starts behind
//!   4096  head, one copy      ┐ the vote, the committed end, and the acknowledged end of the records
//!   8192  head, other copy    ┘ with their digest
//!  12288  record, record, …   length u32 | digest 16 bytes | entry as JSON
//! ```
//!
//! A record's digest is that of the record before it together with its own bytes, so it vouches for all of the log up to there.
//!
//! # A torn tail or a damaged one?
//!
//! After a power cut the end of the file may be anything, and what was not acknowledged may be dropped. But a record that *was*
//! acknowledged counts as a vote for it, and to drop it because it cannot be read any more would silently take that vote back. The
//! records alone can't tell the one from the other. So the head says where the acknowledged end is:
//!
//! 1. Records are written behind the acknowledged end, and synced.
//! 2. A head with the new end goes over the copy that is *not* the durable one, and is synced. Now they are acknowledged.
//! 3. The same head goes over the other copy, without waiting for it.
//!
//! On opening, what lies behind the acknowledged end was never acknowledged and is ignored; anything wrong before it is refused. A
//! head that was torn in step 2 was not acknowledged, and the other copy is the one before it, whole. A head that a disk has
//! damaged later is found in its other copy. (Not found: a head damaged by the disk after a power cut hit between 2 and 3. That is
//! two faults at once.)
//!
//! The price: two syncs for each append instead of one, some milliseconds. A set decides a few times a minute at most.
//! The alternative, a mark in each record that all before it is acknowledged, says nothing of the last record, which matters most.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::medium;
use super::sealed::{self, Fault};
use crate::types::{Entry, LogId, Vote};

/// The longest record's entry, in bytes. A request is at most [`crate::MAX_REQUEST`].
pub const MAX_RECORD: usize = 1024 * 1024;

/// What a log holds when it is opened.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// The last entry that was compacted away.
    pub base: Option<LogId>,
    /// The vote.
    pub vote: Option<Vote>,
    /// The last entry known to be committed.
    pub committed: Option<LogId>,
    /// The entries behind the base, without a gap.
    pub entries: Vec<Entry>,
}

/// Reads a whole log file.
///
/// # Errors
/// The offset, and what is wrong there, unless everything that was ever acknowledged is there and whole.
pub fn read(bytes: &[u8]) -> Result<Content, (u64, Fault)> {
    parse(bytes).map(|log| log.content)
}

/// The open log file. Every method returns only when what it did is durable. One that failed for lack of room may be called again;
/// after another error nothing more may be done.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    base: Option<LogId>,
    head: Head,
    /// Which copy of the head is surely durable.
    durable: usize,
    /// Where each record ends, and its digest.
    marks: VecDeque<Mark>,
    start: Digest,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    end: u64,
    digest: Digest,
}

impl Log {
    /// Makes a new, empty log that starts behind `base`, in place of one that may be there.
    pub fn create(path: &Path, base: Option<LogId>, vote: Option<Vote>, committed: Option<LogId>) -> io::Result<Log> {
        let head = Head { sequence: 1, end: RECORDS, vote, committed, ..Head::default() };
        Log::replace(path, base, head, &[])
    }

    /// Opens the log at `path`.
    pub fn open(path: &Path) -> io::Result<Result<(Log, Content), (u64, Fault)>> {
        let file = File::options().read(true).write(true).open(path)?;
        // What is read here may have been written by a process that ended before its sync: first it must be durable.
        medium::sync(&file, path)?;
        let length = file.metadata()?.len();
        if length > MAX_FILE {
            return Ok(Err((
                MAX_FILE,
                Fault::Damaged(format!("it is {length} bytes long, more than any log of ours")),
            )));
        }
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(parse(&bytes).map(|parsed| {
            let Parsed { content, head, durable, marks, start } = parsed;
            (Log { path: path.into(), file, base: content.base, head, durable, marks, start }, content)
        }))
    }

    /// Appends entries.
    pub fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let mut mark = self.last_mark();
        let from = mark.end;
        let mut bytes = Vec::new();
        let mut marks = Vec::new();
        for entry in entries {
            let value = serde_json::to_vec(entry)?;
            if value.len() > MAX_RECORD {
                let index = entry.log_id.index;
                return Err(io::Error::other(format!(
                    "entry {index} has {} bytes, more than {MAX_RECORD}",
                    value.len()
                )));
            }
            mark = record(mark, &value, &mut bytes);
            marks.push(mark);
        }
        if mark.end > MAX_FILE {
            return Err(io::Error::other(format!("the log would grow beyond {MAX_FILE} bytes")));
        }
        medium::write_at(&self.file, &self.path, from, &bytes)?;
        medium::sync(&self.file, &self.path)?;
        let known = self.marks.len();
        self.marks.extend(marks);
        self.acknowledge().inspect_err(|_| self.marks.truncate(known))
    }

    /// Drops the entry `index` and all behind it.
    pub fn truncate(&mut self, index: u64) -> io::Result<()> {
        let keep = index.saturating_sub(self.first_index());
        self.marks.truncate(keep as usize);
        self.acknowledge()
    }

    /// Drops all entries up to `upto`: a snapshot holds what they led to. The file is made anew, so it does not grow.
    pub fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let gone = ((upto.index + 1).saturating_sub(self.first_index()) as usize).min(self.marks.len());
        let mut from = if gone == 0 { RECORDS } else { self.marks[gone - 1].end };
        let mut values = Vec::with_capacity(self.marks.len() - gone);
        for mark in self.marks.range(gone..) {
            let mut value = vec![0; (mark.end - from) as usize - PREFIX];
            self.file.read_exact_at(&mut value, from + PREFIX as u64)?;
            values.push(value);
            from = mark.end;
        }
        let head = Head { sequence: 1, ..self.head.clone() };
        *self = Log::replace(&self.path, Some(upto), head, &values)?;
        Ok(())
    }

    /// Keeps the vote.
    pub fn save_vote(&mut self, vote: Vote) -> io::Result<()> {
        self.head.vote = Some(vote);
        self.acknowledge()
    }

    /// Keeps how far the log is known to be committed.
    pub fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.head.committed = committed;
        self.acknowledge()
    }

    /// Length of the file in bytes, up to the acknowledged end.
    pub fn length(&self) -> u64 {
        self.head.end
    }

    /// Steps 2 and 3 of the module's page.
    fn acknowledge(&mut self) -> io::Result<()> {
        let mark = self.last_mark();
        self.head.sequence += 1;
        (self.head.end, self.head.digest) = (mark.end, sealed::hex(&mark.digest));
        let head = block(sealed::seal("head", &self.head))?;
        let target = 1 - self.durable;
        medium::write_at(&self.file, &self.path, HEADS[target], &head)?;
        medium::sync(&self.file, &self.path)?;
        self.durable = target;
        medium::write_at(&self.file, &self.path, HEADS[1 - target], &head)
    }

    /// Writes a whole log beside the old one, then puts it into its place.
    fn replace(path: &Path, base: Option<LogId>, mut head: Head, values: &[Vec<u8>]) -> io::Result<Log> {
        let beside = path.with_extension("new");
        let header = block(sealed::seal("log", &Header { base }))?;
        let start = start(base);
        let mut records = Vec::new();
        let mut mark = Mark { end: RECORDS, digest: start };
        let mut marks = VecDeque::new();
        for value in values {
            mark = record(mark, value, &mut records);
            marks.push_back(mark);
        }
        (head.end, head.digest) = (mark.end, sealed::hex(&mark.digest));
        let copy = block(sealed::seal("head", &head))?;
        let file = medium::create(&beside)?;
        medium::write_at(&file, &beside, 0, &[header, copy.clone(), copy, records].concat())?;
        medium::sync(&file, &beside)?;
        medium::rename(&beside, path)?;
        medium::sync_folder(path.parent().unwrap_or(Path::new("/")))?;
        Ok(Log { path: path.into(), file, base, head, durable: 0, marks, start })
    }

    fn first_index(&self) -> u64 {
        self.base.map_or(0, |base| base.index + 1)
    }

    fn last_mark(&self) -> Mark {
        self.marks.back().copied().unwrap_or(Mark { end: RECORDS, digest: self.start })
    }
}

struct Parsed {
    content: Content,
    head: Head,
    durable: usize,
    marks: VecDeque<Mark>,
    start: Digest,
}

fn parse(bytes: &[u8]) -> Result<Parsed, (u64, Fault)> {
    let damaged = |at: u64, what: String| (at, Fault::Damaged(what));
    let part = |at: u64| bytes.get(at as usize..at as usize + BLOCK).unwrap_or_default();
    let header: Header = sealed::open("log", part(0)).map_err(|fault| (0, fault))?;
    let copies = HEADS.map(|at| sealed::open::<Head>("head", part(at)));
    let (head, durable) = match copies {
        [Ok(a), Ok(b)] if b.sequence > a.sequence => (b, 1),
        [Ok(a), _] => (a, 0),
        [_, Ok(b)] => (b, 1),
        [Err(fault), Err(_)] => return Err((HEADS[0], fault)),
    };
    if head.end > bytes.len() as u64 {
        let what = format!("it ends here, but {} bytes of it were acknowledged", head.end);
        return Err(damaged(bytes.len() as u64, what));
    }
    let start = start(header.base);
    let mut mark = Mark { end: RECORDS, digest: start };
    let mut marks = VecDeque::new();
    let mut entries: Vec<Entry> = Vec::new();
    let mut next = header.base.map_or(0, |base| base.index + 1);
    while mark.end < head.end {
        let at = mark.end;
        let rest = &bytes[at as usize..head.end as usize];
        let Some((prefix, rest)) = rest.split_first_chunk::<PREFIX>() else {
            return Err(damaged(at, "half a record stands before the acknowledged end".to_owned()));
        };
        let (length, sum) = prefix.split_at(4);
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let value = rest.get(..length).filter(|_| length <= MAX_RECORD);
        let Some(value) = value.filter(|value| digest(&mark.digest, value) == sum) else {
            return Err(damaged(at, format!("the record of entry {next}, which was acknowledged, is damaged")));
        };
        let entry: Entry = serde_json::from_slice(value)
            .map_err(|error| damaged(at, format!("entry {next} is whole, but not understood: {error}")))?;
        if entry.log_id.index != next {
            return Err(damaged(at, format!("entry {} stands where entry {next} must be", entry.log_id.index)));
        }
        mark = Mark { end: at + (PREFIX + length) as u64, digest: digest(&mark.digest, value) };
        marks.push_back(mark);
        entries.push(entry);
        next += 1;
    }
    if sealed::hex(&mark.digest) != head.digest {
        return Err(damaged(HEADS[durable], "the records are not those that were acknowledged".to_owned()));
    }
    let content = Content { base: header.base, vote: head.vote, committed: head.committed, entries };
    Ok(Parsed { content, head, durable, marks, start })
}

/// Written once, when the file is made.
#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(default)]
    base: Option<LogId>,
}

/// All that changes beside the records.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Head {
    /// Rises with every head.
    sequence: u64,
    /// Where the acknowledged records end.
    end: u64,
    /// Digest of the last of them.
    digest: String,
    #[serde(default)]
    vote: Option<Vote>,
    #[serde(default)]
    committed: Option<LogId>,
}

/// Appends a record to `bytes`.
fn record(before: Mark, value: &[u8], bytes: &mut Vec<u8>) -> Mark {
    let digest = digest(&before.digest, value);
    bytes.extend((value.len() as u32).to_be_bytes());
    bytes.extend(digest);
    bytes.extend(value);
    Mark { end: before.end + (PREFIX + value.len()) as u64, digest }
}

/// What the first record's digest builds on.
fn start(base: Option<LogId>) -> Digest {
    let base = base.map_or((0, 0, 0), |base| (base.leader_id.term, base.leader_id.node_id, base.index + 1));
    digest(&[0; 16], format!("{base:?}").as_bytes())
}

fn digest(before: &Digest, value: &[u8]) -> Digest {
    let sum = Sha256::new().chain_update(before).chain_update(value).finalize();
    std::array::from_fn(|at| sum[at])
}

/// Fills up to a block, the unit that a disk writes.
fn block(mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    if bytes.len() > BLOCK {
        return Err(io::Error::other(format!("{} bytes do not fit a block of {BLOCK}", bytes.len())));
    }
    bytes.resize(BLOCK, 0);
    Ok(bytes)
}

type Digest = [u8; 16];
/// A physical sector of today's disks, or a multiple of it: a torn write of one block leaves the others alone.
const BLOCK: usize = 4096;
const HEADS: [u64; 2] = [BLOCK as u64, 2 * BLOCK as u64];
const RECORDS: u64 = 3 * BLOCK as u64;
/// Length and digest.
const PREFIX: usize = 4 + 16;
/// Far above what [`crate::COMPACT_BYTES`] lets a log grow to.
const MAX_FILE: u64 = 256 * 1024 * 1024;
