//! `set.toml` as somebody writes it who deploys a set: the set's document, which the nodes keep, and beside it what is asked only
//! once: `[first-boot]`, and `[vsphere]`, `[hyperv]`, `[kvm]` for the deploy scripts.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use trilith_core::config::{self, Settings};

/// A set that is to be deployed.
#[derive(Debug)]
pub struct SetFile {
    /// The set's document, read and checked.
    pub settings: Settings,
    /// The document as a tree: `set`, `node`, `vip`, `service`.
    pub document: Table,
    /// What the first boot is told beside it.
    pub first_boot: FirstBoot,
    /// `[vsphere]`.
    pub vsphere: Option<Vsphere>,
    /// `[hyperv]`.
    pub hyperv: Option<Hyperv>,
    /// `[kvm]`.
    pub kvm: Option<Kvm>,
}

/// `[first-boot]`: the same names as the properties of the OVA. What differs between the nodes is known from `[[node]]` and
/// `[[vip]]`: a node's prefix length and interface are those of the VIP whose subnet it is in.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FirstBoot {
    /// The set secret; absent: the seed maker makes one.
    pub secret: Option<String>,
    /// One of each family.
    pub gateway: Vec<IpAddr>,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Search domains.
    pub search: Vec<String>,
    /// Of all nodes' interfaces, in bytes.
    pub mtu: Option<u16>,
    /// Time servers, by name or address.
    pub ntp: Vec<String>,
    /// A name of the IANA time zone database.
    pub timezone: Option<String>,
    /// Public keys for the account `admin`.
    pub public_keys: Vec<String>,
    /// A password's hash for the account `admin`.
    pub password_hash: Option<String>,
}

/// `[vsphere]`: names of vCenter's inventory, as govc has them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsphere {
    /// Datacenter.
    pub datacenter: String,
    /// Cluster, or a single host.
    pub cluster: String,
    /// One datastore for all nodes, or one for each.
    pub datastore: OneOrEach,
    /// Network of the VIP.
    pub network: String,
    /// Folder for the machines.
    #[serde(default)]
    pub folder: String,
    /// `small`, `medium`, `large`.
    #[serde(default = "medium")]
    pub size: String,
    /// Whether the cluster keeps the nodes on different hosts.
    #[serde(default = "yes")]
    pub anti_affinity: bool,
}

/// `[hyperv]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hyperv {
    /// Virtual switch.
    pub switch: String,
    /// Directory for the machines' files.
    pub path: String,
    /// Hosts, one for each node; empty: the host that the script runs on, or the failover cluster's choice.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Whether the machines become roles of the failover cluster, kept apart.
    #[serde(default)]
    pub cluster: bool,
    /// VLAN of the interface; 0: none.
    #[serde(default)]
    pub vlan: u16,
    /// Memory of a node, in MiB.
    #[serde(default = "two_gib")]
    pub memory_mib: u32,
    /// Processors of a node.
    #[serde(default = "two")]
    pub processors: u32,
    /// Secure Boot template; `off` as long as nobody but us has signed the boot loader.
    #[serde(default = "off")]
    pub secure_boot: String,
}

/// `[kvm]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kvm {
    /// libvirt connections, one for all nodes or one for each, such as `qemu+ssh://host-1/system`.
    #[serde(default = "local")]
    pub connect: OneOrEach,
    /// Bridge of the VIP's network.
    pub bridge: String,
    /// Storage pool.
    #[serde(default = "default_pool")]
    pub pool: String,
    /// Memory of a node, in MiB.
    #[serde(default = "two_gib")]
    pub memory_mib: u32,
    /// Processors of a node.
    #[serde(default = "two")]
    pub processors: u32,
    /// Firmware with Secure Boot, in setup mode: the boot menu offers to enrol our keys.
    #[serde(default)]
    pub secure_boot: bool,
}

/// One value for all nodes, or one for each, in their order.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrEach {
    /// For all.
    One(String),
    /// For each.
    Each(Vec<String>),
}

impl OneOrEach {
    /// Which it is for the node at that place.
    pub fn of(&self, place: usize) -> &str {
        match self {
            OneOrEach::One(value) => value,
            OneOrEach::Each(values) => values.get(place).map_or("", String::as_str),
        }
    }

    fn fits(&self, key: &str, nodes: usize) -> Result<()> {
        match self {
            OneOrEach::One(value) => word(key, value),
            OneOrEach::Each(values) => {
                let given = values.len();
                ensure!(given == nodes, "{key}: {given} values for {nodes} nodes; write one for each");
                values.iter().try_for_each(|value| word(key, value))
            }
        }
    }
}

/// Reads a set file. `name` is for errors.
///
/// # Errors
/// What is wrong, in which line, and what would be right.
pub fn parse(text: &str, name: &str) -> Result<SetFile> {
    let (document, deployment) = split(text);
    let settings = config::parse(&document, name)?;
    let document: Table = document.parse().with_context(|| name.to_owned())?;
    // Lines of one part are blank in the other, so errors have the lines of the whole.
    let deployment: Deployment = toml::from_str(&deployment).map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
    let Deployment { first_boot, vsphere, hyperv, kvm } = deployment;
    let nodes = settings.nodes.len();
    vsphere.as_ref().map_or(Ok(()), |vsphere| vsphere.check(nodes)).with_context(|| name.to_owned())?;
    hyperv.as_ref().map_or(Ok(()), |hyperv| hyperv.check(nodes)).with_context(|| name.to_owned())?;
    kvm.as_ref().map_or(Ok(()), |kvm| kvm.check(nodes)).with_context(|| name.to_owned())?;
    Ok(SetFile { settings, document, first_boot, vsphere, hyperv, kvm })
}

impl Vsphere {
    fn check(&self, nodes: usize) -> Result<()> {
        let Vsphere { datacenter, cluster, datastore, network, folder, size, anti_affinity: _ } = self;
        for (key, value) in [("datacenter", datacenter), ("cluster", cluster), ("network", network)] {
            word(&format!("vsphere.{key}"), value)?;
        }
        datastore.fits("vsphere.datastore", nodes)?;
        if !folder.is_empty() {
            word("vsphere.folder", folder)?;
        }
        one_of("vsphere.size", size, SIZES)
    }
}

impl Hyperv {
    fn check(&self, nodes: usize) -> Result<()> {
        let Hyperv { switch, path, hosts, cluster: _, vlan, memory_mib, processors, secure_boot } = self;
        word("hyperv.switch", switch)?;
        word("hyperv.path", path)?;
        if !hosts.is_empty() {
            OneOrEach::Each(hosts.clone()).fits("hyperv.hosts", nodes)?;
        }
        ensure!(*vlan <= LAST_VLAN, "hyperv.vlan: {vlan} is no VLAN; write 1 to {LAST_VLAN}, or 0 for none");
        machine("hyperv", *memory_mib, *processors)?;
        one_of("hyperv.secure_boot", secure_boot, SECURE_BOOT)
    }
}

impl Kvm {
    fn check(&self, nodes: usize) -> Result<()> {
        let Kvm { connect, bridge, pool, memory_mib, processors, secure_boot: _ } = self;
        connect.fits("kvm.connect", nodes)?;
        word("kvm.bridge", bridge)?;
        word("kvm.pool", pool)?;
        machine("kvm", *memory_mib, *processors)
    }
}

/// A name that a script can hand to a program as it is: none that is missing, and none that would be an option.
fn word(key: &str, value: &str) -> Result<()> {
    ensure!(!value.trim().is_empty(), "{key}: is empty; write its name");
    ensure!(!value.starts_with('-'), "{key}: \"{value}\" begins with -, which no name does");
    ensure!(!value.contains(char::is_control), "{key}: {value:?} has a control character in it, which no name has");
    Ok(())
}

fn machine(table: &str, memory_mib: u32, processors: u32) -> Result<()> {
    ensure!(
        memory_mib >= LEAST_MEMORY_MIB,
        "{table}.memory_mib: {memory_mib} is too little; write {LEAST_MEMORY_MIB} or more"
    );
    ensure!(processors > 0, "{table}.processors: 0 are too few; write 1 or more");
    Ok(())
}

fn one_of(key: &str, value: &str, known: &[&str]) -> Result<()> {
    ensure!(known.contains(&value), "{key}: \"{value}\" is none of {}", known.join(", "));
    Ok(())
}

/// The set's document and the tables for the deployment, each with blank lines where the other is.
fn split(text: &str) -> (String, String) {
    let (mut document, mut deployment) = (String::new(), String::new());
    let mut of_deployment = false;
    for line in text.split_inclusive('\n') {
        if let Some(header) = line.trim_start().strip_prefix('[') {
            let header = header.trim_start_matches('[').trim_start();
            let table = header.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).next();
            of_deployment = table.is_some_and(|table| TABLES.contains(&table));
        }
        let (there, elsewhere) =
            if of_deployment { (&mut deployment, &mut document) } else { (&mut document, &mut deployment) };
        there.push_str(line);
        elsewhere.push('\n');
    }
    (document, deployment)
}

/// The values of a document as JSON, which YAML reads as well, on one line.
pub fn json(value: &Value) -> String {
    serde_json::to_string(value).expect("TOML's values are JSON's, but for dates, which no document has")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Deployment {
    #[serde(default)]
    first_boot: FirstBoot,
    vsphere: Option<Vsphere>,
    hyperv: Option<Hyperv>,
    kvm: Option<Kvm>,
}

fn medium() -> String {
    "medium".to_owned()
}

fn off() -> String {
    "off".to_owned()
}

fn local() -> OneOrEach {
    OneOrEach::One("qemu:///system".to_owned())
}

fn default_pool() -> String {
    "default".to_owned()
}

fn yes() -> bool {
    true
}

fn two() -> u32 {
    2
}

fn two_gib() -> u32 {
    2048
}

const TABLES: &[&str] = &["first-boot", "vsphere", "hyperv", "kvm"];
const SIZES: &[&str] = &["small", "medium", "large"];
/// Hyper-V's templates, and none.
const SECURE_BOOT: &[&str] = &["off", "MicrosoftWindows", "MicrosoftUEFICertificateAuthority", "OpenSourceShieldedVM"];
/// The last number of a VLAN (IEEE 802.1Q).
const LAST_VLAN: u16 = 4094;
/// What a machine serves with, by `tests/trio/tests/first_boot.rs`.
const LEAST_MEMORY_MIB: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(from: &str, to: &str) -> String {
        let text = include_str!("../deploy/set.toml");
        assert!(text.contains(from), "{from}");
        format!("{:#}", parse(&text.replacen(from, to, 1), "set.toml").unwrap_err())
    }

    #[test]
    fn the_example_is_right_and_says_what_it_seems_to() {
        let set = parse(include_str!("../deploy/set.toml"), "set.toml").unwrap();
        assert_eq!(set.settings.nodes.len(), 3);
        assert!(!set.document.contains_key("first-boot") && set.document.contains_key("vip"));
        assert_eq!(set.first_boot.gateway.len(), 1);
        assert!(set.vsphere.is_some() && set.hyperv.is_some() && set.kvm.is_some());
    }

    #[test]
    fn the_laboratorys_document_is_a_set_file_as_it_is() {
        parse(include_str!("../../tests/lab/set.toml"), "set.toml").unwrap();
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_in_both_parts() {
        let line = |text: &str| {
            let whole = include_str!("../deploy/set.toml");
            whole.lines().position(|line| line.contains(text)).unwrap() + 1
        };
        let error = wrong("10.77.0.12", "10.77.0.11");
        assert!(error.starts_with(&format!("set.toml:{}:", line("10.77.0.12"))), "{error}");
        let error = wrong("gateway = [\"10.77.0.1\"]", "gateway = [\"10.77.0.300\"]");
        assert!(error.contains(&format!("line {}", line("gateway = "))), "{error}");
        let error = wrong("[kvm]", "[kwm]");
        assert!(error.contains("kwm"), "{error}");
    }

    #[test]
    fn what_no_hypervisor_would_take_is_refused_before_any_is_asked() {
        for (from, to, told) in [
            ("size = \"medium\"", "size = \"vast\"", "vsphere.size: \"vast\" is none of small, medium, large"),
            ("cluster = \"cluster\"", "cluster = \"\"", "vsphere.cluster: is empty; write its name"),
            ("\"datastore1\"", "[\"one\", \"two\"]", "vsphere.datastore: 2 values for 3 nodes; write one for each"),
            ("\"datastore1\"", "[\"one\", \"two\", \" \"]", "vsphere.datastore: is empty; write its name"),
            ("path = 'C:\\Trilith'", "path = ''", "hyperv.path: is empty; write its name"),
            ("switch = ", "vlan = 4095\nswitch = ", "hyperv.vlan: 4095 is no VLAN; write 1 to 4094, or 0 for none"),
            ("switch = ", "hosts = [\"one\"]\nswitch = ", "hyperv.hosts: 1 values for 3 nodes; write one for each"),
            (
                "switch = ",
                "secure_boot = \"on\"\nswitch = ",
                "hyperv.secure_boot: \"on\" is none of off, MicrosoftWindows, MicrosoftUEFICertificateAuthority, OpenSourceShieldedVM",
            ),
            ("pool = \"default\"", "pool = \"--all\"", "kvm.pool: \"--all\" begins with -, which no name does"),
            (
                "pool = \"default\"",
                "pool = \"a\\tb\"",
                "kvm.pool: \"a\\tb\" has a control character in it, which no name has",
            ),
            ("pool = ", "memory_mib = 64\npool = ", "kvm.memory_mib: 64 is too little; write 256 or more"),
            ("pool = ", "processors = 0\npool = ", "kvm.processors: 0 are too few; write 1 or more"),
        ] {
            assert_eq!(wrong(from, to), format!("set.toml: {told}"));
        }
    }
}
