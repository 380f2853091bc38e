//! A/B as a value: what both slots and the boot loader's directory hold, what starts next, and edits as ordered steps.
//!
//! ```text
//!   ESP/EFI/Linux                          partitions
//!   trilith_1.4.0.efi     ── roothash= ──▶ root-a, verity-a      running, blessed: the last good version
//!   trilith_1.5.0+3.efi   ── roothash= ──▶ root-b, verity-b      installed: three tries, then the other one
//! ```
//!
//! Nothing says which slot an entry belongs to: the root hash in its signed command line does, because the initrd takes the
//! hash tree that has this root hash. So the partition table is never written, and the whole switch is one new name in one
//! directory.
//!
//! An edit is planned here and carried out elsewhere, step by step. Every plan keeps two promises, after each of its steps and
//! when a step was cut off in the middle ([`Slots::check`] says whether they hold):
//!
//! - whatever the boot loader may take leads to a slot that is complete and verified (invariant 5);
//! - the slot that runs is never written, and its entry stays until another one has been blessed.
//!
//! A name in a FAT directory can be lost: a rename writes two sectors, in any order. So an entry is renamed only while another
//! one leads to a complete slot; the last one is copied, and the copy renamed.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

mod name;
mod plan;
#[cfg(test)]
mod tests;
mod version;

pub use name::{EntryName, RootHash, Tries};
pub use plan::{Refused, Step};
pub use version::{NotAVersion, Version};

/// One of the two places for a system: a root partition and the partition of its hash tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// `root-a` and `verity-a`.
    A,
    /// `root-b` and `verity-b`.
    B,
}

impl Slot {
    /// The one that is not this one.
    pub fn other(self) -> Slot {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Slot::A => "a",
            Slot::B => "b",
        })
    }
}

/// A system: what it calls itself, and the hash that vouches for each of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Image {
    /// `IMAGE_VERSION`.
    pub version: Version,
    /// The value of `roothash=` on its kernel's command line.
    pub root: RootHash,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Nothing, something half-written, or something that nobody has looked at.
    #[default]
    Unknown,
    /// Root and hash tree are complete: every block was read and fits this root hash.
    Verified(RootHash),
}

/// A file in the boot loader's directory, `EFI/Linux` of the ESP, that the boot loader may start: its name ends in `.efi`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The file's name.
    pub file: String,
    /// What its UKI says it starts; nothing when the UKI is not complete.
    pub image: Option<Image>,
}

impl Entry {
    /// What the name says; nothing when it is no name of ours. A name can lose its long form when it is being written, and
    /// with it the counter: such an entry has unlimited tries, but is not blessed.
    pub fn name(&self) -> Option<EntryName> {
        self.file.parse().ok()
    }

    /// The counter of tries; nothing when the boot loader does not count.
    pub fn tries(&self) -> Option<Tries> {
        self.name().and_then(|name| name.tries)
    }

    /// No try is left: the boot loader takes it only when nothing else is there.
    pub fn spent(&self) -> bool {
        self.tries().is_some_and(|tries| tries.left == 0)
    }

    /// It was tried, or was found out, and is not to be tried again. [`Tries::RETIRED`] marks a good one that made room.
    pub fn failed(&self) -> bool {
        self.tries().is_some_and(|tries| tries.left == 0 && tries.done > 0)
    }

    /// Its peers have seen it serve.
    pub fn blessed(&self) -> bool {
        self.name().is_some_and(|name| name.tries.is_none())
    }

    /// Its peers have seen it serve, now or before it made room for a lower version.
    pub fn proven(&self) -> bool {
        self.blessed() || self.tries() == Some(Tries::RETIRED)
    }

    /// systemd-boot's order, first to start first: boot.c, `boot_entry_compare()`. All entries have the same sort key; the
    /// version is that of the UKI, which is the one in the name.
    fn rank(&self) -> impl Ord + use<> {
        let version = self.image.map(|image| image.version).or(self.name().map(|name| name.version));
        let tries = self.tries();
        let left = tries.map_or(u32::MAX, |tries| tries.left);
        (self.spent(), Reverse(version), Reverse(left), tries.map_or(0, |tries| tries.done))
    }
}

/// Both slots, as they are on the disk, and what the boot loader finds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    /// The one that this system was started from.
    pub running: Slot,
    /// Of slot A and slot B.
    pub contents: [Content; 2],
    /// What the boot loader may start, in any order.
    pub entries: Vec<Entry>,
    /// Other files in the boot loader's directory, which it does not see: an edit is under way, or was cut off.
    pub leftovers: Vec<Entry>,
}

/// A promise that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The boot loader finds nothing to start.
    NothingBoots,
    /// The boot loader may start this entry, which leads to no complete slot.
    Incomplete {
        /// The entry's file.
        file: String,
    },
}

impl std::fmt::Display for Violation {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Violation::NothingBoots => write!(out, "the ESP has no entry to start"),
            Violation::Incomplete { file } => write!(out, "{file} may be started, but leads to no complete slot"),
        }
    }
}

impl Slots {
    /// What a slot holds.
    pub fn content(&self, slot: Slot) -> Content {
        self.contents[slot as usize]
    }

    /// The slot that an entry leads to, if its UKI and that slot are complete.
    pub fn leads_to(&self, entry: &Entry) -> Option<Slot> {
        let root = Content::Verified(entry.image?.root);
        [self.running, self.running.other()].into_iter().find(|slot| self.content(*slot) == root)
    }

    /// The first of the entries that lead to this slot, in the boot loader's order.
    pub fn entry(&self, slot: Slot) -> Option<&Entry> {
        self.boot_order().into_iter().find(|entry| self.leads_to(entry) == Some(slot))
    }

    /// The system in this slot, if it is complete and can be started.
    pub fn image(&self, slot: Slot) -> Option<Image> {
        self.entry(slot).and_then(|entry| entry.image)
    }

    /// The system in the other slot, if it can be gone back to: it is complete, and has not failed before.
    pub fn way_back(&self) -> Option<Image> {
        self.entry(self.running.other()).filter(|entry| !entry.failed()).and_then(|entry| entry.image)
    }

    /// Whether the running system needs no verdict: its peers have seen it serve, or it has lost its entry and nothing is left that
    /// would be one ([`Slots::plan_bless`]), so that it gives way with the next start whatever is said of it.
    pub fn proven(&self) -> bool {
        self.entry(self.running).map_or_else(|| self.lost_entry().is_none(), Entry::proven)
    }

    /// What is left of the running system's entry when the power failed in the rename that made it one.
    fn lost_entry(&self) -> Option<(&Entry, Image)> {
        let lost = self.leftovers.iter().find(|entry| self.leads_to(entry) == Some(self.running))?;
        lost.image.filter(|_| self.entry(self.running).is_none()).map(|image| (lost, image))
    }

    /// The entries in the order in which the boot loader would take them.
    pub fn boot_order(&self) -> Vec<&Entry> {
        let mut order: Vec<&Entry> = self.entries.iter().collect();
        order.sort_by_cached_key(|entry| entry.rank());
        order
    }

    /// What the boot loader starts next.
    pub fn boots_next(&self) -> Option<&Entry> {
        self.boot_order().first().copied()
    }

    /// Whether what may be started is complete: the first entry, and all that follow it while tries run out.
    ///
    /// # Errors
    /// The first promise that does not hold.
    pub fn check(&self) -> Result<(), Violation> {
        let first = self.boots_next().ok_or(Violation::NothingBoots)?;
        let taken = self.entries.iter().filter(|entry| !entry.spent());
        match std::iter::once(first).chain(taken).find(|entry| self.leads_to(entry).is_none()) {
            Some(entry) => Err(Violation::Incomplete { file: entry.file.clone() }),
            None => Ok(()),
        }
    }
}
