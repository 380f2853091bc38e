//! What bears on every decision: who serves, who may leave service, who is seen.

use super::{Agent, Drain, Seen, Sight};
use crate::plant::Bug;
use crate::set::{Kind, Release, Rollout, Version};

use super::Target;

impl Agent {
    /// Whether this node may be out of service now.
    pub(super) fn may_go(&self, sight: &Sight, rollout: &Rollout, node: &str) -> bool {
        let goes = node == self.me || mends(rollout) || is_fit(sight, node);
        let goes = goes && !self.is_kept_out(sight, node);
        self.planted.has(Bug::TurnAlone) || (goes && self.missed(sight, rollout, node).is_none())
    }

    /// Whether an operator has drained this node: a rollout would have to put it back into service to see it serve.
    pub(super) fn is_kept_out(&self, sight: &Sight, node: &str) -> bool {
        let drained = sight.nodes.get(node).is_some_and(|seen| seen.drained);
        drained && (node != self.me || sight.own.drain == Drain::No)
    }

    /// Another node that does not serve, while this one is out of service or about to be. One that does not serve anyway may be
    /// mended all the same where that is the aim: on the way back, or when an operator insists.
    pub(super) fn missed<'a>(
        &self,
        sight: &Sight<'a>,
        rollout: &Rollout,
        node: &str,
    ) -> Option<(&'a String, &'a Seen)> {
        if mends(rollout) && !is_fit(sight, node) { None } else { self.idle(sight, node) }
    }

    /// A node that got a new document or service, has had its turn, and is not fit.
    pub(super) fn sick<'a>(&self, sight: &Sight, rollout: &'a Rollout) -> Option<(&'a str, String)> {
        if rollout.back.is_some() || matches!(rollout.kind, Kind::System { .. }) {
            return None;
        }
        let reached = rollout.nodes.iter().filter(|(name, part)| part.new && rollout.step_of(name).is_none());
        let sick = reached.map(|(name, _)| name.as_str()).find(|name| !is_fit(sight, name))?;
        Some((sick, sight.nodes.get(sick).map_or_else(|| "is not known".to_owned(), Seen::why)))
    }

    /// Why this node must not restart into another system: that one would be blamed for what serves badly now. The preflight has
    /// looked at it, but since then a window was waited for, or an operator.
    pub(super) fn ailing<'a>(&self, sight: &Sight<'a>, rollout: &Rollout) -> Option<&'a String> {
        let restarts = matches!(rollout.kind, Kind::System { .. }) && !mends(rollout);
        sight.own.ails.as_ref().filter(|_| restarts)
    }

    pub(super) fn others_serve(&self, sight: &Sight, node: &str) -> bool {
        self.idle(sight, node).is_none()
    }

    /// The first of the others that does not serve.
    pub(super) fn idle<'a>(&self, sight: &Sight<'a>, node: &str) -> Option<(&'a String, &'a Seen)> {
        sight.nodes.iter().find(|(name, seen)| *name != node && !seen.serves())
    }

    /// Whether this node is fit, and it and those who see it serve are a majority of the set.
    pub(super) fn is_seen(&self, sight: &Sight) -> bool {
        let seen_by =
            sight.own.seen_by.iter().filter(|name| **name != self.me && sight.nodes.contains_key(*name)).count();
        let fit = sight.nodes.get(&self.me).is_some_and(|seen| seen.unfit.is_none());
        fit && sight.own.ails.is_none() && sight.own.drain == Drain::No && 2 * (seen_by + 1) > sight.nodes.len()
    }

    /// What this node should run when its turn is over.
    pub(super) fn target(&self, rollout: &Rollout, sight: &Sight) -> Target {
        if rollout.back.is_none() {
            return goal(rollout);
        }
        let from = rollout.nodes.get(&self.me).and_then(|part| part.from);
        match &rollout.kind {
            Kind::System { version } => Target::System(from.unwrap_or(*version)),
            Kind::Service { name, .. } => Target::Service(name.clone(), from),
            Kind::Config { .. } => Target::Config(sight.state.config.good.version),
        }
    }

    /// Whether this node runs what the rollout brings.
    pub(super) fn runs_new(&self, sight: &Sight, rollout: &Rollout) -> bool {
        self.runs(sight, &goal(rollout))
    }

    pub(super) fn runs(&self, sight: &Sight, target: &Target) -> bool {
        let node = &sight.own.node;
        match target {
            Target::System(version) => node.running == *version,
            Target::Config(version) => node.config == *version,
            Target::Service(name, version) => node.services.get(name) == version.as_ref(),
        }
    }

    /// Whether what the target needs is on this node's disk, complete.
    pub(super) fn is_ready(&self, sight: &Sight, target: &Target) -> bool {
        match target {
            Target::System(version) => sight.own.node.other == Some(*version),
            Target::Service(name, Some(version)) => sight.own.bundles.contains(&Release::service(name, *version)),
            Target::Service(_, None) | Target::Config(_) => true,
        }
    }

    /// Whether this node must not keep running what it runs.
    pub(super) fn runs_banned(&self, sight: &Sight) -> Option<Version> {
        let running = sight.own.node.running;
        sight.state.bans.contains_key(&Release::system(running)).then_some(running)
    }
}

fn goal(rollout: &Rollout) -> Target {
    match &rollout.kind {
        Kind::System { version } => Target::System(*version),
        Kind::Service { name, version } => Target::Service(name.clone(), Some(*version)),
        Kind::Config { version } => Target::Config(*version),
    }
}

fn mends(rollout: &Rollout) -> bool {
    rollout.back.is_some() || rollout.options.force
}

/// Whether it could serve, drained or not.
fn is_fit(sight: &Sight, node: &str) -> bool {
    sight.nodes.get(node).is_some_and(|seen| seen.heard && seen.unfit.is_none())
}
