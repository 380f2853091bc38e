//! Until when certificates hold: by HAProxy's word, and in words for `status`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use trilith_bundle::utc::Utc as Parsed;

use crate::utc::Utc;

/// When services' certificates end, in seconds of UTC since 1970.
pub type Ends = BTreeMap<String, u64>;

/// How long before its end a certificate becomes an alarm, in seconds: two weeks.
const SOON: u64 = 14 * 86_400;

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// When the certificate ends that HAProxy tells of (`show ssl cert`), as in `notAfter: Jan  1 00:00:00 2031 GMT`, in seconds of UTC
/// since 1970. None for what makes no sense, and for years before 1970.
pub fn parse_end(answer: &str) -> Option<u64> {
    let words = answer.lines().find_map(|line| line.strip_prefix("notAfter: "))?;
    let words: Vec<&str> = words.split_ascii_whitespace().take(6).collect();
    let [month, day, clock, year, "GMT"] = words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let Parsed(seconds) = format!("{year}-{month:02}-{day:0>2}T{clock}Z").parse().ok()?;
    Some(seconds)
}

/// The first certificate of a file, which is the server's own, line by line, with nothing in it that HAProxy could take for the end of
/// a certificate or for a command.
pub fn first_certificate(pem: &str) -> Option<String> {
    let (_, rest) = pem.split_once(BEGIN)?;
    let (body, _) = rest.split_once(END)?;
    let lines: Vec<&str> = body.split_ascii_whitespace().collect();
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    lines.iter().all(|line| line.bytes().all(base64)).then(|| format!("{BEGIN}\n{}\n{END}\n", lines.join("\n")))
}

/// What an admin has to know of a certificate that ends, or has ended.
pub fn alarm(service: &str, end: u64, now: u64) -> Option<String> {
    let mend = format!("`trilith service certificate {service} FILE` brings another one, on each node");
    let on = moment(end);
    match end {
        _ if end < now => {
            Some(format!("the certificate of service {service} ended on {on}: clients refuse it; {mend}"))
        }
        _ if end - now <= SOON => Some(format!("the certificate of service {service} ends on {on}: {mend}")),
        _ => None,
    }
}

/// The moment so many seconds after 1970 began.
pub fn moment(seconds: u64) -> Utc {
    Utc::of(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_found_in_what_haproxy_3_0_tells() {
        let told = "\
Filename: /run/trilith/tls/secure-0123456789abcdef.pem
Status: Used
Serial: 02C09D92E0437F33DC59589E53245EE8AF4CEE61
notBefore: Nov 22 10:43:12 2026 GMT
notAfter: Feb  3 04:05:06 2031 GMT
Subject Alternative Name: DNS:notAfter
Algorithm: EC256
Subject: /CN=x
";
        // date --utc --date='2031-02-03 04:05:06' +%s
        assert_eq!(parse_end(told), Some(1_927_857_906));
        assert_eq!(moment(1_927_857_906).to_string(), "2031-02-03 04:05:06 UTC");
        assert_eq!(parse_end("notAfter: Dec 31 23:59:59 9999 GMT"), Some(253_402_300_799));
    }

    #[test]
    fn of_nonsense_no_end_is_made() {
        let long = format!("notAfter: {} GMT", "9".repeat(1 << 20));
        for nonsense in [
            "",
            "Can't display the certificate: Not found or the certificate is a bundle!",
            "notAfter: ",
            "notAfter: Feb 30 00:00:00 2031 GMT",
            "notAfter: Xyz  1 00:00:00 2031 GMT",
            "notAfter: Jan  1 24:00:00 2031 GMT",
            "notAfter: Jan  1 00:00:00 2031",
            "notAfter: Jan  1 00:00:00 2031 GMT GMT",
            "notAfter: Jan  1 00:00:00 2031 CET",
            "notAfter: Jan  1 00:00:00 1969 GMT",
            "notAfter: Jan  1 00:00:00 99999 GMT",
            "notAfter: Jan  1 00:00:00 -031 GMT",
            "notAfter: Jan -1 00:00:00 2031 GMT",
            "notAfter: Jan  1 0\u{e9}:00:00 2031 GMT",
            &long,
        ] {
            assert_eq!(parse_end(nonsense), None, "{:?}", nonsense.chars().take(60).collect::<String>());
        }
    }

    #[test]
    fn a_certificate_is_an_alarm_from_two_weeks_before_its_end_and_another_one_after_it() {
        let end = 1_927_857_906;
        let told = |now| alarm("portal", end, now);
        assert_eq!(told(end - SOON - 1), None);
        let soon = "the certificate of service portal ends on 2031-02-03 04:05:06 UTC: \
                    `trilith service certificate portal FILE` brings another one, on each node";
        assert_eq!((told(end - SOON).as_deref(), told(end).as_deref()), (Some(soon), Some(soon)));
        let over = "the certificate of service portal ended on 2031-02-03 04:05:06 UTC: clients refuse it; \
                    `trilith service certificate portal FILE` brings another one, on each node";
        assert_eq!(told(end + 1).as_deref(), Some(over));
    }

    #[test]
    fn of_a_file_the_first_certificate_is_taken_and_nothing_that_haproxy_could_obey() {
        let first = format!("{BEGIN}\nQUJD\nREVG\n{END}\n");
        let file =
            format!("-----BEGIN PRIVATE KEY-----\nkey\n-----END PRIVATE KEY-----\n{first}{BEGIN}\nchain\n{END}\n");
        assert_eq!(first_certificate(&file), Some(first.clone()));
        assert_eq!(first_certificate(&format!("{BEGIN}\r\n\r\nQUJD\r\nREVG\r\n{END}\r\n")), Some(first));
        for hostile in ["", "@1 shutdown", &format!("{BEGIN}\n\n@1 reload\n{END}"), &format!("{BEGIN}\nQUJD")] {
            assert_eq!(first_certificate(hostile), None, "{hostile}");
        }
    }
}
