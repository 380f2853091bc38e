//! A file on the ESP that may be a UKI, and a partition that may begin with a hash tree.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trilith_bundle::uki::Uki;
use trilith_bundle::verity::{Tree, claimed_bytes, claimed_root};

fuzz_target!(|bytes: &[u8]| {
    if let Err(what) = Uki::open(bytes) {
        assert!(!what.chars().any(char::is_control), "{what}");
    }
    if let (Ok(root), Ok(size)) = (claimed_root(bytes), claimed_bytes(bytes)) {
        assert!(size <= 64 << 20);
        let _ = Tree::open(bytes, root);
    }
});
