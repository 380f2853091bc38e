//! What a machine is made of, and who is who.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::accel::Accel;
use crate::tools;

/// The names of the nodes, in the order of their addresses.
pub const NODES: [&str; 3] = ["a", "b", "c"];
/// The VIP that the nodes hold together.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 10);
/// Its IPv6 sibling.
pub const VIP6: Ipv6Addr = address6(0x10);
/// Where the clients are, and the nodes' default gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
/// The gateway's IPv6 address.
pub const GATEWAY6: Ipv6Addr = address6(0x1);

/// The hardware that a hypervisor shows to its guests, as far as QEMU has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hardware {
    /// ESX: paravirtual SCSI and vmxnet3.
    Esx,
    /// A plain PC: SATA and an Intel e1000, as ESX and others show it to guests that they know nothing of.
    Pc,
    /// KVM: virtio.
    Virtio,
}

/// Who gives a machine its IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Addressing {
    /// Its first-boot data.
    Static,
    /// The DHCP server in the clients' namespace.
    Dhcp,
}

/// What the firmware demands of a boot loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// Anything boots.
    Open,
    /// Secure Boot without keys: what boots may enrol them, and anything does until then.
    Setup,
    /// Secure Boot, with the keys enrolled that signed the image.
    Secure,
}

/// A machine to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Its place in [`NODES`], which gives it name, addresses and port.
    pub index: u8,
    /// What it looks like to its guest.
    pub hardware: Hardware,
    /// Who addresses it.
    pub addressing: Addressing,
    /// What its firmware demands.
    pub firmware: Firmware,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Size of its disk in MiB; `None`: that of the one below it.
    pub disk_mib: Option<u32>,
    /// The disk that its own is a copy-on-write overlay of, in the format that its name ends with.
    pub disk: PathBuf,
    /// Which nodes form the set that its first-boot data speaks of, by index.
    pub set: Vec<u8>,
    /// What runs its instructions.
    pub accel: Accel,
}

impl Plan {
    /// A set of one on virtio hardware with a static address.
    ///
    /// # Errors
    /// When the source tree is gone.
    pub fn alone(accel: Accel) -> Result<Plan> {
        Ok(Plan {
            index: 0,
            hardware: Hardware::Virtio,
            addressing: Addressing::Static,
            firmware: Firmware::Open,
            memory_mib: MEMORY_MIB,
            disk_mib: Some(DISK_MIB),
            disk: tools::image()?.join("trilith.raw"),
            set: vec![0],
            accel,
        })
    }

    /// Three nodes, each on other hardware, one of them addressed by DHCP.
    ///
    /// # Errors
    /// When the source tree is gone.
    pub fn trio(accel: Accel) -> Result<Vec<Plan>> {
        let one = |(index, hardware, addressing)| {
            Ok(Plan { index, hardware, addressing, set: vec![0, 1, 2], ..Plan::alone(accel)? })
        };
        let nodes = [
            (0, Hardware::Esx, Addressing::Static),
            (1, Hardware::Pc, Addressing::Dhcp),
            (2, Hardware::Virtio, Addressing::Static),
        ];
        nodes.into_iter().map(one).collect()
    }

    /// Its name in the set, which is also its host name and its port on the switch.
    pub fn name(&self) -> &'static str {
        name(self.index)
    }

    /// Its own address.
    pub fn address(&self) -> Ipv4Addr {
        address(self.index)
    }

    /// The address of its network card.
    pub fn mac(&self) -> String {
        mac(self.index)
    }
}

/// The name of a node.
pub fn name(index: u8) -> &'static str {
    NODES[usize::from(index)]
}

/// The address of a node.
pub const fn address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, 11 + index)
}

/// The IPv6 address of a node; written in hexadecimal it looks like the IPv4 one.
pub const fn node_address6(index: u8) -> Ipv6Addr {
    address6(0x11 + index as u16)
}

/// The MAC of a node, locally administered.
pub fn mac(index: u8) -> String {
    format!("02:00:0a:4e:00:{:02x}", 0x11 + index)
}

const fn address6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, last)
}

/// More than the image has, as an import with room for the state's partition.
pub const DISK_MIB: u32 = 1024;
/// What the documentation asks for; 256 is what must do.
pub const MEMORY_MIB: u32 = 512;
