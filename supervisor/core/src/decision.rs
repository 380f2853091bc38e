//! Decisions that a node takes by itself, each with its reason, for the log and for `status` (invariant 10).

use crate::config::{NodeId, VipId};
use crate::health::{Fitness, Reason};

mod words;

pub use words::{describe, describe_accepted, describe_fitness, describe_mac, describe_reason, describe_refused};

/// An automatic decision and why it was taken. The shell turns numbers into names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Asks for a VIP.
    Claim {
        /// The VIP.
        vip: VipId,
        /// The epoch asked for.
        epoch: u64,
        /// Why now.
        why: WhyClaim,
    },
    /// Owns a VIP from now on.
    Own {
        /// The VIP.
        vip: VipId,
        /// The epoch.
        epoch: u64,
        /// Owns it without a majority, as the lone survivor.
        lone: bool,
    },
    /// Owns a VIP no longer.
    Yield {
        /// The VIP.
        vip: VipId,
        /// The epoch that ended.
        epoch: u64,
        /// Who should be next, if known.
        to: Option<NodeId>,
        /// Why.
        why: WhyYield,
    },
    /// This node's fitness changed.
    Fitness {
        /// Before.
        from: Fitness,
        /// Now.
        to: Fitness,
    },
    /// A peer was heard for the first time, or again.
    PeerHeard {
        /// Which.
        peer: NodeId,
    },
    /// A peer has not been heard for longer than a lease.
    PeerLost {
        /// Which.
        peer: NodeId,
    },
    /// A peer's kernel does not answer either (`alive` false), or does again: it leaves or joins the relay ring.
    Kernel {
        /// Which.
        peer: NodeId,
        /// Whether it answers.
        alive: bool,
    },
    /// A peer was silent, kernel and all, for longer than machines of this set stand still: what it carried is reset from now on.
    GivenUp {
        /// Which.
        peer: NodeId,
    },
    /// Someone else claimed a VIP that this node owns; it was announced again.
    Conflict {
        /// The VIP.
        vip: VipId,
        /// Who: its MAC address.
        mac: [u8; 6],
    },
    /// The lease in force was changed because the measured jitter did.
    Lease {
        /// Now, in milliseconds.
        lease_ms: u32,
        /// The jitter that it follows, in milliseconds.
        jitter_ms: u32,
    },
    /// A unit that hangs is restarted, or one that is down is started.
    UnitRestart {
        /// Why.
        why: Reason,
    },
    /// A command failed and will be tried again.
    Failed {
        /// One line that names its operands.
        what: String,
    },
    /// An operator's request is carried out.
    Operator {
        /// The node that is drained or not, or that gets a VIP.
        node: NodeId,
        /// What.
        what: Ordered,
    },
    /// The node did not run for a while and confirms what it owned before it goes on.
    Gap {
        /// How long it did not run, in milliseconds.
        gap_ms: u32,
    },
}

/// What an operator has ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordered {
    /// To move a VIP.
    Move(VipId),
    /// To drain.
    Drain,
    /// To end the drain.
    Undrain,
}

/// Why a node asks for a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyClaim {
    /// Nobody owns it.
    Vacant,
    /// The owner's lease ran out.
    Expired(NodeId),
    /// The owner named this node its successor.
    Named(NodeId),
    /// All others are gone, the gateway answers, and nobody answers for the VIP.
    Lone,
}

/// Why an ownership ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyYield {
    /// The majority's grants ran out.
    Expired,
    /// A higher epoch was heard.
    Superseded(NodeId),
    /// An operator moves it.
    Moved,
    /// This node is not fit, or less fit than another.
    Fitness(Reason),
    /// The preferred node is back and has been fit for long enough.
    Rebalanced,
    /// As a lone survivor it heard another node again, which has the better claim.
    Rejoined(NodeId),
    /// The supervisor had stopped for too long.
    Gap,
    /// As a lone survivor it heard somebody else claim the VIP.
    Conflict,
}
