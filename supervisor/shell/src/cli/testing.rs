//! What the tests of the commands and of the console show.

use trilith_core::status::{
    BackendStatus, Channel, DecisionStatus, Flows, NodeStatus, Relay, Status, Timers, VipStatus,
};

/// A status in which every field says something.
pub fn full() -> Status {
    let node = |name: &str, last: u8, silent_ms| NodeStatus {
        name: name.to_owned(),
        address: format!("10.77.0.{last}"),
        zone: Some(format!("host-{last}")),
        fitness: "fit".to_owned(),
        reason: None,
        drained: false,
        heard: true,
        hears_us: true,
        in_ring: true,
        silent_ms,
        version: Some("0.1.0".to_owned()),
        fingerprint: Some("4351b4ee".to_owned()),
    };
    let server = |service: &str, node: &str, current| BackendStatus {
        service: service.to_owned(),
        node: node.to_owned(),
        state: "UP".to_owned(),
        since_ms: 92_999_000,
        check: "Layer7 check passed, 200: OK".to_owned(),
        current,
    };
    Status {
        schema: 1,
        set: "edge-1".to_owned(),
        node: "a".to_owned(),
        version: "0.1.0".to_owned(),
        fingerprint: "4351b4ee".to_owned(),
        uptime_ms: 93_000_000,
        vips: vec![
            VipStatus {
                name: "public".to_owned(),
                address: "10.77.0.10/24".to_owned(),
                owner: Some("a".to_owned()),
                why: "granted by a, b and c".to_owned(),
                epoch: 7,
                lease_left_ms: Some(88),
                lone: false,
            },
            VipStatus {
                name: "public6".to_owned(),
                address: "fd77::10/64".to_owned(),
                owner: Some("b".to_owned()),
                why: "b says so".to_owned(),
                epoch: 3,
                lease_left_ms: None,
                lone: false,
            },
        ],
        nodes: vec![node("a", 11, None), node("b", 12, Some(12)), node("c", 13, Some(21))],
        timers: Timers { heartbeat_ms: 25, lease_ms: 100, lease_min_ms: 100, lease_max_ms: 500, jitter_ms: 3 },
        relay: Relay { loaded: true, next: Some("b".to_owned()), last_hop: 2, tunnels: Vec::new() },
        alarms: Vec::new(),
        decisions: vec![
            DecisionStatus { ago_ms: 92_000_000, text: "hears b".to_owned() },
            DecisionStatus { ago_ms: 12_400, text: "owns VIP public (epoch 7)".to_owned() },
        ],
        flows: Some(Flows {
            current: 1203,
            total: 88_120,
            relayed: 412,
            backends: vec![server("portal", "a", 401), server("portal", "b", 400), server("echo", "a", 2)],
        }),
        haproxy_problem: None,
        channel: Some(Channel { sent: 91_204, detoured: 0, not_sent: 0, received: 91_198, refused: 0 }),
    }
}
