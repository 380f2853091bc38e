//! Invariant 2: epochs never regress on a node that has seen a higher one. Across restarts this holds for all that the node has
//! claimed or granted: what it has merely heard of it may forget, since nothing was promised.

use std::sync::Arc;

use trilith_core::command::Command;
use trilith_core::config::Settings;
use trilith_core::wire::VipKey;

use crate::check::Step;
use crate::plan::{NODES, VIPS};

/// Checks invariant 2 by what nodes say in their heartbeats.
#[derive(Clone)]
pub struct Epochs {
    keys: Vec<VipKey>,
    seen: [[u64; VIPS]; NODES],
    promised: [[u64; VIPS]; NODES],
}

impl Epochs {
    /// No epoch was seen yet.
    pub fn new(settings: &Arc<Settings>) -> Epochs {
        Epochs {
            keys: settings.vips.iter().map(|vip| VipKey::of(&vip.name)).collect(),
            seen: Default::default(),
            promised: Default::default(),
        }
    }

    /// Looks at a step.
    ///
    /// # Errors
    /// A lower epoch than before.
    pub fn step(&mut self, step: &Step) -> Result<(), String> {
        for command in step.commands {
            let Command::Broadcast(heartbeat) = command else { continue };
            for report in &heartbeat.vips {
                let Some(vip) = self.keys.iter().position(|key| *key == report.vip) else { continue };
                let seen = &mut self.seen[step.node][vip];
                let claimed = report.claim.map_or(0, |claim| claim.epoch);
                let promised = claimed.max(report.grant.map_or(0, |grant| grant.epoch));
                if report.seen < *seen || promised > report.seen {
                    let node = step.node;
                    return Err(format!("node {node} had seen epoch {seen} of vip {vip}, now it says {report:?}"));
                }
                *seen = report.seen;
                let most = &mut self.promised[step.node][vip];
                *most = (*most).max(promised);
            }
        }
        Ok(())
    }

    /// A supervisor starts; a disk that was lost or rolled back is allowed to forget.
    pub fn started(&mut self, node: usize, forgetful: bool) {
        if forgetful {
            self.promised[node] = [0; VIPS];
        }
        self.seen[node] = self.promised[node];
    }
}
