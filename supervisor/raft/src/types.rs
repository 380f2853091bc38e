//! What Raft is told of this set: its requests, its nodes, its snapshots.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use trilith_core::set::{Refusal, Reply};

openraft::declare_raft_types!(
    /// The types that Raft works with here.
    pub Types:
        D = Proposal,
        R = Outcome,
        NodeId = RaftId,
        Node = Member,
        SnapshotData = Image,
);

/// A node's number in Raft: `generation * 8 + place in the document`.
///
/// Votes are bound to it. So a node whose disk was lost comes back under a number that was never used before, with a higher
/// generation, and can't contradict a vote that it has forgotten.
pub type RaftId = u64;
pub(crate) type Entry = openraft::Entry<Types>;
pub(crate) type LogId = openraft::LogId<RaftId>;
pub(crate) type Vote = openraft::Vote<RaftId>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<RaftId, Member>;
pub(crate) type Snapshot = openraft::Snapshot<Types>;
pub(crate) type StoredMembership = openraft::StoredMembership<RaftId, Member>;
pub(crate) type StorageError = openraft::StorageError<RaftId>;
pub(crate) type Raft = openraft::Raft<Types>;

/// The number of a node at this place of the document in this generation.
pub(crate) fn raft_id(generation: u64, place: u8) -> RaftId {
    generation * PLACES + u64::from(place) % PLACES
}

/// The generation of a number.
pub(crate) fn generation(id: RaftId) -> u64 {
    id / PLACES
}

/// Above the most nodes that a set may have.
const PLACES: u64 = 8;

/// A request as it stands in the log: its JSON, not its meaning.
///
/// So a node of version N stores and passes on a request of version N+1 that it does not understand, byte for byte what it means,
/// and only its own state stands still until it is upgraded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Proposal(pub Value);

/// What applying an entry has led to; only the proposer hears it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The entry was none of the set's requests, but Raft's own.
    Nothing,
    /// It was carried out.
    Reply(Reply),
    /// It was refused.
    Refused(Refusal),
}

/// A node as Raft's membership knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Its name in the document, by which its address is found.
    pub name: String,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What a snapshot holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Image {
    /// The set's state as JSON, with all that its maker knows, see [`Proposal`].
    pub state: Value,
    /// The highest generation that any member ever had.
    pub generation: u64,
}
