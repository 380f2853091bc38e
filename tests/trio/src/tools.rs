//! Programs of the tools tree (`build/tools`, Debian 13): QEMU, its firmware, makers of disks and CD-ROMs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use trilith_lab::netns::Netns;
pub use trilith_lab::root::{build_directory, repository};

/// Builds the tools tree if it is not there, with progress on standard error.
pub fn prepare() -> Result<()> {
    image_build(&["tools"])
}

/// Runs `image/build`, with progress on standard error.
///
/// # Errors
/// When it fails; it has said why by then.
pub fn image_build(args: &[&str]) -> Result<()> {
    let status = Command::new(repository()?.join("image/build")).args(args).status();
    let status = status.context("cannot start image/build")?;
    if !status.success() {
        bail!("image/build {} failed: {status}", args.join(" "));
    }
    Ok(())
}

/// A program of the tools tree, to be run in `directory` (within the checkout or the build directory, whose paths are the
/// same inside), in a network namespace if one is given.
///
/// It enters the tree as `image/build run` does, without the lock and the look at APT that come first there: a machine has
/// to be powered on while an image is being built, too. What is started so ends with the process that this starts
/// (unshare(1), `--kill-child`).
pub fn command(directory: &Path, netns: Option<&Netns>, program: &str) -> Result<Command> {
    let repo = repository()?;
    let mut command = match netns {
        Some(netns) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", netns.path().display())).arg("unshare");
            command
        }
        None => Command::new("unshare"),
    };
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"])
        .arg(repo.join("image/build"))
        .arg("--inside-tools")
        .args([&repo, &build_directory(&repo), directory])
        .arg(program);
    Ok(command)
}

/// Runs a program of the tools tree to its end, in `directory`, and returns its standard output.
///
/// # Errors
/// When it fails, with its standard error.
pub fn run(directory: &Path, program: &str, args: &[&str]) -> Result<String> {
    let line = || format!("{program} {}", args.join(" "));
    let output = command(directory, None, program)?.args(args).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {}", line()))?;
    if !output.status.success() {
        bail!("{}: {}: {}", line(), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where the image with the laboratory's service is, and what was built with it: what `TRILITH_IMAGE` names, or what
/// [`build_image`] builds.
pub fn image() -> Result<PathBuf> {
    match std::env::var_os("TRILITH_IMAGE") {
        Some(directory) => Ok(PathBuf::from(directory)),
        None => Ok(build_directory(&repository()?).join("image-lab")),
    }
}

/// Builds that image if it is not up to date, unless `TRILITH_IMAGE` names one that was built before.
pub fn build_image() -> Result<()> {
    match std::env::var_os("TRILITH_IMAGE") {
        Some(_) => prepare(),
        None => image_build(&["disk", "--service", "lab"]),
    }
}

/// Where the keys are that signed it (image/keys).
pub fn keys() -> Result<PathBuf> {
    let path = build_directory(&repository()?).join("keys.path");
    let keys = std::fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    Ok(PathBuf::from(keys.trim()))
}
