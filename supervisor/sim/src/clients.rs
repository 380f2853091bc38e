//! The clients: whom they take for the owner, and what becomes of their connections.

use std::cmp::Ordering;

use crate::conditions::Conditions;
use crate::machine::{HaproxyState, Machine};
use crate::plan::VIPS;

/// All clients. Client 0 asks by ARP only when it knows nobody; client 1 asks now and then.
pub struct Clients {
    /// Whom each client takes for the owner of each VIP.
    pub cache: [[Neighbour; VIPS]; CLIENTS],
    /// Their connections.
    pub flows: Vec<Flow>,
    opened: u32,
}

/// How many clients there are.
pub const CLIENTS: usize = 2;
/// The most connections at a time.
pub const FLOWS: usize = 8;
/// MAC address of somebody who claims a VIP and is no node.
pub const FOREIGN_MAC: [u8; 6] = [0x02, 0xf0, 0x0e, 0x16, 0x00, 0x01];

/// An entry of an ARP cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbour {
    /// None.
    Unknown,
    /// A node.
    Node(usize),
    /// Somebody who is no node.
    Foreign,
}

/// An established connection.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Its number.
    pub id: u32,
    /// Who opened it.
    pub client: usize,
    /// To where.
    pub vip: usize,
    /// The node whose HAProxy has it.
    pub carrier: usize,
    /// Which run of that HAProxy.
    pub generation: u32,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The node that has the connection got it.
    Arrived {
        /// How often it was passed on.
        hops: u8,
    },
    /// A kernel that does not know the connection answered with RST.
    Reset {
        /// Which.
        by: usize,
    },
    /// Nothing came back.
    Lost,
}

/// What became of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// Established.
    Opened,
    /// Answered with RST.
    Refused {
        /// By which node.
        by: usize,
    },
    /// Nothing came back.
    Unanswered,
}

impl Clients {
    /// Clients that know nobody.
    pub fn new() -> Clients {
        Clients { cache: [[Neighbour::Unknown; VIPS]; CLIENTS], flows: Vec::with_capacity(FLOWS), opened: 0 }
    }

    /// Everybody hears an announcement.
    pub fn hear(&mut self, vip: usize, who: Neighbour) {
        self.cache.iter_mut().for_each(|cache| cache[vip] = who);
    }

    /// Opens a connection at whoever is taken for the owner.
    pub fn open(&mut self, client: usize, vip: usize, machines: &[Machine], conditions: &Conditions) -> Attempt {
        let Neighbour::Node(node) = self.cache[client][vip] else { return Attempt::Unanswered };
        let machine = &machines[node];
        if conditions.isolated[node] || !machine.lives() || machine.kernel.ring.is_none() {
            return Attempt::Unanswered;
        }
        if machine.haproxy.state == HaproxyState::Dead {
            return Attempt::Refused { by: node };
        }
        self.opened += 1;
        let flow = Flow { id: self.opened, client, vip, carrier: node, generation: machine.haproxy.generation };
        self.flows.push(flow);
        Attempt::Opened
    }

    /// Sends a packet of an established connection on its way through the ring.
    pub fn send(&self, flow: &Flow, machines: &[Machine], conditions: &Conditions) -> Fate {
        let Neighbour::Node(mut at) = self.cache[flow.client][flow.vip] else { return Fate::Lost };
        if conditions.isolated[at] {
            return Fate::Lost;
        }
        let mut from: Option<usize> = None;
        let mut counted = 0;
        for hops in 0..=TTL {
            let machine = &machines[at];
            if !machine.lives() {
                return Fate::Lost;
            }
            if at == flow.carrier {
                // Where the connection was, and is no more, the kernel says so.
                let known = machine.haproxy.generation == flow.generation;
                return if known { Fate::Arrived { hops } } else { Fate::Reset { by: at } };
            }
            // Without relay rules there is no VIP on `lo` either.
            let Some(ring) = &machine.kernel.ring else { return Fate::Lost };
            let believed = from.is_some_and(|peer| ring.peer_macs.contains(&mac(peer)));
            let made = if believed { counted } else { 0 };
            // As the shell's rules have it: a packet ends where it came into the ring, once it has been all around.
            let around = ring.next.filter(|_| ring.last_hop > 0).map_or(0, |_| ring.last_hop + 1);
            let next = match made.cmp(&around) {
                Ordering::Less => ring.next,
                Ordering::Equal if ring.waits => return Fate::Lost,
                Ordering::Equal => return Fate::Reset { by: at },
                Ordering::Greater => return Fate::Lost,
            };
            let Some(next) = next else { return Fate::Lost };
            let next = usize::from(next.0);
            if !conditions.frames(at, next) {
                return Fate::Lost;
            }
            counted = made + 1;
            from = Some(at);
            at = next;
        }
        Fate::Lost
    }
}

impl Default for Clients {
    fn default() -> Clients {
        Clients::new()
    }
}

/// MAC address of a node's interface.
pub fn mac(node: usize) -> [u8; 6] {
    [0x02, 0, 0, 0, 0, node as u8 + 1]
}

/// A packet that goes round and round is dropped in the end.
const TTL: u8 = 16;

#[cfg(test)]
mod tests {
    use trilith_core::command::Ring;
    use trilith_core::config::NodeId;

    use super::*;

    fn ring_of(count: usize) -> Vec<Machine> {
        let macs: Vec<_> = (0..count).map(mac).collect();
        (0..count)
            .map(|n| {
                let mut machine = Machine::off();
                machine.on = true;
                machine.haproxy.state = HaproxyState::Alive;
                let next = Some(NodeId(((n + 1) % count) as u8));
                machine.kernel.ring =
                    Some(Ring { next, last_hop: count as u8 - 1, peer_macs: macs.clone(), waits: false });
                machine
            })
            .collect()
    }

    #[test]
    fn a_packet_finds_its_carrier_whoever_owns_the_vip() {
        let machines = ring_of(3);
        let calm = Conditions::default();
        let mut clients = Clients::new();
        clients.hear(0, Neighbour::Node(0));
        assert_eq!(clients.open(0, 0, &machines, &calm), Attempt::Opened);
        for (owner, hops) in [(0, 0), (1, 2), (2, 1)] {
            clients.hear(0, Neighbour::Node(owner));
            assert_eq!(clients.send(&clients.flows[0], &machines, &calm), Fate::Arrived { hops });
        }
    }

    #[test]
    fn a_connection_of_a_dead_haproxy_ends_with_a_reset() {
        let mut machines = ring_of(3);
        let calm = Conditions::default();
        let mut clients = Clients::new();
        clients.hear(0, Neighbour::Node(0));
        clients.open(0, 0, &machines, &calm);
        clients.hear(0, Neighbour::Node(1));
        machines[0].haproxy.generation += 1;
        assert_eq!(clients.send(&clients.flows[0], &machines, &calm), Fate::Reset { by: 0 });
        machines[0].on = false;
        assert_eq!(clients.send(&clients.flows[0], &machines, &calm), Fate::Lost);
        for (node, next) in [(1, 2), (2, 1)] {
            let peer_macs = vec![mac(0), mac(next)];
            machines[node].kernel.ring =
                Some(Ring { next: Some(NodeId(next as u8)), last_hop: 1, peer_macs, waits: true });
        }
        assert_eq!(clients.send(&clients.flows[0], &machines, &calm), Fate::Lost, "it may only stand still");
        for node in [1, 2] {
            machines[node].kernel.ring.as_mut().expect("just given").waits = false;
        }
        assert_eq!(clients.send(&clients.flows[0], &machines, &calm), Fate::Reset { by: 1 });
    }
}
