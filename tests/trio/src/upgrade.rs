//! `trio upgrade`: three machines go from version to version, one after the other, while clients use them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use trilith_lab::load::{
    KeepAlive, KeepAliveOptions, Steady, SteadyOptions, Streams, StreamsOptions, Transfers, TransfersOptions, Window,
    now_ns,
};

use crate::machine::Machine;
use crate::network::HTTP_PATIENCE;
use crate::plan::{Addressing, Hardware, Plan, VIP};
use crate::tools;
use crate::trio::{self, Trio, UP_DEADLINE, say};

/// What was measured.
#[derive(Debug, Serialize)]
struct Summary {
    #[serde(flatten)]
    seen: Seen,
    /// Nodes that run the last version, blessed.
    nodes: usize,
    /// From the first start of a rollout to the end of the last, in seconds.
    seconds: f64,
    /// Bytes of each bundle that an upload moved, in their order.
    bytes_moved: Vec<u64>,
    /// Bytes of each bundle.
    bundle_bytes: Vec<u64>,
}

/// What the clients saw.
#[derive(Debug, Serialize)]
pub struct Seen {
    /// Requests of all clients that have ended.
    pub requests: u64,
    /// Those that failed.
    pub failed: u64,
    /// Connections that broke: anything but a close that was announced, or one while nothing was asked.
    pub broken: u64,
    /// HTTP connections that were closed politely, and came again.
    pub polite_closes: u64,
    /// TCP connections, which end only when they must, that were closed politely (FIN) and came again. One that was reset is broken.
    pub closed_at_deadline: u64,
    /// Large downloads that ended whole.
    pub downloads: u64,
    /// How long new clients waited at worst, as [`trilith_lab::load::SteadyReport`] has it: up to [`PROMPT`] more if one was answered
    /// late, in milliseconds.
    pub longest_gap_ms: f64,
    /// 99 % of the requests that made a connection each were answered within so many milliseconds.
    pub latency_p99_ms: f64,
    /// The longest that a client of any kind waited for a good answer, in milliseconds. (HTTP/2 and downloads are not looked at.)
    pub latency_max_ms: f64,
}

/// Brings the machines up, patches them to each of `versions`, with `rollback` to the one before the last in the end, and says what the
/// clients saw. With `keep` machines that failed stay on.
///
/// # Errors
/// When a rollout does not end well, or a client saw a failure.
pub fn run(versions: &[String], rollback: bool, keep: bool) -> Result<()> {
    let accel = trio::prepare()?;
    let bundles = versions.iter().map(|version| bundle(version, &[])).collect::<Result<Vec<_>>>()?;
    let trio = Trio::power_on(&plans(accel)?)?;
    say("three machines are on");
    trio.wait_serving(UP_DEADLINE)?;
    wait(&trio, "a set that has agreed on its configuration", |state| ready(state, None))?;
    let load = Load::start(&trio, LASTING)?;
    let done = roll(&trio, versions, &bundles, rollback, load);
    if done.is_err() && keep {
        trio.keep()?;
    }
    done
}

fn roll(trio: &Trio, versions: &[String], bundles: &[PathBuf], rollback: bool, load: Load) -> Result<()> {
    let begun = Instant::now();
    let (mut bytes_moved, mut bundle_bytes, mut nodes) = (Vec::new(), Vec::new(), 0);
    for (version, bundle) in versions.iter().zip(bundles) {
        let (moved, all) = upload(trio, bundle)?;
        say(&format!("bundle {version} is in the set: {moved} of {all} bytes were moved"));
        bytes_moved.push(moved);
        bundle_bytes.push(all);
        start(trio, version)?;
        nodes = wait_rolled(trio, version)?;
    }
    if rollback {
        let before = versions.iter().rev().nth(1).map_or(env!("CARGO_PKG_VERSION"), String::as_str);
        order(trio, &["rollback"])?;
        nodes = wait_rolled(trio, before)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let summary = Summary { seen: load.finish(), nodes, seconds, bytes_moved, bundle_bytes };
    let seen = &summary.seen;
    say(&format!("for {:.0} ms at most nobody who came was answered promptly", seen.longest_gap_ms));
    println!("{}", serde_json::to_string(&summary)?);
    ensure!(seen.failed == 0 && seen.broken == 0, "clients saw failures");
    ensure!(seen.longest_gap_ms < MAX_GAP_MS, "a gap of {} ms: {MAX_GAP_MS} are too many", seen.longest_gap_ms);
    // Every machine has restarted, so each of those that were there in the beginning has ended.
    let ended = seen.closed_at_deadline;
    ensure!(ended >= LASTING as u64, "only {ended} of {LASTING} connections that outlive a drain were closed by one");
    Ok(())
}

/// Waits until all nodes have that version, blessed, and returns how many those are.
fn wait_rolled(trio: &Trio, version: &str) -> Result<usize> {
    let from = Instant::now();
    let state = wait(trio, &format!("three nodes with {version}"), |state| ready(state, Some(version)))?;
    say(&format!("all nodes run {version} after {:.0} s", from.elapsed().as_secs_f64()));
    Ok(running(&state, version))
}

/// Machines whose firmware reads their disks, so that their boot loader counts and chooses.
pub fn plans(accel: crate::accel::Accel) -> Result<Vec<Plan>> {
    let mut plans = Plan::trio(accel)?;
    for (plan, hardware) in plans.iter_mut().zip([Hardware::Virtio, Hardware::Pc, Hardware::Virtio]) {
        (plan.hardware, plan.addressing) = (hardware, Addressing::Static);
    }
    Ok(plans)
}

/// The bundle of an image with another version, and trees laid over its root; built if need be.
///
/// # Errors
/// When it cannot be built.
pub fn bundle(version: &str, overlays: &[&str]) -> Result<PathBuf> {
    let image = image(version, overlays)?;
    mkbundle(&image, "bundle", &[])
}

/// The directory of such an image.
///
/// # Errors
/// When it cannot be built.
pub fn image(version: &str, overlays: &[&str]) -> Result<PathBuf> {
    let build = tools::build_directory(&tools::repository()?);
    let mut args = vec!["disk", "--service", "lab", "--version", version];
    overlays.iter().for_each(|overlay| args.extend(["--overlay", overlay]));
    // With an image that was built before go versions of it that were, too.
    if std::env::var_os("TRILITH_IMAGE").is_none() {
        tools::image_build(&args)?;
    }
    let trees = overlays.iter().map(|overlay| overlay.rsplit('/').next().unwrap_or(overlay));
    let name = ["image-lab", version].into_iter().chain(trees).collect::<Vec<_>>().join("-");
    Ok(build.join(name))
}

/// Makes a bundle of an image's directory, beside it.
///
/// # Errors
/// When that fails.
pub fn mkbundle(image: &Path, suffix: &str, options: &[&str]) -> Result<PathBuf> {
    let output = PathBuf::from(format!("{}.{suffix}", image.display()));
    let build = tools::build_directory(&tools::repository()?);
    let keys = std::env::var_os("TRILITH_KEYS").map_or_else(|| build.join("keys"), PathBuf::from);
    let mut command = Command::new(build.join("mkbundle"));
    command.args(["make", "--keys"]).arg(keys).arg("--output").arg(&output).args(options).arg("os").arg(image);
    let status = command.stdout(Stdio::null()).status().context("cannot start build/mkbundle")?;
    ensure!(status.success(), "build/mkbundle failed: {status}");
    Ok(output)
}

/// The state of the set by the first node that answers.
///
/// # Errors
/// When none does.
pub fn state(trio: &Trio) -> Result<Value> {
    let mut why = anyhow::anyhow!("no machine is on");
    for machine in trio.machines.iter().filter(|machine| machine.is_on()) {
        match shown(trio, machine) {
            Ok(state) => return Ok(state),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// Waits until the state of the set is as asked.
///
/// # Errors
/// When it is not within [`ROLLOUT_DEADLINE`], with the last state that was seen; at once when the rollout has halted.
pub fn wait(trio: &Trio, what: &str, right: impl Fn(&Value) -> bool) -> Result<Value> {
    let hold = |state: &Value| state["state"]["rollout"]["hold"].clone();
    let state = wait_held(trio, what, |state| right(state) || hold(state)["hold"] == "halted")?;
    ensure!(right(&state), "waiting for {what}: the rollout has halted: {}", hold(&state));
    Ok(state)
}

/// Waits until the state of the set is as asked, also while a rollout has halted.
///
/// # Errors
/// When it is not within [`ROLLOUT_DEADLINE`], with the last state that was seen.
pub fn wait_held(trio: &Trio, what: &str, right: impl Fn(&Value) -> bool) -> Result<Value> {
    let begun = Instant::now();
    let mut notes = 0;
    let mut last = Value::Null;
    loop {
        if let Ok(state) = state(trio) {
            let empty = Vec::new();
            let said = state["state"]["rollout"]["notes"].as_array().unwrap_or(&empty);
            said.iter().skip(notes).for_each(|note| say(&format!("  {}", note["text"].as_str().unwrap_or("?"))));
            notes = said.len();
            if right(&state) {
                return Ok(state);
            }
            last = state;
        }
        if begun.elapsed() > ROLLOUT_DEADLINE {
            let words: Vec<String> = trio.machines.iter().map(Machine::last_words).collect();
            bail!("{what}: not within {ROLLOUT_DEADLINE:?}; last seen: {last:#}\n{}", words.join("\n"));
        }
        // Each look costs a translated guest a login.
        std::thread::sleep(LOOK);
    }
}

/// Whether no rollout is in progress, and all three nodes are blessed, with that version if one is named.
pub fn ready(state: &Value, version: Option<&str>) -> bool {
    let state = &state["state"];
    let nodes = state["nodes"].as_object();
    let right = |node: &Value| node["blessed"] == true && version.is_none_or(|version| node["running"] == version);
    state["rollout"].is_null() && nodes.is_some_and(|nodes| nodes.len() == 3 && nodes.values().all(right))
}

/// How many nodes run that version, blessed.
fn running(state: &Value, version: &str) -> usize {
    let nodes = state["state"]["nodes"].as_object().into_iter().flat_map(|nodes| nodes.values());
    nodes.filter(|node| node["running"] == version && node["blessed"] == true).count()
}

/// Uploads a bundle to the first machine, by ssh, and returns the bytes that were moved, and all of it.
///
/// # Errors
/// When it is refused, with the reason.
pub fn upload(trio: &Trio, bundle: &Path) -> Result<(u64, u64)> {
    let machine = &trio.machines[0];
    let ssh = trio.ssh_words()?;
    let program = tools::build_directory(&tools::repository()?).join("programs/trilith");
    let mut command = Command::new(program);
    command.args(["upgrade", "upload", "--to"]).arg(format!("admin@{}", machine.plan.address())).arg(bundle);
    let output = command.env("TRILITH_SSH", ssh).output().context("cannot start trilith")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "upload: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    let numbers: Vec<u64> =
        said.split(|char: char| !char.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    match numbers[..] {
        [.., all, moved] => Ok((moved.min(all), moved.max(all))),
        _ => bail!("upload says no numbers: {said}"),
    }
}

/// Starts a rollout at the first node that takes the order.
///
/// # Errors
/// When it is refused, with the reason.
pub fn start(trio: &Trio, version: &str) -> Result<()> {
    order(trio, &["start", version])
}

fn order(trio: &Trio, words: &[&str]) -> Result<()> {
    let command = [&["trilith", "upgrade"], words, &["--drain", DRAIN]].concat();
    let output = trio.ssh(&trio.machines[0], &command)?;
    ensure!(output.status.success(), "upgrade {}: {}", words[0], String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// The state of the set as one node has it.
///
/// # Errors
/// When it does not answer.
pub fn shown(trio: &Trio, machine: &Machine) -> Result<Value> {
    let output = trio.ssh(machine, &["trilith", "upgrade", "status", "--json"])?;
    ensure!(output.status.success(), "{}: {}", machine.name(), String::from_utf8_lossy(&output.stderr).trim());
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Clients of every kind.
pub struct Load {
    steady: Steady,
    busy: KeepAlive,
    slow: KeepAlive,
    streams: Streams,
    downloads: Transfers,
    lasting: Option<KeepAlive>,
    from_ns: u64,
}

impl Load {
    /// Starts them all, and so many TCP connections that are used all the time and outlive every drain: its node then takes [`DRAIN`]
    /// to leave.
    ///
    /// # Errors
    /// When a client cannot be started.
    pub fn start(trio: &Trio, lasting: usize) -> Result<Load> {
        let netns = Some(trio.network.client.path());
        let target = SocketAddr::new(VIP.into(), 80);
        // Translated guests on a busy host may be slow; they may not fail.
        let timeout = Duration::from_secs(20);
        let keep = |connections, pause| {
            let options =
                KeepAliveOptions { netns: netns.clone(), connections, pause, timeout, ..KeepAliveOptions::new(target) };
            KeepAlive::start(options)
        };
        let lasting = KeepAliveOptions {
            netns: netns.clone(),
            connections: lasting,
            echo: true,
            pause: Duration::from_secs(10),
            timeout,
            ..KeepAliveOptions::new(SocketAddr::new(VIP.into(), ECHO_PORT))
        };
        let steady =
            SteadyOptions { netns: netns.clone(), rate: 5, timeout, prompt: PROMPT, ..SteadyOptions::new(target) };
        let downloads = TransfersOptions {
            netns: netns.clone(),
            // One from each node's service at any time, of 20 s each, the last half of which lies in the kernel of the node that carries it.
            transfers: 3,
            bytes: 5 << 19,
            bytes_per_s: 128 << 10,
            timeout,
            ..TransfersOptions::new(target)
        };
        let streams = StreamsOptions {
            netns: netns.clone(),
            target,
            connections: 5,
            streams: 4,
            pause: Duration::from_secs(4),
            timeout,
        };
        Ok(Load {
            steady: Steady::start(steady)?,
            busy: keep(10, Duration::from_secs(1))?,
            slow: keep(100, Duration::from_secs(20))?,
            streams: Streams::start(streams)?,
            downloads: Transfers::start(downloads)?,
            lasting: (lasting.connections > 0).then(|| KeepAlive::start(lasting)).transpose()?,
            from_ns: now_ns(),
        })
    }

    /// What failed within that window, as so many seconds ago.
    fn say_failures(&self, window: Window, now_ns: u64) {
        for (who, failures) in [
            ("one connection a request", self.steady.report(window).failures),
            ("kept", self.busy.report(window).failures),
            ("kept, seldom used", self.slow.report(window).failures),
            ("streams", self.streams.report(window).failures),
            ("downloads", self.downloads.report(window).failures),
            ("TCP", self.lasting.as_ref().map(|lasting| lasting.report(window).failures).unwrap_or_default()),
        ] {
            if !failures.is_empty() {
                let ago = Duration::from_nanos(now_ns - window.from_ns).as_secs();
                say(&format!("{who}, {ago} s ago: {failures:?}"));
            }
        }
    }

    /// Ends them, and says what they saw.
    pub fn finish(self) -> Seen {
        let until_ns = now_ns();
        let window = Window::new(self.from_ns, until_ns);
        for from_ns in (self.from_ns..until_ns).step_by(PIECE.as_nanos() as usize) {
            self.say_failures(Window::new(from_ns, from_ns + PIECE.as_nanos() as u64 - 1), until_ns);
        }
        let (steady, streams) = (self.steady.report(window), self.streams.report(window));
        let (busy, slow) = (self.busy.report(window), self.slow.report(window));
        let lasting = self.lasting.as_ref().map(|lasting| lasting.report(window));
        let downloads = self.downloads.report(window);
        let steady_failed = steady.failures.values().sum::<u64>();
        let kept = || [&busy, &slow].into_iter().chain(&lasting);
        Seen {
            requests: steady.ok + steady_failed + streams.requests + kept().map(|kept| kept.requests).sum::<u64>(),
            failed: steady_failed
                + streams.failed
                + downloads.failed
                + kept().map(|kept| kept.failed + kept.connect_failures).sum::<u64>(),
            broken: streams.broken + kept().map(|kept| kept.broken).sum::<u64>(),
            polite_closes: busy.polite_closes + slow.polite_closes + streams.polite_closes,
            closed_at_deadline: lasting.as_ref().map_or(0, |lasting| lasting.polite_closes),
            downloads: downloads.complete,
            longest_gap_ms: steady.longest_gap_ms,
            latency_p99_ms: steady.latency_ms.p99,
            latency_max_ms: kept().map(|kept| kept.latency_ms.max).fold(steady.latency_ms.max, f64::max),
        }
    }
}

/// How exactly the time of a failure is told.
const PIECE: Duration = Duration::from_secs(5);
/// Seconds for a node's connections to end: more than two downloads take (the first may have begun before its client could be told to
/// close), or one pause of the clients that ask seldom. Only TCP connections, which cannot be told, are there for longer.
const DRAIN: &str = "60";
/// Connections that outlive every drain: enough that each kind of end is seen, few beside the others.
const LASTING: usize = 10;
/// Where the set serves TCP that comes back.
const ECHO_PORT: u16 = 9000;
/// Who is answered later than this finds nobody there. A translated guest takes its time.
pub const PROMPT: Duration = HTTP_PATIENCE;
/// A gap that is too long, whatever the host is busy with: a planned hand-over takes milliseconds, but one lost SYN makes a second, and
/// translated guests stand still for some more while another one boots beside them. Ten are what a person calls an outage. What is
/// reported is the gap itself.
const MAX_GAP_MS: f64 = 10_000.0;
/// Three boots of translated machines one after the other, with drains and settling times.
pub const ROLLOUT_DEADLINE: Duration = Duration::from_secs(1500);
/// Between two looks at the set.
pub const LOOK: Duration = Duration::from_secs(10);
