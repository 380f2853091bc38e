//! A tunnel between the nodes, for what is relayed where the network carries only packets with the sender's own address.
//!
//! One interface (VXLAN, RFC 7348) that knows its peers: each node has a made-up MAC address on it, and the kernel is told at which
//! node's address that is. Nothing is learned or flooded. It carries IPv4 and IPv6, whatever the nodes' own addresses are. What is relayed
//! stays as it is, and is wrapped in a datagram that bears the node's own address.
//!
//! The tunnel is no more authentic than the link it replaces: who can send in a node's name there could also send in a client's. But it must
//! not let in anybody who is further away, nor anything but what is relayed: [`guard`].
//!
//! IPIP would be a header shorter, but takes an interface for each peer and family. Over IPv4 a wrapped packet that is too long for the link
//! is sent in two fragments. Over IPv6 nobody on the way may do that: there, and from links that carry more than 1,500 bytes,
//! clients are told to send shorter ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use rtnetlink::packet_route::neighbour::NeighbourFlags;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{LinkUnspec, LinkVxlan, RouteMessageBuilder};
use trilith_core::config::{NodeId, Settings};

use super::kernel::Kernel;
use crate::sysctl;

/// Name of the interface.
pub const NAME: &str = "trilith-relay";

/// Between this node and which others the network does not carry what is relayed: bitmaps of nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnels {
    /// They say that nothing of this node comes but what bears its own address.
    pub to: u8,
    /// Nothing of them comes here but what bears their own address.
    pub from: u8,
}

impl Tunnels {
    /// Whether there must be a tunnel at all.
    pub fn any(self) -> bool {
        self.to | self.from != 0
    }

    /// Whether what is relayed to `node` must go through it.
    pub fn leads_to(self, node: NodeId) -> bool {
        self.to & 1 << node.0 != 0
    }
}

/// Where the relay rules send what is for `node`, as an address on the interface.
pub fn gateway(node: NodeId, v4: bool) -> IpAddr {
    match v4 {
        true => Ipv4Addr::from_bits(NETWORK_V4.to_bits() + u32::from(node.0) + 1).into(),
        false => Ipv6Addr::from_bits(NETWORK_V6.to_bits() + u128::from(node.0) + 1).into(),
    }
}

/// Has the interface there, with all nodes on it; its index. One that is there already, perhaps of an earlier run, goes on meanwhile.
///
/// # Errors
/// What the kernel refuses, for instance when it has no VXLAN.
pub async fn put_up(kernel: &Kernel, settings: &Settings, me: NodeId) -> Result<u32> {
    let handle = &kernel.handle;
    if find(kernel).await?.is_none() {
        let builder = LinkVxlan::new(NAME, VNI).port(settings.set.tunnel_port()).ttl(TTL).learning(false);
        let builder = match settings.nodes[usize::from(me.0)].address {
            IpAddr::V4(own) => builder.local(own),
            IpAddr::V6(own) => builder.local6(own).mtu(MTU_OVER_V6),
        };
        let link = builder.address(mac(me).to_vec()).build();
        handle.link().add(link).execute().await.with_context(|| format!("interface {NAME} cannot be made"))?;
    }
    let index = find(kernel).await?.with_context(|| format!("interface {NAME} was made and is not there"))?;
    sysctl::apply_interface(NAME, false)?;
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await.with_context(|| format!("interface {NAME} cannot be set up"))?;
    let v6 = settings.vips.iter().any(|vip| vip.address.is_ipv6());
    let families = [true, false].into_iter().filter(|v4| *v4 || v6);
    for v4 in families.clone() {
        let route = match v4 {
            true => {
                let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(NETWORK_V4, 24);
                route.scope(RouteScope::Link).output_interface(index).build()
            }
            false => {
                let route = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(NETWORK_V6, 64);
                route.output_interface(index).build()
            }
        };
        handle.route().add(route).replace().execute().await.with_context(|| format!("route to {NAME}"))?;
    }
    for (peer, node) in (0..).map(NodeId).zip(&settings.nodes).filter(|(peer, _)| *peer != me) {
        let place = handle.neighbours().add_bridge(index, &mac(peer)).destination(node.address);
        let place = place.flags(NeighbourFlags::Own).replace().execute().await;
        place.with_context(|| format!("place of node {} on {NAME}", node.name))?;
        for v4 in families.clone() {
            let neighbour = handle.neighbours().add(index, gateway(peer, v4)).link_layer_address(&mac(peer));
            neighbour.replace().execute().await.with_context(|| format!("node {} on {NAME}", node.name))?;
        }
    }
    Ok(index)
}

/// Has the interface gone.
///
/// # Errors
/// The kernel's own word.
pub async fn take_down(kernel: &Kernel) -> Result<()> {
    let Some(index) = find(kernel).await? else { return Ok(()) };
    kernel.handle.link().del(index).execute().await.with_context(|| format!("interface {NAME} cannot be removed"))
}

async fn find(kernel: &Kernel) -> Result<Option<u32>> {
    Ok(kernel.links().await?.get(NAME).map(|link| link.index))
}

/// The rules that let only nodes of the set into the tunnel, and out of it only what is relayed, as a transaction; none when it is
/// not there.
pub fn guard(settings: &Settings, me: NodeId, is_up: bool) -> String {
    let table = "inet trilith-tunnel";
    let mut text = format!("add table {table}\ndelete table {table}\n");
    if !is_up {
        return text;
    }
    text += &format!(
        "add table {table}\nadd chain {table} input {{ type filter hook input priority -300; policy accept; }}\n"
    );
    let mut rule = |words: String| text += &format!("add rule {table} input {words}\n");
    let own = settings.nodes[usize::from(me.0)].address;
    let (family, ttl) = if own.is_ipv4() { ("ip", "ttl") } else { ("ip6", "hoplimit") };
    let peers = settings.nodes.iter().map(|node| node.address).filter(|address| *address != own);
    let peers = peers.map(|address| address.to_string()).collect::<Vec<_>>().join(", ");
    let port = settings.set.tunnel_port();
    rule(format!("udp dport {port} {family} saddr {{ {peers} }} {family} {ttl} {TTL} accept"));
    rule(format!("udp dport {port} drop"));
    for vip in settings.vips.iter().map(|vip| vip.address) {
        // TCP and ICMP errors, by number: the image has no list of their names.
        let (family, protocols) = if vip.is_ipv4() { ("ip", "6, 1") } else { ("ip6", "6, 58") };
        rule(format!("iifname \"{NAME}\" {family} daddr {vip} meta l4proto {{ {protocols} }} accept"));
    }
    rule(format!("iifname \"{NAME}\" drop"));
    text
}

/// A node's address on the interface, made up, locally administered: `tril`.
fn mac(node: NodeId) -> [u8; 6] {
    [2, b't', b'r', b'i', b'l', node.0]
}

/// Number of the network in the tunnel: `tri`.
const VNI: u32 = 0x74_72_69;
/// Whoever is further away cannot make a datagram that arrives with it (GTSM, RFC 5082).
const TTL: u8 = 255;
/// The least that IPv6 may have (RFC 8200, section 5); with the headers of Ethernet, VXLAN, UDP and IPv6 it fits into 1,350 bytes.
const MTU_OVER_V6: u32 = 1280;
/// Addresses on the interface: link-local ones (RFC 3927), and unique local ones (RFC 4193) that spell `trilith`. They leave no machine.
const NETWORK_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 116, 0);
const NETWORK_V6: Ipv6Addr = Ipv6Addr::new(0xfd74, 0x7269, 0x6c69, 0x7468, 0, 0, 0, 0);
