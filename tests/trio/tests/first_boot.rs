//! One machine and its first boot: with little memory, and with its power cut at any moment. Needs root, the image and
//! minutes: `./justw trio test`.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use trilith_trio::boot::{Boot, boot};
use trilith_trio::plan::{Hardware, Plan, VIP};
use trilith_trio::trio::{self, Trio, say};

#[test]
#[ignore = "needs root, the image and minutes"]
fn a_machine_with_256_mib_serves() -> Result<()> {
    let plan = Plan { memory_mib: 256, ..Plan::alone(trio::prepare()?)? };
    let trio = Trio::make(&[plan])?;
    let Boot { kernel_s, used_mib, .. } = boot(&trio, &trio.machines[0])?;
    say(&format!("256 MiB: serves {kernel_s:.1} s after the kernel's start, uses {used_mib:.1} MiB"));
    ensure!(used_mib < 110.0, "{used_mib} MiB in use");
    Ok(())
}

/// The firmware's time is left out: nothing is written then.
#[test]
#[ignore = "needs root, the image and minutes"]
fn a_first_boot_that_loses_power_at_any_moment_is_finished_by_the_next() -> Result<()> {
    let plan = Plan { hardware: Hardware::Esx, ..Plan::alone(trio::prepare()?)? };
    let trio = Trio::make(&[plan])?;
    let machine = &trio.machines[0];
    let whole = boot(&trio, machine)?;
    let before_s = whole.power_on_s - whole.kernel_s;
    let shares = shares()?;
    say(&format!("a first boot takes {:.1} s after {before_s:.1} s of firmware", whole.kernel_s));
    for (number, share) in shares.into_iter().enumerate() {
        machine.power_cut()?;
        machine.make()?;
        let start = Instant::now();
        machine.power_on()?;
        // The moment is what is random here.
        sleep(Duration::from_secs_f64(before_s + whole.kernel_s * share).saturating_sub(start.elapsed()));
        machine.power_cut()?;
        let Boot { kernel_s, .. } = boot(&trio, machine)?;
        let name = trio.network.get(IpAddr::from(VIP), "/")?;
        let at_s = whole.kernel_s * share;
        say(&format!("cut {}: after {at_s:.1} s; the next boot serves after {kernel_s:.1} s", number + 1));
        assert_eq!(name.trim(), machine.name(), "it kept what it was told");
    }
    Ok(())
}

/// Ten random moments, as shares of the first boot.
fn shares() -> Result<Vec<f64>> {
    let mut bytes = [0; CUTS];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| f64::from(*byte) / 255.0).collect())
}

const CUTS: usize = 10;
