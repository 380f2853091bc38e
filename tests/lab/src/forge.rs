//! Hostile datagrams at the peer port: forged, replayed, truncated and random, in a node's name, as fast as one core can.
//!
//! The attacker is on the link and knows everything but the set secret, so it takes any source address (raw sockets), and has
//! listened ([`listen`]) before it begins. What must follow is nothing: no change of state, no failover, bounded memory.
//!
//! ```no_run
//! use std::time::Duration;
//! use trilith_lab::forge::{Blast, Kind, listen};
//! # fn main() -> anyhow::Result<()> {
//! let heard = listen("/run/netns/trilith-a".as_ref(), 8745, 500, Duration::from_secs(20))?;
//! let report = Blast {
//!     netns: "/run/netns/trilith-client".into(),
//!     to: "10.77.0.12:8745".parse()?,
//!     from: "10.77.0.11".parse()?,
//!     sender: 0,
//!     kinds: Kind::ALL.to_vec(),
//!     heard,
//!     count: 100_000,
//! }
//! .fire()?;
//! println!("{} sent, {} a second", report.sent, report.per_second());
//! # Ok(()) }
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// What is wrong with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The header of a node, in a session that it is not in, and random bytes behind.
    Forged,
    /// The header of a datagram that was heard, with a counter that is still to come, and random bytes behind: the attack
    /// that costs the receiver the most.
    Informed,
    /// A datagram that was heard, as it was.
    Replayed,
    /// The beginning of a datagram that was heard.
    Truncated,
    /// Random bytes of random length.
    Random,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] = [Kind::Forged, Kind::Informed, Kind::Replayed, Kind::Truncated, Kind::Random];
}

/// A datagram that was heard on the link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Its source.
    pub from: IpAddr,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// One attack.
#[derive(Debug, Clone)]
pub struct Blast {
    /// File of the network namespace to send from.
    pub netns: PathBuf,
    /// The peer port that is attacked.
    pub to: SocketAddr,
    /// The address that [`Kind::Forged`] and [`Kind::Random`] come from; the others come from where they were heard.
    pub from: IpAddr,
    /// The node, counted from 0 in the set's document, that [`Kind::Forged`] pretends to be.
    pub sender: u8,
    /// What to send, in turn.
    pub kinds: Vec<Kind>,
    /// What was heard before; needed by all kinds but [`Kind::Forged`] and [`Kind::Random`].
    pub heard: Vec<Heard>,
    /// How many datagrams.
    pub count: u32,
}

/// What an attack came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Datagrams that the kernel took.
    pub sent: u32,
    /// Datagrams that it refused.
    pub refused: u32,
    /// From the first to the last.
    pub took: Duration,
}

impl Report {
    /// Datagrams sent in a second.
    pub fn per_second(&self) -> u64 {
        (f64::from(self.sent) / self.took.as_secs_f64().max(1e-9)) as u64
    }
}

impl Blast {
    /// Sends everything, as fast as it goes.
    ///
    /// # Errors
    ///
    /// When nothing was heard of what is to be replayed, addresses are of two families, or the namespace or a raw socket in
    /// it cannot be had.
    pub fn fire(&self) -> Result<Report> {
        ensure!(!self.kinds.is_empty(), "no kind of datagram to send");
        let heard: Vec<&Heard> = self
            .heard
            .iter()
            .filter(|heard| heard.from.is_ipv4() == self.to.is_ipv4() && heard.payload.len() > HEADER)
            .collect();
        let needs = self.kinds.iter().find(|kind| !matches!(kind, Kind::Forged | Kind::Random));
        if let (Some(kind), true) = (needs, heard.is_empty()) {
            bail!("{kind:?} datagrams need something that was heard on the link to {}", self.to);
        }
        ensure!(self.from.is_ipv4() == self.to.is_ipv4(), "{} cannot send to {}", self.from, self.to);
        inside(&self.netns, || self.fire_here(&heard))
    }

    fn fire_here(&self, heard: &[&Heard]) -> Result<Report> {
        let domain = Domain::for_address(self.to);
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(nix::libc::IPPROTO_RAW)))
            .context("a raw socket (needs CAP_NET_RAW)")?;
        // A raw IPv6 socket refuses a destination with a port.
        let to = SockAddr::from(SocketAddr::new(self.to.ip(), 0));
        let mut random = Random(self.count.into());
        let (mut sent, mut refused, mut packet) = (0, 0, Vec::with_capacity(2048));
        let start = Instant::now();
        for (kind, round) in self.kinds.iter().cycle().zip(0..self.count) {
            let (from, payload) = self.datagram(*kind, round, heard, &mut random);
            wrap(from, self.to, &payload, &mut packet);
            match socket.send_to(&packet, &to) {
                Ok(_) => sent += 1,
                Err(_) => refused += 1,
            }
        }
        Ok(Report { sent, refused, took: start.elapsed() })
    }

    fn datagram(&self, kind: Kind, round: u32, heard: &[&Heard], random: &mut Random) -> (IpAddr, Vec<u8>) {
        let known = || heard[round as usize % heard.len()];
        match kind {
            Kind::Forged => {
                let mut payload = vec![b'T', b'L', 1, self.sender];
                let length = 200 + random.below(100);
                payload.extend(random.bytes(length));
                (self.from, payload)
            }
            Kind::Informed => {
                let mut payload = known().payload.clone();
                let counter = u64::MAX / 2 + u64::from(round);
                payload[HEADER - 8..HEADER].copy_from_slice(&counter.to_be_bytes());
                let body = random.bytes(payload.len() - HEADER);
                payload[HEADER..].copy_from_slice(&body);
                (known().from, payload)
            }
            Kind::Replayed => (known().from, known().payload.clone()),
            Kind::Truncated => {
                let length = random.below(known().payload.len());
                (known().from, known().payload[..length].to_vec())
            }
            Kind::Random => {
                let length = random.below(MAX_PAYLOAD);
                (self.from, random.bytes(length))
            }
        }
    }
}

/// Listens in a network namespace for datagrams to `port`, those that it sends itself included, until it has heard `wanted`
/// or `time` is over. On a bridge's port that is all that a node behind it sends and gets.
///
/// # Errors
///
/// When the namespace or a packet socket in it cannot be had, or nothing at all is heard.
pub fn listen(netns: &Path, port: u16, wanted: usize, time: Duration) -> Result<Vec<Heard>> {
    let heard = inside(netns, || {
        let everything = i32::from((nix::libc::ETH_P_ALL as u16).to_be());
        let mut socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(everything)))
            .context("a packet socket (needs CAP_NET_RAW)")?;
        socket.set_read_timeout(Some(Duration::from_millis(100))).context("SO_RCVTIMEO")?;
        let (mut heard, end) = (Vec::new(), Instant::now() + time);
        let mut buffer = [0; 65_536];
        while heard.len() < wanted && Instant::now() < end {
            match socket.read(&mut buffer) {
                Ok(length) => heard.extend(unwrap(&buffer[..length], port)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("read from the packet socket"),
            }
        }
        Ok(heard)
    })?;
    ensure!(!heard.is_empty(), "no datagram to port {port} in {} within {time:?}", netns.display());
    Ok(heard)
}

/// Does something on a thread of its own, inside a network namespace.
fn inside<T: Send>(netns: &Path, deed: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(netns).with_context(|| format!("no network namespace {}", netns.display()))?;
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
            deed()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes an IP packet with one UDP datagram; TTL 255, as a neighbour would.
fn wrap(from: IpAddr, to: SocketAddr, payload: &[u8], packet: &mut Vec<u8>) {
    packet.clear();
    let length = (UDP + payload.len()) as u16;
    let udp = [to.port().to_be_bytes(), to.port().to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    match (from, to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // RFC 791. The kernel adds identification and header checksum; UDP goes without a checksum (RFC 768).
            packet.extend([0x45, 0xc0]);
            packet.extend((20 + length).to_be_bytes());
            packet.extend([0, 0, 0, 0, 255, PROTOCOL_UDP, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            packet.extend(udp);
            packet.extend(payload);
        }
        (from, to) => {
            let (from, to) = (as_v6(from), as_v6(to));
            // RFC 8200, where UDP must have a checksum, over a header that ends in length and protocol.
            packet.extend([0x6c, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([PROTOCOL_UDP, 255]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            let start = packet.len();
            packet.extend(udp);
            packet.extend(payload);
            let pseudo = u32::from(length) + u32::from(PROTOCOL_UDP);
            let sum = checksum(pseudo, &packet[start - 32..]);
            packet[start + 6..start + 8].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

/// The UDP payload to `port` of an IP packet without options.
fn unwrap(packet: &[u8], port: u16) -> Option<Heard> {
    let version = packet.first()? >> 4;
    let (protocol, from, start): (u8, IpAddr, usize) = match version {
        4 => (packet.get(9).copied()?, <[u8; 4]>::try_from(packet.get(12..16)?).ok()?.into(), 20),
        6 => (packet.get(6).copied()?, <[u8; 16]>::try_from(packet.get(8..24)?).ok()?.into(), 40),
        _ => return None,
    };
    let udp = packet.get(start..)?;
    let is_ours = protocol == PROTOCOL_UDP && udp.get(2..4)? == port.to_be_bytes();
    let length = usize::from(u16::from_be_bytes([*udp.get(4)?, *udp.get(5)?]));
    let payload = udp.get(UDP..length)?;
    is_ours.then(|| Heard { from, payload: payload.to_vec() })
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::to_ipv6_mapped(&address),
        IpAddr::V6(address) => address,
    }
}

/// The Internet checksum (RFC 1071), never 0.
fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum = words.fold(start, u32::wrapping_add);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    }
}

/// SplitMix64: good enough for bytes that must only look random, and the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

/// Length of the header of the peer channel's datagrams: it ends in the counter (`supervisor/core/src/wire.rs`).
const HEADER: usize = 20;
/// Longest random payload: fits an Ethernet frame.
const MAX_PAYLOAD: usize = 1400;
const UDP: usize = 8;
const PROTOCOL_UDP: u8 = 17;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrapped_is_unwrapped_again() {
        for (from, to) in [("10.77.0.11", "10.77.0.12:8745"), ("fd77::11", "[fd77::12]:8745")] {
            let (from, to): (IpAddr, SocketAddr) = (from.parse().expect("address"), to.parse().expect("address"));
            let mut packet = Vec::new();
            wrap(from, to, b"payload", &mut packet);
            assert_eq!(unwrap(&packet, 8745), Some(Heard { from, payload: b"payload".to_vec() }));
            assert_eq!(unwrap(&packet, 8746), None);
            for length in 0..packet.len() {
                assert_eq!(unwrap(&packet[..length], 8745), None, "{length} bytes");
            }
        }
    }

    #[test]
    fn spoofed_datagrams_arrive_and_are_heard_on_the_loopback() {
        for (from, to) in [("127.0.0.77", "127.0.0.1:0"), ("::1", "[::1]:0")] {
            let from: IpAddr = from.parse().expect("address");
            let socket = std::net::UdpSocket::bind(to).expect("bind");
            let to = socket.local_addr().expect("a port that was free");
            socket.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
            let netns = PathBuf::from("/proc/thread-self/ns/net");
            let blast = Blast { netns, to, from, sender: 1, kinds: vec![Kind::Forged], heard: Vec::new(), count: 3 };
            let report = blast.fire().expect("it is sent");
            assert_eq!((report.sent, report.refused), (3, 0));
            let mut buffer = [0; 2000];
            let (length, source) = socket.recv_from(&mut buffer).expect("it arrives");
            assert_eq!(source.ip(), from);
            assert_eq!(&buffer[..4], b"TL\x01\x01");
            assert!((204..304).contains(&length));
        }
    }

    #[test]
    fn nothing_is_replayed_that_was_not_heard() {
        let to = "127.0.0.1:9".parse().expect("address");
        let from = "127.0.0.2".parse().expect("address");
        let netns = PathBuf::from("/proc/thread-self/ns/net");
        let blast = Blast { netns, to, from, sender: 1, kinds: vec![Kind::Replayed], heard: Vec::new(), count: 1 };
        assert!(blast.fire().is_err());
    }
}
