//! The keeper: founds the set, calls elections, admits nodes, and says what is wrong.
//!
//! ```text
//!            all nodes are empty, and this is the first          a leader admits it
//!   empty ──────────────────────────────────────────▶ member ◀───────────────────── empty
//!                                                       │ ▲
//!                                                       └─┘ replaced, or recovered: begins anew
//! ```
//!
//! # Founding
//!
//! A node with an empty disk asks all others. Only when each of them has answered that its disk is empty, too, the first node of the
//! document makes a set of itself alone, with one rename. As its leader it then admits the others, just as it would later
//! admit a replaced one: there is one way in. A crash anywhere leaves either no set (and it is founded again) or one that
//! admits the rest. Requests are taken only once a majority of the document's nodes has a vote, so nothing that was confirmed hangs
//! on one disk.
//!
//! # An empty disk
//!
//! A member that has lost its disk has lost its votes, too; let in again as who it was, it could help to decide what the set had
//! decided otherwise. So it waits until an operator has it replaced. Then its old number is removed, with the majority of the others, and
//! it is admitted under one of a higher generation.
//!
//! # Elections
//!
//! Raft's own elections are switched off. A node that hears no leader for a lease and some random time asks all first, and stands
//! only if a majority hears no leader either and has no longer log (what is called pre-vote). So a node that was cut off for
//! a while has not raised its term, and disturbs nobody when it returns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::join_all;
use openraft::ServerState;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use trilith_core::config::NodeId;

mod alarms;
mod members;
mod recover;
#[cfg(test)]
mod tests;

use crate::active::Active;
use crate::net::Alpn;
use crate::protocol::{Admission, Answer, Call, Greeting};
use crate::replica::Shared;
use crate::store::{self, Identity, Seed};
use crate::types::{LogId, RaftId, raft_id};
use crate::{COMPACT_BYTES, GREETING_PATIENCE, Unstarted};
use recover::seed;

/// What the keeper is asked to do. The answer of those that fail says why, for people.
pub(crate) enum Command {
    /// A leader admits this node.
    Admit(Admission, oneshot::Sender<Result<(), String>>),
    /// An operator has a node replaced; this one leads.
    Replace(String, oneshot::Sender<Result<(), Refused>>),
    /// An operator makes this node's state that of the set.
    Recover(oneshot::Sender<Result<(), String>>),
}

/// Why a replacement does not begin.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Another node leads.
    NotLeader,
    /// For good.
    Because(String),
}

/// The keeper of one node.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    /// When this node may stand for election if it still hears no leader.
    stands_at: Instant,
    /// When there last was a leader, as far as this node knows.
    led_at: Instant,
    /// Whether the log was told to become a snapshot, and has not yet.
    compacting: bool,
}

/// What the other nodes have answered; `None`: nothing.
type Greetings = BTreeMap<NodeId, Option<Greeting>>;

impl Keeper {
    pub fn new(shared: Arc<Shared>, commands: mpsc::Receiver<Command>) -> Keeper {
        Keeper { shared, commands, stands_at: Instant::now(), led_at: Instant::now(), compacting: false }
    }

    /// Works until the replica stops.
    pub async fn run(mut self) {
        let shared = self.shared.clone();
        self.draw();
        loop {
            let began = Instant::now();
            self.round().await;
            let next = began + self.shared.rhythm.round;
            let mut changes = self.shared.active().map(|active| active.raft.server_metrics());
            let changed = async {
                match &mut changes {
                    Some(changes) => drop(changes.changed().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shared.stopped() => return,
                Some(command) = self.commands.recv() => self.act(command).await,
                () = sleep_until(next) => {}
                // Not at once: one change rarely comes alone.
                () = changed => tokio::time::sleep(self.shared.rhythm.round / 10).await,
            }
        }
    }

    async fn act(&mut self, command: Command) {
        // Whoever asked may be gone.
        match command {
            Command::Admit(admission, done) => drop(done.send(self.admitted(admission).await)),
            Command::Replace(node, done) => drop(done.send(self.replace(&node).await)),
            Command::Recover(done) => drop(done.send(self.recover().await)),
        }
    }

    async fn round(&mut self) {
        let active = self.shared.active();
        let greetings = match &active {
            // A follower of a living leader has nothing to ask.
            Some(active) if !active.leads() && active.leader().is_some() => Greetings::new(),
            _ => self.greet().await,
        };
        match &active {
            None => self.found(&greetings).await,
            Some(active) => {
                // A leader that does not understand its own log (it was rolled back to an older version) falls silent, and another
                // one is elected.
                active.raft.runtime_config().heartbeat(active.progress().stuck.is_none());
                self.elect(active, &greetings).await;
                if active.leads() {
                    self.keep_members(active, &greetings).await;
                }
                self.compact(active).await;
                if active.writer.short().is_some() {
                    active.writer.hold_room();
                }
            }
        }
        if active.is_none_or(|active| active.leader().is_some()) {
            self.led_at = Instant::now();
        }
        self.report(&greetings);
    }

    /// Asks all other nodes who they are.
    async fn greet(&self) -> Greetings {
        let ask = async |node: NodeId| {
            let answer = self.shared.links.call(node, Alpn::Set, &Call::Hello, GREETING_PATIENCE).await;
            match answer {
                Ok(Answer::Hello(greeting)) => (node, Some(*greeting)),
                _ => (node, None),
            }
        };
        join_all(self.shared.others().map(ask)).await.into_iter().collect()
    }

    /// Makes a set of this node, if it is the first and all nodes are empty.
    async fn found(&mut self, greetings: &Greetings) {
        let ready = |greeting: &Option<Greeting>| {
            greeting.as_ref().is_some_and(|other| other.member.is_none() && *other.nodes == *self.shared.nodes)
        };
        let failed = self.shared.failed.borrow().is_some();
        if failed || self.shared.me != NodeId(0) || !greetings.values().all(ready) {
            return;
        }
        let identity = Identity {
            set: random_name(),
            id: raft_id(0, 0),
            name: self.shared.name().to_owned(),
            previous: Vec::new(),
        };
        tracing::info!(set = identity.set, "all nodes are empty: founding the set");
        let seed = seed(&identity, 1, 0, serde_json::Value::Null);
        if let Err(error) = self.begin(identity, Some(seed)).await {
            self.failed(&error);
        }
    }

    /// Begins anew as `identity`.
    async fn begin(&mut self, identity: Identity, seed: Option<Seed>) -> Result<(), Unstarted> {
        if let Some(active) = self.shared.leave() {
            active.stop().await;
        }
        let opened = store::create(&self.shared.directory, &identity, seed)?;
        self.shared.enter(opened).await?;
        self.draw();
        Ok(())
    }

    fn failed(&self, error: &Unstarted) {
        tracing::error!("set: {error}");
        self.shared.failed.send_replace(Some(error.to_string()));
    }

    /// A leader has admitted this node.
    async fn admitted(&mut self, admission: Admission) -> Result<(), String> {
        let Admission { identity, instead_of, forced } = admission;
        let name = self.shared.name();
        if identity.name != name {
            return Err(format!("this is node {name}, not {}", identity.name));
        }
        if let Some(active) = self.shared.active() {
            if active.identity == identity {
                return Ok(());
            }
            if instead_of.as_ref() != Some(&active.identity) {
                return Err(format!("the disk of node {name} is not empty"));
            }
            if !forced && active.leader().is_some() {
                return Err(format!("node {name} is in a set that works"));
            }
            tracing::warn!(set = identity.set, id = identity.id, "replaced: the old state is kept as raft/replaced");
        }
        tracing::info!(set = identity.set, id = identity.id, "admitted to the set");
        self.begin(identity, None).await.map_err(|error| {
            self.failed(&error);
            error.to_string()
        })
    }

    /// Stands for election, if nobody leads and a majority would give its vote.
    async fn elect(&mut self, active: &Active, greetings: &Greetings) {
        let metrics = active.metrics();
        if active.silence() < self.shared.rhythm.lease && metrics.current_leader.is_some() && !alone(active) {
            self.draw();
            return;
        }
        let due = Instant::now() >= self.stands_at || alone(active);
        let may = metrics.state != ServerState::Leader && active.progress().stuck.is_none();
        if !due || !may || metrics.running_state.is_err() {
            return;
        }
        let willing = willing(&active.identity, active.writer.last(), greetings);
        if active.has_quorum(&metrics, |id| willing.contains(id)) {
            tracing::info!(term = metrics.current_term + 1, "no leader: standing for election");
            // Its error is that Raft has ended, which `report` says.
            let _ = active.raft.trigger().elect().await;
        }
        self.draw();
    }

    /// A lease and some random time from now.
    fn draw(&mut self) {
        let lease = self.shared.rhythm.lease;
        self.stands_at = Instant::now() + lease + lease.mul_f64(f64::from(random_u32()) / f64::from(u32::MAX));
    }

    /// Has Raft make a snapshot when the log has many bytes; it counts entries by itself.
    async fn compact(&mut self, active: &Active) {
        let long = active.writer.log_bytes() > COMPACT_BYTES && active.progress().stuck.is_none();
        if long && !self.compacting {
            let _ = timeout(GREETING_PATIENCE, active.raft.trigger().snapshot()).await;
        }
        self.compacting = long;
    }
}

/// The nodes that would give their vote to this one: those of its set that hear no leader and have no longer log.
fn willing(me: &Identity, last: Option<LogId>, greetings: &Greetings) -> BTreeSet<RaftId> {
    let standings = greetings.values().flatten().filter_map(|greeting| greeting.member.as_ref());
    let willing = standings.filter(|other| other.identity.set == me.set && !other.led && other.last <= last);
    willing.map(|other| other.identity.id).chain([me.id]).collect()
}

/// Whether this node is the only one with a vote: it needs nobody's consent.
fn alone(active: &Active) -> bool {
    let metrics = active.metrics();
    let voters: Vec<RaftId> = metrics.membership_config.membership().voter_ids().collect();
    voters == [active.identity.id]
}

/// 128 random bits.
fn random_name() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel has random numbers");
    store::sealed::hex(&bytes)
}

fn random_u32() -> u32 {
    getrandom::u32().expect("the kernel has random numbers")
}
