//! What a peer's connection brings: frames, and the calls and answers in them.
#![no_main]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use trilith_raft::net::{decode, read_frame};
use trilith_raft::{Answer, Call, RaftAnswer, RaftCall};

fn round<T: Serialize + DeserializeOwned>(frame: &[u8]) {
    if let Ok(call) = decode::<T>(frame) {
        let written = serde_json::to_vec(&call).expect("a call is JSON");
        let again: T = decode(&written).expect("what is written can be read");
        assert_eq!(serde_json::to_vec(&again).expect("a call is JSON"), written);
    }
}

fn rounds(frame: &[u8]) {
    round::<Call>(frame);
    round::<RaftCall>(frame);
    round::<Answer>(frame);
    round::<RaftAnswer>(frame);
}

fuzz_target!(|bytes: &[u8]| {
    rounds(bytes);
    let mut stream = bytes;
    loop {
        // A slice is always ready.
        let frame = match pin!(read_frame(&mut stream)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(Some(frame))) => frame,
            Poll::Ready(_) => return,
            Poll::Pending => panic!("a slice makes nobody wait"),
        };
        rounds(&frame);
    }
});
