//! `trilith service`: another version of one service on all nodes, and what puts it in place on one of them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use trilith_core::set::Release;

use super::exit::Exit;
use super::upgrade::{FollowArgs, OptionArgs, UpgradeCommand, release, upgrade};
use super::{examples, examples_with_bundles, fail, give};
use crate::control::Request;
use crate::haproxy::{MAX_PEM, Pem};
use crate::service;

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Bring another version of one service to the whole set, one node after the other, while it serves.
    ///
    /// As an upgrade of the system, but nothing reboots: the node is drained, the service starts anew in its new version, and the node
    /// serves again once its own HAProxy has found it well. A version that does not start or answer is left by itself on that node, then
    /// on all others that have it, and is banned.
    #[command(after_long_help = examples_with_bundles(&[
        ("trilith service upgrade trilith-portal-1.4.2.bundle --wait", "Take the bundle in, begin, stay and watch."),
        ("trilith service upgrade portal@1.4.1", "One that is in the set already."),
    ]))]
    Upgrade {
        /// A bundle's file, or SERVICE@VERSION of one that is in the set.
        bundle: String,
        #[command(flatten)]
        options: OptionArgs,
        #[command(flatten)]
        follow: FollowArgs,
    },
    /// Put the certificate of a service on this node: certificate, chain and private key in one file (PEM).
    ///
    /// It is for services with `tls_certificate = "/var/lib/trilith/files/tls/NAME.pem"`. HAProxy judges it first; then it is stored, and
    /// new connections get it at once, while those that are there go on, though not for longer than eight reloads. It may come before the
    /// configuration that names it.
    ///
    /// Private keys do not travel between nodes: run it on each of them.
    #[command(after_long_help = examples(&[
        ("ssh admin@node-b trilith service certificate portal - < portal.pem", "The first one, or one that was renewed."),
    ]))]
    Certificate {
        /// Name of the service.
        name: String,
        /// The file, - for stdin.
        file: PathBuf,
        /// Print the answer as JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Carries a command out.
pub fn service(socket: &Path, command: ServiceCommand) -> Exit {
    let (bundle, options, follow) = match command {
        ServiceCommand::Upgrade { bundle, options, follow } => (bundle, options, follow),
        ServiceCommand::Certificate { name, file, json } => {
            return match read(&file) {
                Ok(pem) => give(socket, Request::Certificate { service: name, pem }, json),
                Err(why) => fail(Exit::Configuration, &why),
            };
        }
    };
    match release(&bundle) {
        Ok(Release { service: Some(_), .. }) => upgrade(UpgradeCommand::Start { bundle, options, follow }),
        Ok(_) => fail(Exit::Usage, &format!("{bundle} is of the system, not of a service: use trilith upgrade start")),
        Err(fault) => fault.end(),
    }
}

fn read(file: &Path) -> Result<Pem, String> {
    let name = if file == "-" { "stdin".to_owned() } else { file.display().to_string() };
    let mut text = String::new();
    let read = match file == "-" {
        true => io::stdin().lock().take(MAX_PEM as u64 + 1).read_to_string(&mut text),
        false => File::open(file).and_then(|file| file.take(MAX_PEM as u64 + 1).read_to_string(&mut text)),
    };
    read.map_err(|error| format!("{name}: {error}"))?;
    let pem = Pem::new(text);
    if pem.is_too_long() {
        return Err(format!(
            "{name}: it has more than {MAX_PEM} bytes: give certificate, chain and key, and nothing else"
        ));
    }
    Ok(pem)
}

/// What the units trilith-service@.service do.
pub fn lay(name: &str) -> Exit {
    service::lay(name).map_or_else(|error| fail(Exit::Failed, &format!("{error:#}")), |()| Exit::Ok)
}
