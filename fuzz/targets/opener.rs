//! Datagrams as they come from the network. None that is made without the secret is ever opened, and whatever comes before
//! them, the genuine ones are.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use trilith_core::config::{MAX_NODES, NodeId};
use trilith_core::health::Fitness;
use trilith_core::wire::{Heartbeat, Opener, Sealer, Session};

fuzz_target!(|bytes: &[u8]| {
    let (a, b) = (NodeId(0), NodeId(1));
    let session = Session(0x0102_0304_0506_0708);
    let mut sealer = Sealer::new(b"secret", "edge-1", a, session);
    let mut opener = Opener::new(b"secret", "edge-1", 3, b);
    let mut genuine = Vec::new();
    // The input is a row of datagrams: length (2 bytes), what it is, and for some of them which byte to change, and how.
    let mut rest = bytes;
    let mut counter = 0;
    while let [high, low, kind, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (datagram, next) = after.split_at(length);
        match (kind % 3, datagram) {
            (0, datagram) => assert!(opener.open(datagram).is_err() && opener.open_probe(datagram).is_err()),
            (1, [high, low, change, ..]) if *change != 0 && !genuine.is_empty() => {
                let mut changed = genuine.clone();
                let at = usize::from(u16::from_be_bytes([*high, *low])) % changed.len();
                changed[at] ^= change;
                assert!(opener.open(&changed).is_err() && opener.open_probe(&changed).is_err());
            }
            _ => {
                counter += 1;
                sealer.seal(&heartbeat(session, counter), &mut genuine);
                assert_eq!(opener.open(&genuine).map(|opened| opened.heartbeat().counter), Ok(counter));
                assert!(opener.open(&genuine).is_err());
            }
        }
        rest = next;
    }
});

fn heartbeat(session: Session, counter: u64) -> Heartbeat {
    Heartbeat {
        session,
        counter,
        routine: false,
        heard: [None; MAX_NODES],
        fitness: Fitness::Fit,
        drained: false,
        mac: [2, 0, 0, 0, 0, 1],
        fingerprint: 1,
        version: [0, 1, 0],
        lease: Duration::from_millis(100),
        vips: Vec::new(),
        ask: None,
    }
}
