//! Runs a singleton on at most one node (invariant 6), by its lease in the replicated state.
//!
//! ```text
//!   holder   asks ──── TERM ────▶ must be stopping ── STOP ──▶ must be stopped
//!   others        sees it ─────────── TERM + STOP + MARGIN ───────────▶ may ask for it
//! ```
//!
//! The holder counts from the moment at which it *first asked* for what was then granted, everyone else from the moment at which
//! they *saw* it granted, which is later. No clock is compared with another one; only their rates must agree, within [`MARGIN`].

use std::time::Duration;

use super::{Ask, State};
use crate::plant::{Bug, Planted};
use crate::time::Time;

/// How long a lease or renewal lasts for its holder.
pub const TERM: Duration = Duration::from_secs(12);
/// Between two renewals.
pub const RENEW: Duration = Duration::from_secs(4);
/// How long the unit may take to stop before it is killed: its `TimeoutStopSec` is shorter, and the machine's watchdog stands behind.
pub const STOP: Duration = Duration::from_secs(10);
/// For clocks that run at different rates, one in a hundred, and for the watchdog's own delay.
pub const MARGIN: Duration = Duration::from_secs(2);
/// An unanswered request is repeated after so long.
pub const REPEAT: Duration = Duration::from_secs(2);

/// One node's view of one singleton.
#[derive(Clone, Debug)]
pub struct Holder {
    me: String,
    lease: String,
    session: u64,
    planted: Planted,
    /// A request under way: what was asked, when first, when last.
    asked: Option<(Ask, Time, Time)>,
    /// The epoch that is held, and until when for sure.
    held: Option<(u64, Time)>,
    /// The last renewal, and when it was asked for.
    renewed: Time,
    /// Somebody else's lease: epoch, renewal, and since when that stands still.
    watched: Option<(u64, u64, Time)>,
    wake: Option<Time>,
}

/// What to do with the unit, and what to ask of the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Ask this of the replicated state.
    Propose(Ask),
    /// Have the unit running.
    Run,
    /// Have the unit stopped, within [`STOP`].
    Stop,
}

impl Holder {
    /// For a singleton. `session` is a random number of this life of the supervisor. The unit is stopped at first.
    pub fn new(me: &str, lease: &str, session: u64, planted: Planted) -> Holder {
        let (me, lease) = (me.to_owned(), lease.to_owned());
        Holder { me, lease, session, planted, asked: None, held: None, renewed: Time::ZERO, watched: None, wake: None }
    }

    /// What to do now. `willing`: this node may run it (it is fit, and not about to leave service). `stopped`: the unit is known
    /// not to run.
    pub fn step(&mut self, now: Time, state: &State, willing: bool, stopped: bool) -> Vec<Deed> {
        self.wake = None;
        let lease = state.leases.get(&self.lease).cloned().unwrap_or_default();
        let mine = lease.holder.as_ref() == Some(&self.me) && lease.session == self.session;
        self.learn(now, mine, lease.epoch, lease.renewal);
        let free = self.held.is_none() && self.may_ask(now, lease.holder.is_none());
        let ask = match self.held {
            Some((epoch, until)) if now < until && willing => {
                self.wake(until);
                let due = self.renewed + RENEW;
                if now < due {
                    self.wake(due);
                    None
                } else {
                    let renewal = lease.renewal.saturating_add(1);
                    Some(Ask::Renew { lease: self.lease.clone(), node: self.me.clone(), epoch, renewal })
                }
            }
            Some((epoch, until)) => {
                // Given back only once the unit has stopped; where that is not known the others wait for the whole term.
                if stopped {
                    self.held = None;
                }
                let give = stopped && now < until;
                give.then(|| Ask::Release { lease: self.lease.clone(), node: self.me.clone(), epoch })
            }
            None if mine => Some(Ask::Release { lease: self.lease.clone(), node: self.me.clone(), epoch: lease.epoch })
                .filter(|_| stopped),
            None if willing && free => Some(Ask::Acquire {
                lease: self.lease.clone(),
                node: self.me.clone(),
                epoch: lease.epoch,
                renewal: lease.renewal,
                session: self.session,
            }),
            None => None,
        };
        let mut deeds: Vec<Deed> = self.repeat(now, ask).map(Deed::Propose).into_iter().collect();
        let run = willing && self.held.is_some_and(|(_, until)| now < until);
        deeds.push(if run { Deed::Run } else { Deed::Stop });
        deeds
    }

    /// When [`Holder::step`] wants to be called again at the latest.
    pub fn deadline(&self) -> Option<Time> {
        self.wake
    }

    /// The epoch in which the unit may run now.
    pub fn epoch(&self, now: Time) -> Option<u64> {
        self.held.filter(|(_, until)| now < *until).map(|(epoch, _)| epoch)
    }

    /// Takes in what the state says of the lease.
    fn learn(&mut self, now: Time, mine: bool, epoch: u64, renewal: u64) {
        if mine {
            self.watched = None;
            let asked = self.asked.as_ref().and_then(|(ask, first, _)| match ask {
                Ask::Acquire { epoch: before, .. } if before + 1 == epoch => Some(*first),
                Ask::Renew { epoch: of, renewal: number, .. } if *of == epoch && *number == renewal => Some(*first),
                _ => None,
            });
            if let Some(first) = asked {
                let from = if self.planted.has(Bug::SingletonFromGrant) { now } else { first };
                self.held = Some((epoch, from + TERM));
                self.renewed = first;
                self.asked = None;
            }
            return;
        }
        self.held = None;
        if !matches!(self.watched, Some((e, r, _)) if (e, r) == (epoch, renewal)) {
            self.watched = Some((epoch, renewal, now));
        }
    }

    fn may_ask(&mut self, now: Time, free: bool) -> bool {
        let wait = if self.planted.has(Bug::SingletonEarly) { TERM / 2 } else { TERM + STOP + MARGIN };
        let due = self.watched.map(|(_, _, since)| since + wait);
        if !free && due.is_some_and(|due| now < due) {
            self.wake = due;
        }
        free || due.is_some_and(|due| now >= due)
    }

    /// A request is repeated until it is answered by the state; another one takes its place.
    fn repeat(&mut self, now: Time, ask: Option<Ask>) -> Option<Ask> {
        let ask = ask?;
        let first = match &self.asked {
            Some((before, first, last)) if *before == ask => {
                let due = *last + REPEAT;
                if now < due {
                    self.wake(due);
                    return None;
                }
                *first
            }
            _ => now,
        };
        self.asked = Some((ask.clone(), first, now));
        self.wake(now + REPEAT);
        Some(ask)
    }

    fn wake(&mut self, at: Time) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}
