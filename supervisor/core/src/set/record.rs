//! What the replicated state is made of. Every field has a default, so a record of an earlier version is whole.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Release, Version, cut};

/// The set's configuration: what is good, what was, and what is on trial.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The document in force: the last one that was confirmed.
    pub good: Document,
    /// The one before it.
    pub previous: Option<Document>,
    /// The one that a rollout brings to the nodes and that is not confirmed yet.
    pub trial: Option<Document>,
    /// The highest version ever given to a document; versions are never used twice.
    pub last: u64,
}

/// One version of the configuration document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Document {
    /// From 1; 0 is no document.
    pub version: u64,
    /// The TOML text. The state never reads it: versions N and N+1 might read it differently.
    pub text: String,
}

/// What a node last said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Incarnation: higher after the node was replaced. Words of a lower one are refused.
    pub generation: u64,
    /// The highest [`super::LEVEL`] that it understands.
    pub level: u32,
    /// The system that runs.
    pub running: Version,
    /// The slot that it runs from: `a`, `b`, or empty where there are no slots.
    pub slot: String,
    /// Whether that slot is blessed.
    pub blessed: bool,
    /// The version that is complete and bootable in the other slot.
    pub other: Option<Version>,
    /// Version of the configuration document in force.
    pub config: u64,
    /// The services that were ever upgraded here, with the version that runs.
    pub services: BTreeMap<String, Version>,
    /// Why it last fell back.
    pub fallback: Option<Fallback>,
}

impl Node {
    /// The same within the state's bounds: what the table will hold of it.
    pub fn bounded(&self) -> Node {
        let mut node = self.clone();
        if let Some(fallback) = &mut node.fallback {
            fallback.reason = cut(&fallback.reason);
        }
        node
    }
}

/// A return to the old version that nobody had asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// From what.
    pub version: Version,
    /// Why: one line.
    pub reason: String,
}

/// A bundle that the set knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bundle {
    /// SHA-256 of its manifest, 64 hexadecimal digits: which bundle it is.
    pub manifest: String,
    /// Size of all parts in bytes.
    pub size: u64,
    /// One line of the manifest for people.
    pub summary: String,
    /// The oldest version that may be installed once this one is on all nodes.
    pub floor: Version,
    /// Versions that may be replaced by it are this one and later ones.
    pub minimum: Version,
    /// When it must no longer be started, in seconds of UTC since 1970; checked where it is proposed, since the state has no clock.
    pub expires: Option<u64>,
    /// The nodes that hold all of it, verified.
    pub held_by: BTreeSet<String>,
}

/// Why a release is barred from the set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ban {
    /// Where it failed.
    pub node: String,
    /// How.
    pub reason: String,
    /// When, in seconds of UTC since 1970, if that was known.
    pub utc: Option<u64>,
}

/// What a rollout brings to the nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Kind {
    /// A version of the system: into the other slot, then reboot.
    System {
        /// Which.
        version: Version,
    },
    /// A document: then the supervisor restarts.
    Config {
        /// Its version.
        version: u64,
    },
    /// A version of one service: then that service restarts.
    Service {
        /// Its name.
        name: String,
        /// Which.
        version: Version,
    },
}

impl Kind {
    /// The release that it installs; a document is none.
    pub fn release(&self) -> Option<Release> {
        match self {
            Kind::System { version } => Some(Release::system(*version)),
            Kind::Service { name, version } => Some(Release::service(name, *version)),
            Kind::Config { .. } => None,
        }
    }

    /// Whether it needs a bundle on each node before any node is drained.
    pub fn is_staged(&self) -> bool {
        self.release().is_some()
    }
}

/// How an operator wants it done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Seconds that connections may live on once a node is drained; `None`: as the services' own deadlines say.
    pub drain_s: Option<u32>,
    /// No node is taken out of service before this second of UTC since 1970.
    pub not_before: Option<u64>,
    /// A node is taken out of service only at this time of the day.
    pub window: Option<Window>,
    /// A document that is not confirmed for so many seconds, once all nodes have it, is reverted.
    pub confirm_within_s: Option<u32>,
    /// Go on although service suffers: fewer than three nodes, or nodes that are unfit from the start.
    pub force: bool,
}

/// A time of the day, every day, in UTC. `from` later than `to` spans midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Minute of the day, 0 to 1439, included.
    pub from_min: u16,
    /// Minute of the day, 0 to 1439, excluded.
    pub to_min: u16,
}

impl Window {
    /// Whether that second of UTC since 1970 lies in it.
    pub fn holds(self, utc: u64) -> bool {
        let minute = (utc / 60 % 1440) as u16;
        if self.from_min <= self.to_min {
            (self.from_min..self.to_min).contains(&minute)
        } else {
            minute >= self.from_min || minute < self.to_min
        }
    }
}

/// A rollout in progress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// From 1, never used twice.
    pub id: u64,
    /// Chosen at random by whoever started it: the same request twice starts one rollout.
    pub token: String,
    /// What it brings.
    pub kind: Kind,
    /// How.
    #[serde(default)]
    pub options: Options,
    /// How far it is.
    pub phase: Phase,
    /// Whether it goes on.
    pub hold: Hold,
    /// Grows with every offer, pause, halt, resume and abort. A node names the round in which it spoke, so that a word that was
    /// long on its way does not move a turn that means something else by now.
    #[serde(default)]
    pub round: u64,
    /// Set when it goes back, to the versions of before, with the reason.
    #[serde(default)]
    pub back: Option<String>,
    /// Its nodes.
    pub nodes: BTreeMap<String, Part>,
    /// The one node that may be out of service for it. Only that node's own word ends a turn that it has begun.
    #[serde(default)]
    pub turn: Option<Turn>,
    /// What happened, oldest first, at most [`super::MAX_NOTES`].
    #[serde(default)]
    pub notes: Vec<Note>,
}

/// How far a rollout is as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Every node fetches and checks what it will need. Nobody is out of service.
    Staging,
    /// One node after the other.
    Rolling,
    /// All nodes have the new document, which waits to be confirmed.
    Confirming,
}

/// Whether a rollout goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "hold", rename_all = "kebab-case")]
pub enum Hold {
    /// It does.
    Going,
    /// It waits for an operator's `resume`. A node that is not past the point of return goes back into service.
    Paused {
        /// Why.
        why: Pause,
    },
    /// It failed on a node. An operator resumes, aborts, or starts another one.
    Halted {
        /// Where.
        node: String,
        /// Why.
        reason: String,
    },
}

/// Why a rollout is paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum Pause {
    /// An operator wants it.
    Operator,
    /// Another node failed while one was out of service.
    SecondFailure {
        /// Which.
        node: String,
        /// How.
        reason: String,
    },
    /// The node whose turn it was went back into service, because it could not go on.
    GaveBack {
        /// Which.
        node: String,
        /// Why.
        reason: String,
    },
}

/// One node's part in a rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Part {
    /// The version that it had before; `None` for a service that was never upgraded, and for documents.
    pub from: Option<Version>,
    /// It has on its disk, verified, what it needs.
    pub staged: bool,
    /// It has the new version.
    pub new: bool,
}

/// Whose turn it is, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// The node.
    pub node: String,
    /// How far.
    pub step: Step,
}

/// How far the node is whose turn it is.
///
/// ```text
///  Offered ──▶ Draining ──▶ Acting ──▶ Verifying ──▶ Settling ──▶ (turn ends, node has the new version)
///     │            │           │            │             
///     ▼            ▼           └─────┬──────┘  failed, fell back
///  withdrawn   given back        Returning ──▶ (turn ends, node has the old version)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The coordinator offers it; the node has not taken it yet.
    Offered,
    /// The node has taken it: it hands its VIPs over and lets connections end.
    Draining,
    /// The node is past the point of return: it switches and restarts.
    Acting,
    /// The node runs the version wanted, and waits for its peers to see it serve.
    Verifying,
    /// Its peers see it serve; it must stay so for a while.
    Settling,
    /// It went back by itself and returns into service.
    Returning,
}

/// Something that happened in a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// When, in seconds of UTC since 1970, if that was known.
    pub utc: Option<u64>,
    /// What, and why.
    pub text: String,
}

/// A rollout that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// Its number.
    pub id: u64,
    /// The token that it was started with.
    #[serde(default)]
    pub token: String,
    /// What it brought.
    pub kind: Kind,
    /// How it ended.
    pub outcome: Outcome,
    /// What happened.
    #[serde(default)]
    pub notes: Vec<Note>,
}

/// How a rollout ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// All nodes have the new version.
    Done,
    /// All nodes are back on the old version.
    Back {
        /// Why.
        reason: String,
    },
    /// It had halted and was given up for another; nodes may run different versions.
    Halted {
        /// Where.
        node: String,
        /// Why.
        reason: String,
    },
}

/// The right to run a singleton, at most one node's at a time (invariant 6).
///
/// The state has no clock. Whoever wants the lease of another node watches it: when `renewal` has stood still for the whole term by
/// its own clock, it asks for it, naming the epoch and renewal that it saw; any renewal in between refuses it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lease {
    /// Who has it.
    pub holder: Option<String>,
    /// How often it was given to anyone.
    pub epoch: u64,
    /// Grows with every renewal, and when it is given to somebody.
    pub renewal: u64,
    /// The life of the holder's supervisor that asked for it.
    pub session: u64,
}
