//! gzip, base64, and both: the forms in which cloud-init's data may come.

use std::io::Read;

use flate2::read::MultiGzDecoder;

/// The longest document, unpacked, in bytes.
pub const MAX_DOCUMENT: usize = 1024 * 1024;

/// Decodes base64 (RFC 4648, section 4); white space between its characters is skipped, the padding may be missing.
///
/// `None` when anything else is in it.
pub fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut held, mut bits) = (0_u32, 0_u32);
    let mut characters = text.iter().filter(|c| !c.is_ascii_whitespace()).peekable();
    while let Some(c) = characters.next_if(|c| **c != b'=') {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = (held << 6 | u32::from(value)) & 0xfff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
        }
    }
    let rest: Vec<u8> = characters.copied().collect();
    let padding = matches!(rest.as_slice(), b"" | b"=" | b"==");
    // One character alone holds no byte; bits that are left over are zero.
    (padding && bits != 6 && held & ((1 << bits) - 1) == 0).then_some(bytes)
}

/// Encodes as base64 with padding, on one line.
pub fn to_base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let held = group.iter().fold(0_u32, |held, byte| held << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let index = held >> (18 - 6 * place) & 63;
            text.push(if place <= group.len() { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    text
}

/// Unpacks gzip, to at most [`MAX_DOCUMENT`] bytes.
///
/// # Errors
/// What is wrong with it, as part of a sentence.
pub fn gunzip(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut unpacked = Vec::new();
    let most = MAX_DOCUMENT as u64 + 1;
    MultiGzDecoder::new(bytes)
        .take(most)
        .read_to_end(&mut unpacked)
        .map_err(|error| format!("is damaged gzip: {error}"))?;
    if unpacked.len() > MAX_DOCUMENT {
        return Err(format!("is longer than {MAX_DOCUMENT} bytes when unpacked"));
    }
    Ok(unpacked)
}

/// Unpacks what begins like gzip, as cloud-init does with every document, and leaves the rest as it is.
///
/// # Errors
/// Those of [`gunzip`], and a document that is too long.
pub fn unpacked(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return gunzip(&bytes);
    }
    if bytes.len() > MAX_DOCUMENT {
        return Err(format!("is longer than {MAX_DOCUMENT} bytes"));
    }
    Ok(bytes)
}

/// Decodes what carries the name of its encoding: `base64`, `b64`, `gzip+base64` and cloud-init's other spellings; plain when
/// the name is empty.
///
/// # Errors
/// What is wrong with it, as part of a sentence.
pub fn named(bytes: Vec<u8>, encoding: &str) -> Result<Vec<u8>, String> {
    let encoding = encoding.trim().to_ascii_lowercase();
    let from_base64 = |bytes: &[u8]| base64(bytes).ok_or_else(|| "is no base64".to_owned());
    match encoding.as_str() {
        "" | "text/plain" => Ok(bytes),
        "b64" | "base64" => from_base64(&bytes),
        "gz" | "gzip" => gunzip(&bytes),
        "gz+b64" | "gz+base64" | "gzip+b64" | "gzip+base64" => gunzip(&from_base64(&bytes)?),
        _ => Err("has an unknown encoding; known are base64, gzip and gzip+base64".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn base64_is_read_as_it_is_written_and_nothing_else() {
        for length in 0..70 {
            let bytes: Vec<u8> = (0..length).map(|i| (i * 37 + 11) as u8).collect();
            let text = to_base64(&bytes);
            assert_eq!(base64(text.as_bytes()).unwrap(), bytes);
            assert_eq!(base64(text.trim_end_matches('=').as_bytes()).unwrap(), bytes);
        }
        assert_eq!(base64(b"aGVs\n bG8=\n").unwrap(), b"hello");
        for odd in ["a", "aGVsbG8===", "a!==", "aGVs=bG8", "#cloud-config", "/x=="] {
            assert_eq!(base64(odd.as_bytes()), None, "{odd}");
        }
    }

    #[test]
    fn gzip_is_bounded_and_damage_is_named() {
        assert_eq!(gunzip(&gzip(b"hello")).unwrap(), b"hello");
        assert_eq!(named(to_base64(&gzip(b"hi")).into_bytes(), "GZ+B64").unwrap(), b"hi");
        assert!(gunzip(&gzip(&vec![0; MAX_DOCUMENT + 1])).unwrap_err().contains("longer than"));
        assert!(gunzip(&gzip(b"hello")[..12]).unwrap_err().contains("damaged"));
        assert_eq!(unpacked(gzip(b"x")).unwrap(), b"x");
        assert!(named(b"x".to_vec(), "rot13").unwrap_err().contains("unknown encoding"));
    }
}
