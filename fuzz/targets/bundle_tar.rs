//! The archive that a bundle is: members lie inside it, do not overlap, and have plain names.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use trilith_bundle::tar::walk;

fuzz_target!(|bytes: &[u8]| {
    let (members, fault) = walk(&mut Cursor::new(bytes));
    let mut end = 0;
    for member in &members {
        assert!(member.offset >= end + 512, "{member:?} lies on another one");
        end = member.offset + member.size;
        assert!(end <= bytes.len() as u64, "{member:?} lies outside");
        assert!(!member.name.starts_with('.') && !member.name.contains('/'), "{member:?}");
    }
    if let Some(fault) = fault {
        assert!(!fault.to_string().chars().any(char::is_control), "{fault}");
    }
});
