//! The peer channel: heartbeats to the other nodes and from them, one UDP datagram each.
//!
//! # Under flood
//!
//! Anyone on the link may send to the peer port, in any node's name. Three things would then hurt: the work for each forged
//! datagram, genuine ones that find the queue full, and a loop that is kept busy. So datagrams are sorted in the kernel, before
//! they queue, by two classic BPF programs ([`steer`]):
//!
//! - a filter drops what does not come from a node's address (and in that node's name), has made more than one hop, or has
//!   an impossible length;
//! - for each peer there is a socket of its own on the same port (`SO_REUSEPORT`) that gets only datagrams of the *session
//!   that the core believes this peer to be in*. A session is 64 random bits, so a blind attacker cannot hit that queue, and
//!   one that has seen a peer's datagrams can fill only the queue of that peer;
//! - all others, first of all those of a peer that has just started, go to the *lobby*, a small queue that is looked at only
//!   [`BATCH`] datagrams each [`LOBBY_PAUSE`]. What they cost is therefore bounded, however many are sent.
//!
//! Which session a peer is in the core says in its own heartbeats: they echo it. Connected sockets would isolate peers from each
//! other as well, but leave each open to whoever spoofs its address; an nft limit would throw genuine heartbeats away with the
//! forged. The price: `SO_REUSEPORT` lets a second process of root join the port, so a lone socket is bound first, as a test.
//!
//! # A second path
//!
//! See [`detour`].

mod detour;
mod steer;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use trilith_core::command::Command;
use trilith_core::config::{MAX_NODES, NodeId, Settings};
use trilith_core::event::Event;
use trilith_core::wire::{Heartbeat, MAX_DATAGRAM, Opener, Sealer, Session, WireError};

use detour::Detour;

/// Starts the peer channel of node `me` in `session`, which must have been drawn at random at this start of the supervisor.
///
/// The channel ends when the handle is dropped.
///
/// # Errors
///
/// When the node's address and port cannot be bound, or a socket not be set up. An address that this machine does not have
/// *yet* is no error but a warning: the channel works as soon as it has.
pub fn start(
    settings: &Settings,
    me: NodeId,
    secret: &[u8],
    session: Session,
    events: mpsc::Sender<Event>,
) -> anyhow::Result<Handle> {
    let port = settings.set.peer_port;
    let addresses: Vec<SocketAddr> = settings.nodes.iter().map(|node| SocketAddr::new(node.address, port)).collect();
    let own = addresses[usize::from(me.0)];
    steer::try_alone(own).with_context(|| format!("peer port {own} of node {}", settings.node_name(me)))?;
    let sockets = steer::sockets(own, me, &addresses)
        .with_context(|| format!("sockets at {own} for the peers of node {}", settings.node_name(me)))?;
    let sockets = Arc::new(sockets);
    let stats = Arc::new(Mutex::new(Stats::default()));
    let (commands, orders) = mpsc::channel(COMMANDS);
    let set = &settings.set.name;
    let channel = Channel {
        me,
        sealer: Sealer::new(secret, set, me, session),
        opener: Opener::new(secret, set, addresses.len() as u8, me),
        addresses,
        sockets: Arc::clone(&sockets),
        sessions: [None; MAX_NODES],
        detour: Detour::new(own, me, Instant::now()),
        events,
        stats: Arc::clone(&stats),
        lobby_opens: None,
        last_warning: None,
        first_queue: 0,
    };
    tokio::spawn(channel.run(orders));
    Ok(Handle { commands, sockets, stats })
}

/// The running channel.
pub struct Handle {
    /// Takes [`Command::Broadcast`].
    pub commands: mpsc::Sender<Command>,
    sockets: Arc<Vec<UdpSocket>>,
    stats: Arc<Mutex<Stats>>,
}

impl Handle {
    /// What has been counted since the start.
    pub fn stats(&self) -> Stats {
        let thrown_away = self.sockets.iter().map(steer::thrown_away).sum();
        Stats { thrown_away, ..*locked(&self.stats) }
    }
}

/// What the channel has counted since its start, in datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Given to the kernel to send, on the direct path.
    pub sent: u64,
    /// The same by way of the gateway.
    pub detoured: u64,
    /// Not sent: no route, no neighbour, no room, or refused by a firewall.
    pub not_sent: u64,
    /// Authentic ones received.
    pub received: u64,
    /// Thrown away by the kernel: not from a node's address, or the queue was full.
    pub thrown_away: u64,
    /// Refused: not sealed with this set's secret and name, or changed.
    pub forged: u64,
    /// Refused: heard before. The second copy that came by way of the gateway counts here too.
    pub replayed: u64,
    /// Refused: not a datagram of ours, or of a node that is not in the set.
    pub malformed: u64,
    /// Authentic, but the supervisor's queue of events was full.
    pub overflowed: u64,
}

/// How much of a queue was read.
#[derive(PartialEq, Eq)]
enum Drained {
    /// All.
    Dry,
    /// A batch; there may be more.
    ForNow,
}

struct Channel {
    me: NodeId,
    sealer: Sealer,
    opener: Opener,
    /// By [`NodeId`].
    addresses: Vec<SocketAddr>,
    /// The lobby, then one for each node by [`NodeId`] (the one of `me` is idle): index in [`steer::program`].
    sockets: Arc<Vec<UdpSocket>>,
    /// The session that the core believes each node to be in.
    sessions: [Option<Session>; MAX_NODES],
    detour: Detour,
    events: mpsc::Sender<Event>,
    stats: Arc<Mutex<Stats>>,
    /// When the lobby may be looked at again.
    lobby_opens: Option<tokio::time::Instant>,
    last_warning: Option<Instant>,
    /// Where the next look at the queues begins, so that a busy one cannot starve the others.
    first_queue: usize,
}

impl Channel {
    async fn run(mut self, mut orders: mpsc::Receiver<Command>) {
        let mut datagram = Vec::with_capacity(MAX_DATAGRAM);
        let mut buffer = [0; MAX_DATAGRAM + 1];
        loop {
            tokio::select! {
                // Own heartbeats first: peers wait for them, whatever comes in.
                biased;
                order = orders.recv() => match order {
                    Some(Command::Broadcast(heartbeat)) => self.broadcast(&heartbeat, &mut datagram),
                    Some(other) => tracing::error!("the peer channel cannot carry out {other:?}"),
                    None => return,
                },
                queue = next_readable(&self.sockets, self.first_queue, self.lobby_opens) => {
                    if self.drain(queue, &mut buffer) == Drained::ForNow {
                        // Whatever waits in the rest of the supervisor comes before the next batch.
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
    }

    /// Seals once, sends to all. What cannot be sent is lost, as it might be on the way: the next one is due soon.
    fn broadcast(&mut self, heartbeat: &Heartbeat, datagram: &mut Vec<u8>) {
        self.follow(heartbeat);
        let now = Instant::now();
        let paths = self.detour.plan(self.addresses.len(), now, heartbeat.lease, |peer| self.opener.deaf(peer));
        if paths.detour != 0 {
            self.detour.keep_up(now);
        }
        self.sealer.set_deaf(paths.deaf);
        self.sealer.seal(heartbeat, datagram);
        let mut stats = locked(&self.stats);
        for (node, address) in self.addresses.iter().enumerate().filter(|(node, _)| *node != usize::from(self.me.0)) {
            // Each peer's own socket, so that datagrams that wait for a dead one's MAC address take no other's room. Past the
            // event loop, which does not know yet at the first heartbeat that there is room.
            match SockRef::from(&self.sockets[node + 1]).send_to(datagram, &(*address).into()) {
                Ok(_) => stats.sent += 1,
                Err(_) => stats.not_sent += 1,
            }
            if paths.detour & 1 << node != 0 && self.detour.send(datagram, *address) {
                stats.detoured += 1;
            }
        }
    }

    /// Learns from the core's own heartbeat which session each peer is in, and lets it into that peer's queue.
    fn follow(&mut self, heartbeat: &Heartbeat) {
        let believed = heartbeat.heard.map(|echo| echo.map(|echo| echo.session));
        if believed == self.sessions {
            return;
        }
        self.sessions = believed;
        for (node, session) in believed.iter().enumerate() {
            if let Some(session) = session {
                self.opener.settle(NodeId(node as u8), *session);
            }
        }
        if let Err(error) = steer::steer(&self.sockets[LOBBY], &self.sessions) {
            // All datagrams go on to the queues that they went to before: slower under flood, but right.
            tracing::warn!("cannot tell the kernel which sessions the peers are in: {error}");
        }
    }

    fn drain(&mut self, queue: usize, buffer: &mut [u8]) -> Drained {
        self.first_queue = (queue + 1) % self.sockets.len();
        if queue == LOBBY {
            self.lobby_opens = Some(tokio::time::Instant::now() + LOBBY_PAUSE);
        }
        for _ in 0..BATCH {
            match self.sockets[queue].try_recv_from(buffer) {
                Ok((length, source)) => self.take(&buffer[..length], source),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Drained::Dry,
                // An ICMP error that came back for something sent; the next call goes on.
                Err(_) => {}
            }
        }
        Drained::ForNow
    }

    fn take(&mut self, datagram: &[u8], source: SocketAddr) {
        let mut stats = locked(&self.stats);
        match self.opener.open(datagram) {
            Ok(authentic) => {
                stats.received += 1;
                let node = usize::from(authentic.from().0);
                if self.sessions[node].is_none_or(|session| session == authentic.heartbeat().session) {
                    self.detour.heard(authentic.from(), source, Instant::now());
                }
                if self.events.try_send(Event::Peer(authentic)).is_err() {
                    stats.overflowed += 1;
                }
            }
            Err(refused) => {
                match refused {
                    WireError::Forged => stats.forged += 1,
                    WireError::Replayed { .. } => stats.replayed += 1,
                    _ => stats.malformed += 1,
                }
                let now = Instant::now();
                let quiet = self.last_warning.is_some_and(|last| now.duration_since(last) < WARNING_PAUSE);
                if !quiet && !matches!(refused, WireError::Replayed { .. }) {
                    self.last_warning = Some(now);
                    let Stats { forged, replayed, malformed, .. } = *stats;
                    tracing::warn!(
                        "a datagram from {source} is refused: {refused}; since the start {forged} forged, {replayed} replayed, \
                         {malformed} malformed. Do all nodes have the same set name and secret?"
                    );
                }
            }
        }
    }
}

/// The next socket that has something to read, from `first` on; the lobby only once it `opens`.
async fn next_readable(sockets: &[UdpSocket], first: usize, opens: Option<tokio::time::Instant>) -> usize {
    let mut pause = std::pin::pin!(tokio::time::sleep_until(opens.unwrap_or_else(tokio::time::Instant::now)));
    poll_fn(|context| {
        let order = (first..sockets.len()).chain(0..first);
        for queue in order {
            let closed = queue == LOBBY && opens.is_some() && pause.as_mut().poll(context).is_pending();
            if !closed && sockets[queue].poll_recv_ready(context).is_ready() {
                return Poll::Ready(queue);
            }
        }
        Poll::Pending
    })
    .await
}

fn locked(stats: &Mutex<Stats>) -> MutexGuard<'_, Stats> {
    stats.lock().expect("nobody panics while counting")
}

/// Index of the lobby's socket. It must be 0, which is also what a BPF program returns that reads past a datagram's end.
const LOBBY: usize = 0;
/// Datagrams that are read from one queue before the rest of the supervisor gets its turn: about 0.1 ms of work.
pub const BATCH: usize = 32;
/// How long the lobby stays closed after it was looked at. With [`BATCH`] it bounds the work for unknown sessions: at most
/// 6,400 a second, about 3 % of a core. A peer that starts under a flood gets in by luck, one of its heartbeats after another.
pub const LOBBY_PAUSE: Duration = Duration::from_millis(5);
/// At most one warning about refused datagrams in this time.
pub const WARNING_PAUSE: Duration = Duration::from_secs(10);
/// Commands that may wait.
const COMMANDS: usize = 16;
