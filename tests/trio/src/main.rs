//! `trilith-trio`: the three virtual machines from the command line.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use trilith_trio::machine::State;
use trilith_trio::trio::{self, Trio, say};
use trilith_trio::{bad, boot, console, cuts, demo, packed, status, upgrade};

/// Three virtual machines that boot the appliance's disk image, on one bridge, and clients that talk to the VIP.
#[derive(Parser)]
#[command(name = "trilith-trio", version)]
struct Cli {
    #[command(subcommand)]
    command: Top,
}

#[derive(Subcommand)]
enum Top {
    /// Build what is missing, power the three nodes on, wait until all serve the VIP.
    Up {
        /// Let them run if one does not get there, to look at it.
        #[arg(long)]
        keep: bool,
    },
    /// Power off and remove everything that `up` made.
    Down,
    /// What each machine is doing, and what it says of the set.
    Status {
        /// One JSON object instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// This terminal on a node's serial port; Ctrl-] leaves.
    Console {
        /// a, b or c.
        node: String,
    },
    /// Log in to a node as admin, or run one `trilith` command there.
    Ssh {
        /// a, b or c.
        node: String,
        /// What to run, for example `trilith status`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// A shell where the clients are, or one command, for example `client curl http://10.78.0.10/`.
    Client {
        /// What to run; without it, a shell.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Pull a node's plug; what it had not flushed is lost.
    PowerCut {
        /// a, b or c.
        node: String,
    },
    /// Switch a node on again.
    PowerOn {
        /// a, b or c.
        node: String,
    },
    /// Stop a node and its clock, for some seconds or until `resume`.
    Pause {
        /// a, b or c.
        node: String,
        /// How long.
        #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
        seconds: Option<u64>,
    },
    /// Let a paused node go on.
    Resume {
        /// a, b or c.
        node: String,
    },
    /// Three machines from power-on to another version on all of them, and what clients see of it.
    Demo,
    /// Measure; the last line is one JSON object.
    #[command(subcommand)]
    Bench(Bench),
    /// Patch three machines from version to version while clients use them; the last line is one JSON object.
    Upgrade {
        /// The versions, in their order.
        #[arg(default_values = ["0.2.0", "0.3.0"])]
        versions: Vec<String>,
        /// Then take them back to the version before the last.
        #[arg(long)]
        rollback: bool,
        /// Let the machines run if something fails, to look at them.
        #[arg(long)]
        keep: bool,
    },
    /// Give the set versions that break, and see it recover by itself; the last line is one JSON object.
    BadUpgrades {
        /// How they break: directories of tests/trio/bad.
        #[arg(default_values = bad::WAYS)]
        ways: Vec<String>,
        /// Let the machines run if something fails, to look at them.
        #[arg(long)]
        keep: bool,
    },
    /// Boot what is released, three machines of each format of build/dist, each told who it is as its hypervisor tells it; the last
    /// line is one JSON object.
    Packed {
        /// Which formats.
        #[arg(value_enum, default_values_t = [packed::Format::Ova, packed::Format::Qcow2, packed::Format::Vhdx])]
        formats: Vec<packed::Format>,
        /// Let the machines run if something fails, to look at them.
        #[arg(long)]
        keep: bool,
    },
    /// Pull plugs at random moments of upgrades; the last line is one JSON object.
    PowerCuts {
        /// How often; at least three for each version that is rolled out.
        #[arg(default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=500))]
        cuts: u16,
    },
    /// Takes machines down when their owner ends.
    #[command(hide = true)]
    Guard { id: String },
}

#[derive(Subcommand)]
enum Bench {
    /// From the kernel's start until the VIP answers, against a stock Debian with keepalived and HAProxy.
    Boot(boot::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trilith-trio: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Top) -> Result<()> {
    match command {
        Top::Up { keep } => trio::up(keep)?.keep(),
        Top::Down => {
            let were_up = trio::down()?;
            say(if were_up { "down" } else { "nothing is up" });
            Ok(())
        }
        Top::Status { json } => status::show(&Trio::attach()?, json),
        Top::Console { node } => console::attach(Trio::attach()?.machine(&node)?),
        Top::Ssh { node, command } => ssh(&node, &command),
        Top::Client { command } => Err(Trio::attach()?.network.client.exec(&or_shell(command))),
        Top::PowerCut { node } => Trio::attach()?.machine(&node)?.power_cut(),
        Top::PowerOn { node } => Trio::attach()?.machine(&node)?.power_on(),
        Top::Pause { node, seconds } => pause(&node, seconds),
        Top::Resume { node } => Trio::attach()?.machine(&node)?.resume(),
        Top::Demo => demo::run(),
        Top::Bench(Bench::Boot(options)) => boot::run(&options),
        Top::Upgrade { versions, rollback, keep } => upgrade::run(&versions, rollback, keep),
        Top::BadUpgrades { ways, keep } => bad::run(&ways, keep),
        Top::Packed { formats, keep } => packed::run(&formats, keep),
        Top::PowerCuts { cuts } => cuts::run(cuts.into()),
        Top::Guard { id } => trio::guard(&id),
    }
}

fn ssh(node: &str, command: &[String]) -> Result<()> {
    let trio = Trio::attach()?;
    let status = trio.ssh_command(trio.machine(node)?)?.args(command).status()?;
    if !status.success() {
        bail!("ssh to {node}: {status}");
    }
    Ok(())
}

fn pause(node: &str, seconds: Option<u64>) -> Result<()> {
    let trio = Trio::attach()?;
    let machine = trio.machine(node)?;
    if machine.state() != State::Running {
        bail!("machine {node} does not run: {:?}", machine.state());
    }
    machine.pause()?;
    if let Some(seconds) = seconds {
        std::thread::sleep(Duration::from_secs(seconds));
        machine.resume()?;
    }
    Ok(())
}

fn or_shell(command: Vec<String>) -> Vec<String> {
    let shell = if Path::new("/bin/bash").exists() { "bash" } else { "sh" };
    if command.is_empty() { vec![shell.to_owned()] } else { command }
}
