//! The coordinator's socket: how `trilith upgrade` and `trilith config` reach it.
//!
//! As at the supervisor's ([`crate::control`]): one JSON object a line, for root and the group trilith-admin. A connection carries
//! one request. Only an upload goes on after the first answer: then the bundle's transfer follows ([`trilith_bundle::transfer`]),
//! and a last answer.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{info, warn};
use trilith_bundle::utc::Utc;
use trilith_bundle::{Context, Failure, Keys, Refusal, Room, Store, Verified, transfer};
use trilith_core::config::{NodeId, Settings};
use trilith_core::rollout::{Plan, Sight, plan, waits};
use trilith_core::set::{self, Ask, Bundle, Goal, Hold, Options, Phase, Release, Reply, State};
use trilith_core::status::Status;
use trilith_raft::{Health, ProposeError, Replica};

use super::deeds::{Deeds, forget_another, have, utc_or_now};
use super::peers;
use super::sight::{World, ails};
use crate::control::{accept, listen, peer};
use crate::paths;
use crate::slot;

/// Version of the protocol.
pub const VERSION: u32 = 1;
/// The longest request: a document, escaped.
pub const MAX_REQUEST: u64 = 1024 * 1024;
/// The longest answer: the whole state.
pub const MAX_ANSWER: u64 = 16 * 1024 * 1024;
/// How long a connection may say nothing, or not take its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The kernel and its initrd on the ESP: three of them fit, the running one, the other one, and one that is being written.
const UKI_ROOM: u64 = 30 << 20;
/// The archive of a service.
const SERVICE_ROOM: u64 = 64 << 20;

/// A request as it is sent.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// What is asked.
    pub request: Request,
}

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// The state of the set, and how this node stands in it.
    Show,
    /// Something that the set decides.
    Propose(Ask),
    /// What a rollout would do; nothing is changed.
    Plan {
        /// What it shall bring.
        goal: Goal,
        /// How.
        options: Options,
        /// A bundle that would be uploaded for it first.
        #[serde(default)]
        bundle: Option<Offered>,
    },
    /// A bundle follows.
    Upload,
    /// A node's disk is lost: its old identity goes.
    Replace {
        /// Its name.
        node: String,
    },
    /// Most disks are lost: this node's state counts.
    Recover,
}

/// What is sent of a bundle that is only asked about: all that is judged before its blocks are moved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Offered {
    /// The bytes of its manifest.
    pub manifest: Vec<u8>,
    /// The signature over them.
    pub signature: Vec<u8>,
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Request::Show`].
    Shown(Box<Shown>),
    /// To [`Request::Plan`]: what would happen, and what speaks against it.
    Planned {
        /// In the order in which it would happen.
        steps: Vec<String>,
        /// Reasons why it would be refused now.
        objections: Vec<String>,
    },
    /// To [`Request::Upload`]: go on.
    Ready,
    /// It is done.
    Done {
        /// One line for people.
        text: String,
        /// The set's word, where the set decided.
        #[serde(default)]
        reply: Option<Reply>,
    },
    /// It is not done.
    Refused {
        /// Why, and what would help.
        text: String,
        /// The exit code.
        code: u8,
    },
}

/// What one node knows of the set.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Shown {
    /// The node.
    pub node: String,
    /// Who coordinates, if anyone.
    pub leader: Option<String>,
    /// Nodes that did not answer lately.
    pub silent: Vec<String>,
    /// What an operator should know.
    pub alarms: Vec<String>,
    /// Why the rollout does not go on just now, if it could and does not.
    pub waits: Option<String>,
    /// What the set has agreed on.
    pub state: State,
}

/// A request, and the connection on which it is answered.
pub struct Asked {
    request: Request,
    stream: UnixStream,
}

/// Opens the socket and passes every request on, until the runtime ends.
///
/// # Errors
/// Another coordinator answers there, or the socket can't be made.
pub fn start(path: &Path, requests: mpsc::Sender<Asked>) -> Result<()> {
    let group = peer::admin_group();
    let listener = listen(path, group)?;
    tokio::spawn(accept(listener, group, move |stream, _| {
        let requests = requests.clone();
        async move {
            let asked = receive(stream).await?;
            // The coordinator is going down: whoever asked sees the connection close.
            _ = requests.send(asked).await;
            Ok(())
        }
    }));
    Ok(())
}

/// Reads one line, without or with its end.
///
/// # Errors
/// The answer to give when it is no request of this version.
pub fn read(line: &[u8]) -> Result<Request, Answer> {
    let text = match serde_json::from_slice::<Envelope>(line) {
        Ok(Envelope { version: VERSION, request }) => return Ok(request),
        Ok(Envelope { version, .. }) => format!("the coordinator speaks version {VERSION}, not {version}"),
        Err(error) => format!("the request is not understood: {error}"),
    };
    Err(Answer::Refused { text, code: USAGE })
}

async fn receive(stream: UnixStream) -> io::Result<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    timeout(PATIENCE, (&mut reader).take(MAX_REQUEST).read_until(b'\n', &mut line)).await??;
    let early = !reader.buffer().is_empty();
    let mut stream = reader.into_inner();
    let refusal = match read(&line) {
        Ok(request) if !early => return Ok(Asked { request, stream }),
        Ok(_) => Answer::Refused { text: "a connection carries one request".to_owned(), code: USAGE },
        Err(refusal) => refusal,
    };
    write(&mut stream, &refusal).await?;
    Err(io::ErrorKind::InvalidData.into())
}

async fn write(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    timeout(PATIENCE, stream.write_all(&line)).await?
}

/// Answers a request: what to await for it.
pub fn serve(
    asked: Asked,
    deeds: &Deeds,
    state: &Arc<State>,
    health: &Health,
    world: &World,
) -> impl Future<Output = ()> + Send + use<> {
    let Asked { request, mut stream } = asked;
    let (replica, utc) = (deeds.replica.clone(), world.utc());
    let (name, state) = (deeds.name(), state.clone());
    let sight = super::sight_of(world, &state, health, health.leads);
    let now = utc_or_now(world);
    let at_once = match &request {
        Request::Show => Some(Err(shown(&name, &state, health, waits(&name, &sight)))),
        Request::Plan { goal, options, bundle } => {
            let taken = |offered| taken(offered, &keys()?, &state, &name, now, utc);
            let bundle = bundle.as_ref().map(taken).transpose().map_err(|failure| refused(&failure));
            Some(bundle.and_then(|bundle| planned(&name, &sight, goal, options, bundle, now)))
        }
        _ => None,
    };
    // A document may be what mends a HAProxy, and so may the version of before; a service's version does not concern it.
    let forward = |version: &set::Version| state.previous() != Some(*version);
    let restarts = matches!(&request, Request::Plan { goal: Goal::System { version }, options, .. } if !options.force && forward(version));
    let (settings, me, status) = (deeds.settings.clone(), deeds.me, world.status());
    async move {
        let answer = match (at_once, request) {
            (Some(Ok(Plan { steps, mut objections, fetched })), _) => {
                if restarts || !fetched.is_empty() {
                    objections.extend(whoever_objects(&replica, &settings, me, &status, restarts, &fetched).await);
                }
                Answer::Planned { steps, objections }
            }
            (Some(Err(answer)), _) => answer,
            (None, Request::Propose(ask)) => propose(&replica, utc, ask).await,
            (None, Request::Replace { node }) => told(
                replica.replace(&node).await,
                format!("the old identity of node {node} is gone: its successor is admitted as soon as it answers"),
            ),
            (None, Request::Recover) => told(
                replica.recover().await,
                "this node's state counts from now on: the others are given it".to_owned(),
            ),
            (None, Request::Upload) => {
                if let Err(error) = write(&mut stream, &Answer::Ready).await {
                    return warn!("upload: {error}");
                }
                upload(&mut stream, &replica, &state, &name, now, utc).await
            }
            (None, Request::Show | Request::Plan { .. }) => return,
        };
        if let Err(error) = write(&mut stream, &answer).await {
            // What was asked is done all the same.
            warn!("the answer was not taken: {error}");
        }
    }
}

/// Nodes that have no room for a bundle that is `fetched`, and, if it `restarts` them, those that serve badly already: what a HAProxy
/// does not load now it would not start with either, and a version that is not to blame would be given up.
async fn whoever_objects(
    replica: &Replica,
    settings: &Settings,
    me: NodeId,
    status: &watch::Receiver<Option<Status>>,
    restarts: bool,
    fetched: &BTreeMap<String, u64>,
) -> Vec<String> {
    let peers = (0..settings.nodes.len() as u8).map(NodeId).filter(|node| *node != me);
    let asked = peers.map(|peer| async move { (peer, peers::condition(replica, peer).await) });
    let mut all = futures_util::future::join_all(asked).await;
    let ails = ails(status.borrow().as_ref(), settings.node_name(me), &BTreeSet::new());
    all.push((me, (ails, peers::room())));
    let objections = |(node, (ails, room)): (NodeId, (Option<String>, Option<u64>))| {
        let name = settings.node_name(node);
        let ails = ails.filter(|_| restarts);
        let ails = ails.map(|why| format!("on node {name}: {why}; mend that first, or say --force"));
        ails.into_iter().chain(cramped(name, room, fetched.get(name).copied()))
    };
    all.into_iter().flat_map(objections).collect()
}

/// That a node has less room than what it would fetch needs. One that does not tell how much it has finds out when it fetches.
fn cramped(node: &str, room: Option<u64>, needed: Option<u64>) -> Option<String> {
    let (room, needed) = room.zip(needed).filter(|(room, needed)| room < needed)?;
    let (room, needed) = (room >> 20, needed.div_ceil(1 << 20));
    Some(format!(
        "node {node} has room for {room} MiB of a bundle that needs {needed} MiB; make room with: trilith upgrade remove VERSION"
    ))
}

/// What about the rollout in progress, or the last one, needs an operator, with the command; nothing while all goes well.
pub fn concern(state: &State) -> Option<String> {
    let Some(rollout) = &state.rollout else { return state.stray() };
    let (id, kind, hold) = (rollout.id, &rollout.kind, &rollout.hold);
    match hold {
        Hold::Going if rollout.phase == Phase::Confirming && rollout.back.is_none() => {
            let within = rollout.options.confirm_within_s.map_or_else(String::new, |s| format!(" within {s} s"));
            Some(format!(
                "rollout {id} of {kind} has come to all nodes, and is taken back unless it is confirmed{within}, with: \
                 trilith config confirm"
            ))
        }
        Hold::Going => None,
        Hold::Paused { .. } => Some(format!(
            "rollout {id} of {kind} is {hold}; it goes on or is taken back with: trilith upgrade resume|abort"
        )),
        Hold::Halted { node, reason } => Some(format!(
            "rollout {id} of {kind} has halted on node {node}: {reason}; resume or abort it with: trilith upgrade resume|abort"
        )),
    }
}

fn shown(name: &str, state: &State, health: &Health, waits: Option<String>) -> Answer {
    let mut alarms: Vec<String> = health.alarms.iter().map(ToString::to_string).collect();
    alarms.extend(concern(state));
    let (leader, silent) = (health.leader.clone(), health.silent.clone());
    Answer::Shown(Box::new(Shown { node: name.to_owned(), leader, silent, alarms, waits, state: state.clone() }))
}

fn told(result: Result<(), String>, text: String) -> Answer {
    match result {
        Ok(()) => Answer::Done { text, reply: None },
        Err(text) => Answer::Refused { text, code: REFUSED },
    }
}

async fn propose(replica: &Replica, utc: Option<u64>, ask: Ask) -> Answer {
    match replica.propose(&set::Request::new(OPERATOR, utc, ask)).await {
        Ok(reply) => Answer::Done { text: "done".to_owned(), reply: Some(reply) },
        Err(ProposeError::NoQuorum { silent }) => {
            Answer::Refused { text: ProposeError::NoQuorum { silent }.to_string(), code: TIMED_OUT }
        }
        Err(error) => Answer::Refused { text: error.to_string(), code: REFUSED },
    }
}

/// What an upload of this bundle would add to the catalogue.
fn taken(
    offered: &Offered,
    keys: &Keys,
    state: &State,
    name: &str,
    now: u64,
    utc: Option<u64>,
) -> Result<(Release, Bundle), Failure> {
    let verified = Verified::open(&offered.manifest, &offered.signature, keys)?;
    admit(&verified, state, now, utc)?;
    Ok(entry(&verified, name))
}

/// What a start would do, with a `bundle` that would be uploaded for it first.
fn planned(
    name: &str,
    sight: &Sight,
    goal: &Goal,
    options: &Options,
    bundle: Option<(Release, Bundle)>,
    now: u64,
) -> Result<Plan, Answer> {
    let mut state = sight.state.clone();
    let mut upload = None;
    if let Some((release, bundle)) = bundle {
        let new = !state.bundles.contains_key(&release);
        upload = new.then(|| (format!("the bundle of {release} is uploaded: {} bytes", bundle.size), bundle.size));
        if let Err(refusal) = state.apply(&set::Request::new(OPERATOR, sight.utc, Ask::AddBundle { release, bundle })) {
            return Err(Answer::Refused { text: refusal.to_string(), code: REFUSED });
        }
    }
    let mut plan = plan(name, &Sight { state: &state, ..*sight }, goal, options);
    let bundle = goal.release().and_then(|release| state.bundles.get(&release));
    // What all have in their other slot was taken in time.
    let has = |version| state.nodes.values().all(|node| node.running == version || node.other == Some(version));
    let staged = matches!(goal, Goal::System { version } if has(*version));
    let expired = bundle.and_then(|bundle| bundle.expires).filter(|expires| *expires <= now && !staged);
    plan.objections.extend(expired.map(|expires| {
        Refusal::Expired { expires: Utc(expires), now: Utc(now), synchronised: sight.utc.is_some() }.to_string()
    }));
    if let Some((step, size)) = upload {
        plan.steps.insert(0, step);
        plan.fetched.insert(name.to_owned(), size);
    }
    Ok(plan)
}

/// Takes a bundle in, and puts it into the set's catalogue.
async fn upload(
    stream: &mut UnixStream,
    replica: &Replica,
    state: &State,
    name: &str,
    now: u64,
    utc: Option<u64>,
) -> Answer {
    let result = async {
        let store = Store::open(paths::BUNDLES.as_ref())?;
        let keys = keys()?;
        let admit = |verified: &Verified| {
            admit(verified, state, now, utc)?;
            let manifest = verified.manifest();
            let (release, id) = (manifest.release(), verified.id().to_string());
            let known = replica.state().borrow().bundles.get(&release).is_none_or(|known| known.manifest == id);
            // A build of before that the set does not know any more is in its way. (A service may run from there.)
            if known
                && manifest.service.is_none()
                && let Err(why) = forget_another(&release, &id)
            {
                warn!("bundle {release}: {why}");
            }
            Ok(())
        };
        let received = transfer::receive(stream, None, &store, &keys, admit, have(), |_| ()).await?;
        let source = store.get(&received.release)?;
        let verified = Verified::open(source.manifest(), source.signature(), &keys)?;
        Ok::<_, Failure>((received, verified))
    };
    let (received, verified) = match result.await {
        Ok(both) => both,
        Err(failure) => return refused(&failure),
    };
    info!("bundle {} came in: {} of {} bytes were moved", received.release, received.moved, received.size);
    let (release, bundle) = entry(&verified, name);
    match propose(replica, utc, Ask::AddBundle { release, bundle }).await {
        Answer::Done { reply, .. } => Answer::Done {
            text: format!(
                "bundle {} is in the set; {} of its {} bytes were moved",
                received.release, received.moved, received.size
            ),
            reply,
        },
        refused => {
            // What is not the set's under this name must not lie here under it.
            let known = replica.state().borrow().bundles.get(&received.release).map(|known| known.manifest.clone());
            if let Some(Err(why)) = known.map(|known| forget_another(&received.release, &known)) {
                warn!("bundle {}: {why}", received.release);
            }
            refused
        }
    }
}

fn keys() -> Result<Keys, Failure> {
    slot::keys().map_err(|error| Failure::Protocol { what: format!("{error:#}") })
}

fn refused(failure: &Failure) -> Answer {
    Answer::Refused { text: failure.to_string(), code: failure.exit_code() }
}

/// Whether a bundle may come into the set by way of this node.
fn admit(verified: &Verified, state: &State, now: u64, utc: Option<u64>) -> Result<(), Refusal> {
    let manifest = verified.manifest();
    let ban = state.bans.get(&manifest.release());
    verified.admit(&Context {
        product: PRODUCT,
        running: slot::running_version(),
        floor: state.floor_of(&manifest.release()),
        banned: ban.map(|ban| ban.reason.as_str()),
        room: room(),
        now: Some(now),
        synchronised: utc.is_some(),
    })
}

/// What the catalogue says of a bundle that came in on this node.
fn entry(verified: &Verified, name: &str) -> (Release, Bundle) {
    let manifest = verified.manifest();
    let bundle = Bundle {
        manifest: verified.id().to_string(),
        size: manifest.size(),
        summary: manifest.summary(),
        floor: manifest.floor,
        minimum: manifest.min_version,
        expires: manifest.expires.map(|utc| utc.0),
        held_by: [name.to_owned()].into(),
    };
    (manifest.release(), bundle)
}

/// What the slots of this machine can take. Where there are none, nothing is refused for its size.
fn room() -> Room {
    let size = |device: &Path| {
        let name = device.file_name()?.to_str()?.to_owned();
        let sectors = std::fs::read_to_string(format!("/sys/class/block/{name}/size")).ok()?;
        Some(sectors.trim().parse::<u64>().ok()? * 512)
    };
    let devices = slot::devices().ok();
    let smallest = |two: Option<[std::path::PathBuf; 2]>| {
        two.and_then(|two| two.iter().map(|device| size(device)).min().flatten()).unwrap_or(u64::MAX)
    };
    Room {
        root: smallest(devices.as_ref().map(|(devices, _)| devices.root.clone())),
        verity: smallest(devices.as_ref().map(|(devices, _)| devices.verity.clone())),
        uki: UKI_ROOM,
        service: SERVICE_ROOM,
    }
}

/// `IMAGE_ID` of the system (os-release(5)).
pub const PRODUCT: &str = "trilith";
/// Who asks, for the history.
const OPERATOR: &str = "operator";
/// Exit codes of [`crate::cli`].
const USAGE: u8 = 2;
const REFUSED: u8 = 1;
const TIMED_OUT: u8 = 5;

#[cfg(test)]
mod tests {
    use trilith_core::rollout::{Own, Seen};
    use trilith_core::set::{Kind, Node, Pause, Rollout, Version};

    use super::*;

    const NEW: Version = Version::new(0, 2, 0);

    /// What a set of three is told of a start of the new version, at second 100 by the clock of the node that is asked.
    fn plans(state: &State, utc: Option<u64>, bundle: Option<Bundle>) -> Result<Plan, String> {
        let names = ["a", "b", "c"].map(str::to_owned);
        let mut state = state.clone();
        for name in &names {
            let node = Node { running: Version::new(0, 1, 0), blessed: true, ..Node::default() };
            state.nodes.entry(name.clone()).or_insert(node);
        }
        let nodes = names.map(|name| (name, Seen { heard: true, ..Seen::default() })).into();
        let sight = Sight { state: &state, leads: true, quorum: true, utc, nodes: &nodes, own: &Own::default() };
        let bundle = bundle.map(|bundle| (Release::system(NEW), bundle));
        let plan = planned("a", &sight, &Goal::System { version: NEW }, &Options::default(), bundle, 100);
        plan.map_err(|answer| if let Answer::Refused { text, .. } = answer { text } else { panic!("{answer:?}") })
    }

    fn bundle(manifest: &str) -> Bundle {
        Bundle { manifest: manifest.to_owned(), size: 7, held_by: ["a".to_owned()].into(), ..Bundle::default() }
    }

    #[test]
    fn a_bundle_that_is_only_asked_about_is_planned_for_as_if_it_were_uploaded() {
        let mut state = State::default();
        let Plan { objections, .. } = plans(&state, None, None).unwrap();
        assert_eq!(objections, ["no bundle of 0.2.0 is in the set; upload it first"]);
        let Plan { steps, objections, fetched } = plans(&state, None, Some(bundle("one"))).unwrap();
        assert_eq!(objections, [""; 0]);
        assert_eq!(steps[0], "the bundle of 0.2.0 is uploaded: 7 bytes");
        assert_eq!(
            (steps[1].as_str(), steps.len()),
            ("all nodes fetch and check the bundle of system 0.2.0: 7 bytes", 5)
        );
        assert_eq!(fetched, ["a", "b", "c"].map(|name| (name.to_owned(), 7)).into());
        state.bundles.insert(Release::system(NEW), bundle("one"));
        let known = plans(&state, None, Some(bundle("one"))).unwrap();
        assert_eq!((&known.steps[..], known.fetched.len()), (&steps[1..], 2), "it is in the set already");
        assert!(plans(&state, None, Some(bundle("two"))).unwrap_err().starts_with("another bundle of 0.2.0 is in"));
    }

    #[test]
    fn a_node_that_has_less_room_than_a_bundle_needs_is_named_with_both() {
        let told =
            "node b has room for 11 MiB of a bundle that needs 13 MiB; make room with: trilith upgrade remove VERSION";
        assert_eq!(cramped("b", Some((12 << 20) - 1), Some((12 << 20) + 1)).unwrap(), told);
        assert_eq!(cramped("b", Some(12 << 20), Some(12 << 20)), None);
        assert_eq!(cramped("b", Some(0), None), None, "it has it");
        assert_eq!(cramped("b", None, Some(1)), None, "it does not tell");
    }

    #[test]
    fn a_bundle_expires_also_where_no_time_server_has_set_the_clock() {
        let expiring = |expires, utc| {
            let bundle = Bundle { expires: Some(expires), ..bundle("one") };
            let state = State { bundles: [(Release::system(NEW), bundle)].into(), ..State::default() };
            plans(&state, utc, None).unwrap().objections
        };
        assert_eq!(expiring(101, None), [""; 0]);
        let unset =
            "expired at 1970-01-01T00:01:40Z, by a clock that says 1970-01-01T00:01:40Z here and that no time server";
        assert!(expiring(100, None)[0].starts_with(unset), "{:?}", expiring(100, None));
        let set = "expired at 1970-01-01T00:01:40Z, and it is 1970-01-01T00:01:40Z here: get a newer bundle";
        assert_eq!(expiring(100, Some(100)), [set]);

        let mut state = State {
            bundles: [(Release::system(NEW), Bundle { expires: Some(1), ..bundle("one") })].into(),
            ..State::default()
        };
        for name in ["a", "b", "c"] {
            assert_eq!(plans(&state, None, None).unwrap().objections.len(), 1, "node {name} would need the bundle");
            let node = Node { running: Version::new(0, 3, 0), other: Some(NEW), blessed: true, ..Node::default() };
            state.nodes.insert(name.to_owned(), node);
        }
        assert_eq!(plans(&state, None, None).unwrap().objections, [""; 0]);
    }

    #[test]
    fn a_bundle_that_is_only_asked_about_is_judged_by_its_manifest() {
        let (manifest, signature) =
            (include_str!("testdata/manifest.toml"), include_str!("testdata/manifest.toml.minisig"));
        let keys = Keys::parse(include_str!("testdata/bundle.pub")).unwrap();
        let mut offered = Offered { manifest: manifest.into(), signature: signature.into() };
        let end = 1_826_780_400;
        let (release, bundle) = taken(&offered, &keys, &State::default(), "a", end - 1, None).unwrap();
        assert_eq!((release.to_string().as_str(), bundle.size, bundle.expires), ("portal@2.0.0", 39, Some(end)));
        let why = |offered: &Offered, now| taken(offered, &keys, &State::default(), "a", now, None).unwrap_err();
        assert!(matches!(why(&offered, end), Failure::Refused(Refusal::Expired { synchronised: false, .. })));
        offered.manifest.push(b'\n');
        assert!(matches!(why(&offered, 0), Failure::Refused(Refusal::WrongSignature { .. })));
    }

    fn concerned(change: impl Fn(&mut Rollout)) -> Option<String> {
        let mut rollout = Rollout {
            id: 7,
            token: String::new(),
            kind: Kind::Config { version: 2 },
            options: Options::default(),
            phase: Phase::Rolling,
            hold: Hold::Going,
            round: 0,
            back: None,
            nodes: Default::default(),
            turn: None,
            notes: Vec::new(),
        };
        change(&mut rollout);
        concern(&State { rollout: Some(rollout), ..State::default() })
    }

    #[test]
    fn all_that_waits_for_an_operator_is_said_with_the_command_that_it_waits_for() {
        assert_eq!(concerned(|_| ()), None);
        let (node, reason) = ("b".to_owned(), "no carrier".to_owned());
        let pauses = [
            (Pause::Operator, "by an operator"),
            (Pause::SecondFailure { node: node.clone(), reason: reason.clone() }, "because node b failed"),
            (Pause::GaveBack { node: node.clone(), reason: reason.clone() }, "because node b could not go on"),
        ];
        for (why, part) in pauses {
            let words = concerned(|rollout| rollout.hold = Hold::Paused { why: why.clone() }).unwrap();
            assert!(words.starts_with(&format!("rollout 7 of configuration 2 is paused {part}")), "{words}");
            assert!(words.ends_with("with: trilith upgrade resume|abort"), "{words}");
        }
        let halted = Hold::Halted { node, reason };
        let words = concerned(|rollout| rollout.hold = halted.clone()).unwrap();
        assert!(words.ends_with("with: trilith upgrade resume|abort"), "{words}");
        let confirming = |rollout: &mut Rollout| {
            (rollout.phase, rollout.options.confirm_within_s) = (Phase::Confirming, Some(300));
        };
        assert_eq!(
            concerned(confirming).unwrap(),
            "rollout 7 of configuration 2 has come to all nodes, and is taken back unless it is confirmed within 300 s, \
             with: trilith config confirm"
        );
        let back = |rollout: &mut Rollout| {
            confirming(rollout);
            rollout.back = Some("no".to_owned());
        };
        assert_eq!(concerned(back), None, "nobody can confirm it any more");
    }
}
