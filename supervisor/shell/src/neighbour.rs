//! Announcing, asking and listening on the link: ARP and neighbour discovery with packets of our own, never by way of the
//! kernel's neighbour cache, which answers for the dead.
//!
//! One socket for each of the two protocols serves all interfaces. Filters in the kernel leave us asleep but for what
//! concerns us: somebody claims a VIP, or somebody answers.

pub mod frame;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessageOwned, LinkAddr, MsgFlags, SockaddrIn6, SockaddrLike, recvfrom, recvmsg, sendto, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;

use crate::net::kernel::{Link, readable};
use frame::{Arp, BROADCAST, Mac, Says};

/// Somebody on the link of interface `index` says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// What.
    pub says: Says,
    /// Index of the interface.
    pub index: u32,
}

/// A question: who has `target`?
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// The interface that it goes out by.
    pub link: Link,
    /// The node's own address to ask from; unspecified for an ARP probe (RFC 5227), which changes no cache. IPv6 asks from the
    /// interface's link-local address whatever is said here.
    pub source: Ipv4Addr,
    /// The address asked for.
    pub target: IpAddr,
    /// Where it was last time: asked there first, and everybody only if that has no answer. IPv4 only: in IPv6 hardly
    /// anybody else listens to the group of the target.
    pub known: Option<Mac>,
    /// How long an answer may take, all tries together.
    pub timeout: Duration,
}

/// How often a question is asked.
pub const TRIES: u32 = 3;
/// Answers that may wait for whoever asked; the claims of an ARP storm push out the oldest.
const HEARD_QUEUE: usize = 64;

/// After so many packets, nothing is heard for [`PAUSE`]: whoever floods the link with claims gets no more than that of the one
/// thread, which must send heartbeats meanwhile and may not use the processor for long without a sleep (`LimitRTTIME=`). What is
/// lost is said again.
pub const BATCH: u32 = 32;
/// See [`BATCH`].
pub const PAUSE: Duration = Duration::from_millis(5);

/// The two sockets.
pub struct Neighbour {
    arp: AsyncFd<OwnedFd>,
    /// `None` where nothing speaks IPv6.
    discovery: Option<AsyncFd<OwnedFd>>,
    heard: broadcast::Sender<Heard>,
    /// Packets that were read.
    read: AtomicU32,
}

impl Neighbour {
    /// Opens the sockets in the network namespace of the calling thread; `v6`: also that for neighbour discovery.
    ///
    /// # Errors
    /// No right to raw sockets (`CAP_NET_RAW`), or no IPv6 in the kernel.
    pub fn open(vips: &[IpAddr], v6: bool) -> Result<Neighbour> {
        let v4: Vec<Ipv4Addr> =
            vips.iter().filter_map(|vip| if let IpAddr::V4(vip) = vip { Some(*vip) } else { None }).collect();
        let discovery = if v6 {
            let vips: Vec<Ipv6Addr> =
                vips.iter().filter_map(|vip| if let IpAddr::V6(vip) = vip { Some(*vip) } else { None }).collect();
            Some(readable(open_discovery(&vips).context("socket for neighbour discovery")?)?)
        } else {
            None
        };
        let arp = readable(open_arp(&v4).context("socket for ARP")?)?;
        Ok(Neighbour { arp, discovery, heard: broadcast::Sender::new(HEARD_QUEUE), read: AtomicU32::new(0) })
    }

    /// Whether questions about IPv6 addresses can be asked.
    pub fn speaks_v6(&self) -> bool {
        self.discovery.is_some()
    }

    /// Listens where others ask for `vip`, for as long as the interface is there, whoever holds it.
    ///
    /// The kernel joins that group when an address comes, and leaves it when it goes. Both change what the card has to let
    /// through, and a card may go deaf meanwhile: QEMU's e1000 for a second, which is longer than a lease lasts, so that the
    /// VIP went on to the next node, and its card went deaf. Switches that follow memberships (MLD snooping) have nothing to
    /// learn in a hand-over either. Where an address is not held, nobody answers for it.
    ///
    /// # Errors
    /// The interface is gone, or is in too many groups.
    pub fn listen_for(&self, link: Link, vip: Ipv6Addr) -> io::Result<()> {
        let Some(socket) = &self.discovery else {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        };
        let group = frame::solicited_node(vip);
        match SockRef::from(socket.get_ref()).join_multicast_v6(&group, link.index) {
            // Another VIP whose last three bytes are the same.
            Err(error) if error.raw_os_error() == Some(Errno::EADDRINUSE as i32) => Ok(()),
            result => result,
        }
    }

    /// Waits for the next thing said that passes the filters, and lets those know who have asked.
    ///
    /// # Errors
    /// A socket failed for good.
    pub async fn hear(&self) -> io::Result<Heard> {
        loop {
            let heard = match &self.discovery {
                None => read(&self.arp, receive_arp).await?,
                Some(discovery) => tokio::select! {
                    heard = read(&self.arp, receive_arp) => heard?,
                    heard = read(discovery, receive_discovery) => heard?,
                },
            };
            if self.read.fetch_add(1, Ordering::Relaxed) % BATCH == BATCH - 1 {
                tokio::time::sleep(PAUSE).await;
            }
            if let Some(heard) = heard {
                // Nobody asking is no error.
                let _ = self.heard.send(heard);
                return Ok(heard);
            }
        }
    }

    /// Tells everybody on the link that `address` is here: a gratuitous ARP request and reply, since some stacks take only one
    /// of them, or an unsolicited neighbour advertisement.
    ///
    /// # Errors
    /// The interface is down or gone, or its queue is full.
    pub fn announce(&self, link: Link, address: IpAddr) -> io::Result<()> {
        match address {
            IpAddr::V4(address) => [Arp::Request, Arp::Reply]
                .into_iter()
                .try_for_each(|form| self.send_arp(link, &frame::arp(form, link.mac, BROADCAST, address, address))),
            IpAddr::V6(address) => {
                self.send_discovery(link, frame::ALL_NODES, &frame::advertisement(address, link.mac))
            }
        }
    }

    /// Asks up to [`TRIES`] times, evenly over the time there is; returns who answered, or claimed the address meanwhile.
    ///
    /// A packet that cannot be sent (no carrier) is one that nobody answers.
    pub async fn ask(&self, question: Question) -> Option<Says> {
        let mut heard = self.heard.subscribe();
        let Question { link, target, .. } = question;
        for attempt in 0..TRIES {
            let to = question.known.filter(|_| attempt == 0).unwrap_or(BROADCAST);
            let sent = match target {
                IpAddr::V4(v4) => self.send_arp(link, &frame::arp(Arp::Request, link.mac, to, question.source, v4)),
                IpAddr::V6(v6) => {
                    self.send_discovery(link, frame::solicited_node(v6), &frame::solicitation(v6, link.mac))
                }
            };
            if let Err(error) = sent {
                tracing::debug!(%target, %error, "question not sent");
            }
            let answer = async {
                loop {
                    match heard.recv().await {
                        Ok(heard)
                            if heard.index == link.index
                                && heard.says.address == target
                                && heard.says.mac != Some(link.mac) =>
                        {
                            return heard.says;
                        }
                        Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                    }
                }
            };
            if let Ok(says) = tokio::time::timeout(question.timeout / TRIES, answer).await {
                return Some(says);
            }
        }
        None
    }

    fn send_arp(&self, link: Link, frame: &[u8]) -> io::Result<()> {
        send(&self.arp, frame, &link_address(link.index)?)
    }

    fn send_discovery(&self, link: Link, to: Ipv6Addr, message: &[u8]) -> io::Result<()> {
        let Some(socket) = &self.discovery else {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        };
        send(socket, message, &SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, link.index)))
    }
}

fn open_arp(vips: &[Ipv4Addr]) -> io::Result<Socket> {
    // Protocol 0 hears nothing until the filter is in place; bind names the protocol then (packet(7)).
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    socket.attach_filter(&frame::arp_filter(vips))?;
    nix::sys::socket::bind(socket.as_raw_fd(), &link_address(0)?)?;
    Ok(socket)
}

fn open_discovery(vips: &[Ipv6Addr]) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    socket.attach_filter(&frame::advertisement_filter(vips))?;
    // Neighbour discovery is not routed: receivers check for 255 (RFC 4861, section 7.1).
    socket.set_multicast_hops_v6(255)?;
    socket.set_multicast_loop_v6(false)?;
    setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    Ok(socket)
}

/// The address of an interface for ARP frames; index 0 is all of them.
fn link_address(index: u32) -> io::Result<LinkAddr> {
    // SAFETY: all bytes zero are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ARP as u16).to_be();
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the pointer is to a whole sockaddr_ll of the length given, and it is copied.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
    address.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Nobody waits for a full queue: what is lost is sent again soon.
fn send<A: SockaddrLike>(socket: &AsyncFd<OwnedFd>, bytes: &[u8], to: &A) -> io::Result<()> {
    sendto(socket.as_raw_fd(), bytes, to, MsgFlags::MSG_DONTWAIT)?;
    Ok(())
}

/// Reads one packet; `None` when it says nothing that matters.
async fn read(
    socket: &AsyncFd<OwnedFd>,
    receive: fn(&OwnedFd) -> nix::Result<Option<Heard>>,
) -> io::Result<Option<Heard>> {
    loop {
        let mut ready = socket.readable().await?;
        match ready.try_io(|socket| receive(socket.get_ref()).map_err(io::Error::from)) {
            // An interface that goes down is reported once to those who listen on it, and is no end.
            Ok(Err(error))
                if [Errno::ENETDOWN, Errno::EINTR].map(|e| Some(e as i32)).contains(&error.raw_os_error()) => {}
            Ok(result) => return result,
            Err(_) => {}
        }
    }
}

fn receive_arp(socket: &OwnedFd) -> nix::Result<Option<Heard>> {
    let mut buffer = [0; 64];
    let (length, from) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer)?;
    let says = frame::read_arp(&buffer[..length]);
    let index = from.and_then(|from| u32::try_from(from.ifindex()).ok());
    Ok(says.zip(index).map(|(says, index)| Heard { says, index }))
}

fn receive_discovery(socket: &OwnedFd) -> nix::Result<Option<Heard>> {
    let mut buffer = [0; 256];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut parts = [io::IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
    let index = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(info.ipi6_ifindex),
        _ => None,
    });
    let length = message.bytes;
    let says = frame::read_advertisement(&buffer[..length]);
    Ok(says.zip(index).map(|(says, index)| Heard { says, index }))
}
