//! What the first boot did, for the console: `/run/trilith/firstboot.json` and notices.

use serde::{Deserialize, Serialize};

use crate::finding::Finding;

/// What became of the answers at this boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Where the answers in force came from; `None` when there are none.
    pub source: Option<String>,
    /// Their instance-id; may be empty.
    pub instance_id: String,
    /// The host's name, when the answers give one.
    pub hostname: Option<String>,
    /// Whether the network was configured: as the answers say, or by DHCP when they say nothing.
    pub network: NetworkOutcome,
    /// What must be mended before the answers are taken.
    pub faults: Vec<Finding>,
    /// What was left out of the answers. Known only at the boot that took them.
    pub warnings: Vec<Finding>,
    /// What else an admin should know: one sentence each, of which each is a notice too.
    pub notices: Vec<String>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The answers were taken and stored at this boot.
    Taken,
    /// The answers of an earlier boot are in force.
    Kept,
    /// There are answers, but they are wrong; nothing was stored.
    Wrong,
    /// There are no answers.
    Nothing,
}

/// What was done about the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkOutcome {
    /// As the answers say.
    Answers,
    /// DHCP on every interface, since nothing was said.
    Dhcp,
    /// Left alone: what was said is wrong.
    Wrong,
}

/// Where the report is found on a node, below its root.
pub const FILE: &str = "run/trilith/firstboot.json";
/// Where notices are found on a node, below its root.
pub const NOTICES: &str = "run/trilith/notices";
/// The names of ours begin with this.
pub const NOTICE_PREFIX: &str = "firstboot-";
