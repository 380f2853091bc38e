//! Why a bundle is not taken: one reason each, with words for the operator and a number for scripts.

use std::fmt::{Display, Formatter, Result as Formatted};

use serde::Serialize;
use trilith_core::slots::Version;

use crate::utc::Utc;

/// Why a bundle is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "refused", rename_all = "kebab-case")]
pub enum Refusal {
    /// No trusted key has signed the manifest.
    WrongSignature {
        /// What exactly is wrong with the signature.
        why: String,
    },
    /// The bundle ends before it is complete.
    Truncated {
        /// The part that is cut off.
        part: String,
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// A part is not what the manifest says.
    Corrupted {
        /// The part.
        part: String,
        /// Where and how.
        what: String,
    },
    /// Older than what may still be installed: its flaws are known.
    BelowFloor {
        /// Of the bundle.
        version: Version,
        /// The lowest one allowed.
        floor: Version,
    },
    /// A part does not fit.
    TooLarge {
        /// The part.
        part: String,
        /// Its size in bytes.
        size: u64,
        /// Bytes that there is room for.
        room: u64,
    },
    /// For something else than this appliance.
    WrongProduct {
        /// Of the bundle.
        bundle: String,
        /// Of this appliance.
        here: String,
    },
    /// Past the time after which it must not be installed.
    Expired {
        /// When it expired.
        expires: Utc,
        /// What this node's clock says.
        now: Utc,
        /// A time server has set that clock.
        synchronised: bool,
    },
    /// It cannot be installed over a version this old.
    NeedsNewer {
        /// The lowest version that it can be installed over.
        min_version: Version,
        /// The version that runs.
        running: Version,
    },
    /// It failed in this set before.
    Banned {
        /// Of the bundle.
        version: Version,
        /// Why it was banned.
        reason: String,
    },
    /// A bundle of a format that this version does not know.
    UnknownFormat {
        /// The format's number.
        format: u64,
    },
    /// No bundle at all, or one that nobody would have made in good faith.
    Malformed {
        /// What is wrong, and where.
        what: String,
    },
}

impl Refusal {
    /// The exit code of a command that ends with it: [`REFUSAL_CODES`]. Never changes its meaning.
    pub fn exit_code(&self) -> u8 {
        match self {
            Refusal::WrongSignature { .. } => 20,
            Refusal::Truncated { .. } => 21,
            Refusal::Corrupted { .. } => 22,
            Refusal::BelowFloor { .. } => 23,
            Refusal::TooLarge { .. } => 24,
            Refusal::WrongProduct { .. } => 25,
            Refusal::Expired { .. } => 26,
            Refusal::NeedsNewer { .. } => 27,
            Refusal::Banned { .. } => 28,
            Refusal::UnknownFormat { .. } => 29,
            Refusal::Malformed { .. } => 30,
        }
    }

    pub(crate) fn malformed(what: impl Into<String>) -> Refusal {
        Refusal::Malformed { what: what.into() }
    }

    pub(crate) fn corrupted(part: impl Into<String>, what: impl Into<String>) -> Refusal {
        Refusal::Corrupted { part: part.into(), what: what.into() }
    }
}

impl Display for Refusal {
    fn fmt(&self, out: &mut Formatter<'_>) -> Formatted {
        match self {
            Refusal::WrongSignature { why } => {
                write!(out, "wrong signature: {why}; get the bundle again from where this appliance came from")
            }
            Refusal::Truncated { part, expected, found } => {
                write!(out, "truncated: {part} should have {expected} bytes and has {found}; copy the bundle again")
            }
            Refusal::Corrupted { part, what } => write!(out, "corrupted: {part}: {what}; copy the bundle again"),
            Refusal::BelowFloor { version, floor } => {
                write!(
                    out,
                    "version {version} is below {floor}, the lowest that may be installed here: its flaws are known"
                )
            }
            Refusal::TooLarge { part, size, room } => {
                write!(out, "too large: {part} has {size} bytes, and there is room for {room}")
            }
            Refusal::WrongProduct { bundle, here } => {
                write!(out, "wrong product: a bundle for {bundle}, and this is {here}")
            }
            Refusal::Expired { expires, now, synchronised: true } => {
                write!(out, "expired at {expires}, and it is {now} here: get a newer bundle")
            }
            Refusal::Expired { expires, now, synchronised: false } => write!(
                out,
                "expired at {expires}, by a clock that says {now} here and that no time server has set: if that is wrong, \
                 give this node a time server that answers, or bring the bundle to another node; if not, get a newer bundle"
            ),
            Refusal::NeedsNewer { min_version, running } => {
                write!(
                    out,
                    "{running} runs here, and it can be installed over {min_version} and later only: install one between first"
                )
            }
            Refusal::Banned { version, reason } => {
                write!(
                    out,
                    "version {version} is banned in this set: {reason}; once that is mended, trilith upgrade unban lets it be tried again"
                )
            }
            Refusal::UnknownFormat { format } => {
                write!(
                    out,
                    "a bundle of format {format}, and this version knows format {} only",
                    crate::manifest::FORMAT
                )
            }
            Refusal::Malformed { what } => write!(out, "no bundle of ours: {what}"),
        }
    }
}

impl std::error::Error for Refusal {}

/// The bundles' part of `--help`. (31 is no refusal: [`crate::Failure::NoSpace`].)
pub const REFUSAL_CODES: &str = "\
Exit codes for a bundle that is refused:
  20  wrong signature          24  too large for the slot      28  banned in this set
  21  truncated                25  wrong product               29  unknown format
  22  corrupted                26  expired                     30  no bundle of ours
  23  below the floor          27  needs a newer version       31  no room on the disk";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_line_in_the_help() {
        let version = Version::new(1, 2, 3);
        let all = [
            Refusal::WrongSignature { why: "no".into() },
            Refusal::Truncated { part: "root.erofs".into(), expected: 2, found: 1 },
            Refusal::corrupted("root.erofs", "block 7"),
            Refusal::BelowFloor { version, floor: version },
            Refusal::TooLarge { part: "root.erofs".into(), size: 2, room: 1 },
            Refusal::WrongProduct { bundle: "a".into(), here: "b".into() },
            Refusal::Expired { expires: Utc(0), now: Utc(1), synchronised: false },
            Refusal::NeedsNewer { min_version: version, running: version },
            Refusal::Banned { version, reason: "it failed".into() },
            Refusal::UnknownFormat { format: 2 },
            Refusal::malformed("empty"),
        ];
        let mut codes: Vec<u8> = all.iter().map(Refusal::exit_code).collect();
        codes.dedup();
        assert_eq!(codes.len(), all.len());
        for refusal in &all {
            assert!(REFUSAL_CODES.contains(&format!("  {}  ", refusal.exit_code())), "{refusal}");
            assert!(!refusal.to_string().contains('\n'));
        }
    }
}
