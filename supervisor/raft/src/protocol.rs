//! What nodes say to each other beside bundles: Raft's messages, and those by which a set comes together and is asked.
//!
//! All of it is JSON in frames. Unknown fields are skipped; an unknown kind of call is answered with [`Answer::Unknown`], and the
//! caller says so, so that versions N and N+1 work together.

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use serde::{Deserialize, Serialize};

use crate::store::Identity;
use crate::types::{Image, LogId, Outcome, Proposal, RaftId, SnapshotMeta, Types, Vote};

/// A message of Raft, and from whom to whom: an old identity of the same node must not hear it.
#[derive(Debug, Serialize, Deserialize)]
pub struct RaftCall {
    /// [`Identity::set`].
    pub set: String,
    /// The receiver.
    pub to: RaftId,
    /// The message.
    pub message: RaftMessage,
}

/// A message of Raft.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RaftMessage {
    /// Entries, or a heartbeat.
    Append(AppendEntriesRequest<Types>),
    /// A candidate asks for a vote.
    Vote(VoteRequest<RaftId>),
    /// A state in place of entries that are compacted away.
    Snapshot {
        /// The leader's vote.
        vote: Vote,
        /// What it covers.
        meta: SnapshotMeta,
        /// The state.
        image: Image,
    },
}

/// The answer to a [`RaftCall`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RaftAnswer {
    /// To [`RaftMessage::Append`].
    Append(AppendEntriesResponse<RaftId>),
    /// To [`RaftMessage::Vote`].
    Vote(VoteResponse<RaftId>),
    /// To [`RaftMessage::Snapshot`]: the receiver's vote.
    Snapshot(Vote),
    /// The receiver is not who was meant, or can't.
    Refused(String),
}

/// A call of `trilith-set/1`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Call {
    /// Who are you?
    Hello,
    /// Carry this request out: you lead.
    Propose {
        /// The request.
        proposal: Proposal,
        /// How long the caller waits.
        patience_ms: u64,
    },
    /// You are admitted to the set.
    Admit(Admission),
    /// Remove this node's old identity: you lead, and an operator asks for it.
    Replace {
        /// Name of the node.
        node: String,
    },
    /// A call that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The answer to a [`Call`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Call::Hello`].
    Hello(Box<Greeting>),
    /// To [`Call::Propose`]: applied as this entry.
    Applied {
        /// What came of it.
        outcome: Outcome,
        /// Index of the entry.
        index: u64,
    },
    /// It was done.
    Done,
    /// Another node leads, or nobody does: ask again.
    NotLeader,
    /// It was not done, and will not be.
    Refused {
        /// Why.
        why: String,
    },
    /// An answer, or the answer to a call, that this version does not know.
    #[serde(other)]
    Unknown,
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Greeting {
    /// Its version: major, minor, patch.
    pub version: [u16; 3],
    /// The nodes of its document, in order.
    pub nodes: Vec<String>,
    /// Its place in a set, unless its disk is empty.
    pub member: Option<Standing>,
}

/// What a node that is in a set knows of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// Who it is.
    pub identity: Identity,
    /// The voters that it knows, with their names. (No map: in a tagged enum, serde reads no numbers as keys from JSON.)
    pub voters: Vec<(RaftId, String)>,
    /// The last entry of its log.
    pub last: Option<LogId>,
    /// The last entry that it has applied.
    pub applied: u64,
    /// It leads with a majority, or hears a leader.
    pub led: bool,
    /// It does not understand all that the set has decided.
    pub stuck: bool,
}

/// A leader admits a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Who it is from now on.
    pub identity: Identity,
    /// Who it was, as far as the leader knows; its state is set aside. Without it only an empty node is meant.
    #[serde(default)]
    pub instead_of: Option<Identity>,
    /// An operator asked for it by name: also if the node thinks that its set works.
    #[serde(default)]
    pub forced: bool,
}
