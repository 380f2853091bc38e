//! Spans, moments and times of the day, as options take them.

use std::time::Duration;

use trilith_bundle::utc::Utc;
use trilith_core::config;
use trilith_core::set::Window;

/// Whole seconds from `LEAST` to a day: a bare number, or a duration as a document has it.
///
/// # Errors
/// What would be right.
pub fn seconds<const LEAST: u32>(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().map(Duration::from_secs);
    let span = number.or_else(|| config::read_duration(text)).filter(|span| span.subsec_nanos() == 0);
    let seconds = span.and_then(|span| u32::try_from(span.as_secs()).ok());
    let most = DAY.as_secs();
    seconds.filter(|seconds| (LEAST..=DAY.as_secs() as u32).contains(seconds)).ok_or_else(|| {
        format!("give {LEAST} to {most} whole seconds, as a number or as a duration such as 90s, 5m or 1h")
    })
}

/// A second of UTC since 1970, as such or by RFC 3339.
///
/// # Errors
/// What would be right.
pub fn moment(text: &str) -> Result<u64, String> {
    let moment = text.parse().ok().or_else(|| text.parse().ok().map(|Utc(seconds)| seconds));
    moment.ok_or_else(|| "give a moment of UTC such as 2026-11-22T02:00:00Z, or its seconds since 1970".to_owned())
}

/// A time of the day, from one minute to another.
///
/// # Errors
/// What would be right.
pub fn window(text: &str) -> Result<Window, String> {
    let minute = |text: &str| {
        let (hours, minutes) = text.split_once(':')?;
        let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
        (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
    };
    let both = text.split_once('-').and_then(|(from, to)| Some((minute(from)?, minute(to)?)));
    match both {
        Some((from, to)) if from == to => Err("it ends when it begins, so it would never be open".to_owned()),
        Some((from_min, to_min)) => Ok(Window { from_min, to_min }),
        None => Err("give two times of the day, such as 02:00-04:00".to_owned()),
    }
}

const DAY: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_a_number_or_a_duration_of_whole_ones() {
        for (text, right) in [("0", 0), ("300", 300), ("300s", 300), ("5m", 300), ("2000ms", 2), ("24h", 86_400)] {
            assert_eq!(seconds::<0>(text), Ok(right), "{text}");
        }
        for text in ["", "5d", "-1", "1.5", "500ms", "1500ms", "5 m", "m", "86401", "25h", "99999999999999999999"] {
            assert!(seconds::<0>(text).is_err(), "{text}");
        }
        let wrong = "give 1 to 86400 whole seconds, as a number or as a duration such as 90s, 5m or 1h";
        assert_eq!(seconds::<1>("0s"), Err(wrong.to_owned()));
    }

    #[test]
    fn a_moment_is_seconds_since_1970_or_a_time_of_rfc_3339() {
        // date --utc --date=2026-11-22T02:00:00Z +%s
        assert_eq!(moment("1795312800"), Ok(1_795_312_800));
        assert_eq!(moment("2026-11-22T02:00:00Z"), Ok(1_795_312_800));
        for text in ["", "5m", "-1", "02:00", "2026-11-22", "2026-11-22T02:00:00", "2026-02-30T02:00:00Z"] {
            assert!(moment(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_window_is_two_times_of_the_day_that_differ() {
        assert_eq!(window("02:00-04:30"), Ok(Window { from_min: 120, to_min: 270 }));
        assert_eq!(window("23:00-01:00"), Ok(Window { from_min: 1380, to_min: 60 }));
        for text in ["", "2-4", "24:00-01:00", "02:60-03:00", "02:00", "02:00-"] {
            assert!(window(text).is_err(), "{text}");
        }
        assert_eq!(window("02:00-02:00"), Err("it ends when it begins, so it would never be open".to_owned()));
    }
}
