//! The time of day as people write it, in UTC: what a log of another machine can be compared with.

use std::fmt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds of UTC since 1970 by the machine's clock, right or wrong.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// [`now`], once a time server has set the clock: then `mark`, [`crate::paths::CLOCK_IS_RIGHT`], is there.
/// (systemd-timesyncd.service(8))
pub fn now_if_right(mark: &Path) -> Option<u64> {
    mark.exists().then(now)
}

/// A moment in UTC, to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utc {
    year: u64,
    month: u64,
    day: u64,
    second_of_day: u64,
}

impl Utc {
    /// The moment of `time`; times before 1970 count as 1970.
    pub fn of(time: SystemTime) -> Utc {
        let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // Days are counted from 1 March of year 0, so that the leap day is a year's last.
        // (Howard Hinnant, chrono-Compatible Low-Level Date Algorithms, civil_from_days.)
        let days = seconds / DAY + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        Utc { year, month, day, second_of_day: seconds % DAY }
    }

    /// `20260131-235959`, for names of files.
    pub fn compact(self) -> String {
        let (hour, minute, second) = self.clock();
        format!("{:04}{:02}{:02}-{hour:02}{minute:02}{second:02}", self.year, self.month, self.day)
    }

    fn clock(self) -> (u64, u64, u64) {
        (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60)
    }
}

/// `2026-01-31 23:59:59 UTC`
impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hour, minute, second) = self.clock();
        write!(f, "{:04}-{:02}-{:02} {hour:02}:{minute:02}:{second:02} UTC", self.year, self.month, self.day)
    }
}

const DAY: u64 = 86_400;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn moments_are_told_as_date_says() {
        // date --utc --date=@SECONDS '+%F %T UTC'
        for (seconds, told) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_769_903_999, "2026-01-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            let utc = Utc::of(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(utc.to_string(), told);
        }
        assert_eq!(Utc::of(SystemTime::UNIX_EPOCH + Duration::from_secs(1_769_903_999)).compact(), "20260131-235959");
    }
}
