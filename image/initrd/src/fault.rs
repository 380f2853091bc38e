//! Why the system cannot be started, and what somebody at the console can do about it.

use std::fmt::{self, Display, Formatter};
use std::io::Write;

/// The result of a step that can end the start.
pub type Result<T> = std::result::Result<T, Fault>;

/// What went wrong, with its operands, and what to do next.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    what: String,
    /// What to do next, as an order to whoever reads the console.
    pub mend: &'static str,
}

impl Fault {
    /// `what` names the device or file.
    pub fn new(what: impl Into<String>, mend: &'static str) -> Fault {
        Fault { what: what.into(), mend }
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// Says what failed when an operation of the system does.
pub trait Context<T> {
    /// `what` becomes the first half of the message, the system's error the second.
    fn or_fault(self, what: &str, mend: &'static str) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn or_fault(self, what: &str, mend: &'static str) -> Result<T> {
        self.map_err(|error| Fault::new(format!("{what}: {error}"), mend))
    }
}

/// Reads a text file that must be there.
pub fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).or_fault(path, WRONG_IMAGE)
}

/// Says a line on every console: the kernel's log goes to all of them, `/dev/console` is only one.
pub fn say(text: &str) {
    // The level: 3, an error (printk), which `quiet` lets through.
    let line = format!("<3>trilith: {text}\n");
    let logged = std::fs::OpenOptions::new().write(true).open("/dev/kmsg");
    if logged.and_then(|mut log| log.write_all(line.as_bytes())).is_err() {
        let _ = writeln!(std::io::stderr(), "trilith: {text}");
    }
}

/// What to do when the kernel and its initrd do not fit together or with the machine.
pub const WRONG_IMAGE: &str = "this should never happen: report it with all lines of this screen";
/// What to do when the disk holds something else than it should.
pub const WRONG_DISK: &str =
    "if the other slot does not start either, import the appliance anew; the set goes on without this node";
/// What to do when the disk is not there.
pub const NO_DISK: &str =
    "look at the virtual machine's disk and its controller (SCSI, SATA, NVMe and virtio are known)";
