//! The lying world: it turns one seed into one run, bit for bit the same each time.
//!
//! ```text
//!   plan ─▶ faults strike and end ─▶ heal ─▶ settled within the bound? ─▶ perhaps one more planned move ─▶ end
//!                 └── at each moment: the earliest of queue, cores' deadlines, attacker ──┘
//! ```

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use trilith_core::command::Command;
use trilith_core::config::{NodeId, VipId};
use trilith_core::event::{Event, Probe, Request, Unit};
use trilith_core::node::Node;
use trilith_core::plant::Bug;
use trilith_core::wire::{DiskRecord, Opener, Sealer, Session};

use crate::check::{Checks, Scene, Step, Violation, settled};
use crate::clients::{Attempt, CLIENTS, Clients, FLOWS, FOREIGN_MAC, Neighbour, mac};
use crate::clock::Clock;
use crate::conditions::Conditions;
use crate::machine::{HaproxyState, Kernel, Machine, Pending, Seal, Shell, Supervisor};
use crate::net::{Attacker, Datagram};
use crate::plan::{Disk, Epilogue, Fault, NODES, Plan};
use crate::rng::Rng;
use crate::stats::Stats;
use crate::trace::Trace;

/// Notes what happens, without any cost while nobody listens.
macro_rules! note {
    ($world:ident, $who:expr, $($what:tt)*) => {
        if $world.trace.is_on() {
            let name = $world.name($who);
            $world.trace.write($world.now, name, format_args!($($what)*));
        }
    };
}

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
    pub(crate) plan: &'a Plan,
    pub(crate) options: Options,
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    queue: BinaryHeap<Reverse<Queued>>,
    queued: u64,
    pub(crate) machines: Vec<Machine>,
    pub(crate) conditions: Conditions,
    active: Vec<bool>,
    pub(crate) clients: Clients,
    pub(crate) checks: Checks,
    pub(crate) attacker: Attacker,
    attack_at: u64,
    pub(crate) stats: Stats,
    pub(crate) trace: Trace,
    commands: Vec<Recorded>,
    pub(crate) violation: Option<Violation>,
    out: Vec<Command>,
    spins: u32,
    phase: Phase,
    pub(crate) tickets: Vec<u64>,
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
pub(crate) enum What {
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
    pub(crate) fn at(&mut self, at: u64, what: What) {
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
    pub(crate) fn hand(&mut self, node: usize, event: Event, heard: Option<&Datagram>) {
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
    pub(crate) fn offer(&mut self, node: usize, pending: Pending) {
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
        let Some(supervisor) = &mut self.machines[node].supervisor else { return };
        let authentic = match (&mut supervisor.seal, &datagram.bytes) {
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

    // Faults.

    fn fault(&mut self, index: usize, begins: bool) {
        self.active[index] = begins;
        let strike = self.plan.faults[index];
        note!(self, None, "{} {:?}", if begins { "✗" } else { "✓" }, strike.fault);
        self.stats.faults += u64::from(begins);
        let active = self.plan.faults.iter().zip(&self.active).filter(|(_, active)| **active).map(|(s, _)| s.fault);
        let before = std::mem::replace(&mut self.conditions, Conditions::of(active));
        let scene = Scene {
            now: self.now,
            settings: &self.plan.settings,
            machines: &self.machines,
            conditions: &self.conditions,
        };
        self.checks.conditions_changed(&scene, &before);
        if begins && let Fault::HaproxyHung(node) = strike.fault {
            let haproxy = &mut self.machines[node].haproxy;
            if haproxy.state == HaproxyState::Alive {
                haproxy.state = HaproxyState::Hung;
                self.stats.haproxy_hangs += 1;
            }
        }
        let disk = match strike.fault {
            Fault::Down { disk, .. } if begins => disk,
            _ => Disk::Kept,
        };
        for node in 0..self.machines.len() {
            self.turn(node, &before, disk);
        }
    }

    /// Lets a machine follow the conditions.
    fn turn(&mut self, node: usize, before: &Conditions, disk: Disk) {
        let now = self.conditions.clone();
        if now.down[node] && !before.down[node] {
            self.crash(node, disk);
        }
        if before.down[node] && !now.down[node] {
            let after = self.rng.between(1_000, 20_000);
            self.boot(node, self.now + after);
        }
        if now.stunned[node] && !before.stunned[node] {
            self.stun(node, now.clock_stopped[node]);
        }
        if before.stunned[node] && !now.stunned[node] {
            self.resume(node);
        }
        if now.frozen[node] != before.frozen[node] {
            self.machines[node].frozen = now.frozen[node];
            self.stats.freezes += u64::from(now.frozen[node]);
            self.work_off(node);
        }
        if now.supervisor_down[node] && !before.supervisor_down[node] {
            self.stats.supervisor_deaths += u64::from(self.machines[node].supervisor.is_some());
            self.machines[node].end_supervisor();
        }
        if before.supervisor_down[node] && !now.supervisor_down[node] {
            let life = self.machines[node].life;
            self.at(self.now + 1_000, What::Launch { node, life });
        }
        if now.haproxy_down[node] && !before.haproxy_down[node] {
            self.kill_haproxy(node);
        }
        if before.haproxy_hung[node] && !now.haproxy_hung[node] {
            let haproxy = &mut self.machines[node].haproxy;
            if haproxy.state == HaproxyState::Hung {
                haproxy.state = HaproxyState::Alive;
            }
        }
        if now.link_down[node] != before.link_down[node] {
            for vip in 0..self.plan.vips() {
                let event = Event::Link { vip: VipId(vip as u8), up: !now.link_down[node] };
                self.tell(node, 200, event);
            }
        }
    }

    fn crash(&mut self, node: usize, disk: Disk) {
        let machine = &mut self.machines[node];
        self.stats.crashes += u64::from(machine.on);
        machine.on = false;
        machine.stunned_since = None;
        machine.kernel = Kernel::default();
        machine.haproxy.state = HaproxyState::Dead;
        machine.haproxy.generation += 1;
        machine.end_supervisor();
        match disk {
            Disk::Kept => {}
            Disk::RolledBack => {
                let keep = 1 + self.rng.index(machine.disk.len());
                machine.disk.truncate(keep);
                self.checks.started(node, true);
            }
            Disk::Lost => {
                machine.disk = vec![DiskRecord::default()];
                self.checks.started(node, true);
            }
        }
    }

    fn boot(&mut self, node: usize, at: u64) {
        let origin = 1_000_000 + self.rng.below(1_000_000_000);
        let machine = &mut self.machines[node];
        machine.life += 1;
        let life = machine.life;
        machine.clock = Clock::new(at, origin, self.plan.ppm[node]);
        self.at(at, What::Launch { node, life });
    }

    fn stun(&mut self, node: usize, clock_stops: bool) {
        let machine = &mut self.machines[node];
        if machine.on {
            machine.stunned_since = Some(self.now);
            self.stats.stuns += 1;
            if clock_stops {
                machine.clock.stop(self.now);
            }
        }
    }

    fn resume(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        let Some(since) = machine.stunned_since.take() else { return };
        if machine.clock.is_stopped() {
            machine.clock.go_on(self.now);
            // The kernel counts lifetimes by the same clock.
            for expires in &mut machine.kernel.expires {
                if *expires > since {
                    *expires += self.now - since;
                }
            }
            self.checks.resumed(self.now, node);
        }
        self.work_off(node);
    }

    /// A supervisor that stood still handles what has come meanwhile.
    fn work_off(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        if !machine.runs() {
            return;
        }
        let clock = &machine.clock;
        if let Some(supervisor) = &mut machine.supervisor {
            supervisor.wake_at = clock.when(supervisor.node.deadline()).max(self.now);
        }
        // Whether its timer or its sockets come first is anybody's guess.
        let timer_first = self.rng.chance(500) || self.options.strict;
        if timer_first && machine.supervisor.as_ref().is_some_and(|s| s.wake_at <= self.now) {
            self.hand(node, Event::Timer, None);
        }
        while self.machines[node].runs()
            && let Some(pending) = self.machines[node].inbox.pop_front()
        {
            self.take(node, pending);
        }
    }

    fn launch(&mut self, node: usize) {
        if self.conditions.down[node] || self.conditions.supervisor_down[node] {
            return;
        }
        let session = Session(self.rng.bits());
        let revived = self.rng.between(5_000, 60_000);
        let machine = &mut self.machines[node];
        if !machine.on {
            machine.on = true;
            self.stats.boots += 1;
            if self.conditions.stunned[node] {
                machine.stunned_since = Some(self.now);
                if self.conditions.clock_stopped[node] {
                    machine.clock.stop(self.now);
                }
            }
            let generation = machine.haproxy.generation;
            // systemd starts HAProxy after the supervisor, which has loaded the relay rules by then.
            self.at(self.now + revived, What::Revive { node, generation });
        }
        let machine = &mut self.machines[node];
        if machine.supervisor.is_some() {
            return;
        }
        machine.frozen = self.conditions.frozen[node];
        let record = machine.disk.last().copied().unwrap_or_default();
        let local = machine.clock.read(self.now);
        let settings = &self.plan.settings;
        let me = NodeId(node as u8);
        let mut core = Node::new(settings.clone(), me, session, record, mac(node), local);
        if let Some(bug) = self.options.bug {
            core.plant(bug);
        }
        let seal = self.plan.sealed.then(|| {
            let set = &settings.set.name;
            Box::new(Seal {
                sealer: Sealer::new(SECRET, set, me, session),
                opener: Opener::new(SECRET, set, settings.nodes.len() as u8, me),
            })
        });
        machine.supervisor = Some(Supervisor {
            wake_at: machine.clock.when(core.deadline()).max(self.now),
            node: core,
            session,
            busy: [0; Shell::COUNT],
            probes: Vec::new(),
            since: self.now,
            knows: [None; NODES],
            said: None,
            seal,
        });
        self.stats.starts += 1;
        self.checks.started(node, false);
        note!(self, Some(node), "starts with {record:?}");
        for vip in 0..self.plan.vips() {
            let event = Event::Link { vip: VipId(vip as u8), up: !self.conditions.link_down[node] };
            self.tell(node, 300, event);
        }
        let active = self.machines[node].haproxy.state != HaproxyState::Dead;
        self.tell(node, 400, Event::Unit { unit: Unit::Haproxy, active });
    }

    pub(crate) fn kill_haproxy(&mut self, node: usize) {
        let haproxy = &mut self.machines[node].haproxy;
        if haproxy.state == HaproxyState::Dead {
            return;
        }
        haproxy.state = HaproxyState::Dead;
        haproxy.generation += 1;
        let generation = haproxy.generation;
        self.stats.haproxy_deaths += 1;
        self.tell(node, 500, Event::Unit { unit: Unit::Haproxy, active: false });
        let after = self.rng.between(50_000, 300_000);
        self.at(self.now + after, What::Revive { node, generation });
    }

    /// Starts HAProxy, if it can run. Returns whether it runs.
    pub(crate) fn start_haproxy(&mut self, node: usize) -> bool {
        let machine = &mut self.machines[node];
        if !machine.on {
            return false;
        }
        if self.conditions.haproxy_down[node] {
            let generation = machine.haproxy.generation;
            self.at(self.now + 100_000, What::Revive { node, generation });
            return false;
        }
        if machine.haproxy.state == HaproxyState::Dead {
            machine.haproxy.state = HaproxyState::Alive;
            self.tell(node, 500, Event::Unit { unit: Unit::Haproxy, active: true });
        }
        true
    }

    pub(crate) fn tell(&mut self, node: usize, after: u64, event: Event) {
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

    fn poison(&mut self, vip: VipId) {
        // Somebody who is heard by the clients but not by the owner cannot be answered.
        if (0..self.machines.len()).any(|n| self.conditions.isolated[n]) {
            return;
        }
        note!(self, None, "somebody foreign claims vip {}", vip.0);
        self.stats.poisonings += 1;
        self.clients.hear(usize::from(vip.0), Neighbour::Foreign);
        for node in 0..self.machines.len() {
            self.tell(node, 300, Event::Conflict { vip, mac: FOREIGN_MAC });
        }
    }

    // Clients.

    fn open(&mut self) {
        let client = self.rng.index(CLIENTS);
        let vip = self.rng.index(self.plan.vips());
        if self.clients.cache[client][vip] == Neighbour::Unknown {
            self.resolve(client);
        }
        if self.clients.flows.len() < FLOWS {
            let attempt = self.clients.open(client, vip, &self.machines, &self.conditions);
            match attempt {
                Attempt::Opened => {
                    self.stats.flows += 1;
                    if let Some(flow) = self.clients.flows.last() {
                        let flow = flow.id;
                        self.at(self.now + 10_000, What::Packet { flow });
                    }
                }
                Attempt::Refused { .. } | Attempt::Unanswered => self.stats.failed_connects += 1,
            }
            if let Err(what) = self.checks.flows.opened(&self.scene(), client, vip, attempt) {
                self.break_off("9 nothing breaks", what);
            }
        }
        let again = self.rng.between(60_000, 160_000);
        self.at(self.now + again, What::Open);
    }

    fn packet(&mut self, id: u32) {
        let Some(place) = self.clients.flows.iter().position(|flow| flow.id == id) else { return };
        let flow = self.clients.flows[place].clone();
        let fate = self.clients.send(&flow, &self.machines, &self.conditions);
        if let Err(what) = self.checks.flows.sent(&self.scene(), &flow, fate) {
            self.break_off("9 nothing breaks", what);
        }
        let ends = self.rng.chance(30);
        match fate {
            crate::clients::Fate::Arrived { hops } => self.stats.relayed += u64::from(hops > 0),
            crate::clients::Fate::Reset { .. } => self.stats.resets += 1,
            crate::clients::Fate::Lost => self.stats.lost_packets += 1,
        }
        if ends || matches!(fate, crate::clients::Fate::Reset { .. }) {
            self.clients.flows.swap_remove(place);
            return;
        }
        let again = self.rng.between(20_000, 60_000);
        self.at(self.now + again, What::Packet { flow: id });
    }

    /// A client asks by ARP who has the VIPs. Whoever answers last is remembered.
    fn resolve(&mut self, client: usize) {
        for vip in 0..self.plan.vips() {
            let start = self.rng.index(self.machines.len());
            let count = self.machines.len();
            let holder = (0..count)
                .map(|n| (n + start) % count)
                .find(|n| self.machines[*n].answers_for(vip, self.now) && !self.conditions.isolated[*n]);
            self.clients.cache[client][vip] = holder.map_or(Neighbour::Unknown, Neighbour::Node);
        }
    }

    // The end.

    fn heal(&mut self) {
        self.phase = Phase::Healing { settled_since: None };
        note!(self, None, "healed");
        // From now on what is cut stays cut: a late delivery would be a bridge over it.
        self.attacker.strict = true;
        for node in 0..self.machines.len() {
            let undrain = Request::Drain { node: NodeId(node as u8), drained: false };
            self.ask(node, undrain);
        }
    }

    fn poll(&mut self) {
        self.at(self.now + POLL_US, What::Poll);
        let scene = Scene {
            now: self.now,
            settings: &self.plan.settings,
            machines: &self.machines,
            conditions: &self.conditions,
        };
        if let Err(violation) = self.checks.poll(&scene) {
            self.violation.get_or_insert(violation);
        }
        match self.phase {
            Phase::Faults => {}
            Phase::Healing { settled_since } => self.poll_healing(settled_since),
            Phase::Moving { vip, to, since, ticket } => {
                if self.tickets.contains(&ticket) && self.now - since > MOVE_BOUND_US {
                    self.break_off("3 liveness", format!("vip {vip} was to move to node {to}, and did not"));
                }
                self.over = self.now - since > EPILOGUE_US;
            }
            Phase::Poisoned { vip, since } => {
                if self.now - since > CONFLICT_BOUND_US {
                    let duped = self.clients.cache.iter().any(|cache| cache[vip] == Neighbour::Foreign);
                    if duped {
                        self.break_off(
                            "3 liveness",
                            format!("somebody foreign is still taken for the owner of vip {vip}"),
                        );
                    }
                    self.over = true;
                }
            }
        }
    }

    fn poll_healing(&mut self, settled_since: Option<u64>) {
        let settled_since = match settled(&self.scene(), &self.clients) {
            Ok(()) => Some(settled_since.unwrap_or(self.now)),
            Err(what) => {
                if self.now > self.plan.heal + BOUND_US {
                    self.break_off("3 liveness", what);
                }
                None
            }
        };
        self.phase = Phase::Healing { settled_since };
        let calm_us = if self.plan.epilogue.is_some() { CALM_FOR_EPILOGUE_US } else { CALM_US };
        if let Some(since) = settled_since.filter(|since| self.now - since >= calm_us) {
            self.stats.settled_us += since - self.plan.heal;
            match self.plan.epilogue.filter(|_| self.conditions == Conditions::default()) {
                Some(Epilogue::Move) if self.machines.len() > 1 => self.move_in_calm(),
                Some(Epilogue::Poison) => self.poison_in_calm(),
                _ => self.over = true,
            }
        }
    }

    fn move_in_calm(&mut self) {
        let vip = self.rng.index(self.plan.vips());
        let owner = (0..self.machines.len()).find(|n| self.scene().owns(*n, vip).is_some()).unwrap_or(0);
        let to = (owner + 1 + self.rng.index(self.machines.len() - 1)) % self.machines.len();
        let asked = self.rng.index(self.machines.len());
        note!(self, None, "all is well: vip {vip} moves from node {owner} to node {to}");
        self.checks.flows.calm = true;
        self.phase = Phase::Moving { vip, to, since: self.now, ticket: self.stats.requests + 1 };
        self.ask(asked, Request::Move { vip: VipId(vip as u8), to: NodeId(to as u8) });
    }

    fn poison_in_calm(&mut self) {
        let vip = self.rng.index(self.plan.vips());
        self.phase = Phase::Poisoned { vip, since: self.now };
        self.poison(VipId(vip as u8));
    }

    /// While nothing is wrong somebody answers for every VIP at every moment.
    pub(crate) fn watch_for_a_gap(&mut self) {
        if !matches!(self.phase, Phase::Moving { .. }) {
            return;
        }
        for vip in 0..self.plan.vips() {
            if !self.machines.iter().any(|m| m.answers_for(vip, self.now)) {
                self.break_off("9 nothing breaks", format!("nobody answers for vip {vip} during a planned move"));
            }
        }
    }

    pub(crate) fn scene(&self) -> Scene<'_> {
        Scene { now: self.now, settings: &self.plan.settings, machines: &self.machines, conditions: &self.conditions }
    }

    pub(crate) fn break_off(&mut self, invariant: &'static str, what: String) {
        self.violation.get_or_insert(Violation { invariant, what, at: self.now });
    }

    pub(crate) fn name(&self, node: Option<usize>) -> &'a str {
        node.map_or("world", |n| &self.plan.settings.nodes[n].name)
    }

    /// Whether the attacker or the weather made a probe fail that should have been answered.
    pub(crate) fn misled(&mut self, node: usize, probe: Probe) {
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
/// Invariant 3's bound: so long after the heal everything is as it should be, in microseconds. The longest way back is that of an
/// address that was refused again and again: it is tried again after five seconds.
const BOUND_US: u64 = 6_000_000;
/// And stays so.
const CALM_US: u64 = 150_000;
/// Before an epilogue the last probes of the faulty times have ended too.
const CALM_FOR_EPILOGUE_US: u64 = 600_000;
/// A planned move takes no longer, in microseconds.
const MOVE_BOUND_US: u64 = 300_000;
/// So long after a foreign claim the clients know better: what goes on may delay the announcement a little.
const CONFLICT_BOUND_US: u64 = 80_000;
/// So long the world is watched after it.
const EPILOGUE_US: u64 = 800_000;
/// So many things may happen in the same microsecond.
const MAX_SPINS: u32 = 2_000;
/// So many datagrams and events wait for a supervisor that stands still: the socket's buffer.
const INBOX: usize = 256;
/// The simulated set's secret.
const SECRET: &[u8] = b"no secret at all, but long enough";
