//! One laboratory for all tests of this program, and the tests of the laboratory itself.

use std::fs;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::libc;
use trilith_lab::bench::settle;
use trilith_lab::lab::{Lab, Mode, down};
use trilith_lab::node::{Node, State};
use trilith_lab::switch::Direction;
use trilith_lab::wait::wait_until;

/// Does something with the laboratory, which is brought up for the first test that needs it; whole and at rest each time.
/// One test at a time has it. Whatever stood before is taken down: it may consist of other programs, and has a past.
pub fn with_lab(test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let mut held = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    let lab = match held.take() {
        Some(lab) => lab,
        None => {
            down()?;
            Lab::up(Mode::Trilith)?
        }
    };
    AT_EXIT.call_once(|| {
        // SAFETY: `down_at_exit` touches nothing that ends before the process does.
        unsafe { libc::atexit(down_at_exit) };
    });
    let lab = held.insert(lab);
    lab.revive()?;
    settle(lab)?;
    test(lab)
}

#[test]
#[ignore = "needs root and the root tree"]
fn every_fault_can_be_made_and_healed() -> Result<()> {
    with_lab(|lab| {
        let [a, b, _] = &lab.nodes[..] else { anyhow::bail!("three nodes") };

        assert_eq!(failed_units(a)?, "");
        reached(lab, a)?;
        assert!(a.main_pid("lab-service.service")? > 1);

        lab.switch.cut("a", Direction::In)?;
        assert!(!reaches(lab, a));
        lab.switch.heal_port("a", Direction::In)?;
        reached(lab, a)?;

        lab.switch.cut_between("client", "a")?;
        assert!(!reaches(lab, a));
        reached(lab, b)?;
        lab.heal()?;

        lab.switch.link("a", false)?;
        assert_eq!(a.run("cat", &["/sys/class/net/eth0/carrier"])?.trim(), "0");
        lab.heal()?;
        reached(lab, a)?;

        a.freeze()?;
        assert_eq!(a.state(), State::Frozen);
        a.thaw()?;
        assert_eq!(a.state(), State::Running);

        a.run("touch", &["/var/lib/trilith/kept"])?;
        a.kill()?;
        assert_eq!(a.state(), State::Off);
        assert!(!reaches(lab, a));
        a.boot()?;
        a.wait_ready()?;
        a.run("test", &["-e", "/var/lib/trilith/kept"])?;
        reached(lab, a)?;

        lab.gateway(false)?;
        reached(lab, a).context("clients send from another address than the gateway's")?;
        lab.revive()
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn the_supervisor_s_sandbox_lets_it_do_its_work_and_nothing_else() -> Result<()> {
    with_lab(|lab| {
        let node = lab.node("a")?;
        let pid = node.main_pid("trilith.service")?.to_string();
        let policy = Command::new("chrt").args(["--pid", &pid]).output()?;
        assert!(String::from_utf8_lossy(&policy.stdout).contains("SCHED_RR"));
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("no CapBnd")?;
        // CAP_NET_ADMIN (12), CAP_NET_RAW (13), CAP_IPC_LOCK (14), CAP_SYS_NICE (23): linux/capability.h.
        assert_eq!(u64::from_str_radix(bounding.trim(), 16)?, 1 << 12 | 1 << 13 | 1 << 14 | 1 << 23);
        Ok(())
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn nothing_is_left_of_a_laboratory_that_was_taken_down() -> Result<()> {
    with_lab(|_| {
        ensure!(!leftovers()?.is_empty(), "what a laboratory consists of is not seen while it stands");
        Ok(())
    })?;
    drop(LAB.lock().unwrap_or_else(PoisonError::into_inner).take());
    wait_nothing_left()
}

/// What kills the owner with no chance to clean up is what its guard is for.
#[test]
#[ignore = "needs root and the root tree"]
fn a_laboratory_goes_down_with_its_owner() -> Result<()> {
    let mut held = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    drop(held.take());
    let mut owner = owner()?;
    let up = up_elsewhere();
    owner.kill()?;
    owner.wait()?;
    up?;
    wait_nothing_left()
}

/// As when a session ends: whoever comes next finds a laboratory that nobody will take down, in the middle of something.
#[test]
#[ignore = "needs root and the root tree"]
fn a_laboratory_without_owner_and_guard_is_not_used_again() -> Result<()> {
    let mut held = LAB.lock().unwrap_or_else(PoisonError::into_inner);
    drop(held.take());
    let mut owner = owner()?;
    let up = up_elsewhere();
    let id = owner.id().to_string();
    let guard = Command::new("pkill").args(["--signal", "KILL", "--parent", &id, "--full", " guard "]).status()?;
    owner.kill()?;
    owner.wait()?;
    up?;
    ensure!(guard.success(), "no guard was found");
    ensure!(!leftovers()?.is_empty(), "it was taken down by whoever should be dead");
    // One that is used again would be left standing.
    drop(Lab::up(Mode::Trilith)?);
    wait_nothing_left()
}

/// A process of its own that brings a laboratory up.
fn owner() -> Result<Child> {
    let owner = Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "lab::holds_a_laboratory_until_it_is_killed"])
        .env(HOLD, "1")
        .stdout(Stdio::null())
        .spawn()?;
    Ok(owner)
}

fn up_elsewhere() -> Result<()> {
    let is_up = || Lab::attach().is_ok_and(|lab| lab.nodes.iter().all(Node::is_ready));
    wait_until("a laboratory brought up by another process", Duration::from_secs(300), is_up).map(drop)
}

/// The other half of [`a_laboratory_goes_down_with_its_owner`].
#[test]
#[ignore = "only for another test"]
fn holds_a_laboratory_until_it_is_killed() -> Result<()> {
    if std::env::var_os(HOLD).is_none() {
        return Ok(());
    }
    let _lab = Lab::up(Mode::Trilith)?;
    loop {
        thread::park();
    }
}

/// What was killed is gone only when its parent has taken note.
fn wait_nothing_left() -> Result<()> {
    let gone = wait_until("nothing left", SOON, || leftovers().is_ok_and(|found| found.is_empty()));
    gone.map(drop).with_context(|| leftovers().unwrap_or_default().join(", "))
}

/// Namespaces, mounts, processes and files of a laboratory.
fn leftovers() -> Result<Vec<String>> {
    let mut found: Vec<String> =
        trilith_lab::netns::with_prefix("trilith-").iter().map(|netns| format!("namespace {}", netns.name())).collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let ours = mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| at.contains("/trilith-"));
    found.extend(ours.map(|at| format!("mount {at}")));
    for process in fs::read_dir("/proc")?.flatten() {
        // A process that ends meanwhile is none that is left.
        let groups = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        if groups.contains("/trilith-lab/") {
            found.push(format!("process {}", process.file_name().to_string_lossy()));
        }
    }
    if fs::exists("/run/trilith-lab")? {
        found.push("directory /run/trilith-lab".to_owned());
    }
    Ok(found)
}

/// Waits for a connection that succeeds.
fn reached(lab: &Lab, node: &Node) -> Result<()> {
    wait_until(&format!("a connection to node {}", node.name()), SOON, || reaches(lab, node)).map(drop)
}

/// Whether a new connection from the clients' namespace to the node's own service succeeds.
fn reaches(lab: &Lab, node: &Node) -> bool {
    let (client, address) = (lab.client.clone(), (node.address(), 8080));
    let tried = thread::spawn(move || {
        client.enter()?;
        TcpStream::connect_timeout(&address.into(), Duration::from_millis(300))?;
        anyhow::Ok(())
    });
    tried.join().is_ok_and(|result| result.is_ok())
}

fn failed_units(node: &Node) -> Result<String> {
    node.run("systemctl", &["list-units", "--failed", "--plain", "--no-legend"])
}

/// Statics are not dropped: without this the laboratory would go down only after this process, by its guard.
extern "C" fn down_at_exit() {
    drop(LAB.lock().unwrap_or_else(PoisonError::into_inner).take());
}

static LAB: Mutex<Option<Lab>> = Mutex::new(None);
static AT_EXIT: Once = Once::new();
/// For whatever comes at once, on a busy machine.
const SOON: Duration = Duration::from_secs(60);
const HOLD: &str = "TRILITH_LAB_HOLD";
