//! Kernel parameters that the VIPs need, written through `/proc/sys` (ip-sysctl, kernel documentation).

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Result, bail};

/// For the whole network namespace.
///
/// Where the kernel takes the larger of `all` and the interface's own value, both are given: an image may have set either.
const GLOBAL: &[(&str, &str)] = &[
    // Connections take over the mark of their SYN: the relay rules know them by it.
    ("net/ipv4/tcp_fwmark_accept", "1"),
    // The socket is looked up before the `input` hook, so that the relay rules find it without a search of their own.
    ("net/ipv4/ip_early_demux", "1"),
    ("net/ipv4/tcp_early_demux", "1"),
    // Seconds. What is over 60 of a connection that this node ended stays a whole socket, marked, until the client's FIN; the rest
    // does not show its mark, and a packet for it goes round the ring first.
    ("net/ipv4/tcp_fin_timeout", "65"),
    ("net/ipv4/conf/all/arp_ignore", "1"),
    ("net/ipv4/conf/all/arp_announce", "2"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    // The gateway that carries heartbeats between hosts that are isolated from each other would tell them to go direct.
    ("net/ipv4/conf/all/accept_redirects", "0"),
];

/// For each interface of a VIP, IPv4.
const INTERFACE: &[(&str, &str)] = &[
    // Only the owner has the VIP on its interface; only an address of the very interface is answered for …
    ("arp_ignore", "1"),
    // … and asked from: the VIP on `lo` must never be the sender of an ARP request.
    ("arp_announce", "2"),
    // Relayed packets come from a node's MAC address with a client's source address.
    ("rp_filter", "0"),
    ("accept_local", "1"),
    ("send_redirects", "0"),
    ("accept_redirects", "0"),
    // Another address of the subnet stays when the one that was there first goes.
    ("promote_secondaries", "1"),
];

/// For each interface of an IPv6 VIP.
const INTERFACE_V6: &[(&str, &str)] = &[
    // IPv6 addresses, the node's own among them, survive the link going down and up.
    ("keep_addr_on_down", "1"),
    ("accept_redirects", "0"),
];

/// Sets what is needed namespace-wide.
///
/// # Errors
/// All keys that cannot be set, in one message.
pub fn apply_global() -> Result<()> {
    apply(GLOBAL.iter().map(|(key, value)| ((*key).to_owned(), *value)))
}

/// Sets what is needed on the interface of a VIP; `v6`: of an IPv6 VIP.
///
/// # Errors
/// All keys that cannot be set, in one message; or IPv6 is switched off where an IPv6 VIP is wanted.
pub fn apply_interface(interface: &str, v6: bool) -> Result<()> {
    let v4 = INTERFACE.iter().map(|(key, value)| (format!("net/ipv4/conf/{interface}/{key}"), *value));
    let v6_keys = INTERFACE_V6.iter().filter(|_| v6);
    apply(v4.chain(v6_keys.map(|(key, value)| (format!("net/ipv6/conf/{interface}/{key}"), *value))))?;
    if v6 && read(&format!("net/ipv6/conf/{interface}/disable_ipv6")).as_deref() != Some("0") {
        bail!(
            "IPv6 is switched off on {interface}: set net.ipv6.conf.{interface}.disable_ipv6 to 0 or remove its IPv6 VIP"
        );
    }
    Ok(())
}

fn apply(wanted: impl Iterator<Item = (String, &'static str)>) -> Result<()> {
    let mut failed = Vec::new();
    for (key, value) in wanted {
        // What is right already needs no writing: /proc/sys may be read-only and set by whoever made it so.
        if read(&key).as_deref() == Some(value) {
            continue;
        }
        match fs::write(Path::new("/proc/sys").join(&key), value) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
                bail!(
                    "/proc/sys is read-only, and {key} is not {value}: make /proc/sys/net writable for the supervisor"
                );
            }
            Err(error) => failed.push(format!("{key} cannot be set to {value}: {error}")),
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}

fn read(key: &str) -> Option<String> {
    fs::read_to_string(Path::new("/proc/sys").join(key)).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_set_on_a_new_interface_and_a_missing_one_is_named() {
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            apply_global().unwrap();
            apply_interface("lo", true).unwrap();
            assert_eq!(read("net/ipv4/conf/lo/arp_announce").as_deref(), Some("2"));
            assert_eq!(read("net/ipv4/tcp_fwmark_accept").as_deref(), Some("1"));
            let error = apply_interface("eth7", false).unwrap_err().to_string();
            assert!(error.contains("net/ipv4/conf/eth7/arp_ignore cannot be set to 1: No such file"), "{error}");
        })
        .join()
        .unwrap();
    }
}
