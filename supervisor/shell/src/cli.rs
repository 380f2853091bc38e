//! The command line: what can be asked, and what the answers look like.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use trilith_core::config::ConfigError;

use self::exit::{EXIT_CODES, Exit};
use crate::control::client::{Unanswered, ask};
use crate::control::{Request, Response};
use crate::{disk, paths, run};

mod check;
mod exit;
mod paint;
#[cfg(test)]
mod schema;
mod status;
mod watch;

/// Three small machines that hold a virtual IP together.
///
/// trilith runs beside systemd on every node of a set. The set holds its VIPs, runs HAProxy in front of the services of all
/// nodes, and moves a VIP away from a node that fails or is taken out of service, without breaking connections that other
/// nodes can carry.
///
/// Any node can be asked: it passes on what another one must do. Commands talk to the supervisor on this node through
/// /run/trilith/control.sock, as root.
#[derive(Debug, Parser)]
#[command(name = "trilith", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    /// The control socket, for tests.
    #[arg(long, global = true, hide = true, value_name = "PATH", default_value = paths::CONTROL_SOCKET)]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show who owns what and why, and what needs a hand.
    ///
    /// The first line is the verdict: whether the set is healthy, or the worst that is wrong with it. Then follow the VIPs with
    /// their owners, the nodes with their fitness and its reason, the timers in force, the relay ring, what HAProxy counts, and
    /// the automatic decisions of this node with their reasons.
    ///
    /// All of it is what this node knows; another node may see it otherwise while the network is cut.
    ///
    /// Colours are used on a terminal only, and never when NO_COLOR is set.
    #[command(after_long_help = examples(&[
        ("trilith status", "Look once."),
        ("trilith status --watch", "Keep looking, until Ctrl-C."),
        ("trilith status --json | jq --raw-output '.vips[] | \"\\(.name) \\(.owner)\"'", "Who owns what, for a script."),
    ]))]
    Status {
        /// Print JSON, whose schema is docs/status.schema.json; with --watch one line a second.
        #[arg(long)]
        json: bool,
        /// Show it anew every second until Ctrl-C.
        #[arg(long)]
        watch: bool,
    },
    /// Move VIPs between nodes.
    #[command(subcommand)]
    Vip(VipCommand),
    /// Take nodes out of service and put them back.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Check configuration documents.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Run the supervisor: the service itself, which systemd starts.
    ///
    /// It reads the set's document, the set secret and this node's name, and then runs until SIGTERM or SIGINT. When it stops,
    /// HAProxy and the relay rules stay: a restart of the supervisor is not noticed.
    ///
    /// The log goes to stderr; TRILITH_LOG sets what is logged (trace, debug, info, warn, error; info by default).
    #[command(after_long_help = examples(&[
        ("systemctl restart trilith", "The usual way to start it anew."),
        ("trilith supervise --config /tmp/set.toml --node b", "By hand, in a laboratory."),
    ]))]
    Supervise {
        /// The set's document.
        #[arg(long, value_name = "FILE", default_value = paths::SET_FILE)]
        config: PathBuf,
        /// Which node of the document this is [default: the line in /var/lib/trilith/node, else the host's name].
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
    },
    /// Print a completion script for a shell.
    #[command(after_long_help = examples(&[
        ("trilith completion bash > /etc/bash_completion.d/trilith", "For every bash that starts from now on."),
    ]))]
    Completion {
        /// For which shell.
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
enum VipCommand {
    /// Hand a VIP over to a node, without breaking connections.
    ///
    /// The owner names its successor and stops; the successor claims the VIP and announces it, in about one round trip. The
    /// command ends when the new owner is seen to own it. Packets of established connections are relayed to the node that
    /// knows them.
    ///
    /// Refused when the node is not heard or not fit, or when nobody owns the VIP just now.
    #[command(after_long_help = examples(&[("trilith vip move public b", "Node b owns VIP public from now on.")]))]
    Move {
        /// Name of the VIP.
        vip: String,
        /// Name of the node that shall own it.
        node: String,
        /// Print the answer as JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Take a node out of service: before maintenance, for example.
    ///
    /// The node hands its VIPs over, and every node's HAProxy sends no new work to its instances; what runs there may end. It
    /// stays so, also over reboots, until `trilith node undrain`.
    ///
    /// Refused when no other node could take over.
    #[command(after_long_help = examples(&[("trilith node drain b && trilith status", "Take node b out and look.")]))]
    Drain {
        /// Name of the node.
        node: String,
        /// Print the answer as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put a node back into service.
    ///
    /// VIPs do not return to it at once: they stay where they are, unless set.rebalance_after says otherwise or `trilith vip
    /// move` brings them back.
    #[command(after_long_help = examples(&[("trilith node undrain b", "Node b takes part again.")]))]
    Undrain {
        /// Name of the node.
        node: String,
        /// Print the answer as JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check a document without touching anything.
    ///
    /// Reads the document as the supervisor would and says whether it is right. If not, the first thing to mend is told: file,
    /// line and column, the key, what is wrong and what would be right. Whether interfaces, units and certificates exist is not
    /// looked at: the document may be for other machines.
    ///
    /// The fingerprint tells whether two documents mean the same, whatever their comments and order of keys.
    #[command(after_long_help = examples(&[
        ("trilith config check set.toml", "Check a document before it is copied to the nodes."),
        ("ssh node-b cat /var/lib/trilith/set.toml | trilith config check -", "Check another node's."),
    ]))]
    Check {
        /// The document, - for stdin.
        file: PathBuf,
        /// Print the finding as JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Reads the command line, does what it says, and says how it ended.
pub fn main() -> ExitCode {
    let Cli { socket, command } = Cli::parse();
    let order = |request, json| order(&socket, request, json);
    let exit = match command {
        Command::Status { json, watch: true } => watch::watch(&socket, json),
        Command::Status { json, watch: false } => show_status(&socket, json),
        Command::Vip(VipCommand::Move { vip, node, json }) => order(Request::VipMove { vip, node }, json),
        Command::Node(NodeCommand::Drain { node, json }) => order(Request::NodeDrain { node }, json),
        Command::Node(NodeCommand::Undrain { node, json }) => order(Request::NodeUndrain { node }, json),
        Command::Config(ConfigCommand::Check { file, json }) => check::check(&file, json),
        Command::Supervise { config, node } => supervise(config, node),
        Command::Completion { shell } => complete(shell),
    };
    exit.into()
}

/// What a command says with `--json`.
#[derive(Serialize)]
struct Said<'t> {
    /// `done`, `refused`, `invalid`, `timed-out`, `unreachable` or `failed`.
    result: &'static str,
    text: &'t str,
}

/// An answer that is not the status, as its exit code, the word for `--json`, and its text.
fn judge(answer: &Result<Response, Unanswered>) -> (Exit, &'static str, &str) {
    match answer {
        Ok(Response::Done { text }) => (Exit::Ok, "done", text),
        Ok(Response::Refused { text }) => (Exit::Failed, "refused", text),
        Ok(Response::Invalid { text }) => (Exit::Failed, "invalid", text),
        Ok(Response::TimedOut { text }) => (Exit::TimedOut, "timed-out", text),
        Ok(Response::Status(_)) => {
            (Exit::Failed, "failed", "the supervisor answered with its status to another question")
        }
        Err(Unanswered::NotRunning(text)) => (Exit::Unreachable, "unreachable", text),
        Err(Unanswered::TimedOut(text)) => (Exit::TimedOut, "timed-out", text),
        Err(Unanswered::Broken(text)) => (Exit::Failed, "failed", text),
    }
}

fn order(socket: &Path, request: Request, json: bool) -> Exit {
    let answer = ask(socket, request);
    let (exit, result, text) = judge(&answer);
    report(exit, result, text, json)
}

fn show_status(socket: &Path, json: bool) -> Exit {
    let answer = ask(socket, Request::Status);
    let Ok(Response::Status(status)) = &answer else {
        let (exit, result, text) = judge(&answer);
        return report(exit, result, text, json);
    };
    if json {
        return print_json(&status, Exit::Ok);
    }
    let lines = status::view(status, paint::width(), paint::Paint::for_stdout());
    print(&(lines.join("\n") + "\n"), Exit::Ok)
}

fn supervise(config: PathBuf, node: Option<String>) -> Exit {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TRILITH_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // systemd notes the time and the program by itself.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    log.with_ansi(false).without_time().init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = match runtime {
        // As a task, because waking the outermost future costs a system call each time (tokio's current-thread runtime).
        Ok(runtime) => runtime.block_on(async { tokio::spawn(run::supervise(config, node)).await? }),
        Err(error) => Err(anyhow::Error::new(error).context("starting the runtime")),
    };
    let Err(error) = ended else { return Exit::Ok };
    let unconfigured = error.chain().any(|cause| cause.is::<ConfigError>() || cause.is::<disk::Unusable>());
    let exit = if unconfigured { Exit::Configuration } else { Exit::Failed };
    report(exit, "failed", &format!("{error:#}"), false)
}

fn complete(shell: Shell) -> Exit {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "trilith", &mut script);
    print(&String::from_utf8_lossy(&script), Exit::Ok)
}

/// Says how it ended: good news and JSON on stdout, bad news on stderr.
fn report(exit: Exit, result: &'static str, text: &str, json: bool) -> Exit {
    if json {
        return print_json(&Said { result, text }, exit);
    }
    if exit == Exit::Ok {
        return print(&format!("{text}\n"), exit);
    }
    // Without stderr there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "trilith: {text}");
    exit
}

fn print_json(value: &impl Serialize, exit: Exit) -> Exit {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&(text + "\n"), exit),
        Err(error) => report(Exit::Failed, "failed", &format!("writing JSON: {error}"), false),
    }
}

/// Writes to stdout. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str, exit: Exit) -> Exit {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            report(Exit::Failed, "failed", &format!("writing to stdout: {error}"), false)
        }
        _ => exit,
    }
}

/// The last part of a command's `--help`.
fn examples(examples: &[(&str, &str)]) -> String {
    let mut text = "Examples:\n".to_owned();
    for (line, what) in examples {
        text.push_str(&format!("  {line}\n      {what}\n"));
    }
    format!("{text}\n{EXIT_CODES}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_commands_help_explains_itself_with_examples_and_exit_codes() {
        fn leaves(command: &clap::Command, found: &mut Vec<clap::Command>) {
            if command.has_subcommands() {
                command.get_subcommands().for_each(|inner| leaves(inner, found));
            } else {
                found.push(command.clone());
            }
        }
        let mut found = Vec::new();
        leaves(&Cli::command(), &mut found);
        assert_eq!(found.len(), 7);
        for mut command in found {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Examples:\n") && help.contains("Exit codes:\n"), "{help}");
        }
    }

    #[test]
    fn every_answer_has_its_documented_exit_code() {
        let text = || "x".to_owned();
        let code = |answer| judge(&answer).0 as u8;
        assert_eq!(code(Ok(Response::Done { text: text() })), 0);
        assert_eq!(code(Ok(Response::Refused { text: text() })), 1);
        assert_eq!(code(Ok(Response::Invalid { text: text() })), 1);
        assert_eq!(code(Ok(Response::TimedOut { text: text() })), 5);
        assert_eq!(code(Err(Unanswered::NotRunning(text()))), 4);
        assert_eq!(code(Err(Unanswered::TimedOut(text()))), 5);
        assert_eq!(code(Err(Unanswered::Broken(text()))), 1);
    }
}
