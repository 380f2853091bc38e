//! OpenStack's `network_data.json`, as a ConfigDrive carries it.

use std::net::IpAddr;

use super::{Cidr, Kind, Link, Match, Network, Route, addresses, bond, is_interface, mac, mtu};
use crate::fields::{Field, Table};
use crate::finding::{Findings, quoted};

pub(super) fn read(root: &Field<'_>, findings: &mut Findings) -> Option<Network> {
    let mut table = root.table(findings)?;
    let mut links = Vec::new();
    for field in table.get("links").and_then(|field| field.list(findings)).unwrap_or_default() {
        if let Some(mut inner) = field.table(findings) {
            links.extend(link(&mut inner, findings));
        }
    }
    let mut dns = Vec::new();
    for field in table.get("services").and_then(|field| field.list(findings)).unwrap_or_default() {
        dns.extend(service(&field, findings));
    }
    for field in table.get("networks").and_then(|field| field.list(findings)).unwrap_or_default() {
        network(&field, &mut links, findings);
    }
    table.finish(findings);
    for link in &mut links {
        if link.dns.is_empty() && (link.dhcp4 || link.dhcp6 || !link.addresses.is_empty()) {
            link.dns = dns.clone();
        }
    }
    Some(Network { links })
}

/// Interfaces have no names here, only MAC addresses; what is made by software is named by its id.
fn link(table: &mut Table<'_>, findings: &mut Findings) -> Option<Link> {
    let id = table.require("id", "\"interface0\"", findings)?;
    let name = id.text(findings)?.to_owned();
    let mut link = Link { id: name.clone(), ..Link::default() };
    let mac = table.get("ethernet_mac_address").and_then(|field| mac(&field, findings));
    link.mtu = table.get("mtu").and_then(|field| mtu(&field, findings));
    match table.get("type").and_then(|field| field.plain()) {
        Some("bond") => {
            let members = table.get("bond_links").map(|field| field.words(findings)).unwrap_or_default();
            let mut parameters = std::collections::BTreeMap::new();
            for (key, v2) in
                [("bond_mode", "mode"), ("bond_miimon", "miimon"), ("bond_xmit_hash_policy", "xmit-hash-policy")]
            {
                if let Some(field) = table.get(key) {
                    parameters.extend(bond::one(v2, &field, findings));
                }
            }
            link.kind = Kind::Bond { members, parameters };
            link.set_mac = mac;
        }
        Some("vlan") => {
            let on = table.require("vlan_link", "\"interface0\"", findings)?.text(findings)?.to_owned();
            let vlan_id = table.require("vlan_id", "100", findings)?.integer(0, 4094, findings)?;
            link.kind = Kind::Vlan { vlan_id, on };
            link.set_mac = table.get("vlan_mac_address").and_then(|field| super::mac(&field, findings));
        }
        _ => match mac {
            Some(mac) => link.matching = Match { mac: Some(mac), ..Match::default() },
            None => link.matching.name = Some(name.clone()),
        },
    }
    let named = link.kind != Kind::Physical || link.matching.name.is_some();
    if named && !is_interface(&name) {
        let mend = "write 1 to 15 letters, digits, dots, hyphens and underscores";
        id.fault(findings, format!("{} is no name of an interface", quoted(&name)), mend);
    }
    Some(link)
}

fn network(field: &Field<'_>, links: &mut [Link], findings: &mut Findings) {
    let Some(mut table) = field.table(findings) else { return };
    let Some(on) = table.require("link", "\"interface0\"", findings).and_then(|field| field.text(findings)) else {
        return;
    };
    let Some(link) = links.iter_mut().find(|link| link.id == on) else {
        field.fault(findings, format!("there is no link {}", quoted(on)), "name one of links");
        return;
    };
    match table.get("type").and_then(|field| field.plain()) {
        Some("ipv4_dhcp") => link.dhcp4 = true,
        Some("ipv6_dhcp" | "ipv6_dhcpv6-stateful") => link.dhcp6 = true,
        Some("ipv6_slaac" | "ipv6_dhcpv6-stateless") => link.accept_ra = Some(true),
        Some("ipv4" | "ipv6") => {
            let address = table.require("ip_address", "\"10.0.0.2\"", findings);
            let mask = table.get("netmask").and_then(|field| field.text(findings)).map(str::to_owned);
            if let Some(field) = address
                && let Some(text) = field.text(findings)
            {
                let whole = if text.contains('/') {
                    text.to_owned()
                } else {
                    format!("{text}/{}", mask.as_deref().unwrap_or(""))
                };
                match whole.parse::<Cidr>() {
                    Ok(cidr) => link.addresses.push(cidr),
                    Err(wrong) => field.fault(findings, wrong, "write ip_address and netmask, or 10.0.0.2/24"),
                }
            }
            link.routes.extend(
                table.get("gateway").and_then(|field| field.read::<IpAddr>("IP address", "10.0.0.1", findings)).map(
                    |via| Route {
                        to: Cidr::default_like(via),
                        via: Some(via),
                        metric: None,
                        mtu: None,
                        on_link: false,
                    },
                ),
            );
        }
        other => field.fault(
            findings,
            format!("{} is no type of a network", quoted(other.unwrap_or(""))),
            "write ipv4, ipv6, ipv4_dhcp or ipv6_dhcp",
        ),
    }
    if let Some(field) = table.get("dns_nameservers") {
        link.dns.extend(addresses(&field, findings));
    }
    for field in table.get("services").and_then(|field| field.list(findings)).unwrap_or_default() {
        link.dns.extend(service(&field, findings));
    }
    for field in table.get("routes").and_then(|field| field.list(findings)).unwrap_or_default() {
        link.routes.extend(route(&field, findings));
    }
}

fn route(field: &Field<'_>, findings: &mut Findings) -> Option<Route> {
    let mut table = field.table(findings)?;
    let network = table.require("network", "\"0.0.0.0\"", findings)?.text(findings)?;
    let mask = table.require("netmask", "\"0.0.0.0\"", findings)?.text(findings)?;
    let via = table.get("gateway").and_then(|field| field.read::<IpAddr>("IP address", "10.0.0.1", findings));
    match format!("{network}/{mask}").parse::<Cidr>() {
        Ok(to) => Some(Route { to, via, metric: None, mtu: None, on_link: false }),
        Err(wrong) => {
            field.fault(findings, wrong, "write network and netmask");
            None
        }
    }
}

fn service(field: &Field<'_>, findings: &mut Findings) -> Vec<IpAddr> {
    let Some(mut table) = field.table(findings) else { return Vec::new() };
    match (table.get("type").and_then(|field| field.plain()), table.get("address")) {
        (Some("dns"), Some(address)) => addresses(&address, findings),
        _ => Vec::new(),
    }
}
