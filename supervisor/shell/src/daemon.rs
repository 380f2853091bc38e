//! What the services have in common: how they log, and how they end.

use std::io::Write;
use std::panic;
use std::process;

use anyhow::Context;
use trilith_core::config::ConfigError;

use crate::cli::exit::Exit;
use crate::disk;

/// Whatever panics ends the whole process, also where it was built to unwind: half a service must not go on.
pub fn end_at_panics() {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |what| {
        tell(what);
        process::abort();
    }));
}

/// Runs a service to its end. The log goes to stderr; TRILITH_LOG sets what is logged.
pub fn run(service: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> Exit {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TRILITH_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // systemd notes the time and the program by itself.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    log.with_ansi(false).without_time().init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = match runtime {
        // As a task, because waking the outermost future costs a system call each time (tokio's current-thread runtime).
        Ok(runtime) => runtime.block_on(async { tokio::spawn(service).await? }),
        Err(error) => Err(anyhow::Error::new(error).context("starting the runtime")),
    };
    let Err(error) = ended.context("trilith") else { return Exit::Ok };
    // Without stderr there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "{error:#}");
    let unconfigured = error.chain().any(|cause| cause.is::<ConfigError>() || cause.is::<disk::Unusable>());
    if unconfigured { Exit::Configuration } else { Exit::Failed }
}
