//! Invariant 10: every change of ownership, fitness, drain or relay ring is logged in the step that makes it, and `status` can be
//! asked for at any moment.

use trilith_core::command::{Command, Ring};
use trilith_core::config::{NodeId, VipId};
use trilith_core::decision::{Decision, Ordered};
use trilith_core::health::Fitness;
use trilith_core::node::Ownership;

use crate::check::{Scene, Step};
use crate::plan::{NODES, VIPS};

/// Checks invariant 10.
#[derive(Clone, Default)]
pub struct Log {
    nodes: [Known; NODES],
    steps: u64,
}

#[derive(Clone, Default)]
struct Known {
    owned: [Option<Ownership>; VIPS],
    fitness: Option<Fitness>,
    drained: Option<bool>,
    ring: Option<Ring>,
}

impl Log {
    /// A supervisor starts anew.
    pub fn started(&mut self, node: usize) {
        self.nodes[node] = Known::default();
    }

    /// Looks at a step.
    ///
    /// # Errors
    /// A change without a word, or a word that does not fit.
    pub fn step(&mut self, scene: &Scene, step: &Step) -> Result<(), String> {
        let me = step.node;
        let known = &mut self.nodes[me];
        if step.heard.is_some() && step.commands.is_empty() {
            // A datagram that was not fresh: the core has not even looked at the time. Whatever has run out meanwhile comes next.
            return Ok(());
        }
        for vip in 0..scene.vips() {
            let now = scene.owns(me, vip);
            let before = std::mem::replace(&mut known.owned[vip], now);
            let id = VipId(vip as u8);
            let said = match (before, now) {
                (None, None) => true,
                (Some(_), None) => logs(step).any(|d| matches!(d, Decision::Yield { vip, .. } if *vip == id)),
                // An owner may raise its epoch without a word: nothing changes for anybody.
                (Some(before), Some(now)) if before.lone == now.lone => true,
                (_, Some(now)) => logs(step).any(
                    |d| matches!(d, Decision::Own { vip, epoch, lone } if *vip == id && *epoch == now.epoch && *lone == now.lone),
                ),
            };
            if !said {
                return Err(format!("node {me} says nothing of vip {vip}: before {before:?}, now {now:?}"));
            }
        }
        known.words(step)?;
        known.deeds(step)?;
        self.steps += 1;
        if self.steps.is_multiple_of(STATUS_EVERY) {
            status(scene, step)?;
        }
        Ok(())
    }
}

impl Known {
    fn words(&mut self, step: &Step) -> Result<(), String> {
        for decision in logs(step) {
            match decision {
                Decision::Fitness { from, to } => {
                    if from == to || self.fitness.is_some_and(|known| known != *from) {
                        return Err(format!("node {} logs {decision:?} but was {:?}", step.node, self.fitness));
                    }
                    self.fitness = Some(*to);
                }
                Decision::Operator { node, what } if *node == NodeId(step.node as u8) => match what {
                    Ordered::Drain => self.drained = Some(true),
                    Ordered::Undrain => self.drained = Some(false),
                    Ordered::Move(_) => {}
                },
                _ => {}
            }
        }
        Ok(())
    }

    fn deeds(&mut self, step: &Step) -> Result<(), String> {
        let node = step.node;
        for command in step.commands {
            match command {
                Command::Broadcast(heartbeat) => {
                    let fitness = *self.fitness.get_or_insert(heartbeat.fitness);
                    let drained = *self.drained.get_or_insert(heartbeat.drained);
                    if fitness != heartbeat.fitness || drained != heartbeat.drained {
                        return Err(format!(
                            "node {node} says {:?}, drained {}; logged were {fitness:?}, drained {drained}",
                            heartbeat.fitness, heartbeat.drained
                        ));
                    }
                }
                Command::Relay(ring) => {
                    let changed =
                        self.ring.as_ref().is_some_and(|r| (r.next, r.last_hop) != (ring.next, ring.last_hop));
                    let said = logs(step).any(|d| {
                        matches!(d, Decision::Kernel { .. } | Decision::PeerHeard { .. } | Decision::PeerLost { .. })
                    });
                    if changed && !said {
                        return Err(format!("node {node} changes {:?} to {ring:?} without a word", self.ring));
                    }
                    self.ring = Some(ring.clone());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// `status` can be made now, and says who owns what.
fn status(scene: &Scene, step: &Step) -> Result<(), String> {
    let Some(supervisor) = &scene.machines[step.node].supervisor else { return Ok(()) };
    let status = supervisor.node.status(step.local);
    let me = &scene.settings.nodes[step.node].name;
    for (vip, shown) in status.vips.iter().enumerate() {
        let owns = scene.owns(step.node, vip);
        if owns.is_some() != (shown.owner.as_ref() == Some(me)) {
            return Err(format!("status of node {me} shows {shown:?}, but it owns {owns:?}"));
        }
    }
    Ok(())
}

fn logs<'a>(step: &'a Step) -> impl Iterator<Item = &'a Decision> {
    step.commands.iter().filter_map(|command| match command {
        Command::Log(decision) => Some(decision),
        _ => None,
    })
}

/// `status` costs more than a step, so it is made after every so manieth one.
const STATUS_EVERY: u64 = 101;
