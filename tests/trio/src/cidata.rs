//! First-boot data, as cloud-init's NoCloud source has it: a CD-ROM labelled `cidata`.
//!
//! Source: cloud-init, "NoCloud" and "Networking config version 2".

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::accel::Accel;
use crate::plan::{Addressing, GATEWAY, GATEWAY6, Plan, VIP, VIP6, address, name, node_address6};
use crate::tools;

/// The CD-ROM that tells a machine who it is, in its directory.
pub const CD_ROM: &str = "answers.iso";

/// What all machines of a set are told alike.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The set's secret, in hexadecimal.
    pub secret: String,
    /// The public SSH key that may log in.
    pub key: String,
}

/// Writes the machine's CD-ROM into `home`.
pub fn make(plan: &Plan, shared: &Shared, home: &Path) -> Result<()> {
    let directory = home.join("cidata");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for (name, content) in files(plan, shared) {
        fs::write(directory.join(name), content)?;
    }
    let options = ["-quiet", "-output", CD_ROM, "-volid", "cidata", "-joliet", "-rational-rock", "cidata"];
    tools::run(home, "xorrisofs", &options).map(drop)
}

/// The three documents, by name.
pub fn files(plan: &Plan, shared: &Shared) -> [(&'static str, String); 3] {
    let name = plan.name();
    let meta = format!("instance-id: trio-{name}\nlocal-hostname: {name}\n");
    [("meta-data", meta), ("user-data", user_data(plan, shared)), ("network-config", network(plan))]
}

fn user_data(plan: &Plan, shared: &Shared) -> String {
    let Shared { secret, key } = shared;
    let nodes = plan.set.iter().map(|index| {
        let (name, address, address6) = (name(*index), address(*index), node_address6(*index));
        format!("    - {{name: {name}, address: {address}, address6: \"{address6}\"}}\n")
    });
    format!(
        "#cloud-config\n\
         ssh_authorized_keys:\n  - {key}\n\
         trilith:\n  secret: {secret}\n  set: {{name: edge-1, stun: 10s{}}}\n\
        \x20 node:\n{}\
        \x20 vip:\n\
        \x20   - {{name: public, address: {VIP}/24, interface: eth0}}\n\
        \x20   - {{name: public6, address: \"{VIP6}/64\", interface: eth0}}\n\
         {SERVICES}",
        lease(plan.accel),
        nodes.collect::<String>()
    )
}

/// Where QEMU translates, a heartbeat every 40 ms leaves a guest no time for anything else.
fn lease(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "",
        Accel::Tcg => ", lease: {heartbeat: 200ms, min: 600ms, max: 3s}",
    }
}

fn network(plan: &Plan) -> String {
    let address6 = node_address6(plan.index);
    let head =
        format!("version: 2\nethernets:\n  lan:\n    match: {{macaddress: \"{}\"}}\n    set-name: eth0\n", plan.mac());
    head + &match plan.addressing {
        Addressing::Static => format!(
            "    addresses: [{}/24, \"{address6}/64\"]\n    routes:\n      - {{to: default, via: {GATEWAY}}}\n      \
             - {{to: \"::/0\", via: \"{GATEWAY6}\"}}\n",
            plan.address()
        ),
        Addressing::Dhcp => format!(
            "    dhcp4: true\n    addresses: [\"{address6}/64\"]\n    routes:\n      \
             - {{to: \"::/0\", via: \"{GATEWAY6}\"}}\n"
        ),
    }
}

/// The laboratory's service, as `tests/lab/set.toml` has it.
const SERVICES: &str = "  service:
    - name: web
      vip: [public, public6]
      port: 80
      mode: http
      backend_port: 8080
      health: GET /healthz
      unit: lab-service.service
    - name: echo
      vip: [public, public6]
      port: 9000
      mode: tcp
      backend_port: 9001
      health: connect
      unit: lab-echo.service
";

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn the_appliance_finds_no_fault_with_what_the_machines_are_told() -> Result<()> {
        let shared = Shared { secret: "5".repeat(64), key: format!("ssh-ed25519 {KEY} trio") };
        for plan in Plan::trio(Accel::Tcg)? {
            let directory = std::env::temp_dir().join(format!("trilith-cidata-{}-{}", plan.name(), std::process::id()));
            fs::create_dir_all(&directory)?;
            for (name, content) in files(&plan, &shared) {
                fs::write(directory.join(name), content)?;
            }
            let taken = trilith_firstboot::run::check(&directory)?;
            fs::remove_dir_all(&directory)?;
            let found: Vec<_> = taken.findings.faults.iter().chain(&taken.findings.warnings).collect();
            assert!(found.is_empty(), "{found:?}");
            let answers = taken.answers;
            assert_eq!(answers.hostname.as_deref(), Some(plan.name()));
            assert_eq!(answers.set.map(|set| set.node).as_deref(), Some(plan.name()));
        }
        Ok(())
    }

    pub(crate) const KEY: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIGv8Zx2n6mWjPsWm3pmV0V0Zc2s1m8lQ0H3b0Wn2u0cK";
}
