//! Invariant 9: no planned hand-over and no false suspicion breaks a connection whose node lives and can be reached, or was heard as
//! lately as the document has the others wait for it; while nothing is wrong, nothing is lost or refused either.

use trilith_core::health::Reason;
use trilith_core::wire::Echo;

use crate::check::Scene;
use crate::clients::{Attempt, Fate, Flow, mac};
use crate::machine::HaproxyState;
use crate::plan::NODES;

/// Checks invariant 9.
#[derive(Clone, Default)]
pub struct Flows {
    /// When a node's kernel last left a question unanswered.
    doubted_at: [Option<u64>; NODES],
    /// Since when each node hears each other one, by its own word and its rules, and when that was last seen.
    hears: [[Option<(u64, u64)>; NODES]; NODES],
    /// Nothing is wrong, and the set has settled.
    pub calm: bool,
}

impl Flows {
    /// A node's kernel has left a question unanswered.
    pub fn doubted(&mut self, now: u64, node: usize) {
        self.doubted_at[node] = Some(now);
    }

    /// A supervisor was started: it has heard nobody.
    pub fn started(&mut self, node: usize) {
        self.hears[node] = [None; NODES];
    }

    /// Looks at the world now and then: a doubt is over only when the node has been heard by all for a while.
    pub fn poll(&mut self, scene: &Scene) {
        for (node, row) in self.hears.iter_mut().enumerate().take(scene.nodes()) {
            for (other, heard) in row.iter_mut().enumerate().take(scene.nodes()) {
                if stops(scene, other) {
                    *heard = None;
                } else if hears(scene, node, other) {
                    let since =
                        heard.filter(|(_, last)| scene.now < last + BREAK_US).map_or(scene.now, |(since, _)| since);
                    *heard = Some((since, scene.now));
                }
            }
        }
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
            Fate::Reset { by } if !gone && self.waits(scene, by, flow.carrier) => Err(format!(
                "connection {} to vip {} is reset by node {by}, which should wait for node {}",
                flow.id, flow.vip, flow.carrier
            )),
            Fate::Reset { .. } => Ok(()),
            Fate::Lost if self.calm && !gone => Err(format!(
                "a packet of connection {} (node {}) is lost while nothing is wrong",
                flow.id, flow.carrier
            )),
            Fate::Lost => Ok(()),
        }
    }

    /// Whether a node has heard another one so lately, after a while without a break, that it has to wait for it.
    fn waits(&self, scene: &Scene, node: usize, other: usize) -> bool {
        let stun = scene.settings.set.stun.as_micros() as u64;
        self.hears[node][other]
            .is_some_and(|(since, last)| last >= since + DOUBT_US && scene.now + STALE_US < last + stun)
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

/// Whether a node hears another one by its own word, and relays to all that it hears.
fn hears(scene: &Scene, node: usize, other: usize) -> bool {
    let session = |node: usize| scene.machines[node].supervisor.as_ref().map(|supervisor| supervisor.session);
    let said = scene.machines[node].supervisor.as_ref().and_then(|supervisor| supervisor.said.as_ref());
    let Some(said) = said.filter(|_| scene.machines[node].runs()) else { return false };
    let live = |echo: &&Echo| echo.live;
    let ring = scene.machines[node].kernel.ring.as_ref();
    said.heard[other].filter(|echo| live(&echo)).is_some_and(|echo| session(other) == Some(echo.session))
        && ring.is_some_and(|ring| usize::from(ring.last_hop) >= said.heard.iter().flatten().filter(live).count())
}

/// Whether a node says that it ends.
fn stops(scene: &Scene, node: usize) -> bool {
    let said = scene.machines[node].supervisor.as_ref().and_then(|supervisor| supervisor.said.as_ref());
    said.is_some_and(|said| said.fitness.reason() == Some(Reason::Stopping))
}

/// A supervisor that has never heard a node, since that was silent all the time, cannot relay to it. Its rules stay when it dies.
fn unknown_somewhere(scene: &Scene, node: usize) -> bool {
    let others = scene.machines.iter().enumerate().filter(|(other, machine)| *other != node && machine.lives());
    let mut rings = others.filter_map(|(_, machine)| machine.kernel.ring.as_ref());
    rings.any(|ring| !ring.peer_macs.contains(&mac(node)))
}

/// So long after its kernel left a question unanswered, and it was heard again, a node may be missing from a relay ring.
const DOUBT_US: u64 = 2_000_000;
/// Polls further apart than that are a break.
const BREAK_US: u64 = 100_000;
/// So old may be what a node says of another one that it hears: the longest lease and a few heartbeats.
const STALE_US: u64 = 700_000;
