//! Services that do not answer, as this node's own HAProxy finds, as alarms of `status`.

use std::collections::BTreeSet;
use std::time::Duration;

use trilith_core::config::{ServiceId, Settings};
use trilith_core::status::{BackendStatus, Status};

use super::render::check_interval;

/// How long an instance has to be down, by HAProxy's count, before that is an alarm: a service starts in less…
const SILENT_AFTER: Duration = Duration::from_secs(10);
/// …and so many checks take longer than the few that make it up, in large and slow sets, too.
const SILENT_CHECKS: u32 = 4;

/// Adds an alarm for every service whose instance on this node does not answer; where no other node's does either, that comes before
/// all other alarms. A node that is drained has none to answer. `inactive`: services whose units are not active here.
pub fn add_alarms(status: &mut Status, settings: &Settings, inactive: &BTreeSet<ServiceId>) {
    let me = &status.node;
    let drained = status.nodes.iter().any(|node| node.name == *me && node.drained);
    let Some(flows) = status.flows.as_ref().filter(|_| !drained) else { return };
    let patience = SILENT_AFTER.max(check_interval(settings) * SILENT_CHECKS);
    let (mut everywhere, mut here) = (Vec::new(), Vec::new());
    for (id, service) in (0..).map(ServiceId).zip(&settings.services) {
        let name = &service.name;
        let instances = || flows.backends.iter().filter(|row| row.service == *name);
        let Some(own) = instances().find(|row| row.node == *me).filter(|row| is_down(row, patience)) else { continue };
        let unit = service.unit.as_ref().filter(|_| inactive.contains(&id));
        let why = match unit {
            Some(unit) => format!("{}; {unit} is not active", own.check),
            None => own.check.clone(),
        };
        match instances().any(|row| serves(row, patience)) {
            true => here.push(format!("service {name} does not answer on node {me}: {why}")),
            false => {
                everywhere.push(format!("service {name} answers on no node: clients are refused. On node {me}: {why}"));
            }
        }
    }
    status.alarms.splice(0..0, everywhere);
    status.alarms.extend(here);
}

fn is_down(row: &BackendStatus, patience: Duration) -> bool {
    row.state.starts_with("DOWN") && u128::from(row.since_ms) >= patience.as_millis()
}

/// Whether new connections go there, or may in a moment.
fn serves(row: &BackendStatus, patience: Duration) -> bool {
    let set_aside = row.state.starts_with("DRAIN") || row.state.starts_with("MAINT");
    !set_aside && !is_down(row, patience)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::status::verdict;
    use crate::cli::testing::full;
    use crate::haproxy::testing;

    /// The alarms of node a when the portal's instances on the nodes are in these states for so many seconds.
    fn alarms(instances: [(&str, u64); 3], change: impl Fn(&mut Status)) -> Vec<String> {
        let mut settings = testing::settings();
        settings.services[0].unit = Some("portal.service".to_owned());
        let mut status = full();
        let row = |(node, (state, seconds)): (&str, (&str, u64))| BackendStatus {
            service: "portal".to_owned(),
            node: node.to_owned(),
            state: state.to_owned(),
            since_ms: seconds * 1000,
            check: "Layer4 connection problem".to_owned(),
            current: 0,
        };
        status.flows.as_mut().unwrap().backends = ["a", "b", "c"].into_iter().zip(instances).map(row).collect();
        status.alarms = vec!["node b is not heard".to_owned()];
        change(&mut status);
        add_alarms(&mut status, &settings, &BTreeSet::from([ServiceId(1)]));
        status.alarms
    }

    const OTHER: &str = "node b is not heard";
    const HERE: &str = "service portal does not answer on node a: Layer4 connection problem";
    const NOWHERE: &str =
        "service portal answers on no node: clients are refused. On node a: Layer4 connection problem";

    #[test]
    fn a_service_that_answers_here_is_starting_or_is_set_aside_makes_no_alarm() {
        let well = [("UP", 0), ("UP 1/2", 99), ("no check", 99), ("DRAIN", 99), ("MAINT", 99)];
        for own in well.into_iter().chain([("DOWN", 0), ("DOWN 1/2", 9)]) {
            assert_eq!(alarms([own, ("DOWN", 99), ("DOWN", 99)], |_| ()), [OTHER], "{own:?}");
        }
    }

    #[test]
    fn a_service_that_is_down_here_is_told_after_the_others_when_another_node_serves_or_may_in_a_moment() {
        for other in [("UP", 0), ("UP 1/2", 99), ("DOWN", 9), ("no check", 99)] {
            for own in [("DOWN", 10), ("DOWN 1/2", 99)] {
                assert_eq!(alarms([own, ("MAINT", 99), other], |_| ()), [OTHER, HERE], "{own:?} {other:?}");
            }
        }
    }

    #[test]
    fn a_service_that_answers_nowhere_is_told_first() {
        for other in [("DOWN", 10), ("DOWN", 99), ("DRAIN", 99), ("MAINT", 99)] {
            assert_eq!(alarms([("DOWN", 10), other, ("DOWN", 99)], |_| ()), [NOWHERE, OTHER], "{other:?}");
        }
    }

    #[test]
    fn a_drained_node_and_one_whose_haproxy_does_not_tell_make_no_alarm() {
        let down = [("DOWN", 99); 3];
        assert_eq!(alarms(down, |status| status.nodes[0].drained = true), [OTHER]);
        assert_eq!(alarms(down, |status| status.flows = None), [OTHER]);
        assert_eq!(alarms(down, |status| status.nodes[1].drained = true), [NOWHERE, OTHER], "another one is");
        let other_services = |status: &mut Status| {
            status.flows.as_mut().unwrap().backends.iter_mut().for_each(|row| row.service = "before".to_owned());
        };
        assert_eq!(alarms(down, other_services), [OTHER], "HAProxy still runs the configuration of before");
    }

    #[test]
    fn a_unit_that_is_not_active_is_named() {
        let mut settings = testing::settings();
        settings.services[0].unit = Some("portal.service".to_owned());
        let mut status = full();
        let own = &mut status.flows.as_mut().unwrap().backends[0];
        (own.state, own.check) = ("DOWN".to_owned(), "Layer4 timeout".to_owned());
        add_alarms(&mut status, &settings, &BTreeSet::from([ServiceId(0)]));
        let told = "service portal does not answer on node a: Layer4 timeout; portal.service is not active";
        assert_eq!(status.alarms, [told]);
        let verdict = format!("{:?}", verdict(&status, 200));
        assert!(verdict.contains(told) && !verdict.contains("healthy"), "{verdict}");
    }

    #[test]
    fn a_large_set_whose_checks_are_rare_is_more_patient() {
        let mut settings = testing::settings();
        settings.services = vec![settings.services[0].clone(); 64];
        let mut status = full();
        status.flows.as_mut().unwrap().backends[0].state = "DOWN".to_owned();
        status.flows.as_mut().unwrap().backends[0].since_ms = 10_000;
        settings.set.lease.min *= 2;
        add_alarms(&mut status, &settings, &BTreeSet::new());
        assert_eq!(status.alarms, Vec::<String>::new());
    }
}
