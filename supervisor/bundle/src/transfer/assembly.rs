//! A part that is put together from blocks, wherever they are found.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::failure::Failure;
use crate::manifest::Part;
use crate::refusal::Refusal;
use crate::verity::{self, Tree};
use crate::{BLOCK, Hash};

/// Where a node looks for blocks before it asks for them. Whatever is wrong with these files costs only time: each block is checked
/// by its hash.
#[derive(Clone, Debug, Default)]
pub struct Have {
    /// Root file systems and their hash trees: the partitions of both slots.
    pub roots: Vec<(PathBuf, PathBuf)>,
    /// UKIs and archives of services.
    pub files: Vec<PathBuf>,
}

/// How the blocks of a part are hashed.
pub(super) enum Hashing {
    /// By the salt of its hash tree.
    Tree(Tree),
    /// Plainly.
    Plain,
}

impl Hashing {
    fn hash(&self, block: &[u8]) -> Hash {
        match self {
            Hashing::Tree(tree) => tree.hash(block),
            Hashing::Plain => Hash(Sha256::digest(block).into()),
        }
    }
}

/// A part on its way.
pub(super) struct Assembly {
    name: String,
    path: PathBuf,
    file: File,
    size: u64,
    hashing: Hashing,
    /// Where each block that is not there yet belongs: the same block may belong to many places, and is asked for once.
    missing: BTreeMap<Hash, Vec<u64>>,
    /// The first place of each, in order.
    wanted: Vec<u64>,
}

impl Assembly {
    /// Takes what an earlier attempt left in the file, then what is found elsewhere on this node. `expected` are the hashes of the
    /// blocks in order.
    pub(super) fn begin(
        path: PathBuf,
        part: &Part,
        expected: &[Hash],
        hashing: Hashing,
        have: &Have,
    ) -> Result<Assembly, Failure> {
        let failed = |error| Failure::file("written", &path)(error);
        let mut open = OpenOptions::new();
        let file = open.read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let mut missing = BTreeMap::<Hash, Vec<u64>>::new();
        let mut buffer = [0; BLOCK];
        for (place, hash) in (0..).zip(expected) {
            let block = &mut buffer[..block_length(part.size, place)];
            if file.read_exact_at(block, place * BLOCK as u64).is_err() || hashing.hash(block) != *hash {
                missing.entry(*hash).or_default().push(place);
            }
        }
        file.set_len(part.size).map_err(failed)?;
        let name = part.name.clone();
        let mut assembly = Assembly { name, path, file, size: part.size, hashing, missing, wanted: Vec::new() };
        match &assembly.hashing {
            Hashing::Tree(_) => have.roots.iter().try_for_each(|(data, tree)| assembly.take_from_root(data, tree))?,
            Hashing::Plain => have.files.iter().try_for_each(|path| assembly.take_from_file(path))?,
        }
        assembly.wanted = assembly.missing.values().filter_map(|places| places.first().copied()).collect();
        assembly.wanted.sort_unstable();
        Ok(assembly)
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that are missing.
    pub(super) fn bytes_wanted(&self) -> u64 {
        self.wanted.iter().map(|place| block_length(self.size, *place) as u64).sum()
    }

    /// What to ask for next: ranges of blocks, at most [`MAX_RANGES`] of them with [`super::MAX_ANSWER`] bytes. Empty at the end.
    pub(super) fn next(&self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for place in self.wanted.iter().take(super::MAX_ANSWER / BLOCK) {
            let many = ranges.len();
            match ranges.last_mut() {
                Some((first, count)) if *first + *count == *place => *count += 1,
                _ if many == MAX_RANGES => break,
                _ => ranges.push((*place, 1)),
            }
        }
        ranges
    }

    /// Bytes that the answer to that has.
    pub(super) fn length(&self, ranges: &[(u64, u64)]) -> u64 {
        let blocks = ranges.iter().flat_map(|(first, count)| *first..*first + *count);
        blocks.map(|place| block_length(self.size, place) as u64).sum()
    }

    /// Writes the blocks that came for what [`Assembly::next`] asked.
    pub(super) fn take(&mut self, ranges: &[(u64, u64)], mut bytes: &[u8]) -> Result<(), Failure> {
        for place in ranges.iter().flat_map(|(first, count)| *first..*first + *count) {
            let (block, rest) = bytes.split_at(block_length(self.size, place).min(bytes.len()));
            bytes = rest;
            let hash = self.hashing.hash(block);
            if !self.missing.get(&hash).is_some_and(|places| places.contains(&place)) {
                return Err(Refusal::corrupted(&self.name, format!("block {place} came damaged")).into());
            }
            self.write(hash, block)?;
        }
        let asked = ranges.iter().map(|(_, count)| *count as usize).sum::<usize>();
        self.wanted.drain(..asked);
        Ok(())
    }

    /// Writes a block to all its places.
    fn write(&mut self, hash: Hash, block: &[u8]) -> Result<(), Failure> {
        for place in self.missing.remove(&hash).unwrap_or_default() {
            let written = self.file.write_all_at(block, place * BLOCK as u64);
            written.map_err(|error| Failure::file("written", &self.path)(error))?;
        }
        Ok(())
    }

    /// The tree of another root says which of the blocks it has. That both have one salt is likely, and not certain.
    fn take_from_root(&mut self, data: &Path, tree: &Path) -> Result<(), Failure> {
        let opened = open_tree(tree).and_then(|tree| Ok((tree, File::open(data)?)));
        let (Ok((other, data)), Hashing::Tree(tree)) = (opened, &self.hashing) else { return Ok(()) };
        if !tree.same_salt(&other) {
            return Ok(());
        }
        let places: HashMap<Hash, u64> = other.leaves().iter().copied().zip(0..).collect();
        self.take_blocks(&data, &places)
    }

    fn take_from_file(&mut self, path: &Path) -> Result<(), Failure> {
        let Ok(mut file) = File::open(path) else { return Ok(()) };
        let mut places = HashMap::new();
        let mut buffer = vec![0; BLOCK];
        for place in 0.. {
            buffer.clear();
            if !matches!((&mut file).take(BLOCK as u64).read_to_end(&mut buffer), Ok(1..)) {
                break;
            }
            places.insert(self.hashing.hash(&buffer), place);
        }
        self.take_blocks(&file, &places)
    }

    /// Copies what is missing from where it should be, if it is that.
    fn take_blocks(&mut self, file: &File, places: &HashMap<Hash, u64>) -> Result<(), Failure> {
        let found: Vec<(Hash, u64, u64)> = self
            .missing
            .iter()
            .filter_map(|(hash, wanted)| Some((*hash, *places.get(hash)?, *wanted.first()?)))
            .collect();
        let mut buffer = [0; BLOCK];
        for (hash, from, to) in found {
            let block = &mut buffer[..block_length(self.size, to)];
            if file.read_exact_at(block, from * BLOCK as u64).is_ok() && self.hashing.hash(block) == hash {
                let block = block.to_vec();
                self.write(hash, &block)?;
            }
        }
        Ok(())
    }
}

/// Bytes of the block at this place: the last one may be shorter.
fn block_length(size: u64, place: u64) -> usize {
    size.saturating_sub(place * BLOCK as u64).min(BLOCK as u64) as usize
}

/// The hash tree on a partition or in a file, believed.
fn open_tree(path: &Path) -> io::Result<Tree> {
    let file = File::open(path)?;
    let mut top = vec![0; 2 * BLOCK];
    file.read_exact_at(&mut top, 0)?;
    let mut bytes = vec![0; verity::claimed_bytes(&top).map_err(io::Error::other)? as usize];
    file.read_exact_at(&mut bytes, 0)?;
    let root = verity::claimed_root(&top).map_err(io::Error::other)?;
    Tree::open(&bytes, root).map_err(io::Error::other)
}

/// Ranges in a question: it stays far below [`super::MAX_MESSAGE`].
const MAX_RANGES: usize = 256;
