//! What goes wrong, and what operators do.

use trilith_core::set::{Ask, Goal, Pause, Request};
use trilith_core::slots::{Entry, Step};

use super::event::{Event, Mend};
use super::log::Log;
use super::machine::Machine;
use super::plan::{Fault, Order, S};
use super::world::World;

impl World {
    pub(super) fn strike(&mut self, fault_number: usize) {
        let fault = self.plan.faults[fault_number].1;
        let node = match fault {
            Fault::Power(node, _) | Fault::Torn(node, _) | Fault::Isolate(node, _) | Fault::Unfit(node, _) => node,
            Fault::Restart(node) | Fault::Jobs(node, _) | Fault::Wipe(node) | Fault::Lose(node, _) => node,
            Fault::Elect => 0,
        };
        self.note(node, format_args!("fault: {fault:?}"));
        match fault {
            Fault::Power(node, long) => self.dark(node, long),
            Fault::Torn(node, long) => self.machines[node].torn = Some(long),
            Fault::Isolate(node, long) => {
                self.machines[node].isolated = true;
                self.after(long, Event::Mend(node, Mend::Network));
            }
            Fault::Unfit(node, long) => {
                self.machines[node].unfit = true;
                self.after(long, Event::Mend(node, Mend::Fitness));
            }
            Fault::Restart(node) => self.die(node, 3 * S),
            Fault::Elect => self.log.leader = None,
            Fault::Jobs(node, count) => self.machines[node].failing = count,
            Fault::Wipe(node) => self.wipe(node),
            // After that nothing goes wrong any more.
            Fault::Lose(..) if self.now >= self.plan.heal => {}
            Fault::Lose(node, long) if self.lose(node) => self.dark(node, long),
            Fault::Lose(..) => self.after(5 * S, Event::Fault(fault_number)),
        }
    }

    /// Whether the disk loses the name: while a rollout goes forward, and there is another system to start.
    fn lose(&mut self, node: usize) -> bool {
        let going =
            self.log.last().rollout.as_ref().is_some_and(|rollout| rollout.back.is_none()) && self.runs_new(node);
        let slots = &mut self.machines[node].disk.slots;
        let complete = slots.image(slots.running.other()).is_some();
        let there = slots.entry(slots.running.other()).is_some_and(Entry::proven) && complete;
        let entry = slots.entry(slots.running).filter(|entry| going && there && entry.proven());
        let Some(file) = entry.map(|entry| entry.file.clone()) else { return false };
        slots.apply(&Step::Remove { file });
        self.stats.lost_names += 1;
        true
    }

    /// The power fails.
    pub(super) fn dark(&mut self, node: usize, long: u64) {
        if self.machines[node].dark {
            return;
        }
        self.stats.power_cuts += 1;
        self.halt(node);
        self.machines[node].dark = true;
        self.machines[node].restarting = false;
        self.after(long, Event::Mend(node, Mend::Power));
    }

    pub(super) fn mend(&mut self, node: usize, mend: Mend) {
        match mend {
            Mend::Power => {
                self.machines[node].dark = false;
                let life = self.machines[node].life;
                self.after(S, Event::Boot(node, life));
            }
            Mend::Network => self.machines[node].isolated = false,
            Mend::Fitness => self.machines[node].unfit = false,
        }
        self.spread();
    }

    /// The node is replaced, but only while all others have everything: a majority of disks survives.
    fn wipe(&mut self, node: usize) {
        let Log { stored, .. } = &self.log;
        let whole = (0..stored.len()).all(|other| other == node || stored[other] == self.log.len());
        if !whole || stored.len() < 3 || self.machines[node].dark {
            return;
        }
        self.stats.wipes += 1;
        self.halt(node);
        let machine = &mut self.machines[node];
        machine.disk = machine.disk.wiped();
        machine.restarting = false;
        let life = machine.life;
        self.log.stored[node] = 0;
        self.after(5 * S, Event::Boot(node, life));
    }

    /// The rollout under test is started; then operators do what they do.
    pub(super) fn order(&mut self, order: usize) {
        let state = self.log.last();
        let Some((_, order)) = self.plan.orders.get(order) else {
            if state.rollouts == 0 {
                let goal = self.goal();
                self.ask(Ask::Start { token: "test".into(), goal, options: self.plan.options.clone() });
                self.after(5 * S, Event::Order(usize::MAX));
            }
            return;
        };
        let ask = match (order, state.rollout.as_ref().map(|rollout| rollout.id)) {
            (Order::Pause, Some(rollout)) => Ask::Pause { rollout, why: Pause::Operator },
            (Order::Resume, Some(rollout)) => Ask::Resume { rollout },
            (Order::Abort, Some(rollout)) => Ask::Abort { rollout, reason: "an operator wants it".into() },
            (Order::Confirm, Some(rollout)) => Ask::Confirm { rollout },
            (Order::Rollback, None) => {
                let Some(version) = state.previous() else { return };
                self.stats.rollbacks += 1;
                let (goal, options) = (Goal::System { version }, self.plan.options.clone());
                Ask::Start { token: "back".into(), goal, options }
            }
            (Order::Rollback, Some(_)) | (_, None) => return,
        };
        self.ask(ask);
    }

    /// An operator asks some node that runs.
    pub(super) fn ask(&mut self, ask: Ask) {
        let up = |machine: &Machine| machine.supervisor.is_some() && !machine.isolated;
        if let Some(node) = self.machines.iter().position(up) {
            self.after(10_000, Event::Commit(node, Box::new(Request::new("operator", None, ask))));
        }
    }
}
