//! One cgroup per container, so that it can be frozen, killed and counted as a whole.
//!
//! The laboratory mounts the cgroup2 hierarchy for itself: hosts whose `/sys/fs/cgroup` still holds version 1
//! controllers serve as well, since freezing and killing need no controller.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::wait::wait_until;

/// A control group below the laboratory's own.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The group of that name below the laboratory's own, which [`mount_hierarchy`] mounted at `hierarchy`.
    pub fn of(hierarchy: &Path, name: &str) -> Self {
        Cgroup { path: hierarchy.join(TOP).join(name) }
    }

    /// Makes the group; no error when it is there.
    pub fn create(&self) -> Result<()> {
        fs::create_dir_all(&self.path).with_context(|| format!("cannot make cgroup {}", self.path.display()))
    }

    /// Moves the calling process into the group.
    pub fn enter(&self) -> Result<()> {
        self.write("cgroup.procs", "0")
    }

    /// Stops every process of the group where it is, and returns when all of them stand still.
    pub fn freeze(&self) -> Result<()> {
        self.write("cgroup.freeze", "1")?;
        wait_until(&format!("{} frozen", self.path.display()), SETTLE, || self.event("frozen")).map(drop)
    }

    /// Lets them go on.
    pub fn thaw(&self) -> Result<()> {
        self.write("cgroup.freeze", "0")
    }

    /// Whether the group stands still.
    pub fn is_frozen(&self) -> bool {
        self.event("frozen")
    }

    /// Whether any process lives in the group or below.
    pub fn is_populated(&self) -> bool {
        self.event("populated")
    }

    /// Kills every process of the group at once (SIGKILL, frozen ones too) and returns when none is left.
    pub fn kill(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        self.write("cgroup.kill", "1")?;
        wait_until(&format!("{} empty", self.path.display()), SETTLE, || !self.is_populated()).map(drop)
    }

    /// Removes the group and those below, which must be empty of processes.
    pub fn remove(&self) -> Result<()> {
        remove_tree(&self.path)
    }

    /// The processes of the group below this one, by the host's process ids; none when there is no such group.
    pub fn processes(&self, below: &str) -> Vec<i32> {
        let list = fs::read_to_string(self.path.join(below).join("cgroup.procs")).unwrap_or_default();
        list.lines().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// The processes of the first group named `name` at any depth, for example of a unit.
    pub fn processes_of(&self, name: &str) -> Vec<i32> {
        find(&self.path, name).map_or_else(Vec::new, |path| Cgroup { path }.processes(""))
    }

    fn event(&self, key: &str) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line.strip_prefix(key) == Some(" 1"))
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value).with_context(|| format!("cannot write {value:?} to {}", path.display()))
    }
}

/// Mounts the cgroup2 hierarchy at `at`.
pub fn mount_hierarchy(at: &Path) -> Result<()> {
    fs::create_dir_all(at)?;
    mount(Some("trilith-lab"), at, Some("cgroup2"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount cgroup2 at {}", at.display()))
}

/// Kills everything in the laboratory's groups and removes them.
pub fn remove_all(hierarchy: &Path) -> Result<()> {
    let top = Cgroup { path: hierarchy.join(TOP) };
    top.kill()?;
    top.remove()
}

fn remove_tree(path: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(path) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove cgroup {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn find(path: &Path, name: &str) -> Option<PathBuf> {
    let groups = fs::read_dir(path).ok()?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let groups: Vec<PathBuf> = groups.map(|entry| entry.path()).collect();
    groups
        .iter()
        .find(|group| group.file_name().is_some_and(|file| file == name))
        .cloned()
        .or_else(|| groups.iter().find_map(|group| find(group, name)))
}

/// The laboratory's group in the hierarchy.
const TOP: &str = "trilith-lab";
/// Freezing and dying take microseconds a process; a process in uninterruptible sleep may take a disk's time.
const SETTLE: Duration = Duration::from_secs(10);
