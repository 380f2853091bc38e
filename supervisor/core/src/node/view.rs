//! What a node knows, put into words for `status`.

use std::time::Duration;

use super::Node;
use crate::config::{NodeId, VipId};
use crate::decision::{describe_mac, describe_reason};
use crate::health::Fitness;
use crate::status::{NodeStatus, Relay, Status, Timers, VipStatus, fingerprint};
use crate::time::Time;

/// Version of the schema of [`Status`].
const SCHEMA: u32 = 1;

impl Node {
    /// What this node knows, for `status`. `decisions`, `flows`, `channel` and `uptime_ms` are left to the shell.
    pub fn status(&self, now: Time) -> Status {
        let settings = &self.settings;
        Status {
            schema: SCHEMA,
            set: settings.set.name.clone(),
            node: settings.nodes[self.own.me.0 as usize].name.clone(),
            version: version(self.version),
            fingerprint: fingerprint(settings.fingerprint),
            uptime_ms: 0,
            vips: (0..self.vips.len() as u8).map(|vip| self.vip_status(VipId(vip), now)).collect(),
            nodes: self.nodes().map(|node| self.node_status(node, now)).collect(),
            timers: Timers {
                heartbeat_ms: millis(settings.set.lease.heartbeat),
                lease_ms: millis(self.lease),
                lease_min_ms: millis(settings.set.lease.min),
                lease_max_ms: millis(settings.set.lease.max),
                jitter_ms: millis(self.jitter.now(now)),
            },
            relay: self.relay_status(),
            alarms: self.alarms(now),
            decisions: Vec::new(),
            flows: None,
            haproxy_problem: None,
            channel: None,
        }
    }

    fn vip_status(&self, vip: VipId, now: Time) -> VipStatus {
        let set = &self.settings.vips[vip.0 as usize];
        let own = self.owns(vip, now);
        let owner = self.owner(vip, now);
        let end = self.vips[vip.0 as usize].lease_end(self.majority());
        let why = match (own, owner) {
            (Some(own), _) if own.lone => "lone survivor: no other node is heard".to_owned(),
            (Some(_), _) => "holds the grants of a majority".to_owned(),
            (None, Some(_)) => "says so and holds the grants of a majority".to_owned(),
            (None, None) => self.why_unowned(),
        };
        VipStatus {
            name: set.name.clone(),
            address: format!("{}/{}", set.address, set.prefix),
            owner: owner.map(|(node, _)| self.settings.nodes[node.0 as usize].name.clone()),
            why,
            epoch: owner.map_or(self.vips[vip.0 as usize].seen(), |(_, epoch)| epoch),
            lease_left_ms: own.and(end).map(|end| millis(end.since(now))),
            lone: own.is_some_and(|own| own.lone),
        }
    }

    fn why_unowned(&self) -> String {
        let heard = self.nodes().filter(|n| *n != self.own.me && self.peers[n.0 as usize].live).count();
        if now_quiet(self) {
            return "this node has just started and keeps silent for one lease".to_owned();
        }
        match self.fitness {
            _ if heard + 1 < self.majority() => "no majority of nodes is heard".to_owned(),
            Fitness::Unfit(reason) => format!("this node is unfit: {}", describe_reason(reason, &self.settings)),
            _ => "being decided".to_owned(),
        }
    }

    fn node_status(&self, node: NodeId, now: Time) -> NodeStatus {
        let set = &self.settings.nodes[node.0 as usize];
        let peer = &self.peers[node.0 as usize];
        let me = node == self.own.me;
        let said = peer.said().filter(|_| !me);
        let fitness = if me { Some(self.fitness) } else { peer.fitness() };
        let word = match fitness {
            Some(Fitness::Fit) => "fit",
            Some(Fitness::Degraded(_)) => "degraded",
            Some(Fitness::Unfit(_)) => "unfit",
            None => "unknown",
        };
        NodeStatus {
            name: set.name.clone(),
            address: set.address.to_string(),
            zone: set.zone.clone(),
            fitness: word.to_owned(),
            reason: fitness.and_then(Fitness::reason).map(|reason| describe_reason(reason, &self.settings)),
            drained: if me { self.health.drained } else { said.is_some_and(|h| h.drained) },
            heard: me || peer.live,
            hears_us: me || peer.hears_us(self.own, self.planted),
            in_ring: me || (peer.kernel && said.is_some()),
            silent_ms: peer.heard_at().filter(|_| !me).map(|at| millis(now.since(at))),
            version: if me { Some(version(self.version)) } else { said.map(|h| version(h.version)) },
            fingerprint: if me {
                Some(fingerprint(self.settings.fingerprint))
            } else {
                said.map(|h| fingerprint(h.fingerprint))
            },
        }
    }

    fn relay_status(&self) -> Relay {
        let ring = self.ring.asked.as_ref();
        Relay {
            loaded: self.health.relay == Some(true),
            next: ring.and_then(|r| r.next).map(|n| self.settings.nodes[n.0 as usize].name.clone()),
            last_hop: ring.map_or(0, |r| r.last_hop),
            tunnels: Vec::new(),
        }
    }

    /// What an admin should look at, worst first.
    fn alarms(&self, now: Time) -> Vec<String> {
        let mut alarms = Vec::new();
        for (at, vip) in self.settings.vips.iter().enumerate() {
            let vip_id = VipId(at as u8);
            if self.owner(vip_id, now).is_none() {
                alarms.push(format!("nobody owns VIP {} ({}): {}", vip.name, vip.address, self.why_unowned()));
            } else if self.owns(vip_id, now).is_some_and(|own| own.lone) {
                alarms.push(format!("VIP {} is held by a lone survivor: bring the other nodes back", vip.name));
            } else if self.owns(vip_id, now).is_some()
                && let Some(mac) = self.vips[at].rival(now)
            {
                let (mac, address) = (describe_mac(mac), vip.address);
                alarms.push(format!(
                    "machine {mac} has the address of VIP {} ({address}), too: give it another",
                    vip.name
                ));
            }
        }
        for node in self.nodes() {
            let status = self.node_status(node, now);
            let name = &status.name;
            match (status.heard, status.reason) {
                (false, _) => alarms.push(format!("node {name} is not heard")),
                // Whoever drained it knows; the verdict still says that it is out of service.
                (true, Some(_)) if status.drained => {}
                (true, Some(reason)) => alarms.push(format!("node {name} is {}: {reason}", status.fitness)),
                (true, None) if !status.hears_us => alarms.push(format!("node {name} does not hear this node")),
                (true, None) if status.fingerprint != Some(fingerprint(self.settings.fingerprint)) => {
                    alarms.push(format!("node {name} runs another configuration"));
                }
                (true, None) => {}
            }
        }
        let zones = self.settings.nodes.iter().enumerate();
        for (at, node) in zones {
            let twin = self.settings.nodes[..at].iter().find(|other| other.zone.is_some() && other.zone == node.zone);
            if let Some(twin) = twin {
                alarms.push(format!(
                    "nodes {} and {} share the zone {}",
                    twin.name,
                    node.name,
                    node.zone.as_deref().unwrap_or("")
                ));
            }
        }
        alarms
    }
}

fn now_quiet(node: &Node) -> bool {
    node.last_step < node.quiet_until
}

fn millis(span: Duration) -> u64 {
    span.as_millis() as u64
}

fn version(version: [u16; 3]) -> String {
    version.map(|part| part.to_string()).join(".")
}
