//! `trilith`: the supervisor of a node and the commands that talk to it, in one binary.
//!
//! The shells are thin: each turns one part of the world into events and commands into deeds. [`run`] is the one loop that
//! joins them to the pure core.

mod alarm;
mod cli;
mod control;
mod disk;
mod front;
mod haproxy;
mod neighbour;
mod net;
mod notify;
mod paths;
mod peers;
mod relay;
mod run;
mod sysctl;
mod systemd;

fn main() -> std::process::ExitCode {
    cli::main()
}
