//! What operators ask for: refused at once, done here, or passed on to the node that must do it.

use crate::command::{Accepted, Command, Refused};
use crate::config::{NodeId, VipId};
use crate::decision::{Decision, Ordered, WhyYield};
use crate::event::Request;
use crate::health::{Fitness, Reason};
use crate::time::Time;
use crate::wire::{Ask, What};

use super::{MAX_TICKETS, Node, OPERATOR_PATIENCE};

impl Node {
    /// An operator asks: refuse at once what cannot be, do what is ours, pass on what is another's.
    pub(super) fn operator(&mut self, now: Time, ticket: u64, request: Request, out: &mut Vec<Command>) {
        let answer = match request {
            Request::Move { vip, to } => self.order_move(now, vip, to, out),
            Request::Drain { node, drained } => self.order_drain(now, node, drained, out),
        };
        match answer {
            Some(answer) => out.push(Command::Answer { ticket, answer }),
            None if self.tickets.len() < MAX_TICKETS => {
                self.tickets.push(Ticket { number: ticket, request, until: now + OPERATOR_PATIENCE });
            }
            None => out.push(Command::Answer { ticket, answer: Err(Refused::Busy) }),
        }
    }

    pub(super) fn order_move(
        &mut self,
        now: Time,
        vip: VipId,
        to: NodeId,
        out: &mut Vec<Command>,
    ) -> Option<Result<Accepted, Refused>> {
        let Some((owner, epoch)) = self.owner(vip, now) else { return Some(Err(Refused::NoOwner(vip))) };
        if owner == to {
            return Some(Ok(Accepted::Already));
        }
        let fitness = if to == self.own.me { Some(self.fitness) } else { self.peers[to.0 as usize].fitness() };
        match fitness {
            None => return Some(Err(Refused::NotHeard(to))),
            Some(Fitness::Fit) => {}
            Some(_) => return Some(Err(Refused::NotFit(to))),
        }
        if owner == self.own.me {
            if !self.peers[to.0 as usize].hears_us(self.own, self.planted) {
                return Some(Err(Refused::NotHeard(to)));
            }
            self.hand_over(now, vip, to, out);
        } else {
            let vip = self.vips[vip.0 as usize].key();
            self.pass_on(owner, What::Move { vip, epoch, to });
        }
        None
    }

    pub(super) fn order_drain(
        &mut self,
        now: Time,
        node: NodeId,
        drained: bool,
        out: &mut Vec<Command>,
    ) -> Option<Result<Accepted, Refused>> {
        let fit = |n: NodeId| {
            if n == self.own.me {
                self.fitness
            } else {
                self.peers[n.0 as usize].fitness().unwrap_or(Fitness::Unfit(Reason::Starting))
            }
        };
        if drained && !self.nodes().any(|n| n != node && fit(n) == Fitness::Fit) {
            return Some(Err(Refused::NoOtherFit));
        }
        if self.is_drained(node).is_none() {
            return Some(Err(Refused::NotHeard(node)));
        }
        if self.is_drained(node) == Some(drained) {
            return Some(Ok(Accepted::Already));
        }
        if node == self.own.me {
            self.drain(now, drained, out);
        } else {
            self.pass_on(node, What::Drain(drained));
        }
        None
    }

    pub(super) fn pass_on(&mut self, node: NodeId, what: What) {
        self.ask_serial += 1;
        self.ask = Some(Ask { serial: self.ask_serial, node, what });
    }

    /// Does what an operator asked of a peer, if it is ours to do, once.
    pub(super) fn obey(&mut self, now: Time, from: NodeId, out: &mut Vec<Command>) {
        let peer = &mut self.peers[from.0 as usize];
        let Some((session, ask)) = peer.said().and_then(|h| h.ask.map(|ask| (h.session, ask))) else { return };
        if ask.node != self.own.me || peer.acted == Some((session, ask.serial)) {
            return;
        }
        peer.acted = Some((session, ask.serial));
        match ask.what {
            What::Drain(drained) => self.drain(now, drained, out),
            What::Move { vip, epoch, to } => {
                let owned = self.vips.iter().position(|v| v.key() == vip).map(|at| VipId(at as u8));
                if let Some(id) = owned.filter(|id| self.owns(*id, now).is_some_and(|o| o.epoch == epoch)) {
                    self.hand_over(now, id, to, out);
                }
            }
        }
    }

    pub(super) fn drain(&mut self, now: Time, drained: bool, out: &mut Vec<Command>) {
        if self.health.drained != drained {
            self.health.drain(now, drained);
            let what = if drained { Ordered::Drain } else { Ordered::Undrain };
            self.log(out, Decision::Operator { node: self.own.me, what });
        }
    }

    pub(super) fn hand_over(&mut self, now: Time, vip: VipId, to: NodeId, out: &mut Vec<Command>) {
        // A peer with another configuration may name a node that is none of ours.
        let Some(peer) = self.peers.get(to.0 as usize) else { return };
        // A successor that does not hear us would never learn that it is one.
        let willing = peer.hears_us(self.own, self.planted) && peer.fitness().is_some_and(|f| f.level() < 2);
        if to == self.own.me || !willing {
            return;
        }
        self.log(out, Decision::Operator { node: to, what: Ordered::Move(vip) });
        self.with_vip(now, vip, out, |v, view, out| v.hand_over(view, Some(to), WhyYield::Moved, out));
    }

    pub(super) fn is_drained(&self, node: NodeId) -> Option<bool> {
        if node == self.own.me {
            return Some(self.health.drained);
        }
        self.peers[node.0 as usize].said().filter(|_| self.peers[node.0 as usize].live).map(|h| h.drained)
    }

    pub(super) fn answer_operators(&mut self, now: Time, out: &mut Vec<Command>) {
        for ticket in std::mem::take(&mut self.tickets) {
            let done = match ticket.request {
                Request::Move { vip, to } => self.owner(vip, now).is_some_and(|(owner, _)| owner == to),
                Request::Drain { node, drained } => {
                    let owns = (0..self.vips.len() as u8)
                        .any(|vip| self.owner(VipId(vip), now).is_some_and(|(o, _)| o == node));
                    // It must hold over a power cut.
                    let kept = node != self.own.me || self.durable.drained == drained;
                    self.is_drained(node) == Some(drained) && kept && (!drained || !owns)
                }
            };
            match (done, now >= ticket.until) {
                (true, _) => out.push(Command::Answer { ticket: ticket.number, answer: Ok(Accepted::Done) }),
                (false, true) => out.push(Command::Answer { ticket: ticket.number, answer: Err(Refused::TimedOut) }),
                (false, false) => self.tickets.push(ticket),
            }
        }
        if self.tickets.is_empty() {
            self.ask = None;
        }
    }
}

/// An operator who waits for an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) number: u64,
    pub(super) request: Request,
    pub(super) until: Time,
}
