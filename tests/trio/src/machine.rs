//! One virtual machine: a QEMU with its disk, its firmware's variables, its first-boot data and its serial port.
//!
//! Everything of it lies in one directory, so whoever comes later can power it on and off again:
//!
//! | file | what it is |
//! |---|---|
//! | `disk.qcow2` | its disk, an overlay over the plan's; it survives power cuts |
//! | `vars.fd` | the firmware's variables |
//! | `trilith.efi` | the UKI, where the firmware cannot read it from the disk |
//! | `answers.iso` | first-boot data; no CD-ROM when it is missing |
//! | `serial`, `serial.log` | its serial port as a socket, and all that it ever said there |
//! | `qmp` | QEMU's control socket |
//! | `agent` | the channel of the guest's agent, on virtio hardware |
//! | `process`, `qemu.log` | which process runs it, and what QEMU itself said |

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use trilith_lab::netns::Netns;
use trilith_lab::wait::{POLL, wait_until};

use crate::cidata::CD_ROM;
use crate::plan::{Firmware, Hardware, Plan};
use crate::process::Group;
use crate::{qmp, tools};

/// A machine. Its methods act on the real one at once; nothing is cached, so any number of handles may be about.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What it is made of.
    pub plan: Plan,
    home: PathBuf,
    switch: Option<Netns>,
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// No QEMU lives.
    Off,
    /// It runs.
    Running,
    /// It stands still, and so does its clock.
    Paused,
    /// QEMU lives but answers nothing: it is frozen, or hangs.
    Silent,
}

impl Machine {
    /// The machine of that plan at `home`, plugged into a port of the namespace `switch`, or into nothing.
    pub fn at(home: &Path, plan: &Plan, switch: Option<Netns>) -> Machine {
        Machine { plan: plan.clone(), home: home.to_owned(), switch }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.plan.name()
    }

    /// A file of it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// Makes its disk and the firmware's variables anew: a machine as it was imported.
    pub fn make(&self) -> Result<()> {
        fs::create_dir_all(&self.home).with_context(|| format!("cannot make {}", self.home.display()))?;
        let base = &self.plan.disk;
        if !base.exists() {
            bail!("no disk image {} (build it with `image/build disk --service lab`)", base.display());
        }
        // QEMU has the names that these files end with, but for that of the image that was built.
        let format = base.extension().and_then(|extension| extension.to_str()).unwrap_or("raw").to_owned();
        let base = base.canonicalize()?.display().to_string();
        let size = self.plan.disk_mib.map(|size| format!("{size}M"));
        let arguments = ["create", "-q", "-f", "qcow2", "-F", &format, "-b", &base, "disk.qcow2"];
        tools::run(&self.home, "qemu-img", &[&arguments[..], size.as_deref().as_slice()].concat())?;
        tools::run(&self.home, "cp", &[OPEN_VARS, "vars.fd"])?;
        let uki = self.plan.disk.with_file_name("trilith.efi");
        if self.plan.hardware == Hardware::Esx && uki.exists() {
            fs::copy(&uki, self.file("trilith.efi")).with_context(|| format!("cannot copy {}", uki.display()))?;
        }
        match self.plan.firmware {
            Firmware::Open | Firmware::Setup => Ok(()),
            Firmware::Secure => self.enrol_keys(),
        }
    }

    /// Alters its disk while it is off: `change` gets the path of a raw image of it.
    ///
    /// # Errors
    /// When `change` or a conversion fails.
    pub fn alter_disk(&self, change: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let raw = self.file("disk.raw");
        tools::run(&self.home, "qemu-img", &["convert", "-O", "raw", "disk.qcow2", "disk.raw"])?;
        change(&raw)?;
        tools::run(&self.home, "qemu-img", &["convert", "-O", "qcow2", "disk.raw", "disk.qcow2"])?;
        fs::remove_file(&raw).with_context(|| format!("cannot remove {}", raw.display()))
    }

    /// Switches it on and returns when QEMU has taken it over. Its serial log goes on where it ended.
    ///
    /// # Errors
    /// When it is on already, or QEMU refuses: with what it said.
    pub fn power_on(&self) -> Result<()> {
        let mut command = tools::command(&self.home, self.switch.as_ref(), "qemu-system-x86_64")?;
        command.args(self.arguments());
        let group = Group::start(command, &self.file("qemu.log"), &self.file("process"))
            .with_context(|| format!("machine {}", self.name()))?;
        let start = Instant::now();
        while self.state() != State::Running {
            if !group.lives() || start.elapsed() > START_DEADLINE {
                let said = fs::read_to_string(self.file("qemu.log")).unwrap_or_default();
                group.kill()?;
                bail!("QEMU of machine {} does not start: {}", self.name(), said.trim());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Pulls the plug: SIGKILL, so what the guest has not flushed may be lost with QEMU's own cache. The disk stays.
    pub fn power_cut(&self) -> Result<()> {
        self.group().map_or(Ok(()), |group| group.kill())
    }

    /// Presses the power button (ACPI) and waits until the guest has shut down in order. Presses again now and then: a guest that
    /// has just booted serves before it watches its button.
    ///
    /// # Errors
    /// When it has not within [`SHUTDOWN_DEADLINE`], with the end of its serial log.
    pub fn power_off(&self) -> Result<Duration> {
        self.qmp("system_powerdown", json!({}))?;
        let mut pressed = Instant::now();
        let what = format!("machine {} shut down", self.name());
        let off = || {
            if pressed.elapsed() >= PRESS_AGAIN_AFTER {
                // A QEMU that ends meanwhile answers no more.
                let _ = self.qmp("system_powerdown", json!({}));
                pressed = Instant::now();
            }
            !self.is_on()
        };
        wait_until(&what, SHUTDOWN_DEADLINE, off).with_context(|| self.last_words())
    }

    /// Has the guest's agent shut it down, as `virsh shutdown --mode agent` does, and waits until it has.
    ///
    /// # Errors
    /// As [`Machine::power_off`].
    pub fn power_off_by_agent(&self) -> Result<Duration> {
        // Only a refusal is answered. What the guest has not read yet would be lost with the connection.
        let _channel = qmp::tell_agent(&self.file("agent"), "guest-shutdown", json!({}))?;
        let what = format!("machine {} shut down by its agent", self.name());
        wait_until(&what, SHUTDOWN_DEADLINE, || !self.is_on()).with_context(|| self.last_words())
    }

    /// Stops it and its clock: afterwards the guest sees no time that has passed (a hypervisor that stuns a VM).
    pub fn pause(&self) -> Result<()> {
        self.qmp("stop", json!({})).map(drop)
    }

    /// Lets it go on after [`Machine::pause`].
    pub fn resume(&self) -> Result<()> {
        self.qmp("cont", json!({})).map(drop)
    }

    /// Stops it while its clock goes on: afterwards the guest's time has jumped (a guest that reads the host's TSC).
    pub fn freeze(&self) -> Result<()> {
        self.group().context("the machine is off")?.signal(Signal::SIGSTOP)
    }

    /// Lets it go on after [`Machine::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.group().context("the machine is off")?.signal(Signal::SIGCONT)
    }

    /// Runs a command of QEMU's.
    pub fn qmp(&self, command: &str, arguments: Value) -> Result<Value> {
        qmp::execute(&self.file("qmp"), command, arguments).with_context(|| format!("machine {}", self.name()))
    }

    /// Runs a command of the guest's agent.
    pub fn agent(&self, command: &str, arguments: Value) -> Result<Value> {
        qmp::ask_agent(&self.file("agent"), command, arguments).with_context(|| format!("machine {}", self.name()))
    }

    /// Presses a key on its keyboard, by QEMU's name of it.
    pub fn press(&self, key: &str) -> Result<()> {
        self.qmp("send-key", json!({ "keys": [{ "type": "qcode", "data": key }] })).map(drop)
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        if !self.is_on() {
            return State::Off;
        }
        match self.qmp("query-status", json!({})) {
            Ok(answer) if answer["running"] == true => State::Running,
            Ok(_) => State::Paused,
            Err(_) => State::Silent,
        }
    }

    /// Whether QEMU lives.
    pub fn is_on(&self) -> bool {
        self.group().is_some_and(|group| group.lives())
    }

    /// How much it has said on its serial port so far, in bytes: where [`Machine::said_since`] may begin.
    pub fn said_bytes(&self) -> u64 {
        fs::metadata(self.file("serial.log")).map_or(0, |log| log.len())
    }

    /// What it has said on its serial port from that byte on, without the colours.
    pub fn said_since(&self, from: u64) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut log) = File::open(self.file("serial.log")) {
            // A log that cannot be read is one that says nothing.
            let _ = log.seek(SeekFrom::Start(from)).and_then(|_| log.read_to_end(&mut bytes));
        }
        plain(&String::from_utf8_lossy(&bytes))
    }

    /// The last lines of its serial log, for an error.
    pub fn last_words(&self) -> String {
        let said = self.said_since(self.said_bytes().saturating_sub(LAST_BYTES));
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
        format!("machine {} ({:?}), end of {}:\n{last}", self.name(), self.state(), self.file("serial.log").display())
    }

    /// Writes the project's keys into the firmware's variables, as an operator would, and switches Secure Boot on.
    fn enrol_keys(&self) -> Result<()> {
        let keys = tools::keys()?;
        let owner =
            fs::read_to_string(keys.join("owner")).with_context(|| format!("no owner in {}", keys.display()))?;
        let owner = owner.trim();
        let [pk, kek, db] = ["PK", "KEK", "db"].map(|name| keys.join(format!("{name}.crt")).display().to_string());
        let names = ["--set-pk", owner, &pk, "--add-kek", owner, &kek, "--add-db", owner, &db];
        let files = ["--inplace", "vars.fd", "--no-microsoft", "--secure-boot"];
        tools::run(&self.home, "virt-fw-vars", &[&files[..], &names].concat()).map(drop)
    }

    fn group(&self) -> Option<Group> {
        Group::read(&self.file("process"))
    }

    fn arguments(&self) -> Vec<String> {
        let plan = &self.plan;
        let secure = plan.firmware != Firmware::Open;
        let machine = if secure { "q35,smm=on" } else { "q35,smm=off" };
        let code = if secure { SECURE_CODE } else { OPEN_CODE };
        let mut line = vec![
            format!("-name {}", plan.name()),
            // As hypervisors do: the guest makes its machine's identity of it, which must outlive a restart.
            format!("-uuid 7472696c-6974-6800-8000-{:012}", plan.index + 1),
            format!("-machine {machine} -m {} -smp 1 -nodefaults -no-user-config -display none", plan.memory_mib),
            plan.accel.arguments().to_owned(),
            format!("-drive if=pflash,format=raw,unit=0,readonly=on,file={code}"),
            "-drive if=pflash,format=raw,unit=1,file=vars.fd".to_owned(),
            "-drive if=none,id=disk,format=qcow2,file=disk.qcow2,discard=unmap".to_owned(),
            "-qmp unix:qmp,server=on,wait=off".to_owned(),
            "-chardev socket,id=serial,path=serial,server=on,wait=off,logfile=serial.log,logappend=on".to_owned(),
            "-serial chardev:serial".to_owned(),
            "-device virtio-rng-pci".to_owned(),
        ];
        if secure {
            // Only code in system management mode may write the variables, or the keys would be anybody's to change.
            line.push("-global driver=cfi.pflash01,property=secure,value=on".to_owned());
        }
        let (disk, card) = match plan.hardware {
            Hardware::Esx => ("-device pvscsi -device scsi-hd,drive=disk", "vmxnet3"),
            Hardware::Pc => ("-device ide-hd,drive=disk,bus=ide.0,bootindex=0", "e1000"),
            Hardware::Virtio => ("-device virtio-blk-pci,drive=disk,bootindex=0", "virtio-net-pci"),
        };
        line.push(disk.to_owned());
        if self.file("trilith.efi").exists() {
            // Debian's firmware has no driver for that controller (ESX' own has): QEMU hands it the UKI, which finds its root.
            line.push("-kernel trilith.efi".to_owned());
        }
        if self.switch.is_some() {
            let (port, mac) = (plan.name(), plan.mac());
            line.push(format!("-netdev tap,id=lan,ifname={port},script=no,downscript=no,vhost=off"));
            // Without its ROM the firmware does not try to boot from the network.
            line.push(format!("-device {card},netdev=lan,mac={mac},romfile="));
        }
        if self.file(CD_ROM).exists() {
            line.push(format!("-drive if=none,id=answers,media=cdrom,format=raw,readonly=on,file={CD_ROM}"));
            line.push("-device ide-cd,drive=answers,bus=ide.1".to_owned());
        }
        if plan.hardware == Hardware::Virtio {
            line.push("-chardev socket,id=agent,path=agent,server=on,wait=off -device virtio-serial-pci".to_owned());
            line.push("-device virtserialport,chardev=agent,name=org.qemu.guest_agent.0".to_owned());
        }
        line.iter().flat_map(|part| part.split(' ')).map(str::to_owned).collect()
    }
}

/// Without escape sequences (ECMA-48: CSI … final byte) and carriage returns.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\r' => {}
            '\x1b' => {
                let last = (chars.next() == Some('[')).then(|| chars.by_ref().find(|char| ('@'..='~').contains(char)));
                // Where a screen goes on at another place, a log has another line.
                if last.flatten() == Some('H') && !out.ends_with('\n') {
                    out.push('\n');
                }
            }
            char => out.push(char),
        }
    }
    out
}

const OPEN_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OPEN_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
const SECURE_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
/// QEMU has its machine ready within a second, several times that on a busy host.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// A guest asks its services to end before it does.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(90);
const PRESS_AGAIN_AFTER: Duration = Duration::from_secs(5);
const LAST_LINES: usize = 30;
const LAST_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_hide_is_not_in_the_log() {
        assert_eq!(plain("\x1b[2J\x1b[01;32mok\x1b[0m\r\n"), "ok\n");
        assert_eq!(plain("cut \x1b[3"), "cut ");
        assert_eq!(plain("one\x1b[2;1Htwo\n\x1b[9;1Hthree"), "one\ntwo\nthree");
    }
}
