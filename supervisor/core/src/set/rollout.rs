//! How requests move a rollout: the rules that hold whoever asks, and in whatever order requests arrive.

use std::collections::BTreeMap;

use super::{
    Ask, Ban, Document, Goal, Hold, Kind, MAX_BANS, MAX_DOCUMENT, MAX_HISTORY, MAX_NOTES, MAX_SERVICES, Node, Note,
    Options, Outcome, Part, Past, Phase, Refusal, Release, Reply, Request, Rollout, State, Step, Turn, Version, cut,
    limit, name,
};

impl Rollout {
    /// The nodes that do not have yet what they shall have in the end.
    pub fn left(&self) -> impl Iterator<Item = &str> {
        let back = self.back.is_some();
        let left = move |part: &Part| if back { part.new && !self.had_it(part) } else { !part.new };
        self.nodes.iter().filter(move |(_, part)| left(part)).map(|(name, _)| name.as_str())
    }

    /// How far this node's turn is, if it is its turn.
    pub fn step_of(&self, node: &str) -> Option<Step> {
        self.turn.as_ref().filter(|turn| turn.node == node).map(|turn| turn.step)
    }

    /// Whether this node should have the new version just now: while it acts, what it shall have; at other times, what it has.
    pub fn wants_new(&self, node: &str) -> bool {
        match self.step_of(node) {
            Some(Step::Acting | Step::Verifying | Step::Settling) => self.back.is_none(),
            Some(Step::Offered | Step::Draining | Step::Returning) | None => {
                self.nodes.get(node).is_some_and(|part| part.new)
            }
        }
    }

    /// The node had the version of the rollout before it began.
    pub(super) fn had_it(&self, part: &Part) -> bool {
        let goal = self.kind.release().map(|release| release.version);
        goal.is_some() && part.from == goal
    }

    pub(super) fn is_staged(&self) -> bool {
        !self.kind.is_staged() || self.nodes.values().all(|part| part.staged || part.new)
    }

    /// Turns are taken once all have what they need on their disks, and not while one has not: who comes, goes, or is found to run
    /// something else changes that as well as who stages.
    pub(super) fn stage_or_roll(&mut self) {
        match (self.phase, self.is_staged()) {
            (Phase::Staging, true) => self.phase = Phase::Rolling,
            (Phase::Rolling, false) if self.back.is_none() => self.phase = Phase::Staging,
            _ => {}
        }
    }

    /// Takes an offer back that nobody has taken.
    pub(super) fn withdraw(&mut self) {
        self.turn = self.turn.take().filter(|turn| turn.step > Step::Offered);
    }

    pub(super) fn note(&mut self, utc: Option<u64>, text: String) {
        // The last place is written over and over: the end of a story is worth more than its middle.
        self.notes.truncate(MAX_NOTES - 1);
        self.notes.push(Note { utc, text: cut(&text) });
    }
}

impl State {
    /// What `rollback` goes to: the version that all nodes had before the one that all run, as the history tells. It tells of none
    /// when they were made with it, or when that is long ago: then it is the older one that all have in their other slot, but none that
    /// a rollout was to bring and did not, which is there because it was staged.
    pub fn previous(&self) -> Option<Version> {
        let now = same(self.nodes.values().map(|node| node.running))?;
        let brought = |past: &Past| match past.kind {
            Kind::System { version } if version != now => Some((version, past.outcome == Outcome::Done)),
            _ => None,
        };
        let mut brought = self.history.iter().rev().filter_map(brought);
        if let Some((before, _)) = brought.clone().find(|(_, done)| *done) {
            return Some(before);
        }
        let other = same(self.nodes.values().map(|node| node.other))??;
        (other < now && brought.all(|(version, _)| version != other)).then_some(other)
    }

    pub(super) fn start(
        &mut self,
        request: &Request,
        token: &str,
        goal: &Goal,
        options: &Options,
    ) -> Result<Reply, Refusal> {
        name("token", token)?;
        if let Some(reply) = self.started(token) {
            return Ok(reply);
        }
        self.free()?;
        let (kind, nodes) = self.parts(goal)?;
        if nodes.values().all(|part| part.new) {
            return Err(Refusal::Nothing);
        }
        if nodes.len() < SAFE && !options.force {
            return Err(Refusal::FewNodes { nodes: nodes.len() });
        }
        if let Some(Rollout { hold: Hold::Halted { node, reason }, .. }) = &self.rollout {
            let (node, reason) = (node.clone(), reason.clone());
            self.end(Outcome::Halted { node, reason });
        }
        if let (Goal::Config { text, .. }, Kind::Config { version }) = (goal, &kind) {
            self.config.trial = Some(Document { version: *version, text: text.clone() });
            self.config.last = *version;
        }
        let config = self.config.trial.as_ref().map(|trial| trial.version);
        self.rollouts += 1;
        let phase = if kind.is_staged() { Phase::Staging } else { Phase::Rolling };
        let mut rollout = Rollout {
            id: self.rollouts,
            token: token.to_owned(),
            kind,
            options: options.clone(),
            phase,
            hold: Hold::Going,
            round: 0,
            back: None,
            nodes,
            turn: None,
            notes: Vec::new(),
        };
        rollout.note(request.utc, format!("{} starts: {}", request.by, rollout.kind));
        self.rollout = Some(rollout);
        Ok(Reply::Started { rollout: self.rollouts, config })
    }

    /// Everything that concerns the rollout in progress.
    pub(super) fn advance(&mut self, request: &Request) -> Result<Reply, Refusal> {
        let (id, reply) = match &request.ask {
            Ask::Pause { rollout, why } => (*rollout, self.going(*rollout)?.pause(why)),
            Ask::Resume { rollout } => (*rollout, self.resume(*rollout)),
            Ask::Abort { rollout, reason } => (*rollout, self.going(*rollout)?.abort(reason)),
            Ask::Halt { rollout, node, reason } => (*rollout, self.going(*rollout)?.halt(node, reason)),
            Ask::Staged { rollout, node } => (*rollout, self.going(*rollout)?.staged(node)),
            Ask::Offer { rollout, node } => (*rollout, self.going(*rollout)?.offer(node)),
            Ask::Withdraw { rollout, node, .. } => (*rollout, self.going(*rollout)?.withdrawn(node)),
            Ask::Step { rollout, node, round, to } => (*rollout, self.in_round(*rollout, *round)?.go(node, *to)),
            Ask::GiveBack { rollout, node, round, new, .. } => {
                (*rollout, self.in_round(*rollout, *round)?.give_back(node, *new))
            }
            Ask::Failed { rollout, node, round, reason } => {
                self.in_round(*rollout, *round)?;
                (*rollout, self.failed(request, node, reason))
            }
            Ask::Settled { rollout, node, round, new } => {
                (*rollout, self.in_round(*rollout, *round)?.settled(node, *new))
            }
            Ask::Confirm { rollout } => return self.confirm(request, *rollout),
            _ => return Err(Refusal::Unknown),
        };
        if reply? == Reply::Already {
            return Ok(Reply::Already);
        }
        self.going(id)?.note(request.utc, request.to_string());
        self.end_if_complete();
        Ok(Reply::Done)
    }

    /// A node has come to the set: it gets its turn like the others.
    pub(super) fn join_rollout(&mut self, node: &str) {
        let (Some(rollout), Some(report)) = (&mut self.rollout, self.nodes.get(node)) else { return };
        let (from, new) = match &rollout.kind {
            Kind::System { version } => (Some(report.running), report.running == *version),
            Kind::Service { name, version } => {
                let from = report.services.get(name).copied();
                (from, from == Some(*version))
            }
            Kind::Config { version } => (None, report.config == *version),
        };
        rollout.nodes.insert(node.to_owned(), Part { from, staged: false, new });
        rollout.turn = rollout.turn.take().filter(|turn| turn.node != node);
        if rollout.phase == Phase::Confirming && !new {
            rollout.phase = Phase::Rolling;
        }
        rollout.stage_or_roll();
        self.end_if_complete();
    }

    /// A node runs another system than it had when its turn was over, or before it came: its disk has lost what it was started
    /// from, say. What it says counts, and it gets its turn, again if need be.
    pub(super) fn keep_true(&mut self, request: &Request, node: &str) {
        let (Some(rollout), Some(report)) = (&mut self.rollout, self.nodes.get(node)) else { return };
        let Kind::System { version } = rollout.kind else { return };
        let new = report.running == version;
        let its_turn = rollout.step_of(node).is_some_and(|step| step > Step::Offered);
        let Some(part) = rollout.nodes.get_mut(node).filter(|part| part.new != new && !its_turn) else { return };
        (part.new, part.staged) = (new, false);
        rollout.stage_or_roll();
        rollout.note(request.utc, format!("node {node} runs {}, although it was not its turn", report.running));
        self.end_if_complete();
    }

    /// A node was removed from the set: the rollout goes on without it.
    pub(super) fn leave_rollout(&mut self, request: &Request, node: &str) {
        let Some(rollout) = &mut self.rollout else { return };
        if rollout.nodes.remove(node).is_some() {
            rollout.turn = rollout.turn.take().filter(|turn| turn.node != node);
            rollout.note(request.utc, request.to_string());
            rollout.stage_or_roll();
            self.end_if_complete();
        }
    }

    /// The answer to whoever started the rollout of this token, when there is one.
    fn started(&self, token: &str) -> Option<Reply> {
        let now = self.rollout.iter().map(|rollout| (rollout.id, &rollout.token, &rollout.kind));
        let past = self.history.iter().map(|past| (past.id, &past.token, &past.kind));
        now.chain(past).find(|(_, known, _)| *known == token).map(|(rollout, _, kind)| {
            let config = if let Kind::Config { version } = kind { Some(*version) } else { None };
            Reply::Started { rollout, config }
        })
    }

    /// Whether another rollout may start: none is in progress, or one that halted and whose node is back.
    fn free(&self) -> Result<(), Refusal> {
        // Where there are slots, one that is not blessed holds on to the other one.
        let on_trial = |node: &&Node| !node.slot.is_empty() && !node.blessed;
        if let Some((node, _)) = self.nodes.iter().find(|(_, node)| on_trial(node)) {
            return Err(Refusal::OnTrial { node: node.clone() });
        }
        let Some(rollout) = &self.rollout else { return Ok(()) };
        // Nodes may run different systems for as long as it takes, but not different documents.
        let documents = matches!(rollout.kind, Kind::Config { .. }) && rollout.nodes.values().any(|part| part.new);
        match (&rollout.hold, &rollout.turn) {
            (Hold::Halted { .. }, Some(turn)) => Err(Refusal::StillOut { node: turn.node.clone() }),
            (Hold::Halted { .. }, None) if !documents => Ok(()),
            _ => Err(Refusal::Busy { rollout: rollout.id }),
        }
    }

    /// What would be brought, and to whom.
    fn parts(&self, goal: &Goal) -> Result<(Kind, BTreeMap<String, Part>), Refusal> {
        let part = |from: Option<Version>, goal: Version| Part { from, staged: false, new: from == Some(goal) };
        match goal {
            Goal::System { version } => {
                let release = Release::system(*version);
                self.acceptable(&release)?;
                if !self.bundles.contains_key(&release)
                    && self.nodes.values().any(|n| n.running != *version && n.other != Some(*version))
                {
                    return Err(Refusal::NoBundle { release });
                }
                let nodes = self.nodes.iter().map(|(name, node)| (name.clone(), part(Some(node.running), *version)));
                Ok((Kind::System { version: *version }, nodes.collect()))
            }
            Goal::Service { name: service, version } => {
                let release = Release::service(service, *version);
                self.acceptable(&release)?;
                if !self.bundles.contains_key(&release) {
                    return Err(Refusal::NoBundle { release });
                }
                let from = |node: &Node| node.services.get(service).copied();
                let nodes = self.nodes.iter().map(|(name, node)| (name.clone(), part(from(node), *version)));
                Ok((Kind::Service { name: service.clone(), version: *version }, nodes.collect()))
            }
            Goal::Config { base, text } => {
                limit("document", text.len(), MAX_DOCUMENT)?;
                let now = &self.config.good;
                if *base != now.version {
                    return Err(Refusal::Outdated { base: *base, now: now.version });
                }
                if now.text == *text {
                    return Err(Refusal::Nothing);
                }
                let nodes = self.nodes.keys().map(|name| (name.clone(), Part::default()));
                Ok((Kind::Config { version: self.config.last + 1 }, nodes.collect()))
            }
        }
    }

    /// Whether it may be brought to the nodes as they are now.
    fn acceptable(&self, release: &Release) -> Result<(), Refusal> {
        self.allowed(release)?;
        let (version, floor) = (release.version, self.floor_of(release));
        if version < floor {
            return Err(Refusal::BelowFloor { version, floor });
        }
        let minimum = self.bundles.get(release).map_or(Version::default(), |bundle| bundle.minimum);
        match self.nodes.iter().find(|(_, node)| node.running < minimum) {
            Some((name, node)) => Err(Refusal::TooOld { node: name.clone(), running: node.running, minimum }),
            None => Ok(()),
        }
    }

    fn allowed(&self, release: &Release) -> Result<(), Refusal> {
        let Some(ban) = self.bans.get(release) else { return Ok(()) };
        Err(Refusal::Banned { release: release.clone(), node: ban.node.clone(), reason: ban.reason.clone() })
    }

    fn going(&mut self, id: u64) -> Result<&mut Rollout, Refusal> {
        self.rollout.as_mut().filter(|rollout| rollout.id == id).ok_or(Refusal::NotThisRollout { rollout: id })
    }

    /// The rollout, if it is in the round in which a node spoke.
    fn in_round(&mut self, id: u64, round: u64) -> Result<&mut Rollout, Refusal> {
        let rollout = self.going(id)?;
        if rollout.round == round { Ok(rollout) } else { Err(Refusal::Stale { round, now: rollout.round }) }
    }

    fn resume(&mut self, id: u64) -> Result<Reply, Refusal> {
        let rollout = self.going(id)?;
        if rollout.hold == Hold::Going {
            return Ok(Reply::Already);
        }
        if let (None, Some(release)) = (&rollout.back, rollout.kind.release()) {
            self.allowed(&release)?;
        }
        let rollout = self.going(id)?;
        rollout.go_on();
        rollout.stage_or_roll();
        Ok(Reply::Done)
    }

    fn confirm(&mut self, request: &Request, id: u64) -> Result<Reply, Refusal> {
        if self.history.iter().any(|past| past.id == id && past.outcome == Outcome::Done) {
            return Ok(Reply::Already);
        }
        let rollout = self.going(id)?;
        if rollout.back.is_some() {
            return Err(Refusal::GoesBack);
        }
        if rollout.phase != Phase::Confirming {
            return Err(Refusal::NotConfirming);
        }
        rollout.note(request.utc, request.to_string());
        self.end(Outcome::Done);
        Ok(Reply::Done)
    }

    /// The node is back on what it had. A system that failed is banned and the rollout halts: the others serve, and an operator
    /// looks. A document or a service that failed is taken back everywhere.
    fn failed(&mut self, request: &Request, node: &str, reason: &str) -> Result<Reply, Refusal> {
        let Some(rollout) = &mut self.rollout else { return Ok(Reply::Already) };
        let step = rollout.turn_of(node)?;
        match step {
            Step::Returning => return Ok(Reply::Already),
            Step::Acting | Step::Verifying | Step::Settling => {}
            Step::Offered | Step::Draining => return Err(Refusal::WrongStep { node: node.to_owned(), step }),
        }
        let reason = cut(reason);
        rollout.turn = Some(Turn { node: node.to_owned(), step: Step::Returning });
        let forward = rollout.back.is_none();
        if let Some(part) = rollout.nodes.get_mut(node) {
            part.staged = false;
        }
        if forward && !matches!(rollout.kind, Kind::System { .. }) {
            rollout.turn_back(&format!("node {node}: {reason}"));
        } else {
            rollout.hold = Hold::Halted { node: node.to_owned(), reason: reason.clone() };
        }
        if let (true, Some(release)) = (forward, rollout.kind.release()) {
            if self.bans.len() >= MAX_BANS {
                self.bans.pop_first();
            }
            self.bans.insert(release, Ban { node: node.to_owned(), reason, utc: request.utc });
        }
        Ok(Reply::Done)
    }

    fn end_if_complete(&mut self) {
        let Some(rollout) = &mut self.rollout else { return };
        if rollout.turn.is_some() || rollout.left().next().is_some() {
            return;
        }
        match &rollout.back {
            Some(reason) => {
                let reason = reason.clone();
                self.end(Outcome::Back { reason });
            }
            None if rollout.options.confirm_within_s.is_some() && matches!(rollout.kind, Kind::Config { .. }) => {
                rollout.phase = Phase::Confirming;
            }
            None => self.end(Outcome::Done),
        }
    }

    fn raise_floor(&mut self, release: &Release) {
        let floor = self.bundles.get(release).map_or(Version::default(), |bundle| bundle.floor);
        // A floor above the version that carries it would bar that version itself.
        let floor = floor.min(release.version).max(self.floor_of(release));
        match &release.service {
            None => self.floor = floor,
            Some(_) if floor == Version::default() => {}
            Some(name) => {
                if self.floors.len() >= MAX_SERVICES && !self.floors.contains_key(name) {
                    self.floors.pop_first();
                }
                self.floors.insert(name.clone(), floor);
            }
        }
    }

    fn end(&mut self, outcome: Outcome) {
        let Some(rollout) = self.rollout.take() else { return };
        if let Some(trial) = self.config.trial.take()
            && outcome == Outcome::Done
        {
            self.config.previous = Some(std::mem::replace(&mut self.config.good, trial));
        }
        if let (Outcome::Done, Some(release)) = (&outcome, rollout.kind.release()) {
            self.raise_floor(&release);
        }
        if self.history.len() >= MAX_HISTORY {
            self.history.remove(0);
        }
        let Rollout { id, token, kind, notes, .. } = rollout;
        self.history.push(Past { id, token, kind, outcome, notes });
    }
}

/// The one value that all have.
fn same<T: PartialEq>(mut all: impl Iterator<Item = T>) -> Option<T> {
    let first = all.next()?;
    all.all(|next| next == first).then_some(first)
}

/// With so many nodes two serve while one restarts.
const SAFE: usize = 3;
