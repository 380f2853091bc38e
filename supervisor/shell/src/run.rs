//! The one loop: events in, `step`, commands out to the shells.
//!
//! Nothing in this loop waits for the world. A shell that is slow delays its own commands only; a shell whose queue is full has
//! its command refused as a failed deed, which the core tries again.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};
use trilith_core::command::{Accepted, Command, Refused};
use trilith_core::config::{NodeId, ServiceId, Settings};
use trilith_core::decision::{Decision, describe, describe_accepted, describe_mac, describe_refused};
use trilith_core::event::{Event, Probe, Request, Unit};
use trilith_core::node::Node;
use trilith_core::status::{Channel, DecisionStatus, Status};
use trilith_core::time::Time;
use trilith_core::wire::Session;

use crate::alarm::Alarm;
use crate::control::{self, Asked};
use crate::net::tunnel::Tunnels;
use crate::trial::Trial;
use crate::{disk, firstboot, front, haproxy, net, notices, notify, paths, peers, support, systemd, utc, version};

/// Events that may wait for the loop; a shell that finds the queue full waits.
const EVENTS: usize = 512;
/// Decisions that `status` shows.
const DECISIONS: usize = 64;
/// How long a supervisor that is told to stop waits for its successors.
const STOP_PATIENCE: Duration = Duration::from_millis(500);
/// At a boot systemd hears that the supervisor is ready when this node is fit, or after so long. Whatever gives the VIP to nobody
/// (SSH, logins, names, time, the coordinator) is ordered after that, and leaves the processor to HAProxy's start meanwhile.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// Events that are handled before the clock is read again and commands go out.
const BATCH: usize = 32;

/// Runs the supervisor until it is told to stop (SIGTERM, SIGINT). VIPs are handed over first; where nobody can take one, its
/// address is left to the kernel-side fence. HAProxy and the relay rules stay: a restart of the supervisor is not noticed.
///
/// # Errors
/// When the configuration, the secret or the node's name is missing or wrong, or the kernel refuses what every decision needs.
pub async fn supervise(config: PathBuf, node: Option<String>) -> Result<()> {
    let notify = notify::Notify::from_env().context("NOTIFY_SOCKET")?;
    stay_in_memory();
    match Trial::count_start(paths::TRIAL.as_ref(), &config) {
        Ok(None) => {}
        Ok(Some(why)) => warn!("{why}"),
        Err(error) => warn!("the starts with a document on trial are not counted: {error:#}"),
    }
    let state = disk::load(&config, node.as_deref())?;
    let settings = Arc::new(state.settings);
    let me = state.me;
    let session = Session(u64::from_be_bytes(random()?));
    let (events_tx, mut events) = mpsc::channel(EVENTS);
    let (requests_tx, mut requests) = mpsc::channel(control::MAX_CONNECTIONS);
    let (tunnels_tx, tunnels) = watch::channel(Tunnels::default());
    let mut shells = Shells {
        net: Arc::new(net::start(settings.clone(), me, events_tx.clone(), tunnels).await?),
        peers: peers::start(&settings, me, &state.secret, session, events_tx.clone(), tunnels_tx)?,
        haproxy: Arc::new(haproxy::start(settings.clone(), me, events_tx.clone()).await?),
        front: front::start(&settings, haproxy::master(), events_tx.clone()),
        systemd: systemd::start(&units(&settings), events_tx.clone()),
        disk: disk::start(events_tx.clone()),
        overflow: Vec::new(),
    };
    control::start(paths::CONTROL_SOCKET.as_ref(), requests_tx)?;

    let clock = Clock(Instant::now());
    let mac = shells.net.own_mac();
    let mut run = Run {
        node: Node::new(settings.clone(), me, session, state.record, mac, clock.now()).of_version(version::running()),
        settings,
        clock,
        decisions: VecDeque::with_capacity(DECISIONS),
        tickets: Vec::new(),
        next_ticket: 0,
        commands: Vec::new(),
        inactive: BTreeSet::new(),
        haproxy_ran: None,
    };
    info!(node = run.settings.node_name(me), set = run.settings.set.name, "supervisor starts");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let watchdog = notify.watchdog().map_or(Duration::from_secs(3600), |every| every / 3);
    let mut fed = Instant::now();
    let mut alarm = Alarm::new()?;
    run.step(Event::Timer, &mut shells);
    let ready_by = Instant::now() + READY_WITHIN;
    let mut ready = false;
    let mut stop_by = None;
    while stop_by.is_none_or(|by| Instant::now() < by && run.node.answers()) {
        if fed.elapsed() >= watchdog {
            notify.alive();
            fed = Instant::now();
        }
        if !ready && (run.node.is_fit() || run.haproxy_ran == Some(true) || Instant::now() >= ready_by) {
            notify.ready();
            ready = true;
        }
        // A beat comes long before and feeds it, too; this is for a node without peers.
        let wake = run.clock.instant(run.node.deadline()).min(fed + watchdog * 2);
        let wake = if ready { wake } else { wake.min(ready_by) };
        alarm.set(stop_by.map_or(wake, |by| wake.min(by)))?;
        let mut first = None;
        let woken = tokio::select! {
            biased;
            _ = terminate.recv() => Woken::Stop,
            _ = interrupt.recv() => Woken::Stop,
            Some(event) = events.recv() => {
                first = Some(event);
                Woken::Event
            }
            Some((request, reply)) = requests.recv() => Woken::Request(request, reply),
            rung = alarm.rings() => rung.map(|()| Woken::Alarm)?,
        };
        shells.peers.catch_up();
        for event in first.into_iter().chain(std::iter::from_fn(|| events.try_recv().ok())).take(BATCH) {
            run.take(event, &mut shells);
        }
        match woken {
            Woken::Stop => stop(&mut run, &mut shells, &mut stop_by, &notify),
            Woken::Event => {}
            Woken::Request(request, reply) => run.serve(request, reply, &mut shells),
            Woken::Alarm => run.step(Event::Timer, &mut shells),
        }
        for event in std::mem::take(&mut shells.overflow) {
            run.step(event, &mut shells);
        }
    }
    info!("supervisor stops: the relay rules and HAProxy stay");
    Ok(())
}

/// The first request to stop hands the VIPs over; a second one changes nothing.
fn stop(run: &mut Run, shells: &mut Shells, by: &mut Option<Instant>, notify: &notify::Notify) {
    if by.is_none() {
        notify.stopping();
        *by = Some(Instant::now() + STOP_PATIENCE);
        run.step(Event::Stop, shells);
    }
}

/// Why the loop runs.
enum Woken {
    Stop,
    Event,
    Request(control::Request, oneshot::Sender<control::Response>),
    Alarm,
}

/// The state of the loop.
struct Run {
    node: Node,
    settings: Arc<Settings>,
    clock: Clock,
    decisions: VecDeque<(Time, String)>,
    tickets: Vec<(u64, Request, oneshot::Sender<control::Response>)>,
    next_ticket: u64,
    commands: Vec<Command>,
    /// Services whose units are not active.
    inactive: BTreeSet<ServiceId>,
    /// Whether HAProxy ran when this process began, once that is known: a restart, after which nothing waits for anything.
    haproxy_ran: Option<bool>,
}

impl Run {
    fn take(&mut self, event: Event, shells: &mut Shells) {
        if let Event::Unit { unit: Unit::Haproxy, active } = event {
            self.haproxy_ran.get_or_insert(active);
        }
        match event {
            Event::Unit { unit: Unit::Haproxy, active: true } => shells.haproxy.started(),
            Event::Unit { unit: Unit::Service(id), active: true } => _ = self.inactive.remove(&id),
            Event::Unit { unit: Unit::Service(id), active: false } => _ = self.inactive.insert(id),
            _ => {}
        }
        self.step(event, shells);
    }

    fn step(&mut self, event: Event, shells: &mut Shells) {
        let mut commands = std::mem::take(&mut self.commands);
        self.node.step(self.clock.now(), event, &mut commands);
        for command in commands.drain(..) {
            match command {
                Command::Log(decision) => self.log(&decision),
                Command::Answer { ticket, answer } => self.answer(ticket, answer),
                other => shells.dispatch(other),
            }
        }
        self.commands = commands;
    }

    fn log(&mut self, decision: &Decision) {
        let text = describe(decision, &self.settings);
        match decision {
            Decision::Failed { .. } | Decision::Conflict { .. } | Decision::Gap { .. } => warn!("{text}"),
            _ => info!("{text}"),
        }
        if self.decisions.len() == DECISIONS {
            self.decisions.pop_front();
        }
        self.decisions.push_back((self.clock.now(), text));
    }

    fn answer(&mut self, ticket: u64, answer: Result<Accepted, Refused>) {
        let Some(at) = self.tickets.iter().position(|(number, ..)| *number == ticket) else { return };
        let (_, request, reply) = self.tickets.swap_remove(at);
        let response = match answer {
            Ok(accepted) => control::Response::done(describe_accepted(accepted, request, &self.settings)),
            Err(Refused::TimedOut) => control::Response::timed_out(describe_refused(Refused::TimedOut, &self.settings)),
            Err(refused) => control::Response::refused(describe_refused(refused, &self.settings)),
        };
        // The operator may have gone; what was asked is done all the same.
        let _ = reply.send(response);
    }

    fn serve(&mut self, request: control::Request, reply: oneshot::Sender<control::Response>, shells: &mut Shells) {
        match request.resolve(&self.settings) {
            Ok(Asked::Status) => {
                let mut status = self.status();
                status.channel = Some(channel(shells.peers.stats()));
                status.alarms.extend(strangers(&status, &shells.peers.strangers()));
                match shells.net.tunnels() {
                    Ok(nodes) => {
                        status.relay.tunnels =
                            nodes.into_iter().map(|node| self.settings.node_name(node).to_owned()).collect()
                    }
                    Err(why) => status.alarms.push(no_tunnel(&why)),
                }
                let (haproxy, net) = (shells.haproxy.clone(), shells.net.clone());
                let (settings, inactive) = (self.settings.clone(), self.inactive.clone());
                tokio::spawn(async move {
                    let mut status = with_flows(status, &haproxy, net).await;
                    haproxy::add_alarms(&mut status, &settings, &inactive);
                    let _ = reply.send(control::Response::status(status));
                });
            }
            Ok(Asked::Power { deed, node, force }) => {
                let status = self.status();
                let node = node.map_or(status.node.as_str(), |node| self.settings.node_name(node)).to_owned();
                let refusal = deed.refusal(&status, &node, force);
                tokio::spawn(async move {
                    let result = match refusal {
                        Some(why) => Err(why),
                        None => systemd::end_machine(deed.target()).await.map(|()| deed.begun(&format!("node {node}"))),
                    };
                    let _ = reply.send(result.map_or_else(control::Response::refused, control::Response::done));
                });
            }
            Ok(Asked::SupportBundle) => {
                tokio::spawn(async move {
                    let result = support::by_unit().await;
                    let _ = reply.send(result.map_or_else(control::Response::refused, control::Response::done));
                });
            }
            Ok(Asked::Certificate { service, pem }) => {
                let haproxy = shells.haproxy.clone();
                tokio::spawn(async move {
                    let result = haproxy.install(service, pem).await;
                    let _ = reply.send(result.map_or_else(control::Response::refused, control::Response::done));
                });
            }
            Ok(Asked::Reset) => {
                tokio::spawn(async move {
                    let result = disk::aside(firstboot::want_reset).await;
                    let _ = reply.send(result.map_or_else(control::Response::refused, control::Response::done));
                });
            }
            Ok(Asked::Order(request)) => {
                self.next_ticket += 1;
                self.tickets.push((self.next_ticket, request, reply));
                self.step(Event::Operator { ticket: self.next_ticket, request }, shells);
            }
            Err(response) => _ = reply.send(response),
        }
    }

    fn status(&self) -> Status {
        let now = self.clock.now();
        let mut status = self.node.status(now);
        status.uptime_ms = now.since(Time::ZERO).as_millis() as u64;
        let decisions = self.decisions.iter();
        status.decisions = decisions
            .map(|(at, text)| DecisionStatus { ago_ms: now.since(*at).as_millis() as u64, text: text.clone() })
            .collect();
        status
    }
}

/// Of nodes that are not heard: those that do speak, but not as one of this set does.
fn strangers(status: &Status, nodes: &[NodeId]) -> Vec<String> {
    let nodes = nodes.iter().map(|node| &status.nodes[usize::from(node.0)]).filter(|node| !node.heard);
    nodes
        .map(|node| {
            let name = &node.name;
            format!(
                "what comes from node {name}'s address is sealed with another secret or set name: correct its first-boot data, \
                 `trilith node reset --yes` there, and reboot it"
            )
        })
        .collect()
}

fn no_tunnel(why: &str) -> String {
    format!(
        "the network drops packets with clients' addresses between nodes, and there is no tunnel ({why}): connections break when a \
         VIP moves. Allow the nodes to send from any address (SpoofGuard, IP source guard, clean-traffic)"
    )
}

fn channel(stats: peers::Stats) -> Channel {
    let refused = stats.forged + stats.replayed + stats.malformed + stats.thrown_away;
    let peers::Stats { sent, detoured, not_sent, received, .. } = stats;
    Channel { sent, detoured, not_sent, received, refused }
}

async fn with_flows(mut status: Status, haproxy: &haproxy::Handle, net: Arc<net::Handle>) -> Status {
    let rivals = net.rivals();
    match haproxy.flows().await {
        Ok(mut flows) => {
            // Whoever changes rules of nftables, in whatever process, has the kernel hold up who asks for them.
            match disk::aside(move || net.relayed_packets().map_err(|error| format!("{error:#}"))).await {
                Ok(packets) => flows.relayed = packets,
                Err(why) => status.alarms.push(format!("relayed packets are not counted: {why}")),
            }
            status.flows = Some(flows);
            if haproxy::master().is_full().await {
                status
                    .alarms
                    .push("HAProxy has as many connections as it may: new ones wait until some end".to_owned());
            }
        }
        Err(error) => status.alarms.push(format!("HAProxy tells nothing of its flows: {error:#}")),
    }
    status.haproxy_problem = haproxy.problem();
    status.alarms.extend(status.haproxy_problem.clone());
    status.alarms.extend(rivals.into_iter().map(|(address, mac)| {
        format!(
            "machine {} has the address of node {} ({address}), too: give it another",
            describe_mac(mac),
            status.node
        )
    }));
    if let Some(now) = utc::now_if_right(paths::CLOCK_IS_RIGHT.as_ref()) {
        status.alarms.extend(haproxy.ending(now));
    }
    status.alarms.extend(notices::read(paths::NOTICES.as_ref()).into_iter().map(|notice| notice.text));
    status
}

/// The core's time is the time since the supervisor's start.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn now(self) -> Time {
        Time(self.0.elapsed().as_micros() as u64)
    }

    fn instant(self, time: Time) -> Instant {
        self.0 + time.since(Time::ZERO)
    }
}

/// All parts of the world that the loop acts on.
struct Shells {
    net: Arc<net::Handle>,
    peers: peers::Handle,
    haproxy: Arc<haproxy::Handle>,
    front: front::Handle,
    systemd: systemd::Handle,
    disk: disk::Handle,
    /// Refusals of shells whose queue was full, to be handed to the core next.
    overflow: Vec<Event>,
}

impl Shells {
    fn dispatch(&mut self, command: Command) {
        let (queue, name) = match &command {
            Command::Broadcast(heartbeat) => return self.peers.broadcast(heartbeat),
            Command::Hold { .. } | Command::Release { .. } | Command::Announce { .. } | Command::Relay(_) => {
                (&self.net.commands, "net")
            }
            Command::Probe(Probe::Front) => (&self.front.commands, "front"),
            Command::Probe(_) => (&self.net.commands, "net"),
            Command::Backend { .. } => (&self.haproxy.commands, "haproxy"),
            Command::Start(_) | Command::Restart(_) => (&self.systemd.commands, "systemd"),
            Command::Persist(_) => (&self.disk.commands, "disk"),
            Command::Answer { .. } | Command::Log(_) => unreachable!("the loop itself answers and logs"),
        };
        if let Err(error) = queue.try_send(command) {
            let refused = error.into_inner();
            self.overflow.extend(refusal(&refused, name));
        }
    }
}

/// What the core is told of a command that its shell had no room for.
fn refusal(command: &Command, shell: &str) -> Option<Event> {
    if let Command::Probe(probe) = command {
        return Some(Event::Probed { probe: *probe, answered: false });
    }
    let deed = command.deed()?;
    Some(Event::Done { deed, result: Err(format!("{deed:?}: the queue of {shell} is full")) })
}

/// The units that matter, by name.
fn units(settings: &Settings) -> Vec<(Unit, String)> {
    let services = settings.services.iter().enumerate();
    let services = services.filter_map(|(at, service)| {
        let id = ServiceId(at as u8);
        Some((Unit::Service(id), service.unit.clone()?))
    });
    std::iter::once((Unit::Haproxy, paths::HAPROXY_UNIT.to_owned())).chain(services).collect()
}

/// A page of this program that must be read back from a dead disk would stop the heartbeats.
fn stay_in_memory() {
    use nix::sys::mman::{MlockAllFlags, mlockall};
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE;
    if let Err(error) = mlockall(flags) {
        warn!("mlockall: {error}; heartbeats may be late while the disk is slow");
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("the kernel gives no random numbers: {error}"))?;
    Ok(bytes)
}
