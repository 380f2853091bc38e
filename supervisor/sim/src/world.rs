//! The lying world: it turns one seed into one run, bit for bit the same each time.
//!
//! ```text
//!   plan ─▶ faults strike and end ─▶ heal ─▶ settled within the bound? ─▶ perhaps one more planned move ─▶ end
//!                 └── at each moment: the earliest of queue, cores' deadlines, attacker ──┘
//! ```

/// Notes what happens, without any cost while nobody listens.
macro_rules! note {
    ($world:ident, $who:expr, $($what:tt)*) => {
        if $world.trace.is_on() {
            let name = $world.name($who);
            $world.trace.write($world.now, name, format_args!($($what)*));
        }
    };
}

mod deeds;
mod faults;
mod finale;
mod traffic;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use trilith_core::command::Command;
use trilith_core::config::VipId;
use trilith_core::event::{Event, Probe, Request};
use trilith_core::plant::Bug;

use crate::check::{Checks, Scene, Step, Violation};
use crate::clients::{CLIENTS, Clients};
use crate::conditions::Conditions;
use crate::machine::{HaproxyState, Machine, Pending};
use crate::net::{Attacker, Datagram, Seal};
use crate::plan::Plan;
use crate::rng::Rng;
use crate::stats::Stats;
use crate::trace::Trace;

/// What a run is asked to do besides following its plan.
#[derive(Clone, Debug)]
pub struct Options {
    /// Planted into every node.
    pub bug: Option<Bug>,
    /// The attacker strikes.
    pub attack: bool,
    /// The attacker sends only what cannot be fresh, and nothing depends on how long a queue is: so that a run with it and one
    /// without can be compared.
    pub strict: bool,
    /// All commands are kept.
    pub record: bool,
    /// Where the course is noted.
    pub trace: Trace,
}

impl Default for Options {
    fn default() -> Options {
        Options { bug: None, attack: true, strict: false, record: false, trace: Trace::Off }
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was broken, if anything.
    pub violation: Option<Violation>,
    /// What has happened.
    pub stats: Stats,
    /// Hash of the trace, if one was asked for.
    pub trace: u64,
    /// All commands of all nodes, if they were to be recorded.
    pub commands: Vec<Recorded>,
}

/// When, which node, and what.
pub type Recorded = (u64, usize, Command);

/// A world with its machines.
pub struct World<'a> {
    plan: &'a Plan,
    options: Options,
    now: u64,
    rng: Rng,
    queue: BinaryHeap<Reverse<Queued>>,
    queued: u64,
    machines: Vec<Machine>,
    /// Where datagrams are really sealed.
    seals: Vec<Option<Seal>>,
    conditions: Conditions,
    active: Vec<bool>,
    clients: Clients,
    checks: Checks,
    attacker: Attacker,
    attack_at: u64,
    stats: Stats,
    trace: Trace,
    commands: Vec<Recorded>,
    violation: Option<Violation>,
    out: Vec<Command>,
    spins: u32,
    phase: Phase,
    tickets: Vec<u64>,
    over: bool,
}

/// How far the run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Faults strike.
    Faults,
    /// No new faults; the set may take its time.
    Healing { settled_since: Option<u64> },
    /// A planned move while nothing is wrong.
    Moving { vip: usize, to: usize, since: u64, ticket: u64 },
    /// Somebody foreign has claimed a VIP while nothing else is wrong.
    Poisoned { vip: usize, since: u64 },
}

struct Queued {
    at: u64,
    number: u64,
    what: What,
}

/// What is going to happen.
enum What {
    /// A fault strikes or ends.
    Fault { index: usize, begins: bool },
    /// A datagram arrives.
    Deliver { to: usize, datagram: Datagram },
    /// A shell does a command.
    Finish { node: usize, life: u32, command: Box<Command> },
    /// Something to tell a supervisor of this life.
    Tell { node: usize, life: u32, event: Event },
    /// A machine's systemd starts the supervisor.
    Launch { node: usize, life: u32 },
    /// systemd starts a HAProxy that has died.
    Revive { node: usize, generation: u32 },
    /// An operator asks.
    Ask { node: usize, request: Request },
    /// A supervisor is told to end.
    Stop { node: usize },
    /// Somebody foreign claims a VIP.
    Poison { vip: VipId },
    /// A client opens a connection.
    Open,
    /// The next packet of a connection.
    Packet { flow: u32 },
    /// A client asks who has the VIPs.
    Resolve { client: usize },
    /// All faults have ended.
    Heal,
    /// The checkers look around.
    Poll,
}

impl<'a> World<'a> {
    /// Runs the whole plan.
    pub fn run(plan: &'a Plan, options: Options) -> Outcome {
        let mut world = World::new(plan, options);
        while !world.over && world.violation.is_none() {
            world.next();
        }
        world.stats.simulated_us = world.now;
        Outcome { violation: world.violation, stats: world.stats, trace: world.trace.hash(), commands: world.commands }
    }

    fn new(plan: &'a Plan, mut options: Options) -> World<'a> {
        let trace = std::mem::replace(&mut options.trace, Trace::Off);
        let strict = options.strict;
        let mut world = World {
            plan,
            options,
            now: 0,
            rng: Rng::new(plan.seed, 2),
            queue: BinaryHeap::with_capacity(128),
            queued: 0,
            machines: (0..plan.nodes()).map(|_| Machine::off()).collect(),
            seals: (0..plan.nodes()).map(|_| None).collect(),
            conditions: Conditions::default(),
            active: vec![false; plan.faults.len()],
            clients: Clients::new(),
            checks: Checks::new(&plan.settings),
            attacker: Attacker::new(plan.seed, strict),
            attack_at: u64::MAX,
            stats: Stats::default(),
            trace,
            commands: Vec::new(),
            violation: None,
            out: Vec::new(),
            spins: 0,
            phase: Phase::Faults,
            tickets: Vec::new(),
            over: false,
        };
        if world.options.attack && plan.attacks_per_s > 0 {
            world.attack_at = world.attacker.next(0, plan.attacks_per_s);
        }
        world.schedule();
        world
    }

    fn schedule(&mut self) {
        for node in 0..self.plan.nodes() {
            self.boot(node, self.plan.start[node]);
        }
        for (index, strike) in self.plan.faults.iter().enumerate() {
            self.at(strike.from, What::Fault { index, begins: true });
            if strike.until != u64::MAX {
                self.at(strike.until, What::Fault { index, begins: false });
            }
        }
        for (at, node, request) in &self.plan.requests {
            self.at(*at, What::Ask { node: *node, request: *request });
        }
        for (at, node) in &self.plan.stops {
            self.at(*at, What::Stop { node: *node });
        }
        for (at, vip) in &self.plan.poison {
            self.at(*at, What::Poison { vip: *vip });
        }
        for client in 1..CLIENTS {
            self.at(1000 * client as u64, What::Resolve { client });
        }
        self.at(500, What::Open);
        self.at(POLL_US, What::Poll);
        self.at(self.plan.heal, What::Heal);
    }

    /// Lets something happen at a time.
    fn at(&mut self, at: u64, what: What) {
        self.queued += 1;
        self.queue.push(Reverse(Queued { at, number: self.queued, what }));
    }

    /// The next thing that happens.
    fn next(&mut self) {
        let queue_at = self.queue.peek().map_or(u64::MAX, |Reverse(q)| q.at);
        let wakes = self.machines.iter().enumerate().filter(|(_, m)| m.runs());
        let wakes = wakes.filter_map(|(n, m)| m.supervisor.as_ref().map(|s| (s.wake_at, n)));
        let (wake_at, node) = wakes.min().unwrap_or((u64::MAX, 0));
        let at = queue_at.min(wake_at).min(self.attack_at);
        self.spins = if at > self.now { 0 } else { self.spins + 1 };
        if self.spins > MAX_SPINS {
            self.break_off("bounded work", format!("{MAX_SPINS} things happen at the same time; node {node} is due"));
        }
        self.now = self.now.max(at);
        if wake_at == at {
            self.hand(node, Event::Timer, None);
        } else if queue_at == at {
            if let Some(Reverse(queued)) = self.queue.pop() {
                self.happen(queued.what);
            }
        } else {
            self.attack();
        }
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Fault { index, begins } => self.fault(index, begins),
            What::Deliver { to, datagram } => self.arrive(to, datagram),
            What::Finish { node, life, command } => {
                if self.machines[node].life == life {
                    self.offer(node, Pending::Finish(command));
                }
            }
            What::Tell { node, life, event } => {
                if self.machines[node].life == life {
                    if let Event::Probed { probe, .. } = event
                        && let Some(supervisor) = &mut self.machines[node].supervisor
                    {
                        supervisor.probes.retain(|p| *p != probe);
                    }
                    self.offer(node, Pending::Event(event));
                }
            }
            What::Launch { node, life } => {
                if self.machines[node].life == life {
                    self.launch(node);
                }
            }
            What::Revive { node, generation } => {
                let haproxy = &self.machines[node].haproxy;
                if haproxy.generation == generation && haproxy.state == HaproxyState::Dead {
                    self.start_haproxy(node);
                }
            }
            What::Ask { node, request } => self.ask(node, request),
            What::Stop { node } => self.offer(node, Pending::Event(Event::Stop)),
            What::Poison { vip } => self.poison(vip),
            What::Open => self.open(),
            What::Packet { flow } => self.packet(flow),
            What::Resolve { client } => {
                self.resolve(client);
                let again = self.rng.between(300_000, 1_500_000);
                self.at(self.now + again, What::Resolve { client });
            }
            What::Heal => self.heal(),
            What::Poll => self.poll(),
        }
    }

    /// Hands an event to a node's core, and does what it says.
    fn hand(&mut self, node: usize, event: Event, heard: Option<&Datagram>) {
        let machine = &mut self.machines[node];
        let Some(supervisor) = &mut machine.supervisor else { return };
        let local = machine.clock.read(self.now);
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        if self.trace.is_on() && event != Event::Timer {
            let name = &self.plan.settings.nodes[node].name;
            match heard {
                Some(d) => {
                    let (from, counter) = (d.from, d.heartbeat.counter);
                    let forged = if d.forged { " (replayed)" } else { "" };
                    self.trace.write(self.now, name, format_args!("◀ heartbeat of node {from}, #{counter}{forged}"));
                }
                None => self.trace.write(self.now, name, format_args!("◀ {event:?}")),
            }
        }
        supervisor.node.step(local, event, &mut out);
        supervisor.wake_at = machine.clock.when(supervisor.node.deadline()).max(self.now);
        self.stats.steps += 1;
        let scene = Scene {
            now: self.now,
            settings: &self.plan.settings,
            machines: &self.machines,
            conditions: &self.conditions,
        };
        let step = Step { node, local, heard, commands: &out };
        if let Err(violation) = self.checks.step(&scene, &step) {
            self.violation.get_or_insert(violation);
        }
        for command in out.drain(..) {
            if self.trace.is_on() {
                self.note_command(node, &command);
            }
            if self.options.record {
                self.commands.push((self.now, node, command.clone()));
            }
            self.carry_out(node, command);
        }
        self.out = out;
    }

    fn note_command(&mut self, node: usize, command: &Command) {
        let name = &self.plan.settings.nodes[node].name;
        match command {
            Command::Broadcast(h) => {
                let said: Vec<_> =
                    h.vips.iter().map(|r| (r.seen, r.claim, r.grant.map(|g| (g.owner.0, g.epoch)))).collect();
                self.trace.write(self.now, name, format_args!("▶ heartbeat #{} {:?} {said:?}", h.counter, h.fitness));
            }
            other => self.trace.write(self.now, name, format_args!("▶ {other:?}")),
        }
    }

    /// Gives something to a supervisor, at once or when it goes on.
    fn offer(&mut self, node: usize, pending: Pending) {
        let machine = &mut self.machines[node];
        if machine.supervisor.is_none() || !machine.on {
            return;
        }
        if machine.runs() {
            return self.take(node, pending);
        }
        let datagrams = matches!(pending, Pending::Datagram(_));
        if !datagrams || self.options.strict || machine.inbox.len() < INBOX {
            machine.inbox.push_back(pending);
        }
    }

    fn take(&mut self, node: usize, pending: Pending) {
        match pending {
            Pending::Event(event) => self.hand(node, event, None),
            Pending::Finish(command) => self.finish(node, *command),
            Pending::Datagram(datagram) => self.read(node, datagram),
        }
    }

    fn read(&mut self, node: usize, datagram: Datagram) {
        let authentic = match (&mut self.seals[node], &datagram.bytes) {
            (Some(seal), Some(bytes)) => match seal.opener.open(bytes) {
                Ok(authentic) => authentic,
                Err(_) => {
                    self.stats.refused_datagrams += 1;
                    return;
                }
            },
            _ => datagram.vouched(),
        };
        if datagram.forged {
            self.stats.replays += 1;
        } else {
            self.stats.datagrams += 1;
            self.attacker.handled(node, &datagram);
        }
        self.hand(node, Event::Peer(authentic), Some(&datagram));
    }

    fn arrive(&mut self, to: usize, datagram: Datagram) {
        if self.conditions.datagrams(datagram.from, to) {
            self.offer(to, Pending::Datagram(datagram));
        }
    }

    fn attack(&mut self) {
        self.attack_at = self.attacker.next(self.now, self.plan.attacks_per_s);
        let machines = &self.machines;
        let trusted = |node: usize, peer: usize| {
            let session = machines[peer].supervisor.as_ref().map(|s| s.session);
            let said = machines[node].supervisor.as_ref().and_then(|s| s.said.as_ref());
            let echo = said.and_then(|heartbeat| heartbeat.heard[peer]).filter(|echo| echo.live);
            echo.is_some_and(|echo| session == Some(echo.session))
        };
        if let Some((target, datagram)) = self.attacker.strike(machines.len(), trusted) {
            self.offer(target, Pending::Datagram(datagram));
        }
    }

    fn tell(&mut self, node: usize, after: u64, event: Event) {
        let life = self.machines[node].life;
        self.at(self.now + after, What::Tell { node, life, event });
    }

    fn ask(&mut self, node: usize, request: Request) {
        if !self.machines[node].runs() {
            return;
        }
        self.stats.requests += 1;
        let ticket = self.stats.requests;
        self.tickets.push(ticket);
        self.offer(node, Pending::Event(Event::Operator { ticket, request }));
    }

    fn scene(&self) -> Scene<'_> {
        Scene { now: self.now, settings: &self.plan.settings, machines: &self.machines, conditions: &self.conditions }
    }

    fn break_off(&mut self, invariant: &'static str, what: String) {
        self.violation.get_or_insert(Violation { invariant, what, at: self.now });
    }

    fn name(&self, node: Option<usize>) -> &'a str {
        node.map_or("world", |n| &self.plan.settings.nodes[n].name)
    }

    /// Whether the attacker or the weather made a probe fail that should have been answered.
    fn misled(&mut self, node: usize, probe: Probe) {
        if let Probe::Kernel(peer) = probe {
            self.checks.flows.doubted(self.now, usize::from(peer.0));
        }
        self.checks.misled(self.now, node);
    }
}

impl PartialEq for Queued {
    fn eq(&self, other: &Queued) -> bool {
        self.number == other.number
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Queued) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Queued) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// So often the checkers look around, in microseconds.
const POLL_US: u64 = 20_000;
/// So many things may happen in the same microsecond.
const MAX_SPINS: u32 = 2_000;
/// So many datagrams and events wait for a supervisor that stands still: the socket's buffer.
const INBOX: usize = 256;
