//! What is kept of the answers, in the state directory, and how it gets there whole.
//!
//! All files of one set of answers are written beside their places, made durable, and committed by one rename; then they are
//! moved to their places. A power cut before the rename leaves nothing of them, one after it is made up for by the next boot.
//!
//! | file | what it holds |
//! |---|---|
//! | `answers.toml` | the record, without secrets; moved last, so it says that the rest is in place |
//! | `passwords` | hashes of passwords, for root only |
//! | `set.toml`, `secret`, `node` | what makes this machine a node of a set |
//! | `files/` | files of `write_files` |
//! | `reset` | that the next boot shall take the answers anew |
//!
//! A reset with answers for the same set leaves `set.toml` alone: the set's own document may be another by now. With answers for
//! another one the node leaves its set, and with that what it has agreed on there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use trilith_core::config;

use crate::answers::{Answers, Secret, StateFile};

/// The state directory of a node.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// The state directory below a root, `/` for this machine's own.
    pub fn below(root: &Path) -> Store {
        Store { directory: root.join(DIRECTORY) }
    }

    /// Finishes what a power cut interrupted.
    ///
    /// # Errors
    /// Which file, and what failed.
    pub fn recover(&self) -> anyhow::Result<()> {
        remove_all(&self.path(STAGED))?;
        if self.path(COMMITTED).exists() { self.publish() } else { Ok(()) }
    }

    /// The answers that were stored; `None` when there are none yet.
    ///
    /// # Errors
    /// The record is there and can't be read or understood.
    pub fn load(&self) -> anyhow::Result<Option<Answers>> {
        let path = self.path(RECORD);
        let Some(text) = read(&path)? else { return Ok(None) };
        let mut answers: Answers = toml::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
        let path = self.path(PASSWORDS);
        let passwords = read(&path)?.unwrap_or_default();
        let passwords: BTreeMap<String, String> =
            toml::from_str(&passwords).with_context(|| format!("reading {}", path.display()))?;
        for (name, hash) in passwords {
            answers.user(&name).password = Some(Secret(hash));
        }
        Ok(Some(answers))
    }

    /// Stores answers in the place of any there were.
    ///
    /// # Errors
    /// Which file, and what failed. Nothing of them is in place then, or the next [`recover`](Store::recover) finishes it.
    pub fn store(&self, answers: &Answers) -> anyhow::Result<()> {
        self.recover()?;
        let staged = self.path(STAGED);
        directory(&staged)?;
        let put = |name: &str, bytes: &[u8], mode| write(&staged.join(name), bytes, mode);
        put(RECORD, toml::to_string_pretty(answers).context("writing the record")?.as_bytes(), 0o644)?;
        let passwords: BTreeMap<&str, &str> = answers
            .users
            .iter()
            .filter_map(|user| user.password.as_ref().map(|hash| (user.name.as_str(), hash.0.as_str())))
            .collect();
        put(PASSWORDS, toml::to_string(&passwords).context("writing the passwords")?.as_bytes(), 0o600)?;
        let mut gone = Vec::new();
        let stays = self.reset_is_wanted() && self.is_of(answers)?;
        if self.reset_is_wanted() && !stays {
            gone.extend(AGREED);
        }
        match &answers.set {
            Some(set) => {
                // The document that its set has agreed on meanwhile counts, not the one that it was founded with.
                if !stays {
                    put("set.toml", set.document.as_bytes(), 0o644)?;
                }
                put("node", format!("{}\n", set.node).as_bytes(), 0o644)?;
                match &set.secret {
                    Some(secret) => put("secret", format!("{}\n", secret.0).as_bytes(), 0o600)?,
                    None => gone.push("secret"),
                }
            }
            // Answers that are taken anew leave nothing behind of those before; a first boot leaves alone what an admin put there.
            None if self.reset_is_wanted() => gone.extend(["set.toml", "node", "secret"]),
            None => {}
        }
        put(GONE, gone.join("\n").as_bytes(), 0o600)?;
        for file in &answers.files {
            self.stage(&staged.join(FILES), file)?;
        }
        sync_tree(&staged)?;
        fs::rename(&staged, self.path(COMMITTED)).with_context(|| format!("committing {}", staged.display()))?;
        sync(&self.directory)?;
        self.publish()
    }

    /// Whether this machine is that node of that set already: by the set's name and secret, and the nodes with their addresses.
    fn is_of(&self, answers: &Answers) -> anyhow::Result<bool> {
        let (Some(set), Some(now)) = (&answers.set, read(&self.path("set.toml"))?) else { return Ok(false) };
        let parsed = (config::parse(&now, "set.toml"), config::parse(&set.document, "answers"));
        let (Ok(now), Ok(then)) = parsed else { return Ok(false) };
        let address = |node: &config::Node| (node.name.clone(), node.address, node.address6);
        let place = Path::new(&then.set.secret_file);
        let is_secret = |file: &&StateFile| Path::new("/").join(DIRECTORY).join(FILES).join(&file.path) == place;
        let given = match &set.secret {
            Some(secret) => Some(secret.0.clone().into_bytes()),
            None => answers.files.iter().find(is_secret).map(|file| file.content.clone()),
        };
        let root = self.directory.ancestors().nth(Path::new(DIRECTORY).components().count());
        let known = fs::read(root.unwrap_or(Path::new("/")).join(place.strip_prefix("/").unwrap_or(place))).ok();
        let (given, known) = (given.or_else(|| known.clone()), known);
        Ok(now.set.name == then.set.name
            && now.set.secret_file == then.set.secret_file
            && now.nodes.iter().map(address).eq(then.nodes.iter().map(address))
            && read(&self.path("node"))?.is_some_and(|node| node.trim() == set.node)
            && known.as_deref().map(<[u8]>::trim_ascii) == given.as_deref().map(<[u8]>::trim_ascii))
    }

    /// Whether the answers shall be taken anew.
    pub fn reset_is_wanted(&self) -> bool {
        self.path(RESET).exists()
    }

    /// Asks the next boot to take the answers anew.
    ///
    /// # Errors
    /// The marker can't be written.
    pub fn want_reset(&self) -> anyhow::Result<()> {
        write(&self.path(RESET), b"", 0o644)?;
        sync(&self.directory)
    }

    /// Moves what was committed to its places; may be done again from any point of it.
    fn publish(&self) -> anyhow::Result<()> {
        let committed = self.path(COMMITTED);
        for name in read(&committed.join(GONE))?.unwrap_or_default().lines() {
            remove_all(&self.path(name))?;
        }
        for name in ["set.toml", "secret", "node", PASSWORDS] {
            move_file(&committed.join(name), &self.path(name))?;
        }
        move_tree(&committed.join(FILES), &self.path(FILES))?;
        sync(&self.directory)?;
        move_file(&committed.join(RECORD), &self.path(RECORD))?;
        remove_all(&self.path(RESET))?;
        sync(&self.directory)?;
        remove_all(&committed)?;
        sync(&self.directory)
    }

    /// A file with its whole content, what it is appended to included: publishing it twice appends it once.
    fn stage(&self, staged: &Path, file: &StateFile) -> anyhow::Result<()> {
        let path = staged.join(&file.path);
        let mut content = Vec::new();
        if file.append {
            let before = [path.clone(), self.path(FILES).join(&file.path)];
            if let Some(before) = before.iter().find(|path| path.exists()) {
                content = fs::read(before).with_context(|| format!("reading {}", before.display()))?;
            }
        }
        content.extend(&file.content);
        if let Some(parent) = path.parent() {
            directory(parent)?;
        }
        write(&path, &content, file.mode)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let written = (|| -> io::Result<()> {
        let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(path)?;
        // The mode above holds for new files and is less the umask.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    written.with_context(|| format!("writing {}", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(MAX_RECORD).read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn directory(path: &Path) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.with_context(|| format!("making {}", path.display()))
}

fn sync(path: &Path) -> anyhow::Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).with_context(|| format!("syncing {}", path.display()))
}

fn sync_tree(path: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(path).with_context(|| format!("reading {}", path.display()))?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            sync_tree(&entry.path())?;
        }
    }
    sync(path)
}

fn remove_all(path: &Path) -> anyhow::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    removed.with_context(|| format!("removing {}", path.display()))
}

/// Moves a file; nothing to do when it was moved before.
fn move_file(from: &Path, to: &Path) -> anyhow::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("moving {} to {}", from.display(), to.display()))
        }
        _ => Ok(()),
    }
}

fn move_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    directory(to)?;
    for entry in entries.flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            move_tree(&from, &to)?;
        } else {
            move_file(&from, &to)?;
        }
    }
    sync(to)
}

const DIRECTORY: &str = "var/lib/trilith";
const RECORD: &str = "answers.toml";
const PASSWORDS: &str = "passwords";
const FILES: &str = "files";
const RESET: &str = "reset";
/// What a node has agreed on with the others of its set, and leaves behind with it.
const AGREED: [&str; 3] = ["raft", "coordinator.json", "document-trial.json"];
/// Answers that are being written.
const STAGED: &str = ".firstboot.new";
/// Answers that are whole and on their way to their places.
const COMMITTED: &str = ".firstboot";
/// Names of what is removed when they get there.
const GONE: &str = ".gone";
/// Far above any record: documents are at most 1 MiB, and the record holds less than they do.
const MAX_RECORD: u64 = 8 * 1024 * 1024;

#[cfg(test)]
mod tests;
