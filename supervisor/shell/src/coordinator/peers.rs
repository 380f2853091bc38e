//! What coordinators ask each other directly, on connections for bundles: parts of a bundle, and "do you see me serve?".

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{debug, warn};
use trilith_bundle::{Failure, Store, transfer};
use trilith_core::config::NodeId;
use trilith_core::set::Release;
use trilith_core::status::Status;
use trilith_raft::{Alpn, Inbound, Replica, Stream};

use super::sight;
use crate::paths;

/// The first byte on a connection: a bundle is wanted.
const BUNDLE: u8 = b'B';
/// The first byte on a connection: the other's view is wanted.
const VIEW: u8 = b'V';
/// The longest question or answer about a view, in bytes: four times what 64 services with the longest names have to say.
const MAX_VIEW: usize = 16 << 10;
/// How long a question may take to be answered.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a node says of itself, for others to compare with what they see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its version.
    pub version: String,
    /// Fingerprint of its document.
    pub fingerprint: String,
    /// What keeps its HAProxy from running that document.
    #[serde(default)]
    pub haproxy_problem: Option<String>,
    /// Services that did not answer there before it was brought what it runs.
    #[serde(default)]
    pub silent: BTreeSet<String>,
}

/// What another node sees of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// It serves.
    pub serves: bool,
    /// Connections of this node's HAProxy to the other's services; none when it does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<BTreeMap<String, u64>>,
    /// Why the node that answers serves badly itself.
    #[serde(default)]
    pub ails: Option<String>,
    /// Bytes of a bundle that the node that answers has room for; none when it does not tell.
    #[serde(default)]
    pub room: Option<u64>,
}

/// Serves what peers ask, until the queue ends.
pub async fn serve(mut inbound: mpsc::Receiver<Inbound>) {
    while let Some(mut connection) = inbound.recv().await {
        // The connection keeps its place among those that its peer may have until it ends.
        tokio::spawn(async move {
            if let Err(error) = answer(&mut connection.stream, &connection.peer, sight::status, room).await {
                debug!("what node {} asked was not answered: {error}", connection.peer);
            }
        });
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    peer: &str,
    status: impl AsyncFnOnce() -> Option<Status>,
    room: impl FnOnce() -> Option<u64>,
) -> Result<(), Failure> {
    let io = |what: &'static str| move |error| Failure::Io { what: what.to_owned(), error };
    let kind = timeout(PATIENCE, stream.read_u8()).await.map_err(|late| io("no question")(late.into()))?;
    match kind.map_err(io("no question"))? {
        BUNDLE => {
            let store = Store::open(paths::BUNDLES.as_ref())?;
            let open = |release: Option<&Release>| match release {
                Some(release) => store.get(release),
                None => Err(Failure::Protocol { what: "no release was named".to_owned() }),
            };
            transfer::send(stream, open, |_| ()).await.map(drop)
        }
        VIEW => {
            let about: Claim = read(stream).await.map_err(io("its question"))?;
            let seen = |status: &Status| Answer {
                serves: sees(status, peer, &about),
                connections: connections(status, peer),
                ails: sight::ails(Some(status), &status.node, &BTreeSet::new()),
                ..Answer::default()
            };
            // As it is now: what was so a round ago may miss a connection that has been made since.
            let silent = || Answer { ails: sight::ails(None, "", &BTreeSet::new()), ..Answer::default() };
            let status = timeout(PATIENCE / 2, status()).await.ok().flatten();
            let answer = Answer { room: room(), ..status.as_ref().map_or_else(silent, seen) };
            write(stream, &answer).await.map_err(io("the answer"))
        }
        other => Err(Failure::Protocol { what: format!("first byte {other}") }),
    }
}

/// Whether this status shows that node serving with that version and document.
fn sees(status: &Status, node: &str, about: &Claim) -> bool {
    let known = status.nodes.iter().find(|known| known.name == node);
    let heard = known.is_some_and(|known| {
        known.heard
            && known.fitness == "fit"
            && !known.drained
            && known.version.as_deref() == Some(&about.version)
            && known.fingerprint.as_deref() == Some(&about.fingerprint)
    });
    let flows = status.flows.as_ref();
    let instances = flows.iter().flat_map(|flows| &flows.backends).filter(|backend| backend.node == node);
    let instances = instances.filter(|backend| !about.silent.contains(&backend.service));
    heard
        && about.haproxy_problem.is_none()
        && flows.is_some()
        && instances.into_iter().all(|backend| backend.state.starts_with("UP"))
}

/// Asks a peer whether it sees this node serve.
pub async fn is_seen_by(replica: &Replica, peer: NodeId, about: &Claim) -> bool {
    view(replica, peer, about).await.is_some_and(|answer| answer.serves)
}

/// Asks a peer for its HAProxy's connections to this node, by service; none when it does not answer, or cannot tell.
pub async fn connections_to_us(replica: &Replica, peer: NodeId) -> Option<BTreeMap<String, u64>> {
    view(replica, peer, &Claim::default()).await?.connections
}

/// Why a peer serves badly, and the bytes of a bundle that it has room for; none of either when it does not answer.
pub async fn condition(replica: &Replica, peer: NodeId) -> (Option<String>, Option<u64>) {
    let answer = view(replica, peer, &Claim::default()).await.unwrap_or_default();
    (answer.ails, answer.room)
}

/// Bytes of a bundle that this node has room for; none when its disk does not tell.
pub fn room() -> Option<u64> {
    let room = Store::open(paths::BUNDLES.as_ref()).and_then(|store| store.room());
    room.inspect_err(|error| warn!("whether there is room for a bundle: {error}")).ok()
}

/// The connections of this status' HAProxy to a node, by service; none when it does not tell.
pub fn connections(status: &Status, node: &str) -> Option<BTreeMap<String, u64>> {
    let backends = status.flows.as_ref()?.backends.iter().filter(|backend| backend.node == node);
    Some(backends.map(|backend| (backend.service.clone(), backend.current)).collect())
}

async fn view(replica: &Replica, peer: NodeId, about: &Claim) -> Option<Answer> {
    let asked = async {
        let mut stream = replica.connect(peer, Alpn::Blocks).await?;
        stream.write_u8(VIEW).await?;
        write(&mut stream, about).await?;
        read(&mut stream).await
    };
    timeout(PATIENCE, asked).await.ok()?.ok()
}

/// A connection to a peer on which it answers for its bundles.
pub async fn bundles_of(replica: &Replica, peer: NodeId) -> std::io::Result<Stream> {
    let mut stream = replica.connect(peer, Alpn::Blocks).await?;
    stream.write_u8(BUNDLE).await?;
    Ok(stream)
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), value: &impl Serialize) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(value)?;
    let length = u16::try_from(bytes.len()).ok().filter(|length| usize::from(*length) <= MAX_VIEW);
    stream.write_u16(length.ok_or_else(|| too_long(bytes.len()))?).await?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Reads a question or an answer about a view.
///
/// # Errors
/// It does not come in time, is too long, or is not understood.
pub async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<T> {
    let length = usize::from(timeout(PATIENCE, stream.read_u16()).await??);
    if length > MAX_VIEW {
        return Err(too_long(length));
    }
    let mut bytes = vec![0; length];
    timeout(PATIENCE, stream.read_exact(&mut bytes)).await??;
    Ok(serde_json::from_slice(&bytes)?)
}

fn too_long(length: usize) -> std::io::Error {
    let why = format!("{length} bytes of question or answer, more than {MAX_VIEW}");
    std::io::Error::new(std::io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use trilith_core::status::NodeStatus;

    use super::*;
    use crate::cli::testing::full;

    /// What node b, as the test status shows it, says of itself.
    fn b() -> Claim {
        Claim { version: "0.1.0".to_owned(), fingerprint: "4351b4ee".to_owned(), ..Claim::default() }
    }

    fn b_in(status: &mut Status) -> &mut NodeStatus {
        status.nodes.iter_mut().find(|node| node.name == "b").unwrap()
    }

    #[test]
    fn a_node_is_seen_only_if_nothing_at_all_speaks_against_it() {
        assert!(sees(&full(), "b", &b()));
        type Change = fn(&mut Status);
        let against: [(&str, Change); 9] = [
            ("it is not heard", |status| b_in(status).heard = false),
            ("it is not fit", |status| b_in(status).fitness = "unfit".to_owned()),
            ("it is drained", |status| b_in(status).drained = true),
            ("it runs another version", |status| b_in(status).version = Some("0.2.0".to_owned())),
            ("it tells no version", |status| b_in(status).version = None),
            ("it has another document", |status| b_in(status).fingerprint = Some("00000000".to_owned())),
            ("it is no node of the set", |status| status.nodes.retain(|node| node.name != "b")),
            ("HAProxy here does not tell", |status| status.flows = None),
            ("a service does not answer there", |status| {
                let backends = &mut status.flows.as_mut().unwrap().backends;
                backends.iter_mut().find(|backend| backend.node == "b").unwrap().state = "DOWN".to_owned();
            }),
        ];
        for (why, change) in against {
            let mut status = full();
            change(&mut status);
            assert!(!sees(&status, "b", &b()), "{why}");
        }
        let mut status = full();
        let backends = &mut status.flows.as_mut().unwrap().backends;
        let down = backends.iter_mut().find(|backend| backend.node == "b").unwrap();
        down.state = "DOWN".to_owned();
        let silent = BTreeSet::from([down.service.clone()]);
        assert!(sees(&status, "b", &Claim { silent, ..b() }), "it did not answer before either");
    }

    #[test]
    fn nobody_vouches_for_a_node_whose_haproxy_does_not_run_its_document() {
        let about = Claim { haproxy_problem: Some("no certificate".to_owned()), ..b() };
        assert!(!sees(&full(), "b", &about), "although the HAProxy of before serves");
        let older = r#"{"version":"0.1.0","fingerprint":"4351b4ee"}"#;
        assert_eq!(serde_json::from_str::<Claim>(older).unwrap(), b(), "a version that does not tell");
    }

    /// What a peer that sends this is told.
    async fn told(question: &[u8], status: Option<Status>) -> Result<Answer, String> {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        near.write_all(question).await.unwrap();
        near.shutdown().await.unwrap();
        answer(&mut far, "b", async || status, || Some(7)).await.map_err(|error| error.to_string())?;
        Ok(read(&mut near).await.unwrap())
    }

    #[tokio::test]
    async fn a_question_is_answered_and_whatever_else_comes_is_refused() {
        let mut question = vec![VIEW];
        write(&mut question, &b()).await.unwrap();
        let seen = told(&question, Some(full())).await.unwrap();
        assert!(seen.serves);
        assert_eq!(seen.connections.unwrap(), BTreeMap::from([("portal".to_owned(), 400)]));
        assert_eq!((seen.ails, seen.room), (None, Some(7)));
        let older: Answer = serde_json::from_str(r#"{"serves":true}"#).unwrap();
        assert_eq!(older.room, None, "a version that does not tell");
        let mut ill = full();
        ill.haproxy_problem = Some("no certificate".to_owned());
        assert!(told(&question, Some(ill)).await.unwrap().ails.unwrap().ends_with("no certificate"));
        let blind = told(&question, None).await.unwrap();
        assert!(!blind.serves, "one that sees nothing vouches for nobody");
        assert_eq!((blind.connections, blind.ails.unwrap()), (None, "its supervisor does not answer".to_owned()));
        assert_eq!(blind.room, Some(7));
        let deaf = told(&question, Some(Status { flows: None, ..full() })).await.unwrap();
        assert_eq!(deaf.connections, None, "its HAProxy does not tell");
        for length in 0..question.len() {
            told(&question[..length], Some(full())).await.unwrap_err();
        }
        told(b"X", Some(full())).await.unwrap_err();
        let huge = [&[VIEW], &u16::MAX.to_be_bytes()[..], &[b' '; 1 << 16]].concat();
        let refused = told(&huge, Some(full())).await.unwrap_err();
        assert!(refused.contains("65535 bytes of question"), "{refused}");
    }
}
