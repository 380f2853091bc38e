//! Every target once over its seeds, without libFuzzer: so a target that its parser has left behind fails `./justw check`.
#![cfg(test)]
#![allow(unused_attributes, reason = "a target is a program of its own for libFuzzer")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Under this name the targets look for [`fuzz_target`].
extern crate self as libfuzzer_sys;

macro_rules! targets {
    ($($target:ident)*) => {
        #[path = "../targets"]
        mod targets {
            $(pub mod $target;)*
        }

        $(
            #[test]
            fn $target() {
                over_seeds(stringify!($target), targets::$target::run);
            }
        )*

        const HERE: &[&str] = &[$(stringify!($target)),*];
    };
}

targets! {
    answers boot_entry bundle_manifest bundle_receive bundle_send bundle_tar cloud_config config control_request
    coordinator_request disk_record frames guestinfo haproxy_stat heartbeat network_config nfnetlink notices opener ovf_environment
    raft_frames raft_log service_tree set_request superblock uki view volume
}

/// What libFuzzer's macro of this name takes, as a function. (Down here, so that the targets need the path to it.)
#[macro_export]
macro_rules! fuzz_target {
    (|$bytes:ident: &[u8]| $body:expr) => {
        pub fn run($bytes: &[u8]) {
            $body
        }
    };
    (|$text:ident: &str| $body:expr) => {
        pub fn run(bytes: &[u8]) {
            if let Ok($text) = std::str::from_utf8(bytes) {
                $body
            }
        }
    };
}

#[test]
fn every_target_is_here_and_has_a_program() {
    let here: BTreeSet<_> = HERE.iter().map(|name| name.to_string()).collect();
    let name = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    assert_eq!(files("targets").iter().map(name).collect::<BTreeSet<_>>(), here);
    let manifest: toml::Table = fs::read_to_string(home().join("Cargo.toml")).unwrap().parse().unwrap();
    let programs = manifest["bin"].as_array().unwrap().iter().map(|bin| bin["name"].as_str().unwrap().to_owned());
    assert_eq!(programs.collect::<BTreeSet<_>>(), here);
}

fn over_seeds(target: &str, run: fn(&[u8])) {
    for seed in files(&format!("seeds/{target}")) {
        // Shown when it fails.
        println!("{}", seed.display());
        run(&fs::read(seed).unwrap());
    }
}

/// The files of a folder, of which there is one at least.
fn files(folder: &str) -> Vec<PathBuf> {
    let files: Vec<_> = fs::read_dir(home().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!files.is_empty(), "{folder}");
    files
}

fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
