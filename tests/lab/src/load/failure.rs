//! How a connection or a request can fail, as its user sees it.

use std::fmt;
use std::io;

use nix::errno::Errno;
use serde::{Serialize, Serializer};

/// Why an attempt, a request or a connection failed. In JSON it is the text of its `Display`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// The connection was refused (RST in answer to a SYN).
    Refused,
    /// The connection was reset after it had been established.
    Reset,
    /// Nothing came within the time allowed.
    Timeout,
    /// The other side closed before the answer was complete.
    Eof,
    /// No route, or no answer to ARP or neighbour discovery.
    Unreachable,
    /// HTTP answered, with another status than 200.
    BadStatus(u16),
    /// The bytes that came back are not those that had to come.
    BadAnswer,
    /// This host ran out of something (ports, descriptors, memory): the measurement is at fault, not the VIP.
    Local(i32),
    /// Any other error, by its errno.
    Other(i32),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused => f.write_str("refused"),
            Failure::Reset => f.write_str("reset"),
            Failure::Timeout => f.write_str("timeout"),
            Failure::Eof => f.write_str("eof"),
            Failure::Unreachable => f.write_str("unreachable"),
            Failure::BadStatus(status) => write!(f, "bad status {status}"),
            Failure::BadAnswer => f.write_str("bad answer"),
            Failure::Local(errno) => write!(f, "local: {}", Errno::from_raw(*errno)),
            Failure::Other(errno) => write!(f, "other: {}", Errno::from_raw(*errno)),
        }
    }
}

impl Serialize for Failure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Failure {
        let raw = error.raw_os_error().unwrap_or(0);
        match Errno::from_raw(raw) {
            Errno::ECONNREFUSED => Failure::Refused,
            // A write after the reset has been read gives EPIPE.
            Errno::ECONNRESET | Errno::EPIPE | Errno::ECONNABORTED => Failure::Reset,
            Errno::ETIMEDOUT => Failure::Timeout,
            Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EHOSTDOWN | Errno::ENETDOWN => Failure::Unreachable,
            Errno::EADDRNOTAVAIL | Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM => {
                Failure::Local(raw)
            }
            _ => Failure::Other(raw),
        }
    }
}
