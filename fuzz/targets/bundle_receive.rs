//! What the sender of a bundle answers: whatever it is, nothing comes under a release's name but what a trusted key has signed, whole.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use tokio::runtime::Builder;
use trilith_bundle::transfer::{Have, receive};
use trilith_bundle::{Keys, Manifest, Store};

/// The key that has signed what is in the seeds.
const KEY: &str = "RWTAavc53QxE8I1iNKjkVpNJZa6bkdR3onyJJrjpXM1x3ihUiHpizsu6";

fuzz_target!(|bytes: &[u8]| {
    let home = std::env::temp_dir().join(format!("trilith-fuzz-bundles-{}", std::process::id()));
    let _ = fs::remove_dir_all(&home);
    let (store, keys) = (Store::open(&home).expect("a folder"), Keys::parse(KEY).expect("a key"));
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut asked = Vec::new();
    let mut stream = tokio::io::join(bytes, &mut asked);
    let ended = runtime.block_on(receive(&mut stream, None, &store, &keys, |_| Ok(()), Have::default(), |_| ()));
    let there = store.list().expect("a folder");
    match ended {
        Ok(received) => {
            assert!(received.moved <= bytes.len() as u64);
            assert_eq!(there, [received.release.clone()]);
            let source = store.get(&received.release).expect("it is there");
            assert_eq!(keys.verify(source.manifest(), source.signature()), Ok(()));
            let manifest = Manifest::parse(source.manifest()).expect("it was signed");
            source.check(&manifest).expect("it is whole");
        }
        Err(failure) => {
            assert!(there.is_empty(), "{failure}");
            assert!(!failure.to_string().chars().any(char::is_control), "{failure}");
        }
    }
    let unfinished = store.unfinished().expect("a folder").len();
    assert_eq!(fs::read_dir(&home).expect("a folder").count(), there.len() + unfinished, "something lies beside");
    fs::remove_dir_all(&home).expect("it is ours");
});
