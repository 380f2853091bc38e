//! The checkers. Each watches one thing and knows nothing of the others; numbers are those of ARCHITECTURE.md,
//! *Invariants*.

mod address;
mod bounds;
mod epochs;
mod flows;
mod log;
mod ownership;
mod settled;
mod successor;

use std::sync::Arc;

use trilith_core::command::Command;
use trilith_core::config::{Settings, VipId};
use trilith_core::node::Ownership;
use trilith_core::time::Time;

use crate::conditions::Conditions;
use crate::machine::Machine;
use crate::net::Datagram;

pub use address::Address;
pub use bounds::Bounds;
pub use epochs::Epochs;
pub use flows::Flows;
pub use log::Log;
pub use ownership::OneOwner;
pub use settled::settled;
pub use successor::Successor;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which: its number there, and a word.
    pub invariant: &'static str,
    /// What was seen, with all operands.
    pub what: String,
    /// True time in microseconds.
    pub at: u64,
}

/// What a checker may look at.
pub struct Scene<'a> {
    /// True time in microseconds.
    pub now: u64,
    /// The set's configuration.
    pub settings: &'a Arc<Settings>,
    /// All machines of the set.
    pub machines: &'a [Machine],
    /// What is broken just now.
    pub conditions: &'a Conditions,
}

impl Scene<'_> {
    /// How many nodes the set has.
    pub fn nodes(&self) -> usize {
        self.settings.nodes.len()
    }

    /// How many VIPs the set has.
    pub fn vips(&self) -> usize {
        self.settings.vips.len()
    }

    /// Whether two nodes both run and can hear each other.
    pub fn linked(&self, a: usize, b: usize) -> bool {
        let both = self.machines[a].runs() && self.machines[b].runs();
        both && (a == b || (self.conditions.datagrams(a, b) && self.conditions.datagrams(b, a)))
    }

    /// By which epoch a node owns a VIP just now, by its own clock and reckoning.
    pub fn owns(&self, node: usize, vip: usize) -> Option<Ownership> {
        let machine = &self.machines[node];
        let core = &machine.supervisor.as_ref()?.node;
        core.owns(VipId(vip as u8), machine.clock.read(self.now))
    }
}

/// One step of one node.
pub struct Step<'a> {
    /// Which node.
    pub node: usize,
    /// Its own time.
    pub local: Time,
    /// The datagram that it handled, if it was one.
    pub heard: Option<&'a Datagram>,
    /// What it does.
    pub commands: &'a [Command],
}

/// All checkers that watch every step.
#[derive(Clone)]
pub struct Checks {
    ownership: OneOwner,
    epochs: Epochs,
    log: Log,
    bounds: Bounds,
    address: Address,
    successor: Successor,
    /// Connections.
    pub flows: Flows,
}

impl Checks {
    /// Checkers at the start of a run.
    pub fn new(settings: &Arc<Settings>) -> Checks {
        Checks {
            ownership: OneOwner::new(settings),
            epochs: Epochs::new(settings),
            log: Log::default(),
            bounds: Bounds::default(),
            address: Address::default(),
            successor: Successor::default(),
            flows: Flows::default(),
        }
    }

    /// Looks at a step that was just made.
    ///
    /// # Errors
    /// The first broken invariant.
    pub fn step(&mut self, scene: &Scene, step: &Step) -> Result<(), Violation> {
        let broken = |invariant| move |what| Violation { invariant, what, at: scene.now };
        self.ownership.step(scene, step).map_err(broken("1 one owner"))?;
        self.epochs.step(step).map_err(broken("2 epochs never regress"))?;
        self.log.step(scene, step).map_err(broken("10 every decision is logged"))?;
        self.successor.step(scene, step).map_err(broken("9 nothing breaks"))?;
        self.bounds.step(scene.now, step).map_err(broken("bounded work"))
    }

    /// Looks at the world now and then.
    ///
    /// # Errors
    /// The first broken invariant.
    pub fn poll(&mut self, scene: &Scene) -> Result<(), Violation> {
        self.flows.poll(scene);
        self.address.poll(scene).map_err(|what| Violation { invariant: "the fence holds", what, at: scene.now })
    }

    /// The conditions have changed; `before` are the former ones.
    pub fn conditions_changed(&mut self, scene: &Scene, before: &Conditions) {
        self.ownership.conditions_changed(scene, before);
    }

    /// A supervisor was started with what its disk holds; `forgetful` when that is less than was once written.
    pub fn started(&mut self, node: usize, forgetful: bool) {
        self.epochs.started(node, forgetful);
        self.log.started(node);
        self.successor.started(node);
        self.flows.started(node);
    }

    /// A machine whose clock stood still goes on.
    pub fn resumed(&mut self, now: u64, node: usize) {
        self.ownership.resumed(now, node);
    }

    /// A probe for a VIP or a kernel was not answered although somebody was there.
    pub fn misled(&mut self, now: u64, node: usize) {
        self.ownership.misled(now, node);
    }
}
