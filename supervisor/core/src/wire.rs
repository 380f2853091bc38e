//! Records that leave the process: peer datagrams and the node's record on disk. Versioned, size-bounded, authenticated.
//!
//! # Datagram
//!
//! ```text
//! "TL" | version u8 | sender u8 | session u64 | counter u64 |  AEAD( fields ) + 16-byte tag
//! ```
//!
//! All integers are big-endian. The 20-byte header is the AEAD's associated data. The key is derived for each sender and
//! session (HKDF-SHA256 of the set secret, RFC 5869), the nonce is the counter (ChaCha20-Poly1305, RFC 8439). A session is a
//! random number drawn at each start of a supervisor, so a disk or VM snapshot that is rolled back can never make a
//! nonce occur twice: a persisted boot epoch could.
//!
//! A probe begins with "TP" and has no fields; it shares session, counter and key, and its nonces are none of a heartbeat's.
//!
//! # Fields
//!
//! `tag u8 | length u16 | bytes`, in any order. A reader skips tags that it does not know and bytes behind those that it
//! knows, so versions N and N+1 understand each other.
//!
//! # Freshness
//!
//! Authentic is not fresh: an attacker may keep datagrams and send them later. Each heartbeat echoes, for every
//! peer, the session and counter that it last heard. Whoever reads it believes it only when it echoes the reader's own
//! present session, and changes to another session of the sender only when it echoes a counter that is younger than the last
//! datagram of the old one ([`crate::peer`]). No clock and no disk is needed for that.

mod codec;
mod seal;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::config::{MAX_NODES, NodeId};
use crate::health::Fitness;

pub use seal::{HEADER, Opener, PROBE, ROUTINE, Sealer, VERSION_AT};

/// Version of the datagram and of the disk record that is written. Every version from 1 on is read as far as its fields
/// are known.
pub const VERSION: u8 = 1;
/// The longest datagram that is read or written, in bytes: fits an Ethernet frame with IPv6 and UDP headers.
pub const MAX_DATAGRAM: usize = 1400;
/// The shortest lease that may be asked for.
pub const MIN_LEASE: Duration = Duration::from_millis(1);
/// The longest lease that may be asked for.
pub const MAX_LEASE: Duration = Duration::from_secs(60);

/// One run of a supervisor: a random number drawn at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session(pub u64);

/// Identifies a VIP between nodes, whatever its place in each one's document: the start of its name's SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipKey(pub u32);

impl VipKey {
    /// The key of the VIP of this name.
    pub fn of(name: &str) -> VipKey {
        let digest = Sha256::digest(name.as_bytes());
        VipKey(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
    }
}

/// What a node tells all its peers, the same to each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The sender's session.
    pub session: Session,
    /// Rises by at least one with every heartbeat of a session.
    pub counter: u64,
    /// It only goes on with what was said before, so its receiver need not be woken for it.
    pub routine: bool,
    /// What the sender last heard of each node, by [`NodeId`]; nothing for itself.
    pub heard: [Option<Echo>; MAX_NODES],
    /// Whether the sender may own a VIP.
    pub fitness: Fitness,
    /// An operator has taken it out of service.
    pub drained: bool,
    /// MAC address of the interface that it relays by.
    pub mac: [u8; 6],
    /// Fingerprint of its configuration.
    pub fingerprint: u32,
    /// Its version: major, minor, patch.
    pub version: [u16; 3],
    /// The lease that it asks for now.
    pub lease: Duration,
    /// Its part in each VIP; at most [`crate::config::MAX_VIPS`].
    pub vips: Vec<VipReport>,
    /// Something that an operator asked for and that another node must do.
    pub ask: Option<Ask>,
}

/// What a node says of what is relayed between it and others, as bitmaps of nodes. The core has no part in it; see `shell/src/peers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relaying {
    /// Packets of these come here that bear addresses which are not theirs: a [`Sealer::probe`] has.
    pub open: u8,
    /// None of these come, although their heartbeats do. Who is in neither bitmap is not known yet.
    pub barred: u8,
    /// What the sender relays to these goes through a tunnel.
    pub tunnelled: u8,
}

/// What was last heard of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// The peer's session.
    pub session: Session,
    /// The highest counter heard in it.
    pub counter: u64,
    /// Heard recently enough to count as alive, and fresh.
    pub live: bool,
}

/// One node's part in one VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VipReport {
    /// Which VIP.
    pub vip: VipKey,
    /// The highest epoch that the sender has seen.
    pub seen: u64,
    /// What the sender claims.
    pub claim: Option<Claim>,
    /// Whom the sender's vote has gone to, while the grant runs.
    pub grant: Option<Grant>,
    /// The sender has ended its ownership of this epoch in favour of a node that may claim the next one.
    pub successor: Option<NodeId>,
}

/// A node's claim to own a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The epoch of the ownership.
    pub epoch: u64,
    /// The claim had its majority when this was sent; otherwise it is still asked for.
    pub held: bool,
}

/// A node's vote for the owner of a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The owner.
    pub owner: NodeId,
    /// The epoch of the ownership.
    pub epoch: u64,
    /// Session of the owner's heartbeat that the grant was last renewed by.
    pub session: Session,
    /// Counter of that heartbeat: the grant runs for the lease named there, from its sending on.
    pub counter: u64,
}

/// An operator's request, passed on to the node that must act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Tells requests of one sender's session apart; a request is acted on once.
    pub serial: u32,
    /// Who is to act.
    pub node: NodeId,
    /// What is asked.
    pub what: What,
}

/// What an [`Ask`] asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Hand over this VIP, if it is still owned with this epoch.
    Move {
        /// Which VIP.
        vip: VipKey,
        /// The epoch that the asker saw.
        epoch: u64,
        /// The successor.
        to: NodeId,
    },
    /// Go out of service, or back.
    Drain(bool),
}

/// A heartbeat that passed authentication: it was made by a holder of the set secret, in the name of `from`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authentic {
    from: NodeId,
    heartbeat: Arc<Heartbeat>,
}

impl Authentic {
    /// Takes a heartbeat as authentic without proof: for transports that cannot be forged, such as the simulator's.
    pub fn vouched(from: NodeId, heartbeat: Arc<Heartbeat>) -> Authentic {
        Authentic { from, heartbeat }
    }

    /// Who sent it.
    pub fn from(&self) -> NodeId {
        self.from
    }

    /// What it says.
    pub fn heartbeat(&self) -> &Heartbeat {
        &self.heartbeat
    }
}

/// What a node keeps on disk between runs: so that epochs never go back, and a drained node stays drained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskRecord {
    /// Every epoch that this node has seen is below.
    pub epoch_ceiling: u64,
    /// An operator has taken the node out of service.
    pub drained: bool,
}

/// Why a datagram or a disk record is refused.
///
/// Refused bytes change nothing: a datagram is as good as lost, a disk record as good as absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// Shorter than the least that it could be.
    TooShort {
        /// Its length in bytes.
        length: usize,
    },
    /// Longer than [`MAX_DATAGRAM`], or than its own length field says.
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// It does not begin as ours do.
    Foreign,
    /// Version 0 has never existed.
    Version,
    /// The sender is not a node of this set.
    UnknownSender(u8),
    /// The sender is the reader itself.
    OwnEcho,
    /// Its counter is not above the highest that was heard in its session.
    Replayed {
        /// Its counter.
        counter: u64,
    },
    /// Made without the set secret, for another set, or changed on its way.
    Forged,
    /// A field ends before what it must hold.
    CutOff {
        /// The field's tag.
        tag: u8,
    },
    /// A field that may occur only once (for each node or VIP) occurs again.
    Repeated {
        /// The field's tag.
        tag: u8,
    },
    /// A field that every version has is not there.
    Missing {
        /// The field's tag.
        tag: u8,
    },
    /// A number lies outside its bounds.
    OutOfRange {
        /// The field's tag.
        tag: u8,
        /// The number.
        value: u64,
    },
    /// The checksum of a disk record does not fit its content.
    Checksum,
}

impl fmt::Display for WireError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            WireError::TooShort { length } => write!(out, "{length} bytes are too short"),
            WireError::TooLong { length } => write!(out, "{length} bytes are too long"),
            WireError::Foreign => write!(out, "it does not begin with Trilith's mark"),
            WireError::Version => write!(out, "version 0 does not exist"),
            WireError::UnknownSender(sender) => {
                write!(out, "sender {sender} is not a node of this set")
            }
            WireError::OwnEcho => write!(out, "it names this node itself as its sender"),
            WireError::Replayed { counter } => write!(out, "counter {counter} was heard before"),
            WireError::Forged => write!(out, "it was not sealed with this set's secret and name"),
            WireError::CutOff { tag } => write!(out, "field {tag} is cut off"),
            WireError::Repeated { tag } => write!(out, "field {tag} is repeated"),
            WireError::Missing { tag } => write!(out, "field {tag} is missing"),
            WireError::OutOfRange { tag, value } => {
                write!(out, "{value} in field {tag} is out of range")
            }
            WireError::Checksum => write!(out, "its checksum does not fit its content"),
        }
    }
}

impl std::error::Error for WireError {}
