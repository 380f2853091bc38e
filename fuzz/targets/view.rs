//! What coordinators say to each other about what they see: a question, or an answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Runtime};
use trilith_shell::coordinator::{Answer, Claim, read};

fn round<T: Serialize + DeserializeOwned + PartialEq>(runtime: &Runtime, bytes: &[u8]) {
    let mut rest = bytes;
    // A slice makes nobody wait.
    if let Ok(said) = runtime.block_on(read::<T>(&mut rest)) {
        let length = bytes.len() - rest.len() - 2;
        assert!(length <= 16 << 10 && bytes.starts_with(&(length as u16).to_be_bytes()), "{length} bytes were taken");
        let written = serde_json::to_vec(&said).expect("it is JSON");
        assert!(serde_json::from_slice(&written).is_ok_and(|again: T| again == said));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    // The length keeps random bytes out, so they are also tried with the right one.
    let fitting = [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    for bytes in [bytes, &fitting] {
        round::<Claim>(&runtime, bytes);
        round::<Answer>(&runtime, bytes);
    }
});
