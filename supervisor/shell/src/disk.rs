//! What a node keeps on its disk: the set's document, the set secret, its own name, and its record.
//!
//! Of these the supervisor's core keeps only the record; all else that a node puts on its disk whole or not at all goes through
//! [`replace`]. A record that can't be read is never a reason not to start: epochs are also learnt
//! from the peers, and a node without a record keeps silent for one lease.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tokio::sync::mpsc;
use trilith_core::command::{Command, Deed};
use trilith_core::config::{self, MAX_DOCUMENT, NodeId, Settings};
use trilith_core::event::Event;
use trilith_core::wire::DiskRecord;
use zeroize::Zeroizing;

use crate::paths;

/// The shortest secret, in bytes without the white space around it.
pub const MIN_SECRET: usize = 16;
/// The longest secret file, in bytes.
pub const MAX_SECRET: usize = 4096;

/// Something on the disk that an admin must mend before the supervisor can run.
#[derive(Debug)]
pub struct Unusable(String);

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

/// What a supervisor starts from.
pub struct State {
    /// The set's document.
    pub settings: Settings,
    /// Which of its nodes this is.
    pub me: NodeId,
    /// The set secret.
    pub secret: Zeroizing<Vec<u8>>,
    /// What was kept of the last run; empty, with a warning in the log, when nothing readable was.
    pub record: DiskRecord,
}

/// Reads everything that a supervisor starts from. `node` is the name given on the command line.
///
/// # Errors
/// [`config::ConfigError`] and [`Unusable`]: what an admin must mend.
pub fn load(config: &Path, node: Option<&str>) -> anyhow::Result<State> {
    let settings = load_settings(config)?;
    let me = this_node(&settings, node, paths::NODE_FILE.as_ref(), paths::HOSTNAME.as_ref())?;
    let secret = load_secret(settings.set.secret_file.as_ref())?;
    let (record, warning) = read_record(paths::RECORD_FILE.as_ref());
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    Ok(State { settings, me, secret, record })
}

/// Reads and checks the document at `path`.
///
/// # Errors
/// [`config::ConfigError`] for what is in it, [`Unusable`] when it can't be read.
pub fn load_settings(path: &Path) -> anyhow::Result<Settings> {
    // One byte more than may be: then the parser says that it is too long.
    let bytes = read_bounded(path, MAX_DOCUMENT + 1).map_err(|error| {
        Unusable(match error.kind() {
            io::ErrorKind::NotFound => {
                format!(
                    "configuration {} is missing: put the set's document there, or name it with --config",
                    path.display()
                )
            }
            _ => format!("configuration {} can't be read: {error}", path.display()),
        })
    })?;
    Ok(config::parse_bytes(&bytes, &path.to_string_lossy())?)
}

/// Reads the set secret, without the white space around it.
///
/// # Errors
/// [`Unusable`]: the file is missing, open to others than root, too short or too long.
pub fn load_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, Unusable> {
    let shown = path.display();
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Unusable(format!(
            "set secret {shown} is missing: copy it from another node, or make the first one with: \
             (umask 077; head --bytes=32 /dev/urandom | base64 > {shown})"
        )),
        _ => Unusable(format!("set secret {shown} can't be read: {error}")),
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(Unusable(format!("set secret {shown} is no regular file")));
    }
    if meta.mode() & 0o077 != 0 {
        let mode = meta.mode() & 0o7777;
        return Err(Unusable(format!("set secret {shown} is open to others (mode {mode:04o}): run chmod 600 {shown}")));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 1));
    (&mut file).take(MAX_SECRET as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_SECRET {
        return Err(Unusable(format!("set secret {shown} is longer than {MAX_SECRET} bytes: is it the right file?")));
    }
    let secret = Zeroizing::new(bytes.trim_ascii().to_vec());
    if secret.len() < MIN_SECRET {
        return Err(Unusable(format!(
            "set secret {shown} has {} bytes, which can be guessed: it needs at least {MIN_SECRET}, the same on every node",
            secret.len()
        )));
    }
    Ok(secret)
}

/// Which node of the set this machine is: `--node` says so, else the file `node_file`, else the host's name.
///
/// # Errors
/// [`Unusable`]: there is no node of that name.
pub fn this_node(
    settings: &Settings,
    flag: Option<&str>,
    node_file: &Path,
    hostname: &Path,
) -> Result<NodeId, Unusable> {
    let (name, source) = match flag {
        Some(name) => (name.to_owned(), "--node".to_owned()),
        None => match read_line(node_file)? {
            Some(name) => (name, node_file.display().to_string()),
            None => {
                let host = read_line(hostname)?.unwrap_or_default();
                let label = host.split('.').next().unwrap_or_default().to_owned();
                (label, "the host's name".to_owned())
            }
        },
    };
    settings.node_named(&name).ok_or_else(|| {
        let known: Vec<&str> = settings.nodes.iter().map(|node| node.name.as_str()).collect();
        Unusable(format!(
            "{source} says that this is node {name:?}, but set {} has: {}; write one of them to {}",
            settings.set.name,
            known.join(", "),
            node_file.display()
        ))
    })
}

/// Reads the record, and why it had to be taken as empty.
pub fn read_record(path: &Path) -> (DiskRecord, Option<String>) {
    let bytes = match read_bounded(path, MAX_RECORD) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return (
                DiskRecord::default(),
                Some(format!("record {} is missing: taken as the first start", path.display())),
            );
        }
        Err(error) => {
            let warning = format!("record {} can't be read ({error}): taken as the first start", path.display());
            return (DiskRecord::default(), Some(warning));
        }
    };
    match DiskRecord::decode(&bytes) {
        Ok(record) => (record, None),
        Err(error) => {
            let warning = format!("record {} is damaged ({error}): taken as the first start", path.display());
            (DiskRecord::default(), Some(warning))
        }
    }
}

/// Replaces the record durably: after a power cut there is the old one or the new one, whole.
///
/// # Errors
/// Which step failed, on which file. The old record is then still in place.
pub fn write_record(path: &Path, record: &DiskRecord) -> anyhow::Result<()> {
    replace(path, &record.encode())
}

/// Puts a file in the place of another, durably, whole or not at all.
///
/// # Errors
/// Which step failed, on which file. The old file is then still in place.
pub fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    replace_with(path, bytes, 0o666)
}

/// [`replace`] with a mode of its own, of which the process's umask takes.
///
/// # Errors
/// As there.
pub fn replace_with(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let Some(folder) = path.parent() else { bail!("{} lies in no folder", path.display()) };
    let beside = path.with_extension("new");
    let written = (|| -> io::Result<()> {
        // One that was left half-written may have another mode.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    written.with_context(|| format!("writing {}", beside.display()))?;
    fs::rename(&beside, path).with_context(|| format!("renaming {} to {}", beside.display(), path.display()))?;
    // The rename itself is durable only with its folder.
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("syncing {}", folder.display()))
}

/// Does something to the disk that may take seconds, while others go on: on a thread of its own with a small stack, since the
/// supervisor locks all its memory.
///
/// # Errors
/// What it says; or there is no thread for it.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    let (done, result) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("disk".to_owned()).stack_size(STACK);
    // Whoever asked may have gone.
    let thread = thread.spawn(move || _ = done.send(work()));
    thread.map_err(|error| format!("no thread for the disk: {error}"))?;
    result.await.unwrap_or_else(|_| Err("the thread for the disk has ended early".to_owned()))
}

/// The shell that writes the record.
#[derive(Clone, Debug)]
pub struct Handle {
    /// Takes [`Command::Persist`].
    pub commands: mpsc::Sender<Command>,
}

/// Starts the shell on the node's own record.
pub fn start(events: mpsc::Sender<Event>) -> Handle {
    start_at(paths::RECORD_FILE.into(), events)
}

/// Records are written in order on a thread of their own, because an fsync may take seconds. Its stack is small: the
/// supervisor locks all its memory.
fn start_at(path: PathBuf, events: mpsc::Sender<Event>) -> Handle {
    let (commands, mut queue) = mpsc::channel(QUEUE);
    let write = move || {
        while let Some(command) = queue.blocking_recv() {
            let Command::Persist(record) = command else {
                tracing::error!("disk: not my command: {command:?}");
                continue;
            };
            let result = write_record(&path, &record).map_err(|error| format!("{error:#}"));
            if events.blocking_send(Event::Done { deed: Deed::Persist, result }).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("disk".to_owned()).stack_size(STACK);
    if let Err(error) = thread.spawn(write) {
        // The queue is closed with the thread: the core hears of every record that it can't be written.
        tracing::error!("disk: no thread to write on: {error}");
    }
    Handle { commands }
}

fn read_bounded(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The first line, without white space around it; `None` when there is no file.
fn read_line(path: &Path) -> Result<Option<String>, Unusable> {
    match read_bounded(path, MAX_NAME) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            Ok(Some(text.lines().next().unwrap_or_default().trim().to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Unusable(format!("{} can't be read: {error}", path.display()))),
    }
}

/// Records that wait to be written: the core has at most one under way.
const QUEUE: usize = 4;
/// Stack of the writing thread, in bytes.
const STACK: usize = 128 * 1024;
/// Far above any version's record.
const MAX_RECORD: usize = 4096;
const MAX_NAME: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A folder of its own for one test, gone at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("trilith-disk-{test}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Folder(path)
        }

        fn file(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const RECORD: DiskRecord = DiskRecord { epoch_ceiling: 0x0102_0304_0506, drained: true };

    #[test]
    fn a_record_is_read_as_it_was_written_and_replaced_whole() {
        let folder = Folder::new("whole");
        let path = folder.0.join("record");
        assert!(read_record(&path).1.unwrap().contains("is missing"));
        for epoch_ceiling in [1, 2, u64::MAX] {
            let record = DiskRecord { epoch_ceiling, ..RECORD };
            write_record(&path, &record).unwrap();
            assert_eq!(read_record(&path), (record, None));
        }
        let left: Vec<_> = fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["record"]);
    }

    #[test]
    fn a_record_cut_off_anywhere_is_reported_and_taken_as_empty() {
        let folder = Folder::new("cut");
        let whole = RECORD.encode();
        for length in 0..whole.len() {
            let path = folder.file("record", &whole[..length], 0o600);
            let (record, warning) = read_record(&path);
            assert_eq!(record, DiskRecord::default(), "cut to {length} bytes");
            assert!(warning.unwrap().contains("is damaged"));
        }
    }

    #[test]
    fn a_record_with_any_bit_flipped_is_reported_and_taken_as_empty() {
        let folder = Folder::new("flip");
        let whole = RECORD.encode();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (record, warning) = read_record(&folder.file("record", &bytes, 0o600));
            assert_eq!(record, DiskRecord::default(), "bit {bit}");
            assert!(warning.is_some());
        }
    }

    #[test]
    fn a_torn_write_beside_the_record_changes_nothing() {
        let folder = Folder::new("torn");
        let path = folder.0.join("record");
        write_record(&path, &RECORD).unwrap();
        folder.file("record.new", &RECORD.encode()[..3], 0o600);
        assert_eq!(read_record(&path), (RECORD, None));
        write_record(&path, &DiskRecord::default()).unwrap();
        assert_eq!(read_record(&path), (DiskRecord::default(), None));
    }

    #[test]
    fn a_write_that_fails_names_the_file() {
        let error = write_record(Path::new("/proc/trilith/record"), &RECORD).unwrap_err();
        assert!(format!("{error:#}").starts_with("writing /proc/trilith/record.new: "), "{error:#}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_shell_answers_every_record_in_order_and_failures_too() {
        let folder = Folder::new("shell");
        let (events, mut happened) = mpsc::channel(8);
        let shell = start_at(folder.0.join("record"), events.clone());
        for epoch_ceiling in 1..4 {
            shell.commands.send(Command::Persist(DiskRecord { epoch_ceiling, drained: false })).await.unwrap();
            let done = happened.recv().await.unwrap();
            assert_eq!(done, Event::Done { deed: Deed::Persist, result: Ok(()) });
        }
        assert_eq!(read_record(&folder.0.join("record")).0.epoch_ceiling, 3);
        let shell = start_at(folder.0.join("no/such/record"), events);
        shell.commands.send(Command::Persist(RECORD)).await.unwrap();
        let Some(Event::Done { deed: Deed::Persist, result: Err(why) }) = happened.recv().await else { panic!() };
        assert!(why.contains("no/such/record.new"), "{why}");
    }

    #[test]
    fn a_secret_is_trimmed_and_a_weak_or_open_one_is_refused_with_the_mend() {
        let folder = Folder::new("secret");
        let good = folder.file("secret", " 0123456789abcdef\n", 0o600);
        assert_eq!(load_secret(&good).unwrap().as_slice(), b"0123456789abcdef");
        let refused =
            |name: &str, content: &[u8], mode| load_secret(&folder.file(name, content, mode)).unwrap_err().to_string();
        assert!(refused("open", b"0123456789abcdef", 0o640).contains("(mode 0640): run chmod 600 /"));
        assert!(refused("short", b"0123456789abcde\n\n\n", 0o600).contains("has 15 bytes"));
        assert!(refused("empty", b"", 0o600).contains("has 0 bytes"));
        assert!(refused("long", &[b'x'; MAX_SECRET + 1], 0o600).contains("longer than 4096 bytes"));
        assert!(load_secret(&folder.0).unwrap_err().to_string().contains("no regular file"));
        let missing = load_secret(&folder.0.join("none")).unwrap_err().to_string();
        assert!(missing.contains("is missing: copy it from another node"), "{missing}");
    }

    #[test]
    fn the_node_is_named_by_the_flag_then_by_its_file_then_by_the_host() {
        let folder = Folder::new("node");
        let settings = config::parse(include_str!("../../core/tests/config/good/full.toml"), "full.toml").unwrap();
        let host = folder.file("hostname", "c.example.org\n", 0o644);
        let none = folder.0.join("none");
        let node = folder.file("node", "b\n", 0o644);
        assert_eq!(this_node(&settings, Some("a"), &node, &host).unwrap(), NodeId(0));
        assert_eq!(this_node(&settings, None, &node, &host).unwrap(), NodeId(1));
        assert_eq!(this_node(&settings, None, &none, &host).unwrap(), NodeId(2));
        let unknown = folder.file("node", "z\n", 0o644);
        let error = this_node(&settings, None, &unknown, &host).unwrap_err().to_string();
        assert!(error.contains("this is node \"z\", but set edge-2 has: a, b, c; write one of them to"), "{error}");
    }

    #[test]
    fn a_document_that_is_missing_or_wrong_is_told_apart() {
        let folder = Folder::new("document");
        let missing = load_settings(&folder.0.join("set.toml")).unwrap_err();
        assert!(missing.is::<Unusable>() && missing.to_string().contains("is missing"));
        let wrong = load_settings(&folder.file("set.toml", b"\xff", 0o600)).unwrap_err();
        assert!(wrong.is::<config::ConfigError>());
    }
}
