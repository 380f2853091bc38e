//! ustar (POSIX.1-1988) with nothing in it that differs from build to build: owner 0, one time, mode 0644 or 0755.

use std::io::{self, Read, Write};

/// Writes one file's header; `bytes` bytes of content and [`padding`] follow.
///
/// # Errors
/// A name of more than 100 bytes or a file of 8 GiB or more, which this form can't hold; those of `out`.
pub fn header(out: &mut impl Write, name: &str, bytes: u64, mode: u32, time: u64) -> io::Result<()> {
    if name.len() > 100 || bytes >= 1 << 33 {
        return Err(io::Error::other(format!("{name} does not fit into a ustar archive")));
    }
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{bytes:011o}"));
    put(136, &format!("{time:011o}"));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\u{0}00");
    put(265, "root");
    put(297, "root");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.write_all(&header)
}

/// What follows a file of that many bytes.
pub fn padding(bytes: u64) -> Vec<u8> {
    vec![0; (bytes.next_multiple_of(BLOCK as u64) - bytes) as usize]
}

/// A whole file.
///
/// # Errors
/// Those of [`header`].
pub fn file(out: &mut impl Write, name: &str, content: &[u8], mode: u32, time: u64) -> io::Result<()> {
    header(out, name, content.len() as u64, mode, time)?;
    out.write_all(content)?;
    out.write_all(&padding(content.len() as u64))
}

/// What ends an archive.
///
/// # Errors
/// Those of `out`.
pub fn end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK])
}

/// Reads an archive of such files: calls `each` with every file's name and content.
///
/// # Errors
/// Those of `archive` and of `each`, and what is no ustar header.
pub fn read(archive: &mut impl Read, mut each: impl FnMut(&str, &mut dyn Read) -> io::Result<()>) -> io::Result<()> {
    loop {
        let mut header = [0; BLOCK];
        archive.read_exact(&mut header)?;
        if header == [0; BLOCK] {
            return Ok(());
        }
        let name = text(&header[..100])?.to_owned();
        let bytes = u64::from_str_radix(text(&header[124..136])?, 8).map_err(io::Error::other)?;
        let mut content = archive.take(bytes);
        each(&name, &mut content)?;
        io::copy(&mut content, &mut io::sink())?;
        let padding = padding(bytes).len() as u64;
        io::copy(&mut archive.take(padding), &mut io::sink())?;
    }
}

fn text(field: &[u8]) -> io::Result<&str> {
    let end = field.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(field.len());
    str::from_utf8(&field[..end]).map_err(io::Error::other)
}

const BLOCK: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_in_its_order() {
        let mut archive = Vec::new();
        file(&mut archive, "b", b"second letter", 0o644, 1).unwrap();
        file(&mut archive, "a", &[7; 512], 0o644, 1).unwrap();
        end(&mut archive).unwrap();
        let mut found = Vec::new();
        let each = |name: &str, content: &mut dyn Read| {
            let mut bytes = Vec::new();
            // One file is left unread, as by whoever looks for another.
            if name == "a" {
                content.read_to_end(&mut bytes)?;
            }
            found.push((name.to_owned(), bytes.len()));
            Ok(())
        };
        read(&mut archive.as_slice(), each).unwrap();
        assert_eq!(found, [("b".to_owned(), 0), ("a".to_owned(), 512)]);
        assert!(header(&mut archive, &"x".repeat(101), 0, 0o644, 0).is_err());
    }
}
