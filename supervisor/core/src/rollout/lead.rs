//! What the coordinator does: offers turns, and watches over them.

use super::{Act, Agent, DRAIN, LOST, OFFER, STUCK, Sight, UNFIT};
use crate::plant::Bug;
use crate::set::{Ask, Hold, Pause, Phase, Rollout, Step};
use std::time::Duration;

impl Agent {
    pub(super) fn lead(&mut self, sight: &Sight, rollout: &Rollout, wants: &mut Vec<Act>) {
        self.pause_if_alone(sight, rollout, wants);
        self.take_back(sight, rollout, wants);
        let Some(turn) = &rollout.turn else {
            if rollout.phase == Phase::Rolling && rollout.hold == Hold::Going && open(sight, rollout) {
                wants.extend(
                    self.next(sight, rollout)
                        .map(|node| Act::Propose(Ask::Offer { rollout: rollout.id, node: node.to_owned() })),
                );
            } else if rollout.phase == Phase::Rolling && !open(sight, rollout) {
                self.alarm.ring(self.alarm.now() + LOOK);
            }
            return;
        };
        let bars = match self.missed(sight, rollout, &turn.node) {
            Some((node, seen)) => Some(format!("node {node} {}", seen.why())),
            None => self.is_kept_out(sight, &turn.node).then(|| format!("node {} is drained", turn.node)),
        };
        if let (Step::Offered, Some(reason)) = (turn.step, bars) {
            wants.push(Act::Propose(Ask::Withdraw { rollout: rollout.id, node: turn.node.clone(), reason }));
            return;
        }
        let most = match turn.step {
            Step::Offered => OFFER,
            Step::Draining => rollout.options.drain_s.map_or(DRAIN, |s| Duration::from_secs(s.into())) + 2 * STUCK,
            Step::Acting | Step::Verifying | Step::Settling | Step::Returning => LOST,
        };
        let held = matches!(rollout.hold, Hold::Halted { .. });
        if !held && self.alarm.passed(self.stands.since(), most) && !self.planted.has(Bug::WaitForEver) {
            let seen = sight.nodes.get(&turn.node).map_or_else(|| "is not known".to_owned(), |seen| seen.why());
            let reason = format!("for {} s it {}; it {seen}", most.as_secs(), turn.step);
            wants.push(Act::Propose(Ask::Halt { rollout: rollout.id, node: turn.node.clone(), reason }));
        }
    }

    /// A document or service that makes a node unfit, or a document that nobody confirms, is taken back everywhere.
    fn take_back(&mut self, sight: &Sight, rollout: &Rollout, wants: &mut Vec<Act>) {
        if rollout.back.is_some() || self.planted.has(Bug::NeverRevert) {
            return;
        }
        let within = rollout.options.confirm_within_s.filter(|_| rollout.phase == Phase::Confirming);
        let held = matches!(rollout.hold, Hold::Paused { why: Pause::Operator } | Hold::Halted { .. });
        let reason = match (within, self.sick(sight, rollout)) {
            (Some(seconds), _) if self.alarm.passed(self.stands.since(), Duration::from_secs(seconds.into())) => {
                format!("it was not confirmed within {seconds} s")
            }
            (_, Some((node, why))) if !held && self.alarm.passed(self.sick.since(), UNFIT) => {
                format!("node {node} got it and {why}")
            }
            _ => return,
        };
        wants.push(Act::Propose(Ask::Abort { rollout: rollout.id, reason }));
    }

    /// Who is next: a node that does not serve anyway, then those without VIPs, the owner last, and the coordinator after its like.
    pub(super) fn next<'a>(&self, sight: &Sight, rollout: &'a Rollout) -> Option<&'a str> {
        let may = rollout.left().filter(|node| self.may_go(sight, rollout, node));
        may.min_by_key(|node| {
            let seen = sight.nodes.get(*node);
            (seen.is_some_and(super::Seen::serves), seen.map_or(0, |seen| seen.vips), *node == self.me, *node)
        })
    }
}

/// Whether the clock allows a node to leave service now.
pub(super) fn open(sight: &Sight, rollout: &Rollout) -> bool {
    let options = &rollout.options;
    if rollout.back.is_some() || (options.not_before.is_none() && options.window.is_none()) {
        return true;
    }
    sight.utc.is_some_and(|utc| {
        options.not_before.is_none_or(|from| from <= utc) && options.window.is_none_or(|window| window.holds(utc))
    })
}

/// The window is looked at so often.
const LOOK: Duration = Duration::from_secs(20);
