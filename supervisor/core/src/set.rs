//! The replicated state of a set: what must never be wrong, decided slowly and surely (through Raft).
//!
//! [`State::apply`] is pure and has no clock: the same requests in the same order give the same state on every node. Every request
//! is idempotent by its nature: it names the state that it starts from (a rollout's number, a document's version, a lease's epoch),
//! and one that was carried out already is answered with [`Reply::Already`]. So whoever got no answer asks again, and no table of
//! clients is needed.
//!
//! Everything here is JSON on disk and on the wire. Unknown fields are skipped, missing ones have defaults. A kind of request that
//! the oldest node does not know must not be proposed: see [`State::level`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub mod holder;
mod lease;
mod nodes;
mod record;
mod refusal;
mod rollout;
mod version;
mod words;

#[cfg(test)]
mod tests;

pub use crate::slots::{NotAVersion, Version};
pub use record::{
    Ban, Bundle, Config, Document, Fallback, Hold, Kind, Lease, Node, Note, Options, Outcome, Part, Past, Pause, Phase,
    Rollout, Step, Turn, Window,
};
pub use refusal::Refusal;
pub use version::Release;

/// Version of the state's format. Raised only when an older supervisor must not read it.
pub const FORMAT: u32 = 1;
/// The kinds of requests that this code understands; raised with every new kind.
pub const LEVEL: u32 = 1;
/// Nodes that the table holds, those of a set and a few that were not removed yet.
pub const MAX_NODES: usize = 16;
/// Bundles in the catalogue: more would not fit on a node's disk.
pub const MAX_BUNDLES: usize = 16;
/// Banned releases; the oldest versions are forgotten first.
pub const MAX_BANS: usize = 64;
/// Rollouts of the past that are kept.
pub const MAX_HISTORY: usize = 16;
/// Notes of one rollout; after that the one before the last is overwritten.
pub const MAX_NOTES: usize = 96;
/// Services in a node's table, and singletons.
pub const MAX_SERVICES: usize = 64;
/// Bytes of a name, token or hash.
pub const MAX_NAME: usize = 128;
/// Bytes of a reason or summary; longer ones are cut.
pub const MAX_TEXT: usize = 512;
/// Bytes of a document.
pub const MAX_DOCUMENT: usize = crate::config::MAX_DOCUMENT;

/// What the set has agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// [`FORMAT`] of whoever made it.
    pub format: u32,
    /// The configuration.
    pub config: Config,
    /// The nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// The bundles.
    pub bundles: BTreeMap<Release, Bundle>,
    /// What must not be installed.
    pub bans: BTreeMap<Release, Ban>,
    /// The oldest system that may be installed.
    pub floor: Version,
    /// How many rollouts were ever started.
    pub rollouts: u64,
    /// The one in progress.
    pub rollout: Option<Rollout>,
    /// Those that have ended, oldest first.
    pub history: Vec<Past>,
    /// Singletons' leases by name.
    pub leases: BTreeMap<String, Lease>,
}

impl Default for State {
    fn default() -> State {
        State {
            format: FORMAT,
            config: Config::default(),
            nodes: BTreeMap::new(),
            bundles: BTreeMap::new(),
            bans: BTreeMap::new(),
            floor: Version::default(),
            rollouts: 0,
            rollout: None,
            history: Vec::new(),
            leases: BTreeMap::new(),
        }
    }
}

/// A request to change the state, as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Who asks, for the history: the name of a node, or `operator`.
    pub by: String,
    /// When, in seconds of UTC since 1970, if known. For the history only: nothing is decided by it.
    #[serde(default)]
    pub utc: Option<u64>,
    /// What is asked.
    #[serde(flatten)]
    pub ask: Ask,
}

/// What is asked of the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Ask {
    /// The first document of a new set. Refused once there is one.
    Init {
        /// The TOML text, already found valid.
        text: String,
    },
    /// A node says what it is.
    Report {
        /// Its name.
        node: String,
        /// What it is now.
        report: Node,
    },
    /// A node is gone for good, or will be replaced: it leaves the table, and a turn that it has ends.
    Remove {
        /// Its name.
        node: String,
    },
    /// A bundle is in the set.
    AddBundle {
        /// What it carries.
        release: Release,
        /// What is known of it; `held_by` names the first holder.
        bundle: Bundle,
    },
    /// A node holds all of a bundle, or no longer.
    Hold {
        /// The bundle.
        release: Release,
        /// The node.
        node: String,
        /// Holds it.
        held: bool,
    },
    /// A bundle is forgotten; nodes delete their copies.
    RemoveBundle {
        /// Which.
        release: Release,
    },
    /// A banned release may be tried again.
    Unban {
        /// Which.
        release: Release,
    },
    /// A rollout starts.
    Start {
        /// Chosen at random by whoever asks, 1 to [`MAX_NAME`] bytes.
        token: String,
        /// What it shall bring.
        goal: Goal,
        /// How.
        #[serde(default)]
        options: Options,
    },
    /// A rollout pauses.
    Pause {
        /// Its number.
        rollout: u64,
        /// Why.
        why: Pause,
    },
    /// A rollout that is paused or halted goes on.
    Resume {
        /// Its number.
        rollout: u64,
    },
    /// A rollout goes back: nodes that have the new version return to the old one, one at a time.
    Abort {
        /// Its number.
        rollout: u64,
        /// Why.
        reason: String,
    },
    /// A document on trial is good.
    Confirm {
        /// The rollout's number.
        rollout: u64,
    },
    /// A rollout stops on a node that failed. The coordinator asks it of a node that is silent for too long.
    Halt {
        /// The rollout's number.
        rollout: u64,
        /// The node.
        node: String,
        /// Why.
        reason: String,
    },
    /// A node has what it needs on its disk, verified.
    Staged {
        /// The rollout's number.
        rollout: u64,
        /// The node.
        node: String,
    },
    /// The coordinator offers a node its turn.
    Offer {
        /// The rollout's number.
        rollout: u64,
        /// The node.
        node: String,
    },
    /// The coordinator takes an offer back that the node has not taken.
    Withdraw {
        /// The rollout's number.
        rollout: u64,
        /// The node.
        node: String,
        /// Why.
        reason: String,
    },
    /// The node whose turn it is goes one step on. Only it knows when.
    Step {
        /// The rollout's number.
        rollout: u64,
        /// The node.
        node: String,
        /// [`Rollout::round`] as it saw it.
        round: u64,
        /// The step that it takes: `Draining`, `Acting`, `Verifying` or `Settling`.
        to: Step,
    },
    /// The node whose turn it is serves (again) as before, because the rollout is held.
    GiveBack {
        /// The rollout's number.
        rollout: u64,
        /// The node.
        node: String,
        /// [`Rollout::round`] as it saw it.
        round: u64,
        /// Whether it runs what the rollout brings.
        new: bool,
        /// Why.
        reason: String,
    },
    /// The node whose turn it is failed with what it was given and went back by itself.
    Failed {
        /// The rollout's number.
        rollout: u64,
        /// The node.
        node: String,
        /// [`Rollout::round`] as it saw it.
        round: u64,
        /// Why.
        reason: String,
    },
    /// The node whose turn it is serves again, and has stayed so for long enough: its turn ends.
    Settled {
        /// The rollout's number.
        rollout: u64,
        /// The node.
        node: String,
        /// [`Rollout::round`] as it saw it.
        round: u64,
        /// Whether it runs what the rollout brings.
        new: bool,
    },
    /// A node wants a singleton's lease.
    Acquire {
        /// The singleton.
        lease: String,
        /// The node.
        node: String,
        /// The epoch that it saw, 0 for a lease that nobody ever had.
        epoch: u64,
        /// The renewal that it saw, and saw stand still for the whole term unless the lease is free.
        renewal: u64,
        /// A random number of this life of its supervisor: what an earlier life asked for is not taken for its own.
        session: u64,
    },
    /// The holder goes on.
    Renew {
        /// The singleton.
        lease: String,
        /// The node.
        node: String,
        /// Its epoch.
        epoch: u64,
        /// The number of this renewal, higher than the last: so the holder knows which of its requests was carried out.
        renewal: u64,
    },
    /// The holder has stopped the unit and gives the lease back.
    Release {
        /// The singleton.
        lease: String,
        /// The node.
        node: String,
        /// Its epoch.
        epoch: u64,
    },
    /// A kind that this version does not know. It is refused; proposing it here was an error of whoever did.
    #[serde(other)]
    Unknown,
}

/// What a rollout shall bring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "goal", rename_all = "kebab-case")]
pub enum Goal {
    /// A version of the system, from the catalogue or from the other slot of every node.
    System {
        /// Which.
        version: Version,
    },
    /// A new document.
    Config {
        /// The version in force that it was made from: an edit of an outdated document is refused.
        base: u64,
        /// The TOML text, already found valid.
        text: String,
    },
    /// A version of a service, from the catalogue.
    Service {
        /// Its name.
        name: String,
        /// Which.
        version: Version,
    },
}

/// What a request has led to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// It is done.
    Done,
    /// It was so already.
    Already,
    /// A rollout has this number.
    Started {
        /// The number.
        rollout: u64,
        /// The version of the document that it brings, if it does.
        config: Option<u64>,
    },
    /// A lease is held by whoever asked.
    Held {
        /// In this epoch.
        epoch: u64,
    },
}

impl State {
    /// The state of a set whose first document is this one.
    pub fn with_document(text: &str) -> State {
        let good = Document { version: 1, text: text.to_owned() };
        State { config: Config { good, last: 1, ..Config::default() }, ..State::default() }
    }

    /// Carries out a request. The state is unchanged when it is refused.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn apply(&mut self, request: &Request) -> Result<Reply, Refusal> {
        match &request.ask {
            Ask::Init { text } => self.init(text),
            Ask::Report { node, report } => self.report(node, report),
            Ask::Remove { node } => self.remove(request, node),
            Ask::AddBundle { release, bundle } => self.add_bundle(release, bundle),
            Ask::Hold { release, node, held } => self.hold(release, node, *held),
            Ask::RemoveBundle { release } => self.remove_bundle(release),
            Ask::Unban { release } => Ok(done_if(self.bans.remove(release).is_some())),
            Ask::Start { token, goal, options } => self.start(request, token, goal, options),
            Ask::Acquire { lease, node, epoch, renewal, session } => {
                self.acquire(lease, node, (*epoch, *renewal), *session)
            }
            Ask::Renew { lease, node, epoch, renewal } => self.renew(lease, node, *epoch, *renewal),
            Ask::Release { lease, node, epoch } => self.release(lease, node, *epoch),
            Ask::Unknown => Err(Refusal::Unknown),
            Ask::Pause { .. }
            | Ask::Resume { .. }
            | Ask::Abort { .. }
            | Ask::Confirm { .. }
            | Ask::Halt { .. }
            | Ask::Staged { .. }
            | Ask::Offer { .. }
            | Ask::Withdraw { .. }
            | Ask::Step { .. }
            | Ask::GiveBack { .. }
            | Ask::Failed { .. }
            | Ask::Settled { .. } => self.advance(request),
        }
    }

    /// The kinds of requests that every node understands: only those may be proposed.
    pub fn level(&self) -> u32 {
        self.nodes.values().map(|node| node.level).min().unwrap_or(LEVEL).min(LEVEL)
    }

    /// The document that this node should have in force: the one on trial where a rollout has brought it, else the good one.
    pub fn document_for(&self, node: &str) -> &Document {
        match &self.config.trial {
            Some(trial) if self.rollout.as_ref().is_some_and(|rollout| rollout.wants_new(node)) => trial,
            _ => &self.config.good,
        }
    }

    fn init(&mut self, text: &str) -> Result<Reply, Refusal> {
        if self.config.last > 0 {
            return if self.config.good.text == text { Ok(Reply::Already) } else { Err(Refusal::HasDocument) };
        }
        limit("document", text.len(), MAX_DOCUMENT)?;
        self.config = State::with_document(text).config;
        Ok(Reply::Done)
    }
}

impl Request {
    /// A request of a node or an operator.
    pub fn new(by: &str, utc: Option<u64>, ask: Ask) -> Request {
        Request { by: by.to_owned(), utc, ask }
    }
}

fn done_if(changed: bool) -> Reply {
    if changed { Reply::Done } else { Reply::Already }
}

fn limit(what: &'static str, size: usize, most: usize) -> Result<(), Refusal> {
    if size > most { Err(Refusal::TooLarge { what: what.to_owned(), size, most }) } else { Ok(()) }
}

fn name(what: &'static str, name: &str) -> Result<(), Refusal> {
    if name.is_empty() {
        return Err(Refusal::Empty { what: what.to_owned() });
    }
    limit(what, name.len(), MAX_NAME)
}

/// At most [`MAX_TEXT`] bytes of it, whole characters.
fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
