//! The faults, one a row. Node `a` owns the VIPs when each begins, unless the row says otherwise.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::said::{agreed, at_rest, status, until};
use super::DEADLINE;
use crate::lab::Lab;
use crate::node::Node;
use crate::switch::Direction;

/// One fault.
pub struct Row {
    /// What to call it, and what `--only` takes.
    pub name: &'static str,
    /// What is done to whom.
    pub what: &'static str,
    /// Nodes that carry connections; the last one owns the VIPs at the start.
    pub carriers: &'static [&'static str],
    /// Nodes whose HAProxy loses its connections, or cannot be reached: no other node could save what it carries.
    pub lost_fronts: &'static [&'static str],
    /// Nodes whose service is lost in the same way.
    pub lost_backs: &'static [&'static str],
    /// Nodes that must agree on the owner while the fault lasts: those that live and hear each other.
    pub witnesses: &'static [&'static str],
    /// The node that must not be the owner any more when they agree.
    pub not_owner: Option<&'static str>,
    /// What comes before anything is measured.
    pub before: fn(&Lab) -> Result<()>,
    /// The fault.
    pub inject: fn(&Lab) -> Result<()>,
    /// How long it lasts at least; beyond that it lasts until the witnesses agree and the VIP is served.
    pub lasts: Duration,
    /// What ends it.
    pub repair: fn(&Lab) -> Result<()>,
}

const NONE: &[&str] = &[];
const A: &[&str] = &["a"];
const OTHERS: &[&str] = &["b", "c"];
const ALL: &[&str] = &["a", "b", "c"];

/// Node `a` is out of reach from one moment to the next and comes back unharmed.
const ROW: Row = Row {
    name: "",
    what: "",
    carriers: &["b", "c", "a"],
    lost_fronts: A,
    lost_backs: A,
    witnesses: OTHERS,
    not_owner: Some("a"),
    before: nothing,
    inject: nothing,
    lasts: Duration::ZERO,
    repair: Lab::heal,
};

/// In the order of the issue.
pub const ROWS: [Row; 17] = [
    Row { name: "cut-off", what: "owner cut off", inject: |lab| lab.switch.cut("a", Direction::Both), ..ROW },
    Row {
        name: "killed",
        what: "owner's container killed",
        inject: |lab| lab.node("a")?.kill(),
        repair: |lab| boot(lab, A),
        ..ROW
    },
    Row {
        name: "supervisor-killed",
        what: "owner's supervisor killed",
        lost_fronts: NONE,
        lost_backs: NONE,
        witnesses: ALL,
        not_owner: None,
        inject: |lab| signal_unit(lab, SUPERVISOR, Signal::SIGKILL),
        ..ROW
    },
    Row {
        name: "supervisor-frozen",
        what: "owner's supervisor frozen",
        lost_fronts: NONE,
        lost_backs: NONE,
        inject: |lab| signal_unit(lab, SUPERVISOR, Signal::SIGSTOP),
        repair: |lab| signal_unit(lab, SUPERVISOR, Signal::SIGCONT),
        ..ROW
    },
    Row {
        name: "frozen-1s",
        what: "owner's container frozen for 1 s",
        inject: |lab| lab.node("a")?.freeze(),
        lasts: Duration::from_secs(1),
        ..ROW
    },
    Row {
        name: "frozen-5s",
        what: "owner's container frozen for 5 s",
        inject: |lab| lab.node("a")?.freeze(),
        lasts: Duration::from_secs(5),
        ..ROW
    },
    Row {
        name: "haproxy-killed",
        what: "owner's HAProxy killed",
        lost_backs: NONE,
        witnesses: ALL,
        not_owner: None,
        inject: |lab| signal_unit(lab, HAPROXY, Signal::SIGKILL),
        repair: haproxy_runs,
        ..ROW
    },
    Row {
        name: "haproxy-hung",
        what: "owner's HAProxy hung",
        lost_backs: NONE,
        not_owner: Some("a"),
        inject: |lab| signal_unit(lab, HAPROXY, Signal::SIGSTOP),
        // The supervisor kills what hangs, and systemd starts it anew.
        repair: haproxy_runs,
        ..ROW
    },
    Row { name: "link-down", what: "owner's link down", inject: |lab| lab.switch.link("a", false), ..ROW },
    Row {
        name: "gateway-lost",
        what: "gateway and clients lost, for the owner only",
        lost_backs: NONE,
        witnesses: ALL,
        inject: |lab| lab.switch.cut_between("a", "client"),
        ..ROW
    },
    Row {
        name: "deaf",
        what: "one-way cut: the owner hears nobody",
        inject: |lab| lab.switch.cut("a", Direction::In),
        ..ROW
    },
    Row {
        name: "mute",
        what: "one-way cut: nobody hears the owner",
        inject: |lab| lab.switch.cut("a", Direction::Out),
        ..ROW
    },
    Row {
        name: "partition",
        what: "partition 2|1, the owner in the minority",
        // Clients and gateway reach both parts, and by way of the gateway the nodes still hear each other: the owner may stay.
        lost_fronts: NONE,
        lost_backs: NONE,
        witnesses: ALL,
        not_owner: None,
        lasts: Duration::from_secs(3),
        inject: |lab| lab.switch.partition(A, OTHERS),
        ..ROW
    },
    Row {
        name: "others-dead",
        what: "both others dead",
        lost_fronts: OTHERS,
        lost_backs: OTHERS,
        witnesses: A,
        not_owner: None,
        inject: |lab| {
            lab.node("b")?.kill()?;
            lab.node("c")?.kill()?;
            until("a lone survivor", DEADLINE, || {
                let said = status(lab.node("a")?)?;
                ensure!(said.vips.iter().all(|vip| vip.lone), "not every VIP has a lone survivor");
                Ok(())
            })
            .map(drop)
        },
        repair: |lab| boot(lab, OTHERS),
        ..ROW
    },
    Row {
        name: "owner-and-one-dead",
        what: "the owner and another dead",
        lost_fronts: &["a", "b"],
        lost_backs: &["a", "b"],
        witnesses: &["c"],
        inject: |lab| {
            lab.node("a")?.kill()?;
            lab.node("b")?.kill()
        },
        repair: |lab| boot(lab, &["a", "b"]),
        ..ROW
    },
    Row {
        name: "all-started",
        what: "all three started at once",
        lost_fronts: ALL,
        lost_backs: ALL,
        witnesses: ALL,
        not_owner: None,
        inject: |lab| {
            lab.nodes.iter().try_for_each(Node::kill)?;
            boot(lab, ALL)
        },
        repair: nothing,
        ..ROW
    },
    Row {
        name: "returns",
        what: "a dead node returns",
        carriers: &["c", "b"],
        lost_backs: A,
        witnesses: ALL,
        not_owner: Some("a"),
        before: |lab| {
            lab.node("a")?.kill()?;
            let others = [lab.node("b")?, lab.node("c")?];
            until("an owner that lives", DEADLINE, || {
                ensure!(agreed(&others)?.iter().all(|owner| owner != "a"), "a is dead, and still the owner");
                Ok(())
            })
            .map(drop)
        },
        inject: |lab| boot(lab, A),
        repair: nothing,
        ..ROW
    },
];

fn nothing(_: &Lab) -> Result<()> {
    Ok(())
}

fn boot(lab: &Lab, names: &[&str]) -> Result<()> {
    names.iter().try_for_each(|name| lab.node(name)?.boot())?;
    names.iter().try_for_each(|name| lab.node(name)?.wait_ready().map(drop))
}

/// Signals every process of a unit of node `a`.
fn signal_unit(lab: &Lab, unit: &str, signal: Signal) -> Result<()> {
    for pid in lab.node("a")?.unit_pids(unit) {
        match kill(Pid::from_raw(pid), signal) {
            // It has ended meanwhile, which is as good.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits until HAProxy has been started anew and the whole set uses it.
fn haproxy_runs(lab: &Lab) -> Result<()> {
    until("a HAProxy that serves again", DEADLINE, || at_rest(lab).map(drop)).map(drop)
}

const SUPERVISOR: &str = "trilith.service";
const HAPROXY: &str = "haproxy.service";
