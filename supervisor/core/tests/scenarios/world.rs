//! A world in which nothing goes wrong but what the script says: datagrams take 1 ms, commands 0.2 ms.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use trilith_core::command::{Command, Deed};
use trilith_core::config::{NodeId, Settings, VipId, parse};
use trilith_core::decision::describe;
use trilith_core::event::{Event, Probe, Request, Unit};
use trilith_core::health::PROBE_TIMEOUT;
use trilith_core::node::Node;
use trilith_core::time::Time;
use trilith_core::wire::{Authentic, DiskRecord, Session};

/// Plays a script; returns the transcript.
///
/// # Panics
/// When the script is wrong: with the line.
pub fn play(script: &str) -> String {
    let lines = script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let lines: Vec<&str> = lines.collect();
    let set = lines.iter().find_map(|line| line.strip_prefix("set ")).unwrap_or_default();
    let mut world = World::new(set);
    for line in lines.iter().filter(|line| !line.starts_with("set ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["at", ms, deed @ ..] = &words[..] else { panic!("not `at MS …`: {line}") };
        world.run_until(ms.parse::<u64>().unwrap_or_else(|_| panic!("no number of ms: {line}")) * 1000);
        let _ = writeln!(world.transcript, "{:>9} -- {}", stamp(world.now), deed.join(" "));
        world.act(deed);
    }
    world.transcript
}

struct World {
    now: u64,
    settings: Arc<Settings>,
    nodes: Vec<Machine>,
    cuts: BTreeSet<(usize, usize)>,
    queue: BTreeMap<(u64, u64), (usize, u32, What)>,
    numbers: u64,
    transcript: String,
}

#[derive(Default)]
struct Machine {
    core: Option<Node>,
    life: u32,
    disk: DiskRecord,
    held_until: u64,
    frozen: bool,
    waiting: VecDeque<What>,
    down: BTreeSet<String>,
}

enum What {
    Event(Event),
    Do(Command),
}

impl World {
    fn new(set: &str) -> World {
        let option = |name: &str, default: &str| {
            let found = set.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or(default).to_owned()
        };
        let count = option("nodes", "3").parse::<usize>().expect("nodes=NUMBER");
        let mut document = format!(
            "[set]\nname = \"test\"\nsecret_file = \"/secret\"\nlone = \"{}\"\nrebalance_after = \"{}\"\nstun = \"{}\"\n",
            option("lone", "serve"),
            option("rebalance", "never"),
            option("stun", "0s"),
        );
        for (at, name) in ["a", "b", "c"].iter().take(count).enumerate() {
            let _ = write!(document, "[[node]]\nname = \"{name}\"\naddress = \"10.77.0.{}\"\n", 11 + at);
        }
        document += "[[vip]]\nname = \"public\"\naddress = \"10.77.0.10/24\"\ninterface = \"eth0\"\n";
        let settings = parse(&document, "scenario").expect("the scenario's configuration is valid");
        World {
            now: 0,
            settings: Arc::new(settings),
            nodes: (0..count).map(|_| Machine::default()).collect(),
            cuts: BTreeSet::new(),
            queue: BTreeMap::new(),
            numbers: 0,
            transcript: String::new(),
        }
    }

    fn act(&mut self, deed: &[&str]) {
        match deed {
            ["start", names @ ..] => self.each(names, World::start),
            ["crash", names @ ..] => self.each(names, |world, node| {
                let machine = &mut world.nodes[node];
                let (life, disk) = (machine.life + 1, machine.disk);
                *machine = Machine { life, disk, ..Machine::default() };
            }),
            ["freeze", names @ ..] => self.each(names, |world, node| world.nodes[node].frozen = true),
            ["resume", names @ ..] => self.each(names, |world, node| {
                world.nodes[node].frozen = false;
                while let Some(what) = world.nodes[node].waiting.pop_front() {
                    world.take(node, what);
                }
            }),
            ["stop", names @ ..] => self.each(names, |world, node| world.take(node, What::Event(Event::Stop))),
            ["cut", from, ">", to] => drop(self.cuts.insert((self.node(from), self.node(to)))),
            ["cut", a, b] => {
                let (a, b) = (self.node(a), self.node(b));
                self.cuts.extend([(a, b), (b, a)]);
            }
            ["mend"] => self.cuts.clear(),
            ["down", fact, names @ ..] => self.each(names, |world, node| {
                world.nodes[node].down.insert((*fact).to_owned());
                world.fact(node, fact, false);
            }),
            ["up", fact, names @ ..] => self.each(names, |world, node| {
                world.nodes[node].down.remove(*fact);
                world.fact(node, fact, true);
            }),
            ["claim"] => {
                for node in 0..self.nodes.len() {
                    let event = Event::Conflict { vip: VIP, mac: [2, 0xf0, 0, 0, 0, 1] };
                    self.later(300, node, What::Event(event));
                }
            }
            ["ask", name, what, of] => {
                let of = NodeId(self.node(of) as u8);
                let request = match *what {
                    "move" => Request::Move { vip: VIP, to: of },
                    "drain" => Request::Drain { node: of, drained: true },
                    "undrain" => Request::Drain { node: of, drained: false },
                    other => panic!("an operator cannot ask for {other:?}"),
                };
                let node = self.node(name);
                self.take(node, What::Event(Event::Operator { ticket: 1, request }));
            }
            ["alarms", names @ ..] => self.each(names, |world, node| {
                let status = world.nodes[node].core.as_ref().map(|core| core.status(Time(world.now)));
                for alarm in status.into_iter().flat_map(|status| status.alarms) {
                    world.line(node, &format!("! {alarm}"));
                }
            }),
            ["end"] => {}
            other => panic!("no such deed: {other:?}"),
        }
    }

    fn start(&mut self, node: usize) {
        let machine = &mut self.nodes[node];
        machine.life += 1;
        let session = Session(u64::from(machine.life) << 8 | node as u64);
        let (settings, me) = (Arc::clone(&self.settings), NodeId(node as u8));
        machine.core = Some(Node::new(settings, me, session, machine.disk, mac(node), Time(self.now)));
        self.fact(node, "link", true);
        self.fact(node, "haproxy", true);
        self.take(node, What::Event(Event::Timer));
    }

    fn fact(&mut self, node: usize, fact: &str, up: bool) {
        let event = match fact {
            "link" => Event::Link { vip: VIP, up },
            "haproxy" => Event::Unit { unit: Unit::Haproxy, active: up },
            "gateway" | "hold" | "relay" => return,
            other => panic!("no such fact: {other:?}"),
        };
        self.take(node, What::Event(event));
    }

    fn run_until(&mut self, end: u64) {
        loop {
            let running = self.nodes.iter().enumerate().filter(|(_, machine)| !machine.frozen);
            let wakes = running.filter_map(|(node, machine)| Some((machine.core.as_ref()?.deadline().0, node)));
            let (wake, node) = wakes.min().unwrap_or((u64::MAX, 0));
            let queued = self.queue.keys().next().map_or(u64::MAX, |key| key.0);
            let at = wake.min(queued).max(self.now);
            if at > end {
                break;
            }
            self.now = at;
            if wake <= queued {
                self.take(node, What::Event(Event::Timer));
            } else if let Some((_, (node, life, what))) = self.queue.pop_first()
                && self.nodes[node].life == life
            {
                self.take(node, what);
            }
        }
        self.now = end;
    }

    fn take(&mut self, node: usize, what: What) {
        if self.nodes[node].frozen {
            return self.nodes[node].waiting.push_back(what);
        }
        match what {
            What::Event(event) => self.step(node, event),
            What::Do(command) => {
                if let Some((deed, result)) = self.carry_out(node, command) {
                    self.step(node, Event::Done { deed, result });
                }
            }
        }
    }

    fn step(&mut self, node: usize, event: Event) {
        let Some(core) = &mut self.nodes[node].core else { return };
        let mut out = Vec::new();
        core.step(Time(self.now), event, &mut out);
        for command in out {
            self.note(node, &command);
            match command {
                Command::Broadcast(heartbeat) => {
                    for to in (0..self.nodes.len()).filter(|to| *to != node) {
                        let datagram = Authentic::vouched(NodeId(node as u8), Arc::clone(&heartbeat));
                        if self.passes(node, to) {
                            self.later(1000, to, What::Event(Event::Peer(datagram)));
                        }
                    }
                }
                Command::Probe(probe) => {
                    let answered = self.answers(node, probe);
                    let takes = if answered { 500 } else { PROBE_TIMEOUT.as_micros() as u64 };
                    self.later(takes, node, What::Event(Event::Probed { probe, answered }));
                }
                Command::Answer { .. } | Command::Log(_) => {}
                other => self.later(200, node, What::Do(other)),
            }
        }
    }

    fn carry_out(&mut self, node: usize, command: Command) -> Option<(Deed, Result<(), String>)> {
        let now = self.now;
        let machine = &mut self.nodes[node];
        let refused = |fact: &str| match machine.down.contains(fact) {
            true => Err(format!("{fact}: refused by the scenario")),
            false => Ok(()),
        };
        Some(match command {
            Command::Hold { vip, lifetime } => {
                let result = refused("hold");
                if result.is_ok() {
                    machine.held_until = now + lifetime.as_micros() as u64;
                }
                (Deed::Hold(vip), result)
            }
            Command::Release { vip } => {
                machine.held_until = 0;
                (Deed::Release(vip), Ok(()))
            }
            Command::Announce { vip } => {
                for other in (0..self.nodes.len()).filter(|other| *other != node) {
                    if self.passes(node, other) {
                        self.later(200, other, What::Event(Event::Conflict { vip, mac: mac(node) }));
                    }
                }
                (Deed::Announce(vip), Ok(()))
            }
            Command::Relay(_) => (Deed::Relay, refused("relay")),
            Command::Backend { node, .. } => (Deed::Backend(node), Ok(())),
            Command::Persist(record) => {
                machine.disk = record;
                (Deed::Persist, Ok(()))
            }
            Command::Start(unit) => (Deed::Start(unit), refused("haproxy")),
            Command::Restart(unit) => (Deed::Restart(unit), refused("haproxy")),
            Command::Broadcast(_) | Command::Probe(_) | Command::Answer { .. } | Command::Log(_) => return None,
        })
    }

    fn answers(&self, node: usize, probe: Probe) -> bool {
        let reaches = |other: usize| {
            other != node && self.nodes[other].core.is_some() && self.passes(node, other) && self.passes(other, node)
        };
        match probe {
            Probe::Front => !self.nodes[node].down.contains("haproxy"),
            Probe::Gateway => !self.nodes[node].down.contains("gateway"),
            Probe::Vip(_) => (0..self.nodes.len()).any(|n| reaches(n) && self.nodes[n].held_until > self.now),
            Probe::Kernel(peer) => reaches(usize::from(peer.0)),
        }
    }

    fn note(&mut self, node: usize, command: &Command) {
        let name = |node: NodeId| self.settings.node_name(node);
        let what = match command {
            Command::Broadcast(_) | Command::Probe(_) => return,
            Command::Log(decision) => describe(decision, &self.settings),
            Command::Hold { lifetime, .. } => format!("> hold the address for {} s", Duration::as_secs(lifetime)),
            Command::Release { .. } => "> release the address".to_owned(),
            Command::Announce { .. } => "> announce".to_owned(),
            Command::Relay(ring) => {
                let next = ring.next.map_or("nobody", name);
                let waits = if ring.waits { ", nothing is reset" } else { "" };
                format!("> relay to {next}, last hop {}, {} peers known{waits}", ring.last_hop, ring.peer_macs.len())
            }
            Command::Backend { node, state } => format!("> backends of {}: {state:?}", name(*node)),
            Command::Persist(record) => {
                format!("> persist epochs below {}, drained {}", record.epoch_ceiling, record.drained)
            }
            Command::Start(unit) => format!("> start {unit:?}"),
            Command::Restart(unit) => format!("> restart {unit:?}"),
            Command::Answer { answer, .. } => format!("> answer {answer:?}"),
        };
        self.line(node, &what);
    }

    fn line(&mut self, node: usize, what: &str) {
        let name = &self.settings.nodes[node].name;
        let _ = writeln!(self.transcript, "{:>9} {name}  {what}", stamp(self.now));
    }

    fn later(&mut self, after: u64, node: usize, what: What) {
        self.numbers += 1;
        self.queue.insert((self.now + after, self.numbers), (node, self.nodes[node].life, what));
    }

    fn passes(&self, from: usize, to: usize) -> bool {
        !self.cuts.contains(&(from, to))
    }

    fn each(&mut self, names: &[&str], deed: impl Fn(&mut World, usize)) {
        for name in names {
            deed(self, self.node(name));
        }
    }

    fn node(&self, name: &str) -> usize {
        let node = self.settings.node_named(name).unwrap_or_else(|| panic!("no node is named {name:?}"));
        usize::from(node.0)
    }
}

fn stamp(us: u64) -> String {
    format!("{}.{}", us / 1000, us % 1000 / 100)
}

fn mac(node: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, node as u8 + 1]
}

const VIP: VipId = VipId(0);
