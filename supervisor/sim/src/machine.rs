//! One machine: its clock, its kernel, its HAProxy, its disk, and the supervisor with the real core.

use std::collections::VecDeque;
use std::sync::Arc;

use trilith_core::command::{BackendState, Command, Ring};
use trilith_core::event::{Event, Probe};
use trilith_core::node::Node;
use trilith_core::wire::{DiskRecord, Heartbeat, Session};

use crate::clock::Clock;
use crate::net::Datagram;
use crate::plan::{NODES, VIPS};

/// One machine.
#[derive(Clone)]
pub struct Machine {
    /// Its own clock.
    pub clock: Clock,
    /// Switched on.
    pub on: bool,
    /// What lives as long as the machine is on.
    pub kernel: Kernel,
    /// HAProxy.
    pub haproxy: Haproxy,
    /// What the disk held, newest last; never empty.
    pub disk: Vec<DiskRecord>,
    /// The supervisor, while it lives.
    pub supervisor: Option<Supervisor>,
    /// Since when the whole machine stands still.
    pub stunned_since: Option<u64>,
    /// The supervisor stands still.
    pub frozen: bool,
    /// What waits for a supervisor that stands still.
    pub inbox: VecDeque<Pending>,
    /// What the local HAProxy makes of each node's backends.
    pub backends: [BackendState; NODES],
    /// Counts the supervisors; what was begun for an earlier one is void.
    pub life: u32,
}

/// The part of the kernel that matters.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// Until when each VIP is on the interface.
    pub expires: [u64; VIPS],
    /// Since when.
    pub held_since: [u64; VIPS],
    /// The relay rules; while there are none the VIP is not on `lo` either.
    pub ring: Option<Ring>,
}

/// HAProxy.
#[derive(Clone, Debug)]
pub struct Haproxy {
    /// What it does.
    pub state: HaproxyState,
    /// Rises whenever its connections are lost.
    pub generation: u32,
}

/// What HAProxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HaproxyState {
    /// It serves.
    Alive,
    /// It accepts, and says nothing.
    Hung,
    /// It does not run.
    Dead,
}

/// A running supervisor.
#[derive(Clone)]
pub struct Supervisor {
    /// The real core.
    pub node: Node,
    /// Its session.
    pub session: Session,
    /// True time of the core's deadline.
    pub wake_at: u64,
    /// Until when each shell is busy.
    pub busy: [u64; Shell::COUNT],
    /// Probes under way: no second one of the same kind is begun.
    pub probes: Vec<Probe>,
    /// Whose heartbeats it has believed.
    pub knows: [bool; NODES],
    /// Its last heartbeat.
    pub said: Option<Arc<Heartbeat>>,
}

/// The shells that do commands in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shell {
    /// Addresses and announcements.
    Net,
    /// Relay rules.
    Relay,
    /// HAProxy's runtime socket.
    Haproxy,
    /// Units.
    Systemd,
    /// The disk.
    Disk,
}

impl Shell {
    /// How many there are.
    pub const COUNT: usize = 5;
}

/// What waits for a supervisor that stands still.
#[derive(Clone)]
pub enum Pending {
    /// An event.
    Event(Event),
    /// A datagram.
    Datagram(Datagram),
    /// A command that its shell was about to do.
    Finish(Box<Command>),
}

impl Machine {
    /// A machine that is off, with an empty disk.
    pub fn off() -> Machine {
        Machine {
            clock: Clock::new(0, 0, 0),
            on: false,
            kernel: Kernel::default(),
            haproxy: Haproxy { state: HaproxyState::Dead, generation: 0 },
            disk: vec![DiskRecord::default()],
            supervisor: None,
            stunned_since: None,
            frozen: false,
            inbox: VecDeque::new(),
            backends: [BackendState::Ready; NODES],
            life: 0,
        }
    }

    /// Whether its kernel handles packets.
    pub fn lives(&self) -> bool {
        self.on && self.stunned_since.is_none()
    }

    /// Whether its supervisor handles events.
    pub fn runs(&self) -> bool {
        self.lives() && !self.frozen && self.supervisor.is_some()
    }

    /// Whether the VIP is on its interface.
    pub fn holds(&self, vip: usize, now: u64) -> bool {
        self.on && self.kernel.expires[vip] > now
    }

    /// Whether it answers ARP requests for the VIP.
    pub fn answers_for(&self, vip: usize, now: u64) -> bool {
        self.lives() && self.holds(vip, now)
    }

    /// Ends the supervisor; kernel and HAProxy go on.
    pub fn end_supervisor(&mut self) {
        self.supervisor = None;
        self.inbox.clear();
        self.life += 1;
    }

    /// Writes to the disk, which can be rolled back some steps.
    pub fn persist(&mut self, record: DiskRecord) {
        if self.disk.len() == SNAPSHOTS {
            self.disk.remove(0);
        }
        self.disk.push(record);
    }
}

/// So many older states of a disk are kept, for a rollback.
const SNAPSHOTS: usize = 8;
