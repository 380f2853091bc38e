//! Faults strike machines and leave them again.

use trilith_core::config::{NodeId, VipId};
use trilith_core::event::{Event, Unit};
use trilith_core::node::Node;
use trilith_core::wire::{DiskRecord, Session};

use super::{What, World};
use crate::check::Scene;
use crate::clients::mac;
use crate::clock::Clock;
use crate::conditions::Conditions;
use crate::machine::{HaproxyState, Kernel, Shell, Supervisor};
use crate::net::Seal;
use crate::plan::{Disk, Fault, NODES};

impl World<'_> {
    pub(super) fn fault(&mut self, index: usize, begins: bool) {
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

    pub(super) fn boot(&mut self, node: usize, at: u64) {
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

    pub(super) fn launch(&mut self, node: usize) {
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
        self.seals[node] = self.plan.sealed.then(|| Seal::new(settings.nodes.len(), node, session));
        machine.supervisor = Some(Supervisor {
            wake_at: machine.clock.when(core.deadline()).max(self.now),
            node: core,
            session,
            busy: [0; Shell::COUNT],
            probes: Vec::new(),
            knows: [false; NODES],
            said: None,
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

    pub(super) fn kill_haproxy(&mut self, node: usize) {
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
    pub(super) fn start_haproxy(&mut self, node: usize) -> bool {
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
}
