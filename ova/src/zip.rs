//! A ZIP archive of one file, which Windows opens by itself. Source: PKWARE, APPNOTE.TXT 6.3, without its 64-bit extensions.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::DeflateEncoder;

use crate::crc;

/// The archive with `content` under `name` in it.
///
/// # Errors
/// A content of 4 GiB or more.
pub fn of(name: &str, content: &[u8]) -> io::Result<Vec<u8>> {
    let mut packed = DeflateEncoder::new(Vec::new(), Compression::best());
    packed.write_all(content)?;
    let packed = packed.finish()?;
    let long = |bytes: usize| u32::try_from(bytes).map_err(|_| io::Error::other(format!("{name} is too long for ZIP")));
    let (packed_bytes, bytes) = (long(packed.len())?, long(content.len())?);
    let mut common = Vec::new();
    // Version 2.0, no flags, deflated, 1980-01-01 00:00.
    for half in [20_u16, 0, 8, 0, 0x21] {
        common.extend(half.to_le_bytes());
    }
    for word in [crc::ieee(content), packed_bytes, bytes] {
        common.extend(word.to_le_bytes());
    }
    common.extend((name.len() as u16).to_le_bytes());
    common.extend(0_u16.to_le_bytes());

    let mut zip = [&b"PK\x03\x04"[..], &common, name.as_bytes(), &packed].concat();
    let directory_at = long(zip.len())?;
    // Made by version 2.0; no comment, disk 0, binary, no attributes, its header at 0.
    zip.extend([&b"PK\x01\x02\x14\0"[..], &common, &[0; 14], name.as_bytes()].concat());
    let directory_bytes = long(zip.len())? - directory_at;
    zip.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    zip.extend([directory_bytes.to_le_bytes(), directory_at.to_le_bytes()].concat());
    zip.extend([0; 2]);
    Ok(zip)
}
