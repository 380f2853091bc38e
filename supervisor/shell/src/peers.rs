//! The peer channel: heartbeats to the other nodes and from them, one UDP datagram each.
//!
//! # Under flood
//!
//! Anyone on the link may send to the peer port, in any node's name. Three things would then hurt: the work for each forged
//! datagram, genuine ones that find the queue full, and a loop that is kept busy. So datagrams are sorted in the kernel, before
//! they queue, by two classic BPF programs ([`steer`]):
//!
//! - a filter drops what does not come from a node's address (and in that node's name) and is no probe, has made more than one hop, or has
//!   an impossible length;
//! - for each peer there is a socket of its own on the same port (`SO_REUSEPORT`) that gets only datagrams of the *session
//!   that the core believes this peer to be in*. A session is 64 random bits, so a blind attacker cannot hit that queue, and
//!   one that has seen a peer's datagrams can fill only the queue of that peer;
//! - all others, first of all those of a peer that has just started, go to the *lobby*, a small queue that is looked at only
//!   [`BATCH`] datagrams each [`LOBBY_PAUSE`]. What they cost is therefore bounded, however many are sent.
//!
//! # What need not wake anybody
//!
//! At rest each beat of the leader is answered by all others. The leader reads the answers when it wakes for its next beat, or for
//! anything else, and so does whoever overhears them: [`Handle::catch_up`]. Sockets that nobody polls hold them until then; the
//! sender says openly which heartbeats are routine ([`Heartbeat::routine`]). That saves two of three wake-ups. Where
//! somebody puts datagrams of his own into such a queue, everything wakes again for [`EAGER`].
//!
//! # Sessions
//!
//! Which session a peer is in the core says in its own heartbeats: they echo it. Connected sockets would isolate peers from each
//! other as well, but leave each open to whoever spoofs its address; an nft limit would throw genuine heartbeats away with the
//! forged. The price: `SO_REUSEPORT` lets a second process of root join the port, so a lone socket is bound first, as a test.
//!
//! # A second path
//!
//! See [`detour`].
//!
//! # What the network carries
//!
//! See [`barred`].

mod barred;
mod detour;
mod steer;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use trilith_core::config::{MAX_NODES, NodeId, Settings};
use trilith_core::event::Event;
use trilith_core::wire::{Authentic, Heartbeat, MAX_DATAGRAM, Opener, PROBE, Relaying, Sealer, Session, WireError};

use crate::net::tunnel::Tunnels;
use barred::{Barred, foreign};
use detour::Detour;
use steer::{LOBBY, Sockets};

/// Starts the peer channel of node `me` in `session`, which must have been drawn at random at this start of the supervisor.
///
/// The channel ends when the handle is dropped. It tells by `tunnels` between which nodes the network does not carry what is relayed.
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
    tunnels: watch::Sender<Tunnels>,
) -> anyhow::Result<Handle> {
    let port = settings.set.peer_port;
    let addresses: Vec<SocketAddr> = settings.nodes.iter().map(|node| SocketAddr::new(node.address, port)).collect();
    let own = addresses[usize::from(me.0)];
    let sockets = Sockets::bind(own, me, &addresses)
        .with_context(|| format!("peer port {own} of node {}", settings.node_name(me)))?;
    let sockets = Arc::new(sockets);
    let set = &settings.set.name;
    let channel = Channel {
        me,
        sealer: Sealer::new(secret, set, me, session),
        opener: Opener::new(secret, set, addresses.len() as u8, me),
        addresses,
        sockets: Arc::clone(&sockets),
        sessions: [None; MAX_NODES],
        eager_until: None,
        detour: Detour::new(own, me, Instant::now()),
        barred: Barred::new(own, Instant::now()),
        tunnels,
        events,
        stats: Stats::default(),
        strange: [None; MAX_NODES],
        last_warning: None,
        datagram: Vec::with_capacity(MAX_DATAGRAM),
    };
    let channel = Arc::new(Mutex::new(channel));
    let reader = tokio::spawn(read(Arc::clone(&channel), sockets)).abort_handle();
    Ok(Handle { channel, reader })
}

/// The running channel.
pub struct Handle {
    channel: Arc<Mutex<Channel>>,
    reader: AbortHandle,
}

impl Handle {
    /// Seals once, sends to all. What cannot be sent is lost, as it might be on the way: the next one is due soon.
    pub fn broadcast(&self, heartbeat: &Heartbeat) {
        locked(&self.channel).broadcast(heartbeat);
    }

    /// Reads what is routine. To be called before the clock is read for a decision, lest what has come in time count as late.
    pub fn catch_up(&self) {
        locked(&self.channel).catch_up();
    }

    /// What has been counted since the start.
    pub fn stats(&self) -> Stats {
        let channel = locked(&self.channel);
        Stats { thrown_away: channel.sockets.thrown_away(), ..channel.stats }
    }

    /// Nodes from whose address something came within [`STRANGE_FOR`] that this set's name and secret have not sealed: that
    /// node may have been given another secret, or somebody lies about where he is.
    pub fn strangers(&self) -> Vec<NodeId> {
        let strange = locked(&self.channel).strange;
        let strange = (0..).map(NodeId).zip(strange);
        strange.filter(|(_, at)| at.is_some_and(|at| at.elapsed() < STRANGE_FOR)).map(|(node, _)| node).collect()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.reader.abort();
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
    /// Thrown away by the kernel: neither from a node's address nor a probe, or the queue was full.
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
    sockets: Arc<Sockets>,
    /// The session that the core believes each node to be in.
    sessions: [Option<Session>; MAX_NODES],
    /// Nothing may wait until then, routine or not.
    eager_until: Option<Instant>,
    detour: Detour,
    barred: Barred,
    tunnels: watch::Sender<Tunnels>,
    events: mpsc::Sender<Event>,
    stats: Stats,
    /// When something forged last came from each node's address.
    strange: [Option<Instant>; MAX_NODES],
    last_warning: Option<Instant>,
    /// The last one sent; kept for its memory.
    datagram: Vec<u8>,
}

/// Waits for datagrams that wake, for ever.
async fn read(channel: Arc<Mutex<Channel>>, sockets: Arc<Sockets>) {
    // Where the next look at the queues begins, so that a busy one cannot starve the others.
    let mut first = 0;
    let mut lobby_opens = None;
    loop {
        let queue = next_readable(&sockets.waking, first, lobby_opens).await;
        first = (queue + 1) % sockets.waking.len();
        if queue == LOBBY {
            lobby_opens = Some(tokio::time::Instant::now() + LOBBY_PAUSE);
        }
        let drained = {
            let mut channel = locked(&channel);
            // An earlier counter would not be opened after a later one.
            channel.catch_up();
            channel.drain(|buffer| sockets.waking[queue].try_recv_from(buffer))
        };
        if drained == Drained::ForNow {
            // Whatever waits in the rest of the supervisor comes before the next batch.
            tokio::task::yield_now().await;
        }
    }
}

impl Channel {
    fn broadcast(&mut self, heartbeat: &Heartbeat) {
        self.follow(heartbeat);
        let now = Instant::now();
        let paths = self.detour.plan(self.addresses.len(), now, heartbeat.lease, |peer| self.opener.deaf(peer));
        if paths.detour != 0 {
            self.detour.keep_up(now);
        }
        self.sealer.set_deaf(paths.deaf);
        let tunnelled = self.tunnels.borrow().to;
        self.sealer.set_relaying(self.barred.found().map(|found| Relaying { tunnelled, ..found }));
        self.sealer.seal(heartbeat, &mut self.datagram);
        for (node, address) in self.addresses.iter().enumerate().filter(|(node, _)| *node != usize::from(self.me.0)) {
            // Each peer's own socket, so that datagrams that wait for a dead one's MAC address take no other's room. Past the
            // event loop, which does not know yet at the first heartbeat that there is room.
            match SockRef::from(&self.sockets.routine[node]).send_to(&self.datagram, &(*address).into()) {
                Ok(_) => self.stats.sent += 1,
                Err(_) => self.stats.not_sent += 1,
            }
            if paths.detour & 1 << node != 0 && self.detour.send(&self.datagram, *address) {
                self.stats.detoured += 1;
            }
        }
        if self.barred.is_due(now) {
            self.sealer.probe(&mut self.datagram);
            for (_, address) in self.addresses.iter().enumerate().filter(|(node, _)| *node != usize::from(self.me.0)) {
                self.barred.send(&self.datagram, *address);
            }
        }
    }

    /// Learns from the core's own heartbeat which session each peer is in, and lets it into that peer's queue.
    fn follow(&mut self, heartbeat: &Heartbeat) {
        let believed = heartbeat.heard.map(|echo| echo.map(|echo| echo.session));
        let calm = self.eager_until.take_if(|until| *until <= Instant::now()).is_some();
        if believed == self.sessions && !calm {
            return;
        }
        self.sessions = believed;
        for (node, session) in believed.iter().enumerate() {
            if let Some(session) = session {
                self.opener.settle(NodeId(node as u8), *session);
            }
        }
        self.steer();
    }

    fn steer(&self) {
        if let Err(error) = self.sockets.steer(&self.sessions, self.eager_until.is_none()) {
            // All datagrams go on to the queues that they went to before: slower under flood, but right.
            tracing::warn!("cannot tell the kernel which sessions the peers are in: {error}");
        }
    }

    fn catch_up(&mut self) {
        let sockets = Arc::clone(&self.sockets);
        let refused = self.stats.forged + self.stats.replayed;
        let me = usize::from(self.me.0);
        for (_, socket) in sockets.routine.iter().enumerate().filter(|(node, _)| *node != me) {
            self.drain(|buffer| socket.recv_from(buffer));
        }
        if self.stats.forged + self.stats.replayed != refused {
            let calm = self.eager_until.replace(Instant::now() + EAGER).is_none();
            if calm {
                self.steer();
            }
        }
    }

    fn drain(&mut self, mut receive: impl FnMut(&mut [u8]) -> io::Result<(usize, SocketAddr)>) -> Drained {
        let mut buffer = [0; MAX_DATAGRAM + 1];
        for _ in 0..BATCH {
            match receive(&mut buffer) {
                Ok((length, source)) => self.take(&buffer[..length], source),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Drained::Dry,
                // An ICMP error that came back for something sent; the next call goes on.
                Err(_) => {}
            }
        }
        Drained::ForNow
    }

    fn take(&mut self, datagram: &[u8], source: SocketAddr) {
        // A probe that comes from its sender's own address has found out nothing.
        let opened = match datagram.starts_with(&PROBE) && source.ip() == foreign(source.ip()) {
            true => self.opener.open_probe(datagram).map(|peer| self.barred.probed(peer, Instant::now())),
            false => self.opener.open(datagram).map(|authentic| self.hear(authentic, source)),
        };
        if let Err(refused) = opened {
            self.refuse(refused, source);
        }
    }

    fn hear(&mut self, authentic: Authentic, source: SocketAddr) {
        self.stats.received += 1;
        let (from, now) = (authentic.from(), Instant::now());
        let believed = self.sessions[usize::from(from.0)];
        if believed.is_none_or(|session| session == authentic.heartbeat().session) {
            let direct = self.detour.heard(from, source, now);
            if direct && self.opener.relaying(from).is_some() {
                self.barred.heard(from, now);
            }
        }
        // What was recorded in an earlier session is authentic, too.
        if believed == Some(authentic.heartbeat().session) {
            self.learn_ways(from);
        }
        if self.events.try_send(Event::Peer(authentic)).is_err() {
            self.stats.overflowed += 1;
        }
    }

    /// Follows what a peer says of what is relayed between it and this node.
    fn learn_ways(&mut self, from: NodeId) {
        let (me, peer) = (1_u8 << self.me.0, 1_u8 << from.0);
        // One that says nothing knows no tunnels: a version before them.
        let said = self.opener.relaying(from).unwrap_or(Relaying { open: me, ..Relaying::default() });
        let found = self.barred.found().unwrap_or_default();
        self.tunnels.send_if_modified(|tunnels| {
            let before = *tunnels;
            if said.barred & me != 0 {
                tunnels.to |= peer;
            } else if said.open & me != 0 {
                tunnels.to &= !peer;
            }
            let comes = (said.tunnelled & me != 0) || (found.barred & peer != 0);
            tunnels.from = tunnels.from & !peer | if comes { peer } else { 0 };
            *tunnels != before
        });
    }

    fn refuse(&mut self, refused: WireError, source: SocketAddr) {
        match refused {
            WireError::Forged => self.stats.forged += 1,
            WireError::Replayed { .. } => self.stats.replayed += 1,
            _ => self.stats.malformed += 1,
        }
        let now = Instant::now();
        if refused == WireError::Forged {
            let whose = self.addresses.iter().position(|address| address.ip() == source.ip());
            whose.into_iter().for_each(|node| self.strange[node] = Some(now));
        }
        let quiet = self.last_warning.is_some_and(|last| now.duration_since(last) < WARNING_PAUSE);
        if !quiet && !matches!(refused, WireError::Replayed { .. }) {
            self.last_warning = Some(now);
            let Stats { forged, replayed, malformed, .. } = self.stats;
            tracing::warn!(
                "a datagram from {source} is refused: {refused}; since the start {forged} forged, {replayed} replayed, \
                 {malformed} malformed. Do all nodes have the same set name and secret?"
            );
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

fn locked(channel: &Mutex<Channel>) -> MutexGuard<'_, Channel> {
    channel.lock().expect("a panic would have ended the supervisor")
}

/// Datagrams that are read from one queue before the rest of the supervisor gets its turn: about 0.1 ms of work.
pub const BATCH: usize = 32;
/// How long the lobby stays closed after it was looked at. With [`BATCH`] it bounds the work for unknown sessions: at most
/// 6,400 a second, about 3 % of a core. A peer that starts under a flood gets in by luck, one of its heartbeats after another.
pub const LOBBY_PAUSE: Duration = Duration::from_millis(5);
/// At most one warning about refused datagrams in this time.
pub const WARNING_PAUSE: Duration = Duration::from_secs(10);
/// How long it is told that a node's address has sent what is not of this set: longer than a supervisor takes to start anew.
const STRANGE_FOR: Duration = Duration::from_secs(60);
/// How long everything wakes after a datagram that is not genuine was found among those that may wait: they must not fill the queue
/// between two beats.
pub const EAGER: Duration = Duration::from_secs(10);
