//! Parameters of a bond: their names in v1, v2 and networkd, and what they may be.

use std::collections::BTreeMap;

use crate::fields::{Field, Table};
use crate::finding::{Findings, quoted};

/// A parameter: its name in v2, in v1 (less `bond-`), in systemd.netdev(5), and what it may be.
pub(super) struct Parameter {
    pub(super) name: &'static str,
    v1: &'static str,
    pub(super) networkd: &'static str,
    shape: Shape,
}

enum Shape {
    /// One of these words, which the kernel also knows by their places, from 0.
    Word(&'static [&'static str]),
    /// Milliseconds.
    Millis,
    /// A number up to this.
    Number(i64),
    /// IPv4 addresses.
    Addresses,
    /// The name of a member.
    Member,
}

/// All of them.
pub(super) const PARAMETERS: &[Parameter] = &[
    parameter("mode", "mode", "Mode", Shape::Word(MODES)),
    parameter("mii-monitor-interval", "miimon", "MIIMonitorSec", Shape::Millis),
    parameter("up-delay", "updelay", "UpDelaySec", Shape::Millis),
    parameter("down-delay", "downdelay", "DownDelaySec", Shape::Millis),
    parameter("lacp-rate", "lacp-rate", "LACPTransmitRate", Shape::Word(&["slow", "fast"])),
    parameter("transmit-hash-policy", "xmit-hash-policy", "TransmitHashPolicy", Shape::Word(HASHES)),
    parameter("ad-select", "ad-select", "AdSelect", Shape::Word(&["stable", "bandwidth", "count"])),
    parameter("min-links", "min-links", "MinLinks", Shape::Number(64)),
    parameter("arp-interval", "arp-interval", "ARPIntervalSec", Shape::Millis),
    parameter("arp-ip-targets", "arp-ip-target", "ARPIPTargets", Shape::Addresses),
    parameter("arp-validate", "arp-validate", "ARPValidate", Shape::Word(&["none", "active", "backup", "all"])),
    parameter("fail-over-mac-policy", "fail-over-mac", "FailOverMACPolicy", Shape::Word(&["none", "active", "follow"])),
    parameter("gratuitous-arp", "num-grat-arp", "GratuitousARP", Shape::Number(255)),
    parameter("primary-reselect-policy", "primary-reselect", "PrimaryReselectPolicy", Shape::Word(RESELECT)),
    parameter("primary", "primary", PRIMARY, Shape::Member),
];

/// `primary` stands in the member's own file: `PrimarySlave=yes`.
pub(super) const PRIMARY: &str = "";

/// Reads `parameters` of v2 or `params` of v1; what is not known is named in a warning.
pub(super) fn read(table: Table<'_>, findings: &mut Findings) -> BTreeMap<String, String> {
    table.entries().filter_map(|(name, field)| one(name, &field, findings)).collect()
}

/// Reads one parameter by its name in v1 or v2.
pub(super) fn one(name: &str, field: &Field<'_>, findings: &mut Findings) -> Option<(String, String)> {
    let plain = name.replace('_', "-");
    let plain = plain.strip_prefix("bond-").unwrap_or(&plain);
    // Both spellings are in use: netplan itself had the wrong one first.
    let plain = match plain {
        "gratuitious-arp" => "gratuitous-arp",
        "arp-ip-targets" | "arp-ip-target" => "arp-ip-targets",
        other => other,
    };
    match PARAMETERS.iter().find(|known| known.name == plain || known.v1 == plain) {
        Some(_) if field.is_null() => None,
        Some(known) => Some((known.name.to_owned(), value(&known.shape, field, findings)?)),
        None => {
            field.warn(findings, "is not supported and left out", "");
            None
        }
    }
}

fn value(shape: &Shape, field: &Field<'_>, findings: &mut Findings) -> Option<String> {
    match shape {
        Shape::Word(words) => {
            let text = field.text(findings)?.trim().to_ascii_lowercase();
            let place = text.parse::<usize>().ok().and_then(|place| words.get(place));
            match place.or_else(|| words.iter().find(|word| **word == text)) {
                Some(word) => Some((*word).to_owned()),
                None => {
                    let mend = format!("write one of {}", words.join(", "));
                    field.fault(findings, format!("{} is not known", quoted(&text)), mend);
                    None
                }
            }
        }
        Shape::Millis => {
            let text = field.text(findings)?.trim();
            match text.strip_suffix("ms").unwrap_or(text).trim_end().parse::<u32>() {
                Ok(millis) => Some(format!("{millis}ms")),
                Err(_) => {
                    let wrong = format!("{} is no number of milliseconds", quoted(text));
                    field.fault(findings, wrong, "write one such as 100");
                    None
                }
            }
        }
        Shape::Number(most) => field.integer::<i64>(0, *most, findings).map(|number| number.to_string()),
        Shape::Addresses => {
            let addresses = super::addresses(field, findings);
            Some(addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        }
        Shape::Member => field.text(findings).map(str::to_owned),
    }
}

const fn parameter(name: &'static str, v1: &'static str, networkd: &'static str, shape: Shape) -> Parameter {
    Parameter { name, v1, networkd, shape }
}

/// In the order of the kernel's numbers (Documentation/networking/bonding.rst).
const MODES: &[&str] =
    &["balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"];
const HASHES: &[&str] = &["layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac"];
const RESELECT: &[&str] = &["always", "better", "failure"];
