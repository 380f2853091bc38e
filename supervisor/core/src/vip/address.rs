//! The address of one VIP on its interface: there or not, renewed before the kernel takes it off, announced.

use std::time::Duration;

use crate::command::Command;
use crate::config::VipId;
use crate::time::Time;

/// Lifetime of the address in the kernel: the fence against a supervisor that hangs. Whole seconds, as the kernel counts them.
pub const FENCE: Duration = Duration::from_secs(2);
/// How often the owner renews it.
pub const FENCE_RENEWAL: Duration = Duration::from_millis(500);
/// When a failed address command is tried again.
pub const ADDRESS_RETRY: Duration = Duration::from_millis(100);
/// So many failures in a row make the node unfit.
pub const ADDRESS_TRIES: u32 = 3;
/// Announcements after a change of owner, counted from it (RFC 5227 asks for two; more cost nothing and heal lost ones).
pub const ANNOUNCE_AT: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];
/// Announcements in rest.
pub const ANNOUNCE_EVERY: Duration = Duration::from_secs(30);
/// The least time between two announcements that conflicts lead to.
pub const ANNOUNCE_GAP: Duration = Duration::from_millis(50);

/// What was asked of the kernel last, and when to ask again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    vip: VipId,
    /// `None`: nothing that still counts.
    asked: Option<bool>,
    due: Time,
    failures: u32,
    announce: Announce,
}

#[derive(Clone, Copy, Debug)]
struct Announce {
    index: usize,
    start: Time,
    next: Option<Time>,
    last: Option<Time>,
}

impl Address {
    /// Nothing is known of it, and nothing asked for until `due`.
    pub(super) fn unknown(vip: VipId, now: Time, due: Time) -> Address {
        let announce = Announce { index: 0, start: now, next: None, last: None };
        Address { vip, asked: None, due, failures: 0, announce }
    }

    /// This node has become the owner: to be put in place and announced, whatever was asked before.
    pub(super) fn won(&mut self, now: Time) {
        self.asked = None;
        self.announce(now);
    }

    /// Somebody else owns the VIP: whatever a former supervisor left here goes at once.
    pub(super) fn elsewhere(&mut self, now: Time) {
        if self.asked.is_none() {
            self.due = now;
        }
    }

    /// Announces anew, from the start of the series.
    pub(super) fn announce(&mut self, now: Time) {
        let earliest = self.announce.last.map_or(now, |last| last + ANNOUNCE_GAP);
        self.announce = Announce { index: 0, start: now, next: Some(now.max(earliest)), last: self.announce.last };
    }

    /// The carrier came back: the kernel may have lost the address.
    pub(super) fn again(&mut self, now: Time) {
        if self.asked == Some(true) {
            self.asked = None;
            self.due = now;
        }
        self.announce(now);
    }

    /// The answer to a command. Returns whether the address works, when that is decided.
    pub(super) fn done(&mut self, now: Time, held: bool, ok: bool) -> Option<bool> {
        if ok {
            if held {
                self.failures = 0;
                return Some(true);
            }
            return None;
        }
        self.due = now + ADDRESS_RETRY;
        if held {
            self.failures += 1;
            return (self.failures >= ADDRESS_TRIES).then_some(false);
        }
        self.asked = None;
        None
    }

    /// Has it in place and announced, while `wanted`.
    pub(super) fn hold(&mut self, now: Time, out: &mut Vec<Command>) {
        if self.asked != Some(true) || now >= self.due {
            self.asked = Some(true);
            self.due = now + FENCE_RENEWAL;
            out.push(Command::Hold { vip: self.vip, lifetime: FENCE });
        }
        if self.announce.next.is_some_and(|next| now >= next) {
            out.push(Command::Announce { vip: self.vip });
            let a = &mut self.announce;
            a.last = Some(now);
            a.index += 1;
            a.next = Some(match ANNOUNCE_AT.get(a.index) {
                Some(after) => (a.start + *after).max(now + ANNOUNCE_GAP),
                None => now + ANNOUNCE_EVERY,
            });
        }
    }

    /// Has it away.
    pub(super) fn release(&mut self, now: Time, out: &mut Vec<Command>) {
        if self.asked.unwrap_or(now >= self.due) {
            self.asked = Some(false);
            out.push(Command::Release { vip: self.vip });
        }
    }

    /// When to look at it again, but for [`Address::renewal`].
    pub(super) fn wake(&self, held: bool) -> [Option<Time>; 2] {
        let renewal = self.renewal(held);
        let due = (held || self.asked.is_none()).then_some(self.due);
        [due.filter(|_| renewal.is_none()), self.announce.next.filter(|_| held)]
    }

    /// When it is to be renewed, sooner or later: there is time for a few tries before the kernel takes it off.
    pub(super) fn renewal(&self, held: bool) -> Option<Time> {
        (held && self.asked == Some(true) && self.failures == 0).then_some(self.due)
    }
}
