//! The image of a service: a plain ustar archive of a tree (`tar --format=ustar --create usr`), unpacked into memory.
//!
//! Only directories and regular files are taken, and of their modes only whether a file is executable. A file system image with a
//! hash tree would be read block by block and checked as it is read; but it takes a loop device or a device-mapper node, the right to
//! mount, and another path for containers, for a service of a few MiB. The price is the memory that the tree takes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use crate::tar::{BLOCK, checksum, number};

/// Members of an archive, at most.
pub const MAX_MEMBERS: usize = 4096;

/// Unpacks an archive into a directory, which is made.
///
/// # Errors
/// One line that names the member: it is none that may be in an image, or cannot be written.
pub fn unpack(archive: &[u8], into: &Path) -> Result<(), String> {
    fs::create_dir_all(into).map_err(|error| format!("{}: {error}", into.display()))?;
    let mut rest = archive;
    let mut members = 0;
    loop {
        let Some((header, follows)) = rest.split_first_chunk::<BLOCK>() else {
            return Err("the archive has no end".into());
        };
        if *header == [0; BLOCK] {
            return Ok(());
        }
        members += 1;
        if members > MAX_MEMBERS {
            return Err(format!("more than {MAX_MEMBERS} members"));
        }
        let (path, kind, mode, size) = parse(header)?;
        let Some((content, _)) = follows.split_at_checked(size) else {
            return Err(format!("{}: the archive ends in the middle of it", path.display()));
        };
        rest = follows.get(size.next_multiple_of(BLOCK)..).unwrap_or_default();
        let to = into.join(&path);
        let written = match kind {
            b'5' => fs::create_dir_all(&to).and_then(|()| fs::set_permissions(&to, mode_of(true))),
            b'0' => {
                let executable = mode & 0o111 != 0;
                let made = to.parent().map_or(Ok(()), fs::create_dir_all);
                made.and_then(|()| fs::write(&to, content)).and_then(|()| fs::set_permissions(&to, mode_of(executable)))
            }
            other => return Err(format!("{}: a member of type {:?}", path.display(), char::from(other))),
        };
        written.map_err(|error| format!("{}: {error}", path.display()))?;
    }
}

fn mode_of(executable: bool) -> fs::Permissions {
    fs::Permissions::from_mode(if executable { 0o755 } else { 0o644 })
}

/// Path, type, mode and size of a member (POSIX.1-1988, "ustar Interchange Format").
fn parse(header: &[u8; BLOCK]) -> Result<(PathBuf, u8, u64, usize), String> {
    if header[257..263] != *b"ustar\0" || number(&header[148..156]) != Some(checksum(header)) {
        return Err("no ustar header, or one whose checksum is wrong".into());
    }
    let text = |field: &[u8]| {
        let bytes: Vec<u8> = field.iter().copied().take_while(|byte| *byte != 0).collect();
        String::from_utf8(bytes).map_err(|_| "a name that is no UTF-8".to_owned())
    };
    let (prefix, name) = (text(&header[345..500])?, text(&header[..100])?);
    if prefix.chars().chain(name.chars()).any(char::is_control) {
        return Err(format!("{prefix:?}, {name:?}: a name with control characters"));
    }
    let path = Path::new(&prefix).join(name);
    let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if !path.components().all(plain) {
        return Err(format!("{}: a name that leads elsewhere", path.display()));
    }
    let mode = number(&header[100..108]).ok_or("a mode that is no octal number")?;
    let size = number(&header[124..136]).and_then(|size| usize::try_from(size).ok());
    Ok((path, header[156], mode, size.ok_or("a size that is no octal number")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, kind: u8, mode: &str, content: &[u8]) -> Vec<u8> {
        let mut header = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, mode.as_bytes());
        put(124, format!("{:011o}", content.len()).as_bytes());
        put(156, &[kind]);
        put(257, b"ustar\x0000");
        let sum = checksum(&header);
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut bytes = header.to_vec();
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn archive(members: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = members.concat();
        bytes.resize(bytes.len() + 2 * BLOCK, 0);
        bytes
    }

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("trilith-tree-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    #[test]
    fn files_and_directories_are_made_and_only_executables_are_executable() {
        let into = folder("good");
        let bytes = archive(&[
            member("./", b'5', "0000755\0", b""),
            member("usr/bin/", b'5', "0000700\0", b""),
            member("usr/bin/service", b'0', "0004755\0", &[7; 1000]),
            member("usr/share/text", b'0', "0000666\0", b"words"),
        ]);
        unpack(&bytes, &into).unwrap();
        let mode = |path: &str| fs::metadata(into.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(fs::read(into.join("usr/bin/service")).unwrap(), [7; 1000]);
        assert_eq!((mode("usr/bin/service"), mode("usr/share/text"), mode("usr/bin")), (0o755, 0o644, 0o755));
        fs::remove_dir_all(into).unwrap();
    }

    #[test]
    fn as_many_members_as_may_be_are_taken_and_one_more_is_refused() {
        let into = folder("many");
        let mut members = vec![member("./", b'5', "0000755\0", b""); MAX_MEMBERS];
        unpack(&archive(&members), &into).unwrap();
        members.push(member("one-more", b'0', "0000644\0", b""));
        assert_eq!(unpack(&archive(&members), &into), Err("more than 4096 members".to_owned()));
        assert!(!into.join("one-more").exists());
        fs::remove_dir_all(into).unwrap();
    }

    #[test]
    fn what_leads_elsewhere_or_is_cut_off_is_refused() {
        let into = folder("bad");
        let file = |name: &str| member(name, b'0', "0000644\0", b"x");
        for bytes in [
            archive(&[file("../outside")]),
            archive(&[file("/outside")]),
            archive(&[file("usr/../../outside")]),
            archive(&[file("usr/\u{1b}[2J")]),
            archive(&[member("link", b'2', "0000777\0", b"")]),
            archive(&[member("device", b'3', "0000777\0", b"")]),
            file("no end"),
            member("cut", b'0', "0000644\0", &[1; 2000])[..BLOCK * 2].to_vec(),
        ] {
            assert!(unpack(&bytes, &into).is_err());
        }
        let mut damaged = archive(&[file("name")]);
        damaged[0] ^= 1;
        assert!(unpack(&damaged, &into).unwrap_err().contains("checksum"));
        fs::remove_dir_all(into).unwrap();
    }
}
