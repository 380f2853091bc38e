//! Who asks: the process at the other end of a control connection. (unix(7), SO_PEERCRED and SO_PEERGROUPS.)
//!
//! The socket's mode is the fence; this is the second one, and the name that goes to the log.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Gid, Group, geteuid};

/// Members of this group may ask what root may ask.
pub const ADMIN_GROUP: &str = "trilith-admin";

/// The group's number, `None` when there is no such group: then only root may ask.
pub fn admin_group() -> Option<Gid> {
    match Group::from_name(ADMIN_GROUP) {
        Ok(group) => group.map(|group| group.gid),
        Err(error) => {
            tracing::warn!("looking for group {ADMIN_GROUP}: {error}; only root may ask at the control socket");
            None
        }
    }
}

/// The asking process as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its number, 0 when it is in another namespace.
    pub pid: i32,
}

impl Peer {
    /// The process at the other end of `stream`.
    ///
    /// # Errors
    /// It is neither root, nor this user, nor in `group`; or the kernel does not tell.
    pub fn of(stream: BorrowedFd<'_>, group: Option<Gid>) -> io::Result<Peer> {
        let who = getsockopt(&stream, sockopt::PeerCredentials)?;
        let peer = Peer { uid: who.uid(), pid: who.pid() };
        let trusted = peer.uid == 0 || peer.uid == geteuid().as_raw();
        let member = |group: Gid| Ok::<_, io::Error>(who.gid() == group.as_raw() || groups(stream)?.contains(&group));
        if trusted || group.map(member).transpose()?.unwrap_or(false) {
            return Ok(peer);
        }
        let text = format!("uid {} (pid {}) is neither root nor in group {ADMIN_GROUP}", peer.uid, peer.pid);
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }
}

/// The supplementary groups of the process at the other end.
fn groups(stream: BorrowedFd<'_>) -> io::Result<Vec<Gid>> {
    let mut gids: [nix::libc::gid_t; MAX_GROUPS] = [0; MAX_GROUPS];
    let mut bytes = size_of_val(&gids) as nix::libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` into `gids`, which is that large, and says how many they were.
    let result = unsafe {
        nix::libc::getsockopt(
            stream.as_raw_fd(),
            nix::libc::SOL_SOCKET,
            nix::libc::SO_PEERGROUPS,
            gids.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let found = bytes as usize / size_of::<nix::libc::gid_t>();
    Ok(gids[..found.min(MAX_GROUPS)].iter().map(|gid| Gid::from_raw(*gid)).collect())
}

/// A process in more groups than these is refused (ERANGE).
const MAX_GROUPS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn the_own_user_is_let_in_and_named() {
        let (here, _there) = UnixStream::pair().unwrap();
        let peer = Peer::of(here.as_fd(), None).unwrap();
        assert_eq!((peer.uid, peer.pid), (geteuid().as_raw(), std::process::id() as i32));
    }

    #[test]
    fn whoever_is_neither_root_nor_in_the_group_is_refused_and_named() {
        if !geteuid().is_root() {
            return eprintln!("left out, because only root can be somebody else");
        }
        let group = Gid::from_raw(4242);
        let other = peer_as(65534, 65534, Some(group)).unwrap_err();
        assert!(other.to_string().starts_with("uid 65534 (pid "), "{other}");
        assert_eq!(peer_as(65534, 4242, Some(group)).unwrap().uid, 65534);
        assert!(peer_as(65534, 4242, None).is_err());
    }

    /// The other end of a connection made by a thread that is somebody else: ids are a thread's own (setresuid(2), NOTES).
    fn peer_as(uid: u32, gid: u32, group: Option<Gid>) -> io::Result<Peer> {
        let path = std::env::temp_dir().join(format!("trilith-peer-{uid}-{gid}-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        let address = path.clone();
        let connect = move || {
            // SAFETY: these change nothing but the ids of this thread, which ends soon.
            unsafe {
                let none = std::ptr::null::<nix::libc::gid_t>();
                nix::libc::syscall(nix::libc::SYS_setgroups, 0, none);
                nix::libc::syscall(nix::libc::SYS_setresgid, gid, gid, gid);
                nix::libc::syscall(nix::libc::SYS_setresuid, uid, uid, uid);
            }
            UnixStream::connect(address)
        };
        let connected = std::thread::spawn(connect).join().unwrap();
        std::fs::remove_file(&path).unwrap();
        let _connected = connected?;
        Peer::of(listener.accept()?.0.as_fd(), group)
    }

    #[test]
    fn the_groups_of_the_other_end_are_told() {
        let (here, _there) = UnixStream::pair().unwrap();
        assert_eq!(groups(here.as_fd()).unwrap(), nix::unistd::getgroups().unwrap());
    }
}
