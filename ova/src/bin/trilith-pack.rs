//! `trilith-pack`: the disk image as OVA and VHDX, and as a raw disk of the same capacity for `qemu-img`. Used by `ova/dist`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use trilith_firstboot::encoding::{base64, to_base64};
use trilith_ova::disk::Disk;
use trilith_ova::ova::{self, Label, Signature};
use trilith_ova::{vhdx, zip};

/// Packs the disk image for vSphere and Hyper-V.
#[derive(Parser)]
#[command(name = "trilith-pack")]
struct Arguments {
    /// The disk image.
    image: PathBuf,
    /// Where to write.
    directory: PathBuf,
    /// Such as 0.1.0.
    #[arg(long)]
    version: String,
    /// Capacity of the virtual disk, in GiB.
    #[arg(long, default_value_t = 4)]
    capacity_gib: u64,
    /// Time of all files, in seconds since 1970.
    #[arg(long)]
    time: u64,
    /// Directory with db.crt and KEK.crt, which the firmware shall believe.
    #[arg(long)]
    keys: PathBuf,
    /// PEM file with the key that signs the OVA.
    #[arg(long, requires = "certificate")]
    key: Option<PathBuf>,
    /// PEM file with that key's certificate.
    #[arg(long)]
    certificate: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let disk = Disk::open(&arguments.image, arguments.capacity_gib << 30)?;
    let name = format!("trilith-{}", arguments.version);
    let signature = arguments.key.zip(arguments.certificate).map(|(key, certificate)| Signature { key, certificate });
    let certificate = |file: &str| der(&arguments.keys.join(file));
    let label = Label {
        name: name.clone(),
        version: arguments.version,
        time: arguments.time,
        secure_boot: [certificate("db.crt")?, certificate("KEK.crt")?],
        signature,
    };
    fs::create_dir_all(&arguments.directory).with_context(|| arguments.directory.display().to_string())?;
    let put = |name: &str, content: &[u8]| {
        let path = arguments.directory.join(name);
        fs::write(&path, content).with_context(|| path.display().to_string())
    };
    put(&format!("{name}.ova"), &ova::pack(&disk, &label)?)?;
    let mut hyperv = Vec::new();
    vhdx::write(&disk, &mut hyperv).context("the VHDX")?;
    put(&format!("{name}.vhdx.zip"), &zip::of(&format!("{name}.vhdx"), &hyperv)?)?;
    let raw = arguments.directory.join(format!("{name}.raw"));
    disk.write_raw(&mut File::create(&raw)?).with_context(|| raw.display().to_string())
}

/// A PEM file's certificate, in base64 on one line.
fn der(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut lines = text.lines().skip_while(|line| !line.starts_with("-----BEGIN CERTIFICATE"));
    let body: String = lines.by_ref().skip(1).take_while(|line| !line.starts_with("-----")).collect();
    let bytes = base64(body.as_bytes()).unwrap_or_default();
    ensure!(bytes.len() > 64, "{} holds no certificate in PEM form", path.display());
    Ok(to_base64(&bytes))
}
