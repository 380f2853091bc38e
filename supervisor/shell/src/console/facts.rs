//! All that the console shows, gathered anew every second on a thread of its own, so that nothing slow is seen as a hang.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use trilith_core::status::Status;
use trilith_firstboot::report::Report;

use super::Input;
use super::login::{self, Account};
use super::machine::{self, Boot, Interface};
use crate::control::client::{Unanswered, ask};
use crate::control::{Request, Response};
use crate::notices::{self, Notice};
use crate::paths;

/// What is known at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// When.
    pub now: SystemTime,
    /// What the supervisor says, or why it says nothing.
    pub status: Result<Box<Status>, String>,
    /// What the supervisor said last before it ended, while it does not run.
    pub last_words: Vec<String>,
    /// Notices of other programs; part of the status' alarms when there is one.
    pub notices: Vec<Notice>,
    /// What the first boot has to say; `None` when it has not run.
    pub first_boot: Option<Report>,
    /// The machine's network interfaces.
    pub interfaces: Vec<Interface>,
    /// Default routes, each as `ip route` would say it.
    pub routes: Vec<String>,
    /// Name servers.
    pub resolvers: Vec<String>,
    /// What was booted.
    pub boot: Boot,
    /// Name of the host.
    pub host: String,
    /// Who may log in, or why that can't be known.
    pub accounts: Result<Vec<Account>, String>,
}

/// Gathers everything that there is to know.
fn gather(socket: &Path, last_words: &mut LastWords) -> Facts {
    let now = SystemTime::now();
    let status = match ask(socket, Request::Status) {
        Ok(Response::Status(status)) => Ok(status),
        Ok(other) => Err(other.text().to_owned()),
        // Here nobody has a shell to follow the hints that commands give.
        Err(Unanswered::NotRunning(_)) => Err("The supervisor does not run.".to_owned()),
        Err(Unanswered::TimedOut(_)) => Err("The supervisor does not answer: it may hang.".to_owned()),
        Err(Unanswered::Broken(why)) => Err(why),
    };
    let days = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
    let read = |path: &str| std::fs::read_to_string(path);
    Facts {
        now,
        notices: notices::read(paths::NOTICES.as_ref()),
        first_boot: read(paths::FIRSTBOOT_REPORT).ok().and_then(|text| serde_json::from_str(&text).ok()),
        interfaces: machine::interfaces(),
        routes: machine::default_routes(),
        resolvers: machine::resolvers(),
        boot: machine::boot(),
        host: read(paths::HOSTNAME).map_or_else(|_| String::new(), |name| name.trim().to_owned()),
        accounts: login::accounts(paths::SHADOW.as_ref(), days),
        last_words: if status.is_err() { last_words.get() } else { Vec::new() },
        status,
    }
}

/// The last lines that the supervisor wrote, asked for at most every [`ASK_JOURNAL_EVERY`].
#[derive(Default)]
struct LastWords(Option<(Instant, Vec<String>)>);

impl LastWords {
    fn get(&mut self) -> Vec<String> {
        match &self.0 {
            Some((at, lines)) if at.elapsed() < ASK_JOURNAL_EVERY => lines.clone(),
            _ => {
                let lines =
                    last_message(super::journal(&["--output=cat", "--lines=8", "_SYSTEMD_UNIT=trilith.service"]));
                self.0 = Some((Instant::now(), lines.clone()));
                lines
            }
        }
    }
}

/// Of some lines of the supervisor, those since it last said why it ends (`trilith: …`).
fn last_message(mut lines: Vec<String>) -> Vec<String> {
    let begin = lines.iter().rposition(|line| line.starts_with("trilith: ")).unwrap_or(0);
    lines.split_off(begin)
}

/// Gathers every second, and at once when `poke` says so, until nobody listens any more.
pub fn start(socket: PathBuf, inputs: Sender<Input>, poke: Receiver<()>) {
    thread::spawn(move || {
        let mut last_words = LastWords::default();
        loop {
            if inputs.send(Input::Facts(Box::new(gather(&socket, &mut last_words)))).is_err() {
                return;
            }
            match poke.recv_timeout(EVERY) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    });
}

const ASK_JOURNAL_EVERY: Duration = Duration::from_secs(10);
const EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_message_is_shown_whole_and_alone() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let said =
            lines(&["  | ^^^", "trilith: first", "7 | x", "trilith: set.toml:7:1: wrong", "  |", "7 | x", "  | ^"]);
        assert_eq!(last_message(said), ["trilith: set.toml:7:1: wrong", "  |", "7 | x", "  | ^"]);
        assert_eq!(last_message(lines(&["a", "b"])), ["a", "b"]);
        assert_eq!(last_message(Vec::new()), Vec::<String>::new());
    }
}
