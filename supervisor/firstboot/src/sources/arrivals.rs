//! Devices that come late: a change of `/dev` is waited for, not a time.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Watches a directory for entries that come or change.
pub struct Arrivals {
    inotify: Inotify,
    deadline: Instant,
}

impl Arrivals {
    /// Watches from now on, for a time at most. `None` when it can't be watched: then nothing is waited for.
    pub fn watch(directory: &Path, longest: Duration) -> Option<Arrivals> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
        // A node is made by the kernel and then given its permissions by udev.
        inotify.add_watch(directory, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ATTRIB).ok()?;
        Some(Arrivals { inotify, deadline: Instant::now() + longest })
    }

    /// Waits for the next change; `false` when there was none in time.
    pub fn next(&self) -> bool {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // Whole milliseconds, rounded up.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
        let mut ready = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        if left.is_zero() || !poll(&mut ready, timeout).is_ok_and(|ready| ready > 0) {
            return false;
        }
        // One look is enough for all that has come by now.
        while self.inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrival_ends_the_wait_and_without_one_the_deadline_does() {
        let directory = std::env::temp_dir().join(format!("trilith-arrivals-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let watch = |longest| Arrivals::watch(&directory, longest).unwrap();
        let (patient, hasty) = (watch(Duration::from_secs(60)), watch(Duration::from_millis(50)));
        assert!(!hasty.next() && hasty.deadline <= Instant::now());
        std::fs::write(directory.join("sr0"), "").unwrap();
        let arrived = patient.next();
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(arrived && Instant::now() < patient.deadline);
    }
}
