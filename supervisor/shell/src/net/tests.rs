//! The shell of the network on real kernels: three nodes and a client ([`lab`]).

mod lab;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use trilith_core::command::{Command, Ring};
use trilith_core::config::NodeId;
use trilith_core::event::{Event, Probe};

use super::tunnel::{self, Tunnels};
use super::{Kernel, LOOPBACK, Watch};
use crate::neighbour::{BATCH, Neighbour, PAUSE};
use crate::relay;
use lab::{Connected, LIFETIME, Lab, PORT, Place, Stone, V4, V6, settings, until};

/// How often it is looked whether the kernel has come to rest.
const TRIES: u32 = 20;

#[tokio::test]
async fn connections_live_on_while_both_vips_move() {
    moves(1).await;
}

#[tokio::test]
async fn connections_live_on_while_both_vips_move_and_every_handshake_is_a_syn_cookie() {
    moves(2).await;
}

async fn moves(syncookies: u8) {
    let mut lab = Lab::up().await;
    for node in &lab.nodes {
        node.place.run(&format!("sysctl -q net.ipv4.tcp_syncookies={syncookies}")).await;
    }
    lab.ring(&[0, 1, 2]).await;
    lab.give(0).await;
    let load = lab.load(25).await;
    load.goes_on().await;
    // One packet of each connection would be more. A FIN that was sent twice is answered when nobody knows it any more.
    assert!(lab.relayed().await < 10, "a node knows its own connections, half-open ones and cookies");
    for owner in [1, 2, 0, 2, 1, 0] {
        load.goes_on().await;
        lab.hand_over(owner).await;
    }
    load.goes_on().await;
    let relayed: u64 = lab.relayed().await;
    let seen = load.end().await;
    assert_eq!((seen.broken, seen.refused), (0, 0), "{seen:?}");
    assert!(seen.opened > 50 && relayed > 100, "{seen:?}, {relayed} packets relayed");
}

/// Clients use a port again as soon as they like when it was the node that ended the connection.
#[tokio::test]
async fn a_connection_is_not_taken_for_an_older_one_that_ended_at_another_node() {
    let mut lab = Lab::up().await;
    lab.ring(&[0, 1, 2]).await;
    lab.give(0).await;
    for vip in ["10.77.0.10", "fd77::10"] {
        let to = SocketAddr::new(vip.parse().unwrap(), PORT);
        let older = lab.client.on(Connected::open(to)).await.unwrap();
        let from = older.0.local_addr().unwrap();
        older.end().await.unwrap();
        until("the older one is remembered", async || {
            let remembered = lab.nodes[0].place.run("ss --tcp --numeric --no-header state time-wait").await;
            remembered.contains(&format!(":{}", from.port())).then_some(())
        })
        .await;
        lab.hand_over(1).await;
        let mut connection = lab.client.on(Connected::open_from(from, to)).await.unwrap();
        connection.echo().await.unwrap();
        // On the way from its owner, and the owner itself.
        for owner in [2, 0] {
            lab.hand_over(owner).await;
            connection.echo().await.unwrap();
        }
    }
}

#[tokio::test]
async fn connections_of_a_dead_node_are_reset_and_those_of_others_are_not() {
    let mut lab = Lab::up().await;
    lab.ring(&[0, 1, 2]).await;
    lab.give(1).await;
    let mut doomed = Vec::new();
    for vip in ["10.77.0.10", "fd77::10"] {
        let to = SocketAddr::new(vip.parse().unwrap(), PORT);
        doomed.push(lab.client.on(Connected::open(to)).await.unwrap());
    }
    lab.hand_over(2).await;
    let others = lab.load(5).await;
    others.goes_on().await;
    lab.hand_over(0).await;
    lab.cut(1, true).await;
    lab.ring(&[0, 2]).await;
    for connection in &mut doomed {
        let error = connection.echo().await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "at the first packet");
    }
    let seen = others.end().await;
    assert_eq!((seen.broken, seen.refused), (0, 0), "{seen:?}");
}

#[tokio::test]
async fn connections_of_a_node_that_only_stood_still_live_on_where_its_peers_wait_for_it() {
    let mut lab = Lab::up().await;
    for (waits, broken) in [(true, 0), (false, 10)] {
        lab.ring(&[0, 1, 2]).await;
        lab.hand_over(0).await;
        let load = lab.load(5).await;
        load.goes_on().await;
        lab.ring_that_waits(&[1, 2], waits).await;
        lab.hand_over(1).await;
        let before = lab.relayed().await;
        until("packets all around", async || (lab.relayed().await >= before + 40).then_some(())).await;
        if waits {
            lab.ring(&[0, 1, 2]).await;
            load.goes_on().await;
        }
        let seen = load.end().await;
        assert_eq!((seen.broken, seen.refused), (broken, 0), "waits: {waits}, {seen:?}");
    }
}

/// A SYN waits in the queue of a machine that stands still, and is sent again to the one that took over.
#[tokio::test]
async fn a_connection_that_two_nodes_have_answered_goes_on_with_the_one_that_the_client_took() {
    let mut lab = Lab::up().await;
    lab.ring(&[0, 1, 2]).await;
    lab.give(0).await;
    let unheard = "add table netdev unheard\n\
                   add chain netdev unheard pa { type filter hook ingress device pa priority 0; }\n\
                   add rule netdev unheard pa tcp flags & (syn|ack) == (syn|ack) drop\n";
    lab.switch.on(async move { relay::apply(unheard).await.unwrap() }).await;
    let mut opened = Vec::new();
    for vip in ["10.77.0.10", "fd77::10"] {
        let to = SocketAddr::new(vip.parse().unwrap(), PORT);
        opened.push(lab.client.begin(Connected::open(to)));
    }
    until("both are half open", async || {
        let open = lab.nodes[0].place.run("ss --tcp --numeric --no-header state syn-recv").await;
        (open.lines().count() == 2).then_some(())
    })
    .await;
    lab.hand_over(1).await;
    for opening in opened {
        let mut connection = opening.await.unwrap().unwrap();
        // On the way from the one that answered in vain, and the one that the client took.
        for owner in [0, 1] {
            lab.hand_over(owner).await;
            connection.echo().await.unwrap();
        }
    }
}

/// SpoofGuard, IP source guard, clean-traffic: a machine may send only from its own addresses, and from the VIPs.
#[tokio::test]
async fn connections_live_on_where_the_network_drops_what_bears_a_clients_address() {
    let mut lab = Lab::up().await;
    let mut filter = String::from("add table netdev guard\n");
    for (node, host) in lab.nodes.iter().zip(11..) {
        let port = format!("p{}", node.place.name());
        filter += &format!(
            "add chain netdev guard {port} {{ type filter hook ingress device {port} priority 0; }}\n\
             add rule netdev guard {port} ip saddr {{ 10.77.0.{host}, 10.77.0.10 }} accept\n\
             add rule netdev guard {port} ip6 saddr {{ fe80::/10, fd77::{host}, fd77::10 }} accept\n\
             add rule netdev guard {port} meta l4proto tcp counter\n\
             add rule netdev guard {port} meta protocol {{ ip, ip6 }} drop\n"
        );
    }
    lab.switch.on(async move { relay::apply(&filter).await.unwrap() }).await;
    let is_dropped = async |lab: &Lab| {
        let rules = lab.switch.run("nft list table netdev guard").await;
        rules.matches("counter packets").count() != rules.matches("counter packets 0 bytes 0").count()
    };
    lab.ring(&[0, 1, 2]).await;
    for (node, me) in lab.nodes.iter().zip(0..) {
        let others = 0b111 & !(1 << me);
        node.tunnels.send(Tunnels { to: others, from: others }).unwrap();
        until("the rules lead into the tunnel", async || {
            let rules = node.place.run("nft list ruleset").await;
            rules.contains(&format!("device \"{}\"", tunnel::NAME)).then_some(())
        })
        .await;
        assert_eq!(node.net.tunnels().unwrap().len(), 2);
    }
    lab.give(0).await;
    let load = lab.load(25).await;
    for owner in [1, 2, 0, 2, 1, 0] {
        load.goes_on().await;
        lab.hand_over(owner).await;
    }
    load.goes_on().await;
    let relayed = lab.relayed().await;
    let seen = load.end().await;
    assert_eq!((seen.broken, seen.refused), (0, 0), "{seen:?}");
    assert!(seen.opened > 50 && relayed > 100, "{seen:?}, {relayed} packets relayed");
    assert!(!is_dropped(&lab).await, "the network has seen a client's address");

    // A stranger, and somebody in a node's name from further away: they count for nothing, a node's datagram does.
    let received = async |lab: &Lab| {
        let links = lab.nodes[0].place.run("ip -json -statistics link show trilith-relay").await;
        let links: serde_json::Value = serde_json::from_str(&links).unwrap();
        links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
    };
    let before = received(&lab).await;
    for (place, ttl) in [(&lab.client, 255), (&lab.nodes[1].place, 254), (&lab.nodes[1].place, 255)] {
        place.on(async move { wrapped("10.77.0.11", ttl) }).await;
    }
    until("what a node sends", async || (received(&lab).await > before).then_some(())).await;
    assert_eq!(received(&lab).await, before + 1);

    // One that is gone is made anew; one that a next run finds goes on.
    let rules_with_tunnel = async |node: &Stone| {
        until("the rules lead into the tunnel that is there", async || {
            let rules = node.place.run("nft list ruleset").await;
            rules.contains(&format!("device \"{}\"", tunnel::NAME)).then_some(())
        })
        .await;
    };
    lab.nodes[0].place.run("ip link del trilith-relay").await;
    rules_with_tunnel(&lab.nodes[0]).await;
    lab.nodes[2].restart(NodeId(2)).await;
    lab.ring(&[0, 1, 2]).await;
    for node in &lab.nodes {
        rules_with_tunnel(node).await;
    }
    let load = lab.load(5).await;
    for owner in [1, 2, 0] {
        load.goes_on().await;
        lab.hand_over(owner).await;
    }
    load.goes_on().await;
    let seen = load.end().await;
    assert_eq!((seen.broken, seen.refused, is_dropped(&lab).await), (0, 0, false), "{seen:?}");

    // Without the tunnel it sees them, and nothing is left of it.
    let to = SocketAddr::new("10.77.0.10".parse().unwrap(), PORT);
    let mut connection = lab.client.on(Connected::open(to)).await.unwrap();
    for node in &lab.nodes {
        node.tunnels.send(Tunnels::default()).unwrap();
        until("the tunnel and its guard are gone", async || {
            let links = node.place.run("ip -brief link show").await;
            let tables = node.place.run("nft list tables").await;
            (!links.contains(tunnel::NAME) && tables == "table ip trilith\ntable ip6 trilith\n").then_some(())
        })
        .await;
    }
    lab.hand_over(1).await;
    lab.client.on(async move { timeout(Duration::from_millis(300), connection.echo()).await }).await.unwrap_err();
    assert!(is_dropped(&lab).await);
}

/// Sends an empty frame for node a into the tunnel (RFC 7348, section 5).
fn wrapped(to: &str, ttl: u32) {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_ttl(ttl).unwrap();
    let header = [8, 0, 0, 0, b't', b'r', b'i', 0];
    let frame = [&header[..], b"\x02tril\0", b"\x02tril\x01", &[0x08, 0x00], &[0; 46]].concat();
    socket.send_to(&frame, (to, settings().set.tunnel_port())).unwrap();
}

#[tokio::test]
async fn an_address_that_is_not_renewed_goes_by_itself_and_one_that_is_stays() {
    let mut lab = Lab::up().await;
    lab.ring(&[]).await;
    let second = Duration::from_secs(1);
    let begin = Instant::now();
    for vip in [V4, V6] {
        lab.does(0, Command::Hold { vip, lifetime: second }).await.unwrap();
        lab.does(1, Command::Hold { vip, lifetime: second }).await.unwrap();
    }
    for vip in [V4, V6] {
        lab.does(1, Command::Hold { vip, lifetime: LIFETIME }).await.unwrap();
    }
    until("both addresses have gone", async || {
        let shown = lab.nodes[0].place.run("ip address show dev eth0").await;
        (!shown.contains("10.77.0.10/32") && !shown.contains("fd77::10/128")).then_some(())
    })
    .await;
    // The kernel ends a lifetime up to a quarter of a second early (ADDRCONF_TIMER_FUZZ).
    assert!(begin.elapsed() > Duration::from_millis(700), "{:?}", begin.elapsed());
    let renewed = lab.nodes[1].place.run("ip address show dev eth0").await;
    assert!(renewed.contains("10.77.0.10/32 scope host") && renewed.contains("fd77::10/128"), "{renewed}");
    let kept = lab.nodes[0].place.run("ip address show dev lo").await;
    assert!(kept.contains("10.77.0.10/32") && kept.contains("fd77::10/128"), "{kept}");
    let refused = lab.does(0, Command::Announce { vip: V4 }).await.unwrap_err();
    assert_eq!(refused, "10.77.0.10 is not announced: this node does not hold it");
}

#[tokio::test]
async fn a_vip_is_never_the_source_address_and_comes_back_to_lo_when_somebody_removes_it() {
    let mut lab = Lab::up().await;
    lab.give(0).await;
    let place = &lab.nodes[0].place;
    for (to, from) in [("10.77.0.1", "src 10.77.0.11"), ("fd77::1", "src fd77::11"), ("10.77.0.10", "local 10.77.0.10")]
    {
        let route = place.run(&format!("ip route get {to}")).await;
        assert!(route.contains(from), "{route}");
    }
    place.run("ip address del 10.77.0.10/32 dev lo").await;
    place.run("ip address del fd77::10/128 dev lo").await;
    until("both are on lo again", async || {
        let shown = place.run("ip address show dev lo").await;
        (shown.contains("10.77.0.10/32") && shown.contains("fd77::10/128")).then_some(())
    })
    .await;
}

/// A card may go deaf for a second when that changes.
#[tokio::test]
async fn a_hand_over_does_not_change_what_the_card_lets_through() {
    let mut lab = Lab::up().await;
    let mut groups = Vec::new();
    lab.give(0).await;
    for owner in [1, 0, 1] {
        lab.hand_over(owner).await;
        let shown = lab.nodes[0].place.run("ip maddress show dev eth0").await;
        groups.push(shown.lines().filter(|line| line.contains("link")).map(str::to_owned).collect::<Vec<_>>());
    }
    assert!(groups[1].iter().any(|line| line.contains("33:33:ff:00:00:10")), "{groups:?}");
    assert!(groups[0] == groups[1] && groups[1] == groups[2], "{groups:?}");
}

#[tokio::test]
async fn whoever_else_claims_a_vip_is_reported_and_a_vip_held_elsewhere_answers_a_probe() {
    let mut lab = Lab::up().await;
    lab.give(0).await;
    for vip in [V4, V6] {
        lab.probed(1, Probe::Vip(vip), true).await;
        lab.does(0, Command::Release { vip }).await.unwrap();
        lab.does(0, Command::Release { vip }).await.unwrap();
        lab.probed(1, Probe::Vip(vip), false).await;
        lab.does(0, Command::Hold { vip, lifetime: LIFETIME }).await.unwrap();
        assert!(!lab.probe(0, Probe::Vip(vip)).await, "a node does not hear itself for {vip:?}");
    }
    let other = lab.links(&lab.client).await["eth0"];
    lab.client
        .on(async move {
            let neighbour = Neighbour::open(&[], true).unwrap();
            for address in ["10.77.0.10", "fd77::10"] {
                neighbour.announce(other, address.parse().unwrap()).unwrap();
            }
        })
        .await;
    let mut heard = BTreeSet::new();
    while heard.len() < 2 {
        if let Event::Conflict { vip, mac } = lab.nodes[0].event().await {
            assert_eq!(mac, other.mac);
            heard.insert(vip);
        }
    }
}

#[tokio::test]
async fn whoever_else_claims_the_nodes_own_address_is_told_of_and_answered() {
    let lab = Lab::up().await;
    let other = lab.links(&lab.client).await["eth0"];
    for address in ["10.77.0.11", "fd77::11"].map(|address| address.parse::<IpAddr>().unwrap()) {
        let stranger = Arc::new(lab.client.on(async move { Neighbour::open(&[address], true).unwrap() }).await);
        let claim = async || {
            let stranger = Arc::clone(&stranger);
            lab.client.on(async move { stranger.announce(other, address).unwrap() }).await;
        };
        claim().await;
        let hears = Arc::clone(&stranger);
        let says = lab.client.on(async move { timeout(Duration::from_secs(5), hears.hear()).await }).await;
        let says = says.expect("the node says that it has it").unwrap().says;
        assert_eq!((says.address, says.mac), (address, Some(lab.nodes[0].net.own_mac())));
        let told = until("the node tells of it", async || {
            claim().await;
            lab.nodes[0].net.rivals().into_iter().find(|(claimed, _)| *claimed == address)
        });
        assert_eq!(told.await, (address, other.mac));
        assert!(lab.nodes[1].net.rivals().is_empty(), "it is not the address of that node");
    }
}

#[tokio::test]
async fn a_flood_of_claims_gets_a_bounded_share_of_the_time() {
    const CLAIMS: u32 = 50;
    let lab = Lab::up().await;
    let (other, vip) = (lab.links(&lab.client).await["eth0"], "10.77.0.10".parse().unwrap());
    let place = &lab.nodes[0].place;
    let ears = place.on(async move { Arc::new(Neighbour::open(&[vip], false).unwrap()) }).await;
    lab.client
        .on(async move {
            let neighbour = Neighbour::open(&[], false).unwrap();
            (0..CLAIMS).for_each(|_| neighbour.announce(other, vip).unwrap());
        })
        .await;
    let took = place
        .on(async move {
            let begun = Instant::now();
            for _ in 0..2 * CLAIMS {
                ears.hear().await.unwrap();
            }
            begun.elapsed()
        })
        .await;
    assert!(took >= PAUSE * (2 * CLAIMS / BATCH), "{took:?}");
}

#[tokio::test]
async fn icmp_errors_find_the_node_that_has_the_connection() {
    let mut lab = Lab::up().await;
    lab.ring(&[0, 1, 2]).await;
    lab.give(0).await;
    for (vip, complaints) in [("10.77.0.10", "1"), ("fd77::10", "2")] {
        let to = SocketAddr::new(vip.parse().unwrap(), PORT);
        let mut connection = lab.client.on(Connected::open(to)).await.unwrap();
        let from = connection.0.local_addr().unwrap();
        lab.hand_over(2).await;
        lab.client.on(async move { complain(to, from) }).await;
        // It finds the connection, but quotes a sequence number that this has never had: TCP's own protection (RFC 5927).
        until("the error is at the node that has the connection", async || {
            let counter = lab.nodes[0].place.run("nstat -asz TcpExtOutOfWindowIcmps").await;
            (counter.split_whitespace().nth(2) == Some(complaints)).then_some(())
        })
        .await;
        connection.echo().await.unwrap();
        lab.hand_over(0).await;
    }
}

/// Says that packets from `vip` to `client` have to be smaller: ICMP "fragmentation needed", ICMPv6 "packet too big".
fn complain(vip: SocketAddr, client: SocketAddr) {
    use socket2::{Domain, Protocol, Socket, Type};
    let mut ports = [0; 20];
    ports[0..2].copy_from_slice(&vip.port().to_be_bytes());
    ports[2..4].copy_from_slice(&client.port().to_be_bytes());
    let (socket, packet) = match (vip.ip(), client.ip()) {
        (IpAddr::V4(vip), IpAddr::V4(client)) => {
            let mut packet = vec![3, 4, 0, 0, 0, 0];
            packet.extend(1300u16.to_be_bytes());
            packet.extend([0x45, 0, 5, 0xdc, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            packet.extend(vip.octets().iter().chain(&client.octets()));
            packet.extend(ports);
            let words = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
            let sum: u32 = words.sum();
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
            (Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap(), packet)
        }
        (IpAddr::V6(vip), IpAddr::V6(client)) => {
            let mut packet = vec![2, 0, 0, 0];
            packet.extend(1300u32.to_be_bytes());
            packet.extend([0x60, 0, 0, 0, 5, 0xdc, 6, 64]);
            packet.extend(vip.octets().iter().chain(&client.octets()));
            packet.extend(ports);
            (Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap(), packet)
        }
        _ => unreachable!("both ends are of one family"),
    };
    socket.send_to(&packet, &SocketAddr::new(vip.ip(), 0).into()).unwrap();
}

#[tokio::test]
async fn a_renewal_wakes_nobody() {
    let mut lab = Lab::up().await;
    lab.give(0).await;
    let mut woken = None;
    // The kernel does some of what comes with a new address only later. What a renewal itself brings, it brings each time.
    for _ in 0..TRIES {
        let watch = lab.nodes[0].place.on(async { Watch::open().unwrap() }).await;
        for _ in 0..3 {
            for vip in [V4, V6] {
                lab.does(0, Command::Hold { vip, lifetime: LIFETIME }).await.unwrap();
            }
        }
        let changes = lab.nodes[0].place.on(async move { timeout(Duration::from_millis(300), watch.changed()).await });
        match changes.await {
            Err(_) => return,
            Ok(changes) => woken = Some(changes),
        }
    }
    panic!("{woken:?}");
}

#[tokio::test]
async fn gateway_and_kernels_answer_while_their_link_is_up() {
    let mut lab = Lab::up().await;
    assert!(lab.probe(0, Probe::Gateway).await, "there is none that could be lost");
    lab.nodes[0].place.run("ip route add default via 10.77.0.99").await;
    lab.probed(0, Probe::Gateway, false).await;
    lab.nodes[0].place.run("ip route replace default via 10.77.0.1").await;
    lab.probed(0, Probe::Gateway, true).await;
    // Asked by unicast now.
    lab.probed(0, Probe::Gateway, true).await;
    lab.probed(0, Probe::Kernel(NodeId(1)), true).await;
    lab.switch.run("ip link set pclient down").await;
    lab.cut(1, true).await;
    lab.probed(0, Probe::Kernel(NodeId(1)), false).await;
    // The neighbour cache still knows it, but it does not answer.
    lab.probed(0, Probe::Gateway, false).await;
    // The cut node sees that its carrier is gone.
    while !matches!(lab.nodes[1].event().await, Event::Link { vip: V4, up: false }) {}
}

#[tokio::test]
async fn a_supervisor_that_starts_again_removes_what_it_does_not_own_and_leaves_the_rules() {
    let mut lab = Lab::up().await;
    lab.ring(&[0, 1, 2]).await;
    lab.give(0).await;
    let place = &lab.nodes[0].place;
    place
        .on(async {
            let kernel = Kernel::open().unwrap();
            kernel.add_address(LOOPBACK, "10.77.0.99".parse().unwrap(), None).await.unwrap();
        })
        .await;
    place.run("ip address add 10.77.0.98/32 dev lo").await;
    let rules = place.run("nft list ruleset").await;
    lab.nodes[0].restart(NodeId(0)).await;
    let place = &lab.nodes[0].place;
    assert_eq!(place.run("nft list ruleset").await, rules);
    let shown = place.run("ip address show").await;
    assert!(!shown.contains("10.77.0.99"), "{shown}");
    assert!(shown.contains("10.77.0.98") && shown.contains("10.77.0.11"), "{shown}");
    assert_eq!(shown.matches("10.77.0.10/32").count(), 1, "on lo alone: {shown}");
}

#[tokio::test]
async fn the_rules_are_those_that_were_read_and_nft_takes_them() {
    let place = Place::new("golden").await;
    place.run("ip link add eth0 type veth").await;
    let settings = settings();
    let present = BTreeSet::from(["eth0".to_owned()]);
    let macs = vec![[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3]];
    let ring = Ring { next: Some(NodeId(1)), last_hop: 2, peer_macs: macs, waits: false };
    let waiting = Ring { waits: true, ..ring.clone() };
    for (name, text) in [
        ("ring-of-three.nft", relay::ruleset(&settings, Some(&ring), &present, Tunnels::default())),
        ("ring-that-waits.nft", relay::ruleset(&settings, Some(&waiting), &present, Tunnels::default())),
        ("ring-through-tunnel.nft", relay::ruleset(&settings, Some(&ring), &present, Tunnels { to: 0b010, from: 0 })),
        ("tunnel.nft", tunnel::guard(&settings, NodeId(0), true)),
    ] {
        let recorded = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/relay").join(name);
        if std::env::var_os("TRILITH_BLESS").is_some() {
            std::fs::write(&recorded, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&recorded).unwrap(), "{name}: got:\n{text}");
    }
    let alone = Ring::default();
    for ring in [Some(&ring), Some(&waiting), Some(&alone), None] {
        for present in [&present, &BTreeSet::new()] {
            let text = relay::ruleset(&settings, ring, present, Tunnels::default());
            place.on(async move { relay::apply(&text).await.unwrap() }).await;
        }
    }
    let mut v4_only = settings.clone();
    v4_only.vips.pop();
    let text = relay::ruleset(&v4_only, Some(&ring), &present, Tunnels::default());
    place.run("nft add table inet foreign").await;
    place.on(async move { relay::apply(&text).await.unwrap() }).await;
    assert_eq!(place.run("nft list tables").await, "table ip trilith\ntable inet foreign\n");
}
