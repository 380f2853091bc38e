//! Network config v1: cloud-init's own, older format.

use std::net::IpAddr;

use super::{Cidr, Kind, Link, Match, Network, Route, addresses, bond, domains, interface, mac, mtu};
use crate::fields::{Field, Table};
use crate::finding::{Findings, quoted};

pub(super) fn read(mut table: Table<'_>, findings: &mut Findings) -> Option<Network> {
    let mut network = Network::default();
    let mut for_all = ForAll::default();
    if table.get("config").is_some_and(|field| field.plain() == Some("disabled")) {
        return Some(network);
    }
    let config = table.require("config", "a list of links", findings)?;
    table.skip("version");
    table.finish(findings);
    for field in config.list(findings)? {
        entry(&field, &mut network, &mut for_all, findings);
    }
    for_all.spread(&mut network, findings);
    Some(network)
}

/// What the document says once for all links.
#[derive(Default)]
struct ForAll<'d> {
    dns: Vec<IpAddr>,
    search: Vec<String>,
    for_link: Vec<(Field<'d>, String, Vec<IpAddr>, Vec<String>)>,
    routes: Vec<(Field<'d>, Route)>,
}

fn entry<'d>(field: &Field<'d>, network: &mut Network, for_all: &mut ForAll<'d>, findings: &mut Findings) {
    let Some(mut table) = field.table(findings) else { return };
    let Some(kind) = table.require("type", "physical", findings) else { return };
    match kind.plain() {
        Some("physical") => {
            let Some(mut link) = named(&mut table, findings) else { return };
            link.matching.mac = table.get("mac_address").and_then(|field| mac(&field, findings));
            match link.matching.mac {
                Some(_) => link.set_name = Some(link.id.clone()),
                None => link.matching.name = Some(link.id.clone()),
            }
            table.skip("wakeonlan");
            common(link, &mut table, network, findings);
        }
        Some("bond") => {
            let Some(mut link) = named(&mut table, findings) else { return };
            let members = table.require("bond_interfaces", "[eth0, eth1]", findings);
            let members = members.map(|field| field.words(findings)).unwrap_or_default();
            let parameters = table.get("params").and_then(|field| field.table(findings));
            let parameters = parameters.map(|table| bond::read(table, findings)).unwrap_or_default();
            link.kind = Kind::Bond { members, parameters };
            link.set_mac = table.get("mac_address").and_then(|field| mac(&field, findings));
            common(link, &mut table, network, findings);
        }
        Some("vlan") => {
            let Some(mut link) = named(&mut table, findings) else { return };
            let on = table.require("vlan_link", "eth0", findings).and_then(|field| interface(&field, findings));
            let vlan_id = table.require("vlan_id", "100", findings).and_then(|field| field.integer(0, 4094, findings));
            link.kind = Kind::Vlan { vlan_id: vlan_id.unwrap_or_default(), on: on.unwrap_or_default() };
            link.set_mac = table.get("mac_address").and_then(|field| mac(&field, findings));
            common(link, &mut table, network, findings);
        }
        Some("nameserver") => {
            let dns = table.get("address").map(|field| addresses(&field, findings)).unwrap_or_default();
            let search = table.get("search").map(|field| domains(&field, findings)).unwrap_or_default();
            match table.get("interface").and_then(|field| interface(&field, findings)) {
                Some(id) => for_all.for_link.push((field.clone(), id, dns, search)),
                None => {
                    for_all.dns.extend(dns);
                    for_all.search.extend(search);
                }
            }
        }
        Some("route") => {
            if let Some(route) = route(field, &mut table, findings) {
                table.skip("id");
                for_all.routes.push((field.clone(), route));
            }
        }
        Some("loopback") => table.skip("subnets"),
        _ => {
            let shown = quoted(kind.plain().unwrap_or_default());
            let mend = "known are physical, bond, vlan, nameserver and route";
            kind.warn(findings, format!("{shown} is not supported and left out"), mend);
            return;
        }
    }
    table.skip("name");
    table.finish(findings);
}

impl ForAll<'_> {
    fn spread(self, network: &mut Network, findings: &mut Findings) {
        for (field, id, dns, search) in self.for_link {
            match network.links.iter_mut().find(|link| link.id == id) {
                Some(link) => (link.dns, link.search) = (dns, search),
                None => field.fault(findings, format!("there is no link {id}"), "name a link of this document"),
            }
        }
        for link in &mut network.links {
            if link.dns.is_empty() && link.search.is_empty() {
                (link.dns, link.search) = (self.dns.clone(), self.search.clone());
            }
        }
        for (field, route) in self.routes {
            let holds =
                |link: &&mut Link| route.via.is_some_and(|via| link.addresses.iter().any(|address| address.holds(via)));
            match network.links.iter_mut().find(holds) {
                Some(link) => link.routes.push(route),
                None => {
                    let mend = "put the route below routes of the subnet whose link it goes by";
                    field.fault(findings, "the gateway lies in no subnet of a link", mend);
                }
            }
        }
    }
}

fn named(table: &mut Table<'_>, findings: &mut Findings) -> Option<Link> {
    let id = table.require("name", "eth0", findings).and_then(|field| interface(&field, findings))?;
    Some(Link { id, matching: Match::default(), ..Link::default() })
}

fn common(mut link: Link, table: &mut Table<'_>, network: &mut Network, findings: &mut Findings) {
    link.mtu = table.get("mtu").and_then(|field| mtu(&field, findings));
    link.accept_ra = table.get("accept-ra").and_then(|field| field.boolean(findings));
    link.optional = table.get("optional").and_then(|field| field.boolean(findings)).unwrap_or(false);
    for field in table.get("subnets").and_then(|field| field.list(findings)).unwrap_or_default() {
        subnet(&mut link, &field, findings);
    }
    network.links.push(link);
}

fn subnet(link: &mut Link, field: &Field<'_>, findings: &mut Findings) {
    let Some(mut table) = field.table(findings) else { return };
    let Some(kind) = table.require("type", "static", findings) else { return };
    let mut gateway_metric = None;
    match kind.plain() {
        Some(dhcp @ ("dhcp" | "dhcp4" | "dhcp6" | "ipv6_dhcpv6-stateful")) => {
            let four = matches!(dhcp, "dhcp" | "dhcp4");
            *(if four { &mut link.dhcp4 } else { &mut link.dhcp6 }) = true;
            if dhcp == "ipv6_dhcpv6-stateful" {
                link.accept_ra = link.accept_ra.or(Some(true));
            }
        }
        Some("ipv6_dhcpv6-stateless" | "ipv6_slaac") => link.accept_ra = link.accept_ra.or(Some(true)),
        Some("manual") => {}
        Some("static" | "static6") => {
            let address = table.require("address", "10.0.0.2/24", findings);
            let mask = ["netmask", "prefix"].into_iter().find_map(|key| table.get(key));
            let address = address.and_then(|field| with_mask(&field, mask.as_ref(), findings));
            link.addresses.extend(address);
            gateway_metric = table.get("metric").and_then(|field| field.integer(0, i64::from(u32::MAX), findings));
        }
        _ => {
            let shown = quoted(kind.plain().unwrap_or_default());
            kind.fault(findings, format!("{shown} is no type of a subnet"), "write static, dhcp4, dhcp6 or manual");
        }
    }
    if let Some(field) = table.get("gateway")
        && let Some(via) = field.read::<IpAddr>("IP address", "10.0.0.1", findings)
    {
        let to = Cidr::default_like(via);
        link.routes.push(Route { to, via: Some(via), metric: gateway_metric, mtu: None, on_link: false });
    }
    if let Some(field) = table.get("dns_nameservers") {
        link.dns.extend(addresses(&field, findings));
    }
    if let Some(field) = table.get("dns_search") {
        link.search.extend(domains(&field, findings));
    }
    if let Some(field) = table.get("mtu")
        && link.mtu.is_none()
    {
        link.mtu = mtu(&field, findings);
    }
    for field in table.get("routes").and_then(|field| field.list(findings)).unwrap_or_default() {
        let Some(mut table) = field.table(findings) else { continue };
        link.routes.extend(route(&field, &mut table, findings));
        table.finish(findings);
    }
    // Written by many tools, and said already by the prefix length or by "auto", the only control there is here.
    table.skip("broadcast");
    if table.get("control").is_some_and(|field| field.plain() == Some("auto")) {
        table.skip("control");
    }
    table.finish(findings);
}

/// `destination` or `network`, with `netmask` or a prefix length; `gateway`, `metric`.
fn route(field: &Field<'_>, table: &mut Table<'_>, findings: &mut Findings) -> Option<Route> {
    table.skip("type");
    let to = match ["destination", "network"].into_iter().find_map(|key| table.get(key)) {
        Some(to) => to,
        None => table.require("destination", "10.1.0.0/16", findings)?,
    };
    let mask = ["netmask", "prefix"].into_iter().find_map(|key| table.get(key));
    let to = with_mask(&to, mask.as_ref(), findings);
    let via = table.get("gateway").and_then(|field| field.read::<IpAddr>("IP address", "10.0.0.1", findings));
    let metric = table.get("metric").and_then(|field| field.integer(0, i64::from(u32::MAX), findings));
    let to = to?;
    if via.is_some_and(|via| via.is_ipv4() != to.address.is_ipv4()) {
        field.fault(findings, format!("the way to {to} has a gateway of the other family"), "correct one of the two");
    }
    Some(Route { to, via, metric, mtu: None, on_link: false })
}

/// An address with the mask after a slash, in a key of its own, or, as cloud-init has it, /24 or /64 by default.
fn with_mask(field: &Field<'_>, mask: Option<&Field<'_>>, findings: &mut Findings) -> Option<Cidr> {
    let text = field.text(findings)?;
    if text.contains('/') {
        return field.read("address with a prefix length", "10.0.0.2/24", findings);
    }
    let address = field.read::<IpAddr>("IP address", "10.0.0.2/24", findings)?;
    match mask {
        Some(mask) => {
            let text = mask.text(findings)?;
            let cidr = Cidr::of(address, text.trim());
            if cidr.is_none() {
                mask.fault(findings, format!("{} is no netmask of {address}", quoted(text)), "write one such as 24");
            }
            cidr
        }
        None => {
            let prefix = if address.is_ipv4() { 24 } else { 64 };
            field.warn(findings, format!("has no prefix length: /{prefix} is taken, as cloud-init does"), "");
            Some(Cidr { address, prefix })
        }
    }
}
