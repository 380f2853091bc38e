//! `trio status`: what each machine is doing, and what the set says of itself.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use trilith_lab::wait::wait_until;

use crate::machine::{Machine, State};
use crate::plan::{Addressing, Hardware};
use crate::trio::Trio;

/// Prints the state of the machines: a table, or one JSON object.
pub fn show(trio: &Trio, json: bool) -> Result<()> {
    let rows: Vec<Row> = trio.machines.iter().map(|machine| Row::of(trio, machine)).collect();
    if json {
        println!("{}", serde_json::to_string(&rows)?);
        return Ok(());
    }
    println!("{:<5} {:<8} {:<9} {:<7} {:<12} {:<7} VIPs", "node", "machine", "hardware", "by", "address", "fitness");
    for row in &rows {
        let (state, hardware) = (format!("{:?}", row.state), format!("{:?}", row.hardware));
        let by = format!("{:?}", row.addressing);
        println!(
            "{:<5} {:<8} {:<9} {:<7} {:<12} {:<7} {}",
            row.name,
            state.to_lowercase(),
            hardware.to_lowercase(),
            by.to_lowercase(),
            row.address,
            row.fitness.as_deref().unwrap_or("?"),
            row.vips.join(" ")
        );
    }
    Ok(())
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    state: State,
    hardware: Hardware,
    addressing: Addressing,
    address: String,
    /// Its own word; `None` when it cannot be asked.
    fitness: Option<String>,
    /// VIPs that it says are its own.
    vips: Vec<String>,
}

impl Row {
    fn of(trio: &Trio, machine: &Machine) -> Row {
        let state = machine.state();
        let said = (state == State::Running).then(|| said(trio, machine).ok()).flatten().unwrap_or_default();
        let name = machine.name();
        let list = |key: &str| said[key].as_array().cloned().unwrap_or_default();
        let me = list("nodes").into_iter().find(|node| node["name"] == name);
        let mine = list("vips").into_iter().filter(|vip| vip["owner"] == name);
        Row {
            name,
            state,
            hardware: machine.plan.hardware,
            addressing: machine.plan.addressing,
            address: machine.plan.address().to_string(),
            fitness: me.and_then(|me| me["fitness"].as_str().map(str::to_owned)),
            vips: mine.filter_map(|vip| vip["name"].as_str().map(str::to_owned)).collect(),
        }
    }
}

/// `trilith status --json` of a node.
///
/// # Errors
/// When it cannot be reached over SSH, or says no JSON.
pub fn said(trio: &Trio, machine: &Machine) -> Result<Value> {
    let output = trio.ssh(machine, &["trilith", "status", "--json"])?;
    if !output.status.success() {
        anyhow::bail!("status of {}: {}", machine.name(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Waits until each machine calls all of them fit.
///
/// # Errors
/// When one does not within `deadline`.
pub fn wait_fit(trio: &Trio, deadline: Duration) -> Result<()> {
    let all = |machine| fit(trio, machine).is_ok_and(|fit| fit == trio.machines.len());
    wait_until("all nodes fit, by each one's own word", deadline, || trio.machines.iter().all(all)).map(drop)
}

/// How many nodes are fit, by this one's word.
fn fit(trio: &Trio, machine: &Machine) -> Result<usize> {
    let said = said(trio, machine)?;
    let nodes = said["nodes"].as_array().context("no nodes in its status")?;
    Ok(nodes.iter().filter(|node| node["fitness"] == "fit").count())
}
