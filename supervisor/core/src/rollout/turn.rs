//! What a node does when it is its turn.

use super::{Act, Agent, DRAIN, Drain, FLICKER, RESTART_SETTLE, SETTLE, STUCK, Sight, TRIAL, Target};
use crate::plant::Bug;
use crate::set::{Ask, Hold, Kind, Pause, Rollout, Step};
use std::time::Duration;

impl Agent {
    pub(super) fn turn(&mut self, sight: &Sight, rollout: &Rollout, wants: &mut Vec<Act>) {
        let step = rollout.step_of(&self.me);
        let leaves = matches!(step, Some(Step::Draining | Step::Acting));
        self.draining.hold(self.alarm.now(), (leaves && sight.own.drain != Drain::No).then_some(()));
        if !leaves && sight.own.drain != Drain::No && !self.planted.has(Bug::StayDrained) {
            wants.push(Act::Undrain);
        }
        if step != Some(Step::Acting) {
            self.switched = None;
        }
        let target = self.target(rollout, sight);
        match step {
            Some(Step::Offered) => wants.extend(self.take(sight, rollout)),
            Some(step @ (Step::Draining | Step::Acting)) => self.leave(sight, rollout, step, &target, wants),
            Some(step @ (Step::Verifying | Step::Settling)) => self.prove(sight, rollout, step, &target, wants),
            Some(Step::Returning) => wants.extend(self.come_back(sight, rollout)),
            None => {}
        }
    }

    fn take(&mut self, sight: &Sight, rollout: &Rollout) -> Option<Act> {
        let may = rollout.hold == Hold::Going && sight.quorum && self.may_go(sight, rollout, &self.me);
        match self.ailing(sight, rollout) {
            _ if !may => None,
            None => Some(self.go(rollout, Step::Draining)),
            Some(why) => self.alarm.passed(self.ails.since(), FLICKER).then(|| self.cannot(rollout, why.clone())),
        }
    }

    /// Serves with what it had before. One that is fit is back after [`TRIAL`] although nobody sees it serve: what ails it, such as a
    /// service that does not answer, was not brought by the rollout, and only when that is over can it be mended.
    fn come_back(&mut self, sight: &Sight, rollout: &Rollout) -> Option<Act> {
        let fit = sight.nodes.get(&self.me).is_some_and(|seen| seen.unfit.is_none()) && sight.own.drain == Drain::No;
        let is_back = self.has_settled(rollout) || (fit && self.alarm.passed(self.stands.since(), TRIAL));
        (sight.own.trial.is_none() && is_back).then(|| self.settled(sight, rollout))
    }

    /// Out of service, and over to the target; back into service when the others need this node.
    fn leave(&mut self, sight: &Sight, rollout: &Rollout, step: Step, target: &Target, wants: &mut Vec<Act>) {
        let own = sight.own;
        let going = rollout.hold == Hold::Going;
        if let Some((ordered, trial)) = self.switched.clone() {
            // Whatever the rollout has become meanwhile: the restart may come at any moment.
            if !self.runs(sight, &ordered) && own.failed.as_ref().is_none_or(|failure| failure.what != ordered) {
                wants.push(Act::Switch { to: ordered, trial });
                return;
            }
            self.switched = None;
        }
        match own.failed.as_ref().filter(|failure| failure.what == *target && !self.runs(sight, target)) {
            Some(failure) if step == Step::Acting => {
                wants.push(self.failed(rollout, failure.reason.clone()));
                return;
            }
            // What failed before is tried again: this failure is not one of this turn.
            Some(_) if going => wants.push(Act::Forget),
            _ => {}
        }
        if self.runs(sight, target) {
            let restarts = !matches!(rollout.kind, Kind::System { .. });
            if restarts && own.trial.is_some() && own.ails.is_some() {
                // Its HAProxy has gone on: the node stays out of service until it would serve well, or its trial is over.
                return;
            }
            if own.drain != Drain::No {
                wants.push(Act::Undrain);
            }
            match step {
                Step::Draining if going => wants.push(self.go(rollout, Step::Acting)),
                Step::Draining => self.give_back(sight, rollout, wants),
                _ => wants.push(self.go(rollout, Step::Verifying)),
            }
            return;
        }
        if !going {
            self.give_back(sight, rollout, wants);
            return;
        }
        let looks = step == Step::Draining || !self.planted.has(Bug::ActBlindly);
        if looks && !(sight.quorum && self.may_go(sight, rollout, &self.me)) {
            if own.drain != Drain::No {
                wants.push(Act::Undrain);
            }
            self.pause_if_alone(sight, rollout, wants);
            return;
        }
        if !self.is_ready(sight, target) {
            wants.push(self.cannot(rollout, "what it should switch to is not complete on its disk".to_owned()));
            return;
        }
        let vips = sight.nodes.get(&self.me).map_or(0, |seen| seen.vips);
        let deadline_s = rollout.options.drain_s;
        if vips > 0 {
            wants.push(Act::HandOver);
        }
        match own.drain {
            // Whoever is at it already goes on; one that has failed, or whose process has started anew, begins again.
            Drain::No | Drain::Going => wants.push(Act::Drain { deadline_s }),
            Drain::Done if vips == 0 && own.failed.as_ref().is_some_and(|failure| failure.what == *target) => {}
            Drain::Done if vips == 0 && step == Step::Draining => wants.push(self.go(rollout, Step::Acting)),
            Drain::Done if vips == 0 => {
                let trial = rollout.back.is_none();
                self.switched = Some((target.clone(), trial));
                wants.push(Act::Switch { to: target.clone(), trial });
            }
            Drain::Done => {}
        }
        let most = deadline_s.map_or(DRAIN, |seconds| Duration::from_secs(seconds.into()));
        if self.switched.is_none() && self.alarm.passed(self.draining.since(), most + STUCK) {
            let what =
                if vips > 0 { format!("nobody takes {vips} VIP(s) over") } else { "its drain does not end".to_owned() };
            wants.push(self.cannot(rollout, what));
        }
    }

    /// On the target: wait to be seen, settle, be blessed, and say so.
    fn prove(&mut self, sight: &Sight, rollout: &Rollout, step: Step, target: &Target, wants: &mut Vec<Act>) {
        let own = sight.own;
        let runs = self.runs(sight, target);
        self.astray.hold(self.alarm.now(), (!runs).then_some(()));
        if let Some(failure) = own.failed.as_ref().filter(|failure| failure.what == *target && !runs) {
            wants.push(self.failed(rollout, failure.reason.clone()));
        } else if self.alarm.passed(self.astray.since(), FLICKER) {
            wants.push(self.failed(rollout, format!("it does not run {target}, and nobody knows why")));
        } else if step == Step::Verifying && runs && self.seen.since().is_some() {
            wants.push(self.go(rollout, Step::Settling));
        } else if step == Step::Settling && runs && sight.quorum && self.has_settled(rollout) {
            if own.trial.is_some() { self.bless(sight, wants) } else { wants.push(self.settled(sight, rollout)) }
        }
    }

    /// It was seen serving for long enough, and all of that since it is at this step: what was seen before the switch says nothing.
    fn has_settled(&mut self, rollout: &Rollout) -> bool {
        let settle = if matches!(rollout.kind, Kind::System { .. }) { SETTLE } else { RESTART_SETTLE };
        self.alarm.passed(self.seen.since().max(self.stands.since()), settle) && self.seen.since().is_some()
    }

    /// Goes back into service and then says so.
    fn give_back(&self, sight: &Sight, rollout: &Rollout, wants: &mut Vec<Act>) {
        let early = self.planted.has(Bug::GiveBackDrained);
        if sight.own.drain != Drain::No && !early && !self.planted.has(Bug::StayDrained) {
            wants.push(Act::Undrain);
        }
        if sight.own.drain == Drain::No || early {
            let reason = format!("the rollout is {}", rollout.hold);
            let (node, round, new) = (self.me.clone(), rollout.round, self.runs_new(sight, rollout));
            wants.push(Act::Propose(Ask::GiveBack { rollout: rollout.id, node, round, new, reason }));
        }
    }

    /// A node that is out of service, or about to be, sees that another one does not serve.
    pub(super) fn pause_if_alone(&mut self, sight: &Sight, rollout: &Rollout, wants: &mut Vec<Act>) {
        let Some(turn) = &rollout.turn else { return };
        if rollout.hold != Hold::Going || rollout.back.is_some() || !self.alarm.passed(self.alone.since(), FLICKER) {
            return;
        }
        if let Some((node, seen)) = self.missed(sight, rollout, &turn.node) {
            let why = Pause::SecondFailure { node: node.clone(), reason: seen.why() };
            wants.push(Act::Propose(Ask::Pause { rollout: rollout.id, why }));
        }
    }

    fn cannot(&self, rollout: &Rollout, reason: String) -> Act {
        let why = Pause::GaveBack { node: self.me.clone(), reason };
        Act::Propose(Ask::Pause { rollout: rollout.id, why })
    }

    fn go(&self, rollout: &Rollout, to: Step) -> Act {
        Act::Propose(Ask::Step { rollout: rollout.id, node: self.me.clone(), round: rollout.round, to })
    }

    fn failed(&self, rollout: &Rollout, reason: String) -> Act {
        Act::Propose(Ask::Failed { rollout: rollout.id, node: self.me.clone(), round: rollout.round, reason })
    }

    fn settled(&self, sight: &Sight, rollout: &Rollout) -> Act {
        let (node, round, new) = (self.me.clone(), rollout.round, self.runs_new(sight, rollout));
        Act::Propose(Ask::Settled { rollout: rollout.id, node, round, new })
    }
}
