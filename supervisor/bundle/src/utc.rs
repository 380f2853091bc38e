//! Moments in a manifest: UTC, to the second.

use std::fmt::{Display, Formatter, Result as Formatted};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Seconds of UTC since 1970, without leap seconds. As text: `2026-11-21T07:00:00Z` (RFC 3339, years 1970 to 9999).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Utc(pub u64);

impl FromStr for Utc {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Utc, &'static str> {
        let bytes = text.as_bytes();
        let form = |(at, byte): (usize, &u8)| match at {
            4 | 7 => *byte == b'-',
            10 => *byte == b'T',
            13 | 16 => *byte == b':',
            19 => *byte == b'Z',
            _ => byte.is_ascii_digit(),
        };
        if bytes.len() != 20 || !bytes.iter().enumerate().all(form) {
            return Err(WRONG);
        }
        let number =
            |from: usize, to: usize| bytes[from..to].iter().fold(0, |sum, byte| sum * 10 + u64::from(byte - b'0'));
        let (year, month, day) = (number(0, 4), number(5, 7), number(8, 10));
        let (hour, minute, second) = (number(11, 13), number(14, 16), number(17, 19));
        if year < 1970 || !(1..=12).contains(&month) || day == 0 || hour > 23 || minute > 59 || second > 59 {
            return Err(WRONG);
        }
        let days = days_before(year, month) + day - 1;
        let following = if month == 12 { days_before(year + 1, 1) } else { days_before(year, month + 1) };
        if days >= following {
            return Err(WRONG);
        }
        Ok(Utc(days * DAY + hour * 3600 + minute * 60 + second))
    }
}

impl Display for Utc {
    fn fmt(&self, out: &mut Formatter<'_>) -> Formatted {
        let days = self.0 / DAY;
        let year = (1970..=9999).rev().find(|year| days_before(*year, 1) <= days).unwrap_or(1970);
        let month = (1..=12).rev().find(|month| days_before(year, *month) <= days).unwrap_or(1);
        let (day, second) = (days - days_before(year, month) + 1, self.0 % DAY);
        write!(out, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
    }
}

impl TryFrom<String> for Utc {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Utc, &'static str> {
        text.parse()
    }
}

impl From<Utc> for String {
    fn from(utc: Utc) -> String {
        utc.to_string()
    }
}

/// Days from 1970-01-01 to the first of that month.
fn days_before(year: u64, month: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    let years = (year - 1970) * 365 + leaps(year - 1) - leaps(1969);
    let in_year = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
    years + in_year + u64::from(leap && month > 2)
}

const DAY: u64 = 86_400;
const WRONG: &str = "a moment is written like 2026-11-21T07:00:00Z";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_date() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2026-11-21T07:00:00Z", 1_795_244_400),
            ("9999-12-31T23:59:59Z", 253_402_300_799),
        ] {
            assert_eq!(text.parse(), Ok(Utc(seconds)), "{text}");
            assert_eq!(Utc(seconds).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "2026-11-21",
            "2026-11-21T07:00:00+01:00",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
        ] {
            assert!(text.parse::<Utc>().is_err(), "{text}");
        }
    }
}
