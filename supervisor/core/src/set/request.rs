//! What can be asked of the replicated state, and what is answered.

use serde::{Deserialize, Serialize};

use super::{Bundle, Node, Options, Pause, Release, Step, Version};
#[cfg(doc)]
use super::{MAX_NAME, Rollout};

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

impl Request {
    /// A request of a node or an operator.
    pub fn new(by: &str, utc: Option<u64>, ask: Ask) -> Request {
        Request { by: by.to_owned(), utc, ask }
    }
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

impl Goal {
    /// The release that it installs; a document is none.
    pub fn release(&self) -> Option<Release> {
        match self {
            Goal::System { version } => Some(Release::system(*version)),
            Goal::Service { name, version } => Some(Release::service(name, *version)),
            Goal::Config { .. } => None,
        }
    }
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
