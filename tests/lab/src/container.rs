//! The process that becomes a container: `trilith-lab container NODE`, started by [`crate::node::Node::boot`].
//!
//! It makes its root and its view of the cgroups in a private mount namespace and turns into systemd-nspawn. All these
//! mounts end with the last process of the container, so a hard kill leaves nothing behind.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use crate::node::Node;

/// Becomes the container of that node; returns only when that fails.
pub fn become_container(node: &Node) -> Result<()> {
    node.cgroup().enter()?;
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot make mounts private")?;
    only_cgroup2().context("cannot mount cgroup2 at /sys/fs/cgroup")?;
    // nspawn keeps runtime directories here; on a tmpfs of our own nothing of them survives a kill.
    fs::create_dir_all("/run/systemd")?;
    mount(Some("tmpfs"), "/run/systemd", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .context("cannot mount a tmpfs at /run/systemd")?;
    mount_root(node)?;
    Err(nspawn(node).exec()).context("cannot start systemd-nspawn")
}

/// A root that keeps what the node writes for as long as the laboratory stands, over layers that all nodes share.
fn mount_root(node: &Node) -> Result<()> {
    let disk = node.disk();
    let root = node.root();
    let work = disk.join("work");
    for directory in [&root, &work] {
        fs::create_dir_all(directory)?;
    }
    fs::set_permissions(node.upper(), Permissions::from_mode(0o755))?;
    let options =
        format!("lowerdir={},upperdir={},workdir={}", node.lowerdir()?, node.upper().display(), work.display());
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("cannot mount the root of {} ({options})", node.name()))
}

/// systemd of Debian 13 knows only version 2, which some hosts mount beside version 1.
fn only_cgroup2() -> Result<()> {
    let at = Path::new("/sys/fs/cgroup");
    if statfs(at)?.filesystem_type() == CGROUP2_SUPER_MAGIC {
        return Ok(());
    }
    umount2(at, MntFlags::MNT_DETACH)?;
    mount(Some("cgroup2"), at, Some("cgroup2"), MsFlags::empty(), None::<&str>)?;
    Ok(())
}

fn nspawn(node: &Node) -> Command {
    let mut command = Command::new("systemd-nspawn");
    command
        // Without it /proc/sys/net is read-only inside.
        .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
        .args(["--quiet", "--boot", "--register=no", "--keep-unit", "--settings=no", "--console=pipe"])
        .args(["--link-journal=no", "--resolv-conf=off", "--timezone=off", "--capability=CAP_NET_ADMIN,CAP_IPC_LOCK"])
        .arg(format!("--directory={}", node.root().display()))
        .arg(format!("--machine={}", node.netns().name()))
        .arg(format!("--hostname={}", node.name()))
        .arg(format!("--network-namespace-path={}", node.netns().path().display()));
    command
}
