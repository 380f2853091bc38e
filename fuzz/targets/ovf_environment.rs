//! The OVF environment, and Hyper-V's pool of keys and values.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trilith_firstboot::sources::{kvp, ovf};
use trilith_firstboot::take::take;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(Some(documents)) = ovf::documents(bytes, "fuzz") {
        take(&documents);
    }
    if let Some(documents) = kvp::documents(bytes) {
        take(&documents);
    }
});
