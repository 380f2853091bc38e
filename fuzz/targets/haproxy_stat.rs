//! What HAProxy answers to `show stat`: comma-separated lines from a process that runs as another user.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trilith_shell::haproxy::parse_flows;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let flows = parse_flows(&text);
    assert!(flows.backends.len() <= text.lines().count());
    assert_eq!(flows.relayed, 0, "not HAProxy's to know");
});
