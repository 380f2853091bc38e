//! What must hold between the links of a network.

use std::collections::BTreeSet;

use super::{Kind, Link, MAX_LINKS, Match, Network, is_interface};
use crate::fields::Field;
use crate::finding::{Findings, quoted};

/// Adds what the document leaves to be understood: links that are only named by others, and gateways outside every subnet.
pub(super) fn complete(network: &mut Network) {
    let mut named = Vec::new();
    for link in &network.links {
        match &link.kind {
            Kind::Physical => {}
            Kind::Vlan { on, .. } => named.push(on.clone()),
            Kind::Bond { members, .. } => named.extend(members.iter().cloned()),
        }
    }
    for id in named {
        if is_interface(&id) && !network.links.iter().any(|link| link.id == id) {
            let matching = Match { name: Some(id.clone()), ..Match::default() };
            network.links.push(Link { id, matching, ..Link::default() });
        }
    }
    for link in &mut network.links {
        // With DHCP the subnet is not known here; a link-local gateway is on every link.
        let leased = (link.dhcp4, link.dhcp6 || link.accept_ra == Some(true));
        for route in &mut link.routes {
            let Some(via) = route.via else { continue };
            let leased = if via.is_ipv4() { leased.0 } else { leased.1 };
            let local = matches!(via, std::net::IpAddr::V6(via) if via.is_unicast_link_local());
            let alike = link.addresses.iter().any(|address| address.address.is_ipv4() == via.is_ipv4());
            if !leased && !local && alike && !link.addresses.iter().any(|address| address.holds(via)) {
                route.on_link = true;
            }
        }
    }
}

/// Notes what does not go together.
pub(super) fn check(network: &Network, root: &Field<'_>, findings: &mut Findings) {
    if network.links.len() > MAX_LINKS {
        root.fault(findings, format!("has {} links", network.links.len()), format!("keep to {MAX_LINKS}"));
    }
    let mut ids = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    let mut macs = BTreeSet::new();
    for link in &network.links {
        if !ids.insert(&link.id) {
            let wrong = format!("{} is the name of two links", quoted(&link.id));
            root.fault(findings, wrong, "give each its own name");
        }
        if let Some(mac) = &link.matching.mac
            && !macs.insert(mac)
        {
            let wrong = format!("two links match the MAC address {mac}");
            root.fault(findings, wrong, "an interface can be only one of them: join the two");
        }
        for address in &link.addresses {
            if !addresses.insert(address.address) {
                let wrong = format!("{} is given to two links", address.address);
                root.fault(findings, wrong, "leave one of the two out");
            }
        }
    }
    let mut enslaved = BTreeSet::new();
    for link in &network.links {
        match &link.kind {
            Kind::Vlan { on, .. } if on == &link.id || !ids.contains(on) => {
                let wrong = format!("VLAN {} lies on {}, which is no other link", link.id, quoted(on));
                root.fault(findings, wrong, "name the link that carries it");
            }
            Kind::Bond { members, .. } => {
                for member in members {
                    let physical =
                        network.links.iter().any(|other| &other.id == member && other.kind == Kind::Physical);
                    if !physical {
                        let wrong =
                            format!("bond {} has the member {}, which is no interface", link.id, quoted(member));
                        root.fault(findings, wrong, "name interfaces of the machine");
                    }
                    if !enslaved.insert(member) {
                        let wrong = format!("{member} is a member of a bond twice");
                        root.fault(findings, wrong, "name it once");
                    }
                }
            }
            _ => {}
        }
    }
    for link in network.links.iter().filter(|link| enslaved.contains(&link.id)) {
        if link.dhcp4 || link.dhcp6 || !link.addresses.is_empty() {
            let wrong = format!("{} is a member of a bond and has an address of its own", link.id);
            root.fault(findings, wrong, "give the address to the bond");
        }
    }
}
