//! `trilith-supervisor`: the service that decides who owns a VIP.
//!
//! It is a program of its own because it keeps all of itself in memory, so that no decision ever waits for a disk: what it does not
//! need is not in it. The price is some megabytes of disk, for the libraries that both programs have.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Run the supervisor: the service itself, which systemd starts (trilith.service).
///
/// It reads the set's document, the set secret and this node's name, and then runs until SIGTERM or SIGINT. When it stops, HAProxy
/// and the relay rules stay: a restart of the supervisor is not noticed.
///
/// The log goes to stderr; TRILITH_LOG sets what is logged (trace, debug, info, warn, error; info by default).
#[derive(Parser)]
#[command(name = "trilith-supervisor", version, after_long_help = EXAMPLES)]
struct Args {
    /// The set's document.
    #[arg(long, value_name = "FILE", default_value = trilith_shell::paths::SET_FILE)]
    config: PathBuf,
    /// Which node of the document this is [default: the line in /var/lib/trilith/node, else the host's name].
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  systemctl restart trilith
      The usual way to start it anew.
  trilith-supervisor --config /tmp/set.toml --node b
      By hand, in a laboratory.";

fn main() -> ExitCode {
    trilith_shell::daemon::end_at_panics();
    let Args { config, node } = Args::parse();
    trilith_shell::daemon::run(trilith_shell::supervise(config, node)).into()
}
