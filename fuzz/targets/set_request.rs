//! Requests to the replicated state, a line each, in the order of the log. Every node applies them, so none may stop it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, from_slice, from_value, to_value};
use trilith_core::set::{MAX_BANS, MAX_BUNDLES, MAX_HISTORY, MAX_NODES, MAX_SERVICES, Reply, Request, State};

fuzz_target!(|bytes: &[u8]| {
    let mut state = State::default();
    for line in bytes.split(|byte| *byte == b'\n') {
        let value = from_slice::<Value>(line).unwrap_or_default();
        let Ok(request) = from_value::<Request>(value) else { continue };
        let before = state.clone();
        let reply = state.apply(&request);
        if !matches!(reply, Ok(Reply::Done | Reply::Started { .. } | Reply::Held { .. })) {
            assert_eq!(state, before, "{request} was answered with {reply:?}");
        }
        // A node that starts anew takes it from a snapshot.
        let image = to_value(&state).expect("a state is JSON");
        assert_eq!(from_value::<State>(image).expect("what is written can be read"), state, "{request}");
    }
    assert!(state.nodes.len() <= MAX_NODES && state.bundles.len() <= MAX_BUNDLES && state.bans.len() <= MAX_BANS);
    assert!(state.history.len() <= MAX_HISTORY && state.leases.len() <= MAX_SERVICES);
});
