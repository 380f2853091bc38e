//! What the kernel says about devices that come up (netlink(7), NETLINK_KOBJECT_UEVENT).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

use crate::fault::{Context, Result, WRONG_IMAGE};

/// Tells when something has changed, not what: whoever waits looks at the state of the world.
#[derive(Debug)]
pub struct Uevents(OwnedFd);

impl Uevents {
    /// Everything that happens from now on is noticed.
    pub fn listen() -> Result<Uevents> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).or_fault(WHAT, WRONG_IMAGE)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP)).or_fault(WHAT, WRONG_IMAGE)?;
        Ok(Uevents(socket))
    }

    /// Waits until something has changed; false when nothing has until the deadline.
    pub fn wait(&self, deadline: Instant) -> Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Ok(false),
            Err(Errno::EINTR) => return Ok(true),
            other => other.or_fault(WHAT, WRONG_IMAGE)?,
        };
        // ENOBUFS means that some were lost, which does no harm: they are counted as one anyway.
        while matches!(recv(self.0.as_raw_fd(), &mut [0; 1], MsgFlags::empty()), Ok(_) | Err(Errno::ENOBUFS)) {}
        Ok(true)
    }
}

/// The multicast group in which the kernel speaks; udev's is 2.
const KERNEL_GROUP: u32 = 1;
const WHAT: &str = "the kernel's device events";
