//! Reading with the kernel's word on when the bytes came, so that it is not our own delay that is measured.

use std::io::{self, IoSliceMut};
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

use super::{NS_PER_S, now_ns};

/// Reads from sockets prepared with [`stamp`].
pub(super) struct StampedReader {
    control: Vec<u8>,
    /// `CLOCK_REALTIME`, which the kernel stamps with, minus `CLOCK_MONOTONIC`.
    offset_ns: u64,
}

/// Asks the kernel to stamp what this socket receives (socket(7), SO_TIMESTAMPNS; TCP since Linux 4.16).
pub(super) fn stamp(stream: &TcpStream) -> io::Result<()> {
    Ok(setsockopt(stream, sockopt::ReceiveTimestampns, &true)?)
}

impl StampedReader {
    pub fn new() -> StampedReader {
        let mut reader = StampedReader { control: cmsg_space!(TimeSpec), offset_ns: 0 };
        reader.sync();
        reader
    }

    /// To be called before each round of reading: the wall clock may have been set since the last.
    pub fn sync(&mut self) {
        let wall = clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, nanoseconds);
        self.offset_ns = wall.wrapping_sub(now_ns());
    }

    /// Like read(2) without blocking; also tells when the last of these bytes came to this host, on our clock.
    pub fn read(&mut self, stream: &TcpStream, buffer: &mut [u8]) -> io::Result<(usize, u64)> {
        let mut parts = [IoSliceMut::new(buffer)];
        let got = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut self.control), MsgFlags::MSG_DONTWAIT)?;
        let stamp = got.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(at) => Some(nanoseconds(at).wrapping_sub(self.offset_ns)),
            _ => None,
        });
        let now = now_ns();
        // A stamp from the future is a wall clock that was set meanwhile; the end of stream has none.
        Ok((got.bytes, stamp.filter(|at| *at <= now).unwrap_or(now)))
    }
}

fn nanoseconds(time: TimeSpec) -> u64 {
    time.tv_sec() as u64 * NS_PER_S + time.tv_nsec() as u64
}
