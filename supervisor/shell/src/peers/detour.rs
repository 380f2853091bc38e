//! Heartbeats by way of the default gateway, while the direct path to a peer does not work.
//!
//! Hosts may be cut off from each other, but not from the gateway: a private VLAN, an isolated switch port, a half-broken
//! switch. Without a second path each node would then think itself the lone survivor. The gateway need only forward a packet
//! back to the link that it came from, which routers do.
//!
//! ```text
//!   a ──✗── b        a second socket sends with a mark (SO_MARK); a rule looks marked packets up in a table that
//!    \     /         has only the default route, so they go to the gateway although b is on the same link
//!    gateway
//! ```
//!
//! - The same sealed datagram goes both ways, so it costs no second nonce, and the copy that comes second is a replay.
//! - It leaves from another port than the peer port: by that the receiver tells the paths apart, and nothing else hangs on it.
//! - Only a receiver knows that a path is broken. It says so in its datagrams (`deaf`), and the sender then detours to it. While
//!   nothing at all is heard of a peer, it may be the peer that cannot say it, so the sender detours as well.
//! - Gateways answer such packets with redirects, which must not be believed: `accept_redirects` has to be 0.
//!
//! Rule and route stay in the kernel when the supervisor ends; nothing else has the mark.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::packet_route::rule::RuleAction;
use rtnetlink::{Handle, RouteMessageBuilder};
use trilith_core::config::{MAX_NODES, NodeId};

use super::steer;

/// Which peers are heard on which path, and the socket of the second one.
pub(super) struct Detour {
    own: SocketAddr,
    me: NodeId,
    heard: [Heard; MAX_NODES],
    socket: Option<UdpSocket>,
    /// When rule and route were last asked for.
    asked: Option<Instant>,
    /// They are in place.
    ready: Arc<AtomicBool>,
}

/// Bitmaps of nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Paths {
    /// Not heard on the direct path.
    pub(super) deaf: u8,
    /// To be sent to by way of the gateway, too.
    pub(super) detour: u8,
}

#[derive(Clone, Copy)]
struct Heard {
    direct: Instant,
    at_all: Instant,
}

impl Detour {
    /// Nobody is missed before a lease has passed since `now`.
    pub(super) fn new(own: SocketAddr, me: NodeId, now: Instant) -> Detour {
        let heard = [Heard { direct: now, at_all: now }; MAX_NODES];
        Detour { own, me, heard, socket: None, asked: None, ready: Arc::default() }
    }

    /// A fresh datagram of `peer` has come from `source`: whether directly.
    pub(super) fn heard(&mut self, peer: NodeId, source: SocketAddr, now: Instant) -> bool {
        let heard = &mut self.heard[usize::from(peer.0)];
        heard.at_all = now;
        let direct = source.port() == self.own.port();
        if direct {
            heard.direct = now;
        }
        direct
    }

    /// Which of the first `nodes` nodes are not heard directly for half a lease (early enough to save it), and which ones a detour is worth while to.
    /// `deaf_of` says what a peer does not hear directly.
    pub(super) fn plan(&self, nodes: usize, now: Instant, lease: Duration, deaf_of: impl Fn(NodeId) -> u8) -> Paths {
        let patience = lease / 2;
        let mut paths = Paths::default();
        for (node, heard) in self.heard.iter().enumerate().take(nodes) {
            let peer = NodeId(node as u8);
            if peer == self.me {
                continue;
            }
            if now.duration_since(heard.direct) > patience {
                paths.deaf |= 1 << node;
            }
            if now.duration_since(heard.at_all) > patience || deaf_of(peer) & 1 << self.me.0 != 0 {
                paths.detour |= 1 << node;
            }
        }
        paths
    }

    /// Sees to it that the second path is there, as long as it is called. The default route may change meanwhile.
    pub(super) fn keep_up(&mut self, now: Instant) {
        if self.asked.is_some_and(|asked| now.duration_since(asked) < REFRESH) {
            return;
        }
        self.asked = Some(now);
        if self.socket.is_none() {
            match steer::sending(self.own, self.own.ip(), |socket| socket.set_mark(MARK).context("SO_MARK")) {
                Ok(socket) => self.socket = Some(socket),
                Err(error) => return tracing::warn!("no second path to the peers: {error:#}"),
            }
        }
        let (own, ready) = (self.own.ip(), Arc::clone(&self.ready));
        tokio::spawn(async move {
            let result = tokio::time::timeout(REFRESH / 2, lead_marked_to_gateway(own)).await;
            let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("netlink did not answer in {:?}", REFRESH / 2)));
            let was_ready = ready.swap(result.is_ok(), Ordering::Relaxed);
            match result {
                Ok(gateway) if !was_ready => {
                    tracing::info!("silent peers are sent to by way of gateway {gateway}, too")
                }
                Ok(_) => {}
                Err(error) => tracing::debug!("no second path to the peers: {error:#}"),
            }
        });
    }

    /// Sends by way of the gateway; false when that is not possible now.
    pub(super) fn send(&self, datagram: &[u8], to: SocketAddr) -> bool {
        let ready = self.ready.load(Ordering::Relaxed);
        ready && self.socket.as_ref().is_some_and(|socket| socket.send_to(datagram, to).is_ok())
    }
}

/// Has the rule and the default route in place. Gives the gateway.
async fn lead_marked_to_gateway(own: IpAddr) -> anyhow::Result<IpAddr> {
    let (connection, handle, _) = rtnetlink::new_connection().context("netlink socket")?;
    let connection = tokio::spawn(connection);
    let result = replace_route(&handle, own).await;
    connection.abort();
    result
}

async fn replace_route(handle: &Handle, own: IpAddr) -> anyhow::Result<IpAddr> {
    let (gateway, interface) = default_route(handle, own.is_ipv4()).await?;
    let rule = handle.rule().add().fw_mark(MARK).table_id(TABLE).priority(RULE_PRIORITY).action(RuleAction::ToTable);
    let (route, added) = match gateway {
        IpAddr::V4(gateway) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway);
            (builder.output_interface(interface).table_id(TABLE).onlink().build(), rule.v4().execute().await)
        }
        IpAddr::V6(gateway) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new().gateway(gateway);
            (builder.output_interface(interface).table_id(TABLE).onlink().build(), rule.v6().execute().await)
        }
    };
    let route_added = handle.route().add(route).replace().execute().await;
    route_added.with_context(|| format!("default route via {gateway} in table {TABLE}"))?;
    match added {
        Err(rtnetlink::Error::NetlinkError(refused)) if refused.raw_code() == -nix::libc::EEXIST => {}
        other => other.with_context(|| format!("rule for mark {MARK:#x} to table {TABLE}"))?,
    }
    Ok(gateway)
}

/// Gateway and interface of the default route that the kernel prefers.
async fn default_route(handle: &Handle, ipv4: bool) -> anyhow::Result<(IpAddr, u32)> {
    let all = match ipv4 {
        true => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        false => RouteMessageBuilder::<Ipv6Addr>::new().build(),
    };
    let mut routes = handle.route().get(all).execute();
    let mut best: Option<(u32, (IpAddr, u32))> = None;
    while let Some(route) = routes.try_next().await.context("read the routes")? {
        if let Some(found) = as_default(&route)
            && best.is_none_or(|(metric, _)| found.0 < metric)
        {
            best = Some(found);
        }
    }
    match best {
        Some((_, found)) => Ok(found),
        None => bail!("no default route"),
    }
}

/// Metric, gateway and interface of a default route of the main table.
fn as_default(route: &RouteMessage) -> Option<(u32, (IpAddr, u32))> {
    if route.header.table != RouteHeader::RT_TABLE_MAIN || route.header.destination_prefix_length != 0 {
        return None;
    }
    let (mut metric, mut gateway, mut interface) = (0, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
            _ => {}
        }
    }
    Some((metric, (gateway?, interface?)))
}

/// Mark of packets that go by way of the gateway: `tr`.
const MARK: u32 = 0x7472;
/// The table that they are looked up in, and the place of the rule that says so (before `main`, 32766).
const TABLE: u32 = MARK;
const RULE_PRIORITY: u32 = 7472;
/// How often the default route is looked up while it is needed.
const REFRESH: Duration = Duration::from_secs(10);
