//! Acts in words, for the log.

use std::fmt;

use super::{Act, Target};
use crate::set::Request;

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::System(version) => write!(f, "system {version}"),
            Target::Config(version) => write!(f, "configuration {version}"),
            Target::Service(name, Some(version)) => write!(f, "service {name} {version}"),
            Target::Service(name, None) => write!(f, "service {name} as the system has it"),
        }
    }
}

/// One line with the reason, where an act has one of its own; the reason of the others is where the rollout stands.
impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Propose(ask) => write!(f, "asks the set: {}", Request::new("it", None, ask.clone())),
            Act::Fetch(release) => write!(f, "fetches the bundle of {release} from its peers"),
            Act::Stage(release) => write!(f, "has {release} written and checked"),
            Act::Discard(release) => write!(f, "deletes the bundle of {release}, which the set has forgotten"),
            Act::HandOver => write!(f, "hands its VIPs over, because it is its turn"),
            Act::Drain { deadline_s: None } => write!(f, "drains, because it is its turn"),
            Act::Drain { deadline_s: Some(s) } => write!(f, "drains within {s} s, because it is its turn"),
            Act::Undrain => write!(f, "takes work again"),
            Act::Forget => write!(f, "forgets why it went back: it is tried again"),
            Act::Switch { to, trial: true } => write!(f, "switches to {to}, on trial"),
            Act::Switch { to, trial: false } => write!(f, "switches to {to}"),
            Act::Bless => write!(f, "blesses what it runs: a majority has seen it serve"),
            Act::Revert { reason } => write!(f, "goes back by itself: {reason}"),
        }
    }
}
