//! A machine outside the set that claims a VIP again and again: an address given twice. The set answers each claim at once and
//! can do no more, but a person can.

use std::time::Duration;

use crate::time::Time;

/// A claim that is heard once may be a leftover; one that is heard again after so long is not.
pub const STUBBORN_AFTER: Duration = Duration::from_secs(5);
/// It is told of for so long after its last claim: a machine at rest claims its address only every few minutes, by asking for
/// its gateway.
pub const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// Who claims a VIP beside its owner.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rival(Option<Claims>);

#[derive(Clone, Copy, Debug)]
struct Claims {
    mac: [u8; 6],
    first: Time,
    last: Time,
}

impl Rival {
    /// It claims the VIP, which this node owns.
    pub fn heard(&mut self, now: Time, mac: [u8; 6]) {
        let known = self.0.filter(|claims| now.since(claims.last) < FORGOTTEN_AFTER);
        self.0 = Some(Claims { mac, first: known.map_or(now, |claims| claims.first), last: now });
    }

    /// Whoever claims it for so long that a person has to know.
    pub fn stubborn(&self, now: Time) -> Option<[u8; 6]> {
        let claims = self.0.filter(|claims| claims.last.since(claims.first) >= STUBBORN_AFTER)?;
        (now.since(claims.last) < FORGOTTEN_AFTER).then_some(claims.mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn whoever_claims_it_again_is_told_of_until_long_after() {
        let mut rival = Rival::default();
        assert_eq!(rival.stubborn(at(0)), None);
        rival.heard(at(100), MAC);
        rival.heard(at(104), MAC);
        assert_eq!(rival.stubborn(at(104)), None, "a burst, as an interface that comes up sends it");
        rival.heard(at(105), MAC);
        assert_eq!(rival.stubborn(at(107)), Some(MAC));
        assert_eq!(rival.stubborn(at(705)), None);
        rival.heard(at(705), MAC);
        assert_eq!(rival.stubborn(at(705)), None, "it was forgotten, and begins anew");
    }
}
