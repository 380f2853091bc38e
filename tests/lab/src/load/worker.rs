//! A thread inside a network namespace, which ends when it is told to or dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};

use super::poller::{Poller, Stopper};
use super::{FILE_LIMIT, NS_PER_S, ms};

/// A running load thread; `R` is what it returns at its end.
pub(super) struct Worker<R> {
    stopper: Stopper,
    thread: Option<JoinHandle<Option<Ended<R>>>>,
}

/// What a load thread leaves.
pub(super) struct Ended<R> {
    pub result: R,
    /// Processor time of the thread, user and system, in milliseconds.
    pub cpu_ms: f64,
}

/// A load thread's share of the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nice {
    /// Before others: who is to measure delays must not be delayed by what else runs here.
    First,
    /// Like others: a load that competes with what it loads must not push it aside.
    Fair,
}

impl Nice {
    fn apply(self) {
        if self == Nice::First {
            // SAFETY: no memory is involved. With `who` 0 it concerns this thread alone (setpriority(2), bugs). Without
            // the right to, the report's lag tells how late we were.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, FIRST) };
        }
    }
}

impl<R: Send + 'static> Worker<R> {
    /// Starts a thread, lets it enter `netns` (or stay where it is), then run `setup` and `run` in there.
    /// Returns when `setup` has succeeded: whoever starts a load knows that it flows.
    ///
    /// # Errors
    /// When the namespace can't be entered, and what `setup` says.
    pub fn start<S, Setup, Run>(
        name: &str,
        netns: Option<PathBuf>,
        nice: Nice,
        setup: Setup,
        run: Run,
    ) -> Result<Worker<R>>
    where
        Setup: FnOnce(&mut Poller) -> Result<S> + Send + 'static,
        Run: FnOnce(S, Poller) -> R + Send + 'static,
    {
        raise_file_limit()?;
        let mut poller = Poller::new().context("no epoll for a load thread")?;
        let stopper = poller.stopper();
        let (tell, told) = mpsc::channel();
        let body = move || {
            nice.apply();
            let prepared = enter(netns.as_deref()).and_then(|()| setup(&mut poller));
            let (outcome, state) = match prepared {
                Ok(state) => (Ok(()), Some(state)),
                Err(error) => (Err(error), None),
            };
            // The receiver waits below until it is told.
            let _ = tell.send(outcome);
            let result = run(state?, poller);
            Some(Ended { result, cpu_ms: ms(thread_cpu_ns()) })
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body);
        let thread = thread.with_context(|| format!("cannot start the load thread {name}"))?;
        told.recv()
            .unwrap_or_else(|_| Err(anyhow!("the load thread {name} died while it started")))
            .with_context(|| format!("the load {name:?} cannot start"))?;
        Ok(Worker { stopper, thread: Some(thread) })
    }

    /// Tells the thread to end and waits for what it leaves.
    pub fn finish(mut self) -> Ended<R> {
        self.stopper.stop();
        self.join().expect("a worker exists only if its setup succeeded, and is joined once")
    }

    /// Waits for a thread that ends by itself.
    pub fn wait(mut self) -> Ended<R> {
        self.join().expect("a worker exists only if its setup succeeded, and is joined once")
    }

    fn join(&mut self) -> Option<Ended<R>> {
        match self.thread.take()?.join() {
            Ok(ended) => ended,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl<R> Drop for Worker<R> {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            // A panic in there has been printed already; panicking in drop would abort.
            let _ = thread.join();
        }
    }
}

/// Moves the calling thread into a network namespace (setns(2)); needs CAP_SYS_ADMIN. `None` stays.
pub(super) fn enter(netns: Option<&Path>) -> Result<()> {
    let Some(path) = netns else { return Ok(()) };
    let file =
        File::open(path).with_context(|| format!("no network namespace at {}: is the lab up?", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("cannot enter the network namespace {}; it needs root", path.display()))
}

/// A shell's usual soft limit is 1,024 open files.
fn raise_file_limit() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < FILE_LIMIT {
        setrlimit(Resource::RLIMIT_NOFILE, FILE_LIMIT.min(hard), hard)
            .with_context(|| format!("cannot raise the limit of open files from {soft}"))?;
    }
    Ok(())
}

fn thread_cpu_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(0, |time| time.tv_sec() as u64 * NS_PER_S + time.tv_nsec() as u64)
}

const FIRST: libc::c_int = -10;
