//! Kernel modules: those of the hardware that is there, found by their aliases as modprobe does it.
//!
//! The initrd holds few modules, so reading `modules.alias` and `modules.dep` whole and comparing every device's alias
//! with every pattern costs less than an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::fault::{self, Context, Result, WRONG_IMAGE};

/// The modules of this initrd, and which of them are loaded.
#[derive(Debug)]
pub struct Modules {
    directory: PathBuf,
    /// Pattern and module, as in modules.alias.
    aliases: Vec<(String, String)>,
    /// A module's file and the files that it needs, as in modules.dep.
    files: BTreeMap<String, Vec<String>>,
    done: Mutex<Done>,
}

/// Files that are loaded, and aliases that have been looked at.
#[derive(Debug, Default)]
struct Done {
    loaded: BTreeSet<String>,
    seen: BTreeSet<String>,
}

impl Modules {
    /// Reads what depmod wrote for the running kernel.
    pub fn read() -> Result<Modules> {
        let release = fault::read("/proc/sys/kernel/osrelease")?;
        let directory = Path::new("/usr/lib/modules").join(release.trim());
        let text = |name: &str| fault::read(&directory.join(name).display().to_string());
        let (aliases, files) = (parse_aliases(&text("modules.alias")?), parse_dependencies(&text("modules.dep")?));
        Ok(Modules { directory, aliases, files, done: Mutex::default() })
    }

    /// Loads the modules of all devices that have come up since the last call, several at a time: checking signatures takes the
    /// processor, looking for disks takes patience. A driver that cannot be loaded is reported; the disk may hang on another.
    pub fn load_for_devices(&self) {
        let names = Mutex::new(self.names_for_devices().into_iter());
        let next = || names.lock().unwrap_or_else(PoisonError::into_inner).next();
        std::thread::scope(|scope| {
            for _ in 0..AT_A_TIME {
                scope.spawn(|| {
                    while let Some(name) = next() {
                        self.load_if_possible(&name);
                    }
                });
            }
        });
    }

    fn names_for_devices(&self) -> BTreeSet<String> {
        let aliases = device_aliases().into_iter().filter(|alias| self.done().seen.insert(alias.clone()));
        let names = aliases.flat_map(|alias| {
            let fitting = self.aliases.iter().filter(move |(pattern, _)| matches(pattern, &alias));
            fitting.map(|(_, name)| name.clone())
        });
        names.collect()
    }

    /// As [`Modules::load`], but a failure is only reported: the system starts without it.
    pub fn load_if_possible(&self, name: &str) {
        if let Err(fault) = self.load(name) {
            fault::say(&fault.to_string());
        }
    }

    /// Loads a module and before it those that it needs. When two threads load the same one, the kernel lets the second wait.
    pub fn load(&self, name: &str) -> Result<()> {
        let Some(files) = self.files.get(name).cloned() else {
            return Err(fault::Fault::new(format!("module {name} is not in the initrd"), WRONG_IMAGE));
        };
        // modules.dep names what must be there first, last.
        for file in files.iter().rev() {
            if !self.done().loaded.contains(file) {
                self.insert(file)?;
                self.done().loaded.insert(file.clone());
            }
        }
        Ok(())
    }

    fn done(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, file: &str) -> Result<()> {
        let path = self.directory.join(file);
        let what = format!("module {}", path.display());
        let module = File::open(&path).or_fault(&what, WRONG_IMAGE)?;
        match finit_module(&module, c"", ModuleInitFlags::empty()) {
            // ENODEV: a driver that looks for its hardware by itself and finds none.
            Ok(()) | Err(Errno::EEXIST | Errno::ENODEV) => Ok(()),
            Err(error) => Err(error).or_fault(&what, WRONG_IMAGE),
        }
    }
}

/// The aliases of all devices that the kernel has found.
fn device_aliases() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    for bus in entries(Path::new("/sys/bus")) {
        for device in entries(&bus.join("devices")) {
            if let Ok(alias) = fs::read_to_string(device.join("modalias")) {
                found.insert(alias.trim_end().to_owned());
            }
        }
    }
    found
}

fn parse_aliases(text: &str) -> Vec<(String, String)> {
    let words = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    words
        .filter_map(|words| match words[..] {
            ["alias", pattern, module] => Some((pattern.to_owned(), module.to_owned())),
            _ => None,
        })
        .collect()
}

fn parse_dependencies(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut files = BTreeMap::new();
    for line in text.lines() {
        let Some((file, needs)) = line.split_once(':') else { continue };
        let all = std::iter::once(file).chain(needs.split_whitespace()).map(str::to_owned).collect();
        files.insert(module_name(file), all);
    }
    files
}

/// A module is called after its file, with underscores (modprobe(8)).
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

/// Whether a shell pattern (`*`, `?`, `[…]`, as in fnmatch(3)) matches the whole text.
fn matches(pattern: &str, text: &str) -> bool {
    matches_bytes(pattern.as_bytes(), text.as_bytes())
}

fn matches_bytes(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, rest) => rest.is_none(),
        (Some((b'*', rest)), _) => (0..=text.len()).any(|skipped| matches_bytes(rest, &text[skipped..])),
        (Some((b'?', rest)), Some((_, more))) => matches_bytes(rest, more),
        (Some((b'[', rest)), Some((byte, more))) => match rest.iter().position(|byte| *byte == b']') {
            Some(end) => in_class(&rest[..end], *byte) && matches_bytes(&rest[end + 1..], more),
            None => false,
        },
        (Some((wanted, rest)), Some((byte, more))) => wanted == byte && matches_bytes(rest, more),
        (Some(_), None) => false,
    }
}

/// Whether the inside of `[…]` names this byte: single ones and ranges.
fn in_class(class: &[u8], byte: u8) -> bool {
    let mut rest = class;
    while let Some((first, more)) = rest.split_first() {
        if let [b'-', last, beyond @ ..] = more {
            if (*first..=*last).contains(&byte) {
                return true;
            }
            rest = beyond;
        } else if *first == byte {
            return true;
        } else {
            rest = more;
        }
    }
    false
}

/// More than an appliance has processors: some of the drivers wait for their hardware.
const AT_A_TIME: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_finds_its_driver_by_pattern() {
        let pvscsi = "pci:v000015ADd000007C0sv*sd*bc*sc*i*";
        assert!(matches(pvscsi, "pci:v000015ADd000007C0sv000015ADsd000007C0bc01sc07i00"));
        assert!(!matches(pvscsi, "pci:v000015ADd000007B0sv000015ADsd000007B0bc02sc00i00"));
        assert!(matches("pci:v*d*sv*sd*bc01sc06i01*", "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01"));
        assert!(matches("scsi:t-0x00*", "scsi:t-0x00"));
        assert!(matches("acpi*:PNP0[A-C]0?:*", "acpi:PNP0B03:"));
        assert!(!matches("acpi*:PNP0[A-C]0?:*", "acpi:PNP0D03:"));
        assert!(!matches("virtio:d00000002v*", "virtio:d00000002"));
        assert!(!matches("open[", "open["));
    }

    #[test]
    fn what_a_module_needs_comes_first() {
        let files = parse_dependencies("a/virtio_blk.ko: b/virtio.ko c/virtio-ring.ko\nc/virtio-ring.ko:\n");
        assert_eq!(files["virtio_blk"], ["a/virtio_blk.ko", "b/virtio.ko", "c/virtio-ring.ko"]);
        assert_eq!(files["virtio_ring"], ["c/virtio-ring.ko"]);
    }

    #[test]
    fn aliases_are_read_and_comments_skipped() {
        let aliases = parse_aliases("# Aliases extracted from modules themselves.\nalias fs-erofs erofs\n");
        assert_eq!(aliases, [("fs-erofs".to_owned(), "erofs".to_owned())]);
    }
}
