//! Notices: what other programs have to say to an admin, a file each in `/run/trilith/notices`.
//!
//! A program that found something an admin must know (a state partition made anew, an answer that was wrong) leaves a file
//! there, its name one word, its content one line. `trilith status` and the console show each as an alarm until
//! whoever left it takes it away, or the next boot.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// What one program has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Name of the file; empty for what concerns the folder itself.
    pub name: String,
    /// One line.
    pub text: String,
}

/// All notices in `folder`, in the order of their names: at most [`MOST`], of each the first line with something in it.
///
/// A folder that is not there holds none. One that can't be read is told as a notice itself.
pub fn read(folder: &Path) -> Vec<Notice> {
    let about = |text: String| Notice { name: String::new(), text };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![about(format!("notices in {} cannot be read: {error}", folder.display()))],
    };
    let mut paths: Vec<_> = entries.flatten().take(LOOKED_AT).map(|entry| entry.path()).collect();
    paths.sort();
    let more = paths.len().saturating_sub(MOST);
    paths.truncate(MOST);
    let notice = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Some(Notice { name, text: first_line(path)? })
    };
    let mut notices: Vec<Notice> = paths.iter().filter_map(notice).collect();
    if more > 0 {
        notices.push(about(format!("{more} more notices in {}", folder.display())));
    }
    notices
}

/// Leaves a notice, or takes it away. The folder is made if it is not there.
///
/// # Errors
/// The folder or the file can't be written.
pub fn write(folder: &Path, name: &str, text: Option<&str>) -> std::io::Result<()> {
    let path = folder.join(name);
    match text {
        Some(text) => {
            std::fs::create_dir_all(folder)?;
            std::fs::write(path, format!("{text}\n"))
        }
        None => match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

fn first_line(path: &Path) -> Option<String> {
    if !path.symlink_metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(LONGEST).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let plain = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>();
    text.lines().map(plain).map(|line| line.trim().to_owned()).find(|line| !line.is_empty())
}

/// So many are shown.
const MOST: usize = 64;
/// So many entries of the folder are looked at.
const LOOKED_AT: usize = 1024;
/// So many bytes of each are read.
const LONGEST: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_notice_is_its_first_line_and_there_is_a_bound_to_all_of_it() {
        let folder = std::env::temp_dir().join(format!("trilith-notices-{}", std::process::id()));
        assert_eq!(read(&folder), Vec::new());
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("state"), "\nthe state partition was made anew\u{1b}[2J\nmore\n").unwrap();
        std::fs::write(folder.join("empty"), "\n\u{1b}\n").unwrap();
        std::fs::write(folder.join("long"), "x".repeat(100_000)).unwrap();
        std::fs::create_dir(folder.join("folder")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.join("link")).unwrap();
        let texts = |notices: &[Notice]| notices.iter().map(|notice| notice.text.clone()).collect::<Vec<_>>();
        assert_eq!(texts(&read(&folder)), ["x".repeat(4096), "the state partition was made anew[2J".to_owned()]);
        for number in 0..70 {
            std::fs::write(folder.join(format!("many-{number}")), "one").unwrap();
        }
        let notices = read(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(notices.len() <= MOST + 1, "{}", notices.len());
        assert!(notices.last().unwrap().text.contains("11 more notices in "), "{notices:?}");
    }
}
