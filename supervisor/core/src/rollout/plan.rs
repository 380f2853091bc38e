//! What a rollout would do, and what it waits for: in words, before anything is done.

use std::collections::BTreeMap;

use super::lead::open;
use super::{Agent, LOST, RESTART_SETTLE, SETTLE, Seen, Sight};
use crate::plant::Planted;
use crate::set::{Ask, Goal, Hold, Kind, Options, Phase, Request, Rollout, Step, Turn};

/// What would happen, for `--dry-run`, and the preflight of every start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What would be done, one line for each step.
    pub steps: Vec<String>,
    /// Why it should not be started now; empty when all is well. Each names its operands and what to do.
    pub objections: Vec<String>,
    /// The nodes that have to fetch a bundle, and its bytes: whether there is room for it they know themselves.
    pub fetched: BTreeMap<String, u64>,
}

/// What a start with these words would do. Nothing is changed. Whether a bundle has expired is for whoever has a clock.
pub fn plan(me: &str, sight: &Sight, goal: &Goal, options: &Options) -> Plan {
    let mut plan = Plan::default();
    let mut state = sight.state.clone();
    let ask = Ask::Start { token: "plan".to_owned(), goal: goal.clone(), options: options.clone() };
    if let Err(refusal) = state.apply(&Request::new(me, sight.utc, ask)) {
        plan.objections.push(refusal.to_string());
    }
    plan.objections.extend(objections(sight, options));
    let Some(rollout) = state.rollout.filter(|rollout| rollout.token == "plan") else { return plan };
    if let Some(bundle) = rollout.kind.release().and_then(|release| sight.state.bundles.get(&release)) {
        if !bundle.held_by.iter().any(|node| sight.nodes.get(node).is_some_and(|seen| seen.heard)) {
            plan.objections
                .push(format!("no node that is heard holds the bundle of {}; upload it again", rollout.kind));
        }
        let lacks = rollout.nodes.iter().filter(|(node, part)| !part.new && !bundle.held_by.contains(*node));
        plan.fetched = lacks.map(|(node, _)| (node.clone(), bundle.size)).collect();
        plan.steps.push(format!("all nodes fetch and check the bundle of {}: {} bytes", rollout.kind, bundle.size));
    }
    plan.steps.extend(turns(me, sight, &rollout));
    if let Some(seconds) = options.confirm_within_s.filter(|_| matches!(rollout.kind, Kind::Config { .. })) {
        plan.steps.push(format!("wait for: trilith config confirm; after {seconds} s without it, take it back"));
    }
    plan
}

/// Why the rollout in progress does not go on just now, if it could and does not.
pub fn waits(me: &str, sight: &Sight) -> Option<String> {
    let rollout = sight.state.rollout.as_ref()?;
    let agent = Agent::new(me, Planted::default());
    if !sight.quorum {
        return Some("no majority of nodes is in touch".to_owned());
    }
    if rollout.hold != Hold::Going {
        return Some(rollout.hold.to_string());
    }
    match rollout.phase {
        Phase::Confirming => return Some(rollout.phase.to_string()),
        Phase::Staging => {
            let left =
                rollout.nodes.iter().filter(|(_, part)| !part.staged && !part.new).map(|(name, _)| name.as_str());
            return Some(format!("not ready yet: {}", left.collect::<Vec<_>>().join(", ")));
        }
        Phase::Rolling => {}
    }
    match &rollout.turn {
        Some(turn) => match agent.missed(sight, rollout, &turn.node) {
            Some((node, seen)) => Some(format!("node {node} {}", seen.why())),
            None => unheard(sight, turn),
        },
        None if !open(sight, rollout) && sight.utc.is_none() => Some("the time of the day is not known".to_owned()),
        None if !open(sight, rollout) => Some("it is not the time for it".to_owned()),
        None if agent.next(sight, rollout).is_some() => None,
        None => sight
            .nodes
            .iter()
            .find(|(_, seen)| !seen.serves())
            .map(|(node, seen)| format!("node {node} {}", seen.why())),
    }
}

/// That the node whose turn it is is not heard. A restart looks like a loss from outside, until the coordinator has waited [`LOST`].
fn unheard(sight: &Sight, turn: &Turn) -> Option<String> {
    let seen = sight.nodes.get(&turn.node).filter(|seen| !seen.heard)?;
    let why = format!("node {} {}", turn.node, seen.why());
    Some(match turn.step {
        Step::Acting => format!("{why}: it restarts, or is lost; after {} s at this the rollout halts", LOST.as_secs()),
        _ => why,
    })
}

fn objections(sight: &Sight, options: &Options) -> Vec<String> {
    let mut objections = Vec::new();
    if !sight.quorum {
        objections.push("no majority of nodes is in touch; see: trilith status".to_owned());
    }
    for (name, seen) in sight.nodes.iter().filter(|(_, seen)| !seen.serves() && !options.force) {
        objections.push(format!("node {name} {}; mend that first, or say --force", seen.why()));
    }
    let stranger = |name: &&String| !sight.state.nodes.contains_key(*name);
    for name in sight.nodes.keys().filter(stranger) {
        objections.push(format!("node {name} has not told the set yet what it runs; wait for it"));
    }
    if sight.utc.is_none() && (options.window.is_some() || options.not_before.is_some()) {
        objections.push("the time of the day is not known here; wait until the clock is set".to_owned());
    }
    objections
}

fn turns(me: &str, sight: &Sight, rollout: &Rollout) -> Vec<String> {
    let mut left: Vec<&str> = rollout.left().collect();
    left.sort_by_key(|node| {
        let seen = sight.nodes.get(*node);
        (seen.is_some_and(Seen::serves), seen.map_or(0, |seen| seen.vips), *node == me, *node)
    });
    let act = match &rollout.kind {
        Kind::System { version } => format!("reboot into {version}"),
        Kind::Config { version } => format!("restart the supervisor with configuration {version}"),
        Kind::Service { name, version } => format!("restart service {name} as {version}"),
    };
    let settle = if matches!(rollout.kind, Kind::System { .. }) { SETTLE } else { RESTART_SETTLE };
    let drain = rollout.options.drain_s.map_or("by the services' deadlines".to_owned(), |s| format!("within {s} s"));
    let line = |node: &str| {
        let vips = sight.nodes.get(node).map_or(0, |seen| seen.vips);
        let hand_over = if vips > 0 { format!("hand {vips} VIP(s) over, ") } else { String::new() };
        format!("node {node}: {hand_over}drain {drain}, {act}, be seen serving for {} s", settle.as_secs())
    };
    left.into_iter().map(line).collect()
}
