//! What a seed stands for: the size of the set, the network's habits, the faults and when they strike and end.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use trilith_core::config::{Health, LeaseBounds, Lone, Mode, Node, NodeId, Service, Set, Settings, Vip, VipId};
use trilith_core::event::Request;

use crate::rng::Rng;

/// The most nodes of a simulated set.
pub const NODES: usize = 3;
/// The most VIPs of a simulated set.
pub const VIPS: usize = 2;

/// Everything that a seed decides before the run starts. Smaller decisions are drawn while it runs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// The set's configuration.
    pub settings: Arc<Settings>,
    /// How much each clock gains, in microseconds a second.
    pub ppm: [i64; NODES],
    /// When each machine is switched on, in microseconds.
    pub start: [u64; NODES],
    /// The faults, in the order in which they strike.
    pub faults: Vec<Strike>,
    /// What operators ask for, of which node, and when.
    pub requests: Vec<(u64, usize, Request)>,
    /// When a supervisor is told to end, some time before it does.
    pub stops: Vec<(u64, usize)>,
    /// When somebody foreign claims a VIP in ARP.
    pub poison: Vec<(u64, VipId)>,
    /// All faults but the lasting ones have ended by then, in microseconds.
    pub heal: u64,
    /// What happens once everything is well again.
    pub epilogue: Option<Epilogue>,
    /// Datagrams are really sealed and opened.
    pub sealed: bool,
    /// How often somebody replays old datagrams or sends forged ones, in each simulated second.
    pub attacks_per_s: u64,
    /// Delay of a datagram, in microseconds: at the least, and how much more at the most.
    pub delay_us: (u64, u64),
}

/// What happens once everything is well again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// An operator moves a VIP, and nobody may notice.
    Move,
    /// Somebody foreign claims a VIP, and the clients must soon know better.
    Poison,
}

/// A fault and its time.
#[derive(Clone, Copy, Debug)]
pub struct Strike {
    /// From when on, in microseconds.
    pub from: u64,
    /// Until when, in microseconds; [`LASTING`] when it outlives the heal.
    pub until: u64,
    /// What.
    pub fault: Fault,
}

/// The end of a fault that does not heal.
pub const LASTING: u64 = u64::MAX;

/// What can go wrong, for a while or for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// All links lose, delay, reorder and duplicate datagrams.
    Weather {
        /// Lost, of 1,000.
        loss: u64,
        /// Delayed by up to so many microseconds more.
        jitter: u64,
        /// Sent twice, of 1,000.
        twice: u64,
    },
    /// Nothing passes from one node to another; with `peer` only the peer channel is cut, ARP and relayed packets pass.
    OneWay {
        /// From here,
        from: usize,
        /// to there.
        to: usize,
        /// Datagrams of the peer channel only.
        peer: bool,
    },
    /// As [`Fault::OneWay`], in both directions.
    Cut {
        /// One end.
        a: usize,
        /// The other.
        b: usize,
        /// Datagrams of the peer channel only.
        peer: bool,
    },
    /// The node's uplink is dead, its carrier still there: no peer, no client, no gateway.
    Isolated(usize),
    /// The node's carrier is gone.
    LinkDown(usize),
    /// The gateway does not answer this node.
    GatewayLost(usize),
    /// The whole machine stands still, as under a snapshot; its clock with it, unless `clock_runs`.
    Stun {
        /// Which.
        node: usize,
        /// Its clock has gone on when it comes back.
        clock_runs: bool,
    },
    /// The supervisor stands still; kernel, HAProxy and clock go on.
    Frozen(usize),
    /// The machine is off.
    Down {
        /// Which.
        node: usize,
        /// What its disk holds when it comes back.
        disk: Disk,
    },
    /// The supervisor is dead; kernel and HAProxy go on.
    SupervisorDown(usize),
    /// HAProxy is dead and cannot be started.
    HaproxyDown(usize),
    /// HAProxy hangs until somebody restarts it.
    HaproxyHung(usize),
    /// Commands take long.
    Slow(usize),
    /// Commands fail now and then.
    Failing(usize),
}

/// What a disk holds after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// What was last written.
    Kept,
    /// What was written some time before: a machine snapshot was rolled back.
    RolledBack,
    /// Nothing.
    Lost,
}

impl Plan {
    /// What this seed stands for.
    pub fn of(seed: u64) -> Plan {
        let mut rng = Rng::new(seed, 1);
        let nodes = if rng.chance(900) { 3 } else { rng.pick(&[1, 2]) };
        let settings = settings(&mut rng, nodes);
        let mut plan = Plan {
            seed,
            ppm: std::array::from_fn(|_| skew(&mut rng)),
            start: std::array::from_fn(|_| 0),
            faults: Vec::new(),
            requests: Vec::new(),
            stops: Vec::new(),
            poison: Vec::new(),
            heal: rng.between(1_200_000, 2_600_000),
            epilogue: rng.pick(&[
                None,
                None,
                None,
                None,
                Some(Epilogue::Move),
                Some(Epilogue::Move),
                Some(Epilogue::Poison),
            ]),
            sealed: rng.chance(SEALED_PERMILLE),
            attacks_per_s: if rng.chance(400) { rng.between(5, 200) } else { 0 },
            delay_us: rng.pick(&[(20, 30), (50, 200), (100, 1000), (1000, 4000)]),
            settings,
        };
        let late = rng.pick(&[0, 20_000, 300_000]);
        for start in &mut plan.start {
            *start = rng.between(0, late);
        }
        plan.draw_faults(&mut rng, nodes);
        if nodes == NODES && rng.chance(50) {
            plan.draw_forgetful_voter(&mut rng);
        }
        plan.draw_requests(&mut rng, nodes);
        plan.draw_stops(&mut rng);
        plan
    }

    /// How many nodes the set has.
    pub fn nodes(&self) -> usize {
        self.settings.nodes.len()
    }

    /// How many VIPs the set has.
    pub fn vips(&self) -> usize {
        self.settings.vips.len()
    }

    fn draw_faults(&mut self, rng: &mut Rng, nodes: usize) {
        let first = rng.pick(&[0, 700_000, 900_000]);
        // Many faults at once find odd interleavings, a single one in calm finds what storms hide.
        let count = rng.pick(&[0, 1, 1, 2, 3, 4, 6, 9]);
        for _ in 0..count {
            let from = rng.between(first, self.heal - 100_000);
            let span = rng.pick(&[20_000, 100_000, 250_000, 600_000, 1_500_000]);
            let until = (from + rng.between(span / 4, span)).min(self.heal);
            let fault = draw(rng, nodes);
            // A machine that is off has to boot again; an instant is not a power cut.
            self.faults.push(Strike { from, until: until.max(from + 5_000), fault });
            if rng.chance(60) {
                self.power_loss(rng, nodes, from);
            }
        }
        if rng.chance(250) {
            self.draw_lasting(rng, nodes);
        }
        if rng.chance(100) {
            let vip = VipId(rng.below(self.vips() as u64) as u8);
            self.poison.push((rng.between(first, self.heal), vip));
        }
        self.faults.sort_by_key(|strike| strike.from);
        self.poison.sort_by_key(|poison| poison.0);
    }

    fn power_loss(&mut self, rng: &mut Rng, nodes: usize, from: u64) {
        for node in 0..nodes {
            let until = (from + rng.between(20_000, 400_000)).min(self.heal);
            self.faults.push(Strike { from, until, fault: Fault::Down { node, disk: Disk::Kept } });
        }
    }

    fn draw_lasting(&mut self, rng: &mut Rng, nodes: usize) {
        let from = rng.between(600_000, self.heal);
        let (node, other) = (rng.index(nodes), rng.index(nodes));
        let peer = rng.chance(500);
        let mut faults = vec![match rng.below(10) {
            0 | 1 => Fault::Down { node, disk: Disk::Kept },
            2 | 3 if node != other => Fault::OneWay { from: node, to: other, peer },
            4 if node != other => Fault::Cut { a: node, b: other, peer },
            5 => Fault::Isolated(node),
            6 => Fault::LinkDown(node),
            7 => Fault::Frozen(node),
            8 => Fault::GatewayLost(node),
            _ => Fault::HaproxyDown(node),
        }];
        if rng.chance(200) && node != other && matches!(faults[0], Fault::Down { .. }) {
            faults.push(Fault::Down { node: other, disk: Disk::Kept });
        }
        if rng.chance(100) {
            // The peer channel of one node is cut in both directions, while its kernel still answers.
            faults = (0..nodes).filter(|b| *b != node).map(|b| Fault::Cut { a: node, b, peer: true }).collect();
        }
        for fault in faults {
            self.faults.push(Strike { from, until: LASTING, fault });
        }
    }

    /// What chance alone rarely brings together: an owner whose lease is long, since it stood still before; one voter left, the
    /// other being cut off; that voter starts anew, and then the owner is cut off too.
    fn draw_forgetful_voter(&mut self, rng: &mut Rng) {
        let owner = usize::from(self.settings.vips[0].prefer.0);
        let voter = (owner + 1 + rng.index(2)) % NODES;
        let third = NODES - owner - voter;
        let start = rng.between(700_000, 800_000);
        let cut = start + rng.between(150_000, 250_000);
        let end = cut + rng.between(250_000, 400_000);
        let blink = rng.between(1_000, 30_000);
        self.heal = self.heal.max(end + 500_000);
        let mut strike = |from, until, fault| self.faults.push(Strike { from, until, fault });
        strike(start, start + rng.between(60_000, 110_000), Fault::Frozen(owner));
        strike(cut, end + 500_000, Fault::Cut { a: owner, b: third, peer: true });
        strike(end, end + blink, Fault::SupervisorDown(voter));
        strike(end + rng.between(0, 30_000), end + 400_000, Fault::Isolated(owner));
        self.faults.sort_by_key(|strike| strike.from);
    }

    fn draw_requests(&mut self, rng: &mut Rng, nodes: usize) {
        for _ in 0..rng.pick(&[0, 0, 1, 2, 4]) {
            let at = rng.between(500_000, self.heal);
            let (asked, node) = (rng.index(nodes), NodeId(rng.index(nodes) as u8));
            let vip = VipId(rng.below(self.vips() as u64) as u8);
            let request = match rng.below(4) {
                0 | 1 => Request::Move { vip, to: node },
                2 => Request::Drain { node, drained: true },
                _ => Request::Drain { node, drained: false },
            };
            self.requests.push((at, asked, request));
        }
        self.requests.sort_by_key(|request| request.0);
    }

    /// Half of all supervisors that end, and of all machines that go down, are told so before.
    fn draw_stops(&mut self, rng: &mut Rng) {
        for strike in &self.faults {
            if let Fault::SupervisorDown(node) | Fault::Down { node, .. } = strike.fault
                && rng.chance(500)
            {
                self.stops.push((strike.from.saturating_sub(rng.between(1_000, 400_000)), node));
            }
        }
    }
}

fn draw(rng: &mut Rng, nodes: usize) -> Fault {
    let node = rng.index(nodes);
    let other = (node + 1 + rng.index(nodes.max(2) - 1)) % nodes;
    let peer = rng.chance(500);
    match rng.below(18) {
        0 | 1 => Fault::Weather {
            loss: rng.pick(&[0, 20, 100, 300]),
            jitter: rng.pick(&[0, 2_000, 20_000, 60_000]),
            twice: rng.pick(&[0, 100, 500]),
        },
        2 | 3 if nodes > 1 => Fault::OneWay { from: node, to: other, peer },
        4 if nodes > 1 => Fault::Cut { a: node, b: other, peer },
        5 | 6 => Fault::Isolated(node),
        7 => Fault::LinkDown(node),
        8 => Fault::GatewayLost(node),
        9 => Fault::Stun { node, clock_runs: true },
        10 => Fault::Stun { node, clock_runs: false },
        11 => Fault::Frozen(node),
        12 => Fault::Down { node, disk: Disk::Kept },
        13 => Fault::Down { node, disk: rng.pick(&[Disk::Kept, Disk::RolledBack, Disk::Lost]) },
        14 => Fault::SupervisorDown(node),
        15 => Fault::HaproxyDown(node),
        16 => Fault::HaproxyHung(node),
        _ => rng.pick(&[Fault::Slow(node), Fault::Failing(node)]),
    }
}

/// How wrong a clock is. Clocks that differ by as much as they may are where margins are needed.
fn skew(rng: &mut Rng) -> i64 {
    match rng.below(3) {
        0 => -MAX_PPM,
        1 => MAX_PPM,
        _ => rng.between(0, 2 * MAX_PPM as u64) as i64 - MAX_PPM,
    }
}

/// A set of this many nodes with one VIP that node 0 should own, as documents usually have it.
pub fn settings_of(nodes: usize) -> Arc<Settings> {
    Arc::new(build(nodes, vec![NodeId(0)], Lone::Serve, None, Duration::ZERO))
}

fn settings(rng: &mut Rng, nodes: usize) -> Arc<Settings> {
    let vips = if rng.chance(800) { 1 } else { VIPS };
    let lone = if rng.chance(750) { Lone::Serve } else { Lone::Release };
    let rebalance_after = rng.pick(&[None, None, Some(Duration::from_secs(1))]);
    let preferred = (0..vips).map(|_| NodeId(rng.index(nodes) as u8)).collect();
    let stun = rng.pick(&[Duration::ZERO, Duration::from_millis(2500)]);
    Arc::new(build(nodes, preferred, lone, rebalance_after, stun))
}

fn build(
    nodes: usize,
    preferred: Vec<NodeId>,
    lone: Lone,
    rebalance_after: Option<Duration>,
    stun: Duration,
) -> Settings {
    let vips = preferred.len();
    let address = |last: u8| IpAddr::V4(Ipv4Addr::new(10, 77, 0, last));
    Settings {
        set: Set {
            name: "sim".into(),
            secret_file: String::new(),
            peer_port: 7077,
            lone,
            rebalance_after,
            stun,
            lease: LeaseBounds {
                heartbeat: Duration::from_millis(40),
                min: Duration::from_millis(120),
                max: Duration::from_millis(500),
            },
        },
        nodes: (0..nodes)
            .map(|n| Node {
                name: ["a", "b", "c"][n].into(),
                address: address(11 + n as u8),
                address6: None,
                zone: None,
            })
            .collect(),
        vips: preferred
            .iter()
            .enumerate()
            .map(|(v, prefer)| Vip {
                name: format!("vip{v}"),
                address: address(100 + v as u8),
                prefix: 24,
                interface: "eth0".into(),
                prefer: *prefer,
            })
            .collect(),
        services: vec![Service {
            name: "portal".into(),
            vips: (0..vips).map(|v| VipId(v as u8)).collect(),
            port: 80,
            mode: Mode::Http,
            backend_port: 8080,
            health: Health::Connect,
            unit: None,
            tls_certificate: None,
            drain_deadline: Duration::from_secs(1),
        }],
        fingerprint: 0x5eed,
    }
}

/// The most that a clock gains or loses, in microseconds a second. Real ones stay far below.
const MAX_PPM: i64 = 2000;
/// How many seeds of 1,000 seal and open every datagram for real, which costs more than all the rest.
const SEALED_PERMILLE: u64 = 10;
