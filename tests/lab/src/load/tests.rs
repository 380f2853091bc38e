//! Each piece against servers, wires and liars made here.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::testing::{Namespace, PATIENCE, Server, eventually, on_some_try};
use super::*;

fn established(target: SocketAddr) -> EstablishedOptions {
    let interval = Duration::from_millis(20);
    EstablishedOptions { connections: 50, interval, connect_within: PATIENCE, ..EstablishedOptions::new(target) }
}

/// As fast as attempts may come that are given time.
fn steady(target: SocketAddr) -> SteadyOptions {
    SteadyOptions { rate: 100, timeout: Duration::from_secs(10), ..SteadyOptions::new(target) }
}

#[test]
fn connections_that_are_left_alone_neither_break_nor_stall() {
    for host in ["127.0.0.1", "::1"] {
        let server = Server::echo(host);
        let load = Established::start(established(server.addr)).unwrap();
        assert_eq!(load.local_ports().len(), 50);
        eventually("many pings", || load.report(Window::ALL).pings > 500);
        assert_eq!((load.live().alive, load.live().broken), (50, 0));
        let report = load.finish();
        assert_eq!((report.established, report.broken), (50, 0), "{report:?}");
        assert!(report.stall_ms.count == 50 && report.cpu_ms.is_some());
        assert!(json_row(&report).unwrap().contains("\"broken\":0"));
    }
}

#[test]
fn each_reset_connection_is_counted_once_with_its_port_and_time() {
    let server = Server::echo("127.0.0.1");
    let load = Established::start(established(server.addr)).unwrap();
    let before_ns = now_ns();
    server.orders.reset.store(7, Ordering::Relaxed);
    eventually("resets seen", || load.live().broken == 7);
    let (after_ns, ports) = (now_ns(), load.local_ports());
    thread::sleep(Duration::from_millis(100));
    let later = load.report(Window::new(after_ns, u64::MAX));
    assert_eq!(later.broken, 0, "they broke before that window");
    let report = load.finish();
    assert_eq!((report.broken, report.broken_at.len()), (7, 7));
    for broken in &report.broken_at {
        assert_eq!(broken.failure, Failure::Reset);
        assert!(ports.contains(&broken.local_port) && Window::new(before_ns, after_ns).holds(broken.at_ns));
    }
}

#[test]
fn a_stall_is_measured_from_the_ping_to_its_echo_and_belongs_to_its_window() {
    let server = Server::echo("127.0.0.1");
    let load = Established::start(established(server.addr)).unwrap();
    let from_ns = now_ns();
    server.orders.hold.store(true, Ordering::Relaxed);
    eventually("pings wait", || load.report(Window::new(from_ns, u64::MAX)).stall_ms.p50 > 150.0);
    assert!(load.live().outstanding_ms > 150.0);
    server.orders.hold.store(false, Ordering::Relaxed);
    eventually("all flows again", || load.live().outstanding_ms < 50.0);
    let held = Window::new(from_ns, now_ns());
    eventually("half of the samples are from a quiet window", || {
        let quiet = Window::new(now_ns() - 40 * NS_PER_MS, now_ns());
        let stalls = load.stalls_per(&[held, quiet]);
        stalls.count == 100 && stalls.max > 150.0 && stalls.p50 < 100.0
    });
    let report = load.finish();
    assert_eq!(report.broken, 0);
    assert!(report.stall_ms.p50 > 150.0, "{:?}", report.stall_ms);
    assert!(!report.stalls.is_empty());
}

#[test]
fn a_connection_that_stays_silent_breaks_by_timeout() {
    let server = Server::echo("127.0.0.1");
    let dead_after = Duration::from_millis(400);
    let load = Established::start(EstablishedOptions { dead_after, ..established(server.addr) }).unwrap();
    server.orders.hold.store(true, Ordering::Relaxed);
    eventually("all dead", || load.live().alive == 0);
    assert!(load.finish().broken_at.iter().all(|broken| broken.failure == Failure::Timeout));
}

#[test]
fn a_connection_that_the_server_closes_is_broken_as_well() {
    let server = Server::echo("127.0.0.1");
    let load = Established::start(established(server.addr)).unwrap();
    // A ping that crosses with the close is answered by a reset: then another one is closed.
    let ended = || load.report(Window::ALL).broken_at.iter().any(|broken| broken.failure == Failure::Eof);
    for closed in 1..=50 {
        server.orders.close.store(1, Ordering::Relaxed);
        eventually("a close seen", || load.live().broken == closed);
        if ended() {
            break;
        }
    }
    assert!(ended(), "{:?}", load.finish());
}

#[test]
fn an_echo_with_one_wrong_bit_is_noticed() {
    let server = Server::echo("127.0.0.1");
    let load = Established::start(established(server.addr)).unwrap();
    server.orders.garble.store(true, Ordering::Relaxed);
    eventually("all broken", || load.live().alive == 0);
    assert!(load.finish().broken_at.iter().all(|broken| broken.failure == Failure::BadAnswer));
}

#[test]
fn a_service_that_is_not_there_is_named_at_the_start() {
    let error = Established::start(established(refusing())).err().unwrap();
    assert!(format!("{error:#}").contains("refused"), "{error:#}");
    let netns = Some("/run/netns/tx-none".into());
    let error = Established::start(EstablishedOptions { netns, ..established(refusing()) }).err().unwrap();
    assert!(format!("{error:#}").contains("/run/netns/tx-none"), "{error:#}");
}

#[test]
fn a_steady_stream_is_evenly_spaced_and_counts_who_served_it() {
    let server = Server::http("127.0.0.1");
    let load = Steady::start(SteadyOptions { prompt: PATIENCE, ..steady(server.addr) }).unwrap();
    eventually("a hundred attempts", || load.live().attempts >= 100);
    assert_eq!(load.live().node.as_deref(), Some("node-a"));
    let report = load.finish();
    assert_eq!(report.ok, report.attempts, "{report:?}");
    assert_eq!(report.nodes.get("node-a"), Some(&report.ok));
    assert!(report.longest_gap_ms >= 10.0 && report.longest_gap_ms < 100.0 + report.lag_ms_max, "{report:?}");
}

#[test]
fn an_outage_is_a_gap_of_its_own_length() {
    for (ask, server) in
        [(Ask::Http { path: "/".into() }, Server::http("127.0.0.1")), (Ask::Echo, Server::echo("127.0.0.1"))]
    {
        on_some_try(|| {
            let options = SteadyOptions {
                prompt: Duration::from_millis(50),
                timeout: Duration::from_millis(200),
                ask: ask.clone(),
                ..SteadyOptions::new(server.addr)
            };
            let load = Steady::start(options).unwrap();
            eventually("attempts", || load.live().ok >= 20);
            let from_ns = now_ns();
            server.orders.hold.store(true, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(400));
            server.orders.hold.store(false, Ordering::Relaxed);
            let outage = Window::new(from_ns, now_ns());
            let ok = load.live().ok;
            eventually("attempts again", || load.live().ok >= ok + 20);
            let report = load.report(outage);
            // Connections that the kernel accepted in the last 50 ms of it are answered in time.
            let measured = (300.0..500.0).contains(&report.longest_gap_ms)
                // The kernel went on accepting.
                && report.longest_connect_gap_ms < 100.0
                && report.timeouts > 20
                && report.ok > 0;
            if measured { Ok(()) } else { Err(format!("{report:?}")) }
        });
    }
}

#[test]
fn refusals_resets_and_bad_statuses_are_told_apart() {
    let refused = Steady::start(steady(refusing())).unwrap();
    let server = Server::http("127.0.0.1");
    let unavailable = Steady::start(steady(server.addr)).unwrap();
    server.orders.unavailable.store(true, Ordering::Relaxed);
    let window = Window::new(now_ns(), u64::MAX);
    eventually("bad statuses", || unavailable.report(window).attempts > 20);
    let window = unavailable.report(window);
    assert_eq!(window.failures.get("bad status 503"), Some(&window.attempts), "{window:?}");
    server.orders.unavailable.store(false, Ordering::Relaxed);
    server.orders.reset.store(5, Ordering::Relaxed);
    eventually("refusals", || refused.live().attempts > 40);
    let refused = refused.finish();
    assert_eq!(refused.refused, refused.attempts, "{refused:?}");
    eventually("resets", || unavailable.report(Window::ALL).reset == 5);
    assert_eq!(unavailable.finish().reset, 5);
}

#[test]
fn a_kept_connection_that_is_closed_politely_is_no_failure_and_a_reset_one_is() {
    let server = Server::http("127.0.0.1");
    let options = KeepAliveOptions {
        connections: 10,
        pause: Duration::ZERO,
        timeout: PATIENCE,
        ..KeepAliveOptions::new(server.addr)
    };
    let load = KeepAlive::start(options).unwrap();
    eventually("requests", || load.report(Window::ALL).ok > 500);
    assert_eq!(load.report(Window::ALL).polite_closes, 0);
    server.orders.announce_close.store(true, Ordering::Relaxed);
    eventually("polite closes", || load.report(Window::ALL).polite_closes > 100);
    server.orders.announce_close.store(false, Ordering::Relaxed);
    let report = load.report(Window::ALL);
    assert_eq!((report.failed, report.broken, report.connect_failures), (0, 0, 0), "{report:?}");
    assert!(report.nodes.get("node-a").is_some_and(|ok| *ok == report.ok));
    server.orders.reset.store(9, Ordering::Relaxed);
    // One that is reset before it has asked anything counts as a failure to connect.
    let lost = |report: &KeepAliveReport| report.broken + report.connect_failures;
    eventually("broken", || lost(&load.report(Window::ALL)) == 9);
    let report = load.finish();
    assert_eq!((lost(&report), report.failures.get("reset")), (9, Some(&9)), "{report:?}");
    assert_eq!(report.requests, report.ok + report.failed);
}

#[test]
fn an_idle_connection_may_be_closed_but_not_reset() {
    let server = Server::http("127.0.0.1");
    let pause = Duration::from_secs(1);
    let options = KeepAliveOptions { pause, timeout: PATIENCE, ..KeepAliveOptions::new(server.addr) };
    let load = KeepAlive::start(options).unwrap();
    let report = || load.report(Window::ALL);
    eventually("all have asked once", || report().ok >= 50);
    server.orders.close.store(5, Ordering::Relaxed);
    // Rarely a request is on its way just then, and fails.
    eventually("closes", || report().polite_closes + report().failed == 5);
    assert!(report().polite_closes > 0 && report().broken == report().failed);
    let lost = || report().broken + report().connect_failures;
    let before = lost();
    server.orders.reset.store(5, Ordering::Relaxed);
    eventually("resets", || lost() == before + 5);
}

#[test]
fn an_echo_connection_may_be_closed_at_any_time_but_not_reset() {
    let server = Server::echo("127.0.0.1");
    let options = |connections| KeepAliveOptions {
        connections,
        echo: true,
        pause: Duration::from_millis(50),
        timeout: PATIENCE,
        ..KeepAliveOptions::new(server.addr)
    };
    let load = KeepAlive::start(options(20)).unwrap();
    let report = || load.report(Window::ALL);
    eventually("echoes", || report().ok >= 100);
    server.orders.close.store(5, Ordering::Relaxed);
    // Rarely bytes are on their way that the server has not read: then its kernel resets.
    eventually("closes", || report().polite_closes + report().broken + report().connect_failures == 5);
    assert!(report().polite_closes > 0, "{:?}", report());
    let before = report();
    server.orders.reset.store(5, Ordering::Relaxed);
    let lost = |report: &KeepAliveReport| report.broken + report.connect_failures;
    eventually("resets", || lost(&report()) == lost(&before) + 5);
    let ok = report().ok;
    eventually("all go on", || report().ok > ok + 40);
}

#[test]
fn an_echo_connection_that_is_closed_before_it_has_carried_anything_or_garbled_is_broken() {
    let server = Server::echo("127.0.0.1");
    // As a proxy does that has no server for it.
    server.orders.close.store(1, Ordering::Relaxed);
    let options =
        KeepAliveOptions { connections: 1, echo: true, timeout: PATIENCE, ..KeepAliveOptions::new(server.addr) };
    let load = KeepAlive::start(options).unwrap();
    let report = || load.report(Window::ALL);
    eventually("an end", || report().broken + report().connect_failures == 1);
    eventually("an echo", || report().ok > 0);
    server.orders.garble.store(true, Ordering::Relaxed);
    eventually("a bad answer", || report().failures.contains_key("bad answer"));
    assert_eq!(report().polite_closes, 0);
}

#[test]
fn downloads_are_paced_whole_and_stall_only_when_the_server_does() {
    let server = Server::http("127.0.0.1");
    let options = TransfersOptions { bytes: 1 << 20, bytes_per_s: 10 << 20, ..TransfersOptions::new(server.addr) };
    let start_ns = now_ns();
    let load = Transfers::start(options.clone()).unwrap();
    eventually("downloads", || load.report(Window::ALL).complete >= 12);
    let (report, seconds) = (load.report(Window::ALL), (now_ns() - start_ns) as f64 / 1e9);
    assert!(report.bytes as f64 / seconds < 48.0 * 1024.0 * 1024.0, "{report:?} in {seconds} s");
    assert_eq!(report.failed, 0, "{report:?}");
    server.orders.hold.store(true, Ordering::Relaxed);
    thread::sleep(Duration::from_millis(400));
    server.orders.hold.store(false, Ordering::Relaxed);
    eventually("a stall", || load.report(Window::ALL).longest_stall_ms > 150.0);
    load.finish();
    server.orders.cut_short.store(true, Ordering::Relaxed);
    let load = Transfers::start(options).unwrap();
    eventually("short ones", || load.report(Window::ALL).failed > 3);
    let report = load.finish();
    assert_eq!((report.complete, report.failures.get("eof")), (0, Some(&report.failed)), "{report:?}");
}

#[test]
fn throughput_counts_what_was_answered_in_both_ways_of_connecting() {
    let server = Server::http("127.0.0.1");
    for keep_alive in [true, false] {
        let options = ThroughputOptions {
            keep_alive,
            concurrency: 8,
            warm_up: Duration::from_millis(100),
            duration: Duration::from_secs(1),
            ..ThroughputOptions::new(server.addr)
        };
        let report = throughput(&options).unwrap();
        assert!(report.ok > 0 && report.failures.is_empty(), "{report:?}");
        assert!(report.latency_ms.p50 > 0.0 && report.client_cpu > 0.0, "{report:?}");
    }
    let error =
        throughput(&ThroughputOptions { duration: Duration::from_secs(1), ..ThroughputOptions::new(refusing()) });
    assert!(error.unwrap_err().to_string().contains("refused"));
}

#[test]
fn what_is_answered_while_warming_up_does_not_count() {
    let server = Server::http("127.0.0.1");
    let options = ThroughputOptions {
        concurrency: 8,
        // Long enough that what comes after the pause below is still of this time.
        warm_up: Duration::from_secs(3),
        duration: Duration::from_millis(100),
        ..ThroughputOptions::new(server.addr)
    };
    let load = thread::spawn(move || throughput(&options));
    thread::sleep(Duration::from_millis(100));
    server.orders.hold.store(true, Ordering::Relaxed);
    assert!(load.join().unwrap().unwrap_err().to_string().contains("not one request"));
}

#[test]
fn the_kernel_that_has_the_vip_is_seen_as_its_only_owner_and_gone_when_it_has_not() {
    for (vip, address) in [("10.99.0.10", "10.99.0.10/24"), ("fd99::10", "fd99::10/64")] {
        let (client, node) = (Namespace::new(), Namespace::new());
        client.wire_to(&node);
        let vip: IpAddr = vip.parse().unwrap();
        let add = format!("address add {address} dev veth0{}", if vip.is_ipv6() { " nodad" } else { "" });
        let watch =
            ArpWatch::start(ArpWatchOptions { netns: Some(client.path.clone()), ..ArpWatchOptions::new("veth0", vip) })
                .unwrap();
        node.ip(&add);
        eventually("an owner", || watch.live().owners.len() == 1);
        assert_eq!(neighbour(Some(&client.path), vip).unwrap(), None, "our asking must not teach the kernel");
        node.ip(&format!("address del {address} dev veth0"));
        eventually("no owner", || watch.live().owners.is_empty());
        let without_ns = now_ns();
        eventually("a while without an owner", || {
            watch.report(Window::new(without_ns, u64::MAX)).longest_none_ms >= 80.0
        });
        node.ip(&add);
        eventually("an owner again", || watch.live().owners.len() == 1);
        let report = watch.finish();
        assert_eq!((report.owners_max, report.longest_many_ms, report.current.len()), (1, 0.0, 1), "{report:?}");
        assert!(report.unanswered > 0 && report.questions > report.unanswered);
    }
}

#[test]
fn two_nodes_that_answer_the_same_question_are_seen_as_two_owners() {
    let (client, left, right) = (Namespace::new(), Namespace::new(), Namespace::new());
    client.ip("link add br0 type bridge");
    client.ip("link set br0 up");
    for (node, port) in [(&left, "left"), (&right, "right")] {
        client.wire_to(node);
        client.ip(&format!("link set veth0 name {port} master br0"));
    }
    left.ip("address add 10.99.0.10/24 dev veth0");
    let vip = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 10));
    let options = ArpWatchOptions { netns: Some(client.path.clone()), ..ArpWatchOptions::new("br0", vip) };
    let watch = ArpWatch::start(options).unwrap();
    eventually("one owner", || watch.live().owners.len() == 1);
    right.ip("address add 10.99.0.10/24 dev veth0");
    eventually("two owners", || watch.live().owners.len() == 2);
    eventually("two for a while", || watch.report(Window::ALL).longest_many_ms >= 80.0);
    left.ip("address del 10.99.0.10/24 dev veth0");
    eventually("one owner again", || watch.live().owners.len() == 1);
    let report = watch.finish();
    assert_eq!(report.owners_max, 2);
    assert_ne!(report.owners.first().unwrap().owners, report.current);
}

#[test]
fn announcements_are_heard_with_their_kind_and_sender() {
    let (client, node) = (Namespace::new(), Namespace::new());
    client.wire_to(&node);
    let vip = Ipv4Addr::new(10, 99, 0, 10);
    let options = ArpWatchOptions {
        netns: Some(client.path.clone()),
        ask_every: None,
        ..ArpWatchOptions::new("veth0", vip.into())
    };
    let watch = ArpWatch::start(options).unwrap();
    let sender = Mac([2, 9, 9, 9, 9, 9]);
    node.run(|| {
        let socket = arp::packet_socket("veth0", vip.into()).unwrap();
        let mut frame = frames::arp_request(vip, sender, vip);
        socket.send(&frame).unwrap();
        frame[21] = 2;
        socket.send(&frame).unwrap();
    });
    eventually("both", || watch.live().claims == 2);
    let report = watch.finish();
    assert!(report.claims.iter().all(|claim| claim.mac == sender));
    let kinds: Vec<ClaimKind> = report.claims.iter().map(|claim| claim.kind).collect();
    assert_eq!(kinds, [ClaimKind::GratuitousRequest, ClaimKind::GratuitousReply]);
    assert_eq!((report.questions, report.owners_max), (0, 0));
    assert!(json_row(&report).unwrap().contains("\"02:09:09:09:09:09\":{\"gratuitous_request\":1"));
}

#[test]
fn the_client_s_own_entry_for_an_address_is_read() {
    let (client, node) = (Namespace::new(), Namespace::new());
    client.wire_to(&node);
    let vip = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 10));
    assert_eq!(neighbour(Some(&client.path), vip).unwrap(), None);
    client.ip("neighbour add 10.99.0.10 lladdr 02:00:00:00:00:07 dev veth0");
    let entry = neighbour(Some(&client.path), vip).unwrap().unwrap();
    assert_eq!((entry.mac.as_deref(), entry.interface.as_str()), (Some("02:00:00:00:00:07"), "veth0"));
}

/// A port of loopback where nobody listens, nor ever will: it is bound until this process ends.
fn refusing() -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    address
}
