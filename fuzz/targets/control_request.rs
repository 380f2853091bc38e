//! One line at the control socket.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trilith_shell::control::{Envelope, Response, VERSION, read};

fuzz_target!(|bytes: &[u8]| match read(bytes) {
    Ok(request) => {
        let shown = request.to_string();
        assert!(!shown.chars().any(char::is_control), "{shown:?} goes to the log");
        let line =
            serde_json::to_vec(&Envelope { version: VERSION, request: request.clone() }).expect("a request is JSON");
        assert_eq!(read(&line), Ok(request));
    }
    Err(response) => assert!(matches!(response, Response::Invalid { .. })),
});
