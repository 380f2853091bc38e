//! Votes, grants and their expiry: who owns a VIP, decided by leases.
//!
//! ```text
//!            claim (epoch, lease) in a heartbeat sent at s            grant (owner, epoch, counter)
//!   claimant ───────────────────────────────────────────▶ voter ─────────────────────────────────▶ claimant
//!   owns until s + lease − margin, by its own clock        votes for no other until receipt + lease, by its own clock
//! ```
//!
//! The receipt is later than the sending and the margin covers the clocks' rates, so the owner's time always ends before the
//! voter's. No two clocks are compared. An epoch carries its owner's number, so no two nodes can ever own the same one.

use std::time::Duration;

use crate::config::{MAX_NODES, NodeId};
use crate::plant::{Bug, Planted};
use crate::time::Time;
use crate::wire::{Claim, Grant, Session};

/// The owner's lease ends earlier than the voter's by this part of it: covers clocks whose rates differ by up to 3 %.
pub const MARGIN_DIVISOR: u32 = 32;

/// Epochs are numbered so that the owner can be read from them.
const EPOCH_STRIDE: u64 = 8;
const _: () = assert!(MAX_NODES < EPOCH_STRIDE as usize);

/// The lowest epoch of this node above `seen`.
pub fn next_epoch(seen: u64, me: NodeId) -> u64 {
    (seen / EPOCH_STRIDE + 1) * EPOCH_STRIDE + u64::from(me.0)
}

/// How long an owner may count on a grant that was asked for `lease`.
pub fn usable(lease: Duration, planted: Planted) -> Duration {
    if planted.has(Bug::SkipMargin) { lease } else { lease - lease / MARGIN_DIVISOR }
}

/// One node's vote for the owner of one VIP.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Voter {
    seen: u64,
    vote: Option<Vote>,
    /// After its start a voter does not know whom it voted for before.
    quiet_until: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Vote {
    owner: NodeId,
    epoch: u64,
    session: Session,
    counter: u64,
    /// `None`: for itself, as long as it claims.
    until: Option<Time>,
}

/// A peer's claim as it came in a heartbeat.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Who claims.
    pub by: NodeId,
    /// What.
    pub claim: Claim,
    /// For how long, counted from the sending.
    pub lease: Duration,
    /// Session of the heartbeat.
    pub session: Session,
    /// Counter of the heartbeat.
    pub counter: u64,
}

impl Voter {
    /// A voter at its start, which knows that epochs below `seen` are used up.
    pub fn new(seen: u64, quiet_until: Time) -> Voter {
        Voter { seen, vote: None, quiet_until }
    }

    /// The highest epoch seen.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Takes note of an epoch that is in use.
    pub fn observe(&mut self, epoch: u64) {
        self.seen = self.seen.max(epoch);
    }

    /// May vote for someone new.
    pub fn may_vote(&self, now: Time, planted: Planted) -> bool {
        now >= self.quiet_until || planted.has(Bug::NoSilence)
    }

    /// Whom the vote has gone to, while that runs.
    pub fn grant(&self, now: Time) -> Option<Grant> {
        let vote = self.vote.filter(|v| v.until.is_none_or(|until| now < until))?;
        Some(Grant { owner: vote.owner, epoch: vote.epoch, session: vote.session, counter: vote.counter })
    }

    /// When the running vote ends.
    pub fn expiry(&self) -> Option<Time> {
        self.vote.and_then(|v| v.until)
    }

    /// Considers a peer's claim; new votes are given only below `ceiling`, the epochs that the disk already covers.
    pub fn consider(&mut self, now: Time, asked: Asked, ceiling: u64, planted: Planted) {
        let Asked { by, claim, lease, session, counter } = asked;
        let running = self.grant(now);
        let renewal = running.is_some_and(|g| g.owner == by && claim.epoch >= g.epoch);
        if !renewal {
            let taken = running.is_some() && !planted.has(Bug::GrantTwice);
            // A claim that was held when it was sent, in a session that is fresh, proves that no other vote of ours can count.
            let silent = !claim.held && !self.may_vote(now, planted);
            if taken || silent || claim.epoch < self.seen || claim.epoch >= ceiling {
                self.observe(claim.epoch);
                return;
            }
        }
        self.observe(claim.epoch);
        let mut until = now + lease;
        if let Some(before) = self.vote.filter(|v| v.owner == by).and_then(|v| v.until) {
            until = until.max(before);
        }
        // The owner may have raised its epoch beyond what this node's disk covers: the vote goes on for the old one, since what is
        // voted for must never be forgotten.
        let epoch = running.filter(|_| claim.epoch >= ceiling).map_or(claim.epoch, |g| g.epoch);
        self.vote = Some(Vote { owner: by, epoch, session, counter, until: Some(until) });
    }

    /// Votes for itself.
    ///
    /// # Panics
    /// When the vote has gone to another and still runs.
    pub fn vote_for_self(&mut self, now: Time, me: NodeId, session: Session, epoch: u64) {
        assert!(self.grant(now).is_none_or(|g| g.owner == me), "a running vote is not taken back");
        self.observe(epoch);
        self.vote = Some(Vote { owner: me, epoch, session, counter: 0, until: None });
    }

    /// The owner says that it claims no more: the vote is free.
    pub fn released_by(&mut self, owner: NodeId) {
        if self.vote.is_some_and(|v| v.owner == owner) {
            self.vote = None;
        }
    }
}

/// The grants that a claimant has collected.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tally {
    until: [Option<Time>; MAX_NODES],
}

impl Tally {
    /// No grants.
    pub fn new() -> Tally {
        Tally { until: [None; MAX_NODES] }
    }

    /// A peer's vote runs at least until then, by our clock.
    pub fn add(&mut self, peer: NodeId, until: Time) {
        let slot = &mut self.until[peer.0 as usize];
        *slot = (*slot).max(Some(until));
    }

    /// When the majority of `votes` nodes is lost, our own vote being one of them; `None`: our own vote is enough.
    pub fn end(&self, votes: usize) -> Option<Time> {
        let mut ends = self.until;
        ends.sort_unstable_by(|a, b| b.cmp(a));
        match votes {
            0 | 1 => None,
            _ => Some(ends[votes - 2].unwrap_or(Time::ZERO)),
        }
    }
}

impl Default for Tally {
    fn default() -> Tally {
        Tally::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(0);
    const B: NodeId = NodeId(1);
    const LEASE: Duration = Duration::from_millis(100);

    fn at(ms: u64) -> Time {
        Time(ms * 1000)
    }

    fn asked(by: NodeId, epoch: u64, held: bool, counter: u64) -> Asked {
        Asked { by, claim: Claim { epoch, held }, lease: LEASE, session: Session(7), counter }
    }

    fn owner(voter: &Voter, ms: u64) -> Option<NodeId> {
        voter.grant(at(ms)).map(|g| g.owner)
    }

    #[test]
    fn a_running_vote_is_for_one_owner_only() {
        let mut voter = Voter::new(0, Time::ZERO);
        voter.consider(at(0), asked(A, 8, false, 1), 1000, Planted::default());
        voter.consider(at(50), asked(B, 17, false, 1), 1000, Planted::default());
        assert_eq!(owner(&voter, 99), Some(A));
        assert_eq!(owner(&voter, 100), None, "the lease is over");
        voter.consider(at(100), asked(B, 17, false, 2), 1000, Planted::default());
        assert_eq!(owner(&voter, 100), Some(B));
    }

    #[test]
    fn a_voter_that_has_just_started_keeps_silent_except_to_an_owner() {
        let mut voter = Voter::new(0, at(500));
        voter.consider(at(10), asked(B, 17, false, 1), 1000, Planted::default());
        assert_eq!(owner(&voter, 10), None);
        voter.consider(at(10), asked(A, 24, true, 1), 1000, Planted::default());
        assert_eq!(owner(&voter, 10), Some(A));
    }

    #[test]
    fn an_epoch_below_one_that_was_seen_gets_no_vote() {
        let mut voter = Voter::new(64, Time::ZERO);
        voter.consider(at(0), asked(A, 56, true, 1), 1000, Planted::default());
        assert_eq!(owner(&voter, 0), None);
    }

    #[test]
    fn an_epoch_that_the_disk_does_not_cover_gets_no_vote_but_is_seen() {
        let mut voter = Voter::new(0, Time::ZERO);
        voter.consider(at(0), asked(A, 1000, false, 1), 1000, Planted::default());
        assert_eq!((owner(&voter, 0), voter.seen()), (None, 1000));
    }

    #[test]
    fn a_shorter_lease_does_not_cut_a_promise_short() {
        let mut voter = Voter::new(0, Time::ZERO);
        voter.consider(at(0), asked(A, 8, true, 1), 1000, Planted::default());
        let short = Asked { lease: LEASE / 4, ..asked(A, 8, true, 2) };
        voter.consider(at(10), short, 1000, Planted::default());
        assert_eq!(owner(&voter, 99), Some(A));
    }

    #[test]
    fn the_majority_ends_with_the_last_grant_that_it_needs() {
        let mut tally = Tally::new();
        assert_eq!(tally.end(1), None, "a node alone in its set needs no other");
        assert_eq!(tally.end(2), Some(Time::ZERO));
        tally.add(A, at(70));
        tally.add(B, at(90));
        assert_eq!(tally.end(2), Some(at(90)), "two of three: one grant beside our own");
        assert_eq!(tally.end(3), Some(at(70)), "three of five: two grants beside our own");
    }

    #[test]
    fn an_epoch_names_its_owner_and_rises() {
        assert_eq!(next_epoch(0, B), 9);
        assert_eq!(next_epoch(9, A), 16);
        assert_ne!(next_epoch(9, A), next_epoch(9, B));
    }
}
