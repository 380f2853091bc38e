//! Connections that every node carries a share of, and who carries which.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::haproxy;
use super::said::{REST_DEADLINE, VIPS, move_vip, settle, until};
use crate::lab::{Lab, VIP};
use crate::load::{Break, Established, EstablishedOptions, EstablishedReport, Stall, Window};
use crate::node::{Node, State};

/// Who carries a connection: the node whose HAProxy accepted it, and the node whose service answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carrier {
    /// The node whose HAProxy accepted it.
    pub front: String,
    /// The node whose service answers it.
    pub back: String,
}

/// Connections to the echo service, as many on each of some nodes.
pub struct Flows {
    groups: Vec<Established>,
    carriers: BTreeMap<u16, Carrier>,
}

/// What became of them.
pub struct Fate {
    carriers: BTreeMap<u16, Carrier>,
    breaks: Vec<Break>,
    stalls: Vec<Stall>,
}

impl Flows {
    /// Moves the VIPs to each of the nodes in turn, connects there, and so leaves them on the last one.
    ///
    /// # Errors
    /// When a move or a connection fails, or HAProxy knows of fewer than there are.
    pub fn on(lab: &Lab, nodes: &[&str], each: usize, interval: Duration) -> Result<Flows> {
        let (mut groups, mut carriers) = (Vec::new(), BTreeMap::new());
        // Before the first connection: a later group may be carried by the HAProxy of an earlier owner.
        lab.nodes.iter().filter(|node| node.state() == State::Running).try_for_each(haproxy::forget_sessions)?;
        for name in nodes {
            let node = lab.node(name)?;
            // An order may be refused for a moment, or come when another node has just claimed the VIP.
            until(&format!("both VIPs on {name}"), REST_DEADLINE, || {
                VIPS.iter().try_for_each(|vip| move_vip(node, vip, name))
            })?;
            let group = Established::start(EstablishedOptions {
                netns: Some(lab.client.path()),
                connections: each,
                interval,
                // It is the breaks that count; how long a connection may stall is the row's own measure.
                dead_after: Duration::from_secs(60),
                ..EstablishedOptions::new(SocketAddr::from((VIP, ECHO_PORT)))
            })?;
            // Right after a move a client may still send to the old owner, whose HAProxy then carries the connection.
            let others = lab.nodes.iter().filter(|other| other.state() == State::Running).map(Node::name);
            let others = others.filter(|other| *other != node.name());
            let mut known = Vec::new();
            for front in std::iter::once(node.name()).chain(others) {
                known.push((front, haproxy::sessions(lab.node(front)?)?));
            }
            for port in group.local_ports() {
                let carrier = known.iter().find_map(|(front, sessions)| {
                    Some(Carrier { front: (*front).to_owned(), back: sessions.get(&port)?.clone() })
                });
                carriers.insert(port, carrier.with_context(|| format!("no HAProxy knows the connection from {port}"))?);
            }
            groups.push(group);
        }
        Ok(Flows { groups, carriers })
    }

    /// What became of them so far.
    pub fn fate(&self) -> Fate {
        self.gather(self.groups.iter().map(|group| group.report(Window::ALL)).collect())
    }

    /// Waits for the last echoes of all groups at once, closes, and says what became of them.
    pub fn finish(mut self) -> Result<Fate> {
        let groups = std::mem::take(&mut self.groups);
        let endings: Vec<_> = groups.into_iter().map(|group| thread::spawn(|| group.finish())).collect();
        let reports = endings.into_iter().map(|ending| ending.join().ok().context("a load thread has panicked"));
        Ok(self.gather(reports.collect::<Result<_>>()?))
    }

    fn gather(&self, reports: Vec<EstablishedReport>) -> Fate {
        let (mut breaks, mut stalls) = (Vec::new(), Vec::new());
        for report in reports {
            breaks.extend(report.broken_at);
            stalls.extend(report.stalls);
        }
        Fate { carriers: self.carriers.clone(), breaks, stalls }
    }
}

impl Fate {
    /// How many connections there were whose carrier is like that.
    pub fn count(&self, like: impl Fn(&Carrier) -> bool) -> usize {
        self.carriers.values().filter(|carrier| like(carrier)).count()
    }

    /// Who carried the connection from that local port.
    pub fn carrier(&self, local_port: u16) -> Option<&Carrier> {
        self.carriers.get(&local_port)
    }

    /// The breaks of those whose carrier is like that.
    pub fn breaks(&self, like: impl Fn(&Carrier) -> bool) -> Vec<&Break> {
        self.breaks.iter().filter(|it| self.carriers.get(&it.local_port).is_some_and(&like)).collect()
    }

    /// The longest time from a ping to its echo, in milliseconds, of those whose carrier is like that; below 10 it is 0.
    pub fn stall_ms(&self, like: impl Fn(&Carrier) -> bool) -> f64 {
        let stalls = self.stalls.iter().filter(|it| self.carriers.get(&it.local_port).is_some_and(&like));
        stalls.map(|it| it.stall_ms).fold(0.0, f64::max)
    }
}

/// The set at rest, both VIPs on that node.
///
/// # Errors
/// When it does not come to rest, or no move succeeds.
pub fn at_home(lab: &Lab, node: &str) -> Result<()> {
    settle(lab)?;
    until(&format!("both VIPs on {node}"), REST_DEADLINE, || {
        VIPS.iter().try_for_each(|vip| move_vip(lab.node(node)?, vip, node))
    })
    .map(drop)
}

/// The echo service at the VIP.
pub const ECHO_PORT: u16 = 9000;
/// The HTTP service at the VIP.
pub const HTTP_PORT: u16 = 80;
/// A node that has just handed a VIP on holds back for a second: what is to find the set at rest waits for that.
pub const AFTERMATH_NS: u64 = 1_100_000_000;
