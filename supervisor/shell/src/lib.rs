//! The supervisor of a node and the commands that talk to it: everything that the binary `trilith` is made of.
//!
//! The shells are thin: each turns one part of the world into events and commands into deeds. [`run`] is the one loop that
//! joins them to the pure core. It is a library so that the laboratory's screens and the fuzz targets can share its parts;
//! its only user in the field is the binary.

mod alarm;
pub mod cli;
mod console;
pub mod control;
pub mod coordinator;
mod disk;
mod firstboot;
mod front;
pub mod haproxy;
mod neighbour;
mod net;
mod notices;
mod notify;
mod paths;
mod peers;
mod relay;
mod run;
mod slot;
mod state;
mod support;
mod sysctl;
mod systemd;
mod trial;
mod utc;
mod version;
