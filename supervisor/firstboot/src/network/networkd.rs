//! From the model to the files of systemd-networkd (systemd.network(5), systemd.netdev(5)).

use std::fmt::Write;

use super::bond::{PARAMETERS, PRIMARY};
use super::{Kind, Link, Network};

/// DHCP on every network interface of the machine: what a node does that nobody told anything.
///
/// `Kind=!*` leaves out what is made by software: interfaces of the machine have no kind.
pub const DHCP_EVERYWHERE: &str = "\
[Match]
Type=ether
Kind=!*

[Network]
DHCP=yes
";

/// The files of a network: names within `/etc/systemd/network`, and what is in them.
///
/// The names begin with a number, since networkd takes the first file that matches an interface.
pub fn render(network: &Network) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for (place, link) in network.links.iter().enumerate() {
        let stem = format!("10-trilith-{place:02}-{}", link.id.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
        if let Some(netdev) = netdev(link) {
            files.push((format!("{stem}.netdev"), netdev));
        }
        files.push((format!("{stem}.network"), link_file(link, network)));
    }
    files
}

/// What makes the interface, when it is not one of the machine's.
fn netdev(link: &Link) -> Option<String> {
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments<'_>| writeln!(text, "{words}").expect("a String takes everything");
    let kind = match &link.kind {
        Kind::Physical => return None,
        Kind::Vlan { .. } => "vlan",
        Kind::Bond { .. } => "bond",
    };
    line(format_args!("[NetDev]\nName={}\nKind={kind}", link.id));
    if let Some(mac) = &link.set_mac {
        line(format_args!("MACAddress={mac}"));
    }
    match &link.kind {
        Kind::Physical => {}
        Kind::Vlan { vlan_id, .. } => line(format_args!("\n[VLAN]\nId={vlan_id}")),
        Kind::Bond { parameters, .. } => {
            line(format_args!("\n[Bond]"));
            for parameter in PARAMETERS.iter().filter(|parameter| parameter.networkd != PRIMARY) {
                if let Some(value) = parameters.get(parameter.name) {
                    line(format_args!("{}={value}", parameter.networkd));
                }
            }
        }
    }
    Some(text)
}

fn link_file(link: &Link, network: &Network) -> String {
    let mut file = Sections::default();
    file.section("Match");
    matching(link, &mut file);
    file.section("Link");
    if let Some(mtu) = link.mtu {
        file.line("MTUBytes", mtu);
    }
    if let Some(mac) = &link.set_mac
        && link.kind == Kind::Physical
    {
        file.line("MACAddress", mac);
    }
    if link.optional {
        file.line("RequiredForOnline", "no");
    }
    file.section("Network");
    file.line(
        "DHCP",
        match (link.dhcp4, link.dhcp6) {
            (true, true) => "yes",
            (true, false) => "ipv4",
            (false, true) => "ipv6",
            (false, false) => "no",
        },
    );
    if let Some(families) = &link.link_local {
        let has = |family: &str| families.iter().any(|named| named == family);
        file.line(
            "LinkLocalAddressing",
            match (has("ipv4"), has("ipv6")) {
                (true, true) => "yes",
                (true, false) => "ipv4",
                (false, true) => "ipv6",
                (false, false) => "no",
            },
        );
    }
    if let Some(accept) = link.accept_ra {
        file.line("IPv6AcceptRA", if accept { "yes" } else { "no" });
    }
    if !link.dns.is_empty() {
        file.line("DNS", link.dns.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    }
    if !link.search.is_empty() {
        file.line("Domains", link.search.join(" "));
    }
    joined(link, network, &mut file);
    for address in &link.addresses {
        file.section("Address");
        file.line("Address", address);
    }
    for route in &link.routes {
        file.section("Route");
        // Without a destination it is the default route.
        if route.to.prefix > 0 || route.via.is_none() {
            file.line("Destination", route.to);
        }
        if let Some(via) = route.via {
            file.line("Gateway", via);
        }
        if route.on_link {
            file.line("GatewayOnLink", "yes");
        }
        if let Some(metric) = route.metric {
            file.line("Metric", metric);
        }
        if let Some(mtu) = route.mtu {
            file.line("MTUBytes", mtu);
        }
    }
    for (on, section, overrides) in
        [(link.dhcp4, "DHCPv4", &link.dhcp4_overrides), (link.dhcp6, "DHCPv6", &link.dhcp6_overrides)]
    {
        file.section(section);
        for (key, value) in overrides.iter().filter(|(key, _)| on && (section == "DHCPv4" || is_for_dhcp6(key))) {
            file.line(key, value);
        }
    }
    file.text
}

/// `PermanentMACAddress`, since the members of a bond and VLANs have the current address of another.
fn matching(link: &Link, file: &mut Sections) {
    if link.kind != Kind::Physical {
        return file.line("Name", &link.id);
    }
    if let Some(mac) = &link.matching.mac {
        file.line("PermanentMACAddress", mac);
    }
    if let Some(driver) = &link.matching.driver {
        file.line("Driver", driver);
    }
    match (&link.set_name, &link.matching.name) {
        // The name is given before networkd starts. The MAC address says it better, also when renaming failed.
        (Some(name), _) if link.matching.mac.is_none() => file.line("Name", name),
        (None, Some(name)) => file.line("Name", name),
        _ => {}
    }
    if link.matching.mac.is_none() && link.matching.name.as_deref().is_none_or(|name| name.contains('*')) {
        // A pattern is for the machine's own interfaces, not for what is made of them.
        file.line("Kind", "!*");
    }
}

/// What lies on this link: VLANs, or the bond that it is a member of.
fn joined(link: &Link, network: &Network, file: &mut Sections) {
    for other in &network.links {
        match &other.kind {
            Kind::Vlan { on, .. } if on == &link.id => file.line("VLAN", &other.id),
            Kind::Bond { members, parameters } if members.contains(&link.id) => {
                file.line("Bond", &other.id);
                if parameters.get("primary") == Some(&link.id) {
                    file.line("PrimarySlave", "yes");
                }
            }
            _ => {}
        }
    }
}

/// Keys that `[DHCPv6]` has as well (systemd.network(5)).
fn is_for_dhcp6(key: &str) -> bool {
    matches!(key, "UseDNS" | "UseDomains" | "UseHostname" | "UseNTP" | "SendHostname" | "Hostname")
}

/// Text in sections; one without lines is not written.
#[derive(Default)]
struct Sections {
    text: String,
    pending: Option<&'static str>,
}

impl Sections {
    fn section(&mut self, name: &'static str) {
        self.pending = Some(name);
    }

    fn line(&mut self, key: &str, value: impl std::fmt::Display) {
        if let Some(section) = self.pending.take() {
            let gap = if self.text.is_empty() { "" } else { "\n" };
            writeln!(self.text, "{gap}[{section}]").expect("a String takes everything");
        }
        writeln!(self.text, "{key}={value}").expect("a String takes everything");
    }
}
