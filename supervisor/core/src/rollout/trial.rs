//! What a node does by itself, turn or no turn: reports, stages, and gives what runs on trial its verdict.

use super::{Act, Agent, DRIFT, Drain, Job, ORPHAN, RESTART_TRIAL, RETRY, SETTLE, Sight, TRIAL, TRIES, Target};
use crate::plant::Bug;
use crate::set::{Ask, Hold, Kind, Phase, Release, Rollout, Step};
use crate::time::Time;
use std::collections::BTreeSet;
use std::time::Duration;

impl Agent {
    /// Keeps the table of nodes and the catalogue true.
    pub(super) fn report(&mut self, now: Time, sight: &Sight, wants: &mut Vec<Act>) {
        let (state, own) = (sight.state, sight.own);
        let known = state.nodes.get(&self.me);
        let replaced = known.is_some_and(|known| known.generation > own.node.generation);
        let told = known.is_some_and(|known| *known == own.node || *known == own.node.bounded());
        if !told && !replaced {
            wants.push(Act::Propose(Ask::Report { node: self.me.clone(), report: own.node.clone() }));
        }
        for (release, bundle) in &state.bundles {
            let held = own.bundles.contains(release);
            if bundle.held_by.contains(&self.me) != held && known.is_some() {
                let (release, node) = (release.clone(), self.me.clone());
                wants.push(Act::Propose(Ask::Hold { release, node, held }));
            }
        }
        // A state that does not know this node yet is one from before: it knows nothing of bundles either.
        let fresh = sight.quorum && told;
        let back = self.way_back(sight);
        let gone = own.bundles.iter().filter(|release| fresh && !state.bundles.contains_key(*release));
        let gone = gone.filter(|release| back.as_ref() != Some(*release));
        let gone: BTreeSet<Release> = gone.cloned().collect();
        self.orphans.hold(now, (!gone.is_empty()).then(|| gone.clone()));
        if self.alarm.passed(self.orphans.since(), ORPHAN) {
            wants.extend(gone.into_iter().map(Act::Discard));
        }
    }

    /// What a service of this node goes back to should its rollout fail, catalogued or not.
    fn way_back(&self, sight: &Sight) -> Option<Release> {
        let rollout = sight.state.rollout.as_ref()?;
        let Kind::Service { name, .. } = &rollout.kind else { return None };
        Some(Release::service(name, rollout.nodes.get(&self.me)?.from?))
    }

    /// Has what the rollout needs on this node's disk before anybody is drained.
    pub(super) fn stage(&mut self, now: Time, sight: &Sight, rollout: &Rollout, wants: &mut Vec<Act>) {
        let wanted = rollout.phase == Phase::Staging && rollout.hold == Hold::Going && rollout.back.is_none();
        let part = rollout.nodes.get(&self.me).filter(|part| wanted && !part.staged && !part.new);
        let (Some(_), Some(release)) = (part, rollout.kind.release()) else {
            self.job = None;
            return;
        };
        let own = sight.own;
        let target = self.target(rollout, sight);
        let sound = own.failed.as_ref().is_none_or(|failure| failure.what != target);
        let held = own.bundles.contains(&release);
        let known = sight.state.bundles.contains_key(&release);
        // A version in the other slot may be another build of it, which only its bundle tells.
        let ready = sound && (held || !known) && self.is_ready(sight, &target);
        if own.job == Job::Running {
            return;
        }
        if ready {
            wants.push(Act::Propose(Ask::Staged { rollout: rollout.id, node: self.me.clone() }));
            return;
        }
        // What the other slot holds already needs no bundle to be checked again.
        let act = if held || !known { Act::Stage } else { Act::Fetch };
        let job = (rollout.id, act(release.clone()));
        if self.job.as_ref() != Some(&job) {
            (self.tries, self.next_try) = (0, now);
        }
        if now < self.next_try {
            self.alarm.ring(self.next_try);
        } else if self.tries < TRIES {
            self.tries += 1;
            self.next_try = now + RETRY;
            self.alarm.ring(self.next_try);
            self.said.retain(|(said, _)| *said != job.1);
            wants.push(job.1.clone());
        } else {
            let mut reason = match &own.job {
                Job::Failed(reason) => reason.clone(),
                Job::Idle | Job::Running => format!("{} does not come to its disk", rollout.kind),
            };
            if !held && self.is_ready(sight, &target) {
                let way = "its other slot holds that version: to take that as it is, abort this rollout, and then";
                reason = format!("{reason}; {way} trilith upgrade remove {release}");
            }
            wants.push(Act::Propose(Ask::Halt { rollout: rollout.id, node: self.me.clone(), reason }));
        }
        self.job = Some(job);
    }

    /// The verdict on what runs on trial. A node that nobody sees serving goes back by its own clock.
    pub(super) fn trial(&mut self, sight: &Sight, wants: &mut Vec<Act>) {
        let Some(since) = sight.own.trial else { return };
        let rollout = sight.state.rollout.as_ref();
        let turn = rollout.and_then(|rollout| rollout.step_of(&self.me));
        if let Some(failure) = sight.own.failed.as_ref().filter(|failure| self.runs(sight, &failure.what)) {
            // The verdict is there; the way back was cut off.
            wants.push(Act::Revert { reason: failure.reason.clone() });
            return;
        }
        if matches!(turn, Some(Step::Draining | Step::Acting))
            && rollout.is_some_and(|rollout| rollout.back.is_some())
            && sight.quorum
        {
            // It is on its way back already, with the connections' deadline kept, and nothing is wrong with what it leaves.
            return;
        }
        let free = matches!(turn, None | Some(Step::Returning));
        let most = if sight.own.node.blessed { RESTART_TRIAL } else { TRIAL };
        if let Some(version) = self.runs_banned(sight) {
            wants.push(Act::Revert { reason: format!("{version} is banned from the set") });
            return;
        }
        if self.planted.has(Bug::BlessUnseen) {
            wants.push(Act::Bless);
        }
        if free
            && sight.quorum
            && self.seen.since().is_some_and(|seen| self.alarm.passed(Some(seen.max(since)), SETTLE))
        {
            self.bless(sight, wants);
        } else if self.alarm.passed(Some(since), most)
            && !wants.contains(&Act::Bless)
            && !self.planted.has(Bug::TrialForEver)
        {
            wants.push(Act::Revert { reason: self.why_unseen(sight, most) });
        }
    }

    pub(super) fn bless(&self, sight: &Sight, wants: &mut Vec<Act>) {
        if self.runs_banned(sight).is_none() {
            wants.push(Act::Bless);
        }
    }

    /// A node that came to the set with another document than the set's, and has no turn that would bring it, helps itself: when
    /// nothing is going on, all others serve, and no node before it in the alphabet has the same to do.
    pub(super) fn drift(&mut self, now: Time, sight: &Sight, wants: &mut Vec<Act>) {
        let (state, own) = (sight.state, sight.own);
        let wanted = state.document_for(&self.me).version;
        let strays = |name: &str, config: u64| state.document_for(name).version != config;
        let first = state.nodes.iter().find(|(name, node)| strays(name, node.config)).map(|(name, _)| name);
        let lost =
            state.rollout.is_none() && wanted > 0 && strays(&self.me, own.node.config) && first == Some(&self.me);
        let calm = lost && sight.quorum && self.others_serve(sight, &self.me) && own.drain == Drain::No;
        if state.rollout.is_none() {
            self.astray.hold(now, calm.then_some(()));
            if self.alarm.passed(self.astray.since(), DRIFT) {
                wants.push(Act::Switch { to: Target::Config(wanted), trial: false });
            }
        }
    }

    /// What comes first is what the rest follows from.
    fn why_unseen(&self, sight: &Sight, most: Duration) -> String {
        let seconds = most.as_secs();
        if let Some(reason) = sight.nodes.get(&self.me).and_then(|seen| seen.unfit.as_ref()) {
            return format!("after {seconds} s it is still unfit: {reason}");
        }
        let peers = || sight.nodes.iter().filter(|(name, _)| **name != self.me);
        let heard = peers().filter(|(_, seen)| seen.heard).count();
        let all = peers().count();
        if heard == 0 && all > 0 {
            return format!("it has heard no other node for {seconds} s");
        }
        if let Some(ails) = &sight.own.ails {
            return format!("after {seconds} s {ails}");
        }
        let seen_by = sight.own.seen_by.len();
        format!("after {seconds} s only {seen_by} of {all} peers see it serve, and {heard} are heard")
    }
}
