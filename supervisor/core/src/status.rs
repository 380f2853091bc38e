//! What a node knows, as `trilith status --json` shows it. The schema is these types; times are in milliseconds.

use serde::{Deserialize, Serialize};

/// Everything that one node knows of the set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of this schema: fields are only ever added while it stays.
    pub schema: u32,
    /// Name of the set.
    pub set: String,
    /// The node that answers.
    pub node: String,
    /// Its version.
    pub version: String,
    /// Fingerprint of its configuration, 8 hexadecimal digits.
    pub fingerprint: String,
    /// Milliseconds since its supervisor started.
    pub uptime_ms: u64,
    /// All VIPs, in the order of the document.
    pub vips: Vec<VipStatus>,
    /// All nodes, in the order of the document.
    pub nodes: Vec<NodeStatus>,
    /// Timers in force.
    pub timers: Timers,
    /// The relay ring in force.
    pub relay: Relay,
    /// What needs an admin's eye, worst first; empty when all is well.
    pub alarms: Vec<String>,
    /// Recent automatic decisions, newest last.
    pub decisions: Vec<DecisionStatus>,
    /// What HAProxy counts; added by the shell.
    #[serde(default)]
    pub flows: Option<Flows>,
    /// What keeps HAProxy from running what the document asks for: one line; added by the shell.
    #[serde(default)]
    pub haproxy_problem: Option<String>,
    /// What the peer channel counts; added by the shell.
    #[serde(default)]
    pub channel: Option<Channel>,
}

/// One VIP as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipStatus {
    /// Its name.
    pub name: String,
    /// `address/prefix`
    pub address: String,
    /// Name of its owner, if one is known.
    pub owner: Option<String>,
    /// Why it is the owner, or why there is none: one phrase.
    pub why: String,
    /// The epoch of the ownership.
    pub epoch: u64,
    /// Milliseconds that the lease still runs, on the owner only.
    pub lease_left_ms: Option<u64>,
    /// The owner has no majority: a lone survivor.
    pub lone: bool,
}

/// One node as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Its failure domain.
    pub zone: Option<String>,
    /// `fit`, `degraded`, `unfit`, or `unknown` while it is not heard.
    pub fitness: String,
    /// Why it is not fit.
    pub reason: Option<String>,
    /// An operator has taken it out of service.
    pub drained: bool,
    /// It is heard (always, for the node that answers).
    pub heard: bool,
    /// It hears the node that answers.
    pub hears_us: bool,
    /// Its kernel answers: it is in the relay ring.
    pub in_ring: bool,
    /// Milliseconds since its last heartbeat.
    pub silent_ms: Option<u64>,
    /// Its version.
    pub version: Option<String>,
    /// Fingerprint of its configuration.
    pub fingerprint: Option<String>,
}

/// Timers in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timers {
    /// Between two heartbeats.
    pub heartbeat_ms: u64,
    /// The lease now.
    pub lease_ms: u64,
    /// Its bounds.
    pub lease_min_ms: u64,
    /// Its bounds.
    pub lease_max_ms: u64,
    /// The measured jitter that it follows.
    pub jitter_ms: u64,
}

/// The relay ring in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// Whether the rules are in the kernel.
    pub loaded: bool,
    /// The next node.
    pub next: Option<String>,
    /// How many hops a packet may have made before it ends here.
    pub last_hop: u8,
    /// Nodes to which packets go through a tunnel, because the network drops those with clients' addresses; added by the shell.
    #[serde(default)]
    pub tunnels: Vec<String>,
}

/// One automatic decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionStatus {
    /// Milliseconds ago.
    pub ago_ms: u64,
    /// What, and why.
    pub text: String,
}

/// What HAProxy counts now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// Connections now, all frontends.
    pub current: u64,
    /// Connections since HAProxy's start.
    pub total: u64,
    /// Packets passed on to the next node since the rules were loaded.
    pub relayed: u64,
    /// Each backend's servers.
    pub backends: Vec<BackendStatus>,
}

/// One server of a backend in the local HAProxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStatus {
    /// Name of the service.
    pub service: String,
    /// Name of the node.
    pub node: String,
    /// HAProxy's own word: `UP`, `DOWN`, `DRAIN`, `MAINT`…
    pub state: String,
    /// Milliseconds since it went up or down, or since HAProxy started; HAProxy counts seconds.
    #[serde(default)]
    pub since_ms: u64,
    /// What the last health check found, in HAProxy's words.
    #[serde(default)]
    pub check: String,
    /// Connections now.
    pub current: u64,
}

/// What the peer channel has counted since the supervisor's start, in datagrams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// Sent to peers, on the direct path.
    pub sent: u64,
    /// Sent by way of the gateway, because the peer was silent.
    pub detoured: u64,
    /// Not sent: no route, no neighbour, or refused by a firewall.
    pub not_sent: u64,
    /// Authentic ones received.
    pub received: u64,
    /// Refused: forged, replayed, malformed, or not from a node's address.
    pub refused: u64,
}

/// A document's fingerprint ([`crate::config::Settings::fingerprint`]) as it is shown and compared: 8 digits.
pub fn fingerprint(fingerprint: u32) -> String {
    format!("{fingerprint:08x}")
}
