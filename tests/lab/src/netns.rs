//! Network namespaces, by name.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::command::{run, run_with_input};

/// A named network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// The namespace of that name, whether or not it exists.
    pub fn named(name: impl Into<String>) -> Self {
        Netns { name: name.into() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it (ip-netns(8)); setns(2) takes it.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Makes it, with its loopback up and nothing else.
    pub fn create(&self) -> Result<()> {
        run("ip", &["netns", "add", &self.name])?;
        self.ip("link set dev lo up\n")
    }

    /// Removes its name; the kernel ends it when its last process does. No error when there is none.
    pub fn delete(&self) -> Result<()> {
        if self.exists() { run("ip", &["netns", "del", &self.name]).map(drop) } else { Ok(()) }
    }

    /// Runs several `ip` commands, one a line, in one process.
    pub fn ip(&self, batch: &str) -> Result<()> {
        run_with_input("ip", &["-netns", &self.name, "-batch", "-"], batch).map(drop)
    }

    /// Runs a program inside and returns its standard output.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        run("nsenter", &[&[&self.net_option(), program], args].concat())
    }

    /// Like [`Netns::run`], with `input` on standard input.
    pub fn run_with_input(&self, program: &str, args: &[&str], input: &str) -> Result<String> {
        run_with_input("nsenter", &[&[&self.net_option(), program], args].concat(), input)
    }

    /// Sets a sysctl below `/proc/sys/net`, for example `ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let script = format!("echo {value} > /proc/sys/net/{key}");
        self.run("sh", &["-c", &script]).map(drop)
    }

    /// Moves the calling thread inside; sockets that it makes from now on belong there.
    pub fn enter(&self) -> Result<()> {
        let file = File::open(self.path()).with_context(|| format!("no network namespace {}", self.name))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter namespace {}", self.name))
    }

    /// Becomes `command` inside; returns only when that fails.
    pub fn exec(&self, command: &[String]) -> anyhow::Error {
        let error = Command::new("nsenter").arg(self.net_option()).args(command).exec();
        anyhow::Error::from(error).context("cannot start nsenter")
    }

    fn net_option(&self) -> String {
        format!("--net={}", self.path().display())
    }
}

/// The namespaces of this host whose name begins with `prefix`.
pub fn with_prefix(prefix: &str) -> Vec<Netns> {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return Vec::new();
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).map(Netns::named).collect()
}
