//! Connections between the nodes: mutual TLS 1.3 over TCP, on the port of the peer channel.
//!
//! What may come from outside, and what it costs at most:
//!
//! | from | costs |
//! |---|---|
//! | an address that is no node's | an accept and a close |
//! | a node's address, without that node's key | one of [`HALF_OPEN`] places of that node for [`HANDSHAKE_PATIENCE`], and the 64 KiB that rustls reads of a handshake at most |
//! | a node | one of [`CONNECTIONS`] places of that node, and frames of [`MAX_FRAME`] bytes at most |
//!
//! Nothing of a connection is looked at before both sides have proved who they are, so what is not authenticated changes nothing.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use trilith_core::config::{NodeId, Settings};

mod keys;
pub(crate) mod links;
#[cfg(test)]
mod tests;

use keys::Keys;

/// A connection to another node that both ends have proved to each other.
pub type Stream = tokio_rustls::TlsStream<TcpStream>;

/// Connections from a node's address whose other end has not proved yet to be that node.
pub const HALF_OPEN: usize = 4;
/// Connections that a node may have open to this one.
pub const CONNECTIONS: usize = 16;
/// How long a handshake may take.
pub const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection attempt may take.
pub const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// The longest frame, in bytes: a snapshot, or a batch of entries, with room around it.
pub const MAX_FRAME: usize = 9 * 1024 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alpn {
    /// Raft's own messages.
    Raft,
    /// Greetings, forwarded requests, admissions.
    Set,
    /// Parts of bundles.
    Blocks,
}

impl Alpn {
    /// All of them.
    pub const ALL: [Alpn; 3] = [Alpn::Raft, Alpn::Set, Alpn::Blocks];

    /// Its name on the wire (RFC 7301).
    pub fn name(self) -> &'static [u8] {
        match self {
            Alpn::Raft => b"trilith-raft/1",
            Alpn::Set => b"trilith-set/1",
            Alpn::Blocks => b"trilith-blocks/1",
        }
    }

    fn named(name: Option<&[u8]>) -> Option<Alpn> {
        Alpn::ALL.into_iter().find(|alpn| Some(alpn.name()) == name)
    }
}

impl fmt::Display for Alpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.name()))
    }
}

/// What receives the connections that peers make.
pub(crate) type Serve = Arc<dyn Fn(Incoming) + Send + Sync>;

/// A connection that a peer has made.
pub(crate) struct Incoming {
    /// The connection.
    pub stream: Stream,
    /// Whose.
    pub from: NodeId,
    /// What it asks for.
    pub alpn: Alpn,
    /// Its place among those of this peer; to be dropped with the stream.
    pub place: OwnedSemaphorePermit,
}

/// This node's end of all connections.
#[derive(Debug)]
pub struct Net {
    settings: Arc<Settings>,
    me: NodeId,
    keys: Keys,
    places: Vec<Places>,
}

#[derive(Debug)]
struct Places {
    half_open: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Net {
    /// For node `me` of this set.
    pub fn new(secret: &[u8], settings: Arc<Settings>, me: NodeId) -> Net {
        let places =
            || Places { half_open: Arc::new(Semaphore::new(HALF_OPEN)), open: Arc::new(Semaphore::new(CONNECTIONS)) };
        let places = settings.nodes.iter().map(|_| places()).collect();
        Net { keys: Keys::new(secret, &settings, me), settings, me, places }
    }

    /// Connects to a node.
    ///
    /// # Errors
    /// It can't be reached within [`CONNECT_PATIENCE`], is not that node, or does not speak `alpn`.
    pub async fn connect(&self, node: NodeId, alpn: Alpn) -> io::Result<Stream> {
        let place = usize::from(node.0);
        let target = self.settings.nodes.get(place).filter(|_| node != self.me);
        let Some(target) = target else {
            return Err(io::Error::other(format!("node {place} is no other node of the set")));
        };
        let address = SocketAddr::new(target.address, self.settings.set.peer_port);
        let connected = timeout(CONNECT_PATIENCE, self.own_socket()?.connect(address)).await;
        let stream = connected.map_err(|_| timed_out(format!("{address} did not answer")))??;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::new(self.keys.client(node, alpn)));
        let name = ServerName::IpAddress(target.address.into());
        let shaken = timeout(HANDSHAKE_PATIENCE, connector.connect(name, stream)).await;
        let stream = shaken.map_err(|_| timed_out(format!("{address} did not finish the TLS handshake")))??;
        match Alpn::named(stream.get_ref().1.alpn_protocol()) == Some(alpn) {
            true => Ok(Stream::Client(stream)),
            false => Err(io::Error::other(format!("{address} does not speak {alpn}"))),
        }
    }

    /// Opens the port on this node's own address, whether the address is there yet or not.
    pub(crate) fn listener(&self) -> io::Result<TcpListener> {
        let own = SocketAddr::new(self.own_address(), self.settings.set.peer_port);
        let opened = Socket::new(Domain::for_address(own), Type::STREAM, None).and_then(|socket| {
            socket.set_nonblocking(true)?;
            match own {
                SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
                SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
            }
            socket.set_reuse_address(true)?;
            socket.bind(&own.into())?;
            socket.listen(BACKLOG)?;
            TcpListener::from_std(socket.into())
        });
        opened.map_err(|error| io::Error::new(error.kind(), format!("listening on TCP {own} failed: {error}")))
    }

    /// Accepts connections for ever.
    pub(crate) async fn accept(self: Arc<Self>, listener: TcpListener, serve: Serve) {
        let acceptor = TlsAcceptor::from(Arc::new(self.keys.server()));
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, most likely: there is nothing to close here, so others must get on first.
                    tracing::warn!("set: accepting a connection failed: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(node) = self.node_at(from.ip()) else { continue };
            let Ok(half_open) = self.places[node].half_open.clone().try_acquire_owned() else { continue };
            let (net, acceptor, serve) = (self.clone(), acceptor.clone(), serve.clone());
            tokio::spawn(async move {
                match timeout(HANDSHAKE_PATIENCE, net.admit(stream, node, acceptor)).await {
                    Ok(Ok(incoming)) => serve(incoming),
                    Ok(Err(error)) => tracing::debug!("set: a connection from {from} was refused: {error}"),
                    Err(_) => tracing::debug!("set: a connection from {from} did not finish its handshake"),
                }
                drop(half_open);
            });
        }
    }

    async fn admit(&self, stream: TcpStream, node: usize, acceptor: TlsAcceptor) -> io::Result<Incoming> {
        stream.set_nodelay(true)?;
        let stream = acceptor.accept(stream).await?;
        let (_, session) = stream.get_ref();
        let key = session.peer_certificates().and_then(|keys| keys.first());
        let from = key.and_then(|key| self.keys.holder(key)).filter(|from| usize::from(from.0) == node);
        let Some(from) = from else { return Err(io::Error::other("its key is not that of the node at this address")) };
        let Some(alpn) = Alpn::named(session.alpn_protocol()) else {
            return Err(io::Error::other("it named no protocol"));
        };
        let place = self.places[node].open.clone().try_acquire_owned();
        let Ok(place) = place else { return Err(io::Error::other("the node has too many connections open")) };
        Ok(Incoming { stream: Stream::Server(stream), from, alpn, place })
    }

    /// From the own address, so that the other end knows it.
    fn own_socket(&self) -> io::Result<TcpSocket> {
        let own = self.own_address();
        let socket = if own.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(own, 0))?;
        Ok(socket)
    }

    fn own_address(&self) -> IpAddr {
        self.settings.nodes[usize::from(self.me.0)].address
    }

    fn node_at(&self, address: IpAddr) -> Option<usize> {
        self.settings.nodes.iter().position(|node| node.address == address)
    }
}

/// Reads one frame: its length (u32, big-endian), then JSON. `None` at the end of the stream.
///
/// # Errors
/// The stream breaks, or the frame is longer than [`MAX_FRAME`]. Memory grows with what arrives, not with what is announced.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u32().await {
        Ok(length) => length as usize,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > MAX_FRAME {
        return Err(io::Error::other(format!("a frame of {length} bytes is announced, more than {MAX_FRAME}")));
    }
    let mut frame = Vec::new();
    stream.take(length as u64).read_to_end(&mut frame).await?;
    match frame.len() == length {
        true => Ok(Some(frame)),
        false => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ended within a frame")),
    }
}

/// Writes one frame.
///
/// # Errors
/// The stream breaks, or the frame would be longer than [`MAX_FRAME`].
pub async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(io::Error::other(format!("a frame would have {length} bytes, more than {MAX_FRAME}")));
    }
    frame[..4].copy_from_slice(&(length as u32).to_be_bytes());
    stream.write_all(&frame).await?;
    stream.flush().await
}

/// The message in a frame.
///
/// # Errors
/// It is none of ours, or one that only a later version knows.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> io::Result<T> {
    serde_json::from_slice(frame).map_err(|error| io::Error::other(format!("a message is not understood: {error}")))
}

fn timed_out(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
