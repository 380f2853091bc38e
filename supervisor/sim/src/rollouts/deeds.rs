//! What machines do: boot, restart, write slots, carry out the agents' acts.

use trilith_core::plant::Bug;
use trilith_core::rollout::{Act, Drain, Failure, Job, Target};
use trilith_core::set::{Fallback, Release};
use trilith_core::slots::{Content, Entry, EntryName, Step, Tries};

use super::event::{Broken, Event};
use super::machine::{Then, image};
use super::plan::{Behaviour, NEXT, S, What};
use super::world::World;

impl World {
    /// The boot loader has taken an entry.
    pub(super) fn boot(&mut self, node: usize) -> Result<(), Broken> {
        let booted = self.machines[node].disk.boot();
        self.checks.slots(&self.machines[node])?;
        if booted.is_none() {
            return Err((
                "5 a slot boots",
                format!("node {node} finds nothing to start: {:?}", self.machines[node].disk.slots),
            ));
        }
        let behaviour = self.behaviour_of_system(node);
        self.machines[node].up = Some(self.time(node));
        let machine = &mut self.machines[node];
        let version = machine.running();
        machine.mute = behaviour == Behaviour::Mute;
        let life = machine.life;
        self.note(node, format_args!("boots {version}: {behaviour:?}"));
        match behaviour {
            Behaviour::Panic | Behaviour::Corrupt => {
                self.after(10 * S, Event::Restart(node, life, "its kernel panics"))
            }
            Behaviour::Hang => self.after(120 * S, Event::Restart(node, life, "its watchdog bites")),
            Behaviour::Crash => {
                self.after(60 * S, Event::Restart(node, life, "its supervisor crashes again and again"))
            }
            Behaviour::Good | Behaviour::Unfit | Behaviour::Mute => {
                let us = self.rng.between(15 * S, 60 * S);
                self.after(us, Event::Start(node, life));
            }
        }
        Ok(())
    }

    fn behaviour_of_system(&self, node: usize) -> Behaviour {
        let new = self.plan.what == What::System && self.machines[node].running() == NEXT;
        if new { self.plan.behaviour[node] } else { Behaviour::Good }
    }

    /// What a supervisor does before its first step: the disk says what happened.
    pub(super) fn begin(&mut self, node: usize) {
        let crashes = self.plan.what == What::Config && self.plan.behaviour[node] == Behaviour::Crash;
        let machine = &mut self.machines[node];
        let running = machine.running();
        let disk = &mut machine.disk;
        if let Some(pending) = disk.pending {
            let name = |entry: &&Entry| entry.name().is_some_and(|name| name.version == pending);
            let spent = disk.slots.entries.iter().find(name).is_some_and(Entry::failed);
            if running != pending && spent {
                let reason = "the boot loader went back: it did not come up in three tries".to_owned();
                disk.failed.get_or_insert(Failure { what: Target::System(pending), reason: reason.clone() });
                disk.fallback = Some(Fallback { version: pending, reason });
                disk.pending = None;
                self.stats.boot_fallbacks += 1;
            }
        }
        if let Some((before, starts)) = disk.config_before {
            disk.config_before = Some((before, starts + 1));
            if starts >= STARTS {
                let reason = "the supervisor did not stay up with it".to_owned();
                disk.failed = Some(Failure { what: Target::Config(disk.config), reason });
                disk.config = before;
                disk.config_before = None;
            } else if crashes && disk.config == 2 {
                let life = machine.life;
                machine.refresh();
                self.after(2 * S, Event::Die(node, life));
                return;
            }
        }
        machine.refresh();
    }

    /// The supervisor ends, and with it what it was doing; the singleton's unit is bound to it.
    pub(super) fn die(&mut self, node: usize, again: u64) {
        let machine = &mut self.machines[node];
        if machine.supervisor.take().is_none() {
            return;
        }
        machine.life += 1;
        machine.work = None;
        let life = machine.life;
        self.stop_unit(node);
        self.after(again, Event::Start(node, life));
    }

    /// The machine restarts.
    pub(super) fn restart(&mut self, node: usize) {
        self.halt(node);
        let (us, life) = (self.rng.between(2 * S, 6 * S), self.machines[node].life);
        self.after(us, Event::Boot(node, life));
    }

    /// Nothing runs any more.
    pub(super) fn halt(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        machine.life += 1;
        machine.supervisor = None;
        machine.up = None;
        machine.work = None;
        machine.unit = false;
        machine.stopping = false;
        machine.mute = false;
    }

    pub(super) fn act(&mut self, node: usize, act: Act) -> Result<(), Broken> {
        match act {
            Act::Propose(ask) => self.propose(node, ask),
            Act::Fetch(release) => self.job(node, release, 30 * S),
            Act::Stage(release) => self.stage(node, release)?,
            Act::Discard(release) => {
                self.machines[node].disk.bundles.remove(&release);
                self.machines[node].refresh();
            }
            Act::HandOver => self.hand_over(node),
            Act::Drain { deadline_s } => {
                self.checks.leaves(self, node, "drains")?;
                self.drain(node, deadline_s);
            }
            Act::Undrain => {
                if let Some(supervisor) = &mut self.machines[node].supervisor {
                    supervisor.own.drain = Drain::No;
                }
            }
            Act::Forget => {
                self.machines[node].disk.failed = None;
                self.machines[node].refresh();
            }
            Act::Switch { to, trial } => self.switch(node, &to, trial)?,
            Act::Bless => self.bless(node)?,
            Act::Revert { reason } => self.revert(node, &reason)?,
        }
        Ok(())
    }

    fn hand_over(&mut self, node: usize) {
        let others: Vec<usize> =
            (0..self.machines.len()).filter(|other| *other != node && self.serves(*other)).collect();
        if self.vip == Some(node) && !others.is_empty() {
            self.vip = Some(self.rng.pick(&others));
        }
        if others.is_empty() && self.machines.len() == 1 {
            self.vip = None;
        }
    }

    fn job(&mut self, node: usize, release: Release, most: u64) {
        if !self.machines[node].idle() {
            return;
        }
        let (us, life) = (self.rng.between(S, most), self.machines[node].life);
        if let Some(supervisor) = &mut self.machines[node].supervisor {
            supervisor.own.job = Job::Running;
        }
        self.after(us, Event::Job(node, life, release));
    }

    pub(super) fn job_done(&mut self, node: usize, release: Release) {
        let source = (0..self.machines.len())
            .any(|other| self.linked(node, other) && self.machines[other].disk.bundles.contains(&release));
        let machine = &mut self.machines[node];
        let fails = machine.failing > 0 || !source;
        machine.failing = machine.failing.saturating_sub(1);
        let job = if fails {
            Job::Failed("/var/lib/trilith: no space left on device".into())
        } else {
            machine.disk.failed.take_if(|failure| is_of(&failure.what, &release));
            machine.disk.bundles.insert(release);
            Job::Idle
        };
        if let Some(supervisor) = &mut machine.supervisor {
            supervisor.own.job = job;
        }
        machine.refresh();
    }

    /// Everything but the boot entry, which would be started by any restart from then on.
    fn stage(&mut self, node: usize, release: Release) -> Result<(), Broken> {
        if release.service.is_some() {
            self.job(node, release, 2 * S);
            return Ok(());
        }
        if !self.machines[node].idle() {
            return Ok(());
        }
        let machine = &mut self.machines[node];
        let slots = &machine.disk.slots;
        let image = image(release.version);
        let held = machine.disk.bundles.contains(&release);
        let steps: Vec<Step> = match slots.plan_install(image) {
            // The kernel is written again at the switch; what is renamed comes only then.
            Ok(steps) => steps
                .into_iter()
                .take_while(|step| !matches!(step, Step::Rename { .. } | Step::WriteUki { .. }))
                .collect(),
            Err(refused) => return self.stage_failed(node, refused.to_string()),
        };
        let mut steps: std::collections::VecDeque<Step> = steps.into();
        if self.bug == Some(Bug::EntryFirst) {
            let name = EntryName { version: release.version, tries: Some(Tries::NEW) };
            steps.push_front(Step::Rename { from: name.unfinished(), to: name.to_string() });
            steps.push_front(Step::WriteUki { file: name.unfinished(), image });
        }
        if !held && machine.disk.other() != Some(release.version) {
            return self.stage_failed(node, format!("no bundle of {release} is here"));
        }
        if slots.content(slots.running.other()) == Content::Verified(image.root) {
            steps.push_back(Step::Verify { slot: slots.running.other(), image });
        }
        if let Some(supervisor) = &mut machine.supervisor {
            supervisor.own.job = Job::Running;
        }
        self.work(node, steps, Then::Staged(release))
    }

    fn stage_failed(&mut self, node: usize, reason: String) -> Result<(), Broken> {
        if let Some(supervisor) = &mut self.machines[node].supervisor {
            supervisor.own.job = Job::Failed(reason);
            supervisor.stirred = true;
        }
        Ok(())
    }

    fn switch(&mut self, node: usize, to: &Target, trial: bool) -> Result<(), Broken> {
        if self.machines[node].work.is_some() || self.machines[node].restarting {
            return Ok(());
        }
        self.checks.leaves(self, node, "switches")?;
        self.checks.switched(node);
        self.stats.switches += 1;
        let now = self.time(node);
        let machine = &mut self.machines[node];
        let life = machine.life;
        match to {
            Target::System(version) => {
                let slots = &machine.disk.slots;
                let plan = if trial { slots.plan_install(image(*version)) } else { slots.plan_rollback(false) };
                match plan {
                    Ok(steps) => {
                        machine.disk.pending = Some(*version);
                        machine.restarting = true;
                        return self.work(node, steps.into(), Then::Reboot);
                    }
                    Err(refused) => {
                        machine.disk.failed = Some(Failure { what: to.clone(), reason: refused.to_string() });
                        machine.refresh();
                    }
                }
            }
            Target::Config(version) => {
                machine.disk.config_before = trial.then_some((machine.disk.config, 0));
                machine.disk.config = *version;
                machine.restarting = true;
                self.die(node, 3 * S);
            }
            Target::Service(name, version) => {
                let before = machine.disk.services.remove(name);
                machine.disk.services.extend(version.map(|version| (name.clone(), version)));
                machine.disk.service_before = trial.then(|| (name.clone(), before));
                machine.restarting = true;
                if let Some(supervisor) = &mut machine.supervisor {
                    supervisor.service_since = now;
                }
                machine.refresh();
                self.after(2 * S, Event::Service(node, life));
            }
        }
        Ok(())
    }

    pub(super) fn bless(&mut self, node: usize) -> Result<(), Broken> {
        if self.machines[node].work.is_some() {
            return Ok(());
        }
        self.checks.blessed(self, node)?;
        self.stats.blessings += 1;
        let machine = &mut self.machines[node];
        machine.disk.config_before = None;
        machine.disk.service_before = None;
        machine.refresh();
        match machine.disk.slots.plan_bless() {
            Ok(steps) => self.work(node, steps.into(), Then::Blessed),
            Err(refused) => Err(("5 a slot boots", format!("node {node} cannot be blessed: {refused}"))),
        }
    }

    fn revert(&mut self, node: usize, reason: &str) -> Result<(), Broken> {
        if self.machines[node].work.is_some() {
            return Ok(());
        }
        self.stats.reverts += 1;
        let machine = &mut self.machines[node];
        let running = machine.running();
        let disk = &mut machine.disk;
        let failed = |what| Some(Failure { what, reason: reason.to_owned() });
        if let Some((before, _)) = disk.config_before.take() {
            disk.failed = failed(Target::Config(disk.config));
            disk.config = before;
            machine.restarting = true;
            self.die(node, 3 * S);
        } else if let Some((name, before)) = disk.service_before.take() {
            let version = disk.services.remove(&name);
            disk.failed = failed(Target::Service(name.clone(), version));
            disk.services.extend(before.map(|version| (name, version)));
            machine.refresh();
        } else {
            disk.failed = failed(Target::System(running));
            disk.fallback = Some(Fallback { version: running, reason: reason.to_owned() });
            disk.pending = None;
            if let Ok(steps) = disk.slots.plan_rollback(true) {
                machine.restarting = true;
                return self.work(node, steps.into(), Then::Reboot);
            }
            machine.refresh();
        }
        Ok(())
    }
}

pub(super) fn is_of(target: &Target, release: &Release) -> bool {
    match target {
        Target::System(version) => *release == Release::system(*version),
        Target::Service(name, Some(version)) => *release == Release::service(name, *version),
        Target::Service(_, None) | Target::Config(_) => false,
    }
}

/// Starts of a supervisor with a document on trial before the one before it comes back.
const STARTS: u32 = 3;
