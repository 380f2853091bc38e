//! `trio demo`: three machines from power-on to another version on all of them, and what clients see of it.
//!
//! What is planned costs clients nothing, or the demo fails. The plug that is pulled costs those their connection that were with that
//! machine: they are counted, and everybody else is served by another.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use trilith_lab::wait::wait_until;

use crate::plan::{NODES, VIP};
use crate::status::{said, wait_fit};
use crate::trio::{self, Trio, UP_DEADLINE, say};
use crate::upgrade::{Load, Seen, bundle, plans, ready, start, upload, wait};

/// The version that comes to the machines.
const NEXT: &str = "0.2.0";

/// Plays all acts and prints a line for each.
///
/// # Errors
/// When an act does not come to its end; at the end, when what was planned cost a client anything.
pub fn run() -> Result<()> {
    let accel = trio::prepare()?;
    let next = bundle(NEXT, &[])?;
    let trio = Trio::power_on(&plans(accel)?)?;
    say("three machines are on: firmware, boot loader, kernel, first boot");
    trio.wait_serving(UP_DEADLINE)?;
    wait(&trio, "a set that has agreed on its configuration", |state| ready(state, None))?;
    let mut rows = Vec::new();
    rows.push(act(&trio, "the VIP goes round all three, as planned", || moves(&trio))?);
    rows.push(act(&trio, "its owner stands still for a second, as when it is moved", || stun(&trio))?);
    rows.push(act(&trio, "the plug of its owner is pulled, and put in again", || plug(&trio))?);
    rows.push(act(&trio, "another version comes to all three", || {
        upload(&trio, &next)?;
        start(&trio, NEXT)?;
        wait(&trio, &format!("three nodes with {NEXT}"), |state| ready(state, Some(NEXT))).map(drop)
    })?);
    println!("{:<58} {:>6} {:>9} {:>7} {:>7}", "what happened", "took", "requests", "failed", "broken");
    for Row { what, took, seen } in &rows {
        let Seen { requests, failed, broken, .. } = seen;
        println!("{what:<58} {:>4} s {requests:>9} {failed:>7} {broken:>7}", took.as_secs());
    }
    println!("A machine without power takes the connections with it that were its own; nothing else may cost any.");
    let noticed = rows.iter().enumerate().filter(|(at, row)| *at != PLUG && row.seen.failed + row.seen.broken > 0);
    let noticed: Vec<&str> = noticed.map(|(_, row)| row.what).collect();
    ensure!(noticed.is_empty(), "clients noticed what they must not notice: {}", noticed.join("; "));
    Ok(())
}

struct Row {
    what: &'static str,
    took: Duration,
    seen: Seen,
}

/// Which of the rows may cost something.
const PLUG: usize = 2;

/// Does something under load, and counts what the clients saw.
fn act(trio: &Trio, what: &'static str, deed: impl FnOnce() -> Result<()>) -> Result<Row> {
    say(what);
    let load = Load::start(trio, 0)?;
    let begun = Instant::now();
    let done = deed();
    let took = begun.elapsed();
    let seen = load.finish();
    say(&format!("  {} requests: {} failed, {} connections broken", seen.requests, seen.failed, seen.broken));
    done.context(what)?;
    Ok(Row { what, took, seen })
}

fn moves(trio: &Trio) -> Result<()> {
    let first = NODES.iter().position(|name| owner(trio).is_ok_and(|owner| owner == *name)).unwrap_or(0);
    for turn in 1..=NODES.len() {
        let to = NODES[(first + turn) % NODES.len()];
        let told = trio.ssh(trio.machine(to)?, &["trilith", "vip", "move", "public", to])?;
        ensure!(told.status.success(), "vip move: {}", String::from_utf8_lossy(&told.stderr).trim());
        say(&format!("  {}", String::from_utf8_lossy(&told.stdout).trim()));
    }
    Ok(())
}

fn stun(trio: &Trio) -> Result<()> {
    let owner = trio.machine(&owner(trio)?)?;
    owner.pause()?;
    // How long it stands still is what is shown.
    std::thread::sleep(Duration::from_secs(1));
    owner.resume()?;
    wait_fit(trio, UP_DEADLINE)
}

fn plug(trio: &Trio) -> Result<()> {
    let owner = trio.machine(&owner(trio)?)?;
    owner.power_cut()?;
    let took = wait_until("another node to answer", UP_DEADLINE, || trio.network.get(VIP.into(), "/").is_ok())?;
    say(&format!("  {} is without power; {:.1} s later a new client is served", owner.name(), took.as_secs_f64()));
    owner.power_on()?;
    trio.wait_serving(UP_DEADLINE)?;
    // It serves before it lets anybody log in.
    wait_fit(trio, UP_DEADLINE)?;
    wait(trio, "three nodes in good order", |state| ready(state, None)).map(drop)
}

/// Who owns the first VIP, by the word of the first node that answers.
fn owner(trio: &Trio) -> Result<String> {
    let said = trio.machines.iter().find_map(|machine| said(trio, machine).ok()).context("no node tells its status")?;
    said["vips"][0]["owner"].as_str().map(str::to_owned).context("the VIP has no owner")
}
