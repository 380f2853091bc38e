//! What the deploy scripts read: one directory with everything that differs from node to node, so that the scripts only carry
//! it out.
//!
//! | file | for |
//! |---|---|
//! | `secret` | made once, used again by later runs |
//! | `NODE/` | the three documents, to be looked at, or for `trilith firstboot --check` |
//! | `NODE.iso` | Hyper-V, KVM: the CD-ROM |
//! | `NODE.govc.json` | vSphere: the options of `govc import.ova` |
//! | `NODE.domain.xml` | KVM: the machine |
//! | `deploy.json` | the scripts: names, places, what to wait for |

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use trilith_firstboot::encoding::to_base64;

use crate::descriptor::escaped;
use crate::ova::hex;
use crate::seed::{self, Seed};
use crate::set::{Kvm, SetFile, Vsphere};

/// Writes the directory; what lies there already is replaced, except for the secret.
///
/// # Errors
/// What a node would refuse, or the files'.
pub fn write(set: &SetFile, directory: &Path) -> Result<()> {
    ensure!(
        set.settings.node_named("secret").is_none(),
        "no node can be named secret: that is the name of a file in {}",
        directory.display()
    );
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let secret = secret(set, directory)?;
    let seeds = seed::seeds(set, &secret)?;
    for (place, seed) in seeds.iter().enumerate() {
        let name = &seed.node;
        let documents = directory.join(name);
        fs::create_dir_all(&documents).with_context(|| documents.display().to_string())?;
        for (file, content) in seed.files() {
            put(&documents.join(file), content)?;
        }
        put(&directory.join(format!("{name}.iso")), &seed.iso()?)?;
        if let Some(vsphere) = &set.vsphere {
            put(&directory.join(format!("{name}.govc.json")), &pretty(&govc(set, seed, vsphere, &secret)))?;
        }
        if let Some(kvm) = &set.kvm {
            put(&directory.join(format!("{name}.domain.xml")), domain(set, seed, kvm, place).as_bytes())?;
        }
    }
    put(&directory.join("deploy.json"), &pretty(&summary(set, &seeds)))
}

/// The name of a node's machine.
pub fn machine(set: &SetFile, node: &str) -> String {
    format!("{}-{node}", set.settings.set.name)
}

/// The set's secret: as the set file has it, else that of an earlier run, else a new one.
fn secret(set: &SetFile, directory: &Path) -> Result<String> {
    let path = directory.join("secret");
    if let Some(secret) = &set.first_boot.secret {
        return Ok(secret.clone());
    }
    if path.exists() {
        let secret = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        ensure!(
            secret.trim().len() >= 16,
            "{} is no secret any more: restore it, or remove it for a new set",
            path.display()
        );
        return Ok(secret.trim().to_owned());
    }
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random numbers for a secret: {error}"))?;
    let secret = to_base64(&bytes);
    put(&path, format!("{secret}\n").as_bytes())?;
    Ok(secret)
}

/// What the scripts go by.
fn summary(set: &SetFile, seeds: &[Seed]) -> Value {
    let vips: Vec<_> = set.settings.vips.iter().map(|vip| vip.address).collect();
    let nodes: Vec<Value> = seeds
        .iter()
        .zip(&set.settings.nodes)
        .enumerate()
        .map(|(place, (seed, node))| {
            json!({
                "name": seed.node,
                "machine": machine(set, &seed.node),
                "address": node.address,
                "iso": format!("{}.iso", seed.node),
                "datastore": set.vsphere.as_ref().map(|vsphere| vsphere.datastore.of(place)),
                "connect": set.kvm.as_ref().map(|kvm| kvm.connect.of(place)),
                "host": set.hyperv.as_ref().and_then(|hyperv| hyperv.hosts.get(place)),
            })
        })
        .collect();
    // Without a service there is still the supervisor's own sign of life.
    let port = set.settings.services.first().map_or(trilith_core::config::FRONT_PORT, |service| service.port);
    json!({
        "set": set.settings.set.name,
        "nodes": nodes,
        "vips": vips,
        "port": port,
        "vsphere": set.vsphere,
        "hyperv": set.hyperv,
        "kvm": set.kvm,
    })
}

/// The options of `govc import.ova`. The answers go as whole documents, which say more than single properties can; those that
/// vCenter requires are given beside them, and say the same.
fn govc(set: &SetFile, seed: &Seed, vsphere: &Vsphere, secret: &str) -> Value {
    let instance = seed.meta_data.lines().find_map(|line| line.strip_prefix("instance-id: ")).unwrap_or_default();
    let properties: Vec<Value> = [
        ("node", seed.node.clone()),
        ("set-name", set.settings.set.name.clone()),
        ("secret", secret.to_owned()),
        ("instance-id", instance.to_owned()),
        ("user-data", to_base64(seed.user_data.as_bytes())),
        ("network-config", to_base64(seed.network_config.as_bytes())),
    ]
    .into_iter()
    .map(|(key, value)| json!({ "Key": format!("trilith.{key}"), "Value": value }))
    .collect();
    json!({
        "Name": machine(set, &seed.node),
        "Deployment": vsphere.size,
        "DiskProvisioning": "thin",
        "IPAllocationPolicy": "fixedPolicy",
        "IPProtocol": "IPv4",
        "NetworkMapping": [{ "Name": "VM Network", "Network": vsphere.network }],
        "PropertyMapping": properties,
        "InjectOvfEnv": false,
        "MarkAsTemplate": false,
        "PowerOn": false,
        "WaitForIP": false,
    })
}

/// A libvirt domain with everything that the image has drivers for.
fn domain(set: &SetFile, seed: &Seed, kvm: &Kvm, place: usize) -> String {
    let name = machine(set, &seed.node);
    // A name's hash: the same machine has the same UUID and MAC at every run, so nothing is defined twice.
    let id = hex(&Sha256::digest(format!("trilith {name}").as_bytes()));
    let uuid = format!("{}-{}-8{}-8{}-{}", &id[..8], &id[8..12], &id[13..16], &id[17..20], &id[20..32]);
    let mac = format!("52:54:00:{}:{}:{}", &id[32..34], &id[34..36], &id[36..38]);
    let secure = if kvm.secure_boot { "yes" } else { "no" };
    format!(
        "<domain type='kvm'>\n  <name>{name}</name>\n  <uuid>{uuid}</uuid>\n  \
         <title>Trilith set {set}, node {node} ({number} of {count})</title>\n  \
         <memory unit='MiB'>{memory}</memory>\n  <vcpu>{processors}</vcpu>\n  \
         <os firmware='efi'>\n    <type arch='x86_64' machine='q35'>hvm</type>\n    <firmware>\n      \
         <feature enabled='no' name='enrolled-keys'/>\n      <feature enabled='{secure}' name='secure-boot'/>\n    </firmware>\n    \
         <boot dev='hd'/>\n  </os>\n  \
         <features>\n    <acpi/>\n    <apic/>\n{smm}  </features>\n  <cpu mode='host-model'/>\n  <clock offset='utc'/>\n  \
         <on_poweroff>destroy</on_poweroff>\n  <on_reboot>restart</on_reboot>\n  <on_crash>restart</on_crash>\n  \
         <devices>\n    \
         <disk type='volume' device='disk'>\n      <driver name='qemu' type='qcow2' discard='unmap'/>\n      \
         <source pool='{pool}' volume='{name}.qcow2'/>\n      <target dev='vda' bus='virtio'/>\n    </disk>\n    \
         <disk type='volume' device='cdrom'>\n      <driver name='qemu' type='raw'/>\n      \
         <source pool='{pool}' volume='{name}-seed.iso'/>\n      <target dev='sda' bus='sata'/>\n      <readonly/>\n    </disk>\n    \
         <interface type='bridge'>\n      <mac address='{mac}'/>\n      <source bridge='{bridge}'/>\n      \
         <model type='virtio'/>\n    </interface>\n    \
         <serial type='pty'/>\n    <console type='pty'/>\n    \
         <channel type='unix'>\n      <target type='virtio' name='org.qemu.guest_agent.0'/>\n    </channel>\n    \
         <graphics type='vnc' autoport='yes' listen='127.0.0.1'/>\n    <video>\n      <model type='vga'/>\n    </video>\n    \
         <rng model='virtio'>\n      <backend model='random'>/dev/urandom</backend>\n    </rng>\n    \
         <watchdog model='i6300esb' action='reset'/>\n    <memballoon model='virtio'/>\n  </devices>\n</domain>\n",
        set = set.settings.set.name,
        node = seed.node,
        number = place + 1,
        count = set.settings.nodes.len(),
        memory = kvm.memory_mib,
        processors = kvm.processors,
        smm = if kvm.secure_boot { "    <smm state='on'/>\n" } else { "" },
        pool = escaped(&kvm.pool).replace('\'', "&apos;"),
        bridge = escaped(&kvm.bridge).replace('\'', "&apos;"),
    )
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("a value made of texts and numbers is JSON");
    text.push(b'\n');
    text
}

/// A file that only its owner reads: most of them hold the secret.
fn put(path: &Path, content: &[u8]) -> Result<()> {
    // A new file, since the permissions of one that is there would stay.
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| file.write_all(content)),
    }
    .with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set;
    use std::os::unix::fs::PermissionsExt;

    fn set(change: impl Fn(&str) -> String) -> SetFile {
        set::parse(&change(include_str!("../deploy/set.toml")), "set.toml").unwrap()
    }

    #[test]
    fn a_second_run_keeps_the_secret_and_changes_nothing_and_nobody_else_reads_it() {
        let directory = std::env::temp_dir().join(format!("trilith-deploy-{}", std::process::id()));
        let read = |name: &str| fs::read(directory.join(name)).unwrap();
        write(&set(str::to_owned), &directory).unwrap();
        let files = ["secret", "a.iso", "b.govc.json", "c.domain.xml", "deploy.json", "a/user-data"];
        let before = files.map(read);
        write(&set(str::to_owned), &directory).unwrap();
        assert!(before == files.map(read));
        for file in files {
            assert_eq!(fs::metadata(directory.join(file)).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
        }
        fs::write(directory.join("secret"), "").unwrap();
        let error = write(&set(str::to_owned), &directory).unwrap_err().to_string();
        fs::remove_dir_all(&directory).unwrap();
        assert!(error.contains("is no secret any more"), "{error}");
    }

    #[test]
    fn the_properties_for_vsphere_are_what_the_descriptor_asks_for_and_the_node_takes_them() {
        let set = set(str::to_owned);
        let secret = "0123456789abcdef";
        let seed = &seed::seeds(&set, secret).unwrap()[1];
        let options = govc(&set, seed, set.vsphere.as_ref().unwrap(), secret);
        let properties = options["PropertyMapping"].as_array().unwrap();
        let answers: Vec<(&str, &str)> = properties
            .iter()
            .map(|property| (property["Key"].as_str().unwrap(), property["Value"].as_str().unwrap()))
            .collect();
        let xml = crate::environment::xml(crate::descriptor::TEMPLATE, "vm-1", &answers).unwrap();
        let documents = trilith_firstboot::sources::ovf::documents(xml.as_bytes(), "test").unwrap().unwrap();
        let taken = trilith_firstboot::take::take(&documents);
        assert_eq!((&taken.findings.faults[..], &taken.findings.warnings[..]), (&[][..], &[][..]));
        assert_eq!(taken.answers.set.unwrap().node, "b");
        assert!(taken.answers.instance_id.starts_with("edge-1-b-"), "{}", taken.answers.instance_id);
        assert_eq!(taken.answers.network.unwrap().links[0].addresses[0].address.to_string(), "10.77.0.12");
    }

    #[test]
    fn each_node_can_have_its_own_host_and_datastore() {
        let text = |text: &str| {
            let text = text.replace("datastore = \"datastore1\"", "datastore = [\"one\", \"two\", \"three\"]");
            text.replace(
                "pool = \"default\"",
                "connect = [\"qemu+ssh://h1/system\", \"qemu+ssh://h2/system\", \"x:///\"]",
            )
        };
        let set = set(text);
        let plan = summary(&set, &seed::seeds(&set, "0123456789abcdef").unwrap());
        assert_eq!((&plan["nodes"][1]["datastore"], &plan["nodes"][2]["connect"]), (&json!("two"), &json!("x:///")));
    }

    #[test]
    fn machines_of_different_nodes_never_share_an_identity() {
        let set = set(|text| text.replace("pool = \"default\"", "pool = \"<'&\\\">\""));
        let seeds = seed::seeds(&set, "0123456789abcdef").unwrap();
        let field = |place: usize, name: &str| {
            let text = domain(&set, &seeds[place], set.kvm.as_ref().unwrap(), place);
            let xml = roxmltree::Document::parse(&text).unwrap();
            let node = xml.descendants().find(|node| node.has_tag_name(name)).unwrap();
            node.text().or(node.attribute("address")).unwrap().to_owned()
        };
        for name in ["name", "uuid", "mac"] {
            assert!(field(0, name) != field(1, name) && field(1, name) != field(2, name), "{name}");
        }
    }
}
