//! Versions of systems and services.

use std::fmt::{Display, Formatter, Result as Formatted};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `major.minor.patch`, as in semver, without suffixes. Written and read as that text, in one way only: file names are made from
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    /// Changes what users rely on.
    pub major: u16,
    /// Adds.
    pub minor: u16,
    /// Mends.
    pub patch: u16,
}

impl Version {
    /// `major.minor.patch`
    pub const fn new(major: u16, minor: u16, patch: u16) -> Version {
        Version { major, minor, patch }
    }
}

/// Text that is no version; it begins so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAVersion(pub String);

impl NotAVersion {
    pub(crate) fn of(text: &str) -> NotAVersion {
        NotAVersion(text.chars().take(MAX_SHOWN).collect())
    }
}

impl Display for NotAVersion {
    fn fmt(&self, out: &mut Formatter<'_>) -> Formatted {
        write!(out, "{:?} is no version; write major.minor.patch, each 0 to 65535, such as 1.2.3", self.0)
    }
}

impl std::error::Error for NotAVersion {}

impl FromStr for Version {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Version, NotAVersion> {
        let part = |part: &str| super::name::number(part).and_then(|part| u16::try_from(part).ok());
        let mut parts = text.split('.').map(part);
        match (parts.next().flatten(), parts.next().flatten(), parts.next().flatten(), parts.next()) {
            (Some(major), Some(minor), Some(patch), None) => Ok(Version { major, minor, patch }),
            _ => Err(NotAVersion::of(text)),
        }
    }
}

impl Display for Version {
    fn fmt(&self, out: &mut Formatter<'_>) -> Formatted {
        write!(out, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl TryFrom<String> for Version {
    type Error = NotAVersion;

    fn try_from(text: String) -> Result<Version, NotAVersion> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> String {
        version.to_string()
    }
}

/// Characters of a wrong text that are shown.
const MAX_SHOWN: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_written_in_one_way_only() {
        for text in ["0.1.0", "1.2.3", "65535.0.10"] {
            assert_eq!(text.parse::<Version>().unwrap().to_string(), text);
        }
        for text in ["", "1", "1.2", "1.2.3.4", "01.2.3", "1.2.+3", "1.2.3-rc1", "65536.0.0", " 1.2.3", "1..3"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(Version::new(0, 9, 9) < Version::new(0, 10, 0));
        assert!(Version::new(1, 65535, 65535) < Version::new(2, 0, 0));
    }
}
