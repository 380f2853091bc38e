//! What each node is told at its first boot, made of a set file: cloud-init's three documents, checked by the very code that will
//! read them.

use std::fmt::Write;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};
use toml::Value;
use trilith_core::config::Node;
use trilith_firstboot::sources::{Document, Documents};
use trilith_firstboot::take::take;

use crate::iso9660;
use crate::ova::hex;
use crate::set::{self, SetFile};

/// The documents of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    /// The node's name.
    pub node: String,
    /// Who the machine is.
    pub meta_data: String,
    /// What it is asked for; holds the secret.
    pub user_data: String,
    /// Its network.
    pub network_config: String,
}

/// The seeds of all nodes.
///
/// # Errors
/// What a node would refuse at its first boot, in its words.
pub fn seeds(set: &SetFile, secret: &str) -> Result<Vec<Seed>> {
    set.settings.nodes.iter().map(|node| seed(set, node, secret)).collect()
}

fn seed(set: &SetFile, node: &Node, secret: &str) -> Result<Seed> {
    let network_config = network_config(set, node)?;
    // Other answers have another name. The secret is no part of it.
    let meaning = user_data(set, node, "") + &network_config;
    let instance = hex(&Sha256::digest(meaning.as_bytes())[..4]);
    let name = &node.name;
    let seed = Seed {
        node: name.clone(),
        meta_data: format!("instance-id: {}-{name}-{instance}\nlocal-hostname: {name}\n", set.settings.set.name),
        user_data: user_data(set, node, secret),
        network_config,
    };
    seed.checked()?;
    Ok(seed)
}

impl Seed {
    /// The documents by the names that NoCloud has for them.
    pub fn files(&self) -> [(&'static str, &[u8]); 3] {
        [
            ("meta-data", self.meta_data.as_bytes()),
            ("user-data", self.user_data.as_bytes()),
            ("network-config", self.network_config.as_bytes()),
        ]
    }

    /// The CD-ROM for cloud-init's source NoCloud.
    ///
    /// # Errors
    /// Those of [`iso9660::image`].
    pub fn iso(&self) -> Result<Vec<u8>> {
        iso9660::image("cidata", &self.files())
    }

    fn checked(&self) -> Result<()> {
        let document = |(name, content): (&str, &[u8])| Document::new(name, content.to_vec());
        let [meta, user, network] = self.files().map(document);
        let taken = take(&Documents {
            source: "set.toml".to_owned(),
            meta: vec![meta],
            user: vec![user],
            network: Some(network),
        });
        let mut wrong = String::new();
        for finding in taken.findings.faults.iter().chain(&taken.findings.warnings) {
            write!(wrong, "\n  {finding}")?;
        }
        ensure!(wrong.is_empty(), "node {} would refuse what it is told:{wrong}", self.node);
        let is = taken.answers.set.map(|set| set.node);
        ensure!(is.as_deref() == Some(&self.node), "node {} would take itself for {is:?}", self.node);
        Ok(())
    }
}

/// JSON within YAML: one way of quoting that is always right.
fn user_data(set: &SetFile, node: &Node, secret: &str) -> String {
    let first = &set.first_boot;
    let mut text = String::from("#cloud-config\n");
    let mut line = |key: &str, value: serde_json::Value| text += &format!("{key}: {value}\n");
    if let Some(timezone) = &first.timezone {
        line("timezone", json!(timezone));
    }
    if !first.ntp.is_empty() {
        line("ntp", json!({ "servers": first.ntp }));
    }
    if !first.public_keys.is_empty() {
        line("ssh_authorized_keys", json!(first.public_keys));
    }
    if let Some(hash) = &first.password_hash {
        line("users", json!([{ "name": "admin", "hashed_passwd": hash, "lock_passwd": false }]));
    }
    text += &format!("trilith:\n  name: {}\n  secret: {}\n", json!(node.name), json!(secret));
    // In the order in which people read it; the document has no other tables.
    for key in ["set", "node", "vip", "service"] {
        match set.document.get(key) {
            Some(Value::Array(tables)) => {
                text += &format!("  {key}:\n");
                for table in tables {
                    text += &format!("    - {}\n", set::json(table));
                }
            }
            Some(table) => text += &format!("  {key}: {}\n", set::json(table)),
            None => {}
        }
    }
    text
}

fn network_config(set: &SetFile, node: &Node) -> Result<String> {
    let first = &set.first_boot;
    let own = std::iter::once(node.address).chain(node.address6.map(IpAddr::V6));
    let addresses: Vec<String> = own.map(|address| format!("{address}/{}", prefix(set, address))).collect();
    let interface = set.settings.vips.first().context("the set has no VIP")?.interface.clone();
    let routes: Vec<_> = first.gateway.iter().map(|via| json!({ "to": "default", "via": via })).collect();
    let mut link = json!({ "addresses": addresses });
    if !routes.is_empty() {
        link["routes"] = json!(routes);
    }
    if !first.dns.is_empty() || !first.search.is_empty() {
        link["nameservers"] = json!({ "addresses": first.dns, "search": first.search });
    }
    if let Some(mtu) = first.mtu {
        link["mtu"] = json!(mtu);
    }
    Ok(format!("version: 2\nethernets:\n  {}: {link}\n", json!(interface)))
}

/// The prefix length of the subnet that the node shares with a VIP of its family.
fn prefix(set: &SetFile, address: IpAddr) -> u8 {
    let alike = set.settings.vips.iter().find(|vip| vip.address.is_ipv4() == address.is_ipv4());
    alike.map_or(if address.is_ipv4() { 24 } else { 64 }, |vip| vip.prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(change: impl Fn(&str) -> String) -> SetFile {
        set::parse(&change(include_str!("../deploy/set.toml")), "set.toml").unwrap()
    }

    const SECRET: &str = "a secret with \"quotes\", 'more', \\ and 東京";

    #[test]
    fn every_node_takes_its_seed_and_knows_which_node_it_is() {
        let seeds = seeds(&set(str::to_owned), SECRET).unwrap();
        let names: Vec<&str> = seeds.iter().map(|seed| seed.node.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert!(seeds[1].network_config.contains("10.77.0.12/24"), "{}", seeds[1].network_config);
        assert_eq!(seeds[0].user_data.replace("name: \"a\"", "name: \"b\""), seeds[1].user_data);
    }

    #[test]
    fn other_answers_have_another_instance_id_and_another_secret_does_not() {
        let id = |set: &SetFile, secret: &str| seeds(set, secret).unwrap()[0].meta_data.clone();
        let one = id(&set(str::to_owned), SECRET);
        assert_eq!(one, id(&set(str::to_owned), "another secret of 16 bytes"));
        assert_ne!(one, id(&set(|text| text.replace("8080", "8081")), SECRET));
    }

    #[test]
    fn what_a_node_would_refuse_is_refused_here_in_its_words() {
        let set = set(|text| text.replace("Etc/UTC", "Mars/Olympus_Mons").replace("10.77.0.1\"]\ntime", "\"]\ntime"));
        let error = seeds(&set, "short").unwrap_err().to_string();
        assert!(error.contains("node a would refuse") && error.contains("trilith.secret"), "{error}");
    }

    #[test]
    fn a_node_with_both_families_gets_both_subnets() {
        let text = include_str!("../../tests/lab/set.toml");
        let seeds = seeds(&set::parse(text, "set.toml").unwrap(), SECRET).unwrap();
        assert!(seeds[0].network_config.contains("[\"10.77.0.11/24\",\"fd77::11/64\"]"), "{}", seeds[0].network_config);
    }
}
