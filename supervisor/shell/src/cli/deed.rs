//! Orders to the machine, which root can also give while the supervisor does not run.

use std::path::Path;

use super::exit::Exit;
use super::report;
use crate::control::client::{Unanswered, ask};
use crate::control::{Request, Response};
use crate::{firstboot, support, systemd};

/// Puts an order to the supervisor. When none runs and it needs none, systemd is asked instead, which listens to root only.
///
/// # Errors
/// [`Unanswered`]: nobody could be asked.
pub fn order(socket: &Path, request: Request) -> Result<Response, Unanswered> {
    match ask(socket, request.clone()) {
        Err(Unanswered::NotRunning(why)) if nix::unistd::geteuid().is_root() => {
            match request {
                Request::Power { deed, node: None, .. } => {
                    let done = block_on(async { systemd::end_machine(deed.target()).await });
                    Ok(answer(done.map(|()| {
                        format!("{}; there was no supervisor to hand its VIPs over", deed.begun("this node"))
                    })))
                }
                Request::SupportBundle => Ok(answer(block_on(support::by_unit()))),
                Request::Reset => Ok(answer(firstboot::want_reset())),
                _ => Err(Unanswered::NotRunning(why)),
            }
        }
        answer => answer,
    }
}

/// `trilith support-bundle --output`.
pub fn bundle(socket: &Path, output: &Path) -> Exit {
    // root has all rights already; anybody else has it gathered by who has them.
    let asked = (!nix::unistd::geteuid().is_root()).then(|| ask(socket, Request::SupportBundle));
    let gathered = matches!(asked, Some(Ok(Response::Done { .. }))).then(support::newest).flatten();
    let done = block_on(async {
        if let Some(bundle) = gathered {
            return support::fetch(&bundle, output).map_err(|error| format!("{error:#}"));
        }
        match output.is_dir() {
            true => support::into_folder(output, socket).await.map(Some),
            false => support::into_output(output, socket).await.map(|()| None),
        }
        .map_err(|error| format!("{error:#}"))
    });
    match done {
        Ok(Some(path)) => report(Exit::Ok, "done", &support::written(&path), false),
        Ok(None) => Exit::Ok,
        Err(why) => report(Exit::Failed, "failed", &why, false),
    }
}

fn answer(done: Result<String, String>) -> Response {
    done.map_or_else(Response::refused, Response::done)
}

fn block_on<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("starting the runtime: {error}"))?.block_on(future)
}
