//! The channel on the loopback of a network of its own, where every 127.0.0.x is at hand: an attacker takes a node's address
//! by binding to it. Needs root.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::process;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use trilith_core::config;
use trilith_core::health::Fitness;
use trilith_core::wire::Echo;

use super::detour::Paths;
use super::*;

const SECRET: &[u8] = b"a secret of this test";
const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);
const C: NodeId = NodeId(2);
/// The default between two heartbeats.
const PACE: Duration = Duration::from_millis(25);
/// What is sent arrives at once, but for a busy machine's kernel, which does it when it gets to it.
const PATIENCE: Duration = Duration::from_secs(60);
/// A heartbeat that is not heard within this time is lost.
const LOST: Duration = Duration::from_millis(500);
/// On an idle machine all are heard. A busy one's kernel throws some away before it sorts them (netdev_max_backlog).
const LEAST_OF_40: u32 = 20;

#[tokio::test]
async fn a_heartbeat_reaches_both_other_nodes() {
    own_network();
    let settings = settings(21_000);
    let mut nodes = [node(&settings, A), node(&settings, B), node(&settings, C)];
    nodes[0].beat();
    for (at, expected) in [(1, true), (2, true), (0, false)] {
        let patience = if expected { PATIENCE } else { 4 * PACE };
        let heard = tokio::time::timeout(patience, nodes[at].next_peer()).await.ok().flatten();
        assert_eq!(heard.map(|(from, heartbeat)| (from, heartbeat.counter)), expected.then_some((A, 1)), "node {at}");
    }
    assert_eq!(nodes[0].handle.stats().sent, 2);
    assert_eq!(nodes[1].handle.stats().received, 1);
}

#[tokio::test]
async fn a_peer_that_restarts_is_heard_in_its_new_session() {
    own_network();
    let settings = settings(21_010);
    let mut b = node(&settings, B);
    for _ in 0..3 {
        let mut a = node(&settings, A);
        for _ in 0..3 {
            a.beat();
            let (from, heartbeat) = b.next_peer().await.expect("a is heard");
            assert_eq!((from, heartbeat.session), (A, a.session));
            b.beat();
        }
        a.end().await;
    }
    assert_eq!(b.handle.stats().received, 9);
}

#[tokio::test]
async fn what_is_routine_wakes_nobody_and_is_there_when_something_else_does() {
    own_network();
    let settings = settings(21_020);
    let (mut a, mut b) = (node(&settings, A), node(&settings, B));
    greet(&mut a, &mut b).await;
    a.routine();
    assert!(tokio::time::timeout(4 * PACE, b.next_peer()).await.is_err(), "nobody polls that queue");
    let start = Instant::now();
    while b.handle.stats().received == 1 && start.elapsed() < PATIENCE {
        b.handle.catch_up();
    }
    assert_eq!(b.next_peer().await.map(|(_, heartbeat)| (heartbeat.counter, heartbeat.routine)), Some((2, true)));
    a.routine();
    a.beat();
    let counters =
        [b.next_peer().await, b.next_peer().await].map(|heard| heard.map(|(_, heartbeat)| heartbeat.counter));
    assert_eq!(counters, [Some(3), Some(4)], "the one that waited comes first");
}

#[tokio::test]
async fn nothing_waits_any_more_once_a_stranger_writes_into_that_queue() {
    own_network();
    let settings = settings(21_030);
    let (mut a, mut b) = (node(&settings, A), node(&settings, B));
    greet(&mut a, &mut b).await;
    let mut forged = vec![0; 100];
    forged[..4].copy_from_slice(b"TL\x81\0");
    forged[4..12].copy_from_slice(&a.session.0.to_be_bytes());
    forged[12..20].fill(1);
    let stranger = UdpSocket::bind("127.0.0.11:0").expect("bind");
    stranger.set_ttl(255).expect("ttl");
    stranger.send_to(&forged, "127.0.0.12:21030").expect("it is sent");
    let start = Instant::now();
    while b.handle.stats().forged == 0 && start.elapsed() < PATIENCE {
        b.handle.catch_up();
    }
    assert_eq!(b.handle.stats().forged, 1);
    assert_eq!(b.handle.strangers(), [A]);
    a.routine();
    assert!(b.next_peer().await.is_some(), "routine or not, it wakes");
}

#[tokio::test]
async fn a_second_supervisor_is_told_that_the_port_is_taken() {
    own_network();
    let settings = settings(21_020);
    let _first = node(&settings, A);
    let (events, _) = mpsc::channel(1);
    let (tunnels, _) = watch::channel(Tunnels::default());
    let Err(error) = start(&settings, A, SECRET, Session(9), events, tunnels) else { panic!("it started") };
    let text = format!("{error:#}");
    assert!(text.contains("127.0.0.11:21020 of node a") && text.contains("another process has it"), "{text}");
}

#[tokio::test]
async fn what_does_not_come_from_its_senders_address_never_reaches_us() {
    own_network();
    let settings = settings(21_030);
    let mut b = node(&settings, B);
    let mut sealer = Sealer::new(SECRET, &settings.set.name, A, Session(5));
    let mut datagram = Vec::new();
    for (counter, source) in [(1, 14), (2, 13), (3, 11)] {
        sealer.seal(&heartbeat(Session(5), counter), &mut datagram);
        let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, source), 0)).expect("bind");
        socket.set_ttl(255).expect("ttl");
        socket.send_to(&datagram, "127.0.0.12:21030").expect("send");
    }
    let heard = b.next_peer().await.map(|(from, heartbeat)| (from, heartbeat.counter));
    assert_eq!(heard, Some((A, 3)), "only the third has its sender's address");
    b.throws_away(2).await;
}

#[tokio::test]
async fn what_has_come_from_far_away_never_reaches_us() {
    own_network();
    let settings = settings(21_040);
    let mut b = node(&settings, B);
    let mut sealer = Sealer::new(SECRET, &settings.set.name, A, Session(5));
    let mut datagram = Vec::new();
    let socket = UdpSocket::bind("127.0.0.11:0").expect("bind");
    for (counter, ttl) in [(1, 64), (2, 253), (3, 254)] {
        sealer.seal(&heartbeat(Session(5), counter), &mut datagram);
        socket.set_ttl(ttl).expect("ttl");
        socket.send_to(&datagram, "127.0.0.12:21040").expect("send");
    }
    assert_eq!(b.next_peer().await.map(|(_, heartbeat)| heartbeat.counter), Some(3));
    b.throws_away(2).await;
}

#[tokio::test]
async fn over_ipv6_the_same_is_taken_and_the_same_thrown_away() {
    own_network();
    let mut settings = settings(21_045);
    for (node, last) in settings.nodes.iter_mut().zip(0x11..) {
        node.address = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, last).into();
        let address = node.address;
        // The kernel makes an address local only later, even without a test for duplicates.
        let is_local = format!("ip -6 route get {address} | grep -q '^local'");
        shell(&format!("ip -6 address add {address}/128 dev lo nodad; until {is_local}; do sleep 0.01; done"));
    }
    let (mut a, mut b, c) = (node(&settings, A), node(&settings, B), node(&settings, C));
    for _ in 0..3 {
        greet(&mut a, &mut b).await;
        a.next_peer().await.expect("it is answered");
    }
    assert_eq!(a.handle.stats().received, 3);
    let mut sealer = Sealer::new(SECRET, &settings.set.name, C, c.session);
    let mut datagram = Vec::new();
    sealer.seal(&heartbeat(c.session, 1), &mut datagram);
    for (source, hops) in [("[fd77::11]:0", 255), ("[fd77::13]:0", 64), ("[fd77::13]:0", 254)] {
        let socket = UdpSocket::bind(source).expect("bind");
        SockRef::from(&socket).set_unicast_hops_v6(hops).expect("hop limit");
        socket.send_to(&datagram, "[fd77::12]:21045").expect("send");
    }
    assert_eq!(b.next_peer().await.map(|(from, _)| from), Some(C));
    b.throws_away(2).await;
}

#[tokio::test(flavor = "current_thread")]
async fn heartbeats_get_through_a_flood_of_forged_ones() {
    own_network();
    let settings = settings(21_050);
    let (mut a, mut b) = (node(&settings, A), node(&settings, B));
    greet(&mut a, &mut b).await;
    let (before, start) = (b.handle.stats(), Instant::now());
    // The attacker knows everything but the secret and the session.
    let flood = Flood::start("127.0.0.12:21050", |round| {
        let mut datagram = vec![b'T', b'L', 1, A.0];
        datagram.extend(round.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        datagram.extend([7; 200]);
        datagram
    });
    let heard = beat_and_count(&mut a, &mut b, 40).await;
    let sent = flood.stop();
    let stats = b.handle.stats();
    println!("{heard} of 40 heard under {sent} forged datagrams: {stats:?}");
    assert!(heard >= LEAST_OF_40, "{heard}");
    assert!(stats.forged - before.forged <= 6400 * (start.elapsed().as_secs() + 2), "the work is bounded");
}

#[tokio::test(flavor = "current_thread")]
async fn heartbeats_get_through_a_flood_in_the_very_session_of_a_peer() {
    own_network();
    let settings = settings(21_060);
    let (mut a, mut b, mut c) = (node(&settings, A), node(&settings, B), node(&settings, C));
    greet(&mut a, &mut b).await;
    greet(&mut c, &mut b).await;
    let session = c.session;
    // The attacker has seen datagrams of c: it can fill c's queue, but not a's.
    let flood = Flood::start("127.0.0.12:21060", move |round| {
        let mut datagram = vec![b'T', b'L', 1, C.0];
        datagram.extend(session.0.to_be_bytes());
        datagram.extend((round + 1000).to_be_bytes());
        datagram.extend([7; 200]);
        datagram
    });
    let heard = beat_and_count(&mut a, &mut b, 40).await;
    let sent = flood.stop();
    println!("{heard} of 40 heard under {sent} forged datagrams in another's session: {:?}", b.handle.stats());
    assert!(heard >= LEAST_OF_40, "{heard}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_peer_that_starts_under_a_flood_gets_in() {
    own_network();
    let settings = settings(21_070);
    let mut b = node(&settings, B);
    let flood = Flood::start("127.0.0.12:21070", |round| {
        let mut datagram = vec![b'T', b'L', 1, A.0];
        datagram.extend((round + 1000).to_be_bytes());
        datagram.extend([7; 200]);
        datagram
    });
    let mut a = node(&settings, A);
    let mut tries = 0;
    let start = Instant::now();
    while tries < 1000 {
        tries += 1;
        a.beat();
        if tokio::time::timeout(PACE, b.next_peer()).await.is_ok_and(|heard| heard.is_some()) {
            break;
        }
    }
    let sent = flood.stop();
    println!("in after {tries} heartbeats and {:?}, under {sent} forged datagrams", start.elapsed());
    assert!(tries < 1000);
}

#[test]
fn a_detour_is_taken_to_who_is_not_heard_at_all_and_to_who_says_that_it_does_not_hear_us() {
    let start = Instant::now();
    let lease = Duration::from_millis(100);
    let own: SocketAddr = "127.0.0.11:21080".parse().expect("an address");
    let (direct, by_gateway) = (own, SocketAddr::new(own.ip(), 40_000));
    let mut detour = Detour::new(own, A, start);
    let plan = |detour: &Detour, after_ms, deaf: [u8; 3]| {
        let now = start + Duration::from_millis(after_ms);
        let Paths { deaf, detour } = detour.plan(3, now, lease, |peer| deaf[usize::from(peer.0)]);
        (deaf, detour)
    };
    assert_eq!(plan(&detour, 50, [0; 3]), (0, 0), "nobody is missed yet");
    assert_eq!(plan(&detour, 51, [0; 3]), (0b110, 0b110), "nobody was heard");
    detour.heard(B, direct, start + Duration::from_millis(110));
    detour.heard(C, by_gateway, start + Duration::from_millis(110));
    assert_eq!(plan(&detour, 120, [0; 3]), (0b100, 0), "c is heard, and hears us");
    assert_eq!(plan(&detour, 120, [0, 0, 0b001]), (0b100, 0b100), "c is heard, and does not hear us");
    assert_eq!(plan(&detour, 120, [0, 0b100, 0b010]), (0b100, 0), "b and c do not hear each other");
    detour.heard(C, direct, start + Duration::from_millis(130));
    assert_eq!(plan(&detour, 140, [0; 3]), (0, 0), "all is well");
}

#[test]
fn nodes_that_are_cut_off_from_each_other_hear_each_other_by_way_of_the_gateway() {
    own_network();
    shell("ip link add br0 type bridge; ip link set br0 up; ip address add 10.77.0.1/24 dev br0");
    shell("echo 1 > /proc/sys/net/ipv4/ip_forward");
    let (done, nodes_done) = std::sync::mpsc::channel();
    let lonely = Arc::new(AtomicUsize::new(2));
    for (me, name) in [(A, "a"), (B, "b")] {
        let (ready, plugged) = std::sync::mpsc::channel();
        let (plug, is_plugged) = std::sync::mpsc::channel();
        let (done, lonely) = (done.clone(), Arc::clone(&lonely));
        thread::spawn(move || {
            own_network();
            shell("for file in /proc/sys/net/ipv4/conf/*/accept_redirects; do echo 0 > $file; done");
            ready.send(nix::unistd::gettid()).expect("the test waits");
            is_plugged.recv().expect("it is plugged in");
            shell(&format!("ip link set dev {name} up; ip address add 10.77.0.1{}/24 dev {name}", me.0 + 1));
            shell("ip route add default via 10.77.0.1");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let stats = runtime.block_on(beat_until_all_are_heard(me, &lonely));
            // The test may have failed meanwhile.
            let _ = done.send((me, stats));
        });
        let tid = plugged.recv().expect("the node's thread runs");
        shell(&format!("ip link add p{name} type veth peer name {name} netns {tid}"));
        shell(&format!("ip link set dev p{name} master br0 up; bridge link set dev p{name} isolated on"));
        plug.send(()).expect("the node's thread runs");
    }
    for _ in 0..2 {
        let (node, stats) = nodes_done.recv_timeout(Duration::from_secs(60)).expect("the nodes end");
        println!("{node:?}: {stats:?}");
        assert!(hears(&stats), "{node:?}: {stats:?}");
    }
}

#[test]
fn a_path_that_carries_only_its_senders_own_address_is_found_out_and_so_is_that_it_no_longer_is_one() {
    let own: SocketAddr = "127.0.0.11:21100".parse().expect("an address");
    own_network();
    let start = Instant::now();
    let mut barred = Barred::new(own, start);
    let at = |seconds| start + Duration::from_secs(seconds);
    let found = |barred: &Barred| barred.found().map(|found| (found.open, found.barred));
    assert_eq!([barred.is_due(at(0)), barred.is_due(at(1)), barred.is_due(at(2))], [true, false, true]);
    for second in 0..=10 {
        barred.heard(B, at(second));
        barred.heard(C, at(second));
        assert_eq!(found(&barred), Some((if second == 0 { 0 } else { 0b100 }, 0)), "of b nothing is known, {second} s");
        barred.probed(C, at(second & !1));
    }
    barred.heard(B, at(11));
    assert_eq!(found(&barred), Some((0b100, 0b010)), "five probes may be lost");
    barred.heard(B, at(60));
    barred.heard(C, at(60));
    assert_eq!(found(&barred), Some((0b100, 0b010)), "both have started anew, in the same network");
    barred.probed(B, at(61));
    barred.heard(B, at(62));
    assert_eq!(found(&barred), Some((0b110, 0)));
}

#[test]
fn two_nodes_learn_that_the_network_guards_addresses_and_that_it_has_stopped() {
    own_network();
    shell("ip link add br0 type bridge; ip link set br0 up");
    let (done, seen) = std::sync::mpsc::channel();
    let (over, restart) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for (me, name) in [(A, "a"), (B, "b")] {
        let (ready, plugged) = std::sync::mpsc::channel();
        let (plug, is_plugged) = std::sync::mpsc::channel();
        let (done, over, restart) = (done.clone(), Arc::clone(&over), Arc::clone(&restart));
        thread::spawn(move || {
            own_network();
            ready.send(nix::unistd::gettid()).expect("the test waits");
            is_plugged.recv().expect("it is plugged in");
            shell("for file in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $file; done");
            shell(&format!("ip link set dev {name} up; ip address add 10.77.0.1{}/24 dev {name}", me.0 + 1));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut node = node(&on_the_bridge(21_110), me);
                let (start, mut before) = (Instant::now(), Tunnels::default());
                while !over.load(Ordering::SeqCst) && start.elapsed() < 3 * PATIENCE {
                    if me == B && restart.swap(false, Ordering::SeqCst) {
                        node.end().await;
                        (node, before) = (self::node(&on_the_bridge(21_110), me), Tunnels::default());
                    }
                    node.beat();
                    tokio::time::sleep(PACE).await;
                    node.handle.catch_up();
                    while let Ok(Some(_)) = tokio::time::timeout(Duration::ZERO, node.next_peer()).await {}
                    let now = *node.tunnels.borrow();
                    if std::mem::replace(&mut before, now) != now {
                        // The test may have failed meanwhile.
                        let _ = done.send((me, now));
                    }
                }
            });
        });
        let tid = plugged.recv().expect("the node's thread runs");
        shell(&format!("ip link add p{name} type veth peer name {name} netns {tid}"));
        shell(&format!("ip link set dev p{name} master br0 up"));
        plug.send(()).expect("the node's thread runs");
    }
    shell("nft add table netdev guard");
    shell("nft 'add chain netdev guard a { type filter hook ingress device pa priority 0; }'");
    shell("nft add rule netdev guard a ip saddr != 10.77.0.11 drop");
    // What a sends with another address does not come to b: a must send it through a tunnel, and b have one for it. A b that has just
    // started does not know that, and has it all the same.
    let barred = [(A, Tunnels { to: 0b010, from: 0 }), (B, Tunnels { to: 0, from: 0b001 })];
    for wanted in [barred, [A, B].map(|node| (node, Tunnels::default()))] {
        let mut found = [(); 2].map(|()| seen.recv_timeout(PATIENCE).expect("both nodes find out"));
        found.sort_by_key(|(node, _)| *node);
        assert_eq!(found, wanted);
        if wanted == barred {
            restart.store(true, Ordering::SeqCst);
            let first = seen.recv_timeout(PATIENCE).expect("b learns it anew");
            assert_eq!(first, barred[1], "a goes on as before meanwhile");
            shell("nft delete table netdev guard");
        }
    }
    over.store(true, Ordering::SeqCst);
}

/// Beats until none of the `lonely` nodes is left, for half a minute at most.
async fn beat_until_all_are_heard(me: NodeId, lonely: &AtomicUsize) -> Stats {
    let mut node = node(&on_the_bridge(21_090), me);
    let start = Instant::now();
    let mut hears_peer = false;
    while lonely.load(Ordering::SeqCst) > 0 && start.elapsed() < Duration::from_secs(30) {
        node.beat();
        let _ = tokio::time::timeout(PACE, node.next_peer()).await;
        if !hears_peer && hears(&node.handle.stats()) {
            hears_peer = true;
            lonely.fetch_sub(1, Ordering::SeqCst);
        }
    }
    node.handle.stats()
}

fn on_the_bridge(port: u16) -> Settings {
    let mut settings = settings(port);
    for (node, last) in settings.nodes.iter_mut().zip(11..) {
        node.address = Ipv4Addr::new(10, 77, 0, last).into();
    }
    settings
}

fn hears(stats: &Stats) -> bool {
    stats.received >= 20 && stats.detoured >= 20
}

/// A node without a core: it echoes whomever it heard last, as a core does that trusts everybody.
struct Node {
    handle: Handle,
    events: mpsc::Receiver<Event>,
    tunnels: watch::Receiver<Tunnels>,
    session: Session,
    counter: u64,
    heard: [Option<Echo>; MAX_NODES],
}

impl Node {
    fn beat(&mut self) {
        self.send(false);
    }

    fn routine(&mut self) {
        self.send(true);
    }

    fn send(&mut self, routine: bool) {
        self.counter += 1;
        let heartbeat = Heartbeat { routine, heard: self.heard, ..heartbeat(self.session, self.counter) };
        self.handle.broadcast(&heartbeat);
    }

    /// Ends once the port is free.
    async fn end(self) {
        let sockets = Arc::downgrade(&self.handle.channel);
        drop(self.handle);
        while sockets.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until so many datagrams have been thrown away.
    async fn throws_away(&self, count: u64) {
        let start = Instant::now();
        while self.handle.stats().thrown_away != count {
            assert!(start.elapsed() < PATIENCE, "{:?}", self.handle.stats());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn next_peer(&mut self) -> Option<(NodeId, Heartbeat)> {
        let event = tokio::time::timeout(PATIENCE, self.events.recv()).await.ok()??;
        let Event::Peer(authentic) = event else { panic!("{event:?}") };
        let (from, heartbeat) = (authentic.from(), authentic.heartbeat().clone());
        let Heartbeat { session, counter, .. } = heartbeat;
        self.heard[usize::from(from.0)] = Some(Echo { session, counter, live: true });
        Some((from, heartbeat))
    }
}

fn node(settings: &Settings, me: NodeId) -> Node {
    let session = Session(getrandom::u64().expect("random"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (sender, events) = mpsc::channel(64);
        let (tunnels_sender, tunnels) = watch::channel(Tunnels::default());
        match start(settings, me, SECRET, session, sender, tunnels_sender) {
            Ok(handle) => return Node { handle, events, tunnels, session, counter: 0, heard: [None; MAX_NODES] },
            // A program that another test starts has copies of all sockets until it executes.
            Err(error) if format!("{error:#}").contains("another process has it") && Instant::now() < deadline => {
                thread::yield_now();
            }
            Err(error) => panic!("{error:#}"),
        }
    }
}

/// Lets `b` hear `a` and steer its session.
async fn greet(a: &mut Node, b: &mut Node) {
    a.beat();
    b.next_peer().await.expect("it is heard");
    b.beat();
}

async fn beat_and_count(a: &mut Node, b: &mut Node, count: u32) -> u32 {
    let mut heard = 0;
    for _ in 0..count {
        a.beat();
        let counter = a.counter;
        let got =
            async { while b.next_peer().await.is_some_and(|(from, beat)| (from, beat.counter) != (A, counter)) {} };
        heard += u32::from(tokio::time::timeout(LOST, got).await.is_ok());
    }
    heard
}

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

fn settings(port: u16) -> Settings {
    let text = format!(
        r#"
        [set]
        name = "edge-1"
        secret_file = "/var/lib/trilith/secret"
        peer_port = {port}
        [[node]]
        name = "a"
        address = "10.77.0.11"
        [[node]]
        name = "b"
        address = "10.77.0.12"
        [[node]]
        name = "c"
        address = "10.77.0.13"
        [[vip]]
        name = "public"
        address = "10.77.0.10/24"
        interface = "eth0"
        "#
    );
    let mut settings = config::parse(&text, "test.toml").expect("it is valid");
    for (node, last) in settings.nodes.iter_mut().zip(11..) {
        node.address = Ipv4Addr::new(127, 0, 0, last).into();
    }
    settings
}

/// Puts this thread, and those that it starts, into a new network with nothing but a loopback.
fn own_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: this test needs root");
    shell("ip link set lo up");
}

fn shell(script: &str) {
    let status = process::Command::new("sh").args(["-ec", script]).status().expect("sh runs");
    assert!(status.success(), "{script}");
}

/// A thread that sends as fast as it can in the name of a node, for a minute at most.
struct Flood {
    stopped: Arc<AtomicBool>,
    thread: thread::JoinHandle<u64>,
}

impl Flood {
    fn start(to: &'static str, make: impl Fn(u64) -> Vec<u8> + Send + 'static) -> Flood {
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopped);
        let thread = thread::spawn(move || {
            let sender = make(0)[3];
            let socket = UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 11 + sender), 0)).expect("bind");
            socket.set_ttl(255).expect("ttl");
            let end = Instant::now() + Duration::from_secs(60);
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) && Instant::now() < end {
                sent += u64::from(socket.send_to(&make(sent), to).is_ok());
            }
            sent
        });
        Flood { stopped, thread }
    }

    fn stop(self) -> u64 {
        self.stopped.store(true, Ordering::Relaxed);
        self.thread.join().expect("the flood ends")
    }
}
