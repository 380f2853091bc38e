//! Names of the boot loader's entries: whatever is on the ESP, one name means one thing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trilith_core::slots::{Entry, EntryName};

fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<EntryName>() {
        assert_eq!(name.to_string().parse(), Ok(name));
        assert!(name.unfinished().parse::<EntryName>().is_err());
    }
    let entry = Entry { file: text.to_owned(), image: None };
    assert!(!(entry.blessed() && entry.spent()) && (entry.spent() || !entry.failed()));
});
