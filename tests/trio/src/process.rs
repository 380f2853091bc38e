//! A process group that outlives whoever started it, and is found again by number and starting time.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use trilith_lab::wait::wait_until;

/// A process group by its leader. The starting time tells it from a later process of the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    leader: i32,
    /// Clock ticks since the host's boot (proc_pid_stat(5), field 22).
    started: u64,
}

impl Group {
    /// Starts a command as a group of its own, with its output in `log`, and notes it in `record`.
    ///
    /// # Errors
    /// When it cannot be started, or `record` names a group that lives.
    pub fn start(mut command: Command, log: &Path, record: &Path) -> Result<Group> {
        if Group::read(record).is_some_and(|group| group.lives()) {
            anyhow::bail!("{} names a process that runs already", record.display());
        }
        let log = fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in the terminal of whoever started it is not meant for it.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let leader = i32::try_from(child.id())?;
        let started = starting_time(leader).context("a process that was just started has no /proc entry")?;
        std::thread::spawn(move || child.wait());
        let group = Group { leader, started };
        fs::write(record, serde_json::to_string(&group)?)
            .with_context(|| format!("cannot write {}", record.display()))?;
        Ok(group)
    }

    /// The group that `record` names, whether or not it lives.
    pub fn read(record: &Path) -> Option<Group> {
        serde_json::from_str(&fs::read_to_string(record).ok()?).ok()
    }

    /// Whether its leader lives.
    pub fn lives(&self) -> bool {
        starting_time(self.leader) == Some(self.started)
    }

    /// Sends a signal to all of it. No error when it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.lives() {
            return Ok(());
        }
        match killpg(Pid::from_raw(self.leader), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot send {signal} to process group {}", self.leader)),
        }
    }

    /// Ends it at once and waits until it is gone. No error when it was gone before.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        wait_until("a killed process that is gone", KILL_DEADLINE, || !self.lives()).map(drop)
    }
}

/// `None` when there is no such process, or only what its parent has not taken note of yet.
fn starting_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// A machine's memory is given back to the host before its process is gone.
const KILL_DEADLINE: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_again_and_ended_with_all_that_it_started() -> Result<()> {
        let directory = std::env::temp_dir().join(format!("trilith-trio-process-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let (log, record) = (directory.join("log"), directory.join("record"));
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $!; wait"]);
        let group = Group::start(command, &log, &record)?;
        wait_until("the child's number", KILL_DEADLINE, || {
            fs::read_to_string(&log).is_ok_and(|text| text.ends_with('\n'))
        })?;
        let child: i32 = fs::read_to_string(&log)?.trim().parse()?;
        let found = Group::read(&record).context("no record")?;
        assert_eq!(found, group);
        assert!(found.lives() && starting_time(child).is_some());
        assert!(!Group { started: group.started + 1, ..group.clone() }.lives(), "a later process of the same number");
        found.kill()?;
        assert!(!group.lives());
        wait_until("the child's end", KILL_DEADLINE, || starting_time(child).is_none())?;
        fs::remove_dir_all(&directory)?;
        Ok(())
    }
}
