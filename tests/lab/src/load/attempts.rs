//! What became of each attempt to connect, and what follows from all of them: counts, latencies and the gap.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use super::http::Nodes;
use super::{Failure, Quantiles, Window, ms, us};

/// One attempt that has ended.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Attempt {
    /// When it started.
    pub started_ns: u64,
    /// From the start until connected, in microseconds, if it came so far.
    pub connect_us: Option<u32>,
    /// From the start until its end, good or bad, in microseconds.
    pub took_us: u32,
    /// `None` if it was good.
    pub failure: Option<Failure>,
    /// Which node served it, as an index into the report's order of first appearance.
    #[serde(skip)]
    pub(super) node: Option<u8>,
}

/// What happened to the attempts that started within a window.
#[derive(Debug, Clone, Serialize)]
pub struct SteadyReport {
    /// Where they went.
    pub target: SocketAddr,
    /// Attempts that have ended.
    pub attempts: u64,
    /// Good ones.
    pub ok: u64,
    /// Refused while connecting.
    pub refused: u64,
    /// Reset after connecting.
    pub reset: u64,
    /// Not complete in time.
    pub timeouts: u64,
    /// All other failures.
    pub other: u64,
    /// Every kind of failure by name.
    pub failures: BTreeMap<String, u64>,
    /// From start to complete, over good attempts.
    pub latency_ms: Quantiles,
    /// From start to connected, over all that connected.
    pub connect_ms: Quantiles,
    /// The longest interval between the starts of consecutive good attempts that were complete within `prompt`,
    /// in milliseconds. Intervals that reach into the window count in full.
    pub longest_gap_ms: f64,
    /// The same for attempts that connected within `prompt`, whatever came afterwards.
    pub longest_connect_gap_ms: f64,
    /// Good attempts by the node that served them.
    pub nodes: BTreeMap<String, u64>,
    /// How late our own thread was at worst, in milliseconds, since the start.
    pub lag_ms_max: f64,
    /// Processor time of our own thread, in milliseconds; known at the end.
    pub cpu_ms: Option<f64>,
}

/// All attempts that have ended.
#[derive(Default)]
pub(super) struct Record {
    attempts: VecDeque<Attempt>,
    pub ended: u64,
    pub ok: u64,
    pub latest_ok_ns: u64,
    pub latest_node: Option<u8>,
    pub nodes: Nodes,
    pub lag_ns: u64,
}

impl Record {
    pub fn ended(&mut self, attempt: Attempt) {
        if self.attempts.len() == MAX_ATTEMPTS {
            self.attempts.pop_front();
        }
        self.attempts.push_back(attempt);
        self.ended += 1;
        if attempt.failure.is_none() {
            self.ok += 1;
            if attempt.started_ns >= self.latest_ok_ns {
                self.latest_ok_ns = attempt.started_ns;
                self.latest_node = attempt.node;
            }
        }
    }

    pub fn in_order(&self) -> Vec<Attempt> {
        let mut attempts: Vec<Attempt> = self.attempts.iter().copied().collect();
        attempts.sort_by_key(|attempt| attempt.started_ns);
        attempts
    }

    pub fn report(&self, target: SocketAddr, prompt: Duration, window: Window) -> SteadyReport {
        let all = self.in_order();
        let prompt_us = us(prompt.as_nanos() as u64);
        let longest_gap_ms = gap_ms(&all, window, |it| it.failure.is_none() && it.took_us <= prompt_us);
        let longest_connect_gap_ms =
            gap_ms(&all, window, |it| it.connect_us.is_some_and(|connect_us| connect_us <= prompt_us));
        let attempts: Vec<&Attempt> = all.iter().filter(|it| window.holds(it.started_ns)).collect();
        let count = |kind| attempts.iter().filter(|it| it.failure == Some(kind)).count() as u64;
        let (refused, reset, timeouts) = (count(Failure::Refused), count(Failure::Reset), count(Failure::Timeout));
        let good: Vec<&&Attempt> = attempts.iter().filter(|it| it.failure.is_none()).collect();
        let (ended, ok) = (attempts.len() as u64, good.len() as u64);
        let mut failures = BTreeMap::new();
        for failure in attempts.iter().filter_map(|it| it.failure) {
            *failures.entry(failure.to_string()).or_default() += 1;
        }
        let mut nodes = BTreeMap::new();
        for name in good.iter().filter_map(|it| self.nodes.name(it.node?)) {
            *nodes.entry(name.to_owned()).or_default() += 1;
        }
        SteadyReport {
            target,
            attempts: ended,
            ok,
            refused,
            reset,
            timeouts,
            other: ended - ok - refused - reset - timeouts,
            failures,
            latency_ms: Quantiles::of_us(good.iter().map(|it| it.took_us).collect()),
            connect_ms: Quantiles::of_us(attempts.iter().filter_map(|it| it.connect_us).collect()),
            longest_gap_ms,
            longest_connect_gap_ms,
            nodes,
            lag_ms_max: ms(self.lag_ns),
            cpu_ms: None,
        }
    }
}

/// Over attempts in order of their start. The first attempt opens and the last one closes an interval, good or not,
/// so an outage that had begun before or has not ended yet is seen as well.
fn gap_ms(attempts: &[Attempt], window: Window, good: impl Fn(&Attempt) -> bool) -> f64 {
    let (Some(first), Some(last)) = (attempts.first(), attempts.last()) else { return 0.0 };
    let goods = attempts.iter().filter(|it| good(it)).chain([last]).map(|it| it.started_ns);
    let mut from_ns = first.started_ns;
    let mut longest_ns = 0;
    for to_ns in goods {
        if window.touches(from_ns, to_ns) {
            longest_ns = longest_ns.max(to_ns - from_ns);
        }
        from_ns = to_ns;
    }
    ms(longest_ns)
}

const MAX_ATTEMPTS: usize = 1_000_000;

#[cfg(test)]
mod tests {
    use super::super::NS_PER_MS;
    use super::*;

    fn attempt(start_ms: u64, took_ms: u32, failure: Option<Failure>) -> Attempt {
        let connect_us = failure.is_none().then_some(100);
        Attempt { started_ns: start_ms * NS_PER_MS, connect_us, took_us: took_ms * 1_000, failure, node: None }
    }

    #[test]
    fn a_gap_ends_with_the_next_prompt_success_and_not_with_a_late_one() {
        let mut record = Record::default();
        for (start_ms, took_ms, failure) in [
            (0, 1, None),
            (10, 1, None),
            (20, 990, Some(Failure::Timeout)),
            (30, 600, None),
            (40, 1, None),
            (50, 1, None),
        ] {
            record.ended(attempt(start_ms, took_ms, failure));
        }
        let report = |from_ms, to_ms| {
            let window = Window::new(from_ms * NS_PER_MS, to_ms * NS_PER_MS);
            record.report(([127, 0, 0, 1], 80).into(), Duration::from_millis(250), window)
        };
        assert_eq!(report(0, 50).longest_gap_ms, 30.0);
        assert_eq!(report(0, 50).longest_connect_gap_ms, 20.0);
        assert_eq!(report(25, 35).longest_gap_ms, 30.0, "a gap that reaches into the window counts in full");
        assert_eq!(report(45, 50).longest_gap_ms, 10.0);
        assert_eq!((report(0, 25).attempts, report(0, 25).timeouts), (3, 1));
    }

    #[test]
    fn an_outage_that_has_not_ended_is_a_gap_until_the_last_attempt() {
        let attempts: Vec<Attempt> = (0..10).map(|i| attempt(i * 10, 1, (i > 3).then_some(Failure::Refused))).collect();
        assert_eq!(gap_ms(&attempts, Window::ALL, |it| it.failure.is_none()), 60.0);
        assert_eq!(gap_ms(&attempts, Window::ALL, |_| false), 90.0);
    }
}
