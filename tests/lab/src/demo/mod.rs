//! `trilith-lab demo`: clients on the VIP, faults, and what the clients see, live.
//!
//! Each act begins with the set at rest and connections on all three nodes, does one thing to the node that owns the VIP,
//! lets it be for some seconds, ends the fault, and waits until all nodes agree again. What is shown and counted is the
//! clients' view alone; no node is asked how it went.

mod interrupt;
mod screen;
mod stage;
mod table;

use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bench::said::{VIPS, move_vip};
use crate::lab::{Lab, Mode, NODES};
use crate::load::{Window, now_ns};
use crate::node::Node;
use crate::switch::Direction;
use screen::Screen;
use stage::{Stage, Trouble};
use table::Row;

/// Plays all acts and prints the table.
///
/// # Errors
/// When the laboratory cannot be used, on Ctrl-C, or, after the table, when a planned move broke something or an act broke
/// connections that nodes carried to which nothing was done.
pub fn run() -> Result<()> {
    interrupt::watch()?;
    let lab = Lab::up(Mode::Trilith)?;
    interrupt::check()?;
    let mut screen = Screen::open();
    let stage = Stage::set(&lab)?;
    let mut rows: Vec<Row> = Vec::new();
    for (number, act) in ACTS.iter().enumerate() {
        // Another owner each time: there is nothing special about any of them.
        let owner = NODES[number % NODES.len()];
        let title = act.title(owner);
        screen.begin(&title, &ACTS[number + 1..].iter().map(|next| next.title("the owner")).collect::<Vec<_>>());
        let row = screen.meanwhile(&stage, || play(&stage, *act, owner, title.clone()))?;
        screen.end(&row);
        rows.push(row);
    }
    screen.close();
    for line in table::lines(&rows, screen.paint()) {
        println!("{line}");
    }
    let noticed: Vec<&str> = rows.iter().filter(|row| row.broke_a_promise()).map(|row| row.title.as_str()).collect();
    if !noticed.is_empty() {
        bail!("clients noticed what they must not notice: {}", noticed.join("; "));
    }
    Ok(())
}

/// What is done to the owner of the VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Move,
    CutOff,
    Freeze,
    KillHaproxy,
    KillSupervisor,
    PullThePlug,
}

const ACTS: [Act; 6] = [Act::Move, Act::CutOff, Act::Freeze, Act::KillHaproxy, Act::KillSupervisor, Act::PullThePlug];

impl Act {
    /// What is done, with the owner's name in it.
    fn title(self, owner: &str) -> String {
        match self {
            Act::Move => format!("VIP moved {MOVES} times, as planned"),
            Act::CutOff => format!("{owner} loses its network for {} s", HOLD.as_secs()),
            Act::Freeze => format!("{owner} is frozen for {} s", HOLD.as_secs()),
            Act::KillHaproxy => format!("HAProxy of {owner} is killed"),
            Act::KillSupervisor => format!("supervisor of {owner} is killed"),
            Act::PullThePlug => format!("plug of {owner} is pulled"),
        }
    }

    /// Whether the connections that the owner carries are bound to end with it, or may.
    fn costs_the_owner_s_connections(self) -> bool {
        matches!(self, Act::CutOff | Act::Freeze | Act::KillHaproxy | Act::PullThePlug)
    }
}

fn play(stage: &Stage, act: Act, owner: &'static str, title: String) -> Result<Row> {
    let node = stage.lab().node(owner)?;
    stage.connect(owner)?;
    stage.pause(CALM)?;
    let from_ns = now_ns();
    match act {
        Act::Move => moves(stage, owner)?,
        Act::CutOff => {
            stage.trouble(owner, Trouble::CutOff, |lab| lab.switch.cut(owner, Direction::Both))?;
            stage.pause(HOLD)?;
        }
        Act::Freeze => {
            stage.trouble(owner, Trouble::Frozen, |_| node.freeze())?;
            stage.pause(HOLD)?;
        }
        Act::KillHaproxy => {
            kill_unit(node, "haproxy.service")?;
            stage.pause(CALM)?;
        }
        Act::KillSupervisor => {
            kill_unit(node, "trilith.service")?;
            stage.pause(CALM)?;
        }
        Act::PullThePlug => {
            stage.trouble(owner, Trouble::Off, |_| node.kill())?;
            stage.pause(HOLD)?;
        }
    }
    let took_over = stage.who_answers();
    stage.repair()?;
    let agreed = stage.settle()?;
    let window = Window::new(from_ns, now_ns());
    // What was begun within the act has to end before it can be counted.
    stage.pause(stage::PATIENCE)?;
    let victim = act.costs_the_owner_s_connections().then_some(owner);
    let seen = stage.count(window, victim);
    let breaks = stage.explain(from_ns, victim);
    Ok(Row { title, planned: act == Act::Move, from: owner, to: took_over, seen, breaks, agreed })
}

/// Moves the VIPs on and on, so that the connections made before are relayed over one hop and over two.
fn moves(stage: &Stage, owner: &str) -> Result<()> {
    let lab = stage.lab();
    let first = NODES.iter().position(|name| *name == owner).unwrap_or(0);
    for turn in 1..=MOVES {
        let to = NODES[(first + turn) % NODES.len()];
        VIPS.iter().try_for_each(|vip| move_vip(lab.node(to)?, vip, to))?;
        stage.pause(BETWEEN_MOVES)?;
    }
    Ok(())
}

fn kill_unit(node: &Node, unit: &str) -> Result<()> {
    let pids = node.unit_pids(unit);
    if pids.is_empty() {
        bail!("{unit} does not run on node {}: nothing to kill", node.name());
    }
    for pid in pids {
        // A process that has ended with its parent meanwhile is dead, too.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    Ok(())
}

const MOVES: usize = 6;
/// Long enough to be seen.
const BETWEEN_MOVES: Duration = Duration::from_millis(700);
/// Before anything is done, so that the eye knows what calm looks like; and after what ends by itself.
const CALM: Duration = Duration::from_millis(1500);
/// How long a fault lasts.
const HOLD: Duration = Duration::from_secs(3);
