//! Small cases, exhaustively: from a few critical moments on, every order of deliveries, losses, timers, crashes and restarts.
//!
//! Breadth first. A state is kept as the path of choices that leads to it, and made again from its start when it is looked at:
//! that costs some microseconds, needs little memory, and the path is the counter-example. Two paths that give every node the same
//! history at the same times lead to the same state, so a state's hash is made of these histories; what merely commutes is
//! looked at once.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use trilith_core::command::{Command, Deed};
use trilith_core::config::{NodeId, Settings, VipId};
use trilith_core::event::{Event, Probe, Request, Unit};
use trilith_core::node::Node;
use trilith_core::plant::Bug;
use trilith_core::wire::{Grant, Session};

use crate::check::{Checks, Scene, Step, Violation};
use crate::clients::mac;
use crate::clock::Clock;
use crate::conditions::Conditions;
use crate::machine::{HaproxyState, Machine, Shell, Supervisor};
use crate::net::Datagram;
use crate::plan::{Fault, NODES, settings_of};

/// A moment from which everything is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// All nodes have just been switched on, and may vote in a moment.
    Cold,
    /// The owner is cut off; its lease is about to run out.
    OwnerCutOff,
    /// An operator has just asked for a move.
    HandOver,
    /// The owner had only one voter left; that one has restarted, and now the owner is cut off.
    VoterRestarted,
    /// Two nodes: each was alone, one has taken the VIP, and now they hear each other again.
    Rejoin,
}

impl Start {
    /// All of them.
    pub const ALL: [Start; 5] =
        [Start::Cold, Start::OwnerCutOff, Start::HandOver, Start::VoterRestarted, Start::Rejoin];
}

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Time passes until the next core is due.
    Tick,
    /// The oldest datagram from one node to another arrives.
    Deliver(usize, usize),
    /// It is lost.
    Lose(usize, usize),
    /// A node loses power.
    Crash(usize),
    /// It comes back.
    Restart(usize),
}

/// What an exploration came to.
#[derive(Clone, Debug)]
pub struct Explored {
    /// From where.
    pub start: Start,
    /// Distinct states that were looked at.
    pub states: usize,
    /// All states within so many choices were looked at.
    pub depth: usize,
    /// The broken invariant and the choices that lead to it.
    pub broken: Option<(Violation, Vec<Choice>)>,
}

/// Explores from all starts, each until so many states were seen.
pub fn all(states: usize, bug: Option<Bug>, threads: usize) -> Vec<Explored> {
    let next = AtomicUsize::new(0);
    let mut found: Vec<Explored> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.clamp(1, Start::ALL.len()))
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    while let Some(start) = Start::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                        mine.push(explore(*start, states, bug));
                    }
                    mine
                })
            })
            .collect();
        let ended = |worker: std::thread::ScopedJoinHandle<'_, Vec<Explored>>| {
            // What the core itself asserts is a finding, too.
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().flat_map(ended).collect()
    });
    found.sort_by_key(|explored| explored.start as u8);
    found
}

/// Explores from one start, until so many states were seen.
pub fn explore(start: Start, most: usize, bug: Option<Bug>) -> Explored {
    let origin = Small::from_start(start, bug);
    let mut seen = HashSet::new();
    let mut frontier: Vec<Vec<u8>> = vec![Vec::new()];
    let mut depth = 0;
    loop {
        let mut next = Vec::new();
        for path in &frontier {
            let (mut small, choices) = origin.after(path);
            if let Some(violation) = small.violation.take() {
                let broken = Some((violation, choices));
                return Explored { start, states: seen.len(), depth, broken };
            }
            for at in 0..small.choices().len() {
                let mut longer = path.clone();
                longer.push(at as u8);
                let (child, choices) = origin.after(&longer);
                if let Some(violation) = child.violation {
                    let broken = Some((violation, choices));
                    return Explored { start, states: seen.len(), depth, broken };
                }
                if seen.insert(child.hash()) {
                    next.push(longer);
                }
            }
            if seen.len() >= most {
                return Explored { start, states: seen.len(), depth, broken: None };
            }
        }
        depth += 1;
        if next.is_empty() {
            return Explored { start, states: seen.len(), depth, broken: None };
        }
        frontier = next;
    }
}

/// A small world: commands succeed at once, and time passes only when it is chosen to.
#[derive(Clone)]
struct Small {
    now: u64,
    settings: Arc<Settings>,
    bug: Option<Bug>,
    machines: Vec<Machine>,
    conditions: Conditions,
    checks: Checks,
    links: [[VecDeque<(u64, Datagram)>; NODES]; NODES],
    history: [u64; NODES],
    losses: u8,
    crashes: u8,
    sessions: u64,
    violation: Option<Violation>,
}

impl Small {
    /// The state at the end of a path, and the choices that lead to it.
    fn after(&self, path: &[u8]) -> (Small, Vec<Choice>) {
        let mut small = self.clone();
        let mut made = Vec::with_capacity(path.len());
        for at in path {
            let choice = small.choices()[usize::from(*at)];
            small.make(choice);
            made.push(choice);
        }
        (small, made)
    }

    fn from_start(start: Start, bug: Option<Bug>) -> Small {
        let nodes = if start == Start::Rejoin { 2 } else { 3 };
        let settings = settings_of(nodes);
        let mut small = Small {
            now: 1_000,
            checks: Checks::new(&settings),
            settings,
            bug,
            machines: (0..nodes).map(|_| Machine::off()).collect(),
            conditions: Conditions::default(),
            links: Default::default(),
            history: [0; NODES],
            losses: 0,
            crashes: 0,
            sessions: 0,
            violation: None,
        };
        for node in 0..nodes {
            // Node 0, which is preferred, has the slowest clock: its leases end last.
            small.machines[node].clock = Clock::new(0, 1_000_000, [-2000, 2000, 1500][node]);
            small.restart(node);
        }
        let quiet_us = small.settings.set.lease.max.as_micros() as u64 * 33 / 32;
        let owner_settled = 1_000 + quiet_us + 120_000;
        match start {
            Start::Cold => small.pass(quiet_us - 5_000),
            Start::HandOver => {
                small.pass(owner_settled);
                let request = Request::Move { vip: VipId(0), to: NodeId(1) };
                small.hand(0, Event::Operator { ticket: 1, request }, None);
            }
            Start::OwnerCutOff => {
                small.pass(owner_settled);
                small.cut([Fault::Isolated(0)]);
                small = small.before(|small| small.said_grant(1).is_none() || small.said_grant(2).is_none());
            }
            Start::VoterRestarted => {
                small.pass(owner_settled);
                small.cut([Fault::Cut { a: 0, b: 2, peer: false }]);
                small.pass(small.now + 150_000);
                small.crash(1);
                small.cut([Fault::Isolated(0)]);
                small.restart(1);
                small = small.before(|small| small.said_grant(1).is_some());
            }
            Start::Rejoin => {
                small.pass(owner_settled);
                small.cut([Fault::Cut { a: 0, b: 1, peer: false }]);
                small.pass(small.now + 900_000);
                small.cut([]);
            }
        }
        small.losses = 3;
        small.crashes = 1;
        small
    }

    /// What can happen next.
    fn choices(&self) -> Vec<Choice> {
        let nodes = 0..self.machines.len();
        let mut choices = vec![Choice::Tick];
        for from in nodes.clone() {
            for to in nodes.clone().filter(|to| !self.links[from][*to].is_empty()) {
                choices.push(Choice::Deliver(from, to));
                if self.losses > 0 {
                    choices.push(Choice::Lose(from, to));
                }
            }
        }
        for node in nodes {
            match self.machines[node].on {
                true if self.crashes > 0 => choices.push(Choice::Crash(node)),
                true => {}
                false => choices.push(Choice::Restart(node)),
            }
        }
        choices
    }

    fn make(&mut self, choice: Choice) {
        match choice {
            Choice::Tick => self.tick(u64::MAX),
            Choice::Deliver(from, to) => self.deliver(from, to),
            Choice::Lose(from, to) => {
                self.losses -= 1;
                self.links[from][to].pop_front();
            }
            Choice::Crash(node) => {
                self.crashes -= 1;
                self.crash(node);
            }
            Choice::Restart(node) => self.restart(node),
        }
    }

    /// What tells states apart: every node's history, what is under way, and what may still go wrong.
    fn hash(&self) -> u64 {
        let mut hash = mix(self.now, u64::from(self.losses) << 8 | u64::from(self.crashes));
        for node in 0..self.machines.len() {
            hash = mix(hash, self.history[node]);
            for link in &self.links[node] {
                hash = link.iter().fold(mix(hash, link.len() as u64), |hash, (id, _)| mix(hash, *id));
            }
        }
        hash
    }

    /// Everything goes well until then.
    fn pass(&mut self, until: u64) {
        while self.now < until && self.violation.is_none() {
            for from in 0..self.machines.len() {
                for to in 0..self.machines.len() {
                    while !self.links[from][to].is_empty() {
                        self.deliver(from, to);
                    }
                }
            }
            self.tick(until);
        }
    }

    /// The last moment before something is so, if everything goes well; bounded by a second.
    fn before(mut self, so: impl Fn(&Small) -> bool) -> Small {
        let end = self.now + 1_000_000;
        loop {
            let earlier = self.clone();
            self.pass(self.now + 500);
            if so(&self) || self.now >= end {
                return earlier;
            }
        }
    }

    /// The vote that a node speaks of in its last heartbeat.
    fn said_grant(&self, node: usize) -> Option<Grant> {
        let said = self.machines[node].supervisor.as_ref()?.said.as_ref()?;
        said.vips.first()?.grant
    }

    fn cut<const COUNT: usize>(&mut self, faults: [Fault; COUNT]) {
        let before = std::mem::replace(&mut self.conditions, Conditions::of(faults.into_iter()));
        let scene =
            Scene { now: self.now, settings: &self.settings, machines: &self.machines, conditions: &self.conditions };
        self.checks.conditions_changed(&scene, &before);
    }

    fn tick(&mut self, until: u64) {
        let due = self.machines.iter().enumerate().filter(|(_, machine)| machine.runs());
        let due = due.filter_map(|(node, machine)| machine.supervisor.as_ref().map(|s| (s.wake_at, node))).min();
        match due {
            Some((at, node)) if at <= until => {
                self.now = self.now.max(at);
                self.remember(node, 1);
                self.hand(node, Event::Timer, None);
            }
            _ if until < u64::MAX => self.now = until,
            _ => {}
        }
    }

    fn deliver(&mut self, from: usize, to: usize) {
        let Some((id, datagram)) = self.links[from][to].pop_front() else { return };
        if self.machines[to].runs() && self.conditions.datagrams(from, to) {
            // What arrives has been under way for a moment.
            self.now += 1;
            self.remember(to, id);
            self.hand(to, Event::Peer(datagram.vouched()), Some(&datagram));
        }
    }

    fn crash(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        machine.on = false;
        machine.end_supervisor();
        machine.kernel = Default::default();
        self.remember(node, 2);
    }

    fn restart(&mut self, node: usize) {
        self.sessions += 1;
        self.remember(node, 3 + self.sessions);
        let machine = &mut self.machines[node];
        let record = machine.disk.last().copied().unwrap_or_default();
        let session = Session(self.sessions);
        let local = machine.clock.read(self.now);
        let mut core = Node::new(self.settings.clone(), NodeId(node as u8), session, record, mac(node), local);
        if let Some(bug) = self.bug {
            core.plant(bug);
        }
        machine.on = true;
        machine.haproxy.state = HaproxyState::Alive;
        machine.supervisor = Some(Supervisor {
            node: core,
            session,
            wake_at: self.now,
            busy: [0; Shell::COUNT],
            probes: Vec::new(),
            knows: [false; NODES],
            said: None,
        });
        self.checks.started(node, false);
        self.hand(node, Event::Link { vip: VipId(0), up: true }, None);
        self.hand(node, Event::Unit { unit: Unit::Haproxy, active: true }, None);
    }

    fn remember(&mut self, node: usize, what: u64) {
        self.history[node] = mix(mix(self.history[node], self.now), what);
    }

    /// Hands an event to a core, and does at once what it says, and what follows from that.
    fn hand(&mut self, node: usize, event: Event, heard: Option<&Datagram>) {
        let machine = &mut self.machines[node];
        let Some(supervisor) = &mut machine.supervisor else { return };
        let local = machine.clock.read(self.now);
        let mut out = Vec::new();
        supervisor.node.step(local, event, &mut out);
        supervisor.wake_at = machine.clock.when(supervisor.node.deadline()).max(self.now);
        let scene =
            Scene { now: self.now, settings: &self.settings, machines: &self.machines, conditions: &self.conditions };
        if let Err(violation) = self.checks.step(&scene, &Step { node, local, heard, commands: &out }) {
            self.violation.get_or_insert(violation);
        }
        for command in out {
            if let Some(answer) = self.carry_out(node, command) {
                self.hand(node, answer, None);
            }
        }
    }

    fn carry_out(&mut self, node: usize, command: Command) -> Option<Event> {
        let machine = &mut self.machines[node];
        let deed = match command {
            Command::Broadcast(heartbeat) => {
                if let Some(supervisor) = &mut machine.supervisor {
                    supervisor.said = Some(Arc::clone(&heartbeat));
                }
                let id = mix(self.history[node], heartbeat.counter);
                let conditions = &self.conditions;
                for to in (0..self.machines.len()).filter(|to| *to != node && conditions.datagrams(node, *to)) {
                    let link = &mut self.links[node][to];
                    if link.len() == UNDER_WAY {
                        link.pop_front();
                    }
                    let heartbeat = Arc::clone(&heartbeat);
                    link.push_back((id, Datagram { from: node, heartbeat, bytes: None, forged: false }));
                }
                return None;
            }
            Command::Probe(probe) => {
                let others = (0..self.machines.len()).filter(|other| *other != node);
                let mut reachable =
                    others.filter(|other| self.conditions.answers(node, *other) && self.machines[*other].on);
                let answered = match probe {
                    Probe::Front => true,
                    Probe::Gateway => !self.conditions.isolated[node],
                    Probe::Kernel(peer) => reachable.any(|other| other == usize::from(peer.0)),
                    Probe::Vip(_) => reachable.any(|other| self.machines[other].answers_for(0, self.now)),
                };
                self.remember(node, 100 + u64::from(answered));
                return Some(Event::Probed { probe, answered });
            }
            Command::Hold { vip, lifetime } => {
                machine.kernel.held_since[0] = self.now;
                machine.kernel.expires[0] = self.now + lifetime.as_micros() as u64;
                Deed::Hold(vip)
            }
            Command::Release { vip } => {
                machine.kernel.expires[0] = 0;
                Deed::Release(vip)
            }
            Command::Announce { vip } => Deed::Announce(vip),
            Command::Relay(ring) => {
                machine.kernel.ring = Some(ring);
                Deed::Relay
            }
            Command::Backend { node, .. } => Deed::Backend(node),
            Command::Start(unit) => Deed::Start(unit),
            Command::Restart(unit) => Deed::Restart(unit),
            Command::Persist(record) => {
                machine.persist(record);
                Deed::Persist
            }
            Command::Answer { .. } | Command::Log(_) => return None,
        };
        Some(Event::Done { deed, result: Ok(()) })
    }
}

fn mix(hash: u64, value: u64) -> u64 {
    let z = (hash.rotate_left(23) ^ value).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (z ^ (z >> 29)).wrapping_mul(0x94D0_49BB_1331_11EB) ^ (z >> 32)
}

/// So many datagrams are under way on a link; the oldest is lost when another is sent.
const UNDER_WAY: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_order_of_a_few_events_breaks_an_invariant() {
        let found = all(STATES, None, 2);
        assert_eq!(found.len(), Start::ALL.len());
        for explored in found {
            assert!(explored.broken.is_none(), "{explored:?}");
            assert!(explored.states >= STATES, "{explored:?}");
        }
    }

    #[test]
    fn exploring_finds_a_voter_that_does_not_keep_silent() {
        let found = explore(Start::VoterRestarted, 20_000, Some(Bug::NoSilence));
        assert!(found.broken.is_some_and(|(violation, _)| violation.invariant.starts_with('1')));
    }

    const STATES: usize = if cfg!(debug_assertions) { 300 } else { 20_000 };
}
