//! The configuration of a set: one TOML document, parsed once into [`Settings`], never validated twice.
//!
//! | key | what it may be | when absent |
//! |---|---|---|
//! | `set.name` | DNS label | required |
//! | `set.secret_file` | absolute path | required |
//! | `set.peer_port` | UDP and TCP port, 1 to 65535 | [`PEER_PORT`] |
//! | `set.lone` | `"serve"`, `"release"` | `"serve"` |
//! | `set.rebalance_after` | `"never"`, or `"1s"` to `"24h"` | `"never"` |
//! | `set.stun` | `"0s"` to `"10s"` | `"0s"` |
//! | `set.lease.heartbeat` | `"10ms"` to `"1s"` | `"40ms"` |
//! | `set.lease.min` | two heartbeats and a half at least | `"100ms"` |
//! | `set.lease.max` | `min` to `"10s"` | `"500ms"` |
//! | `node.name` | DNS label, unique | required |
//! | `node.address` | address, unique, one family for all nodes | required |
//! | `node.address6` | IPv6 address, unique; only beside an IPv4 `address` | none |
//! | `node.zone` | up to 64 printable characters | none |
//! | `vip.name` | DNS label, unique | required |
//! | `vip.address` | `"address/prefix"`, unique | required |
//! | `vip.interface` | interface name, not `lo` | required |
//! | `vip.prefer` | name of a node | the VIPs are spread over the nodes in turn |
//! | `service.name` | DNS label, unique | required |
//! | `service.vip` | name of a VIP, or an array of names | required |
//! | `service.port` | TCP port, 1 to 65535 but not 22 or 9909, once on a VIP | required |
//! | `service.backend_port` | TCP port, 1 to 65535 but not 9909 | required |
//! | `service.mode` | `"http"`, `"tcp"` | `"http"` |
//! | `service.health` | `"connect"`, `"GET /path"` | `"GET /"` for http, `"connect"` for tcp |
//! | `service.unit` | a systemd `.service` of the image, which starts it; alarms tell when it is not active, and `service upgrade` restarts it | none: only its health check tells, and it cannot be upgraded by itself |
//! | `service.tls_certificate` | absolute path | none: TLS does not end at HAProxy |
//! | `service.drain_deadline` | `"0s"` to `"1h"` | `"30s"` |
//!
//! Durations are whole numbers with a unit: `ms`, `s`, `m`, `h`.
//!
//! What must hold between them:
//! - The subnet of every VIP holds an address of every node, because packets are relayed to that address over the VIP's link.
//!   A VIP is no node's address, nor the network's or the broadcast address.
//! - Two services share a `backend_port` only when they name the same `unit`: one instance that serves both.
//! - [`FRONT_PORT`] is the supervisor's own, [`SSH_PORT`] the node's.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

mod addresses;
mod fault;
mod fingerprint;
mod parse;
mod relations;
mod table;
mod values;

pub use fault::ConfigError;
pub use parse::{parse, parse_bytes};
pub use values::{is_label, read_duration};

/// The most nodes that a set may have.
pub const MAX_NODES: usize = 7;
/// The most VIPs that a set may have.
pub const MAX_VIPS: usize = 16;
/// The most services that a set may have.
pub const MAX_SERVICES: usize = 64;

/// The longest document that is read, in bytes: a hundred times a large set's.
pub const MAX_DOCUMENT: usize = 256 * 1024;
/// UDP port of the peer channel unless the document says otherwise.
///
/// T-R-I-L on a telephone's keys. IANA has assigned it to nobody, and it lies below the ports that Linux gives to clients
/// (`ip_local_port_range`, from 32768), so nothing else takes it by chance.
pub const PEER_PORT: u16 = 8745;
/// TCP port of the internal front end on every VIP, which the supervisor asks for a sign of life.
pub const FRONT_PORT: u16 = 9909;
/// TCP port of a node's SSH server, which listens on every address, VIPs among them: HAProxy could not.
pub const SSH_PORT: u16 = 22;

/// A node of the set: its place in the document, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u8);

/// A VIP of the set: its place in the document, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipId(pub u8);

/// A service of the set: its place in the document, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u8);

/// A whole, valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The set as a whole.
    pub set: Set,
    /// The nodes, 1 to [`MAX_NODES`], in the order of the document.
    pub nodes: Vec<Node>,
    /// The VIPs, 1 to [`MAX_VIPS`], in the order of the document.
    pub vips: Vec<Vip>,
    /// The services, 0 to [`MAX_SERVICES`], in the order of the document.
    pub services: Vec<Service>,
    /// Identifies the document: the first 4 bytes of the SHA-256 of what it means, equal on nodes that agree.
    pub fingerprint: u32,
}

impl Settings {
    /// The node of this name.
    pub fn node_named(&self, name: &str) -> Option<NodeId> {
        let place = self.nodes.iter().position(|node| node.name == name)?;
        Some(NodeId(place as u8))
    }

    /// The VIP of this name.
    pub fn vip_named(&self, name: &str) -> Option<VipId> {
        let place = self.vips.iter().position(|vip| vip.name == name)?;
        Some(VipId(place as u8))
    }

    /// The node's name, `?` for a node that these settings do not know.
    pub fn node_name(&self, node: NodeId) -> &str {
        self.nodes.get(usize::from(node.0)).map_or("?", |node| &node.name)
    }

    /// The VIP's name, `?` for a VIP that these settings do not know.
    pub fn vip_name(&self, vip: VipId) -> &str {
        self.vips.get(usize::from(vip.0)).map_or("?", |vip| &vip.name)
    }
}

impl Set {
    /// UDP port of the tunnel between nodes: the one after the peer channel's; before it, where there is none after it.
    pub fn tunnel_port(&self) -> u16 {
        self.peer_port.checked_add(1).unwrap_or(self.peer_port - 1)
    }
}

/// `[set]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Name of the set: a DNS label.
    pub name: String,
    /// File that holds the set secret.
    pub secret_file: String,
    /// UDP port of the peer channel.
    pub peer_port: u16,
    /// What a node does that hears no other node.
    pub lone: Lone,
    /// How long the preferred node must have been fit before a VIP returns to it; `None`: never by itself.
    pub rebalance_after: Option<Duration>,
    /// How long a node that has fallen silent may only stand still: what it may carry is not reset meanwhile. Zero: not at all.
    pub stun: Duration,
    /// Bounds of the lease that adapts to the measured jitter.
    pub lease: LeaseBounds,
}

/// What a node does with a VIP when it hears none of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lone {
    /// Keep or take it, once the gateway answers and nobody else answers for the VIP.
    Serve,
    /// Give it up.
    Release,
}

/// Bounds of the adaptive lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseBounds {
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// Shortest lease.
    pub min: Duration,
    /// Longest lease; also how long a granter keeps silent after its start.
    pub max: Duration,
}

impl LeaseBounds {
    /// How many times longer everything may take that waits for a machine: 1 with the default `min`, more where an operator has
    /// said by a longer one that the set's machines, or the network between them, are slow.
    pub fn slowness(&self) -> u32 {
        (self.min.as_millis() / DEFAULT_LEASE.min.as_millis()).clamp(1, 100) as u32
    }
}

/// The leases where the document says nothing.
pub const DEFAULT_LEASE: LeaseBounds = LeaseBounds {
    heartbeat: Duration::from_millis(40),
    min: Duration::from_millis(100),
    max: Duration::from_millis(500),
};

/// `[[node]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name: a DNS label, unique.
    pub name: String,
    /// Address of the peer channel and of the services' backends.
    pub address: IpAddr,
    /// IPv6 address on the same link, to which IPv6 packets are relayed.
    pub address6: Option<Ipv6Addr>,
    /// Failure domain.
    pub zone: Option<String>,
}

impl Node {
    /// The node's address of the same family as `other`: where packets for a VIP of that family are relayed to.
    pub fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
        match (other, self.address) {
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => Some(self.address),
            (IpAddr::V6(_), IpAddr::V4(_)) => self.address6.map(IpAddr::V6),
            (IpAddr::V4(_), IpAddr::V6(_)) => None,
        }
    }
}

/// `[[vip]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    /// Name: a DNS label, unique.
    pub name: String,
    /// The address itself.
    pub address: IpAddr,
    /// Prefix length of the subnet that it lies in.
    pub prefix: u8,
    /// Interface that carries it on its owner.
    pub interface: String,
    /// The node that should own it when all are fit.
    pub prefer: NodeId,
}

/// `[[service]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Name: a DNS label, unique.
    pub name: String,
    /// The VIPs that it is offered on.
    pub vips: Vec<VipId>,
    /// Port on the VIP.
    pub port: u16,
    /// How HAProxy treats it.
    pub mode: Mode,
    /// Port of each node's own instance.
    pub backend_port: u16,
    /// How HAProxy checks an instance.
    pub health: Health,
    /// The systemd unit of each node's own instance.
    pub unit: Option<String>,
    /// PEM file with certificate, chain and key, for root to read: TLS ends at HAProxy.
    pub tls_certificate: Option<String>,
    /// How long connections may live on after a drain began.
    pub drain_deadline: Duration,
}

/// How HAProxy treats a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bytes.
    Tcp,
    /// HTTP/1.1, and HTTP/2 where TLS offers it.
    Http,
}

/// How HAProxy checks an instance of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// A TCP connection succeeds.
    Connect,
    /// A request of this path is answered with 2xx or 3xx.
    Get {
        /// Absolute path.
        path: String,
    },
}
