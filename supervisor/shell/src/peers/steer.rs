//! Sockets of the peer channel, and the two classic BPF programs that sort datagrams before they queue.

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use anyhow::{Context as _, anyhow};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use trilith_core::config::NodeId;
use trilith_core::wire::{HEADER, MAX_DATAGRAM, PROBE, ROUTINE, Session, VERSION_AT};

use super::barred::foreign;

/// All sockets of the peer port. Their order of binding is their number in [`program`].
pub(super) struct Sockets {
    /// The lobby, then one for each node by [`NodeId`] (the one of this node is idle): a datagram here wakes the supervisor.
    pub(super) waking: Vec<UdpSocket>,
    /// One for each node: what is routine waits here.
    pub(super) routine: Vec<std::net::UdpSocket>,
}

/// Index of the lobby in [`Sockets::waking`]. It must be 0, which is also what a BPF program returns that reads past a
/// datagram's end.
pub(super) const LOBBY: usize = 0;

impl Sockets {
    /// Everything goes to the lobby until [`Sockets::steer`] is called.
    ///
    /// # Errors
    ///
    /// When another process has the port; what else the kernel refuses, and to what end it was asked. An address that this
    /// machine does not have only warns.
    pub(super) fn bind(own: SocketAddr, me: NodeId, nodes: &[SocketAddr]) -> anyhow::Result<Sockets> {
        let filter = filter(me, nodes);
        let open = |room: usize| -> anyhow::Result<Socket> {
            let socket = plain(own)?;
            socket.set_recv_buffer_size(room).context("SO_RCVBUF")?;
            // Before the socket is bound, so that nothing unfiltered can be in its queue.
            attach(&socket, libc::SO_ATTACH_FILTER, &filter).context("SO_ATTACH_FILTER")?;
            Ok(socket)
        };
        let join = || -> anyhow::Result<std::net::UdpSocket> {
            let socket = open(QUEUE_BYTES)?;
            socket.set_reuse_port(true).context("SO_REUSEPORT")?;
            socket.bind(&own.into()).with_context(|| format!("bind to {own}"))?;
            Ok(socket.into())
        };
        if std::net::UdpSocket::bind((own.ip(), 0)).is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
        {
            tracing::warn!("this machine does not have {} now: no peer is heard before it has", own.ip());
        }
        // The lobby binds the port alone, so that nobody else has it, and then shares it with the others of this process.
        let lobby = open(LOBBY_BYTES)?;
        lobby.bind(&own.into()).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                anyhow!(error).context("another process has it; is a supervisor running already?")
            }
            _ => anyhow!(error).context(format!("bind to {own}")),
        })?;
        lobby.set_reuse_port(true).context("SO_REUSEPORT")?;
        let mut waking = vec![lobby.into()];
        for _ in nodes {
            waking.push(join()?);
        }
        let waking = waking.into_iter().map(UdpSocket::from_std).collect::<io::Result<_>>();
        let waking = waking.context("register with the event loop")?;
        let routine = nodes.iter().map(|_| join()).collect::<anyhow::Result<_>>()?;
        let sockets = Sockets { waking, routine };
        sockets.steer(&[], false).context("SO_ATTACH_REUSEPORT_CBPF")?;
        Ok(sockets)
    }

    /// From now on the datagrams of these sessions, by [`NodeId`], go to the queues of their sender and all others to the
    /// lobby. Routine ones wake nobody if they `may_wait`.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub(super) fn steer(&self, sessions: &[Option<Session>], may_wait: bool) -> io::Result<()> {
        let routine = if may_wait { self.waking.len() } else { LOBBY + 1 };
        attach(&self.waking[LOBBY], libc::SO_ATTACH_REUSEPORT_CBPF, &program(sessions, routine))
    }

    /// How many datagrams the kernel has dropped: filtered, or no room.
    pub(super) fn thrown_away(&self) -> u64 {
        self.waking.iter().map(thrown_away).sum::<u64>() + self.routine.iter().map(thrown_away).sum::<u64>()
    }
}

/// A socket that sends from `own`'s address with the highest priority; not bound yet.
pub(super) fn plain(own: SocketAddr) -> anyhow::Result<Socket> {
    let socket = Socket::new(Domain::for_address(own), Type::DGRAM, Some(Protocol::UDP)).context("socket")?;
    socket.set_nonblocking(true).context("O_NONBLOCK")?;
    match own {
        SocketAddr::V4(_) => {
            socket.set_freebind_v4(true).context("IP_FREEBIND")?;
            socket.set_tos_v4(NETWORK_CONTROL).context("IP_TOS")?;
            socket.set_ttl_v4(FULL_TTL).context("IP_TTL")?;
        }
        SocketAddr::V6(_) => {
            socket.set_only_v6(true).context("IPV6_V6ONLY")?;
            socket.set_freebind_v6(true).context("IPV6_FREEBIND")?;
            socket.set_tclass_v6(NETWORK_CONTROL).context("IPV6_TCLASS")?;
            socket.set_unicast_hops_v6(FULL_TTL).context("IPV6_UNICAST_HOPS")?;
        }
    }
    // After IP_TOS, which sets a priority of its own.
    socket.set_priority(TC_PRIO_CONTROL).context("SO_PRIORITY")?;
    Ok(socket)
}

/// A socket that only sends, from an address and any port of it, with what else it needs to be set before it is bound.
pub(super) fn sending(
    own: SocketAddr,
    from: IpAddr,
    set: impl FnOnce(&Socket) -> anyhow::Result<()>,
) -> anyhow::Result<std::net::UdpSocket> {
    let socket = plain(own)?;
    // Nobody reads it; the kernel makes the least of this that it can.
    socket.set_recv_buffer_size(0).context("SO_RCVBUF")?;
    set(&socket)?;
    let from = SocketAddr::new(from, 0);
    socket.bind(&from.into()).with_context(|| format!("bind to {from}"))?;
    Ok(socket.into())
}

fn thrown_away(socket: &impl AsRawFd) -> u64 {
    let mut memory = [0_u32; SK_MEMINFO_VARS];
    let mut length = size_of_val(&memory) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `memory`, which is as long.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            memory.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if result == 0 { memory[libc::SK_MEMINFO_DROPS as usize].into() } else { 0 }
}

/// Which socket of the group gets a datagram, where those for `routine` ones begin. Offsets count from the payload
/// (`net/core/sock_reuseport.c`).
fn program(sessions: &[Option<Session>], routine: usize) -> Vec<libc::sock_filter> {
    let mut code = Vec::new();
    for (node, session) in sessions.iter().enumerate() {
        if let Some(Session(session)) = session {
            code.extend([
                op(LOAD_BYTE, 0, 0, SENDER_AT),
                op(IF_EQUAL, 0, 8, node as u32),
                op(LOAD_WORD, 0, 0, SESSION_AT),
                op(IF_EQUAL, 0, 6, (session >> 32) as u32),
                op(LOAD_WORD, 0, 0, SESSION_AT + 4),
                op(IF_EQUAL, 0, 4, *session as u32),
                op(LOAD_BYTE, 0, 0, VERSION_AT as u32),
                op(IF_ANY_OF, 0, 1, ROUTINE.into()),
                op(RETURN, 0, 0, (routine + node) as u32),
                op(RETURN, 0, 0, (LOBBY + 1 + node) as u32),
            ]);
        }
    }
    code.push(op(RETURN, 0, 0, LOBBY as u32));
    code
}

/// Which datagrams a socket takes at all: of a node, from its address, and [`super::barred`]'s probes. Offsets count from the UDP header, or from the IP header where `NETWORK` is added.
///
/// Hops are counted as in VRRP (RFC 5798, 5.1.1.3) and GTSM (RFC 5082): nobody who is further away can make a datagram that
/// arrives with so high a TTL. One hop is allowed for the way by the gateway.
fn filter(me: NodeId, nodes: &[SocketAddr]) -> Vec<libc::sock_filter> {
    let ttl_at = if nodes.iter().all(SocketAddr::is_ipv4) { 8 } else { 7 };
    let mut code = vec![
        op(LOAD_LENGTH, 0, 0, 0),
        op(IF_AT_LEAST, 0, 1, UDP_HEADER + SHORTEST),
        op(IF_MORE, 0, 1, UDP_HEADER + MAX_DATAGRAM as u32),
        op(RETURN, 0, 0, DROP),
        op(LOAD_BYTE, 0, 0, NETWORK + ttl_at),
        op(IF_AT_LEAST, 1, 0, FULL_TTL - 1),
        op(RETURN, 0, 0, DROP),
    ];
    // Probes come from an address that is nobody's, whoever has sent them.
    code.push(op(LOAD_HALF, 0, 0, UDP_HEADER));
    block(&mut code, u16::from_be_bytes(PROBE).into(), foreign(nodes[usize::from(me.0)].ip()));
    for (node, address) in nodes.iter().enumerate().filter(|(node, _)| *node != usize::from(me.0)) {
        code.push(op(LOAD_BYTE, 0, 0, UDP_HEADER + SENDER_AT));
        block(&mut code, node as u32, address.ip());
    }
    code.push(op(RETURN, 0, 0, DROP));
    code
}

/// Takes the datagram if what is loaded is `wanted`, and it comes from `source`.
fn block(code: &mut Vec<libc::sock_filter>, wanted: u32, source: IpAddr) {
    let words: Vec<(u32, u32)> = match source {
        IpAddr::V4(address) => vec![(12, address.to_bits())],
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            (0..4).map(|word| (8 + 4 * word, (bits >> (96 - 32 * word)) as u32)).collect()
        }
    };
    let mut left = 2 * words.len() as u8;
    code.push(op(IF_EQUAL, 0, left + 1, wanted));
    for (at, word) in words {
        left -= 2;
        code.extend([op(LOAD_WORD, 0, 0, NETWORK + at), op(IF_EQUAL, 0, left + 1, word)]);
    }
    code.push(op(RETURN, 0, 0, TAKE));
}

fn op(code: u32, jump_if: u8, jump_else: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: jump_if, jf: jump_else, k }
}

fn attach(socket: &impl AsRawFd, option: libc::c_int, code: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_ptr().cast_mut() };
    // SAFETY: `program` points to `code`, of which the kernel makes a copy and which it does not write to.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// CS6 in the upper six bits (RFC 4594, 3.2): switches and queues pass heartbeats first.
const NETWORK_CONTROL: u32 = 48 << 2;
/// The first band of the default queueing discipline (`TC_PRIO_CONTROL` in tc-prio(8)).
const TC_PRIO_CONTROL: u32 = 7;
const FULL_TTL: u32 = 255;

/// Room for a peer's datagrams that wait, as asked for; the kernel doubles it. About 300, so 12 s of heartbeats each 40 ms.
const QUEUE_BYTES: usize = 128 << 10;
/// The same for the lobby: about one batch.
const LOBBY_BYTES: usize = 16 << 10;

const UDP_HEADER: u32 = 8;
/// A header and the tag of the AEAD.
const SHORTEST: u32 = HEADER as u32 + 16;
const SENDER_AT: u32 = 3;
const SESSION_AT: u32 = 4;

const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const LOAD_LENGTH: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_LEN;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_ANY_OF: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const IF_MORE: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const NETWORK: u32 = libc::SKF_NET_OFF as u32;
const TAKE: u32 = u32::MAX;
const DROP: u32 = 0;

/// Numbers in the answer to `SO_MEMINFO` (`linux/sock_diag.h`).
const SK_MEMINFO_VARS: usize = 9;
