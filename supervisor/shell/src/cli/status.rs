//! `trilith status` for a human: the verdict first, then what leads to it. Made for 80 columns at 3 a.m.

use trilith_core::status::{Flows, NodeStatus, Status, VipStatus};

use super::paint::{Line, Table, Tone, Word, count, cut, wrap};

/// The whole view, in lines of at most `width` characters.
pub fn view(status: &Status, width: usize) -> Vec<Line> {
    let mut lines = summary(status, width);
    section(&mut lines, facts(status, width));
    if let Some(flows) = &status.flows {
        section(&mut lines, backends(flows, width));
    }
    section(&mut lines, decisions(status, width, SHOWN_DECISIONS));
    lines
}

/// The verdict, the VIPs and the nodes: what an admin must know first.
pub fn summary(status: &Status, width: usize) -> Vec<Line> {
    let mut lines = verdict(status, width);
    section(&mut lines, vips(&status.vips, &status.node, width));
    section(&mut lines, nodes(&status.nodes, &status.node, width));
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
pub fn verdict(status: &Status, width: usize) -> Vec<Line> {
    let fit = status.nodes.iter().filter(|node| node.fitness == "fit" && !node.drained).count();
    let fit = format!("{fit} of {} nodes fit", status.nodes.len());
    let all_fit = status.nodes.iter().all(|node| node.fitness == "fit" && !node.drained);
    let all_owned = status.vips.iter().all(|vip| vip.owner.is_some());
    let (word, tone): (String, Tone) = match status.alarms.first() {
        Some(worst) => (worst.clone(), Tone::Bad),
        None if !all_owned => ("a VIP has no owner".to_owned(), Tone::Bad),
        None if !all_fit => ("serving, with nodes out of service".to_owned(), Tone::Warn),
        None => ("healthy".to_owned(), Tone::Good),
    };
    let mut lines = Vec::new();
    let text = format!("{word} — {fit}");
    for (place, part) in wrap(&text, width.saturating_sub(count(&status.set) + 2).max(20)).iter().enumerate() {
        let head = match place {
            0 => Word::toned(Tone::Bold, format!("{}: ", status.set)),
            _ => Word::new(" ".repeat(count(&status.set) + 2)),
        };
        lines.push(vec![head, Word::toned(tone, part)]);
    }
    for alarm in status.alarms.iter().skip(1) {
        for (place, part) in wrap(alarm, width - 4).iter().enumerate() {
            lines.push(vec![Word::new(if place == 0 { "  ! " } else { "    " }), Word::toned(Tone::Bad, part)]);
        }
    }
    let seen = format!(
        "as node {} sees it: version {}, configuration {}, up {}",
        status.node,
        status.version,
        status.fingerprint,
        span(status.uptime_ms)
    );
    lines.push(vec![Word::toned(Tone::Dim, cut(&seen, width))]);
    lines
}

fn vips(vips: &[VipStatus], here: &str, width: usize) -> Vec<Line> {
    let mut table = Table::new(&["VIP", "ADDRESS", "OWNER", "EPOCH", "LEASE LEFT"]);
    for vip in vips {
        let owner = match &vip.owner {
            None => Word::toned(Tone::Bad, "nobody"),
            Some(owner) if vip.lone => Word::toned(Tone::Warn, format!("{owner} (alone)")),
            Some(owner) if owner == here => Word::toned(Tone::Good, format!("{owner} (here)")),
            Some(owner) => Word::toned(Tone::Good, owner.clone()),
        };
        let lease = vip.lease_left_ms.map(|ms| format!("{ms} ms")).unwrap_or_default();
        let remark = (!vip.why.is_empty()).then(|| Word::toned(Tone::Dim, vip.why.clone()));
        let epoch = vip.epoch.to_string();
        let cells = vec![
            Word::toned(Tone::Bold, vip.name.clone()),
            Word::new(vip.address.clone()),
            owner,
            Word::new(epoch),
            Word::new(lease),
        ];
        table.row(cells, remark);
    }
    table.lines(width)
}

fn nodes(nodes: &[NodeStatus], here: &str, width: usize) -> Vec<Line> {
    let mut table = Table::new(&["NODE", "ADDRESS", "FITNESS", "HEARD", "RING", "ZONE", "VERSION"]);
    for node in nodes {
        let fitness = match node.fitness.as_str() {
            _ if node.drained => Word::toned(Tone::Warn, "drained"),
            "fit" => Word::toned(Tone::Good, "fit"),
            "unfit" => Word::toned(Tone::Bad, "unfit"),
            other => Word::toned(Tone::Warn, other),
        };
        let heard = match (node.heard, node.silent_ms) {
            _ if node.name == here => Word::toned(Tone::Dim, "this node"),
            (true, Some(ms)) => Word::new(format!("{} ago", span(ms))),
            (true, None) => Word::new("yes"),
            (false, Some(ms)) => Word::toned(Tone::Bad, format!("silent {}", span(ms))),
            (false, None) => Word::toned(Tone::Bad, "never"),
        };
        let ring = if node.in_ring { Word::new("in") } else { Word::toned(Tone::Warn, "out") };
        let mut remarks = Vec::new();
        if let Some(reason) = &node.reason {
            remarks.push(reason.clone());
        }
        if node.heard && !node.hears_us && node.name != here {
            remarks.push(format!("does not hear {here}: the network is cut in one direction"));
        }
        let remark = (!remarks.is_empty()).then(|| Word::toned(Tone::Warn, remarks.join("; ")));
        let cells = vec![
            Word::toned(Tone::Bold, node.name.clone()),
            Word::new(node.address.clone()),
            fitness,
            heard,
            ring,
            Word::new(node.zone.clone().unwrap_or_default()),
            Word::toned(Tone::Dim, node.version.clone().unwrap_or_default()),
        ];
        table.row(cells, remark);
    }
    table.lines(width)
}

fn facts(status: &Status, width: usize) -> Vec<Line> {
    let timers = &status.timers;
    let relay = match (&status.relay.loaded, &status.relay.next) {
        (false, _) => "the rules are not in the kernel".to_owned(),
        (true, None) => "no other node to pass packets to".to_owned(),
        (true, Some(next)) => format!("unknown flows go to {next}, at most {} hops", status.relay.last_hop),
    };
    let relay = match status.relay.tunnels.join(", ") {
        none if none.is_empty() => relay,
        nodes => {
            format!("{relay}; to {nodes} through a tunnel, because the network drops packets with clients' addresses")
        }
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
            let head = format!("  {:<8}", if place == 0 { name } else { "" });
            lines.push(vec![Word::toned(Tone::Dim, head), Word::new(part)]);
        }
    }
    lines
}

/// One row a service, in the order in which HAProxy tells them; one word a server.
fn backends(flows: &Flows, width: usize) -> Vec<Line> {
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
        let tone = match up {
            0 => Tone::Bad,
            _ if up < servers.len() => Tone::Warn,
            _ => Tone::Plain,
        };
        table.row(vec![Word::toned(Tone::Bold, service), Word::toned(tone, words.join("   "))], None);
    }
    table.lines(width)
}

/// Decisions of the node that answers, newest first, at most `most` of them.
pub fn decisions(status: &Status, width: usize, most: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    for decision in status.decisions.iter().rev().take(most) {
        for (place, part) in wrap(&decision.text, width - 13).iter().enumerate() {
            let age = if place == 0 { span(decision.ago_ms) } else { String::new() };
            lines.push(vec![Word::toned(Tone::Dim, format!("  {age:>9}  ")), Word::new(part)]);
        }
    }
    if !lines.is_empty() {
        lines.insert(0, vec![Word::toned(Tone::Dim, "  DECISIONS OF THIS NODE, NEWEST FIRST")]);
    }
    lines
}

fn section(lines: &mut Vec<Line>, more: Vec<Line>) {
    if !more.is_empty() {
        lines.push(Line::new());
        lines.extend(more);
    }
}

/// More are in `--json` and in the journal.
const SHOWN_DECISIONS: usize = 10;

#[cfg(test)]
mod tests {
    use super::super::paint::Paint;
    use super::*;
    use crate::cli::testing::full;

    fn plain(lines: &[Line]) -> Vec<String> {
        lines.iter().map(|line| Paint::OFF.line(line)).collect()
    }

    /// `TRILITH_BLESS=1 cargo test -p trilith-shell` records the view anew; its diff is read as a review.
    fn must_look_like(recorded: &str, status: &Status) {
        let lines = plain(&view(status, 80));
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
            for line in plain(&view(&status, width)) {
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
