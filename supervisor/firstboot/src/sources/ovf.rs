//! The OVF environment (DMTF DSP0243, section 11): properties that somebody filled in while importing an OVA. Hyper-V's data
//! exchange carries the same properties.
//!
//! Properties become the same trees as cloud-config, meta-data and network config, with the lines of the XML, so that one reader
//! decides about all of them. A property that is empty was not filled in.
//!
//! | property | what it means |
//! |---|---|
//! | `instance-id`, `hostname` | as in meta-data; the host has the node's name when nothing else is said |
//! | `user-data` | a cloud-config, plain or base64; what it says goes before the properties |
//! | `network-config` | v1 or v2, plain or base64; goes before the next six |
//! | `address`, `gateway` | `10.0.0.11/24` and `10.0.0.1`, one of each family, commas between them |
//! | `dns`, `search` | name servers and domains, commas between them |
//! | `interface`, `mtu` | the interface that they are for, `eth0` when absent |
//! | `ntp`, `timezone` | as in cloud-config, commas between servers |
//! | `public-keys`, `password-hash` | of the account `admin` |
//! | `set-name`, `secret`, `node` | the set's name and secret, and which node this is |
//! | `nodes` | `a=10.0.0.11, b=10.0.0.12, c=10.0.0.13` |
//! | `vips` | `public=10.0.0.10/24`, with `@eth1` after it for another interface |
//! | `services` | `portal=80:8080, mail=25:2525/tcp`: name, port on every VIP, port of each node's own instance; HTTP without `/tcp` |
//!
//! A key may begin with `trilith.` or `guestinfo.`.

use roxmltree::{Document as Xml, ParsingOptions};

use super::{Content, Document, Documents};
use crate::encoding::{self, MAX_DOCUMENT};
use crate::yaml::{Key, Node, Scalar, Value};

/// A property and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// Line, from 1.
    pub line: u32,
    /// Its name, without what it may begin with.
    pub key: String,
    /// Its value, not empty.
    pub value: String,
}

/// Reads an OVF environment. `None` when no property is filled in.
///
/// # Errors
/// What is wrong with the XML, with its place.
pub fn documents(xml: &[u8], place: &str) -> Result<Option<Documents>, String> {
    let text = str::from_utf8(xml).map_err(|_| format!("{place} is not UTF-8 text"))?;
    if text.len() > MAX_DOCUMENT {
        return Err(format!("{place} is longer than {MAX_DOCUMENT} bytes"));
    }
    let options = ParsingOptions { nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let xml = Xml::parse_with_options(text.trim_end_matches('\0'), options)
        .map_err(|error| format!("{place} is no OVF environment: {error}"))?;
    let properties = xml.descendants().filter(|node| node.has_tag_name((NAMESPACE, "Property"))).filter_map(|node| {
        let key = node.attribute((NAMESPACE, "key"))?;
        let value = node.attribute((NAMESPACE, "value")).unwrap_or_default();
        property(xml.text_pos_at(node.range().start).row, key, value)
    });
    // Entities are other machines of a vApp; their properties come after ours in the document.
    let properties: Vec<Property> = properties.collect();
    Ok(from_properties(&properties, "OVF environment", place))
}

/// A property, unless it was left empty.
pub fn property(line: u32, key: &str, value: &str) -> Option<Property> {
    let key = key.strip_prefix("guestinfo.").unwrap_or(key);
    let key = key.strip_prefix("trilith.").unwrap_or(key);
    let value = value.trim();
    (!value.is_empty()).then(|| Property { line, key: key.to_owned(), value: value.to_owned() })
}

/// The documents that properties make; of a property that is there twice, the first counts.
pub fn from_properties(properties: &[Property], name: &str, place: &str) -> Option<Documents> {
    let mut rest: Vec<&Property> = Vec::new();
    for property in properties {
        if !rest.iter().any(|held| held.key == property.key) {
            rest.push(property);
        }
    }
    if rest.is_empty() {
        return None;
    }
    let get = |key: &str| rest.iter().find(|property| property.key == key).copied();
    let mut meta = Vec::new();
    meta.extend(get("instance-id").map(|property| ("instance-id", scalar(property))));
    meta.extend(get("hostname").or(get("node")).map(|property| ("local-hostname", scalar(property))));
    meta.extend(get("public-keys").map(|property| ("public-keys", scalar(property))));
    let network = match get("network-config") {
        Some(given) => Some(embedded(given, name)),
        None => network(&get).map(|root| tree(name, root)),
    };
    let user_data = get("user-data").map(|given| embedded(given, name));
    let config = config(&get, rest.iter().filter(|property| !KNOWN.contains(&property.key.as_str())));
    Some(Documents {
        source: format!("{name} ({place})"),
        meta: vec![tree(name, map(1, meta))],
        user: [tree(name, config)].into_iter().chain(user_data).collect(),
        network,
    })
}

/// The network of the properties, as v2.
fn network<'p>(get: &impl Fn(&str) -> Option<&'p Property>) -> Option<Node> {
    let address = get("address")?;
    let line = address.line;
    let mut link = vec![("addresses", list(address))];
    let routes = get("gateway").map(|gateways| {
        let route = |via| map(gateways.line, vec![("to", text(gateways.line, "default")), ("via", via)]);
        Node { line: gateways.line, value: Value::List(items(gateways).map(route).collect()) }
    });
    link.extend(routes.map(|routes| ("routes", routes)));
    let mut servers = Vec::new();
    for (key, named) in [("dns", "addresses"), ("search", "search")] {
        servers.extend(get(key).map(|property| (named, list(property))));
    }
    link.push(("nameservers", map(line, servers)));
    link.extend(get("mtu").map(|property| ("mtu", plain(property.line, &property.value))));
    let ethernets = map(line, vec![(interface(get), map(line, link))]);
    Some(map(line, vec![("version", text(line, "2")), ("ethernets", ethernets)]))
}

/// The interface that address and VIPs are for.
fn interface<'p>(get: &impl Fn(&str) -> Option<&'p Property>) -> &'p str {
    get("interface").map_or("eth0", |property| &property.value)
}

/// The rest of the properties, as cloud-config; what is not known stays under its name and is told as unsupported.
fn config<'p, 'r>(get: &impl Fn(&str) -> Option<&'p Property>, unknown: impl Iterator<Item = &'r &'p Property>) -> Node
where
    'p: 'r,
{
    let mut config = Vec::new();
    if let Some(hash) = get("password-hash") {
        let line = hash.line;
        let admin = vec![
            ("name", text(line, crate::answers::ADMIN)),
            ("hashed_passwd", scalar(hash)),
            ("lock_passwd", text(line, "false")),
        ];
        config.push(("users", Node { line, value: Value::List(vec![map(line, admin)]) }));
    }
    if let Some(ntp) = get("ntp") {
        config.push(("ntp", map(ntp.line, vec![("servers", list(ntp))])));
    }
    config.extend(get("timezone").map(|property| ("timezone", scalar(property))));
    config.extend(set(get));
    config.extend(unknown.map(|property| (property.key.as_str(), scalar(property))));
    map(1, config)
}

/// `trilith:`, when anything of it is filled in: half of it is a fault that is told, not a node without a set.
fn set<'p>(get: &impl Fn(&str) -> Option<&'p Property>) -> Option<(&'static str, Node)> {
    let [name, secret, node, nodes, vips, services] =
        ["set-name", "secret", "node", "nodes", "vips", "services"].map(get);
    let line = [name, secret, node, nodes, vips, services].into_iter().flatten().next()?.line;
    let mut set = Vec::new();
    set.extend(node.map(|property| ("name", scalar(property))));
    set.extend(secret.map(|property| ("secret", scalar(property))));
    set.extend(name.map(|property| ("set", map(property.line, vec![("name", scalar(property))]))));
    set.extend(nodes.map(|property| {
        let node = |line, address: &str| vec![("address", text(line, address))];
        ("node", pairs(property, node))
    }));
    set.extend(vips.map(|property| {
        let vip = |line, address: &str| {
            let (address, interface) = address.split_once('@').unwrap_or((address, interface(get)));
            vec![("address", text(line, address)), ("interface", text(line, interface))]
        };
        ("vip", pairs(property, vip))
    }));
    set.extend(services.map(|property| {
        let on: Vec<Node> = vips.into_iter().flat_map(halves).map(|(name, _)| text(property.line, &name)).collect();
        let service = |line, ports: &str| {
            let (ports, mode) = ports.split_once('/').unwrap_or((ports, "http"));
            let (port, backend) = ports.split_once(':').unwrap_or((ports, ""));
            let on = Node { line, value: Value::List(on.clone()) };
            let ports = [("port", port), ("backend_port", backend)].into_iter().filter(|(_, port)| !port.is_empty());
            let ports = ports.map(|(key, port)| (key, plain(line, port)));
            [("vip", on), ("mode", text(line, mode))].into_iter().chain(ports).collect()
        };
        ("service", pairs(property, service))
    }));
    Some(("trilith", map(line, set)))
}

/// `name=value, name=value` as a list of tables.
fn pairs(property: &Property, of: impl Fn(u32, &str) -> Vec<(&'static str, Node)>) -> Node {
    let table = |(name, value): (String, String)| {
        let named = ("name", text(property.line, &name));
        map(property.line, std::iter::once(named).chain(of(property.line, &value)).collect())
    };
    let value = Value::List(halves(property).map(table).collect());
    Node { line: property.line, value }
}

/// Names and values; people write blanks around `=`, too.
fn halves(property: &Property) -> impl Iterator<Item = (String, String)> {
    let tight = property.value.split('=').map(str::trim).collect::<Vec<_>>().join("=");
    let halves: Vec<_> = words(&tight)
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    halves.into_iter()
}

/// A document within a property: plain, or base64 of it.
fn embedded(property: &Property, name: &str) -> Document {
    let plain = property.value.starts_with('#') || property.value.contains(": ") || property.value.contains(":\n");
    let bytes = (!plain).then(|| encoding::base64(property.value.as_bytes())).flatten();
    let bytes = bytes.unwrap_or_else(|| property.value.clone().into_bytes());
    Document::new(&format!("{name}: {}", property.key), bytes)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty())
}

fn items(property: &Property) -> impl Iterator<Item = Node> {
    words(&property.value).map(|word| text(property.line, word))
}

fn list(property: &Property) -> Node {
    Node { line: property.line, value: Value::List(items(property).collect()) }
}

fn scalar(property: &Property) -> Node {
    text(property.line, &property.value)
}

fn text(line: u32, text: &str) -> Node {
    Node { line, value: Value::Scalar(Scalar::Text(text.to_owned())) }
}

/// What may be a number.
fn plain(line: u32, text: &str) -> Node {
    Node { line, value: Value::Scalar(Scalar::Plain(text.to_owned())) }
}

fn map(line: u32, entries: Vec<(&str, Node)>) -> Node {
    let entries = entries.into_iter().map(|(key, node)| (Key { line: node.line, text: key.to_owned() }, node));
    Node { line, value: Value::Map(entries.collect()) }
}

fn tree(name: &str, root: Node) -> Document {
    Document { name: name.to_owned(), content: Content::Tree(root) }
}

const NAMESPACE: &str = "http://schemas.dmtf.org/ovf/environment/1";
const MAX_NODES: u32 = 10_000;
/// The properties that mean something here. The OVA's descriptor asks for exactly these.
pub const KNOWN: &[&str] = &[
    "instance-id",
    "hostname",
    "public-keys",
    "user-data",
    "network-config",
    "address",
    "gateway",
    "dns",
    "search",
    "interface",
    "mtu",
    "ntp",
    "timezone",
    "password-hash",
    "set-name",
    "secret",
    "node",
    "nodes",
    "vips",
    "services",
];

#[cfg(test)]
mod tests;
