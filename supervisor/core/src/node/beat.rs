//! The rhythm: when to send a heartbeat, what it says, and how long a lease it asks for.

use std::sync::Arc;
use std::time::Duration;

use crate::command::Command;
use crate::config::{MAX_NODES, NodeId};
use crate::decision::Decision;
use crate::time::Time;
use crate::wire::{Echo, Heartbeat, VipReport};

use super::{JITTER_HALF_LIFE, NO_JITTER, Node, SENT};

impl Node {
    /// Sends a heartbeat when one is due, and at once when it has something new to say.
    pub(super) fn beat(&mut self, now: Time, out: &mut Vec<Command>) {
        if self.settings.nodes.len() < 2 {
            self.beat_due = now + self.settings.set.lease.heartbeat;
            return;
        }
        let mut heartbeat = self.heartbeat(now);
        let news = self.said.as_ref().is_none_or(|said| is_news(said, &heartbeat));
        if now < self.beat_due && !news {
            return;
        }
        let answers = std::mem::take(&mut self.following);
        if now >= self.beat_due {
            let every = self.settings.set.lease.heartbeat;
            // Whoever follows waits a little longer than the leader takes.
            let slack = if answers { longest(every) - every } else { Duration::ZERO };
            self.beat_due = (self.beat_due + every).max(now + every / 2) + slack;
        }
        heartbeat.routine = answers && !news;
        self.own.counter = heartbeat.counter;
        if self.sent.len() == SENT {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent { counter: heartbeat.counter, at: now, lease: heartbeat.lease });
        let heartbeat = Arc::new(heartbeat);
        self.said = Some(heartbeat.clone());
        out.push(Command::Broadcast(heartbeat));
    }

    /// Answers the leader's heartbeat at once, so that its lease is renewed in one round trip and all nodes wake at the same
    /// moments: half the wake-ups of three free rhythms. The leader is the first node that claims a VIP.
    pub(super) fn fall_in(&mut self, now: Time, from: NodeId) {
        let every = self.settings.set.lease.heartbeat;
        if self.nodes().find(|n| self.claims(*n)) != Some(from) {
            return;
        }
        if now + every / 2 >= self.beat_due {
            self.beat_due = now;
            self.following = true;
        } else {
            // It has just beaten by itself: one of the next goes with the leader's, but none comes later than others expect.
            let last = self.sent.back().map_or(now, |sent| sent.at);
            self.beat_due = (last + longest(every)).max(now);
        }
    }

    /// Whether a node claims a VIP, by its last heartbeat.
    fn claims(&self, node: NodeId) -> bool {
        let said = if node == self.own.me {
            self.said.as_deref()
        } else {
            self.peers[node.0 as usize].said().filter(|_| self.peers[node.0 as usize].live)
        };
        said.is_some_and(|said| said.vips.iter().any(|vip| vip.claim.is_some()))
    }

    /// The lease follows the jitter: two and a half heartbeats and twice the jitter, within its bounds.
    pub(super) fn adapt_lease(&mut self, now: Time, out: &mut Vec<Command>) {
        if now < self.beat_due {
            return;
        }
        let bounds = self.settings.set.lease;
        let jitter = self.jitter.now(now);
        let wanted = (bounds.heartbeat * 5 / 2 + jitter * 2).clamp(bounds.min, bounds.max);
        let noticeable = wanted.abs_diff(self.lease) > self.lease / 8 || (wanted == bounds.min && self.lease != wanted);
        if noticeable {
            self.lease = wanted;
            let (lease_ms, jitter_ms) = (wanted.as_millis() as u32, jitter.as_millis() as u32);
            self.log(out, Decision::Lease { lease_ms, jitter_ms });
        }
    }

    pub(super) fn heartbeat(&self, now: Time) -> Heartbeat {
        let mut heard = [None; MAX_NODES];
        for node in self.nodes().filter(|n| *n != self.own.me) {
            heard[node.0 as usize] = self.peers[node.0 as usize].echo();
        }
        Heartbeat {
            session: self.own.session,
            counter: self.own.counter + 1,
            routine: false,
            heard,
            fitness: self.fitness,
            drained: self.health.drained,
            mac: self.mac,
            fingerprint: self.settings.fingerprint,
            version: self.version,
            lease: self.lease,
            vips: self.vips.iter().map(|vip| vip.report(now, self.majority())).collect(),
            ask: self.ask,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) counter: u64,
    pub(super) at: Time,
    pub(super) lease: Duration,
}

/// The greatest lateness seen, halved every [`JITTER_HALF_LIFE`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Jitter {
    pub(super) value: Duration,
    pub(super) at: Time,
}

impl Jitter {
    pub(super) fn now(&self, now: Time) -> Duration {
        let halvings = now.since(self.at).as_secs_f64() / JITTER_HALF_LIFE.as_secs_f64();
        self.value.mul_f64(0.5f64.powf(halvings))
    }

    pub(super) fn observe(&mut self, now: Time, late: Duration) {
        if late < NO_JITTER {
            return;
        }
        let value = self.now(now).max(late);
        *self = Jitter { value, at: now };
    }
}

/// The longest time between two beats of a node in good order: whoever follows waits a little longer than the leader takes.
pub(super) fn longest(every: Duration) -> Duration {
    every + every / 4
}

/// Whether a heartbeat says something that cannot wait: everything but counters and what merely goes on.
fn is_news(before: &Heartbeat, now: &Heartbeat) -> bool {
    let vip_news = |(a, b): (&VipReport, &VipReport)| {
        a.claim != b.claim
            || a.successor != b.successor
            || a.grant.map(|g| (g.owner, g.epoch)) != b.grant.map(|g| (g.owner, g.epoch))
    };
    // Whoever is not believed can wait for the next heartbeat: otherwise each replayed datagram would set off one of ours.
    let believed = |e: &Option<Echo>| e.filter(|e| e.live).map(|e| e.session);
    let heard_news = before.heard.iter().zip(&now.heard).any(|(a, b)| believed(a) != believed(b));
    heard_news
        || before.fitness != now.fitness
        || before.drained != now.drained
        || before.ask != now.ask
        || before.vips.iter().zip(&now.vips).any(vip_news)
}
