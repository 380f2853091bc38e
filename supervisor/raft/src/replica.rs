//! A node's part in the replicated state: the handle that the coordinator holds.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use trilith_core::config::{NodeId, Settings};
use trilith_core::set::{Refusal, Reply, Request, State};
use zeroize::Zeroizing;

use crate::active::Active;
use crate::health::{Alarm, Health};
use crate::keeper::{Command, Keeper, Refused};
use crate::net::links::Links;
use crate::net::{Alpn, Net, Serve, Stream};
use crate::protocol::{Answer, Call};
use crate::server;
use crate::store::{self, Loaded, Store, StoreError};
use crate::types::{Outcome, Proposal};
use crate::{OPERATOR_PATIENCE, PROPOSE_PATIENCE, Rhythm};

/// What a replica starts from.
pub struct Options {
    /// Where it keeps what it must not forget, `/var/lib/trilith/raft`. Made if it is missing.
    pub directory: PathBuf,
    /// The set's document.
    pub settings: Arc<Settings>,
    /// Which of its nodes this is.
    pub me: NodeId,
    /// The set secret.
    pub secret: Zeroizing<Vec<u8>>,
    /// How fast it lives.
    pub rhythm: Rhythm,
    /// Takes the connections that peers make for parts of bundles. Called within the runtime; it must not wait.
    pub blocks: Option<Blocks>,
}

/// See [`Options::blocks`].
pub type Blocks = Box<dyn Fn(Inbound) + Send + Sync>;

/// A connection that a peer has made for parts of bundles.
pub struct Inbound {
    /// The connection.
    pub stream: Stream,
    /// Name of the peer, as it has proved.
    pub peer: String,
    pub(crate) _place: OwnedSemaphorePermit,
}

/// Why a replica does not start.
#[derive(Debug)]
pub enum Unstarted {
    /// What is on the disk can't be used.
    Store(StoreError),
    /// The port can't be opened.
    Port(std::io::Error),
    /// The system has no thread to give.
    Thread(String),
    /// The times do not go together.
    Rhythm(String),
    /// Raft's words.
    Raft(String),
}

impl fmt::Display for Unstarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unstarted::Store(error) => error.fmt(f),
            Unstarted::Port(error) => write!(f, "the peers' port can't be opened: {error}"),
            Unstarted::Thread(error) => write!(f, "no thread to write the log on: {error}"),
            Unstarted::Rhythm(error) => write!(f, "heartbeat and lease do not go together: {error}"),
            Unstarted::Raft(error) => write!(f, "Raft does not start: {error}"),
        }
    }
}

impl std::error::Error for Unstarted {}

impl From<StoreError> for Unstarted {
    fn from(error: StoreError) -> Unstarted {
        Unstarted::Store(error)
    }
}

/// Why a request was not carried out, or not for sure.
#[derive(Debug)]
pub enum ProposeError {
    /// The set has decided against it: nothing has changed.
    Refused(Refusal),
    /// No majority confirmed it within [`PROPOSE_PATIENCE`]. It may still be carried out; to ask again does no harm, because
    /// every request names the state that it starts from, and one that was carried out is answered as such.
    NoQuorum {
        /// Nodes that did not answer lately, as far as this one knows.
        silent: Vec<String>,
    },
    /// It was not carried out, and will not be unless something else changes first.
    Failed(String),
}

impl fmt::Display for ProposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProposeError::Refused(refusal) => refusal.fmt(f),
            ProposeError::NoQuorum { silent } if silent.is_empty() => {
                write!(f, "no majority of the set confirmed it in time: ask again")
            }
            ProposeError::NoQuorum { silent } => {
                write!(f, "no majority of the set confirmed it in time (silent: {}): ask again", silent.join(", "))
            }
            ProposeError::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ProposeError {}

/// A node's part in the replicated state. Dropping it ends it; [`Replica::shutdown`] does so in order.
pub struct Replica {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Replica {
    /// Opens what is on the disk and the port, and begins. Returns before the set has a leader.
    ///
    /// # Errors
    /// What must be mended first. A disk that is damaged is such an error, an empty one is not.
    pub async fn start(options: Options) -> Result<Replica, Unstarted> {
        let Options { directory, settings, me, secret, rhythm, blocks } = options;
        let opened = store::open(&directory)?;
        let net = Arc::new(Net::new(&secret, settings.clone(), me));
        drop(secret);
        let listener = net.listener().map_err(Unstarted::Port)?;
        let (commands, queue) = mpsc::channel(COMMANDS);
        let shared = Arc::new(Shared {
            nodes: settings.nodes.iter().map(|node| node.name.clone()).collect(),
            settings,
            me,
            directory,
            rhythm,
            links: Arc::new(Links::new(net.clone())),
            net: net.clone(),
            seat: RwLock::default(),
            anew: AtomicBool::default(),
            states: watch::Sender::default(),
            health: watch::Sender::default(),
            failed: watch::Sender::default(),
            commands,
            stop: watch::Sender::new(false),
            blocks,
        });
        if let Some(opened) = opened {
            shared.enter(opened).await?;
        }
        let serve: Serve = Arc::new({
            let shared = shared.clone();
            move |incoming| server::serve(&shared, incoming)
        });
        let tasks =
            vec![tokio::spawn(net.accept(listener, serve)), tokio::spawn(Keeper::new(shared.clone(), queue).run())];
        Ok(Replica { shared, tasks })
    }

    /// The state as far as this node has applied what the set has decided.
    pub fn state(&self) -> watch::Receiver<Arc<State>> {
        self.shared.states.subscribe()
    }

    /// How this node's part in the set stands.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    /// Whether this node leads, and a majority has lately answered it.
    pub fn is_leader(&self) -> bool {
        self.shared.active().is_some_and(|active| active.leads())
    }

    /// Has the set carry out a request, by way of its leader, and waits until this node has applied it, too.
    ///
    /// # Errors
    /// See [`ProposeError`]; after [`PROPOSE_PATIENCE`] at the latest.
    pub async fn propose(&self, request: &Request) -> Result<Reply, ProposeError> {
        let failed = |error: &dyn fmt::Display| ProposeError::Failed(error.to_string());
        let proposal = Proposal(serde_json::to_value(request).map_err(|error| failed(&error))?);
        self.shared.propose(proposal).await
    }

    /// Connects to another node, to speak `alpn`.
    ///
    /// # Errors
    /// It can't be reached, is not that node, or does not speak it.
    pub async fn connect(&self, node: NodeId, alpn: Alpn) -> std::io::Result<Stream> {
        self.shared.net.connect(node, alpn).await
    }

    /// Removes the old identity of a node whose disk is lost, or that is gone for good. Its successor of the same name is then
    /// admitted by itself when it answers with an empty disk.
    ///
    /// # Errors
    /// Why not, for people: no majority, no such node, or nothing to replace.
    pub async fn replace(&self, node: &str) -> Result<(), String> {
        let deadline = Instant::now() + OPERATOR_PATIENCE;
        loop {
            let answer = match self.shared.leader() {
                Some(leader) if leader == self.shared.me => {
                    let node = node.to_owned();
                    match self.shared.keeper(|done| Command::Replace(node, done)).await {
                        Some(Ok(())) => Answer::Done,
                        Some(Err(Refused::Because(why))) => Answer::Refused { why },
                        Some(Err(Refused::NotLeader)) | None => Answer::NotLeader,
                    }
                }
                Some(leader) => {
                    let call = Call::Replace { node: node.to_owned() };
                    let patience = deadline.saturating_duration_since(Instant::now());
                    let answer = self.shared.links.call(leader, Alpn::Set, &call, patience).await;
                    answer.unwrap_or(Answer::NotLeader)
                }
                None => Answer::NotLeader,
            };
            match answer {
                Answer::Done => return Ok(()),
                Answer::Refused { why } => return Err(why),
                Answer::Unknown => return Err("the set's leader runs an older version: upgrade it first".to_owned()),
                _ if Instant::now() < deadline => self.shared.next_try().await,
                _ => return Err(self.shared.no_majority()),
            }
        }
    }

    /// Makes this node's state that of the set, and this node its only member; the others are then admitted anew by itself, what
    /// they hold being set aside. For when a majority of the disks is lost.
    ///
    /// # Errors
    /// Why not, for people: the set works or will, another node knows more, or the disk refuses.
    pub async fn recover(&self) -> Result<(), String> {
        let done = self.shared.keeper(Command::Recover).await;
        done.unwrap_or_else(|| Err("this node stops".to_owned()))
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Ends it, and waits until all is on the disk.
    pub async fn shutdown(mut self) {
        self.shared.stop.send_replace(true);
        for task in self.tasks.drain(1..) {
            // A task that has panicked has ended, too.
            let _ = task.await;
        }
        if let Some(active) = self.shared.leave() {
            active.stop().await;
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.shared.stop.send_replace(true);
        for task in &self.tasks {
            task.abort();
        }
        if let (Some(active), Ok(runtime)) = (self.shared.leave(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { active.stop().await });
        }
    }
}

/// What all parts of a replica share.
pub(crate) struct Shared {
    pub settings: Arc<Settings>,
    pub me: NodeId,
    /// The names of the document's nodes, in order.
    pub nodes: Arc<[String]>,
    pub directory: PathBuf,
    pub rhythm: Rhythm,
    pub net: Arc<Net>,
    pub links: Arc<Links>,
    seat: RwLock<Option<Arc<Active>>>,
    /// Nobody sits there for a moment, because the store is being made anew.
    pub anew: AtomicBool,
    pub states: watch::Sender<Arc<State>>,
    pub health: watch::Sender<Health>,
    /// Why this node has no part in its set although it should.
    pub failed: watch::Sender<Option<String>>,
    pub commands: mpsc::Sender<Command>,
    pub stop: watch::Sender<bool>,
    pub blocks: Option<Blocks>,
}

impl Shared {
    /// This node's name.
    pub fn name(&self) -> &str {
        &self.nodes[usize::from(self.me.0)]
    }

    /// All other nodes.
    pub fn others(&self) -> impl Iterator<Item = NodeId> {
        (0..self.nodes.len() as u8).map(NodeId).filter(|node| *node != self.me)
    }

    /// This node's Raft, while it is in a set.
    pub fn active(&self) -> Option<Arc<Active>> {
        self.seat.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts Raft on a store.
    pub async fn enter(&self, opened: (Store, Loaded)) -> Result<(), Unstarted> {
        let (links, nodes) = (self.links.clone(), self.nodes.clone());
        let active = Active::start(opened, links, nodes, self.rhythm, self.states.clone()).await?;
        *self.seat.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(active));
        self.anew.store(false, Ordering::Release);
        Ok(())
    }

    /// Takes Raft away from everybody; whoever got it must stop it.
    pub fn leave(&self) -> Option<Arc<Active>> {
        let mut seat = self.seat.write().unwrap_or_else(PoisonError::into_inner);
        self.anew.fetch_or(seat.is_some(), Ordering::Release);
        seat.take()
    }

    /// The leader's place in the document.
    fn leader(&self) -> Option<NodeId> {
        let (_, name) = self.active()?.leader()?;
        let place = self.nodes.iter().position(|node| *node == name)?;
        Some(NodeId(place as u8))
    }

    /// See [`Replica::propose`].
    pub async fn propose(&self, proposal: Proposal) -> Result<Reply, ProposeError> {
        let deadline = Instant::now() + PROPOSE_PATIENCE;
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            let answer = match (self.active(), self.leader()) {
                (Some(active), Some(leader)) if leader == self.me => {
                    self.lead(&active, proposal.clone(), patience).await
                }
                (_, Some(leader)) => {
                    let call = Call::Propose { proposal: proposal.clone(), patience_ms: patience.as_millis() as u64 };
                    self.links.call(leader, Alpn::Set, &call, patience).await.unwrap_or(Answer::NotLeader)
                }
                (_, None) => Answer::NotLeader,
            };
            match answer {
                Answer::Applied { outcome, index } => {
                    self.caught_up(index, deadline).await;
                    return match outcome {
                        Outcome::Reply(reply) => Ok(reply),
                        Outcome::Refused(refusal) => Err(ProposeError::Refused(refusal)),
                        Outcome::Nothing => Err(ProposeError::Failed("the set answered to something else".to_owned())),
                    };
                }
                Answer::Refused { why } => return Err(ProposeError::Failed(why)),
                Answer::Unknown => {
                    return Err(ProposeError::Failed(
                        "the set's leader runs an older version: upgrade it first".to_owned(),
                    ));
                }
                _ if Instant::now() < deadline => self.next_try().await,
                _ => return Err(self.nobody_leads()),
            }
        }
    }

    /// Why nobody leads, for an operator.
    pub fn no_majority(&self) -> String {
        let health = self.health.borrow();
        let tells = |alarm: &&Alarm| matches!(alarm, Alarm::MajorityLost { .. } | Alarm::NoQuorum { .. });
        let why = health.alarms.iter().find(|alarm| !health.member || tells(alarm));
        why.map_or_else(|| "no majority of the set answers: ask again".to_owned(), Alarm::to_string)
    }

    fn nobody_leads(&self) -> ProposeError {
        let health = self.health.borrow();
        match health.alarms.first() {
            Some(alarm) if !health.member => ProposeError::Failed(format!("this node is in no set yet: {alarm}")),
            _ => ProposeError::NoQuorum { silent: health.silent.clone() },
        }
    }

    /// Waits until this node has applied the entry, or the deadline: so that whoever asked sees its own effect.
    async fn caught_up(&self, index: u64, deadline: Instant) {
        if let Some(active) = self.active() {
            let mut progress = active.machine.progress();
            let reached = progress.wait_for(|progress| progress.applied.is_some_and(|last| last.index >= index));
            // At the deadline the answer is given all the same.
            let _ = timeout_at(deadline, reached).await;
        }
    }

    /// Waits until the replica is told to end.
    pub async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        // An error is as good: nobody is left who could say so.
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// Waits until something has changed, or a moment.
    async fn next_try(&self) {
        // Either is reason enough to try again.
        let _ = timeout(TRY_PAUSE, self.health.subscribe().changed()).await;
    }
}

/// The pause between attempts while there is no leader.
const TRY_PAUSE: Duration = Duration::from_millis(100);
/// Commands that wait for the keeper.
const COMMANDS: usize = 16;
