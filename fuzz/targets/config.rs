//! The set's document. What is wrong is said in words that name the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trilith_core::config;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = config::parse_bytes(bytes, "set.toml") {
        assert!(error.to_string().contains("set.toml"), "{error}");
    }
});
