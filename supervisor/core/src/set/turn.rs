//! The requests that move one rollout, and the turn in it.

use super::{Hold, Pause, Phase, Refusal, Reply, Rollout, Step, Turn, cut};

/// The requests about one rollout. Each says `Already` when there is nothing to change.
impl Rollout {
    pub(super) fn pause(&mut self, why: &Pause) -> Result<Reply, Refusal> {
        if self.hold != Hold::Going {
            return Ok(Reply::Already);
        }
        let why = match why {
            Pause::Operator => Pause::Operator,
            Pause::SecondFailure { node, reason } => Pause::SecondFailure { node: node.clone(), reason: cut(reason) },
            Pause::GaveBack { node, reason } => Pause::GaveBack { node: node.clone(), reason: cut(reason) },
        };
        self.hold = Hold::Paused { why };
        self.round += 1;
        self.withdraw();
        Ok(Reply::Done)
    }

    pub(super) fn abort(&mut self, reason: &str) -> Result<Reply, Refusal> {
        if self.back.is_some() && self.hold == Hold::Going {
            return Ok(Reply::Already);
        }
        if self.back.is_none() {
            self.turn_back(reason);
        }
        self.go_on();
        Ok(Reply::Done)
    }

    /// From now on every node shall have what it had before.
    pub(super) fn turn_back(&mut self, reason: &str) {
        self.back = Some(cut(reason));
        self.go_on();
        self.phase = Phase::Rolling;
        self.withdraw();
        // A node that serves with the new version must be drained again before it can return.
        if let Some(turn) = &mut self.turn
            && matches!(turn.step, Step::Verifying | Step::Settling)
        {
            turn.step = Step::Draining;
            if let Some(part) = self.nodes.get_mut(&turn.node) {
                part.new = true;
            }
        }
    }

    pub(super) fn go_on(&mut self) {
        self.hold = Hold::Going;
        self.round += 1;
    }

    pub(super) fn halt(&mut self, node: &str, reason: &str) -> Result<Reply, Refusal> {
        if matches!(self.hold, Hold::Halted { .. }) {
            return Ok(Reply::Already);
        }
        self.hold = Hold::Halted { node: node.to_owned(), reason: cut(reason) };
        self.round += 1;
        self.withdraw();
        Ok(Reply::Done)
    }

    pub(super) fn staged(&mut self, node: &str) -> Result<Reply, Refusal> {
        let part = self.nodes.get_mut(node).ok_or_else(|| Refusal::NoNode { node: node.to_owned() })?;
        if part.staged {
            return Ok(Reply::Already);
        }
        part.staged = true;
        self.stage_or_roll();
        Ok(Reply::Done)
    }

    pub(super) fn offer(&mut self, node: &str) -> Result<Reply, Refusal> {
        if self.hold != Hold::Going {
            return Err(Refusal::Held { hold: self.hold.clone() });
        }
        match &self.turn {
            Some(turn) if turn.node == node => return Ok(Reply::Already),
            Some(_) => return Err(Refusal::NotItsTurn { node: node.to_owned() }),
            None => {}
        }
        if self.phase != Phase::Rolling || !self.left().any(|left| left == node) {
            return Err(Refusal::NotItsTurn { node: node.to_owned() });
        }
        self.turn = Some(Turn { node: node.to_owned(), step: Step::Offered });
        self.round += 1;
        Ok(Reply::Done)
    }

    pub(super) fn withdrawn(&mut self, node: &str) -> Result<Reply, Refusal> {
        match self.step_of(node) {
            None => Ok(Reply::Already),
            Some(Step::Offered) => {
                self.turn = None;
                Ok(Reply::Done)
            }
            Some(step) => Err(Refusal::WrongStep { node: node.to_owned(), step }),
        }
    }

    pub(super) fn go(&mut self, node: &str, to: Step) -> Result<Reply, Refusal> {
        let step = self.turn_of(node)?;
        let held = self.hold != Hold::Going;
        match (step, to) {
            _ if step == to => return Ok(Reply::Already),
            // Nobody leaves service while the rollout is held; whoever has left it comes back.
            (Step::Offered, Step::Draining) | (Step::Draining, Step::Acting) if held => {
                return Err(Refusal::Held { hold: self.hold.clone() });
            }
            (Step::Offered, Step::Draining)
            | (Step::Draining, Step::Acting)
            | (Step::Acting, Step::Verifying)
            | (Step::Verifying, Step::Settling) => {}
            _ => return Err(Refusal::WrongStep { node: node.to_owned(), step }),
        }
        self.turn = Some(Turn { node: node.to_owned(), step: to });
        Ok(Reply::Done)
    }

    pub(super) fn give_back(&mut self, node: &str, new: bool) -> Result<Reply, Refusal> {
        let step = self.turn_of(node)?;
        if !matches!(step, Step::Draining | Step::Acting) {
            return Err(Refusal::WrongStep { node: node.to_owned(), step });
        }
        if self.hold == Hold::Going {
            return Err(Refusal::GoesOn);
        }
        self.end_turn(node, new);
        Ok(Reply::Done)
    }

    pub(super) fn settled(&mut self, node: &str, new: bool) -> Result<Reply, Refusal> {
        let step = self.turn_of(node)?;
        if !matches!(step, Step::Settling | Step::Returning) {
            return Err(Refusal::WrongStep { node: node.to_owned(), step });
        }
        self.end_turn(node, new);
        Ok(Reply::Done)
    }

    pub(super) fn end_turn(&mut self, node: &str, new: bool) {
        if let Some(part) = self.nodes.get_mut(node) {
            part.new = new;
        }
        self.turn = None;
    }

    pub(super) fn turn_of(&self, node: &str) -> Result<Step, Refusal> {
        self.step_of(node).ok_or_else(|| Refusal::NotItsTurn { node: node.to_owned() })
    }
}
