//! What the kernel answers when it is asked for the counter of relayed packets.
#![no_main]
#![allow(dead_code, reason = "the supervisor's file is taken as it is; only its reader is fuzzed")]

use libfuzzer_sys::fuzz_target;

#[path = "../../supervisor/shell/src/relay/counter.rs"]
mod counter;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(count @ 1..) = counter::counted(bytes) {
        assert!(bytes.windows(8).any(|window| window == count.to_be_bytes()), "{count} from nowhere");
    }
});
