//! The clients of the demo, and what they see.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::interrupt;
use crate::bench::flows::{Carrier, ECHO_PORT, Fate, Flows, HTTP_PORT, at_home};
use crate::bench::said::{REST_DEADLINE, at_rest};
use crate::lab::{Lab, NODES, VIP};
use crate::load::{ArpWatch, ArpWatchOptions, KeepAlive, KeepAliveOptions, Mac, Steady, SteadyOptions, Window, now_ns};

/// The laboratory and its clients.
pub struct Stage<'a> {
    lab: &'a Lab,
    steady: Steady,
    keep_alive: KeepAlive,
    arp: ArpWatch,
    flows: Mutex<Option<Flows>>,
    troubles: Mutex<BTreeMap<&'static str, Trouble>>,
}

/// What was done to a node and has not been ended yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    CutOff,
    Frozen,
    Off,
}

/// What the clients saw within a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen {
    /// The longest time without a good new connection.
    pub gap_ms: f64,
    /// New connections.
    pub new: u64,
    /// Those refused.
    pub refused: u64,
    /// Those that failed in any other way.
    pub failed: u64,
    /// Lasting connections that only nodes carry to which nothing was done.
    pub spared: usize,
    /// Those of them that broke.
    pub broken: usize,
    /// The longest wait of one of them for an echo; 0 below 10.
    pub stall_ms: f64,
    /// Lasting connections that the victim has a part in.
    pub exposed: usize,
    /// Those of them that broke.
    pub lost: usize,
    /// Keep-alive requests.
    pub requests: u64,
    /// Those that failed.
    pub requests_failed: u64,
}

/// How one node looks from outside.
pub struct NodeView {
    pub name: &'static str,
    pub trouble: Option<Trouble>,
    /// It answered the latest question for the VIP's MAC.
    pub owns: bool,
    /// Lasting connections that its HAProxy carries.
    pub connections: usize,
    /// Answers of its service in the last second.
    pub answers: u64,
}

/// One tenth of a second of the near past.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// New connections begun, about.
    pub begun: usize,
    /// Those of them that were answered promptly.
    pub good: usize,
    /// Who answered for the VIP at its end, one bit for each node.
    pub owners: u8,
}

impl<'a> Stage<'a> {
    /// Puts the clients on the VIP.
    pub fn set(lab: &'a Lab) -> Result<Stage<'a>> {
        let netns = || Some(lab.client.path());
        let http = SocketAddr::from((VIP, HTTP_PORT));
        at_home(lab, NODES[0])?;
        let steady = SteadyOptions {
            netns: netns(),
            rate: NEW_PER_S,
            timeout: PATIENCE,
            prompt: PROMPT,
            ..SteadyOptions::new(http)
        };
        let keep_alive = KeepAliveOptions { netns: netns(), connections: KEPT, ..KeepAliveOptions::new(http) };
        let arp = ArpWatchOptions { netns: netns(), ..ArpWatchOptions::new("eth0", VIP.into()) };
        Ok(Stage {
            lab,
            steady: Steady::start(steady)?,
            keep_alive: KeepAlive::start(keep_alive)?,
            arp: ArpWatch::start(arp)?,
            flows: Mutex::new(None),
            troubles: Mutex::new(BTreeMap::new()),
        })
    }

    pub fn lab(&self) -> &'a Lab {
        self.lab
    }

    /// Fresh lasting connections on all nodes; in the end `owner` has the VIPs.
    pub fn connect(&self, owner: &'static str) -> Result<()> {
        // A connection that broke in an act is no client any more; the next act has its own.
        let previous = lock(&self.flows).take();
        drop(previous);
        self.settle()?;
        let others = NODES.into_iter().filter(|name| *name != owner);
        let order: Vec<&str> = others.chain([owner]).collect();
        let flows = Flows::on(self.lab, &order, LASTING_EACH, PING_EVERY)
            .with_context(|| format!("{LASTING_EACH} connections to {VIP}:{ECHO_PORT} on each node"))?;
        *lock(&self.flows) = Some(flows);
        Ok(())
    }

    /// Makes trouble for a node, and remembers it for the view.
    pub fn trouble(&self, node: &'static str, trouble: Trouble, deed: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
        deed(self.lab)?;
        lock(&self.troubles).insert(node, trouble);
        Ok(())
    }

    /// Ends all troubles.
    pub fn repair(&self) -> Result<()> {
        self.lab.revive()?;
        lock(&self.troubles).clear();
        Ok(())
    }

    /// Waits until the set is at rest.
    pub fn settle(&self) -> Result<Duration> {
        let start = Instant::now();
        loop {
            interrupt::check()?;
            match at_rest(self.lab) {
                Ok(_) => return Ok(start.elapsed()),
                Err(complaint) if start.elapsed() > REST_DEADLINE => return Err(complaint),
                Err(_) => sleep(TICK),
            }
        }
    }

    /// Lets time pass, for those who watch.
    pub fn pause(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            interrupt::check()?;
            sleep(TICK);
        }
        Ok(())
    }

    /// The node that answers for the VIP now, as a third party hears it.
    pub fn who_answers(&self) -> Option<&'static str> {
        match self.arp.live().owners[..] {
            [mac] => name_of(mac),
            _ => None,
        }
    }

    /// What was seen within a window; `victim` is the node that something was done to.
    pub fn count(&self, window: Window, victim: Option<&str>) -> Seen {
        let new = self.steady.report(window);
        let kept = self.keep_alive.report(window);
        let fate = self.fate();
        let exposed = |carrier: &Carrier| victim.is_some_and(|name| carrier.front == name || carrier.back == name);
        let spared = |carrier: &Carrier| !exposed(carrier);
        let number = |like: &dyn Fn(&Carrier) -> bool| fate.as_ref().map_or(0, |fate| fate.count(like));
        let breaks = |like: &dyn Fn(&Carrier) -> bool| fate.as_ref().map_or(0, |fate| fate.breaks(like).len());
        Seen {
            gap_ms: new.longest_gap_ms,
            new: new.attempts,
            refused: new.refused,
            failed: new.attempts - new.ok - new.refused,
            spared: number(&spared),
            broken: breaks(&spared),
            stall_ms: fate.as_ref().map_or(0.0, |fate| fate.stall_ms(spared)),
            exposed: number(&exposed),
            lost: breaks(&exposed),
            requests: kept.requests,
            requests_failed: kept.failed + kept.connect_failures,
        }
    }

    /// Each break of a connection to whose nodes nothing was done, in words: there should be none.
    pub fn explain(&self, from_ns: u64, victim: Option<&str>) -> Vec<String> {
        let Some(fate) = self.fate() else { return Vec::new() };
        let mut causes: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (front, back) in NODES.into_iter().flat_map(|front| NODES.map(|back| (front, back))) {
            if [front, back].map(Some).contains(&victim) {
                continue;
            }
            for broken in fate.breaks(|carrier| carrier.front == front && carrier.back == back) {
                let cause = format!("{} (carried by {front}, served by {back})", broken.failure);
                causes.entry(cause).or_default().push(broken.at_ns.saturating_sub(from_ns) / 1_000_000);
            }
        }
        let words = |(cause, at_ms): (String, Vec<u64>)| {
            let (first, last) = (at_ms.iter().min().unwrap_or(&0), at_ms.iter().max().unwrap_or(&0));
            format!("{} broken by {cause}, {first} to {last} ms after it began", at_ms.len())
        };
        causes.into_iter().map(words).collect()
    }

    /// All nodes, in order.
    pub fn nodes(&self) -> Vec<NodeView> {
        let now = now_ns();
        let second = Window::new(now.saturating_sub(SECOND_NS), now);
        let (new, kept) = (self.steady.report(second).nodes, self.keep_alive.report(second).nodes);
        let owners = self.arp.live().owners;
        let fate = self.fate();
        let troubles = lock(&self.troubles);
        let view = |name: &'static str| NodeView {
            name,
            trouble: troubles.get(name).copied(),
            owns: owners.iter().any(|mac| name_of(*mac) == Some(name)),
            connections: fate.as_ref().map_or(0, |fate| {
                let here = |carrier: &Carrier| carrier.front == name;
                fate.count(here).saturating_sub(fate.breaks(here).len())
            }),
            answers: new.get(name).copied().unwrap_or(0) + kept.get(name).copied().unwrap_or(0),
        };
        NODES.into_iter().map(view).collect()
    }

    /// The latest `count` tenths of a second, oldest first. They end a little before now, since an attempt takes its time.
    pub fn moments(&self, count: usize) -> Vec<Moment> {
        let end = now_ns() - now_ns() % MOMENT_NS - PROMPT.as_nanos() as u64;
        let start = end - count as u64 * MOMENT_NS;
        let mut moments = vec![Moment::default(); count];
        let cell = |at_ns: u64| (at_ns >= start && at_ns < end).then(|| ((at_ns - start) / MOMENT_NS) as usize);
        let prompt_us = PROMPT.as_micros() as u32;
        let attempts = self.steady.attempts();
        // Attempts are evenly spaced; those that have not ended by now were not answered promptly.
        let first_ns = attempts.first().map_or(end, |attempt| attempt.started_ns);
        let due = MOMENT_NS * u64::from(NEW_PER_S) / SECOND_NS;
        for (index, moment) in moments.iter_mut().enumerate() {
            let since = start + index as u64 * MOMENT_NS;
            moment.begun = if since >= first_ns { due.saturating_sub(1) as usize } else { 0 };
        }
        let mut ended = vec![0; count];
        for attempt in attempts {
            if let Some(cell) = cell(attempt.started_ns) {
                ended[cell] += 1;
                moments[cell].begun = moments[cell].begun.max(ended[cell]);
                moments[cell].good += usize::from(attempt.failure.is_none() && attempt.took_us <= prompt_us);
            }
        }
        let report = self.arp.report(Window::new(start, end));
        let mut changes = report.owners.iter().peekable();
        let mut owners = 0;
        for (index, moment) in moments.iter_mut().enumerate() {
            let at_ns = start + (index as u64 + 1) * MOMENT_NS;
            while let Some(change) = changes.next_if(|change| change.at_ns < at_ns) {
                owners = change.owners.iter().filter_map(|mac| index_of(*mac)).fold(0, |bits, node| bits | 1 << node);
            }
            moment.owners = owners;
        }
        moments
    }

    fn fate(&self) -> Option<Fate> {
        lock(&self.flows).as_ref().map(Flows::fate)
    }
}

/// The laboratory numbers the nodes' MACs as it does their addresses.
fn index_of(mac: Mac) -> Option<usize> {
    usize::from(mac.0[5]).checked_sub(0x11).filter(|index| *index < NODES.len())
}

fn name_of(mac: Mac) -> Option<&'static str> {
    index_of(mac).map(|index| NODES[index])
}

/// A panic of one thread must not hide what the other shows.
fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a new connection may take until it counts as failed.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// What a user would call "at once".
const PROMPT: Duration = Duration::from_millis(250);
/// New connections a second: a gap is then known to 5 ms.
pub const NEW_PER_S: u32 = 200;
/// Keep-alive connections; each asks, pauses 50 ms, and asks again.
const KEPT: usize = 20;
/// Lasting connections on each node.
const LASTING_EACH: usize = 70;
const PING_EVERY: Duration = Duration::from_millis(200);
/// One cell of the time line.
const MOMENT_NS: u64 = 100_000_000;
const SECOND_NS: u64 = 1_000_000_000;
/// How soon Ctrl-C is noticed.
const TICK: Duration = Duration::from_millis(30);
