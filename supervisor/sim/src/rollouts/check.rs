//! What must hold at every moment. Numbers are those of ARCHITECTURE.md, *Invariants*.

use std::collections::BTreeSet;

use trilith_core::set::{Ask, Kind, Outcome, Past, Release, Request, State, Step};

use super::event::Broken;
use super::machine::Machine;
use super::plan::S;
use super::world::World;

/// What the checkers remember.
#[derive(Default)]
pub(super) struct Checks {
    /// Whether each node serves, and since when.
    served: Vec<(bool, u64)>,
    /// The nodes that have switched to something in their turn.
    switched: BTreeSet<String>,
}

impl Checks {
    /// Whether a node serves, whenever that may have changed.
    pub(super) fn served(&mut self, node: usize, now: u64, serves: bool) {
        if self.served.len() <= node {
            self.served.resize(node + 1, (true, now));
        }
        if self.served[node].0 != serves {
            self.served[node] = (serves, now);
        }
    }

    /// Since when a node serves, or does not.
    fn since(&self, node: usize, serves: bool) -> Option<u64> {
        self.served.get(node).filter(|(now, _)| *now == serves).map(|(_, since)| *since)
    }

    /// A node leaves service because of a rollout.
    pub(super) fn leaves(&self, world: &World, node: usize, how: &str) -> Result<(), Broken> {
        // One that does not serve anyway may leave, and may not know yet that it could.
        if !world.fit(node) || self.since(node, true).is_some_and(|since| since + SEEN > world.now) {
            return Ok(());
        }
        let others = (0..world.machines.len()).filter(|other| *other != node);
        for other in others {
            let (me, name) = (&world.machines[node].name, &world.machines[other].name);
            if world.machines[other].is_out() {
                let what = format!("node {me} {how} while node {name} is out of service for a rollout");
                return Err((ONE, what));
            }
            let idle = self.since(other, false).filter(|_| !world.serves(other));
            if idle.is_some_and(|since| since + SEEN < world.now) {
                let ms = (world.now - idle.unwrap_or_default()) / 1000;
                return Err((ONE, format!("node {me} {how} although node {name} has not served for {ms} ms")));
            }
        }
        Ok(())
    }

    /// A node has switched to something.
    pub(super) fn switched(&mut self, node: usize) {
        self.switched.insert(Machine::name_of(node));
    }

    /// A node blesses what it runs.
    pub(super) fn blessed(&self, world: &World, node: usize) -> Result<(), Broken> {
        let machine = &world.machines[node];
        let Some(supervisor) = &machine.supervisor else { return Ok(()) };
        let recent = self.since(node, false).is_some_and(|since| since + SEEN >= world.now);
        if !world.fit(node) && !recent {
            let what = format!("node {} blesses what it runs although it does not serve", machine.name);
            return Err((BLESSED, what));
        }
        let running = Release::system(machine.running());
        if supervisor.own.trial.is_some() && !supervisor.own.node.blessed && supervisor.view.bans.contains_key(&running)
        {
            return Err((BLESSED, format!("node {} blesses {running}, which is banned", machine.name)));
        }
        Ok(())
    }

    /// The slots of a node have changed.
    pub(super) fn slots(&self, machine: &Machine) -> Result<(), Broken> {
        let wrong = |what| ("5 a slot boots", format!("node {}: {what}: {:?}", machine.name, machine.disk.slots));
        machine.disk.slots.check().map_err(|violation| wrong(violation.to_string()))
    }

    /// A request was carried out.
    pub(super) fn committed(
        &mut self,
        request: &Request,
        was: &State,
        is: &State,
        machines: &[Machine],
    ) -> Result<(), Broken> {
        if is.config.good.version < was.config.good.version || is.config.last < was.config.last {
            let what = format!("configuration {} comes after {}", is.config.good.version, was.config.good.version);
            return Err((LOST, what));
        }
        if is.history.len() > was.history.len()
            && let Some(Past { kind: Kind::System { version }, outcome: Outcome::Done, .. }) = is.history.last()
            && let Some((node, _)) = is.nodes.iter().find(|(_, node)| node.running != *version)
        {
            return Err((
                LOST,
                format!("the rollout of {version} is done, but node {node} says that it runs another one"),
            ));
        }
        match &request.ask {
            Ask::Step { node, to: Step::Draining, .. } => {
                self.switched.remove(node);
            }
            Ask::Failed { node, reason, .. } if !self.switched.contains(node) => {
                let what = format!("node {node} says that it failed ({reason}), but has tried nothing in this turn");
                return Err(("10 every decision has its reason", what));
            }
            Ask::GiveBack { node, .. } | Ask::Settled { node, .. } => {
                let out = machines.iter().find(|machine| machine.name == *node && machine.drained());
                if out.is_some() {
                    return Err((ONE, format!("the turn of node {node} ends while it is out of service")));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// At every moment.
    pub(super) fn poll(&self, machines: &[Machine]) -> Result<(), Broken> {
        let names = |which: &dyn Fn(&Machine) -> bool| -> Vec<&str> {
            machines.iter().filter(|machine| which(machine)).map(|machine| machine.name.as_str()).collect()
        };
        if machines.iter().filter(|machine| machine.unit).count() > 1 {
            return Err(("6 one singleton", format!("it runs on {}", names(&|machine| machine.unit).join(" and "))));
        }
        if machines.iter().filter(|machine| machine.is_out()).count() > 1 {
            let names = names(&Machine::is_out).join(" and ");
            return Err((ONE, format!("{names} are out of service for a rollout at the same time")));
        }
        Ok(())
    }
}

const ONE: &str = "4 no second node";
const LOST: &str = "7 nothing committed is lost";
const BLESSED: &str = "4 blessed only when seen";
/// So long, in microseconds, a node may not know that another one has just stopped serving.
const SEEN: u64 = 2 * S;
