//! How work on bundles and slots ends when it does not end well.

use std::fmt::{Display, Formatter, Result as Formatted};
use std::io;
use std::path::Path;

use crate::refusal::Refusal;

/// Why it was not done.
#[derive(Debug)]
pub enum Failure {
    /// The bundle is not one that may be taken.
    Refused(Refusal),
    /// A file, device or connection failed.
    Io {
        /// What was done to which file.
        what: String,
        /// What the system says.
        error: io::Error,
    },
    /// The disk has no room for the bundle.
    NoSpace {
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that are there.
        free: u64,
    },
    /// Another bundle of this release is here.
    OtherBundle {
        /// Which release.
        release: String,
    },
    /// This release is being taken in by somebody else.
    Busy {
        /// Which release.
        release: String,
    },
    /// The slots are in no state for it.
    Slots(trilith_core::slots::Refused),
    /// The disk does not hold what was written to it.
    BadMedium {
        /// Which partition or file, and where.
        what: String,
    },
    /// The other side of a transfer gave up, for this reason, with this exit code.
    Other {
        /// Its words, fit to be shown.
        what: String,
        /// Its exit code.
        code: u8,
    },
    /// The other side of a transfer does not speak as agreed.
    Protocol {
        /// What it said.
        what: String,
    },
}

impl Failure {
    /// The exit code of a command that ends with it: the refusal's, or 1, or 31 for a full disk.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Refused(refusal) => refusal.exit_code(),
            Failure::NoSpace { .. } => NO_SPACE,
            Failure::Other { code, .. } => *code,
            Failure::Io { error, .. } if error.kind() == io::ErrorKind::StorageFull => NO_SPACE,
            _ => 1,
        }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
        move |error| Failure::Io { what: what.into(), error }
    }

    pub(crate) fn file(done: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
        Failure::io(format!("{}: cannot be {done}", path.display()))
    }
}

impl Display for Failure {
    fn fmt(&self, out: &mut Formatter<'_>) -> Formatted {
        match self {
            Failure::Refused(refusal) => write!(out, "{refusal}"),
            Failure::Io { what, error } => write!(out, "{what}: {error}"),
            Failure::NoSpace { needed, free } => write!(
                out,
                "no room: {needed} bytes are needed for the bundle, and {free} are free; enlarge the disk or remove one"
            ),
            Failure::OtherBundle { release } => {
                write!(
                    out,
                    "another bundle of {release} is here already; remove it first: trilith upgrade remove {release}"
                )
            }
            Failure::Busy { release } => {
                write!(out, "bundle {release} is on its way already; see trilith upgrade status")
            }
            Failure::Slots(refused) => write!(out, "{refused}"),
            Failure::BadMedium { what } => {
                write!(out, "{what}: the disk does not hold what was written to it; replace the disk")
            }
            Failure::Other { what, .. } => write!(out, "{what}"),
            Failure::Protocol { what } => {
                write!(out, "the other side of the transfer does not speak as agreed: {what}")
            }
        }
    }
}

impl std::error::Error for Failure {}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::Refused(refusal)
    }
}

impl From<trilith_core::slots::Refused> for Failure {
    fn from(refused: trilith_core::slots::Refused) -> Failure {
        Failure::Slots(refused)
    }
}

/// Exit code: the disk is full.
const NO_SPACE: u8 = 31;
