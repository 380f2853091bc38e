//! `trilith console`: the text console on the machine's screen, on its serial port and for those who come by SSH.
//!
//! [`app`] decides, [`view`] draws; neither knows of a terminal. Whatever may take long (the supervisor, the journal, a
//! password's hash) happens on other threads, and comes back as an [`Input`].

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ratatui::crossterm::event::KeyEvent;

use crate::cli::order;
use crate::control::client::{Unanswered, ask};
use crate::control::{Request, Response};
use crate::firstboot;

mod app;
mod crypt;
mod facts;
mod login;
pub mod login_shell;
mod look;
mod machine;
mod plan;
mod terminal;
#[cfg(test)]
mod testing;
mod view;

use app::{App, Effect, Outcome};
use facts::Facts;
use look::Look;

/// How a console was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Session {
    /// In front of the machine: anybody may look, and must log in for more.
    Locked {
        /// Name of the terminal, to be shown.
        line: Option<String>,
    },
    /// By somebody who has proved already who it is; it ends when that one logs out.
    LoggedIn {
        /// Name of the user.
        user: String,
    },
}

impl Session {
    /// The session of the user who runs this process.
    pub fn of_this_user() -> Session {
        let uid = nix::unistd::geteuid();
        let user = nix::unistd::User::from_uid(uid).ok().flatten();
        Session::LoggedIn { user: user.map_or_else(|| format!("uid {uid}"), |user| user.name) }
    }
}

/// What can happen to a console.
#[derive(Debug)]
enum Input {
    Key(KeyEvent),
    /// The terminal has another size, or must be drawn anew.
    Redraw,
    /// The terminal is gone.
    Gone,
    Facts(Box<Facts>),
    Outcome(Outcome),
}

/// Shows the console on this terminal until it is left or the terminal is gone.
///
/// # Errors
/// There is no terminal, or it fails.
pub fn run(socket: &Path, session: Session) -> Result<()> {
    let look = Look::from_env();
    let mut screen = terminal::Screen::open()?;
    let (inputs, happened) = channel();
    let (poke, poked) = channel();
    let (jobs, todo) = channel();
    terminal::start(inputs.clone());
    facts::start(socket.to_owned(), inputs.clone(), poked);
    work(socket.to_owned(), todo, inputs);
    let mut app = App::new(session, Instant::now());
    let mut painted = Instant::now();
    loop {
        screen.terminal.draw(|frame| view::draw(&mut app, look, frame)).context("drawing on the terminal")?;
        let effect = match next(&happened, app.idle_at()) {
            None => app.idle(Instant::now()),
            Some(Input::Key(key)) => app.key(key, Instant::now()),
            Some(Input::Redraw) => {
                screen.repaint()?;
                None
            }
            Some(Input::Gone) => return Ok(()),
            Some(Input::Facts(facts)) => {
                if app.user.is_none() && painted.elapsed() > REPAINT {
                    screen.repaint()?;
                    painted = Instant::now();
                }
                app.facts = Some(*facts);
                None
            }
            Some(Input::Outcome(outcome)) => {
                if let Outcome::Verified { name, right } = &outcome {
                    note(&match right {
                        true => format!("user {name} has logged in{}", app.place()),
                        // Not the name: it may be a password in the wrong field.
                        false => format!("wrong name or password{}", app.place()),
                    });
                }
                app.take(outcome, Instant::now())
            }
        };
        match effect {
            None => {}
            Some(Effect::End) => return Ok(()),
            Some(Effect::Look) => _ = poke.send(()),
            Some(effect) => {
                if let (Effect::Order(request), Some(user)) = (&effect, &app.user) {
                    note(&format!("user {user} asks{} to {request}", app.place()));
                }
                jobs.send((effect, app.facts.clone())).context("the thread that does what is asked for has ended")?;
            }
        }
    }
}

/// Says something for the journal, unless stderr is the very screen.
fn note(text: &str) {
    use std::io::{IsTerminal, Write, stderr};
    if !stderr().is_terminal() {
        // A journal that is gone is no reason to stop.
        let _ = writeln!(stderr(), "{text}");
    }
}

/// The next input; `None` when `until` comes first.
fn next(happened: &Receiver<Input>, until: Option<Instant>) -> Option<Input> {
    let patience = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
    match happened.recv_timeout(patience) {
        Ok(input) => Some(input),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => Some(Input::Gone),
    }
}

/// Does what is asked for, one thing after the other, on a thread of its own.
fn work(socket: PathBuf, todo: Receiver<(Effect, Option<Facts>)>, inputs: Sender<Input>) {
    thread::spawn(move || {
        for (effect, facts) in todo {
            let outcome = match effect {
                Effect::Verify { name, password } => {
                    let accounts = facts.and_then(|facts| facts.accounts.ok()).unwrap_or_default();
                    let right = login::verify(&accounts, &name, &password);
                    Outcome::Verified { name, right }
                }
                Effect::Order(request) => {
                    let bundle = request == Request::SupportBundle;
                    let answer = match request {
                        Request::Reset => reset(&socket),
                        request => order(&socket, request),
                    };
                    let (good, mut text) = match answer {
                        Ok(response) => (matches!(response, Response::Done { .. }), response.text().to_owned()),
                        Err(error) => (false, error.to_string()),
                    };
                    if good && bundle {
                        text.push_str(FETCH);
                    }
                    Outcome::Said { good, text }
                }
                Effect::ReadLogs { urgent } => {
                    let priority = if urgent { "--priority=warning" } else { "--priority=debug" };
                    let mut lines = journal(&["--output=short", LOG_LINES, priority]);
                    if lines.is_empty() {
                        lines.push("There are no such entries.".to_owned());
                    }
                    Outcome::Logs { urgent, lines }
                }
                Effect::Look | Effect::End => continue,
            };
            if inputs.send(Input::Outcome(outcome)).is_err() {
                return;
            }
        }
    });
}

/// Has the next boot take the answers anew. The console in front of the machine is root and yet can't write the state: without a
/// supervisor, as on a node without a set, it asks systemd.
fn reset(socket: &Path) -> Result<Response, Unanswered> {
    match ask(socket, Request::Reset) {
        Err(Unanswered::NotRunning(_)) if nix::unistd::geteuid().is_root() => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let done = runtime.map_err(|error| format!("starting the runtime: {error}"));
            let done = done.and_then(|runtime| runtime.block_on(firstboot::want_reset_by_unit()));
            Ok(done.map_or_else(Response::refused, Response::done))
        }
        answer => answer.map_err(firstboot::with_a_way_to_reset),
    }
}

/// What journalctl prints, or why it prints nothing.
fn journal(args: &[&str]) -> Vec<String> {
    match Command::new("journalctl").args(["--no-pager", "--quiet"]).args(args).stdin(Stdio::null()).output() {
        Ok(output) => {
            let said = if output.stdout.is_empty() { output.stderr } else { output.stdout };
            String::from_utf8_lossy(&said).lines().map(str::to_owned).collect()
        }
        Err(error) => vec![format!("cannot run journalctl: {error}")],
    }
}

/// What the kernel writes over an open screen stands there for at most so long.
const REPAINT: Duration = Duration::from_secs(60);
/// How a support bundle leaves the machine.
const FETCH: &str = ". To fetch one from afar: ssh USER@NODE trilith support-bundle --output - > FILE";
/// So many lines of the journal can be read.
const LOG_LINES: &str = "--lines=1000";
