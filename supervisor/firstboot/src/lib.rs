//! The first boot: answers in cloud-init's formats, found, checked, stored once, and applied at every boot.
//!
//! ```text
//!  sources ──Documents──▶ take ──Answers, Findings──▶ store (once) ──▶ render ──files──▶ /etc (every boot)
//! ```
//!
//! Everything between finding the documents and writing files is pure: bytes in, plain data out. [`run`] is what the unit
//! `trilith-firstboot.service` does; [`check`](run::check) does the same to a directory and touches nothing.

pub mod answers;
pub mod cloud_config;
pub mod encoding;
pub mod fields;
pub mod finding;
pub mod network;
pub mod render;
pub mod report;
pub mod run;
pub mod set_part;
pub mod sources;
pub mod store;
pub mod take;
pub mod yaml;

mod apply;
mod rename;
