//! One VIP as one node handles it: may I own it, shall I ask for it, must I give it up, when to announce it again?
//!
//! ```text
//!            vacant, eligible, my turn                 majority of grants
//!   Idle ───────────────────────────────▶ Asking ─────────────────────────▶ Owner
//!    ▲                                      │ no majority in time             │ grants run out, a higher epoch,
//!    └──────────────────────────────────────┴─────────────────────────────────┘ unfit, moved: named successor
//! ```
//!
//! Beside this, a lone survivor may hold the address without a majority ([`Vip::lone`]); and after a hand-over the old owner lets
//! the address linger until its successor owns it, so that somebody answers ARP at every moment.

mod address;
mod rival;

use std::time::Duration;

use crate::command::Command;
use crate::config::{Lone, NodeId, VipId};
use crate::decision::{Decision, WhyClaim, WhyYield};
use crate::event::Probe;
use crate::health::{Fitness, PROBE_TIMEOUT, Reason};
use crate::lease::{Asked, Tally, Voter, next_epoch, usable};
use crate::peer::{Own, Peer};
use crate::plant::{Bug, Planted};
use crate::time::Time;
use crate::wire::{Claim, VipKey, VipReport};
use address::Address;
pub use address::*;
pub use rival::*;

/// Whoever gave a VIP up lets others go first for so long.
pub const HOLD_OFF: Duration = Duration::from_secs(1);
/// The old owner still answers for the VIP so long after its named successor owns it, or until it hears that announced.
pub const HAND_OVER_LINGER: Duration = Duration::from_millis(50);
/// A node is alone when it has heard nobody for so long, or for three leases if that is longer.
pub const LONE_AFTER: Duration = Duration::from_millis(300);
/// A lone survivor that found somebody answering for the VIP asks again after so long, plus as much again for each node before
/// it in the document, so that two of them do not ask at once.
pub const LONE_RETRY: Duration = Duration::from_millis(1000);

/// Everything outside the VIP that its decisions depend on.
pub struct View<'a> {
    /// Now.
    pub now: Time,
    /// This node's place in the exchange of heartbeats.
    pub own: Own,
    /// Nodes in the set.
    pub nodes: usize,
    /// The others; the entry of this node is not used.
    pub peers: &'a [Peer],
    /// This node's fitness.
    pub fitness: Fitness,
    /// Since when it is fit.
    pub fit_since: Option<Time>,
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// The lease in force.
    pub lease: Duration,
    /// Epochs below are covered by the disk.
    pub ceiling: u64,
    /// Policy for a lone survivor.
    pub lone: Lone,
    /// When a VIP returns to its preferred node.
    pub rebalance_after: Option<Duration>,
    /// Since when nothing authentic was heard of any other node.
    pub alone_since: Time,
    /// When the gateway last answered.
    pub gateway_at: Option<Time>,
    /// The gateway has stopped to answer.
    pub gateway_lost: bool,
    /// The relay rules in force are those that are wanted.
    pub relays: bool,
    /// The loop stood still just now.
    pub gap: bool,
    /// Planted bugs.
    pub planted: Planted,
}

impl View<'_> {
    fn majority(&self) -> usize {
        self.nodes / 2 + 1
    }

    fn others(&self) -> impl Iterator<Item = (NodeId, &Peer)> {
        let me = self.own.me;
        (0..self.nodes as u8).map(NodeId).filter(move |n| *n != me).map(|n| (n, &self.peers[n.0 as usize]))
    }

    /// Others that live and hear us: with these a majority can be made.
    fn partners(&self) -> impl Iterator<Item = (NodeId, &Peer)> {
        self.others().filter(|(_, p)| p.hears_us(self.own, self.planted))
    }
}

/// One VIP.
#[derive(Clone, Debug)]
pub struct Vip {
    id: VipId,
    key: VipKey,
    prefer: NodeId,
    voter: Voter,
    role: Role,
    tally: Tally,
    lone: Option<u64>,
    lone_probe: LoneProbe,
    successor: Option<(NodeId, Time)>,
    linger_until: Option<Time>,
    handed_to: Option<NodeId>,
    hold_off_until: Time,
    /// A peer has claimed it with a higher epoch, and perhaps does not hear that nobody votes for it: no answer at the wire's pace.
    not_before: Time,
    vacant_since: Option<Time>,
    last_owner: Option<NodeId>,
    owned_since: Time,
    address: Address,
    conflict_logged: Option<Time>,
    rival: Rival,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Idle,
    Asking {
        epoch: u64,
        since: Time,
    },
    /// `first` is the epoch that the majority was won with; an owner may raise it without losing anything.
    Owner {
        first: u64,
        epoch: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LoneProbe {
    Idle,
    Asked,
    Free(Time),
    WaitUntil(Time),
}

impl Vip {
    /// A VIP at the start of the supervisor.
    pub fn new(id: VipId, name: &str, prefer: NodeId, seen: u64, now: Time, quiet_until: Time) -> Vip {
        Vip {
            id,
            key: VipKey::of(name),
            prefer,
            voter: Voter::new(seen, quiet_until),
            role: Role::Idle,
            tally: Tally::new(),
            lone: None,
            lone_probe: LoneProbe::Idle,
            successor: None,
            linger_until: None,
            handed_to: None,
            hold_off_until: now,
            not_before: now,
            vacant_since: None,
            last_owner: None,
            owned_since: now,
            address: Address::unknown(id, now, quiet_until),
            conflict_logged: None,
            rival: Rival::default(),
        }
    }

    /// Its key on the wire.
    pub fn key(&self) -> VipKey {
        self.key
    }

    /// The highest epoch seen.
    pub fn seen(&self) -> u64 {
        self.voter.seen()
    }

    /// The epoch of this node's ownership by majority, while its lease runs.
    pub fn owned(&self, now: Time, majority: usize) -> Option<u64> {
        match self.role {
            Role::Owner { epoch, .. } if self.tally.end(majority).is_none_or(|end| now < end) => Some(epoch),
            _ => None,
        }
    }

    /// The epoch of this node's ownership as a lone survivor.
    pub fn lone(&self) -> Option<u64> {
        self.lone
    }

    /// When the lease ends; `None` when this node does not own the VIP or is a majority by itself.
    pub fn lease_end(&self, majority: usize) -> Option<Time> {
        matches!(self.role, Role::Owner { .. }).then(|| self.tally.end(majority)).flatten()
    }

    /// Who owned it last, as far as this node knows.
    pub fn last_owner(&self) -> Option<NodeId> {
        self.last_owner
    }

    /// This node's part in the VIP, for its heartbeat.
    pub fn report(&self, now: Time, majority: usize) -> VipReport {
        let claim = match self.role {
            Role::Idle => None,
            Role::Asking { epoch, .. } => Some(Claim { epoch, held: false }),
            Role::Owner { epoch, .. } => Some(Claim { epoch, held: self.owned(now, majority).is_some() }),
        };
        VipReport {
            vip: self.key,
            seen: self.voter.seen(),
            claim,
            grant: self.voter.grant(now),
            successor: self.successor.map(|(node, _)| node),
        }
    }

    /// A believed heartbeat of a peer: votes, counts its vote, ends an ownership that is superseded.
    ///
    /// `sent` gives when our heartbeat of a counter was sent and the lease that it asked for.
    pub fn hear(
        &mut self,
        v: &View,
        from: NodeId,
        sent: &dyn Fn(u64) -> Option<(Time, Duration)>,
        out: &mut Vec<Command>,
    ) {
        let peer = &v.peers[from.0 as usize];
        let (Some(said), Some(report)) = (peer.said(), peer.report(self.key).copied()) else {
            self.voter.released_by(from);
            return;
        };
        match report.claim {
            None => self.voter.released_by(from),
            Some(claim) => {
                self.hear_claim(v, from, claim, out);
                let asked = Asked { by: from, claim, lease: said.lease, session: said.session, counter: said.counter };
                // Whoever does not hear this voter cannot count its vote, and would only bind it.
                let counts =
                    peer.hears_us(v.own, v.planted) || self.voter.grant(v.now).is_some_and(|g| g.owner == from);
                if counts {
                    self.voter.consider(v.now, asked, v.ceiling, v.planted);
                } else {
                    self.voter.observe(claim.epoch);
                }
            }
        }
        self.voter.observe(report.seen);
        // A lone survivor may hear a voter of the new owner without hearing that owner itself.
        if let Some(grant) = report.grant.filter(|grant| grant.owner != v.own.me)
            && let Some(epoch) = self.lone.take()
        {
            self.linger_until = Some(v.now + v.lease);
            let (to, why) = (Some(grant.owner), WhyYield::Rejoined(grant.owner));
            self.log(v, out, Decision::Yield { vip: self.id, epoch, to, why });
        }
        let base = match self.role {
            Role::Idle => return,
            Role::Asking { epoch, .. } => epoch,
            Role::Owner { first, .. } => first,
        };
        if let Some(grant) = report.grant
            && grant.owner == v.own.me
            && grant.session == v.own.session
            && grant.epoch >= base
            && let Some((at, lease)) = sent(grant.counter)
        {
            let from_when = if v.planted.has(Bug::LeaseFromReceipt) { v.now } else { at };
            self.tally.add(from, from_when + usable(lease, v.planted));
        }
    }

    fn hear_claim(&mut self, v: &View, from: NodeId, claim: Claim, out: &mut Vec<Command>) {
        let mine = match self.role {
            Role::Idle => 0,
            Role::Asking { epoch, .. } | Role::Owner { epoch, .. } => epoch,
        };
        if claim.epoch > mine && mine > 0 && !v.planted.has(Bug::IgnoreHigherEpoch) {
            match self.role {
                Role::Owner { .. } => self.give_up(v, Some(from), WhyYield::Superseded(from), out),
                _ => self.withdraw(v),
            }
            self.not_before = v.now + v.heartbeat;
        }
        if claim.held {
            self.last_owner = Some(from);
            // The successor has only just asked its kernel for the address; until that is done we still answer for it.
            let planned = self.handed_to == Some(from);
            self.linger_until = self.linger_until.filter(|_| planned).map(|until| until.min(v.now + HAND_OVER_LINGER));
            self.successor = None;
            self.address.elsewhere(v.now);
            if let Some(epoch) = self.lone.take() {
                self.log(
                    v,
                    out,
                    Decision::Yield { vip: self.id, epoch, to: Some(from), why: WhyYield::Rejoined(from) },
                );
            }
        }
    }

    /// Looks at the world and the clock again. Returns the next time at which that is needed.
    pub fn advance(&mut self, v: &View, out: &mut Vec<Command>) -> Time {
        self.keep_or_lose(v, out);
        self.ask(v, out);
        self.survive(v, out);
        self.place(v, out);
        self.wake(v)
    }

    /// The owner's side: win, lose, hand over.
    fn keep_or_lose(&mut self, v: &View, out: &mut Vec<Command>) {
        let end = self.tally.end(v.majority());
        let counts = end.is_none_or(|end| v.now < end);
        match self.role {
            Role::Asking { epoch, .. } if counts => {
                self.role = Role::Owner { first: epoch, epoch };
                self.lone = None;
                self.owned_since = v.now;
                self.rival = Rival::default();
                self.last_owner = Some(v.own.me);
                self.address.won(v.now);
                self.log(v, out, Decision::Own { vip: self.id, epoch, lone: false });
            }
            // A claim that nobody can answer any more must not surprise the next owner when the link comes back.
            Role::Asking { .. } if v.partners().count() + 1 < v.majority() => self.withdraw(v),
            Role::Asking { since, .. } if v.now.since(since) >= v.lease * 2 => {
                self.withdraw(v);
                self.hold_off_until = v.now + v.heartbeat * (1 + u32::from(v.own.me.0));
            }
            Role::Owner { .. } if !counts => {
                let why = if v.gap { WhyYield::Gap } else { WhyYield::Expired };
                self.give_up(v, None, why, out);
                self.hold_off_until = v.now;
            }
            Role::Owner { first, epoch } => {
                if epoch < self.voter.seen() {
                    let raised = next_epoch(self.voter.seen(), v.own.me);
                    if raised < v.ceiling {
                        self.voter.vote_for_self(v.now, v.own.me, v.own.session, raised);
                        self.role = Role::Owner { first, epoch: raised };
                    }
                }
                if let Some((to, why)) = self.reason_to_yield(v) {
                    self.hand_over(v, to, why, out);
                }
            }
            _ => {}
        }
        if self.successor.is_some_and(|(_, until)| v.now >= until) {
            self.successor = None;
        }
    }

    fn reason_to_yield(&self, v: &View) -> Option<(Option<NodeId>, WhyYield)> {
        let best =
            v.partners().filter(|(_, p)| p.fitness() == Some(Fitness::Fit)).min_by_key(|(n, p)| self.rank(v, *n, p));
        let best = best.map(|(n, _)| n);
        match v.fitness {
            Fitness::Unfit(_) if v.planted.has(Bug::KeepUnfit) => None,
            Fitness::Unfit(reason) => Some((best, WhyYield::Fitness(reason))),
            Fitness::Degraded(reason) => best.map(|to| (Some(to), WhyYield::Fitness(reason))),
            Fitness::Fit => {
                let preferred = best.filter(|n| *n == self.prefer)?;
                let since = v.peers[preferred.0 as usize].fit_since?;
                // Only a node that has come back since: what an operator has moved away from a healthy node stays where it is.
                let back = since > self.owned_since && v.now.since(since) >= v.rebalance_after?;
                back.then_some((best, WhyYield::Rebalanced))
            }
        }
    }

    /// Ends this node's ownership in favour of `to`, which may ask at once.
    pub fn hand_over(&mut self, v: &View, to: Option<NodeId>, why: WhyYield, out: &mut Vec<Command>) {
        self.give_up(v, to, why, out);
        self.handed_to = to;
        self.successor = to.map(|node| (node, v.now + HOLD_OFF));
    }

    fn give_up(&mut self, v: &View, to: Option<NodeId>, why: WhyYield, out: &mut Vec<Command>) {
        let Role::Owner { epoch, .. } = self.role else { return };
        self.log(v, out, Decision::Yield { vip: self.id, epoch, to, why });
        self.withdraw(v);
        self.handed_to = None;
        self.hold_off_until = v.now + HOLD_OFF;
        if !v.planted.has(Bug::BreakBeforeMake) {
            self.linger_until = Some(v.now + v.lease);
        }
    }

    fn withdraw(&mut self, v: &View) {
        self.role = Role::Idle;
        self.tally = Tally::new();
        self.voter.released_by(v.own.me);
        self.vacant_since = None;
    }

    /// The claimant's side: whose turn is it?
    fn ask(&mut self, v: &View, out: &mut Vec<Command>) {
        if self.role != Role::Idle {
            return;
        }
        let free = |p: &Peer| {
            p.report(self.key).is_none_or(|r| r.claim.is_none() && r.grant.is_none_or(|g| g.owner == v.own.me))
        };
        // What a peer said longer ago may no longer be so: a deaf node must not ask on the strength of it.
        let lately = |p: &Peer| p.heard_at().is_some_and(|at| v.now.since(at) <= v.heartbeat * 3 / 2);
        let votes = 1 + v.partners().filter(|(_, p)| free(p) && lately(p)).count();
        // Without the relay rules in force an owner would reset connections that others carry.
        let possible = v.relays
            && !matches!(v.fitness, Fitness::Unfit(_))
            && self.voter.may_vote(v.now, v.planted)
            && self.voter.grant(v.now).is_none()
            && votes >= v.majority();
        if !possible {
            self.vacant_since = None;
            return;
        }
        let since = *self.vacant_since.get_or_insert(v.now);
        let epoch = next_epoch(self.voter.seen(), v.own.me);
        if v.now < self.ask_at(v, since) || epoch >= v.ceiling {
            return;
        }
        let named_by = v.partners().find(|(_, p)| p.report(self.key).is_some_and(|r| r.successor == Some(v.own.me)));
        let why = match (named_by, self.last_owner.filter(|n| *n != v.own.me)) {
            (Some((by, _)), _) => WhyClaim::Named(by),
            (None, Some(owner)) => WhyClaim::Expired(owner),
            (None, None) => WhyClaim::Vacant,
        };
        self.voter.vote_for_self(v.now, v.own.me, v.own.session, epoch);
        self.role = Role::Asking { epoch, since: v.now };
        self.tally = Tally::new();
        self.log(v, out, Decision::Claim { vip: self.id, epoch, why });
        self.keep_or_lose(v, out);
    }

    /// Better candidates go first; each gets the time of a heartbeat.
    fn ask_at(&self, v: &View, since: Time) -> Time {
        let mine = (
            // Whoever has just passed the VIP on does not take it back because somebody named it earlier.
            self.successor.is_some() || !self.named(v, v.own.me),
            v.fitness.level(),
            v.now < self.hold_off_until,
            self.distance(v, v.own.me),
        );
        let before = v.partners().filter(|(n, p)| self.rank(v, *n, p) < mine).count();
        // A successor whom this node does not hear itself may still be heard by the others.
        let named = v.partners().filter_map(|(_, p)| p.report(self.key)?.successor);
        let unheard = named.filter(|s| *s != v.own.me && v.partners().all(|(n, _)| n != *s)).count();
        self.not_before.max(since + v.heartbeat * (before + unheard.min(1)) as u32)
    }

    /// Orders candidates, the best first: named by the last owner, fitter, not the one who has just given it up, nearer to the preferred.
    fn rank(&self, v: &View, node: NodeId, peer: &Peer) -> (bool, u8, bool, u8) {
        let yielded = peer.report(self.key).is_some_and(|r| r.successor.is_some());
        let level = match peer.fitness() {
            // It will be fit in a moment: when all start at once, the preferred node goes first.
            Some(Fitness::Unfit(Reason::Starting)) => 0,
            fitness => fitness.map_or(u8::MAX, Fitness::level),
        };
        (yielded || !self.named(v, node), level, yielded, self.distance(v, node))
    }

    fn named(&self, v: &View, node: NodeId) -> bool {
        v.partners().any(|(_, p)| p.report(self.key).is_some_and(|r| r.successor == Some(node)))
    }

    fn distance(&self, v: &View, node: NodeId) -> u8 {
        let nodes = v.nodes as u8;
        (node.0 + nodes - self.prefer.0) % nodes
    }

    /// The lone survivor: all others gone, the gateway answers, nobody answers for the VIP.
    fn survive(&mut self, v: &View, out: &mut Vec<Command>) {
        let unable = match v.fitness {
            Fitness::Unfit(reason) => Some(reason),
            _ => v.gateway_lost.then_some(Reason::GatewayLost),
        };
        if let (Some(epoch), Some(reason)) = (self.lone, unable) {
            self.lone = None;
            self.log(v, out, Decision::Yield { vip: self.id, epoch, to: None, why: WhyYield::Fitness(reason) });
        }
        // Only an answer to a probe that was sent after the others fell silent proves that this node is not cut off itself.
        let gateway = v.gateway_at.is_some_and(|at| at >= v.alone_since + PROBE_TIMEOUT);
        let alone = v.nodes > 1
            && v.now >= v.alone_since + LONE_AFTER.max(v.lease * 3)
            && self.voter.may_vote(v.now, v.planted)
            && v.lone == Lone::Serve
            && gateway
            && unable.is_none();
        if !alone || self.lone.is_some() || !matches!(self.role, Role::Idle | Role::Asking { .. }) {
            if !alone && !matches!(self.lone_probe, LoneProbe::Asked) {
                self.lone_probe = LoneProbe::Idle;
            }
            return;
        }
        if v.planted.has(Bug::LoneWithoutProbe) {
            self.lone_probe = LoneProbe::Free(v.now);
        }
        match self.lone_probe {
            LoneProbe::Free(at) if v.now.since(at) <= v.lease => {
                let epoch = next_epoch(self.voter.seen(), v.own.me);
                if epoch >= v.ceiling {
                    return;
                }
                self.voter.observe(epoch);
                self.lone = Some(epoch);
                self.lone_probe = LoneProbe::Idle;
                self.address.won(v.now);
                self.log(v, out, Decision::Claim { vip: self.id, epoch, why: WhyClaim::Lone });
                self.log(v, out, Decision::Own { vip: self.id, epoch, lone: true });
            }
            LoneProbe::WaitUntil(until) if v.now < until => {}
            LoneProbe::Asked => {}
            _ => {
                self.lone_probe = LoneProbe::Asked;
                out.push(Command::Probe(Probe::Vip(self.id)));
            }
        }
    }

    /// The answer to [`Probe::Vip`].
    pub fn probed(&mut self, v: &View, answered: bool) {
        self.lone_probe = if answered {
            LoneProbe::WaitUntil(v.now + LONE_RETRY * (1 + u32::from(v.own.me.0)))
        } else {
            LoneProbe::Free(v.now)
        };
    }

    /// Somebody else claims the VIP: an owner says so again at once; a lone survivor gives way.
    pub fn conflict(&mut self, v: &View, mac: [u8; 6], out: &mut Vec<Command>) {
        if let Some(epoch) = self.lone.take() {
            self.lone_probe = LoneProbe::WaitUntil(v.now + LONE_RETRY * (1 + u32::from(v.own.me.0)));
            self.log(v, out, Decision::Conflict { vip: self.id, mac });
            self.log(v, out, Decision::Yield { vip: self.id, epoch, to: None, why: WhyYield::Conflict });
            return;
        }
        if self.owned(v.now, v.majority()).is_none() {
            // The successor has announced itself: it answers from now on.
            self.linger_until = self.linger_until.filter(|_| self.handed_to.is_none());
            return;
        }
        if v.planted.has(Bug::NoReannounce) {
            return;
        }
        self.address.announce(v.now);
        if !v.others().any(|(_, peer)| peer.said().is_some_and(|said| said.mac == mac)) {
            self.rival.heard(v.now, mac);
        }
        if self.conflict_logged.is_none_or(|at| v.now.since(at) >= Duration::from_secs(1)) {
            self.conflict_logged = Some(v.now);
            self.log(v, out, Decision::Conflict { vip: self.id, mac });
        }
    }

    /// Who outside the set claims the VIP that this node owns, if that goes on.
    pub fn rival(&self, now: Time) -> Option<[u8; 6]> {
        self.rival.stubborn(now)
    }

    /// Something has changed on the link, a peer came back: whoever owns the VIP says so again.
    pub fn announce_again(&mut self, now: Time) {
        self.address.announce(now);
    }

    /// The carrier came back: the kernel may have lost the address.
    pub fn place_again(&mut self, now: Time) {
        self.address.again(now);
    }

    /// The answer to a command about the address. Returns whether the address works, when that is decided.
    pub fn address_done(&mut self, now: Time, held: bool, ok: bool) -> Option<bool> {
        self.address.done(now, held, ok)
    }

    /// This node owns the VIP, or answers for it until its successor does.
    pub fn answers(&self) -> bool {
        self.holds() || self.linger_until.is_some()
    }

    fn holds(&self) -> bool {
        matches!(self.role, Role::Owner { .. }) || self.lone.is_some()
    }

    /// Has the address where it belongs, and announced.
    fn place(&mut self, v: &View, out: &mut Vec<Command>) {
        if self.linger_until.is_some_and(|until| v.now >= until) {
            self.linger_until = None;
        }
        if self.holds() {
            self.address.hold(v.now, out);
        } else if self.linger_until.is_none() {
            self.address.release(v.now, out);
        }
    }

    /// When its address is to be renewed, sooner or later.
    pub(crate) fn renewal(&self) -> Option<Time> {
        self.address.renewal(self.holds())
    }

    fn wake(&self, v: &View) -> Time {
        let candidates = [
            self.lease_end(v.majority()),
            self.voter.expiry(),
            match self.role {
                Role::Asking { since, .. } => Some(since + v.lease * 2),
                _ => None,
            },
            self.vacant_since.map(|since| self.ask_at(v, since)),
            self.linger_until,
            self.successor.map(|(_, until)| until),
            match self.lone_probe {
                LoneProbe::WaitUntil(until) => Some(until),
                _ => None,
            },
        ];
        // What is due already but not done waits for an event, not for the clock.
        let candidates = candidates.into_iter().chain(self.address.wake(self.holds()));
        candidates.flatten().filter(|t| *t > v.now).min().unwrap_or(v.now + ANNOUNCE_EVERY)
    }

    fn log(&self, v: &View, out: &mut Vec<Command>, decision: Decision) {
        if !v.planted.has(Bug::Silent) {
            out.push(Command::Log(decision));
        }
    }
}
