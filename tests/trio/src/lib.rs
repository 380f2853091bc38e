//! The trio: three virtual machines that boot the appliance's disk image, on one bridge.
//!
//! The laboratory (`tests/lab`) has the appliance's root at native speed; the trio has all of the rest: firmware, boot
//! loader, kernel, verity, first boot, and the hardware that ESX, Hyper-V and KVM show to their guests.
//!
//! | module | what it is for |
//! |---|---|
//! | [`trio`] | bring machines up on their bridge, use them, take them down |
//! | [`machine`] | one QEMU: power on and cut, pause, freeze, serial log |
//! | [`plan`] | what a machine is made of: hardware, memory, firmware, addressing |
//! | [`cidata`] | its first-boot data |
//! | [`network`] | the wire, the clients' side of it, DHCP |
//! | [`accel`] | KVM if it really runs a kernel |
//! | [`tools`] | programs of the Debian 13 tools tree |
//! | [`upgrade`] | versions that come to three machines under load |
//! | [`bad`] | versions that break, and are left again |
//! | [`cuts`] | plugs that are pulled while a version comes |
//! | [`packed`] | what is released, in each of its formats |
//! | [`demo`] | power-on, a move, a plug that is pulled, another version: what clients see |
//! | [`boot`] | `bench boot`: from the kernel's start until the VIP answers |

pub mod accel;
pub mod bad;
pub mod boot;
pub mod cidata;
pub mod console;
pub mod cuts;
pub mod demo;
pub mod gpt;
pub mod machine;
pub mod network;
pub mod packed;
pub mod pe;
pub mod plan;
pub mod process;
pub mod qmp;
pub mod status;
pub mod tools;
pub mod trio;
pub mod upgrade;
