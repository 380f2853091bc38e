//! Whether the network carries what the relay sends: packets with the address of a client, from a machine that does not have it.
//!
//! Some networks let a machine send only from its own addresses: SpoofGuard of NSX, IP source guard of switches, `clean-traffic` of
//! libvirt. Heartbeats pass there, and the VIP does when it is allowed, but each connection breaks whose VIP has moved. So every
//! node sends its peers a probe every [`EVERY`], from an address that is nobody's ([`foreign`]). Only a receiver knows what has
//! not come: who hears a peer directly for [`PATIENCE`] and no probe of it says so in its heartbeats, and that peer
//! relays to it through a tunnel ([`crate::net::tunnel`]) until it says that a probe has come. Who has just started knows neither, and changes
//! nothing; that it is sent to through a tunnel others say, so it has one at once.
//!
//! What is not found: a network that guards IPv6 addresses alone, where nodes have IPv4 ones; a firewall between the nodes that wants to have
//! seen the beginning of each *TCP* connection, since a probe is a datagram; and one that drops probes alone, or the tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use trilith_core::config::{MAX_NODES, NodeId};
use trilith_core::wire::Relaying;

use super::steer;

/// The address that probes come from: one for documentation (RFC 5737, RFC 3849), so nobody's, of the same family as `own`.
pub(super) fn foreign(own: IpAddr) -> IpAddr {
    match own {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// What comes from which peer, and the socket of the probes.
pub(super) struct Barred {
    /// `None` when the kernel refuses it: then nothing is said of anybody, and nobody waits for this node's probes.
    socket: Option<UdpSocket>,
    due: Instant,
    peers: [Peer; MAX_NODES],
}

#[derive(Clone, Copy, Default)]
struct Peer {
    /// Whether only what bears its own address comes from it, once that is known.
    barred: Option<bool>,
    /// When its last heartbeat came directly.
    heard: Option<Instant>,
    /// Since when a probe of it is waited for.
    waiting: Option<Instant>,
}

impl Barred {
    /// The first probe is due at once.
    pub(super) fn new(own: SocketAddr, now: Instant) -> Barred {
        let socket = steer::sending(own, foreign(own.ip()), |socket| match own {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true).context("IP_TRANSPARENT"),
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true).context("IPV6_TRANSPARENT"),
        })
        .inspect_err(|error| {
            tracing::warn!("it is not found out whether the network carries what is relayed: {error:#}");
        });
        Barred { socket: socket.ok(), due: now, peers: [Peer::default(); MAX_NODES] }
    }

    /// Whether a probe is due; then the next one is due after [`EVERY`].
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let due = self.socket.is_some() && self.due <= now;
        if due {
            self.due = now + EVERY;
        }
        due
    }

    /// Sends a probe. One that the kernel does not take is lost, as it might be on the way.
    pub(super) fn send(&self, probe: &[u8], to: SocketAddr) {
        if let Some(socket) = &self.socket {
            let _ = socket.send_to(probe, to);
        }
    }

    /// A fresh heartbeat of a `peer` that sends probes has come directly.
    pub(super) fn heard(&mut self, peer: NodeId, now: Instant) {
        let peer = &mut self.peers[usize::from(peer.0)];
        // Who was silent has perhaps sent none.
        let returns = peer.heard.is_none_or(|heard| now.duration_since(heard) > EVERY);
        let waiting = peer.waiting.filter(|_| !returns).unwrap_or(now);
        (peer.heard, peer.waiting) = (Some(now), Some(waiting));
        if now.saturating_duration_since(waiting) > PATIENCE {
            peer.barred = Some(true);
        }
    }

    /// A probe of `peer` has come.
    pub(super) fn probed(&mut self, peer: NodeId, now: Instant) {
        let peer = &mut self.peers[usize::from(peer.0)];
        (peer.barred, peer.waiting) = (Some(false), Some(now));
    }

    /// What is known of whom, `tunnelled` aside; `None` where nobody looks for it.
    pub(super) fn found(&self) -> Option<Relaying> {
        self.socket.as_ref()?;
        let nodes = |barred| {
            let peers = (0..).zip(&self.peers).filter(|(_, peer)| peer.barred == Some(barred));
            peers.map(|(node, _)| 1 << node).sum()
        };
        Some(Relaying { open: nodes(false), barred: nodes(true), tunnelled: 0 })
    }
}

/// Between two probes.
const EVERY: Duration = Duration::from_secs(2);
/// How long a probe is waited for: five of them are lost.
const PATIENCE: Duration = Duration::from_secs(10);
