//! One node's Raft while it is in a set.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::raft::AppendEntriesResponse;
use openraft::{Config, RaftMetrics, ServerState, SnapshotPolicy};
use tokio::sync::watch;
use tokio::time::Instant;
use trilith_core::set::State;

use crate::machine::{Machine, Progress};
use crate::net::links::Links;
use crate::network::Network;
use crate::protocol::{RaftAnswer, RaftCall, RaftMessage, Standing};
use crate::store::{Identity, Loaded, Store};
use crate::types::{Member, Raft, RaftId, Snapshot};
use crate::writer::Writer;
use crate::{COMPACT_ENTRIES, KEPT_ENTRIES, Rhythm, Unstarted};

/// How long a snapshot may take to be sent and installed.
pub const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10);
/// Entries in one message at most; their bytes are bounded by [`crate::writer::MAX_BATCH`].
const MAX_ENTRIES: u64 = 64;

/// Raft, its state machine and its store.
pub struct Active {
    pub identity: Identity,
    pub raft: Raft,
    pub machine: Machine,
    pub writer: Writer,
    pulse: Arc<Pulse>,
    lease: Duration,
}

impl Active {
    /// Starts Raft on a store.
    pub async fn start(
        (store, loaded): (Store, Loaded),
        links: Arc<Links>,
        nodes: Arc<[String]>,
        rhythm: Rhythm,
        states: watch::Sender<Arc<State>>,
    ) -> Result<Active, Unstarted> {
        let Loaded { identity, content, snapshot } = loaded;
        let writer = Writer::start(store, content).map_err(|error| Unstarted::Thread(error.to_string()))?;
        let machine = Machine::new(snapshot, writer.clone(), states);
        let pulse = Arc::new(Pulse { heard: Mutex::new(Instant::now()), acked: Mutex::default() });
        let network = Network { set: identity.set.clone(), nodes, links, pulse: pulse.clone() };
        let config = Config {
            cluster_name: identity.set.clone(),
            heartbeat_interval: rhythm.heartbeat.as_millis() as u64,
            // The greater one is the time for which a follower of a living leader gives its vote to nobody else. Elections
            // themselves are called by the keeper, which asks first.
            election_timeout_min: rhythm.heartbeat.as_millis() as u64 + 1,
            election_timeout_max: rhythm.lease.as_millis() as u64,
            enable_elect: false,
            install_snapshot_timeout: SNAPSHOT_PATIENCE.as_millis() as u64,
            max_payload_entries: MAX_ENTRIES,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(COMPACT_ENTRIES),
            max_in_snapshot_log_to_keep: KEPT_ENTRIES,
            replication_lag_threshold: 2 * COMPACT_ENTRIES,
            ..Config::default()
        };
        let config = config.validate().map_err(|error| Unstarted::Rhythm(error.to_string()))?;
        let raft = Raft::new(identity.id, Arc::new(config), network, writer.clone(), machine.clone()).await;
        let raft = raft.map_err(|error| Unstarted::Raft(error.to_string()))?;
        Ok(Active { identity, raft, machine, writer, pulse, lease: rhythm.lease })
    }

    /// Ends it; the store is closed then.
    pub async fn stop(&self) {
        self.machine.stop();
        // Its error is that of a task that has ended already.
        let _ = self.raft.shutdown().await;
        self.writer.close().await;
    }

    /// Raft's own view.
    pub fn metrics(&self) -> RaftMetrics<RaftId, Member> {
        self.raft.metrics().borrow().clone()
    }

    /// How far the state has come.
    pub fn progress(&self) -> Progress {
        self.machine.progress().borrow().clone()
    }

    /// Whether this node leads, and a majority has lately answered it.
    pub fn leads(&self) -> bool {
        let metrics = self.metrics();
        metrics.state == ServerState::Leader
            && metrics.running_state.is_ok()
            && self.has_quorum(&metrics, |id| *id == self.identity.id || self.pulse.acked(*id, self.lease))
    }

    /// The leader: this node if it [`Active::leads`], another one if it was heard lately.
    pub fn leader(&self) -> Option<(RaftId, String)> {
        let metrics = self.metrics();
        let id = match metrics.state {
            ServerState::Leader => self.leads().then_some(self.identity.id)?,
            _ => metrics.current_leader.filter(|_| self.silence() < self.lease)?,
        };
        let member = metrics.membership_config.membership().get_node(&id)?;
        Some((id, member.name.clone()))
    }

    /// Whether every majority that the membership asks for has these nodes.
    pub fn has_quorum(&self, metrics: &RaftMetrics<RaftId, Member>, has: impl Fn(&RaftId) -> bool) -> bool {
        let configs = metrics.membership_config.membership().get_joint_config();
        !configs.is_empty()
            && configs.iter().all(|voters| voters.iter().filter(|id| has(id)).count() * 2 > voters.len())
    }

    /// For how long no leader was heard, or since the start.
    pub fn silence(&self) -> Duration {
        self.pulse.heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// What this node says of itself.
    pub fn standing(&self) -> Standing {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<RaftId> = membership.voter_ids().collect();
        let progress = self.progress();
        Standing {
            identity: self.identity.clone(),
            voters: membership
                .nodes()
                .filter(|(id, _)| voters.contains(id))
                .map(|(id, node)| (*id, node.name.clone()))
                .collect(),
            last: self.writer.last(),
            applied: progress.applied.map_or(0, |last| last.index),
            led: self.leader().is_some(),
            stuck: progress.stuck.is_some(),
        }
    }

    /// Answers a message of Raft.
    pub async fn answer(&self, call: RaftCall) -> RaftAnswer {
        let me = &self.identity;
        if (call.set.as_str(), call.to) != (me.set.as_str(), me.id) {
            return RaftAnswer::Refused(format!(
                "this is {} of set {}, not {} of {}",
                me.id, me.set, call.to, call.set
            ));
        }
        let refused = |error: &dyn std::fmt::Display| RaftAnswer::Refused(error.to_string());
        match call.message {
            RaftMessage::Append(request) => match self.raft.append_entries(request).await {
                Ok(answer) => {
                    if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
                        self.pulse.hear();
                    }
                    RaftAnswer::Append(answer)
                }
                Err(error) => refused(&error),
            },
            RaftMessage::Vote(request) => match self.raft.vote(request).await {
                Ok(answer) => RaftAnswer::Vote(answer),
                Err(error) => refused(&error),
            },
            RaftMessage::Snapshot { vote, meta, image } => {
                let snapshot = Snapshot { meta, snapshot: Box::new(image) };
                match self.raft.install_full_snapshot(vote, snapshot).await {
                    Ok(answer) => {
                        if answer.vote <= vote {
                            self.pulse.hear();
                        }
                        RaftAnswer::Snapshot(answer.vote)
                    }
                    Err(error) => refused(&error),
                }
            }
        }
    }
}

/// Who was heard when.
#[derive(Debug)]
pub struct Pulse {
    /// A leader, by this node; at first its own start, so that a restarted node waits for a lease like any other.
    heard: Mutex<Instant>,
    /// Other nodes, as answers to this one's messages as a leader.
    acked: Mutex<BTreeMap<RaftId, Instant>>,
}

impl Pulse {
    fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// A node has answered to this one as to its leader.
    pub fn ack(&self, id: RaftId) {
        self.acked.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Instant::now());
    }

    fn acked(&self, id: RaftId, within: Duration) -> bool {
        let acked = self.acked.lock().unwrap_or_else(PoisonError::into_inner);
        acked.get(&id).is_some_and(|at| at.elapsed() < within)
    }
}

/// Waits for something that the caller may drop at any time.
pub(crate) async fn within<T, E: std::fmt::Display>(
    patience: Duration,
    what: impl Future<Output = Result<T, E>>,
) -> io::Result<T> {
    match tokio::time::timeout(patience, what).await {
        Ok(done) => done.map_err(|error| io::Error::other(error.to_string())),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no majority confirmed it in time")),
    }
}
