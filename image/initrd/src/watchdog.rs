//! The machine's watchdog, started before anything can hang.
//!
//! systemd keeps it fed from its first moment on (RuntimeWatchdogSec). Until then, and if systemd itself hangs before it comes so
//! far, the machine starts anew by itself, and the boot loader counts the attempt.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::fault::say;

/// Starts it, if there is one; a machine without it starts all the same.
pub fn start() {
    let device = match File::options().write(true).open(DEVICE) {
        Ok(device) => device,
        Err(error) => return say(&format!("{DEVICE}: {error}: a hang before systemd starts is not noticed")),
    };
    let mut seconds = TIMEOUT.as_secs() as i32;
    // SAFETY: the kernel reads and writes one int.
    if let Err(error) = unsafe { set_timeout(device.as_raw_fd(), &raw mut seconds) } {
        say(&format!("{DEVICE}: {error}: it keeps its own timeout"));
    }
    // Closed without the magic character it goes on, and systemd can open it. (Documentation/watchdog/watchdog-api.rst.)
}

nix::ioctl_readwrite!(set_timeout, b'W', 6, i32);

const DEVICE: &str = "/dev/watchdog0";
/// From here to systemd's first breath: reading the root once, on the slowest of disks.
const TIMEOUT: Duration = Duration::from_secs(60);
