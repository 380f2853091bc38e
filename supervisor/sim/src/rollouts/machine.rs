//! One machine: its disk, which survives, and what runs on it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use trilith_core::rollout::{Agent, Drain, Failure, Job, Own, Seen};
use trilith_core::set::holder::Holder;
use trilith_core::set::{Fallback, LEVEL, Node, Release, State, Version};
use trilith_core::slots::{Content, Entry, EntryName, Image, RootHash, Slot, Slots, Step, Tries};
use trilith_core::time::Time;

use super::plan::BASE;
use crate::clock::Clock;

/// A machine of the set.
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its clock.
    pub clock: Clock,
    /// What survives.
    pub disk: Disk,
    /// Counts restarts, so that what was under way before is forgotten.
    pub life: u32,
    /// It has power and its kernel runs: since when, by its own clock.
    pub up: Option<Time>,
    /// Its supervisor.
    pub supervisor: Option<Supervisor>,
    /// The kernel that runs has no network.
    pub mute: bool,
    /// Something outside keeps it from serving.
    pub unfit: bool,
    /// Something outside cuts it off.
    pub isolated: bool,
    /// It has no power until somebody gives it back.
    pub dark: bool,
    /// Jobs that will fail.
    pub failing: u32,
    /// The next step of slot writing is cut off, and the power is away for so long.
    pub torn: Option<u64>,
    /// Slot writing under way.
    pub work: Option<Work>,
    /// The singleton's unit: runs, or is being stopped.
    pub unit: bool,
    /// The unit is being stopped.
    pub stopping: bool,
    /// It is restarting because of a rollout.
    pub restarting: bool,
}

/// What survives a restart.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Slots and boot entries.
    pub slots: Slots,
    /// Bundles.
    pub bundles: BTreeSet<Release>,
    /// Version of the document in force.
    pub config: u64,
    /// The one before, while this one is on trial, and how often the supervisor was started with it.
    pub config_before: Option<(u64, u32)>,
    /// Versions of services.
    pub services: BTreeMap<String, Version>,
    /// The service on trial, and its version before.
    pub service_before: Option<(String, Option<Version>)>,
    /// A switch to this system was begun.
    pub pending: Option<Version>,
    /// What did not work.
    pub failed: Option<Failure>,
    /// The last return that nobody had asked for.
    pub fallback: Option<Fallback>,
    /// Incarnation.
    pub generation: u64,
}

/// The supervisor's memory.
pub struct Supervisor {
    /// The machine under test.
    pub agent: Agent,
    /// The singleton's.
    pub holder: Holder,
    /// This node from within.
    pub own: Own,
    /// The others, as last looked at.
    pub seen: BTreeMap<String, Seen>,
    /// It leads, as far as it knows.
    pub leads: bool,
    /// It is in touch with a majority, as far as it knows.
    pub quorum: bool,
    /// The state as far as it has applied it.
    pub view: Arc<State>,
    /// Since when it runs.
    pub since: Time,
    /// Since when a service is on trial.
    pub service_since: Time,
    /// When it wants to be called, 0 for never.
    pub alarm: u64,
    /// Something has changed that it has not thought about.
    pub stirred: bool,
}

/// An edit of the slots that is being carried out.
pub struct Work {
    /// What is left.
    pub steps: VecDeque<Step>,
    /// What follows.
    pub then: Then,
}

/// What follows an edit of the slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    /// The machine restarts.
    Reboot,
    /// The slot that runs is blessed.
    Blessed,
    /// The release is staged.
    Staged(Release),
}

impl Machine {
    /// The name of a node.
    pub fn name_of(node: usize) -> String {
        char::from(b'a' + node as u8).to_string()
    }

    /// A machine as delivered, with the base system in slot A.
    pub fn new(node: usize, ppm: i64) -> Machine {
        Machine {
            name: Machine::name_of(node),
            clock: Clock::new(0, 1_000_000 * (node as u64 + 1), ppm),
            disk: Disk::delivered(),
            life: 0,
            up: None,
            supervisor: None,
            mute: false,
            unfit: false,
            isolated: false,
            dark: false,
            failing: 0,
            torn: None,
            work: None,
            unit: false,
            stopping: false,
            restarting: false,
        }
    }

    /// The version that its kernel comes from.
    pub fn running(&self) -> Version {
        self.disk.slots.image(self.disk.slots.running).map_or(BASE, |image| image.version)
    }

    /// Whether it is drained for a rollout, or about to be.
    pub fn drained(&self) -> bool {
        self.supervisor.as_ref().is_some_and(|supervisor| supervisor.own.drain != Drain::No)
    }

    /// Whether it is out of service because of a rollout.
    pub fn is_out(&self) -> bool {
        self.drained() || self.restarting
    }

    /// Brings the agent's knowledge of its own machine up to date.
    pub fn refresh(&mut self) {
        let (disk, up) = (&self.disk, self.up);
        let Some(supervisor) = &mut self.supervisor else { return };
        let slots = &disk.slots;
        let entry = slots.entry(slots.running);
        let running = entry.and_then(|entry| entry.image).map_or(BASE, |image| image.version);
        // One that was retired has served before: it needs no blessing to be counted on again.
        let blessed = slots.proven();
        let own = &mut supervisor.own;
        own.trial = if !blessed && slots.way_back().is_some() {
            up
        } else if disk.config_before.is_some() {
            Some(supervisor.since)
        } else {
            disk.service_before.as_ref().map(|_| supervisor.service_since)
        };
        own.failed.clone_from(&disk.failed);
        own.bundles.clone_from(&disk.bundles);
        own.node = Node {
            generation: disk.generation,
            level: LEVEL,
            running,
            slot: slots.running.to_string(),
            blessed,
            other: disk.other(),
            config: disk.config,
            services: disk.services.clone(),
            fallback: disk.fallback.clone(),
        };
        supervisor.stirred = true;
    }

    /// Whether the system that runs has yet to be called good, and there is none to go back to.
    pub fn only_system_unblessed(&self) -> bool {
        self.supervisor.is_some() && !self.disk.slots.proven() && self.disk.slots.way_back().is_none()
    }

    /// Whether a job may begin.
    pub fn idle(&self) -> bool {
        self.work.is_none() && self.supervisor.as_ref().is_some_and(|supervisor| supervisor.own.job != Job::Running)
    }
}

impl Disk {
    fn delivered() -> Disk {
        let name = EntryName { version: BASE, tries: None };
        let entries = vec![Entry { file: name.to_string(), image: Some(image(BASE)) }];
        let contents = [Content::Verified(image(BASE).root), Content::Unknown];
        Disk {
            slots: Slots { running: Slot::A, contents, entries, leftovers: Vec::new() },
            bundles: BTreeSet::new(),
            config: 1,
            config_before: None,
            services: BTreeMap::new(),
            service_before: None,
            pending: None,
            failed: None,
            fallback: None,
            generation: 1,
        }
    }

    /// A new machine's disk in place of this one.
    pub fn wiped(&self) -> Disk {
        Disk { generation: self.generation + 1, ..Disk::delivered() }
    }

    /// The system that is complete in the other slot, with a kernel to start it.
    pub fn other(&self) -> Option<Version> {
        let slot = self.slots.running.other();
        let Content::Verified(root) = self.slots.content(slot) else { return None };
        let version = Version::new(1, 0, u16::from(root.0[0]));
        let kernel = self.bundles.contains(&Release::system(version)) || self.slots.entry(slot).is_some();
        kernel.then_some(version)
    }

    /// The boot loader takes an entry and counts it. Nothing when none can be started.
    pub fn boot(&mut self) -> Option<Slot> {
        let entry = self.slots.boots_next()?.clone();
        let slot = self.slots.leads_to(&entry)?;
        // (systemd-boot, boot_entry_parse_tries(): one of which no try is left is counted on when it has to be taken.)
        if let (Some(name), Some(Tries { left, done })) = (entry.name(), entry.tries()) {
            let to =
                EntryName { tries: Some(Tries { left: left.saturating_sub(1), done: done + 1 }), ..name }.to_string();
            self.slots.apply(&Step::Rename { from: entry.file, to });
        }
        self.slots.running = slot;
        Some(slot)
    }
}

/// The image of a version.
pub fn image(version: Version) -> Image {
    Image { version, root: RootHash([version.patch as u8; 32]) }
}
