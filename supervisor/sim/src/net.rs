//! The peer channel: datagrams, and the attacker who keeps copies of them.

use std::sync::Arc;

use trilith_core::config::NodeId;
use trilith_core::wire::{Authentic, Heartbeat, Opener, Sealer, Session};

use crate::plan::NODES;
use crate::rng::Rng;

/// A datagram on its way.
#[derive(Clone)]
pub struct Datagram {
    /// Its sender.
    pub from: usize,
    /// What it says, by whoever made it.
    pub heartbeat: Arc<Heartbeat>,
    /// Its bytes, where they are really sealed.
    pub bytes: Option<Arc<[u8]>>,
    /// The attacker sent it.
    pub forged: bool,
}

impl Datagram {
    /// As it is handed to the core where nothing is sealed.
    pub fn vouched(&self) -> Authentic {
        Authentic::vouched(NodeId(self.from as u8), Arc::clone(&self.heartbeat))
    }
}

/// Seals and opens the datagrams of one supervisor, as its shell does.
pub struct Seal {
    /// For its own.
    pub sealer: Sealer,
    /// For those of its peers.
    pub opener: Opener,
}

impl Seal {
    /// For a node of a set of so many, in this session.
    pub fn new(nodes: usize, node: usize, session: Session) -> Seal {
        let me = NodeId(node as u8);
        Seal { sealer: Sealer::new(SECRET, SET, me, session), opener: Opener::new(SECRET, SET, nodes as u8, me) }
    }
}

/// Somebody on the network who keeps what passes and sends it again, whole or changed.
///
/// It has its own randomness: with or without it, all else in a run is drawn alike.
pub struct Attacker {
    rng: Rng,
    kept: Vec<Datagram>,
    /// What each node has handled: session and highest counter, for all sessions.
    handled: [Vec<(Session, u64)>; NODES],
    /// Sends only what its target has already handled, so that not even a late delivery is new to it.
    pub strict: bool,
}

impl Attacker {
    /// An attacker; a `strict` one sends nothing that might still be fresh.
    pub fn new(seed: u64, strict: bool) -> Attacker {
        Attacker { rng: Rng::new(seed, 3), kept: Vec::new(), handled: Default::default(), strict }
    }

    /// When it strikes next, at this many times in a second.
    pub fn next(&mut self, now: u64, per_s: u64) -> u64 {
        now + self.rng.between(1, 2_000_000 / per_s.max(1))
    }

    /// A datagram passes.
    pub fn see(&mut self, datagram: &Datagram) {
        if self.kept.len() < KEPT {
            self.kept.push(datagram.clone());
        } else if self.rng.chance(100) {
            let place = self.rng.index(KEPT);
            self.kept[place] = datagram.clone();
        }
    }

    /// A genuine datagram was handled.
    pub fn handled(&mut self, target: usize, datagram: &Datagram) {
        let (session, counter) = (datagram.heartbeat.session, datagram.heartbeat.counter);
        match self.handled[target].iter_mut().find(|(s, _)| *s == session) {
            Some((_, highest)) => *highest = (*highest).max(counter),
            None => self.handled[target].push((session, counter)),
        }
    }

    /// What it sends now, and to whom.
    ///
    /// `trusted` says whether a node (the first) believes the session that another (the second) is in. Until then each must echo
    /// whatever the other seems to say, and a strict attacker who joins in delays them, which is no change of state.
    pub fn strike(&mut self, nodes: usize, trusted: impl Fn(usize, usize) -> bool) -> Option<(usize, Datagram)> {
        if self.kept.is_empty() {
            return None;
        }
        let target = self.rng.index(nodes);
        let place = self.rng.index(self.kept.len());
        let mut datagram = self.kept[place].clone();
        datagram.forged = true;
        let mangled = self.rng.chance(500);
        if let Some(bytes) = &datagram.bytes
            && mangled
        {
            datagram.bytes = Some(self.mangle(bytes));
            return Some((target, datagram));
        }
        if self.strict && !(trusted(target, datagram.from) && self.is_stale(target, &datagram)) {
            return None;
        }
        // Where nothing is sealed the core relies on its shell to drop what the node itself has sent.
        (datagram.from != target || datagram.bytes.is_some()).then_some((target, datagram))
    }

    fn is_stale(&self, target: usize, datagram: &Datagram) -> bool {
        let (session, counter) = (datagram.heartbeat.session, datagram.heartbeat.counter);
        datagram.from == target || self.handled[target].iter().any(|(s, highest)| *s == session && counter <= *highest)
    }

    fn mangle(&mut self, bytes: &[u8]) -> Arc<[u8]> {
        let mut bytes = bytes.to_vec();
        match self.rng.below(3) {
            0 => bytes.truncate(self.rng.index(bytes.len())),
            1 => {
                let place = self.rng.index(bytes.len());
                bytes[place] ^= 1 << self.rng.below(8);
            }
            _ => bytes.iter_mut().skip(4).for_each(|byte| *byte = self.rng.bits() as u8),
        }
        bytes.into()
    }
}

/// So many datagrams the attacker keeps, of all times.
const KEPT: usize = 64;
/// The simulated set's name and secret.
const SET: &str = "sim";
const SECRET: &[u8] = b"no secret at all, but long enough";
