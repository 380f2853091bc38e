//! Ctrl-C: the demo ends in order, and takes down what it brought up.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use nix::libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// From now on the first Ctrl-C (or SIGTERM) is noted. The second one ends the process at once, and the laboratory's guard
/// cleans up after it.
pub fn watch() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESETHAND, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler does nothing but store to an atomic, which is async-signal-safe (signal-safety(7)).
        unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot watch for {signal}"))?;
    }
    Ok(())
}

/// # Errors
/// When Ctrl-C was pressed.
pub fn check() -> Result<()> {
    if NOTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

extern "C" fn note(_signal: c_int) {
    NOTED.store(true, Ordering::Relaxed);
}

static NOTED: AtomicBool = AtomicBool::new(false);
