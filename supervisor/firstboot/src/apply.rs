//! Writing what was rendered. `/etc` is new at each boot, so this happens at each boot.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::answers::Answers;
use crate::render::{self, Base, CERTIFICATES, Content, Entry, NETWORK_DIR};
use crate::report::{FILE, NOTICE_PREFIX, NOTICES, NetworkOutcome, Report};

/// Applies answers below a root; without answers there is only the network to see to.
///
/// # Errors
/// Which file, and what failed.
pub(crate) fn apply(root: &Path, answers: Option<&Answers>, network: NetworkOutcome) -> anyhow::Result<()> {
    clear(&below(root, NETWORK_DIR), |name| name.starts_with("10-trilith-") || name == "90-trilith-dhcp.network")?;
    let mut entries = match network {
        NetworkOutcome::Answers => render::render_network(answers.and_then(|answers| answers.network.as_ref())),
        NetworkOutcome::Dhcp => render::render_network(None),
        NetworkOutcome::Wrong => Vec::new(),
    };
    if let Some(answers) = answers {
        entries.extend(render::render(answers, &base(root, answers)));
    }
    for entry in &entries {
        write(root, entry).with_context(|| format!("writing {}", entry.path))?;
    }
    // systemd has read /etc/hostname long before, when it was still the image's.
    if root == Path::new("/")
        && let Some(hostname) = answers.and_then(|answers| answers.hostname.as_ref())
    {
        nix::unistd::sethostname(hostname).with_context(|| format!("setting the host's name to {hostname}"))?;
    }
    Ok(())
}

/// Writes the report and one notice for each thing that an admin should know.
///
/// # Errors
/// Which file, and what failed.
pub(crate) fn say(root: &Path, report: &Report) -> anyhow::Result<()> {
    let notices = root.join(NOTICES);
    fs::create_dir_all(&notices).with_context(|| format!("making {}", notices.display()))?;
    clear(&notices, |name| name.starts_with(NOTICE_PREFIX))?;
    for (number, notice) in report.notices.iter().enumerate() {
        let path = notices.join(format!("{NOTICE_PREFIX}{number:02}"));
        let line: String = notice.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        fs::write(&path, line + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    let path = root.join(FILE);
    let text = serde_json::to_string_pretty(report)? + "\n";
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

fn base(root: &Path, answers: &Answers) -> Base {
    // What the image does not have is empty.
    let text = |path: &str| fs::read_to_string(below(root, path)).unwrap_or_default();
    let zone = answers.timezone.as_ref().map(|zone| below(root, "/usr/share/zoneinfo").join(zone));
    Base {
        passwd: text("/etc/passwd"),
        shadow: text("/etc/shadow"),
        group: text("/etc/group"),
        certificates: text(CERTIFICATES),
        has_timezone: zone.is_some_and(|zone| zone.is_file()),
    }
}

fn write(root: &Path, entry: &Entry) -> io::Result<()> {
    let path = below(root, &entry.path);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".trilith-new");
    let beside = path.with_file_name(name);
    match &entry.content {
        Content::File(text) => {
            fs::write(&beside, text)?;
            fs::set_permissions(&beside, fs::Permissions::from_mode(0o644))?;
        }
        Content::Edited(text) => {
            // Closed to all until the owner is right: it may be the file of passwords.
            let kept = fs::metadata(&path);
            fs::write(&beside, "")?;
            fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
            fs::write(&beside, text)?;
            if let Ok(kept) = kept {
                chown(&beside, Some(kept.uid()), Some(kept.gid()))?;
                fs::set_permissions(&beside, fs::Permissions::from_mode(kept.mode() & 0o7777))?;
            } else if !path.ends_with("shadow") {
                fs::set_permissions(&beside, fs::Permissions::from_mode(0o644))?;
            }
        }
        Content::Link(target) => {
            let _ = fs::remove_file(&beside);
            symlink(target, &beside)?;
        }
    }
    fs::rename(&beside, &path)
}

/// Removes the files of a directory whose names are ours.
fn clear(directory: &Path, ours: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(()) };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(&ours)) {
        fs::remove_file(entry.path()).with_context(|| format!("removing {}", entry.path().display()))?;
    }
    Ok(())
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}
