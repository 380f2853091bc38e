//! What has a version: the system as a whole, or one service.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::slots::{NotAVersion, Version};

/// 0.0.0, older than every release: no floor, nothing reported yet.
impl Default for Version {
    fn default() -> Version {
        Version::new(0, 0, 0)
    }
}

/// What a bundle carries and a ban bars: a version of the system (`1.2.3`) or of one service (`name@1.2.3`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Release {
    /// The service, `None` for the system.
    pub service: Option<String>,
    /// Its version.
    pub version: Version,
}

impl Release {
    /// A version of the system.
    pub fn system(version: Version) -> Release {
        Release { service: None, version }
    }

    /// A version of a service.
    pub fn service(name: &str, version: Version) -> Release {
        Release { service: Some(name.to_owned()), version }
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.service {
            None => write!(f, "{}", self.version),
            Some(name) => write!(f, "{name}@{}", self.version),
        }
    }
}

impl FromStr for Release {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Release, NotAVersion> {
        match text.split_once('@') {
            None => Ok(Release::system(text.parse()?)),
            // Directories are named after it, and nodes ask each other for it.
            Some((name, _)) if name.is_empty() || name.contains(['/', '\0']) => Err(NotAVersion::of(text)),
            Some((name, version)) => Ok(Release::service(name, version.parse()?)),
        }
    }
}

impl From<Release> for String {
    fn from(release: Release) -> String {
        release.to_string()
    }
}

impl TryFrom<String> for Release {
    type Error = NotAVersion;

    fn try_from(text: String) -> Result<Release, NotAVersion> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_of_a_service_names_it() {
        let release: Release = "web@1.2.3".parse().unwrap();
        assert_eq!(release, Release::service("web", Version::new(1, 2, 3)));
        assert_eq!(release.to_string(), "web@1.2.3");
        assert_eq!("1.2.3".parse(), Ok(Release::system(Version::new(1, 2, 3))));
    }

    #[test]
    fn no_release_is_a_path() {
        for text in ["../web@1.2.3", "/web@1.2.3", "a/b@1.2.3", "a\0b@1.2.3", "@1.2.3"] {
            assert!(text.parse::<Release>().is_err(), "{text:?}");
        }
    }
}
