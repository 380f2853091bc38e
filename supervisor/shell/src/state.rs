//! The state partition: the only place that survives a boot. It is opened here whatever has become of it.
//!
//! ```text
//! no partition ─▶ made anew (systemd-repart) ─▶ blank
//! blank ─▶ mkfs                              (the first boot: nothing to tell)
//!    └ with copies of a superblock ─▶ e2fsck -fy -b ─▶ mount, and a notice: it has not always been blank
//!                                        └ fails ─▶ mkfs, and a notice
//! ext4 ─▶ mount ─▶ grown to the partition's end
//!    └ fails ─▶ e2fsck -p ─▶ mount
//!                 └ fails ─▶ e2fsck -fy ─▶ mount, and a notice
//!                              ├ no mount ─▶ mkfs, and a notice
//!                              └ no verdict, or mkfs fails ─▶ memory, and a notice
//! ```
//!
//! What nobody could judge, because the disk or the memory failed, is left alone: the next boot may find it whole.
//!
//! A boot must not end here: a node without its memory can still be reached, asked and given its answers anew, a node that
//! does not boot cannot. So every way leads to a mount, and what was lost is told as a notice.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};

use crate::paths;

mod superblock;

use superblock::{Backup, START, Superblock};

/// Opens the state partition of the disk that the system was started from, mounts it, and keeps the journal on it.
pub fn open() {
    let at = Path::new(STATE_DIR);
    match boot_disk().and_then(|disk| open_on(&disk, at)) {
        Ok(Opened::AsItWas | Opened::First) => {}
        Ok(Opened::Mended { why }) => {
            notify(&format!("State was damaged and has been mended by force; some of it may be lost: {why}."));
        }
        Ok(Opened::Anew { why }) => {
            notify(&format!("State was broken and has been made anew: {why}. Answers are taken as on a first boot."));
        }
        Err(error) => {
            let told = format!(
                "State is kept in memory only and is lost at the next boot: {error:#}. Look at the virtual machine's disk."
            );
            if let Err(error) = in_memory(at) {
                eprintln!("{error:#}");
            }
            notify(&told);
        }
    }
    if let Err(error) = keep_journal(at) {
        eprintln!("the journal is kept in memory only: {error:#}");
    }
}

/// How the partition was found.
#[derive(Debug, PartialEq, Eq)]
enum Opened {
    /// A file system, mounted.
    AsItWas,
    /// Blank: the file system has been made.
    First,
    /// Damaged: what was found wrong is cut away.
    Mended {
        /// What was wrong.
        why: String,
    },
    /// Beyond repair: the file system has been made anew.
    Anew {
        /// What was wrong with the old one.
        why: String,
    },
}

/// Opens the state partition of this disk (a directory of sysfs).
fn open_on(disk: &Path, at: &Path) -> Result<Opened> {
    let (partition, found) = partition_on(disk)?;
    match open_partition(&partition, at)? {
        Opened::First if !found => Ok(Opened::Anew { why: format!("the partition table had no {LABEL}") }),
        opened => Ok(opened),
    }
}

/// Mounts the file system of this partition, makes or mends it first if it must, and lets it grow to the partition's end.
fn open_partition(device: &Path, at: &Path) -> Result<Opened> {
    fs::create_dir_all(at).with_context(|| at.display().to_string())?;
    let mut start = [0; START];
    let partition = File::open(device).with_context(|| device.display().to_string())?;
    partition.read_exact_at(&mut start, 0).with_context(|| format!("reading {}", device.display()))?;
    let opened = match mount_or_mend(device, &partition, at, &start)? {
        Found::Whole => Opened::AsItWas,
        Found::Mended(why) => Opened::Mended { why },
        Found::Blank => {
            make_file_system(device)?;
            mount_state(device, at)?;
            Opened::First
        }
        Found::Hopeless(why) => {
            make_file_system(device)?;
            mount_state(device, at)?;
            Opened::Anew { why }
        }
    };
    // A file system that is smaller than it could be still does its work.
    if let Err(error) = grow(device, at) {
        eprintln!("{} stays as small as it is: {error:#}", at.display());
    }
    Ok(opened)
}

/// What a partition holds.
enum Found {
    /// Nothing, as the image is made.
    Blank,
    /// A file system, mounted.
    Whole,
    /// One that lost what was wrong with it, mounted.
    Mended(String),
    /// None that could be mounted.
    Hopeless(String),
}

/// # Errors
/// It could not be judged.
fn mount_or_mend(device: &Path, partition: &File, at: &Path, start: &[u8; START]) -> Result<Found> {
    let Some(superblock) = Superblock::of(start) else {
        let backups = superblock::backups(partition)
            .with_context(|| format!("looking for superblocks on {}", device.display()))?;
        return match &backups[..] {
            [] if *start == [0; START] => Ok(Found::Blank),
            [] => Ok(Found::Hopeless(format!("no ext4 file system on {}", device.display()))),
            backups => Ok(mend_by_backup(device, at, backups)),
        };
    };
    if !superblock.has_errors && mount_state(device, at).is_ok() {
        return Ok(Found::Whole);
    }
    let wrong = match run(Command::new(E2FSCK).arg("-p").arg(device), &E2FSCK_MENDED) {
        Ok(()) => None,
        Err(wrong) => {
            run(Command::new(E2FSCK).args(["-f", "-y"]).arg(device), &E2FSCK_JUDGED)?;
            Some(format!("{wrong:#}"))
        }
    };
    Ok(match (mount_state(device, at), wrong) {
        (Ok(()), None) => Found::Whole,
        (Ok(()), Some(wrong)) => Found::Mended(wrong),
        (Err(error), wrong) => {
            Found::Hopeless(format!("{error:#}{}", wrong.map_or_else(String::new, |wrong| format!("; {wrong}"))))
        }
    })
}

/// A file system that has lost its start: it is made again from the first copy that e2fsck takes. (Or one that a power cut kept from
/// being made: there is nothing to lose then, and a word too much.)
fn mend_by_backup(device: &Path, at: &Path, backups: &[Backup]) -> Found {
    let lost = format!("the file system on {} had lost its start", device.display());
    let mut refused = String::new();
    for Backup { block, block_size } in backups {
        let mut e2fsck = Command::new(E2FSCK);
        e2fsck.args(["-f", "-y", "-b", &block.to_string(), "-B", &block_size.to_string()]).arg(device);
        let mended = run(&mut e2fsck, &E2FSCK_JUDGED).and_then(|()| mount_state(device, at));
        match mended {
            Ok(()) => return Found::Mended(lost),
            Err(error) => refused = format!("{error:#}"),
        }
    }
    // Not left alone as what nobody could judge: what has no start is not whole at the next boot either.
    Found::Hopeless(format!("{lost}; {refused}"))
}

fn mount_state(device: &Path, at: &Path) -> Result<()> {
    mount(Some(device), at, Some("ext4"), STATE_FLAGS, None::<&str>)
        .with_context(|| format!("mounting {} at {}", device.display(), at.display()))
}

/// The superblock is written last: a power cut on the way leaves the partition blank, as it was, but perhaps for copies of it.
fn make_file_system(device: &Path) -> Result<()> {
    let mut mkfs = Command::new(MKFS);
    mkfs.args(["-q", "-F", "-L", LABEL, "-m", "0", "-e", "remount-ro", "-E", "nodiscard"]).arg(device);
    run(&mut mkfs, &[0])
}

/// Grows a mounted file system when its partition is larger by more than [`WORTH_GROWING`].
fn grow(device: &Path, at: &Path) -> Result<()> {
    let mut start = [0; START];
    let partition = File::open(device)?;
    partition.read_exact_at(&mut start, 0)?;
    let superblock = Superblock::of(&start).context("no superblock")?;
    let size = nix::sys::stat::fstat(&partition).map(|found| found.st_rdev)?;
    let size = sysfs_number(&sysfs_of(size)?.join("size"))? * SECTOR;
    let blocks = size / superblock.block_size;
    if size < superblock.blocks * superblock.block_size + WORTH_GROWING {
        return Ok(());
    }
    let mounted = File::open(at)?;
    // SAFETY: the ioctl reads one u64 that lives until it returns.
    unsafe { ext4_resize(mounted.as_raw_fd(), &raw const blocks) }.context("EXT4_IOC_RESIZE_FS")?;
    Ok(())
}

nix::ioctl_write_ptr!(ext4_resize, b'f', 16, u64);

/// The disk that holds the root, in sysfs: the root's device is dm-verity's, which lies over a partition of it.
fn boot_disk() -> Result<PathBuf> {
    let root = sysfs_of(fs::metadata("/usr")?.dev()).context("the root is on no disk")?;
    let below = fs::read_dir(root.join("slaves")).into_iter().flatten().flatten().next();
    let partition = below.map_or(Ok(root), |slave| fs::canonicalize(slave.path()))?;
    ensure!(partition.join("partition").exists(), "the root lies on no partition, but on {}", partition.display());
    partition.parent().map(Path::to_owned).context("a partition lies on a disk")
}

/// The state partition on this disk, and whether it was there. When the table has lost it or leaves room behind it,
/// systemd-repart mends that.
fn partition_on(disk: &Path) -> Result<(PathBuf, bool)> {
    let (found, before) = (find(disk)?, partitions(disk)?);
    if found.is_none() || room_behind(disk)? >= WORTH_GROWING {
        let name = disk.file_name().context("a disk has a name")?;
        let mut repart = Command::new(REPART);
        repart
            .args(["--dry-run=no", "--no-pager", "--definitions", REPART_DEFINITIONS])
            .arg(Path::new("/dev").join(name));
        match run(&mut repart, &[0]) {
            Err(error) if found.is_none() => return Err(error),
            Err(error) => eprintln!("the state partition stays as small as it is: {error:#}"),
            Ok(()) => {}
        }
    }
    // The kernel learns the name of one that has just been made only when it reads the table anew.
    let made = || Ok::<_, anyhow::Error>(partitions(disk)?.into_iter().find(|name| !before.contains(name)));
    let Some(name) = find(disk)?.map_or_else(made, |name| Ok(Some(name)))? else {
        bail!("no partition {LABEL} on {}", disk.display())
    };
    Ok((Path::new("/dev").join(name), found.is_some()))
}

/// The names of the partitions on a disk.
fn partitions(disk: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(disk).with_context(|| disk.display().to_string())?.flatten();
    let partitions = entries.filter(|entry| entry.path().join("partition").exists());
    Ok(partitions.filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// The name of the partition with the label, as the kernel read it from the table.
fn find(disk: &Path) -> Result<Option<String>> {
    let is_it = |name: &String| {
        let uevent = fs::read_to_string(disk.join(name).join("uevent")).unwrap_or_default();
        uevent.lines().any(|line| line.strip_prefix("PARTNAME=") == Some(LABEL))
    };
    Ok(partitions(disk)?.into_iter().find(is_it))
}

/// Bytes between the end of the last partition and the end of the disk.
fn room_behind(disk: &Path) -> Result<u64> {
    let mut end = 0;
    for partition in partitions(disk)? {
        let partition = disk.join(partition);
        end = end.max(sysfs_number(&partition.join("start"))? + sysfs_number(&partition.join("size"))?);
    }
    Ok(sysfs_number(&disk.join("size"))?.saturating_sub(end) * SECTOR)
}

fn sysfs_of(device: u64) -> Result<PathBuf> {
    let number = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let path = Path::new("/sys/dev/block").join(&number);
    fs::canonicalize(&path).with_context(|| path.display().to_string())
}

fn sysfs_number(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    text.trim().parse().with_context(|| format!("{} holds no number: {text}", path.display()))
}

fn in_memory(at: &Path) -> Result<()> {
    fs::create_dir_all(at).with_context(|| at.display().to_string())?;
    mount(Some("trilith-state"), at, Some("tmpfs"), STATE_FLAGS, Some("mode=0700,size=64M"))
        .with_context(|| format!("a tmpfs at {}", at.display()))
}

/// journald writes to /var/log/journal when it is there; systemd-journald.service(8) says how it is to be owned.
fn keep_journal(at: &Path) -> Result<()> {
    fs::set_permissions(at, fs::Permissions::from_mode(0o700))?;
    let kept = at.join("journal");
    fs::create_dir_all(&kept).with_context(|| kept.display().to_string())?;
    fs::create_dir_all(JOURNAL)?;
    let group = nix::unistd::Group::from_name("systemd-journal")?.map(|group| group.gid);
    nix::unistd::chown(&kept, None, group)?;
    fs::set_permissions(&kept, fs::Permissions::from_mode(0o2755))?;
    mount(Some(&kept), JOURNAL, None::<&str>, MsFlags::MS_BIND, None::<&str>).with_context(|| JOURNAL.to_owned())
}

fn notify(text: &str) {
    eprintln!("{text}");
    let folder = Path::new(paths::NOTICES);
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(folder.join("state"), format!("{text}\n")));
    if let Err(error) = written {
        eprintln!("the notice cannot be written to {}: {error}", folder.display());
    }
}

/// Runs a program to its end; `good` are the exit codes that mean success.
fn run(command: &mut Command, good: &[i32]) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{name} cannot be run"))?;
    if output.status.code().is_some_and(|code| good.contains(&code)) {
        return Ok(());
    }
    let said = [output.stderr, output.stdout].concat();
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("without a message");
    bail!("{name}: {}: {line}", output.status)
}

/// Nothing on it is ever executed.
const STATE_FLAGS: MsFlags =
    MsFlags::MS_NODEV.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NOATIME);
const STATE_DIR: &str = "/var/lib/trilith";
const LABEL: &str = "trilith-state";
const JOURNAL: &str = "/var/log/journal";
const MKFS: &str = "mkfs.ext4";
const E2FSCK: &str = "e2fsck";
/// e2fsck(8): nothing to mend, mended, mended and a reboot would be due if it were mounted.
const E2FSCK_MENDED: [i32; 3] = [0, 1, 2];
/// With these it has come to an end, the last with errors left. (Higher ones: it could not do its work.)
const E2FSCK_JUDGED: [i32; 4] = [0, 1, 2, 4];
const REPART: &str = "systemd-repart";
const REPART_DEFINITIONS: &str = "/usr/lib/trilith/repart.d";
/// sysfs counts in sectors of 512 bytes, whatever the disk does.
const SECTOR: u64 = 512;
/// Less than this is alignment, not room.
const WORTH_GROWING: u64 = 8 << 20;

#[cfg(test)]
mod tests {
    use std::sync::{PoisonError, RwLockReadGuard};
    use std::time::{Duration, Instant};

    use nix::errno::Errno;

    use super::*;
    use crate::haproxy::testing::MOUNTED;

    /// A disk image with nothing in it, as a block device. The tests that need one do nothing for users other than root.
    struct Loop {
        folder: PathBuf,
        device: PathBuf,
        _mounted: RwLockReadGuard<'static, ()>,
    }

    impl Loop {
        fn new(name: &str, bytes: u64) -> Option<Loop> {
            if !nix::unistd::geteuid().is_root() {
                return None;
            }
            let mounted = MOUNTED.read().unwrap_or_else(PoisonError::into_inner);
            let folder = std::env::temp_dir().join(format!("trilith-state-{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            File::create(folder.join("disk")).unwrap().set_len(bytes).unwrap();
            let output = Command::new("losetup").args(["--find", "--show"]).arg(folder.join("disk")).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let device = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
            Some(Loop { folder, device, _mounted: mounted })
        }

        fn at(&self) -> PathBuf {
            self.folder.join("mount")
        }

        fn open(&self) -> Result<Opened> {
            open_partition(&self.device, &self.at())
        }

        fn write(&self, at: u64, bytes: &[u8]) {
            let device = File::options().write(true).open(&self.device).unwrap();
            device.write_all_at(bytes, at).unwrap();
            device.sync_all().unwrap();
        }

        fn unmount(&self) {
            // A program that another test starts has copies of all open files until it executes.
            let start = Instant::now();
            while let Err(error) = nix::mount::umount(&self.at()) {
                assert!(error == Errno::EBUSY && start.elapsed() < Duration::from_secs(60), "{error}");
                std::thread::yield_now();
            }
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            // Without waiting for whoever has it open just now; a panic may be under way.
            let _ = nix::mount::umount2(&self.at(), nix::mount::MntFlags::MNT_DETACH);
            let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    #[test]
    fn a_blank_partition_is_the_first_boot_and_keeps_what_is_written() {
        let Some(disk) = Loop::new("blank", 16 << 20) else { return };
        assert_eq!(disk.open().unwrap(), Opened::First);
        fs::write(disk.at().join("secret"), "s").unwrap();
        disk.unmount();
        assert_eq!(disk.open().unwrap(), Opened::AsItWas);
        assert_eq!(fs::read_to_string(disk.at().join("secret")).unwrap(), "s");
    }

    #[test]
    fn what_cannot_be_mounted_is_mended_by_force_or_made_anew_and_the_reason_is_told() {
        let Some(disk) = Loop::new("broken", 16 << 20) else { return };
        disk.write(0, &[0x5a; 8192]);
        let Opened::Anew { why } = disk.open().unwrap() else { panic!("garbage was taken for a file system") };
        assert!(why.contains("no ext4 file system on /dev/loop"), "{why}");
        disk.unmount();
        // A superblock that looks right, over nothing that is.
        let mut start = [0; START];
        File::open(&disk.device).unwrap().read_exact_at(&mut start, 0).unwrap();
        disk.write(0, &vec![0xff; 16 << 20]);
        disk.write(0, &start);
        let Opened::Mended { why } = disk.open().unwrap() else { panic!("a ruin was taken for a whole file system") };
        assert!(why.starts_with("e2fsck: exit status: "), "{why}");
    }

    /// 64 MiB is what the image has, with blocks of 1 KiB; from 512 MiB on they have 4 KiB.
    #[test]
    fn a_file_system_that_lost_its_start_is_not_taken_for_a_first_boot_but_mended_with_what_it_holds() {
        for (size, zeros) in [(64 << 20, START), (64 << 20, 4 << 20), (600 << 20, START)] {
            let Some(disk) = Loop::new("lost", size) else { return };
            assert_eq!(disk.open().unwrap(), Opened::First);
            fs::write(disk.at().join("secret"), "s").unwrap();
            disk.unmount();
            disk.write(0, &vec![0; zeros]);
            let Opened::Mended { why } = disk.open().unwrap() else { panic!("{size} bytes, {zeros} lost") };
            assert!(why.starts_with("the file system on /dev/loop") && why.ends_with(" had lost its start"), "{why}");
            if zeros == START {
                assert_eq!(fs::read_to_string(disk.at().join("secret")).unwrap(), "s");
            }
            disk.unmount();
            assert_eq!(disk.open().unwrap(), Opened::AsItWas);
        }
    }

    #[test]
    fn copies_that_are_no_use_are_told_and_the_state_is_made_anew() {
        let Some(disk) = Loop::new("copies", 64 << 20) else { return };
        disk.open().unwrap();
        disk.unmount();
        disk.write(0, &[0; START]);
        let copies = superblock::backups(&File::open(&disk.device).unwrap()).unwrap();
        let blocks: Vec<u64> = copies.iter().map(|copy| copy.block).collect();
        assert_eq!(blocks, [8193, 24577, 40961, 57345]);
        for Backup { block, block_size } in copies {
            // The number of inodes.
            disk.write(block * block_size, &[0xff; 4]);
        }
        let Opened::Anew { why } = disk.open().unwrap() else { panic!("not made anew") };
        assert!(why.contains(" had lost its start; e2fsck: exit status: 8: "), "{why}");
        assert!(superblock::backups(&File::open(&disk.device).unwrap()).unwrap().len() == 4);
    }

    #[test]
    fn a_file_system_of_which_only_copies_of_the_superblock_are_there_is_opened() {
        let Some(disk) = Loop::new("half", 64 << 20) else { return };
        disk.open().unwrap();
        disk.unmount();
        let device = File::open(&disk.device).unwrap();
        let mut half = vec![0; 64 << 20];
        for Backup { block, block_size } in superblock::backups(&device).unwrap() {
            let at = block * block_size;
            device.read_exact_at(&mut half[at as usize..][..1024], at).unwrap();
        }
        disk.write(0, &half);
        assert!(matches!(disk.open().unwrap(), Opened::Mended { .. } | Opened::Anew { .. }));
        fs::write(disk.at().join("node"), "a").unwrap();
        disk.unmount();
        assert_eq!(disk.open().unwrap(), Opened::AsItWas);
    }

    #[test]
    fn errors_that_the_kernel_noted_are_mended_before_it_is_mounted() {
        let Some(disk) = Loop::new("errors", 16 << 20) else { return };
        disk.open().unwrap();
        fs::write(disk.at().join("node"), "a").unwrap();
        disk.unmount();
        let mut state = [0; 2];
        File::open(&disk.device).unwrap().read_exact_at(&mut state, 1024 + 58).unwrap();
        let set = Command::new("debugfs").args(["-w", "-R", "ssv state 2"]).arg(&disk.device).status().unwrap();
        assert!(set.success());
        assert_eq!(disk.open().unwrap(), Opened::AsItWas);
        assert_eq!(fs::read_to_string(disk.at().join("node")).unwrap(), "a");
        let mut start = [0; START];
        File::open(&disk.device).unwrap().read_exact_at(&mut start, 0).unwrap();
        assert!(!Superblock::of(&start).unwrap().has_errors);
    }

    #[test]
    fn the_file_system_grows_with_its_partition() {
        // Growing a mounted file system takes CAP_SYS_RESOURCE (bit 24), which root lacks in some containers.
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
        let may_grow = u64::from_str_radix(capabilities, 16).unwrap() & 1 << 24 != 0;
        let Some(disk) = Loop::new("grown", 16 << 20).filter(|_| may_grow) else { return };
        disk.open().unwrap();
        disk.unmount();
        File::options().write(true).open(disk.folder.join("disk")).unwrap().set_len(64 << 20).unwrap();
        assert!(Command::new("losetup").arg("--set-capacity").arg(&disk.device).status().unwrap().success());
        assert_eq!(disk.open().unwrap(), Opened::AsItWas);
        let found = nix::sys::statvfs::statvfs(&disk.at()).unwrap();
        let size = found.blocks() as u64 * found.fragment_size() as u64;
        assert!(size > 48 << 20, "{size}");
    }

    #[test]
    fn a_superblock_is_known_by_its_magic() {
        assert_eq!(Superblock::of(&[0; START]), None);
        assert_eq!(Superblock::of(&[0xff; START]), None);
    }
}
