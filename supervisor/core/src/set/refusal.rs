//! Why a request is refused.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Hold, Release, Step, Version};

/// Why a request changes nothing. Its `Display` says what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "refusal", rename_all = "kebab-case")]
pub enum Refusal {
    /// The set has a document already.
    HasDocument,
    /// The document was changed meanwhile.
    Outdated {
        /// The version that the request started from.
        base: u64,
        /// The version in force.
        now: u64,
    },
    /// The node is not in the table.
    NoNode {
        /// Which.
        node: String,
    },
    /// The node was replaced: these are the words of its predecessor.
    Replaced {
        /// Which.
        node: String,
    },
    /// The release is not in the catalogue, nor in the other slot of every node.
    NoBundle {
        /// Which.
        release: Release,
    },
    /// The catalogue holds another bundle of that version.
    OtherBundle {
        /// Which.
        release: Release,
    },
    /// The bundle is needed by the rollout in progress.
    InUse {
        /// Which.
        release: Release,
    },
    /// The release failed before.
    Banned {
        /// Which.
        release: Release,
        /// Where.
        node: String,
        /// How.
        reason: String,
    },
    /// Older than the anti-rollback floor.
    BelowFloor {
        /// The version asked for.
        version: Version,
        /// The floor.
        floor: Version,
    },
    /// A node runs a version that is too old to be replaced by this one at once.
    TooOld {
        /// Which.
        node: String,
        /// What it runs.
        running: Version,
        /// What it must run at least.
        minimum: Version,
    },
    /// Every node has it already.
    Nothing,
    /// Fewer than three nodes: service suffers.
    FewNodes {
        /// So many.
        nodes: usize,
    },
    /// Another rollout is in progress.
    Busy {
        /// Its number.
        rollout: u64,
    },
    /// A node is still out of service for the rollout before.
    StillOut {
        /// Which.
        node: String,
    },
    /// A node runs a system on trial.
    OnTrial {
        /// Which.
        node: String,
    },
    /// No rollout, or another one, is in progress.
    NotThisRollout {
        /// The number asked for.
        rollout: u64,
    },
    /// The rollout is held.
    Held {
        /// How.
        hold: Hold,
    },
    /// The rollout has moved on since the node spoke; it will speak again if that still holds.
    Stale {
        /// The round in which it spoke.
        round: u64,
        /// The round now.
        now: u64,
    },
    /// The rollout is not held.
    GoesOn,
    /// The rollout goes back already.
    GoesBack,
    /// There is nothing to confirm, or not yet.
    NotConfirming,
    /// It is another node's turn, or nobody's.
    NotItsTurn {
        /// Who asks.
        node: String,
    },
    /// The node's turn is not at a step from which this is possible.
    WrongStep {
        /// Who asks.
        node: String,
        /// Where its turn is.
        step: Step,
    },
    /// The lease changed meanwhile.
    LeaseMoved {
        /// Who has it.
        holder: Option<String>,
        /// Its epoch.
        epoch: u64,
    },
    /// Larger than what the state holds.
    TooLarge {
        /// What.
        what: String,
        /// Its size.
        size: usize,
        /// The bound.
        most: usize,
    },
    /// Empty.
    Empty {
        /// What.
        what: String,
    },
    /// A kind of request that this version does not know.
    Unknown,
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::HasDocument => write!(f, "the set has a configuration; change it with: trilith config apply"),
            Refusal::Outdated { base, now } => {
                write!(f, "made from configuration {base}, but {now} is in force now; fetch that and edit it again")
            }
            Refusal::NoNode { node } => write!(f, "no node is named {node}; see: trilith status"),
            Refusal::Replaced { node } => write!(f, "node {node} was replaced; this one must be imported anew"),
            Refusal::NoBundle { release } => write!(f, "no bundle of {release} is in the set; upload it first"),
            Refusal::OtherBundle { release } => {
                write!(
                    f,
                    "another bundle of {release} is in the set; remove that first, or give this one a version of its own"
                )
            }
            Refusal::InUse { release } => write!(f, "the rollout in progress needs the bundle of {release}"),
            Refusal::Banned { release, node, reason } => {
                write!(
                    f,
                    "{release} is banned since it failed on node {node}: {reason}; lift that with: trilith upgrade unban {release}"
                )
            }
            Refusal::BelowFloor { version, floor } => {
                write!(f, "{version} is older than {floor}, the oldest version that this set accepts")
            }
            Refusal::TooOld { node, running, minimum } => {
                write!(f, "node {node} runs {running}; go to {minimum} first")
            }
            Refusal::Nothing => write!(f, "every node has it already"),
            Refusal::FewNodes { nodes } => {
                write!(f, "with {nodes} node(s) service suffers while one restarts; say --force if that is wanted")
            }
            Refusal::Busy { rollout } => {
                write!(f, "rollout {rollout} is in progress; see: trilith upgrade status")
            }
            Refusal::StillOut { node } => {
                write!(
                    f,
                    "node {node} is still out of service; wait for it, or make its machine again, then: trilith node replace {node}"
                )
            }
            Refusal::OnTrial { node } => {
                write!(
                    f,
                    "node {node} runs its system on trial; it is blessed or goes back by itself within some minutes"
                )
            }
            Refusal::NotThisRollout { rollout } => {
                write!(f, "rollout {rollout} is not in progress; see: trilith upgrade status")
            }
            Refusal::Held { hold } => write!(f, "the rollout is {hold}"),
            Refusal::Stale { round, now } => write!(f, "said in round {round} of the rollout, which is in round {now}"),
            Refusal::GoesOn => write!(f, "the rollout goes on"),
            Refusal::GoesBack => write!(f, "the rollout goes back already"),
            Refusal::NotConfirming => {
                write!(f, "no configuration waits to be confirmed (yet); see: trilith upgrade status")
            }
            Refusal::NotItsTurn { node } => write!(f, "it is not the turn of node {node}"),
            Refusal::WrongStep { node, step } => write!(f, "the turn of node {node} is at another step: it {step}"),
            Refusal::LeaseMoved { holder: Some(holder), epoch } => {
                write!(f, "the lease is node {holder}'s, in epoch {epoch}")
            }
            Refusal::LeaseMoved { holder: None, epoch } => write!(f, "the lease is free, after epoch {epoch}"),
            Refusal::TooLarge { what, size, most } => write!(f, "{what}: {size} is more than {most}"),
            Refusal::Empty { what } => write!(f, "{what} is empty"),
            Refusal::Unknown => write!(f, "a request of a later version; upgrade all nodes first"),
        }
    }
}
