//! What the shells make of the core's commands: later, in order, and not always.

use std::sync::Arc;

use trilith_core::command::{Accepted, Command, Deed};
use trilith_core::config::{NodeId, VipId};
use trilith_core::decision::Decision;
use trilith_core::event::{Event, Probe, Unit};
use trilith_core::health::PROBE_TIMEOUT;
use trilith_core::wire::Heartbeat;

use super::{What, World};
use crate::clients::{Neighbour, mac};
use crate::machine::{HaproxyState, Shell};
use crate::net::Datagram;

impl World<'_> {
    /// Gives a command to its shell.
    pub(super) fn carry_out(&mut self, node: usize, command: Command) {
        let shell = match &command {
            Command::Broadcast(heartbeat) => return self.broadcast(node, heartbeat),
            Command::Probe(probe) => return self.probe(node, *probe),
            Command::Answer { ticket, answer } => {
                match self.tickets.iter().position(|t| t == ticket) {
                    Some(place) => drop(self.tickets.swap_remove(place)),
                    None => self.break_off("answered once", format!("node {node} answers ticket {ticket} again")),
                }
                self.stats.moves_done += u64::from(*answer == Ok(Accepted::Done));
                self.stats.refused_requests += u64::from(answer.is_err());
                return;
            }
            Command::Log(decision) => return self.count(decision),
            Command::Hold { .. } | Command::Release { .. } | Command::Announce { .. } => Shell::Net,
            Command::Relay(_) => Shell::Relay,
            Command::Backend { .. } => Shell::Haproxy,
            Command::Start(_) | Command::Restart(_) => Shell::Systemd,
            Command::Persist(_) => Shell::Disk,
        };
        let (least, most) = match shell {
            Shell::Net => (50, 400),
            Shell::Relay => (1_000, 8_000),
            Shell::Haproxy => (100, 1_000),
            Shell::Systemd => (5_000, 60_000),
            Shell::Disk => (500, 15_000),
        };
        let mut takes = self.rng.between(least, most);
        if self.conditions.slow[node] {
            takes += self.rng.between(0, 120_000);
        }
        let machine = &mut self.machines[node];
        let life = machine.life;
        if let Some(supervisor) = &mut machine.supervisor {
            let busy = &mut supervisor.busy[shell as usize];
            *busy = (*busy).max(self.now) + takes;
            let at = *busy;
            self.at(at, What::Finish { node, life, command: Box::new(command) });
        }
    }

    /// A shell does a command now.
    pub(super) fn finish(&mut self, node: usize, command: Command) {
        let fails = self.conditions.failing[node] && self.rng.chance(500);
        self.stats.failures += u64::from(fails);
        // What fails may have been done all the same.
        let (deed, done) =
            if fails && self.rng.chance(700) { (command.deed(), Ok(())) } else { self.deed(node, command) };
        let result = if fails { Err("the simulated shell refuses".to_owned()) } else { done };
        self.watch_for_a_gap();
        if let Some(deed) = deed {
            self.hand(node, Event::Done { deed, result }, None);
        }
    }

    fn deed(&mut self, node: usize, command: Command) -> (Option<Deed>, Result<(), String>) {
        let deed = command.deed();
        let now = self.now;
        let machine = &mut self.machines[node];
        let mut result = Ok(());
        match command {
            Command::Hold { vip, lifetime } => {
                let vip = usize::from(vip.0);
                if !machine.holds(vip, now) {
                    machine.kernel.held_since[vip] = now;
                }
                machine.kernel.expires[vip] = now + lifetime.as_micros() as u64;
            }
            Command::Release { vip } => machine.kernel.expires[usize::from(vip.0)] = 0,
            Command::Announce { vip } => {
                if machine.holds(usize::from(vip.0), now) {
                    self.announce(node, vip);
                } else {
                    result = Err(format!("vip {} is not on the interface", vip.0));
                }
            }
            Command::Relay(ring) => machine.kernel.ring = Some(ring),
            Command::Backend { node: peer, state } => machine.backends[usize::from(peer.0)] = state,
            Command::Start(Unit::Haproxy) => {
                if !self.start_haproxy(node) {
                    result = Err("haproxy.service does not start".to_owned());
                }
            }
            Command::Restart(Unit::Haproxy) => {
                self.kill_haproxy(node);
                if !self.start_haproxy(node) {
                    result = Err("haproxy.service does not start again".to_owned());
                }
            }
            Command::Start(Unit::Service(_)) | Command::Restart(Unit::Service(_)) => {}
            Command::Persist(record) => machine.persist(record),
            Command::Broadcast(_) | Command::Probe(_) | Command::Answer { .. } | Command::Log(_) => {}
        }
        (deed, result)
    }

    fn announce(&mut self, node: usize, vip: VipId) {
        self.stats.announcements += 1;
        if !self.conditions.isolated[node] {
            self.clients.hear(usize::from(vip.0), Neighbour::Node(node));
        }
        for other in 0..self.machines.len() {
            if other != node && self.conditions.frames(node, other) {
                self.tell(other, 300, Event::Conflict { vip, mac: mac(node) });
            }
        }
    }

    fn broadcast(&mut self, node: usize, heartbeat: &Arc<Heartbeat>) {
        let Some(supervisor) = &mut self.machines[node].supervisor else { return };
        let bytes = self.seals[node].as_mut().map(|seal| {
            let mut bytes = Vec::new();
            seal.sealer.seal(heartbeat, &mut bytes);
            for (peer, echo) in heartbeat.heard.iter().enumerate() {
                if let Some(echo) = echo.filter(|echo| echo.live) {
                    seal.opener.settle(NodeId(peer as u8), echo.session);
                }
            }
            bytes.into()
        });
        supervisor.said = Some(Arc::clone(heartbeat));
        for (peer, knows) in supervisor.knows.iter_mut().enumerate() {
            *knows |= heartbeat.heard[peer].is_some_and(|echo| echo.live);
        }
        let datagram = Datagram { from: node, heartbeat: Arc::clone(heartbeat), bytes, forged: false };
        self.stats.heartbeats += 1;
        self.attacker.see(&datagram);
        for to in (0..self.machines.len()).filter(|to| *to != node) {
            let copies = 1 + u64::from(self.rng.chance(self.conditions.twice));
            for _ in 0..copies {
                if !self.conditions.datagrams(node, to) || self.rng.chance(self.conditions.loss) {
                    self.stats.lost_datagrams += 1;
                    continue;
                }
                let (least, most) = self.plan.delay_us;
                let delay = least + self.rng.below(most) + self.rng.between(0, self.conditions.jitter);
                self.at(self.now + delay, What::Deliver { to, datagram: datagram.clone() });
            }
        }
    }

    fn probe(&mut self, node: usize, probe: Probe) {
        let Some(supervisor) = &mut self.machines[node].supervisor else { return };
        if supervisor.probes.contains(&probe) {
            return;
        }
        supervisor.probes.push(probe);
        self.stats.probes += 1;
        let machine = &self.machines[node];
        let silence = PROBE_TIMEOUT.as_micros() as u64;
        let ask = |answered: bool| if answered { (true, 400) } else { (false, silence) };
        let (mut answered, mut takes) = match probe {
            Probe::Front => match machine.haproxy.state {
                HaproxyState::Alive => ask(machine.kernel.ring.is_some()),
                HaproxyState::Hung => ask(false),
                HaproxyState::Dead => (false, 200),
            },
            Probe::Gateway => ask(!self.conditions.isolated[node] && !self.conditions.gateway_lost[node]),
            Probe::Vip(vip) => ask((0..self.machines.len()).any(|other| {
                let holds = self.machines[other].answers_for(usize::from(vip.0), self.now);
                other != node && holds && self.conditions.answers(node, other)
            })),
            Probe::Kernel(peer) => {
                let peer = usize::from(peer.0);
                let alive = self.machines[peer].lives() && self.conditions.answers(node, peer);
                ask(alive)
            }
        };
        // The weather spoils ARP as well, there and back.
        if answered && probe != Probe::Front && self.rng.chance(self.conditions.loss * 2) {
            (answered, takes) = (false, silence);
        }
        if !answered {
            self.misled(node, probe);
        }
        self.tell(node, takes, Event::Probed { probe, answered });
    }

    fn count(&mut self, decision: &Decision) {
        match decision {
            Decision::Own { lone: true, .. } => self.stats.lone += 1,
            Decision::Own { .. } => self.stats.owners += 1,
            Decision::Yield { why, .. } => {
                use trilith_core::decision::WhyYield;
                match why {
                    WhyYield::Moved | WhyYield::Rebalanced => self.stats.moves += 1,
                    WhyYield::Expired | WhyYield::Gap | WhyYield::Superseded(_) => self.stats.failovers += 1,
                    WhyYield::Fitness(_) | WhyYield::Rejoined(_) | WhyYield::Conflict => self.stats.yields += 1,
                }
            }
            Decision::Conflict { .. } => self.stats.conflicts += 1,
            Decision::Gap { .. } => self.stats.gaps += 1,
            _ => {}
        }
    }
}
