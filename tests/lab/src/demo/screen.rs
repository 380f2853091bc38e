//! The view: on a terminal it refreshes itself in place, elsewhere it is a line for each thing that happens.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write, stdout};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use terminal_size::{Height, Width, terminal_size};
use trilith_shell::cli::paint::Paint;

use super::stage::{Moment, NEW_PER_S, NodeView, Seen, Stage, Trouble};
use super::table::Row;
use crate::lab::{NODES, VIP};
use crate::load::{Window, now_ns};

/// Where the demo is shown.
pub struct Screen {
    live: bool,
    paint: Paint,
    started: Instant,
    since_ns: u64,
    past: Vec<String>,
    current: String,
    future: Vec<String>,
    drawn: usize,
}

impl Screen {
    /// The view needs a terminal of some size; otherwise plain lines serve.
    pub fn open() -> Screen {
        let large = terminal_size().is_some_and(|(Width(width), Height(height))| width >= WIDTH && height >= HEIGHT);
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let live = stdout().is_terminal() && large && !dumb;
        if live {
            put("\x1b[?25l");
        }
        let (past, current, future) = (Vec::new(), String::new(), Vec::new());
        let started = Instant::now();
        Screen { live, paint: Paint::for_stdout(), started, since_ns: now_ns(), past, current, future, drawn: 0 }
    }

    pub fn paint(&self) -> Paint {
        self.paint
    }

    /// An act begins; others are to come.
    pub fn begin(&mut self, title: &str, to_come: &[String]) {
        self.current = title.to_owned();
        self.future = to_come.to_vec();
        self.since_ns = now_ns();
        if !self.live {
            put(&format!("{:5.1} s  {title}\n", self.started.elapsed().as_secs_f64()));
        }
    }

    /// An act has ended like that.
    pub fn end(&mut self, row: &Row) {
        if self.live {
            let mark = if row.broke_a_promise() { self.paint.bad("✗") } else { self.paint.good("✓") };
            self.past.push(format!("{mark} {:<31} {}", row.title, self.paint.dim(&row.line())));
        } else {
            let to = row.to.unwrap_or("nobody");
            put(&format!("{:9}VIP {} to {to}: {}\n", "", row.from, row.line()));
        }
    }

    /// Does something on another thread and shows meanwhile what clients see.
    ///
    /// # Errors
    /// Those of the deed.
    pub fn meanwhile<T: Send>(&mut self, stage: &Stage, deed: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let deed = scope.spawn(deed);
            while !deed.is_finished() {
                if self.live {
                    self.draw(stage);
                }
                thread::sleep(REFRESH);
            }
            match deed.join() {
                Ok(result) => result,
                Err(_) => bail!("the thread of the act has panicked"),
            }
        })
        .with_context(|| format!("act {:?}", self.current))
    }

    /// Ends the view; what was drawn last makes place for what comes after.
    pub fn close(&mut self) {
        if self.live {
            put(&format!("{}\x1b[J\x1b[?25h", self.home()));
            self.live = false;
        }
    }

    fn draw(&mut self, stage: &Stage) {
        // Of what was before the act the eye knows already.
        let seen = stage.count(Window::new(self.since_ns, now_ns()), None);
        let lines = self.frame(&stage.nodes(), &stage.moments(CELLS), &seen);
        let mut text = self.home();
        for line in &lines {
            let _ = writeln!(text, "{line}\x1b[K");
        }
        put(&(text + "\x1b[J"));
        self.drawn = lines.len();
    }

    fn home(&self) -> String {
        if self.drawn == 0 { String::new() } else { format!("\x1b[{}F", self.drawn) }
    }

    fn frame(&self, nodes: &[NodeView], moments: &[Moment], seen: &Seen) -> Vec<String> {
        let paint = self.paint;
        let seconds = self.started.elapsed().as_secs();
        let title = format!("Trilith: three nodes hold {VIP}");
        let clock = format!("{}:{:02}", seconds / 60, seconds % 60);
        let mut lines = vec![
            format!("{}{clock:>space$}", paint.bold(&title), space = usize::from(WIDTH) - 2 - title.chars().count()),
            String::new(),
        ];
        lines.extend(nodes.iter().map(|node| node_line(node, paint)));
        lines.push(String::new());
        lines.push(paint.dim(&format!("{:<13}{:<space$}now", "", "6 s ago", space = CELLS - 3)));
        lines.push(format!("{:<13}{}", "answers ARP", owners(moments, paint)));
        lines.push(format!("{:<13}{}", "new", answered(moments, paint)));
        lines.push(String::new());
        lines.push(format!(
            "{:<13}{NEW_PER_S} a second: longest gap {:.0} ms, refused {}, failed {}",
            "new", seen.gap_ms, seen.refused, seen.failed
        ));
        let stall = if seen.stall_ms < 10.0 { "<10 ms".to_owned() } else { format!("{:.0} ms", seen.stall_ms) };
        lines.push(format!(
            "{:<13}{} of {} stand: longest wait for an echo {stall}",
            "lasting",
            seen.spared - seen.broken,
            seen.spared
        ));
        lines.push(format!("{:<13}{} requests: {} failed", "kept alive", seen.requests, seen.requests_failed));
        lines.push(String::new());
        lines.extend(self.past.iter().cloned());
        lines.push(format!("{} {}", paint.warn("▸"), paint.bold(&self.current)));
        lines.extend(self.future.iter().map(|title| paint.dim(&format!("  {title}"))));
        lines
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.live {
            put("\x1b[?25h");
        }
    }
}

fn node_line(node: &NodeView, paint: Paint) -> String {
    let (mark, state) = match node.trouble {
        None => (paint.good("●"), "runs"),
        Some(Trouble::CutOff) => (paint.warn("◌"), "cut off"),
        Some(Trouble::Frozen) => (paint.warn("◍"), "frozen"),
        Some(Trouble::Off) => (paint.bad("○"), "off"),
    };
    let owns = if node.owns { paint.good("◀ VIP") } else { String::new() };
    let (name, connections, answers) = (node.name, node.connections, node.answers);
    format!("{mark} {name}  {state:<8} {connections:>4} lasting connections {answers:>5} answers a second   {owns}")
}

/// Who answers for the VIP, a letter for each tenth of a second.
fn owners(moments: &[Moment], paint: Paint) -> String {
    let letter = |moment: &Moment| match moment.owners.count_ones() {
        0 => paint.bad("·"),
        1 => NODES[moment.owners.trailing_zeros() as usize].to_owned(),
        many => paint.warn(&many.to_string()),
    };
    moments.iter().map(letter).collect()
}

/// The share of new connections answered promptly, a bar for each tenth of a second.
fn answered(moments: &[Moment], paint: Paint) -> String {
    let bar = |moment: &Moment| {
        if moment.begun == 0 {
            return " ".to_owned();
        }
        let good = moment.good.min(moment.begun);
        match BARS[good * (BARS.len() - 1) / moment.begun] {
            full if good == moment.begun => paint.good(full),
            none if moment.good == 0 => paint.bad(none),
            some => paint.warn(some),
        }
    };
    moments.iter().map(bar).collect()
}

/// A terminal that is gone shows nothing; the acts go on to their end all the same.
fn put(text: &str) {
    let mut out = stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

const BARS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
/// Tenths of a second in the time lines.
const CELLS: usize = 60;
const WIDTH: u16 = 80;
const HEIGHT: u16 = 24;
/// Often enough to see a gap while it is there, and next to nothing of the machine that is measured.
const REFRESH: Duration = Duration::from_millis(150);
