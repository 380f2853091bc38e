//! The archive that a bundle is: plain ustar (POSIX.1-1988), and of that only regular files with short names.
//!
//! `tar --list` and `tar --extract` read it. What other archives may hold (links, directories, devices, extended headers, sparse
//! files, numbers in base 256) is refused: nothing of that is needed, and each has fooled somebody.

use std::io::{self, Read, Seek, SeekFrom, Write};

use crate::failure::Failure;
use crate::manifest::{MAX_MANIFEST, MAX_PARTS};
use crate::refusal::Refusal;
use crate::text::plain;

/// Name of the first member.
pub const MANIFEST: &str = "manifest.toml";
/// Name of the second member.
pub const SIGNATURE: &str = "manifest.toml.minisig";

/// A file in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name: no directories.
    pub name: String,
    /// Where its bytes begin in the archive.
    pub offset: u64,
    /// Its bytes.
    pub size: u64,
}

/// Finds all members without reading them, and the first thing that is wrong. The members before that are good to use.
pub fn walk(input: &mut (impl Read + Seek)) -> (Vec<Member>, Option<Failure>) {
    let mut members = Vec::new();
    let fault = find(input, &mut members).err();
    (members, fault)
}

fn find(input: &mut (impl Read + Seek), members: &mut Vec<Member>) -> Result<(), Failure> {
    let unread = || Failure::io("the bundle cannot be read");
    let length = input.seek(SeekFrom::End(0)).map_err(unread())?;
    let mut at = 0;
    loop {
        let mut header = [0; BLOCK];
        if length - at < BLOCK as u64 {
            let part = members.last().map_or(MANIFEST, |member| &member.name);
            let what = if members.is_empty() { part.to_owned() } else { format!("what follows {part}") };
            return Err(Refusal::Truncated { part: what, expected: BLOCK as u64, found: length - at }.into());
        }
        input.seek(SeekFrom::Start(at)).and_then(|_| input.read_exact(&mut header)).map_err(unread())?;
        if header == [0; BLOCK] {
            return end(input, length - at);
        }
        let (name, size) = parse(&header).map_err(|what| Refusal::malformed(format!("at byte {at}: {what}")))?;
        let offset = at + BLOCK as u64;
        let bound = if members.len() < 2 { MAX_MANIFEST as u64 } else { crate::manifest::MAX_PART };
        let expected = [MANIFEST, SIGNATURE].get(members.len());
        if expected.is_some_and(|expected| *expected != name) {
            return Err(Refusal::malformed(format!(
                "begins with {}, not with a manifest and its signature",
                plain(&name, 64)
            ))
            .into());
        }
        if members.iter().any(|member| member.name == name) || members.len() == MAX_PARTS + 2 {
            return Err(Refusal::malformed(format!("holds {name} twice, or more than {MAX_PARTS} parts")).into());
        }
        if size > bound {
            return Err(Refusal::malformed(format!("{name} has {size} bytes; at most {bound} are possible")).into());
        }
        if length - offset < size {
            return Err(Refusal::Truncated { part: name, expected: size, found: length - offset }.into());
        }
        members.push(Member { name, offset, size });
        at = offset + size.next_multiple_of(BLOCK as u64);
        if at > length {
            return Err(
                Refusal::Truncated { part: "the end of the archive".into(), expected: at, found: length }.into()
            );
        }
    }
}

/// Two blocks of zeros, and as many more as `tar` fills its records with.
fn end(input: &mut (impl Read + Seek), left: u64) -> Result<(), Failure> {
    if left > MAX_END {
        return Err(Refusal::malformed(format!("{left} bytes follow the end of the archive")).into());
    }
    let mut rest = Vec::new();
    input.take(MAX_END).read_to_end(&mut rest).map_err(Failure::io("the bundle cannot be read"))?;
    if rest.iter().any(|byte| *byte != 0) {
        return Err(Refusal::malformed("something follows the end of the archive").into());
    }
    if left < 2 * BLOCK as u64 {
        return Err(Refusal::Truncated {
            part: "the end of the archive".into(),
            expected: 2 * BLOCK as u64,
            found: left,
        }
        .into());
    }
    Ok(())
}

/// Name and size of a regular file (POSIX.1-1988, "ustar Interchange Format").
fn parse(header: &[u8; BLOCK]) -> Result<(String, u64), String> {
    if header[257..265] != *b"ustar\x0000" {
        return Err("no ustar header".into());
    }
    if number(&header[148..156]) != Some(checksum(header)) {
        return Err("a header whose checksum is wrong".into());
    }
    if header[156] != b'0' {
        return Err(format!("a member of type {:?}; only regular files are taken", char::from(header[156])));
    }
    if header[157..257].iter().chain(&header[345..500]).any(|byte| *byte != 0) {
        return Err("a member with a link or a long name".into());
    }
    let name = &header[..100];
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let fit = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    if length == 0 || name[0] == b'.' || !name[..length].iter().all(fit) || name[length..].iter().any(|byte| *byte != 0)
    {
        return Err("a member whose name is no plain file name".into());
    }
    let size = number(&header[124..136]).ok_or("a size that is no octal number")?;
    Ok((String::from_utf8_lossy(&name[..length]).into_owned(), size))
}

/// Octal digits, then NUL or space to the end.
pub(crate) fn number(field: &[u8]) -> Option<u64> {
    let digits = field.iter().position(|byte| !(b'0'..=b'7').contains(byte)).filter(|digits| *digits > 0)?;
    let ends = field[digits..].iter().all(|byte| matches!(byte, 0 | b' '));
    ends.then(|| field[..digits].iter().fold(0, |number, digit| number * 8 + u64::from(digit - b'0')))
}

/// The sum of all bytes, with the checksum's own taken for spaces.
pub(crate) fn checksum(header: &[u8; BLOCK]) -> u64 {
    let byte = |(at, byte): (usize, &u8)| if (148..156).contains(&at) { u64::from(b' ') } else { u64::from(*byte) };
    header.iter().enumerate().map(byte).sum()
}

/// Writes one member; `input` must give exactly `size` bytes.
///
/// # Errors
/// When it gives others, or cannot be read or written.
pub fn append(output: &mut impl Write, name: &str, size: u64, time: u64, input: &mut impl Read) -> io::Result<()> {
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, &format!("{time:011o}"));
    put(156, "0");
    put(257, "ustar\x0000");
    let sum = checksum(&header);
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header[155] = b' ';
    output.write_all(&header)?;
    let copied = io::copy(input, output)?;
    if copied != size {
        return Err(io::Error::other(format!("{name} has {copied} bytes instead of {size}: it was changed meanwhile")));
    }
    let padding = size.next_multiple_of(BLOCK as u64) - size;
    output.write_all(&[0; BLOCK][..padding as usize])
}

/// Writes what ends an archive.
///
/// # Errors
/// When it cannot be written.
pub fn finish(output: &mut impl Write) -> io::Result<()> {
    output.write_all(&[0; 2 * BLOCK])
}

pub(crate) const BLOCK: usize = 512;
/// Bytes at the end of an archive, at most: a record of 20 blocks.
const MAX_END: u64 = 20 * BLOCK as u64;

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content) in members {
            append(&mut bytes, name, content.len() as u64, 0, &mut &content[..]).unwrap();
        }
        finish(&mut bytes).unwrap();
        bytes
    }

    fn good() -> Vec<u8> {
        archive(&[(MANIFEST, b"m"), (SIGNATURE, b"s"), ("root.erofs", &[7; 1000])])
    }

    fn refusal(bytes: Vec<u8>) -> Refusal {
        match walk(&mut Cursor::new(bytes)).1 {
            Some(Failure::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn members_are_found_where_they_were_written() {
        let bytes = good();
        let (members, fault) = walk(&mut Cursor::new(&bytes));
        assert!(fault.is_none());
        let root = members.last().unwrap();
        assert_eq!((root.name.as_str(), root.size), ("root.erofs", 1000));
        assert_eq!(bytes[root.offset as usize..][..1000], [7; 1000]);
    }

    #[test]
    fn an_archive_cut_anywhere_is_truncated() {
        let bytes = good();
        for length in 0..bytes.len() {
            assert!(matches!(refusal(bytes[..length].to_vec()), Refusal::Truncated { .. }), "{length} bytes");
        }
    }

    #[test]
    fn what_tar_can_do_beside_files_is_refused() {
        let spoilt = |change: &dyn Fn(&mut [u8])| {
            let mut bytes = good();
            change(&mut bytes[2048..2560]);
            let sum = checksum(bytes[2048..2560].try_into().unwrap());
            bytes[2048 + 148..2048 + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            refusal(bytes).to_string()
        };
        for kind in [b'1', b'2', b'3', b'5', b'x', b'g', b'L', b'S', 0] {
            assert!(spoilt(&|header| header[156] = kind).contains("of type"), "{kind}");
        }
        assert!(spoilt(&|header| header[..10].copy_from_slice(b"../erofs\0\0")).contains("no plain file name"));
        assert!(spoilt(&|header| header[..10].copy_from_slice(b"/etc/root\0")).contains("no plain file name"));
        assert!(spoilt(&|header| header[345] = b'a').contains("long name"));
        assert!(spoilt(&|header| header[124] = 0x80).contains("no octal number"));
        assert!(spoilt(&|header| header[124..135].copy_from_slice(b"77777777777")).contains("at most"));
        assert!(spoilt(&|header| header[257] = 0).contains("no ustar header"));
    }

    #[test]
    fn order_duplicates_and_garbage_are_refused() {
        assert!(refusal(archive(&[("root.erofs", b"r")])).to_string().contains("begins with"));
        assert!(refusal(archive(&[(MANIFEST, b"m"), ("root.erofs", b"r")])).to_string().contains("begins with"));
        let twice = archive(&[(MANIFEST, b"m"), (SIGNATURE, b"s"), ("a", b"1"), ("a", b"2")]);
        assert!(refusal(twice).to_string().contains("twice"));
        let mut garbage = good();
        garbage.extend_from_slice(&[1; 512]);
        assert!(refusal(garbage).to_string().contains("follows the end"));
        let mut longer = good();
        longer.extend_from_slice(&[0; 11 << 10]);
        assert!(refusal(longer).to_string().contains("follow the end"));
        assert!(refusal(vec![0xff; 4096]).to_string().contains("no ustar header"));
    }

    #[test]
    fn tar_itself_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bundle");
        std::fs::write(&path, good()).unwrap();
        let listed = std::process::Command::new("tar").arg("--list").arg("--file").arg(&path).output().unwrap();
        assert_eq!(String::from_utf8(listed.stdout).unwrap(), "manifest.toml\nmanifest.toml.minisig\nroot.erofs\n");
    }
}
