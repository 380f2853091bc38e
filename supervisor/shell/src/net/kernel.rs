//! What the supervisor asks of the kernel over rtnetlink(7): links, addresses, routes, and word of their changes.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use rtnetlink::packet_route::AddressFamily as Family;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressProtocol, AddressScope, CacheInfo,
};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{Error, Handle};
use socket2::{SockFilter, SockRef};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `IFA_PROTO` of our addresses (`ip address show proto 0x54`): only what carries it is ever removed.
pub const PROTOCOL: u8 = 0x54;
/// Index of `lo` in every network namespace.
pub const LOOPBACK: u32 = 1;
/// A lifetime that never ends (rtnetlink(7): `ifa_valid`).
const FOREVER: u32 = u32::MAX;

/// A network interface now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index; another one after it was removed and made again.
    pub index: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Up, with a carrier.
    pub up: bool,
}

/// Where packets for an address on the same link go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Index of the interface.
    pub index: u32,
    /// The node's own address that they would carry.
    pub source: Option<IpAddr>,
}

/// A default gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its address.
    pub address: IpAddr,
    /// Index of the interface to it.
    pub index: u32,
    /// Metric of the route: the lowest one is in use.
    pub metric: u32,
}

/// The kernel's rtnetlink socket.
#[derive(Clone)]
pub struct Kernel {
    pub(super) handle: Handle,
}

impl Kernel {
    /// Opens the socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn open() -> Result<Kernel> {
        let (connection, handle, _) = rtnetlink::new_connection().context("rtnetlink socket")?;
        // It ends with the last handle.
        tokio::spawn(connection);
        Ok(Kernel { handle })
    }

    /// All Ethernet interfaces and `lo`, by name.
    ///
    /// # Errors
    /// The kernel does not list them.
    pub async fn links(&self) -> Result<BTreeMap<String, Link>> {
        let messages: Vec<_> =
            self.handle.link().get().execute().try_collect().await.context("links cannot be listed")?;
        let mut links = BTreeMap::new();
        for message in messages {
            let (mut name, mut mac) = (None, None);
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(text) => name = Some(text),
                    LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes).ok(),
                    _ => {}
                }
            }
            let up = message.header.flags.contains(LinkFlags::Up | LinkFlags::Running | LinkFlags::LowerUp);
            if let (Some(name), Some(mac)) = (name, mac) {
                links.insert(name, Link { index: message.header.index, mac, up });
            }
        }
        Ok(links)
    }

    /// Has `address` on the interface for `lifetime` from now, or for good; an address that is there is renewed.
    ///
    /// It is never chosen as a source address by itself: in IPv4 its scope is `host`, in IPv6 it is deprecated from the start
    /// (RFC 6724, rule 3). Incoming connections, ARP and neighbour discovery do not ask for either.
    ///
    /// # Errors
    /// The kernel's own word, for instance that the interface is gone.
    pub async fn add_address(&self, index: u32, address: IpAddr, lifetime: Option<Duration>) -> io::Result<()> {
        let mut request = self.handle.address().add(index, address, if address.is_ipv4() { 32 } else { 128 }).replace();
        let message = request.message_mut();
        if address.is_ipv4() {
            message.header.scope = AddressScope::Host;
            // The builder names a broadcast address, which a single address has not.
            message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Broadcast(_)));
        } else {
            // Nobody else is asked first: a VIP is claimed by election, and DAD would take a second. A single address needs no
            // route to its prefix, and each renewal would announce that route anew.
            message.header.flags |= AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
        }
        let mut cache = CacheInfo::default();
        cache.ifa_valid = lifetime.map_or(FOREVER, |lifetime| u32::try_from(lifetime.as_secs()).unwrap_or(FOREVER));
        message.attributes.push(AddressAttribute::CacheInfo(cache));
        message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)));
        request.execute().await.map_err(io_error)
    }

    /// Has `address` not on the interface; an interface that is gone has it not either.
    ///
    /// # Errors
    /// The kernel's own word.
    pub async fn remove_address(&self, index: u32, address: IpAddr) -> io::Result<()> {
        let mut message = rtnetlink::packet_route::address::AddressMessage::default();
        message.header.family = if address.is_ipv4() { Family::Inet } else { Family::Inet6 };
        message.header.prefix_len = if address.is_ipv4() { 32 } else { 128 };
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        match self.handle.address().del(message).execute().await.map_err(io_error) {
            Err(error)
                if [Errno::EADDRNOTAVAIL, Errno::ENODEV].map(|e| Some(e as i32)).contains(&error.raw_os_error()) =>
            {
                Ok(())
            }
            result => result,
        }
    }

    /// The addresses that carry our [`PROTOCOL`], with the index of their interface.
    ///
    /// # Errors
    /// The kernel does not list them.
    pub async fn own_addresses(&self) -> Result<Vec<(u32, IpAddr)>> {
        let list = self.handle.address().get().execute();
        let messages: Vec<_> = list.try_collect().await.context("addresses cannot be listed")?;
        Ok(messages
            .into_iter()
            .filter(|m| m.attributes.contains(&AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL))))
            .filter_map(|message| {
                let index = message.header.index;
                message.attributes.into_iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some((index, address)),
                    _ => None,
                })
            })
            .collect())
    }

    /// How an address on a link of ours is reached; `None` when it is behind a gateway, or our own, or not reachable.
    ///
    /// # Errors
    /// None of their own: an address that the kernel knows no route to is not reachable.
    pub async fn path(&self, address: IpAddr) -> Option<Path> {
        let mut message = RouteMessage::default();
        message.header = family_header(address.is_ipv4());
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(address.into()));
        let routes: Vec<_> = self.handle.route().get(message).execute().try_collect().await.ok()?;
        let route = routes.into_iter().next()?;
        let mut path = Path { index: 0, source: None };
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => return None,
                RouteAttribute::Oif(index) => path.index = *index,
                RouteAttribute::PrefSource(source) => path.source = ip(source),
                _ => {}
            }
        }
        (route.header.kind == RouteType::Unicast && path.index != 0).then_some(path)
    }

    /// The default gateways of the main table, IPv4 and IPv6.
    ///
    /// # Errors
    /// The kernel does not list the routes.
    pub async fn gateways(&self) -> Result<Vec<Gateway>> {
        let mut gateways = Vec::new();
        for v4 in [true, false] {
            let mut message = RouteMessage::default();
            message.header = family_header(v4);
            let list = self.handle.route().get(message).execute();
            let routes: Vec<_> = list.try_collect().await.context("routes cannot be listed")?;
            gateways.extend(routes.iter().filter_map(gateway));
        }
        Ok(gateways)
    }
}

/// Word of changes: which of the kernel's tables to look at again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// An interface was made, removed, or changed its state.
    pub links: bool,
    /// An address was removed.
    pub addresses: bool,
    /// A route was added or removed.
    pub routes: bool,
}

/// A socket that hears of changes. What has changed is looked up anew, so nothing is lost when it overflows.
pub struct Watch {
    socket: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Opens the socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refuses the socket, its groups or its filter.
    pub fn open() -> Result<Watch> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)
            .context("netlink socket")?;
        // Each renewal of a lifetime is announced as a new address, several times a second: only removals wake us.
        SockRef::from(&fd).attach_filter(&without(RTM_NEWADDR)).context("netlink filter")?;
        setsockopt(&fd, sockopt::RcvBuf, &WATCH_BUFFER).context("netlink buffer")?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS)).context("netlink groups")?;
        Ok(Watch { socket: readable(fd).context("netlink socket")? })
    }

    /// Waits for changes; everything that has been heard by then is one answer.
    ///
    /// # Errors
    /// The socket failed for good.
    pub async fn changed(&self) -> io::Result<Changes> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut changes = Changes::default();
            // The head of a message says which table: length u32, type u16 (netlink(7)).
            let mut head = [0; 16];
            for _ in 0..WATCH_BATCH {
                match recv(self.socket.as_raw_fd(), &mut head, MsgFlags::MSG_DONTWAIT) {
                    Ok(_) => match u16::from_ne_bytes([head[4], head[5]]) {
                        RTM_NEWLINK | RTM_DELLINK => changes.links = true,
                        RTM_DELADDR => changes.addresses = true,
                        RTM_NEWROUTE | RTM_DELROUTE => changes.routes = true,
                        _ => {}
                    },
                    Err(Errno::EAGAIN) => {
                        ready.clear_ready();
                        break;
                    }
                    Err(Errno::EINTR) => {}
                    Err(Errno::ENOBUFS) => changes = Changes { links: true, addresses: true, routes: true },
                    Err(error) => return Err(error.into()),
                }
            }
            if changes != Changes::default() {
                return Ok(changes);
            }
        }
    }
}

/// Has the runtime watch a socket for something to read.
///
/// # Errors
/// The runtime's epoll refuses it.
pub fn readable(socket: impl Into<OwnedFd>) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the AsyncFd owns the descriptor, which is open, and an OwnedFd names the same one until it closes it.
    let watched = unsafe { AsyncFd::register_with_interest(socket.into(), Interest::READABLE) };
    watched.map_err(io::Error::from)
}

fn gateway(route: &RouteMessage) -> Option<Gateway> {
    let is_default = route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast;
    if !is_default || route.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let (mut address, mut index, mut metric) = (None, None, 0);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Gateway(gateway) => address = ip(gateway),
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    Some(Gateway { address: address?, index: index?, metric })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn family_header(v4: bool) -> RouteHeader {
    RouteHeader { address_family: if v4 { Family::Inet } else { Family::Inet6 }, ..RouteHeader::default() }
}

fn io_error(error: Error) -> io::Error {
    match error {
        Error::NetlinkError(message) => io::Error::from_raw_os_error(-message.raw_code()),
        error => io::Error::other(error),
    }
}

/// A classic BPF program that drops messages of one type; the type is the half word at 4, in the host's order.
fn without(kind: u16) -> [SockFilter; 4] {
    [
        SockFilter::new(0x28, 0, 0, 4),
        SockFilter::new(0x15, 0, 1, u32::from(kind.to_be())),
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    ]
}

// linux/rtnetlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
/// RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// Enough for a few hundred changes at once; more than that is one look at everything.
const WATCH_BUFFER: usize = 256 * 1024;
/// Messages that are read before the rest of the program has its turn.
const WATCH_BATCH: usize = 256;
