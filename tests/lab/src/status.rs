//! `lab status`: what each node is doing.

use anyhow::Result;
use serde::Serialize;

use crate::lab::{Lab, Mode, VIP, VIP6};
use crate::node::{Node, State};

/// Prints the state of the laboratory: a table, or one JSON object.
pub fn show(lab: &Lab, json: bool) -> Result<()> {
    let status =
        Status { mode: lab.mode, nodes: lab.nodes.iter().map(NodeStatus::of).collect(), faults: lab.switch.faults()? };
    if json {
        println!("{}", serde_json::to_string(&status)?);
        return Ok(());
    }
    println!("{:<5} {:<8} {:<12} {:<20} units", "node", "state", "address", "on eth0");
    for node in &status.nodes {
        println!(
            "{:<5} {:<8} {:<12} {:<20} {}",
            node.name,
            format!("{:?}", node.state).to_lowercase(),
            node.address,
            node.vips.join(" "),
            node.units.join(" ")
        );
    }
    for fault in &status.faults {
        println!("fault: {fault}");
    }
    Ok(())
}

#[derive(Serialize)]
struct Status {
    mode: Mode,
    nodes: Vec<NodeStatus>,
    faults: Vec<String>,
}

#[derive(Serialize)]
struct NodeStatus {
    name: &'static str,
    state: State,
    address: String,
    /// VIPs on its interface: those that it answers ARP for.
    vips: Vec<String>,
    /// Units of interest that run.
    units: Vec<&'static str>,
}

impl NodeStatus {
    fn of(node: &Node) -> NodeStatus {
        let addresses = node.netns().run("ip", &["-brief", "address", "show", "dev", "eth0"]).unwrap_or_default();
        let vips = [VIP.to_string(), VIP6.to_string()];
        let held =
            |vip: &String| addresses.split_whitespace().any(|address| address.split('/').next() == Some(vip.as_str()));
        NodeStatus {
            name: node.name(),
            state: node.state(),
            address: node.address().to_string(),
            vips: vips.into_iter().filter(held).collect(),
            units: UNITS.into_iter().filter(|unit| !node.unit_pids(unit).is_empty()).collect(),
        }
    }
}

const UNITS: [&str; 4] = ["trilith.service", "keepalived.service", "haproxy.service", "lab-service.service"];
