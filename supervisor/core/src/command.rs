//! Everything that a node can do to the world.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{NodeId, VipId};
use crate::decision::Decision;
use crate::event::{Probe, Unit};
use crate::wire::{DiskRecord, Heartbeat};

/// One deed for a shell. All are idempotent; the shell answers with [`crate::event::Event::Done`] where a [`Deed`] exists.
///
/// One shell does its own commands in order; between shells no order holds. `Hold`, `Release` and `Announce` are of one shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Seal a heartbeat once and send it to every peer. May be lost.
    Broadcast(Arc<Heartbeat>),
    /// Have the VIP on its interface, from now for `lifetime`; after that the kernel takes it off by itself (the fence).
    Hold {
        /// The VIP.
        vip: VipId,
        /// Whole seconds, at least 1.
        lifetime: Duration,
    },
    /// Have the VIP not on its interface. (It stays on `lo`.)
    Release {
        /// The VIP.
        vip: VipId,
    },
    /// Send one gratuitous ARP request and reply, or one unsolicited neighbour advertisement. Refused when not held.
    Announce {
        /// The VIP.
        vip: VipId,
    },
    /// Have these relay rules in force, in one transaction.
    Relay(Ring),
    /// Have a node's backends in this state in the local HAProxy.
    Backend {
        /// The node.
        node: NodeId,
        /// The state of all its servers.
        state: BackendState,
    },
    /// Have a unit running.
    Start(Unit),
    /// Kill a unit that hangs, so that systemd starts it anew.
    Restart(Unit),
    /// Ask a question; answered with [`crate::event::Event::Probed`].
    Probe(Probe),
    /// Write the node's record durably.
    Persist(DiskRecord),
    /// Answer an operator.
    Answer {
        /// The operator's ticket.
        ticket: u64,
        /// Accepted, or refused and why.
        answer: Result<Accepted, Refused>,
    },
    /// Log an automatic decision with its reason, and keep it for `status`.
    Log(Decision),
}

impl Command {
    /// By what name its end is told to the core; `None` where nobody waits for it, and for probes, which are answered otherwise.
    pub fn deed(&self) -> Option<Deed> {
        Some(match self {
            Command::Hold { vip, .. } => Deed::Hold(*vip),
            Command::Release { vip } => Deed::Release(*vip),
            Command::Announce { vip } => Deed::Announce(*vip),
            Command::Relay(_) => Deed::Relay,
            Command::Backend { node, .. } => Deed::Backend(*node),
            Command::Start(unit) => Deed::Start(*unit),
            Command::Restart(unit) => Deed::Restart(*unit),
            Command::Persist(_) => Deed::Persist,
            Command::Broadcast(_) | Command::Probe(_) | Command::Answer { .. } | Command::Log(_) => return None,
        })
    }
}

/// A command whose end the core wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Deed {
    /// [`Command::Hold`]
    Hold(VipId),
    /// [`Command::Release`]
    Release(VipId),
    /// [`Command::Announce`]
    Announce(VipId),
    /// [`Command::Relay`]
    Relay,
    /// [`Command::Backend`]
    Backend(NodeId),
    /// [`Command::Start`]
    Start(Unit),
    /// [`Command::Restart`]
    Restart(Unit),
    /// [`Command::Persist`]
    Persist,
}

/// The relay ring as one node sees it.
///
/// A TCP packet for a VIP that belongs to no flow known here goes to `next`, its hop count one higher. The ring is closed: a packet
/// that nobody knows comes back to where it entered with `last_hop + 1` hops, and only there the kernel answers it (with RST). One
/// with more hops than that has met nodes whose views differ for a moment, and is dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// The next live node, `None` when there is none.
    pub next: Option<NodeId>,
    /// The last hop count that is still passed on: live nodes less one. The ring is closed, so the next one is where it began.
    pub last_hop: u8,
    /// MAC addresses of the other nodes (heartbeats carry them): only from these is a hop count believed.
    pub peer_macs: Vec<[u8; 6]>,
    /// A node that has left may only stand still: what nobody knows may be its, and is not answered with RST.
    pub waits: bool,
}

/// State of a node's servers in the local HAProxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendState {
    /// As the health checks say.
    Ready,
    /// No new work, what runs may end.
    Drain,
    /// Silent, and its kernel, too: no checks, no work. What it carries may live on: it may only be standing still.
    Down,
    /// Silent for so long that what it carries is ended: clients would wait for timeouts of minutes.
    Gone,
}

/// What an operator's accepted request has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is done.
    Done,
    /// It was so already.
    Already,
}

/// Why an operator's request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The node is not heard.
    NotHeard(NodeId),
    /// The node is not fit.
    NotFit(NodeId),
    /// Nobody owns the VIP just now.
    NoOwner(VipId),
    /// No other node could take over the service of this one.
    NoOtherFit,
    /// It was not done within the time that it takes at the most.
    TimedOut,
    /// Too many requests wait already.
    Busy,
}
