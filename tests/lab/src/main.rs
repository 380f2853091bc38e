//! `trilith-lab`: the laboratory from the command line.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use trilith_lab::bench::{self, Bench};
use trilith_lab::lab::{self, Lab, Mode, OnFailure};
use trilith_lab::{config_roll, container, demo, mixed, status};

/// Three containers of the appliance's own root tree on one bridge, and clients that talk to the VIP.
#[derive(Parser)]
#[command(name = "trilith-lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Top,
}

#[derive(Subcommand)]
enum Top {
    /// Bring the laboratory up and down, look at it, get into it.
    #[command(subcommand)]
    Lab(LabCommand),
    /// Clients on the VIP, faults, and what the clients see, live.
    Demo,
    /// Measure; the last line is one JSON object.
    #[command(subcommand)]
    Bench(Bench),
    /// Becomes the container of a node.
    #[command(hide = true)]
    Container { node: String },
    /// Takes a laboratory down when its owner ends.
    #[command(hide = true)]
    Guard { id: String },
}

#[derive(Subcommand)]
enum LabCommand {
    /// Build what is missing, boot the three nodes, wait until they are ready.
    Up {
        /// keepalived and HAProxy instead of Trilith.
        #[arg(long)]
        peer: bool,
        /// Let it stand if a node does not get ready, to look at it.
        #[arg(long)]
        keep: bool,
    },
    /// Remove everything that `up` made.
    Down,
    /// What each node is doing.
    Status {
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Change the configuration again and again under load, for better and for worse; the last line is one JSON object.
    ConfigRoll(config_roll::Options),
    /// Patch the nodes under load, one after the other, from the version in `TRILITH_LAB_VERSION` (a checkout with its release build) to
    /// this one, one of them back, and once more; the last line is one JSON object.
    Mixed,
    /// A shell inside a node, or one command.
    Shell {
        /// a, b or c.
        node: String,
        /// What to run; without it, a shell.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// A shell where the clients are, or one command, for example `client curl http://10.77.0.10/`.
    Client {
        /// What to run; without it, a shell.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trilith-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Top) -> Result<()> {
    match command {
        Top::Lab(command) => run_lab(command),
        Top::Demo => demo::run(),
        Top::Bench(command) => bench::run(command),
        Top::Container { node } => container::become_container(Lab::attach()?.node(&node)?),
        Top::Guard { id } => lab::guard(&id),
    }
}

fn run_lab(command: LabCommand) -> Result<()> {
    match command {
        LabCommand::Up { peer, keep } => {
            let mode = if peer { Mode::Peer } else { Mode::Trilith };
            Lab::up_or(mode, if keep { OnFailure::Keep } else { OnFailure::TakeDown })?.keep()
        }
        LabCommand::Down => {
            let was_up = lab::down()?;
            eprintln!("lab: {}", if was_up { "down" } else { "nothing is up" });
            Ok(())
        }
        LabCommand::Status { json } => status::show(&Lab::attach()?, json),
        LabCommand::ConfigRoll(options) => config_roll::run(&options),
        LabCommand::Mixed => mixed::run(),
        LabCommand::Shell { node, command } => {
            let lab = Lab::attach()?;
            let command = or_shell(command);
            let args: Vec<&str> = command[1..].iter().map(String::as_str).collect();
            Err(lab.node(&node)?.command(&command[0], &args)?.exec().into())
        }
        LabCommand::Client { command } => Err(Lab::attach()?.client.exec(&or_shell(command))),
    }
}

fn or_shell(command: Vec<String>) -> Vec<String> {
    let shell = if Path::new("/bin/bash").exists() { "bash" } else { "sh" };
    if command.is_empty() { vec![shell.to_owned()] } else { command }
}
