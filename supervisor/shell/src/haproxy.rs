//! HAProxy: its configuration on disk, what has loaded it, and the state of every node's backends in it.
//!
//! HAProxy is a unit of its own that outlives the supervisor, and systemd may start it anew at any moment. So nothing is
//! assumed of it: the file always says what is wanted, node states included, and whenever HAProxy is seen to run, [`Shell::sync`]
//! compares the mark of what it has loaded, reloads it if that is something else, and sets the states again.

mod answers;
mod certificate;
mod ends;
mod render;
mod socket;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use trilith_core::command::{BackendState, Command, Deed};
use trilith_core::config::{NodeId, Settings};
use trilith_core::event::Event;
use trilith_core::status::Flows;

pub use answers::add_alarms;
use certificate::{Copies, Install};
pub use certificate::{MAX_PEM, Pem};
use ends::Ends;
#[doc(hidden)]
pub use ends::parse_end;
pub use render::FRONT_PATH;
use socket::Failure;
pub use socket::Master;
#[doc(hidden)]
pub use socket::{alerts, parse_flows};

/// How many commands may wait.
const QUEUE: usize = 64;
/// How long `haproxy -c` may take; it takes 20 ms.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a HAProxy that has just started is tried…
const START_TRIES: u32 = 100;
/// …and after which pauses. There is nothing to wait for but the socket itself.
const START_PAUSE: Duration = Duration::from_millis(10);
/// One that does not listen by then, as on a slow machine, is looked for so often, [`LATE_PAUSE`] apart: a minute. It may have ended,
/// and is said to run again when it is started anew.
const AWAITED: u32 = 30;
/// A HAProxy that did not answer in time is brought up to date after so long: what it was busy with is over, or it is killed…
const LATE_PAUSE: Duration = Duration::from_secs(2);
/// …and one that refused it after so long: each try may cost it a worker.
const FAILED_PAUSE: Duration = Duration::from_secs(30);
/// How often HAProxy is asked until when its certificates hold, beside every load: in case that it did not tell.
const ENDS_EVERY: Duration = Duration::from_secs(3600);

/// The running shell.
pub struct Handle {
    /// Takes [`Command::Backend`].
    pub commands: mpsc::Sender<Command>,
    installs: mpsc::Sender<Install>,
    started: Arc<Notify>,
    problem: Arc<Mutex<Option<String>>>,
    ends: Arc<Mutex<Ends>>,
    master: Master,
}

impl Handle {
    /// To be called at every [`Event::Unit`] that says that HAProxy is active: it may be a new one that knows nothing yet.
    pub fn started(&self) {
        self.started.notify_one();
    }

    /// What HAProxy counts now, except for `relayed`.
    ///
    /// # Errors
    /// HAProxy does not run, or does not answer within a second.
    pub async fn flows(&self) -> anyhow::Result<Flows> {
        let flows = self.master.flows().await;
        flows.map_err(|failure| anyhow::anyhow!(failure.wrong().unwrap_or_else(|| "HAProxy does not run".to_owned())))
    }

    /// Puts a service's certificate, with chain and key (PEM), on this node, and in force where the configuration asks for it.
    ///
    /// # Errors
    /// One line: HAProxy refuses it, or the disk does not take it. Then what was there stays.
    pub async fn install(&self, service: String, pem: Pem) -> Result<String, String> {
        let (reply, answer) = oneshot::channel();
        let ended = |_| "the supervisor is ending".to_owned();
        self.installs.send(Install { service, pem, reply }).await.map_err(|_| ended(()))?;
        answer.await.map_err(|_| ended(()))?
    }

    /// What keeps HAProxy from running what the settings ask for, for `status`: one line. A HAProxy that starts, or loads just now
    /// what they ask for, is kept by nothing.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Certificates that end soon or have ended at `now`, in seconds of UTC since 1970, as alarms.
    pub fn ending(&self, now: u64) -> Vec<String> {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.iter().filter_map(|(service, end)| ends::alarm(service, *end, now)).collect()
    }
}

/// Writes and checks the configuration, brings a HAProxy that runs already up to date, and starts to take commands.
///
/// It does not start HAProxy. A configuration that HAProxy refuses does not replace the one on disk and is no error here,
/// because the node still has its part in the set: [`Handle::problem`] tells.
///
/// # Errors
/// The configuration cannot be written.
pub async fn start(settings: Arc<Settings>, me: NodeId, events: mpsc::Sender<Event>) -> anyhow::Result<Handle> {
    start_on(Installed::here(), settings, me, events).await
}

/// Where HAProxy is: on the node, or in the root tree that a test has at hand.
struct Installed {
    /// The program and its first arguments.
    program: Vec<String>,
    /// The root of its file system as this process sees it.
    root: PathBuf,
    /// [`crate::paths::HAPROXY_DIR`] as this process sees it.
    dir: PathBuf,
}

impl Installed {
    fn here() -> Installed {
        Installed::below("/".into(), vec!["/usr/sbin/haproxy".to_owned()])
    }

    fn below(root: PathBuf, program: Vec<String>) -> Installed {
        let dir = seen_from(&root, crate::paths::HAPROXY_DIR);
        Installed { program, root, dir }
    }
}

/// HAProxy's path as this process sees it.
fn seen_from(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

async fn start_on(
    installed: Installed,
    settings: Arc<Settings>,
    me: NodeId,
    events: mpsc::Sender<Event>,
) -> anyhow::Result<Handle> {
    let (commands, queue) = mpsc::channel(QUEUE);
    let (installs, installing) = mpsc::channel(1);
    let mut shell = Shell {
        mark: String::new(),
        copies: Copies::new(),
        master: Master::at(&installed.dir.join("master.sock")),
        installed,
        settings,
        me,
        states: BTreeMap::new(),
        refused: None,
        again: None,
        awaited: 0,
        problem: Arc::default(),
        ends: Arc::default(),
    };
    shell.adopt().await?;
    let started = Arc::new(Notify::new());
    let handle = Handle {
        commands,
        installs,
        started: Arc::clone(&started),
        problem: Arc::clone(&shell.problem),
        ends: Arc::clone(&shell.ends),
        master: shell.master.clone(),
    };
    tokio::spawn(shell.run(queue, installing, started, events));
    Ok(handle)
}

struct Shell {
    installed: Installed,
    settings: Arc<Settings>,
    me: NodeId,
    mark: String,
    /// The certificates that HAProxy reads.
    copies: Copies,
    master: Master,
    /// What the core wants; a node that it has not named is ready.
    states: BTreeMap<NodeId, BackendState>,
    /// Why `haproxy -c` refused the configuration; the file on disk is then an older one.
    refused: Option<String>,
    /// HAProxy was not brought up to date: it is tried again after so long.
    again: Option<Duration>,
    /// How often one that was said to run, but does not answer yet, is still tried again.
    awaited: u32,
    problem: Arc<Mutex<Option<String>>>,
    ends: Arc<Mutex<Ends>>,
}

impl Shell {
    async fn run(
        mut self,
        mut queue: mpsc::Receiver<Command>,
        mut installing: mpsc::Receiver<Install>,
        started: Arc<Notify>,
        events: mpsc::Sender<Event>,
    ) {
        let mut ask_ends = interval_at(Instant::now() + ENDS_EVERY, ENDS_EVERY);
        ask_ends.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // A HAProxy that has just started is brought up to date before it is told anything new.
                biased;
                () = started.notified() => {
                    self.awaited = AWAITED;
                    self.sync_started().await;
                }
                () = tokio::time::sleep(self.again.unwrap_or_default()), if self.again.is_some() => {
                    let result = self.sync().await;
                    self.synced(result);
                }
                command = queue.recv() => match command {
                    Some(Command::Backend { node, state }) => {
                        let result = self.set(node, state).await;
                        let done = Event::Done { deed: Deed::Backend(node), result };
                        if events.send(done).await.is_err() {
                            return;
                        }
                    }
                    Some(other) => tracing::error!(?other, "not a command for HAProxy"),
                    None => return,
                },
                Some(Install { service, pem, reply }) = installing.recv() => {
                    // Whoever asked may have gone.
                    _ = reply.send(self.install_certificate(&service, &pem).await);
                }
                _ = ask_ends.tick() => drop(tokio::spawn(self.asking_ends())),
            }
        }
    }

    /// Makes the settings those on disk and in a HAProxy that runs.
    async fn adopt(&mut self) -> anyhow::Result<()> {
        let (copies, missing) = match self.take_certificates() {
            Ok(copies) => (copies, None),
            Err(why) => (Copies::new(), Some(why)),
        };
        self.mark = render::mark(&self.settings, self.me, &copies);
        self.copies = copies;
        let candidate = self.write_candidate()?;
        // A HAProxy that runs it is the better judge, and costs no second process.
        let loaded = self.master.description().await;
        self.refused = match missing {
            Some(why) => Some(why),
            None if loaded == Ok(Some(self.description())) => None,
            None => self.check(CANDIDATE).await.err(),
        };
        match &self.refused {
            None => self.install(&candidate)?,
            Some(_) => fs::remove_file(&candidate).with_context(|| format!("cannot remove {}", candidate.display()))?,
        }
        self.tidy_certificates();
        match loaded {
            Err(Failure::NotRunning) => self.report(Ok(())),
            _ => self.sync_started().await,
        }
        Ok(())
    }

    /// [`Shell::sync`] with a HAProxy that is said to run: systemd says so a moment before its master listens.
    async fn sync_started(&mut self) {
        let mut result = self.sync().await;
        for _ in 0..START_TRIES {
            if result != Err(Failure::NotRunning) {
                break;
            }
            tokio::time::sleep(START_PAUSE).await;
            result = self.sync().await;
        }
        self.synced(result);
    }

    fn synced(&mut self, result: Result<(), Failure>) {
        let asks = result.is_ok() && self.refused.is_none();
        self.report(result);
        if asks {
            // Nothing that decides who serves waits for it.
            tokio::spawn(self.asking_ends());
        }
    }

    /// Brings a HAProxy that runs to the wanted configuration and states; one that does not run reads them when it starts.
    async fn sync(&self) -> Result<(), Failure> {
        let loaded = self.master.description().await?;
        if self.refused.is_none() && loaded != Some(self.description()) {
            self.master.reload().await?;
        }
        self.apply((0..).map(NodeId).take(self.settings.nodes.len())).await
    }

    fn report(&mut self, result: Result<(), Failure>) {
        self.again = match &result {
            // It has read the configuration already, and will not learn by itself what has changed since.
            Err(Failure::NotRunning) => {
                self.awaited = self.awaited.saturating_sub(1);
                (self.awaited > 0).then_some(LATE_PAUSE)
            }
            Err(Failure::Late(_)) => Some(LATE_PAUSE),
            Err(Failure::Failed(_)) if self.refused.is_none() => Some(FAILED_PAUSE),
            _ => None,
        };
        let problem = self.refused.clone().or(result.err().and_then(Failure::wrong));
        let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = problem.as_ref().filter(|_| *known != problem) {
            tracing::error!("HAProxy does not run what the settings ask for: {why}");
        }
        *known = problem;
    }

    async fn set(&mut self, node: NodeId, state: BackendState) -> Result<(), String> {
        if usize::from(node.0) >= self.settings.nodes.len() {
            return Err(format!("no node {} in the settings", node.0));
        }
        self.states.insert(node, state);
        if self.refused.is_none() {
            self.write_candidate()
                .and_then(|candidate| self.install(&candidate))
                .map_err(|error| format!("{error:#}"))?;
        }
        none_wrong(self.apply(std::iter::once(node)).await)
    }

    async fn apply(&self, nodes: impl Iterator<Item = NodeId>) -> Result<(), Failure> {
        let mut states = Vec::new();
        let mut ends = Vec::new();
        for id in nodes {
            let name = &self.settings.nodes[usize::from(id.0)].name;
            let state = self.states.get(&id).copied().unwrap_or(BackendState::Ready);
            let word = match state {
                BackendState::Ready => "ready",
                BackendState::Drain => "drain",
                BackendState::Down | BackendState::Gone => "maint",
            };
            for service in &self.settings.services {
                let server = format!("{}/{name}", render::backend(service));
                states.push(format!("set server {server} state {word}"));
                if state == BackendState::Gone {
                    // Nobody is there to end them; their clients would wait for a timeout of minutes.
                    ends.push(format!("shutdown sessions server {server}"));
                }
            }
        }
        self.master.run(&states).await?;
        self.master.run(&ends).await
    }

    fn description(&self) -> String {
        format!("trilith {}", self.mark)
    }

    /// Writes the configuration beside HAProxy's directory, whose owner, HAProxy, could put another thing in its place, before it is
    /// checked with the supervisor's privileges and after.
    fn write_candidate(&self) -> anyhow::Result<PathBuf> {
        let path = self.installed.dir.with_file_name(CANDIDATE);
        let text = render::render(&self.settings, self.me, &self.states, &self.copies, &self.mark);
        let write = || -> std::io::Result<()> {
            let mut file = fs::File::create(&path)?;
            // HAProxy reads it as another user, whatever the umask.
            file.set_permissions(fs::Permissions::from_mode(0o644))?;
            file.write_all(text.as_bytes())
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn install(&self, candidate: &PathBuf) -> anyhow::Result<()> {
        let target = self.installed.dir.with_file_name(CONFIG);
        fs::rename(candidate, &target)
            .with_context(|| format!("cannot move {} to {}", candidate.display(), target.display()))
    }

    /// Has HAProxy judge a configuration beside its directory.
    async fn check(&self, name: &str) -> Result<(), String> {
        let candidate = PathBuf::from(crate::paths::HAPROXY_DIR).with_file_name(name);
        let program = &self.installed.program;
        let output = tokio::process::Command::new(&program[0])
            .args(&program[1..])
            .args(["-c", "-f"])
            .arg(&candidate)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        match timeout(CHECK_TIMEOUT, output).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => Err(format!(
                "HAProxy refuses its configuration: {}",
                socket::alerts(&String::from_utf8_lossy(&output.stderr))
            )),
            Ok(Err(error)) => Err(format!("cannot run {}: {error}", program.join(" "))),
            Err(_) => Err(format!("{} -c did not end within {CHECK_TIMEOUT:?}", program.join(" "))),
        }
    }
}

/// The way to this node's HAProxy.
pub fn master() -> Master {
    Master::at(&PathBuf::from(crate::paths::HAPROXY_DIR).join("master.sock"))
}

/// What the HAProxy of this node counts, as it says it: `show stat` of its runtime API.
///
/// # Errors
/// One line that says why there is no answer.
pub async fn show_stat() -> Result<String, String> {
    let master = master();
    let absent = || "HAProxy does not run, or this user may not talk to it".to_owned();
    master.show_stat().await.map_err(|failure| failure.wrong().unwrap_or_else(absent))
}

/// Has a HAProxy that was asked to end go on: a new worker takes the listeners up, the old one ends with its connections. Where
/// none is ending there is nothing to do.
///
/// # Errors
/// One line that says why it does not.
pub async fn go_on() -> Result<(), String> {
    go_on_in(crate::paths::HAPROXY_DIR.as_ref()).await
}

async fn go_on_in(dir: &Path) -> Result<(), String> {
    let master = Master::at(&dir.join("master.sock"));
    let done = match master.is_ending().await {
        Ok(true) => master.reload().await,
        other => other.map(drop),
    };
    none_wrong(done)
}

fn none_wrong(result: Result<(), Failure>) -> Result<(), String> {
    result.err().and_then(Failure::wrong).map_or(Ok(()), Err)
}

/// Name of the configuration, beside HAProxy's directory.
const CONFIG: &str = "haproxy.cfg";
/// Name of the one that is not in force yet.
const CANDIDATE: &str = "haproxy.cfg.new";

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
