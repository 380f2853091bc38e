//! The bundles that a node holds: `bundles/<release>/` with a file for each part, and `bundles/<release>.part/` while one comes.
//!
//! A directory gets its final name by one rename, after every byte in it was checked against the signed manifest. So whatever is
//! found under a final name is whole, and what is found under another one can be gone on with.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};
use trilith_core::set::Release;

use crate::Hash;
use crate::failure::Failure;
use crate::manifest::{Manifest, Verified};
use crate::source::Source;
use crate::tar::{MANIFEST, SIGNATURE};

/// A directory of bundles. Every call reads the disk: there is no state to go stale.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the directory, which is made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(root: &Path) -> Result<Store, Failure> {
        fs::create_dir_all(root).map_err(Failure::file("made", root))?;
        Ok(Store { root: root.to_owned() })
    }

    /// The releases that are there in full, lowest first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<Release>, Failure> {
        self.named(|name| name.parse().ok())
    }

    /// The releases of which only a part is there. Nobody may ever go on with it: it stays until its room is needed.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn unfinished(&self) -> Result<Vec<Release>, Failure> {
        self.named(|name| name.strip_suffix(PARTIAL)?.parse().ok())
    }

    fn named(&self, release: impl Fn(&str) -> Option<Release>) -> Result<Vec<Release>, Failure> {
        let unread = || Failure::file("read", &self.root);
        let mut releases = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(unread())? {
            let name = entry.map_err(unread())?.file_name();
            releases.extend(name.to_str().and_then(&release));
        }
        releases.sort();
        Ok(releases)
    }

    /// A bundle that is there in full.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub fn get(&self, release: &Release) -> Result<Source, Failure> {
        Source::open_directory(&self.path(release))
    }

    /// Whether this very bundle is there in full, by the hash of its manifest ([`Manifest::id`]): the same version may have been made
    /// twice.
    pub fn holds(&self, release: &Release, id: &str) -> bool {
        let source = self.get(release);
        source.is_ok_and(|source| Hash(Sha256::digest(source.manifest()).into()).to_string() == id)
    }

    /// Where a bundle is, or would be.
    pub fn path(&self, release: &Release) -> PathBuf {
        self.root.join(release.to_string())
    }

    /// Removes a bundle, and what is there of it if it has never become whole.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, release: &Release) -> Result<(), Failure> {
        for path in [self.path(release), self.partial(release)] {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::file("removed", &path)(error));
                }
                _ => {}
            }
        }
        sync(&self.root)
    }

    /// Bytes of a bundle that there is room for. What has never become whole is a part of it, or makes way.
    ///
    /// # Errors
    /// The disk cannot be looked at.
    pub fn room(&self) -> Result<u64, Failure> {
        Ok((free(&self.root)? + self.half_done()?).saturating_sub(SPARE))
    }

    /// Bytes of what has never become whole.
    fn half_done(&self) -> Result<u64, Failure> {
        let mut bytes = 0;
        for release in self.unfinished()? {
            let path = self.partial(&release);
            let unread = || Failure::file("read", &path);
            for entry in fs::read_dir(&path).map_err(unread())? {
                bytes += entry.and_then(|entry| entry.metadata()).map_err(unread())?.blocks() * 512;
            }
        }
        Ok(bytes)
    }

    /// Begins to take a bundle in, or goes on where it was left. Nothing when it is there already.
    ///
    /// # Errors
    /// It is being taken in by somebody else, another bundle has its place, the disk is full or fails.
    pub(crate) fn begin(&self, verified: &Verified) -> Result<Option<Partial>, Failure> {
        let release = verified.manifest().release();
        let whole = self.path(&release);
        if whole.exists() {
            let known = self.get(&release)?;
            return match known.manifest() == verified.bytes() {
                true => Ok(None),
                false => Err(Failure::OtherBundle { release: release.to_string() }),
            };
        }
        let path = self.partial(&release);
        fs::create_dir_all(&path).map_err(Failure::file("made", &path))?;
        let lock = File::open(&path).map_err(Failure::file("opened", &path))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| Failure::Busy { release: release.to_string() })?;
        let manifest = path.join(MANIFEST);
        if fs::read(&manifest).is_ok_and(|bytes| bytes != verified.bytes()) {
            // The rest of another bundle of this release. Its blocks are still worth something, its signature is not.
            fs::remove_file(&manifest).map_err(Failure::file("removed", &manifest))?;
        }
        let partial = Partial { store: self.clone(), path, manifest: verified.manifest().clone(), _lock: lock };
        if let Err(Failure::NoSpace { .. }) = partial.reserve() {
            self.sweep()?;
        }
        partial.reserve()?;
        partial.put(MANIFEST, verified.bytes())?;
        partial.put(SIGNATURE, verified.signature())?;
        Ok(Some(partial))
    }

    /// Removes what has never become whole, unless somebody is at it.
    fn sweep(&self) -> Result<(), Failure> {
        for release in self.unfinished()? {
            let path = self.partial(&release);
            let directory = File::open(&path).map_err(Failure::file("opened", &path))?;
            if Flock::lock(directory, FlockArg::LockExclusiveNonblock).is_ok() {
                fs::remove_dir_all(&path).map_err(Failure::file("removed", &path))?;
            }
        }
        sync(&self.root)
    }

    fn partial(&self, release: &Release) -> PathBuf {
        self.root.join(format!("{release}{PARTIAL}"))
    }
}

/// A bundle that is being taken in. Nobody else takes it in meanwhile.
pub(crate) struct Partial {
    store: Store,
    path: PathBuf,
    manifest: Manifest,
    _lock: Flock<File>,
}

impl Partial {
    /// The file of a part.
    pub(crate) fn part(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether there is room for what is still missing, and a little more for everybody else on this disk.
    fn reserve(&self) -> Result<(), Failure> {
        let present = |name: &str| fs::metadata(self.part(name)).map_or(0, |meta| meta.blocks() * 512);
        let needed =
            self.manifest.needed().map(|part| part.size.saturating_sub(present(&part.name))).sum::<u64>() + SPARE;
        let free = free(&self.path)?;
        if free < needed { Err(Failure::NoSpace { needed, free }) } else { Ok(()) }
    }

    /// Writes a small part in full.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.part(name);
        let mut file = File::create(&path).map_err(Failure::file("made", &path))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Failure::file("written", &path))
    }

    /// Checks everything and gives the directory its final name.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        let source = Source::open_directory(&self.path)?;
        source.check(&self.manifest)?;
        for name in self.manifest.needed().map(|part| part.name.as_str()).chain([MANIFEST, SIGNATURE]) {
            sync(&self.part(name))?;
        }
        sync(&self.path)?;
        let whole = self.store.path(&self.manifest.release());
        fs::rename(&self.path, &whole).map_err(Failure::file("renamed", &self.path))?;
        sync(&self.store.root)
    }
}

fn free(path: &Path) -> Result<u64, Failure> {
    let disk = nix::sys::statvfs::statvfs(path).map_err(|error| Failure::file("looked at", path)(error.into()))?;
    Ok(disk.blocks_available() as u64 * disk.fragment_size() as u64)
}

fn sync(path: &Path) -> Result<(), Failure> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Failure::file("written to the disk", path))
}

/// What the name of a bundle's directory ends in until it is whole.
const PARTIAL: &str = ".part";
/// Bytes that stay free on the state partition: logs, records and configuration need little, but they need it.
const SPARE: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use trilith_core::set::Version;

    use super::*;

    #[test]
    fn what_was_left_half_done_makes_room_and_what_is_being_taken_in_stays() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let [left, taken] = [1, 2].map(|patch| Release::system(Version::new(0, 0, patch)));
        for release in [&left, &taken] {
            fs::create_dir(store.partial(release)).unwrap();
        }
        let whole = store.path(&Release::system(Version::new(0, 0, 3)));
        fs::create_dir(&whole).unwrap();
        assert_eq!(store.half_done().unwrap(), 0);
        for (directory, size) in [(store.partial(&left), 9000), (store.partial(&taken), 5000), (whole.clone(), 7000)] {
            let mut file = File::create(directory.join(MANIFEST)).unwrap();
            file.write_all(&vec![1; size]).and_then(|()| file.sync_all()).unwrap();
        }
        let blocks = |release| fs::metadata(store.partial(release).join(MANIFEST)).unwrap().blocks() * 512;
        assert_eq!(store.half_done().unwrap(), blocks(&left) + blocks(&taken), "that would be room");
        let held = File::open(store.partial(&taken)).unwrap();
        let _held = Flock::lock(held, FlockArg::LockExclusiveNonblock).unwrap();
        store.sweep().unwrap();
        assert_eq!((store.unfinished().unwrap(), whole.exists()), (vec![taken], true));
    }
}
