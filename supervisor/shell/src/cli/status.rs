//! `trilith status` for a human: the verdict first, then what leads to it. Made for 80 columns at 3 a.m.

use trilith_core::status::{Flows, NodeStatus, Status, VipStatus};

use super::paint::{Cell, Paint, Table, count, cut, wrap};

/// The whole view, in lines of at most `width` characters.
pub fn view(status: &Status, width: usize, paint: Paint) -> Vec<String> {
    let mut lines = verdict(status, width, paint);
    section(&mut lines, vips(&status.vips, &status.node, width, paint));
    section(&mut lines, nodes(&status.nodes, &status.node, width, paint));
    section(&mut lines, facts(status, width, paint));
    if let Some(flows) = &status.flows {
        section(&mut lines, backends(flows, width, paint));
    }
    section(&mut lines, decisions(status, width, paint));
    lines
}

/// A span of time in the unit that a human would choose.
pub fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..10_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        10_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} days", ms / 86_400_000),
    }
}

/// One line that says whether a hand is needed; then the alarms, if there are more.
fn verdict(status: &Status, width: usize, paint: Paint) -> Vec<String> {
    let fit = status.nodes.iter().filter(|node| node.fitness == "fit" && !node.drained).count();
    let fit = format!("{fit} of {} nodes fit", status.nodes.len());
    let all_fit = status.nodes.iter().all(|node| node.fitness == "fit" && !node.drained);
    let all_owned = status.vips.iter().all(|vip| vip.owner.is_some());
    let (word, colour): (String, fn(Paint, &str) -> String) = match status.alarms.first() {
        Some(worst) => (worst.clone(), Paint::bad),
        None if !all_owned => ("a VIP has no owner".to_owned(), Paint::bad),
        None if !all_fit => ("serving, with nodes out of service".to_owned(), Paint::warn),
        None => ("healthy".to_owned(), Paint::good),
    };
    let mut lines = Vec::new();
    let text = format!("{word} — {fit}");
    for (place, part) in wrap(&text, width.saturating_sub(count(&status.set) + 2).max(20)).iter().enumerate() {
        let head =
            if place == 0 { format!("{}: ", paint.bold(&status.set)) } else { " ".repeat(count(&status.set) + 2) };
        lines.push(format!("{head}{}", colour(paint, part)));
    }
    for alarm in status.alarms.iter().skip(1) {
        for (place, part) in wrap(alarm, width - 4).iter().enumerate() {
            lines.push(format!("{}{}", if place == 0 { "  ! " } else { "    " }, paint.bad(part)));
        }
    }
    let seen = format!(
        "as node {} sees it: version {}, configuration {}, up {}",
        status.node,
        status.version,
        status.fingerprint,
        span(status.uptime_ms)
    );
    lines.push(paint.dim(&cut(&seen, width)));
    lines
}

fn vips(vips: &[VipStatus], here: &str, width: usize, paint: Paint) -> Vec<String> {
    let mut table = Table::new(&["VIP", "ADDRESS", "OWNER", "EPOCH", "LEASE LEFT"]);
    for vip in vips {
        let owner = match &vip.owner {
            None => Cell::painted("nobody", Paint::bad),
            Some(owner) if vip.lone => Cell::painted(format!("{owner} (alone)"), Paint::warn),
            Some(owner) if owner == here => Cell::painted(format!("{owner} (here)"), Paint::good),
            Some(owner) => Cell::painted(owner.clone(), Paint::good),
        };
        let lease = vip.lease_left_ms.map(|ms| format!("{ms} ms")).unwrap_or_default();
        let remark = (!vip.why.is_empty()).then(|| Cell::painted(vip.why.clone(), Paint::dim));
        let epoch = vip.epoch.to_string();
        let cells = vec![
            Cell::painted(vip.name.clone(), Paint::bold),
            Cell::new(vip.address.clone()),
            owner,
            Cell::new(epoch),
            Cell::new(lease),
        ];
        table.row(cells, remark);
    }
    table.lines(width, paint)
}

fn nodes(nodes: &[NodeStatus], here: &str, width: usize, paint: Paint) -> Vec<String> {
    let mut table = Table::new(&["NODE", "ADDRESS", "FITNESS", "HEARD", "RING", "ZONE", "VERSION"]);
    for node in nodes {
        let fitness = match node.fitness.as_str() {
            _ if node.drained => Cell::painted("drained", Paint::warn),
            "fit" => Cell::painted("fit", Paint::good),
            "unfit" => Cell::painted("unfit", Paint::bad),
            other => Cell::painted(other, Paint::warn),
        };
        let heard = match (node.heard, node.silent_ms) {
            _ if node.name == here => Cell::painted("this node", Paint::dim),
            (true, Some(ms)) => Cell::new(format!("{} ago", span(ms))),
            (true, None) => Cell::new("yes"),
            (false, Some(ms)) => Cell::painted(format!("silent {}", span(ms)), Paint::bad),
            (false, None) => Cell::painted("never", Paint::bad),
        };
        let ring = if node.in_ring { Cell::new("in") } else { Cell::painted("out", Paint::warn) };
        let mut remarks = Vec::new();
        if let Some(reason) = &node.reason {
            remarks.push(reason.clone());
        }
        if node.heard && !node.hears_us && node.name != here {
            remarks.push(format!("does not hear {here}: the network is cut in one direction"));
        }
        let remark = (!remarks.is_empty()).then(|| Cell::painted(remarks.join("; "), Paint::warn));
        let cells = vec![
            Cell::painted(node.name.clone(), Paint::bold),
            Cell::new(node.address.clone()),
            fitness,
            heard,
            ring,
            Cell::new(node.zone.clone().unwrap_or_default()),
            Cell::painted(node.version.clone().unwrap_or_default(), Paint::dim),
        ];
        table.row(cells, remark);
    }
    table.lines(width, paint)
}

fn facts(status: &Status, width: usize, paint: Paint) -> Vec<String> {
    let timers = &status.timers;
    let relay = match (&status.relay.loaded, &status.relay.next) {
        (false, _) => "the rules are not in the kernel".to_owned(),
        (true, None) => "no other node to pass packets to".to_owned(),
        (true, Some(next)) => format!("unknown flows go to {next}, at most {} hops", status.relay.last_hop),
    };
    let mut facts = vec![
        (
            "Timers",
            format!(
                "heartbeat {} ms, lease {} ms (bounds {} to {}), jitter {} ms",
                timers.heartbeat_ms, timers.lease_ms, timers.lease_min_ms, timers.lease_max_ms, timers.jitter_ms
            ),
        ),
        ("Relay", relay),
    ];
    if let Some(flows) = &status.flows {
        let text = format!(
            "{} connections now, {} since HAProxy's start, {} packets relayed",
            flows.current, flows.total, flows.relayed
        );
        facts.push(("Flows", text));
    }
    if let Some(channel) = &status.channel {
        let detour =
            if channel.detoured > 0 { format!(", {} by way of the gateway", channel.detoured) } else { String::new() };
        let text = format!("{} sent{detour}, {} received, {} refused", channel.sent, channel.received, channel.refused);
        facts.push(("Peers", text));
    }
    let mut lines = Vec::new();
    for (name, text) in facts {
        for (place, part) in wrap(&text, width - 10).iter().enumerate() {
            let head = if place == 0 { paint.dim(name) + &" ".repeat(8 - name.len()) } else { " ".repeat(8) };
            lines.push(format!("  {head}{part}"));
        }
    }
    lines
}

/// One row a service, in the order in which HAProxy tells them; one word a server.
fn backends(flows: &Flows, width: usize, paint: Paint) -> Vec<String> {
    let mut services: Vec<&str> = flows.backends.iter().map(|server| server.service.as_str()).collect();
    services.dedup();
    if services.is_empty() {
        return Vec::new();
    }
    let mut table = Table::new(&["SERVICE", "INSTANCES: STATE AND CONNECTIONS"]);
    for service in services {
        let servers: Vec<_> = flows.backends.iter().filter(|server| server.service == service).collect();
        let words: Vec<String> = servers.iter().map(|it| format!("{} {} {}", it.node, it.state, it.current)).collect();
        let up = servers.iter().filter(|server| server.state.starts_with("UP")).count();
        let colour = match up {
            0 => Paint::bad,
            _ if up < servers.len() => Paint::warn,
            _ => |_, text: &str| text.to_owned(),
        };
        table.row(vec![Cell::painted(service, Paint::bold), Cell::painted(words.join("   "), colour)], None);
    }
    table.lines(width, paint)
}

fn decisions(status: &Status, width: usize, paint: Paint) -> Vec<String> {
    let mut lines = Vec::new();
    for decision in status.decisions.iter().rev().take(SHOWN_DECISIONS) {
        for (place, part) in wrap(&decision.text, width - 13).iter().enumerate() {
            let age = if place == 0 { span(decision.ago_ms) } else { String::new() };
            lines.push(format!("  {}  {part}", paint.dim(&format!("{age:>9}"))));
        }
    }
    if !lines.is_empty() {
        lines.insert(0, format!("  {}", paint.dim("DECISIONS OF THIS NODE, NEWEST FIRST")));
    }
    lines
}

fn section(lines: &mut Vec<String>, more: Vec<String>) {
    if !more.is_empty() {
        lines.push(String::new());
        lines.extend(more);
    }
}

/// More are in `--json` and in the journal.
const SHOWN_DECISIONS: usize = 10;

#[cfg(test)]
pub mod tests {
    use super::*;
    use trilith_core::status::{BackendStatus, Channel, DecisionStatus, Relay, Timers};

    /// A status in which every field says something.
    pub fn full() -> Status {
        let node = |name: &str, last: u8, silent_ms| NodeStatus {
            name: name.to_owned(),
            address: format!("10.77.0.{last}"),
            zone: Some(format!("host-{last}")),
            fitness: "fit".to_owned(),
            reason: None,
            drained: false,
            heard: true,
            hears_us: true,
            in_ring: true,
            silent_ms,
            version: Some("0.1.0".to_owned()),
            fingerprint: Some("4351b4ee".to_owned()),
        };
        let server = |service: &str, node: &str, current| BackendStatus {
            service: service.to_owned(),
            node: node.to_owned(),
            state: "UP".to_owned(),
            current,
        };
        Status {
            schema: 1,
            set: "edge-1".to_owned(),
            node: "a".to_owned(),
            version: "0.1.0".to_owned(),
            fingerprint: "4351b4ee".to_owned(),
            uptime_ms: 93_000_000,
            vips: vec![
                VipStatus {
                    name: "public".to_owned(),
                    address: "10.77.0.10/24".to_owned(),
                    owner: Some("a".to_owned()),
                    why: "granted by a, b and c".to_owned(),
                    epoch: 7,
                    lease_left_ms: Some(88),
                    lone: false,
                },
                VipStatus {
                    name: "public6".to_owned(),
                    address: "fd77::10/64".to_owned(),
                    owner: Some("b".to_owned()),
                    why: "b says so".to_owned(),
                    epoch: 3,
                    lease_left_ms: None,
                    lone: false,
                },
            ],
            nodes: vec![node("a", 11, None), node("b", 12, Some(12)), node("c", 13, Some(21))],
            timers: Timers { heartbeat_ms: 25, lease_ms: 100, lease_min_ms: 100, lease_max_ms: 500, jitter_ms: 3 },
            relay: Relay { loaded: true, next: Some("b".to_owned()), last_hop: 2 },
            alarms: Vec::new(),
            decisions: vec![
                DecisionStatus { ago_ms: 92_000_000, text: "hears b".to_owned() },
                DecisionStatus { ago_ms: 12_400, text: "owns VIP public (epoch 7)".to_owned() },
            ],
            flows: Some(Flows {
                current: 1203,
                total: 88_120,
                relayed: 412,
                backends: vec![server("portal", "a", 401), server("portal", "b", 400), server("echo", "a", 2)],
            }),
            channel: Some(Channel { sent: 91_204, detoured: 0, not_sent: 0, received: 91_198, refused: 0 }),
        }
    }

    /// `TRILITH_BLESS=1 cargo test -p trilith-shell` records the view anew; its diff is read as a review.
    fn must_look_like(recorded: &str, status: &Status) {
        let lines = view(status, 80, Paint::OFF);
        assert!(lines.iter().all(|line| count(line) <= 80 && !line.ends_with(' ')), "{lines:#?}");
        let shown = lines.join("\n") + "\n";
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/testdata").join(recorded);
        if std::env::var_os("TRILITH_BLESS").is_some() {
            std::fs::write(path, shown).unwrap();
        } else {
            assert_eq!(shown, std::fs::read_to_string(path).unwrap(), "\n{shown}");
        }
    }

    #[test]
    fn a_healthy_set_says_so_first_and_fits_into_80_columns() {
        must_look_like("status-healthy.txt", &full());
    }

    #[test]
    fn trouble_is_named_first_and_explained_where_it_is() {
        let mut status = full();
        status.alarms = vec![
            "nobody owns VIP public: no node is fit to hold it".to_owned(),
            "node b has another configuration (00000001): bring it into line with this node's".to_owned(),
        ];
        status.vips[0].owner = None;
        status.vips[0].lease_left_ms = None;
        status.vips[0].why = "no majority: only a is heard".to_owned();
        status.vips[1].lone = true;
        status.nodes[0].fitness = "unfit".to_owned();
        status.nodes[0].reason = Some("haproxy.service is not active".to_owned());
        status.nodes[1].hears_us = false;
        status.nodes[2].heard = false;
        status.nodes[2].in_ring = false;
        status.nodes[2].silent_ms = Some(754_000);
        status.nodes[2].fitness = "unknown".to_owned();
        status.flows = None;
        must_look_like("status-trouble.txt", &status);
    }

    #[test]
    fn the_longest_names_and_reasons_still_fit() {
        let mut status = full();
        let long = "n".repeat(63);
        for node in &mut status.nodes {
            node.name = long.clone();
            node.address = "fd77:1234:5678:9abc:def0:1234:5678:9abc".to_owned();
            node.zone = Some("z".repeat(64));
            node.reason = Some("because ".repeat(40));
        }
        for vip in &mut status.vips {
            vip.name = long.clone();
            vip.owner = Some(long.clone());
            vip.why = "w".repeat(300);
        }
        status.set = long.clone();
        status.node = long;
        status.alarms = vec!["alarm ".repeat(60), "x".repeat(200)];
        status.decisions[0].text = "decided ".repeat(50);
        for width in [60, 80, 200] {
            for line in view(&status, width, Paint::OFF) {
                assert!(count(&line) <= width.max(85), "{width}: {line}");
            }
        }
    }

    #[test]
    fn spans_are_told_in_the_unit_that_fits() {
        let told: Vec<String> = [0, 999, 1_250, 59_000, 600_000, 10_000_000, 400_000_000].map(span).to_vec();
        assert_eq!(told, ["0 ms", "999 ms", "1.2 s", "59 s", "10 min", "2 h", "4 days"]);
    }
}
