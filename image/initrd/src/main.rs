//! `/init` of the appliance's initrd: the way from the kernel to systemd in a verified root, and nothing else.
//!
//! ```text
//! kernel ─▶ mount /proc /sys /dev ─▶ load the drivers of the disks that are there
//!        ─▶ wait for the slot that the root hash names ─▶ watchdog ─▶ dm-verity ─▶ erofs, read-only
//!        ─▶ /etc under a layer in memory, /var in memory ─▶ that becomes `/` ─▶ systemd
//! ```
//!
//! There is no shell to fall into. What goes wrong is said on every console, with what to do about it, and the machine
//! starts anew after [`REBOOT_AFTER`]: the boot loader counts the attempts and takes the other slot when they are used up.

mod command_line;
mod device_mapper;
mod disk;
mod fault;
mod modules;
mod root;
mod superblock;
mod uevent;
mod verity;
mod watchdog;

use std::convert::Infallible;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};

use crate::fault::{Result, say};

fn main() {
    let Err(fault) = start();
    say(&format!("the system cannot be started: {fault}"));
    say(&format!("next: {}; the machine starts anew in {} s", fault.mend, REBOOT_AFTER.as_secs()));
    std::thread::sleep(REBOOT_AFTER);
    // When that fails, PID 1 ends, the kernel panics, and `panic=` on its command line starts the machine anew.
    let _ = reboot(RebootMode::RB_AUTOBOOT);
}

/// Becomes systemd.
fn start() -> Result<Infallible> {
    root::mount_kernel_file_systems()?;
    let command_line = fault::read("/proc/cmdline")?;
    let hash = command_line::root_hash(&command_line)?;
    let modules = modules::Modules::read()?;
    let slot = std::thread::scope(|scope| {
        scope.spawn(|| FOR_THE_ROOT.iter().chain(&WANTED).for_each(|name| modules.load_if_possible(name)));
        disk::wait_for(&hash, &modules)
    })?;
    watchdog::start();
    let device = verity::open(&hash, &slot)?;
    root::mount_root(&device)?;
    root::switch()
}

/// What opens the root. SHA-256 by the processor's own instructions, where it has them: dm-verity takes the best that is there.
/// erofs asks for its checksum by name, and there is no modprobe here that could bring it.
const FOR_THE_ROOT: [&str; 5] = ["sha256_ssse3", "dm_verity", "crc32c_generic", "erofs", "overlay"];

/// What no device asks for by itself: CD-ROMs that come up later, the kernel's own watchdog, key events for logind.
const WANTED: [&str; 3] = ["sr_mod", "softdog", "evdev"];

/// Time to read a message on a console before the machine starts anew.
const REBOOT_AFTER: Duration = Duration::from_secs(15);
