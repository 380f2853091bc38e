//! Slot writing, step by step, as far as the power lasts.

use std::collections::VecDeque;

use trilith_core::rollout::Job;
use trilith_core::slots::{Content, Entry, Step};

use super::deeds::is_of;
use super::event::{Broken, Event};
use super::machine::{Machine, Then, Work};
use super::plan::S;
use super::world::World;

impl World {
    pub(super) fn work(&mut self, node: usize, steps: VecDeque<Step>, then: Then) -> Result<(), Broken> {
        self.machines[node].work = Some(Work { steps, then });
        self.next_step(node)
    }

    fn next_step(&mut self, node: usize) -> Result<(), Broken> {
        let machine = &mut self.machines[node];
        let life = machine.life;
        let Some(work) = &machine.work else { return Ok(()) };
        let Some(step) = work.steps.front() else {
            let then = work.then.clone();
            machine.work = None;
            match then {
                Then::Reboot => self.restart(node),
                Then::Blessed => machine.disk.pending = None,
                Then::Staged(release) => {
                    machine.disk.failed.take_if(|failure| is_of(&failure.what, &release));
                    if let Some(supervisor) = &mut machine.supervisor {
                        supervisor.own.job = Job::Idle;
                    }
                }
            }
            self.machines[node].refresh();
            return Ok(());
        };
        let long = matches!(step, Step::WriteRoot { .. } | Step::Verify { .. });
        let us = if long { self.rng.between(2 * S, 20 * S) } else { self.rng.between(5_000, S) };
        match machine.torn.take() {
            Some(dark) => self.after(us / 2, Event::Tear(node, life, dark)),
            None => self.after(us, Event::Step(node, life)),
        }
        Ok(())
    }

    pub(super) fn step_done(&mut self, node: usize) -> Result<(), Broken> {
        let machine = &mut self.machines[node];
        if let Some(step) = machine.work.as_mut().and_then(|work| work.steps.pop_front()) {
            machine.disk.slots.apply(&step);
            self.note(node, format_args!("{step}"));
        }
        self.checks.slots(&self.machines[node])?;
        self.next_step(node)
    }

    /// The power fails in the middle of a step: what is written last is torn, and a name may be there once, twice or not at all.
    pub(super) fn tear(&mut self, node: usize, long: u64) -> Result<(), Broken> {
        self.stats.torn_steps += 1;
        let choice = self.rng.below(4);
        let machine = &mut self.machines[node];
        if let Some(step) = machine.work.as_ref().and_then(|work| work.steps.front()).cloned() {
            tear(machine, &step, choice);
            self.note(node, format_args!("is cut off while it was to {step}"));
        }
        self.checks.slots(&self.machines[node])?;
        self.dark(node, long);
        Ok(())
    }
}

fn tear(machine: &mut Machine, step: &Step, choice: u64) {
    let slots = &mut machine.disk.slots;
    match step {
        Step::WriteRoot { slot } | Step::WriteVerity { slot } => slots.contents[*slot as usize] = Content::Unknown,
        Step::WriteUki { file, .. } | Step::Copy { to: file, .. } => {
            slots.leftovers.retain(|entry| entry.file != *file);
            slots.leftovers.push(Entry { file: file.clone(), image: None });
        }
        Step::Rename { from, .. } => {
            let old: Option<Entry> =
                slots.entries.iter().chain(&slots.leftovers).find(|entry| entry.file == *from).cloned();
            let hidden = slots.leftovers.iter().any(|entry| entry.file == *from);
            match choice {
                0 => {}
                1 => slots.apply(step),
                2 => {
                    slots.apply(step);
                    if hidden { slots.leftovers.extend(old) } else { slots.entries.extend(old) }
                }
                _ => slots.apply(&Step::Remove { file: from.clone() }),
            }
        }
        Step::Remove { .. } if choice < 2 => slots.apply(step),
        Step::Remove { .. } | Step::Verify { .. } => {}
    }
}
