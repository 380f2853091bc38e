//! Invariant 9: no planned hand-over and no false suspicion breaks a connection whose node lives and can be reached; while nothing
//! is wrong, nothing is lost or refused either.

use crate::check::Scene;
use crate::clients::{Attempt, Fate, Flow};
use crate::machine::HaproxyState;
use crate::plan::NODES;

/// Checks invariant 9.
#[derive(Default)]
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

/// A supervisor that has started while another node's was silent does not know that node and cannot relay to it.
fn unknown_somewhere(scene: &Scene, node: usize) -> bool {
    let quiet_us = scene.settings.set.lease.max.as_micros() as u64;
    let supervisors = scene.machines.iter().enumerate().filter(|(n, _)| *n != node);
    let supervisors = supervisors.filter_map(|(_, machine)| machine.supervisor.as_ref());
    let knows = |since: Option<u64>| since.is_some_and(|at| scene.now > at + RELAY_US);
    supervisors.into_iter().any(|s| !knows(s.knows[node]) && scene.now > s.since + quiet_us)
}

/// So long after an unanswered question to its kernel a node may be missing from a relay ring.
const DOUBT_US: u64 = 2_000_000;
/// Relay rules are in force so long after they are wanted.
const RELAY_US: u64 = 200_000;
