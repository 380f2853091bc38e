//! The end of a run: faults heal, the set settles, and perhaps something small happens while all is well.

use trilith_core::config::{NodeId, VipId};
use trilith_core::event::Request;

use super::{POLL_US, Phase, What, World};
use crate::check::{Scene, settled};
use crate::clients::Neighbour;
use crate::conditions::Conditions;
use crate::plan::Epilogue;

impl World<'_> {
    pub(super) fn heal(&mut self) {
        self.phase = Phase::Healing { settled_since: None };
        note!(self, None, "healed");
        // From now on what is cut stays cut: a late delivery would be a bridge over it.
        self.attacker.strict = true;
        for node in 0..self.machines.len() {
            let undrain = Request::Drain { node: NodeId(node as u8), drained: false };
            self.ask(node, undrain);
        }
    }

    pub(super) fn poll(&mut self) {
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
    pub(super) fn watch_for_a_gap(&mut self) {
        if !matches!(self.phase, Phase::Moving { .. }) {
            return;
        }
        for vip in 0..self.plan.vips() {
            if !self.machines.iter().any(|m| m.answers_for(vip, self.now)) {
                self.break_off("9 nothing breaks", format!("nobody answers for vip {vip} during a planned move"));
            }
        }
    }
}

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
