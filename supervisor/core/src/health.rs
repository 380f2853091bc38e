//! From probes and units to one word: is this node fit to own a VIP, and if not, why?
//!
//! Facts rise and fall with hysteresis: one lost answer changes nothing, one lucky one does not either. What is known for sure
//! (a unit that died, a carrier that went) counts at once.

use std::time::Duration;

use crate::config::{MAX_VIPS, VipId};
use crate::event::Probe;
use crate::time::Time;

/// How long the outside may take to answer a probe; HAProxy may take longer where leases are long
/// ([`crate::config::LeaseBounds::slowness`]).
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
/// Between two requests through the VIP on `lo`; after a miss the next follows at once.
pub const FRONT_EVERY: Duration = Duration::from_secs(1);
/// Between two questions to the gateway; after a miss the next follows at once.
pub const GATEWAY_EVERY: Duration = Duration::from_secs(1);
/// Misses in a row after which HAProxy counts as hung.
pub const FRONT_FALL: u8 = 2;
/// Misses in a row after which the gateway counts as lost.
pub const GATEWAY_FALL: u8 = 3;
/// Answers in a row after which either counts as back.
pub const RISE: u8 = 2;
/// A HAProxy that is active but silent for so long is killed, so that systemd starts it anew. Its VIPs have long gone elsewhere by
/// then, so there is no hurry; but one that is only slow still answers those whom it has, and a kill would break them.
pub const HUNG_AFTER: Duration = Duration::from_secs(5);
/// A refused VIP address is forgiven after so long, so that it is tried again.
pub const ADDRESS_FORGIVEN: Duration = Duration::from_secs(5);
/// A unit that is down, or was killed, gets so long to come back before it is started again; twice as long after each try in
/// a row, [`MOST_DOUBLINGS`] times at most.
pub const UNIT_PATIENCE: Duration = Duration::from_secs(2);
/// See [`UNIT_PATIENCE`]: 64 s in the end.
pub const MOST_DOUBLINGS: u32 = 5;

/// Whether a node may own a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fitness {
    /// It may.
    Fit,
    /// It may when no fit node is heard.
    Degraded(Reason),
    /// It may not.
    Unfit(Reason),
}

impl Fitness {
    /// 0 for fit, 1 for degraded, 2 for unfit: the lower the better.
    pub fn level(self) -> u8 {
        match self {
            Fitness::Fit => 0,
            Fitness::Degraded(_) => 1,
            Fitness::Unfit(_) => 2,
        }
    }

    /// Why it is not fit.
    pub fn reason(self) -> Option<Reason> {
        match self {
            Fitness::Fit => None,
            Fitness::Degraded(reason) | Fitness::Unfit(reason) => Some(reason),
        }
    }
}

/// Why a node is not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The supervisor has only just started and knows too little.
    Starting,
    /// The interface of a VIP has no carrier.
    LinkDown(VipId),
    /// `haproxy.service` is not active.
    HaproxyDown,
    /// HAProxy does not answer a request through the VIP on `lo`.
    FrontSilent,
    /// The default gateway does not answer.
    GatewayLost,
    /// The kernel refused to take a VIP's address.
    AddressRefused(VipId),
    /// The kernel refused the relay rules.
    RelayRefused,
    /// An operator has taken it out of service.
    Drained,
    /// Its supervisor is about to end: a restart, a reboot, a shutdown.
    Stopping,
    /// A reason of a newer version, by its number.
    Other(u8),
}

/// All that bears on this node's fitness.
#[derive(Clone, Debug)]
pub struct Health {
    front: Watch,
    gateway: Watch,
    gateway_at: Option<Time>,
    /// [`HUNG_AFTER`], longer on slow machines.
    hung_after: Duration,
    links: [Option<bool>; MAX_VIPS],
    vips: usize,
    refused: [Option<Time>; MAX_VIPS],
    /// The relay rules are in the kernel: `None` before the first answer.
    pub relay: Option<bool>,
    /// `haproxy.service` is active: `None` before the first word of it.
    pub haproxy: Option<bool>,
    /// An operator has taken the node out of service.
    pub drained: bool,
    /// The supervisor has been told to end.
    pub stopping: bool,
}

/// One probe that is repeated: up or down with hysteresis.
#[derive(Clone, Copy, Debug)]
struct Watch {
    probe: Probe,
    every: Duration,
    fall: u8,
    up: Option<bool>,
    run: u8,
    due: Time,
    asked: bool,
    down_since: Option<Time>,
}

impl Watch {
    fn new(probe: Probe, every: Duration, fall: u8, now: Time) -> Watch {
        Watch { probe, every, fall, up: None, run: 0, due: now, asked: false, down_since: None }
    }

    /// It answers, and has not missed a question.
    fn well(&self) -> bool {
        self.up == Some(true) && self.run == 0
    }

    fn answer(&mut self, now: Time, answered: bool) {
        self.asked = false;
        self.due = if answered && self.up == Some(true) { now + self.every } else { now + self.every / 8 };
        match (self.up, answered) {
            (Some(up), same) if up == same => self.run = 0,
            _ => self.run = self.run.saturating_add(1),
        }
        let enough = if answered { RISE.min(if self.up.is_none() { 1 } else { RISE }) } else { self.fall };
        if self.up != Some(answered) && self.run >= enough {
            self.up = Some(answered);
            self.run = 0;
            self.down_since = (!answered).then_some(now);
        } else if self.up.is_none() && !answered {
            self.down_since.get_or_insert(now);
        }
    }
}

impl Health {
    /// At the start nothing is known. `slowness`: [`crate::config::LeaseBounds::slowness`].
    pub fn new(vips: usize, slowness: u32, drained: bool, now: Time) -> Health {
        Health {
            hung_after: HUNG_AFTER * slowness,
            front: Watch::new(Probe::Front, FRONT_EVERY, FRONT_FALL, now),
            gateway: Watch::new(Probe::Gateway, GATEWAY_EVERY, GATEWAY_FALL, now),
            gateway_at: None,
            links: [None; MAX_VIPS],
            vips,
            refused: [None; MAX_VIPS],
            relay: None,
            haproxy: None,
            drained,
            stopping: false,
        }
    }

    /// The verdict, with the gravest reason first.
    pub fn fitness(&self) -> Fitness {
        let links = &self.links[..self.vips];
        let vip = |at: usize| VipId(at as u8);
        if let Some(at) = links.iter().position(|up| *up == Some(false)) {
            return Fitness::Unfit(Reason::LinkDown(vip(at)));
        }
        if self.relay == Some(false) {
            return Fitness::Unfit(Reason::RelayRefused);
        }
        let known = self.relay.is_some() && self.haproxy.is_some() && links.iter().all(Option::is_some);
        if !known || (self.haproxy == Some(true) && self.front.up.is_none()) {
            return Fitness::Unfit(Reason::Starting);
        }
        if self.haproxy == Some(false) {
            return Fitness::Unfit(Reason::HaproxyDown);
        }
        if self.front.up == Some(false) {
            return Fitness::Unfit(Reason::FrontSilent);
        }
        if let Some(at) = self.refused.iter().position(Option::is_some) {
            return Fitness::Unfit(Reason::AddressRefused(vip(at)));
        }
        // Not unfit: when nobody can take over, the fence keeps the address over a restart.
        if self.stopping {
            return Fitness::Degraded(Reason::Stopping);
        }
        if self.drained {
            return Fitness::Degraded(Reason::Drained);
        }
        if self.gateway_lost() {
            return Fitness::Degraded(Reason::GatewayLost);
        }
        Fitness::Fit
    }

    /// The gateway has stopped to answer.
    pub fn gateway_lost(&self) -> bool {
        self.gateway.up == Some(false)
    }

    /// When the gateway last answered.
    pub fn gateway_at(&self) -> Option<Time> {
        self.gateway_at
    }

    /// The last word on HAProxy's answers is that there are none, or there is no word yet.
    pub fn silent(&self) -> bool {
        self.front.up != Some(true)
    }

    /// HAProxy is active but has been silent for longer than [`HUNG_AFTER`], times the slowness.
    pub fn hung(&self, now: Time) -> bool {
        self.haproxy == Some(true) && self.front.down_since.is_some_and(|since| now.since(since) >= self.hung_after)
    }

    /// The carrier of a VIP's interface.
    pub fn link(&mut self, vip: VipId, up: bool) {
        self.links[vip.0 as usize] = Some(up);
    }

    /// `haproxy.service` came or went. A new one has to prove itself.
    pub fn haproxy_active(&mut self, now: Time, active: bool) {
        if self.haproxy != Some(active) {
            self.haproxy = Some(active);
            self.front = Watch { asked: self.front.asked, ..Watch::new(Probe::Front, FRONT_EVERY, FRONT_FALL, now) };
        }
    }

    /// The kernel took a VIP's address, or refused it again and again.
    pub fn address(&mut self, now: Time, vip: VipId, works: bool) {
        self.refused[vip.0 as usize] = (!works).then_some(now);
    }

    /// Out of service on an operator's word, or in it again: HAProxy, which had leave to be silent meanwhile, has its time anew.
    pub fn drain(&mut self, now: Time, drained: bool) {
        self.drained = drained;
        self.front.down_since = self.front.down_since.map(|_| now);
    }

    /// A probe has ended.
    pub fn probed(&mut self, now: Time, probe: Probe, answered: bool) {
        match probe {
            Probe::Front => self.front.answer(now, answered),
            Probe::Gateway => {
                self.gateway.answer(now, answered);
                if answered {
                    self.gateway_at = Some(now);
                }
            }
            Probe::Vip(_) | Probe::Kernel(_) => {}
        }
    }

    /// The questions that are due now. `hurry`: the gateway's answer is needed soon.
    pub fn due(&mut self, now: Time, hurry: bool, mut ask: impl FnMut(Probe)) {
        for refused in &mut self.refused {
            *refused = refused.filter(|at| now.since(*at) < ADDRESS_FORGIVEN);
        }
        if hurry && !self.gateway.asked {
            self.gateway.due = self.gateway.due.min(now + PROBE_TIMEOUT / 4);
        }
        let active = self.haproxy == Some(true);
        for watch in [&mut self.front, &mut self.gateway] {
            if now >= watch.due && !watch.asked && (active || watch.probe != Probe::Front) {
                watch.asked = true;
                ask(watch.probe);
            }
        }
    }

    /// When [`Health::due`] has something to do next, but for [`Health::round`].
    pub fn wake(&self) -> Option<Time> {
        let active = self.haproxy == Some(true);
        let due = self.watches().filter(|watch| !watch.well()).map(|watch| watch.due);
        let forgiven = self.refused.iter().flatten().map(|at| *at + ADDRESS_FORGIVEN);
        let hung = self.front.down_since.filter(|_| active).map(|at| at + self.hung_after);
        due.chain(forgiven).chain(hung).min()
    }

    /// When what answers is to be asked again, sooner or later.
    pub fn round(&self) -> Option<Time> {
        self.watches().filter(|watch| watch.well()).map(|watch| watch.due).min()
    }

    /// Those of which no answer is awaited.
    fn watches(&self) -> impl Iterator<Item = &Watch> {
        let active = self.haproxy == Some(true);
        [&self.front, &self.gateway].into_iter().filter(move |w| !w.asked && (active || w.probe != Probe::Front))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit() -> Health {
        let mut health = Health::new(1, 1, false, Time::ZERO);
        health.link(VipId(0), true);
        health.relay = Some(true);
        health.haproxy_active(Time::ZERO, true);
        health.probed(Time::ZERO, Probe::Front, true);
        health.probed(Time::ZERO, Probe::Gateway, true);
        assert_eq!(health.fitness(), Fitness::Fit);
        health
    }

    #[test]
    fn one_lost_answer_changes_nothing_and_one_lucky_one_does_not_either() {
        let mut health = fit();
        health.probed(Time(1), Probe::Front, false);
        assert_eq!(health.fitness(), Fitness::Fit);
        health.probed(Time(2), Probe::Front, false);
        assert_eq!(health.fitness(), Fitness::Unfit(Reason::FrontSilent));
        health.probed(Time(3), Probe::Front, true);
        assert_eq!(health.fitness(), Fitness::Unfit(Reason::FrontSilent));
        health.probed(Time(4), Probe::Front, true);
        assert_eq!(health.fitness(), Fitness::Fit);
    }

    #[test]
    fn a_dead_unit_and_a_lost_carrier_count_at_once() {
        let mut health = fit();
        health.haproxy_active(Time(1), false);
        assert_eq!(health.fitness(), Fitness::Unfit(Reason::HaproxyDown));
        health.haproxy_active(Time(2), true);
        assert_eq!(health.fitness(), Fitness::Unfit(Reason::Starting), "a new HAProxy has to prove itself");
        health.link(VipId(0), false);
        assert_eq!(health.fitness(), Fitness::Unfit(Reason::LinkDown(VipId(0))));
    }

    #[test]
    fn a_lost_gateway_degrades_and_a_drain_outweighs_it() {
        let mut health = fit();
        for _ in 0..GATEWAY_FALL {
            health.probed(Time(1), Probe::Gateway, false);
        }
        assert_eq!(health.fitness(), Fitness::Degraded(Reason::GatewayLost));
        health.drained = true;
        assert_eq!(health.fitness(), Fitness::Degraded(Reason::Drained));
    }

    #[test]
    fn a_haproxy_that_was_silent_in_a_drain_has_its_time_anew() {
        let mut health = fit();
        health.drain(Time(0), true);
        for at in 1..=u64::from(FRONT_FALL) {
            health.probed(Time(at), Probe::Front, false);
        }
        let back = Time::ZERO + HUNG_AFTER * 10;
        assert!(health.hung(back));
        health.drain(back, false);
        assert!(!health.hung(back + HUNG_AFTER / 2));
        assert!(health.hung(back + HUNG_AFTER));
    }

    #[test]
    fn a_haproxy_that_never_answers_counts_as_hung() {
        let mut health = Health::new(1, 1, false, Time::ZERO);
        health.haproxy_active(Time::ZERO, true);
        health.probed(Time::ZERO, Probe::Front, false);
        assert!(!health.hung(Time::ZERO));
        assert!(health.hung(Time::ZERO + HUNG_AFTER));
    }

    #[test]
    fn a_question_is_not_asked_twice_before_it_is_answered() {
        let mut health = fit();
        let count = |health: &mut Health, at: Time| {
            let mut asked = 0;
            health.due(at, false, |_| asked += 1);
            asked
        };
        let later = Time::ZERO + FRONT_EVERY;
        assert_eq!(count(&mut health, later), 2);
        assert_eq!(count(&mut health, later + FRONT_EVERY), 0);
    }

    #[test]
    fn a_refused_address_is_forgiven_in_time() {
        let mut health = fit();
        health.address(Time::ZERO, VipId(0), false);
        assert_eq!(health.fitness(), Fitness::Unfit(Reason::AddressRefused(VipId(0))));
        health.due(Time::ZERO + ADDRESS_FORGIVEN, false, |_| ());
        assert_eq!(health.fitness(), Fitness::Fit);
    }
}
