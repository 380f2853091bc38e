//! The truth, and what the nodes see of it.

use trilith_core::rollout::{Drain, Seen};
use trilith_core::set::{Hold, Outcome, Pause, Request, Rollout, Step};

use super::event::{Broken, Event};
use super::machine::Machine;
use super::plan::{Behaviour, NEXT, S, SERVICE, What};
use super::world::World;
use trilith_core::plant::Bug;
use trilith_core::set::Ask;

impl World {
    /// Whether two machines can talk.
    pub(super) fn linked(&self, a: usize, b: usize) -> bool {
        let open = |node: usize| {
            let machine = &self.machines[node];
            machine.supervisor.is_some() && !machine.isolated && !machine.mute && !self.muted(node)
        };
        a == b || (open(a) && open(b))
    }

    /// The nodes that this one can talk to, itself included, when it runs.
    fn group(&self, node: usize) -> Vec<usize> {
        let runs = self.machines[node].supervisor.is_some();
        (0..self.machines.len()).filter(|other| runs && self.linked(node, *other)).collect()
    }

    /// Whether this node is in touch with a majority.
    pub(super) fn in_touch(&self, node: usize) -> bool {
        2 * self.group(node).len() > self.machines.len()
    }

    /// Why this node cannot serve, drained or not.
    fn unfit(&self, node: usize) -> Option<&'static str> {
        let machine = &self.machines[node];
        let bad = self.plan.behaviour[node] == Behaviour::Unfit;
        if machine.supervisor.is_none() {
            return Some("does not run");
        }
        if machine.unfit {
            return Some("the gateway does not answer");
        }
        (bad && self.runs_new(node)).then_some("HAProxy does not answer")
    }

    /// The document in force cuts the node off.
    fn muted(&self, node: usize) -> bool {
        self.plan.what == What::Config && self.plan.behaviour[node] == Behaviour::Mute && self.runs_new(node)
    }

    /// Whether the node runs what the rollout under test brings.
    pub(super) fn runs_new(&self, node: usize) -> bool {
        let machine = &self.machines[node];
        match self.plan.what {
            What::System => machine.running() == NEXT,
            What::Config => machine.disk.config == 2,
            What::Service => machine.disk.services.get(SERVICE) == Some(&NEXT),
        }
    }

    /// Whether this node does its part of the service, as far as others could see it.
    pub(super) fn serves(&self, node: usize) -> bool {
        self.fit(node) && !self.machines[node].drained()
    }

    /// Whether it could serve, drained or not.
    pub(super) fn fit(&self, node: usize) -> bool {
        let machine = &self.machines[node];
        self.unfit(node).is_none() && !machine.isolated && !machine.mute && !self.muted(node)
    }

    /// Everything about a node that others might see.
    pub(super) fn truth(&self, node: usize) -> u8 {
        let machine = &self.machines[node];
        let alone = machine.isolated || machine.mute || self.muted(node);
        let (vip, leads) = (self.vip == Some(node), self.log.leader == Some(node));
        let facts =
            [self.serves(node), self.fit(node), alone, machine.drained(), machine.supervisor.is_some(), vip, leads];
        facts.into_iter().enumerate().map(|(bit, fact)| u8::from(fact) << bit).sum()
    }

    /// A node looks around.
    pub(super) fn look(&mut self, node: usize) {
        let nodes = self.machines.len();
        let leads = self.log.leader == Some(node);
        let quorum = self.in_touch(node) && self.log.leader.is_some();
        let all: Vec<Seen> = (0..nodes).map(|other| self.seen(node, other)).collect();
        let peers = (0..nodes).filter(|peer| *peer != node && self.linked(*peer, node) && self.serves(node));
        let seen_by = peers.map(Machine::name_of).collect();
        let Some(supervisor) = &mut self.machines[node].supervisor else { return };
        // One that was cut off believes for a while that it leads; without a quorum that moves nothing.
        supervisor.leads = leads || (supervisor.leads && !quorum);
        supervisor.quorum = quorum;
        supervisor.seen.values_mut().zip(all).for_each(|(seen, now)| *seen = now);
        supervisor.own.seen_by = seen_by;
        supervisor.stirred = true;
    }

    fn seen(&self, node: usize, other: usize) -> Seen {
        let heard = self.linked(node, other) && self.machines[other].supervisor.is_some();
        let unfit = self.unfit(other).filter(|_| heard).map(str::to_owned);
        let drained = heard && self.machines[other].drained();
        Seen { heard, unfit, drained, vips: usize::from(self.vip == Some(other)) }
    }

    /// The VIP goes to somebody who serves.
    pub(super) fn move_vip(&mut self) {
        let nodes = self.machines.len();
        let fit: Vec<usize> = (0..nodes).filter(|node| self.serves(*node)).collect();
        let keeps = self.vip.is_some_and(|node| fit.contains(&node));
        if !keeps && !fit.is_empty() {
            self.vip = Some(self.rng.pick(&fit));
        }
    }

    /// A node applies what is committed.
    pub(super) fn view(&mut self, node: usize) {
        if self.machines[node].supervisor.is_none() || !self.in_touch(node) || self.log.leader.is_none() {
            return;
        }
        self.log.stored[node] = self.log.len();
        let view = self.log.after(self.log.len());
        if let Some(supervisor) = &mut self.machines[node].supervisor {
            supervisor.view = view;
            supervisor.stirred = true;
        }
    }

    pub(super) fn elect(&mut self) -> Result<(), Broken> {
        let nodes = self.machines.len();
        let Some(group) = (0..nodes).map(|node| self.group(node)).find(|group| 2 * group.len() > nodes) else {
            // Somebody will come back and stir the world again.
            return Ok(());
        };
        self.stats.elections += 1;
        self.log.elect(&group).map_err(|lost| {
            ("7 nothing committed is lost", format!("{lost} committed entries are on none of the disks of {group:?}"))
        })?;
        self.spread();
        Ok(())
    }

    /// A request is on its way to whoever leads.
    pub(super) fn propose(&mut self, node: usize, ask: Ask) {
        if self.rng.chance(15) {
            return;
        }
        let us = self.rng.between(10_000, 300_000);
        let request = Request::new(&Machine::name_of(node), None, ask);
        self.after(us, Event::Commit(node, Box::new(request)));
    }

    pub(super) fn commit(&mut self, from: usize, request: &Request) -> Result<(), Broken> {
        let Some(leader) = self.log.leader.filter(|leader| self.linked(from, *leader) && self.in_touch(*leader)) else {
            return Ok(());
        };
        if self.machines[leader].supervisor.is_none() || self.machines[from].supervisor.is_none() {
            return Ok(());
        }
        let mut stored_by = self.group(leader);
        let most = self.machines.len() / 2 + 1;
        while stored_by.len() > most {
            let at = self.rng.index(stored_by.len());
            if stored_by[at] != leader {
                stored_by.remove(at);
            }
        }
        if self.bug == Some(Bug::CommitAlone) {
            stored_by = vec![leader];
        }
        let before = self.log.len();
        let was = self.log.after(before);
        let answer = self.log.commit(request, &stored_by);
        if self.log.len() == before {
            let refused = answer.map_or_else(|refusal| refusal.to_string(), |reply| format!("{reply:?}"));
            self.note(from, format_args!("is answered: {refused} ({request})"));
            return Ok(());
        }
        self.note(from, format_args!("committed: {request}"));
        self.stats.commits += 1;
        let is = self.log.after(self.log.len());
        self.count(request, was.rollout.as_ref(), is.rollout.as_ref(), is.history.last().map(|past| &past.outcome));
        self.checks.committed(request, &was, &is, &self.machines)?;
        self.spread();
        Ok(())
    }

    fn count(&mut self, request: &Request, was: Option<&Rollout>, is: Option<&Rollout>, end: Option<&Outcome>) {
        let stats = &mut self.stats;
        match &request.ask {
            Ask::Step { to: Step::Draining, .. } => stats.turns += 1,
            Ask::GiveBack { .. } => stats.given_back += 1,
            Ask::Acquire { .. } => stats.leases += 1,
            Ask::Pause { why: Pause::SecondFailure { .. }, .. } => stats.second_failures += 1,
            _ => {}
        }
        let halted = |rollout: &Rollout| matches!(rollout.hold, Hold::Halted { .. });
        stats.rollouts_halted += u64::from(is.is_some_and(halted) && !was.is_some_and(halted));
        if was.is_some() && is.is_none_or(|is| was.is_some_and(|was| was.id != is.id)) {
            match end {
                Some(Outcome::Done) => stats.rollouts_done += 1,
                Some(Outcome::Back { .. }) => stats.rollouts_back += 1,
                _ => {}
            }
        }
    }

    /// A drain begins.
    pub(super) fn drain(&mut self, node: usize, deadline_s: Option<u32>) {
        let most = u64::from(deadline_s.unwrap_or(30)) * S;
        let us = self.rng.between(100_000, most.max(200_000));
        let life = self.machines[node].life;
        if let Some(supervisor) = &mut self.machines[node].supervisor
            && supervisor.own.drain == Drain::No
        {
            supervisor.own.drain = Drain::Going;
            self.after(us, Event::Drained(node, life));
        }
    }
}
