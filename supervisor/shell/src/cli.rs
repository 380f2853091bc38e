//! The command line: what can be asked, and what the answers look like.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use trilith_bundle::REFUSAL_CODES;

use self::exit::{EXIT_CODES, Exit};
use crate::control::client::{Unanswered, ask};
use crate::control::{Power, Request, Response};
use crate::{console, coordinator, daemon, firstboot, paths, slot, state};

mod check;
mod deed;
pub(crate) mod exit;
pub mod paint;
mod rollback;
#[cfg(test)]
mod schema;
mod service;
pub(crate) mod status;
#[cfg(test)]
pub(crate) mod testing;
mod times;
mod upgrade;
mod watch;

/// Three small machines that hold a virtual IP together.
///
/// trilith runs beside systemd on every node of a set. The set holds its VIPs, runs HAProxy in front of the services of all
/// nodes, and moves a VIP away from a node that fails or is taken out of service, without breaking connections that other
/// nodes can carry.
///
/// Any node can be asked: it passes on what another one must do. Commands talk to the supervisor and the coordinator on
/// this node through /run/trilith/control.sock and coordinator.sock, as root or as a member of the group trilith-admin.
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
        /// Print JSON; with --watch one line a second.
        ///
        /// Names of times end in their unit, such as _ms. While `schema` stays 1, fields are only added: ignore those that you do not
        /// know. A JSON Schema with a description of each is docs/status.schema.json in Trilith's source.
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
    /// Check the set's document, show it, or bring a new one to all nodes.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Patch the set, one node at a time, while it serves.
    #[command(subcommand)]
    Upgrade(upgrade::UpgradeCommand),
    /// Patch one service on all nodes, one node at a time, while it serves.
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Write an archive with what somebody who helps from afar would ask for.
    ///
    /// It holds the status, the journal, the first boot's report, the set's document, units, addresses, routes, firewall rules
    /// and HAProxy's counters: no set secret, no password hashes, no private keys.
    ///
    /// It is gathered as root, by trilith-support.service, into /run/trilith-support, where the newest three stay until the next boot.
    /// --output fetches it from there. While no supervisor runs it is gathered with the rights of who asks: what these do not reach is
    /// told in its place.
    #[command(after_long_help = examples(&[
        ("trilith support-bundle", "Leave it on the node and print where."),
        ("ssh admin@node-b trilith support-bundle --output - > node-b.tar.gz", "Fetch it from afar."),
    ]))]
    SupportBundle {
        /// The archive (tar.gz) to write, - for stdout.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// The console: the status for everybody in front of the machine, and a menu after login.
    ///
    /// systemd starts it on the first screen and on the serial port. It needs a terminal; without a size that it can ask for it
    /// takes 80 columns and 24 lines. Ctrl-L asks for the size again and draws all anew.
    ///
    /// To log in, a user needs a password, which the first-boot answers give as a hash; without one the console shows the
    /// status only. Who comes by SSH has proved already who it is, and lands in the menu.
    #[command(after_long_help = examples(&[
        ("trilith console", "The screen as it is on the machine itself."),
        ("systemctl restart trilith-console@ttyS0", "Start the one on the serial port anew."),
    ]))]
    Console {
        /// Which terminal this is, to be shown; [default: found out]
        #[arg(long, value_name = "NAME", hide = true)]
        line: Option<String>,
    },
    /// Run the coordinator: the service that keeps what the set has agreed on, which systemd starts.
    ///
    /// It carries bundles, rollouts and documents: what must be right rather than fast. Who owns a VIP is the supervisor's matter.
    #[command(after_long_help = examples(&[("systemctl restart trilith-coordinator", "The usual way to start it anew.")]))]
    Coordinate {
        /// The set's document.
        #[arg(long, value_name = "FILE", default_value = paths::SET_FILE)]
        config: PathBuf,
        /// Which node of the document this is [default: the line in /var/lib/trilith/node, else the host's name].
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
    },
    /// The image of a service in its chosen version, for its unit: what the units trilith-service@.service do.
    #[command(after_long_help = examples(&[("systemctl start trilith-service@web", "Unpack it into /run/trilith-service/web.")]))]
    ServiceImage {
        /// The service.
        name: String,
    },
    /// One deed on this machine's two slots: what the units trilith-slot@.service do for the coordinator.
    #[command(after_long_help = examples(&[("systemctl start trilith-slot@observe", "Look at both, into /run/trilith-slot/slots.json.")]))]
    Slot {
        /// observe, stage-VERSION, switch-VERSION, return-VERSION, bless, revert or on-trial.
        deed: slot::Deed,
    },
    /// Take and apply the first-boot answers: what the unit trilith-firstboot.service does at every boot.
    ///
    /// The first time, the answers are looked for (a disk labelled cidata or config-2, guestinfo, an OVF environment, Hyper-V's
    /// data exchange), checked, and stored below /var/lib/trilith. From then on the stored ones are applied; others are told and
    /// ignored, until `trilith node reset`.
    ///
    /// Wrong answers are not stored: what is wrong, where, and how to mend it becomes an alarm, and the next boot looks again.
    #[command(after_long_help = examples(&[
        ("trilith firstboot --check seed/a", "Check user-data, meta-data and network-config before they become a disk."),
        ("trilith firstboot --root /tmp/root --seed seed/a", "See what they would do to a system."),
    ]))]
    Firstboot(firstboot::Args),
    /// Open the state partition: what the unit trilith-state.service does at every boot.
    ///
    /// The partition is mounted at /var/lib/trilith. A blank one gets a file system, a broken one is mended or made anew, which
    /// becomes an alarm; a larger disk makes it grow. It never fails: without a usable disk the state is kept in memory.
    #[command(after_long_help = examples(&[
        ("systemctl status trilith-state", "See what it had to say."),
    ]))]
    State,
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
    #[command(after_long_help = examples(&[("trilith node drain b", "Take node b out.")]))]
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
    /// Reboot this node.
    ///
    /// It hands its VIPs over first, then all services stop and the machine starts again. Connections that other nodes carry
    /// stay; those that this node carries itself end: drain it before, if they shall have time.
    ///
    /// Refused when no other node could serve meanwhile, unless --force is given. A node is rebooted only at itself.
    #[command(after_long_help = examples(&[
        ("trilith node reboot", "Reboot this node."),
        ("ssh admin@node-b trilith node reboot", "Reboot another one."),
    ]))]
    Reboot(PowerArgs),
    /// Shut this node down and switch its machine off.
    ///
    /// Like trilith node reboot, but the machine stays off until the hypervisor starts it.
    #[command(after_long_help = examples(&[("trilith node poweroff", "Switch this node off.")]))]
    Poweroff(PowerArgs),
    /// Let the next boot of this node take the first-boot answers anew.
    ///
    /// The answers are those of the disk, the guestinfo or the OVF environment that the machine has then. They replace this
    /// node's set, secret, names, accounts and network. If there are none, or they are wrong, those in force stay.
    ///
    /// While no supervisor runs, as on a node without a set, it takes root: the menu of the console in front of the machine has it.
    #[command(after_long_help = examples(&[("trilith node reset --yes", "Without a question.")]))]
    Reset {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Give the place of a node whose disk is lost to a new machine of the same name.
    ///
    /// Its old identity leaves the set, and a machine with the same first-boot answers and an empty disk is admitted; its data comes
    /// from the others. Needs a majority of the set.
    #[command(after_long_help = examples(&[("trilith node replace c", "On a or b: c was imported anew.")]))]
    Replace(NodeArgs),
    /// Make the state of this node count, when most disks of the set are lost.
    ///
    /// What the lost disks alone had decided is gone. The other nodes are given this node's state.
    #[command(after_long_help = examples(&[("trilith node recover", "On the node that still has its disk.")]))]
    Recover,
}

#[derive(Debug, clap::Args)]
struct NodeArgs {
    /// Name of the node.
    node: String,
}

#[derive(Debug, clap::Args)]
struct PowerArgs {
    /// Name of the node: this one, and so it may be left out.
    node: Option<String>,
    /// Also when no other node can serve meanwhile.
    #[arg(long)]
    force: bool,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
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
        ("ssh admin@node-b trilith config check - < set.toml", "As the version on that node would read it."),
    ]))]
    Check {
        /// The document, - for stdin.
        file: PathBuf,
        /// Print the finding as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Bring a document to all nodes, one after the other, without a break of service.
    ///
    /// A node that is unfit with it makes it go back everywhere, and so does a confirmation that does not come in time.
    #[command(after_long_help = examples(&[
        ("ssh admin@node-b trilith config show > now.toml", "Fetch the one in force, to be changed."),
        ("ssh admin@node-b trilith config apply --confirm-within 5m - < now.toml", "Apply it, with a way back."),
    ]))]
    Apply {
        /// The document, - for stdin.
        file: PathBuf,
        /// How soon trilith config confirm must be given once all nodes have it, such as 90s, 5m or 300 (seconds).
        #[arg(long, value_name = "DURATION", value_parser = times::seconds::<1>)]
        confirm_within: Option<u32>,
        /// Also in a set of fewer than three nodes, or to mend a node that does not serve.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        follow: upgrade::FollowArgs,
    },
    /// Keep the document that is on trial.
    #[command(after_long_help = examples(&[("trilith config confirm", "It works: keep it.")]))]
    Confirm,
    /// Print the document in force.
    #[command(after_long_help = examples(&[("trilith config show > backup.toml", "Keep a copy.")]))]
    Show,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(crate) use deed::order;

/// Reads the command line, does what it says, and says how it ended.
pub fn main() -> ExitCode {
    let mut words = std::env::args_os();
    if words.next().is_some_and(|name| console::login_shell::is_meant(&name)) {
        return login_shell(&words.collect::<Vec<_>>()).into();
    }
    let Cli { socket, command } = Cli::parse();
    carry_out(socket, command).into()
}

fn carry_out(socket: PathBuf, command: Command) -> Exit {
    let order = |request, json| give(&socket, request, json);
    match command {
        Command::Status { json, watch: true } => watch::watch(&socket, json),
        Command::Status { json, watch: false } => show_status(&socket, json),
        Command::Vip(VipCommand::Move { vip, node, json }) => order(Request::VipMove { vip, node }, json),
        Command::Node(NodeCommand::Drain { node, json }) => order(Request::NodeDrain { node }, json),
        Command::Node(NodeCommand::Undrain { node, json }) => order(Request::NodeUndrain { node }, json),
        Command::Node(NodeCommand::Reboot(args)) => order_power(&socket, Power::Reboot, args),
        Command::Node(NodeCommand::Poweroff(args)) => order_power(&socket, Power::Poweroff, args),
        Command::SupportBundle { output: None } => order(Request::SupportBundle, false),
        Command::SupportBundle { output: Some(output) } => deed::bundle(&socket, &output),
        Command::Console { line } => console(&socket, line),
        Command::Config(ConfigCommand::Check { file, json }) => check::check(&file, json),
        Command::Config(ConfigCommand::Apply { file, confirm_within, force, follow }) => {
            upgrade::apply(&file, confirm_within, force, follow)
        }
        Command::Config(ConfigCommand::Confirm) => upgrade::confirm(),
        Command::Config(ConfigCommand::Show) => upgrade::show_document(),
        Command::Upgrade(command) => upgrade::upgrade(command),
        Command::Service(command) => service::service(&socket, command),
        Command::ServiceImage { name } => service::lay(&name),
        Command::Node(NodeCommand::Replace(NodeArgs { node })) => upgrade::replace(node),
        Command::Node(NodeCommand::Recover) => upgrade::recover(),
        Command::Node(NodeCommand::Reset { yes }) if yes || firstboot::confirmed() => reset(&socket),
        Command::Node(NodeCommand::Reset { .. }) => {
            fail(Exit::Failed, "nothing was changed; give --yes to do it without a question")
        }
        Command::Firstboot(args) => end(firstboot::firstboot(&args), args.json),
        Command::State => {
            state::open();
            Exit::Ok
        }
        Command::Coordinate { config, node } => daemon::run(coordinator::coordinate(config, node)),
        Command::Slot { deed } => match slot::run(deed) {
            Ok(()) => Exit::Ok,
            Err(error) => fail(Exit::Failed, &format!("{error:#}")),
        },
        Command::Completion { shell } => complete(shell),
    }
}

/// Whether operators who may do nothing but run trilith may run this. The others are for systemd.
fn for_operators(command: &Command) -> bool {
    match command {
        Command::Status { .. } | Command::Vip(_) | Command::Node(_) | Command::Config(_) | Command::Upgrade(_) => true,
        Command::Service(_) => true,
        Command::SupportBundle { .. } | Command::Console { .. } | Command::Completion { .. } => true,
        Command::Firstboot(_) | Command::State | Command::Coordinate { .. } => false,
        Command::Slot { .. } | Command::ServiceImage { .. } => false,
    }
}

/// How the first boot ended. What it says with `--json` is JSON already.
fn end(ended: firstboot::Ended, json: bool) -> Exit {
    use firstboot::Ended;
    match ended {
        Ended::Wrong(text) if json => print(&format!("{text}\n"), Exit::Configuration),
        Ended::Done(text) => report(Exit::Ok, "done", &text, false),
        Ended::Wrong(text) => report(Exit::Configuration, "wrong", &text, false),
        Ended::Failed(text) => report(Exit::Failed, "failed", &text, json),
    }
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

fn give(socket: &Path, request: Request, json: bool) -> Exit {
    let answer = order(socket, request);
    let (exit, result, text) = judge(&answer);
    report(exit, result, text, json)
}

fn reset(socket: &Path) -> Exit {
    let answer = order(socket, Request::Reset).map_err(firstboot::with_a_way_to_reset);
    let (exit, result, text) = judge(&answer);
    report(exit, result, text, false)
}

fn order_power(socket: &Path, deed: Power, PowerArgs { node, force, json }: PowerArgs) -> Exit {
    give(socket, Request::Power { deed, node, force }, json)
}

fn console(socket: &Path, line: Option<String>) -> Exit {
    match console::run(socket, console::Session::Locked { line }) {
        Ok(()) => Exit::Ok,
        Err(error) => report(Exit::Failed, "failed", &format!("{error:#}"), false),
    }
}

/// `/usr/bin/trilith-shell`: the console of somebody who is logged in already, or one trilith command.
fn login_shell(words: &[OsString]) -> Exit {
    let line = match words {
        [] => {
            return match console::run(paths::CONTROL_SOCKET.as_ref(), console::Session::of_this_user()) {
                Ok(()) => Exit::Ok,
                Err(error) => report(Exit::Failed, "failed", &format!("{error:#}"), false),
            };
        }
        [option, line] if option == "-c" => line.to_string_lossy(),
        _ => return report(Exit::Barred, "refused", "trilith-shell takes nothing but -c COMMAND", false),
    };
    let words = match console::login_shell::read(&line) {
        Ok(words) => words,
        Err(why) => return report(Exit::Barred, "refused", &why, false),
    };
    match Cli::try_parse_from(words) {
        Ok(Cli { socket, command }) if socket == Path::new(paths::CONTROL_SOCKET) && for_operators(&command) => {
            carry_out(socket, command)
        }
        Ok(_) => report(Exit::Barred, "refused", "this is not for operators: see trilith --help", false),
        Err(error) => error.exit(),
    }
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
    let paint = paint::Paint::for_stdout();
    let lines = status::view(status, paint::width());
    print(&lines.iter().map(|line| paint.line(line) + "\n").collect::<String>(), Exit::Ok)
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

/// Bad news for people.
fn fail(exit: Exit, text: &str) -> Exit {
    report(exit, "failed", text, false)
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

/// As [`examples`], of a command that may refuse a bundle.
fn examples_with_bundles(lines: &[(&str, &str)]) -> String {
    format!("{}\n\n{REFUSAL_CODES}", examples(lines))
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
        assert_eq!(found.len(), 35);
        for mut command in found {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Examples:\n") && help.contains("Exit codes:\n"), "{help}");
        }
    }

    #[test]
    fn every_answer_has_its_documented_exit_code() {
        let text = || "x".to_owned();
        let code = |answer| judge(&answer).0.code();
        assert_eq!(code(Ok(Response::Done { text: text() })), 0);
        assert_eq!(code(Ok(Response::Refused { text: text() })), 1);
        assert_eq!(code(Ok(Response::Invalid { text: text() })), 1);
        assert_eq!(code(Ok(Response::TimedOut { text: text() })), 5);
        assert_eq!(code(Err(Unanswered::NotRunning(text()))), 4);
        assert_eq!(code(Err(Unanswered::TimedOut(text()))), 5);
        assert_eq!(code(Err(Unanswered::Broken(text()))), 1);
    }
}
