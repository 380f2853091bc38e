//! The supervisor of a node and the commands that talk to it: everything that the programs `trilith` and `trilith-supervisor` are
//! made of.
//!
//! The shells are thin: each turns one part of the world into events and commands into deeds. [`run`] is the one loop that
//! joins them to the pure core. It is a library so that the laboratory's screens and the fuzz targets can share its parts;
//! its only users in the field are the two programs.

mod alarm;
pub mod cli;
mod console;
pub mod control;
pub mod coordinator;
pub mod daemon;
mod disk;
mod firstboot;
mod front;
pub mod haproxy;
mod neighbour;
mod net;
mod notices;
mod notify;
pub mod paths;
mod peers;
mod relay;
mod run;
mod service;
mod slot;
mod state;
mod support;
mod sysctl;
mod systemd;
mod trial;
mod utc;
mod version;

pub use run::supervise;
