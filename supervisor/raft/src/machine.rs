//! The set's state on this node: committed entries in, state out.
//!
//! # A set that is newer than this node
//!
//! During a rolling upgrade another node may propose a kind of request that this version does not know, or send a snapshot with parts
//! that it does not know. To skip what is not understood would make the states of the nodes differ for ever, silently. So
//! this node's state stands still there, with an alarm; it goes on to vote, and to store and pass on the log, so the set works. It does
//! not stand for election, and makes no snapshots. Once it is upgraded it applies the rest.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use serde_json::Value;
use tokio::sync::watch;
use trilith_core::set::{Ask, Request, State};

use crate::types::{
    Entry, Image, LogId, Outcome, Proposal, Snapshot, SnapshotMeta, StorageError, StoredMembership, Types, generation,
};
use crate::writer::Writer;

/// How far a node's state has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last entry that was applied.
    pub applied: Option<LogId>,
    /// The highest generation that any member ever had.
    pub generation: u64,
    /// What this version does not understand, so that the state stands still.
    pub stuck: Option<String>,
}

/// The state machine. Clones share one state.
#[derive(Clone, Debug)]
pub struct Machine {
    inner: Arc<Mutex<Inner>>,
    writer: Writer,
    states: watch::Sender<Arc<State>>,
    progress: watch::Sender<Progress>,
    /// `true` once the node stops: whatever waits for an upgrade then ends.
    stop: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    membership: StoredMembership,
    snapshot: Option<(SnapshotMeta, Image)>,
}

impl Machine {
    /// A machine that starts from `snapshot`, publishes into `states`, and keeps its own snapshots through `writer`.
    pub(crate) fn new(
        snapshot: Option<(SnapshotMeta, Image)>,
        writer: Writer,
        states: watch::Sender<Arc<State>>,
    ) -> Machine {
        let machine = Machine {
            inner: Arc::default(),
            writer,
            states,
            progress: watch::Sender::default(),
            stop: watch::Sender::new(false),
        };
        if let Some((meta, image)) = snapshot {
            machine.take(meta, image);
        }
        machine
    }

    /// How far it has come.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Ends what waits for an upgrade.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    fn take(&self, meta: SnapshotMeta, image: Image) {
        let (state, stuck) = understand(&image.state);
        let mut inner = self.inner();
        inner.membership = meta.last_membership.clone();
        let progress = Progress { applied: meta.last_log_id, generation: image.generation, stuck };
        inner.snapshot = Some((meta, image));
        if let Some(state) = state {
            inner.state = state;
        }
        self.states.send_replace(Arc::new(inner.state.clone()));
        self.progress.send_replace(progress);
    }

    /// Applies one entry; `None`: it is not understood.
    fn apply_one(&self, entry: &Entry) -> Option<Outcome> {
        let mut inner = self.inner();
        let mut highest = 0;
        let outcome = match &entry.payload {
            EntryPayload::Blank => Outcome::Nothing,
            EntryPayload::Normal(proposal) => apply(&mut inner.state, proposal)?,
            EntryPayload::Membership(membership) => {
                highest = membership.nodes().map(|(id, _)| generation(*id)).max().unwrap_or(0);
                inner.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                Outcome::Nothing
            }
        };
        self.progress.send_modify(|progress| {
            progress.applied = Some(entry.log_id);
            progress.generation = progress.generation.max(highest);
        });
        Some(outcome)
    }

    fn publish(&self) {
        let state = self.inner().state.clone();
        self.states.send_if_modified(|published| {
            let changed = **published != state;
            if changed {
                *published = Arc::new(state);
            }
            changed
        });
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this version can apply the entry.
pub(crate) fn understood(entry: &Entry) -> bool {
    match &entry.payload {
        EntryPayload::Normal(proposal) => request(proposal).is_some(),
        EntryPayload::Blank | EntryPayload::Membership(_) => true,
    }
}

/// What a proposal asks for; `None`: only a later version knows.
pub(crate) fn request(proposal: &Proposal) -> Option<Request> {
    let request: Request = serde_json::from_value(proposal.0.clone()).ok()?;
    (request.ask != Ask::Unknown).then_some(request)
}

/// Applies a proposal; `None`: it is not understood, and nothing has changed.
pub(crate) fn apply(state: &mut State, proposal: &Proposal) -> Option<Outcome> {
    let request = request(proposal)?;
    Some(match state.apply(&request) {
        Ok(reply) => Outcome::Reply(reply),
        Err(refusal) => Outcome::Refused(refusal),
    })
}

/// The state in a snapshot as far as this version knows it, if at all, and what it does not know.
pub(crate) fn understand(image: &Value) -> (Option<State>, Option<String>) {
    if image.is_null() {
        return (Some(State::default()), None);
    }
    let state: State = match serde_json::from_value(image.clone()) {
        Ok(state) => state,
        Err(error) => return (None, Some(format!("the state in the snapshot: {error}"))),
    };
    let unknown = match serde_json::to_value(&state) {
        Ok(again) => lost(image, &again, "state"),
        Err(error) => Some(error.to_string()),
    };
    (Some(state), unknown)
}

/// Where `before` says something that `after` does not say. What is empty, zero or false says nothing: a later version's new
/// part stands so until it is used, and by then all nodes must know it.
fn lost(before: &Value, after: &Value, at: &str) -> Option<String> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => before.iter().find_map(|(key, value)| {
            let at = format!("{at}.{key}");
            match after.get(key) {
                Some(after) => lost(value, after, &at),
                None if says_nothing(value) => None,
                None => Some(at),
            }
        }),
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => before
            .iter()
            .zip(after)
            .enumerate()
            .find_map(|(place, (before, after))| lost(before, after, &format!("{at}[{place}]"))),
        (before, after) => (before != after).then(|| at.to_owned()),
    }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(value) => value.iter().all(says_nothing),
        Value::Object(value) => value.values().all(says_nothing),
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.progress.borrow().applied, self.inner().membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let mut outcomes = Vec::with_capacity(entries.len());
        for entry in &entries {
            let stuck = self.progress.borrow().stuck.is_some();
            let outcome = if stuck { None } else { self.apply_one(entry) };
            let Some(outcome) = outcome else {
                self.publish();
                self.progress.send_modify(|progress| {
                    let what = || format!("the request in entry {}", entry.log_id.index);
                    progress.stuck.get_or_insert_with(what);
                });
                // For ever, but Raft's other tasks go on.
                let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
                let error = openraft::AnyError::error("this node stops");
                return Err(StorageIOError::apply(entry.log_id, error).into());
            };
            outcomes.push(outcome);
        }
        self.publish();
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Image>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, image: Box<Image>) -> Result<(), StorageError> {
        self.writer.save_snapshot(meta.clone(), (*image).clone()).await?;
        self.take(meta.clone(), *image);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let snapshot = self.inner().snapshot.clone();
        Ok(snapshot.map(|(meta, image)| Snapshot { meta, snapshot: Box::new(image) }))
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let (meta, image) = {
            let inner = self.inner();
            let progress = self.progress.borrow().clone();
            if let (Some(_), Some((meta, image))) = (&progress.stuck, &inner.snapshot) {
                // Nothing newer can be told without losing what is not understood.
                return Ok(Snapshot { meta: meta.clone(), snapshot: Box::new(image.clone()) });
            }
            let state =
                serde_json::to_value(&inner.state).map_err(|error| StorageIOError::read_state_machine(&error))?;
            let meta = SnapshotMeta {
                last_log_id: progress.applied,
                last_membership: inner.membership.clone(),
                snapshot_id: progress.applied.map_or_else(String::new, |last| last.to_string()),
            };
            (meta, Image { state, generation: progress.generation })
        };
        self.writer.save_snapshot(meta.clone(), image.clone()).await?;
        let mut inner = self.inner();
        let newer = inner.snapshot.as_ref().is_none_or(|(held, _)| held.last_log_id <= meta.last_log_id);
        if newer {
            inner.snapshot = Some((meta.clone(), image.clone()));
        }
        drop(inner);
        Ok(Snapshot { meta, snapshot: Box::new(image) })
    }
}
