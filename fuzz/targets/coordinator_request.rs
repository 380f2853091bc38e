//! One line at the coordinator's socket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{from_slice, to_vec};
use trilith_shell::coordinator::server::{Answer, Envelope, Request, VERSION, read};

fuzz_target!(|bytes: &[u8]| match read(bytes) {
    Ok(request) => {
        let line = written(request);
        let again = read(&line).expect("what is written can be read");
        assert_eq!(written(again), line);
    }
    Err(answer) => {
        assert!(matches!(answer, Answer::Refused { code: 2, .. }), "{answer:?}");
        let line = to_vec(&answer).expect("an answer is JSON");
        assert!(from_slice::<Answer>(&line).is_ok() && !line.contains(&b'\n'));
    }
});

fn written(request: Request) -> Vec<u8> {
    to_vec(&Envelope { version: VERSION, request }).expect("a request is JSON")
}
