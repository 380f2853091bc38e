//! The relay ring in nftables: a TCP packet for a VIP whose flow is not known here goes to the node that may know it.
//!
//! # How a packet is judged
//!
//! In the `input` hook, where the kernel has already looked up the socket (early demux), so that asking again is free:
//!
//! ```text
//! marked socket ──────────────────────────────► ours: accept     (every packet of a known flow: two comparisons)
//! SYN ────────────────────────────────────────► mark it, accept  (the socket that it creates inherits the mark)
//! SYN-ACK that this node has sent ────────────► mark it, accept  (the end of a handshake)
//! otherwise, hop < length of the ring ────────► hop + 1, to the next node
//! otherwise: it has come round ───────────────► mark it, accept  (this kernel knows the rest of it, or answers with RST)
//! ```
//!
//! What is looked for is a *connected* socket, not the listener, which every node has. The mark tells them apart:
//! `tcp_fwmark_accept` hands the mark of a SYN (or of the ACK that carries a cookie) down to the connection, and the
//! listener has none. ICMP errors are judged by the packet that they quote, which the `socket` expression reads by itself.
//!
//! # What is left of a connection proves nothing
//!
//! A node's kernel remembers a connection that it ended first for a minute (TIME_WAIT). The client does not, and may long have used the
//! port again, with the node that had the VIP then. If the VIP comes back within that minute, such a remainder would answer for a
//! connection that lives elsewhere, and go on until it is forgotten. So a packet for a remainder goes round the ring as well, and back
//! to it if nobody knows better. `nft` cannot tell a remainder from a half-open socket: neither shows its mark. Handshakes are
//! therefore known by a set of the SYN-ACKs that were sent, one entry from a SYN-ACK until a second after its ACK, SYN cookies (which
//! leave no socket at all) among them. When a flood fills the set, ends of handshakes go round the ring.
//!
//! So that the last FIN of a connection that the node ended does not have to go round each time, `tcp_fin_timeout` keeps the socket whole
//! until that has come, five seconds at most ([`crate::sysctl`]).
//!
//! A whole socket that its client has left without a word is taken for the connection, until keepalive finds it empty.
//!
//! # The ring is closed
//!
//! A packet that nobody knows ends where it started: at the node that owns the VIP, one hop after the last other node. So
//! a wrong guess there (a lost mark, a forgotten handshake) costs a round trip of the ring, not the connection.
//!
//! # Why not connection tracking
//!
//! `ct state invalid` would tell the same. But it costs a lookup, a lock and a state machine for each packet in both
//! directions: measured between two namespaces, 1.7 µs for a request and its answer and 10 µs for a connection, where these
//! rules took 0.4 and 2.6 (two hooks without any rule take 0.2 and 1.0), before every handshake was noted. And its table overflows under a flood, which refuses
//! new connections to a HAProxy that could still serve them. A socket lookup is what the kernel does anyway, needs no
//! timeouts, and cannot overflow; the set of handshakes may.
//!
//! # Who stands still
//!
//! A virtual machine that is moved to another host, or backed up, stands still for a moment and goes on. It leaves the ring like a dead
//! one, and what it carries is known to nobody meanwhile. While that may be so ([`Ring::waits`]) the kernel's RST for such
//! packets is dropped: clients send them again, and find the machine once it is back. The alternative, to drop the packets, would take
//! with them those for what is left of connections, which the kernel answers well. Price: the connections of a machine that is dead end
//! later.
//!
//! A SYN may wait in the machine's queue, and be sent again to its successor meanwhile. Both answer, and the successor's half-open socket
//! would reset what follows when the client has taken the older one's answer. So before a node resets what it holds for the end of a
//! handshake, it forgets that handshake and says nothing: sent again, the packet goes round the ring, and is reset if nobody knows it.
//!
//! # The hop count
//!
//! is kept in the DSCP field. Clients may set that field too, so it is believed only from the MAC address of a node.
//! A packet of a flow that is known is passed up untouched.
//!
//! # Where the network carries no clients' addresses
//!
//! Between nodes where that is so ([`Tunnels`]) a packet takes the tunnel instead of the link, unchanged. What comes out of it comes from a node.

mod counter;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::libc;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use trilith_core::command::Ring;
use trilith_core::config::{Node, NodeId, Settings, Vip};

use crate::net::tunnel::{self, Tunnels};

/// Socket mark of connections that came in through a VIP: "tril".
pub const MARK: u32 = 0x7472_696c;
/// Handshakes that are remembered; further ones come round the ring. About 5 MiB of kernel memory when it is full.
const HANDSHAKES: u32 = 32_768;
/// How long a handshake is remembered, in seconds: longer than an ACK may take to come back.
const HANDSHAKE_S: u32 = 30;
/// How long one is remembered after its first ACK, in seconds.
const ANSWERED_S: u32 = 1;
/// How long `nft` may take before it counts as failed; a change of these tables takes about 10 ms.
const NFT_TIMEOUT: Duration = Duration::from_secs(5);
/// Before any firewall rules (`filter` is 0): what is relayed must not be judged here.
const PRIORITY: i32 = -200;

/// The transaction that puts the rules for this ring in force, IPv4 and IPv6, whatever was in force before.
///
/// Counter and handshakes live on. `None` is the ring of a node that knows nothing yet: what is not known here is dropped, so
/// that its flow's owner is found by a retransmission; to answer it with RST would be to speak for nodes not yet heard.
/// Interfaces that are not in `present` get no rules, since `nft` would refuse all of them. The tunnel must be there if `tunnels` are used.
pub fn ruleset(settings: &Settings, ring: Option<&Ring>, present: &BTreeSet<String>, tunnels: Tunnels) -> String {
    [Family::V4, Family::V6].iter().map(|family| table(*family, settings, ring, present, tunnels)).collect()
}

/// Puts a transaction of [`ruleset`] in force.
///
/// # Errors
/// `nft` is missing, refuses the rules (the message is its own first line), or does not end in time.
pub async fn apply(ruleset: &str) -> Result<()> {
    nft(&["-f", "-"], ruleset).await.context("relay rules refused").map(drop)
}

/// Whether rules of an earlier run are in force: they stay when the supervisor ends.
///
/// # Errors
/// As of [`apply`].
pub async fn in_force() -> Result<bool> {
    let tables = nft(&["list", "tables"], "").await.context("tables cannot be listed")?;
    Ok(tables.lines().any(|line| matches!(line, "table ip trilith" | "table ip6 trilith")))
}

/// Packets passed on to the next node since the tables were made, IPv4 and IPv6.
///
/// # Errors
/// What the kernel says.
pub fn relayed_packets() -> Result<u64> {
    Ok(counter::packets(libc::NFPROTO_IPV4)? + counter::packets(libc::NFPROTO_IPV6)?)
}

/// Runs `nft` with these arguments and this input; returns what it prints.
async fn nft(arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("nft cannot be run: is nftables installed?")?;
    let mut stdin = child.stdin.take().context("nft has no standard input")?;
    let run = async {
        // A reader that stops early says so by its exit code and message, which are worth more than a broken pipe.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(NFT_TIMEOUT, run)
        .await
        .with_context(|| format!("nft {} did not end within {NFT_TIMEOUT:?}", arguments.join(" ")))??;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("nft {}: {}", arguments.join(" "), message.lines().next().unwrap_or("failed without a message"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    /// nft's word, for the table and for the header alike.
    fn word(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }

    fn address_type(self) -> &'static str {
        match self {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        }
    }

    /// ICMP errors that quote a packet of a flow (RFC 792, RFC 4443).
    fn errors(self) -> &'static str {
        match self {
            Family::V4 => "icmp type { destination-unreachable, time-exceeded, parameter-problem }",
            Family::V6 => "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
        }
    }

    /// What a packet loses with every hop.
    fn ttl(self) -> &'static str {
        match self {
            Family::V4 => "ttl",
            Family::V6 => "hoplimit",
        }
    }

    fn is(self, address: IpAddr) -> bool {
        address.is_ipv4() == (self == Family::V4)
    }

    /// A node's address to which packets of this family can be relayed.
    fn address(self, node: &Node) -> Option<IpAddr> {
        if self.is(node.address) { Some(node.address) } else { node.address6.map(IpAddr::V6).filter(|a| self.is(*a)) }
    }
}

fn table(
    family: Family,
    settings: &Settings,
    ring: Option<&Ring>,
    present: &BTreeSet<String>,
    tunnels: Tunnels,
) -> String {
    let ip = family.word();
    let vips: Vec<_> = settings.vips.iter().filter(|vip| family.is(vip.address)).collect();
    if vips.is_empty() {
        return format!("add table {ip} trilith\ndelete table {ip} trilith\n");
    }
    let addresses = vips.iter().map(|vip| vip.address.to_string()).collect::<Vec<_>>().join(", ");
    let interfaces: BTreeSet<_> =
        vips.iter().map(|vip| &vip.interface).filter(|name| present.contains(*name)).collect();
    // What comes out of the tunnel is judged also when this node does not use it any more: others may for a moment.
    let carriers: BTreeSet<_> = vips.iter().map(|vip| vip.interface.as_str()).chain([tunnel::NAME]).collect();
    let carriers = carriers.into_iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let next = ring.and_then(|ring| ring.next);
    let ways = next.map_or_else(Vec::new, |next| ways(family, settings, &interfaces, next, tunnels));
    // A packet makes one hop more than the last node is away: it ends where it started, at the node that owns the VIP.
    let hops = match ring {
        Some(ring) if ring.last_hop > 0 && !ways.is_empty() => ring.last_hop + 1,
        _ => 0,
    };

    let mut text = String::new();
    let mut line = |words: String| {
        text.push_str(&words);
        text.push('\n');
    };
    line(format!("add table {ip} trilith"));
    line(format!("add counter {ip} trilith relayed"));
    let (address, flow) = (family.address_type(), format!("{ip} saddr . tcp sport . {ip} daddr . tcp dport"));
    line(format!(
        "add set {ip} trilith handshakes {{ type {address} . inet_service . {address} . inet_service; \
         flags dynamic,timeout; size {HANDSHAKES}; timeout {HANDSHAKE_S}s; }}"
    ));
    for hook in ["input", "output"] {
        line(format!(
            "add chain {ip} trilith {hook} {{ type filter hook {hook} priority {PRIORITY}; policy accept; }}"
        ));
    }
    let inner = ["stray", "ring", "end"].map(String::from).into_iter();
    let chains: Vec<_> = inner.chain((1..=MAX_HOPS).map(|hop| format!("hop{hop}"))).collect();
    for chain in &chains {
        line(format!("add chain {ip} trilith {chain}"));
    }
    line(format!("flush table {ip} trilith"));

    let mut rule = |chain: &str, words: String| {
        let _ = writeln!(text, "add rule {ip} trilith {chain} {words}");
    };
    // The order is that of frequency: what belongs to a known flow leaves at the second rule.
    rule("input", format!("{ip} daddr != {{ {addresses} }} accept"));
    rule("input", format!("socket mark {MARK:#x} accept"));
    rule("input", format!("tcp flags & (fin|syn|rst|ack) == syn meta mark set {MARK:#x} accept"));
    // A listener has no mark, half-open and TIME_WAIT sockets do not show theirs.
    rule("input", "goto stray".to_owned());

    // The node's own requests to its VIP, on `lo`, have nowhere else to go; neither has what is no TCP.
    rule("stray", format!("iifname != {{ {carriers} }} accept"));
    rule("stray", "meta l4proto tcp goto ring".to_owned());
    rule("stray", format!("{} goto ring", family.errors()));

    // Nodes that do not know each other's MAC yet may pass a packet round for ever: a hop costs it one, but nobody on the way looks.
    rule("ring", format!("{ip} {} < 2 drop", family.ttl()));
    // Once the ACK is in, the connection has a marked socket. But what came with it in one batch was matched to the half-open one.
    rule("ring", format!("{flow} @handshakes update @handshakes {{ {flow} timeout {ANSWERED_S}s }} goto end"));
    match ring {
        None => rule("ring", "drop".to_owned()),
        Some(ring) => {
            for peers in peers(ring).into_iter().chain([format!("iifname \"{}\"", tunnel::NAME)]) {
                let steps = (1..hops).map(|hop| format!("{hop} : goto hop{}", hop + 1));
                let steps = steps.chain((hops > 0).then(|| format!("{hops} : goto end"))).collect::<Vec<_>>();
                if hops > 0 {
                    rule("ring", format!("{peers} {ip} dscp vmap {{ {} }}", steps.join(", ")));
                }
                // Only where a packet came into the ring may it be reset, once it has been all around. A peer that passes on
                // what this node would end has another view for a moment: the next try finds the way, a reset would not.
                rule("ring", format!("{peers} {ip} dscp != 0 drop"));
            }
            rule("ring", format!("goto {}", if hops > 0 { "hop1" } else { "end" }));
        }
    }
    for hop in 1..=hops {
        for (came, leaves) in &ways {
            rule(&format!("hop{hop}"), format!("{came} {ip} dscp set {hop} counter name relayed dup to {leaves} drop"));
        }
        // Its way is gone just now.
        rule(&format!("hop{hop}"), "drop".to_owned());
    }
    rule("end", format!("meta mark set {MARK:#x} accept"));

    // The kernel's own word to a packet that it knows no connection of; what a connection says itself bears its mark.
    let reset = format!("tcp flags & (syn|rst|ack) == rst {ip} saddr {{ {addresses} }} meta mark != {MARK:#x}");
    let flow = format!("{ip} daddr . tcp dport . {ip} saddr . tcp sport");
    rule("output", format!("{reset} {flow} @handshakes delete @handshakes {{ {flow} }} drop"));
    if ring.is_some_and(|ring| ring.waits) {
        rule("output", format!("{reset} drop"));
    }
    let answer = format!("tcp flags & (syn|ack) == (syn|ack) {ip} saddr {{ {addresses} }}");
    rule("output", format!("{answer} add @handshakes {{ {flow} }}"));
    text
}

/// By which way packets are passed on to `next`: how they have come, and where they leave.
fn ways(
    family: Family,
    settings: &Settings,
    interfaces: &BTreeSet<&String>,
    next: NodeId,
    tunnels: Tunnels,
) -> Vec<(String, String)> {
    let Some(address) = settings.nodes.get(usize::from(next.0)).and_then(|node| family.address(node)) else {
        return Vec::new();
    };
    let leaves = |interface: &String| match tunnels.leads_to(next) {
        true => format!("{} device \"{}\"", tunnel::gateway(next, family == Family::V4), tunnel::NAME),
        false => format!("{address} device \"{interface}\""),
    };
    let came = |interface: &String| (format!("iifname \"{interface}\""), leaves(interface));
    let mut ways: Vec<_> = interfaces.iter().map(|interface| came(interface)).collect();
    // What comes out of the tunnel has lost by which interface it came: that of its VIP.
    let vips = settings.vips.iter().filter(|vip| family.is(vip.address) && interfaces.contains(&vip.interface));
    let from_tunnel = |vip: &Vip| format!("iifname \"{}\" {} daddr {}", tunnel::NAME, family.word(), vip.address);
    ways.extend(vips.map(|vip| (from_tunnel(vip), leaves(&vip.interface))));
    ways
}

/// What comes from the other nodes, if the MAC address of any is known.
fn peers(ring: &Ring) -> Option<String> {
    let macs = ring.peer_macs.iter().map(mac).collect::<Vec<_>>();
    (!macs.is_empty()).then(|| format!("ether saddr {{ {} }}", macs.join(", ")))
}

fn mac(octets: &[u8; 6]) -> String {
    octets.map(|octet| format!("{octet:02x}")).join(":")
}

/// The most hops that a packet ever makes: as many as there can be nodes.
const MAX_HOPS: usize = trilith_core::config::MAX_NODES;
