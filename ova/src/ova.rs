//! An OVA: a tar of descriptor, manifest, signature and disk, in exactly that order, because vCenter reads it as a stream.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::disk::Disk;
use crate::{descriptor, tar, vmdk};

/// What an OVA says beside its disk.
#[derive(Clone, Debug)]
pub struct Label {
    /// Such as `trilith-0.1.0`: the files' names begin with it.
    pub name: String,
    /// The product's version.
    pub version: String,
    /// Time of all files, in seconds since 1970.
    pub time: u64,
    /// The certificates that the firmware shall believe, in DER and base64: of what it starts, and of who may change that.
    pub secure_boot: [String; 2],
    /// Who signs it.
    pub signature: Option<Signature>,
}

/// A key and its certificate, as PEM files.
#[derive(Clone, Debug)]
pub struct Signature {
    /// The private key.
    pub key: PathBuf,
    /// Its certificate.
    pub certificate: PathBuf,
}

/// Packs an OVA.
///
/// # Errors
/// Those of the disk, a template that does not fit, and a key that can't sign.
pub fn pack(disk: &Disk, label: &Label) -> Result<Vec<u8>> {
    let name = &label.name;
    let (descriptor_name, disk_name) = (format!("{name}.ovf"), format!("{name}-disk1.vmdk"));
    let mut vmdk = Vec::new();
    vmdk::write(disk, &disk_name, &mut vmdk).context("the VMDK")?;
    let [db, kek] = &label.secure_boot;
    let descriptor = descriptor::filled(&[
        ("version", &label.version),
        ("disk-file", &disk_name),
        ("disk-bytes", &vmdk.len().to_string()),
        ("capacity", &disk.capacity().to_string()),
        ("populated", &disk.populated().to_string()),
        ("secure-boot-db", db),
        ("secure-boot-kek", kek),
    ])?;
    let manifest = digest_line(&descriptor_name, descriptor.as_bytes()) + &digest_line(&disk_name, &vmdk);
    let mut files = vec![
        (descriptor_name, descriptor.into_bytes()),
        (format!("{name}.mf"), manifest.into_bytes()),
        (disk_name, vmdk),
    ];
    if let Some(signature) = &label.signature {
        let certificate = certified(&files[1].0, &files[1].1, signature)?;
        files.insert(2, (format!("{name}.cert"), certificate));
    }
    let mut ova = Vec::new();
    for (name, content) in &files {
        tar::file(&mut ova, name, content, 0o644, label.time)?;
    }
    tar::end(&mut ova)?;
    Ok(ova)
}

/// What an OVA holds, checked by its manifest.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// The descriptor.
    pub descriptor: String,
    /// The disk, a VMDK in the directory that was asked for.
    pub disk: PathBuf,
}

/// Unpacks an OVA's disk into a directory and checks everything by the manifest, as an importer does.
///
/// # Errors
/// A file that is damaged, missing or in the wrong place, by name.
pub fn unpack(ova: &Path, into: &Path) -> Result<Unpacked> {
    let place = ova.display();
    let mut archive = File::open(ova).with_context(|| place.to_string())?;
    let (mut descriptor, mut manifest, mut disk) = (None, None, None);
    let mut digests = String::new();
    tar::read(&mut archive, |name, content| {
        // Only names: a path could lead anywhere.
        if name.contains('/') {
            return Err(io::Error::other(format!("{name} is a path")));
        }
        if name.ends_with(".vmdk") {
            let path = into.join(name);
            let mut out = File::create(&path)?;
            let mut hash = Sha256::new();
            let mut buffer = vec![0; 1 << 20];
            loop {
                let read = content.read(&mut buffer)?;
                if read == 0 {
                    break;
                }
                hash.update(&buffer[..read]);
                out.write_all(&buffer[..read])?;
            }
            digests += &line(name, &hash.finalize());
            disk = Some(path);
            return Ok(());
        }
        let mut text = String::new();
        content.read_to_string(&mut text)?;
        if name.ends_with(".mf") {
            manifest = Some(text);
        } else if name.ends_with(".ovf") {
            digests += &digest_line(name, text.as_bytes());
            descriptor = Some(text);
        }
        Ok(())
    })
    .with_context(|| format!("{place} is no OVA, or damaged"))?;
    let (Some(descriptor), Some(manifest), Some(disk)) = (descriptor, manifest, disk) else {
        bail!("{place} lacks a descriptor, a manifest or a disk");
    };
    ensure!(manifest == digests, "{place} is damaged: its manifest says\n{manifest}but it holds\n{digests}");
    Ok(Unpacked { descriptor, disk })
}

/// `SHA256(name)= hex`, exactly: importers compare it letter by letter.
pub fn digest_line(name: &str, content: &[u8]) -> String {
    line(name, &Sha256::digest(content))
}

fn line(name: &str, digest: &[u8]) -> String {
    format!("SHA256({name})= {}\n", hex(digest))
}

/// Digits, small letters.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The `.cert` file: the manifest's signature, then the certificate (DMTF DSP0243, section 5.1).
fn certified(name: &str, manifest: &[u8], signature: &Signature) -> Result<Vec<u8>> {
    let signed = sign(manifest, signature)?;
    let certificate = fs::read_to_string(&signature.certificate)
        .with_context(|| format!("the certificate {}", signature.certificate.display()))?;
    ensure!(certificate.contains("BEGIN CERTIFICATE"), "{} holds no certificate", signature.certificate.display());
    Ok(format!("SHA256({name})= {}\n{certificate}", hex(&signed)).into_bytes())
}

/// The signature (PKCS #1, SHA-256) of some bytes.
///
/// # Errors
/// openssl is missing, or does not take the key: with its words.
pub fn sign(bytes: &[u8], signature: &Signature) -> Result<Vec<u8>> {
    let key = signature.key.display();
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .arg(&signature.key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("openssl, which signs, can't be started: install it")?;
    // Dropped at once, so that openssl sees the end.
    let written = openssl.stdin.take().context("openssl has no input")?.write_all(bytes);
    let output = openssl.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "the key {key} can't sign: {said}");
    written?;
    Ok(output.stdout)
}
