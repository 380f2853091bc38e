//! Waiting for a condition, never for a time.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `condition` until it holds and returns how long that took. What is awaited lives in other processes and the
/// kernel, which tell nobody when it changes: so it is asked again every [`POLL`].
///
/// # Errors
/// When it does not hold within `deadline`; the error names `what`.
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) -> Result<Duration> {
    let start = Instant::now();
    loop {
        if condition() {
            return Ok(start.elapsed());
        }
        if start.elapsed() >= deadline {
            bail!("{what}: not within {:.1} s", deadline.as_secs_f64());
        }
        sleep(POLL);
    }
}

/// Short against everything that is awaited, long against what one question costs.
pub const POLL: Duration = Duration::from_millis(5);
