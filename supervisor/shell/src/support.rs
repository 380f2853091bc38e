//! The support bundle: one archive with what somebody who helps from afar would ask for, and no secret in it.
//!
//! Whoever is not root has it gathered by `trilith-support.service`, through the supervisor, and fetches what that has written;
//! where there is no supervisor it is gathered with the rights of who asks. What can't be had is told in its place; a bundle is never
//! refused for that.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;
use trilith_core::status::Status;

use crate::control::client::ask;
use crate::control::{Request, Response};
use crate::utc::Utc;
use crate::{cli, disk, notices, paths, systemd};

mod scrub;
mod tar;

/// Has the unit write a bundle, and tells where it is.
///
/// # Errors
/// One line that says what is wrong.
pub async fn by_unit() -> Result<String, String> {
    systemd::run_once(UNIT, PATIENCE).await?;
    match newest() {
        Some(path) => Ok(written(&path)),
        None => Err(format!("{UNIT} has left no bundle in {}; the node's logs say more", paths::SUPPORT_DIR)),
    }
}

/// The bundle that the unit has written last.
pub fn newest() -> Option<PathBuf> {
    bundles(Path::new(paths::SUPPORT_DIR)).ok()?.pop()
}

/// Copies a bundle to `output`: a folder, a file, or `-` for stdout. Returns where it is when it is in a folder.
///
/// # Errors
/// It can't be read or written.
pub fn fetch(bundle: &Path, output: &Path) -> Result<Option<PathBuf>> {
    let bytes = fs::read(bundle).with_context(|| format!("reading {}", bundle.display()))?;
    if output.is_dir() {
        let path = output.join(bundle.file_name().unwrap_or_default());
        into_file(&path, &bytes)?;
        return Ok(Some(path));
    }
    put(output, &bytes)?;
    Ok(None)
}

/// Gathers a bundle here and now and writes it into `folder`, where at most [`KEPT`] stay; returns its path.
///
/// # Errors
/// The file can't be written.
pub async fn into_folder(folder: &Path, socket: &Path) -> Result<PathBuf> {
    let (name, bytes) = gather(socket).await?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let path = folder.join(format!("{name}{SUFFIX}"));
    into_file(&path, &bytes)?;
    let old = bundles(folder)?;
    for path in &old[..old.len().saturating_sub(KEPT)] {
        fs::remove_file(path).with_context(|| format!("removing the old bundle {}", path.display()))?;
    }
    Ok(path)
}

/// Gathers a bundle here and now and writes it to `output`, `-` for stdout.
///
/// # Errors
/// The file can't be written.
pub async fn into_output(output: &Path, socket: &Path) -> Result<()> {
    let (_, bytes) = gather(socket).await?;
    put(output, &bytes)
}

fn put(output: &Path, bytes: &[u8]) -> Result<()> {
    if output == "-" {
        let mut stdout = io::stdout().lock();
        return stdout.write_all(bytes).and_then(|()| stdout.flush()).context("writing the bundle to stdout");
    }
    into_file(output, bytes)
}

/// What is told when a bundle is there.
pub fn written(path: &Path) -> String {
    format!("support bundle: {}", path.display())
}

fn into_file(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().with_context(|| format!("writing the bundle {}", path.display()))
}

/// The bundles in `folder`, oldest first. Those of the future were written before the clock was set back.
fn bundles(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(SUFFIX)));
    let now = SystemTime::now();
    paths.sort_by_key(|path| {
        let written = fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        (written <= now, written)
    });
    Ok(paths)
}

/// The bundle's name and bytes.
async fn gather(socket: &Path) -> Result<(String, Vec<u8>)> {
    let now = SystemTime::now();
    let answer = ask(socket, Request::Status);
    let status = match &answer {
        Ok(Response::Status(status)) => Some(&**status),
        _ => None,
    };
    let node = status.map_or_else(host_name, |status| status.node.clone());
    let name = format!("trilith-{node}-{}", Utc::of(now).compact());
    let secret = status.is_some().then(set_secret).flatten();
    let mut parts = vec![("about.txt".to_owned(), about(&node, now, status))];
    match status {
        Some(status) => parts.push(("status.json".to_owned(), serde_json::to_string_pretty(status)?)),
        None => {
            let why = answer.map_or_else(|error| error.to_string(), |other| other.text().to_owned());
            parts.push(("status.json".to_owned(), format!("no status: {why}\n")));
        }
    }
    let notices = notices::read(paths::NOTICES.as_ref()).into_iter();
    let notices = notices.map(|notice| format!("{}: {}\n", notice.name, notice.text)).collect();
    parts.push(("notices.txt".to_owned(), notices));
    for (file, path) in FILES {
        parts.push(((*file).to_owned(), read_bounded(Path::new(path))));
    }
    for (file, command) in COMMANDS {
        parts.push(((*file).to_owned(), output_of(command).await));
    }
    let haproxy = crate::haproxy::show_stat().await;
    parts.push(("haproxy-stat.csv".to_owned(), haproxy.unwrap_or_else(|error| format!("no answer: {error}\n"))));
    let mut archive = tar::Archive::new(&name, now);
    for (file, text) in parts {
        archive.add(&file, scrub::scrub(&text, secret.as_deref()).as_bytes())?;
    }
    Ok((name, archive.finish()?))
}

/// The secret of the set, so that it can be looked for; whoever may not read it can't have it in what it reads either.
fn set_secret() -> Option<zeroize::Zeroizing<Vec<u8>>> {
    let settings = disk::load_settings(paths::SET_FILE.as_ref()).ok()?;
    disk::load_secret(settings.set.secret_file.as_ref()).ok()
}

fn host_name() -> String {
    fs::read_to_string(paths::HOSTNAME).map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

fn about(node: &str, now: SystemTime, status: Option<&Status>) -> String {
    let mut text =
        format!("Support bundle of node {node}, made at {} by trilith {}.\n\n", Utc::of(now), crate::version::words());
    if let Some(status) = status {
        for line in cli::status::view(status, 100) {
            text.extend(line.iter().map(|word| word.text.as_str()));
            text.push('\n');
        }
    }
    text
}

fn read_bounded(path: &Path) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    match fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut bytes)) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("{}: {error}\n", path.display()),
    }
}

/// What a command prints, stderr included, cut at [`LONGEST`].
async fn output_of(command: &[&str]) -> String {
    let line = command.join(" ");
    let mut child = match Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
    {
        Ok(child) => child,
        Err(error) => return format!("cannot run {line}: {error}\n"),
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let read = async {
        let (mut said, mut complained) = (Vec::new(), Vec::new());
        let out = async {
            match stdout {
                Some(stdout) => stdout.take(LONGEST).read_to_end(&mut said).await,
                None => Ok(0),
            }
        };
        let err = async {
            match stderr {
                Some(stderr) => stderr.take(LONGEST).read_to_end(&mut complained).await,
                None => Ok(0),
            }
        };
        let _ = tokio::join!(out, err);
        said.extend(complained);
        said
    };
    match timeout(COMMAND_PATIENCE, read).await {
        Ok(said) => String::from_utf8_lossy(&said).into_owned(),
        Err(_) => format!("{line} did not end within {} s\n", COMMAND_PATIENCE.as_secs()),
    }
}

/// Files that are taken as they are.
const FILES: &[(&str, &str)] = &[
    ("firstboot.json", paths::FIRSTBOOT_REPORT),
    ("set.toml", paths::SET_FILE),
    ("haproxy.cfg", "/run/trilith/haproxy.cfg"),
    ("cmdline.txt", "/proc/cmdline"),
    ("mounts.txt", "/proc/self/mounts"),
    ("partitions.txt", "/proc/partitions"),
    ("memory.txt", "/proc/meminfo"),
    ("pressure-cpu.txt", "/proc/pressure/cpu"),
    ("pressure-memory.txt", "/proc/pressure/memory"),
    ("pressure-io.txt", "/proc/pressure/io"),
    ("os-release.txt", "/usr/lib/os-release"),
];
/// Commands whose output is taken. The journal comes newest first, so that a cut loses the oldest.
const COMMANDS: &[(&str, &[&str])] = &[
    ("journal.txt", &["journalctl", "--no-pager", "--reverse", "--lines=20000", "--output=short-iso-precise"]),
    ("units.txt", &["systemctl", "--no-pager", "--all", "list-units"]),
    (
        "resources.txt",
        &["systemctl", "--no-pager", "show", "--property=Id,CPUUsageNSec,MemoryCurrent,NRestarts", "*.service"],
    ),
    ("ip-address.txt", &["ip", "-details", "address"]),
    ("ip-link.txt", &["ip", "-statistics", "link"]),
    ("ip-route.txt", &["ip", "route", "show", "table", "all"]),
    ("ip-rule.txt", &["ip", "rule"]),
    ("ip-neighbour.txt", &["ip", "neighbour"]),
    ("sockets.txt", &["ss", "--summary"]),
    ("nft.txt", &["nft", "list", "ruleset"]),
];
/// The unit that gathers as root.
const UNIT: &str = "trilith-support.service";
const SUFFIX: &str = ".tar.gz";
/// So many bundles stay in the folder.
const KEPT: usize = 3;
/// The most that is taken of one file or command, in bytes.
const LONGEST: u64 = 8 * 1024 * 1024;
/// How long the unit may take; less than a request may.
const PATIENCE: Duration = Duration::from_secs(7);
/// How long one command may take.
const COMMAND_PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bundle_is_an_archive_that_tar_reads_and_only_the_newest_are_kept() {
        let folder = std::env::temp_dir().join(format!("trilith-support-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        for number in 0..KEPT {
            let old = fs::File::create(folder.join(format!("old-{number}{SUFFIX}"))).unwrap();
            // The clock was set back since.
            old.set_modified(SystemTime::now() + Duration::from_secs(3600)).unwrap();
        }
        fs::write(folder.join("notes"), "").unwrap();
        let path = into_folder(&folder, Path::new("/nonexistent.sock")).await.unwrap();
        let listed =
            std::process::Command::new("tar").arg("--list").arg("--gzip").arg("--file").arg(&path).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let extract = ["--extract", "--to-stdout", "--gzip", "--wildcards", "*/status.json", "--file"];
        let status = std::process::Command::new("tar").args(extract).arg(&path).output().unwrap();
        let left = fs::read_dir(&folder).unwrap().count();
        fs::remove_dir_all(&folder).unwrap();
        for file in
            ["/about.txt", "/journal.txt", "/nft.txt", "/ip-address.txt", "/haproxy-stat.csv", "/firstboot.json"]
        {
            assert!(listed.lines().any(|line| line.ends_with(file)), "{file} is not in\n{listed}");
        }
        let status = String::from_utf8(status.stdout).unwrap();
        assert!(status.starts_with("no status: the supervisor is not running"), "{status}");
        assert_eq!(left, KEPT + 1, "the bundles and the notes");
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_told_in_its_place() {
        assert!(output_of(&["/nonexistent"]).await.starts_with("cannot run /nonexistent: "));
        assert!(read_bounded(Path::new("/nonexistent")).contains("No such file"));
    }
}
