//! Invariant 9: no planned hand-over and no false suspicion breaks a connection whose node lives and can be reached; while nothing
//! is wrong, nothing is lost or refused either.

use crate::check::Scene;
use crate::clients::{Attempt, Fate, Flow, mac};
use crate::machine::HaproxyState;
use crate::plan::NODES;

/// Checks invariant 9.
#[derive(Clone, Default)]
pub struct Flows {
    /// When a node's kernel last left a question unanswered.
    doubted_at: [Option<u64>; NODES],
    /// Nothing is wrong, and the set has settled.
    pub calm: bool,
}

impl Flows {
    /// A node's kernel has left a question unanswered.
    pub fn doubted(&mut self, now: u64, node: usize) {
        self.doubted_at[node] = Some(now);
    }

    /// Looks at the world now and then: a doubt is over only when the node has been heard by all for a while.
    pub fn poll(&mut self, scene: &Scene) {
        for node in 0..scene.nodes() {
            let heard = (0..scene.nodes()).all(|other| !scene.machines[other].runs() || scene.linked(node, other));
            if let Some(at) = self.doubted_at[node].as_mut().filter(|_| !heard) {
                *at = scene.now;
            }
        }
    }

    /// Looks at what became of a packet.
    ///
    /// # Errors
    /// A connection was broken that should not have been.
    pub fn sent(&self, scene: &Scene, flow: &Flow, fate: Fate) -> Result<(), String> {
        let carrier = &scene.machines[flow.carrier];
        let gone = !carrier.on || carrier.haproxy.generation != flow.generation;
        let doubted = self.doubted_at[flow.carrier].is_some_and(|at| scene.now < at + DOUBT_US)
            || unknown_somewhere(scene, flow.carrier);
        match fate {
            Fate::Arrived { .. } => Ok(()),
            Fate::Reset { by } if !gone && !doubted => Err(format!(
                "connection {} to vip {} is reset by node {by} although node {} carries it, ring {:?}",
                flow.id, flow.vip, flow.carrier, scene.machines[by].kernel.ring
            )),
            Fate::Reset { .. } => Ok(()),
            Fate::Lost if self.calm && !gone => Err(format!(
                "a packet of connection {} (node {}) is lost while nothing is wrong",
                flow.id, flow.carrier
            )),
            Fate::Lost => Ok(()),
        }
    }

    /// Looks at what became of an attempt to connect.
    ///
    /// # Errors
    /// It failed while nothing is wrong.
    pub fn opened(&self, scene: &Scene, client: usize, vip: usize, attempt: Attempt) -> Result<(), String> {
        let alive = scene.machines.iter().all(|m| m.haproxy.state == HaproxyState::Alive);
        match attempt {
            Attempt::Opened => Ok(()),
            Attempt::Refused { .. } | Attempt::Unanswered if self.calm && alive => {
                Err(format!("client {client} cannot connect to vip {vip} while nothing is wrong: {attempt:?}"))
            }
            Attempt::Refused { .. } | Attempt::Unanswered => Ok(()),
        }
    }
}

/// A supervisor that has never heard a node, since that was silent all the time, cannot relay to it. Its rules stay when it dies.
fn unknown_somewhere(scene: &Scene, node: usize) -> bool {
    let others = scene.machines.iter().enumerate().filter(|(other, machine)| *other != node && machine.lives());
    let mut rings = others.filter_map(|(_, machine)| machine.kernel.ring.as_ref());
    rings.any(|ring| !ring.peer_macs.contains(&mac(node)))
}

/// So long after its kernel left a question unanswered, and it was heard again, a node may be missing from a relay ring.
const DOUBT_US: u64 = 2_000_000;
