//! `trilith upgrade` and `trilith config apply`: what the set decides, asked of the coordinator on this node.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt};
use trilith_bundle::{Manifest, Source, inspect, transfer};
use trilith_core::config;
use trilith_core::set::{Ask, Goal, Kind, Options, Pause, Release, Reply, Rollout, State, Step, Window};

use super::exit::Exit;
use super::{Said, examples, examples_with_bundles, fail, print, rollback, times};
use crate::coordinator::server::{Answer, Envelope, MAX_ANSWER, Offered, Request, Shown, VERSION};
use crate::{paths, slot};

#[derive(Debug, Subcommand)]
pub enum UpgradeCommand {
    /// Patch the whole set, one node after the other, while it serves.
    ///
    /// Every node fetches the bundle and checks it before any node is touched. Then, node by node, the owner of the VIPs last: VIPs
    /// are handed over, connections end in peace, the machine reboots into the new version, and the next node follows once the
    /// others have seen this one serve. A version that does not serve is left by itself: the node goes back, the version is
    /// banned, and the rollout halts.
    #[command(after_long_help = examples_with_bundles(&[
        ("trilith upgrade start trilith-1.5.0.bundle", "Take the bundle in and begin."),
        ("trilith upgrade start 1.5.0 --window 02:00-04:00 --wait", "One that is in the set already, at night (UTC); stay and watch."),
        ("trilith upgrade start 1.5.0 --dry-run", "Only say what would happen."),
    ]))]
    Start {
        /// A bundle's file, or the version of one that is in the set, or SERVICE@VERSION. With --dry-run a file is not uploaded.
        bundle: String,
        #[command(flatten)]
        options: OptionArgs,
        #[command(flatten)]
        follow: FollowArgs,
    },
    /// Take a bundle into the set, without starting it.
    ///
    /// Only blocks that the node has not already are moved. An upload that was cut off goes on where it was.
    #[command(after_long_help = examples_with_bundles(&[
        ("trilith upgrade upload --to admin@node-b trilith-1.5.0.bundle", "From an administrator's machine, over SSH."),
    ]))]
    Upload {
        /// The bundle's file.
        file: PathBuf,
        /// Log in there by ssh(1) instead of asking this machine. TRILITH_SSH names another command than ssh.
        #[arg(long, value_name = "USER@HOST")]
        to: Option<String>,
    },
    /// The other end of `upload --to`.
    #[command(hide = true, after_long_help = examples_with_bundles(&[("ssh admin@node-b trilith upgrade receive", "What upload --to runs.")]))]
    Receive,
    /// Explain a bundle without trusting it.
    ///
    /// It shows whether a trusted key has signed the bundle, what this says of itself with its release notes, and whether its parts are
    /// whole. Whether the set would take it, trilith upgrade start --dry-run says.
    #[command(after_long_help = examples_with_bundles(&[
        ("trilith upgrade inspect --keys bundle.pub trilith-1.5.0.bundle", "Whether one of these keys has signed it, and what is in it."),
        ("trilith upgrade inspect trilith-1.5.0.bundle", "The same with this system's keys; where it has none, without a word on who signed it."),
    ]))]
    Inspect {
        /// The bundle's file.
        file: PathBuf,
        /// The file of public keys of which one must have signed it [default: this system's; where it has none, the signature is
        /// not checked].
        #[arg(long, value_name = "FILE")]
        keys: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show the rollout in progress, what the nodes run, and what is banned.
    #[command(after_long_help = examples(&[("trilith upgrade status --wait", "Watch it to its end.")]))]
    Status {
        /// Show every change until the rollout has ended.
        #[arg(long)]
        wait: bool,
        /// Print JSON; with --wait a line for every change.
        #[arg(long)]
        json: bool,
    },
    /// Hold the rollout: the node whose turn it is goes back into service if it still can.
    #[command(after_long_help = examples(&[("trilith upgrade pause", "No further node is touched.")]))]
    Pause,
    /// Go on with a rollout that is paused or has halted.
    #[command(after_long_help = examples(&[("trilith upgrade resume", "What failed is tried again; a version that is banned needs unban first.")]))]
    Resume,
    /// Take the rollout back: nodes that have the new version return to the old one, one at a time.
    #[command(after_long_help = examples(&[("trilith upgrade abort", "Return to the old version.")]))]
    Abort,
    /// Return all nodes to the version that they ran before.
    ///
    /// It is in the other slot of every node, unless another one was staged there since; then its bundle must be in the set. What was
    /// staged and never ran is not gone to. It is a rollout as any other: the nodes go back one after the other, while the set serves.
    #[command(after_long_help = examples(&[
        ("trilith upgrade rollback --dry-run", "Only say where it would go."),
        ("trilith upgrade rollback --wait", "Go there; stay and watch."),
    ]))]
    Rollback {
        #[command(flatten)]
        options: OptionArgs,
        #[command(flatten)]
        follow: FollowArgs,
    },
    /// Show the rollouts of the past, with their reasons.
    #[command(after_long_help = examples(&[("trilith upgrade history", "What was done, when and why.")]))]
    History {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Forget a bundle; all nodes delete their copies.
    #[command(after_long_help = examples(&[("trilith upgrade remove 1.4.0", "Make room.")]))]
    Remove {
        /// VERSION or SERVICE@VERSION.
        release: Release,
    },
    /// Let a banned version be tried again.
    #[command(after_long_help = examples(&[("trilith upgrade unban 1.5.0", "What it failed of is mended.")]))]
    Unban {
        /// VERSION or SERVICE@VERSION.
        release: Release,
    },
}

/// How a rollout that is begun is to be looked at.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct FollowArgs {
    /// Say what would happen, and what speaks against it.
    #[arg(long)]
    dry_run: bool,
    /// Stay until it has ended, and show how it goes on.
    #[arg(long)]
    wait: bool,
    /// Print JSON on one line; with --wait a line for every change.
    #[arg(long)]
    json: bool,
}

/// How a rollout is to be done.
#[derive(Clone, Debug, Default, Args)]
pub struct OptionArgs {
    /// How long connections may live on once their node is drained, such as 90s, 5m or 300 (seconds) [default: the services'
    /// drain_deadline].
    #[arg(long, value_name = "DURATION", value_parser = times::seconds::<0>)]
    drain: Option<u32>,
    /// Take no node out of service before this moment of UTC, such as 2026-11-22T02:00:00Z, or in seconds since 1970 (date
    /// --date='02:00 tomorrow' +%s).
    #[arg(long, value_name = "TIME", value_parser = times::moment)]
    at: Option<u64>,
    /// Take nodes out of service only at this time of the day, in UTC.
    #[arg(long, value_name = "HH:MM-HH:MM", value_parser = times::window)]
    window: Option<Window>,
    /// Also when service suffers: fewer than three nodes, or nodes that do not serve anyway.
    #[arg(long)]
    force: bool,
}

impl From<OptionArgs> for Options {
    fn from(args: OptionArgs) -> Options {
        let OptionArgs { drain, at, window, force } = args;
        Options { drain_s: drain, not_before: at, window, force, confirm_within_s: None }
    }
}

/// Carries a command out.
pub fn upgrade(command: UpgradeCommand) -> Exit {
    let result = match command {
        UpgradeCommand::Start { bundle, options, follow } => start(&bundle, options.into(), follow),
        UpgradeCommand::Upload { file, to } => upload(&file, to.as_deref()).and_then(done),
        UpgradeCommand::Receive => receive(),
        UpgradeCommand::Inspect { file, keys, json } => return explain(&file, keys.as_deref(), json),
        UpgradeCommand::Status { wait: false, json } => show().and_then(|shown| {
            say(&if json { to_json(&shown, true)? } else { words(&shown) });
            Ok(())
        }),
        UpgradeCommand::Status { wait: true, json } => watch(json, None),
        UpgradeCommand::Pause => {
            current().and_then(|rollout| propose(Ask::Pause { rollout: rollout.id, why: Pause::Operator }))
        }
        UpgradeCommand::Resume => current().and_then(|rollout| propose(Ask::Resume { rollout: rollout.id })),
        UpgradeCommand::Abort => current()
            .and_then(|rollout| propose(Ask::Abort { rollout: rollout.id, reason: "an operator wants it".to_owned() })),
        UpgradeCommand::Rollback { options, follow } => show().and_then(|shown| {
            let version = rollback::target(&shown.state).map_err(|text| Fault { text, exit: Exit::Failed })?;
            begin(Goal::System { version }, options.into(), None, follow)
        }),
        UpgradeCommand::History { json } => history(json),
        UpgradeCommand::Remove { release } => propose(Ask::RemoveBundle { release }),
        UpgradeCommand::Unban { release } => propose(Ask::Unban { release }),
    };
    result.map_or_else(Fault::end, |()| Exit::Ok)
}

/// Brings a document to all nodes.
pub fn apply(file: &Path, confirm_within: Option<u32>, force: bool, follow: FollowArgs) -> Exit {
    let result = || {
        let mut text = String::new();
        let read = if file == Path::new("-") {
            io::stdin().read_to_string(&mut text)
        } else {
            File::open(file).and_then(|mut file| file.read_to_string(&mut text))
        };
        read.map_err(|error| Fault::configuration(format!("{}: {error}", file.display())))?;
        let new = config::parse(&text, &file.display().to_string())
            .map_err(|error| Fault::configuration(error.to_string()))?;
        let shown = show()?;
        let good = &shown.state.config.good;
        let old = config::parse(&good.text, "the configuration in force")
            .map_err(|error| Fault::configuration(error.to_string()))?;
        let nodes = |settings: &config::Settings| {
            settings.nodes.iter().map(|node| (node.name.clone(), node.address)).collect::<Vec<_>>()
        };
        if nodes(&new) != nodes(&old) || new.set.name != old.set.name || new.set.peer_port != old.set.peer_port {
            return Err(Fault::configuration(
                "the nodes' names and addresses, the set's name and its peer_port can't be changed while the set runs"
                    .to_owned(),
            ));
        }
        if good.text == text {
            return tell("that is the configuration in force", follow.json);
        }
        if !follow.json {
            say(&difference(&good.text, &text));
        }
        let goal = Goal::Config { base: good.version, text };
        let options = Options { confirm_within_s: confirm_within, force, ..Options::default() };
        begin(goal, options, None, follow)
    };
    result().map_or_else(Fault::end, |()| Exit::Ok)
}

/// Confirms a document on trial.
pub fn confirm() -> Exit {
    let result = current().and_then(|rollout| propose(Ask::Confirm { rollout: rollout.id }));
    result.map_or_else(Fault::end, |()| Exit::Ok)
}

/// Prints the document in force.
pub fn show_document() -> Exit {
    show().map_or_else(Fault::end, |shown| print(&shown.state.config.good.text, Exit::Ok))
}

/// Removes the old identity of a node whose disk is lost.
pub fn replace(node: String) -> Exit {
    ask(Request::Replace { node }).and_then(done).map_or_else(Fault::end, |()| Exit::Ok)
}

/// Makes this node's state the one that counts.
pub fn recover() -> Exit {
    ask(Request::Recover).and_then(done).map_or_else(Fault::end, |()| Exit::Ok)
}

/// The release that an operator means, by its name or by the file of its bundle; the file's word is not checked.
pub(super) fn release(bundle: &str) -> Result<Release, Fault> {
    if let Ok(release) = bundle.parse() {
        return Ok(release);
    }
    Ok(manifest(&Source::open(Path::new(bundle))?)?.release())
}

fn manifest(source: &Source) -> Result<Manifest, Fault> {
    Ok(Manifest::parse(source.manifest()).map_err(trilith_bundle::Failure::Refused)?)
}

/// What the coordinator has to know of a bundle's file to say what would become of it. What is damaged in it shows here already.
fn offer(file: &Path) -> Result<Offered, Fault> {
    let source = Source::open(file)?;
    source.check(&manifest(&source)?)?;
    Ok(Offered { manifest: source.manifest().to_vec(), signature: source.signature().to_vec() })
}

fn start(bundle: &str, options: Options, follow: FollowArgs) -> Result<(), Fault> {
    let release = release(bundle)?;
    let offered = match bundle.parse::<Release>() {
        Ok(_) => None,
        Err(_) if follow.dry_run => Some(offer(Path::new(bundle))?),
        Err(_) => {
            let taken = upload(Path::new(bundle), None)?;
            if !follow.json {
                done(taken)?;
            }
            None
        }
    };
    let goal = match release {
        Release { service: None, version } => Goal::System { version },
        Release { service: Some(name), version } => Goal::Service { name, version },
    };
    begin(goal, options, offered, follow)
}

/// `offered`: a bundle that the set is only asked about.
fn begin(goal: Goal, options: Options, offered: Option<Offered>, follow: FollowArgs) -> Result<(), Fault> {
    let asked = Request::Plan { goal: goal.clone(), options: options.clone(), bundle: offered };
    let Answer::Planned { steps, objections } = ask(asked)? else {
        return Err(Fault::broken());
    };
    if follow.dry_run {
        say(&planned(&steps, &objections, follow.json)?);
    }
    if !objections.is_empty() {
        return Err(Fault { text: objections.join("\n"), exit: Exit::Failed });
    }
    if follow.dry_run {
        return Ok(());
    }
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| Fault { text: error.to_string(), exit: Exit::Failed })?;
    let token = bytes.map(|byte| format!("{byte:02x}")).concat();
    match ask(Request::Propose(Ask::Start { token, goal, options }))? {
        Answer::Done { reply: Some(Reply::Started { rollout, .. }), .. } if !follow.wait => {
            say(&begun(rollout, follow.json)?);
            Ok(())
        }
        Answer::Done { reply: Some(Reply::Started { rollout, .. }), .. } => watch(follow.json, Some(rollout)),
        other => done(other),
    }
}

/// What would happen; for people without what speaks against it, which goes to stderr.
fn planned(steps: &[String], objections: &[String], json: bool) -> Result<String, Fault> {
    #[derive(Serialize)]
    struct Planned<'t> {
        steps: &'t [String],
        objections: &'t [String],
    }
    if json { to_json(&Planned { steps, objections }, false) } else { Ok(steps.join("\n")) }
}

fn begun(rollout: u64, json: bool) -> Result<String, Fault> {
    #[derive(Serialize)]
    struct Begun<'t> {
        #[serde(flatten)]
        said: Said<'t>,
        rollout: u64,
    }
    let text = format!("rollout {rollout} has begun: trilith upgrade status");
    if json { to_json(&Begun { said: Said { result: "done", text: &text }, rollout }, false) } else { Ok(text) }
}

fn propose(wanted: Ask) -> Result<(), Fault> {
    ask(Request::Propose(wanted)).and_then(done)
}

fn done(answer: Answer) -> Result<(), Fault> {
    match answer {
        Answer::Done { reply: Some(Reply::Already), .. } => say("it was so already"),
        Answer::Done { text, .. } => say(&text),
        _ => return Err(Fault::broken()),
    }
    Ok(())
}

fn current() -> Result<Rollout, Fault> {
    show()?.state.rollout.ok_or_else(|| Fault { text: "no rollout is in progress".to_owned(), exit: Exit::Failed })
}

fn show() -> Result<Shown, Fault> {
    match ask(Request::Show)? {
        Answer::Shown(shown) => Ok(*shown),
        _ => Err(Fault::broken()),
    }
}

/// Shows every change until the rollout has ended. Fails when it ended otherwise than it was to.
fn watch(json: bool, mut id: Option<u64>) -> Result<(), Fault> {
    let mut last = String::new();
    let mut told = 0;
    let mut warned = false;
    let mut heard = Instant::now();
    loop {
        // The coordinator starts anew with a new document: a moment without an answer is no end.
        let shown = match show() {
            Ok(shown) => shown,
            Err(Fault { exit: Exit::Unreachable, .. }) if id.is_some() && heard.elapsed() < SILENCE => {
                std::thread::sleep(LOOK);
                continue;
            }
            Err(fault) => return Err(fault),
        };
        let state = &shown.state;
        match &state.rollout {
            Some(rollout) => {
                (id, heard) = (Some(rollout.id), Instant::now());
                let line = if json {
                    to_json(rollout, false)?
                } else {
                    rollout.notes.iter().skip(told).map(|note| note.text.clone()).collect::<Vec<_>>().join("\n")
                };
                if !line.is_empty() && line != last {
                    say(&line);
                }
                told = rollout.notes.len();
                last = line;
                if !warned && restarts(rollout, &shown.node) {
                    warned = true;
                    // Without stderr there is nobody left to tell.
                    let _ = writeln!(io::stderr(), "trilith: {RESTARTS}");
                }
                if let trilith_core::set::Hold::Halted { .. } = rollout.hold {
                    return Err(Fault {
                        text: format!("rollout {} is {}", rollout.id, rollout.hold),
                        exit: Exit::Failed,
                    });
                }
            }
            None => {
                if id.is_some_and(|id| state.rollouts < id) {
                    if heard.elapsed() >= SILENCE {
                        let text = "this node does not hear of the rollout; ask another one: trilith upgrade status"
                            .to_owned();
                        return Err(Fault { text, exit: Exit::TimedOut });
                    }
                    // This node has not heard yet that it has begun.
                    std::thread::sleep(LOOK);
                    continue;
                }
                let past = state.history.iter().rev().find(|past| id.is_none_or(|id| past.id == id));
                let Some(past) = past else { return Ok(()) };
                let text = if json {
                    to_json(past, false)?
                } else {
                    format!("rollout {} of {}: {}", past.id, past.kind, past.outcome)
                };
                say(&text);
                let done = past.outcome == trilith_core::set::Outcome::Done;
                return if done { Ok(()) } else { Err(Fault { text: past.outcome.to_string(), exit: Exit::Failed }) };
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// Whether that node is about to restart, and with it whoever watches there: by then it is too late to say so.
fn restarts(rollout: &Rollout, node: &str) -> bool {
    matches!(rollout.kind, Kind::System { .. }) && matches!(rollout.step_of(node), Some(Step::Draining | Step::Acting))
}

fn history(json: bool) -> Result<(), Fault> {
    let shown = show()?;
    if json {
        say(&to_json(&shown.state.history, true)?);
        return Ok(());
    }
    for past in &shown.state.history {
        say(&format!("rollout {} of {}: {}", past.id, past.kind, past.outcome));
        past.notes.iter().for_each(|note| {
            say(&format!(
                "  {}{}",
                note.utc.map_or(String::new(), |utc| format!("{} ", trilith_bundle::utc::Utc(utc))),
                note.text
            ))
        });
    }
    if shown.state.history.is_empty() {
        say("no rollout has ended yet");
    }
    Ok(())
}

/// The state for people.
fn words(shown: &Shown) -> String {
    let State { rollout, nodes, bundles, bans, config, .. } = &shown.state;
    let mut lines: Vec<String> = shown.alarms.iter().map(|alarm| format!("! {alarm}")).collect();
    match rollout {
        Some(rollout) => {
            lines.push(format!("rollout {} of {}: {}, {}", rollout.id, rollout.kind, rollout.phase, rollout.hold));
            lines.extend(
                rollout.turn.as_ref().map(|turn| format!("  it is the turn of node {}: {}", turn.node, turn.step)),
            );
            lines.extend(rollout.back.as_ref().map(|why| format!("  it goes back: {why}")));
            lines.extend(shown.waits.as_ref().map(|why| format!("  it waits: {why}")));
        }
        None => lines.push("no rollout is in progress".to_owned()),
    }
    lines.push(format!("coordinator: {}", shown.leader.as_deref().unwrap_or("none, too few nodes answer")));
    if !shown.silent.is_empty() {
        lines.push(format!("no coordinator answers on: {}", shown.silent.join(", ")));
    }
    lines.push(format!("configuration {}", config.good.version));
    for (name, node) in nodes {
        let part = rollout.as_ref().and_then(|rollout| rollout.nodes.get(name));
        let part = part.map_or("", |part| {
            if part.new {
                ", done"
            } else if part.staged {
                ", staged"
            } else {
                ", waits"
            }
        });
        let blessed = if node.blessed { "" } else { " on trial" };
        let slot = if node.slot.is_empty() { String::new() } else { format!(", slot {}", node.slot) };
        let other = node.other.map_or(String::new(), |other| format!(", {other} in the other"));
        lines.push(format!("node {name}: {}{blessed}{slot}{other}, configuration {}{part}", node.running, node.config));
        lines.extend(
            node.fallback
                .as_ref()
                .map(|fallback| format!("  it went back from {}: {}", fallback.version, fallback.reason)),
        );
    }
    for (release, bundle) in bundles {
        let held = bundle.held_by.iter().cloned().collect::<Vec<_>>().join(", ");
        lines.push(format!("bundle {release}, on {held}: {}", bundle.summary));
    }
    lines.extend(
        bans.iter().map(|(release, ban)| format!("banned: {release}, it failed on node {}: {}", ban.node, ban.reason)),
    );
    lines.join("\n")
}

/// Lines that went and came, as diff(1) marks them. A document is short, so what is common at both ends is all that is looked for.
fn difference(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let head = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(|(old, new)| old == new).count();
    let gone = old[head..old.len() - tail].iter().map(|line| format!("- {line}"));
    let came = new[head..new.len() - tail].iter().map(|line| format!("+ {line}"));
    gone.chain(came).collect::<Vec<_>>().join("\n")
}

fn explain(file: &Path, keys: Option<&Path>, json: bool) -> Exit {
    let keys = match keys {
        Some(path) => match std::fs::read_to_string(path)
            .map_err(|error| error.to_string())
            .and_then(|text| trilith_bundle::Keys::parse(&text))
        {
            Ok(keys) => Some(keys),
            Err(why) => return fail(Exit::Configuration, &format!("{}: {why}", path.display())),
        },
        None => slot::keys().ok(),
    };
    match inspect::inspect(file, keys.as_ref(), None) {
        Ok(report) => {
            let text =
                if json { serde_json::to_string_pretty(&report).unwrap_or_default() } else { report.to_string() };
            let code = report.exit_code();
            print(&format!("{}\n", text.trim_end()), if code == 0 { Exit::Ok } else { Exit::Code(code) })
        }
        Err(failure) => Fault::from(failure).end(),
    }
}

/// Sends a bundle to the coordinator on this node, or by ssh to another one.
fn upload(file: &Path, to: Option<&str>) -> Result<Answer, Fault> {
    let source = Source::open(file)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Fault::local)?;
    runtime.block_on(async {
        match to {
            None => {
                let stream = tokio::net::UnixStream::connect(paths::COORDINATOR_SOCKET)
                    .await
                    .map_err(|error| unreachable(&error))?;
                send(stream, source).await
            }
            Some(host) => {
                let ssh = std::env::var("TRILITH_SSH").unwrap_or_else(|_| "ssh".to_owned());
                let mut words = ssh.split_whitespace();
                let mut command = tokio::process::Command::new(words.next().unwrap_or("ssh"));
                command
                    .args(words)
                    .args([host, "trilith", "upgrade", "receive"])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped());
                let mut child = command.spawn().map_err(Fault::local)?;
                let (Some(input), Some(output)) = (child.stdout.take(), child.stdin.take()) else {
                    return Err(Fault::broken());
                };
                let answer = send(tokio::io::join(input, output), source).await;
                let status = child.wait().await.map_err(Fault::local)?;
                match answer {
                    // It has told why itself.
                    Err(Fault { exit: Exit::Unreachable, .. }) if !status.success() => Err(Fault {
                        text: format!("{ssh} {host} trilith upgrade receive: {status}"),
                        exit: Exit::Unreachable,
                    }),
                    answer => answer,
                }
            }
        }
    })
}

async fn send(stream: impl AsyncRead + AsyncWrite + Unpin, source: Source) -> Result<Answer, Fault> {
    let mut stream = tokio::io::BufReader::new(stream);
    stream.write_all(&line_of(Request::Upload)?).await.map_err(Fault::local)?;
    stream.flush().await.map_err(Fault::local)?;
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await.map_err(Fault::local)?;
    read_answer(&line)?;
    let mut source = Some(source);
    let mut shown = Gauge::default();
    let open = |_: Option<&Release>| {
        source.take().ok_or(trilith_bundle::Failure::Protocol { what: "a second bundle is asked for".to_owned() })
    };
    transfer::send(&mut stream, open, |progress| shown.tell(progress.moved, progress.total)).await?;
    line.clear();
    stream.read_until(b'\n', &mut line).await.map_err(Fault::local)?;
    read_answer(&line)
}

/// Progress on a terminal.
#[derive(Default)]
struct Gauge(u64);

impl Gauge {
    fn tell(&mut self, moved: u64, total: u64) {
        if total > 0 && io::stderr().is_terminal() && (moved - self.0.min(moved) > 1 << 19 || moved == total) {
            self.0 = moved;
            eprint!("\r{} of {} KiB", moved >> 10, total >> 10);
            if moved >= total {
                eprintln!();
            }
        }
    }
}

/// Joins the coordinator's socket with this process's input and output: ssh(1) is at the other end of these.
fn receive() -> Result<(), Fault> {
    let stream = UnixStream::connect(paths::COORDINATOR_SOCKET).map_err(|error| unreachable(&error))?;
    let mut up = stream.try_clone().map_err(Fault::local)?;
    std::thread::spawn(move || {
        // An input that ends early ends the transfer; the other side says why.
        let _ = io::copy(&mut io::stdin().lock(), &mut up);
        let _ = up.shutdown(std::net::Shutdown::Write);
    });
    let (mut down, mut out) = (stream, io::stdout().lock());
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = down.read(&mut buffer).map_err(Fault::local)?;
        if count == 0 {
            return Ok(());
        }
        out.write_all(&buffer[..count]).and_then(|()| out.flush()).map_err(Fault::local)?;
    }
}

fn ask(request: Request) -> Result<Answer, Fault> {
    let stream = UnixStream::connect(paths::COORDINATOR_SOCKET).map_err(|error| unreachable(&error))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(Fault::local)?;
    (&stream).write_all(&line_of(request)?).map_err(Fault::local)?;
    let mut line = Vec::new();
    BufReader::new(&stream).take(MAX_ANSWER).read_until(b'\n', &mut line).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Fault {
            text: "the coordinator did not answer in time: what was asked may yet happen".to_owned(),
            exit: Exit::TimedOut,
        },
        _ => Fault::local(error),
    })?;
    read_answer(&line)
}

fn line_of(request: Request) -> Result<Vec<u8>, Fault> {
    let mut line = serde_json::to_vec(&Envelope { version: VERSION, request }).map_err(|_| Fault::broken())?;
    line.push(b'\n');
    Ok(line)
}

fn read_answer(line: &[u8]) -> Result<Answer, Fault> {
    if line.is_empty() {
        return Err(Fault {
            text: "the coordinator has ended before it answered: ask again".to_owned(),
            exit: Exit::Unreachable,
        });
    }
    match serde_json::from_slice(line).map_err(|_| Fault::broken())? {
        Answer::Refused { text, code } => Err(Fault { text, exit: Exit::Code(code) }),
        answer => Ok(answer),
    }
}

fn unreachable(error: &io::Error) -> Fault {
    let text = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("{} may be opened by root and the group trilith-admin only", paths::COORDINATOR_SOCKET)
        }
        _ => {
            format!(
                "the coordinator is not running ({}: {error}): trilith status may say why",
                paths::COORDINATOR_SOCKET
            )
        }
    };
    Fault { text, exit: Exit::Unreachable }
}

fn tell(text: &str, json: bool) -> Result<(), Fault> {
    say(&if json { to_json(&Said { result: "done", text }, false)? } else { text.to_owned() });
    Ok(())
}

fn say(text: &str) {
    if !text.is_empty() {
        print(&format!("{text}\n"), Exit::Ok);
    }
}

fn to_json(value: &impl Serialize, pretty: bool) -> Result<String, Fault> {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    text.map_err(|_| Fault::broken())
}

/// Why a command failed.
pub(super) struct Fault {
    text: String,
    exit: Exit,
}

impl Fault {
    pub(super) fn end(self) -> Exit {
        fail(self.exit, &self.text)
    }

    fn configuration(text: String) -> Fault {
        Fault { text, exit: Exit::Configuration }
    }

    fn broken() -> Fault {
        Fault {
            text: "the coordinator's answer is not understood: is it of another version?".to_owned(),
            exit: Exit::Failed,
        }
    }

    fn local(error: io::Error) -> Fault {
        Fault { text: error.to_string(), exit: Exit::Failed }
    }
}

impl From<trilith_bundle::Failure> for Fault {
    fn from(failure: trilith_bundle::Failure) -> Fault {
        Fault { exit: Exit::Code(failure.exit_code()), text: failure.to_string() }
    }
}

const RESTARTS: &str = "this node restarts; follow on another node with: trilith upgrade status --wait";
/// How often a rollout is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a rollout is waited for of which this node hears nothing: longer than it takes to start anew.
const SILENCE: Duration = Duration::from_secs(600);
/// Longer than the set may take to decide.
const PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use trilith_bundle::make;
    use trilith_bundle::manifest::{SERVICE, SERVICE_BLOCKS};
    use trilith_core::set::{Hold, Phase, Turn};

    use super::*;

    #[test]
    fn the_nodes_whose_coordinators_are_silent_are_named() {
        let shown = |silent: &[&str]| Shown {
            node: "a".to_owned(),
            leader: Some("a".to_owned()),
            silent: silent.iter().map(|name| (*name).to_owned()).collect(),
            alarms: Vec::new(),
            waits: None,
            state: State::default(),
        };
        assert!(words(&shown(&["b", "c"])).contains("\nno coordinator answers on: b, c\n"));
        assert!(!words(&shown(&[])).contains("answers on"));
    }

    #[test]
    fn of_a_bundle_that_is_only_asked_about_no_more_than_its_signed_manifest_is_sent() {
        let manifest = include_str!("../coordinator/testdata/manifest.toml");
        let folder = std::env::temp_dir().join(format!("trilith-offer-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (raw, list, file) = (folder.join("raw"), folder.join("list"), folder.join("bundle"));
        let made = |content: &str| {
            std::fs::write(&raw, content).unwrap();
            let mut bytes = Vec::new();
            let parts = [(SERVICE_BLOCKS, list.clone()), (SERVICE, raw.clone())];
            make::write(&mut bytes, manifest.as_bytes(), b"signed", 0, &parts).unwrap();
            std::fs::write(&file, bytes).unwrap();
            offer(&file).map_err(|fault| fault.text)
        };
        std::fs::write(&raw, "portal\n").unwrap();
        std::fs::write(&list, make::list_of_blocks(&raw).unwrap()).unwrap();
        let offered = made("portal\n").unwrap();
        assert_eq!((offered.manifest, offered.signature), (manifest.into(), b"signed".into()));
        assert!(made("portal!").unwrap_err().starts_with("corrupted: service.raw"), "it is found here already");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_begun_or_planned_is_one_line_of_json_when_that_is_asked_for() {
        let (steps, objections) = (vec!["one".to_owned(), "two".to_owned()], vec!["no".to_owned()]);
        let line = |text: Result<String, Fault>| text.map_err(|fault| fault.text);
        assert_eq!(line(planned(&steps, &objections, false)), Ok("one\ntwo".to_owned()));
        let json = r#"{"steps":["one","two"],"objections":["no"]}"#;
        assert_eq!(line(planned(&steps, &objections, true)), Ok(json.to_owned()));
        let text = "rollout 7 has begun: trilith upgrade status";
        assert_eq!(line(begun(7, false)), Ok(text.to_owned()));
        assert_eq!(line(begun(7, true)), Ok(format!(r#"{{"result":"done","text":"{text}","rollout":7}}"#)));
    }

    #[test]
    fn who_watches_on_the_node_that_restarts_is_told_before() {
        let mut rollout = Rollout {
            id: 1,
            token: String::new(),
            kind: "0.2.0".parse().map(|version| Kind::System { version }).unwrap(),
            options: Options::default(),
            phase: Phase::Rolling,
            hold: Hold::Going,
            round: 0,
            back: None,
            nodes: [].into(),
            turn: None,
            notes: Vec::new(),
        };
        assert!(!restarts(&rollout, "a"));
        for (step, soon) in
            [(Step::Offered, false), (Step::Draining, true), (Step::Acting, true), (Step::Verifying, false)]
        {
            rollout.turn = Some(Turn { node: "a".to_owned(), step });
            assert_eq!(restarts(&rollout, "a"), soon, "{step}");
            assert!(!restarts(&rollout, "b"));
        }
        rollout.turn = Some(Turn { node: "a".to_owned(), step: Step::Acting });
        rollout.kind = Kind::Config { version: 2 };
        assert!(!restarts(&rollout, "a"), "only its supervisor");
    }

    #[test]
    fn a_difference_shows_what_went_and_what_came() {
        assert_eq!(difference("a\nb\nc\n", "a\nx\ny\nc\n"), "- b\n+ x\n+ y");
        assert_eq!(difference("a\n", "a\nb\n"), "+ b");
        assert_eq!(difference("a\n", "a\n"), "");
    }
}
