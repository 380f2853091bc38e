//! The start of a partition: the superblock of a hash tree, as the initrd reads it, and of the state's file system.
#![no_main]
#![allow(dead_code, reason = "the files are taken as they are")]

use libfuzzer_sys::fuzz_target;

#[path = "../../supervisor/shell/src/state/superblock.rs"]
mod state;
#[path = "../../image/initrd/src/superblock.rs"]
mod tree;

fuzz_target!(|bytes: &[u8]| {
    let mut start = [0; 4096];
    let length = bytes.len().min(start.len());
    start[..length].copy_from_slice(&bytes[..length]);
    if let Ok(tree) = tree::parse(&start) {
        assert_eq!(tree::written(&tree), start);
        assert!(tree.blocks.checked_mul(tree::BLOCK.into()).is_some_and(|size| size <= 4 << 30));
    }
    if let Some(state) = state::Superblock::of(&start) {
        assert!(state.block_size.is_power_of_two() && (1024..=65536).contains(&state.block_size));
        assert!(state.blocks.checked_mul(state.block_size).is_some());
    }
});
