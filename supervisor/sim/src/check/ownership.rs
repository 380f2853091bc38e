//! Invariant 1: at most one node owns a VIP, by unexpired grants of a majority and its own reckoning.
//!
//! Stronger than invariant 1 asks: not only for one epoch but for the VIP at all. Two exceptions remain. A node whose own clock
//! stood still may believe in its old lease until that has run out by its clock. And a lone survivor serves without a majority, by
//! policy, as long as the other owner cannot be reached.

use std::sync::Arc;

use trilith_core::config::Settings;
use trilith_core::node::Ownership;
use trilith_core::wire::VipKey;

use crate::check::{Scene, Step};
use crate::conditions::Conditions;
use crate::plan::{NODES, VIPS};

/// Checks invariant 1.
#[derive(Clone)]
pub struct OneOwner {
    keys: Vec<VipKey>,
    lease_max_us: u64,
    owned: [[Option<Ownership>; VIPS]; NODES],
    /// Until when a node may believe in a lease that has run out while its clock stood still.
    suspect_until: [u64; NODES],
    /// When two nodes could last not talk freely.
    apart_at: [[u64; NODES]; NODES],
    /// When a node's ARP requests to another were last unanswerable.
    deaf_at: [[u64; NODES]; NODES],
    misled_at: [u64; NODES],
}

impl OneOwner {
    /// Nobody owns anything yet.
    pub fn new(settings: &Arc<Settings>) -> OneOwner {
        OneOwner {
            keys: settings.vips.iter().map(|vip| VipKey::of(&vip.name)).collect(),
            lease_max_us: settings.set.lease.max.as_micros() as u64,
            owned: Default::default(),
            suspect_until: Default::default(),
            apart_at: Default::default(),
            deaf_at: Default::default(),
            misled_at: Default::default(),
        }
    }

    /// Looks at a step.
    ///
    /// # Errors
    /// Two owners.
    pub fn step(&mut self, scene: &Scene, step: &Step) -> Result<(), String> {
        let me = step.node;
        for vip in 0..scene.vips() {
            let mine = scene.owns(me, vip);
            let before = std::mem::replace(&mut self.owned[me][vip], mine);
            let Some(mine) = mine else { continue };
            for other in (0..scene.nodes()).filter(|other| *other != me) {
                let Some(theirs) = scene.owns(other, vip) else { continue };
                let suspect = self.is_suspect(scene, me) || self.is_suspect(scene, other);
                let alone = (mine.lone || theirs.lone) && scene.now < self.apart(scene, me, other) + LONE_WINDOW_US;
                if !suspect && !alone {
                    return Err(format!("vip {vip} is owned by node {me} ({mine:?}) and node {other} ({theirs:?})"));
                }
            }
            if mine.lone && before.is_none_or(|before| !before.lone) {
                self.lone_though_answered(scene, me, vip)?;
            }
            self.kept_though_superseded(scene, step, vip, mine)?;
        }
        Ok(())
    }

    /// A lone survivor has asked whether somebody answers for the VIP, and somebody would have.
    fn lone_though_answered(&self, scene: &Scene, me: usize, vip: usize) -> Result<(), String> {
        let since = scene.now.saturating_sub(LONE_PROBING_US);
        for other in (0..scene.nodes()).filter(|other| *other != me) {
            let kernel = &scene.machines[other].kernel;
            let reachable = scene.conditions.answers(me, other) && self.deaf_at[me][other] < since;
            let holds = scene.machines[other].answers_for(vip, scene.now) && kernel.held_since[vip] < since;
            if holds && reachable && self.misled_at[me] < since {
                return Err(format!("node {me} takes vip {vip} alone although node {other} answers for it"));
            }
        }
        Ok(())
    }

    /// A fresh datagram with a higher epoch ends an ownership at once.
    fn kept_though_superseded(&self, scene: &Scene, step: &Step, vip: usize, mine: Ownership) -> Result<(), String> {
        let Some(datagram) = step.heard.filter(|d| !d.forged) else { return Ok(()) };
        let (from, said) = (datagram.from, &datagram.heartbeat);
        let me = scene.machines[step.node].supervisor.as_ref();
        // Believed for sure: each of both has told the other that it hears its present session, in this order.
        let echo = said.heard[step.node].filter(|echo| echo.live);
        let mine_said = me.and_then(|s| s.said.as_ref()).and_then(|h| h.heard[from]).filter(|echo| echo.live);
        let mutual = echo.is_some_and(|echo| me.is_some_and(|s| s.session == echo.session))
            && mine_said.is_some_and(|echo| echo.session == said.session && said.counter > echo.counter);
        let mut higher = said.vips.iter().filter(|r| r.vip == self.keys[vip]).filter_map(|r| r.claim);
        let Some(claim) = higher.find(|claim| claim.held && claim.epoch > mine.epoch) else { return Ok(()) };
        if !mutual || mine.lone {
            return Ok(());
        }
        Err(format!("node {} owns vip {vip} ({mine:?}) although node {from} holds epoch {}", step.node, claim.epoch))
    }

    /// The conditions have changed.
    pub fn conditions_changed(&mut self, scene: &Scene, before: &Conditions) {
        let now = scene.conditions;
        for a in 0..NODES {
            for b in 0..NODES {
                if !before.whole(a, b) || !now.whole(a, b) {
                    self.apart_at[a][b] = scene.now;
                }
                if !before.answers(a, b) || !now.answers(a, b) {
                    self.deaf_at[a][b] = scene.now;
                }
            }
        }
    }

    /// A clock that stood still goes on.
    pub fn resumed(&mut self, now: u64, node: usize) {
        self.suspect_until[node] = now + self.lease_max_us + self.lease_max_us / 50;
    }

    /// A probe was lost on its way.
    pub fn misled(&mut self, now: u64, node: usize) {
        self.misled_at[node] = now;
    }

    fn is_suspect(&self, scene: &Scene, node: usize) -> bool {
        scene.machines[node].stunned_since.is_some() || scene.now < self.suspect_until[node]
    }

    fn apart(&self, scene: &Scene, a: usize, b: usize) -> u64 {
        if scene.conditions.whole(a, b) { self.apart_at[a][b] } else { scene.now }
    }
}

/// So long after two nodes could last not talk freely one of them may still serve as a lone survivor.
const LONE_WINDOW_US: u64 = 1_500_000;
/// A lone survivor's questions all fall into so long a time.
const LONE_PROBING_US: u64 = 1_200_000;
