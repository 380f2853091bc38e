//! What is broken just now: the sum of all faults that are active.

use crate::plan::{Fault, NODES};

/// The state of the world that the faults make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Datagrams lost, of 1,000.
    pub loss: u64,
    /// Datagrams delayed by up to so many microseconds more.
    pub jitter: u64,
    /// Datagrams sent twice, of 1,000.
    pub twice: u64,
    /// The peer channel from one node to another is cut.
    peer_cut: [[bool; NODES]; NODES],
    /// No frame passes from one node to another.
    frame_cut: [[bool; NODES]; NODES],
    /// No frame passes to or from the node.
    pub isolated: [bool; NODES],
    /// The node sees no carrier.
    pub link_down: [bool; NODES],
    /// The gateway does not answer the node.
    pub gateway_lost: [bool; NODES],
    /// The machine stands still.
    pub stunned: [bool; NODES],
    /// The machine stands still and its clock with it.
    pub clock_stopped: [bool; NODES],
    /// The supervisor stands still.
    pub frozen: [bool; NODES],
    /// The machine is off.
    pub down: [bool; NODES],
    /// The supervisor is dead.
    pub supervisor_down: [bool; NODES],
    /// HAProxy cannot run.
    pub haproxy_down: [bool; NODES],
    /// HAProxy hangs.
    pub haproxy_hung: [bool; NODES],
    /// Commands take long.
    pub slow: [bool; NODES],
    /// Commands fail now and then.
    pub failing: [bool; NODES],
}

impl Conditions {
    /// The sum of these faults.
    pub fn of(faults: impl Iterator<Item = Fault>) -> Conditions {
        let mut sum = Conditions::default();
        faults.for_each(|fault| sum.add(fault));
        sum
    }

    fn add(&mut self, fault: Fault) {
        match fault {
            Fault::Weather { loss, jitter, twice } => {
                self.loss = self.loss.max(loss);
                self.jitter = self.jitter.max(jitter);
                self.twice = self.twice.max(twice);
            }
            Fault::OneWay { from, to, peer: true } => self.peer_cut[from][to] = true,
            Fault::OneWay { from, to, peer: false } => self.frame_cut[from][to] = true,
            Fault::Cut { a, b, peer } => {
                self.add(Fault::OneWay { from: a, to: b, peer });
                self.add(Fault::OneWay { from: b, to: a, peer });
            }
            Fault::Isolated(node) => self.isolated[node] = true,
            Fault::LinkDown(node) => {
                self.isolated[node] = true;
                self.link_down[node] = true;
            }
            Fault::GatewayLost(node) => self.gateway_lost[node] = true,
            Fault::Stun { node, clock_runs } => {
                self.stunned[node] = true;
                self.clock_stopped[node] |= !clock_runs;
            }
            Fault::Frozen(node) => self.frozen[node] = true,
            Fault::Down { node, .. } => self.down[node] = true,
            Fault::SupervisorDown(node) => self.supervisor_down[node] = true,
            Fault::HaproxyDown(node) => self.haproxy_down[node] = true,
            Fault::HaproxyHung(node) => self.haproxy_hung[node] = true,
            Fault::Slow(node) => self.slow[node] = true,
            Fault::Failing(node) => self.failing[node] = true,
        }
    }

    /// Whether frames (ARP, relayed packets) pass from one node to another.
    pub fn frames(&self, from: usize, to: usize) -> bool {
        !self.isolated[from] && !self.isolated[to] && !self.frame_cut[from][to]
    }

    /// Whether datagrams of the peer channel pass from one node to another, as far as cuts go.
    pub fn datagrams(&self, from: usize, to: usize) -> bool {
        self.frames(from, to) && !self.peer_cut[from][to]
    }

    /// Whether an ARP request of one node to another's kernel is answered.
    pub fn answers(&self, asker: usize, kernel: usize) -> bool {
        self.frames(asker, kernel) && self.frames(kernel, asker) && !self.down[kernel] && !self.stunned[kernel]
    }

    /// Whether two nodes can talk freely and both run.
    pub fn whole(&self, a: usize, b: usize) -> bool {
        let runs = |n: usize| !self.down[n] && !self.stunned[n] && !self.frozen[n] && !self.supervisor_down[n];
        self.calm() && runs(a) && runs(b) && self.datagrams(a, b) && self.datagrams(b, a)
    }

    /// Whether datagrams that are not cut arrive soon and in order.
    pub fn calm(&self) -> bool {
        self.loss == 0 && self.jitter == 0
    }
}
