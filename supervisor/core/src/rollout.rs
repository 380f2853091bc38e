//! Who does what next in a rollout: one node at a time, and at no moment fewer than two nodes fit because of it.
//!
//! ```text
//!  replicated (set::Rollout)             Staging ──▶ Rolling ──▶ (Confirming) ──▶ done
//!                                                     │    ▲
//!  the turn of one node      Offered ─▶ Draining ─▶ Acting ─▶ Verifying ─▶ Settling
//!  what the node does                   hand over   switch,    peers see    they still do:
//!                                       drain       restart    it serve     bless
//! ```
//!
//! Every node runs one [`Agent`]. The one that leads Raft coordinates: it offers turns and watches over them. Everything else each
//! node does by itself, because the replicated state says that it is its turn. An agent remembers nothing that matters: each step
//! begins with what is seen ([`Sight`]), and what should be done is said again and again ([`Act`], every [`REPEAT`]) until it is
//! seen to be so. So any node may die at any point, the coordinator too, and whoever comes next goes on from the same record.
//!
//! What is new runs *on trial* until a majority has seen the node serve with it for [`SETTLE`] (a document or service for
//! [`RESTART_SETTLE`]). Without that within [`TRIAL`] ([`RESTART_TRIAL`]) the node goes back by itself, by its own clock, also when it hears nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::plant::Planted;
use crate::set::{Ask, Hold, Node, Phase, Release, Rollout, State, Step, Turn, Version};
use crate::time::Time;

mod clock;
mod lead;
mod plan;
mod reach;
mod trial;
mod turn;
mod words;

#[cfg(test)]
mod tests;

use clock::{Alarm, Since};
pub use plan::{Plan, plan, waits};

/// What is wanted and not yet seen to be so is said again after so long.
pub const REPEAT: Duration = Duration::from_secs(2);
/// A job that failed is tried again after so long.
pub const RETRY: Duration = Duration::from_secs(10);
/// Tries of a job before the rollout halts.
pub const TRIES: u32 = 3;
/// A node must be seen serving for so long, without a break, before what it runs counts as good.
pub const SETTLE: Duration = Duration::from_secs(15);
/// The same for a document or a service: only a process starts anew, so what is wrong with it shows sooner.
pub const RESTART_SETTLE: Duration = Duration::from_secs(5);
/// A bundle that is on the disk and not in the catalogue is deleted after so long: one that has just come in is not there yet.
pub const ORPHAN: Duration = Duration::from_secs(60);
/// What runs on trial has so long from its start to be seen serving.
pub const TRIAL: Duration = Duration::from_secs(300);
/// The same for a document or a service.
pub const RESTART_TRIAL: Duration = Duration::from_secs(60);
/// Another node that does not serve for so long, while one is out of service, pauses the rollout. Until then the node whose turn it
/// is only refrains from leaving service.
pub const FLICKER: Duration = Duration::from_secs(5);
/// A node that is unfit for so long after it got a new document or service has it taken back everywhere.
pub const UNFIT: Duration = Duration::from_secs(30);
/// A node that does not take its turn for so long halts the rollout.
pub const OFFER: Duration = Duration::from_secs(60);
/// A node that is at the same step of its turn for so long halts the rollout: three boots of a slow machine, and a trial.
pub const LOST: Duration = Duration::from_secs(900);
/// A drain that has no deadline of its own may take so long, the most that a service may ask for.
pub const DRAIN: Duration = Duration::from_secs(3600);
/// A drain that is not over so long after its deadline is stuck: perhaps nobody takes the VIP.
pub const STUCK: Duration = Duration::from_secs(60);
/// A node whose document is not the one that it should have waits so long before it helps itself.
pub const DRIFT: Duration = Duration::from_secs(60);

/// Everything that an agent sees when it takes a step.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// The replicated state, as far as this node has applied it.
    pub state: &'a State,
    /// This node leads Raft: it coordinates.
    pub leads: bool,
    /// A majority is in touch through Raft: the state is fresh, requests can be carried out.
    pub quorum: bool,
    /// Seconds of UTC since 1970, once the clock is known to be right.
    pub utc: Option<u64>,
    /// All nodes of the set by name, this one too.
    pub nodes: &'a BTreeMap<String, Seen>,
    /// This node from within.
    pub own: &'a Own,
}

/// A node from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// It is heard; true for this node itself.
    pub heard: bool,
    /// Why it is not fit, other than that it is drained.
    pub unfit: Option<String>,
    /// It is drained, or draining.
    pub drained: bool,
    /// How many VIPs it owns.
    pub vips: usize,
}

/// This node from within.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// What it says of itself to the set. `other`: the version in the other slot, if that is complete.
    pub node: Node,
    /// Since when something runs on trial: an unblessed slot (not one that was only retired: that has served before) or a document,
    /// since this node's coordinator has started with it. It ends with [`Act::Bless`] or [`Act::Revert`].
    pub trial: Option<Time>,
    /// What did not work here: it went back from it by [`Act::Revert`] or by the boot loader, or could not even switch to it. Kept
    /// on disk until [`Act::Forget`], or until the same is staged again. It is written before a revert begins, so that one that
    /// is cut off goes on.
    pub failed: Option<Failure>,
    /// What [`Act::Drain`] has come to.
    pub drain: Drain,
    /// The bundles whose parts are all on its disk, verified.
    pub bundles: BTreeSet<Release>,
    /// What [`Act::Fetch`] or [`Act::Stage`] has come to.
    pub job: Job,
    /// The peers that say they see this node serve with what it runs now.
    pub seen_by: BTreeSet<String>,
    /// Why it would serve badly, by what its own HAProxy finds: a service that does not answer here, but did before its turn. A drain is
    /// no such reason.
    pub ails: Option<String>,
}

/// Something that a node was to run, and why it does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What.
    pub what: Target,
    /// Why: one line.
    pub reason: String,
}

/// How far a drain for a rollout is. An operator's own drain is another matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drain {
    /// None is in force.
    #[default]
    No,
    /// Connections are ending.
    Going,
    /// All have ended, or were closed politely at the deadline.
    Done,
}

/// How far fetching or staging is; one at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Job {
    /// Nothing to do, or done.
    #[default]
    Idle,
    /// Under way.
    Running,
    /// The last one failed: one line that names its operands.
    Failed(String),
}

/// One deed for the shell. Each is idempotent, and is said again every [`REPEAT`] while it is wanted and not seen to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Ask this of the replicated state, in this node's name.
    Propose(Ask),
    /// Get all parts of a bundle from peers, each verified while it is written.
    Fetch(Release),
    /// Have it ready: a system written to the other slot, read back and checked, but not switched to; a service's image checked.
    /// Success clears [`Own::failed`].
    Stage(Release),
    /// Delete this node's copy of a bundle that the set has forgotten.
    Discard(Release),
    /// Hand all VIPs over to others.
    HandOver,
    /// Take no new work and let connections end, by the services' deadlines or by this one in seconds.
    Drain {
        /// From the start of the drain.
        deadline_s: Option<u32>,
    },
    /// Take work again.
    Undrain,
    /// Forget why this node went back: it is tried again.
    Forget,
    /// Run this from now on, with the restart that it takes. `trial`: until it is blessed it can be reverted, also by the boot
    /// loader and by whoever starts the supervisor again and again.
    Switch {
        /// What.
        to: Target,
        /// On trial.
        trial: bool,
    },
    /// What runs on trial is good.
    Bless,
    /// What runs on trial is bad: never start it again, and return to what was before, with the restart that it takes.
    Revert {
        /// Why, to be kept.
        reason: String,
    },
}

/// What a node is to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// A system, from the other slot; the machine reboots.
    System(Version),
    /// The document of this version, which the state holds; the supervisor restarts.
    Config(u64),
    /// A service's version, `None` for the one in the system; the service restarts.
    Service(String, Option<Version>),
}

/// One node's part in all rollouts.
#[derive(Clone, Debug)]
pub struct Agent {
    me: String,
    planted: Planted,
    /// What was said, and when last.
    said: Vec<(Act, Time)>,
    alarm: Alarm,
    /// Since when the rollout stands where it stands.
    stands: Since<Place>,
    /// Since when another node does not serve although it should.
    alone: Since<()>,
    /// Since when this node serves badly.
    ails: Since<()>,
    /// Since when this node is seen serving.
    seen: Since<()>,
    /// Since when a node is unfit that got a new document or service.
    sick: Since<String>,
    /// Since when this node drains.
    draining: Since<()>,
    /// Since when this node does not run what it should.
    astray: Since<()>,
    /// Since when these bundles are on this node's disk and not in the catalogue.
    orphans: Since<BTreeSet<Release>>,
    /// The job that is being tried, for which rollout; how often, and when next.
    job: Option<(u64, Act)>,
    tries: u32,
    next_try: Time,
    /// The switch that was ordered, and whether on trial: nothing can be taken back before the restart.
    switched: Option<(Target, bool)>,
}

/// Where a rollout stands, as far as time is counted from it.
type Place = (u64, Phase, Option<Turn>, bool);

impl Agent {
    /// An agent of a supervisor that has just started.
    pub fn new(me: &str, planted: Planted) -> Agent {
        Agent {
            me: me.to_owned(),
            planted,
            said: Vec::new(),
            alarm: Alarm::default(),
            stands: Since::default(),
            alone: Since::default(),
            ails: Since::default(),
            seen: Since::default(),
            sick: Since::default(),
            draining: Since::default(),
            astray: Since::default(),
            orphans: Since::default(),
            job: None,
            tries: 0,
            next_try: Time::ZERO,
            switched: None,
        }
    }

    /// What to do now. To be called whenever something in the sight has changed, and at [`Agent::deadline`].
    pub fn step(&mut self, now: Time, sight: &Sight) -> Vec<Act> {
        self.alarm = Alarm::new(now);
        let mut wants = Vec::new();
        self.report(now, sight, &mut wants);
        self.seen.hold(now, self.is_seen(sight).then_some(()));
        match &sight.state.rollout {
            Some(rollout) => {
                self.watch(now, sight, rollout);
                self.stage(now, sight, rollout, &mut wants);
                self.turn(sight, rollout, &mut wants);
                if sight.leads && sight.quorum {
                    self.lead(sight, rollout, &mut wants);
                }
            }
            None => {
                self.stands.hold(now, None);
                self.job = None;
                if sight.own.drain != Drain::No {
                    wants.push(Act::Undrain);
                }
            }
        }
        self.trial(sight, &mut wants);
        self.drift(now, sight, &mut wants);
        self.pace(now, wants)
    }

    /// When [`Agent::step`] wants to be called again at the latest, if nothing changes.
    pub fn deadline(&self) -> Option<Time> {
        self.alarm.at()
    }

    /// Keeps the clocks that count from where the rollout stands.
    fn watch(&mut self, now: Time, sight: &Sight, rollout: &Rollout) {
        let going = rollout.hold == Hold::Going;
        self.stands.hold(now, Some((rollout.id, rollout.phase, rollout.turn.clone(), going)));
        let out = rollout.turn.as_ref().filter(|turn| turn.step > Step::Offered);
        let alone = out.is_some_and(|turn| self.missed(sight, rollout, &turn.node).is_some());
        self.alone.hold(now, alone.then_some(()));
        self.ails.hold(now, sight.own.ails.as_ref().map(drop));
        self.sick.hold(now, self.sick(sight, rollout).map(|(name, _)| name.to_owned()));
    }

    /// Drops what was said a moment ago.
    fn pace(&mut self, now: Time, wants: Vec<Act>) -> Vec<Act> {
        self.said.retain(|(act, at)| wants.contains(act) && now < *at + REPEAT);
        let fresh: Vec<Act> = wants.into_iter().filter(|act| !self.said.iter().any(|(said, _)| said == act)).collect();
        self.said.extend(fresh.iter().map(|act| (act.clone(), now)));
        if let Some(next) = self.said.iter().map(|(_, at)| *at + REPEAT).min() {
            self.alarm.ring(next);
        }
        fresh
    }
}

impl Seen {
    /// Whether it does its part of the service.
    pub fn serves(&self) -> bool {
        self.heard && self.unfit.is_none() && !self.drained
    }

    /// Why it does not serve.
    pub fn why(&self) -> String {
        match &self.unfit {
            _ if !self.heard => "is not heard".to_owned(),
            Some(reason) => format!("is unfit: {reason}"),
            None if self.drained => "is drained".to_owned(),
            None => "serves".to_owned(),
        }
    }
}
