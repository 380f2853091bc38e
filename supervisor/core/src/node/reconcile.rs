//! What is wanted outside the VIPs: the relay ring, the backends, the record on disk. Asked for where it differs.

use crate::command::{BackendState, Command, Ring};
use crate::config::NodeId;
use crate::health::{Fitness, Reason};
use crate::plant::Bug;
use crate::time::Time;
use crate::vip::Vip;
use crate::wire::DiskRecord;

use super::{EPOCH_BLOCK, GONE_AFTER, Node, RETRY};

impl Node {
    /// The relay ring, the backends and the disk follow what is known.
    pub(super) fn reconcile(&mut self, now: Time, out: &mut Vec<Command>) {
        let everyone_heard = self.nodes().all(|n| n == self.own.me || self.peers[n.0 as usize].said().is_some());
        if everyone_heard || now >= self.quiet_until {
            let ring = self.wanted_ring();
            if self.ring.differs(now, &ring) {
                self.relaying += 1;
                out.push(Command::Relay(ring));
            }
            for node in self.nodes() {
                let state = self.wanted_backend(now, node);
                if self.backends[node.0 as usize].differs(now, &state) {
                    out.push(Command::Backend { node, state });
                }
            }
        }
        let seen = self.vips.iter().map(Vip::seen).max().unwrap_or(0);
        let asked = self.disk.asked.unwrap_or_default();
        let short = seen + EPOCH_BLOCK / 2 >= asked.epoch_ceiling;
        let epoch_ceiling = if short { (seen / EPOCH_BLOCK + 2) * EPOCH_BLOCK } else { asked.epoch_ceiling };
        let record = DiskRecord { epoch_ceiling, drained: self.health.drained };
        // One after the other: what is on the disk is what was sent, not what was sent meanwhile.
        if self.persisting.is_none() && self.disk.differs(now, &record) {
            self.persisting = Some(record);
            out.push(Command::Persist(record));
        }
    }

    pub(super) fn wanted_ring(&self) -> Ring {
        let me = self.own.me;
        let n = self.settings.nodes.len() as u8;
        let after_me = (1..n).map(|step| NodeId((me.0 + step) % n));
        let in_ring = |node: &NodeId| {
            let peer = &self.peers[node.0 as usize];
            peer.said().is_some() && (peer.kernel || self.planted.has(Bug::RingKeepsDead))
        };
        let members: Vec<NodeId> = after_me.filter(in_ring).collect();
        let macs = self.nodes().filter(|n| *n != me).filter_map(|n| Some(self.peers[n.0 as usize].said()?.mac));
        Ring {
            next: members.first().copied(),
            last_hop: members.len() as u8,
            peer_macs: macs.collect(),
            waits: self.peers.iter().any(|peer| peer.stunned),
        }
    }

    pub(super) fn wanted_backend(&self, now: Time, node: NodeId) -> BackendState {
        let peer = &self.peers[node.0 as usize];
        let stopping = peer.fitness().and_then(Fitness::reason) == Some(Reason::Stopping);
        let drained = self.is_drained(node).unwrap_or(false) || stopping;
        match () {
            () if node == self.own.me => {
                if drained {
                    BackendState::Drain
                } else {
                    BackendState::Ready
                }
            }
            () if peer.live && !drained => BackendState::Ready,
            () if peer.live || peer.kernel => BackendState::Drain,
            // One that was never heard was perhaps heard by the process before this one.
            () if now < peer.heard_at().unwrap_or(self.quiet_until) + GONE_AFTER => BackendState::Down,
            () => BackendState::Gone,
        }
    }
}

/// Something wanted that a shell puts in place: asked for when it differs, and again when that failed.
#[derive(Clone, Debug)]
pub(super) struct Reconciled<T> {
    pub(super) asked: Option<T>,
    pub(super) retry: Option<Time>,
}

impl<T: Clone + PartialEq> Reconciled<T> {
    pub(super) const fn new() -> Reconciled<T> {
        Reconciled { asked: None, retry: None }
    }

    /// Whether `wanted` must be asked for now.
    pub(super) fn differs(&mut self, now: Time, wanted: &T) -> bool {
        if self.asked.as_ref() == Some(wanted) && self.retry.is_none_or(|at| now < at) {
            return false;
        }
        self.asked = Some(wanted.clone());
        self.retry = None;
        true
    }

    pub(super) fn failed(&mut self, now: Time) {
        self.retry = Some(now + RETRY);
    }
}
