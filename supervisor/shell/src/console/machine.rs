//! What the console tells of the machine itself: its addresses, the slot that it runs from, and the tries that are left.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use crate::slot::under_root;

/// One network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether there is a carrier.
    pub up: bool,
    /// Its hardware address.
    pub mac: String,
    /// Its addresses with the length of their prefix; those of the link only are left out.
    pub addresses: Vec<String>,
}

/// What was booted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// `A` or `B`; `None` when the root is on no slot, such as in a laboratory.
    pub slot: Option<char>,
    /// Tries that are left to this slot before the other one is booted; `None` once it has proved itself.
    pub tries_left: Option<u32>,
}

/// The interfaces other than the loopback, by name.
pub fn interfaces() -> Vec<Interface> {
    let mut found: BTreeMap<String, Interface> = BTreeMap::new();
    let Ok(all) = getifaddrs() else { return Vec::new() };
    for entry in all.filter(|entry| !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK)) {
        let name = entry.interface_name.clone();
        let interface = found.entry(name.clone()).or_insert_with(|| Interface { name, ..Interface::default() });
        interface.up = entry.flags.contains(InterfaceFlags::IFF_RUNNING);
        let Some(address) = entry.address else { continue };
        if let Some(link) = address.as_link_addr() {
            interface.mac = link.addr().map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":")).unwrap_or_default();
        }
        let ip = address.as_sockaddr_in().map(|it| IpAddr::from(it.ip()));
        let Some(ip) = ip.or_else(|| address.as_sockaddr_in6().map(|it| IpAddr::from(it.ip()))) else { continue };
        if matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
            continue;
        }
        let mask = entry.netmask.and_then(|mask| {
            let v4 = mask.as_sockaddr_in().map(|it| it.ip().to_bits().count_ones());
            v4.or_else(|| mask.as_sockaddr_in6().map(|it| it.ip().to_bits().count_ones()))
        });
        interface.addresses.push(mask.map_or(ip.to_string(), |length| format!("{ip}/{length}")));
    }
    found.into_values().collect()
}

/// The default routes, such as `default via 10.77.0.1 dev eth0`. (proc(5), /proc/net/route; Linux, ipv6_route.)
pub fn default_routes() -> Vec<String> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let mut routes: Vec<String> = read("/proc/net/route").lines().skip(1).filter_map(route4).collect();
    routes.extend(read("/proc/net/ipv6_route").lines().filter_map(route6));
    routes
}

fn route4(line: &str) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [interface, "00000000", gateway, ..] = fields[..] else { return None };
    // As the CPU's memory holds it.
    let gateway = Ipv4Addr::from(u32::from_str_radix(gateway, 16).ok()?.to_ne_bytes());
    (fields.get(7) == Some(&"00000000")).then(|| format!("default via {gateway} dev {interface}"))
}

fn route6(line: &str) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [network, "00", _, _, gateway, .., interface] = fields[..] else { return None };
    let gateway = Ipv6Addr::from(u128::from_str_radix(gateway, 16).ok()?);
    let is_default = u128::from_str_radix(network, 16) == Ok(0) && !gateway.is_unspecified();
    is_default.then(|| format!("default via {gateway} dev {interface}"))
}

/// The name servers that programs ask. (resolv.conf(5).)
pub fn resolvers() -> Vec<String> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|line| line.strip_prefix("nameserver"));
    servers.map(|server| server.trim().to_owned()).collect()
}

/// What the boot loader and the kernel tell of this boot.
pub fn boot() -> Boot {
    let efi = Path::new("/sys/firmware/efi/efivars");
    let counter = efi_string(&efi.join(format!("LoaderBootCountPath-{LOADER}")));
    Boot {
        slot: slot(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(), Path::new("/sys")),
        tries_left: counter.as_deref().and_then(tries_left),
    }
}

/// The tries in a name such as `trilith_0.2.0+2-1.efi`: two left, one done. (systemd.io, Automatic Boot Assessment.)
fn tries_left(path: &str) -> Option<u32> {
    let name = path.rsplit(['\\', '/']).next()?;
    let (_, counter) = name.strip_suffix(".efi").unwrap_or(name).rsplit_once('+')?;
    counter.split('-').next()?.parse().ok()
}

/// A variable of the firmware that holds text in UTF-16, without its attributes. (Linux, efivarfs.)
fn efi_string(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let units: Vec<u16> = bytes.get(4..)?.chunks_exact(2).map(|two| u16::from_le_bytes([two[0], two[1]])).collect();
    let end = units.iter().position(|unit| *unit == 0).unwrap_or(units.len());
    String::from_utf16(&units[..end]).ok()
}

/// The slot under the root's dm-verity: its partitions are the second and third of the disk for A, the next two for B.
fn slot(mountinfo: &str, sys: &Path) -> Option<char> {
    let numbers = under_root(mountinfo, sys)?;
    let numbers =
        numbers.iter().filter_map(|slave| fs::read_to_string(slave.join("partition")).ok()?.trim().parse::<u32>().ok());
    match numbers.min()? {
        2 | 3 => Some('A'),
        4 | 5 => Some('B'),
        _ => None,
    }
}

/// The boot loader's vendor of variables. (systemd.io, Boot Loader Interface.)
const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_read_from_the_name_that_counts_them() {
        assert_eq!(tries_left(r"\EFI\Linux\trilith_0.2.0+2-1.efi"), Some(2));
        assert_eq!(tries_left(r"\EFI\Linux\trilith_0.2.0+3.efi"), Some(3));
        assert_eq!(tries_left(r"\EFI\Linux\trilith_0.2.0+0-3.efi"), Some(0));
        for name in [r"\EFI\Linux\trilith_0.2.0.efi", "", "+", "a+b-c.efi"] {
            assert_eq!(tries_left(name), None, "{name}");
        }
    }

    #[test]
    fn default_routes_are_read_as_the_kernel_tells_them() {
        assert_eq!(
            route4("eth0\t00000000\t01004D0A\t0003\t0\t0\t1024\t00000000\t0\t0\t0").as_deref(),
            Some("default via 10.77.0.1 dev eth0")
        );
        assert_eq!(route4("eth0\t00004D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0"), None);
        let zeros = "0".repeat(32);
        let line = format!(
            "{zeros} 00 {zeros} 00 fd770000000000000000000000000001 00000400 00000001 00000000 00000003     eth0"
        );
        assert_eq!(route6(&line).as_deref(), Some("default via fd77::1 dev eth0"));
        assert_eq!(
            route6(&format!("{zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo")),
            None
        );
    }

    #[test]
    fn the_slot_is_found_under_the_roots_device() {
        let sys = std::env::temp_dir().join(format!("trilith-sys-{}", std::process::id()));
        for (name, number) in [("vda4", "4\n"), ("vda5", "5\n")] {
            let slave = sys.join("dev/block/253:0/slaves").join(name);
            fs::create_dir_all(&slave).unwrap();
            fs::write(slave.join("partition"), number).unwrap();
        }
        let found =
            slot("21 1 253:0 / / ro,relatime - erofs /dev/mapper/root ro\n22 21 0:5 / /dev rw - devtmpfs x rw\n", &sys);
        let none = slot("21 1 0:30 / / rw - overlay overlay rw\n", &sys);
        fs::remove_dir_all(&sys).unwrap();
        assert_eq!((found, none), (Some('B'), None));
    }

    #[test]
    fn a_firmwares_text_is_read_without_its_attributes() {
        let path = std::env::temp_dir().join(format!("trilith-efi-{}", std::process::id()));
        let bytes: Vec<u8> = [6, 0, 0, 0].into_iter().chain("ab\0".encode_utf16().flat_map(u16::to_le_bytes)).collect();
        fs::write(&path, bytes).unwrap();
        let text = efi_string(&path);
        fs::remove_file(&path).unwrap();
        assert_eq!(text.as_deref(), Some("ab"));
    }
}
