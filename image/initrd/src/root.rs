//! The mounts: from what the kernel gives to what systemd finds.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot, execv};

use crate::fault::{self, Context, Result, WRONG_DISK, WRONG_IMAGE};

/// The file systems that devices and modules are found in.
pub fn mount_kernel_file_systems() -> Result<()> {
    mount_new("proc", "/proc", "proc", TIGHT, "")?;
    mount_new("sysfs", "/sys", "sysfs", TIGHT, "")?;
    // Made by the kernel, not by us: executables in it are nobody's need either, but some drivers map device memory executable.
    mount_new("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755")?;
    // systemd leaves it as it is, and would let programs be started from it.
    mount_new("tmpfs", "/dev/shm", "tmpfs", TIGHT, "mode=1777")?;
    mount_new("tmpfs", "/run", "tmpfs", TIGHT, "mode=0755,size=20%")
}

/// Puts the new root together under [`NEW_ROOT`].
pub fn mount_root(device: &str) -> Result<()> {
    let read_only = MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
    mount(Some(device), NEW_ROOT, Some("erofs"), read_only, None::<&str>)
        .or_fault(&format!("{device} as the root"), WRONG_DISK)?;
    // Changes of /etc lie in memory that nothing else can reach: this mount stays behind when the root is switched.
    mount_new("tmpfs", "/etc", "tmpfs", TIGHT, "mode=0755,size=16M")?;
    for directory in ["/etc/upper", "/etc/work"] {
        fs::create_dir(directory).or_fault(directory, WRONG_IMAGE)?;
    }
    let layers = format!("lowerdir={NEW_ROOT}/etc,upperdir=/etc/upper,workdir=/etc/work");
    mount_new("etc", &format!("{NEW_ROOT}/etc"), "overlay", TIGHT, &layers)?;
    mount_new("tmpfs", &format!("{NEW_ROOT}/var"), "tmpfs", TIGHT, "mode=0755,size=25%")?;
    let id = fs::read_to_string("/sys/class/dmi/id/product_uuid").unwrap_or_default();
    let path = format!("{NEW_ROOT}/etc/machine-id");
    fs::write(&path, machine_id(&id)).or_fault(&path, WRONG_IMAGE)
}

/// Makes the new root `/`, frees the memory of this one, and becomes systemd.
pub fn switch() -> Result<Infallible> {
    for directory in ["/proc", "/sys", "/dev", "/run"] {
        let to = format!("{NEW_ROOT}{directory}");
        move_mount(directory, &to)?;
    }
    chdir(NEW_ROOT).or_fault(NEW_ROOT, WRONG_IMAGE)?;
    if let Ok(own) = fs::metadata("/") {
        remove_below(Path::new("/"), own.dev());
    }
    move_mount(".", "/")?;
    chroot(".").and_then(|()| chdir("/")).or_fault("the new root", WRONG_IMAGE)?;
    let program = CString::new(SYSTEMD).or_fault(SYSTEMD, WRONG_IMAGE)?;
    execv(&program, &[&program]).or_fault(SYSTEMD, WRONG_DISK)
}

/// The machine's identity for systemd's journal and network: the hypervisor's, so that it stays the same although `/etc` is made
/// anew. Nothing, when the hypervisor has given none: systemd then makes one for this boot.
fn machine_id(product_uuid: &str) -> String {
    let digits: String = product_uuid.trim().chars().filter(|digit| *digit != '-').collect();
    let valid = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let blank =
        digits.bytes().all(|digit| digit == b'0') || digits.bytes().all(|digit| digit.eq_ignore_ascii_case(&b'f'));
    if valid && !blank { digits.to_ascii_lowercase() + "\n" } else { String::new() }
}

fn mount_new(source: &str, target: &str, kind: &str, flags: MsFlags, options: &str) -> Result<()> {
    if !target.starts_with(NEW_ROOT) {
        fs::create_dir_all(target).or_fault(target, WRONG_IMAGE)?;
    }
    mount(Some(source), target, Some(kind), flags, Some(options)).or_fault(&format!("{kind} at {target}"), WRONG_IMAGE)
}

fn move_mount(from: &str, to: &str) -> Result<()> {
    let nothing = None::<&str>;
    mount(Some(from), to, nothing, MsFlags::MS_MOVE, nothing).or_fault(&format!("moving {from} to {to}"), WRONG_IMAGE)
}

/// Removes files of that file system only, as far as it goes: what stays costs memory and nothing else.
fn remove_below(directory: &Path, device: u64) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.symlink_metadata() {
            Ok(found) if found.dev() != device => {}
            Ok(found) if found.is_dir() => {
                remove_below(&path, device);
                let _ = fs::remove_dir(&path);
            }
            _ => {
                if let Err(error) = fs::remove_file(&path) {
                    fault::say(&format!("{}: {error}", path.display()));
                }
            }
        }
    }
}

const NEW_ROOT: &str = "/root";
const SYSTEMD: &str = "/usr/lib/systemd/systemd";
const TIGHT: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_the_identity_that_its_hypervisor_gave_it() {
        let id = machine_id("564D1122-3344-5566-7788-99AABBCCDDEE\n");
        assert_eq!(id, "564d11223344556677889 9aabbccddee\n".replace(' ', ""));
    }

    #[test]
    fn an_identity_that_nobody_gave_is_left_to_systemd() {
        for uuid in ["", "not set\n", "00000000-0000-0000-0000-000000000000", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF\n"]
        {
            assert_eq!(machine_id(uuid), "", "{uuid}");
        }
    }
}
