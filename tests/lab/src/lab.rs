//! The laboratory as a whole: up, in use, down.
//!
//! ```text
//!                 trilith-client  10.77.0.1 gateway, 10.77.0.2 clients
//!                        |
//!                 trilith-switch  a bridge
//!                  |     |     |
//!          trilith-a trilith-b trilith-c   10.77.0.11–13   VIP 10.77.0.10, fd77::10
//! ```
//!
//! Everything it makes lies in `/run/trilith-lab`, in the cgroup `trilith-lab` or in a namespace that the record there
//! names, so whoever comes next can take it down, also after a crash. A [`Lab`] that was brought up by this process
//! goes down with it, even if it is killed ([`crate::standing`]).

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::netns::Netns;
use crate::node::Node;
use crate::root::Layers;
use crate::set::new_secret;
pub use crate::set::{CLIENT, CLIENT6, GATEWAY, GATEWAY6, NODES, VIP, VIP6};
use crate::standing::{Guard, Standing};
use crate::switch::Switch;
use crate::wait::wait_until;

/// What the nodes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Trilith.
    Trilith,
    /// keepalived and the same HAProxy, for comparison.
    Peer,
}

/// What becomes of a laboratory whose nodes do not get ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// Nothing is left of it.
    TakeDown,
    /// It stands, to be looked at.
    Keep,
}

/// A laboratory that is up.
#[derive(Debug)]
pub struct Lab {
    /// What its nodes run.
    pub mode: Mode,
    /// The nodes, in the order of [`NODES`].
    pub nodes: Vec<Node>,
    /// The wire between them.
    pub switch: Switch,
    /// Where the clients are.
    pub client: Netns,
    guard: Option<Guard>,
}

impl Lab {
    /// Brings it up and waits until every node is ready, saying on standard error how far it is. If one of the same
    /// mode was left standing it is used, healed, and left standing in the end. One whose owner has ended
    /// is taken down first: nobody knows what it was in the middle of.
    ///
    /// # Errors
    /// When one of the other mode is up, when something else has namespaces of these names, or when a step fails; what
    /// was made until then is taken away again.
    pub fn up(mode: Mode) -> Result<Lab> {
        Lab::up_or(mode, OnFailure::TakeDown)
    }

    /// [`Lab::up`], with a choice of what becomes of a laboratory whose nodes do not get ready.
    pub fn up_or(mode: Mode, on_failure: OnFailure) -> Result<Lab> {
        let standing = standing();
        let lock = standing.lock()?;
        if standing.down_orphan(take_down)? {
            say("a laboratory that had lost its owner was taken down");
        }
        if let Some(made) = standing.made::<Made>()? {
            if made.mode != mode {
                bail!("a laboratory with other software is up: take it down first (trilith-lab lab down)");
            }
            let lab = Lab::assemble(mode, None)?;
            say("the laboratory is up already");
            lab.revive()?;
            return Ok(lab);
        }
        standing.refuse_strangers(namespaces().iter().map(Netns::named))?;
        let started = Instant::now();
        let layers =
            Layers::prepare(mode, &Path::new(HOME).join("stage")).inspect_err(|_| drop(standing.remove_home()))?;
        let guard = standing.begin(Made { mode, namespaces: namespaces() })?;
        let lab = Lab::assemble(mode, Some(guard))?;
        let built = lab.build(&layers);
        // Taking it down after an error needs the lock, too.
        drop(lock);
        if let Err(error) = built {
            if on_failure == OnFailure::Keep {
                lab.keep()?;
            }
            return Err(error);
        }
        // Not an error: what is wrong can be seen better while the laboratory stands.
        if let Err(error) = lab.wait_serving(SERVING_DEADLINE) {
            say(&format!("{error:#}"));
        }
        say(&format!("up after {:.1} s: VIP {VIP} and {VIP6}", started.elapsed().as_secs_f64()));
        Ok(lab)
    }

    /// The laboratory that is up, whoever brought it up; it stays up in the end.
    ///
    /// # Errors
    /// When none is.
    pub fn attach() -> Result<Lab> {
        let made: Made = standing().made()?.context("no laboratory is up (trilith-lab lab up)")?;
        Lab::assemble(made.mode, None)
    }

    /// The node of that name.
    ///
    /// # Errors
    /// When no node has that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let node = self.nodes.iter().find(|node| node.name() == name);
        node.with_context(|| format!("no node {name:?} in the laboratory: {}", NODES.join(", ")))
    }

    /// Ends all faults: cuts, links, frozen nodes, the lost gateway. Nodes that are off stay off.
    pub fn heal(&self) -> Result<()> {
        self.switch.heal()?;
        self.gateway(true)?;
        self.nodes.iter().filter(|node| node.cgroup().is_frozen()).try_for_each(Node::thaw)
    }

    /// Ends all faults, boots nodes that are off, and waits until all are ready.
    pub fn revive(&self) -> Result<()> {
        self.heal()?;
        for node in self.nodes.iter().filter(|node| !node.cgroup().is_populated()) {
            node.boot()?;
        }
        self.nodes.iter().try_for_each(|node| node.wait_ready().map(drop))
    }

    /// Takes the gateway's addresses away, or gives them back. Clients send from other addresses and go on.
    pub fn gateway(&self, present: bool) -> Result<()> {
        if present {
            self.client
                .ip(&format!("address replace {GATEWAY}/24 dev eth0\naddress replace {GATEWAY6}/64 dev eth0 nodad\n"))
        } else {
            self.client.ip(&format!("address del {GATEWAY}/24 dev eth0\naddress del {GATEWAY6}/64 dev eth0\n"))
        }
    }

    /// Waits until both services answer at both VIPs.
    pub fn wait_serving(&self, deadline: Duration) -> Result<Duration> {
        let addresses =
            [VIP.into(), VIP6.into()].into_iter().flat_map(|ip| PORTS.map(|port| SocketAddr::new(ip, port)));
        let addresses: Vec<SocketAddr> = addresses.collect();
        let client = self.client.clone();
        // A thread of its own, because it stays in the clients' namespace.
        let waiting = std::thread::spawn(move || {
            client.enter()?;
            let mut open = addresses.clone();
            wait_until("both services at both VIPs", deadline, || {
                open.retain(|address| TcpStream::connect_timeout(address, CONNECT_PATIENCE).is_err());
                open.is_empty()
            })
        });
        waiting.join().unwrap_or_else(|_| bail!("the thread that waits for the VIPs ended early"))
    }

    /// Lets the laboratory stand when this process ends.
    pub fn keep(mut self) -> Result<()> {
        self.guard.take().map_or(Ok(()), |guard| standing().keep::<Made>(guard))
    }

    fn assemble(mode: Mode, guard: Option<Guard>) -> Result<Lab> {
        let switch = Switch::in_namespace(Netns::named(SWITCH));
        let nodes = NODES.iter().map(|name| Node::named(name, Path::new(HOME), mode, &switch));
        Ok(Lab { mode, nodes: nodes.collect::<Result<_>>()?, switch, client: Netns::named(CLIENT_NETNS), guard })
    }

    fn build(&self, layers: &Layers) -> Result<()> {
        say("switch and clients");
        cgroup::mount_hierarchy(&hierarchy())?;
        self.switch.create()?;
        self.client.create()?;
        self.switch.plug("client", "02:00:0a:4d:00:01", &self.client)?;
        // The clients' address first: it is the one that the kernel sends from.
        self.client.ip(&format!("address add {CLIENT}/24 dev eth0\naddress add {CLIENT6}/64 dev eth0 nodad\n"))?;
        self.gateway(true)?;
        self.client.sysctl("ipv4/ip_forward", "1")?;
        self.client.sysctl("ipv6/conf/all/forwarding", "1")?;
        let secret = new_secret()?;
        for node in &self.nodes {
            node.make_disk(&layers.lowerdir(), &secret)?;
            node.boot()?;
        }
        for node in &self.nodes {
            let took = node.wait_ready()?;
            say(&format!("node {} is ready (+{:.1} s)", node.name(), took.as_secs_f64()));
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take()
            && let Err(error) = standing().end(guard, take_down)
        {
            say(&format!("cannot take the laboratory down: {error:#}"));
        }
    }
}

/// Takes down whatever laboratory is up and says whether there was one. Goes on after errors and returns the first.
pub fn down() -> Result<bool> {
    standing().down(take_down)
}

/// What a guard does ([`Standing::guard`]).
pub fn guard(id: &str) -> Result<()> {
    standing().guard(id, take_down)
}

fn take_down(made: Made) -> Result<()> {
    let mut first_error = Ok(());
    let mut note = |step: Result<()>| {
        if first_error.is_ok() {
            first_error = step;
        }
    };
    let lab = Lab::assemble(made.mode, None)?;
    if hierarchy().exists() {
        note(cgroup::remove_all(&hierarchy()));
    }
    for node in &lab.nodes {
        note(node.remove_disk());
    }
    for name in &made.namespaces {
        note(Netns::named(name).delete());
    }
    match umount2(&hierarchy(), MntFlags::MNT_DETACH) {
        Err(error) if error != nix::Error::EINVAL && error != nix::Error::ENOENT => {
            note(Err(error).context("cannot unmount the laboratory's cgroups"));
        }
        _ => {}
    }
    first_error
}

fn namespaces() -> Vec<String> {
    let nodes = NODES.iter().map(|node| format!("trilith-{node}"));
    [SWITCH, CLIENT_NETNS].map(str::to_owned).into_iter().chain(nodes).collect()
}

fn say(line: &str) {
    eprintln!("lab: {line}");
}

fn hierarchy() -> PathBuf {
    Path::new(HOME).join("cgroup")
}

fn standing() -> Standing {
    Standing { what: "laboratory", program: "trilith-lab", home: HOME.into() }
}

/// What is made.
#[derive(Debug, Serialize, Deserialize)]
struct Made {
    mode: Mode,
    namespaces: Vec<String>,
}

/// The keys that sign bundles for the laboratory.
pub(crate) fn keys() -> PathBuf {
    Path::new(HOME).join("keys")
}

/// Everything that is no namespace and no cgroup.
const HOME: &str = "/run/trilith-lab";
const SWITCH: &str = "trilith-switch";
const CLIENT_NETNS: &str = "trilith-client";
/// Ports of the VIP that the set's document promises: HTTP and TCP echo.
const PORTS: [u16; 2] = [80, 9000];
/// From the last node's readiness until the VIPs have owners and HAProxy its backends.
const SERVING_DEADLINE: Duration = Duration::from_secs(60);
/// Nobody is waited for longer on this wire.
const CONNECT_PATIENCE: Duration = Duration::from_millis(200);
