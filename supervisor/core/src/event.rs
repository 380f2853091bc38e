//! Everything that can happen to a node.

use crate::command::Deed;
use crate::config::{NodeId, ServiceId, VipId};
use crate::wire::Authentic;

/// Something that happened. Together with the time it is all that [`crate::node::Node::step`] ever learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The deadline that the node asked for has come.
    Timer,
    /// A datagram of a peer that passed authentication (but perhaps not yet the freshness check).
    Peer(Authentic),
    /// The carrier of a VIP's interface, at the start and whenever it changes.
    Link {
        /// The VIP whose interface it is.
        vip: VipId,
        /// Whether it has a carrier and is up.
        up: bool,
    },
    /// Somebody else claims the VIP in ARP or neighbour discovery.
    Conflict {
        /// The VIP.
        vip: VipId,
        /// Who: its MAC address.
        mac: [u8; 6],
    },
    /// A unit changed, or its state was read at the start.
    Unit {
        /// Which unit.
        unit: Unit,
        /// Active in systemd's sense.
        active: bool,
    },
    /// A probe asked for by [`crate::command::Command::Probe`] has ended.
    Probed {
        /// Which one.
        probe: Probe,
        /// Whether it was answered in time.
        answered: bool,
    },
    /// A command was carried out or failed; every command but `Broadcast`, `Probe`, `Answer` and `Log` is answered so.
    Done {
        /// What was to be done.
        deed: Deed,
        /// Why it failed: one line that names its operands.
        result: Result<(), String>,
    },
    /// An operator asks for something.
    Operator {
        /// Returned with the answer.
        ticket: u64,
        /// What is asked.
        request: Request,
    },
    /// The supervisor is told to end: what it owns goes to others first, as far as there are any.
    Stop,
}

/// A systemd unit that matters to availability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// `haproxy.service`
    Haproxy,
    /// The node's own instance of a service.
    Service(ServiceId),
}

/// A question to the outside whose answer bears on availability. Each is bounded by [`crate::health::PROBE_TIMEOUT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Probe {
    /// A real HTTP request to HAProxy through the VIP on `lo`.
    Front,
    /// An ARP request or neighbour solicitation to the default gateway. Answered as `true` when there is none.
    Gateway,
    /// An ARP probe (RFC 5227) or neighbour solicitation for the VIP: does anyone else answer for it?
    Vip(VipId),
    /// An ARP request or neighbour solicitation to a peer: does its kernel still live?
    Kernel(NodeId),
}

/// What an operator may ask of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Hand a VIP over.
    Move {
        /// Which one.
        vip: VipId,
        /// To whom.
        to: NodeId,
    },
    /// Take a node out of service, or back into it.
    Drain {
        /// Which node.
        node: NodeId,
        /// Out of service (`true`) or back (`false`).
        drained: bool,
    },
}
