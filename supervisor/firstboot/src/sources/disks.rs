//! Disks that carry answers: found by the label of their file system, read through a read-only mount.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Documents, seed};

/// A file system on a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The device, such as `/dev/sr0`.
    pub device: PathBuf,
    /// `iso9660` or `vfat`.
    pub kind: &'static str,
    /// Its label, in upper case.
    pub label: String,
}

/// The volumes of this machine that may carry answers, those with a known label first.
///
/// Every block device is looked at by its first sectors: that needs no udev and takes less than a millisecond for each.
pub fn volumes() -> Vec<Volume> {
    let Ok(devices) = fs::read_dir("/sys/class/block") else { return Vec::new() };
    let mut names: Vec<String> = devices.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names.retain(|name| !["loop", "ram", "zram", "dm-", "md", "fd"].iter().any(|made| name.starts_with(made)));
    let mut found: Vec<Volume> =
        names.iter().filter_map(|name| probe(&Path::new("/dev").join(name)).filter(Volume::may_carry)).collect();
    found.sort_by_key(Volume::rank);
    found
}

/// Which file system a device holds; `None` for anything but ISO 9660 and FAT.
pub fn probe(device: &Path) -> Option<Volume> {
    let file = File::open(device).ok()?;
    let mut sector = [0_u8; 2048];
    // ECMA-119: the primary volume descriptor is sector 16.
    if file.read_exact_at(&mut sector, 16 * 2048).is_ok() && sector[1..6] == *b"CD001" {
        return Some(Volume { device: device.to_owned(), kind: "iso9660", label: label(&sector[40..72]) });
    }
    file.read_exact_at(&mut sector[..512], 0).ok()?;
    if sector[510..512] != [0x55, 0xaa] {
        return None;
    }
    // Microsoft's FAT specification: the label of FAT12 and FAT16, and that of FAT32.
    let label_at = if sector[54..57] == *b"FAT" {
        43
    } else if sector[82..87] == *b"FAT32" {
        71
    } else {
        return None;
    };
    Some(Volume { device: device.to_owned(), kind: "vfat", label: label(&sector[label_at..label_at + 11]) })
}

/// Mounts a volume read-only, reads its answers, and unmounts it.
///
/// # Errors
/// Which device, and what failed.
pub fn read(volume: &Volume) -> anyhow::Result<Option<Documents>> {
    let place = volume.device.display();
    fs::create_dir_all(MOUNT_POINT)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(&volume.device), MOUNT_POINT, Some(volume.kind), flags, None::<&str>)
        .map_err(|error| anyhow::anyhow!("{place} can't be mounted as {}: {error}", volume.kind))?;
    let documents = seed::read(Path::new(MOUNT_POINT), &place.to_string());
    // The disk may be detached at once.
    umount2(MOUNT_POINT, MntFlags::MNT_DETACH)
        .map_err(|error| anyhow::anyhow!("{place} can't be unmounted: {error}"))?;
    Ok(documents?)
}

impl Volume {
    /// Labels of NoCloud and of ConfigDrive, and any CD-ROM, which may hold an OVF environment.
    fn may_carry(&self) -> bool {
        self.is_labelled() || self.kind == "iso9660"
    }

    /// Whether its label says that it carries answers.
    pub fn is_labelled(&self) -> bool {
        self.rank() < 2
    }

    fn rank(&self) -> u8 {
        match self.label.as_str() {
            "CIDATA" => 0,
            "CONFIG-2" => 1,
            _ => 2,
        }
    }
}

fn label(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches(['\0', ' ']).to_ascii_uppercase()
}

const MOUNT_POINT: &str = "/run/trilith/seed";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_known_by_their_first_sectors() {
        let path = std::env::temp_dir().join(format!("trilith-volume-{}", std::process::id()));
        let probed = |at: &[(usize, &[u8])]| {
            let mut disk = vec![0; 64 * 1024];
            for (place, bytes) in at {
                disk[*place..place + bytes.len()].copy_from_slice(bytes);
            }
            fs::write(&path, disk).unwrap();
            probe(&path).map(|volume| (volume.kind, volume.label.clone(), volume.is_labelled()))
        };
        let end: (usize, &[u8]) = (510, &[0x55, 0xaa]);
        let iso = probed(&[(32_769, b"CD001"), (32_808, b"cidata                          ")]);
        let fat = probed(&[end, (43, b"CIDATA     "), (54, b"FAT12   ")]);
        let fat32 = probed(&[end, (71, b"config-2   "), (82, b"FAT32   ")]);
        let other = probed(&[end]);
        fs::remove_file(&path).unwrap();
        assert_eq!(iso, Some(("iso9660", "CIDATA".to_owned(), true)));
        assert_eq!(fat, Some(("vfat", "CIDATA".to_owned(), true)));
        assert_eq!(fat32, Some(("vfat", "CONFIG-2".to_owned(), true)));
        assert_eq!(other, None);
    }
}
