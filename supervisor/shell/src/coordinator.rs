//! The coordinator: what must never be wrong, decided slowly and surely, in a process of its own.
//!
//! ```text
//!   trilith status, upgrade, config ──▶ coordinator.sock ─┐           ┌─▶ trilith-slot@… (systemd): slots, the ESP
//!                                                         ▼           │
//!   peers: Raft, bundles, "do you see me serve?" ◀──▶ coordinator ────┼─▶ control.sock: drain, hand over
//!   (TCP, mutual TLS)                                     ▲           └─▶ haproxy.service: end softly
//!                                     status of the supervisor
//! ```
//!
//! The supervisor decides who owns a VIP, in milliseconds, and never waits for a disk; this one writes to disks, moves bundles and
//! waits for majorities. They share nothing but a socket, so neither can hold the other up, and a rollout that goes wrong takes no
//! heartbeat with it. The price is a second process of a few MiB.
//!
//! It remembers nothing that matters: each round looks at the world ([`sight`]), lets the pure [`Agent`] decide, and begins what it
//! says ([`deeds`]).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{info, warn};
use trilith_core::config::Service;
use trilith_core::plant::Planted;
use trilith_core::rollout::{Agent, Sight};
use trilith_core::set::State;
use trilith_core::time::Time;
use trilith_raft::{Inbound, Options, Replica, Rhythm};

use crate::control::MAX_CONNECTIONS;
use crate::{disk, notices, notify, paths};

mod deeds;
mod drain;
mod life;
mod peers;
mod record;
pub mod server;
mod service;
mod sight;

use deeds::Deeds;
use life::Life;
#[doc(hidden)]
pub use peers::{Answer, Claim, read};
use record::Record;
use sight::World;

/// How often the world is looked at while a rollout is under way or something runs on trial.
const BUSY: Duration = Duration::from_millis(500);
/// How often it is looked at otherwise: for the table of nodes.
const CALM: Duration = Duration::from_secs(5);
/// How long units that systemd starts with this one may take to unpack an image.
const SETTLED: Duration = Duration::from_secs(60);
/// What the names of its notices begin with.
const NOTICE: &str = "coordinator-";
/// Connections of peers that wait to be served.
const INBOUND: usize = 16;

/// Runs the coordinator until it is told to stop, or until it has to start anew with another document.
///
/// # Errors
/// When the configuration, the secret or the node's name is missing or wrong, or what is on the disk cannot be used.
pub async fn coordinate(config: PathBuf, node: Option<String>) -> Result<()> {
    let mut life = Life::begin(paths::COORDINATOR_LIFE.as_ref(), paths::NOTICES.as_ref());
    let result = work(config, node, &mut life).await;
    life.end(result.as_ref().err());
    result
}

async fn work(config: PathBuf, node: Option<String>, life: &mut Life) -> Result<()> {
    let notify = notify::Notify::from_env().context("NOTIFY_SOCKET")?;
    let state = disk::load(&config, node.as_deref())?;
    let settings = Arc::new(state.settings);
    let (me, name) = (state.me, settings.node_name(state.me).to_owned());
    let (inbound_tx, inbound) = mpsc::channel::<Inbound>(INBOUND);
    let rhythm = Rhythm::of(&settings);
    let options = Options {
        directory: PathBuf::from(paths::RAFT),
        settings: settings.clone(),
        me,
        secret: state.secret,
        rhythm,
        // A peer that finds the queue full is turned away, and comes again.
        blocks: Some(Box::new(move |connection| _ = inbound_tx.try_send(connection))),
    };
    let replica = Arc::new(Replica::start(options).await?);
    let record = Record::read(paths::COORDINATOR.as_ref())?;
    service::mend(&record, &settings, &name).await;
    let mut world = World::new(&settings, &name, &config, record);
    let mut deeds = Deeds::new(replica.clone(), settings.clone(), me, config);
    let (asked_tx, mut asked) = mpsc::channel(MAX_CONNECTIONS);
    server::start(paths::COORDINATOR_SOCKET.as_ref(), asked_tx)?;
    tokio::spawn(peers::serve(inbound));
    let mut agent = Agent::new(&name, Planted::default());
    let (mut states, mut health) = (replica.state(), replica.health());
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let begun = Instant::now();
    // What the process before this one has told is not forgotten, but told anew or taken away.
    world.told = left(paths::NOTICES.as_ref());
    info!(node = name, set = settings.set.name, "coordinator starts");
    notify.ready();
    loop {
        // Before they are known nothing can be said of what runs; what is found in them is part of what is seen.
        let knows = world.knows_slots();
        let state = states.borrow_and_update().clone();
        let healthy = health.borrow_and_update().clone();
        world.look(&state, &replica, me).await;
        // What runs on trial from now on is for the next process to judge, which counts from its own start.
        if deeds.leaves() || world.given_up {
            info!("coordinator starts anew, with another document");
            break;
        }
        world.own.node.generation = healthy.generation;
        world.own.job = deeds.job();
        let now = Time(begun.elapsed().as_micros() as u64);
        // At the start images may still be unpacked, in a deed a service may be on its way to another version.
        let settled = begun.elapsed() > SETTLED && !deeds.busy();
        tell(life.ails(), &healthy, &state, &name, &mut world, settings.services.iter().filter(|_| settled));
        if knows {
            let sight = sight_of(&world, &state, &healthy, replica.is_leader());
            for act in agent.step(now, &sight) {
                deeds.begin(act, &state, &mut world);
            }
            deeds.found(&state, &healthy, &world);
        }
        let busy = !knows || state.rollout.is_some() || world.own.trial.is_some() || deeds.busy();
        let mut wait = if busy { BUSY } else { CALM };
        if let Some(deadline) = agent.deadline() {
            wait = wait.min(deadline.since(now).max(Duration::from_millis(20)));
        }
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = states.changed() => {}
            _ = health.changed() => {}
            () = deeds.ended(&mut world) => {}
            Some(request) = asked.recv() => deeds.serve(request, &state, &healthy, &world),
            () = tokio::time::sleep(wait) => {}
        }
    }
    drop(deeds);
    if let Some(replica) = Arc::into_inner(replica) {
        replica.shutdown().await;
    }
    Ok(())
}

fn sight_of<'a>(world: &'a World, state: &'a State, health: &trilith_raft::Health, leads: bool) -> Sight<'a> {
    let quorum = health.leader.is_some() && health.member;
    Sight { state, leads, quorum, utc: world.utc(), nodes: &world.nodes, own: &world.own }
}

/// What an operator should know becomes alarms of `trilith status` and the console, on every node. `services`: those that
/// must run in the version that this node was brought to.
fn tell<'a>(
    ails: Option<String>,
    health: &trilith_raft::Health,
    state: &State,
    me: &str,
    world: &mut World,
    services: impl Iterator<Item = &'a Service>,
) {
    let mut alarms: Vec<String> = ails.into_iter().collect();
    alarms.extend(health.alarms.iter().map(ToString::to_string));
    alarms.extend(server::concern(state));
    let blind = world.blind.as_ref();
    alarms.extend(blind.map(|why| format!("this node can't be patched, as its slots can't be read: {why}")));
    let fallback = state.nodes.get(me).and_then(|node| node.fallback.as_ref());
    alarms.extend(
        fallback.map(|fallback| format!("this node went back from version {}: {}", fallback.version, fallback.reason)),
    );
    let brought = services.filter(|service| service.unit.is_some());
    let brought = brought.filter_map(|service| Some((&service.name, world.record.services.get(&service.name)?)));
    alarms.extend(brought.filter_map(|(name, version)| crate::service::ails(name, *version)));
    if alarms != world.told && publish(paths::NOTICES.as_ref(), &world.told, &alarms) {
        world.told = alarms;
    }
}

/// The alarms that were told before.
fn left(folder: &Path) -> Vec<String> {
    let left = notices::read(folder).into_iter().filter(|notice| notice.name.starts_with(NOTICE));
    left.map(|notice| notice.text).collect()
}

/// Puts these alarms in the place of those that were told. Whether that is done; otherwise the log says why not.
fn publish(folder: &Path, told: &[String], alarms: &[String]) -> bool {
    let written = (0..alarms.len().max(told.len())).try_for_each(|place| {
        notices::write(folder, &format!("{NOTICE}{place}"), alarms.get(place).map(String::as_str))
    });
    written.inspect_err(|error| warn!("{}: {error}", folder.display())).is_ok()
}
