//! Giving interfaces the names that the answers want.
//!
//! udev would do it by `.link` files, but it has seen the interfaces long before the answers were read; so does cloud-init itself.

use std::fs;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::network::{Link, Network};

/// Renames the interfaces of this machine; what could not be done is told.
pub(crate) fn rename(network: &Network) -> Vec<String> {
    let interfaces = interfaces();
    let mut problems = Vec::new();
    let mut wanted = Vec::new();
    for link in &network.links {
        let Some(name) = &link.set_name else { continue };
        match interfaces.iter().find(|interface| interface.is(link)) {
            Some(interface) if &interface.name != name => wanted.push((interface.name.as_str(), name.as_str())),
            Some(_) => {}
            None => problems.push(format!("no interface is there that network-config wants to name {name}")),
        }
    }
    // By way of names that nobody has: two interfaces may want each other's.
    let away: Vec<String> = (0..wanted.len()).map(|number| format!("trilith{number}")).collect();
    let mut moved = Vec::new();
    for ((from, to), away) in wanted.iter().zip(&away) {
        match set_name(from, away) {
            Ok(()) => moved.push((*from, *to, away)),
            Err(error) => problems.push(format!("interface {from} can't be named {to}: {error}")),
        }
    }
    for (from, to, away) in moved {
        if let Err(error) = set_name(away, to) {
            problems.push(format!("interface {from} can't be named {to}: {error}"));
            if let Err(error) = set_name(away, from) {
                problems.push(format!("interface {from} is now named {away}: {error}"));
            }
        }
    }
    problems
}

/// An interface of the machine.
#[derive(Debug)]
struct Interface {
    name: String,
    mac: String,
    driver: String,
}

impl Interface {
    fn is(&self, link: &Link) -> bool {
        let same =
            |pattern: &Option<String>, value: &str| pattern.as_deref().is_none_or(|pattern| fits(pattern, value));
        same(&link.matching.mac, &self.mac)
            && same(&link.matching.name, &self.name)
            && same(&link.matching.driver, &self.driver)
    }
}

/// Only interfaces that are devices: bonds and VLANs share the address of one.
fn interfaces() -> Vec<Interface> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    let mut found: Vec<Interface> = entries
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| {
            let mac = fs::read_to_string(entry.path().join("address")).ok()?.trim().to_owned();
            let driver = fs::read_link(entry.path().join("device/driver")).unwrap_or_default();
            let driver = driver.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            Some(Interface { name: entry.file_name().into_string().ok()?, mac, driver })
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Shell patterns, as far as names need them: `*` and `?`.
fn fits(pattern: &str, value: &str) -> bool {
    match pattern.split_at_checked(1) {
        None => value.is_empty(),
        Some(("*", rest)) => (0..=value.len()).any(|skipped| value.get(skipped..).is_some_and(|tail| fits(rest, tail))),
        Some((first, rest)) => {
            value.split_at_checked(1).is_some_and(|(c, tail)| (first == "?" || first == c) && fits(rest, tail))
        }
    }
}

/// netdevice(7), `SIOCSIFNAME`.
fn set_name(from: &str, to: &str) -> Result<(), Errno> {
    // SAFETY: all its members are plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(from.bytes().take(libc::IFNAMSIZ - 1)) {
        *place = byte.cast_signed();
    }
    let mut name = [0; libc::IFNAMSIZ];
    for (place, byte) in name.iter_mut().zip(to.bytes().take(libc::IFNAMSIZ - 1)) {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_newname = name;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the request is a whole ifreq that lives through the call.
    let result =
        unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCSIFNAME as _, &raw mut request) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, value) in
            [("eth0", "eth0"), ("eth*", "eth0"), ("*", "x"), ("en?s*", "enps1"), ("virtio*", "virtio_net")]
        {
            assert!(fits(pattern, value), "{pattern} {value}");
        }
        for (pattern, value) in [("eth0", "eth01"), ("eth", "eth0"), ("?", ""), ("en*s", "ens1")] {
            assert!(!fits(pattern, value), "{pattern} {value}");
        }
    }

    #[test]
    fn an_interface_gets_another_name() {
        // In a network namespace of this thread alone, whose only interface is lo.
        let renamed = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            set_name("lo", "trilith0").unwrap();
            assert_eq!(set_name("lo", "x"), Err(Errno::ENODEV));
            nix::net::if_::if_nametoindex("trilith0")
        });
        assert_eq!(renamed.join().unwrap(), Ok(1));
    }
}
