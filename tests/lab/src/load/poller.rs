//! One epoll, one way to end: what each load thread waits in.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_nanosleep};
use socket2::{Domain, Protocol, Socket, Type};

use super::{NS_PER_MS, NS_PER_S, now_ns};

/// A descriptor that is ready, by the token it was added with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready {
    pub token: usize,
    pub flags: EpollFlags,
}

/// Waits for descriptors, for an instant, and for the order to stop.
pub(super) struct Poller {
    epoll: Epoll,
    stop: Arc<EventFd>,
    events: Vec<EpollEvent>,
    stopping: bool,
}

/// Tells a [`Poller`] in another thread to stop.
#[derive(Clone)]
pub(super) struct Stopper(Arc<EventFd>);

impl Poller {
    pub fn new() -> io::Result<Poller> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        epoll.add(&*stop, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, STOP))?;
        Ok(Poller { epoll, stop, events: vec![EpollEvent::empty(); BATCH], stopping: false })
    }

    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.stop))
    }

    /// Whether the order to stop has come.
    pub fn stopping(&self) -> bool {
        self.stopping
    }

    pub fn add(&self, fd: impl AsFd, token: usize, flags: EpollFlags) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(flags, token as u64))?)
    }

    pub fn modify(&self, fd: impl AsFd, token: usize, flags: EpollFlags) -> io::Result<()> {
        Ok(self.epoll.modify(fd, &mut EpollEvent::new(flags, token as u64))?)
    }

    /// Sleeps until `at_ns` whatever comes, then collects what is ready: one waking for many descriptors.
    pub fn collect(&mut self, at_ns: u64, ready: &mut Vec<Ready>) -> io::Result<()> {
        let at = TimeSpec::new((at_ns / NS_PER_S) as i64, (at_ns % NS_PER_S) as i64);
        // A signal that cuts the sleep short does no harm: what is due then is decided by the clock.
        let _ = clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &at);
        self.wait(0, ready)
    }

    /// Waits until something is ready or `until_ns` has come, rounded up to the millisecond so that the last
    /// fraction is slept and not spun. Ready descriptors replace the content of `ready`.
    pub fn wait(&mut self, until_ns: u64, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        let left_ms = until_ns.saturating_sub(now_ns()).div_ceil(NS_PER_MS);
        let timeout = EpollTimeout::try_from(left_ms.min(MAX_WAIT_MS)).unwrap_or(EpollTimeout::ZERO);
        let count = match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        for event in &self.events[..count] {
            if event.data() == STOP {
                self.stopping = true;
            } else {
                ready.push(Ready { token: event.data() as usize, flags: event.events() });
            }
        }
        Ok(())
    }
}

impl Stopper {
    pub fn stop(&self) {
        // An eventfd refuses only to overflow (eventfd(2)), and then it is readable already.
        let _ = self.0.write(1);
    }
}

/// Begins to connect and returns at once; writability tells the end, `TcpStream::take_error` how it went.
pub(super) fn dial(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // A ping must leave at once; Nagle's algorithm would hold it until the one before is acknowledged.
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket.into()),
    }
}

const STOP: u64 = u64::MAX;
const BATCH: usize = 1024;
const MAX_WAIT_MS: u64 = 1_000;
