//! Units over D-Bus: their state as it changes, and starting or killing them. (org.freedesktop.systemd1(5).)
//!
//! systemd asks polkit only about senders that are neither root nor itself, so a root process needs no capability for any of
//! this, only the bus.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures_util::stream::{SelectAll, StreamExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use trilith_core::command::{Command, Deed};
use trilith_core::event::{Event, Unit};

use zbus::{
    Connection, DynamicType, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant, Variant, connection,
};

/// How many commands may wait.
const QUEUE: usize = 16;
/// How long systemd may take to answer: seconds while it reloads its units.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// The first wait before the bus is tried again after it was lost. Each further one is twice as long…
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// …up to this. It is tried for ever: without it this node cannot know whether it is fit.
const RETRY_LAST: Duration = Duration::from_secs(5);

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const STATE: &str = "ActiveState";
const ENTERED: &str = "ActiveEnterTimestampMonotonic";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// The running shell.
pub struct Handle {
    /// Takes [`Command::Start`] and [`Command::Restart`].
    pub commands: mpsc::Sender<Command>,
}

/// Connects to the bus and tells the state of each unit, now, whenever it changes, and after the bus was lost.
///
/// A unit that is told active twice has been started anew, unless the bus was lost. While there is no bus, nothing is told and
/// commands fail; the log says why.
pub fn start(units: &[(Unit, String)], events: mpsc::Sender<Event>) -> Handle {
    let (commands, queue) = mpsc::channel(QUEUE);
    tokio::spawn(run(units.to_vec(), queue, events));
    Handle { commands }
}

/// The core or the loop is gone: the shell ends as well.
struct Stopped;

async fn run(units: Vec<(Unit, String)>, mut queue: mpsc::Receiver<Command>, events: mpsc::Sender<Event>) {
    let mut wait = RETRY_FIRST;
    // A command that the loss of the bus interrupts is answered all the same.
    let mut pending = None;
    loop {
        let why = match connect().await {
            Ok(bus) => {
                wait = RETRY_FIRST;
                // Commands are carried out while signals keep coming, so neither waits for the other.
                tokio::select! {
                    why = listen(&bus, &units, &events) => match why {
                        Ok(why) => why,
                        Err(Stopped) => return,
                    },
                    Stopped = obey(&bus, &units, &mut queue, &mut pending, &events) => return,
                }
            }
            Err(error) => error,
        };
        let why = format!("no connection to systemd: {why}");
        tracing::warn!("{why}; trying again in {wait:?}");
        if let Some(deed) = pending.take()
            && events.send(Event::Done { deed, result: Err(why.clone()) }).await.is_err()
        {
            return;
        }
        let next_try = Instant::now() + wait;
        wait = (wait * 2).min(RETRY_LAST);
        loop {
            tokio::select! {
                () = sleep_until(next_try) => break,
                command = queue.recv() => {
                    let Some(command) = command else { return };
                    if let Some((_, deed)) = of_unit(&command)
                        && events.send(Event::Done { deed, result: Err(why.clone()) }).await.is_err()
                    {
                        return;
                    }
                }
            }
        }
    }
}

async fn connect() -> zbus::Result<Connection> {
    let connecting = connection::Builder::system().method_timeout(CALL_TIMEOUT).build();
    match timeout(CALL_TIMEOUT, connecting).await {
        Ok(result) => result,
        Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    }
}

/// Tells states until the connection is lost, and then why.
async fn listen(
    bus: &Connection,
    units: &[(Unit, String)],
    events: &mpsc::Sender<Event>,
) -> Result<zbus::Error, Stopped> {
    let mut changes = match subscribe(bus, units).await {
        Ok(changes) => changes,
        Err(error) => return Ok(error),
    };
    let mut teller = Teller { told: BTreeMap::new(), events };
    // Only now, so that no change falls between.
    for (unit, name) in units {
        match read_state(bus, name).await {
            Ok(since) => teller.tell(*unit, since).await?,
            Err(error) => return Ok(error),
        }
    }
    while let Some((unit, message)) = changes.next().await {
        match message {
            Ok(message) => {
                if let Some(since) = changed_state(&message) {
                    teller.tell(unit, since).await?;
                }
            }
            Err(error) => return Ok(error),
        }
    }
    Ok(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
}

type Changes = SelectAll<futures_util::stream::BoxStream<'static, (Unit, zbus::Result<Message>)>>;

/// Asks the bus for the signals of these units only, so that nothing else ever wakes this process.
async fn subscribe(bus: &Connection, units: &[(Unit, String)]) -> zbus::Result<Changes> {
    let mut changes = SelectAll::new();
    for (unit, name) in units {
        let path = unit_path(bus, name).await?;
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender(SYSTEMD)
            .path(path.into_inner())
            .interface(PROPERTIES)
            .member("PropertiesChanged")
            .arg(0, UNIT)
            .build()?;
        let unit = *unit;
        let stream = MessageStream::for_match_rule(rule, bus, None).await?;
        changes.push(stream.map(move |message| (unit, message)).boxed());
    }
    call(bus, MANAGER_PATH, MANAGER, "Subscribe", &()).await?;
    Ok(changes)
}

async fn read_state(bus: &Connection, name: &str) -> zbus::Result<ActiveSince> {
    let path = unit_path(bus, name).await?;
    let reply = call(bus, path.as_str(), PROPERTIES, "Get", &(UNIT, STATE)).await?;
    let state: OwnedVariant = reply.body().deserialize()?;
    let reply = call(bus, path.as_str(), PROPERTIES, "Get", &(UNIT, ENTERED)).await?;
    let entered: OwnedVariant = reply.body().deserialize()?;
    Ok(active_since(&String::try_from(state)?, u64::try_from(entered)?))
}

/// Where a unit is on the bus. It is there even when no file defines it, and stays there.
async fn unit_path(bus: &Connection, name: &str) -> zbus::Result<OwnedObjectPath> {
    call(bus, MANAGER_PATH, MANAGER, "LoadUnit", &(name,)).await?.body().deserialize()
}

/// The unit's state in a `PropertiesChanged`, if that is what it is about.
fn changed_state(message: &Message) -> Option<ActiveSince> {
    let body = message.body();
    let (_, changed, _): (&str, HashMap<&str, Variant<'_>>, Vec<&str>) = body.deserialize().ok()?;
    match (changed.get(STATE)?, changed.get(ENTERED)?) {
        (Variant::Str(state), Variant::U64(entered)) => Some(active_since(state, *entered)),
        _ => None,
    }
}

/// A unit's state: since when it is active, in microseconds of the monotonic clock, or that it is not.
type ActiveSince = Option<u64>;

fn active_since(state: &str, entered: u64) -> ActiveSince {
    // A reload (`reloading`, `refreshing`) interrupts nothing.
    matches!(state, "active" | "reloading" | "refreshing").then_some(entered)
}

/// Tells only what is new: systemd sends every property of a unit whenever one changes.
struct Teller<'a> {
    told: BTreeMap<Unit, ActiveSince>,
    events: &'a mpsc::Sender<Event>,
}

impl Teller<'_> {
    async fn tell(&mut self, unit: Unit, since: ActiveSince) -> Result<(), Stopped> {
        if self.told.insert(unit, since) == Some(since) {
            return Ok(());
        }
        self.events.send(Event::Unit { unit, active: since.is_some() }).await.map_err(|_| Stopped)
    }
}

/// Carries out commands until there will be no more. `pending` is the one that is not answered yet.
async fn obey(
    bus: &Connection,
    units: &[(Unit, String)],
    queue: &mut mpsc::Receiver<Command>,
    pending: &mut Option<Deed>,
    events: &mpsc::Sender<Event>,
) -> Stopped {
    while let Some(command) = queue.recv().await {
        let Some((unit, deed)) = of_unit(&command) else {
            tracing::error!(?command, "not a command for systemd");
            continue;
        };
        *pending = Some(deed);
        let result = match units.iter().find(|(known, _)| *known == unit) {
            None => Err(format!("no unit is known for {unit:?}")),
            Some((_, name)) => {
                let done = match deed {
                    Deed::Restart(_) => restart(bus, name).await,
                    _ => call(bus, MANAGER_PATH, MANAGER, "StartUnit", &(name, "replace")).await,
                };
                done.map(drop).map_err(|error| format!("cannot start {name}: {error}"))
            }
        };
        if events.send(Event::Done { deed, result }).await.is_err() {
            break;
        }
        *pending = None;
    }
    Stopped
}

fn of_unit(command: &Command) -> Option<(Unit, Deed)> {
    match *command {
        Command::Start(unit) => Some((unit, Deed::Start(unit))),
        Command::Restart(unit) => Some((unit, Deed::Restart(unit))),
        _ => None,
    }
}

/// Has systemd bring a target about that ends this machine's run, all units stopped in their order before.
///
/// # Errors
/// One line that says what systemd refused, or that it can't be reached.
pub async fn end_machine(target: &str) -> Result<(), String> {
    let done = async {
        let bus = connect().await?;
        call(&bus, MANAGER_PATH, MANAGER, "StartUnit", &(target, "replace-irreversibly")).await
    };
    done.await.map(drop).map_err(|error| format!("cannot start {target}: {error}"))
}

/// Starts a unit that does one thing, and waits for its end, at most `patience`.
///
/// # Errors
/// One line that names the unit and what is wrong.
pub async fn run_once(name: &str, patience: Duration) -> Result<(), String> {
    to_its_end(name, patience, async |bus| call(bus, MANAGER_PATH, MANAGER, "StartUnit", &(name, "replace")).await)
        .await
}

/// Runs a program as a unit of this name, which is gone at its end: outside of what this process may do itself. Waits for it, at
/// most `patience`. `words` are the program's path and its arguments.
///
/// # Errors
/// One line that names the unit and what is wrong.
pub async fn run_program(name: &str, words: &[&str], patience: Duration) -> Result<(), String> {
    let path = words.first().copied().unwrap_or_default();
    let properties = vec![
        ("Type", Variant::from("oneshot")),
        ("ExecStart", Variant::from(vec![(path, words.to_vec(), false)])),
        // One that failed would stand in the way of the next.
        ("CollectMode", Variant::from("inactive-or-failed")),
    ];
    let none: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
    let body = (name, "replace", properties, none);
    to_its_end(name, patience, async |bus| call(bus, MANAGER_PATH, MANAGER, "StartTransientUnit", &body).await).await
}

/// Has `order` start a unit, and waits for its end.
async fn to_its_end(
    name: &str,
    patience: Duration,
    order: impl AsyncFnOnce(&Connection) -> zbus::Result<Message>,
) -> Result<(), String> {
    let done = async {
        let bus = connect().await?;
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::Signal)
            .sender(SYSTEMD)
            .interface(MANAGER)
            .member("JobRemoved")
            .arg(2, name)
            .build()?;
        let mut removed = MessageStream::for_match_rule(rule, &bus, None).await?;
        call(&bus, MANAGER_PATH, MANAGER, "Subscribe", &()).await?;
        order(&bus).await?;
        let Some(message) = removed.next().await else {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        };
        let message = message?;
        let body = message.body();
        let (_, _, _, result): (u32, zbus::ObjectPath<'_>, &str, &str) = body.deserialize()?;
        Ok::<_, zbus::Error>(result.to_owned())
    };
    match timeout(patience, done).await {
        Ok(Ok(result)) if result == "done" => Ok(()),
        Ok(Ok(result)) => Err(format!("{name}: {result}; the node's logs say more")),
        Ok(Err(error)) => Err(format!("cannot start {name}: {error}")),
        Err(_) => Err(format!("{name} did not end within {} s; the node's logs say more", patience.as_secs())),
    }
}

/// Starts a unit anew, or starts it. Returns when systemd has taken the order, not when it is done.
///
/// # Errors
/// One line that names the unit and says what systemd refused.
pub async fn start_anew(name: &str) -> Result<(), String> {
    let done = async { call(&connect().await?, MANAGER_PATH, MANAGER, "RestartUnit", &(name, "replace")).await };
    done.await.map(drop).map_err(|error: zbus::Error| format!("cannot restart {name}: {error}"))
}

/// Sends a signal to the main process of a unit.
///
/// # Errors
/// One line that names the unit and says what systemd refused.
pub async fn signal(name: &str, signal: nix::sys::signal::Signal) -> Result<(), String> {
    let done =
        async { call(&connect().await?, MANAGER_PATH, MANAGER, "KillUnit", &(name, "main", signal as i32)).await };
    done.await.map(drop).map_err(|error: zbus::Error| format!("cannot send {signal} to {name}: {error}"))
}

/// Whether a unit runs, is starting or is ending.
///
/// # Errors
/// One line that names the unit and says what systemd refused.
pub async fn runs(name: &str) -> Result<bool, String> {
    let state = async {
        let bus = connect().await?;
        let path = unit_path(&bus, name).await?;
        let reply = call(&bus, path.as_str(), PROPERTIES, "Get", &(UNIT, STATE)).await?;
        let state: OwnedVariant = reply.body().deserialize()?;
        String::try_from(state)
    };
    let state = state.await.map_err(|error| format!("cannot ask for {name}: {error}"))?;
    Ok(!matches!(state.as_str(), "inactive" | "failed"))
}

/// Kills all processes of a unit hard, because one that hangs does not listen to a polite word, and has it started again
/// whatever its own policy on restarts is, and without the wait that this policy asks for.
async fn restart(bus: &Connection, name: &str) -> zbus::Result<Message> {
    call(bus, MANAGER_PATH, MANAGER, "KillUnit", &(name, "all", SIGKILL)).await?;
    call(bus, MANAGER_PATH, MANAGER, "RestartUnit", &(name, "replace")).await
}

const SIGKILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;

async fn call<B>(bus: &Connection, path: &str, interface: &str, method: &str, body: &B) -> zbus::Result<Message>
where
    B: serde::Serialize + DynamicType,
{
    bus.call_method(Some(SYSTEMD), path, Some(interface), method, body).await
}

#[cfg(test)]
mod tests;
