//! Three machines hold the VIP through what happens to machines. Needs root, the image and minutes: `./justw trio test`.
//!
//! What is asserted is what is right on any host, also where QEMU translates and every figure is several times what it
//! would be; the figures themselves are shown.

mod support;

use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use support::{SOON, Watch, with_trio};
use trilith_lab::load::{Established, EstablishedOptions, KeepAlive, KeepAliveOptions};
use trilith_lab::wait::wait_until;
use trilith_trio::machine::{Machine, State};
use trilith_trio::plan::{Addressing, Hardware, NODES, VIP, VIP6, node_address6};
use trilith_trio::status::{said, wait_fit};
use trilith_trio::trio::{UP_DEADLINE, say};

#[test]
#[ignore = "needs root, the image and minutes"]
fn three_kinds_of_hardware_with_static_and_dhcp_addresses_become_one_set() -> Result<()> {
    with_trio(|trio| {
        for machine in &trio.machines {
            let own = trio.network.get_port(IpAddr::from(machine.plan.address()), 8080, "/");
            let own = own.with_context(|| format!("{} at its own address", machine.name()))?;
            assert_eq!(own.trim(), machine.name(), "{:?} {:?}", machine.plan.hardware, machine.plan.addressing);
        }
        assert!(trio.machines.iter().any(|machine| machine.plan.addressing == Addressing::Dhcp));
        assert_eq!(trio.machines.len(), 3);
        wait_fit(trio, SOON)
    })
}

#[test]
#[ignore = "needs root, the image and minutes"]
fn the_vip_of_an_owner_that_loses_power_moves_and_the_owner_comes_back() -> Result<()> {
    with_trio(|trio| {
        let watch = Watch::on(trio)?;
        let owner = watch.owner_of(trio)?;
        owner.power_cut()?;
        let moved = watch.wait_other_owner(owner.name())?;
        say(&format!("{} without power: another node answers for the VIP after {moved:.2?}", owner.name()));
        let seen = watch.finish("power cut of the owner");
        ensure!(seen.gap_ms < MOST_MS, "nobody was served for {} ms", seen.gap_ms);
        owner.power_on()?;
        let back = trio.wait_serving(UP_DEADLINE)?;
        say(&format!("{} serves again {back:.1?} after power-on", owner.name()));
        Ok(())
    })
}

#[test]
#[ignore = "needs root, the image and minutes"]
fn an_owner_whose_clock_stood_still_never_stays_a_second_owner() -> Result<()> {
    pauses(Machine::pause, Machine::resume, "paused")
}

#[test]
#[ignore = "needs root, the image and minutes"]
fn an_owner_whose_clock_went_on_never_stays_a_second_owner() -> Result<()> {
    pauses(Machine::freeze, Machine::thaw, "frozen")
}

/// As when it is moved to another host: to the others it is dead, and then goes on as if nothing had been.
#[test]
#[ignore = "needs root, the image and minutes"]
fn connections_of_an_owner_that_stood_still_until_another_took_over_live_on() -> Result<()> {
    with_trio(|trio| {
        let watch = Watch::on(trio)?;
        let owner = watch.owner_of(trio)?;
        // All of them have been used when they are there.
        let established = Established::start(EstablishedOptions {
            netns: Some(trio.network.client.path()),
            connections: 50,
            interval: Duration::from_millis(200),
            dead_after: SOON,
            ..EstablishedOptions::new(SocketAddr::new(VIP.into(), 9000))
        })?;
        let begun = Instant::now();
        owner.pause()?;
        watch.wait_other_owner(owner.name())?;
        owner.resume()?;
        let still = begun.elapsed();
        wait_until("one owner", SOON, || watch.owner().is_some())?;
        sleep(AFTERMATH);
        watch.finish(&format!("{} paused for {still:.1?}", owner.name()));
        let established = established.finish();
        say(&format!(
            "of its connections {} broke, the longest stall was {:?} ms",
            established.broken, established.stall_ms.max
        ));
        ensure!(established.broken == 0, "broken: {:?}", established.broken_at);
        trio.wait_serving(UP_DEADLINE).map(drop)
    })
}

#[test]
#[ignore = "needs root, the image and minutes"]
fn a_shutdown_by_the_power_button_hands_the_vip_over() -> Result<()> {
    with_trio(|trio| {
        let watch = Watch::on(trio)?;
        let owner = watch.owner_of(trio)?;
        let took = owner.power_off()?;
        watch.wait_other_owner(owner.name())?;
        say(&format!("{} shut down in {took:.1?}", owner.name()));
        let seen = watch.finish("shutdown of the owner");
        ensure!(seen.failed == 0, "{} new connections failed while it ended", seen.failed);
        assert_eq!(owner.state(), State::Off);
        owner.power_on()?;
        trio.wait_serving(UP_DEADLINE).map(drop)
    })
}

/// The tunnel takes a module of the kernel that nothing else loads.
#[test]
#[ignore = "needs root, the image and minutes"]
fn connections_outlive_moves_where_the_network_drops_what_bears_a_clients_address() -> Result<()> {
    with_trio(|trio| {
        for machine in &trio.machines {
            let own6 = node_address6(machine.plan.index);
            let own = [machine.plan.address().into(), own6.into(), VIP.into(), VIP6.into()];
            trio.network.switch.guard(machine.name(), &own)?;
        }
        let tunnels = |wanted: usize| {
            let all = |machine| {
                said(trio, machine).is_ok_and(|said| said["relay"]["tunnels"].as_array().map(Vec::len) == Some(wanted))
            };
            wait_until(&format!("{wanted} tunnels on each node"), SOON, || trio.machines.iter().all(all))
        };
        tunnels(2)?;
        let watch = Watch::on(trio)?;
        let netns = Some(trio.network.client.path());
        let pings = KeepAliveOptions { netns, timeout: SOON, ..KeepAliveOptions::new(SocketAddr::new(VIP.into(), 80)) };
        let kept = KeepAlive::start(pings)?;
        for _ in 0..2 {
            let owner = watch.owner_of(trio)?.name();
            let next = NODES[(NODES.iter().position(|node| *node == owner).unwrap_or(0) + 1) % NODES.len()];
            let told = trio.ssh(trio.machine(next)?, &["trilith", "vip", "move", "public", next])?;
            ensure!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
            watch.wait_other_owner(owner)?;
        }
        let (seen, kept) = (watch.finish("moves where the network guards addresses"), kept.finish());
        ensure!(seen.failed == 0, "{} new connections failed", seen.failed);
        ensure!(
            kept.requests > 0 && kept.failed + kept.broken + kept.connect_failures == 0,
            "kept connections: {kept:?}"
        );
        trio.network.switch.heal()?;
        tunnels(0).map(drop)
    })
}

/// As a host of KVM asks: `virsh domifaddr --source agent`, `virsh shutdown --mode agent`.
#[test]
#[ignore = "needs root, the image and minutes"]
fn a_guest_agent_tells_addresses_runs_nothing_and_shuts_down_in_order() -> Result<()> {
    with_trio(|trio| {
        let virtio = trio.machines.iter().find(|machine| machine.plan.hardware == Hardware::Virtio);
        let machine = virtio.context("no machine with a guest agent's channel")?;
        let answers = || machine.agent("guest-ping", json!({})).is_ok();
        wait_until("an answer of the guest's agent", UP_DEADLINE, answers).with_context(|| machine.last_words())?;
        let cards = machine.agent("guest-network-get-interfaces", json!({}))?;
        let card = cards.as_array().into_iter().flatten().find(|card| card["hardware-address"] == machine.plan.mac());
        let card = card.with_context(|| format!("no card {} among {cards}", machine.plan.mac()))?;
        let mut addresses = card["ip-addresses"].as_array().into_iter().flatten();
        let own = machine.plan.address().to_string();
        ensure!(addresses.any(|address| address["ip-address"] == own), "no address {own} of {card}");
        assert_eq!(machine.agent("guest-get-host-name", json!({}))?["host-name"], machine.name());
        let run = machine.agent("guest-exec", json!({ "path": "/usr/bin/trilith" }));
        let refusal = format!("{:#}", run.err().context("the host ran a program")?);
        ensure!(refusal.contains("has been disabled"), "no refusal: {refusal}");
        let watch = Watch::on(trio)?;
        let from = machine.said_bytes();
        let took = machine.power_off_by_agent()?;
        say(&format!("{} shut down in {took:.1?}", machine.name()));
        let seen = watch.finish("shutdown by the guest's agent");
        ensure!(seen.failed == 0, "{} new connections failed while it ended", seen.failed);
        ensure!(machine.said_since(from).contains("reboot: Power down"), "not in order: {}", machine.last_words());
        machine.power_on()?;
        trio.wait_serving(UP_DEADLINE).map(drop)
    })
}

/// Stops the owner for each of the times, and lets it go on.
fn pauses(stop: fn(&Machine) -> Result<()>, go_on: fn(&Machine) -> Result<()>, word: &str) -> Result<()> {
    with_trio(|trio| {
        for still in [1, 5, 60].map(Duration::from_secs) {
            let watch = Watch::on(trio)?;
            let owner = watch.owner_of(trio)?;
            let begun = Instant::now();
            stop(owner)?;
            if still > Duration::from_secs(1) {
                watch.wait_other_owner(owner.name())?;
                ensure!(begun.elapsed() < still, "nobody took over while it stood still");
            }
            // How long it stands still is what is being tested.
            sleep(still.saturating_sub(begun.elapsed()));
            go_on(owner)?;
            wait_until("one owner", SOON, || watch.owner().is_some())?;
            // Whoever comes back believing that it still owns the VIP has said so by then.
            sleep(AFTERMATH);
            let seen = watch.finish(&format!("{} {word} for {still:?}", owner.name()));
            ensure!(seen.two_owners_ms < TWO_OWNERS_MS, "two owners for {} ms", seen.two_owners_ms);
            ensure!(seen.gap_ms < MOST_MS, "nobody was served for {} ms", seen.gap_ms);
            trio.wait_serving(UP_DEADLINE)?;
        }
        Ok(())
    })
}

/// The fence, the lifetime of the address on the interface, and as much again for a guest that is translated.
const TWO_OWNERS_MS: f64 = 4_000.0;
/// On KVM it is a fraction of a second; a translated guest may need several for what follows.
const MOST_MS: f64 = 10_000.0;
/// Longer than any lease.
const AFTERMATH: Duration = Duration::from_secs(3);
