//! A UKI, as far as it matters here: which system it starts, and whether all of it is there.
//!
//! It is complete when its bytes have the digest that its own signature is over. That is no check of the signature, which is the
//! firmware's: it finds files that were cut off or damaged.
//!
//! Source: "PE Format" (section table, attribute certificate table); "Windows Authenticode Portable Executable Signature
//! Format"; UAPI specification 5, "Unified Kernel Image".

use std::ops::Range;

use sha2::{Digest as _, Sha256};
use trilith_core::slots::{Image, Version};

use crate::Hash;
use crate::manifest::MAX_UKI;

/// What a UKI says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uki {
    /// `IMAGE_ID` of its os-release.
    pub product: String,
    /// `IMAGE_VERSION` of its os-release, and `roothash=` of its command line.
    pub image: Image,
}

impl Uki {
    /// Reads a UKI and checks that it is complete.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(bytes: &[u8]) -> Result<Uki, String> {
        if bytes.len() as u64 > MAX_UKI {
            return Err(format!("has more than {MAX_UKI} bytes"));
        }
        let file = Pe::parse(bytes).ok_or("is no PE file, or not all of one")?;
        let (certificates, digest) = (&bytes[file.certificates.clone()], file.digest());
        if !certificates.windows(digest.0.len()).any(|found| *found == digest.0) {
            return Err("is damaged, or not signed: its bytes have not the digest that its signature is over".into());
        }
        let text = |name: &str| {
            let section = file.section(name).ok_or_else(|| format!("has no section {name}"))?;
            Ok::<_, String>(String::from_utf8_lossy(section).trim_end_matches('\0').to_owned())
        };
        let (command_line, os_release) = (text(".cmdline")?, text(".osrel")?);
        let root = command_line.split_whitespace().filter_map(|word| word.strip_prefix("roothash=")).next_back();
        let root: Hash = root.and_then(|hash| hash.parse().ok()).ok_or("has a command line without roothash=")?;
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.map(|value| value.trim_matches('"').to_owned())
                .ok_or_else(|| format!("has no {key} in its os-release"))
        };
        let version: Version = value("IMAGE_VERSION")?.parse().map_err(|error| format!("IMAGE_VERSION: {error}"))?;
        Ok(Uki { product: value("IMAGE_ID")?, image: Image { version, root } })
    }
}

/// A PE32+ file with a certificate table at its end.
struct Pe<'a> {
    bytes: &'a [u8],
    sections: Vec<(&'a [u8], Range<usize>)>,
    checksum: usize,
    certificate_entry: usize,
    certificates: Range<usize>,
}

impl Pe<'_> {
    fn parse(bytes: &[u8]) -> Option<Pe<'_>> {
        let header = number(bytes, 0x3c, 4)?;
        let optional = header.checked_add(24)?;
        if bytes.get(header..header.checked_add(4)?)? != b"PE\0\0" || number(bytes, optional, 2)? != 0x20b {
            return None;
        }
        let certificate_entry = optional + 112 + 4 * 8;
        let from = number(bytes, certificate_entry, 4)?;
        let certificates = from..from.checked_add(number(bytes, certificate_entry + 4, 4)?)?;
        if from < certificate_entry + 8 || certificates.end != bytes.len() {
            return None;
        }
        let first = optional + number(bytes, header + 20, 2)?;
        let count = number(bytes, header + 6, 2)?.min(MAX_SECTIONS);
        let section = |at: usize| {
            let name = bytes.get(at..at + 8)?;
            // What is in memory may be shorter than what is in the file, which is padded.
            let size = number(bytes, at + 8, 4)?.min(number(bytes, at + 16, 4)?);
            let start = number(bytes, at + 20, 4)?;
            (start.checked_add(size)? <= from).then_some((name, start..start + size))
        };
        let sections = (0..count).map(|number| section(first + number * 40)).collect::<Option<_>>()?;
        Some(Pe { bytes, sections, checksum: optional + 64, certificate_entry, certificates })
    }

    fn section(&self, name: &str) -> Option<&[u8]> {
        let named = |found: &[u8]| found.iter().take_while(|byte| **byte != 0).eq(name.as_bytes());
        self.sections.iter().find(|(found, _)| named(found)).map(|(_, range)| &self.bytes[range.clone()])
    }

    /// Of everything but the checksum, the entry of the certificate table and that table.
    fn digest(&self) -> Hash {
        let mut digest = Sha256::new();
        digest.update(&self.bytes[..self.checksum]);
        digest.update(&self.bytes[self.checksum + 4..self.certificate_entry]);
        digest.update(&self.bytes[self.certificate_entry + 8..self.certificates.start]);
        Hash(digest.finalize().into())
    }
}

/// Little-endian.
fn number(bytes: &[u8], at: usize, length: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(length)?)?;
    Some(field.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

/// Sections that are looked at; a UKI has about ten.
const MAX_SECTIONS: usize = 64;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A UKI that starts this system, with `kernel` as all else in it.
    pub(crate) fn uki(product: &str, image: Image, kernel: &[u8]) -> Vec<u8> {
        let os_release = format!("IMAGE_ID={product}\nIMAGE_VERSION={}\n", image.version);
        let command_line = format!("roothash={} ro quiet", image.root);
        let contents: [(&[u8; 8], &[u8]); 3] =
            [(b".osrel\0\0", os_release.as_bytes()), (b".cmdline", command_line.as_bytes()), (b".linux\0\0", kernel)];
        let mut file = vec![0; 512];
        file[0x3c] = 0x40;
        file[0x40..0x44].copy_from_slice(b"PE\0\0");
        file[0x46] = 3;
        file[0x54] = 240;
        file[0x58..0x5a].copy_from_slice(&0x20b_u16.to_le_bytes());
        for (index, (name, content)) in contents.iter().enumerate() {
            let at = 0x58 + 240 + index * 40;
            let (size, from) = (content.len() as u32, file.len() as u32);
            file[at..at + 8].copy_from_slice(*name);
            file[at + 8..at + 12].copy_from_slice(&size.to_le_bytes());
            file[at + 16..at + 20].copy_from_slice(&size.to_le_bytes());
            file[at + 20..at + 24].copy_from_slice(&from.to_le_bytes());
            file.extend_from_slice(content);
        }
        let from = file.len();
        let entry = 0x58 + 112 + 32;
        file[entry..entry + 4].copy_from_slice(&(from as u32).to_le_bytes());
        file[entry + 4..entry + 8].copy_from_slice(&40_u32.to_le_bytes());
        file.extend_from_slice(&[0; 40]);
        let digest = Pe::parse(&file).unwrap().digest();
        file[from + 8..].copy_from_slice(&digest.0);
        file
    }

    #[test]
    fn it_says_what_it_starts_and_every_damage_is_found() {
        let image = Image { version: Version::new(1, 2, 3), root: Hash([9; 32]) };
        let bytes = uki("trilith", image, b"kernel");
        assert_eq!(Uki::open(&bytes), Ok(Uki { product: "trilith".into(), image }));
        let entry = 0x58 + 112 + 32;
        let exempt =
            |at: usize| (0x58 + 64..0x58 + 68).contains(&at) || (bytes.len() - 40..bytes.len() - 32).contains(&at);
        for at in (0..bytes.len()).filter(|at| !exempt(*at)) {
            let mut spoilt = bytes.clone();
            spoilt[at] ^= 1;
            assert!(Uki::open(&spoilt).is_err() || (entry..entry + 8).contains(&at), "byte {at}");
        }
        for length in 0..bytes.len() {
            assert!(Uki::open(&bytes[..length]).is_err(), "{length} bytes");
        }
    }
}
