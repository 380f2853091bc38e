//! A planned hand-over goes only to a node that hears its predecessor: otherwise the VIP would wait for somebody who knows nothing.

use trilith_core::command::Command;
use trilith_core::decision::{Decision, WhyYield};
use trilith_core::wire::Session;

use crate::check::{Scene, Step};
use crate::plan::NODES;

/// Checks that successors hear their predecessors.
#[derive(Clone, Default)]
pub struct Successor {
    read: [[Option<Read>; NODES]; NODES],
}

/// What a node has last read of another.
#[derive(Clone, Copy)]
struct Read {
    session: Session,
    counter: u64,
    /// The reader's own counter at that time: what answers an older one is older itself.
    floor: u64,
    /// Whether the other hears the reader.
    hears: bool,
}

impl Successor {
    /// A supervisor starts anew.
    pub fn started(&mut self, node: usize) {
        self.read[node] = Default::default();
    }

    /// Looks at a step.
    ///
    /// # Errors
    /// A successor that does not hear its predecessor.
    pub fn step(&mut self, scene: &Scene, step: &Step) -> Result<(), String> {
        self.note(scene, step);
        for command in step.commands {
            let Command::Log(Decision::Yield { vip, to: Some(to), why, .. }) = command else { continue };
            let planned = matches!(why, WhyYield::Moved | WhyYield::Rebalanced | WhyYield::Fitness(_));
            let hears = self.read[step.node][usize::from(to.0)].is_some_and(|read| read.hears);
            if planned && !hears {
                let node = step.node;
                return Err(format!(
                    "node {node} hands vip {} over to node {}, which does not hear it: {why:?}",
                    vip.0, to.0
                ));
            }
        }
        Ok(())
    }

    fn note(&mut self, scene: &Scene, step: &Step) {
        let Some(datagram) = step.heard else { return };
        let said = &datagram.heartbeat;
        let Some(me) = &scene.machines[step.node].supervisor else { return };
        let echo = said.heard[step.node].filter(|echo| echo.session == me.session);
        let read = &mut self.read[step.node][datagram.from];
        let news = match read {
            Some(read) if read.session == said.session => said.counter > read.counter,
            _ => echo.is_some_and(|echo| echo.counter > read.map_or(0, |read| read.floor)),
        };
        if news {
            let floor = me.said.as_ref().map_or(0, |heartbeat| heartbeat.counter);
            let hears = echo.is_some_and(|echo| echo.live);
            *read = Some(Read { session: said.session, counter: said.counter, floor, hears });
        }
    }
}
