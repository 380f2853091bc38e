//! One value with a line before it that says what it is, how long, and what its checksum is.
//!
//! ```text
//! trilith-raft snapshot 1 1 512 3f…a9\n{"…":…}
//!              │        │ │ │   └ SHA-256 of the line up to here and of the value, 64 hexadecimal digits
//!              │        │ │ └ length of the value in bytes
//!              │        │ └ the oldest format whose readers understand it
//!              │        └ format
//!              └ kind
//! ```
//!
//! The value is JSON. Readers skip fields that they do not know; only what they must not misread raises the second number.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// The format that is written, and the newest that is understood in full.
pub const FORMAT: u32 = 1;
/// The longest first line, in bytes.
const MAX_LINE: usize = 160;

/// Why bytes are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// They are not what was written: cut, changed, or something else altogether.
    Damaged(String),
    /// They are whole, but of a format that this version must not read: the oldest that may.
    Newer(u32),
}

/// The value as bytes.
pub fn seal(kind: &str, value: &impl Serialize) -> Vec<u8> {
    let value = serde_json::to_vec(value).expect("our values have string keys and no failing parts");
    let start = format!("trilith-raft {kind} {FORMAT} {FORMAT} {} ", value.len());
    let sum = checksum(&start, &value);
    [start.as_bytes(), sum.as_bytes(), b"\n", &value].concat()
}

/// The value from bytes; what follows it is ignored.
///
/// # Errors
/// Anything that [`seal`] of this or a later version has not made.
pub fn open<T: DeserializeOwned>(kind: &str, bytes: &[u8]) -> Result<T, Fault> {
    let damaged = |what: &str| Fault::Damaged(what.to_owned());
    let end = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n');
    let line = end.and_then(|end| str::from_utf8(&bytes[..end]).ok());
    let (Some(end), Some(line)) = (end, line) else { return Err(damaged("its first line is not there")) };
    let words: Vec<&str> = line.split(' ').collect();
    let ["trilith-raft", found, format, reads, length, sum] = words[..] else {
        return Err(damaged("its first line is not one of ours"));
    };
    if found != kind {
        return Err(Fault::Damaged(format!("it is a {found:?}, not a {kind}")));
    }
    let number = |word: &str| word.parse::<u32>().map_err(|_| damaged("its first line has a bad number"));
    let (_, reads, length) = (number(format)?, number(reads)?, number(length)? as usize);
    let value = &bytes[end + 1..];
    if value.len() < length {
        return Err(Fault::Damaged(format!("{} of {length} bytes are there", value.len())));
    }
    let value = &value[..length];
    if checksum(&line[..line.len() - sum.len()], value) != sum {
        return Err(damaged("its checksum does not fit"));
    }
    if reads > FORMAT {
        return Err(Fault::Newer(reads));
    }
    serde_json::from_slice(value).map_err(|error| Fault::Damaged(format!("it is whole, but not understood: {error}")))
}

fn checksum(start: &str, value: &[u8]) -> String {
    hex(&Sha256::new().chain_update(start).chain_update(value).finalize())
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Now {
        a: u32,
    }

    /// What a later version might write.
    #[derive(Serialize)]
    struct Later {
        a: u32,
        b: &'static str,
    }

    #[test]
    fn a_value_is_read_as_it_was_written_whatever_follows() {
        let mut bytes = seal("thing", &Now { a: 7 });
        bytes.extend([0; 50]);
        assert_eq!(open("thing", &bytes), Ok(Now { a: 7 }));
    }

    #[test]
    fn fields_of_a_later_version_are_skipped_and_its_format_is_refused_only_if_it_says_so() {
        assert_eq!(open("thing", &seal("thing", &Later { a: 7, b: "new" })), Ok(Now { a: 7 }));
        let later = |reads: u32| {
            let value = br#"{"a":7,"b":1}"#;
            let start = format!("trilith-raft thing 9 {reads} {} ", value.len());
            let sum = checksum(&start, value);
            open::<Now>("thing", &[start.as_bytes(), sum.as_bytes(), b"\n", value].concat())
        };
        assert_eq!(later(1), Ok(Now { a: 7 }));
        assert_eq!(later(2), Err(Fault::Newer(2)));
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_refused() {
        let whole = seal("thing", &Now { a: 1234 });
        for length in 0..whole.len() {
            assert!(open::<Now>("thing", &whole[..length]).is_err(), "cut to {length}");
        }
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(open::<Now>("thing", &bytes).is_err(), "bit {bit}");
        }
        assert!(open::<Now>("other", &whole).is_err());
    }
}
