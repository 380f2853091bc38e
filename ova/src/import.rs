//! What vCenter makes of an OVA for one machine, short of the machine itself: the disk, and the CD-ROM with the OVF
//! environment. So the trio boots an OVA as vSphere would.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{environment, ova};

/// The files of an imported machine.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The disk, a stream-optimized VMDK: read-only, so a machine writes to an overlay over it (`qemu-img create -b … -F vmdk`).
    pub disk: PathBuf,
    /// The CD-ROM of the transport `iso`.
    pub cd_rom: PathBuf,
}

/// Imports an OVA into a directory that is there, with these answers (keys with or without `trilith.`).
///
/// # Errors
/// A damaged OVA, and answers that its descriptor does not allow.
pub fn import(ova: &Path, into: &Path, id: &str, answers: &[(&str, &str)]) -> Result<Imported> {
    let unpacked = ova::unpack(ova, into)?;
    let cd_rom = into.join("ovf-env.iso");
    let iso = environment::iso(&environment::xml(&unpacked.descriptor, id, answers)?)?;
    fs::write(&cd_rom, iso).with_context(|| cd_rom.display().to_string())?;
    Ok(Imported { disk: unpacked.disk, cd_rom })
}
