//! The set keeps its promises to clients and operators, and the laboratory those that the benches rely on. Needs root, the
//! built root tree and some minutes: run by `just test`, or `cargo test --release -p trilith-lab --test laboratory --
//! --ignored --test-threads 1`.
//!
//! What is asserted is what is right on any machine: nothing refused, nothing broken, one owner. Times are bounded so
//! generously that only a hang misses them; how fast it is, is for the benches to tell.

mod lab;

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use trilith_core::set::Outcome;
use trilith_core::status::Status;
use trilith_lab::bench::{Flows, VIPS, at_home, forged, holders, settle, until};
use trilith_lab::config_roll::document::{Change, Fate};
use trilith_lab::config_roll::{DOCUMENT_FILE, agreed, carry_out, feed, shown};
use trilith_lab::lab::{Lab, NODES, VIP, VIP6};
use trilith_lab::load::{
    ArpWatch, ArpWatchOptions, Established, EstablishedOptions, KeepAlive, KeepAliveOptions, Steady, SteadyOptions,
    Transfers, TransfersOptions, Window, now_ns,
};
use trilith_lab::node::{Node, State};
use trilith_lab::set::DOCUMENT;
use trilith_lab::switch::Direction;
use trilith_lab::wait::wait_until;

use lab::with_lab;

#[test]
#[ignore = "needs root and the root tree"]
fn planned_moves_of_an_ipv4_vip_are_not_noticed() -> Result<()> {
    with_lab(|lab| planned_moves(lab, "public", VIP.into()))
}

#[test]
#[ignore = "needs root and the root tree"]
fn planned_moves_of_an_ipv6_vip_are_not_noticed() -> Result<()> {
    with_lab(|lab| planned_moves(lab, "public6", VIP6.into()))
}

#[test]
#[ignore = "needs root and the root tree"]
fn planned_moves_are_not_noticed_where_the_network_drops_what_bears_a_clients_address() -> Result<()> {
    with_lab(|lab| {
        for node in &lab.nodes {
            let own = [node.address().into(), node.address6().into(), VIP.into(), VIP6.into()];
            lab.switch.guard(node.name(), &own)?;
        }
        let tunnels = |wanted: usize| {
            let all =
                || lab.nodes.iter().all(|node| full_status(node).is_ok_and(|it| it.relay.tunnels.len() == wanted));
            wait_until(&format!("{wanted} tunnels on each node"), SOON, all)
        };
        tunnels(2)?;
        planned_moves(lab, "public", VIP.into())?;
        planned_moves(lab, "public6", VIP6.into())?;
        lab.heal()?;
        tunnels(0).map(drop)
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn draining_the_owner_is_not_noticed_and_undraining_puts_it_back() -> Result<()> {
    with_lab(|lab| {
        at_home(lab, "a")?;
        let clients = Clients::on(lab, VIP.into())?;
        order(lab.node("b")?, &["node", "drain", "a"])?;
        for vip in 0..VIPS.len() {
            wait_until("a drained owner without VIPs", SOON, || {
                holders(lab, vip).is_ok_and(|all| !all.contains(&"a"))
            })?;
        }
        let refused = lab.node("b")?.output("trilith", &["vip", "move", "public", "a"])?;
        assert_eq!(refused.status.code(), Some(1), "a drained node takes no VIP");
        order(lab.node("c")?, &["node", "undrain", "a"])?;
        settle(lab)?;
        order(lab.node("a")?, &["vip", "move", "public", "a"])?;
        clients.noticed_nothing()
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn a_haproxy_that_is_asked_to_end_outlives_its_longest_download() -> Result<()> {
    with_lab(|lab| {
        at_home(lab, "a")?;
        let requests = Requests::on(lab, VIP.into())?;
        wait_served(&requests.steady, now_ns())?;
        let (bytes_per_s, at_once) = (1 << 20, 2);
        let bytes = bytes_per_s * LONGER_THAN_A_STOP.as_secs();
        let downloads = TransfersOptions {
            netns: Some(lab.client.path()),
            transfers: at_once,
            bytes,
            bytes_per_s,
            timeout: PATIENCE,
            ..TransfersOptions::new(SocketAddr::new(VIP.into(), 80))
        };
        let downloads = Transfers::start(downloads)?;
        wait_until("downloads by way of the owner", SOON, || downloads.report(Window::ALL).bytes > 0)?;
        let a = lab.node("a")?;
        order(a, &["node", "drain", "a"])?;
        let asked = Instant::now();
        a.run("systemctl", &["kill", "--kill-whom=main", "--signal=SIGUSR1", "haproxy.service"])?;
        wait_until("the end of HAProxy", SOON, || a.unit_pids("haproxy.service").is_empty())?;
        let lasted = asked.elapsed();
        let state = a.output("systemctl", &["is-active", "haproxy.service"])?;
        let whole = downloads.report(Window::ALL);
        order(a, &["node", "undrain", "a"])?;
        settle(lab)?;
        wait_served(&requests.steady, now_ns())?;
        let downloads = downloads.finish();
        ensure!(downloads.failed == 0 && whole.complete >= at_once as u64, "downloads: {:?}, {whole:?}", downloads);
        ensure!(
            lasted.as_secs() >= 10,
            "the drain was over after {lasted:?}: nothing outlived the time that a stop has"
        );
        ensure!(state.stdout == b"inactive\n", "haproxy.service is {}", String::from_utf8_lossy(&state.stdout));
        requests.noticed_nothing()
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn an_owner_that_is_switched_off_takes_no_connection_of_others_with_it() -> Result<()> {
    with_lab(|lab| {
        fault(lab, "a", |owner| {
            owner.kill()?;
            // Until its power is back, the others hold the VIP.
            wait_until("another owner", SOON, || holders(lab, 0).is_ok_and(|all| all.len() == 1))?;
            owner.boot()?;
            owner.wait_ready().map(drop)
        })
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn an_owner_that_is_cut_off_and_comes_back_takes_no_connection_of_others_with_it() -> Result<()> {
    with_lab(|lab| {
        fault(lab, "b", |owner| {
            lab.switch.cut(owner.name(), Direction::Both)?;
            // Its own lease and the fence behind it are over by then.
            let name = owner.name();
            wait_until("another owner alone", SOON, || {
                holders(lab, 0).is_ok_and(|all| all.len() == 1 && !all.contains(&name))
            })?;
            lab.heal()
        })
    })
}

/// As a machine that is moved to another host: to the others it is dead, and then goes on as if nothing had been.
#[test]
#[ignore = "needs root and the root tree"]
fn an_owner_that_is_away_for_a_moment_loses_no_connection_where_the_set_waits_for_it() -> Result<()> {
    with_lab(|lab| {
        agreed(lab)?;
        // Longer than a busy machine takes for what is to be seen meanwhile.
        let text = DOCUMENT.replacen("[set]\n", "[set]\nstun = \"10s\"\n", 1);
        let change = Change { what: "a set that waits", text, confirm_within_s: None, fate: Fate::Kept };
        let (past, _) = carry_out(lab, lab.node("a")?, &change)?;
        ensure!(past.outcome == Outcome::Done, "{}: {}", change.what, past.outcome);
        at_home(lab, "b")?;
        let clients = Clients::on(lab, VIP.into())?;
        wait_served(&clients.requests.steady, now_ns())?;
        lab.switch.cut("b", Direction::Both)?;
        let others = [lab.node("a")?, lab.node("c")?];
        let left = || others.iter().all(|node| full_status(node).is_ok_and(|status| status.relay.last_hop == 1));
        wait_until("its peers to take it out of the ring", SOON, left)?;
        wait_served(&clients.requests.steady, now_ns())?;
        lab.heal()?;
        settle(lab)?;
        clients.noticed_nothing()
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn a_request_that_waits_at_a_node_that_vanishes_is_answered_by_another() -> Result<()> {
    with_lab(|lab| {
        at_home(lab, "a")?;
        let waiting = KeepAliveOptions {
            netns: Some(lab.client.path()),
            connections: 9,
            path: format!("/slow/{SLOW_MS}"),
            pause: Duration::from_millis(1),
            timeout: SOON,
            ..KeepAliveOptions::new(SocketAddr::new(VIP.into(), 80))
        };
        let waiting = KeepAlive::start(waiting)?;
        wait_until("answers of all nodes", SOON, || waiting.report(Window::ALL).nodes.len() == NODES.len())?;
        // A third of the next requests is there.
        lab.node("c")?.kill()?;
        // Asks nothing more, and waits for what is due.
        let waiting = waiting.finish();
        ensure!(waiting.failed + waiting.broken + waiting.connect_failures == 0, "{waiting:?}");
        ensure!(
            waiting.latency_ms.max > 2.0 * f64::from(SLOW_MS),
            "no request was at the node when it went: {waiting:?}"
        );
        Ok(())
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn a_frozen_owner_is_replaced_and_breaks_nothing_when_it_goes_on() -> Result<()> {
    with_lab(|lab| {
        fault(lab, "c", |owner| {
            owner.freeze()?;
            let name = owner.name();
            wait_until("another owner alone", SOON, || {
                holders(lab, 0).is_ok_and(|all| all.len() == 1 && !all.contains(&name))
            })?;
            owner.thaw()
        })
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn a_killed_supervisor_breaks_nothing() -> Result<()> {
    with_lab(|lab| {
        at_home(lab, "a")?;
        let flows = Flows::on(lab, &["b", "c", "a"], FLOWS_EACH, PING_EVERY)?;
        let owner = lab.node("a")?;
        let before = owner.main_pid("trilith.service")?;
        kill(Pid::from_raw(before), Signal::SIGKILL)?;
        wait_until("systemd starting it anew", SOON, || {
            owner.main_pid("trilith.service").is_ok_and(|pid| pid != before)
        })?;
        settle(lab)?;
        let fate = flows.finish()?;
        assert_eq!(fate.breaks(|_| true).len(), 0, "HAProxy goes on without its supervisor");
        Ok(())
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn a_killed_haproxy_takes_only_its_own_connections_with_it() -> Result<()> {
    with_lab(|lab| {
        fault(lab, "a", |owner| {
            let pids = owner.unit_pids("haproxy.service");
            ensure!(!pids.is_empty(), "HAProxy does not run on {}", owner.name());
            for pid in &pids {
                // A worker may have ended with its master.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            let anew = || owner.unit_pids("haproxy.service").iter().any(|pid| !pids.contains(pid));
            wait_until("another HAProxy", SOON, anew).map(drop)
        })
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn nothing_comes_of_forged_datagrams() -> Result<()> {
    with_lab(|lab| {
        // To send them takes a core of the machine that the nodes run on, and may cost a lease. What comes of the datagrams
        // comes each time.
        until("an attack of which nothing comes", ATTACKS, || {
            at_home(lab, "b")?;
            settle(lab)?;
            let came = forged::attack(lab, "b", 100_000)?;
            ensure!(came.complaints().is_empty(), "{:?}: {came:?}", came.complaints());
            Ok(())
        })
        .map(drop)
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn a_supervisor_that_is_restarted_hands_over_first() -> Result<()> {
    with_lab(|lab| {
        at_home(lab, "a")?;
        let clients = Clients::on(lab, VIP.into())?;
        wait_served(&clients.requests.steady, now_ns())?;
        lab.node("a")?.run("systemctl", &["restart", "trilith.service"])?;
        settle(lab)?;
        wait_served(&clients.requests.steady, now_ns())?;
        clients.noticed_nothing()
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn an_owner_that_reboots_in_order_fails_no_request() -> Result<()> {
    with_lab(|lab| {
        at_home(lab, "a")?;
        let requests = Requests::on(lab, VIP.into())?;
        wait_served(&requests.steady, now_ns())?;
        let a = lab.node("a")?;
        order(a, &["node", "reboot"])?;
        wait_until("the end of the owner", SOON, || a.state() == State::Off)?;
        // A container that has ended does not start by itself.
        a.restart()?;
        a.wait_ready()?;
        settle(lab)?;
        wait_served(&requests.steady, now_ns())?;
        requests.noticed_nothing()
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn a_node_whose_disk_was_lost_is_given_its_place_again() -> Result<()> {
    with_lab(|lab| {
        agreed(lab)?;
        let (a, c) = (lab.node("a")?, lab.node("c")?);
        let generation = || Ok::<_, anyhow::Error>(shown(a)?.state.nodes.get("c").map(|node| node.generation));
        let before = generation()?;
        c.run("systemctl", &["stop", "trilith-coordinator.service"])?;
        c.run("rm", &["--recursive", "/var/lib/trilith/raft", "/var/lib/trilith/coordinator.json"])?;
        c.run("systemctl", &["start", "--no-block", "trilith-coordinator.service"])?;
        let mut said = None;
        wait_until("the node in its new place", SOON, || {
            // What was done, but not seen to be done in time, is refused the next time.
            said = a.output("trilith", &["node", "replace", "c"]).ok();
            generation().is_ok_and(|now| now > before)
        })
        .with_context(|| format!("{said:?}"))?;
        agreed(lab)?;
        // Whatever operators ask of a node that has the set's state.
        a.run("trilith", &["upgrade", "history"])?;
        c.run("trilith", &["node", "reset", "--yes"])?;
        let marker = c.path("/var/lib/trilith/reset")?;
        std::fs::remove_file(&marker).with_context(|| format!("no {}", marker.display()))
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn a_node_whose_disk_is_full_still_decides_with_the_others() -> Result<()> {
    with_lab(|lab| {
        agreed(lab)?;
        let c = lab.node("c")?;
        move_raft(c, &["mount", "-t", "tmpfs", "-o", "size=40m,mode=700", "raft", RAFT])?;
        let seen = full_disk(lab, c);
        move_raft(c, &["umount", RAFT])?;
        seen?;
        agreed(lab)
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn a_node_that_was_given_another_secret_is_told_of_as_such() -> Result<()> {
    with_lab(|lab| {
        agreed(lab)?;
        let (a, c) = (lab.node("a")?, lab.node("c")?);
        let told = || -> Result<bool> {
            let status = a.run("trilith", &["status", "--json"])?;
            Ok(status.contains("what comes from node c's address is sealed with another secret"))
        };
        ensure!(!told()?, "an alarm, although all have the same secret");
        let file = c.path("/var/lib/trilith/secret")?;
        let secret = fs::read_to_string(&file)?;
        fs::write(&file, secret.chars().rev().collect::<String>())?;
        c.run("systemctl", &["restart", "trilith.service"])?;
        let seen = wait_until("an alarm that says it", SOON, || told().unwrap_or(false));
        fs::write(&file, secret)?;
        c.run("systemctl", &["restart", "trilith.service"])?;
        seen?;
        settle(lab)?;
        ensure!(!told()?, "an alarm, although the node is heard");
        Ok(())
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn a_certificate_is_served_and_renewed_by_a_haproxy_that_may_not_read_the_state() -> Result<()> {
    with_lab(|lab| {
        agreed(lab)?;
        let everywhere = |name: &str| {
            let pem = certificate(name)?;
            lab.nodes.iter().try_for_each(|node| feed(node, &["service", "certificate", "secure", "-"], &pem))
        };
        // Whoever owns the VIP, its HAProxy shows it.
        let shown_by_all = |name: &str| {
            NODES.into_iter().try_for_each(|node| {
                order(lab.node(node)?, &["vip", "move", "public", node])?;
                wait_until("the certificate", SOON, || subject(lab).is_ok_and(|said| said.contains(name))).map(drop)
            })
        };
        everywhere("first")?;
        let text = format!("{DOCUMENT}{SECURE}");
        let change = Change { what: "a service with TLS", text, confirm_within_s: None, fate: Fate::Kept };
        let (past, _) = carry_out(lab, lab.node("a")?, &change)?;
        ensure!(past.outcome == Outcome::Done, "{}: {}", change.what, past.outcome);
        shown_by_all("first")?;
        let established = EstablishedOptions {
            netns: Some(lab.client.path()),
            connections: 50,
            interval: PING_EVERY,
            dead_after: PATIENCE,
            ..EstablishedOptions::new(SocketAddr::new(VIP.into(), 9000))
        };
        let established = Established::start(established)?;
        everywhere("second")?;
        shown_by_all("second")?;
        let broken = established.finish().broken_at;
        ensure!(broken.is_empty(), "broken by another certificate: {broken:?}");

        // A HAProxy that cannot load its configuration would not start with it either: no node is to restart before that is mended.
        let b = lab.node("b")?;
        let told = || -> Result<bool> {
            let plan = lab.node("a")?.output("trilith", &["upgrade", "start", "9.9.9", "--dry-run"])?;
            Ok(String::from_utf8_lossy(&plan.stderr).contains(
                "on node b: its HAProxy does not run what the document asks for: the certificate of service secure",
            ))
        };
        ensure!(!told()?, "an objection, although all is well");
        fs::remove_file(b.path(CERTIFICATE_FILE)?)?;
        b.run("systemctl", &["restart", "trilith.service"])?;
        wait_until("an objection that names it", SOON, || told().unwrap_or(false))?;
        everywhere("third")?;
        wait_until("no objection", SOON, || told().is_ok_and(|told| !told)).map(drop)
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn a_document_that_one_node_s_haproxy_cannot_load_is_taken_back_everywhere_and_not_noticed() -> Result<()> {
    with_lab(|lab| {
        agreed(lab)?;
        let a = lab.node("a")?;
        let pem = certificate("scarce")?;
        for node in [a, lab.node("c")?] {
            feed(node, &["service", "certificate", "scarce", "-"], &pem)?;
        }
        let good = fs::read_to_string(a.path(DOCUMENT_FILE)?)?;
        let text = format!("{good}{}", SECURE.replace("secure", "scarce").replace("443", "8443"));
        let why = "service scarce";
        let what = "a certificate that node b lacks";
        let change = Change { what, text, confirm_within_s: None, fate: Fate::Reverted(why) };
        let clients = Clients::on(lab, VIP.into())?;
        let (past, _) = carry_out(lab, a, &change)?;
        clients.noticed_nothing()?;
        let outcome = &past.outcome;
        ensure!(matches!(outcome, Outcome::Back { reason } if reason.contains(why)), "{what}: {outcome}");
        for node in &lab.nodes {
            let text = fs::read_to_string(node.path(DOCUMENT_FILE)?)?;
            ensure!(text == good, "node {} has another document than the set", node.name());
        }
        // Nothing is left for the next reboot to find.
        let status = |node: &Node| full_status(node);
        let well = |node: &Node| status(node).is_ok_and(|status| status.haproxy_problem.is_none());
        wait_until("HAProxies that run what is in force", SOON, || lab.nodes.iter().all(well)).map(drop)
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn a_mistaken_command_says_what_is_wrong_by_its_exit_code() -> Result<()> {
    with_lab(|lab| {
        let node = lab.node("a")?;
        for (args, code, word) in [
            (&["vip", "move", "privat", "b"][..], 1, "privat"),
            (&["vip", "move", "public", "d"], 1, "d"),
            (&["node", "drain", "d"], 1, "d"),
            (&["vip", "move", "public"], 2, "NODE"),
            (&["status", "--colour"], 2, "--colour"),
            (&["--socket", "/run/none", "status"], 4, "/run/none"),
        ] {
            says(node, args, code, word)?;
        }
        for name in ["b", "c"] {
            order(node, &["node", "drain", name])?;
        }
        says(node, &["node", "drain", "a"], 1, "a")?;
        for name in ["b", "c"] {
            order(node, &["node", "undrain", name])?;
        }
        settle(lab).map(drop)
    })
}

#[test]
#[ignore = "needs root and the root tree"]
fn config_check_names_the_line_that_is_wrong() -> Result<()> {
    with_lab(|lab| {
        let node = lab.node("a")?;
        node.run("trilith", &["config", "check", "/var/lib/trilith/set.toml"])?;
        let good = std::fs::read_to_string(node.path("/var/lib/trilith/set.toml")?)?;
        for (was, is, word) in [
            ("name = \"edge-1\"", "name = \"edge-1\"\ncolour = 7", "colour"),
            ("port = 9000", "port = \"9000\"", "port"),
            ("10.77.0.10/24", "10.78.0.10/24", "10.78.0.10"),
        ] {
            ensure!(good.contains(was), "the laboratory's document has no {was:?} any more");
            let bad = good.replacen(was, is, 1);
            std::fs::write(node.path("/tmp/bad.toml")?, &bad)?;
            let wrong = bad.lines().position(|line| line.contains(is.lines().last().unwrap_or(is)));
            let line = wrong.context("the mistake is in the document")? + 1;
            says(node, &["config", "check", "/tmp/bad.toml"], 3, word)?;
            says(node, &["config", "check", "/tmp/bad.toml"], 3, &format!("/tmp/bad.toml:{line}:"))?;
        }
        says(node, &["config", "check", "/tmp/none.toml"], 3, "/tmp/none.toml")
    })
}

/// Clients of one VIP that should notice nothing.
struct Clients {
    established: Established,
    requests: Requests,
    arp: ArpWatch,
}

impl Clients {
    fn on(lab: &Lab, vip: IpAddr) -> Result<Clients> {
        let netns = || Some(lab.client.path());
        let established = EstablishedOptions {
            netns: netns(),
            connections: 200,
            interval: PING_EVERY,
            dead_after: PATIENCE,
            ..EstablishedOptions::new(SocketAddr::new(vip, 9000))
        };
        Ok(Clients {
            established: Established::start(established)?,
            requests: Requests::on(lab, vip)?,
            arp: ArpWatch::start(ArpWatchOptions { netns: netns(), ..ArpWatchOptions::new("eth0", vip) })?,
        })
    }

    fn noticed_nothing(self) -> Result<()> {
        // Two may answer for a moment, or none; not for longer.
        wait_until("one node that answers for the VIP", SOON, || self.arp.live().owners.len() == 1)?;
        let established = self.established.finish();
        ensure!(established.broken == 0, "broken: {:?}", established.broken_at);
        self.requests.noticed_nothing()
    }
}

/// HTTP clients of one VIP that should notice nothing: one connection a request, and kept ones.
struct Requests {
    steady: Steady,
    kept: KeepAlive,
}

impl Requests {
    fn on(lab: &Lab, vip: IpAddr) -> Result<Requests> {
        let (netns, http) = (|| Some(lab.client.path()), SocketAddr::new(vip, 80));
        let steady = SteadyOptions { netns: netns(), rate: NEW_PER_S, timeout: PATIENCE, ..SteadyOptions::new(http) };
        let kept =
            KeepAliveOptions { netns: netns(), connections: 20, timeout: PATIENCE, ..KeepAliveOptions::new(http) };
        Ok(Requests { steady: Steady::start(steady)?, kept: KeepAlive::start(kept)? })
    }

    fn noticed_nothing(self) -> Result<()> {
        let (steady, kept) = (self.steady.finish(), self.kept.finish());
        ensure!(steady.attempts > 0 && steady.ok == steady.attempts, "new connections: {:?}", steady.failures);
        let lost = kept.failed + kept.broken + kept.connect_failures;
        ensure!(kept.requests > 0 && lost == 0, "kept connections: {kept:?}");
        Ok(())
    }
}

fn planned_moves(lab: &Lab, name: &str, vip: IpAddr) -> Result<()> {
    at_home(lab, "a")?;
    let clients = Clients::on(lab, vip)?;
    let index = VIPS.iter().position(|vip| *vip == name).context("a VIP of the set")?;
    let mut again = 0;
    for turn in 0..6 {
        let (by, to) = (NODES[turn % 2], NODES[(turn + 1) % NODES.len()]);
        let moved_ns = now_ns();
        let moves = || order(lab.node(by)?, &["vip", "move", name, to]);
        let moved = |patience| {
            wait_until("the VIP on its new owner alone", patience, || holders(lab, index).is_ok_and(|all| all == [to]))
        };
        moves()?;
        if moved(SOON / 4).is_err() {
            // A lease that was lost meanwhile took it elsewhere.
            again += 1;
            moves()?;
            moved(SOON)?;
        }
        // The second half of the moves follow each other faster than anything settles.
        if turn < 3 {
            wait_served(&clients.requests.steady, moved_ns)?;
        }
    }
    ensure!(again <= 1, "{again} of six moves did not last");
    settle(lab)?;
    clients.noticed_nothing()
}

/// Does something to the owner of the VIPs and undoes it, with connections on all nodes. Those of other nodes live on,
/// the VIP is served again, and in the end there is one owner.
fn fault(lab: &Lab, owner: &'static str, deed: impl FnOnce(&Node) -> Result<()>) -> Result<()> {
    at_home(lab, owner)?;
    let others = NODES.into_iter().filter(|name| *name != owner);
    let flows = Flows::on(lab, &others.chain([owner]).collect::<Vec<_>>(), FLOWS_EACH, PING_EVERY)?;
    let netns = || Some(lab.client.path());
    let steady =
        SteadyOptions { netns: netns(), rate: NEW_PER_S, timeout: PATIENCE, ..SteadyOptions::new((VIP, 80).into()) };
    let steady = Steady::start(steady)?;
    wait_served(&steady, now_ns())?;
    let from_ns = now_ns();
    deed(lab.node(owner)?)?;
    settle(lab)?;
    let healed_ns = now_ns();
    wait_served(&steady, healed_ns)?;
    // A machine that stands still for longer than a lease ends the lease.
    until("a second in which just one node answers for the VIP", SOON, || {
        let arp = ArpWatch::start(ArpWatchOptions { netns: netns(), ..ArpWatchOptions::new("eth0", VIP.into()) })?;
        wait_served(&steady, now_ns())?;
        let arp = arp.finish();
        ensure!(arp.owners_max == 1 && arp.unanswered == 0, "answers for the VIP: {:?}", arp.owners);
        Ok(())
    })?;
    let fate = flows.finish()?;
    let spared = fate.breaks(|carrier| carrier.front != owner && carrier.back != owner);
    ensure!(
        spared.is_empty(),
        "{} connections broke that {owner} had no part in: {:?}",
        spared.len(),
        spared
            .iter()
            .map(|it| (it.at_ns.saturating_sub(from_ns) / 1_000_000, it.failure, fate.carrier(it.local_port)))
            .collect::<Vec<_>>()
    );
    let after = steady.report(Window::new(healed_ns, now_ns()));
    ensure!(after.ok == after.attempts, "new connections after all is healed: {:?}", after.failures);
    let gap_ms = steady.finish().longest_gap_ms;
    ensure!(gap_ms < SOON.as_millis() as f64, "nobody could connect for {gap_ms} ms");
    Ok(())
}

fn full_status(node: &Node) -> Result<Status> {
    Ok(serde_json::from_str(&node.run("trilith", &["status", "--json"])?)?)
}

/// Gives what the coordinator keeps another disk.
fn move_raft(node: &Node, command: &[&str]) -> Result<()> {
    let aside = "/run/raft";
    node.run("systemctl", &["stop", "trilith-coordinator.service"])?;
    node.run("cp", &["--archive", RAFT, aside])?;
    node.run(command[0], &command[1..])?;
    node.run("find", &[RAFT, "-mindepth", "1", "-delete"])?;
    node.run("cp", &["--archive", &format!("{aside}/."), RAFT])?;
    node.run("rm", &["--recursive", aside])?;
    node.run("systemctl", &["start", "--no-block", "trilith-coordinator.service"]).map(drop)
}

/// Fills the small disk of what a node keeps, has the set decide until that needs the room that is held back, and makes room again.
fn full_disk(lab: &Lab, node: &Node) -> Result<()> {
    let file = |name: &str| Ok::<_, anyhow::Error>(node.path(RAFT)?.join(name));
    let held = || Ok::<_, anyhow::Error>(fs::metadata(file("reserve")?)?.blocks());
    let warned = || shown(node).is_ok_and(|shown| shown.alarms.iter().any(|alarm| alarm.contains("nearly full")));
    wait_until("room that is held back", SOON, || held().is_ok_and(|blocks| blocks > 0))?;
    agreed(lab)?;
    ensure!(!warned(), "an alarm, although there is room");
    let mut filler = File::create(file("filler")?)?;
    let full = loop {
        if let Err(error) = filler.write_all(&[0; 4096]) {
            break error;
        }
    };
    ensure!(full.kind() == ErrorKind::StorageFull, "{full}");
    // Changes of a deadline, which are taken without delay.
    for number in [0, 4, 7, 10] {
        let change = Change::of(number, DOCUMENT);
        let (past, _) = carry_out(lab, lab.node("a")?, &change)?;
        ensure!(past.outcome == Outcome::Done, "{}: {}", change.what, past.outcome);
        ensure!(fs::read_to_string(node.path(DOCUMENT_FILE)?)? == change.text, "a full node without {}", change.what);
        if held()? == 0 {
            break;
        }
    }
    ensure!(held()? == 0, "the room that is held back was not needed");
    wait_until("an alarm", SOON, warned)?;
    drop(filler);
    fs::remove_file(file("filler")?)?;
    wait_until("room that is held back again, and no alarm", SOON, || {
        held().is_ok_and(|blocks| blocks > 0) && shown(node).is_ok_and(|shown| shown.alarms.is_empty())
    })
    .map(drop)
}

/// A certificate of a day, with its key.
fn certificate(name: &str) -> Result<String> {
    let subject = format!("/CN={name}");
    let args = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", &subject];
    let made = Command::new("openssl").args(args).args(["-keyout", "-", "-out", "-"]).output().context("openssl")?;
    ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    Ok(String::from_utf8(made.stdout)?)
}

/// Whose certificate the VIP shows.
fn subject(lab: &Lab) -> Result<String> {
    let line = format!("openssl s_client -connect {VIP}:443 < /dev/null 2> /dev/null | openssl x509 -noout -subject");
    lab.client.run("sh", &["-c", &line])
}

/// Has a command done, again if it was not done in time.
fn order(node: &Node, args: &[&str]) -> Result<()> {
    until(&args.join(" "), SOON, || node.run("trilith", args).map(drop)).map(drop)
}

/// Waits for a second's worth of good new connections begun after that instant.
fn wait_served(steady: &Steady, from_ns: u64) -> Result<()> {
    let good = || steady.report(Window::new(from_ns, now_ns())).ok >= u64::from(NEW_PER_S);
    wait_until("new connections", SOON, good).map(drop)
}

/// Whether the command ends with that code, and names that word where a user looks for it.
fn says(node: &Node, args: &[&str], code: i32, word: &str) -> Result<()> {
    let output = node.output("trilith", args)?;
    let error = String::from_utf8_lossy(&output.stderr);
    let line = args.join(" ");
    ensure!(output.status.code() == Some(code), "trilith {line}: {}, not {code}: {error}", output.status);
    ensure!(error.contains(word), "trilith {line} does not name {word}: {error}");
    Ok(())
}

/// What the coordinator keeps.
const RAFT: &str = "/var/lib/trilith/raft";
/// A service with TLS, for the end of the document.
const SECURE: &str = "
[[service]]
name = \"secure\"
vip = \"public\"
port = 443
mode = \"http\"
backend_port = 8080
health = \"GET /healthz\"
unit = \"lab-service.service\"
tls_certificate = \"/var/lib/trilith/files/tls/secure.pem\"
";
const CERTIFICATE_FILE: &str = "/var/lib/trilith/files/tls/secure.pem";
const NEW_PER_S: u32 = 100;
const FLOWS_EACH: usize = 50;
const PING_EVERY: Duration = Duration::from_millis(200);
/// For whatever ends by itself in well under a second, on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// How long an answer takes that a node does not live to give, in milliseconds.
const SLOW_MS: u32 = 2_000;
/// Than the 10 s of haproxy.service, `TimeoutStopSec`. A connection that is kept gets one answer more after the request to end.
const LONGER_THAN_A_STOP: Duration = Duration::from_secs(12);
/// Each takes a few seconds.
const ATTACKS: Duration = Duration::from_secs(120);
/// A lost SYN is sent again after 1 s and 3 s: what is lost is slow, what fails was refused.
const PATIENCE: Duration = Duration::from_secs(10);
