//! The kernel command line, which comes signed with the kernel.

use crate::fault::{Fault, Result, WRONG_IMAGE};

/// A root hash: the one value that decides which system is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootHash(String);

impl RootHash {
    /// In lower-case hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.0
    }
}

/// The value of `roothash=`; the last one counts.
pub fn root_hash(command_line: &str) -> Result<RootHash> {
    let value = command_line.split_whitespace().filter_map(|word| word.strip_prefix("roothash=")).next_back();
    let value = value.ok_or_else(|| Fault::new("the kernel command line has no roothash=", WRONG_IMAGE))?;
    if value.len() != HASH_DIGITS || !value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Fault::new(format!("roothash={value} has not {HASH_DIGITS} hexadecimal digits"), WRONG_IMAGE));
    }
    Ok(RootHash(value.to_ascii_lowercase()))
}

/// SHA-256.
const HASH_DIGITS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "00112233445566778899aabbccddeeffF0e1d2c3b4a5968778695a4b3c2d1e0f";

    #[test]
    fn the_last_root_hash_counts() {
        let other = HASH.replace('0', "1");
        assert_eq!(root_hash(&format!("roothash={HASH} roothash={other}")).unwrap().hex(), other.to_lowercase());
    }

    #[test]
    fn a_missing_or_malformed_root_hash_is_refused() {
        for line in ["", "quiet root=/dev/sda1", "roothash=", "roothash=abc", &format!("roothash={HASH}0")] {
            assert!(root_hash(line).is_err(), "{line}");
        }
        assert!(root_hash(&format!("roothash={}", HASH.replace('0', "g"))).is_err());
    }
}
