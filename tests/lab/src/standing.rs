//! What stands for as long as its owner lives: a laboratory, or machines.
//!
//! ```text
//!   owner ──pipe──▶ guard        the owner ends: the guard takes everything down
//!     └── record: what was made, written before it is made, removed last
//! ```
//!
//! One whose owner has ended is an orphan unless it was kept: its guard takes it down, or whoever comes first, because nobody knows
//! what it was in the middle of. An owner lives for as long as it holds the lock of the file `owner`, which the kernel takes from it when
//! it ends. The guard is no sign of that: one that was killed is seen in /proc for a moment more, and one that lives may be waiting for
//! the very lock that a newcomer holds.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::netns::Netns;
use crate::root::binaries;
use crate::set::new_secret;
use crate::wait::wait_until;

/// A kind of what stands; there is one of it at a time.
#[derive(Debug, Clone)]
pub struct Standing {
    /// What it is called in errors.
    pub what: &'static str,
    /// The program, beside the running one, whose command `guard ID` calls [`Standing::guard`].
    pub program: &'static str,
    /// Where its record lies, and everything else that goes when it does. Its lock lies beside.
    pub home: PathBuf,
}

/// What was made, written before it is made.
#[derive(Debug, Serialize, Deserialize)]
struct Record<T> {
    id: String,
    /// Whether it stands without an owner because somebody wants it to.
    #[serde(default)]
    kept: bool,
    made: T,
}

/// Sees to it that what this process made goes down with it.
#[derive(Debug)]
pub struct Guard {
    id: String,
    pipe: ChildStdin,
    _owner: Flock<File>,
}

impl Guard {
    /// Ends the guard and nothing else.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn dismiss(mut self) -> Result<()> {
        self.pipe.write_all(b"x").context("the guard is gone")
    }
}

impl Standing {
    /// Two hands at once make no sense: bringing it up or down waits for the other's turn.
    ///
    /// # Errors
    /// When the other's turn takes longer than five minutes.
    pub fn lock(&self) -> Result<Flock<File>> {
        let path = self.home.with_extension("lock");
        let file = File::options().create(true).append(true).open(&path);
        let mut file = Some(file.with_context(|| format!("cannot open {}", path.display()))?);
        let mut held = None;
        wait_until(&format!("nobody else bringing the {} up or down", self.what), LOCK_DEADLINE, || {
            match file.take().map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock)) {
                Some(Ok(lock)) => held = Some(lock),
                Some(Err((returned, _))) => file = Some(returned),
                None => {}
            }
            held.is_some()
        })?;
        held.with_context(|| format!("cannot lock {}", path.display()))
    }

    /// What was made, if it stands.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn made<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        Ok(self.read()?.map(|record| record.made))
    }

    /// Writes the record of what is about to be made, and starts its guard.
    ///
    /// # Errors
    /// When either fails; then there is no record.
    pub fn begin<T: Serialize>(&self, made: T) -> Result<Guard> {
        let record = Record { id: new_secret()?, kept: false, made };
        fs::create_dir_all(&self.home).with_context(|| format!("cannot make {}", self.home.display()))?;
        // Before the record: one that nobody holds is an orphan's.
        let begun = self.hold_owner().and_then(|owner| {
            self.write(&record)?;
            self.start_guard(record.id, owner)
        });
        begun.inspect_err(|_| drop(self.remove_home()))
    }

    /// Lets it stand when this process ends.
    ///
    /// # Errors
    /// When the record cannot be written or the guard is gone.
    pub fn keep<T: Serialize + DeserializeOwned>(&self, guard: Guard) -> Result<()> {
        let record: Record<T> = self.read()?.with_context(|| format!("the record of the {} is gone", self.what))?;
        self.write(&Record { kept: true, ..record })?;
        guard.dismiss()
    }

    /// Takes down whatever stands and says whether it did. The record goes last: what could not be taken down can be tried again.
    ///
    /// # Errors
    /// Those of `take_down`.
    pub fn down<T: DeserializeOwned>(&self, take_down: impl FnOnce(T) -> Result<()>) -> Result<bool> {
        let _lock = self.lock()?;
        self.down_if(|_| true, take_down)
    }

    /// Takes down what this process made, unless somebody has done so meanwhile, and ends its guard.
    ///
    /// # Errors
    /// Those of `take_down`.
    pub fn end<T: DeserializeOwned>(&self, guard: Guard, take_down: impl FnOnce(T) -> Result<()>) -> Result<()> {
        let _lock = self.lock()?;
        let ended = self.down_if(|record| record.id == guard.id, take_down).map(drop);
        // Nothing is left for it to do; if this fails it finds that out by itself.
        let _ = guard.dismiss();
        ended
    }

    /// Takes down what lost its owner, and says whether there was such; under the lock.
    ///
    /// # Errors
    /// Those of `take_down`.
    pub fn down_orphan<T: DeserializeOwned>(&self, take_down: impl FnOnce(T) -> Result<()>) -> Result<bool> {
        self.down_if(|record| !record.kept && self.hold_owner().is_ok(), take_down)
    }

    /// What a guard does: waits until its owner ends, then takes down what the owner made, unless it was dismissed.
    ///
    /// # Errors
    /// Those of `take_down`.
    pub fn guard<T: DeserializeOwned>(&self, id: &str, take_down: impl FnOnce(T) -> Result<()>) -> Result<()> {
        let mut word = [0u8; 1];
        // One byte is the dismissal; the end of the pipe is the end of the owner.
        if std::io::stdin().read(&mut word).unwrap_or(0) > 0 {
            return Ok(());
        }
        let _lock = self.lock()?;
        self.down_if(|record| record.id == id, take_down).map(drop)
    }

    /// Refuses to begin where something of that name stands that has no record here: it is another's, and is left alone.
    ///
    /// # Errors
    /// When there is such a namespace.
    pub fn refuse_strangers(&self, namespaces: impl IntoIterator<Item = Netns>) -> Result<()> {
        match namespaces.into_iter().find(Netns::exists) {
            Some(netns) => bail!(
                "a network namespace {0} exists, and no record of a {1} tells whose it is: end what runs in it, and remove it (ip netns del {0})",
                netns.name(),
                self.what
            ),
            None => Ok(()),
        }
    }

    /// Removes the record and all that lies with it.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove_home(&self) -> Result<()> {
        remove_tree(&self.home)
    }

    fn down_if<T: DeserializeOwned>(
        &self,
        wanted: impl FnOnce(&Record<T>) -> bool,
        take_down: impl FnOnce(T) -> Result<()>,
    ) -> Result<bool> {
        let Some(record) = self.read()?.filter(wanted) else { return Ok(false) };
        take_down(record.made)?;
        self.remove_home()?;
        Ok(true)
    }

    fn read<T: DeserializeOwned>(&self) -> Result<Option<Record<T>>> {
        let file = self.file();
        match fs::read_to_string(&file) {
            Ok(text) => serde_json::from_str(&text).map(Some).with_context(|| format!("{} is damaged", file.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    fn write<T: Serialize>(&self, record: &Record<T>) -> Result<()> {
        let (file, temporary) = (self.file(), self.file().with_extension("new"));
        fs::write(&temporary, serde_json::to_string(record)?)?;
        fs::rename(&temporary, &file).with_context(|| format!("cannot write {}", file.display()))
    }

    fn file(&self) -> PathBuf {
        self.home.join("record.json")
    }

    /// The lock that an owner holds until it ends.
    fn hold_owner(&self) -> Result<Flock<File>> {
        let path = self.home.join("owner");
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| error)
            .with_context(|| format!("the {} has an owner that lives", self.what))
    }

    fn start_guard(&self, id: String, owner: Flock<File>) -> Result<Guard> {
        let mut child = Command::new(binaries()?.join(self.program))
            .args(["guard", &id])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // What kills the owner from the terminal must not kill its guard.
            .process_group(0)
            .spawn()
            .with_context(|| {
                format!("cannot start {0} beside the running program (cargo build -p {0})", self.program)
            })?;
        let pipe = child.stdin.take().context("a piped child has a standard input")?;
        std::thread::spawn(move || child.wait());
        Ok(Guard { id, pipe, _owner: owner })
    }
}

/// Removes a directory and all that is in it. No error when there is none.
///
/// # Errors
/// When something cannot be removed.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The first `up` of a machine holds the lock while it builds a tree.
const LOCK_DEADLINE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_an_owner_or_is_kept_stands_and_what_lost_its_owner_is_taken_down() -> Result<()> {
        let home = std::env::temp_dir().join(format!("trilith-standing-{}", std::process::id()));
        let standing = Standing { what: "house", program: "none", home: home.clone() };
        let down = |kept| {
            fs::create_dir_all(&home)?;
            standing.write(&Record { id: "id".to_owned(), kept, made: 1u8 })?;
            standing.down_orphan(|made: u8| if made == 1 { Ok(()) } else { bail!("{made} was made") })
        };
        assert!(!down(true)?, "it is kept");
        let owner = standing.hold_owner()?;
        assert!(!down(false)?, "its owner lives");
        drop(owner);
        assert!(down(false)?);
        assert!(!home.exists());
        Ok(())
    }
}
