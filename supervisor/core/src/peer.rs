//! What a node knows of one peer: which datagrams to believe, whether it lives, what it says.
//!
//! ```text
//!   datagram ──authentic──▶ fresh? ──yes──▶ believed: session, counter, what it says
//!                             │no
//!                             ▼
//!                         candidate: echoed, so that the peer's next datagram can prove itself fresh
//! ```
//!
//! A datagram is fresh when it continues the believed session with a higher counter, or when it opens another session and
//! echoes a heartbeat of *this* session of ours that is younger than the last datagram of the old one. An old datagram can do
//! neither, whoever sends it, however late.

use std::time::Duration;

use crate::config::NodeId;
use crate::health::Fitness;
use crate::plant::{Bug, Planted};
use crate::time::Time;
use crate::wire::{Echo, Heartbeat, Session, VipKey, VipReport};

/// What is known of one peer.
#[derive(Clone, Debug)]
pub struct Peer {
    believed: Option<Believed>,
    candidate: Option<(Session, u64)>,
    /// Heard within the last lease.
    pub live: bool,
    /// Its kernel answers, as far as is known: it belongs into the relay ring.
    pub kernel: bool,
    /// While it is silent but not lost yet: its kernel was asked, and did not answer (`true`) or has not yet failed to (`false`).
    pub kernel_doubted: Option<bool>,
    /// It is silent, kernel and all, but perhaps only stands still.
    pub stunned: bool,
    /// Session and serial of the last request of it that was acted on.
    pub acted: Option<(Session, u32)>,
    /// Fit and heard without a break since then.
    pub fit_since: Option<Time>,
}

#[derive(Clone, Debug)]
struct Believed {
    heartbeat: Heartbeat,
    at: Time,
    /// Our own counter when it came.
    own_counter: u64,
}

/// Our own place in the exchange of heartbeats.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    /// This node.
    pub me: NodeId,
    /// Its session.
    pub session: Session,
    /// The counter of its last heartbeat.
    pub counter: u64,
}

impl Peer {
    /// A peer of which nothing was heard yet.
    pub fn unheard() -> Peer {
        Peer {
            believed: None,
            candidate: None,
            live: false,
            kernel: false,
            kernel_doubted: None,
            stunned: false,
            acted: None,
            fit_since: None,
        }
    }

    /// Whether an authentic datagram is younger than all that was believed.
    pub fn is_fresh(&self, own: Own, heartbeat: &Heartbeat, planted: Planted) -> bool {
        match &self.believed {
            Some(b) if b.heartbeat.session == heartbeat.session => heartbeat.counter > b.heartbeat.counter,
            other => {
                let floor = other.as_ref().map_or(0, |b| b.own_counter);
                let echo = heartbeat.heard[own.me.0 as usize];
                echo.is_some_and(|e| e.session == own.session && e.counter > floor) || planted.has(Bug::BelieveStale)
            }
        }
    }

    /// Takes in an authentic datagram. `None` when it is not fresh; otherwise it is believed, and the answer is the time since
    /// the one before it in its session, zero for the first.
    pub fn receive(&mut self, now: Time, own: Own, heartbeat: &Heartbeat, planted: Planted) -> Option<Duration> {
        let (session, counter) = (heartbeat.session, heartbeat.counter);
        let same = self.believed.as_ref().filter(|b| b.heartbeat.session == session);
        if !self.is_fresh(own, heartbeat, planted) {
            let newer = self.candidate.is_none_or(|(s, c)| s != session || counter > c);
            // While its believed session lives no other one is echoed; a replayed one must not be remembered in its place.
            if newer && same.is_none() && !self.live {
                self.candidate = Some((session, counter));
            }
            return None;
        }
        let gap = same.map_or(Duration::ZERO, |b| now.since(b.at));
        self.candidate = None;
        self.believed = Some(Believed { heartbeat: heartbeat.clone(), at: now, own_counter: own.counter });
        Some(gap)
    }

    /// What our next heartbeat echoes of it.
    pub fn echo(&self) -> Option<Echo> {
        let believed = self.believed.as_ref().map(|b| Echo {
            session: b.heartbeat.session,
            counter: b.heartbeat.counter,
            live: self.live,
        });
        match self.candidate {
            Some((session, counter)) if !self.live => Some(Echo { session, counter, live: false }),
            _ => believed,
        }
    }

    /// The last heartbeat that was believed, however old.
    pub fn said(&self) -> Option<&Heartbeat> {
        self.believed.as_ref().map(|b| &b.heartbeat)
    }

    /// When it was believed.
    pub fn heard_at(&self) -> Option<Time> {
        self.believed.as_ref().map(|b| b.at)
    }

    /// Our own loop stood still for `gap`: its silence in that time does not count against it.
    pub fn forgive(&mut self, gap: Duration) {
        if let Some(b) = &mut self.believed {
            b.at = b.at + gap;
        }
    }

    /// Live, and lives by its own word in both directions.
    pub fn hears_us(&self, own: Own, planted: Planted) -> bool {
        self.live
            && (planted.has(Bug::IgnoreOneWay)
                || self.said().is_some_and(|h| {
                    h.heard[own.me.0 as usize].is_some_and(|echo| echo.live && echo.session == own.session)
                }))
    }

    /// Its fitness by its own word, `None` while it is not live.
    pub fn fitness(&self) -> Option<Fitness> {
        self.said().filter(|_| self.live).map(|h| h.fitness)
    }

    /// Its part in a VIP by its own word, while it is live.
    pub fn report(&self, vip: VipKey) -> Option<&VipReport> {
        self.said().filter(|_| self.live)?.vips.iter().find(|r| r.vip == vip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MAX_NODES;

    const OWN: Own = Own { me: NodeId(0), session: Session(100), counter: 50 };

    fn heartbeat(session: u64, counter: u64, echo: Option<(u64, u64)>) -> Heartbeat {
        let mut heard = [None; MAX_NODES];
        heard[0] = echo.map(|(session, counter)| Echo { session: Session(session), counter, live: true });
        Heartbeat {
            session: Session(session),
            counter,
            routine: false,
            heard,
            fitness: Fitness::Fit,
            drained: false,
            mac: [0; 6],
            fingerprint: 0,
            version: [0; 3],
            lease: Duration::from_millis(100),
            vips: Vec::new(),
            ask: None,
        }
    }

    fn believes(peer: &mut Peer, own: Own, heartbeat: &Heartbeat) -> bool {
        peer.receive(Time::ZERO, own, heartbeat, Planted::default()).is_some()
    }

    #[test]
    fn a_datagram_of_before_our_start_is_not_believed_but_echoed() {
        let mut peer = Peer::unheard();
        assert!(!believes(&mut peer, OWN, &heartbeat(1, 9, Some((99, 7)))));
        assert_eq!(peer.echo(), Some(Echo { session: Session(1), counter: 9, live: false }));
        assert!(believes(&mut peer, OWN, &heartbeat(1, 10, Some((100, 1)))));
    }

    #[test]
    fn a_datagram_is_believed_once_and_never_out_of_order() {
        let mut peer = Peer::unheard();
        assert!(believes(&mut peer, OWN, &heartbeat(1, 9, Some((100, 1)))));
        assert!(!believes(&mut peer, OWN, &heartbeat(1, 9, Some((100, 1)))));
        assert!(!believes(&mut peer, OWN, &heartbeat(1, 8, Some((100, 1)))));
        assert!(believes(&mut peer, OWN, &heartbeat(1, 12, Some((100, 1)))));
    }

    #[test]
    fn a_former_session_cannot_come_back_by_replay() {
        let mut peer = Peer::unheard();
        assert!(believes(&mut peer, OWN, &heartbeat(1, 9, Some((100, 40)))));
        let later = Own { counter: 70, ..OWN };
        assert!(believes(&mut peer, later, &heartbeat(2, 1, Some((100, 60)))), "a restarted peer has heard us lately");
        assert!(!believes(&mut peer, later, &heartbeat(1, 99, Some((100, 50)))), "withheld, and sent late");
        assert!(
            !believes(&mut peer, later, &heartbeat(3, 1, Some((100, 70)))),
            "nothing younger than the last one echoed"
        );
        assert!(believes(&mut peer, later, &heartbeat(3, 2, Some((100, 71)))));
    }
}
