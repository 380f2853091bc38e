//! No storms: commands and datagrams of a node are bounded in every second.

use trilith_core::command::Command;

use crate::check::Step;
use crate::plan::NODES;

/// Checks that work is bounded.
#[derive(Clone, Default)]
pub struct Bounds {
    nodes: [Window; NODES],
}

#[derive(Clone, Copy, Default)]
struct Window {
    start: u64,
    broadcasts: u32,
    others: u32,
    steps: u32,
}

impl Bounds {
    /// Looks at a step.
    ///
    /// # Errors
    /// More than the bounds allow.
    pub fn step(&mut self, now: u64, step: &Step) -> Result<(), String> {
        let window = &mut self.nodes[step.node];
        if now >= window.start + WINDOW_US {
            *window = Window { start: now, ..Window::default() };
        }
        window.steps += 1;
        let broadcasts = step.commands.iter().filter(|c| matches!(c, Command::Broadcast(_))).count() as u32;
        window.broadcasts += broadcasts;
        window.others += step.commands.len() as u32 - broadcasts;
        let Window { broadcasts, others, steps, .. } = *window;
        if broadcasts > MAX_BROADCASTS || others > MAX_OTHERS || steps > MAX_STEPS {
            let node = step.node;
            return Err(format!(
                "node {node}: {broadcasts} heartbeats, {others} other commands, {steps} steps in a second"
            ));
        }
        Ok(())
    }
}

const WINDOW_US: u64 = 1_000_000;
/// Forty are the regular ones; the rest answers what happens.
const MAX_BROADCASTS: u32 = 250;
const MAX_OTHERS: u32 = 250;
/// Steps that come from the outside are bounded by the outside; this finds a core that wakes itself for nothing.
const MAX_STEPS: u32 = 3000;
