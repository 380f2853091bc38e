//! The machines themselves, with nothing on their disks: firmware, power, time, wire. Needs root and the tools tree.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use trilith_lab::netns::Netns;
use trilith_lab::root::binaries;
use trilith_lab::wait::wait_until;
use trilith_trio::accel::Accel;
use trilith_trio::machine::{Machine, State};
use trilith_trio::network::Network;
use trilith_trio::plan::Plan;
use trilith_trio::tools;
use trilith_trio::trio::{Trio, home};

#[test]
#[ignore = "needs root and the tools tree"]
fn machines_speak_stop_go_on_and_leave_nothing() -> Result<()> {
    let disk = empty_disk()?;
    let mut plans = Plan::trio(Accel::Tcg)?;
    plans.iter_mut().for_each(|plan| plan.disk = disk.clone());
    let trio = Trio::power_on(&plans)?;
    for machine in &trio.machines {
        assert_eq!(machine.state(), State::Running);
        wait_until("the firmware's shell", FIRMWARE_DEADLINE, || machine.said_since(0).contains("Shell>"))
            .with_context(|| machine.last_words())?;
    }
    let machine = trio.machine("b")?;
    machine.pause()?;
    assert_eq!(machine.state(), State::Paused);
    machine.resume()?;
    assert_eq!(machine.state(), State::Running);
    let from = machine.said_bytes();
    machine.power_cut()?;
    assert_eq!(machine.state(), State::Off);
    machine.power_on()?;
    wait_until("its firmware again", FIRMWARE_DEADLINE, || machine.said_since(from).contains("Shell>"))?;
    let groups = trio.machines.iter().map(Machine::is_on).collect::<Vec<_>>();
    assert_eq!(groups, [true; 3]);
    drop(trio);
    assert_nothing_left()?;

    // What a checkout leaves behind that is there no more, or is not known here.
    Trio::make(&plans)?.keep()?;
    assert!(Network::named().namespaces().iter().all(Netns::exists));
    let elsewhere = std::env::temp_dir().join(format!("trilith-trio-elsewhere-{}", std::process::id()));
    let down = Command::new(binaries()?.join("trilith-trio")).arg("down").env("TRILITH_BUILD", elsewhere).status()?;
    assert!(down.success(), "trilith-trio down: {down}");
    assert_nothing_left()?;
    fs::remove_file(disk)?;
    Ok(())
}

fn assert_nothing_left() -> Result<()> {
    assert!(!Network::named().namespaces().iter().any(Netns::exists), "a namespace is left");
    assert!(!home()?.exists(), "files are left");
    Ok(())
}

/// A disk that nothing boots from.
fn empty_disk() -> Result<PathBuf> {
    let path = tools::build_directory(&tools::repository()?).join("trio-empty.raw");
    File::create(&path)?.set_len(64 << 20)?;
    Ok(path)
}

/// A translated firmware needs ten seconds; three of them on a busy host need more.
const FIRMWARE_DEADLINE: Duration = Duration::from_secs(120);
