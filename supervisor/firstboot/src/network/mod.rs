//! The network that the answers ask for: one model for all the forms in which it may be written.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::fields::Field;
use crate::finding::{Findings, quoted};
use crate::yaml::Node;

mod bond;
mod check;
mod networkd;
mod openstack;
mod v1;
mod v2;

pub use networkd::{DHCP_EVERYWHERE, render};

/// The network of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The links in the order of the document: where two match one interface, the first counts.
    #[serde(default, rename = "link")]
    pub links: Vec<Link>,
}

/// One network interface and what is wanted on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Link {
    /// Its name in the document; the interface's own name where nothing else says which one is meant.
    pub id: String,
    /// What it is.
    pub kind: Kind,
    /// Which interface of the machine it is; only for [`Kind::Physical`].
    #[serde(rename = "match")]
    pub matching: Match,
    /// The name that the interface is given before it is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_name: Option<String>,
    /// The MAC address that it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_mac: Option<String>,
    /// Largest packet, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Whether nobody waits for it at boot.
    pub optional: bool,
    /// DHCP for IPv4.
    pub dhcp4: bool,
    /// DHCP for IPv6.
    pub dhcp6: bool,
    /// What is taken of a lease for IPv4.
    pub dhcp4_overrides: Overrides,
    /// What is taken of a lease for IPv6.
    pub dhcp6_overrides: Overrides,
    /// Whether router advertisements are believed; `None`: as networkd does by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_ra: Option<bool>,
    /// The families that get a link-local address; `None`: as networkd does by itself (IPv6).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_local: Option<Vec<String>>,
    /// Static addresses, each with the prefix length of its subnet.
    pub addresses: Vec<Cidr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Routes, default gateways included.
    #[serde(rename = "route")]
    pub routes: Vec<Route>,
}

/// What a link is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A network interface of the machine.
    #[default]
    Physical,
    /// A VLAN (IEEE 802.1Q).
    Vlan {
        /// VLAN number, 0 to 4094.
        vlan_id: u16,
        /// The link that carries it, by its [`Link::id`].
        on: String,
    },
    /// Several interfaces as one.
    Bond {
        /// Its members, by their [`Link::id`].
        members: Vec<String>,
        /// Parameters by their names in network config v2.
        parameters: BTreeMap<String, String>,
    },
}

/// Which interface of the machine is meant: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Match {
    /// The MAC address that it came with, in lower case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its name, in which `*`, `?` and `[…]` match any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its driver, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
}

/// What is taken of a DHCP lease, by the keys of systemd.network(5): `UseDNS`, `RouteMetric`, ….
pub type Overrides = BTreeMap<String, String>;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to; `0.0.0.0/0` and `::/0` are the default routes.
    pub to: Cidr,
    /// The gateway; none for a subnet that lies on the link itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
    /// Smaller is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
    /// Largest packet on it, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Whether the gateway is on the link, though no subnet of the link holds it.
    #[serde(default)]
    pub on_link: bool,
}

/// An address or a network with its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// Prefix length, 0 to 32 or 128.
    pub prefix: u8,
}

impl Cidr {
    /// Whether the address lies in this subnet.
    pub fn holds(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, true),
            IpAddr::V6(address) => (u128::from(address), false),
        };
        let ((own, own4), (other, other4)) = (bits(self.address), bits(address));
        let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
        own4 == other4 && (own ^ other) & mask == 0
    }

    /// The default route of the address's family.
    pub fn default_like(address: IpAddr) -> Cidr {
        let address = if address.is_ipv4() { IpAddr::from([0, 0, 0, 0]) } else { IpAddr::from([0_u16; 8]) };
        Cidr { address, prefix: 0 }
    }

    /// Puts an address and a prefix length or netmask (`24`, `255.255.255.0`, `ffff:ffff::`) together.
    pub fn of(address: IpAddr, mask: &str) -> Option<Cidr> {
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match (mask.parse::<u8>(), mask.parse::<IpAddr>()) {
            (Ok(prefix), _) if !mask.starts_with('+') => prefix,
            (_, Ok(IpAddr::V4(mask))) if address.is_ipv4() => {
                let mask = u32::from(mask);
                (mask.leading_ones() + mask.trailing_zeros() == 32 || mask == 0).then_some(mask.leading_ones() as u8)?
            }
            (_, Ok(IpAddr::V6(mask))) if address.is_ipv6() => {
                let mask = u128::from(mask);
                (mask.leading_ones() + mask.trailing_zeros() == 128 || mask == 0).then_some(mask.leading_ones() as u8)?
            }
            _ => return None,
        };
        (prefix <= most).then_some(Cidr { address, prefix })
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Cidr, String> {
        let wrong = || format!("{} is no address with a prefix length", quoted(text));
        let (address, mask) = text.split_once('/').ok_or_else(wrong)?;
        Cidr::of(address.parse().map_err(|_| wrong())?, mask).ok_or_else(wrong)
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Cidr, String> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Reads a network configuration: v1, v2, either below a key `network`, or OpenStack's `network_data.json`.
///
/// `None` when nothing of it can be applied; the faults say why. A network with faults is never applied in part: half of a
/// network is as unreachable as none, and harder to understand.
pub fn read(document: &str, root: &Node, findings: &mut Findings) -> Option<Network> {
    let mut own = Findings::default();
    let network = read_any(&Field::document(document, root), &mut own);
    let network = network.map(|mut network| {
        check::complete(&mut network);
        check::check(&network, &Field::document(document, root), &mut own);
        network
    });
    let good = own.faults.is_empty();
    findings.append(own);
    network.filter(|_| good)
}

fn read_any(root: &Field<'_>, findings: &mut Findings) -> Option<Network> {
    let mut table = root.table(findings)?;
    if let Some(inner) = table.get("network") {
        table.finish(findings);
        return read_any_version(&inner, findings);
    }
    read_any_version(root, findings)
}

fn read_any_version(root: &Field<'_>, findings: &mut Findings) -> Option<Network> {
    let mut table = root.table(findings)?;
    let Some(version) = table.get("version") else {
        // A configuration of OpenStack has no version, but links and networks.
        if table.get("links").is_some() || table.get("networks").is_some() {
            return openstack::read(root, findings);
        }
        let mend = "begin with version: 2 (or 1), see cloud-init's network configuration";
        root.fault(findings, "has no version", mend);
        return None;
    };
    match version.integer::<u8>(1, 2, findings)? {
        1 => v1::read(table, findings),
        _ => v2::read(table, findings),
    }
}

/// A MAC address in lower case with colons.
fn mac(field: &Field<'_>, findings: &mut Findings) -> Option<String> {
    let text = field.text(findings)?;
    let mac = text.trim().to_ascii_lowercase().replace('-', ":");
    let good = mac.split(':').count() == 6
        && mac.split(':').all(|byte| byte.len() == 2 && byte.bytes().all(|c| c.is_ascii_hexdigit()));
    if !good {
        field.fault(findings, format!("{} is no MAC address", quoted(text)), "write one such as 52:54:00:12:34:56");
        return None;
    }
    Some(mac)
}

/// The name of an interface, as the kernel allows it (`dev_valid_name`), less what would need quoting.
fn interface(field: &Field<'_>, findings: &mut Findings) -> Option<String> {
    let text = field.text(findings)?;
    if !is_interface(text) {
        let mend = "write 1 to 15 letters, digits, dots, hyphens and underscores, such as eth0";
        field.fault(findings, format!("{} is no name of an interface", quoted(text)), mend);
        return None;
    }
    Some(text.to_owned())
}

fn is_interface(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=15).contains(&text.len()) && text.chars().all(plain) && !matches!(text, "." | "..")
}

/// A pattern for an interface's name or driver, without white space, which would make it two.
fn pattern(field: &Field<'_>, findings: &mut Findings) -> Option<String> {
    let text = field.text(findings)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-*?[]".contains(c);
    if text.is_empty() || text.len() > 64 || !text.chars().all(plain) {
        let mend = "write a name; * stands for anything, as in eth*";
        field.fault(findings, format!("{} is no pattern of a name", quoted(text)), mend);
        return None;
    }
    Some(text.to_owned())
}

/// Search domains.
fn domains(field: &Field<'_>, findings: &mut Findings) -> Vec<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-~".contains(c);
    let mut domains = field.words(findings);
    domains.retain(|domain| {
        let good = domain.len() <= 253 && domain.chars().all(plain);
        if !good {
            field.fault(findings, format!("{} is no domain", quoted(domain)), "write one such as example.org");
        }
        good
    });
    domains
}

/// Addresses without a prefix length, such as name servers.
fn addresses(field: &Field<'_>, findings: &mut Findings) -> Vec<IpAddr> {
    let words = field.words(findings);
    let read = words.iter().filter_map(|word| match word.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            let wrong = format!("{} is no IP address", quoted(word));
            field.fault(findings, wrong, "write one such as 10.0.0.1 or fd00::1");
            None
        }
    });
    read.collect()
}

fn mtu(field: &Field<'_>, findings: &mut Findings) -> Option<u32> {
    field.integer(68, 65_536, findings)
}

/// The most links that a network may have.
pub const MAX_LINKS: usize = 64;

#[cfg(test)]
mod tests;
