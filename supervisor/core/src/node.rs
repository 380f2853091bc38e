//! One node: the only place where the machines meet.
//!
//! ```text
//!   Event ─▶ facts (peers, health, VIPs) ─▶ advance: what is wanted now ─▶ Commands for the difference
//! ```
//!
//! [`Node::step`] takes in one event and then looks at everything again: what follows from a fact is decided in one place, whatever
//! brought the fact. Nothing here waits, fails or reads a clock.

mod beat;
mod operator;
mod reconcile;
mod view;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::command::{BackendState, Command, Deed, Ring};
use crate::config::{NodeId, Settings, VipId};
use crate::decision::Decision;
use crate::event::{Event, Probe, Unit};
use crate::health::{Fitness, Health, MOST_DOUBLINGS, Reason, UNIT_PATIENCE};
use crate::peer::{Own, Peer};
use crate::plant::{Bug, Planted};
use crate::time::Time;
use crate::vip::{View, Vip};
use crate::wire::{Ask, Authentic, DiskRecord, Heartbeat, Session};
use beat::{Jitter, Sent};
use operator::Ticket;
use reconcile::Reconciled;

/// Epochs are reserved on disk in blocks of so many, so that no hand-over waits for a disk.
pub const EPOCH_BLOCK: u64 = 4096;
/// In this time half of the measured jitter is forgotten.
pub const JITTER_HALF_LIFE: Duration = Duration::from_secs(5);
/// Lateness below is none.
const NO_JITTER: Duration = Duration::from_millis(1);
/// A peer that is silent is asked for its kernel's life so often.
pub const KERNEL_EVERY: Duration = Duration::from_millis(250);
/// A node that is silent for so long, kernel and all, is gone, and connections to its services are ended. Until then it may be a virtual
/// machine that stands still for a snapshot, a migration or a host that is too busy, and goes on as if nothing had been.
pub const GONE_AFTER: Duration = Duration::from_secs(10);
/// A failed command is tried again after so long.
pub const RETRY: Duration = Duration::from_millis(250);
/// How long what comes round anyway may wait for a beat: the fence is renewed four times in its time, a probe once a second.
const RIDES: Duration = Duration::from_millis(100);
/// An operator's request is given up after so long.
pub const OPERATOR_PATIENCE: Duration = Duration::from_secs(3);
/// Requests of operators that may wait at the same time.
pub const MAX_TICKETS: usize = 16;
/// Our own heartbeats that are remembered, 1.3 s of them at the shortest interval: an answer to an older one renews no lease.
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
    version: [u16; 3],
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
    /// Relay rules that were asked for and are not yet answered.
    relaying: u32,
    backends: Vec<Reconciled<BackendState>>,
    disk: Reconciled<DiskRecord>,
    /// The record that is being written.
    persisting: Option<DiskRecord>,
    durable: DiskRecord,
    kernel_due: Vec<Time>,
    unit_due: Time,
    /// How often in a row HAProxy was started or killed without coming back.
    unit_tries: u32,
    ask: Option<Ask>,
    ask_serial: u32,
    tickets: Vec<Ticket>,
    deadline: Time,
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
    pub fn new(
        settings: Arc<Settings>,
        me: NodeId,
        session: Session,
        record: DiskRecord,
        mac: [u8; 6],
        now: Time,
    ) -> Node {
        assert!((me.0 as usize) < settings.nodes.len(), "a node is one of its set");
        let bounds = settings.set.lease;
        let quiet = if settings.nodes.len() > 1 { bounds.max + bounds.max / 32 } else { Duration::ZERO };
        let quiet_until = now + quiet;
        let vips = settings.vips.iter().enumerate();
        let vips = vips
            .map(|(at, vip)| Vip::new(VipId(at as u8), &vip.name, vip.prefer, record.epoch_ceiling, now, quiet_until));
        Node {
            own: Own { me, session, counter: 0 },
            mac,
            version: crate::VERSION,
            planted: Planted::default(),
            quiet_until,
            last_step: now,
            peers: settings.nodes.iter().map(|_| Peer::unheard()).collect(),
            vips: vips.collect(),
            health: Health::new(settings.vips.len(), settings.set.lease.slowness(), record.drained, now),
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
            relaying: 0,
            backends: settings.nodes.iter().map(|_| Reconciled::new()).collect(),
            disk: Reconciled { asked: Some(record), retry: None },
            persisting: None,
            durable: record,
            kernel_due: settings.nodes.iter().map(|_| now).collect(),
            unit_due: now,
            unit_tries: 0,
            ask: None,
            ask_serial: 0,
            tickets: Vec::new(),
            deadline: now,
            settings,
        }
    }

    /// Says this version to the peers, where the system's is another than this code's.
    pub fn of_version(mut self, version: [u16; 3]) -> Node {
        self.version = version;
        self
    }

    /// Plants a bug, to prove that the simulator finds it.
    #[cfg(feature = "plant")]
    pub fn plant(&mut self, bug: crate::plant::Bug) {
        self.planted = Planted::one(bug);
        if self.planted.has(Bug::ForgetEpoch) {
            self.vips = self
                .settings
                .vips
                .iter()
                .enumerate()
                .map(|(at, vip)| Vip::new(VipId(at as u8), &vip.name, vip.prefer, 0, self.last_step, self.quiet_until))
                .collect();
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
                    self.unit_due = now + self.unit_patience();
                }
                self.health.haproxy_active(now, active);
            }
            Event::Unit { unit: Unit::Service(_), .. } => {}
            Event::Probed { probe, answered } => self.probed(now, probe, answered, out),
            Event::Done { deed, result } => self.done(now, deed, result, out),
            Event::Operator { ticket, request } => self.operator(now, ticket, request, out),
            Event::Stop => self.health.stopping = true,
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

    /// Whether this node answers for any VIP: after [`Event::Stop`], until it does not, the supervisor had better run on.
    pub fn answers(&self) -> bool {
        self.vips.iter().any(Vip::answers)
    }

    /// Whether it may own a VIP, as far as it can tell itself.
    pub fn is_fit(&self) -> bool {
        self.fitness == Fitness::Fit
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
            relays: self.relaying == 0,
            gap,
            planted: self.planted,
        };
        (view, &mut self.vips)
    }

    fn with_vip(
        &mut self,
        now: Time,
        vip: VipId,
        out: &mut Vec<Command>,
        act: impl FnOnce(&mut Vip, &View, &mut Vec<Command>),
    ) {
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
        // A longer silence is an outage, from which nothing is learnt about jitter.
        if gap <= self.lease + self.lease / 2 {
            self.jitter.observe(now, gap.saturating_sub(beat::longest(bounds.heartbeat)));
        }
        let returned = !peer.live;
        (peer.live, peer.kernel_doubted, peer.stunned) = (true, None, false);
        if returned {
            self.log(out, Decision::PeerHeard { peer: from });
        }
        let peer = &self.peers[from.0 as usize];
        if !peer.kernel {
            self.peers[from.0 as usize].kernel = true;
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
                if peer.live {
                    peer.kernel_doubted = Some(!answered);
                } else if peer.kernel != answered {
                    // A kernel that has just booted does no harm: without relay rules it drops what is passed to it.
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
                self.relaying = self.relaying.saturating_sub(1);
                if !ok {
                    self.ring.failed(now);
                }
            }
            Deed::Backend(node) if !ok => self.backends[node.0 as usize].failed(now),
            Deed::Persist => match self.persisting.take() {
                Some(record) if ok => self.durable = record,
                _ => self.disk.failed(now),
            },
            Deed::Announce(_) | Deed::Backend(_) | Deed::Start(_) | Deed::Restart(_) => {}
        }
        if let Err(what) = result {
            self.log(out, Decision::Failed { what });
        }
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
        // To wake costs more than what is then done: what comes round anyway waits for the next beat.
        let with_beat = |due: Time| if self.beat_due.since(due) <= RIDES { due.max(self.beat_due) } else { due };
        let rounds = self.vips.iter().map(Vip::renewal).chain([self.health.round()]).map(|due| due.map(with_beat));
        let wakes = others.into_iter().chain(backends).chain(rounds).flatten().filter(|t| *t > now);
        self.deadline = wakes.fold(wake, Time::min).max(now);
    }

    /// Who lives? Returns when the next of them would be missed.
    fn watch_peers(&mut self, now: Time, out: &mut Vec<Command>) -> Time {
        let (me, mut wake) = (self.own.me, now + self.settings.set.lease.max);
        for node in self.nodes().filter(|n| *n != me) {
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
                    let dead = peer.kernel_doubted.take() == Some(true) && !self.planted.has(Bug::RingKeepsDead);
                    peer.kernel &= !dead;
                    self.kernel_due[node.0 as usize] = if dead { now + KERNEL_EVERY } else { now };
                    self.log(out, Decision::PeerLost { peer: node });
                    if dead {
                        self.log(out, Decision::Kernel { peer: node, alive: false });
                    }
                } else {
                    // Asked while the lease still runs, so that the answer is there soon after it ends.
                    let doubtful_at = peer.heard_at().unwrap_or(now) + self.settings.set.lease.heartbeat * 3 / 2;
                    if now >= doubtful_at && peer.kernel_doubted.is_none() {
                        peer.kernel_doubted = Some(false);
                        out.push(Command::Probe(Probe::Kernel(node)));
                    }
                    let next = if now < doubtful_at { doubtful_at } else { missed_at };
                    wake = wake.min(next);
                    let peer = &mut self.peers[node.0 as usize];
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
                wake = self.watch_stunned(now, node, out).map_or(wake, |end| wake.min(end));
            }
        }
        wake
    }

    /// Whether a silent peer may only stand still; returns until when it may.
    fn watch_stunned(&mut self, now: Time, node: NodeId, out: &mut Vec<Command>) -> Option<Time> {
        let peer = &mut self.peers[node.0 as usize];
        let left = peer.said().is_some_and(|said| said.fitness.reason() == Some(Reason::Stopping));
        let until = peer
            .heard_at()
            .map(|at| at + self.settings.set.stun)
            .filter(|_| !peer.kernel && !left && !self.planted.has(Bug::ResetStunned));
        let before = std::mem::replace(&mut peer.stunned, until.is_some_and(|until| now < until));
        if before && !peer.stunned && !peer.kernel {
            self.log(out, Decision::GivenUp { peer: node });
        }
        until.filter(|until| now < *until)
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
        // Out of service, HAProxy may end its connections and itself in peace (a rollout asks it to).
        if now >= self.unit_due && self.health.relay == Some(true) && !self.health.drained {
            let (command, why) = if self.health.haproxy == Some(false) {
                (Command::Start(Unit::Haproxy), Reason::HaproxyDown)
            } else if self.health.hung(now) {
                (Command::Restart(Unit::Haproxy), Reason::FrontSilent)
            } else {
                if self.health.haproxy == Some(true) && !self.health.silent() {
                    self.unit_tries = 0;
                }
                return;
            };
            self.unit_tries = self.unit_tries.saturating_add(1);
            self.unit_due = now + self.unit_patience();
            out.push(command);
            self.log(out, Decision::UnitRestart { why });
        }
    }

    /// Twice as long after each try that has not helped. On a machine that is too slow a start takes longer than usual, and
    /// whoever kills what has only just started never sees it run.
    fn unit_patience(&self) -> Duration {
        let doublings = self.unit_tries.saturating_sub(1).min(MOST_DOUBLINGS);
        UNIT_PATIENCE * self.settings.set.lease.slowness() * (1 << doublings)
    }

    fn log(&self, out: &mut Vec<Command>, decision: Decision) {
        if !self.planted.has(Bug::Silent) {
            out.push(Command::Log(decision));
        }
    }
}
