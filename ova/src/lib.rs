//! The appliance as foreign tools take it: an OVA for vCenter and ESXi, a VHDX for Hyper-V, and what turns one set file into three
//! machines.
//!
//! ```text
//!  trilith.raw ──Disk──▶ vmdk ──▶ ova          set.toml ──SetFile──▶ seeds ──▶ ISOs, properties, domains ──▶ deploy scripts
//!                    └─▶ vhdx ──▶ zip
//! ```
//!
//! Everything is a function of its input: equal disks and equal files give equal bytes. `trilith-pack` makes what is released,
//! `trilith-seed` is for whoever deploys.

pub mod crc;
pub mod deploy;
pub mod descriptor;
pub mod disk;
pub mod environment;
pub mod gpt;
pub mod import;
pub mod iso9660;
pub mod ova;
pub mod seed;
pub mod set;
pub mod tar;
pub mod vhdx;
pub mod vmdk;
pub mod zip;
