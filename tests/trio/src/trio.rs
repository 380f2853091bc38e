//! Machines on their bridge, as a whole: up, in use, down.
//!
//! Everything lies in `build/trio` or in the two namespaces of [`Network`], and the record of it beside those: whoever comes next
//! can take it down, also after a crash and from another checkout. A [`Trio`] that was brought up by this process goes down with it,
//! even if it is killed ([`trilith_lab::standing`]).

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use trilith_lab::standing::{Guard, Standing, remove_tree};

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
    home: PathBuf,
    guard: Option<Guard>,
}

/// What is made.
#[derive(Debug, Serialize, Deserialize)]
struct Made {
    plans: Vec<Plan>,
    /// [`home`], in the checkout that made it.
    home: PathBuf,
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
        let standing = standing();
        let lock = standing.lock()?;
        if let Some(made) = made(&standing)? {
            bail!("machines are up already, in {}: take them down first (trilith-trio down)", made.home.display());
        }
        standing.refuse_strangers(Network::named().namespaces())?;
        tools::prepare()?;
        let made = Made { plans: plans.to_vec(), home: home()? };
        let guard = standing.begin(&made)?;
        let mut trio = Trio::assemble(made);
        trio.guard = Some(guard);
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
        standing().made()?.map(Trio::assemble).context("no machines are up (trilith-trio up)")
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

    /// A file of a node's support bundle.
    ///
    /// # Errors
    /// When the node gives no bundle, as it may while it boots, or none with such a file.
    pub fn support(&self, machine: &Machine, name: &str) -> Result<String> {
        let file = machine.file("support.tar.gz");
        fs::write(&file, self.ssh(machine, &["trilith", "support-bundle", "--output", "-"])?.stdout)?;
        let (file, name) = (file.display().to_string(), format!("*/{name}"));
        trilith_lab::command::run("tar", &["--extract", "--to-stdout", "--wildcards", "--file", &file, &name])
    }

    /// An ssh(1) that logs in to a node as `admin`.
    pub fn ssh_command(&self, machine: &Machine) -> Result<Command> {
        let mut command = tools::command(&self.home, Some(&self.network.client), "ssh")?;
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
        self.guard.take().map_or(Ok(()), |guard| standing().keep::<Made>(guard))
    }

    fn assemble(Made { plans, home }: Made) -> Trio {
        let machines = plans.iter().map(|plan| Machine::at(&home.join(plan.name()), plan, Some(switch()))).collect();
        Trio { machines, network: Network::named(), home, guard: None }
    }

    fn build(&self, tell: Tell<'_>) -> Result<()> {
        let home = &self.home;
        // What a trio left there whose record is lost.
        remove_tree(home)?;
        fs::create_dir_all(home).with_context(|| format!("cannot make {}", home.display()))?;
        self.network.create(home)?;
        tools::run(home, "ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "trio", "-f", "key"])?;
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
        if let Some(guard) = self.guard.take()
            && let Err(error) = standing().end(guard, take_down)
        {
            say(&format!("cannot take the machines down: {error:#}"));
        }
    }
}

/// Brings the three nodes up and waits until each has answered over both VIPs. If they are up already they are used.
///
/// # Errors
/// When a node does not get there within [`UP_DEADLINE`]; unless `keep`, nothing is left then.
pub fn up(keep: bool) -> Result<Trio> {
    let standing = standing();
    let lock = standing.lock()?;
    if let Some(made) = made(&standing)? {
        say("up already");
        return Ok(Trio::assemble(made));
    }
    drop(lock);
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
    standing().down(take_down)
}

/// What a guard does ([`Standing::guard`]).
pub fn guard(id: &str) -> Result<()> {
    standing().guard(id, take_down)
}

/// Where everything lies that is made here and is no namespace.
pub fn home() -> Result<PathBuf> {
    Ok(build_directory(&repository()?).join("trio"))
}

fn standing() -> Standing {
    Standing { what: "trio", program: "trilith-trio", home: RECORD.into() }
}

/// The machines that are up; those whose owner has ended are taken down first. Under the lock.
fn made(standing: &Standing) -> Result<Option<Made>> {
    if standing.down_orphan(take_down)? {
        say("machines that had lost their owner were taken down");
    }
    standing.made()
}

fn take_down(made: Made) -> Result<()> {
    let trio = Trio::assemble(made);
    let ended: Vec<Result<()>> = trio.machines.iter().map(Machine::power_cut).collect();
    let removed = trio.network.remove(&trio.home);
    ended.into_iter().collect::<Result<()>>().and(removed)?;
    remove_tree(&trio.home)
}

/// One line of progress, with the seconds since the first.
pub fn say(line: &str) {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    let seconds = BEGUN.get_or_init(Instant::now).elapsed().as_secs_f64();
    eprintln!("trio {seconds:7.1}: {line}");
}

/// Beside the namespaces, whose names are the host's: whoever finds those finds this.
const RECORD: &str = "/run/trilith-trio";
/// Three translated machines at once, on two processors that others use, too.
pub const UP_DEADLINE: Duration = Duration::from_secs(300);
/// Each answer costs a translated guest some of the time that it needs to get ready.
const ASK_EVERY: Duration = Duration::from_millis(200);
