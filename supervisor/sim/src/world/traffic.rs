//! What clients do, and somebody foreign who claims a VIP.

use trilith_core::config::VipId;
use trilith_core::event::Event;

use super::{What, World};
use crate::clients::{Attempt, CLIENTS, FLOWS, FOREIGN_MAC, Fate, Neighbour};

impl World<'_> {
    pub(super) fn open(&mut self) {
        let client = self.rng.index(CLIENTS);
        let vip = self.rng.index(self.plan.vips());
        if self.clients.cache[client][vip] == Neighbour::Unknown {
            self.resolve(client);
        }
        if self.clients.flows.len() < FLOWS {
            let attempt = self.clients.open(client, vip, &self.machines, &self.conditions);
            match attempt {
                Attempt::Opened => {
                    self.stats.flows += 1;
                    if let Some(flow) = self.clients.flows.last() {
                        let flow = flow.id;
                        self.at(self.now + 10_000, What::Packet { flow });
                    }
                }
                Attempt::Refused { .. } | Attempt::Unanswered => self.stats.failed_connects += 1,
            }
            if let Err(what) = self.checks.flows.opened(&self.scene(), client, vip, attempt) {
                self.break_off("9 nothing breaks", what);
            }
        }
        let again = self.rng.between(60_000, 160_000);
        self.at(self.now + again, What::Open);
    }

    pub(super) fn packet(&mut self, id: u32) {
        let Some(place) = self.clients.flows.iter().position(|flow| flow.id == id) else { return };
        let flow = self.clients.flows[place].clone();
        let fate = self.clients.send(&flow, &self.machines, &self.conditions);
        if let Err(what) = self.checks.flows.sent(&self.scene(), &flow, fate) {
            self.break_off("9 nothing breaks", what);
        }
        let ends = self.rng.chance(30);
        match fate {
            Fate::Arrived { hops } => self.stats.relayed += u64::from(hops > 0),
            Fate::Reset { .. } => self.stats.resets += 1,
            Fate::Lost => self.stats.lost_packets += 1,
        }
        if ends || matches!(fate, Fate::Reset { .. }) {
            self.clients.flows.swap_remove(place);
            return;
        }
        let again = self.rng.between(20_000, 60_000);
        self.at(self.now + again, What::Packet { flow: id });
    }

    /// A client asks by ARP who has the VIPs. Whoever answers last is remembered.
    pub(super) fn resolve(&mut self, client: usize) {
        for vip in 0..self.plan.vips() {
            let start = self.rng.index(self.machines.len());
            let count = self.machines.len();
            let holder = (0..count)
                .map(|n| (n + start) % count)
                .find(|n| self.machines[*n].answers_for(vip, self.now) && !self.conditions.isolated[*n]);
            self.clients.cache[client][vip] = holder.map_or(Neighbour::Unknown, Neighbour::Node);
        }
    }

    /// Somebody foreign claims a VIP in ARP.
    pub(super) fn poison(&mut self, vip: VipId) {
        // Somebody who is heard by the clients but not by the owner cannot be answered.
        if (0..self.machines.len()).any(|n| self.conditions.isolated[n]) {
            return;
        }
        note!(self, None, "somebody foreign claims vip {}", vip.0);
        self.stats.poisonings += 1;
        self.clients.hear(usize::from(vip.0), Neighbour::Foreign);
        for node in 0..self.machines.len() {
            self.tell(node, 300, Event::Conflict { vip, mac: FOREIGN_MAC });
        }
    }
}
