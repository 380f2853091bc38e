//! The terminal: its modes, its size, and its keys.

use std::io::{self, Write, stdout};
use std::sync::mpsc::Sender;
use std::thread;

use anyhow::{Context, bail};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{self, MoveTo, Show};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{Clear, ClearType, disable_raw_mode, enable_raw_mode};

use super::Input;

/// A terminal in raw mode, until it is dropped.
pub struct Screen {
    /// To draw on.
    pub terminal: Terminal<CrosstermBackend<io::Stdout>>,
}

impl Screen {
    /// Takes the terminal on stdin and stdout.
    ///
    /// # Errors
    /// There is none, or it can't be set.
    pub fn open() -> anyhow::Result<Screen> {
        use std::io::IsTerminal;
        if !io::stdin().is_terminal() || !stdout().is_terminal() {
            bail!(
                "the console needs a terminal: with ssh ask for one (ssh -t), or give a command, such as trilith status"
            );
        }
        enable_raw_mode().context("setting the terminal to raw mode")?;
        find_size();
        let terminal = Terminal::new(CrosstermBackend::new(stdout())).context("opening the terminal")?;
        let mut screen = Screen { terminal };
        screen.repaint()?;
        Ok(screen)
    }

    /// Has everything drawn anew, whatever is on the terminal. (Terminal::clear of ratatui would ask the terminal where its
    /// cursor is, and fail where none is plugged in.)
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn repaint(&mut self) -> anyhow::Result<()> {
        let size = self.terminal.size().context("asking the terminal for its size")?;
        self.terminal.resize(size.into()).context("clearing the terminal")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing put back.
        let _ = execute!(stdout(), Clear(ClearType::All), MoveTo(0, 0), Show);
        let _ = disable_raw_mode();
    }
}

/// Reads keys on a thread of its own until the terminal is gone or nobody listens any more.
pub fn start(inputs: Sender<Input>) {
    thread::spawn(move || {
        loop {
            let input = match event::read() {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Release => continue,
                Ok(Event::Key(key)) => {
                    if key.code == KeyCode::Char('l') && key.modifiers.contains(KeyModifiers::CONTROL) {
                        // Somebody may have plugged another terminal into the serial port.
                        find_size();
                        Input::Redraw
                    } else {
                        Input::Key(key)
                    }
                }
                Ok(Event::Resize(..)) => Input::Redraw,
                Ok(_) => continue,
                Err(_) => Input::Gone,
            };
            let gone = matches!(input, Input::Gone);
            if inputs.send(input).is_err() || gone {
                return;
            }
        }
    });
}

/// Gives a terminal a size that has none, or a size of ours: a serial port knows nothing of what hangs on it, so the terminal is
/// asked where its cursor is after a jump to the far corner. It has two seconds to answer (crossterm's bound).
fn find_size() {
    let known = terminal_size::terminal_size().is_some_and(|(width, height)| width.0 > 0 && height.0 > 0);
    if known && !is_serial() {
        return;
    }
    // Save the cursor, jump, ask, restore. (ECMA-48 and DEC VT100: DECSC, CUP, DSR, DECRC.)
    let asked = write!(stdout(), "\x1b7\x1b[999;999H").and_then(|()| stdout().flush());
    let corner = asked.and_then(|()| cursor::position());
    let _ = write!(stdout(), "\x1b8").and_then(|()| stdout().flush());
    let (columns, rows) = match corner {
        Ok((column, row)) if column >= 19 && row >= 4 => (column + 1, row + 1),
        _ if known => return,
        _ => DEFAULT,
    };
    set_size(columns, rows);
}

/// Whether stdin is a serial port: it has no window that could tell its size.
fn is_serial() -> bool {
    let path = std::fs::read_link("/proc/self/fd/0").unwrap_or_default();
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    ["ttyS", "ttyAMA", "hvc", "ttyUSB"].iter().any(|prefix| name.starts_with(prefix))
}

/// Tells the kernel the size, so that all others who ask it know. (tty_ioctl(4), TIOCSWINSZ.)
fn set_size(columns: u16, rows: u16) {
    let size = nix::libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request reads one winsize, which lives until the call is over.
    let _ = unsafe { set_window_size(0, &raw const size) };
}

nix::ioctl_write_ptr_bad!(set_window_size, nix::libc::TIOCSWINSZ, nix::libc::winsize);

/// Columns and rows of a terminal that does not tell.
const DEFAULT: (u16, u16) = (80, 24);
