//! Carrying out what the agent says: jobs that take minutes, and deeds on this node, one of each at a time.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::{info, warn};
use trilith_bundle::Store;
use trilith_bundle::transfer::{self, Have};
use trilith_core::config::{self, NodeId, Settings};
use trilith_core::rollout::{Act, Drain, Failure, Job, Target};
use trilith_core::set::{Ask, Bundle, Document, Kind, Release, Request, State, Version};
use trilith_core::slots::Slot;
use trilith_raft::{Health, ProposeError, Replica};

use super::record::Record;
use super::sight::{World, run_slot};
use super::{drain, peers, server, service};
use crate::control::client::ask;
use crate::control::{self, Response, successors};
use crate::slot::{self, Deed};
use crate::trial::Trial;
use crate::{disk, haproxy, paths, systemd};

/// The machine may take so long to end all that runs there: systemd kills what does not end within 15 s, or within a unit's own time.
const RESTARTS: Duration = Duration::from_secs(300);

/// What is under way.
pub struct Deeds {
    pub(super) replica: Arc<Replica>,
    pub(super) settings: Arc<Settings>,
    pub(super) me: NodeId,
    document: PathBuf,
    job: Job,
    deed: Option<(Act, AbortHandle)>,
    leaves: bool,
    ends: mpsc::UnboundedSender<End>,
    ended: mpsc::UnboundedReceiver<End>,
}

/// How something ended.
enum End {
    Job(Option<Target>, Result<(), String>),
    Deed(Act, Result<(), String>),
}

impl Deeds {
    /// Nothing is under way.
    pub fn new(replica: Arc<Replica>, settings: Arc<Settings>, me: NodeId, document: PathBuf) -> Deeds {
        let (ends, ended) = mpsc::unbounded_channel();
        Deeds { replica, settings, me, document, job: Job::Idle, deed: None, leaves: false, ends, ended }
    }

    /// How far fetching or staging is.
    pub fn job(&self) -> Job {
        self.job.clone()
    }

    /// Whether something is under way.
    pub fn busy(&self) -> bool {
        self.deed.is_some() || self.job == Job::Running
    }

    /// Whether this process has to start anew.
    pub fn leaves(&self) -> bool {
        self.leaves
    }

    /// Begins an act. What is under way already is not begun again.
    pub fn begin(&mut self, act: Act, state: &State, world: &mut World) {
        match act {
            Act::Propose(ask) => self.propose(ask, world.utc()),
            Act::Discard(Release { service: Some(name), version })
                if world.record.services.get(&name) == Some(&version) =>
            {
                // It runs from there after the next boot, too: it goes with its successor.
            }
            Act::Discard(release) => {
                let removed = Store::open(paths::BUNDLES.as_ref()).and_then(|store| store.remove(&release));
                removed.unwrap_or_else(|error| warn!("bundle {release}: {error}"));
            }
            Act::Forget => _ = world.note(|record| record.failed = None),
            Act::Fetch(release) if self.job != Job::Running => {
                let Bundle { held_by, manifest: id, .. } = state.bundles.get(&release).cloned().unwrap_or_default();
                let (replica, settings, me) = (self.replica.clone(), self.settings.clone(), self.me);
                self.start_job(None, async move {
                    let peers = (0..settings.nodes.len() as u8).map(NodeId).filter(|node| *node != me);
                    let mut why = format!("no node holds bundle {release}");
                    forget_another(&release, &id)?;
                    for peer in peers.filter(|peer| held_by.contains(settings.node_name(*peer))) {
                        match fetch(&replica, peer, &release, &id).await {
                            Ok(moved) => {
                                info!(
                                    "bundle {release} is here: {moved} bytes came from node {}",
                                    settings.node_name(peer)
                                );
                                return Ok(());
                            }
                            Err(error) => {
                                why = format!("bundle {release} from node {}: {error}", settings.node_name(peer))
                            }
                        }
                    }
                    Err(why)
                });
            }
            Act::Stage(Release { service: None, version }) if self.job != Job::Running => {
                self.start_job(Some(Target::System(version)), run_slot(Deed::Stage(version)));
            }
            // A service's image was checked when it came, and is used from where it lies.
            Act::Stage(Release { service: Some(name), version }) if self.job != Job::Running => {
                self.start_job(Some(Target::Service(name, Some(version))), async { Ok(()) });
            }
            Act::Fetch(_) | Act::Stage(_) => {}
            // The others need this node: nobody waits for connections to end.
            Act::Undrain if self.stop_draining() => self.deed(Act::Undrain, state, world),
            act if self.deed.is_none() => self.deed(act, state, world),
            _ => {}
        }
    }

    /// What the set needs once, and no agent asks for: its first document, and that an only system is called good.
    pub fn found(&mut self, state: &State, health: &Health, world: &World) {
        if health.leads && state.config.last == 0 {
            match std::fs::read_to_string(&self.document) {
                Ok(text) => self.propose(Ask::Init { text }, world.utc()),
                Err(error) => warn!("{}: {error}", self.document.display()),
            }
        }
        if self.deed.is_none() && world.only_system_unblessed() && world.nodes.values().any(|seen| seen.serves()) {
            self.start_deed(Act::Bless, run_slot(Deed::Bless));
        }
    }

    /// Waits until something ends, and takes it in.
    pub async fn ended(&mut self, world: &mut World) {
        let Some(end) = self.ended.recv().await else { return };
        match end {
            End::Job(staged, result) => {
                world.take_slots();
                self.job = match result {
                    Ok(()) => {
                        world
                            .note(|record| _ = record.failed.take_if(|failure| Some(&failure.what) == staged.as_ref()));
                        Job::Idle
                    }
                    Err(why) => {
                        warn!("{why}");
                        Job::Failed(why)
                    }
                };
            }
            End::Deed(act, result) => {
                self.deed = None;
                if let Err(why) = &result {
                    warn!("{why}");
                }
                self.take_in(act, result, world);
            }
        }
    }

    fn take_in(&mut self, act: Act, result: Result<(), String>, world: &mut World) {
        world.take_slots();
        match (act, result) {
            // One that failed may have been done in part: it is begun again, or taken back. What could not be noted is done once more.
            (Act::Drain { .. }, Ok(())) => {
                let noted = world.note(|record| record.quiet = true);
                world.own.drain = if noted { Drain::Done } else { Drain::Going };
            }
            (Act::Undrain, Ok(())) => {
                let noted = world.note(|record| (record.drained, record.quiet) = (false, false));
                world.own.drain = if noted { Drain::No } else { Drain::Going };
            }
            (Act::Switch { to: Target::Service(name, Some(version)), .. }, Ok(())) => {
                world.note(|record| _ = record.services.insert(name, version));
            }
            (Act::Switch { to: Target::Service(name, None), .. }, Ok(())) => {
                world.note(|record| _ = record.services.remove(&name));
            }
            // (A system's ends with this process.)
            (Act::Switch { to: Target::Config(_), .. } | Act::Revert { .. }, Ok(())) => self.leaves = true,
            (Act::Bless, Ok(())) => _ = world.note(|record| record.switched = None),
            // The verdict came too late: the set has seen it serve meanwhile.
            (Act::Revert { .. }, Err(_)) if !world.slot_on_trial() => {
                let running = Target::System(slot::running_version());
                world.note(|record| _ = record.failed.take_if(|failure| failure.what == running));
            }
            (Act::Switch { to, .. }, Err(reason)) => {
                world.note(|record| (record.switched, record.failed) = (None, Some(Failure { what: to, reason })));
            }
            _ => {}
        }
    }

    fn deed(&mut self, act: Act, state: &State, world: &mut World) {
        let again = act.clone();
        match act {
            Act::HandOver => {
                let orders = hand_overs(world);
                self.start_deed(again, async move { give_all(orders).await });
            }
            Act::Drain { deadline_s } => {
                let kind = state.rollout.as_ref().map(|rollout| rollout.kind.clone());
                let services: BTreeSet<String> = match &kind {
                    // Its connections to other services may stay. (One that cannot be switched says so when it is to be.)
                    Some(Kind::Service { name, .. }) => {
                        self.order(name, None, world).map(|order| order.services).unwrap_or_default()
                    }
                    _ => self.settings.services.iter().map(|service| service.name.clone()).collect(),
                };
                let mut silent = world.silent();
                if matches!(kind, Some(Kind::Service { .. })) {
                    // That is what may mend them.
                    silent.retain(|name| !services.contains(name));
                }
                let begun = |record: &mut Record| {
                    if !record.drained {
                        record.silent = silent;
                    }
                    (record.drained, record.quiet) = (true, false);
                };
                if world.note(begun) {
                    world.own.drain = Drain::Going;
                    let order = control::Request::NodeDrain { node: self.name() };
                    let deadline = self.deadline(deadline_s);
                    let (replica, settings, me) = (self.replica.clone(), self.settings.clone(), self.me);
                    self.start_deed(again, async move {
                        give(order).await?;
                        if matches!(kind, Some(Kind::Config { .. })) {
                            // A new document is loaded by HAProxy without a break, so its connections may stay.
                            return Ok(());
                        }
                        // What the others' HAProxies have under way here would end with the services, too.
                        let quiet = drain::quiet(&services, &replica, &settings, me, deadline);
                        if matches!(kind, Some(Kind::Service { .. })) {
                            quiet.await;
                            return Ok(());
                        }
                        tokio::join!(quiet, drain::end_connections(deadline)).1
                    });
                }
            }
            Act::Undrain => {
                let order = control::Request::NodeUndrain { node: self.name() };
                self.start_deed(again, async move {
                    haproxy::go_on().await?;
                    give(order).await
                });
            }
            Act::Switch { to: Target::System(version), trial } => {
                let deed = if trial { Deed::Switch(version) } else { Deed::Return(version) };
                if world.note(|record| (record.switched, record.failed) = (Some(version), None)) {
                    self.start_deed(again, async move {
                        run_slot(deed).await?;
                        restart().await
                    });
                }
            }
            Act::Switch { to: Target::Config(version), trial } => {
                let documents = [state.config.trial.as_ref(), Some(&state.config.good), state.config.previous.as_ref()];
                let found = documents.into_iter().flatten().find(|document| document.version == version);
                let good = trial.then_some(&state.config.good);
                let done = found.ok_or_else(|| format!("document {version} is not in the set's state"));
                let done = done.and_then(|document| self.adopt(document, good, world));
                self.start_with(again, done);
            }
            Act::Switch { to: Target::Service(name, version), .. } => match self.order(&name, version, world) {
                Ok(order) => self.start_deed(again, service::switch(order)),
                Err(why) => _ = self.ends.send(End::Deed(again, Err(why))),
            },
            Act::Bless if world.slot_on_trial() => self.start_deed(again, run_slot(Deed::Bless)),
            Act::Bless => _ = world.note(|record| record.config_trial = false),
            Act::Revert { reason } if world.slot_on_trial() => {
                let failed = Failure { what: Target::System(slot::running_version()), reason };
                if world.note(|record| (record.switched, record.failed) = (None, Some(failed))) {
                    self.start_deed(again, async {
                        run_slot(Deed::Revert).await?;
                        restart().await
                    });
                }
            }
            Act::Revert { reason } => {
                let failed = Failure { what: Target::Config(world.record.config), reason };
                if world.note(|record| record.failed = Some(failed)) {
                    let done = self.adopt(&state.config.good, None, world);
                    self.start_with(again, done);
                }
            }
            Act::Propose(_) | Act::Fetch(_) | Act::Stage(_) | Act::Discard(_) | Act::Forget => {}
        }
    }

    /// Puts a document where the next start finds it. `back`: it is on trial, with that way back. What is cut off here goes on after
    /// the next start, which finds the version by the text.
    fn adopt(&self, document: &Document, back: Option<&Document>, world: &mut World) -> Result<(), String> {
        let name = format!("document {}", document.version);
        config::parse(&document.text, &name).map_err(|error| error.to_string())?;
        if let Some(good) = back {
            let begun = Trial::begin(paths::TRIAL.as_ref(), document.version, &good.text);
            begun.map_err(|error| format!("{error:#}"))?;
        }
        let (config, config_trial) = (world.record.config, world.record.config_trial);
        let note = |world: &mut World, config, trial| {
            let done = world.note(|record| (record.config, record.config_trial) = (config, trial));
            done.then_some(()).ok_or_else(|| format!("{} can't be written", paths::COORDINATOR))
        };
        // What was on trial stays so until the text is another one: cut off in between, the verdict on it must be found again.
        note(world, 0, config_trial || back.is_some())?;
        if let Err(error) = disk::replace(&self.document, document.text.as_bytes()) {
            note(world, config, config_trial)?;
            return Err(format!("{error:#}"));
        }
        note(world, document.version, back.is_some())
    }

    /// Ends a deed that adopts a document: the supervisor starts anew with it, then this process. Should the supervisor not, it is not
    /// seen serving with the document that this process then has.
    fn start_with(&mut self, act: Act, adopted: Result<(), String>) {
        self.start_deed(act, async {
            adopted?;
            if let Err(why) = systemd::start_anew(paths::SUPERVISOR_UNIT).await {
                warn!("{why}");
            }
            Ok(())
        });
    }

    /// What takes a service of this node from the version that runs to that one.
    fn order(&self, name: &str, to: Option<Version>, world: &World) -> Result<service::Order, String> {
        let from = world.record.services.get(name).copied();
        service::Order::new(&self.settings, &self.name(), name, from, to)
    }

    /// Asks something of the set; whoever wanted it sees in the state whether it was done.
    fn propose(&self, ask: Ask, utc: Option<u64>) {
        let (replica, by) = (self.replica.clone(), self.name());
        tokio::spawn(async move {
            match replica.propose(&Request::new(&by, utc, ask.clone())).await {
                Ok(_) => {}
                Err(ProposeError::Refused(refusal)) => info!("the set refuses {ask:?}: {refusal}"),
                Err(error) => info!("the set is asked again later: {error}"),
            }
        });
    }

    /// Serves an operator.
    pub fn serve(&self, asked: server::Asked, state: &Arc<State>, health: &Health, world: &World) {
        tokio::spawn(server::serve(asked, self, state, health, world));
    }

    /// Begins a job. `staged`: what it makes ready, so that it counts as sound again.
    fn start_job(&mut self, staged: Option<Target>, job: impl Future<Output = Result<(), String>> + Send + 'static) {
        self.job = Job::Running;
        let ends = self.ends.clone();
        tokio::spawn(async move { _ = ends.send(End::Job(staged, job.await)) });
    }

    fn start_deed(&mut self, act: Act, deed: impl Future<Output = Result<(), String>> + Send + 'static) {
        let (ends, ended) = (self.ends.clone(), act.clone());
        let task = tokio::spawn(async move { _ = ends.send(End::Deed(ended, deed.await)) });
        self.deed = Some((act, task.abort_handle()));
    }

    /// Ends a drain that is under way; what it has begun is for [`Act::Undrain`] to take back. One that is just over is left to say so:
    /// there is one thread here, so what has not said so yet never will.
    fn stop_draining(&mut self) -> bool {
        let drains = matches!(&self.deed, Some((Act::Drain { .. }, task)) if !task.is_finished());
        if drains && let Some((_, task)) = self.deed.take() {
            task.abort();
        }
        drains
    }

    fn deadline(&self, seconds: Option<u32>) -> Duration {
        let longest = || self.settings.services.iter().map(|service| service.drain_deadline).max().unwrap_or_default();
        seconds.map_or_else(longest, |seconds| Duration::from_secs(seconds.into()))
    }

    pub(super) fn name(&self) -> String {
        self.settings.node_name(self.me).to_owned()
    }
}

/// Where blocks of a bundle may already be: on both slots and in the boot loader's directory. Reading them takes no right that
/// this process has not; what it may not read it fetches.
pub fn have() -> Have {
    let Ok((devices, running)) = slot::devices() else { return Have { roots: Vec::new(), files: Vec::new() } };
    let roots = [running, running.other()];
    let of = |slot: Slot| (devices.root[slot as usize].clone(), devices.verity[slot as usize].clone());
    let files = std::fs::read_dir(&devices.entries).into_iter().flatten().flatten().map(|entry| entry.path());
    Have { roots: roots.map(of).to_vec(), files: files.collect() }
}

/// Removes a bundle of that name that is another than the set's: one from before it was removed and brought again, made anew.
pub(super) fn forget_another(release: &Release, id: &str) -> Result<(), String> {
    let store = Store::open(paths::BUNDLES.as_ref()).map_err(|error| error.to_string())?;
    if store.path(release).exists() && !store.holds(release, id) {
        warn!("the bundle of {release} that lies here is not the set's: it is removed");
        store.remove(release).map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn fetch(replica: &Replica, peer: NodeId, release: &Release, id: &str) -> Result<u64, String> {
    let mut stream = peers::bundles_of(replica, peer).await.map_err(|error| error.to_string())?;
    let store = Store::open(paths::BUNDLES.as_ref()).map_err(|error| error.to_string())?;
    let keys = slot::keys().map_err(|error| format!("{error:#}"))?;
    let received =
        transfer::receive(&mut stream, Some(release.clone()), &store, &keys, |_| Ok(()), have(), |_| ()).await;
    let received = received.map_err(|error| error.to_string())?;
    if !store.holds(release, id) {
        forget_another(release, id)?;
        return Err("it holds another bundle of that name than the set's".to_owned());
    }
    Ok(received.moved)
}

/// All VIPs of this node to the nodes that could take them, in turn.
fn hand_overs(world: &World) -> Vec<control::Request> {
    let status = world.status();
    let status = status.borrow();
    let Some(status) = status.as_ref() else { return Vec::new() };
    let own = status.vips.iter().filter(|vip| vip.owner.as_deref() == Some(&status.node));
    let heirs = successors(status);
    own.zip(heirs.iter().cycle())
        .map(|(vip, heir)| control::Request::VipMove { vip: vip.name.clone(), node: (*heir).to_owned() })
        .collect()
}

async fn give_all(orders: Vec<control::Request>) -> Result<(), String> {
    for order in orders {
        give(order).await?;
    }
    Ok(())
}

async fn give(order: control::Request) -> Result<(), String> {
    let answer = tokio::task::spawn_blocking(move || ask(paths::CONTROL_SOCKET.as_ref(), order)).await;
    match answer.map_err(|error| error.to_string())?.map_err(|error| error.to_string())? {
        Response::Done { .. } | Response::Status(_) => Ok(()),
        Response::Refused { text } | Response::TimedOut { text } | Response::Invalid { text } => Err(text),
    }
}

/// Restarts the machine. This process is ended with it: the deed is not done before that, or it would be begun again meanwhile.
async fn restart() -> Result<(), String> {
    systemd::end_machine("reboot.target").await?;
    tokio::time::sleep(RESTARTS).await;
    Err(format!("the machine has not restarted within {} s of being asked to", RESTARTS.as_secs()))
}

/// The time by which bundles expire: the machine's clock has to do where no time server has set it. Otherwise nothing would expire
/// in a set without time servers, or for whoever keeps them from answering. Price: a clock that is far ahead refuses a good
/// bundle; the refusal names the clock's time, and that nobody has set it.
pub fn utc_or_now(world: &World) -> u64 {
    world.utc().unwrap_or_else(crate::utc::now)
}
