//! The replicated state of a set: what must never be wrong, decided slowly and surely (through Raft).
//!
//! [`State::apply`] is pure and has no clock: the same requests in the same order give the same state on every node. Every request
//! is idempotent by its nature: it names the state that it starts from (a rollout's number, a document's version, a lease's epoch),
//! and one that was carried out already is answered with [`Reply::Already`]. So whoever got no answer asks again, and no table of
//! clients is needed.
//!
//! Everything here is JSON on disk and on the wire. Unknown fields are skipped, missing ones have defaults. A kind of request that
//! the oldest node does not know must not be proposed: see [`State::level`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub mod holder;
mod lease;
mod nodes;
mod record;
mod refusal;
mod request;
mod rollout;
mod turn;
mod version;
mod words;

#[cfg(test)]
mod tests;

pub use crate::slots::{NotAVersion, Version};
pub use record::{
    Ban, Bundle, Config, Document, Fallback, Hold, Kind, Lease, Node, Note, Options, Outcome, Part, Past, Pause, Phase,
    Rollout, Step, Turn, Window,
};
pub use refusal::Refusal;
pub use request::{Ask, Goal, Reply, Request};
pub use version::Release;

/// Version of the state's format. Raised only when an older supervisor must not read it.
pub const FORMAT: u32 = 1;
/// The kinds of requests that this code understands; raised with every new kind.
pub const LEVEL: u32 = 1;
/// Nodes that the table holds, those of a set and a few that were not removed yet.
pub const MAX_NODES: usize = 16;
/// Bundles in the catalogue: more would not fit on a node's disk.
pub const MAX_BUNDLES: usize = 16;
/// Banned releases; the oldest versions are forgotten first.
pub const MAX_BANS: usize = 64;
/// Rollouts of the past that are kept.
pub const MAX_HISTORY: usize = 16;
/// Notes of one rollout; after that the one before the last is overwritten.
pub const MAX_NOTES: usize = 96;
/// Services in a node's table, and singletons.
pub const MAX_SERVICES: usize = 64;
/// Bytes of a name, token or hash.
pub const MAX_NAME: usize = 128;
/// Bytes of a reason or summary; longer ones are cut.
pub const MAX_TEXT: usize = 512;
/// Bytes of a document.
pub const MAX_DOCUMENT: usize = crate::config::MAX_DOCUMENT;

/// What the set has agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// [`FORMAT`] of whoever made it.
    pub format: u32,
    /// The configuration.
    pub config: Config,
    /// The nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// The bundles.
    pub bundles: BTreeMap<Release, Bundle>,
    /// What must not be installed.
    pub bans: BTreeMap<Release, Ban>,
    /// The oldest system that may be installed.
    pub floor: Version,
    /// The oldest version of each service that may be installed.
    pub floors: BTreeMap<String, Version>,
    /// How many rollouts were ever started.
    pub rollouts: u64,
    /// The one in progress.
    pub rollout: Option<Rollout>,
    /// Those that have ended, oldest first.
    pub history: Vec<Past>,
    /// Singletons' leases by name.
    pub leases: BTreeMap<String, Lease>,
}

impl Default for State {
    fn default() -> State {
        State {
            format: FORMAT,
            config: Config::default(),
            nodes: BTreeMap::new(),
            bundles: BTreeMap::new(),
            bans: BTreeMap::new(),
            floor: Version::default(),
            floors: BTreeMap::new(),
            rollouts: 0,
            rollout: None,
            history: Vec::new(),
            leases: BTreeMap::new(),
        }
    }
}

impl State {
    /// The state of a set whose first document is this one.
    pub fn with_document(text: &str) -> State {
        let good = Document { version: 1, text: text.to_owned() };
        State { config: Config { good, last: 1, ..Config::default() }, ..State::default() }
    }

    /// Carries out a request. The state is unchanged when it is refused.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn apply(&mut self, request: &Request) -> Result<Reply, Refusal> {
        match &request.ask {
            Ask::Init { text } => self.init(text),
            Ask::Report { node, report } => self.report(request, node, report),
            Ask::Remove { node } => self.remove(request, node),
            Ask::AddBundle { release, bundle } => self.add_bundle(release, bundle),
            Ask::Hold { release, node, held } => self.hold(release, node, *held),
            Ask::RemoveBundle { release } => self.remove_bundle(release),
            Ask::Unban { release } => Ok(done_if(self.bans.remove(release).is_some())),
            Ask::Start { token, goal, options } => self.start(request, token, goal, options),
            Ask::Acquire { lease, node, epoch, renewal, session } => {
                self.acquire(lease, node, (*epoch, *renewal), *session)
            }
            Ask::Renew { lease, node, epoch, renewal } => self.renew(lease, node, *epoch, *renewal),
            Ask::Release { lease, node, epoch } => self.release(lease, node, *epoch),
            Ask::Unknown => Err(Refusal::Unknown),
            Ask::Pause { .. }
            | Ask::Resume { .. }
            | Ask::Abort { .. }
            | Ask::Confirm { .. }
            | Ask::Halt { .. }
            | Ask::Staged { .. }
            | Ask::Offer { .. }
            | Ask::Withdraw { .. }
            | Ask::Step { .. }
            | Ask::GiveBack { .. }
            | Ask::Failed { .. }
            | Ask::Settled { .. } => self.advance(request),
        }
    }

    /// The kinds of requests that every node understands: only those may be proposed.
    pub fn level(&self) -> u32 {
        self.nodes.values().map(|node| node.level).min().unwrap_or(LEVEL).min(LEVEL)
    }

    /// The document that this node should have in force: the one on trial where a rollout has brought it, else the good one.
    pub fn document_for(&self, node: &str) -> &Document {
        match &self.config.trial {
            Some(trial) if self.rollout.as_ref().is_some_and(|rollout| rollout.wants_new(node)) => trial,
            _ => &self.config.good,
        }
    }

    /// The oldest version of what is released there that may be installed.
    pub fn floor_of(&self, release: &Release) -> Version {
        let of_service = |name| self.floors.get(name).copied().unwrap_or_default();
        release.service.as_ref().map_or(self.floor, of_service)
    }

    /// Between rollouts: a node that runs another system than the last one that came to all nodes, and what to do.
    pub fn stray(&self) -> Option<String> {
        // One that was taken back has left what was.
        let system =
            |past: &&Past| matches!(past.kind, Kind::System { .. }) && !matches!(past.outcome, Outcome::Back { .. });
        // After one that halted nobody knows which version is the set's.
        let done = |past: &&Past| past.outcome == Outcome::Done && self.rollout.is_none();
        let last = self.history.iter().rev().find(system).filter(done)?;
        let Kind::System { version } = last.kind else { return None };
        let (name, node) = self.nodes.iter().find(|(_, node)| node.running != version)?;
        let running = node.running;
        Some(format!(
            "node {name} runs {running}, not {version} like the set: bring it there with: trilith upgrade start {version}"
        ))
    }

    fn init(&mut self, text: &str) -> Result<Reply, Refusal> {
        if self.config.last > 0 {
            return if self.config.good.text == text { Ok(Reply::Already) } else { Err(Refusal::HasDocument) };
        }
        limit("document", text.len(), MAX_DOCUMENT)?;
        self.config = State::with_document(text).config;
        Ok(Reply::Done)
    }
}

fn done_if(changed: bool) -> Reply {
    if changed { Reply::Done } else { Reply::Already }
}

fn limit(what: &'static str, size: usize, most: usize) -> Result<(), Refusal> {
    if size > most { Err(Refusal::TooLarge { what: what.to_owned(), size, most }) } else { Ok(()) }
}

fn name(what: &'static str, name: &str) -> Result<(), Refusal> {
    if name.is_empty() {
        return Err(Refusal::Empty { what: what.to_owned() });
    }
    limit(what, name.len(), MAX_NAME)
}

/// At most [`MAX_TEXT`] bytes of it, whole characters.
fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
