//! Machines on their bridge, as a whole: up, in use, down.
//!
//! Everything lies in `build/trio` or in the two namespaces of [`Network`], so whoever comes next can take it down, also after a
//! crash. A [`Trio`] that was brought up by this process goes down with it, even if it is killed: a guard process waits for
//! that at the other end of a pipe.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use trilith_lab::root::binaries;
use trilith_lab::wait::wait_until;

use crate::accel::Accel;
use crate::cidata::{self, Shared};
use crate::machine::Machine;
use crate::network::{Network, switch};
use crate::plan::{Plan, VIP, VIP6};
use crate::tools::{self, build_directory, repository};

/// Writes the CD-ROM that tells a machine who it is into its directory.
pub type Tell<'a> = &'a dyn Fn(&Plan, &Shared, &Path) -> Result<()>;

/// Machines that are up, or were made to be.
#[derive(Debug)]
pub struct Trio {
    /// The machines, in the order of their plans.
    pub machines: Vec<Machine>,
    /// The wire between them and the clients.
    pub network: Network,
    guard: Option<Guard>,
}

impl Trio {
    /// Makes machines by these plans, new disks and all, and powers them on. It does not wait for them.
    ///
    /// # Errors
    /// When machines are up already or a step fails; what was made until then is taken away again.
    pub fn power_on(plans: &[Plan]) -> Result<Trio> {
        Trio::power_on_told(plans, &cidata::make)
    }

    /// [`Trio::power_on`], with machines that are told who they are in another way.
    ///
    /// # Errors
    /// As [`Trio::power_on`].
    pub fn power_on_told(plans: &[Plan], tell: Tell<'_>) -> Result<Trio> {
        let trio = Trio::make_told(plans, tell)?;
        trio.machines.iter().try_for_each(Machine::power_on)?;
        Ok(trio)
    }

    /// Makes machines by these plans, and leaves them off.
    ///
    /// # Errors
    /// As [`Trio::power_on`].
    pub fn make(plans: &[Plan]) -> Result<Trio> {
        Trio::make_told(plans, &cidata::make)
    }

    fn make_told(plans: &[Plan], tell: Tell<'_>) -> Result<Trio> {
        let lock = lock()?;
        if Record::read()?.is_some() {
            bail!("machines are up already: take them down first (trilith-trio down)");
        }
        tools::prepare()?;
        fs::create_dir_all(home()?).context("cannot make the trio's directory")?;
        let record = Record { id: trilith_lab::set::new_secret()?, plans: plans.to_vec() };
        record.write()?;
        let trio = Trio::assemble(&record.plans, Some(Guard::start(&record.id)?))?;
        let built = trio.build(tell);
        // Taking it down after an error needs the lock, too.
        drop(lock);
        built.map(|()| trio)
    }

    /// The machines that are up, whoever brought them up; they stay up in the end.
    ///
    /// # Errors
    /// When none are.
    pub fn attach() -> Result<Trio> {
        let record = Record::read()?.context("no machines are up (trilith-trio up)")?;
        Trio::assemble(&record.plans, None)
    }

    /// The machine of that name.
    ///
    /// # Errors
    /// When none has that name.
    pub fn machine(&self, name: &str) -> Result<&Machine> {
        let names = || self.machines.iter().map(Machine::name).collect::<Vec<_>>().join(", ");
        let found = self.machines.iter().find(|machine| machine.name() == name);
        found.with_context(|| format!("no machine {name:?}: there are {}", names()))
    }

    /// Waits until the services of all machines that are on have answered over both VIPs: names each as it does.
    ///
    /// # Errors
    /// When some have not within `deadline`, with the end of each serial log.
    pub fn wait_serving(&self, deadline: Duration) -> Result<Duration> {
        self.wait_serving_on(&[VIP.into(), VIP6.into()], deadline)
    }

    /// [`Trio::wait_serving`] over these VIPs.
    ///
    /// # Errors
    /// As [`Trio::wait_serving`].
    pub fn wait_serving_on(&self, vips: &[IpAddr], deadline: Duration) -> Result<Duration> {
        let start = Instant::now();
        let on: BTreeSet<&str> = self.machines.iter().filter(|machine| machine.is_on()).map(Machine::name).collect();
        for &vip in vips {
            let mut missing = on.clone();
            while !missing.is_empty() {
                match self.network.get(vip, "/") {
                    Ok(node) if missing.remove(node.trim()) => {
                        say(&format!("{} serves {vip} (+{:.1} s)", node.trim(), start.elapsed().as_secs_f64()));
                    }
                    _ => std::thread::sleep(ASK_EVERY),
                }
                if start.elapsed() > deadline {
                    let missing: Vec<&str> = missing.into_iter().collect();
                    let words: Vec<String> = self.machines.iter().map(Machine::last_words).collect();
                    let who = missing.join(" and ");
                    bail!("{who}: no answer over {vip} within {deadline:.0?}\n{}", words.join("\n"));
                }
            }
        }
        Ok(start.elapsed())
    }

    /// Runs a command on a node over SSH and returns how it ended; `admin`'s shell takes `trilith` commands only.
    pub fn ssh(&self, machine: &Machine, command: &[&str]) -> Result<Output> {
        let output = self.ssh_command(machine)?.args(command).stdin(Stdio::null()).output();
        output.with_context(|| format!("cannot run ssh to {}", machine.name()))
    }

    /// An ssh(1) that logs in to a node as `admin`.
    pub fn ssh_command(&self, machine: &Machine) -> Result<Command> {
        let mut command = tools::command(&home()?, Some(&self.network.client), "ssh")?;
        command.args(["-F", "none", "-i", "key", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]);
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        // A node that is gone is given up after half a minute.
        command.args(["-o", "ConnectTimeout=30", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"]);
        command.arg(format!("admin@{}", machine.plan.address()));
        Ok(command)
    }

    /// The words of [`Trio::ssh_command`] without the host, for programs that run ssh(1) themselves.
    pub fn ssh_words(&self) -> Result<String> {
        let command = self.ssh_command(&self.machines[0])?;
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>();
        Ok(words[..words.len() - 1].join(" "))
    }

    /// Lets it stand when this process ends.
    pub fn keep(mut self) -> Result<()> {
        self.guard.take().map_or(Ok(()), Guard::dismiss)
    }

    fn assemble(plans: &[Plan], guard: Option<Guard>) -> Result<Trio> {
        let home = home()?;
        let machines = plans.iter().map(|plan| Machine::at(&home.join(plan.name()), plan, Some(switch()))).collect();
        Ok(Trio { machines, network: Network::named(), guard })
    }

    fn build(&self, tell: Tell<'_>) -> Result<()> {
        let home = home()?;
        self.network.create(&home)?;
        tools::run(&home, "ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "trio", "-f", "key"])?;
        let key = fs::read_to_string(home.join("key.pub"))?.trim().to_owned();
        let shared = Shared { secret: trilith_lab::set::new_secret()?, key };
        for machine in &self.machines {
            machine.make()?;
            tell(&machine.plan, &shared, &home.join(machine.name()))?;
        }
        Ok(())
    }
}

impl Drop for Trio {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            if let Err(error) = down() {
                say(&format!("cannot take the machines down: {error:#}"));
            }
            // Nothing is left for it to do; if this fails it finds that out by itself.
            let _ = guard.dismiss();
        }
    }
}

/// Brings the three nodes up and waits until each has answered over both VIPs. If they are up already they are used.
///
/// # Errors
/// When a node does not get there within [`UP_DEADLINE`]; unless `keep`, nothing is left then.
pub fn up(keep: bool) -> Result<Trio> {
    if Record::read()?.is_some() {
        say("up already");
        return Trio::attach();
    }
    let accel = prepare()?;
    let started = Instant::now();
    let trio = Trio::power_on(&Plan::trio(accel)?)?;
    say("three machines are on");
    if let Err(error) = trio.wait_serving(UP_DEADLINE) {
        if keep {
            trio.keep()?;
        }
        return Err(error);
    }
    say(&format!("up after {:.1} s: VIP {VIP} and {VIP6}", started.elapsed().as_secs_f64()));
    Ok(trio)
}

/// Builds the image with the laboratory's service in it if it is not up to date, and finds out what can run it.
pub fn prepare() -> Result<Accel> {
    tools::build_image()?;
    let directory = build_directory(&repository()?).join("trio-probe");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let accel = Accel::probe(&tools::image()?.join("trilith.efi"), &directory);
    fs::remove_dir_all(&directory)?;
    let accel = accel?;
    say(match accel {
        Accel::Kvm => "KVM runs the machines",
        Accel::Tcg => "KVM runs no kernel here: QEMU translates, so everything takes several times as long",
    });
    Ok(accel)
}

/// Takes down whatever machines are up and says whether there were any. Goes on after errors and returns the first.
pub fn down() -> Result<bool> {
    let _lock = lock()?;
    let Some(record) = Record::read()? else {
        return Ok(false);
    };
    take_down(&record)?;
    Ok(true)
}

/// What a guard does: waits until its owner ends, then takes the owner's machines down, unless it was dismissed.
pub fn guard(id: &str) -> Result<()> {
    let mut word = [0u8; 1];
    // One byte is the dismissal; the end of the pipe is the end of the owner.
    if std::io::stdin().read(&mut word).unwrap_or(0) > 0 {
        return Ok(());
    }
    let _lock = lock()?;
    match Record::read()? {
        Some(record) if record.id == id => take_down(&record),
        _ => Ok(()),
    }
}

/// Where everything lies that is no namespace.
pub fn home() -> Result<PathBuf> {
    Ok(build_directory(&repository()?).join("trio"))
}

fn take_down(record: &Record) -> Result<()> {
    let trio = Trio::assemble(&record.plans, None)?;
    let ended: Vec<Result<()>> = trio.machines.iter().map(Machine::power_cut).collect();
    let home = home()?;
    let removed = trio.network.remove(&home);
    ended.into_iter().collect::<Result<()>>().and(removed)?;
    // The record goes with the rest, last: what could not be taken down can be tried again.
    match fs::remove_dir_all(&home) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", home.display()))
        }
        _ => Ok(()),
    }
}

/// Two hands at once on the same machines make no sense: bringing them up or down waits for the other's turn.
fn lock() -> Result<Flock<File>> {
    let path = home()?.with_extension("lock");
    let file = File::options().create(true).append(true).open(&path);
    let mut file = Some(file.with_context(|| format!("cannot open {}", path.display()))?);
    let mut held = None;
    wait_until("nobody else bringing machines up or down", LOCK_DEADLINE, || {
        match file.take().map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock)) {
            Some(Ok(lock)) => held = Some(lock),
            Some(Err((returned, _))) => file = Some(returned),
            None => {}
        }
        held.is_some()
    })?;
    held.with_context(|| format!("cannot lock {}", path.display()))
}

/// One line of progress, with the seconds since the first.
pub fn say(line: &str) {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    let seconds = BEGUN.get_or_init(Instant::now).elapsed().as_secs_f64();
    eprintln!("trio {seconds:7.1}: {line}");
}

/// What was made, written before it is made.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    id: String,
    plans: Vec<Plan>,
}

impl Record {
    fn read() -> Result<Option<Record>> {
        let file = home()?.join("trio.json");
        match fs::read_to_string(&file) {
            Ok(text) => serde_json::from_str(&text).map(Some).with_context(|| format!("{} is damaged", file.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    fn write(&self) -> Result<()> {
        let file = home()?.join("trio.json");
        fs::write(&file, serde_json::to_string(self)?).with_context(|| format!("cannot write {}", file.display()))
    }
}

#[derive(Debug)]
struct Guard {
    pipe: ChildStdin,
}

impl Guard {
    fn start(id: &str) -> Result<Guard> {
        let mut child = Command::new(binaries()?.join("trilith-trio"))
            .args(["guard", id])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // What kills the owner from the terminal must not kill its guard.
            .process_group(0)
            .spawn()
            .context("cannot start trilith-trio beside the running program (cargo build -p trilith-trio)")?;
        let pipe = child.stdin.take().context("a piped child has a standard input")?;
        std::thread::spawn(move || child.wait());
        Ok(Guard { pipe })
    }

    fn dismiss(mut self) -> Result<()> {
        self.pipe.write_all(b"x").context("the trio's guard is gone")
    }
}

/// Three translated machines at once, on two processors that others use, too.
pub const UP_DEADLINE: Duration = Duration::from_secs(300);
const LOCK_DEADLINE: Duration = Duration::from_secs(120);
/// Each answer costs a translated guest some of the time that it needs to get ready.
const ASK_EVERY: Duration = Duration::from_millis(200);
