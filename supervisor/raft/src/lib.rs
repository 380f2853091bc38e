//! The replicated state of a set: what must never be wrong, decided by a majority of the nodes and kept on each one's disk.
//!
//! [`Replica`] is the handle. It keeps [`trilith_core::set::State`] on every node, takes requests on any of them, and brings the set
//! together: the nodes of a document that have the same secret and empty disks found it with no further step.
//!
//! | room | what lives there |
//! |---|---|
//! | `replica.rs` | the handle: start, propose, replace, recover |
//! | `keeper.rs`, `keeper/` | the rhythm: founding, elections, admission, recovery, alarms |
//! | `active.rs` | Raft while the node is in a set; whom it hears |
//! | `machine.rs` | committed entries in, state out; a set that is newer than this node |
//! | `writer.rs` | the thread that writes |
//! | `store.rs`, `store/` | the files, and why a power cut at any byte does them no harm |
//! | `net.rs`, `net/` | TLS between the nodes, frames, connections that are kept |
//! | `protocol.rs`, `server.rs`, `network.rs` | what is said, answered and asked |
//!
//! Raft itself is openraft's.

use std::time::Duration;

use trilith_core::config::Settings;

mod active;
mod health;
mod keeper;
mod machine;
pub mod net;
mod network;
mod protocol;
mod replica;
mod server;
pub mod store;
#[cfg(test)]
mod tests;
mod types;
mod writer;

pub use health::{Alarm, Health};
pub use net::{Alpn, Stream};
pub use protocol::{Answer, Call, RaftAnswer, RaftCall};
pub use replica::{Blocks, Inbound, Options, ProposeError, Replica, Unstarted};

/// The longest request, in bytes of JSON: above the longest document, escaped.
pub const MAX_REQUEST: usize = 768 * 1024;
/// After so many entries the log is compacted into a snapshot.
pub const COMPACT_ENTRIES: u64 = 512;
/// A log of more bytes is compacted, however few entries it has.
pub const COMPACT_BYTES: u64 = 8 * 1024 * 1024;
/// Entries that stay in the log although a snapshot holds them, for nodes that were away for a moment.
pub const KEPT_ENTRIES: u64 = 64;
/// How long a request may take.
pub const PROPOSE_PATIENCE: Duration = Duration::from_secs(10);
/// How long an operator's command waits for a leader.
pub const OPERATOR_PATIENCE: Duration = Duration::from_secs(20);
/// How long the answer to a greeting may take.
pub const GREETING_PATIENCE: Duration = Duration::from_secs(1);
/// How long a change of the membership may take; it is tried again.
pub const MEMBERSHIP_PATIENCE: Duration = Duration::from_secs(5);
/// A peer's connection that says nothing for so long is closed.
pub const IDLE_PATIENCE: Duration = Duration::from_secs(60);

/// How fast a replica lives. The same on all nodes.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    /// Time between two messages of a leader that has nothing to say.
    pub heartbeat: Duration,
    /// How long a leader that is silent is still followed; an election comes one to two leases after its last word.
    pub lease: Duration,
    /// Time between two looks of the keeper.
    pub round: Duration,
}

impl Rhythm {
    /// For a set with these leases: where they are long machines are slow, and an answer that is awaited for too short a time
    /// costs a new connection, which makes slow machines slower.
    pub fn of(settings: &Settings) -> Rhythm {
        let (usual, slowness) = (Rhythm::default(), settings.set.lease.slowness());
        Rhythm { heartbeat: usual.heartbeat * slowness, lease: usual.lease * slowness, ..usual }
    }
}

impl Default for Rhythm {
    /// Slow, because nothing that users feel waits for it: VIPs move by leases of their own.
    fn default() -> Rhythm {
        Rhythm { heartbeat: Duration::from_secs(1), lease: Duration::from_secs(3), round: Duration::from_secs(2) }
    }
}
