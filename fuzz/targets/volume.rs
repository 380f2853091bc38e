//! The first sectors of a disk that may carry answers: those of ISO 9660, then those of FAT.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use trilith_firstboot::sources::disks::probe;

fuzz_target!(|bytes: &[u8]| {
    let path = std::env::temp_dir().join(format!("trilith-fuzz-volume-{}", std::process::id()));
    let disk = File::create(&path).expect("a file");
    let (iso, fat) = bytes.split_at(bytes.len().min(2048));
    let written = disk.write_all_at(fat, 0).and_then(|()| disk.write_all_at(iso, 16 * 2048));
    written.expect("there is room");
    if let Some(volume) = probe(&path) {
        assert!(["iso9660", "vfat"].contains(&volume.kind) && volume.device == path);
        assert!(volume.label.chars().count() <= 32, "{}", volume.label);
    }
    std::fs::remove_file(&path).expect("it is ours");
});
