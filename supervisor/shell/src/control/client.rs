//! The commands' side of the control socket.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{CLIENT_PATIENCE, Envelope, MAX_RESPONSE, Request, Response, VERSION};

/// Why a command got no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// Nobody listens.
    NotRunning(String),
    /// Somebody listens but does not answer in time.
    TimedOut(String),
    /// The connection broke, or what came is no answer.
    Broken(String),
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unanswered::NotRunning(text) | Unanswered::TimedOut(text) | Unanswered::Broken(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Unanswered {}

/// Asks the supervisor at `path` and waits for its answer, blocking the thread.
///
/// # Errors
/// [`Unanswered`], in words that say what to do next.
pub fn ask(path: &Path, request: Request) -> Result<Response, Unanswered> {
    let stream = UnixStream::connect(path).map_err(|error| not_running(path, &error))?;
    exchange(&stream, request).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Unanswered::TimedOut(format!(
            "the supervisor did not answer within {} s: it may hang; the node's logs say more",
            CLIENT_PATIENCE.as_secs()
        )),
        _ => Unanswered::Broken(format!("talking to the supervisor at {} failed: {error}", path.display())),
    })
}

fn exchange(stream: &UnixStream, request: Request) -> io::Result<Response> {
    stream.set_read_timeout(Some(CLIENT_PATIENCE))?;
    stream.set_write_timeout(Some(CLIENT_PATIENCE))?;
    let mut line = serde_json::to_vec(&Envelope { version: VERSION, request })?;
    line.push(b'\n');
    (&mut &*stream).write_all(&line)?;
    let mut answer = Vec::new();
    BufReader::new(stream).take(MAX_RESPONSE as u64).read_until(b'\n', &mut answer)?;
    if answer.last() != Some(&b'\n') {
        let text = format!("the answer broke off after {} bytes", answer.len());
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
    }
    Ok(serde_json::from_slice(&answer)?)
}

fn not_running(path: &Path, error: &io::Error) -> Unanswered {
    Unanswered::NotRunning(match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("the supervisor is not running (nobody answers at {}): the node's logs say why", path.display())
        }
        io::ErrorKind::PermissionDenied => {
            format!("{} may be opened by root and the group trilith-admin only", path.display())
        }
        _ => format!("reaching the supervisor at {} failed: {error}", path.display()),
    })
}
