//! One trio for all tests of a program, and what a client and a third party on the wire see of it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::libc;
use trilith_lab::load::{ArpWatch, ArpWatchOptions, Mac, Steady, SteadyOptions, Window, now_ns};
use trilith_lab::wait::wait_until;
use trilith_trio::machine::{Machine, State};
use trilith_trio::plan::{VIP, mac, name};
use trilith_trio::trio::{self, Trio, UP_DEADLINE, say};

/// Does something with three nodes that serve, which are brought up for the first test that needs them. One test at a time
/// has them; what it left off or stopped is set right for the next.
pub fn with_trio(test: impl FnOnce(&Trio) -> Result<()>) -> Result<()> {
    let mut held = TRIO.lock().unwrap_or_else(PoisonError::into_inner);
    let trio = match held.take() {
        Some(trio) => trio,
        None => trio::up(false)?,
    };
    AT_EXIT.call_once(|| {
        // SAFETY: `down_at_exit` touches nothing that ends before the process does.
        unsafe { libc::atexit(down_at_exit) };
    });
    let trio = held.insert(trio);
    trio.network.switch.heal()?;
    for machine in &trio.machines {
        match machine.state() {
            State::Off => machine.power_on()?,
            State::Silent => machine.thaw()?,
            State::Paused => machine.resume()?,
            State::Running => {}
        }
    }
    trio.wait_serving(UP_DEADLINE)?;
    test(trio)
}

/// Takes the shared trio down, for a test that makes machines of its own.
pub fn without_trio() {
    drop(TRIO.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// Who answers ARP for the VIP, and whether new connections are served.
pub struct Watch {
    arp: ArpWatch,
    steady: Steady,
    from_ns: u64,
}

/// What was seen.
#[derive(Debug)]
pub struct Seen {
    /// The longest time without a served connection, in milliseconds.
    pub gap_ms: f64,
    /// The longest time that two answered for the VIP, in milliseconds.
    pub two_owners_ms: f64,
    /// New connections that were not served.
    pub failed: u64,
}

impl Watch {
    /// Begins to watch, and returns when somebody owns the VIP and serves: a gap is one between two who were served.
    pub fn on(trio: &Trio) -> Result<Watch> {
        let netns = Some(trio.network.client.path());
        let every = Some(Duration::from_millis(50));
        let arp = ArpWatch::start(ArpWatchOptions {
            netns: netns.clone(),
            ask_every: every,
            ..ArpWatchOptions::new("eth0", IpAddr::from(VIP))
        })?;
        let steady = Steady::start(SteadyOptions {
            netns,
            rate: RATE,
            timeout: Duration::from_secs(5),
            prompt: Duration::from_secs(2),
            ..SteadyOptions::new(SocketAddr::new(VIP.into(), 80))
        })?;
        let watch = Watch { arp, steady, from_ns: now_ns() };
        wait_until("an owner of the VIP that serves", SOON, || watch.owner().is_some() && watch.steady.live().ok > 0)?;
        Ok(watch)
    }

    /// The only one who answers for the VIP now, by name.
    pub fn owner(&self) -> Option<&'static str> {
        match self.arp.live().owners[..] {
            [owner] => node(owner),
            _ => None,
        }
    }

    /// The machine that owns the VIP.
    pub fn owner_of<'t>(&self, trio: &'t Trio) -> Result<&'t Machine> {
        trio.machine(self.owner().context("the VIP has no owner, or two")?)
    }

    /// Waits until another than `old` owns the VIP alone and serves, and returns how long that took.
    pub fn wait_other_owner(&self, old: &str) -> Result<Duration> {
        let moved = wait_until("another owner", SOON, || self.owner().is_some_and(|owner| owner != old))?;
        let served = self.steady.live().ok;
        wait_until("connections served by it", SOON, || self.steady.live().ok > served)?;
        Ok(moved)
    }

    /// What happened until now, once the latest connections have had their time.
    pub fn finish(self, what: &str) -> Seen {
        let window = Window::new(self.from_ns, now_ns());
        let arp = self.arp.finish();
        let steady = self.steady.report(window);
        let seen = Seen {
            gap_ms: steady.longest_gap_ms,
            two_owners_ms: arp.longest_many_ms,
            failed: steady.failures.values().sum(),
        };
        say(&format!("{what}: {seen:?}, {} connections served, failed: {:?}", steady.ok, steady.failures));
        seen
    }
}

fn node(owner: Mac) -> Option<&'static str> {
    (0..3u8).find(|index| mac(*index) == owner.to_string()).map(name)
}

/// Statics are not dropped: without this the machines would go down only after this process, by their guard.
extern "C" fn down_at_exit() {
    without_trio();
}

static TRIO: Mutex<Option<Trio>> = Mutex::new(None);
static AT_EXIT: Once = Once::new();
/// New connections per second: enough to see a gap, little for translated guests.
const RATE: u32 = 10;
/// What takes a second on a quiet host, on a busy one.
pub const SOON: Duration = Duration::from_secs(30);
