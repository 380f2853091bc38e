//! Carrying out what [`trilith_core::slots`] has planned: writing, reading back, checking, and one rename.
//!
//! Each step ends with everything on the medium, in this order: what was written is flushed, then read back past all caches and
//! checked, then the next step begins. So whatever the disk does with writes that it was not told to flush (reorder, tear, drop),
//! it can only do to a slot and a file that nothing points to.
//!
//! The ESP is FAT, where a rename is no atomic act. It writes the new name and strikes out the old one in the sectors of one
//! directory, which reach the disk in any order: a power cut may leave one of the names, both, or none, or the new one without its
//! long form, under which the boot loader does not count tries, or without its content. All six leave the old system or the new one
//! to be started, complete: the content was flushed before with its cluster chain (fsync of a file on vfat writes the whole allocation table),
//! and the old system's entry is not touched by it. What is lost at worst is the rename. (`slot/tests.rs` cuts at every write.)
//!
//! FAT has no journal either. A file that was being written may have clusters that the table calls free: Linux makes the ESP read-only
//! when that is removed, and the node could not be patched ever after. Two names may be left for one file, and the removal of one gives
//! away what the other leads to. So `trilith-esp.service` has fsck.fat mend the ESP before it is mounted, which it is once in a boot. A
//! torn file ends where its clusters do, and of two names one keeps the content. A system that started from the name which loses it
//! gets its entry again from the other name when it is blessed. Price: if that is gone, too, it gives way to the old one.

use std::io;

use sha2::{Digest as _, Sha256};
use trilith_core::slots::{Content, Entry, Image, Slot, Slots, Step};

use crate::failure::Failure;
use crate::manifest::{MAX_UKI, Manifest, ROOT, UKI, VERITY};
use crate::source::Source;
use crate::uki::Uki;
use crate::verity::{self, Tree};
use crate::{BLOCK, Hash};

mod devices;
#[cfg(test)]
mod medium;
#[cfg(test)]
mod tests;

pub use devices::SlotDevices;

/// One of the four partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Partition {
    /// The root file system of a slot.
    Root(Slot),
    /// Its hash tree.
    Verity(Slot),
}

impl std::fmt::Display for Partition {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Partition::Root(slot) => write!(out, "root-{slot}"),
            Partition::Verity(slot) => write!(out, "verity-{slot}"),
        }
    }
}

/// The disk, as far as slots are on it. Names are those of files in the boot loader's directory, `EFI/Linux` of the ESP.
///
/// Nothing is on the medium before it has been flushed. Reading gives what is on the medium, not what is in a cache.
pub trait Disk {
    /// Writes into a partition.
    ///
    /// # Errors
    /// It does not fit, or the device fails.
    fn write(&mut self, to: Partition, from: u64, bytes: &[u8]) -> io::Result<()>;
    /// Waits until all that was written to a partition is on the medium.
    ///
    /// # Errors
    /// The device fails.
    fn flush(&mut self, partition: Partition) -> io::Result<()>;
    /// Fills the buffer; it begins and ends at whole blocks.
    ///
    /// # Errors
    /// The partition ends before, or the device fails.
    fn read(&mut self, of: Partition, from: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// All names.
    ///
    /// # Errors
    /// The ESP cannot be read.
    fn names(&mut self) -> io::Result<Vec<String>>;
    /// The file's content, of which more than `most` bytes are not read.
    ///
    /// # Errors
    /// There is no such file, or it cannot be read.
    fn read_file(&mut self, name: &str, most: u64) -> io::Result<Vec<u8>>;
    /// Writes a new file, or one anew.
    ///
    /// # Errors
    /// The ESP is full or fails.
    fn write_file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Waits until a file's content is on the medium, and that its name leads to it.
    ///
    /// # Errors
    /// The ESP fails.
    fn flush_file(&mut self, name: &str) -> io::Result<()>;
    /// Renames a file, over one that may have that name.
    ///
    /// # Errors
    /// The ESP fails.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file, or finds it gone.
    ///
    /// # Errors
    /// The ESP fails.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Waits until all names are on the medium.
    ///
    /// # Errors
    /// The ESP fails.
    fn flush_names(&mut self) -> io::Result<()>;
}

/// A bundle to install: its bytes, and the manifest that vouches for them.
#[derive(Clone, Copy)]
pub struct Bundle<'a> {
    /// From [`crate::Store::get`].
    pub source: &'a Source,
    /// From a [`crate::Verified`].
    pub manifest: &'a Manifest,
}

impl Bundle<'_> {
    /// What it installs.
    ///
    /// # Errors
    /// It is a service's.
    pub fn image(&self) -> Result<Image, Failure> {
        let what = || Failure::Protocol { what: format!("{} is no bundle of a system", self.manifest.release()) };
        Ok(Image { version: self.manifest.version, root: self.manifest.roothash.ok_or_else(what)? })
    }
}

/// How far writing is: `(done, all)` bytes of the step that is under way, written and read back.
pub type Told<'a> = &'a mut dyn FnMut(&Step, u64, u64);

/// Looks at both slots and the boot loader's directory. `running`: the slot that this system was started from, and `root` its root
/// hash; its blocks are checked by the kernel anyway. The other slot is read and checked in full.
///
/// # Errors
/// The ESP cannot be read. What is wrong with a slot or an entry is no error: it is not complete then.
pub fn observe(disk: &mut impl Disk, running: Slot, root: Hash) -> Result<Slots, Failure> {
    let mut contents = [Content::Unknown; 2];
    contents[running as usize] = Content::Verified(root);
    contents[running.other() as usize] = content(disk, running.other());
    let mut slots = Slots { running, contents, entries: Vec::new(), leftovers: Vec::new() };
    let names = disk.names().map_err(Failure::io("EFI/Linux of the ESP cannot be read"))?;
    for file in names {
        let bytes = disk.read_file(&file, MAX_UKI + 1);
        let empty = bytes.as_ref().is_ok_and(Vec::is_empty);
        let image = bytes.ok().and_then(|bytes| Uki::open(&bytes).ok()).map(|uki| uki.image);
        note(&mut slots, Entry { file, image }, empty);
    }
    Ok(slots)
}

/// Notes a file of the boot loader's directory. systemd-boot passes over one that is empty: it has no sections to read
/// (boot.c, `boot_entry_add_type2()`).
fn note(slots: &mut Slots, entry: Entry, empty: bool) {
    if empty { slots.leftovers.push(entry) } else { slots.add(entry) }
}

fn claimed(disk: &mut impl Disk, slot: Slot) -> Option<Hash> {
    let mut top = vec![0; 2 * BLOCK];
    disk.read(Partition::Verity(slot), 0, &mut top).ok()?;
    verity::claimed_root(&top).ok()
}

/// What a slot holds, by its content alone: its hash tree is whole, and every block of its root fits.
pub fn content(disk: &mut impl Disk, slot: Slot) -> Content {
    match claimed(disk, slot) {
        Some(root) if check(disk, slot, root, &mut |_, _| ()).is_ok() => Content::Verified(root),
        _ => Content::Unknown,
    }
}

/// Reads a slot in full, and checks every block of root and hash tree up to the root hash.
///
/// # Errors
/// What does not fit, or cannot be read.
pub fn check(disk: &mut impl Disk, slot: Slot, root: Hash, told: &mut dyn FnMut(u64, u64)) -> Result<(), Failure> {
    let tree = Partition::Verity(slot);
    let bad = |partition: Partition| move |what: String| Failure::BadMedium { what: format!("{partition}: {what}") };
    let mut bytes = vec![0; BLOCK];
    disk.read(tree, 0, &mut bytes).map_err(Failure::io(format!("{tree} cannot be read")))?;
    bytes.resize(verity::claimed_bytes(&bytes).map_err(bad(tree))? as usize, 0);
    disk.read(tree, 0, &mut bytes).map_err(Failure::io(format!("{tree} cannot be read")))?;
    let tree = Tree::open(&bytes, root).map_err(bad(tree))?;
    let all = (tree.leaves().len() * BLOCK) as u64;
    let data = Partition::Root(slot);
    let read = |from: u64, buffer: &mut [u8]| {
        told(from, all);
        disk.read(data, from, buffer)
    };
    tree.check(read).map_err(bad(data))
}

/// Installs a bundle into the slot that does not run, to be started next. What is there already is not written again.
///
/// # Errors
/// The slots are in no state for it ([`Failure::Slots`]), or the disk fails ([`Failure::Io`], [`Failure::BadMedium`]): then nothing
/// has changed for what is started, and it can be done again.
pub fn install(disk: &mut impl Disk, slots: &mut Slots, bundle: Bundle<'_>, told: Told<'_>) -> Result<(), Failure> {
    let steps = slots.plan_install(bundle.image()?)?;
    carry_out(disk, slots, &steps, Some(bundle), told)
}

/// Carries out a plan, and keeps `slots` as the disk is.
///
/// # Errors
/// As [`install`].
pub fn carry_out(
    disk: &mut impl Disk,
    slots: &mut Slots,
    steps: &[Step],
    bundle: Option<Bundle<'_>>,
    told: Told<'_>,
) -> Result<(), Failure> {
    for step in steps {
        take(disk, slots.running, step, bundle, told)?;
        slots.apply(step);
    }
    Ok(())
}

fn take(
    disk: &mut impl Disk,
    running: Slot,
    step: &Step,
    bundle: Option<Bundle<'_>>,
    told: Told<'_>,
) -> Result<(), Failure> {
    let failed = || Failure::io(format!("'{step}' failed"));
    let mut told = |done, all| told(step, done, all);
    let source =
        || bundle.map(|bundle| bundle.source).ok_or(Failure::Protocol { what: format!("'{step}' without a bundle") });
    match step {
        Step::Remove { file } => disk.remove(file).and_then(|()| disk.flush_names()).map_err(failed()),
        Step::WriteRoot { slot } | Step::WriteVerity { slot } => {
            assert_ne!(*slot, running, "the running slot is never written");
            let root = matches!(step, Step::WriteRoot { .. });
            let (to, part) = if root { (Partition::Root(*slot), ROOT) } else { (Partition::Verity(*slot), VERITY) };
            write_partition(disk, to, source()?, part, &mut told)
        }
        Step::Verify { slot, image } => check(disk, *slot, image.root, &mut told),
        Step::WriteUki { file, image } => {
            let bytes = source()?.whole(UKI).map_err(Failure::io(format!("{UKI} cannot be read")))?;
            // Checked when it came; but where it has lain since, others may write.
            let signed = bundle.and_then(|bundle| bundle.manifest.part(UKI)).map(|part| part.sha256);
            if signed != Some(Hash(Sha256::digest(&bytes).into())) {
                return Err(Failure::BadMedium { what: format!("{UKI} is not the one that was signed") });
            }
            write_uki(disk, file, &bytes, *image)
        }
        Step::Copy { from, to } => {
            let bytes = disk.read_file(from, MAX_UKI + 1).map_err(failed())?;
            let uki = Uki::open(&bytes).map_err(|what| Failure::BadMedium { what: format!("{from}: it {what}") })?;
            write_uki(disk, to, &bytes, uki.image)
        }
        // vfat gives the new name its content only when the file itself is written: until then it is that of an empty one.
        Step::Rename { from, to } => {
            disk.rename(from, to).and_then(|()| disk.flush_file(to)).and_then(|()| disk.flush_names()).map_err(failed())
        }
    }
}

fn write_partition(
    disk: &mut impl Disk,
    to: Partition,
    source: &Source,
    part: &str,
    told: &mut dyn FnMut(u64, u64),
) -> Result<(), Failure> {
    let size = source.size(part).unwrap_or_default();
    let mut buffer = vec![0; PIECE];
    let mut from = 0;
    while from < size {
        told(from, size);
        let piece = &mut buffer[..(size - from).min(PIECE as u64) as usize];
        source.read_at(part, from, piece).map_err(Failure::io(format!("{part} cannot be read from byte {from} on")))?;
        disk.write(to, from, piece).map_err(Failure::io(format!("{to} cannot be written from byte {from} on")))?;
        from += piece.len() as u64;
    }
    disk.flush(to).map_err(Failure::io(format!("{to} cannot be written")))
}

/// The name goes to the medium, too: what is read back is found the way that the firmware will find it.
fn write_uki(disk: &mut impl Disk, file: &str, bytes: &[u8], image: Image) -> Result<(), Failure> {
    let failed = || Failure::io(format!("{file} on the ESP cannot be written"));
    disk.write_file(file, bytes).map_err(failed())?;
    disk.flush_file(file).map_err(failed())?;
    disk.flush_names().map_err(failed())?;
    let found = disk.read_file(file, MAX_UKI + 1).map_err(Failure::io(format!("{file} on the ESP cannot be read")))?;
    let bad = |what: String| Failure::BadMedium { what: format!("{file} on the ESP: it {what}") };
    if found != bytes {
        return Err(bad("differs from what was written".into()));
    }
    match Uki::open(&found).map_err(bad)?.image == image {
        true => Ok(()),
        false => Err(bad("starts another system than the one that was installed".into())),
    }
}

/// Bytes written at once.
const PIECE: usize = 1 << 20;
