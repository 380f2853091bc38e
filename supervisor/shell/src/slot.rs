//! The slots of this machine: `trilith slot`, which systemd runs as trilith-slot@.service with the rights that it takes.
//!
//! The coordinator, which speaks to the network, has none of them: it asks systemd for one of few deeds, by name, and reads what has
//! become of it from [`paths::SLOTS`]. A bundle is checked here again, against the key that the system holds.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use trilith_bundle::slot::{Bundle, SlotDevices, carry_out, observe};
use trilith_bundle::{Hash, Keys, Manifest, Store, Verified};
use trilith_core::set::{Release, Version};
use trilith_core::slots::{Image, Slot, Slots, Step};

use crate::{disk, paths, version};

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    /// Look, and change nothing.
    Observe,
    /// Have that version in the other slot, checked, and start it no sooner than asked.
    Stage(Version),
    /// Start that version next, on trial.
    Switch(Version),
    /// Start that version next, which ran here before the rollout that is taken back: it is no trial.
    Return(Version),
    /// The version that runs is good.
    Bless,
    /// The version that runs is not to be started again; the other slot's is next.
    Revert,
    /// Ask whether the version that runs has yet to be called good, while there is another to go back to; an error when not.
    OnTrial,
}

impl std::str::FromStr for Deed {
    type Err = String;

    /// As an instance's name says it: `observe`, `stage-1.2.3`, `switch-1.2.3`, `return-1.2.3`, `bless`, `revert`, `on-trial`.
    fn from_str(text: &str) -> Result<Deed, String> {
        let deeds = "observe, stage-VERSION, switch-VERSION, return-VERSION, bless, revert or on-trial";
        let unknown = || format!("{text:?} is no deed: {deeds}");
        match text.split_once('-') {
            Some(("on", "trial")) => Ok(Deed::OnTrial),
            Some((what, version)) => {
                let version = version.parse().map_err(|_| unknown())?;
                match what {
                    "stage" => Ok(Deed::Stage(version)),
                    "switch" => Ok(Deed::Switch(version)),
                    "return" => Ok(Deed::Return(version)),
                    _ => Err(unknown()),
                }
            }
            None => match text {
                "observe" => Ok(Deed::Observe),
                "bless" => Ok(Deed::Bless),
                "revert" => Ok(Deed::Revert),
                _ => Err(unknown()),
            },
        }
    }
}

impl std::fmt::Display for Deed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Deed::Observe => out.write_str("observe"),
            Deed::Stage(version) => write!(out, "stage-{version}"),
            Deed::Switch(version) => write!(out, "switch-{version}"),
            Deed::Return(version) => write!(out, "return-{version}"),
            Deed::Bless => out.write_str("bless"),
            Deed::Revert => out.write_str("revert"),
            Deed::OnTrial => out.write_str("on-trial"),
        }
    }
}

impl Deed {
    /// The unit that does it.
    pub fn unit(self) -> String {
        format!("trilith-slot@{}.service", self.to_string().replace('-', "\\x2d"))
    }
}

/// What has become of the last deed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which.
    pub deed: String,
    /// Why it failed: one line that names its operands.
    pub error: Option<String>,
    /// The slots afterwards; nothing when they could not be looked at.
    pub slots: Option<Slots>,
}

/// Does it, and writes the outcome down.
///
/// # Errors
/// What failed, for the journal; it is in the outcome, too.
pub fn run(deed: Deed) -> Result<()> {
    let mut slots = None;
    let result = carry(deed, &mut slots);
    let error = result.as_ref().err().map(|error| format!("{error:#}"));
    let outcome = Outcome { deed: deed.to_string(), error, slots };
    let text = serde_json::to_vec_pretty(&outcome).context("writing JSON")?;
    disk::replace(Path::new(paths::SLOTS), &text).and(result)
}

/// What the last deed came to; nothing before the first.
pub fn outcome() -> Option<Outcome> {
    serde_json::from_str(&fs::read_to_string(paths::SLOTS).ok()?).ok()
}

/// The partitions of the disk that this system runs from.
///
/// # Errors
/// The system runs from no slot: in a container, for example.
pub fn devices() -> Result<(SlotDevices, Slot)> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    partitions(&mountinfo, Path::new("/sys"))
}

fn carry(deed: Deed, seen: &mut Option<Slots>) -> Result<()> {
    let (mut devices, running) = devices()?;
    let root = root_hash(&fs::read_to_string("/proc/cmdline").context("/proc/cmdline")?)?;
    let mut slots = observe(&mut devices, running, root)?;
    *seen = Some(slots.clone());
    let (bundle, steps) = match deed {
        Deed::Observe => (None, Vec::new()),
        Deed::Bless => (None, slots.plan_bless()?),
        // Its peers may have seen it serve while this was on its way.
        Deed::Revert if slots.proven() => {
            bail!("the running version is blessed: it is not given up")
        }
        Deed::Revert => (None, slots.plan_rollback(true)?),
        Deed::OnTrial => {
            if slots.proven() || slots.way_back().is_none() {
                bail!("nothing is on trial");
            }
            (None, Vec::new())
        }
        Deed::Stage(version) | Deed::Switch(version) | Deed::Return(version) => {
            devices.remove_salvage().context("the ESP cannot be tidied up")?;
            let release = Release::system(version);
            let source = Store::open(Path::new(paths::BUNDLES)).and_then(|store| store.get(&release));
            let stages = matches!(deed, Deed::Stage(_));
            // The same version, made anew, is another system; the way back is to what was proven.
            let root = source.as_ref().ok().and_then(|source| Manifest::parse(source.manifest()).ok()?.roothash);
            let same =
                |image: &Image| image.version == version && (!stages || root.is_none_or(|root| root == image.root));
            let there = slots.image(running.other()).filter(same);
            let there = there.filter(|_| slots.entry(running.other()).is_some_and(|entry| entry.proven()));
            // The version of before is still there: to go back to it needs no bundle.
            if let Some(image) = there {
                let steps = match deed {
                    Deed::Return(_) => slots.plan_rollback(false)?,
                    // What served then may not serve now, with another document: it proves itself again.
                    Deed::Switch(_) => slots.plan_install(image)?,
                    _ => Vec::new(),
                };
                (None, steps)
            } else {
                let source = source?;
                let verified = Verified::open(source.manifest(), source.signature(), &keys()?)
                    .map_err(|refusal| anyhow!("bundle {release}: {refusal}"))?;
                let manifest = verified.manifest().clone();
                let steps = slots.plan_install(Bundle { source: &source, manifest: &manifest }.image()?)?;
                (Some((source, manifest)), steps)
            }
        }
    };
    // Everything up to the new entry leaves what is started next as it is.
    let staged = |step: &Step| !matches!(step, Step::WriteUki { .. } | Step::Copy { .. } | Step::Rename { .. });
    let steps: Vec<Step> = match deed {
        Deed::Stage(_) => steps.into_iter().take_while(staged).collect(),
        _ => steps,
    };
    let bundle = bundle.as_ref().map(|(source, manifest)| Bundle { source, manifest });
    let done = carry_out(&mut devices, &mut slots, &steps, bundle, &mut |_, _, _| ());
    *seen = Some(slots);
    done?;
    Ok(())
}

/// The keys that sign bundles.
///
/// # Errors
/// They are missing or damaged.
pub fn keys() -> Result<Keys> {
    let text = fs::read_to_string(paths::BUNDLE_KEYS).context(paths::BUNDLE_KEYS)?;
    Keys::parse(&text).map_err(|why| anyhow!("{}: {why}", paths::BUNDLE_KEYS))
}

/// `roothash=` of the kernel's command line.
pub fn root_hash(command_line: &str) -> Result<Hash> {
    let value = command_line.split_whitespace().filter_map(|word| word.strip_prefix("roothash=")).next_back();
    value.and_then(|value| value.parse().ok()).context("the kernel's command line has no roothash=")
}

fn partitions(mountinfo: &str, sys: &Path) -> Result<(SlotDevices, Slot)> {
    for slave in under_root(mountinfo, sys).context("the root is on no slot")? {
        let slave = slave.canonicalize()?;
        let running = match fact(&slave, "PARTNAME").as_deref() {
            Some("root-a" | "verity-a") => Slot::A,
            Some("root-b" | "verity-b") => Slot::B,
            _ => continue,
        };
        let disk = slave.parent().context("a partition is on a disk")?;
        let named = |name: &str| -> Result<PathBuf> {
            for entry in fs::read_dir(disk)?.flatten() {
                if fact(&entry.path(), "PARTNAME").as_deref() == Some(name) {
                    return Ok(Path::new("/dev").join(entry.file_name()));
                }
            }
            bail!("{} has no partition {name}", disk.display())
        };
        let devices = SlotDevices {
            root: [named("root-a")?, named("root-b")?],
            verity: [named("verity-a")?, named("verity-b")?],
            entries: PathBuf::from(paths::BOOT_ENTRIES),
        };
        return Ok((devices, running));
    }
    bail!("the root is on no slot, so there is nothing to switch to: this is no appliance's disk")
}

/// The devices under the root's dm-verity, in `/sys`; nothing when the root is on no such device.
pub fn under_root(mountinfo: &str, sys: &Path) -> Option<Vec<PathBuf>> {
    let mounts = mountinfo.lines().rev().map(|line| line.split(' ').collect::<Vec<_>>());
    let number = mounts.into_iter().find(|fields| fields.get(4) == Some(&"/"))?.get(2)?.to_string();
    let slaves = fs::read_dir(sys.join("dev/block").join(number).join("slaves")).ok()?;
    Some(slaves.flatten().map(|slave| slave.path()).collect())
}

/// A fact of a block device's uevent(8).
fn fact(device: &Path, key: &str) -> Option<String> {
    let text = fs::read_to_string(device.join("uevent")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix('=')?.to_owned()))
}

/// What this machine runs, for a coordinator that knows no slots: in a laboratory.
pub fn running_version() -> Version {
    let [major, minor, patch] = version::running();
    Version::new(major, minor, patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deed_is_read_as_it_is_written() {
        let version: Version = "1.20.3".parse().unwrap();
        for deed in [
            Deed::Observe,
            Deed::Bless,
            Deed::Revert,
            Deed::OnTrial,
            Deed::Stage(version),
            Deed::Switch(version),
            Deed::Return(version),
        ] {
            assert_eq!(deed.to_string().parse(), Ok(deed));
        }
        assert_eq!(Deed::Stage(version).unit(), "trilith-slot@stage\\x2d1.20.3.service");
        for text in ["", "stage", "stage-", "stage-1.2", "wipe", "bless-1.2.3", "stage-../../etc"] {
            assert!(text.parse::<Deed>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_slots_are_those_of_the_disk_under_the_root() {
        let sys = std::env::temp_dir().join(format!("trilith-slots-{}", std::process::id()));
        let disk = sys.join("devices/vda");
        for (name, label) in [("vda2", "root-a"), ("vda3", "verity-a"), ("vda4", "root-b"), ("vda5", "verity-b")] {
            fs::create_dir_all(disk.join(name)).unwrap();
            fs::write(disk.join(name).join("uevent"), format!("DEVNAME={name}\nPARTNAME={label}\n")).unwrap();
        }
        fs::create_dir_all(sys.join("dev/block/253:0/slaves")).unwrap();
        std::os::unix::fs::symlink(disk.join("vda4"), sys.join("dev/block/253:0/slaves/vda4")).unwrap();
        let mountinfo = "21 1 253:0 / / ro,relatime - erofs /dev/mapper/root ro\n";
        let (devices, running) = partitions(mountinfo, &sys).unwrap();
        assert_eq!(running, Slot::B);
        assert_eq!(devices.root, [PathBuf::from("/dev/vda2"), PathBuf::from("/dev/vda4")]);
        assert_eq!(devices.verity[1], Path::new("/dev/vda5"));
        assert!(partitions("21 1 0:30 / / rw - overlay overlay rw\n", &sys).is_err());
        fs::remove_dir_all(sys).unwrap();
    }
}
