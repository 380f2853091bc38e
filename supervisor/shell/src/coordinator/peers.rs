//! What coordinators ask each other directly, on connections for bundles: parts of a bundle, and "do you see me serve?".

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::debug;
use trilith_bundle::{Failure, Store, transfer};
use trilith_core::config::NodeId;
use trilith_core::set::Release;
use trilith_core::status::Status;
use trilith_raft::{Alpn, Inbound, Replica, Stream};

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
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Answer {
    serves: bool,
    /// Connections of this node's HAProxy to the other's services.
    #[serde(default)]
    connections: BTreeMap<String, u64>,
}

/// Serves what peers ask, until the queue ends.
pub async fn serve(mut inbound: mpsc::Receiver<Inbound>, status: watch::Receiver<Option<Status>>) {
    while let Some(mut connection) = inbound.recv().await {
        let status = status.clone();
        // The connection keeps its place among those that its peer may have until it ends.
        tokio::spawn(async move {
            if let Err(error) = answer(&mut connection.stream, &connection.peer, &status).await {
                debug!("what node {} asked was not answered: {error}", connection.peer);
            }
        });
    }
}

async fn answer(stream: &mut Stream, peer: &str, status: &watch::Receiver<Option<Status>>) -> Result<(), Failure> {
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
            let seen =
                |status: &Status| Answer { serves: sees(status, peer, &about), connections: connections(status, peer) };
            let answer = status.borrow().as_ref().map(seen).unwrap_or_default();
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
    heard && flows.is_some() && instances.into_iter().all(|backend| backend.state.starts_with("UP"))
}

/// Asks a peer whether it sees this node serve.
pub async fn is_seen_by(replica: &Replica, peer: NodeId, about: &Claim) -> bool {
    view(replica, peer, about).await.is_some_and(|answer| answer.serves)
}

/// Asks a peer for its HAProxy's connections to this node, by service; none when it does not answer.
pub async fn connections_to_us(replica: &Replica, peer: NodeId) -> BTreeMap<String, u64> {
    view(replica, peer, &Claim::default()).await.unwrap_or_default().connections
}

/// The connections of this status' HAProxy to a node, by service.
pub fn connections(status: &Status, node: &str) -> BTreeMap<String, u64> {
    let backends = status.flows.iter().flat_map(|flows| &flows.backends).filter(|backend| backend.node == node);
    backends.map(|backend| (backend.service.clone(), backend.current)).collect()
}

async fn view(replica: &Replica, peer: NodeId, about: &Claim) -> Option<Answer> {
    let asked = async {
        let mut stream = replica.connect(peer, Alpn::Blocks).await?;
        stream.write_u8(VIEW).await?;
        write(&mut stream, about).await?;
        read::<Answer>(&mut stream).await
    };
    timeout(PATIENCE, asked).await.ok()?.ok()
}

/// A connection to a peer on which it answers for its bundles.
pub async fn bundles_of(replica: &Replica, peer: NodeId) -> std::io::Result<Stream> {
    let mut stream = replica.connect(peer, Alpn::Blocks).await?;
    stream.write_u8(BUNDLE).await?;
    Ok(stream)
}

async fn write<T: Serialize>(stream: &mut Stream, value: &T) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(value)?;
    let length = u16::try_from(bytes.len()).ok().filter(|length| usize::from(*length) <= MAX_VIEW);
    stream.write_u16(length.ok_or_else(|| too_long(bytes.len()))?).await?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

async fn read<T: for<'de> Deserialize<'de>>(stream: &mut Stream) -> std::io::Result<T> {
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
