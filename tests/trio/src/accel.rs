//! What runs the guests' instructions: KVM if it really does, else QEMU's own translator.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::pe;
use crate::process::Group;
use crate::tools;

/// An accelerator of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The host's processor.
    Kvm,
    /// Translation, one thread for each virtual processor.
    Tcg,
}

impl Accel {
    /// QEMU's arguments, each after a blank. Nehalem is a fifth faster to translate than `max` and has all that Debian asks; with
    /// instructions for SHA-256 and AES, QEMU's own code does what the guest's would do translated.
    pub fn arguments(self) -> &'static str {
        match self {
            Accel::Kvm => "-accel kvm -cpu host",
            Accel::Tcg => "-accel tcg,thread=multi -cpu Nehalem,+sha-ni,+aes,+pclmulqdq",
        }
    }

    /// KVM if the kernel in this UKI starts under it. A `/dev/kvm` alone says nothing: there are hosts that have one and on
    /// which a guest dies while it unpacks its kernel. `directory` is for what the attempt leaves.
    ///
    /// # Errors
    /// When the UKI cannot be read or QEMU cannot be started at all; that KVM does not work is none.
    pub fn probe(uki: &Path, directory: &Path) -> Result<Accel> {
        if !Path::new("/dev/kvm").exists() {
            return Ok(Accel::Tcg);
        }
        let bytes = std::fs::read(uki).with_context(|| format!("no {}", uki.display()))?;
        let kernel = pe::section(&bytes, ".linux").with_context(|| format!("{} is no UKI", uki.display()))?;
        std::fs::write(directory.join("kernel"), &bytes[kernel])?;
        let mut command = tools::command(directory, None, "qemu-system-x86_64")?;
        command.args(PROBE.split_whitespace()).args(["-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1"]);
        let log = directory.join("probe.log");
        let qemu = Group::start(command, &log, &directory.join("probe"))?;
        let start = Instant::now();
        let mut started = false;
        while !started && qemu.lives() && start.elapsed() < PROBE_DEADLINE {
            std::thread::sleep(Duration::from_millis(20));
            started = std::fs::read_to_string(&log).is_ok_and(|said| said.contains("Linux version"));
        }
        qemu.kill()?;
        Ok(if started { Accel::Kvm } else { Accel::Tcg })
    }
}

/// A machine with nothing but a kernel, which says its version, finds no root, panics and ends.
const PROBE: &str = "-machine q35 -accel kvm -cpu host -m 256 -nodefaults -no-user-config -display none -serial stdio \
                     -no-reboot -action panic=exit-failure -kernel kernel";
/// A kernel that KVM runs says its version within a second.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);
