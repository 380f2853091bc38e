//! The console on a real terminal, and the login shell as sshd starts it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};

#[test]
fn a_terminal_without_a_size_is_asked_for_it_and_shows_the_console() {
    let mut console = Console::start(0, 0);
    console.read_until("\x1b[6n");
    console.keyboard.write_all(b"\x1b[30;100R").unwrap();
    let seen = console.read_until("The supervisor does not run.");
    assert!(seen.contains(&"-".repeat(100)) && !seen.contains(&"-".repeat(101)), "{seen:?}");
    assert!(
        seen.is_ascii() && !seen.contains("\x1b[31m") && !seen.contains("\x1b[38;5;"),
        "no colours, no Unicode: {seen:?}"
    );
}

#[test]
fn a_terminal_that_does_not_answer_has_80_columns() {
    let console = Console::start(0, 0);
    let seen = console.read_until("The supervisor does not run.");
    assert!(seen.contains(&"-".repeat(80)) && !seen.contains(&"-".repeat(81)), "{seen:?}");
}

#[test]
fn a_console_that_loses_its_terminal_ends() {
    let mut console = Console::start(80, 24);
    console.read_until("MACHINE");
    // The last descriptors of the terminal's other end.
    console.keyboard = File::open("/dev/null").unwrap();
    console.seen = channel().1;
    let end = Instant::now() + PATIENCE;
    while console.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "the console still runs");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_login_shell_runs_trilith_commands_and_nothing_else() {
    let said = login_shell(&["-c", "trilith config check /nonexistent.toml"]);
    assert_eq!(said.status.code(), Some(3), "{said:?}");
    for (line, words) in [
        ("sh", "this account runs trilith commands and nothing else"),
        ("/usr/lib/openssh/sftp-server", "files are not copied"),
        ("trilith status; id", "no shell here"),
        ("trilith coordinate", "not for operators"),
        ("trilith --socket /tmp/x status", "not for operators"),
    ] {
        let said = login_shell(&["-c", line]);
        let text = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.code(), Some(126), "{line}: {said:?}");
        assert!(text.starts_with("trilith: ") && text.contains(words) && text.lines().count() == 1, "{line}: {text}");
    }
    assert_eq!(login_shell(&["-x"]).status.code(), Some(126));
    let said = login_shell(&[]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("the console needs a terminal"), "{said:?}");
}

/// A console on a terminal of its own, with a supervisor that is not there.
struct Console {
    child: Child,
    keyboard: File,
    seen: Receiver<Vec<u8>>,
}

impl Console {
    fn start(columns: u16, rows: u16) -> Console {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // One after the other, so that no console inherits the keyboard of another one.
        static STARTING: Mutex<()> = Mutex::new(());
        let _alone = STARTING.lock().expect("no test has failed here");
        let pty = openpty(Some(&size), None).expect("a terminal");
        for end in [&pty.master, &pty.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("an open descriptor");
        }
        let end = || Stdio::from(pty.slave.try_clone().expect("a descriptor more"));
        let child = Command::new(env!("CARGO_BIN_EXE_trilith"))
            .args(["console", "--line", "test", "--socket", "/nonexistent.sock"])
            .env("TERM", "vt220")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("the console starts");
        let keyboard = File::from(pty.master);
        let mut screen = keyboard.try_clone().expect("a descriptor more");
        let (sender, seen) = channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count) = screen.read(&mut bytes) {
                if count == 0 || sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Console { child, keyboard, seen }
    }

    /// All that was shown until `text` was.
    fn read_until(&self, text: &str) -> String {
        let (mut shown, end) = (String::new(), Instant::now() + PATIENCE);
        while !shown.contains(text) {
            let left = end.saturating_duration_since(Instant::now());
            let bytes = self.seen.recv_timeout(left).unwrap_or_else(|_| panic!("{text:?} is not in {shown:?}"));
            shown.push_str(&String::from_utf8_lossy(&bytes));
        }
        shown
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn login_shell(words: &[&str]) -> Output {
    let path: PathBuf = env!("CARGO_BIN_EXE_trilith").into();
    Command::new(path).arg0("-trilith-shell").args(words).stdin(Stdio::null()).output().expect("the login shell starts")
}

/// What comes at once comes late on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
