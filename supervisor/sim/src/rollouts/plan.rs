//! What a seed stands for: what is brought to the set, what is wrong with it, what goes wrong meanwhile.

use trilith_core::set::{Options, Version};

use crate::rng::Rng;

/// The system that all nodes run at first.
pub const BASE: Version = Version::new(1, 0, 0);
/// The one that is brought to them.
pub const NEXT: Version = Version::new(1, 0, 1);
/// One without a fault, for afterwards.
pub const GOOD: Version = Version::new(1, 0, 2);
/// The service that is upgraded.
pub const SERVICE: &str = "web";
/// Microseconds in a second.
pub const S: u64 = 1_000_000;

/// Everything that a seed decides before the run starts.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Nodes of the set.
    pub nodes: usize,
    /// What is brought.
    pub what: What,
    /// How it behaves on each node.
    pub behaviour: Vec<Behaviour>,
    /// How it is wanted.
    pub options: Options,
    /// What goes wrong, and when (microseconds).
    pub faults: Vec<(u64, Fault)>,
    /// What operators do, and when.
    pub orders: Vec<(u64, Order)>,
    /// All faults have ended by then, in microseconds.
    pub heal: u64,
    /// A node that lost its power long ago comes back only now.
    pub late: Option<(usize, u64)>,
    /// Afterwards the same is tried again, if it is good and was banned for no fault of its own.
    pub again: bool,
    /// Something good is brought afterwards also where all went well.
    pub last: bool,
    /// There is a singleton.
    pub singleton: bool,
    /// How much each clock gains, in microseconds a second.
    pub ppm: Vec<i64>,
}

/// What is brought to the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A system.
    System,
    /// A document.
    Config,
    /// A service.
    Service,
}

/// How something new behaves on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// As it should.
    Good,
    /// The kernel panics; `panic=` restarts the machine.
    Panic,
    /// The machine hangs until its watchdog restarts it.
    Hang,
    /// The supervisor crashes again and again; `FailureAction` restarts the machine.
    Crash,
    /// The supervisor runs, but cannot serve.
    Unfit,
    /// The network is missing.
    Mute,
    /// A byte on the disk was flipped after it was checked.
    Corrupt,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// No power for so long.
    Power(usize, u64),
    /// The power fails in the middle of the next step of slot writing, for so long.
    Torn(usize, u64),
    /// The power fails, and the disk loses the name from which the new system starts.
    Lose(usize, u64),
    /// The node hears nobody for so long.
    Isolate(usize, u64),
    /// The node cannot serve for so long.
    Unfit(usize, u64),
    /// The supervisor is restarted.
    Restart(usize),
    /// Another node leads.
    Elect,
    /// The next jobs of this node fail, so many.
    Jobs(usize, u32),
    /// The node's disk is lost; the node is replaced.
    Wipe(usize),
}

/// What an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Pauses the rollout.
    Pause,
    /// Lets it go on.
    Resume,
    /// Takes it back.
    Abort,
    /// Confirms the document.
    Confirm,
    /// Brings the version of before back, once the new one is everywhere.
    Rollback,
}

impl Plan {
    /// What this seed stands for.
    pub fn of(seed: u64) -> Plan {
        let mut rng = Rng::new(seed, 7);
        let nodes = match rng.below(20) {
            0 => 2,
            1 => 5,
            _ => 3,
        };
        let what = match rng.below(10) {
            0..6 => What::System,
            6..9 => What::Config,
            _ => What::Service,
        };
        let bad = match what {
            _ if rng.chance(450) => Behaviour::Good,
            What::System => rng.pick(&[
                Behaviour::Panic,
                Behaviour::Hang,
                Behaviour::Crash,
                Behaviour::Unfit,
                Behaviour::Mute,
                Behaviour::Corrupt,
            ]),
            What::Config => rng.pick(&[Behaviour::Crash, Behaviour::Unfit, Behaviour::Mute]),
            What::Service => Behaviour::Unfit,
        };
        let only = rng.chance(400).then(|| rng.index(nodes));
        let behaviour = (0..nodes).map(|node| if only.is_none_or(|n| n == node) { bad } else { Behaviour::Good });
        let behaviour = behaviour.collect();
        let confirm = (what == What::Config && rng.chance(500)).then(|| rng.between(30, 600) as u32);
        let options = Options {
            drain_s: Some(rng.between(2, 60) as u32),
            confirm_within_s: confirm,
            force: nodes == 2 || rng.chance(20),
            ..Options::default()
        };
        let last = rng.pick(&[120, 600, 1200]) * S;
        let count = rng.pick(&[0, 1, 2, 3, 6]);
        let mut faults: Vec<(u64, Fault)> =
            (0..count).map(|_| (rng.between(5 * S, last), fault(&mut rng, nodes))).collect();
        let mut orders: Vec<(u64, Order)> = Vec::new();
        for _ in 0..rng.pick(&[0, 0, 0, 1, 3]) {
            let order = rng.pick(&[Order::Pause, Order::Resume, Order::Resume, Order::Abort]);
            orders.push((rng.between(10 * S, last), order));
        }
        if confirm.is_some() && rng.chance(600) {
            orders.push((rng.between(60 * S, last), Order::Confirm));
        }
        let singleton = rng.chance(200);
        if singleton && rng.chance(500) {
            // In touch for a moment only: enough to hear of an old success, not enough to renew it.
            let (node, at) = (rng.index(nodes), rng.between(120 * S, last));
            let first = rng.between(13 * S, 23 * S);
            let gap = rng.between(S / 3, 2 * S);
            faults.push((at, Fault::Isolate(node, first)));
            faults.push((at + first + gap, Fault::Isolate(node, 60 * S)));
        }
        let mut heal = last + 400 * S;
        // Numbers of its own: seeds without it stay what they were.
        let mut back = Rng::new(seed, 9);
        if what == What::System && back.chance(200) {
            let at = back.between(200 * S, heal);
            orders.push((at, Order::Rollback));
            if back.chance(300) {
                // For longer than what goes back is on trial, and what it goes back to after that.
                faults.push((at + back.between(0, 200 * S), Fault::Isolate(back.index(nodes), 900 * S)));
            }
            for _ in 0..back.pick(&[0, 1, 2]) {
                faults.push((back.between(at, heal), fault(&mut back, nodes)));
            }
            heal += 1_100 * S;
        }
        let late = rng.chance(60).then(|| (rng.index(nodes), rng.between(20 * S, last)));
        let ppm = (0..nodes).map(|_| rng.between(0, 10_000) as i64 - 5_000).collect();
        Plan {
            seed,
            nodes,
            what,
            behaviour,
            options,
            faults,
            orders,
            heal,
            late,
            again: rng.chance(500),
            last: rng.chance(250),
            singleton,
            ppm,
        }
    }
}

fn fault(rng: &mut Rng, nodes: usize) -> Fault {
    let node = rng.index(nodes);
    let long = rng.pick(&[1, 20, 100, 390]) * S;
    match rng.below(20) {
        0..4 => Fault::Power(node, long),
        4 => Fault::Lose(node, long.min(60 * S)),
        5..8 => Fault::Torn(node, long.min(60 * S)),
        8..11 => Fault::Isolate(node, long),
        11..14 => Fault::Unfit(node, long),
        14..16 => Fault::Restart(node),
        16 | 17 => Fault::Elect,
        18 => Fault::Jobs(node, rng.between(1, 4) as u32),
        _ => Fault::Wipe(node),
    }
}
