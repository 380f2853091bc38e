//! The fields of a heartbeat, as they are once the seal is open: whatever is read can be written, and then reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trilith_core::wire::{Heartbeat, Session};

fuzz_target!(|fields: &[u8]| {
    if let Ok(heartbeat) = Heartbeat::decode(Session(1), 2, fields) {
        let mut again = Vec::new();
        heartbeat.encode(&mut again);
        assert_eq!(Heartbeat::decode(Session(1), 2, &again), Ok(heartbeat));
    }
});
