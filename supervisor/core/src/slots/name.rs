//! Root hashes, and the names of the boot loader's entries.

use std::fmt::{Display, Formatter, Result as Formatted};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Version;

/// The root hash of a dm-verity tree: SHA-256. As text: 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootHash(pub [u8; 32]);

impl FromStr for RootHash {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<RootHash, &'static str> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err("a hash has 64 hexadecimal digits");
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |at: usize| char::from(digits[at]).to_digit(16).ok_or("a hash has hexadecimal digits only");
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        Ok(RootHash(bytes))
    }
}

impl Display for RootHash {
    fn fmt(&self, out: &mut Formatter<'_>) -> Formatted {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl std::fmt::Debug for RootHash {
    fn fmt(&self, out: &mut Formatter<'_>) -> Formatted {
        self.0[..4].iter().try_for_each(|byte| write!(out, "{byte:02x}"))?;
        out.write_str("…")
    }
}

impl TryFrom<String> for RootHash {
    type Error = &'static str;

    fn try_from(text: String) -> Result<RootHash, &'static str> {
        text.parse()
    }
}

impl From<RootHash> for String {
    fn from(hash: RootHash) -> String {
        hash.to_string()
    }
}

/// The boot loader's count of tries, in an entry's name: `+LEFT` or `+LEFT-DONE`.
///
/// Source: systemd, AUTOMATIC_BOOT_ASSESSMENT; Boot Loader Specification, "Boot counting".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tries {
    /// Starts that are left before the entry counts as bad.
    pub left: u32,
    /// Starts so far.
    pub done: u32,
}

impl Tries {
    /// What a new system gets.
    pub const NEW: Tries = Tries { left: 3, done: 0 };
    /// Of a good system that makes room for a lower version: never tried in vain, so it can be taken back.
    pub const RETIRED: Tries = Tries { left: 0, done: 0 };

    /// Of a system that failed after `done` tries.
    pub fn failed(done: u32) -> Tries {
        Tries { left: 0, done: done.max(1) }
    }
}

/// The name of an entry: `trilith_<version>[+<left>[-<done>]].efi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryName {
    /// Of the system.
    pub version: Version,
    /// Nothing: not counted (any more).
    pub tries: Option<Tries>,
}

impl EntryName {
    /// The file that an entry is written to before it gets its name. The boot loader does not see it, and neither does a
    /// firmware that knows short names only.
    pub fn unfinished(self) -> String {
        format!("{}_{}.new", EntryName::PREFIX, self.version)
    }

    /// How the names of our entries begin.
    pub const PREFIX: &'static str = "trilith";
}

impl FromStr for EntryName {
    type Err = &'static str;

    fn from_str(file: &str) -> Result<EntryName, &'static str> {
        const NOT_OURS: &str = "an entry is called trilith_<version>[+<left>[-<done>]].efi";
        let stem = file.strip_suffix(".efi").and_then(|stem| stem.strip_prefix(EntryName::PREFIX)?.strip_prefix('_'));
        let stem = stem.ok_or(NOT_OURS)?;
        let (version, tries) = match stem.split_once('+') {
            None => (stem, None),
            Some((version, tries)) => {
                let (left, done) = tries.split_once('-').unwrap_or((tries, "0"));
                let (left, done) = number(left).zip(number(done)).ok_or(NOT_OURS)?;
                (version, Some(Tries { left, done }))
            }
        };
        Ok(EntryName { version: version.parse().map_err(|_| NOT_OURS)?, tries })
    }
}

impl Display for EntryName {
    fn fmt(&self, out: &mut Formatter<'_>) -> Formatted {
        write!(out, "{}_{}", EntryName::PREFIX, self.version)?;
        match self.tries {
            None => {}
            Some(Tries { left, done: 0 }) => write!(out, "+{left}")?,
            Some(Tries { left, done }) => write!(out, "+{left}-{done}")?,
        }
        out.write_str(".efi")
    }
}

/// Digits only: no sign, no leading zero, no more than what fits.
pub(super) fn number(text: &str) -> Option<u32> {
    let plain = text == "0" || !text.starts_with('0');
    (plain && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["trilith_1.4.0.efi", "trilith_1.4.0+3.efi", "trilith_10.0.65535+0-3.efi", "trilith_0.1.0+0.efi"] {
            let name: EntryName = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
        }
        let hash = "00112233445566778899aabbccddeeff0f1e2d3c4b5a69788796a5b4c3d2e1f0";
        assert_eq!(hash.parse::<RootHash>().unwrap().to_string(), hash);
    }

    #[test]
    fn other_names_are_not_ours() {
        for text in [
            "",
            "trilith.efi",
            "trilith_1.4.efi",
            "trilith_1.4.0.1.efi",
            "trilith_1.4.0+.efi",
            "trilith_1.4.0+3-.efi",
            "trilith_1.4.0+-1.efi",
            "trilith_1.4.0+3+3.efi",
            "trilith_01.4.0.efi",
            "trilith_1.4.65536.efi",
            "trilith_1.4.0.new",
            "TRILIT~1.EFI",
            "debian_1.4.0.efi",
        ] {
            assert!(text.parse::<EntryName>().is_err(), "{text}");
        }
    }
}
