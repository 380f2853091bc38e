//! What commands are answered by the supervisor and by the coordinator.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use trilith_shell::{control, coordinator};

fn round<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(answer) = serde_json::from_slice::<T>(bytes) {
        let written = serde_json::to_vec(&answer).expect("an answer is JSON");
        let again: T = serde_json::from_slice(&written).expect("what is written can be read");
        assert_eq!(serde_json::to_vec(&again).expect("an answer is JSON"), written);
    }
}

fuzz_target!(|bytes: &[u8]| {
    round::<control::Response>(bytes);
    round::<coordinator::server::Answer>(bytes);
});
