//! One node: the only place where the machines meet.
//!
//! ```text
//!   Event ─▶ facts (peers, health, VIPs) ─▶ advance: what is wanted now ─▶ Commands for the difference
//! ```
//!
//! [`Node::step`] takes in one event and then looks at everything again: what follows from a fact is decided in one place, whatever
//! brought the fact. Nothing here waits, fails or reads a clock.

mod view;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::command::{Accepted, BackendState, Command, Deed, Refused, Ring};
use crate::config::{MAX_NODES, NodeId, Settings, VipId};
use crate::decision::{Decision, Ordered, WhyYield};
use crate::event::{Event, Probe, Request, Unit};
use crate::health::{Fitness, Health, Reason, UNIT_PATIENCE};
use crate::peer::{Own, Peer};
use crate::plant::{Bug, Planted};
use crate::time::Time;
use crate::vip::{View, Vip};
use crate::wire::{Ask, Authentic, DiskRecord, Echo, Heartbeat, Session, VipReport, What};

/// Epochs are reserved on disk in blocks of so many, so that no hand-over waits for a disk.
pub const EPOCH_BLOCK: u64 = 4096;
/// In this time half of the measured jitter is forgotten.
pub const JITTER_HALF_LIFE: Duration = Duration::from_secs(5);
/// Lateness below is none.
const NO_JITTER: Duration = Duration::from_millis(1);
/// A peer that is silent is asked for its kernel's life so often.
pub const KERNEL_EVERY: Duration = Duration::from_millis(250);
/// A failed command is tried again after so long.
pub const RETRY: Duration = Duration::from_millis(250);
/// An operator's request is given up after so long.
pub const OPERATOR_PATIENCE: Duration = Duration::from_secs(3);
/// Requests of operators that may wait at the same time.
pub const MAX_TICKETS: usize = 16;
/// Our own heartbeats that are remembered: enough for the longest lease at the shortest interval.
const SENT: usize = 128;

/// One node of the set.
#[derive(Clone, Debug)]
pub struct Node {
    settings: Arc<Settings>,
    own: Own,
    mac: [u8; 6],
    planted: Planted,
    quiet_until: Time,
    last_step: Time,
    peers: Vec<Peer>,
    vips: Vec<Vip>,
    health: Health,
    fitness: Fitness,
    fit_since: Option<Time>,
    alone_since: Time,
    jitter: Jitter,
    lease: Duration,
    beat_due: Time,
    /// The beat that is due answers the leader's.
    following: bool,
    sent: VecDeque<Sent>,
    said: Option<Arc<Heartbeat>>,
    ring: Reconciled<Ring>,
    backends: Vec<Reconciled<BackendState>>,
    disk: Reconciled<DiskRecord>,
    durable: DiskRecord,
    kernel_due: Vec<Time>,
    unit_due: Time,
    ask: Option<Ask>,
    ask_serial: u32,
    tickets: Vec<Ticket>,
    deadline: Time,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    counter: u64,
    at: Time,
    lease: Duration,
}

/// The greatest lateness seen, halved every [`JITTER_HALF_LIFE`].
#[derive(Clone, Copy, Debug)]
struct Jitter {
    value: Duration,
    at: Time,
}

impl Jitter {
    fn now(&self, now: Time) -> Duration {
        let halvings = now.since(self.at).as_secs_f64() / JITTER_HALF_LIFE.as_secs_f64();
        self.value.mul_f64(0.5f64.powf(halvings))
    }

    fn observe(&mut self, now: Time, late: Duration) {
        if late < NO_JITTER {
            return;
        }
        let value = self.now(now).max(late);
        *self = Jitter { value, at: now };
    }
}

/// Something wanted that a shell puts in place: asked for when it differs, and again when that failed.
#[derive(Clone, Debug)]
struct Reconciled<T> {
    asked: Option<T>,
    retry: Option<Time>,
}

impl<T: Clone + PartialEq> Reconciled<T> {
    const fn new() -> Reconciled<T> {
        Reconciled { asked: None, retry: None }
    }

    /// Whether `wanted` must be asked for now.
    fn differs(&mut self, now: Time, wanted: &T) -> bool {
        if self.asked.as_ref() == Some(wanted) && self.retry.is_none_or(|at| now < at) {
            return false;
        }
        self.asked = Some(wanted.clone());
        self.retry = None;
        true
    }

    fn failed(&mut self, now: Time) {
        self.retry = Some(now + RETRY);
    }
}

/// An operator who waits for an answer.
#[derive(Clone, Copy, Debug)]
struct Ticket {
    number: u64,
    request: Request,
    until: Time,
}

/// An ownership by a node's own reckoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// Its epoch.
    pub epoch: u64,
    /// Without a majority.
    pub lone: bool,
}

impl Node {
    /// A node at the start of its supervisor. `session` is random, `record` what the disk holds, `mac` the address of the
    /// interface that it relays by.
    ///
    /// # Panics
    /// When `me` is not a node of `settings`.
    pub fn new(settings: Arc<Settings>, me: NodeId, session: Session, record: DiskRecord, mac: [u8; 6], now: Time) -> Node {
        assert!((me.0 as usize) < settings.nodes.len(), "a node is one of its set");
        let bounds = settings.set.lease;
        let quiet = if settings.nodes.len() > 1 { bounds.max + bounds.max / 32 } else { Duration::ZERO };
        let quiet_until = now + quiet;
        let vips = settings.vips.iter().enumerate();
        let vips = vips.map(|(at, vip)| Vip::new(VipId(at as u8), &vip.name, vip.prefer, record.epoch_ceiling, now, quiet_until));
        Node {
            own: Own { me, session, counter: 0 },
            mac,
            planted: Planted::default(),
            quiet_until,
            last_step: now,
            peers: settings.nodes.iter().map(|_| Peer::unheard()).collect(),
            vips: vips.collect(),
            health: Health::new(settings.vips.len(), record.drained, now),
            fitness: Fitness::Unfit(Reason::Starting),
            fit_since: None,
            alone_since: now,
            jitter: Jitter { value: Duration::ZERO, at: now },
            lease: bounds.min,
            beat_due: now,
            following: false,
            sent: VecDeque::with_capacity(SENT),
            said: None,
            ring: Reconciled::new(),
            backends: settings.nodes.iter().map(|_| Reconciled::new()).collect(),
            disk: Reconciled { asked: Some(record), retry: None },
            durable: record,
            kernel_due: settings.nodes.iter().map(|_| now).collect(),
            unit_due: now,
            ask: None,
            ask_serial: 0,
            tickets: Vec::new(),
            deadline: now,
            settings,
        }
    }

    /// Plants a bug, to prove that the simulator finds it.
    #[cfg(feature = "plant")]
    pub fn plant(&mut self, bug: crate::plant::Bug) {
        self.planted = Planted::one(bug);
        if self.planted.has(Bug::ForgetEpoch) {
            self.vips = self.settings.vips.iter().enumerate().map(|(at, vip)| Vip::new(VipId(at as u8), &vip.name, vip.prefer, 0, self.last_step, self.quiet_until)).collect();
        }
    }

    /// Takes in what has happened and appends what is to be done. `now` never goes back.
    pub fn step(&mut self, now: Time, event: Event, out: &mut Vec<Command>) {
        if let Event::Peer(datagram) = &event {
            let (peer, heartbeat) = (&mut self.peers[datagram.from().0 as usize], datagram.heartbeat());
            if !peer.is_fresh(self.own, heartbeat, self.planted) {
                // It changes nothing, not even when something else is done; and replays in any number cost next to nothing.
                peer.receive(now, self.own, heartbeat, self.planted);
                return;
            }
        }
        let gap = self.mind_the_gap(now, out);
        match event {
            Event::Timer => {}
            Event::Peer(datagram) => self.hear(now, &datagram, out),
            Event::Link { vip, up } => self.link(now, vip, up),
            Event::Conflict { vip, mac } => self.with_vip(now, vip, out, |v, view, out| v.conflict(view, mac, out)),
            Event::Unit { unit: Unit::Haproxy, active } => {
                // One that has just died is left to systemd for a while; one that never ran is started at once.
                if !active && self.health.haproxy == Some(true) {
                    self.unit_due = now + UNIT_PATIENCE;
                }
                self.health.haproxy_active(now, active);
            }
            Event::Unit { unit: Unit::Service(_), .. } => {}
            Event::Probed { probe, answered } => self.probed(now, probe, answered, out),
            Event::Done { deed, result } => self.done(now, deed, result, out),
            Event::Operator { ticket, request } => self.operator(now, ticket, request, out),
        }
        self.advance(now, gap, out);
    }

    /// When to call [`Node::step`] with [`Event::Timer`] at the latest.
    pub fn deadline(&self) -> Time {
        self.deadline
    }

    /// The epoch with which this node owns the VIP by its own reckoning: unexpired grants of a majority, or as lone survivor.
    pub fn owns(&self, vip: VipId, now: Time) -> Option<Ownership> {
        let vip = &self.vips[vip.0 as usize];
        let majority = vip.owned(now, self.majority()).map(|epoch| Ownership { epoch, lone: false });
        majority.or(vip.lone().map(|epoch| Ownership { epoch, lone: true }))
    }

    fn majority(&self) -> usize {
        self.settings.nodes.len() / 2 + 1
    }

    /// Everything outside the VIPs that their decisions depend on; beside it the VIPs, to be changed.
    fn view(&mut self, now: Time, gap: bool) -> (View<'_>, &mut Vec<Vip>) {
        let set = &self.settings.set;
        let view = View {
            now,
            own: self.own,
            nodes: self.settings.nodes.len(),
            peers: &self.peers,
            fitness: self.fitness,
            fit_since: self.fit_since,
            heartbeat: set.lease.heartbeat,
            lease: self.lease,
            ceiling: self.durable.epoch_ceiling,
            lone: set.lone,
            rebalance_after: set.rebalance_after,
            alone_since: self.alone_since,
            gateway_at: self.health.gateway_at(),
            gateway_lost: self.health.gateway_lost(),
            gap,
            planted: self.planted,
        };
        (view, &mut self.vips)
    }

    fn with_vip(&mut self, now: Time, vip: VipId, out: &mut Vec<Command>, act: impl FnOnce(&mut Vip, &View, &mut Vec<Command>)) {
        let (view, vips) = self.view(now, false);
        act(&mut vips[vip.0 as usize], &view, out);
    }

    /// The loop stood still for longer than the peers put up with: their silence in that time proves nothing.
    fn mind_the_gap(&mut self, now: Time, out: &mut Vec<Command>) -> bool {
        let late = now.since(self.deadline.max(self.last_step));
        let stood_still = now.since(self.last_step);
        self.last_step = now;
        if late > Duration::ZERO && late <= self.settings.set.lease.max {
            self.jitter.observe(now, late);
        }
        let gap = late >= self.lease / 2;
        if gap {
            for peer in &mut self.peers {
                peer.forgive(stood_still);
            }
            self.alone_since = self.alone_since + stood_still;
            self.log(out, Decision::Gap { gap_ms: stood_still.as_millis() as u32 });
        }
        gap
    }

    fn hear(&mut self, now: Time, datagram: &Authentic, out: &mut Vec<Command>) {
        let from = datagram.from();
        let heartbeat = datagram.heartbeat();
        let peer = &mut self.peers[from.0 as usize];
        let Some(gap) = peer.receive(now, self.own, heartbeat, self.planted) else { return };
        self.alone_since = now;
        let bounds = self.settings.set.lease;
        if gap <= bounds.max {
            self.jitter.observe(now, gap.saturating_sub(bounds.heartbeat));
        }
        let (returned, kernel_returned) = (!peer.live, !peer.kernel);
        (peer.live, peer.kernel) = (true, true);
        if returned {
            self.log(out, Decision::PeerHeard { peer: from });
        }
        if kernel_returned {
            self.log(out, Decision::Kernel { peer: from, alive: true });
        }
        let sent = std::mem::take(&mut self.sent);
        let when = |counter: u64| {
            let newest = sent.back()?.counter;
            let at = (sent.len() as u64).checked_sub(1 + newest.checked_sub(counter)?)?;
            sent.get(at as usize).map(|s| (s.at, s.lease))
        };
        let (view, vips) = self.view(now, false);
        for vip in vips {
            vip.hear(&view, from, &when, out);
            if returned {
                vip.announce_again(now);
            }
        }
        self.sent = sent;
        self.fall_in(now, from);
        self.obey(now, from, out);
    }

    /// Answers the heartbeat of whoever owns the first VIP at once, so that its lease is renewed in one round trip and all
    /// nodes wake at the same moments: half the wake-ups of three free rhythms.
    fn fall_in(&mut self, now: Time, from: NodeId) {
        let every = self.settings.set.lease.heartbeat;
        let claims = |report: Option<&VipReport>| report.is_some_and(|r| r.claim.is_some());
        let Some(first) = self.vips.first() else { return };
        let leads = claims(self.peers[from.0 as usize].report(first.key()));
        let follows = self.said.as_ref().is_some_and(|said| !claims(said.vips.first()));
        if leads && follows && now + every / 2 >= self.beat_due {
            self.beat_due = now;
            self.following = true;
        }
    }

    /// Does what an operator asked of a peer, if it is ours to do, once.
    fn obey(&mut self, now: Time, from: NodeId, out: &mut Vec<Command>) {
        let peer = &mut self.peers[from.0 as usize];
        let Some((session, ask)) = peer.said().and_then(|h| h.ask.map(|ask| (h.session, ask))) else { return };
        if ask.node != self.own.me || peer.acted == Some((session, ask.serial)) {
            return;
        }
        peer.acted = Some((session, ask.serial));
        match ask.what {
            What::Drain(drained) => self.drain(drained, out),
            What::Move { vip, epoch, to } => {
                let owned = self.vips.iter().position(|v| v.key() == vip).map(|at| VipId(at as u8));
                if let Some(id) = owned.filter(|id| self.owns(*id, now).is_some_and(|o| o.epoch == epoch)) {
                    self.hand_over(now, id, to, out);
                }
            }
        }
    }

    fn link(&mut self, now: Time, vip: VipId, up: bool) {
        self.health.link(vip, up);
        if up {
            self.vips[vip.0 as usize].place_again(now);
        }
    }

    fn probed(&mut self, now: Time, probe: Probe, answered: bool, out: &mut Vec<Command>) {
        self.health.probed(now, probe, answered);
        match probe {
            Probe::Vip(vip) => self.with_vip(now, vip, out, |v, view, _| v.probed(view, answered)),
            Probe::Kernel(node) => {
                self.kernel_due[node.0 as usize] = now + KERNEL_EVERY;
                let peer = &mut self.peers[node.0 as usize];
                if !peer.live && peer.kernel != answered {
                    peer.kernel = answered;
                    self.log(out, Decision::Kernel { peer: node, alive: answered });
                }
            }
            Probe::Front | Probe::Gateway => {}
        }
    }

    fn done(&mut self, now: Time, deed: Deed, result: Result<(), String>, out: &mut Vec<Command>) {
        let result = if self.planted.has(Bug::IgnoreFailure) { Ok(()) } else { result };
        let ok = result.is_ok();
        match deed {
            Deed::Hold(vip) => {
                if let Some(works) = self.vips[vip.0 as usize].address_done(now, true, ok) {
                    self.health.address(now, vip, works);
                }
            }
            Deed::Release(vip) => {
                self.vips[vip.0 as usize].address_done(now, false, ok);
            }
            Deed::Relay => {
                self.health.relay = Some(ok);
                if !ok {
                    self.ring.failed(now);
                }
            }
            Deed::Backend(node) if !ok => self.backends[node.0 as usize].failed(now),
            Deed::Persist => match self.disk.asked {
                Some(record) if ok => self.durable = record,
                _ => self.disk.failed(now),
            },
            Deed::Announce(_) | Deed::Backend(_) | Deed::Start(_) | Deed::Restart(_) => {}
        }
        if let Err(what) = result {
            self.log(out, Decision::Failed { what });
        }
    }

    fn drain(&mut self, drained: bool, out: &mut Vec<Command>) {
        if self.health.drained != drained {
            self.health.drained = drained;
            let what = if drained { Ordered::Drain } else { Ordered::Undrain };
            self.log(out, Decision::Operator { node: self.own.me, what });
        }
    }

    fn hand_over(&mut self, now: Time, vip: VipId, to: NodeId, out: &mut Vec<Command>) {
        let peer = &self.peers[to.0 as usize];
        // A successor that does not hear us would never learn that it is one.
        let willing = peer.hears_us(self.own, self.planted) && peer.fitness().is_some_and(|f| f.level() < 2);
        if to == self.own.me || !willing {
            return;
        }
        self.log(out, Decision::Operator { node: to, what: Ordered::Move(vip) });
        self.with_vip(now, vip, out, |v, view, out| v.hand_over(view, Some(to), WhyYield::Moved, out));
    }

    /// An operator asks: refuse at once what cannot be, do what is ours, pass on what is another's.
    fn operator(&mut self, now: Time, ticket: u64, request: Request, out: &mut Vec<Command>) {
        let answer = match request {
            Request::Move { vip, to } => self.order_move(now, vip, to, out),
            Request::Drain { node, drained } => self.order_drain(node, drained, out),
        };
        match answer {
            Some(answer) => out.push(Command::Answer { ticket, answer }),
            None if self.tickets.len() < MAX_TICKETS => {
                self.tickets.push(Ticket { number: ticket, request, until: now + OPERATOR_PATIENCE });
            }
            None => out.push(Command::Answer { ticket, answer: Err(Refused::Busy) }),
        }
    }

    fn order_move(&mut self, now: Time, vip: VipId, to: NodeId, out: &mut Vec<Command>) -> Option<Result<Accepted, Refused>> {
        let Some((owner, epoch)) = self.owner(vip, now) else { return Some(Err(Refused::NoOwner(vip))) };
        if owner == to {
            return Some(Ok(Accepted::Already));
        }
        let fitness = if to == self.own.me { Some(self.fitness) } else { self.peers[to.0 as usize].fitness() };
        match fitness {
            None => return Some(Err(Refused::NotHeard(to))),
            Some(Fitness::Fit) => {}
            Some(_) => return Some(Err(Refused::NotFit(to))),
        }
        if owner == self.own.me {
            if !self.peers[to.0 as usize].hears_us(self.own, self.planted) {
                return Some(Err(Refused::NotHeard(to)));
            }
            self.hand_over(now, vip, to, out);
        } else {
            let vip = self.vips[vip.0 as usize].key();
            self.pass_on(owner, What::Move { vip, epoch, to });
        }
        None
    }

    fn order_drain(&mut self, node: NodeId, drained: bool, out: &mut Vec<Command>) -> Option<Result<Accepted, Refused>> {
        let fit = |n: NodeId| if n == self.own.me { self.fitness } else { self.peers[n.0 as usize].fitness().unwrap_or(Fitness::Unfit(Reason::Starting)) };
        if drained && !self.nodes().any(|n| n != node && fit(n) == Fitness::Fit) {
            return Some(Err(Refused::NoOtherFit));
        }
        if self.is_drained(node).is_none() {
            return Some(Err(Refused::NotHeard(node)));
        }
        if self.is_drained(node) == Some(drained) {
            return Some(Ok(Accepted::Already));
        }
        if node == self.own.me {
            self.drain(drained, out);
        } else {
            self.pass_on(node, What::Drain(drained));
        }
        None
    }

    fn pass_on(&mut self, node: NodeId, what: What) {
        self.ask_serial += 1;
        self.ask = Some(Ask { serial: self.ask_serial, node, what });
    }

    fn is_drained(&self, node: NodeId) -> Option<bool> {
        if node == self.own.me {
            return Some(self.health.drained);
        }
        self.peers[node.0 as usize].said().filter(|_| self.peers[node.0 as usize].live).map(|h| h.drained)
    }

    /// Who owns a VIP as far as this node knows, and with which epoch.
    pub(crate) fn owner(&self, vip: VipId, now: Time) -> Option<(NodeId, u64)> {
        if let Some(own) = self.owns(vip, now) {
            return Some((self.own.me, own.epoch));
        }
        let key = self.vips[vip.0 as usize].key();
        let claims = self.nodes().filter(|n| *n != self.own.me).filter_map(|n| {
            let claim = self.peers[n.0 as usize].report(key)?.claim?;
            claim.held.then_some((n, claim.epoch))
        });
        claims.max_by_key(|(_, epoch)| *epoch)
    }

    fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.settings.nodes.len() as u8).map(NodeId)
    }

    /// Looks at everything again and asks for what is wanted but not in place.
    fn advance(&mut self, now: Time, gap: bool, out: &mut Vec<Command>) {
        self.adapt_lease(now, out);
        let mut wake = self.watch_peers(now, out);
        self.judge(now, out);
        let (view, vips) = self.view(now, gap);
        for vip in vips.iter_mut() {
            wake = wake.min(vip.advance(&view, out));
        }
        self.reconcile(now, out);
        self.answer_operators(now, out);
        self.beat(now, out);
        let unit = (self.health.haproxy == Some(false)).then_some(self.unit_due);
        let others =
            [Some(self.beat_due), self.health.wake(), self.ring.retry, self.disk.retry, Some(self.quiet_until), unit];
        let backends = self.backends.iter().map(|b| b.retry);
        let wakes = others.into_iter().chain(backends).flatten().filter(|t| *t > now);
        self.deadline = wakes.fold(wake, Time::min).max(now);
    }

    /// The lease follows the jitter: three heartbeats and twice the jitter, within its bounds.
    fn adapt_lease(&mut self, now: Time, out: &mut Vec<Command>) {
        if now < self.beat_due {
            return;
        }
        let bounds = self.settings.set.lease;
        let jitter = self.jitter.now(now);
        let wanted = (bounds.heartbeat * 3 + jitter * 2).clamp(bounds.min, bounds.max);
        let noticeable = wanted.abs_diff(self.lease) > self.lease / 8 || (wanted == bounds.min && self.lease != wanted);
        if noticeable {
            self.lease = wanted;
            let (lease_ms, jitter_ms) = (wanted.as_millis() as u32, jitter.as_millis() as u32);
            self.log(out, Decision::Lease { lease_ms, jitter_ms });
        }
    }

    /// Who lives? Returns when the next of them would be missed.
    fn watch_peers(&mut self, now: Time, out: &mut Vec<Command>) -> Time {
        let mut wake = now + self.settings.set.lease.max;
        for node in self.nodes().filter(|n| *n != self.own.me) {
            let lease = self.lease;
            let peer = &mut self.peers[node.0 as usize];
            if peer.live {
                let missed_at = peer.heard_at().unwrap_or(now) + lease;
                if now >= missed_at {
                    peer.live = false;
                    peer.fit_since = None;
                    if self.planted.has(Bug::RingLosesSilent) {
                        peer.kernel = false;
                    }
                    self.kernel_due[node.0 as usize] = now;
                    self.log(out, Decision::PeerLost { peer: node });
                } else {
                    wake = wake.min(missed_at);
                    match peer.fitness() {
                        Some(Fitness::Fit) => _ = peer.fit_since.get_or_insert(now),
                        _ => peer.fit_since = None,
                    }
                }
            }
            if !self.peers[node.0 as usize].live && self.peers[node.0 as usize].said().is_some() {
                let due = &mut self.kernel_due[node.0 as usize];
                if now >= *due {
                    // The answer sets the next time; should none come, this is the bound.
                    *due = now + KERNEL_EVERY * 4;
                    if !self.planted.has(Bug::RingKeepsDead) && !self.planted.has(Bug::RingLosesSilent) {
                        out.push(Command::Probe(Probe::Kernel(node)));
                    }
                }
                wake = wake.min(*due);
            }
        }
        wake
    }

    /// Fitness, and what can be done about it.
    fn judge(&mut self, now: Time, out: &mut Vec<Command>) {
        let alone = now > self.alone_since + self.lease;
        self.health.due(now, alone, |probe| out.push(Command::Probe(probe)));
        // A node that may not vote yet cannot own anything either: nobody should name it as a successor.
        let quiet = now < self.quiet_until;
        let fitness = if quiet { Fitness::Unfit(Reason::Starting) } else { self.health.fitness() };
        if fitness != self.fitness {
            self.log(out, Decision::Fitness { from: self.fitness, to: fitness });
            self.fitness = fitness;
            self.fit_since = (fitness == Fitness::Fit).then_some(now);
        }
        if now >= self.unit_due && self.health.relay == Some(true) {
            if self.health.haproxy == Some(false) {
                self.unit_due = now + UNIT_PATIENCE;
                out.push(Command::Start(Unit::Haproxy));
                self.log(out, Decision::UnitRestart { why: Reason::HaproxyDown });
            } else if self.health.hung(now) {
                self.unit_due = now + UNIT_PATIENCE;
                out.push(Command::Restart(Unit::Haproxy));
                self.log(out, Decision::UnitRestart { why: Reason::FrontSilent });
            }
        }
    }

    /// The relay ring, the backends and the disk follow what is known.
    fn reconcile(&mut self, now: Time, out: &mut Vec<Command>) {
        let everyone_heard = self.nodes().all(|n| n == self.own.me || self.peers[n.0 as usize].said().is_some());
        if everyone_heard || now >= self.quiet_until {
            let ring = self.wanted_ring();
            if self.ring.differs(now, &ring) {
                out.push(Command::Relay(ring));
            }
            for node in self.nodes() {
                let state = self.wanted_backend(node);
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
        if self.disk.differs(now, &record) {
            out.push(Command::Persist(record));
        }
    }

    fn wanted_ring(&self) -> Ring {
        let me = self.own.me;
        let n = self.settings.nodes.len() as u8;
        let after_me = (1..n).map(|step| NodeId((me.0 + step) % n));
        let in_ring = |node: &NodeId| {
            let peer = &self.peers[node.0 as usize];
            peer.said().is_some() && (peer.kernel || self.planted.has(Bug::RingKeepsDead))
        };
        let members: Vec<NodeId> = after_me.filter(in_ring).collect();
        let macs = self.nodes().filter(|n| *n != me).filter_map(|n| Some(self.peers[n.0 as usize].said()?.mac));
        Ring { next: members.first().copied(), last_hop: members.len() as u8, peer_macs: macs.collect() }
    }

    fn wanted_backend(&self, node: NodeId) -> BackendState {
        let peer = &self.peers[node.0 as usize];
        let drained = self.is_drained(node).unwrap_or(false);
        match () {
            () if node == self.own.me => if drained { BackendState::Drain } else { BackendState::Ready },
            () if peer.live && !drained => BackendState::Ready,
            () if peer.live || peer.kernel => BackendState::Drain,
            () => BackendState::Down,
        }
    }

    fn answer_operators(&mut self, now: Time, out: &mut Vec<Command>) {
        for ticket in std::mem::take(&mut self.tickets) {
            let done = match ticket.request {
                Request::Move { vip, to } => self.owner(vip, now).is_some_and(|(owner, _)| owner == to),
                Request::Drain { node, drained } => {
                    let owns = (0..self.vips.len() as u8).any(|vip| self.owner(VipId(vip), now).is_some_and(|(o, _)| o == node));
                    self.is_drained(node) == Some(drained) && (!drained || !owns)
                }
            };
            match (done, now >= ticket.until) {
                (true, _) => out.push(Command::Answer { ticket: ticket.number, answer: Ok(Accepted::Done) }),
                (false, true) => out.push(Command::Answer { ticket: ticket.number, answer: Err(Refused::TimedOut) }),
                (false, false) => self.tickets.push(ticket),
            }
        }
        if self.tickets.is_empty() {
            self.ask = None;
        }
    }

    /// Sends a heartbeat when one is due, and at once when it has something new to say.
    fn beat(&mut self, now: Time, out: &mut Vec<Command>) {
        if self.settings.nodes.len() < 2 {
            self.beat_due = now + self.settings.set.lease.heartbeat;
            return;
        }
        let heartbeat = self.heartbeat(now);
        let news = self.said.as_ref().is_none_or(|said| is_news(said, &heartbeat));
        if now < self.beat_due && !news {
            return;
        }
        if now >= self.beat_due {
            let every = self.settings.set.lease.heartbeat;
            // Whoever follows waits a little longer than the leader takes.
            let slack = if std::mem::take(&mut self.following) { every / 4 } else { Duration::ZERO };
            self.beat_due = (self.beat_due + every).max(now + every / 2) + slack;
        }
        self.own.counter = heartbeat.counter;
        if self.sent.len() == SENT {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent { counter: heartbeat.counter, at: now, lease: heartbeat.lease });
        let heartbeat = Arc::new(heartbeat);
        self.said = Some(heartbeat.clone());
        out.push(Command::Broadcast(heartbeat));
    }

    fn heartbeat(&self, now: Time) -> Heartbeat {
        let mut heard = [None; MAX_NODES];
        for node in self.nodes().filter(|n| *n != self.own.me) {
            heard[node.0 as usize] = self.peers[node.0 as usize].echo();
        }
        Heartbeat {
            session: self.own.session,
            counter: self.own.counter + 1,
            heard,
            fitness: self.fitness,
            drained: self.health.drained,
            mac: self.mac,
            fingerprint: self.settings.fingerprint,
            version: crate::VERSION,
            lease: self.lease,
            vips: self.vips.iter().map(|vip| vip.report(now, self.majority())).collect(),
            ask: self.ask,
        }
    }

    fn log(&self, out: &mut Vec<Command>, decision: Decision) {
        if !self.planted.has(Bug::Silent) {
            out.push(Command::Log(decision));
        }
    }
}

/// Whether a heartbeat says something that cannot wait: everything but counters and what merely goes on.
fn is_news(before: &Heartbeat, now: &Heartbeat) -> bool {
    let vip_news = |(a, b): (&VipReport, &VipReport)| {
        a.claim != b.claim || a.successor != b.successor || a.grant.map(|g| (g.owner, g.epoch)) != b.grant.map(|g| (g.owner, g.epoch))
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
