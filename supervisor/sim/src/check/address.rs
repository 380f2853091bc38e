//! The fence: a node that does not own a VIP has it on its interface no longer than the kernel's lifetime of it allows.

use crate::check::Scene;
use crate::plan::{NODES, VIPS};

/// Checks the fence.
#[derive(Clone, Default)]
pub struct Address {
    unowned_since: [[Option<u64>; VIPS]; NODES],
}

impl Address {
    /// Looks at all kernels.
    ///
    /// # Errors
    /// An address without an owner for too long.
    pub fn poll(&mut self, scene: &Scene) -> Result<(), String> {
        for node in 0..scene.nodes() {
            for vip in 0..scene.vips() {
                let stray = scene.machines[node].answers_for(vip, scene.now) && scene.owns(node, vip).is_none();
                let since = &mut self.unowned_since[node][vip];
                if !stray {
                    *since = None;
                    continue;
                }
                let since = *since.get_or_insert(scene.now);
                if scene.now - since > FENCE_US {
                    let ms = (scene.now - since) / 1000;
                    return Err(format!(
                        "node {node} has had vip {vip} on its interface for {ms} ms without owning it"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The lifetime of the address is two seconds; a renewal that was under way when the ownership ended may add a little.
const FENCE_US: u64 = 2_500_000;
