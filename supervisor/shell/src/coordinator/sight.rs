//! What this node sees: its supervisor's status, its slots, its bundles, and what its peers say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::warn;
use trilith_bundle::{Manifest, Store};
use trilith_core::config::{NodeId, Settings};
use trilith_core::rollout::{Drain, Failure, Own, Seen, Target};
use trilith_core::set::{self, Fallback, LEVEL, Release, State, Step, Version};
use trilith_core::slots::{Content, Image, Slots};
use trilith_core::status::{BackendStatus, NodeStatus, Status, fingerprint};
use trilith_core::time::Time;
use trilith_raft::Replica;

use super::peers::{self, Claim};
use super::record::Record;
use crate::control::client::ask;
use crate::control::{Request, Response};
use crate::slot::{self, Deed};
use crate::trial::Trial;
use crate::{paths, systemd, utc};

/// How long a deed on the slots may take: writing and reading back a system on a slow disk.
const SLOT_PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks at slots that cannot be seen.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// What is wrong with a node while nothing is known of it.
const SILENT: &str = "its supervisor does not answer";

/// Everything that is seen, and the record of what was done.
pub struct World {
    /// All nodes of the set.
    pub nodes: BTreeMap<String, Seen>,
    /// This node from within.
    pub own: Own,
    /// What it must remember.
    pub record: Record,
    /// The slots as they were when last looked at; nothing where there are none.
    pub slots: Option<Slots>,
    /// The supervisor has gone back from a document by itself: this process has to start anew with the one of before.
    pub given_up: bool,
    /// Alarms that were told.
    pub told: Vec<String>,
    /// Why the slots cannot be seen, while they cannot.
    pub blind: Option<String>,
    /// The unit that looks at the slots, while it does.
    looking: Option<JoinHandle<Result<(), String>>>,
    status: watch::Sender<Option<Status>>,
    settings: Arc<Settings>,
    name: String,
    document: PathBuf,
}

impl World {
    /// Nothing has been seen yet.
    pub fn new(settings: &Arc<Settings>, name: &str, document: &Path, record: Record) -> World {
        let drain = match (record.drained, record.quiet) {
            (false, _) => Drain::No,
            // Cut off by the end of the process before this one: it is begun again, or taken back.
            (true, false) => Drain::Going,
            (true, true) => Drain::Done,
        };
        World {
            nodes: BTreeMap::new(),
            own: Own { drain, ..Own::default() },
            record,
            slots: None,
            given_up: false,
            told: Vec::new(),
            blind: None,
            looking: None,
            status: watch::Sender::default(),
            settings: settings.clone(),
            name: name.to_owned(),
            document: document.to_owned(),
        }
    }

    /// The supervisor's last status; none while it does not answer.
    pub fn status(&self) -> watch::Receiver<Option<Status>> {
        self.status.subscribe()
    }

    /// Seconds of UTC since 1970, once a time server has set the clock. (systemd-timesyncd.service(8))
    pub fn utc(&self) -> Option<u64> {
        utc::now_if_right(paths::CLOCK_IS_RIGHT.as_ref())
    }

    /// Whether it is known what the slots hold, where there are any. Otherwise the unit that may looks at them, which takes its time
    /// on a machine that is still starting; then it is judged what the boot loader has made of a switch.
    pub fn knows_slots(&mut self) -> bool {
        if self.slots.is_some() || slot::devices().is_err() {
            return true;
        }
        let pause = if self.blind.is_some() { LOOK_AGAIN } else { Duration::ZERO };
        let look = move || {
            tokio::spawn(async move {
                tokio::time::sleep(pause).await;
                run_slot(Deed::Observe).await
            })
        };
        let looking = self.looking.get_or_insert_with(look);
        if !looking.is_finished() {
            return false;
        }
        let seen = self.looking.take().and_then(FutureExt::now_or_never);
        self.blind = match seen {
            Some(Ok(Err(why))) => Some(why),
            _ => None,
        };
        if let Some(why) = &self.blind {
            warn!("the slots are not seen: {why}");
            return false;
        }
        self.take_slots();
        self.judge_boot();
        self.slots.is_some()
    }

    /// Takes in what the last deed has left of the slots.
    pub fn take_slots(&mut self) {
        if let Some(slots) = slot::outcome().and_then(|outcome| outcome.slots) {
            self.slots = Some(slots);
        }
    }

    /// What became of a switch: its version runs, or the boot loader has given it up, or it was cut off before it began.
    fn judge_boot(&mut self) {
        let (Some(slots), Some(version)) = (&self.slots, self.record.switched) else { return };
        if slot::running_version() == version {
            return;
        }
        let tried = slots
            .entries
            .iter()
            .any(|entry| entry.failed() && entry.name().is_some_and(|name| name.version == version));
        let reason = "it did not come up, or not so far that it could say why: its tries are used up".to_owned();
        let failed = tried.then_some(Failure { what: Target::System(version), reason });
        self.note(|record| {
            record.switched = None;
            if record.failed.as_ref().is_none_or(|known| known.what != Target::System(version)) {
                record.failed = failed.or(record.failed.take());
            }
        });
    }

    /// Changes the record; a disk that does not take it is said, and what hangs on it is tried again.
    pub fn note(&mut self, change: impl FnOnce(&mut Record)) -> bool {
        let result = self.record.change(change);
        if let Err(error) = &result {
            warn!("{error:#}");
        }
        result.is_ok()
    }

    /// Looks at everything.
    pub async fn look(&mut self, state: &State, replica: &Replica, me: NodeId) {
        let status = status().await;
        self.nodes = self
            .settings
            .nodes
            .iter()
            .map(|node| (node.name.clone(), seen(&node.name, &self.name, status.as_ref())))
            .collect();
        self.status.send_replace(status);
        let step = state.rollout.as_ref().and_then(|rollout| rollout.step_of(&self.name));
        self.own.ails = self.ails(step);
        self.judge_document();
        self.adopt_document(state);
        self.own.bundles = held(state);
        self.own.failed = self.record.failed.clone();
        self.own.trial = self.on_trial().then_some(Time::ZERO);
        let node = self.report(state.rollout.as_ref().is_some_and(|rollout| rollout.back.is_some()));
        self.own.node = set::Node { generation: self.own.node.generation, ..node };
        let asks = self.own.trial.is_some() || matches!(step, Some(Step::Verifying | Step::Settling | Step::Returning));
        self.own.seen_by.clear();
        if asks {
            self.ask_peers(state, replica, me).await;
        }
    }

    /// Whether the running slot has a counter and there is another system to go back to.
    pub fn slot_on_trial(&self) -> bool {
        self.slots.as_ref().is_some_and(|slots| !slots.proven() && slots.way_back().is_some())
    }

    /// Whether the running slot has yet to be called good, and there is no better one: the other is empty, or has failed.
    pub fn only_system_unblessed(&self) -> bool {
        self.slots.as_ref().is_some_and(|slots| !slots.proven() && slots.way_back().is_none())
    }

    fn on_trial(&self) -> bool {
        self.slot_on_trial() || self.record.config_trial
    }

    /// What the supervisor has made of a document on trial.
    fn judge_document(&mut self) {
        let path = Path::new(paths::TRIAL);
        if !self.record.config_trial {
            // It has ended, and a start of the supervisor may have counted meanwhile.
            Trial::end(path).unwrap_or_else(|error| warn!("{error:#}"));
            return;
        }
        let Some(Trial { document, given_up: Some(reason), .. }) = Trial::read(path) else { return };
        let failed = Failure { what: Target::Config(document), reason };
        // Which version the document has that is back is found by its text.
        self.given_up =
            self.note(|record| (record.config, record.config_trial, record.failed) = (0, false, Some(failed)));
    }

    /// The document that this node started with may be the set's: then it has that version.
    fn adopt_document(&mut self, state: &State) {
        let wanted = state.document_for(&self.name);
        if self.record.config == 0
            && wanted.version > 0
            && std::fs::read_to_string(&self.document).is_ok_and(|text| text == wanted.text)
        {
            let (version, good) = (wanted.version, wanted.version == state.config.good.version);
            self.note(|record| {
                record.config = version;
                record.config_trial &= !good;
            });
        }
    }

    /// `back`: the set goes back to the versions of before.
    fn report(&self, back: bool) -> set::Node {
        let failed = self.record.failed.as_ref();
        let fallback = failed.and_then(|failure| match failure.what {
            Target::System(version) => Some(Fallback { version, reason: failure.reason.clone() }),
            _ => None,
        });
        set::Node {
            generation: 0,
            level: LEVEL,
            running: slot::running_version(),
            slot: self.slots.as_ref().map_or(String::new(), |slots| slots.running.to_string()),
            blessed: self.slots.as_ref().is_none_or(Slots::proven),
            other: self.slots.as_ref().and_then(|slots| other_version(slots, back)),
            config: self.record.config,
            services: self.record.services.clone(),
            fallback,
        }
    }

    /// Why this node would serve badly. A service that does not answer before its turn says nothing of what the turn brings.
    fn ails(&self, step: Option<Step>) -> Option<String> {
        let before = if step == Some(Step::Offered) { self.silent() } else { self.record.silent.clone() };
        ails(self.status.borrow().as_ref(), &self.name, &before)
    }

    /// The services that do not answer on this node now.
    pub fn silent(&self) -> BTreeSet<String> {
        let status = self.status.borrow();
        let down = status.iter().flat_map(|status| silent_instances(status, &self.name));
        down.map(|backend| backend.service.clone()).collect()
    }

    async fn ask_peers(&mut self, state: &State, replica: &Replica, me: NodeId) {
        // What its HAProxy had before the rollout is no matter of a service's version, nor of a way back.
        let new = |rollout: &set::Rollout| rollout.back.is_none() && !matches!(rollout.kind, set::Kind::Service { .. });
        let returns = |rollout: &set::Rollout| rollout.step_of(&self.name) == Some(Step::Returning);
        let matters = state.rollout.as_ref().is_none_or(|rollout| new(rollout) && !returns(rollout));
        let claim = self
            .status
            .borrow()
            .as_ref()
            // The document is this process' own: a supervisor that still runs another one is not to be seen with it.
            .map(|status| Claim {
                version: status.version.clone(),
                fingerprint: fingerprint(self.settings.fingerprint),
                haproxy_problem: status.haproxy_problem.clone().filter(|_| matters),
                silent: self.record.silent.clone(),
            });
        let Some(claim) = claim else { return };
        let peers =
            self.settings.nodes.iter().enumerate().map(|(place, node)| (NodeId(place as u8), node.name.clone()));
        let asked = peers.filter(|(peer, _)| *peer != me).map(|(peer, name)| {
            let claim = &claim;
            async move { peers::is_seen_by(replica, peer, claim).await.then_some(name) }
        });
        self.own.seen_by = futures_util::future::join_all(asked).await.into_iter().flatten().collect();
    }
}

/// The bundles on this node's disk, but for those that are not what the set has under their names.
fn held(state: &State) -> BTreeSet<Release> {
    let Ok(store) = Store::open(paths::BUNDLES.as_ref()) else { return BTreeSet::new() };
    let all = store.list().unwrap_or_default().into_iter();
    all.filter(|release| state.bundles.get(release).is_none_or(|bundle| store.holds(release, &bundle.manifest)))
        .collect()
}

/// The version that is complete in the other slot: by its boot entry, or by a bundle with its root hash. None when a bundle of that
/// version is here whose root is another: it was made anew, and has yet to be staged. On the way `back` what was proven is what counts.
fn other_version(slots: &Slots, back: bool) -> Option<Version> {
    let Content::Verified(root) = slots.content(slots.running.other()) else { return None };
    let store = Store::open(paths::BUNDLES.as_ref());
    let releases = store.as_ref().ok().and_then(|store| store.list().ok()).unwrap_or_default();
    let manifest = |release: &Release| Manifest::parse(store.as_ref().ok()?.get(release).ok()?.manifest()).ok();
    let mut manifests = releases.iter().filter_map(manifest);
    match slots.image(slots.running.other()) {
        Some(Image { version, .. }) => {
            let anew = |it: Manifest| it.release() == Release::system(version) && it.roothash != Some(root);
            (back || !manifests.any(anew)).then_some(version)
        }
        None => manifests.find(|manifest| manifest.roothash == Some(root)).map(|manifest| manifest.version),
    }
}

/// What the supervisor says now; none when it does not answer.
pub async fn status() -> Option<Status> {
    let answer = tokio::task::spawn_blocking(|| ask(paths::CONTROL_SOCKET.as_ref(), Request::Status)).await;
    match answer {
        Ok(Ok(Response::Status(status))) => Some(*status),
        _ => None,
    }
}

/// Has the unit that may do a deed on the slots.
pub async fn run_slot(deed: Deed) -> Result<(), String> {
    let result = systemd::run_once(&deed.unit(), SLOT_PATIENCE).await;
    let told = slot::outcome().filter(|outcome| outcome.deed == deed.to_string()).and_then(|outcome| outcome.error);
    result.map_err(|why| told.unwrap_or(why))
}

fn seen(name: &str, me: &str, status: Option<&Status>) -> Seen {
    let Some(status) = status else {
        let unfit = (name == me).then(|| SILENT.to_owned());
        return Seen { heard: name == me, unfit, ..Seen::default() };
    };
    let Some(node) = status.nodes.iter().find(|node| node.name == name) else { return Seen::default() };
    let vips = status.vips.iter().filter(|vip| vip.owner.as_deref() == Some(name)).count();
    Seen { heard: node.heard, unfit: unfit(node), drained: node.drained, vips }
}

/// Why this node would serve badly with the document in force, services that were silent `before` aside. What its HAProxy finds says
/// nothing of a document that it has refused: it goes on with the one of before.
pub fn ails(status: Option<&Status>, me: &str, before: &BTreeSet<String>) -> Option<String> {
    let Some(status) = status else { return Some(SILENT.to_owned()) };
    let refused = status.haproxy_problem.as_ref();
    let refused = refused.map(|why| format!("its HAProxy does not run what the document asks for: {why}"));
    refused.or_else(|| silent(status, me, |service| !before.contains(service)))
}

/// The first of these services that does not answer on this node, as its own HAProxy finds with the document in force.
pub fn silent(status: &Status, me: &str, of: impl Fn(&str) -> bool) -> Option<String> {
    if status.flows.is_none() {
        return Some("its HAProxy does not tell of its services".to_owned());
    }
    let silent = silent_instances(status, me).find(|backend| of(&backend.service))?;
    Some(format!("service {} does not answer on this node ({})", silent.service, silent.state))
}

fn silent_instances<'a>(status: &'a Status, me: &'a str) -> impl Iterator<Item = &'a BackendStatus> {
    let answers = |state: &str| state.starts_with("UP") || state.starts_with("DRAIN");
    let all = status.flows.iter().flat_map(|flows| &flows.backends);
    all.filter(move |backend| backend.node == me && !answers(&backend.state))
}

/// Why a node is not fit. One that is drained serves nobody anyway, and its HAProxy may have ended on purpose.
fn unfit(node: &NodeStatus) -> Option<String> {
    let judged = !node.drained && node.fitness != "fit";
    judged.then(|| node.reason.clone().unwrap_or_else(|| node.fitness.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::full;

    fn said(name: &str, change: fn(&mut NodeStatus)) -> Seen {
        let mut status = full();
        change(status.nodes.iter_mut().find(|node| node.name == name).unwrap());
        seen(name, "a", Some(&status))
    }

    #[test]
    fn others_are_seen_through_the_supervisor_and_without_it_nobody_is_heard() {
        assert_eq!(said("b", |_| ()), Seen { heard: true, vips: 1, ..Seen::default() });
        let ill = said("b", |node| (node.fitness, node.reason) = ("unfit".to_owned(), Some("no gateway".to_owned())));
        assert_eq!(ill.unfit.as_deref(), Some("no gateway"));
        let drained = said("b", |node| (node.fitness, node.drained) = ("unfit".to_owned(), true));
        assert_eq!((drained.unfit, drained.drained), (None, true), "it serves nobody anyway");
        assert_eq!(seen("d", "a", Some(&full())), Seen::default(), "no node of the set");
        assert_eq!(seen("b", "a", None), Seen::default());
        let own = seen("a", "a", None);
        assert!(own.heard && own.unfit.is_some(), "{own:?}");
    }

    #[test]
    fn a_service_is_silent_unless_this_node_s_own_haproxy_finds_that_it_answers() {
        let mut status = full();
        assert_eq!(silent(&status, "a", |_| true), None);
        let answers = |status: &mut Status, state: &str| {
            status.flows.as_mut().unwrap().backends[0].state = state.to_owned();
            silent(status, "a", |service| service == "portal")
        };
        assert_eq!(answers(&mut status, "DRAIN"), None, "it takes nothing new, and answers");
        assert_eq!(answers(&mut status, "DOWN").unwrap(), "service portal does not answer on this node (DOWN)");
        assert_eq!(silent(&status, "a", |service| service == "echo"), None, "the other one is asked for");
        status.flows = None;
        assert!(silent(&status, "a", |_| true).is_some());
    }

    #[test]
    fn a_document_that_haproxy_does_not_run_comes_first_whatever_the_one_of_before_finds() {
        let mut status = full();
        assert_eq!(ails(Some(&status), "a", &BTreeSet::new()), None);
        status.haproxy_problem = Some("no certificate".to_owned());
        let refused = "its HAProxy does not run what the document asks for: no certificate";
        assert_eq!(ails(Some(&status), "a", &BTreeSet::new()).unwrap(), refused, "although all services answer");
        status.flows = None;
        assert_eq!(ails(Some(&status), "a", &BTreeSet::new()).unwrap(), refused, "which all else follows from");
        assert_eq!(ails(None, "a", &BTreeSet::new()).unwrap(), "its supervisor does not answer");
    }

    #[test]
    fn what_is_silent_before_a_turn_does_not_keep_a_node_from_taking_it_but_a_refused_document_does() {
        let settings = Arc::new(crate::haproxy::testing::settings());
        let world = World::new(&settings, "a", Path::new("/nowhere"), Record::default());
        let mut status = full();
        status.flows.as_mut().unwrap().backends[0].state = "DOWN".to_owned();
        world.status.send_replace(Some(status.clone()));
        assert_eq!(world.ails(Some(Step::Offered)), None);
        assert!(world.ails(Some(Step::Verifying)).is_some(), "the turn has brought that");
        status.haproxy_problem = Some("no certificate".to_owned());
        world.status.send_replace(Some(status));
        assert!(world.ails(Some(Step::Offered)).unwrap().ends_with("no certificate"));
    }

    #[test]
    fn a_drain_that_was_cut_off_goes_on_and_one_that_was_over_stays_so() {
        let settings = Arc::new(crate::haproxy::testing::settings());
        for (drained, quiet, drain) in
            [(false, false, Drain::No), (true, false, Drain::Going), (true, true, Drain::Done)]
        {
            let mut record = Record::default();
            (record.drained, record.quiet) = (drained, quiet);
            let world = World::new(&settings, "a", Path::new("/nowhere"), record);
            assert_eq!(world.own.drain, drain);
        }
    }
}
