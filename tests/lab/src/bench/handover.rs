//! `bench handover`: the VIP moves from node to node, as planned, under 1,000 connections and steady new ones.
//!
//! All connections are made while one node owns the VIP, so after the first move every packet of theirs is relayed, over
//! one hop or two. Each variant first measures the same at rest: what the machine itself does to a ping.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde::Serialize;

use super::flows::{ECHO_PORT, HTTP_PORT, at_home};
use super::said::move_vip;
use super::{ms_between, say, tenth};
use crate::lab::{Lab, Mode, NODES, VIP, VIP6};
use crate::load::{
    Established, EstablishedOptions, Quantiles, Steady, SteadyOptions, Transfers, TransfersOptions, Window, json_row,
    now_ns,
};
use crate::wait::wait_until;

/// How much.
#[derive(Debug, Args)]
pub struct Options {
    /// Moves in each variant.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    moves: u32,
    /// Connections that stand all the time.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=2000))]
    connections: u32,
    /// Only the variants whose name begins so.
    #[arg(long)]
    only: Option<String>,
}

/// Measures every variant; the last line is one JSON object.
///
/// # Errors
/// When a connection broke or a new one failed, or the laboratory cannot be used.
pub fn run(options: &Options) -> Result<()> {
    let only = options.only.as_deref().unwrap_or_default();
    let variants: Vec<&Variant> = VARIANTS.iter().filter(|variant| variant.name.starts_with(only)).collect();
    if variants.is_empty() {
        let names: Vec<&str> = VARIANTS.iter().map(|variant| variant.name).collect();
        bail!("no variant {only:?}: {}", names.join(", "));
    }
    let lab = Lab::up(Mode::Trilith)?;
    let mut rows = Vec::new();
    for variant in variants {
        let row = measure(&lab, variant, options)?;
        say(&format!(
            "{:<12} {} moves, broken {}, refused {}, failed {}, stall p99 {} ms, max {} ms (at rest {} and {})",
            row.variant,
            row.moves,
            row.broken,
            row.refused,
            row.failed,
            row.stall_ms_p99,
            row.stall_ms_max,
            row.rest_ms_p99,
            row.rest_ms_max
        ));
        rows.push(row);
    }
    let summary = Summary::of(rows);
    println!("{}", json_row(&summary)?);
    if summary.broken + summary.refused + summary.failed > 0 {
        bail!(
            "a planned move was noticed: {} connections broken, {} refused, {} failed",
            summary.broken,
            summary.refused,
            summary.failed
        );
    }
    ensure!(
        summary.within.p99 && summary.within.max,
        "stalls of {} ms (p99) and {} ms (most) are beyond the bars, on a machine that has nothing else to do",
        summary.stall_ms_p99,
        summary.stall_ms_max
    );
    Ok(())
}

struct Variant {
    name: &'static str,
    /// Which VIP moves and is talked to.
    vip: (&'static str, IpAddr),
    /// Every connection comes about by a SYN cookie.
    cookies: bool,
    /// Large downloads run.
    transfers: bool,
    /// Each move follows the one before at once: faster than anything that goes on ends.
    chained: bool,
}

const IPV4: (&str, IpAddr) = ("public", IpAddr::V4(VIP));
const IPV6: (&str, IpAddr) = ("public6", IpAddr::V6(VIP6));
const PLAIN: Variant = Variant { name: "ipv4", vip: IPV4, cookies: false, transfers: false, chained: false };
const VARIANTS: [Variant; 6] = [
    PLAIN,
    Variant { name: "ipv6", vip: IPV6, ..PLAIN },
    Variant { name: "syncookies", cookies: true, ..PLAIN },
    Variant { name: "transfers", transfers: true, ..PLAIN },
    Variant { name: "chained", transfers: true, chained: true, ..PLAIN },
    Variant { name: "chained-ipv6", vip: IPV6, transfers: true, chained: true, ..PLAIN },
];

#[derive(Debug, Serialize)]
struct Summary {
    moves: u32,
    established: usize,
    broken: u64,
    refused: u64,
    failed: u64,
    stall_ms_p99: f64,
    stall_ms_max: f64,
    within: Within,
    variants: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    variant: &'static str,
    moves: u32,
    established: usize,
    broken: u64,
    /// New connections refused.
    refused: u64,
    /// New connections, and downloads, that failed in any other way.
    failed: u64,
    /// New connections made.
    new: u64,
    /// The longest stall of a connection around a move, over connections times moves.
    stall_ms_p50: f64,
    stall_ms_p99: f64,
    stall_ms_max: f64,
    /// The same over as many windows in which nothing moved.
    rest_ms_p99: f64,
    rest_ms_max: f64,
    /// The longest time between the starts of good new connections.
    gap_ms: f64,
    /// The longest wait of a download for its next bytes.
    transfer_stall_ms: Option<f64>,
    /// From the command to its answer, its start included.
    move_ms_p50: f64,
    move_ms_max: f64,
    /// How late the pings themselves were at worst.
    lag_ms_max: f64,
    within: Within,
}

/// Whether the bars are kept.
#[derive(Debug, Clone, Copy, Serialize)]
struct Within {
    p99: bool,
    max: bool,
}

impl Within {
    fn of(p99_ms: f64, max_ms: f64) -> Within {
        Within { p99: p99_ms <= BAR_P99_MS, max: max_ms <= BAR_MAX_MS }
    }
}

impl Summary {
    fn of(rows: Vec<Row>) -> Summary {
        let worst = |value: fn(&Row) -> f64| rows.iter().map(value).fold(0.0, f64::max);
        let (stall_ms_p99, stall_ms_max) = (worst(|row| row.stall_ms_p99), worst(|row| row.stall_ms_max));
        Summary {
            moves: rows.iter().map(|row| row.moves).sum(),
            established: rows.iter().map(|row| row.established).max().unwrap_or(0),
            broken: rows.iter().map(|row| row.broken).sum(),
            refused: rows.iter().map(|row| row.refused).sum(),
            failed: rows.iter().map(|row| row.failed).sum(),
            stall_ms_p99,
            stall_ms_max,
            within: Within::of(stall_ms_p99, stall_ms_max),
            variants: rows,
        }
    }
}

fn measure(lab: &Lab, variant: &Variant, options: &Options) -> Result<Row> {
    at_home(lab, NODES[0])?;
    let cookies = if variant.cookies { ALWAYS } else { WHEN_NEEDED };
    lab.nodes.iter().try_for_each(|node| node.netns().sysctl("ipv4/tcp_syncookies", cookies))?;
    let measured = measure_moves(lab, variant, options);
    lab.nodes.iter().try_for_each(|node| node.netns().sysctl("ipv4/tcp_syncookies", WHEN_NEEDED))?;
    measured
}

fn measure_moves(lab: &Lab, variant: &Variant, options: &Options) -> Result<Row> {
    let (name, address) = variant.vip;
    let netns = Some(lab.client.path());
    let http = SocketAddr::new(address, HTTP_PORT);
    say(&format!("{}: {} connections to {address}", variant.name, options.connections));
    let established = Established::start(EstablishedOptions {
        netns: netns.clone(),
        connections: options.connections as usize,
        interval: INTERVAL,
        connect_within: Duration::from_secs(30),
        ..EstablishedOptions::new(SocketAddr::new(address, ECHO_PORT))
    })?;
    // Longer than it takes TCP to send a lost SYN again: what is lost shows as a gap, what is refused as a failure.
    let patient = SteadyOptions { rate: NEW_PER_S, timeout: Duration::from_secs(4), ..SteadyOptions::new(http) };
    let steady = Steady::start(SteadyOptions { netns: netns.clone(), ..patient })?;
    let transfers = variant
        .transfers
        .then(|| Transfers::start(TransfersOptions { netns, bytes: 32 << 20, ..TransfersOptions::new(http) }))
        .transpose()?;

    let mut rest = Vec::new();
    for _ in 0..options.moves {
        let start = now_ns();
        rest.push(watch(start)?);
    }
    let mut windows = Vec::new();
    let mut took_us = Vec::new();
    let first = now_ns();
    for turn in 0..options.moves as usize {
        // Whoever asks need not be concerned: each of the nodes asks in its turn.
        let (by, to) = (&lab.nodes[turn / NODES.len() % NODES.len()], NODES[(turn + 1) % NODES.len()]);
        let start = now_ns();
        move_vip(by, name, to)?;
        took_us.push(((now_ns() - start) / 1000) as u32);
        if !variant.chained {
            windows.push(watch(start)?);
        }
    }
    if variant.chained {
        let last = watch(now_ns())?;
        say(&format!("{}: {} moves in {} ms", variant.name, options.moves, ms_between(first, now_ns())));
        windows.push(Window::new(first, last.to_ns));
    }
    let rest = established.stalls_per(&rest);
    let stalls = established.stalls_per(&windows);
    let transfers = transfers.map(Transfers::finish);
    let (steady, established) = (steady.finish(), established.finish());
    let moves = Quantiles::of_us(took_us);
    let failed_transfers = transfers.as_ref().map_or(0, |it| it.failed);
    Ok(Row {
        variant: variant.name,
        moves: options.moves,
        established: established.established,
        broken: established.broken as u64,
        refused: steady.refused,
        failed: steady.attempts - steady.ok - steady.refused + failed_transfers,
        new: steady.ok,
        stall_ms_p50: stalls.p50,
        stall_ms_p99: stalls.p99,
        stall_ms_max: stalls.max,
        rest_ms_p99: rest.p99,
        rest_ms_max: rest.max,
        gap_ms: tenth(steady.longest_gap_ms),
        transfer_stall_ms: transfers.map(|it| tenth(it.longest_stall_ms)),
        move_ms_p50: moves.p50,
        move_ms_max: moves.max,
        lag_ms_max: established.lag_ms_max.max(steady.lag_ms_max),
        within: Within::of(stalls.p99, stalls.max),
    })
}

/// Lets every connection ping once more, and a ping of before come back: this time is what is measured.
fn watch(start_ns: u64) -> Result<Window> {
    let window = Window::new(start_ns, start_ns + INTERVAL.as_nanos() as u64);
    let settled_ns = window.to_ns + SETTLE.as_nanos() as u64;
    wait_until("a ping of each connection", INTERVAL + 2 * SETTLE, || now_ns() >= settled_ns)?;
    Ok(window)
}

/// The bars for a stall around a move.
const BAR_P99_MS: f64 = 30.0;
const BAR_MAX_MS: f64 = 100.0;
/// 1,000 connections then make 4,000 pings a second: four fall into each millisecond of a move.
const INTERVAL: Duration = Duration::from_millis(250);
/// After the window, for its last pings: as long as a stall may be at most.
const SETTLE: Duration = Duration::from_millis(100);
const NEW_PER_S: u32 = 100;
/// `tcp_syncookies` (ip-sysctl): 1 when the queue overflows, 2 always.
const WHEN_NEEDED: &str = "1";
const ALWAYS: &str = "2";
