//! The log and snapshot as Raft wants them: entries in memory, and a thread that writes them down in order.
//!
//! The thread, because a sync may take seconds, and everything else of the coordinator runs on one loop. What it has to write is
//! bounded: Raft waits for each append before it goes on.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, RaftLogReader, StorageIOError};
use tokio::sync::{mpsc, oneshot};

use crate::store::{Store, StoreError};
use crate::types::{Entry, Image, LogId, RaftId, SnapshotMeta, StorageError, Types, Vote};

/// Bytes of entries that are read at once for one peer, unless a single entry has more.
pub const MAX_BATCH: u64 = 1024 * 1024;
/// Jobs that wait for the disk.
const QUEUE: usize = 64;
/// Stack of the writing thread, in bytes. JSON of a state needs little.
const STACK: usize = 256 * 1024;

/// The log in memory, and the way to the disk.
#[derive(Clone, Debug)]
pub struct Writer {
    mirror: Arc<Mutex<Mirror>>,
    jobs: mpsc::Sender<Job>,
}

/// What the disk holds, or will hold once the jobs under way are done.
#[derive(Debug)]
struct Mirror {
    base: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
    /// Length of the log file.
    bytes: u64,
    /// Why no room is held back for when the disk is full; `None`: it is.
    short: Option<String>,
}

enum Job {
    Append(Vec<Entry>, LogFlushed<Types>),
    Act(Act, oneshot::Sender<Result<(), String>>),
    /// Look again whether there is room to hold back; done after each job.
    HoldRoom,
    Close(oneshot::Sender<()>),
}

enum Act {
    Truncate(u64),
    Purge(LogId),
    Vote(Vote),
    Committed(Option<LogId>),
    Snapshot(Box<(SnapshotMeta, Image)>),
}

impl Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Job")
    }
}

impl Writer {
    /// Starts the thread on an open store that held this.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub(crate) fn start(mut store: Store, held: crate::store::log::Content) -> io::Result<Writer> {
        let crate::store::log::Content { base, vote, committed, entries } = held;
        let entries = entries.into_iter().map(|entry| (entry.log_id.index, entry)).collect();
        let (bytes, short) = (store.log_bytes(), store.hold_room());
        let mirror = Arc::new(Mutex::new(Mirror { base, vote, committed, entries, bytes, short }));
        let (jobs, queue) = mpsc::channel(QUEUE);
        let of_thread = mirror.clone();
        let thread = std::thread::Builder::new().name("raft disk".to_owned()).stack_size(STACK);
        thread.spawn(move || write(store, queue, &of_thread))?;
        Ok(Writer { mirror, jobs })
    }

    /// Waits for all jobs, and closes the store: the thread ends, and the files may be opened again.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.jobs.send(Job::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }

    /// Length of the log file in bytes.
    pub fn log_bytes(&self) -> u64 {
        self.mirror().bytes
    }

    /// Why no room is held back for when the disk is full; `None`: it is.
    pub fn short(&self) -> Option<String> {
        self.mirror().short.clone()
    }

    /// Has the thread look whether there is room to hold back again.
    pub fn hold_room(&self) {
        // A full queue is as good: each job ends with this look.
        let _ = self.jobs.try_send(Job::HoldRoom);
    }

    /// The last entry of the log, or what it starts behind.
    pub fn last(&self) -> Option<LogId> {
        self.mirror().last()
    }

    /// Replaces the snapshot on disk.
    ///
    /// # Errors
    /// The disk's words.
    pub async fn save_snapshot(&self, meta: SnapshotMeta, image: Image) -> Result<(), StorageError> {
        let done = self.act(Act::Snapshot(Box::new((meta, image)))).await;
        done.map_err(|error| StorageIOError::write_snapshot(None, error).into())
    }

    async fn act(&self, act: Act) -> Result<(), AnyError> {
        let (done, answer) = oneshot::channel();
        let closed = |_| AnyError::error("the store is closed");
        self.jobs.send(Job::Act(act, done)).await.map_err(|_| AnyError::error("the store is closed"))?;
        answer.await.map_err(closed)?.map_err(AnyError::error)
    }

    fn mirror(&self) -> MutexGuard<'_, Mirror> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mirror {
    fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, entry)| entry.log_id).or(self.base)
    }
}

/// The thread. After an error it does nothing any more: what the disk holds is then uncertain until it is opened again.
fn write(mut store: Store, mut queue: mpsc::Receiver<Job>, mirror: &Mutex<Mirror>) {
    let mut broken: Option<String> = None;
    // A snapshot that is being built may be overtaken by a later one from the leader, which the log already begins behind.
    let mut newest = mirror.lock().unwrap_or_else(PoisonError::into_inner).base;
    while let Some(job) = queue.blocking_recv() {
        let mut run = |act: &mut dyn FnMut(&mut Store) -> Result<(), StoreError>| {
            if let Some(why) = &broken {
                return Err(why.clone());
            }
            act(&mut store).map_err(|error| {
                tracing::error!("set: {error}");
                broken.insert(error.to_string()).clone()
            })
        };
        match job {
            Job::Append(entries, flushed) => {
                let result = run(&mut |store| store.append(&entries));
                flushed.log_io_completed(result.map_err(io::Error::other));
            }
            Job::Act(act, done) => {
                let result = run(&mut |store| match &act {
                    Act::Truncate(index) => store.truncate(*index),
                    Act::Purge(upto) => store.purge(*upto),
                    Act::Vote(vote) => store.save_vote(*vote),
                    Act::Committed(committed) => store.save_committed(*committed),
                    Act::Snapshot(snapshot) if snapshot.0.last_log_id < newest => Ok(()),
                    Act::Snapshot(snapshot) => {
                        newest = snapshot.0.last_log_id;
                        store.save_snapshot(&snapshot.0, &snapshot.1)
                    }
                });
                // Whoever asked may have been cancelled.
                let _ = done.send(result);
            }
            Job::HoldRoom => {}
            Job::Close(done) => {
                drop(store);
                let _ = done.send(());
                return;
            }
        }
        let (bytes, short) = (store.log_bytes(), store.hold_room());
        let mut mirror = mirror.lock().unwrap_or_else(PoisonError::into_inner);
        (mirror.bytes, mirror.short) = (bytes, short);
    }
}

impl RaftLogReader<Types> for Writer {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, StorageError> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        let empty = matches!(range, (Bound::Included(start), Bound::Excluded(end)) if start >= end);
        if empty {
            return Ok(Vec::new());
        }
        Ok(self.mirror().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        let entries = self.try_get_log_entries(start..end).await?;
        let mut bytes = 0;
        let fits = |entry: &Entry| {
            let first = bytes == 0;
            bytes += serde_json::to_vec(entry).map_or(0, |json| json.len() as u64);
            first || bytes <= MAX_BATCH
        };
        Ok(entries.into_iter().take_while(fits).collect())
    }
}

impl RaftLogStorage<Types> for Writer {
    type LogReader = Writer;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let mirror = self.mirror();
        Ok(LogState { last_purged_log_id: mirror.base, last_log_id: mirror.last() })
    }

    async fn get_log_reader(&mut self) -> Writer {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.mirror().vote = Some(*vote);
        self.act(Act::Vote(*vote)).await.map_err(|error| StorageIOError::write_vote(error).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.mirror().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.mirror().committed = committed;
        self.act(Act::Committed(committed)).await.map_err(|error| StorageIOError::write(error).into())
    }

    /// Only as far as this version understands the entries: at the start, Raft waits until they are applied.
    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let mirror = self.mirror();
        let known = mirror.entries.values().take_while(|entry| crate::machine::understood(entry)).last();
        let known = known.map(|entry| entry.log_id).or(mirror.base);
        Ok(mirror.committed.min(known))
    }

    async fn append<I>(&mut self, entries: I, flushed: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.mirror().entries.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())));
        let sent = self.jobs.send(Job::Append(entries, flushed)).await;
        sent.map_err(|_| StorageIOError::<RaftId>::write_logs(AnyError::error("the store is closed")).into())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.mirror().entries.split_off(&log_id.index);
        self.act(Act::Truncate(log_id.index)).await.map_err(|error| StorageIOError::write_logs(error).into())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        {
            let mut mirror = self.mirror();
            mirror.base = mirror.base.max(Some(log_id));
            mirror.entries = mirror.entries.split_off(&(log_id.index + 1));
        }
        self.act(Act::Purge(log_id)).await.map_err(|error| StorageIOError::write_logs(error).into())
    }
}
