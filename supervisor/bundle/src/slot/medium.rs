//! A disk that can be cut at every single write, and that then keeps of what was not flushed whatever it likes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

use super::{Disk, Partition};
use crate::BLOCK;

/// What each file holds.
type Files = BTreeMap<u32, Vec<u8>>;
/// A file without content.
const EMPTY: u32 = u32::MAX;
/// Bytes that a disk writes as one.
const SECTOR: usize = 512;

/// The disk. Blocks, files and names each have what is on the medium, and what was written since the last flush.
#[derive(Clone)]
pub(super) struct Medium {
    pub(super) partitions: BTreeMap<Partition, Rc<Vec<u8>>>,
    pub(super) files: Files,
    pub(super) names: BTreeMap<String, u32>,
    blocks: Vec<(Partition, u64, Rc<Vec<u8>>)>,
    contents: Files,
    /// Files that were renamed and not flushed since, and their old names: any other one may lead to nothing.
    moved: BTreeMap<u32, String>,
    /// Files whose clusters the allocation table has in part: Linux makes the ESP read-only when one is to be removed.
    torn: BTreeSet<u32>,
    acts: Vec<Act>,
    /// The disk at each single write, flush, and change of a name: on its way, and not there yet.
    pub(super) moments: Vec<Medium>,
    bug: Option<Bug>,
}

/// What can be wrong with a disk or with how it is used.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Bug {
    /// Nobody flushes, and reading back looks into the cache.
    NoFlush,
    /// The disk flips a bit in the write of that number, and says nothing.
    Flip(usize),
}

/// A change in the directory.
#[derive(Clone)]
enum Act {
    Put(String, u32),
    Move(String, String, u32),
    Strike(String),
}

impl Medium {
    pub(super) fn new() -> Medium {
        Medium {
            partitions: BTreeMap::new(),
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            blocks: Vec::new(),
            contents: BTreeMap::new(),
            moved: BTreeMap::new(),
            torn: BTreeSet::new(),
            acts: Vec::new(),
            moments: Vec::new(),
            bug: None,
        }
    }

    /// The same disk with something wrong.
    pub(super) fn with(&self, bug: Bug) -> Medium {
        Medium { bug: Some(bug), ..self.clone() }
    }

    pub(super) fn put(&mut self, name: &str, bytes: &[u8]) {
        let file = self.free();
        self.files.insert(file, bytes.to_vec());
        self.names.insert(name.into(), file);
    }

    fn free(&self) -> u32 {
        let used = self.files.keys().chain(self.contents.keys()).filter(|file| **file != EMPTY).max();
        used.map_or(0, |file| file + 1)
    }

    /// The power may fail now.
    fn moment(&mut self) {
        let moments = std::mem::take(&mut self.moments);
        let now = self.clone();
        self.moments = moments;
        self.moments.push(now);
    }

    fn spoil(&self, bytes: &mut [u8]) {
        if self.bug == Some(Bug::Flip(self.moments.len())) {
            bytes[bytes.len() / 3] ^= 0x10;
        }
    }

    /// The names as programs see them.
    fn seen(&self) -> BTreeMap<String, u32> {
        let mut names = self.names.clone();
        self.acts.iter().for_each(|act| act.apply(&mut names));
        names
    }

    /// All that may be on the disk when the power has failed here: each of these begins a life of its own.
    pub(super) fn remains(&self, random: &mut impl FnMut() -> u32) -> Vec<Medium> {
        let mut remains = Vec::new();
        for names in self.names_left().into_iter().flat_map(|names| self.with_empty(names)) {
            for (mut files, torn) in self.files_left(random) {
                files.insert(EMPTY, Vec::new());
                for partitions in self.blocks_left(random) {
                    let (names, files, torn) = (names.clone(), files.clone(), torn.clone());
                    remains.push(Medium { partitions, files, names, torn, ..Medium::new() });
                }
            }
        }
        remains
    }

    /// What fsck.fat makes of it before the ESP is mounted (trilith-esp.service): a torn file ends where its clusters do, and of two
    /// names for one file either keeps it.
    pub(super) fn mended(mut self, random: &mut impl FnMut() -> u32) -> Medium {
        self.torn.clear();
        let mut keeps = BTreeMap::new();
        for (name, file) in &self.names {
            let keeper = keeps.entry(*file).or_insert(name.clone());
            if random() & 1 == 0 {
                keeper.clone_from(name);
            }
        }
        for (name, file) in &mut self.names {
            if keeps[file] != *name {
                *file = EMPTY;
            }
        }
        self
    }

    /// The same names, and with nothing under those that were not flushed since they were given.
    fn with_empty(&self, names: BTreeMap<String, u32>) -> Vec<BTreeMap<String, u32>> {
        let mut empty = names.clone();
        for (name, file) in &mut empty {
            if self.moved.get(file).is_some_and(|old| old != name) {
                *file = EMPTY;
            }
        }
        if empty == names { vec![names] } else { vec![names, empty] }
    }

    fn blocks_left(&self, random: &mut impl FnMut() -> u32) -> Vec<BTreeMap<Partition, Rc<Vec<u8>>>> {
        let last = self.blocks.len().saturating_sub(1);
        let kept: &[Kept] = if self.blocks.is_empty() { &KEPT[..1] } else { KEPT };
        let left = kept.iter().map(|kept| {
            let mut partitions = self.partitions.clone();
            for (write, (to, from, bytes)) in self.blocks.iter().enumerate() {
                for (sector, piece) in bytes.chunks(SECTOR).enumerate() {
                    if kept(write == last, sector, random()) {
                        let at = *from as usize + sector * SECTOR;
                        let content = Rc::make_mut(partitions.get_mut(to).unwrap());
                        content[at..at + piece.len()].copy_from_slice(piece);
                    }
                }
            }
            partitions
        });
        left.collect()
    }

    /// A file that was not flushed is empty, whole, shorter (then it is torn), or has holes.
    fn files_left(&self, random: &mut impl FnMut() -> u32) -> Vec<(Files, BTreeSet<u32>)> {
        if self.contents.is_empty() {
            return vec![(self.files.clone(), BTreeSet::new())];
        }
        let mut left = Vec::new();
        for kind in 0..4 {
            let mut files = self.files.clone();
            for (file, bytes) in &self.contents {
                let mut bytes = bytes.clone();
                match kind {
                    0 => continue,
                    1 => {}
                    2 => bytes.truncate(bytes.len() / 2),
                    _ => bytes.chunks_mut(SECTOR).filter(|_| random() & 3 == 0).for_each(|sector| sector.fill(0)),
                }
                files.insert(*file, bytes);
            }
            let torn = if kind == 2 { self.contents.keys().copied().collect() } else { BTreeSet::new() };
            left.push((files, torn));
        }
        left
    }

    /// Of the changes in the directory any number have happened, and each may be torn.
    fn names_left(&self) -> Vec<BTreeMap<String, u32>> {
        let mut left = vec![self.names.clone()];
        for act in &self.acts {
            let mut more = Vec::new();
            for names in &left {
                more.push(names.clone());
                for names in act.torn(names) {
                    more.push(names);
                }
            }
            left = more;
        }
        left
    }
}

/// Which sectors are kept of what was not flushed: whether it is of the last write, its number in the write, and a chance.
type Kept = fn(bool, usize, u32) -> bool;
const KEPT: &[Kept] = &[
    |_, _, _| false,
    |_, _, _| true,
    |last, _, _| !last,
    |last, sector, _| !last || sector < 3,
    |last, sector, _| last && sector >= 3,
    |_, _, chance| chance & 1 == 0,
    |_, _, chance| chance & 7 == 0,
];

impl Act {
    fn apply(&self, names: &mut BTreeMap<String, u32>) {
        match self {
            Act::Put(name, file) => {
                names.insert(name.clone(), *file);
            }
            Act::Move(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            Act::Strike(name) => {
                names.remove(name);
            }
        }
    }

    /// What may be left when it has happened, in full or in part.
    fn torn(&self, names: &BTreeMap<String, u32>) -> Vec<BTreeMap<String, u32>> {
        let after = |change: &dyn Fn(&mut BTreeMap<String, u32>)| {
            let mut names = names.clone();
            self.apply(&mut names);
            change(&mut names);
            names
        };
        let short = |name: &str| format!("TRILIT~9.{}", name.rsplit('.').next().unwrap().to_uppercase());
        let as_short = |name: &str, file: u32| {
            after(&|names| {
                names.remove(name);
                names.insert(short(name), file);
            })
        };
        match self {
            Act::Put(name, file) => vec![after(&|_| ()), as_short(name, *file)],
            Act::Move(from, to, file) => vec![
                after(&|_| ()),
                after(&|names| names.extend([(from.clone(), *file)])),
                after(&|names| names.retain(|name, _| name != to)),
                as_short(to, *file),
            ],
            Act::Strike(_) => vec![after(&|_| ())],
        }
    }
}

impl Disk for Medium {
    fn write(&mut self, to: Partition, from: u64, bytes: &[u8]) -> io::Result<()> {
        let size = self.partitions[&to].len() as u64;
        for (from, block) in (from..).step_by(BLOCK).zip(bytes.chunks(BLOCK)) {
            if from + block.len() as u64 > size {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let mut block = block.to_vec();
            self.spoil(&mut block);
            self.blocks.push((to, from, Rc::new(block)));
            self.moment();
        }
        Ok(())
    }

    fn flush(&mut self, partition: Partition) -> io::Result<()> {
        self.moment();
        if self.bug != Some(Bug::NoFlush) {
            let content = Rc::make_mut(self.partitions.get_mut(&partition).unwrap());
            for (_, from, bytes) in self.blocks.extract_if(.., |(to, ..)| *to == partition) {
                content[from as usize..from as usize + bytes.len()].copy_from_slice(&bytes);
            }
        }
        Ok(())
    }

    fn read(&mut self, of: Partition, from: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut content = Rc::clone(&self.partitions[&of]);
        if self.bug == Some(Bug::NoFlush) {
            for (_, from, bytes) in self.blocks.iter().filter(|(to, ..)| *to == of) {
                Rc::make_mut(&mut content)[*from as usize..*from as usize + bytes.len()].copy_from_slice(bytes);
            }
        }
        let found = content.get(from as usize..from as usize + buffer.len());
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn names(&mut self) -> io::Result<Vec<String>> {
        Ok(self.seen().into_keys().collect())
    }

    fn read_file(&mut self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let file = *self.seen().get(name).ok_or(io::ErrorKind::NotFound)?;
        let cached = self.contents.get(&file).filter(|_| self.bug == Some(Bug::NoFlush));
        let mut bytes = cached.or(self.files.get(&file)).cloned().unwrap_or_default();
        bytes.truncate(most as usize);
        Ok(bytes)
    }

    fn write_file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let file = self.free();
        self.contents.insert(file, Vec::new());
        self.acts.push(Act::Put(name.into(), file));
        self.moment();
        for block in bytes.chunks(BLOCK) {
            let mut block = block.to_vec();
            self.spoil(&mut block);
            self.contents.entry(file).or_default().extend(block);
            self.moment();
        }
        Ok(())
    }

    fn flush_file(&mut self, name: &str) -> io::Result<()> {
        self.moment();
        let file = *self.seen().get(name).ok_or(io::ErrorKind::NotFound)?;
        if self.bug != Some(Bug::NoFlush)
            && let Some(content) = self.contents.remove(&file)
        {
            self.files.insert(file, content);
        }
        self.moved.remove(&file);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let file = *self.seen().get(from).ok_or(io::ErrorKind::NotFound)?;
        self.acts.push(Act::Move(from.into(), to.into(), file));
        self.moved.insert(file, from.into());
        self.moment();
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let seen = self.seen();
        let file = *seen.get(name).unwrap_or(&EMPTY);
        if self.torn.contains(&file) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        // Another name for it leads to clusters that are free from now on.
        if file != EMPTY && seen.values().filter(|other| **other == file).count() > 1 {
            self.files.insert(file, vec![0xa5; SECTOR]);
        }
        self.acts.push(Act::Strike(name.into()));
        self.moment();
        Ok(())
    }

    fn flush_names(&mut self) -> io::Result<()> {
        self.moment();
        if self.bug != Some(Bug::NoFlush) {
            self.names = self.seen();
            self.acts.clear();
        }
        Ok(())
    }
}
