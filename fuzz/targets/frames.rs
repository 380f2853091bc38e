//! ARP frames and neighbour advertisements as packet and raw sockets hand them over.
#![no_main]
#![allow(dead_code, reason = "the supervisor's file is taken as it is; only its readers are fuzzed")]

use libfuzzer_sys::fuzz_target;

#[path = "../../supervisor/shell/src/neighbour/frame.rs"]
mod frame;

fuzz_target!(|bytes: &[u8]| {
    if let Some(says) = frame::read_arp(bytes) {
        assert!(says.address.is_ipv4());
    }
    if let Some(says) = frame::read_advertisement(bytes) {
        assert!(says.address.is_ipv6());
    }
});
