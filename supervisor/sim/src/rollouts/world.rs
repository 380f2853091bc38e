//! The loop: events in the order of their time; after each, whoever has something new to think about takes a step.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use trilith_core::plant::{Bug, Planted};
use trilith_core::rollout::{Agent, Drain, Own, Seen, Sight};
use trilith_core::set::holder::{Deed, Holder};
use trilith_core::set::{Ask, Bundle, LEVEL, Node, Release, Request, State};
use trilith_core::time::Time;

use super::Outcome;
use super::check::Checks;
use super::event::{Broken, Event, Stats};
use super::finale::Finale;
use super::log::Log;
use super::machine::{Machine, Supervisor};
use super::plan::{BASE, Fault, GOOD, NEXT, Plan, S, SERVICE, What};
use crate::check::Violation;
use crate::rng::Rng;
use crate::trace::Trace;

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) now: u64,
    pub(super) rng: Rng,
    pub(super) planted: Planted,
    pub(super) bug: Option<Bug>,
    pub(super) trace: Trace,
    pub(super) stats: Stats,
    pub(super) checks: Checks,
    pub(super) machines: Vec<Machine>,
    pub(super) log: Log,
    /// Who owns the VIP.
    pub(super) vip: Option<usize>,
    pub(super) finale: Finale,
    queue: BinaryHeap<Reverse<(u64, usize)>>,
    events: Vec<Option<Event>>,
    looks: BTreeSet<usize>,
    views: BTreeSet<usize>,
    truth: Vec<u8>,
    electing: bool,
    moving: bool,
}

impl World {
    pub(super) fn new(plan: Plan, bug: Option<Bug>, trace: Trace) -> World {
        let nodes = plan.nodes;
        let mut state = State::with_document("good");
        for node in 0..nodes {
            let report = Node { generation: 1, level: LEVEL, running: BASE, config: 1, ..Node::default() };
            let report = Node { blessed: true, slot: "a".into(), ..report };
            prepare(&mut state, Ask::Report { node: Machine::name_of(node), report });
        }
        for release in [Release::system(NEXT), Release::system(GOOD), Release::service(SERVICE, NEXT)] {
            let held_by = [Machine::name_of(0)].into();
            let bundle = Bundle { manifest: release.to_string(), size: 1, held_by, ..Bundle::default() };
            prepare(&mut state, Ask::AddBundle { release, bundle });
        }
        let mut machines: Vec<Machine> = (0..nodes).map(|node| Machine::new(node, plan.ppm[node])).collect();
        machines[0].disk.bundles = state.bundles.keys().cloned().collect();
        let mut world = World {
            now: 0,
            rng: Rng::new(plan.seed, 8),
            planted: bug.map_or_else(Planted::default, Planted::one),
            bug,
            trace,
            stats: Stats::default(),
            checks: Checks::default(),
            machines,
            log: Log::new(state, nodes),
            vip: None,
            finale: Finale::default(),
            queue: BinaryHeap::new(),
            events: Vec::new(),
            looks: BTreeSet::new(),
            views: BTreeSet::new(),
            truth: Vec::new(),
            electing: false,
            moving: false,
            plan,
        };
        for node in 0..nodes {
            world.at(S * node as u64, Event::Boot(node, 0));
        }
        for fault in 0..world.plan.faults.len() {
            world.at(world.plan.faults[fault].0, Event::Fault(fault));
        }
        for order in 0..world.plan.orders.len() {
            world.at(world.plan.orders[order].0, Event::Order(order));
        }
        world.at(100 * S, Event::Order(usize::MAX));
        if let Some((node, at)) = world.plan.late {
            let long = world.plan.heal + 2 * trilith_core::rollout::LOST.as_micros() as u64 - at;
            let fault = world.plan.faults.len();
            world.plan.faults.push((at, Fault::Power(node, long)));
            world.at(at, Event::Fault(fault));
        }
        world.at(world.plan.heal, Event::Judge);
        world
    }

    pub(super) fn run(mut self) -> Outcome {
        let mut violation = None;
        while let Some(Reverse((at, number))) = self.queue.pop() {
            let Some(event) = self.events[number].take() else { continue };
            self.now = at;
            let done = self.handle(event).and_then(|()| self.settle());
            if let Err((invariant, what)) = done {
                violation = Some(Violation { invariant, what, at });
                break;
            }
            if self.finale.is_over() {
                break;
            }
        }
        self.stats.rollout_us = self.now;
        Outcome { violation, stats: self.stats, trace: self.trace.hash() }
    }

    /// Lets something happen after so many microseconds.
    pub(super) fn after(&mut self, us: u64, event: Event) {
        self.at(self.now + us, event);
    }

    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.queue.push(Reverse((at, self.events.len())));
        self.events.push(Some(event));
    }

    /// A node's own time.
    pub(super) fn time(&self, node: usize) -> Time {
        self.machines[node].clock.read(self.now)
    }

    pub(super) fn note(&mut self, node: usize, what: std::fmt::Arguments<'_>) {
        if self.trace.is_on() {
            self.trace.write(self.now, &self.machines[node].name, what);
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), Broken> {
        match event {
            Event::Boot(node, life) if self.lives(node, life) => self.boot(node)?,
            Event::Start(node, life) if self.lives(node, life) => self.start(node),
            Event::Restart(node, life, why) if self.lives(node, life) => {
                self.note(node, format_args!("restarts: {why}"));
                self.restart(node);
            }
            Event::Die(node, life) if self.lives(node, life) => self.die(node, 3 * S),
            Event::Look(node) => {
                self.looks.remove(&node);
                self.look(node);
            }
            Event::View(node) => {
                self.views.remove(&node);
                self.view(node);
            }
            Event::Wake(node, life, alarm) if self.lives(node, life) => {
                if let Some(supervisor) = self.machines[node].supervisor.as_mut().filter(|s| s.alarm == alarm) {
                    supervisor.alarm = 0;
                    supervisor.stirred = true;
                }
            }
            Event::Step(node, life) if self.lives(node, life) => self.step_done(node)?,
            Event::Tear(node, life, long) if self.lives(node, life) => self.tear(node, long)?,
            Event::Drained(node, life) if self.lives(node, life) => {
                if let Some(supervisor) = &mut self.machines[node].supervisor
                    && supervisor.own.drain == Drain::Going
                {
                    supervisor.own.drain = Drain::Done;
                    supervisor.stirred = true;
                }
            }
            Event::Job(node, life, release) if self.lives(node, life) => self.job_done(node, release),
            Event::Service(node, life) if self.lives(node, life) => {
                self.machines[node].restarting = false;
                self.machines[node].refresh();
            }
            Event::Stopped(node) => (self.machines[node].unit, self.machines[node].stopping) = (false, false),
            Event::Commit(from, request) => self.commit(from, &request)?,
            Event::Vip => {
                self.moving = false;
                self.move_vip();
            }
            Event::Elect => {
                self.electing = false;
                self.elect()?;
            }
            Event::Fault(fault) => self.strike(fault),
            Event::Mend(node, mend) => self.mend(node, mend),
            Event::Order(order) => self.order(order),
            Event::Judge => self.judge()?,
            _ => {}
        }
        Ok(())
    }

    fn lives(&self, node: usize, life: u32) -> bool {
        self.machines[node].life == life && !self.machines[node].dark
    }

    /// Until nobody has anything to think about; then everyone will look around if the world has changed.
    fn settle(&mut self) -> Result<(), Broken> {
        for _ in 0..THOUGHTS {
            let stirred = |machine: &Machine| machine.supervisor.as_ref().is_some_and(|s| s.stirred);
            let Some(node) = self.machines.iter().position(stirred) else { break };
            self.think(node)?;
        }
        self.checks.poll(&self.machines)?;
        let truth: Vec<u8> = (0..self.machines.len()).map(|node| self.truth(node)).collect();
        if truth != self.truth {
            self.truth = truth;
            for node in 0..self.machines.len() {
                self.checks.served(node, self.now, self.serves(node));
                if self.machines[node].supervisor.is_some() && self.looks.insert(node) {
                    let us = self.rng.between(50_000, 600_000);
                    self.after(us, Event::Look(node));
                }
            }
            if self.vip.is_none_or(|node| !self.serves(node)) && !self.moving {
                self.moving = true;
                self.after(300_000, Event::Vip);
            }
        }
        let led = self.log.leader.is_some_and(|node| self.machines[node].supervisor.is_some() && self.in_touch(node));
        if !led && !self.electing {
            self.electing = true;
            self.log.leader = None;
            let us = self.rng.between(S, 3 * S);
            self.after(us, Event::Elect);
        }
        Ok(())
    }

    fn think(&mut self, node: usize) -> Result<(), Broken> {
        let now = self.time(node);
        let stopped = !self.machines[node].unit && !self.machines[node].stopping;
        let willing = self.serves(node);
        let Some(supervisor) = &mut self.machines[node].supervisor else { return Ok(()) };
        supervisor.stirred = false;
        let Supervisor { agent, holder, own, seen, view, leads, quorum, .. } = supervisor;
        let sight = Sight { state: view, leads: *leads, quorum: *quorum, utc: None, nodes: seen, own };
        let acts = agent.step(now, &sight);
        let deeds = if self.plan.singleton { holder.step(now, view, willing, stopped) } else { Vec::new() };
        let deadline = [agent.deadline(), holder.deadline()].into_iter().flatten().min();
        let machine = &mut self.machines[node];
        let life = machine.life;
        let at = deadline.map_or(0, |deadline| machine.clock.when(deadline).max(self.now + 1));
        if let Some(supervisor) = machine.supervisor.as_mut().filter(|supervisor| supervisor.alarm != at) {
            supervisor.alarm = at;
            if at > 0 {
                self.at(at, Event::Wake(node, life, at));
            }
        }
        self.stats.agent_steps += 1;
        for act in acts {
            self.note(node, format_args!("{act}"));
            self.act(node, act)?;
            if self.machines[node].life != life {
                return Ok(());
            }
        }
        // No agent asks for that: there is no better system here.
        if self.machines[node].only_system_unblessed() && self.serves(node) {
            self.bless(node)?;
        }
        for deed in deeds {
            match deed {
                Deed::Propose(ask) => self.propose(node, ask),
                Deed::Run => self.machines[node].unit = true,
                Deed::Stop => self.stop_unit(node),
            }
        }
        Ok(())
    }

    /// A unit takes its time to stop.
    pub(super) fn stop_unit(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        if machine.unit && !machine.stopping {
            machine.stopping = true;
            let us = self.rng.between(10_000, 9 * S);
            self.after(us, Event::Stopped(node));
        }
    }

    /// Everyone who can will see what was committed.
    pub(super) fn spread(&mut self) {
        for node in 0..self.machines.len() {
            if self.machines[node].supervisor.is_some() && self.in_touch(node) && self.views.insert(node) {
                let us = self.rng.between(10_000, 900_000);
                self.after(us, Event::View(node));
            }
        }
    }

    /// A supervisor that knows what its disk holds.
    pub(super) fn start(&mut self, node: usize) {
        let now = self.time(node);
        let stored = self.log.stored[node];
        let session = self.rng.bits();
        let view = if stored == 0 { Arc::new(State::default()) } else { self.log.after(stored) };
        let machine = &mut self.machines[node];
        machine.restarting = false;
        let (planted, own, name) = (self.planted, Own::default(), &machine.name);
        machine.supervisor = Some(Supervisor {
            agent: Agent::new(name, planted),
            holder: Holder::new(name, SINGLETON, session, planted),
            own,
            seen: BTreeMap::new(),
            leads: false,
            quorum: false,
            view,
            since: now,
            service_since: now,
            alarm: 0,
            stirred: true,
        });
        self.note(node, format_args!("the supervisor starts"));
        for other in 0..self.machines.len() {
            let name = Machine::name_of(other);
            let seen =
                Seen { heard: other == node, unfit: (other == node).then(|| "starting".into()), ..Seen::default() };
            if let Some(supervisor) = &mut self.machines[node].supervisor {
                supervisor.seen.insert(name, seen);
            }
        }
        self.begin(node);
        self.spread();
    }
}

fn prepare(state: &mut State, ask: Ask) {
    let applied = state.apply(&Request::new("start", None, ask));
    assert!(applied.is_ok(), "{applied:?}");
}

/// The singleton of these worlds.
pub(super) const SINGLETON: &str = "volume";
/// Steps of agents at one moment: more would mean that they chase each other.
const THOUGHTS: usize = 1_000;

impl World {
    /// What is brought by the rollout under test.
    pub(super) fn goal(&self) -> trilith_core::set::Goal {
        use trilith_core::set::Goal;
        match self.plan.what {
            What::System => Goal::System { version: NEXT },
            What::Service => Goal::Service { name: SERVICE.into(), version: NEXT },
            What::Config => Goal::Config { base: 1, text: "new".into() },
        }
    }
}
