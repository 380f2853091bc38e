//! Addresses and the subnets that they lie in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use toml::de::DeValue;

use super::fault::{Wrong, quoted};
use super::values::string;

/// A node's own address: one that a neighbour on the same link can send to.
pub(super) fn address(value: &DeValue<'_>) -> Result<IpAddr, Wrong> {
    const RIGHT: &str = "write one such as \"10.77.0.11\" or \"fd77::11\"";
    let text = string(value, "an address", RIGHT)?;
    if text.contains('/') {
        let wrong = format!("{} has a prefix length, which only a VIP has", quoted(text));
        return Err(Wrong::new(wrong, RIGHT));
    }
    let Ok(address) = text.parse() else {
        return Err(Wrong::new(format!("{} is no IP address", quoted(text)), RIGHT));
    };
    usable(address)?;
    Ok(address)
}

/// An IPv6 address of a node.
pub(super) fn address6(value: &DeValue<'_>) -> Result<Ipv6Addr, Wrong> {
    match address(value)? {
        IpAddr::V6(address) => Ok(address),
        IpAddr::V4(address) => {
            Err(Wrong::new(format!("{address} is an IPv4 address"), "write an IPv6 address such as \"fd77::11\""))
        }
    }
}

/// A VIP's address and the prefix length of its subnet.
pub(super) fn subnet_address(value: &DeValue<'_>) -> Result<(IpAddr, u8), Wrong> {
    const RIGHT: &str =
        "write the address and the prefix length of its subnet, such as \"10.77.0.10/24\" or \"fd77::10/64\"";
    let text = string(value, "an address", RIGHT)?;
    let Some((address, prefix)) = text.split_once('/') else {
        return Err(Wrong::new(format!("{} lacks the prefix length of its subnet", quoted(text)), RIGHT));
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(Wrong::new(format!("{} is no IP address", quoted(address)), RIGHT));
    };
    usable(address)?;
    // A longer prefix leaves no room for a node beside the VIP, network and broadcast address.
    let (family, longest) = if address.is_ipv4() { ("IPv4", 30) } else { ("IPv6", 126) };
    match prefix.parse::<u8>() {
        Ok(length) if (1..=longest).contains(&length) && !prefix.starts_with('+') => {
            host_part(address, length)?;
            Ok((address, length))
        }
        _ => {
            let wrong = format!("{} is no prefix length of an {family} subnet that has room for nodes", quoted(prefix));
            Err(Wrong::new(wrong, format!("write a number from 1 to {longest}, for example {}", example(address))))
        }
    }
}

/// Whether a subnet holds an address.
pub(super) fn holds(subnet: (IpAddr, u8), address: IpAddr) -> bool {
    match (subnet.0, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (u32::from(network) ^ u32::from(address)) & !host_mask4(subnet.1) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            (u128::from(network) ^ u128::from(address)) & !host_mask6(subnet.1) == 0
        }
        _ => false,
    }
}

/// Refuses the addresses of a subnet that belong to no single host.
pub(super) fn host_part(address: IpAddr, prefix: u8) -> Result<(), Wrong> {
    let right = "choose another address of the subnet";
    match address {
        IpAddr::V4(address) => {
            let host = u32::from(address) & host_mask4(prefix);
            if host == 0 {
                return Err(Wrong::new(
                    format!("{address} is the address of the network {address}/{prefix} itself"),
                    right,
                ));
            }
            if host == host_mask4(prefix) {
                return Err(Wrong::new(format!("{address} is the broadcast address of its /{prefix} subnet"), right));
            }
        }
        IpAddr::V6(address) => {
            if u128::from(address) & host_mask6(prefix) == 0 {
                let wrong = format!("{address} is the subnet-router anycast address of {address}/{prefix} (RFC 4291)");
                return Err(Wrong::new(wrong, right));
            }
        }
    }
    Ok(())
}

fn usable(address: IpAddr) -> Result<(), Wrong> {
    let kind = match address {
        IpAddr::V4(a) if a.is_unspecified() => "the unspecified address",
        IpAddr::V4(a) if a.is_loopback() => "a loopback address",
        IpAddr::V4(a) if a.is_multicast() => "a multicast address",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "the broadcast address",
        IpAddr::V4(a) if a.octets()[0] == 0 || a.octets()[0] >= 240 => "a reserved address",
        IpAddr::V6(a) if a.is_unspecified() => "the unspecified address",
        IpAddr::V6(a) if a.is_loopback() => "a loopback address",
        IpAddr::V6(a) if a.is_multicast() => "a multicast address",
        IpAddr::V6(a) if a.is_unicast_link_local() => "a link-local address, which means nothing without an interface",
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => "an IPv4-mapped address",
        _ => return Ok(()),
    };
    let right = format!("write an address that other hosts can send to, such as {}", plain_example(address));
    Err(Wrong::new(format!("{address} is {kind}"), right))
}

fn plain_example(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "10.77.0.11" } else { "fd77::11" }
}

fn example(address: IpAddr) -> String {
    if address.is_ipv4() { format!("\"{address}/24\"") } else { format!("\"{address}/64\"") }
}

fn host_mask4(prefix: u8) -> u32 {
    u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0)
}

fn host_mask6(prefix: u8) -> u128 {
    u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_holds_its_addresses_and_no_others() {
        let subnet = ("10.77.0.10".parse().unwrap(), 24);
        assert!(holds(subnet, "10.77.0.255".parse().unwrap()));
        assert!(!holds(subnet, "10.77.1.0".parse().unwrap()));
        assert!(!holds(subnet, "fd77::1".parse().unwrap()));
        let subnet = ("fd77::10".parse().unwrap(), 64);
        assert!(holds(subnet, "fd77::ffff:1".parse().unwrap()));
        assert!(!holds(subnet, "fd77:0:0:1::1".parse().unwrap()));
    }
}
