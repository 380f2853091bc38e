//! The tree of a service's image: whatever the archive says, only plain files and directories come of it, and only where they belong.
#![no_main]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use trilith_bundle::tree::unpack;

fuzz_target!(|bytes: &[u8]| {
    let home = std::env::temp_dir().join(format!("trilith-fuzz-tree-{}", std::process::id()));
    let _ = fs::remove_dir_all(&home);
    let done = unpack(bytes, &home.join("tree"));
    let beside = fs::read_dir(&home).expect("it was made").flatten().count();
    assert_eq!(beside, 1, "something lies beside the tree");
    plain(&home.join("tree"));
    if let Err(why) = done {
        assert!(!why.chars().any(char::is_control), "{why:?}");
    }
    fs::remove_dir_all(&home).expect("it is ours");
});

fn plain(path: &Path) {
    let meta = fs::symlink_metadata(path).expect("it was listed");
    assert!(meta.is_dir() || meta.is_file(), "{path:?}");
    assert_eq!(meta.permissions().mode() & 0o7022, 0, "{path:?}");
    if meta.is_dir() {
        fs::read_dir(path).expect("a directory").flatten().for_each(|entry| plain(&entry.path()));
    }
}
