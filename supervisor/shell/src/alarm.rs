//! The alarm clock of the one loop: a timerfd (timerfd_create(2)).
//!
//! tokio's own timer wheel wakes a thread up to twice more for each deadline, once to move it between levels and once by its
//! own eventfd. At 25 deadlines a second that is a third of all wake-ups of a supervisor at rest.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::unix::AsyncFd;

/// Sooner than this there is no alarm: a time of zero would switch it off.
const SOONEST: Duration = Duration::from_micros(1);

struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Rings once for each time that it is set.
pub struct Alarm {
    timer: AsyncFd<Timer>,
    set_for: Option<Instant>,
}

impl Alarm {
    /// An alarm that is not set.
    ///
    /// # Errors
    /// The kernel gives no timer: too many files are open.
    pub fn new() -> Result<Alarm> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).context("timerfd")?;
        // SAFETY: the timer owns its file descriptor, which stays open and the same as long as it is registered.
        let timer = unsafe { AsyncFd::register(Timer(timer)) }.context("timerfd")?;
        Ok(Alarm { timer, set_for: None })
    }

    /// Rings at `when`, and at no other time that was asked for earlier.
    ///
    /// # Errors
    /// None that are known; the kernel's word is passed on.
    pub fn set(&mut self, when: Instant) -> Result<()> {
        if self.set_for == Some(when) {
            return Ok(());
        }
        let after = when.saturating_duration_since(Instant::now()).max(SOONEST);
        let expiration = Expiration::OneShot(TimeSpec::from_duration(after));
        self.timer.get_ref().0.set(expiration, TimerSetTimeFlags::empty()).context("timerfd_settime")?;
        self.set_for = Some(when);
        Ok(())
    }

    /// Waits until it rings. May be dropped and called again.
    ///
    /// # Errors
    /// None that are known; the kernel's word is passed on.
    pub async fn rings(&mut self) -> Result<()> {
        loop {
            self.timer.readable().await.context("timerfd")?.clear_ready();
            // The clock says what reading the timer would: epoll tells of each ringing once, read or not, and it is set next.
            match self.set_for.take() {
                Some(when) if when <= Instant::now() => return Ok(()),
                // It was set anew after it had rung, or rang early by another clock's word.
                Some(when) => self.set(when)?,
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_rings_for_the_last_time_that_was_set_and_once() {
        let mut alarm = Alarm::new().unwrap();
        let start = Instant::now();
        alarm.set(start + Duration::from_secs(3600)).unwrap();
        alarm.set(start + Duration::from_millis(20)).unwrap();
        alarm.rings().await.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20));
        let again = tokio::time::timeout(Duration::from_millis(50), alarm.rings()).await;
        assert!(again.is_err(), "it is not set");
        alarm.set(start).unwrap();
        alarm.rings().await.unwrap();
    }
}
