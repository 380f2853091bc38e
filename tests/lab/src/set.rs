//! Who is who in the laboratory.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};

/// The names of the nodes, in the order of their addresses.
pub const NODES: [&str; 3] = ["a", "b", "c"];
/// The VIP that the nodes hold together.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
/// Its IPv6 sibling.
pub const VIP6: Ipv6Addr = address6(0x10);
/// Where the clients are, and the nodes' default gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The gateway's IPv6 address.
pub const GATEWAY6: Ipv6Addr = address6(0x1);
/// What clients send from, so that they go on when the gateway's address is taken away.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The same for IPv6.
pub const CLIENT6: Ipv6Addr = address6(0x2);

/// The configuration document of the set.
pub const DOCUMENT: &str = include_str!("../set.toml");

/// keepalived's configuration of the node of that index in [`NODES`], for comparison.
pub fn keepalived(index: u8) -> String {
    include_str!("../keepalived.conf").replace("priority PRIORITY", &format!("priority {}", 254 - index))
}

/// Address of the node of that index in [`NODES`].
pub const fn node_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 11 + index)
}

/// IPv6 address of the node of that index; written in hexadecimal it looks like the IPv4 one.
pub const fn node_address6(index: u8) -> Ipv6Addr {
    address6(0x11 + index as u16)
}

/// A fresh secret for a set: 32 random bytes in hexadecimal.
pub fn new_secret() -> Result<String> {
    let mut bytes = [0u8; 32];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

const fn address6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, last)
}
