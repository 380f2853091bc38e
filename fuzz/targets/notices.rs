//! What programs that ran before the supervisor left for it to show, a file each.
#![no_main]
#![allow(dead_code, reason = "the supervisor's file is taken as it is; only its reader is fuzzed")]

use std::fs;

use libfuzzer_sys::fuzz_target;

#[path = "../../supervisor/shell/src/notices.rs"]
mod notices;

fuzz_target!(|bytes: &[u8]| {
    let folder = std::env::temp_dir().join(format!("trilith-fuzz-notices-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("one"), bytes).expect("a file");
    for notice in notices::read(&folder) {
        assert_eq!(notice.name, "one");
        assert!(!notice.text.is_empty() && !notice.text.chars().any(char::is_control), "{:?}", notice.text);
        assert!(notice.text.len() <= 3 * bytes.len());
    }
    fs::remove_dir_all(&folder).expect("it is ours");
});
