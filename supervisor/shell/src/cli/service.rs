//! `trilith service`: another version of one service on all nodes, and what puts it in place on one of them.

use clap::Subcommand;
use trilith_core::set::Release;

use super::exit::Exit;
use super::upgrade::{FollowArgs, OptionArgs, UpgradeCommand, release, upgrade};
use super::{examples_with_bundles, fail};
use crate::service;

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Bring another version of one service to the whole set, one node after the other, while it serves.
    ///
    /// As an upgrade of the system, but nothing reboots: the node is drained, the service starts anew in its new version, and the node
    /// serves again once its own HAProxy has found it well. A version that does not start or answer is left by itself on that node, then
    /// on all others that have it, and is banned.
    #[command(after_long_help = examples_with_bundles(&[
        ("trilith service upgrade portal-1.4.2.bundle --wait", "Take the bundle in, begin, stay and watch."),
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
}

/// Carries a command out.
pub fn service(command: ServiceCommand) -> Exit {
    let ServiceCommand::Upgrade { bundle, options, follow } = command;
    match release(&bundle) {
        Ok(Release { service: Some(_), .. }) => upgrade(UpgradeCommand::Start { bundle, options, follow }),
        Ok(_) => fail(Exit::Usage, &format!("{bundle} is of the system, not of a service: use trilith upgrade start")),
        Err(fault) => fault.end(),
    }
}

/// What the units trilith-service@.service do.
pub fn lay(name: &str) -> Exit {
    service::lay(name).map_or_else(|error| fail(Exit::Failed, &format!("{error:#}")), |()| Exit::Ok)
}
