//! What HAProxy, a process that runs as another user, answers to `show stat` (comma-separated lines) and `show ssl cert`, and what it
//! complains of.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trilith_shell::haproxy::{alerts, parse_end, parse_flows};

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let flows = parse_flows(&text);
    assert!(flows.backends.len() <= text.lines().count());
    assert_eq!(flows.relayed, 0, "not HAProxy's to know");
    assert!(parse_end(&text).is_none_or(|end| end < 253_402_300_800), "before the year 10000");
    let why = alerts(&text);
    assert!(why.chars().count() <= 500 && !why.chars().any(char::is_control), "{why:?}");
});
