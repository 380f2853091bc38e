//! Calls to other nodes: a frame out, a frame back, over connections that are kept.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};
use trilith_core::config::NodeId;

use super::{Alpn, Net, Stream, decode, read_frame, write_frame};

/// Connections to one node for one protocol that are kept while no call uses them. One is the rule.
pub const IDLE: usize = 2;
/// The pause after the first attempt that failed; doubled up to [`LONGEST_PAUSE`].
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between attempts to connect to a node.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Connections to all other nodes.
#[derive(Debug)]
pub struct Links {
    net: Arc<Net>,
    kept: Mutex<BTreeMap<(NodeId, Alpn), Kept>>,
}

#[derive(Default)]
struct Kept {
    idle: Vec<Stream>,
    failing: Option<Failing>,
}

/// While a node can't be connected to, calls fail at once instead of trying each for itself.
struct Failing {
    until: Instant,
    pause: Duration,
    why: String,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} idle", self.idle.len())
    }
}

impl Links {
    /// None is open yet.
    pub fn new(net: Arc<Net>) -> Links {
        Links { net, kept: Mutex::default() }
    }

    /// Sends `message` to `node` and returns its answer. When the future is dropped, so is the connection: an answer can
    /// never be taken for that to another call.
    ///
    /// # Errors
    /// The node can't be reached, or did not answer within `patience`, or not in words that are understood.
    pub async fn call<T: DeserializeOwned>(
        &self,
        node: NodeId,
        alpn: Alpn,
        message: &impl Serialize,
        patience: Duration,
    ) -> io::Result<T> {
        let deadline = Instant::now() + patience;
        let within = |what: &'static str| move |_| io::Error::new(io::ErrorKind::TimedOut, what);
        // A kept connection may have been closed by the other end since; then a new one is tried once.
        if let Some(mut stream) = self.take(node, alpn) {
            let answer =
                timeout_at(deadline, exchange(&mut stream, message)).await.map_err(within("no answer in time"))?;
            if let Ok(answer) = answer {
                self.keep(node, alpn, stream);
                return decode(&answer);
            }
        }
        self.may_connect(node, alpn)?;
        let connected =
            timeout_at(deadline, self.net.connect(node, alpn)).await.map_err(within("no connection in time"));
        let mut stream = match connected.flatten() {
            Ok(stream) => stream,
            Err(error) => {
                self.failed(node, alpn, &error);
                return Err(error);
            }
        };
        let answer =
            timeout_at(deadline, exchange(&mut stream, message)).await.map_err(within("no answer in time"))??;
        self.keep(node, alpn, stream);
        decode(&answer)
    }

    fn take(&self, node: NodeId, alpn: Alpn) -> Option<Stream> {
        self.kept().get_mut(&(node, alpn))?.idle.pop()
    }

    fn keep(&self, node: NodeId, alpn: Alpn, stream: Stream) {
        let mut kept = self.kept();
        let kept = kept.entry((node, alpn)).or_default();
        kept.failing = None;
        if kept.idle.len() < IDLE {
            kept.idle.push(stream);
        }
    }

    fn may_connect(&self, node: NodeId, alpn: Alpn) -> io::Result<()> {
        let kept = self.kept();
        match kept.get(&(node, alpn)).and_then(|kept| kept.failing.as_ref()) {
            Some(failing) if failing.until > Instant::now() => Err(io::Error::other(failing.why.clone())),
            _ => Ok(()),
        }
    }

    fn failed(&self, node: NodeId, alpn: Alpn, error: &io::Error) {
        let mut kept = self.kept();
        let failing = &mut kept.entry((node, alpn)).or_default().failing;
        let pause = failing.as_ref().map_or(FIRST_PAUSE, |before| (before.pause * 2).min(LONGEST_PAUSE));
        *failing = Some(Failing { until: Instant::now() + pause, pause, why: error.to_string() });
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, BTreeMap<(NodeId, Alpn), Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn exchange(stream: &mut Stream, message: &impl Serialize) -> io::Result<Vec<u8>> {
    write_frame(stream, message).await?;
    read_frame(stream).await?.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"))
}
