//! The OVF environment (DMTF DSP0243, section 11): properties that somebody filled in while importing an OVA. Hyper-V's data
//! exchange carries the same properties.
//!
//! Properties become the same trees as cloud-config, meta-data and network config, with the lines of the XML, so that one reader
//! decides about all of them. A property that is empty was not filled in.
//!
//! | property | what it means |
//! |---|---|
//! | `instance-id`, `hostname` | as in meta-data |
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
    let mut take = |key: &str| rest.iter().position(|property| property.key == key).map(|place| rest.remove(place));
    let mut meta = Vec::new();
    for (key, named) in [("instance-id", "instance-id"), ("hostname", "local-hostname"), ("public-keys", "public-keys")]
    {
        meta.extend(take(key).map(|property| (named, scalar(property))));
    }
    let network = match take("network-config") {
        Some(given) => Some(embedded(given, name)),
        None => network(&mut take).map(|root| tree(name, root)),
    };
    for unused in ["address", "gateway", "dns", "search", "mtu"] {
        take(unused);
    }
    let user_data = take("user-data").map(|given| embedded(given, name));
    let config = config(&mut take, &rest_of_keys(properties));
    Some(Documents {
        source: format!("{name} ({place})"),
        meta: vec![tree(name, map(1, meta))],
        user: [tree(name, config)].into_iter().chain(user_data).collect(),
        network,
    })
}

/// The network of the properties, as v2.
fn network<'p>(take: &mut impl FnMut(&str) -> Option<&'p Property>) -> Option<Node> {
    let address = take("address")?;
    let line = address.line;
    let interface = take("interface").map_or("eth0", |property| &property.value);
    let mut link = vec![("addresses", list(address))];
    let routes = take("gateway").map(|gateways| {
        let route = |via| map(gateways.line, vec![("to", text(gateways.line, "default")), ("via", via)]);
        Node { line: gateways.line, value: Value::List(items(gateways).map(route).collect()) }
    });
    link.extend(routes.map(|routes| ("routes", routes)));
    let mut servers = Vec::new();
    for (key, named) in [("dns", "addresses"), ("search", "search")] {
        servers.extend(take(key).map(|property| (named, list(property))));
    }
    link.push(("nameservers", map(line, servers)));
    link.extend(take("mtu").map(|property| ("mtu", scalar(property))));
    let ethernets = map(line, vec![(interface, map(line, link))]);
    Some(map(line, vec![("version", text(line, "2")), ("ethernets", ethernets)]))
}

/// The rest of the properties, as cloud-config; what is not known stays under its name and is told as unsupported.
fn config<'p>(take: &mut impl FnMut(&str) -> Option<&'p Property>, others: &[&'p Property]) -> Node {
    let mut config = Vec::new();
    if let Some(hash) = take("password-hash") {
        let line = hash.line;
        let admin = vec![
            ("name", text(line, crate::answers::ADMIN)),
            ("hashed_passwd", scalar(hash)),
            ("lock_passwd", text(line, "false")),
        ];
        config.push(("users", Node { line, value: Value::List(vec![map(line, admin)]) }));
    }
    if let Some(ntp) = take("ntp") {
        config.push(("ntp", map(ntp.line, vec![("servers", list(ntp))])));
    }
    config.extend(take("timezone").map(|property| ("timezone", scalar(property))));
    let interface = take("interface").map_or("eth0", |property| &property.value);
    config.extend(set(take, interface));
    config.extend(others.iter().map(|property| (property.key.as_str(), scalar(property))));
    map(1, config)
}

/// `trilith:`, when a set is named at all.
fn set<'p>(take: &mut impl FnMut(&str) -> Option<&'p Property>, interface: &str) -> Option<(&'p str, Node)> {
    let (name, secret, node, nodes, vips) =
        (take("set-name"), take("secret"), take("node"), take("nodes"), take("vips"));
    let line = [name, secret, nodes, vips].into_iter().flatten().next()?.line;
    let mut set = Vec::new();
    set.extend(node.map(|property| ("name", scalar(property))));
    set.extend(secret.map(|property| ("secret", scalar(property))));
    set.extend(name.map(|property| ("set", map(property.line, vec![("name", scalar(property))]))));
    set.extend(nodes.map(|property| ("node", pairs(property, |address| vec![("address", address.to_owned())]))));
    set.extend(vips.map(|property| {
        let vip = |address: &str| {
            let (address, interface) = address.split_once('@').unwrap_or((address, interface));
            vec![("address", address.to_owned()), ("interface", interface.to_owned())]
        };
        ("vip", pairs(property, vip))
    }));
    Some(("trilith", map(line, set)))
}

/// `name=value, name=value` as a list of tables.
fn pairs(property: &Property, of: impl Fn(&str) -> Vec<(&'static str, String)>) -> Node {
    let table = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let named = ("name", text(property.line, name.trim()));
        let entries = of(value.trim()).into_iter().map(|(key, value)| (key, text(property.line, &value)));
        map(property.line, std::iter::once(named).chain(entries).collect())
    };
    let value = Value::List(words(property).map(table).collect());
    Node { line: property.line, value }
}

/// A document within a property: plain, or base64 of it.
fn embedded(property: &Property, name: &str) -> Document {
    let plain = property.value.starts_with('#') || property.value.contains(": ") || property.value.contains(":\n");
    let bytes = (!plain).then(|| encoding::base64(property.value.as_bytes())).flatten();
    let bytes = bytes.unwrap_or_else(|| property.value.clone().into_bytes());
    Document::new(&format!("{name}: {}", property.key), bytes)
}

/// Properties that nothing here asks for.
fn rest_of_keys(properties: &[Property]) -> Vec<&Property> {
    properties.iter().filter(|property| !KNOWN.contains(&property.key.as_str())).collect()
}

fn words(property: &Property) -> impl Iterator<Item = &str> {
    property.value.split([',', ' ', '\n']).map(str::trim).filter(|word| !word.is_empty())
}

fn items(property: &Property) -> impl Iterator<Item = Node> {
    words(property).map(|word| text(property.line, word))
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

fn map(line: u32, entries: Vec<(&str, Node)>) -> Node {
    let entries = entries.into_iter().map(|(key, node)| (Key { line: node.line, text: key.to_owned() }, node));
    Node { line, value: Value::Map(entries.collect()) }
}

fn tree(name: &str, root: Node) -> Document {
    Document { name: name.to_owned(), content: Content::Tree(root) }
}

const NAMESPACE: &str = "http://schemas.dmtf.org/ovf/environment/1";
const MAX_NODES: u32 = 10_000;
const KNOWN: &[&str] = &[
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
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::take::take;

    fn environment(properties: &[(&str, &str)]) -> String {
        let properties: String = properties
            .iter()
            .map(|(key, value)| format!("    <Property oe:key=\"{key}\" oe:value=\"{value}\"/>\n"))
            .collect();
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Environment xmlns=\"{NAMESPACE}\" xmlns:oe=\"{NAMESPACE}\">\n  \
             <PropertySection>\n{properties}  </PropertySection>\n</Environment>\n"
        )
    }

    fn from(properties: &[(&str, &str)]) -> Option<Documents> {
        documents(environment(properties).as_bytes(), "test").unwrap()
    }

    #[test]
    fn properties_alone_make_a_node_of_a_set() {
        let documents = from(&[
            ("trilith.hostname", "a"),
            ("trilith.address", "10.0.0.11/24, fd00::11/64"),
            ("trilith.gateway", "10.0.0.1"),
            ("trilith.dns", "10.0.0.2,10.0.0.3"),
            ("trilith.ntp", "10.0.0.4"),
            ("trilith.set-name", "edge"),
            ("trilith.nodes", "a=10.0.0.11, b=10.0.0.12 c=10.0.0.13"),
            ("trilith.vips", "public=10.0.0.10/24"),
            ("trilith.secret", "quite &amp; long &lt;enough&gt; &#34;"),
        ]);
        let taken = take(&documents.unwrap());
        assert_eq!(taken.findings.faults, []);
        let set = taken.answers.set.unwrap();
        assert_eq!(set.secret.unwrap().0, "quite & long <enough> \"");
        assert_eq!(set.node, "a");
        assert!(set.document.contains("interface = \"eth0\""), "{}", set.document);
        let network = taken.answers.network.unwrap();
        assert_eq!(network.links[0].addresses.len(), 2);
        assert_eq!(network.links[0].dns.len(), 2);
        assert_eq!(taken.answers.ntp.unwrap().servers, ["10.0.0.4"]);
    }

    #[test]
    fn a_wrong_property_is_named_with_its_line_and_unknown_ones_are_told() {
        let documents = from(&[("hostname", "a"), ("address", "10.0.0.300/24"), ("colour", "blue")]).unwrap();
        let taken = take(&documents);
        assert_eq!(taken.findings.faults[0].line, 5);
        assert!(taken.findings.faults[0].wrong.contains("10.0.0.300"), "{:?}", taken.findings);
        assert!(taken.findings.warnings.iter().any(|warning| warning.key == "colour" && warning.line == 6));
        assert!(taken.network_is_wrong);
    }

    #[test]
    fn user_data_goes_before_properties_plain_or_encoded() {
        for text in ["#cloud-config&#10;timezone: UTC&#10;", &encoding::to_base64(b"#cloud-config\ntimezone: UTC\n")] {
            let taken = take(&from(&[("timezone", "Europe/Vienna"), ("user-data", text)]).unwrap());
            assert_eq!(taken.answers.timezone.as_deref(), Some("UTC"), "{:?}", taken.findings);
        }
    }

    #[test]
    fn nothing_filled_in_is_no_answer_and_damage_is_told() {
        assert_eq!(from(&[("hostname", ""), ("address", " ")]), None);
        assert!(documents(b"<Environment", "test").unwrap_err().starts_with("test is no OVF environment"));
        let bomb = "<!DOCTYPE x [<!ENTITY a \"b\">]><x>&a;</x>";
        assert!(documents(bomb.as_bytes(), "test").is_err());
    }
}
