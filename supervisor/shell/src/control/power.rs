//! Reboot and shutdown of this machine, asked for by an operator.

use std::fmt;

use serde::{Deserialize, Serialize};
use trilith_core::status::Status;

/// What shall become of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// It starts again.
    Reboot,
    /// It is switched off.
    Poweroff,
}

impl Power {
    /// The target of systemd that brings it about, services first. (systemd.special(7). Manager.Reboot() of
    /// org.freedesktop.systemd1(5) would stop nothing before.)
    pub fn target(self) -> &'static str {
        match self {
            Power::Reboot => "reboot.target",
            Power::Poweroff => "poweroff.target",
        }
    }

    /// What `who` ("node a") does now, for the one who asked.
    pub fn begun(self, who: &str) -> String {
        match self {
            Power::Reboot => format!("{who} reboots"),
            Power::Poweroff => format!("{who} shuts down"),
        }
    }

    /// Why it shall not be done as asked, on the node that `status` is of; `None` when nothing speaks against it.
    ///
    /// `node` is the name that was asked for; with `force` the clients' loss is taken into account.
    pub fn refusal(self, status: &Status, node: &str, force: bool) -> Option<String> {
        if node != status.node {
            return Some(format!(
                "this is node {}, and a node is rebooted or shut down only at itself: ssh to node {node}, or use its console",
                status.node
            ));
        }
        let alone = status.nodes.len() > 1 && successors(status).is_empty();
        (alone && !force).then(|| {
            format!(
                "no other node is fit to serve, so the VIPs would be down until node {node} is back: mend another node \
                 first, or say --force"
            )
        })
    }
}

impl fmt::Display for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Power::Reboot => "reboot",
            Power::Poweroff => "shut down",
        })
    }
}

/// Names of the other nodes that can take over what the node that `status` is of holds.
pub fn successors(status: &Status) -> Vec<&str> {
    let others = status.nodes.iter().filter(|node| node.name != status.node && node.heard && !node.drained);
    others.filter(|node| matches!(node.fitness.as_str(), "fit" | "degraded")).map(|node| node.name.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::full;

    #[test]
    fn a_node_goes_only_while_another_one_can_serve_or_by_force() {
        let mut status = full();
        assert_eq!(Power::Reboot.refusal(&status, "a", false), None);
        status.nodes[1].drained = true;
        assert_eq!(successors(&status), ["c"]);
        status.nodes[2].heard = false;
        let why = Power::Reboot.refusal(&status, "a", false).unwrap();
        assert!(why.contains("no other node is fit") && why.ends_with("or say --force"), "{why}");
        assert_eq!(Power::Reboot.refusal(&status, "a", true), None);
        status.nodes.truncate(1);
        assert_eq!(Power::Poweroff.refusal(&status, "a", false), None, "a set of one has nobody to wait for");
    }

    #[test]
    fn another_node_is_not_switched_off_from_here() {
        let why = Power::Poweroff.refusal(&full(), "b", true).unwrap();
        assert!(why.starts_with("this is node a") && why.contains("ssh to node b"), "{why}");
    }
}
