//! The node's record on disk. The checksum keeps random bytes out, so they are also tried with the right one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use trilith_core::wire::DiskRecord;

fuzz_target!(|bytes: &[u8]| {
    let mut fitting = bytes.to_vec();
    fitting.extend(&Sha256::digest(bytes)[..8]);
    for record in [bytes, &fitting] {
        if let Ok(record) = DiskRecord::decode(record) {
            assert_eq!(DiskRecord::decode(&record.encode()), Ok(record));
        }
    }
});
