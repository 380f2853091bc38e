//! Edits of the slots: planned as steps, each of which leaves the disk in a state that may last for ever.

use serde::{Deserialize, Serialize};

use super::{Content, Entry, EntryName, Image, Slot, Slots, Tries, Version};

/// One step of an edit. It is done only when the disk has said that it is on the medium.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Remove a file from the boot loader's directory.
    Remove {
        /// Its name.
        file: String,
    },
    /// Write the root file system of the new system.
    WriteRoot {
        /// Into its root partition.
        slot: Slot,
    },
    /// Write the hash tree of the new system.
    WriteVerity {
        /// Into its verity partition.
        slot: Slot,
    },
    /// Read both partitions from the medium and check every block against the root hash.
    Verify {
        /// Whose partitions.
        slot: Slot,
        /// What they must be.
        image: Image,
    },
    /// Write the UKI of the new system under a name that the boot loader does not see, read it back and check it.
    WriteUki {
        /// The name.
        file: String,
        /// What it must start.
        image: Image,
    },
    /// Copy an entry to a name that the boot loader does not see, read it back and check it.
    Copy {
        /// The entry.
        from: String,
        /// The name.
        to: String,
    },
    /// Rename a file in the boot loader's directory: the one step that decides what is started.
    Rename {
        /// From this name.
        from: String,
        /// To this one.
        to: String,
    },
}

impl std::fmt::Display for Step {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Remove { file } => write!(out, "remove {file}"),
            Step::WriteRoot { slot } => write!(out, "write root-{slot}"),
            Step::WriteVerity { slot } => write!(out, "write verity-{slot}"),
            Step::Verify { slot, image } => write!(out, "read slot {slot} back: is it {}?", image.version),
            Step::WriteUki { file, image } => write!(out, "write the kernel of {} to {file}", image.version),
            Step::Copy { from, to } => write!(out, "copy {from} to {to}"),
            Step::Rename { from, to } => write!(out, "rename {from} to {to}"),
        }
    }
}

/// Why an edit is not planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No entry leads to the slot that runs: nothing may be changed before that is mended.
    Unanchored(Slot),
    /// The version that runs has not proved itself: the other slot still holds the last good one.
    Unproven(Version),
    /// This version runs already.
    Runs(Version),
    /// The other slot holds nothing that could be started.
    NothingThere(Slot),
    /// The version in the other slot has failed: it is installed anew or not at all.
    Failed(Version),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refused::Unanchored(slot) => {
                write!(out, "no boot entry leads to slot {slot}, which runs: the ESP is damaged; replace this node")
            }
            Refused::Unproven(version) => {
                write!(
                    out,
                    "version {version} runs on trial: the other slot holds the last good version until it is blessed"
                )
            }
            Refused::Runs(version) => write!(out, "version {version} runs already"),
            Refused::NothingThere(slot) => write!(out, "slot {slot} holds no complete system to go back to"),
            Refused::Failed(version) => write!(out, "version {version} in the other slot has failed before"),
        }
    }
}

impl std::error::Error for Refused {}

impl Slots {
    /// Install a system into the slot that does not run, to be started next with [`Tries::NEW`].
    ///
    /// What is there already is kept: a version that was interrupted is tried again by one rename. A version lower than the
    /// running one retires that, as the boot loader prefers higher ones.
    ///
    /// # Errors
    /// [`Refused::Unanchored`], [`Refused::Unproven`], [`Refused::Runs`].
    pub fn plan_install(&self, image: Image) -> Result<Vec<Step>, Refused> {
        let slot = self.running.other();
        let (running, entry) = self.anchor()?;
        if !entry.proven() {
            return Err(Refused::Unproven(running.version));
        }
        if running.version == image.version || running.root == image.root {
            return Err(Refused::Runs(image.version));
        }
        if !entry.blessed() && image.version > running.version {
            // A lower version was to replace this one, which is what to fall back to again.
            let mut steps = self.plan_bless()?;
            let mut blessed = self.clone();
            steps.iter().for_each(|step| blessed.apply(step));
            steps.extend(blessed.plan_install(image)?);
            return Ok(steps);
        }
        let kept = self.entry(slot).filter(|entry| entry.image == Some(image));
        let name = EntryName { version: image.version, tries: Some(Tries::NEW) };
        let mut steps = self.tidy(|entry| kept == Some(entry));
        match kept {
            Some(kept) => steps.extend(rename(kept, name)),
            None => {
                if self.content(slot) != Content::Verified(image.root) {
                    steps.extend([Step::WriteRoot { slot }, Step::WriteVerity { slot }, Step::Verify { slot, image }]);
                }
                steps.push(Step::WriteUki { file: name.unfinished(), image });
                steps.push(Step::Rename { from: name.unfinished(), to: name.to_string() });
            }
        }
        if image.version < running.version {
            let name = EntryName { version: running.version, tries: Some(Tries::RETIRED) };
            steps.extend(rename(entry, name));
        }
        Ok(steps)
    }

    /// Make the running system the good one: its entry is not counted any more. No steps when it is so already. A system that was
    /// started from a name which a torn rename has cost its content gets an entry again from the other name.
    ///
    /// # Errors
    /// [`Refused::Unanchored`].
    pub fn plan_bless(&self) -> Result<Vec<Step>, Refused> {
        if let Some((lost, image)) = self.lost_entry() {
            return Ok(rename(lost, EntryName { version: image.version, tries: None }).into_iter().collect());
        }
        let (running, entry) = self.anchor()?;
        if entry.blessed() {
            return Ok(Vec::new());
        }
        let name = EntryName { version: running.version, tries: None };
        let copy = name.unfinished();
        let mut steps: Vec<Step> = self.leftovers.iter().map(remove).collect();
        // It may be the only entry: a rename could lose it.
        steps.push(Step::Copy { from: entry.file.clone(), to: copy.clone() });
        steps.push(Step::Rename { from: copy, to: name.to_string() });
        let of_running = self.entries.iter().filter(|entry| self.leads_to(entry) == Some(self.running));
        steps.extend(of_running.filter(|entry| entry.file != name.to_string()).map(remove));
        Ok(steps)
    }

    /// Go back to the system in the other slot with the next start. `failed`: the running one is not to be tried again.
    ///
    /// # Errors
    /// [`Refused::NothingThere`], [`Refused::Failed`].
    pub fn plan_rollback(&self, failed: bool) -> Result<Vec<Step>, Refused> {
        let slot = self.running.other();
        let other = self.entry(slot).ok_or(Refused::NothingThere(slot))?;
        let image = other.image.ok_or(Refused::NothingThere(slot))?;
        if other.failed() {
            return Err(Refused::Failed(image.version));
        }
        let mut steps = self.tidy(|entry| entry == other);
        if other.spent() {
            steps.extend(rename(other, EntryName { version: image.version, tries: Some(Tries::NEW) }));
        }
        // One that has lost its entry is not started again anyway.
        if let Ok((running, entry)) = self.anchor()
            && (failed || image.version < running.version)
        {
            let mark = if failed { Tries::failed(tried(entry)) } else { Tries::RETIRED };
            steps.extend(rename(entry, EntryName { version: running.version, tries: Some(mark) }));
        }
        Ok(steps)
    }

    /// Never start the system in the other slot again: after the boot loader or an operator has gone back from it. No steps
    /// when it is so already, or when nothing is there.
    ///
    /// # Errors
    /// [`Refused::Unanchored`].
    pub fn plan_ban(&self) -> Result<Vec<Step>, Refused> {
        self.anchor()?;
        let of_other = |entry: &Entry| self.leads_to(entry) == Some(self.running.other());
        let mut steps = self.tidy(of_other);
        for entry in self.entries.iter().filter(|entry| of_other(entry) && !entry.failed()) {
            let name = |image: Image| EntryName { version: image.version, tries: Some(Tries::failed(tried(entry))) };
            steps.extend(entry.image.and_then(|image| rename(entry, name(image))));
        }
        Ok(steps)
    }

    /// What a step leaves behind, when it was carried out in full.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Remove { file } => self.forget(file),
            Step::WriteRoot { slot } | Step::WriteVerity { slot } => self.contents[*slot as usize] = Content::Unknown,
            Step::Verify { slot, image } => self.contents[*slot as usize] = Content::Verified(image.root),
            Step::WriteUki { file, image } => self.put(file, Some(*image)),
            Step::Copy { from, to } => self.put(to, self.image_in(from)),
            Step::Rename { from, to } => {
                let image = self.image_in(from);
                self.forget(from);
                self.put(to, image);
            }
        }
    }

    /// Adds a file that is in the boot loader's directory: an entry when its name ends in `.efi`.
    pub fn add(&mut self, entry: Entry) {
        self.forget(&entry.file);
        let files = if starts(&entry.file) { &mut self.entries } else { &mut self.leftovers };
        files.push(entry);
    }

    fn put(&mut self, file: &str, image: Option<Image>) {
        self.add(Entry { file: file.to_owned(), image });
    }

    fn image_in(&self, file: &str) -> Option<Image> {
        self.entries.iter().chain(&self.leftovers).find(|entry| entry.file == file)?.image
    }

    fn forget(&mut self, file: &str) {
        self.entries.retain(|entry| entry.file != file);
        self.leftovers.retain(|entry| entry.file != file);
    }

    /// The running system and the entry that leads to it.
    fn anchor(&self) -> Result<(Image, &Entry), Refused> {
        let entry = self.entry(self.running).ok_or(Refused::Unanchored(self.running))?;
        entry.image.map(|image| (image, entry)).ok_or(Refused::Unanchored(self.running))
    }

    /// Removes left-overs and all entries but the first one of the running system and those to keep.
    fn tidy(&self, keep: impl Fn(&Entry) -> bool) -> Vec<Step> {
        let running = self.entry(self.running);
        let stale = self.entries.iter().filter(|entry| Some(*entry) != running && !keep(entry));
        self.leftovers.iter().chain(stale).map(remove).collect()
    }
}

fn remove(entry: &Entry) -> Step {
    Step::Remove { file: entry.file.clone() }
}

/// Whether the boot loader takes a file of its directory for something to start.
pub(super) fn starts(file: &str) -> bool {
    file.len() >= 4 && file.as_bytes()[file.len() - 4..].eq_ignore_ascii_case(b".efi")
}

/// Nothing when it has that name already.
fn rename(entry: &Entry, name: EntryName) -> Option<Step> {
    let to = name.to_string();
    (entry.file != to).then(|| Step::Rename { from: entry.file.clone(), to })
}

fn tried(entry: &Entry) -> u32 {
    entry.tries().map_or(0, |tries| tries.done)
}
