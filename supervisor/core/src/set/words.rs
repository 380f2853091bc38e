//! The state in words, for `status`, the history and the log.

use std::fmt;

use super::{Ask, Goal, Hold, Kind, Outcome, Pause, Phase, Request, Rollout, Step};

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::System { version } => write!(f, "system {version}"),
            Kind::Config { version } => write!(f, "configuration {version}"),
            Kind::Service { name, version } => write!(f, "service {name} {version}"),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::System { version } => write!(f, "system {version}"),
            Goal::Config { base, .. } => write!(f, "a new configuration, made from {base}"),
            Goal::Service { name, version } => write!(f, "service {name} {version}"),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Staging => "all nodes fetch and check it",
            Phase::Rolling => "one node after the other",
            Phase::Confirming => "all nodes have it; it waits to be confirmed",
        })
    }
}

/// What the node whose turn it is does.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Offered => "is asked to begin",
            Step::Draining => "hands over its VIPs and drains",
            Step::Acting => "switches and restarts",
            Step::Verifying => "runs it and waits to be seen serving",
            Step::Settling => "is seen serving and settles",
            Step::Returning => "went back and returns into service",
        })
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pause::Operator => write!(f, "by an operator"),
            Pause::SecondFailure { node, reason } => {
                write!(f, "because node {node} failed while another was out of service: {reason}")
            }
            Pause::GaveBack { node, reason } => write!(f, "because node {node} could not go on: {reason}"),
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hold::Going => write!(f, "going on"),
            Hold::Paused { why } => write!(f, "paused {why}"),
            Hold::Halted { node, reason } => write!(f, "halted: it failed on node {node}: {reason}"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done => write!(f, "done"),
            Outcome::Back { reason } => write!(f, "taken back: {reason}"),
            Outcome::Halted { node, reason } => write!(f, "halted and given up: it failed on node {node}: {reason}"),
        }
    }
}

/// One line: what, how far, who.
impl fmt::Display for Rollout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, left) = (self.nodes.len(), self.left().count());
        write!(f, "rollout {}: {}: ", self.id, self.kind)?;
        match (&self.back, self.phase) {
            (Some(reason), _) => write!(f, "goes back ({reason}), {left} node(s) left")?,
            (None, Phase::Rolling) => write!(f, "{} of {all} nodes have it", all - left)?,
            (None, phase) => write!(f, "{phase}")?,
        }
        if let Some(turn) = &self.turn {
            write!(f, "; node {} {}", turn.node, turn.step)?;
        }
        if self.hold == Hold::Going { Ok(()) } else { write!(f, "; {}", self.hold) }
    }
}

/// One line for the log and the history.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = &self.by;
        match &self.ask {
            Ask::Init { .. } => write!(f, "{by} gives the set its first configuration"),
            Ask::Report { node, report } => {
                let slot = if report.blessed { "blessed" } else { "not blessed yet" };
                write!(f, "node {node} runs {} ({slot}), configuration {}", report.running, report.config)
            }
            Ask::Remove { node } => write!(f, "{by} removes node {node} from the set"),
            Ask::AddBundle { release, .. } => write!(f, "{by} adds the bundle of {release}"),
            Ask::Hold { release, node, held: true } => write!(f, "node {node} holds the bundle of {release}"),
            Ask::Hold { release, node, held: false } => {
                write!(f, "node {node} holds the bundle of {release} no longer")
            }
            Ask::RemoveBundle { release } => write!(f, "{by} removes the bundle of {release}"),
            Ask::Unban { release } => write!(f, "{by} lifts the ban of {release}"),
            Ask::Start { goal, .. } => write!(f, "{by} starts: {goal}"),
            Ask::Pause { why: Pause::Operator, .. } => write!(f, "{by} pauses it"),
            Ask::Pause { why, .. } => write!(f, "{by} pauses it {why}"),
            Ask::Resume { .. } => write!(f, "{by} resumes it"),
            Ask::Abort { reason, .. } => write!(f, "{by} takes it back: {reason}"),
            Ask::Confirm { .. } => write!(f, "{by} confirms it"),
            Ask::Halt { node, reason, .. } => write!(f, "{by} halts it: node {node}: {reason}"),
            Ask::Staged { node, .. } => write!(f, "node {node} has fetched and checked it"),
            Ask::Offer { node, .. } => write!(f, "{by} gives node {node} its turn"),
            Ask::Withdraw { node, reason, .. } => write!(f, "{by} takes the turn from node {node}: {reason}"),
            Ask::Step { node, to, .. } => write!(f, "node {node} {to}"),
            Ask::GiveBack { node, reason, .. } => write!(f, "node {node} goes on serving as before: {reason}"),
            Ask::Failed { node, reason, .. } => write!(f, "node {node} went back by itself: {reason}"),
            Ask::Settled { node, .. } => write!(f, "node {node} serves"),
            Ask::Acquire { lease, node, .. } => write!(f, "node {node} asks for the lease of {lease}"),
            Ask::Renew { lease, node, .. } => write!(f, "node {node} renews the lease of {lease}"),
            Ask::Release { lease, node, .. } => write!(f, "node {node} gives the lease of {lease} back"),
            Ask::Unknown => write!(f, "{by} asks something of a later version"),
        }
    }
}
