//! `trilith status --watch`: the same view every second, in place.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::exit::Exit;
use super::paint::{self, Paint};
use super::{judge, report, status};
use crate::control::client::{Unanswered, ask};
use crate::control::{Request, Response};

/// Shows the status every second until Ctrl-C. A supervisor that is away is shown as such, and awaited.
pub fn watch(socket: &Path, json: bool) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let watched = match runtime {
        Ok(runtime) => {
            let watched = runtime.block_on(frames(socket, json));
            // An answer that is still awaited is of no interest any more.
            runtime.shutdown_background();
            watched
        }
        Err(error) => Err(error),
    };
    match watched {
        Ok(()) => Exit::Ok,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(error) => report(Exit::Failed, "failed", &format!("watching: {error}"), json),
    }
}

async fn frames(socket: &Path, json: bool) -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let screen = if io::stdout().is_terminal() && !json { Some(Screen::open()?) } else { None };
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let socket = socket.to_owned();
        let answer = async {
            ticks.tick().await;
            tokio::task::spawn_blocking(move || ask(&socket, Request::Status)).await
        };
        let answer = tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            answer = answer => answer?,
        };
        match &screen {
            Some(screen) => screen.show(&lines(&answer))?,
            None if json => writeln!(io::stdout(), "{}", json_line(&answer)?)?,
            None => writeln!(io::stdout(), "{}\n", lines(&answer).join("\n"))?,
        }
    }
}

fn lines(answer: &Result<Response, Unanswered>) -> Vec<String> {
    let (width, paint) = (paint::width(), Paint::for_stdout());
    match answer {
        Ok(Response::Status(status)) => status::view(status, width).iter().map(|line| paint.line(line)).collect(),
        other => paint::wrap(judge(other).2, width).iter().map(|line| paint.bad(line)).collect(),
    }
}

fn json_line(answer: &Result<Response, Unanswered>) -> io::Result<String> {
    let line = match answer {
        Ok(Response::Status(status)) => serde_json::to_string(status),
        other => {
            let (_, result, text) = judge(other);
            serde_json::to_string(&super::Said { result, text })
        }
    };
    Ok(line?)
}

/// The terminal's other screen, so that what was on the first is there again afterwards.
struct Screen;

impl Screen {
    fn open() -> io::Result<Screen> {
        write!(io::stdout(), "\u{1b}[?1049h\u{1b}[?25l")?;
        Ok(Screen)
    }

    /// Writes over the last frame, in one piece: nothing is cleared before it is replaced, so nothing flickers.
    fn show(&self, lines: &[String]) -> io::Result<()> {
        let rows = terminal_size::terminal_size().map_or(24, |(_, rows)| usize::from(rows.0)).max(2);
        let shown = if lines.len() > rows { rows - 1 } else { lines.len() };
        let mut frame = String::from("\u{1b}[H");
        for (place, line) in lines[..shown].iter().enumerate() {
            let newline = if place == 0 { "" } else { "\r\n" };
            let _ = write!(frame, "{newline}\u{1b}[K{line}");
        }
        if shown < lines.len() {
            let _ = write!(frame, "\r\n\u{1b}[K… {} more lines: make the window taller", lines.len() - shown);
        }
        frame.push_str("\u{1b}[J");
        let mut stdout = io::stdout().lock();
        stdout.write_all(frame.as_bytes())?;
        stdout.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing put back.
        let _ = write!(io::stdout(), "\u{1b}[?25h\u{1b}[?1049l");
        let _ = io::stdout().flush();
    }
}

const EVERY: Duration = Duration::from_secs(1);
