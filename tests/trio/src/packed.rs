//! `trio packed`: what is released is what boots. Three machines of each format of `build/dist`, told who they are as the hypervisor of
//! that format tells it, become a set that serves.
//!
//! | format | disk and card | told by |
//! |---|---|---|
//! | OVA | pvscsi, vmxnet3 | the descriptor's own properties: a CD-ROM with the OVF environment, as vCenter makes it |
//! | qcow2 | virtio | a CD-ROM that `trilith-seed` makes of a set file (NoCloud) |
//! | VHDX | SATA and e1000, since QEMU has no VMBus disk | the same |

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use trilith_ova::{deploy, environment, ova, set};

use crate::accel::Accel;
use crate::cidata::{CD_ROM, Shared};
use crate::plan::{Addressing, GATEWAY, GATEWAY6, Hardware, NODES, Plan, VIP, VIP6, address};
use crate::status::wait_fit;
use crate::tools::{self, build_directory, repository};
use crate::trio::{self, Trio, UP_DEADLINE, say};

/// A format as it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For vSphere.
    Ova,
    /// For KVM.
    Qcow2,
    /// For Hyper-V.
    Vhdx,
}

/// What was seen of a format.
#[derive(Debug, Serialize)]
struct Summary {
    /// Machines that serve, and each of which calls all of them fit.
    machines: usize,
    /// From power-on until all have served.
    seconds: u64,
}

/// Boots three machines of each format, one format after the other.
///
/// # Errors
/// When a file is damaged or missing, or a machine does not serve; with `keep` its set stays on.
pub fn run(formats: &[Format], keep: bool) -> Result<()> {
    let accel = trio::prepare()?;
    let mut seen = BTreeMap::new();
    for format in formats {
        seen.insert(*format, boot(*format, accel, keep).with_context(|| format!("{format:?}"))?);
    }
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

fn boot(format: Format, accel: Accel, keep: bool) -> Result<Summary> {
    let (disk, descriptor) = unpack(format)?;
    let trio = Trio::power_on_told(&plans(format, &disk, accel)?, &|plan, shared, home| match &descriptor {
        Some(descriptor) => properties(descriptor, plan, shared, home),
        None => seed(plan, shared, home),
    })?;
    say(&format!("three machines of {} are on", disk.display()));
    let vips: &[IpAddr] = match format {
        // Properties do not give nodes IPv6 addresses.
        Format::Ova => &[IpAddr::V4(VIP)],
        Format::Qcow2 | Format::Vhdx => &[IpAddr::V4(VIP), IpAddr::V6(VIP6)],
    };
    let served = trio.wait_serving_on(vips, UP_DEADLINE).and_then(|served| {
        wait_fit(&trio, UP_DEADLINE)?;
        Ok(served)
    });
    let machines = trio.machines.len();
    if served.is_err() && keep {
        trio.keep()?;
    }
    Ok(Summary { machines, seconds: served?.as_secs() })
}

/// The format's disk as a hypervisor takes it, and the descriptor that came with it.
fn unpack(format: Format) -> Result<(PathBuf, Option<String>)> {
    let build = build_directory(&repository()?);
    let into = build.join("packed");
    fs::create_dir_all(&into).with_context(|| into.display().to_string())?;
    let name = format!("trilith-{}", env!("CARGO_PKG_VERSION"));
    let released = |extension: &str| {
        let file = build.join("dist").join(format!("{name}.{extension}"));
        ensure!(file.exists(), "no {}: ./justw dist --service lab", file.display());
        Ok(file)
    };
    match format {
        Format::Ova => {
            let ova::Unpacked { descriptor, disk } = ova::unpack(&released("ova")?, &into)?;
            // For the firmware that has no driver for pvscsi; what is on the disk is the same.
            fs::copy(tools::image()?.join("trilith.efi"), into.join("trilith.efi"))?;
            Ok((disk, Some(descriptor)))
        }
        Format::Qcow2 => Ok((released("qcow2")?, None)),
        Format::Vhdx => {
            let archive = released("vhdx.zip")?.display().to_string();
            tools::run(&into, "python3", &["-m", "zipfile", "-e", &archive, "."])?;
            Ok((into.join(format!("{name}.vhdx")), None))
        }
    }
}

fn plans(format: Format, disk: &Path, accel: Accel) -> Result<Vec<Plan>> {
    let hardware = match format {
        Format::Ova => Hardware::Esx,
        Format::Qcow2 => Hardware::Virtio,
        Format::Vhdx => Hardware::Pc,
    };
    let mut plans = Plan::trio(accel)?;
    for plan in &mut plans {
        (plan.hardware, plan.addressing) = (hardware, Addressing::Static);
        disk.clone_into(&mut plan.disk);
        plan.disk_mib = None;
    }
    Ok(plans)
}

/// The CD-ROM of the transport `iso`, with what a person would fill in and no more.
fn properties(descriptor: &str, plan: &Plan, shared: &Shared, home: &Path) -> Result<()> {
    let nodes = (0..).zip(NODES).map(|(index, name)| format!("{name}={}", address(index)));
    let answers = [
        ("node", plan.name().to_owned()),
        ("address", format!("{}/24", plan.address())),
        ("gateway", GATEWAY.to_string()),
        ("set-name", "edge-1".to_owned()),
        ("nodes", nodes.collect::<Vec<_>>().join(", ")),
        ("vips", format!("public={VIP}/24")),
        ("services", "web=80:8080, echo=9000:9001/tcp".to_owned()),
        ("secret", shared.secret.clone()),
        ("public-keys", shared.key.clone()),
    ];
    let answers = answers.each_ref().map(|(key, value)| (*key, value.as_str()));
    let iso = environment::iso(&environment::xml(descriptor, plan.name(), &answers)?)?;
    fs::write(home.join(CD_ROM), iso).context("the OVF environment")
}

/// The CD-ROM that `trilith-seed` makes of the laboratory's set file, on this network.
fn seed(plan: &Plan, shared: &Shared, home: &Path) -> Result<()> {
    let file = set_file(shared);
    let directory = home.join("seed");
    deploy::write(&set::parse(&file, "set.toml")?, &directory)?;
    fs::copy(directory.join(format!("{}.iso", plan.name())), home.join(CD_ROM)).context("the seed")?;
    Ok(())
}

fn set_file(shared: &Shared) -> String {
    let Shared { secret, key } = shared;
    let set = include_str!("../../lab/set.toml").replace("10.77.0.", "10.78.0.").replace("fd77::", "fd78::");
    format!(
        "{set}\n[first-boot]\ngateway = [\"{GATEWAY}\", \"{GATEWAY6}\"]\nsecret = \"{secret}\"\npublic-keys = [\"{key}\"]\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cidata::tests::KEY;
    use trilith_ova::{descriptor, seed};

    #[test]
    fn a_set_file_and_properties_tell_each_machine_who_it_is() -> Result<()> {
        let shared = Shared { secret: "5".repeat(64), key: format!("ssh-ed25519 {KEY} trio") };
        let set = set::parse(&set_file(&shared), "set.toml")?;
        let told = seed::seeds(&set, &shared.secret)?;
        let home = std::env::temp_dir().join(format!("trilith-packed-{}", std::process::id()));
        fs::create_dir_all(&home)?;
        for (plan, told) in plans(Format::Ova, Path::new("disk.vmdk"), Accel::Tcg)?.iter().zip(&told) {
            assert!(told.network_config.contains(&format!("{}/24", plan.address())), "{}", told.network_config);
            properties(descriptor::TEMPLATE, plan, &shared, &home)?;
            let iso = String::from_utf8_lossy(&fs::read(home.join(CD_ROM))?).into_owned();
            assert!(iso.contains(&format!("oe:key=\"trilith.node\" oe:value=\"{}\"", plan.name())), "{iso}");
        }
        fs::remove_dir_all(&home)?;
        Ok(())
    }
}
