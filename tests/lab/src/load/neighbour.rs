//! Whom a namespace itself takes for the owner of an address: its neighbour table.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::worker::enter;

/// An entry of the neighbour table, as ip-neighbour(8) prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// The link-layer address; none while it is being asked for or could not be found.
    #[serde(rename = "lladdr")]
    pub mac: Option<String>,
    /// The interface.
    #[serde(rename = "dev")]
    pub interface: String,
    /// `REACHABLE`, `STALE`, `DELAY`, `PROBE`, `FAILED`, …
    pub state: Vec<String>,
}

/// Reads the entry for `address` in the namespace (`None` is the caller's own); `Ok(None)` if there is none.
///
/// # Errors
/// When the namespace can't be entered, or iproute2 is missing or refuses.
pub fn neighbour(netns: Option<&Path>, address: IpAddr) -> Result<Option<Neighbour>> {
    let netns: Option<PathBuf> = netns.map(Path::to_owned);
    let read = move || -> Result<Vec<Neighbour>> {
        // The child inherits the namespace of this thread.
        enter(netns.as_deref())?;
        let mut ip = Command::new("ip");
        ip.args(["-json", "neighbour", "show", "to"]).arg(address.to_string());
        let output = ip.output().context("cannot run ip; install iproute2")?;
        if !output.status.success() {
            bail!("ip neighbour show to {address}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("ip neighbour show to {address}: no such JSON"))
    };
    let entries = thread::spawn(read).join().map_err(|_| anyhow!("the thread that reads the neighbour table died"))?;
    Ok(entries?.into_iter().next())
}
