//! `trio console NODE`: this terminal on the machine's serial port. Ctrl-] leaves.

use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::machine::Machine;

/// Connects this terminal (or a pipe, until it ends) with the machine's serial port.
///
/// # Errors
/// When the machine is off, or another console has its serial port and does not let go of it.
pub fn attach(machine: &Machine) -> Result<()> {
    let socket = machine.file("serial");
    let mut port = UnixStream::connect(&socket)
        .with_context(|| format!("machine {} is off: no {}", machine.name(), socket.display()))?;
    let _raw = stdin().is_terminal().then(Raw::set).transpose()?;
    eprint!("console of {}: Ctrl-] leaves\r\n", machine.name());
    let mut from = port.try_clone()?;
    let screen = std::thread::spawn(move || copy(&mut from, &mut stdout(), None));
    copy(&mut stdin(), &mut port, Some(LEAVE))?;
    port.shutdown(Shutdown::Both)?;
    screen.join().unwrap_or(Ok(()))
}

fn copy(from: &mut impl Read, to: &mut impl Write, until: Option<u8>) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let length = from.read(&mut buffer)?;
        let end = until.and_then(|last| buffer[..length].iter().position(|byte| *byte == last));
        to.write_all(&buffer[..end.unwrap_or(length)])?;
        to.flush()?;
        if length == 0 || end.is_some() {
            return Ok(());
        }
    }
}

/// The terminal hands on every key at once; as it was before when this ends.
struct Raw(Termios);

impl Raw {
    fn set() -> Result<Raw> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no repair.
        let _ = tcsetattr(stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Ctrl-].
const LEAVE: u8 = 0x1d;
