//! What must hold between the tables of a document.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;

use toml::Spanned;

use super::fault::{Faults, Kind, Wrong, closest, quoted};
use super::parse::{Draft, NodeDraft, ServiceDraft, VipDraft};
use super::{Node, NodeId, Service, Settings, Vip, VipId, addresses};

/// Puts the tables together. `None` only where a fault was noted.
pub(super) fn resolve(draft: Draft, faults: &mut Faults) -> Option<Settings> {
    let Draft { set, nodes, vips, services } = draft;
    unique_names(faults, "node.name", "node", nodes.iter().map(|node| &node.name));
    unique_names(faults, "vip.name", "VIP", vips.iter().map(|vip| &vip.name));
    unique_names(faults, "service.name", "service", services.iter().map(|service| &service.name));
    unique_addresses(faults, &nodes, &vips);
    one_family(faults, &nodes);
    for vip in &vips {
        for node in &nodes {
            same_subnet(faults, vip, node);
        }
    }
    unique_ports(faults, &services);
    unique_backends(faults, &services);

    let node_names: Vec<&str> = nodes.iter().map(|node| node.name.get_ref().as_str()).collect();
    let vip_names: Vec<&str> = vips.iter().map(|vip| vip.name.get_ref().as_str()).collect();
    let mut resolved_vips = Vec::new();
    for (place, vip) in vips.iter().enumerate() {
        let prefer = match &vip.prefer {
            Some(name) => find(faults, "vip.prefer", "node", name, &node_names)?,
            None => place % nodes.len(),
        };
        let (address, prefix) = *vip.address.get_ref();
        resolved_vips.push(Vip {
            name: vip.name.get_ref().clone(),
            address,
            prefix,
            interface: vip.interface.clone(),
            prefer: NodeId(prefer as u8),
        });
    }
    let mut resolved_services = Vec::new();
    for service in services {
        let mut on = Vec::new();
        for name in &service.vips {
            let vip = VipId(find(faults, "service.vip", "VIP", name, &vip_names)? as u8);
            if on.contains(&vip) {
                let wrong = Wrong::new(format!("names {} twice", quoted(name.get_ref())), "name it once");
                faults.note(Kind::Relation, name.span(), "service.vip", wrong);
            }
            on.push(vip);
        }
        resolved_services.push(Service {
            name: service.name.into_inner(),
            vips: on,
            port: service.port.into_inner(),
            mode: service.mode,
            backend_port: service.backend_port.into_inner(),
            health: service.health,
            unit: service.unit,
            tls_certificate: service.tls_certificate,
            drain_deadline: service.drain_deadline,
        });
    }
    let nodes = nodes
        .into_iter()
        .map(|node| Node {
            name: node.name.into_inner(),
            address: node.address.into_inner(),
            address6: node.address6.map(Spanned::into_inner),
            zone: node.zone,
        })
        .collect();
    Some(Settings { set, nodes, vips: resolved_vips, services: resolved_services, fingerprint: 0 })
}

fn unique_names<'d>(faults: &mut Faults, key: &str, kind: &str, names: impl Iterator<Item = &'d Spanned<String>>) {
    let mut seen = Vec::new();
    for name in names {
        if seen.contains(&name.get_ref()) {
            let wrong = Wrong::new(
                format!("{} is the name of another {kind} already", quoted(name.get_ref())),
                format!("give each {kind} a name of its own"),
            );
            faults.note(Kind::Relation, name.span(), key, wrong);
        }
        seen.push(name.get_ref());
    }
}

/// No two nodes or VIPs have one address.
fn unique_addresses(faults: &mut Faults, nodes: &[NodeDraft], vips: &[VipDraft]) {
    let of_nodes = nodes.iter().flat_map(|node| {
        let owner = format!("node {}", node.name.get_ref());
        let address = (*node.address.get_ref(), node.address.span(), "node.address", owner.clone());
        let address6 = node.address6.as_ref().map(|at| (IpAddr::V6(*at.get_ref()), at.span(), "node.address6", owner));
        std::iter::once(address).chain(address6)
    });
    let of_vips = vips.iter().map(|vip| {
        let owner = format!("VIP {}", vip.name.get_ref());
        (vip.address.get_ref().0, vip.address.span(), "vip.address", owner)
    });
    let mut seen: BTreeMap<IpAddr, (Range<usize>, String)> = BTreeMap::new();
    let mut all: Vec<_> = of_nodes.chain(of_vips).collect();
    all.sort_by_key(|(_, at, ..)| at.start);
    for (address, at, key, owner) in all {
        if let Some((_, first)) = seen.get(&address) {
            let wrong = Wrong::new(format!("{address} is the address of {first} already"), "give each its own address");
            faults.note(Kind::Relation, at, key, wrong);
        } else {
            seen.insert(address, (at, owner));
        }
    }
}

/// Peers talk over one socket: it is of one family. IPv6 beside IPv4 goes to `address6`.
fn one_family(faults: &mut Faults, nodes: &[NodeDraft]) {
    for node in nodes {
        let address = *node.address.get_ref();
        if let (IpAddr::V6(_), Some(address6)) = (address, &node.address6) {
            let wrong = Wrong::new("is given beside an address that is IPv6 already", "leave it out");
            faults.note(Kind::Relation, address6.span(), "node.address6", wrong);
        }
        if let Some(first) = nodes.first()
            && first.address.get_ref().is_ipv4() != address.is_ipv4()
        {
            let family = if first.address.get_ref().is_ipv4() { "IPv4" } else { "IPv6" };
            let wrong = format!("{address} is not {family} as node {}'s is", first.name.get_ref());
            let right = "give all nodes' addresses in one family; an IPv6 address beside IPv4 goes to address6";
            faults.note(Kind::Relation, node.address.span(), "node.address", Wrong::new(wrong, right));
        }
    }
}

/// A node can hold a VIP and be relayed to only on the VIP's own subnet.
fn same_subnet(faults: &mut Faults, vip: &VipDraft, node: &NodeDraft) {
    let subnet @ (vip_address, prefix) = *vip.address.get_ref();
    let (node_name, vip_name) = (node.name.get_ref(), vip.name.get_ref());
    let (address, at, key) = match (vip_address, *node.address.get_ref(), &node.address6) {
        (IpAddr::V6(_), IpAddr::V4(_), Some(six)) => (IpAddr::V6(*six.get_ref()), six.span(), "node.address6"),
        (IpAddr::V6(_), IpAddr::V4(_), None) => {
            let wrong = format!("is missing, but VIP {vip_name} is IPv6 ({vip_address})");
            let right = format!("give node {node_name} an address6 in {vip_address}/{prefix}");
            faults.note(Kind::Relation, node.at.clone(), "node.address6", Wrong::new(wrong, right));
            return;
        }
        (IpAddr::V4(_), IpAddr::V6(six), _) => {
            let wrong = format!("{vip_address} is IPv4, but node {node_name} has only an IPv6 address ({six})");
            let right = "give the nodes IPv4 addresses and put the IPv6 ones to address6";
            faults.note(Kind::Relation, vip.address.span(), "vip.address", Wrong::new(wrong, right));
            return;
        }
        (_, address, _) => (address, node.address.span(), "node.address"),
    };
    if !addresses::holds(subnet, address) {
        let wrong = format!("the subnet of {vip_address}/{prefix} does not hold node {node_name}'s address {address}");
        let right = "a VIP and all nodes share one subnet: mend the VIP, its prefix length or the node's address";
        faults.note(Kind::Relation, vip.address.span(), "vip.address", Wrong::new(wrong, right));
    } else if let Err(Wrong { wrong, right }) = addresses::host_part(address, prefix) {
        faults.note(Kind::Relation, at, key, Wrong::new(format!("{wrong} (VIP {vip_name})"), right));
    }
}

/// On one VIP a port belongs to one service.
fn unique_ports(faults: &mut Faults, services: &[ServiceDraft]) {
    let mut seen: BTreeMap<(&str, u16), &str> = BTreeMap::new();
    for service in services {
        for vip in &service.vips {
            let port = *service.port.get_ref();
            let name = service.name.get_ref().as_str();
            match seen.insert((vip.get_ref(), port), name) {
                Some(first) if first != name => {
                    let wrong = format!("{port} on VIP {} is service {first}'s already", vip.get_ref());
                    let right = "choose another port or another VIP";
                    faults.note(Kind::Relation, service.port.span(), "service.port", Wrong::new(wrong, right));
                }
                _ => {}
            }
        }
    }
}

/// On one node a port belongs to one instance.
fn unique_backends(faults: &mut Faults, services: &[ServiceDraft]) {
    let mut seen: BTreeMap<u16, &ServiceDraft> = BTreeMap::new();
    for service in services {
        let port = *service.backend_port.get_ref();
        let first = *seen.entry(port).or_insert(service);
        let shared = service.unit.is_some() && service.unit == first.unit;
        if !std::ptr::eq(first, service) && !shared {
            let wrong = format!("{port} is service {}'s already", first.name.get_ref());
            let right = "choose another port, or name the same unit in both if one instance serves both";
            faults.note(Kind::Relation, service.backend_port.span(), "service.backend_port", Wrong::new(wrong, right));
        }
    }
}

fn find(faults: &mut Faults, key: &str, kind: &str, name: &Spanned<String>, known: &[&str]) -> Option<usize> {
    let found = known.iter().position(|known| known == name.get_ref());
    if found.is_none() {
        let right = match closest(name.get_ref(), known.iter().copied()) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("known are: {}", known.join(", ")),
        };
        let wrong = format!("{} is the name of no {kind}", quoted(name.get_ref()));
        faults.note(Kind::Relation, name.span(), key, Wrong::new(wrong, right));
    }
    found
}
