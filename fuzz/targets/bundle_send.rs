//! What the receiver of a bundle says to the sender.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use trilith_bundle::Source;
use trilith_bundle::transfer::{MAX_ANSWER, MAX_MESSAGE, send};

/// A bundle with two small parts.
const BUNDLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds/bundle_tar/service");

fuzz_target!(|bytes: &[u8]| {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    play(&runtime, bytes);
    // The lengths keep random bytes out, so each line is also tried as a message.
    let message = |line: &[u8]| [&(line.len() as u32).to_be_bytes(), line].concat();
    play(&runtime, &bytes.split(|byte| *byte == b'\n').flat_map(message).collect::<Vec<_>>());
});

fn play(runtime: &Runtime, asked: &[u8]) {
    let (mut questions, mut said) = (0, Vec::new());
    let mut stream = tokio::io::join(asked, &mut said);
    let ended = runtime.block_on(send(&mut stream, |_| Source::open(Path::new(BUNDLE)), |_| questions += 1));
    if let Err(failure) = ended {
        assert!(!failure.to_string().chars().any(char::is_control), "{failure}");
    }
    assert!(said.len() <= questions * (4 + MAX_MESSAGE + MAX_ANSWER), "{} bytes for {questions} questions", said.len());
}
