//! One node of the laboratory: a container, its network namespace, its disk.

use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cgroup::Cgroup;
use crate::lab::Mode;
use crate::netns::Netns;
use crate::root::{Version, binaries};
use crate::set::{DOCUMENT, GATEWAY, GATEWAY6, NODES, keepalived, node_address, node_address6};
use crate::switch::Switch;
use crate::wait::wait_until;

/// A node. Its methods act on the real container at once; nothing is cached, so any number of handles may be about.
#[derive(Debug, Clone)]
pub struct Node {
    index: u8,
    home: PathBuf,
    mode: Mode,
    cgroup: Cgroup,
    netns: Netns,
    switch: Switch,
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// No process lives.
    Off,
    /// It runs.
    Running,
    /// It stands still, its clock goes on.
    Frozen,
}

impl Node {
    /// The node of that name in the laboratory at `home`.
    ///
    /// # Errors
    /// When no node has that name.
    pub fn named(name: &str, home: &Path, mode: Mode, switch: &Switch) -> Result<Node> {
        let Some(index) = NODES.iter().position(|node| *node == name) else {
            bail!("no node {name:?} in the laboratory: {}", NODES.join(", "));
        };
        Ok(Node {
            index: u8::try_from(index)?,
            home: home.join("nodes").join(name),
            mode,
            cgroup: Cgroup::of(&home.join("cgroup"), name),
            netns: Netns::named(format!("trilith-{name}")),
            switch: switch.clone(),
        })
    }

    /// Its name in the set, which is also its host name and its port on the switch.
    pub fn name(&self) -> &'static str {
        NODES[usize::from(self.index)]
    }

    /// Its own address.
    pub fn address(&self) -> Ipv4Addr {
        node_address(self.index)
    }

    /// Its own IPv6 address.
    pub fn address6(&self) -> Ipv6Addr {
        node_address6(self.index)
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The cgroup that holds all its processes.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Switches it on, with a new network interface (same MAC) and the disk it had. Returns at once;
    /// [`Node::wait_ready`] waits for it.
    ///
    /// # Errors
    /// When it is on already, or the host cannot give it what it needs.
    pub fn boot(&self) -> Result<()> {
        if self.cgroup.is_populated() {
            bail!("node {} is on already", self.name());
        }
        self.cgroup.create()?;
        self.plug_in()?;
        let log = File::options().create(true).append(true).open(self.console_log())?;
        let mut child = Command::new(binaries()?.join("trilith-lab"))
            .args(["container", self.name()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in the terminal of whoever booted it is not meant for the node.
            .process_group(0)
            .spawn()
            .context("cannot start trilith-lab beside the running program (cargo build -p trilith-lab)")?;
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// Waits until the node's units are up: for Trilith, until its control socket answers.
    ///
    /// # Errors
    /// When that takes longer than [`BOOT_DEADLINE`], with the end of its journal.
    pub fn wait_ready(&self) -> Result<Duration> {
        let what = format!("node {} ready", self.name());
        wait_until(&what, BOOT_DEADLINE, || self.is_ready()).with_context(|| self.last_words())
    }

    /// Whether its units are up.
    pub fn is_ready(&self) -> bool {
        match self.mode {
            Mode::Trilith => self.control_socket_answers(),
            Mode::Peer => !self.unit_pids("keepalived.service").is_empty() && self.listens(80),
        }
    }

    /// Pulls the plug: from one moment to the next nothing leaves it, and no process of it lives. Its disk stays.
    pub fn kill(&self) -> Result<()> {
        self.switch.unplug(self.name())?;
        self.cgroup.kill()?;
        self.cgroup.remove()?;
        self.netns.delete()
    }

    /// [`Node::kill`], then [`Node::boot`].
    pub fn restart(&self) -> Result<()> {
        self.kill()?;
        self.boot()
    }

    /// Stops all its processes where they are, as a hypervisor stuns a VM, except that its kernel still answers
    /// (ARP, for example) and the clock goes on.
    pub fn freeze(&self) -> Result<()> {
        self.cgroup.freeze()
    }

    /// Lets it go on after [`Node::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.cgroup.thaw()
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        match (self.cgroup.is_populated(), self.cgroup.is_frozen()) {
            (false, _) => State::Off,
            (true, false) => State::Running,
            (true, true) => State::Frozen,
        }
    }

    /// The host's process id of the node's own PID 1.
    ///
    /// # Errors
    /// When the node is off or only starting.
    pub fn init_pid(&self) -> Result<i32> {
        let pids = self.cgroup.processes("payload/init.scope");
        pids.into_iter().find(|pid| is_init(*pid)).with_context(|| format!("node {} has no PID 1 (yet)", self.name()))
    }

    /// The host's ids of all processes of a unit, for example `haproxy.service`; none when it does not run.
    pub fn unit_pids(&self, unit: &str) -> Vec<i32> {
        self.cgroup.processes_of(unit)
    }

    /// The host's id of a unit's main process: the one that none of the others is the parent of.
    ///
    /// # Errors
    /// When the unit does not run.
    pub fn main_pid(&self, unit: &str) -> Result<i32> {
        let pids = self.unit_pids(unit);
        let main = pids.iter().copied().find(|pid| parent(*pid).is_some_and(|parent| !pids.contains(&parent)));
        main.with_context(|| format!("{unit} does not run on node {}", self.name()))
    }

    /// A command that runs inside the node, in all its namespaces. About 3 ms more than the program itself.
    pub fn command(&self, program: &str, args: &[&str]) -> Result<Command> {
        let target = format!("--target={}", self.init_pid()?);
        let mut command = Command::new("nsenter");
        command
            .args([&target, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"])
            .args(["--", program])
            .args(args)
            .env_clear()
            .env("PATH", "/usr/bin:/usr/sbin")
            .env("LANG", "C.UTF-8");
        if let Some(term) = std::env::var_os("TERM") {
            command.env("TERM", term);
        }
        Ok(command)
    }

    /// Runs a command inside to its end, whatever that is, and returns what it said. What waits for a frozen node
    /// waits until somebody thaws it.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<Output> {
        let output = self.command(program, args)?.stdin(Stdio::null()).output();
        output.with_context(|| format!("cannot run {program} on node {}", self.name()))
    }

    /// Runs a command inside and returns its standard output.
    ///
    /// # Errors
    /// When it fails, with its standard error.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.output(program, args)?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("{program} {} on node {}: {}: {}", args.join(" "), self.name(), output.status, error.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A file of the running node, as a path of the host. Sockets can be connected to, too.
    pub fn path(&self, inside: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root{inside}", self.init_pid()?)))
    }

    /// Whether a TCP socket of the node listens on that port.
    pub fn listens(&self, port: u16) -> bool {
        let filter = format!("sport = :{port}");
        let sockets = self.netns.run("ss", &["--no-header", "--listening", "--tcp", "--numeric", &filter]);
        sockets.is_ok_and(|list| !list.trim().is_empty())
    }

    /// Where the console's output goes, of all boots.
    pub fn console_log(&self) -> PathBuf {
        self.home.join("console.log")
    }

    /// Makes its disk: empty but for what a first boot would have written.
    pub(crate) fn make_disk(&self, lowerdir: &str, secret: &str) -> Result<()> {
        let disk = self.disk();
        fs::create_dir_all(&disk)?;
        fs::write(self.home.join("lowerdir"), lowerdir)?;
        mount(Some("trilith-lab"), &disk, Some("tmpfs"), MsFlags::empty(), Some(DISK_OPTIONS))
            .with_context(|| format!("cannot mount a tmpfs at {}", disk.display()))?;
        let name = self.name();
        self.write("etc/hostname", &format!("{name}\n"), 0o644)?;
        // A known machine id is what tells systemd that this is no first boot.
        self.write("etc/machine-id", &format!("{:032x}\n", 0x7717_0000 + u64::from(self.index)), 0o444)?;
        match self.mode {
            Mode::Trilith => {
                self.write("var/lib/trilith/set.toml", DOCUMENT, 0o600)?;
                self.write("var/lib/trilith/secret", &format!("{secret}\n"), 0o600)?;
                self.write("var/lib/trilith/node", &format!("{name}\n"), 0o600)?;
                fs::set_permissions(self.upper().join("var/lib/trilith"), Permissions::from_mode(0o700))?;
            }
            Mode::Peer => self.write("etc/keepalived/keepalived.conf", &keepalived(self.index), 0o600)?,
        }
        Ok(())
    }

    /// Lays a version over its disk, while it is off.
    ///
    /// # Errors
    /// When it is on, or the disk can't be written.
    pub fn install(&self, version: &Version) -> Result<()> {
        if self.cgroup.is_populated() {
            bail!("node {} is on", self.name());
        }
        version.stage(self.mode, &self.upper())
    }

    /// Writes a file of a node that is off.
    pub(crate) fn write(&self, file: &str, content: &str, mode: u32) -> Result<()> {
        let path = self.upper().join(file);
        let directory = path.parent().context("a file lies in a directory")?;
        fs::create_dir_all(directory)?;
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        Ok(())
    }

    /// Forgets what it wrote. No error when there is no disk.
    pub(crate) fn remove_disk(&self) -> Result<()> {
        let disk = self.disk();
        match umount2(&disk, MntFlags::MNT_DETACH) {
            Err(error) if disk.exists() && error != nix::Error::EINVAL => {
                Err(error).with_context(|| format!("cannot unmount {}", disk.display()))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.home.join("disk")
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.disk().join("upper")
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.home.join("root")
    }

    pub(crate) fn lowerdir(&self) -> Result<String> {
        let file = self.home.join("lowerdir");
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
    }

    /// A fresh namespace with `eth0`, addresses and routes, as the node's network configuration would make them.
    fn plug_in(&self) -> Result<()> {
        self.switch.unplug(self.name())?;
        self.netns.delete()?;
        self.netns.create()?;
        let mac = format!("02:00:0a:4d:00:{:02x}", 0x11 + self.index);
        self.switch.plug(self.name(), &mac, &self.netns)?;
        self.netns.ip(&format!(
            "address add {}/24 dev eth0\n\
             address add {}/64 dev eth0 nodad\n\
             route add default via {GATEWAY}\n\
             route add default via {GATEWAY6} dev eth0\n",
            self.address(),
            self.address6(),
        ))
    }

    /// What the journal, or failing that the console, said last.
    fn last_words(&self) -> String {
        let journal = self.run("journalctl", &["--boot", "--no-pager", "--lines=25", "--output=short-monotonic"]);
        let text = journal.or_else(|_| fs::read_to_string(self.console_log()));
        text.map_or_else(
            |_| format!("node {} said nothing", self.name()),
            |text| format!("node {}:\n{text}", self.name()),
        )
    }

    fn control_socket_answers(&self) -> bool {
        self.path("/run/trilith/control.sock").is_ok_and(|path| UnixStream::connect(path).is_ok())
    }
}

fn is_init(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.is_some_and(|ids| ids.split_whitespace().last() == Some("1"))
}

fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// A boot takes about two seconds here; a busy machine may need many times that.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(180);
/// What a node writes stays in memory, so bound it.
const DISK_OPTIONS: &str = "mode=755,size=256m";
