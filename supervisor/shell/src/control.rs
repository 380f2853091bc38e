//! The control socket: how `trilith status` and the other commands reach the supervisor on this node.
//!
//! Line-delimited JSON over a Unix socket that only root and the group trilith-admin can open. A client sends one [`Envelope`] a line and reads one
//! [`Response`] a line, as often as it likes. Everything is bounded: the length of a line, the time that each side waits,
//! the number of connections.
//!
//! Names are resolved by the supervisor, with the settings in force: a command needs to read no configuration.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use trilith_core::config::{NodeId, Settings};
use trilith_core::event;
use trilith_core::status::Status;

use crate::haproxy::Pem;

pub mod client;
pub(crate) mod peer;
mod power;
mod server;

pub use power::{Power, successors};
pub use server::start;
pub(crate) use server::{accept, listen};

/// Version of the protocol. Command and supervisor come with one system, so they differ only while it is being replaced.
pub const VERSION: u32 = 1;
/// Connections at one time, and so requests; more wait in the socket's queue.
pub const MAX_CONNECTIONS: usize = 16;

/// A request as it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// What is asked.
    pub request: Request,
}

/// What a command may ask of the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// All that the node knows of the set.
    Status,
    /// Hand a VIP over.
    VipMove {
        /// Name of the VIP.
        vip: String,
        /// Name of the node that shall own it.
        node: String,
    },
    /// Take a node out of service.
    NodeDrain {
        /// Its name.
        node: String,
    },
    /// Put a node back into service.
    NodeUndrain {
        /// Its name.
        node: String,
    },
    /// Reboot this node's machine or switch it off.
    Power {
        /// Which of the two.
        deed: Power,
        /// The node that is meant; none is the one that is asked.
        node: Option<String>,
        /// Also when nobody can serve meanwhile.
        force: bool,
    },
    /// Write down what somebody who helps from afar would ask for.
    SupportBundle,
    /// Have the next boot take the first-boot answers anew.
    Reset,
    /// Put a service's certificate on this node, and in force.
    Certificate {
        /// Name of the service.
        service: String,
        /// Certificate, chain and private key.
        pem: Pem,
    },
}

/// What the supervisor answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// It is as it was asked to be.
    Done {
        /// One line for humans.
        text: String,
    },
    /// It will not be done.
    Refused {
        /// Why, and what would help.
        text: String,
    },
    /// It was not done within its time, and may yet happen.
    TimedOut {
        /// What to do now.
        text: String,
    },
    /// The request was not understood.
    Invalid {
        /// Why.
        text: String,
    },
}

/// A request with its names resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To be answered without asking the core.
    Status,
    /// To be put to the core as [`event::Event::Operator`].
    Order(event::Request),
    /// To be judged with the status, and put to systemd.
    Power {
        /// What shall become of the machine.
        deed: Power,
        /// The node that is meant, `None` for this one.
        node: Option<NodeId>,
        /// Also when nobody can serve meanwhile.
        force: bool,
    },
    /// To be put to systemd.
    SupportBundle,
    /// To be noted for the next boot.
    Reset,
    /// To be judged and loaded by HAProxy.
    Certificate {
        /// Name of the service, known or not.
        service: String,
        /// Certificate, chain and private key.
        pem: Pem,
    },
}

/// Reads one line, without or with its end.
///
/// # Errors
/// The answer to give when it is no request of this version.
pub fn read(line: &[u8]) -> Result<Request, Response> {
    match serde_json::from_slice::<Envelope>(line) {
        Ok(Envelope { version: VERSION, request }) => Ok(request),
        Ok(Envelope { version, .. }) => Err(Response::Invalid {
            text: format!("the supervisor speaks version {VERSION}, not {version}: restart it after an upgrade"),
        }),
        Err(error) => Err(Response::Invalid { text: format!("the request is not understood: {error}") }),
    }
}

impl Request {
    /// Turns names into what the core understands.
    ///
    /// # Errors
    /// The answer to give when a name is unknown: it lists the known ones.
    pub fn resolve(&self, settings: &Settings) -> Result<Asked, Response> {
        let set = &settings.set.name;
        let find_node = |name: &str| {
            let known = settings.nodes.iter().map(|node| node.name.as_str());
            settings.node_named(name).ok_or_else(|| unknown("node", name, set, known))
        };
        let find_vip = |name: &str| {
            let known = settings.vips.iter().map(|vip| vip.name.as_str());
            settings.vip_named(name).ok_or_else(|| unknown("VIP", name, set, known))
        };
        Ok(match self {
            Request::Status => Asked::Status,
            Request::VipMove { vip, node } => {
                Asked::Order(event::Request::Move { vip: find_vip(vip)?, to: find_node(node)? })
            }
            Request::NodeDrain { node } => {
                Asked::Order(event::Request::Drain { node: find_node(node)?, drained: true })
            }
            Request::NodeUndrain { node } => {
                Asked::Order(event::Request::Drain { node: find_node(node)?, drained: false })
            }
            Request::Power { deed, node, force } => {
                let node = node.as_deref().map(find_node).transpose()?;
                Asked::Power { deed: *deed, node, force: *force }
            }
            Request::SupportBundle => Asked::SupportBundle,
            Request::Reset => Asked::Reset,
            Request::Certificate { service, pem } => Asked::Certificate { service: service.clone(), pem: pem.clone() },
        })
    }
}

/// In words for the log: "uid 900 asked to …".
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Status => f.write_str("show the status"),
            Request::VipMove { vip, node } => write!(f, "move VIP {} to node {}", shown(vip), shown(node)),
            Request::NodeDrain { node } => write!(f, "drain node {}", shown(node)),
            Request::NodeUndrain { node } => write!(f, "undrain node {}", shown(node)),
            Request::Power { deed, node, force } => {
                let node = node.as_deref().map_or("this node".to_owned(), |node| format!("node {}", shown(node)));
                write!(f, "{deed} {node}{}", if *force { " by force" } else { "" })
            }
            Request::SupportBundle => f.write_str("write a support bundle"),
            Request::Reset => f.write_str("take the first-boot answers anew"),
            Request::Certificate { service, .. } => {
                write!(f, "put a certificate of service {} in force", shown(service))
            }
        }
    }
}

impl Response {
    /// All that the node knows.
    pub fn status(status: Status) -> Response {
        Response::Status(Box::new(status))
    }

    /// It is as it was asked to be: one line for humans.
    pub fn done(text: String) -> Response {
        Response::Done { text }
    }

    /// It will not be done: why, and what would help.
    pub fn refused(text: String) -> Response {
        Response::Refused { text }
    }

    /// In words for the log.
    pub fn text(&self) -> &str {
        match self {
            Response::Status(_) => "shown",
            Response::Done { text }
            | Response::Refused { text }
            | Response::TimedOut { text }
            | Response::Invalid { text } => text,
        }
    }

    /// It was not done within its time: what to do now.
    pub fn timed_out(text: String) -> Response {
        Response::TimedOut { text }
    }
}

fn unknown<'s>(kind: &str, name: &str, set: &str, known: impl Iterator<Item = &'s str>) -> Response {
    let name = shown(name);
    let known = known.collect::<Vec<_>>().join(", ");
    Response::Refused { text: format!("there is no {kind} \"{name}\" in set {set}; it has: {known}") }
}

/// A name that somebody has sent, so that it can be shown.
fn shown(name: &str) -> String {
    name.chars().take(SHOWN_NAME).flat_map(char::escape_debug).collect()
}

/// The longest request, in bytes with its newline.
const MAX_REQUEST: usize = 64 * 1024;
/// The longest response: room for a status of [`trilith_core::config::MAX_SERVICES`] services on every node.
const MAX_RESPONSE: usize = 1024 * 1024;
/// How long a connection may say nothing, or not take its answer, before it is closed.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the supervisor may think. Longer than the core takes for any request
/// ([`trilith_core::node::OPERATOR_PATIENCE`]).
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
/// How long a command waits for its answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);
const SHOWN_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use trilith_core::config::{VipId, parse};

    fn settings() -> Settings {
        parse(include_str!("../../core/tests/config/good/full.toml"), "full.toml").unwrap()
    }

    #[test]
    fn known_names_become_numbers() {
        let request = Request::VipMove { vip: "public6".to_owned(), node: "c".to_owned() };
        let order = event::Request::Move { vip: VipId(1), to: NodeId(2) };
        assert_eq!(request.resolve(&settings()), Ok(Asked::Order(order)));
        let request = Request::NodeUndrain { node: "a".to_owned() };
        let order = event::Request::Drain { node: NodeId(0), drained: false };
        assert_eq!(request.resolve(&settings()), Ok(Asked::Order(order)));
        assert_eq!(Request::Status.resolve(&settings()), Ok(Asked::Status));
        let request = Request::Power { deed: Power::Reboot, node: Some("b".to_owned()), force: false };
        let asked = Asked::Power { deed: Power::Reboot, node: Some(NodeId(1)), force: false };
        assert_eq!(request.resolve(&settings()), Ok(asked));
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let request = Request::NodeDrain { node: "z\n".to_owned() };
        let text = "there is no node \"z\\n\" in set edge-2; it has: a, b, c".to_owned();
        assert_eq!(request.resolve(&settings()), Err(Response::Refused { text }));
        let request = Request::VipMove { vip: "dmz".to_owned(), node: "z".to_owned() };
        let text = "there is no VIP \"dmz\" in set edge-2; it has: public, public6".to_owned();
        assert_eq!(request.resolve(&settings()), Err(Response::Refused { text }));
    }
}
