//! A node's own clock: an origin of its own, a rate that is a little wrong, and pauses.

use trilith_core::time::Time;

/// Maps true time (microseconds since the start of the run) to a node's monotonic clock and back.
#[derive(Clone, Debug)]
pub struct Clock {
    base_true: u64,
    base_local: u64,
    ppm: i64,
    stopped: bool,
}

impl Clock {
    /// A clock that shows `origin` at true time `now` and gains `ppm` microseconds in each second.
    pub fn new(now: u64, origin: u64, ppm: i64) -> Clock {
        Clock { base_true: now, base_local: origin, ppm, stopped: false }
    }

    /// What it shows at true time `now`.
    pub fn read(&self, now: u64) -> Time {
        if self.stopped {
            return Time(self.base_local);
        }
        let span = now.saturating_sub(self.base_true) as i64;
        Time(self.base_local + (span + span * self.ppm / 1_000_000) as u64)
    }

    /// The first true time at which it shows at least `local`; never, while it stands still.
    pub fn when(&self, local: Time) -> u64 {
        if self.stopped {
            return u64::MAX;
        }
        let span = local.0.saturating_sub(self.base_local).min(FOR_EVER) as i64;
        let local = Time(self.base_local + span as u64);
        let mut at = self.base_true + (span * 1_000_000 / (1_000_000 + self.ppm)) as u64;
        // The division above rounds; walk the last microsecond.
        while at > self.base_true && self.read(at - 1) >= local {
            at -= 1;
        }
        while self.read(at) < local {
            at += 1;
        }
        at
    }

    /// Stands still from true time `now`.
    pub fn stop(&mut self, now: u64) {
        self.base_local = self.read(now).0;
        self.base_true = now;
        self.stopped = true;
    }

    /// Whether it stands still.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Goes on at true time `now`, as if the pause had not been.
    pub fn go_on(&mut self, now: u64) {
        self.base_true = now;
        self.stopped = false;
    }
}

/// Longer than any run, short enough to be multiplied: about twelve days.
const FOR_EVER: u64 = 1 << 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_is_the_first_moment_that_shows_the_time() {
        for ppm in [-2000, -1, 0, 3, 2000] {
            let clock = Clock::new(500, 1_000_000, ppm);
            for local in [1_000_001, 1_000_499, 1_025_000, 3_000_000] {
                let at = clock.when(Time(local));
                assert!(clock.read(at) >= Time(local));
                assert!(clock.read(at - 1) < Time(local));
            }
        }
    }

    #[test]
    fn a_stopped_clock_goes_on_where_it_stood() {
        let mut clock = Clock::new(0, 100, 0);
        clock.stop(50);
        assert_eq!(clock.read(1000), Time(150));
        clock.go_on(1000);
        assert_eq!(clock.read(1010), Time(160));
    }
}
