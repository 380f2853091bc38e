//! Since when something holds, and when to look again.

use std::time::Duration;

use crate::time::Time;

/// Since when the same thing holds.
#[derive(Clone, Debug)]
pub(super) struct Since<T>(Option<(T, Time)>);

impl<T> Default for Since<T> {
    fn default() -> Since<T> {
        Since(None)
    }
}

impl<T: PartialEq> Since<T> {
    /// This holds now, `None` for nothing.
    pub(super) fn hold(&mut self, now: Time, thing: Option<T>) {
        match (&self.0, thing) {
            (Some((before, _)), Some(thing)) if *before == thing => {}
            (_, thing) => self.0 = thing.map(|thing| (thing, now)),
        }
    }

    /// Since when.
    pub(super) fn since(&self) -> Option<Time> {
        self.0.as_ref().map(|(_, since)| *since)
    }
}

/// The earliest of the times that were waited for in one step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Alarm {
    now: Time,
    at: Option<Time>,
}

impl Alarm {
    pub(super) fn new(now: Time) -> Alarm {
        Alarm { now, at: None }
    }

    /// The time of this step.
    pub(super) fn now(self) -> Time {
        self.now
    }

    pub(super) fn at(self) -> Option<Time> {
        self.at
    }

    /// Rings then, if not before.
    pub(super) fn ring(&mut self, at: Time) {
        self.at = Some(self.at.map_or(at, |before| before.min(at)));
    }

    /// Whether so much time has passed; if not, it rings when it will have.
    pub(super) fn passed(&mut self, since: Option<Time>, span: Duration) -> bool {
        let Some(due) = since.map(|since| since + span) else { return false };
        if self.now < due {
            self.ring(due);
        }
        self.now >= due
    }
}
