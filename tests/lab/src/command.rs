//! Running the host's tools (ip, nft, nsenter) with errors that say what was asked.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a program to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or fails; the error carries the command line and its standard error.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    finish(Command::new(program).args(args).stdin(Stdio::null()), program, args)
}

/// Like [`run`], with `input` on standard input.
pub fn run_with_input(program: &str, args: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", line(program, args)))?;
    let mut stdin = child.stdin.take().context("a piped child has a standard input")?;
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{}: {}: {}", line(program, args), output.status, text(&output.stderr));
    }
    written.with_context(|| format!("{} read only a part of its input", line(program, args)))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn finish(command: &mut Command, program: &str, args: &[&str]) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {}", line(program, args)))?;
    if !output.status.success() {
        bail!("{}: {}: {}", line(program, args), output.status, text(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn line(program: &str, args: &[&str]) -> String {
    format!("`{program} {}`", args.join(" "))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}
