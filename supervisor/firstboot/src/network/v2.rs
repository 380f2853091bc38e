//! Network config v2: netplan's format, as cloud-init reads it.

use std::net::IpAddr;

use super::{
    Cidr, Kind, Link, Match, Network, Overrides, Route, addresses, bond, domains, interface, mac, mtu, pattern,
};
use crate::fields::{Field, Table};
use crate::finding::{Findings, quoted};
use crate::yaml::Value;

pub(super) fn read(mut table: Table<'_>, findings: &mut Findings) -> Option<Network> {
    let mut links = Vec::new();
    for (key, read) in
        [("ethernets", ethernet as fn(&mut Link, &mut Table<'_>, &mut Findings)), ("bonds", bonded), ("vlans", vlan)]
    {
        let Some(devices) = table.get(key).and_then(|field| field.table(findings)) else { continue };
        for (id, field) in devices.entries() {
            if let Some(link) = device(id, &field, read, findings) {
                links.push(link);
            }
        }
    }
    table.skip("version");
    table.skip("renderer");
    table.finish(findings);
    Some(Network { links })
}

/// One device: first what its type has of its own, then what all have.
fn device(
    id: &str,
    field: &Field<'_>,
    read: fn(&mut Link, &mut Table<'_>, &mut Findings),
    findings: &mut Findings,
) -> Option<Link> {
    let mut link = Link { id: id.to_owned(), ..Link::default() };
    if id.is_empty() || id.len() > 64 || id.chars().any(|c| c.is_control() || c == '/') {
        field.fault(findings, format!("{} is no name of a link", quoted(id)), "write a short plain name");
        return None;
    }
    if field.is_null() {
        link.matching.name = Some(id.to_owned());
        return Some(link);
    }
    let mut table = field.table(findings)?;
    read(&mut link, &mut table, findings);
    let physical = link.kind == Kind::Physical;
    let named = link.matching == Match { name: Some(id.to_owned()), ..Match::default() };
    if (!physical || named) && !super::is_interface(id) {
        let mend = "write 1 to 15 letters, digits, dots, hyphens and underscores, or say with match which one is meant";
        field.fault(findings, format!("{} is no name of an interface", quoted(id)), mend);
    }
    common(&mut link, &mut table, findings);
    table.finish(findings);
    Some(link)
}

fn ethernet(link: &mut Link, table: &mut Table<'_>, findings: &mut Findings) {
    let matched = table.get("match").and_then(|field| field.table(findings));
    link.matching = match matched {
        Some(mut matched) => {
            let found = Match {
                mac: matched.get("macaddress").and_then(|field| mac(&field, findings)),
                name: matched.get("name").and_then(|field| pattern(&field, findings)),
                driver: matched.get("driver").and_then(|field| pattern(&field, findings)),
            };
            matched.finish(findings);
            found
        }
        None => Match { name: Some(link.id.clone()), ..Match::default() },
    };
    if link.matching == Match::default() {
        // An empty match means every interface (netplan(5)).
        link.matching.name = Some("*".to_owned());
    }
    if let Some(field) = table.get("set-name") {
        link.set_name = interface(&field, findings);
        if link.matching.name.as_ref() == Some(&link.id) {
            let mend = "say with match: {macaddress: …} which interface is to have that name";
            field.fault(findings, "needs a match beside it", mend);
        }
    }
    table.skip("wakeonlan");
}

fn bonded(link: &mut Link, table: &mut Table<'_>, findings: &mut Findings) {
    let members = table.get("interfaces").map(|field| field.words(findings)).unwrap_or_default();
    let parameters = table.get("parameters").and_then(|field| field.table(findings));
    let parameters = parameters.map(|table| bond::read(table, findings)).unwrap_or_default();
    link.kind = Kind::Bond { members, parameters };
}

fn vlan(link: &mut Link, table: &mut Table<'_>, findings: &mut Findings) {
    let vlan_id = table.require("id", "100", findings).and_then(|field| field.integer(0, 4094, findings));
    let on = table.require("link", "eth0", findings).and_then(|field| field.text(findings).map(str::to_owned));
    link.kind = Kind::Vlan { vlan_id: vlan_id.unwrap_or_default(), on: on.unwrap_or_default() };
}

fn common(link: &mut Link, table: &mut Table<'_>, findings: &mut Findings) {
    let mut boolean = |table: &mut Table<'_>, key| table.get(key).and_then(|field| field.boolean(findings));
    link.dhcp4 = boolean(table, "dhcp4").unwrap_or(false);
    link.dhcp6 = boolean(table, "dhcp6").unwrap_or(false);
    link.accept_ra = boolean(table, "accept-ra");
    link.optional = boolean(table, "optional").unwrap_or(false);
    link.mtu = table.get("mtu").and_then(|field| mtu(&field, findings));
    link.set_mac = table.get("macaddress").and_then(|field| mac(&field, findings));
    link.dhcp4_overrides = table.get("dhcp4-overrides").map(|field| overrides(&field, findings)).unwrap_or_default();
    link.dhcp6_overrides = table.get("dhcp6-overrides").map(|field| overrides(&field, findings)).unwrap_or_default();
    if let Some(field) = table.get("dhcp-identifier") {
        match field.plain() {
            Some("mac") => drop(link.dhcp4_overrides.insert("ClientIdentifier".to_owned(), "mac".to_owned())),
            Some("duid") => {}
            _ => field.fault(findings, "is neither mac nor duid", "write dhcp-identifier: mac"),
        }
    }
    if let Some(field) = table.get("link-local") {
        let families = field.words(findings);
        if families.iter().any(|family| !matches!(family.as_str(), "ipv4" | "ipv6")) {
            field.fault(findings, "names a family that is neither ipv4 nor ipv6", "write a list such as [ipv6]");
        }
        link.link_local = Some(families);
    }
    for field in table.get("addresses").iter().flat_map(|field| field.one_or_many()) {
        link.addresses.extend(address(&field, findings));
    }
    for key in ["gateway4", "gateway6"] {
        let Some(field) = table.get(key) else { continue };
        let example = if key == "gateway4" { "10.0.0.1" } else { "fd00::1" };
        let Some(via) = field.read::<IpAddr>("IP address", example, findings) else { continue };
        if via.is_ipv4() != (key == "gateway4") {
            field.fault(findings, format!("{via} is of the other family"), format!("write one such as {example}"));
        }
        link.routes.push(Route {
            to: Cidr::default_like(via),
            via: Some(via),
            metric: None,
            mtu: None,
            on_link: false,
        });
    }
    if let Some(mut servers) = table.get("nameservers").and_then(|field| field.table(findings)) {
        link.dns = servers.get("addresses").map(|field| addresses(&field, findings)).unwrap_or_default();
        link.search = servers.get("search").map(|field| domains(&field, findings)).unwrap_or_default();
        servers.finish(findings);
    }
    for field in table.get("routes").and_then(|field| field.list(findings)).unwrap_or_default() {
        link.routes.extend(route(&field, findings));
    }
}

/// `10.0.0.2/24`, or that as the key of a table of options, of which none is supported.
fn address(field: &Field<'_>, findings: &mut Findings) -> Option<Cidr> {
    const EXAMPLE: &str = "10.0.0.2/24 or fd00::2/64";
    if let Value::Map(map) = &field.node.value
        && let [(key, options)] = map.as_slice()
    {
        field.warn(findings, format!("the options of {} are not supported and left out", quoted(&key.text)), "");
        let node =
            crate::yaml::Node { line: options.line, value: Value::Scalar(crate::yaml::Scalar::Text(key.text.clone())) };
        return Field { node: &node, ..field.clone() }.read("address with a prefix length", EXAMPLE, findings);
    }
    field.read("address with a prefix length", EXAMPLE, findings)
}

fn route(field: &Field<'_>, findings: &mut Findings) -> Option<Route> {
    let mut table = field.table(findings)?;
    let via = table.get("via").and_then(|field| field.read::<IpAddr>("IP address", "10.0.0.1", findings));
    let to = table.require("to", "default", findings)?;
    let to = match (to.plain(), via) {
        (Some("default"), Some(via)) => Some(Cidr::default_like(via)),
        (Some("default"), None) => {
            to.fault(findings, "a default route needs a gateway", "add via: and the gateway's address");
            None
        }
        // A single host, as ip-route(8) takes it.
        (Some(text), _) => match text.parse::<IpAddr>() {
            Ok(host) => Some(Cidr { address: host, prefix: if host.is_ipv4() { 32 } else { 128 } }),
            Err(_) => to.read("network", "10.1.0.0/16 or default", findings),
        },
        (None, _) => to.read("network", "10.1.0.0/16 or default", findings),
    };
    let metric = table.get("metric").and_then(|field| field.integer(0, i64::from(u32::MAX), findings));
    let on_link = table.get("on-link").and_then(|field| field.boolean(findings)).unwrap_or(false);
    let mtu = table.get("mtu").and_then(|field| mtu(&field, findings));
    table.finish(findings);
    let to = to?;
    if via.is_some_and(|via| via.is_ipv4() != to.address.is_ipv4()) {
        field.fault(findings, format!("the way to {to} has a gateway of the other family"), "correct one of the two");
    }
    Some(Route { to, via, metric, mtu, on_link })
}

/// `use-dns: false` and its like.
fn overrides(field: &Field<'_>, findings: &mut Findings) -> Overrides {
    let mut found = Overrides::new();
    let Some(mut table) = field.table(findings) else { return found };
    for (key, networkd) in OVERRIDES {
        let Some(field) = table.get(key) else { continue };
        let value = match *key {
            "route-metric" => field.integer::<i64>(0, i64::from(u32::MAX), findings).map(|metric| metric.to_string()),
            "hostname" => field.text(findings).map(str::to_owned).filter(|name| {
                let good = name.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c));
                if !good {
                    field.fault(findings, format!("{} is no host name", quoted(name)), "write a plain name");
                }
                good
            }),
            // Of the domains, networkd can also take routes alone.
            "use-domains" if field.plain() == Some("route") => Some("route".to_owned()),
            _ => field.boolean(findings).map(|yes| if yes { "yes" } else { "no" }.to_owned()),
        };
        if let Some(value) = value {
            found.insert((*networkd).to_owned(), value);
        }
    }
    table.finish(findings);
    found
}

const OVERRIDES: &[(&str, &str)] = &[
    ("use-dns", "UseDNS"),
    ("use-domains", "UseDomains"),
    ("use-hostname", "UseHostname"),
    ("use-ntp", "UseNTP"),
    ("use-mtu", "UseMTU"),
    ("use-routes", "UseRoutes"),
    ("send-hostname", "SendHostname"),
    ("hostname", "Hostname"),
    ("route-metric", "RouteMetric"),
];
