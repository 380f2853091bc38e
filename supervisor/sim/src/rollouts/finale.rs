//! After all faults have ended: the rollout has ended in a stated state, everyone serves, and a good bundle is accepted.

use trilith_core::rollout::{LOST, TRIAL};
use trilith_core::set::{Ask, Goal, Hold, Kind, Options, Outcome, Release};

use super::event::{Broken, Event};
use super::plan::{BASE, Behaviour, GOOD, NEXT, S, What};
use super::world::World;

/// How far the end is.
#[derive(Debug, Default)]
pub(super) struct Finale {
    /// What was started for the end, and by when it must be done.
    last: Option<(Goal, u64)>,
    over: bool,
}

impl Finale {
    pub(super) fn is_over(&self) -> bool {
        self.over
    }
}

impl World {
    pub(super) fn judge(&mut self) -> Result<(), Broken> {
        self.after(EVERY, Event::Judge);
        self.machines.iter_mut().for_each(|machine| (machine.failing, machine.torn) = (0, None));
        let lost = self.machines.iter().filter(|machine| machine.dark).count();
        // Without a majority nobody can say anything.
        let dark = lost > 0 && 2 * lost < self.machines.len() && self.now > self.plan.heal + LATE;
        if let Some(rollout) = self.log.last().rollout.as_ref().filter(|rollout| dark && rollout.hold == Hold::Going)
            && rollout.turn.is_some()
        {
            return Err(("liveness", format!("nobody says that a node is lost: {rollout}")));
        }
        match self.finale.last.clone() {
            Some((goal, by)) => self.judge_last(&goal, by),
            None => match self.unrest() {
                None => {
                    self.judge_outcome()?;
                    let done = self.log.last().history.last().is_some_and(|past| past.outcome == Outcome::Done);
                    if done && self.log.last().rollout.is_none() && !self.plan.last {
                        self.finale.over = true;
                    } else {
                        self.begin_last();
                    }
                    Ok(())
                }
                Some(why) if self.now > self.plan.heal + CALM => {
                    Err(("liveness", format!("long after all faults: {why}")))
                }
                Some(_) => Ok(()),
            },
        }
    }

    /// What is not as it should be in the end, while nobody does anything.
    fn unrest(&self) -> Option<String> {
        let state = self.log.last();
        if let Some(rollout) = &state.rollout {
            let held = rollout.hold != Hold::Going && rollout.turn.is_none();
            if !held {
                return Some(rollout.to_string());
            }
        }
        for (node, machine) in self.machines.iter().enumerate() {
            let name = &machine.name;
            // Nobody takes a document or service back that an operator keeps paused.
            let kept = state.rollout.is_some() && self.runs_new(node) && self.plan.behaviour[node] != Behaviour::Good;
            if machine.dark {
                return Some(format!("node {name} has no power"));
            }
            let Some(supervisor) = &machine.supervisor else { return Some(format!("node {name} does not run")) };
            if !self.serves(node) && !kept {
                return Some(format!("node {name} does not serve; drain {:?}", supervisor.own.drain));
            }
            if supervisor.own.trial.is_some() && !kept {
                return Some(format!("node {name} still runs on trial"));
            }
            let wanted = state.document_for(name).version;
            if state.rollout.is_none() && machine.disk.config != wanted {
                return Some(format!("node {name} has configuration {}, not {wanted}", machine.disk.config));
            }
            if machine.work.is_some() || machine.is_out() {
                return Some(format!("node {name} is still at work"));
            }
        }
        if !self.plan.singleton {
            return None;
        }
        let units = self.machines.iter().filter(|machine| machine.unit).count();
        (units != 1).then(|| format!("the singleton runs on {units} nodes"))
    }

    /// What the outcome promises.
    fn judge_outcome(&self) -> Result<(), Broken> {
        let state = self.log.last();
        let Some(past) = state.history.last().filter(|_| state.rollout.is_none()) else { return Ok(()) };
        let here = |node: &usize| state.nodes.contains_key(&self.machines[*node].name);
        let members: Vec<usize> = (0..self.machines.len()).filter(here).collect();
        let has = |node: usize| match past.kind {
            Kind::System { version } => self.machines[node].running() == version,
            _ => self.runs_new(node),
        };
        let came = |node: usize| self.machines[node].disk.generation > 1 && self.machines[node].running() == BASE;
        match past.outcome {
            Outcome::Done if self.stats.wipes == 0 => match members.iter().find(|node| !has(**node)) {
                // One that has lost it since is told of.
                Some(_) if state.stray().is_some() => Ok(()),
                Some(node) => Err(("liveness", format!("done, but node {} has it not", self.machines[*node].name))),
                None => Ok(()),
            },
            // One that came with it had it before.
            Outcome::Back { .. } => match members.iter().find(|node| has(**node) && !came(**node)) {
                Some(_) if state.stray().is_some() => Ok(()),
                Some(node) => {
                    Err(("liveness", format!("taken back, but node {} still has it", self.machines[*node].name)))
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// An operator clears the table and brings something good.
    fn begin_last(&mut self) {
        let state = std::sync::Arc::clone(self.log.last());
        if let Some(rollout) = &state.rollout {
            let system = matches!(rollout.kind, Kind::System { .. }) && matches!(rollout.hold, Hold::Halted { .. });
            let rollout = rollout.id;
            if !system {
                self.ask(Ask::Abort { rollout, reason: "the end".into() });
                return;
            }
        }
        let innocent = self.plan.behaviour.iter().all(|behaviour| *behaviour == Behaviour::Good);
        let banned = state.bans.contains_key(&Release::system(NEXT)) && self.plan.what == What::System;
        let again = self.plan.again && innocent && banned;
        if again {
            self.ask(Ask::Unban { release: Release::system(NEXT) });
        }
        let version = if again { NEXT } else { GOOD };
        let goal = Goal::System { version };
        // Whoever held the only copies may have been replaced.
        if let Some(machine) = self.machines.iter_mut().find(|machine| machine.supervisor.is_some()) {
            machine.disk.bundles.extend(state.bundles.keys().cloned());
            machine.refresh();
        }
        let options = Options { drain_s: Some(5), force: self.plan.nodes < 3, ..Options::default() };
        self.ask(Ask::Start { token: "last".into(), goal: goal.clone(), options });
        self.finale.last = Some((goal, self.now + LAST));
    }

    fn judge_last(&mut self, goal: &Goal, by: u64) -> Result<(), Broken> {
        let state = self.log.last();
        let Goal::System { version } = goal else { return Ok(()) };
        let done = state.history.last().is_some_and(|past| past.token == "last" && past.outcome == Outcome::Done);
        let runs = self.machines.iter().all(|machine| machine.running() == *version);
        if done && runs && self.unrest().is_none() {
            self.finale.over = true;
        } else if self.now > by {
            let now = state.rollout.as_ref().map_or_else(|| "none is in progress".to_owned(), ToString::to_string);
            let past = state.history.last().map_or_else(String::new, |past| format!("; before: {}", past.outcome));
            let why = self.unrest().unwrap_or_default();
            return Err(("liveness", format!("{version} is not accepted: {now}{past}; {why}")));
        } else if state.history.iter().all(|past| past.token != "last")
            && state.rollout.as_ref().is_none_or(|r| r.token != "last")
        {
            // The request was lost on its way.
            self.finale.last = None;
            self.begin_last();
            self.finale.last = Some((goal.clone(), by));
        }
        Ok(())
    }
}

/// Between two looks at everything, in microseconds.
const EVERY: u64 = 10 * S;
/// A rollout that lost a node must have said so by then.
const LATE: u64 = LOST.as_micros() as u64 + 120 * S;
/// Everything must be calm by then: a node was lost, came back, was tried, fell back, and others went back after it.
const CALM: u64 = 4 * LOST.as_micros() as u64 + 2 * TRIAL.as_micros() as u64;
/// A rollout without faults is over by then.
const LAST: u64 = 1800 * S;
