//! What an operator can do to the machine and the set, and what it will bring about, told before it is done.

use trilith_core::status::Status;

use crate::cli::paint::{Line, Tone, Word};
use crate::control::{Power, Request, successors};

/// Something to be confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What: "reboot node a".
    pub title: String,
    /// What it will bring about, a paragraph each.
    pub effects: Vec<(Tone, String)>,
    /// What the supervisor is asked to do.
    pub request: Request,
}

impl Plan {
    /// Reboot this machine, or switch it off. Without a supervisor there is no status.
    pub fn power(deed: Power, status: Option<&Status>) -> Plan {
        let mut effects = Vec::new();
        match status {
            None => {
                effects.push((Tone::Warn, "The supervisor does not answer: nothing is handed over first.".to_owned()))
            }
            Some(status) => {
                effects.extend(handed_over(status, "until this node is back"));
                effects.push((Tone::Plain, "Connections that this node itself carries end.".to_owned()));
            }
        }
        if deed == Power::Poweroff {
            effects.push((Tone::Plain, "The machine stays off until the hypervisor starts it.".to_owned()));
        }
        let node = status.map_or("this machine".to_owned(), |status| format!("node {}", status.node));
        // What it costs has been said.
        Plan { title: format!("{deed} {node}"), effects, request: Request::Power { deed, node: None, force: true } }
    }

    /// Take this node out of service, or put it back.
    pub fn drain(status: &Status, drained: bool) -> Plan {
        let node = status.node.clone();
        if drained {
            if successors(status).is_empty() {
                let effect = "No other node is fit to take over, so the set will refuse.".to_owned();
                let request = Request::NodeDrain { node: node.clone() };
                return Plan { title: format!("drain node {node}"), effects: vec![(Tone::Bad, effect)], request };
            }
            let mut effects = handed_over(status, "while it is drained");
            effects.push((
                Tone::Plain,
                "No node sends new work to its services; what runs there may end. It stays so, also over reboots, until it \
                 is put back."
                    .to_owned(),
            ));
            return Plan { title: format!("drain node {node}"), effects, request: Request::NodeDrain { node } };
        }
        let effect = "It takes part again. VIPs stay where they are until they are moved, unless the set's document says otherwise.";
        let effects = vec![(Tone::Plain, effect.to_owned())];
        Plan { title: format!("put node {node} back into service"), effects, request: Request::NodeUndrain { node } }
    }

    /// Have the next boot take the first-boot answers anew.
    pub fn reset() -> Plan {
        let effects = [
            (
                Tone::Plain,
                "The next boot takes the answers that the disk, the guestinfo or the OVF properties of this machine give then. They \
                 replace this node's set, secret, names, accounts and network. Until then nothing changes.",
            ),
            (
                Tone::Plain,
                "With the same set name, secret, nodes and name of this node, the set's document in force and what the set has \
                 agreed on stay. With others, or none, the node leaves its set and what was agreed there, and founds or joins the \
                 new one as a new machine would. Its SSH host key, certificates and logs stay in any case.",
            ),
            (Tone::Warn, "Passwords are those of the new answers: without one in them nobody can log in here."),
            (Tone::Plain, "If there are no answers then, or wrong ones, those in force stay."),
        ];
        let effects = effects.map(|(tone, text)| (tone, text.to_owned())).to_vec();
        Plan { title: "take the first-boot answers anew".to_owned(), effects, request: Request::Reset }
    }

    /// Hand a VIP over.
    pub fn move_vip(status: &Status, vip: &str, node: &str) -> Plan {
        let owner = status.vips.iter().find(|known| known.name == vip).and_then(|vip| vip.owner.as_deref());
        let effect = match owner {
            Some(owner) => format!(
                "Node {owner} owns VIP {vip} now and hands it over to node {node}. No connection breaks: packets of those \
                 that node {owner} carries are relayed to it."
            ),
            None => format!("Nobody owns VIP {vip} now, so the set will refuse until somebody does."),
        };
        let request = Request::VipMove { vip: vip.to_owned(), node: node.to_owned() };
        Plan { title: format!("move VIP {vip} to node {node}"), effects: vec![(Tone::Plain, effect)], request }
    }
}

/// Nodes that a VIP can be moved to.
pub fn targets(status: &Status, vip: &str) -> Vec<String> {
    let owner = status.vips.iter().find(|known| known.name == vip).and_then(|vip| vip.owner.as_deref());
    let able = |name: &str| name == status.node || successors(status).contains(&name);
    let nodes = status.nodes.iter().filter(|node| !node.drained && node.fitness != "unfit" && able(&node.name));
    nodes.map(|node| node.name.clone()).filter(|name| Some(name.as_str()) != owner).collect()
}

/// What becomes of the VIPs of the node that goes.
fn handed_over(status: &Status, span: &str) -> Vec<(Tone, String)> {
    let node = &status.node;
    let owned = status.vips.iter().filter(|vip| vip.owner.as_ref() == Some(node)).map(|vip| vip.name.as_str());
    let owned: Vec<_> = owned.collect();
    let others = successors(status);
    if others.is_empty() {
        return vec![(Tone::Bad, format!("No other node is fit to serve: clients get no answer {span}."))];
    }
    let mut effects = Vec::new();
    match owned.len() {
        0 => effects.push((Tone::Good, format!("Node {node} owns no VIP."))),
        1 => effects.push((Tone::Plain, format!("Node {node} owns VIP {}: it is handed over first.", owned[0]))),
        _ => {
            effects.push((Tone::Plain, format!("Node {node} owns VIPs {}: they are handed over first.", join(&owned))))
        }
    }
    match others.len() {
        1 => effects.push((
            Tone::Warn,
            format!("Only node {} serves {span}: another failure would end the service.", others[0]),
        )),
        _ => effects.push((Tone::Good, format!("Nodes {} serve {span}.", join(&others)))),
    }
    effects
}

/// `a, b and c`
fn join(names: &[&str]) -> String {
    match names {
        [most @ .., last] if !most.is_empty() => format!("{} and {last}", most.join(", ")),
        _ => names.concat(),
    }
}

/// A plan as lines of at most `width` characters.
pub fn lines(plan: &Plan, width: usize) -> Vec<Line> {
    let mut lines = vec![vec![Word::toned(Tone::Bold, format!("About to {}.", plan.title))]];
    for (tone, effect) in &plan.effects {
        lines.push(Line::new());
        for part in crate::cli::paint::wrap(effect, width) {
            lines.push(vec![Word::toned(*tone, part)]);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::full;

    fn told(plan: &Plan) -> Vec<&str> {
        plan.effects.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn a_reboot_of_the_owner_tells_of_the_hand_over_and_of_who_serves_meanwhile() {
        let plan = Plan::power(Power::Reboot, Some(&full()));
        assert_eq!(plan.title, "reboot node a");
        assert_eq!(
            told(&plan)[..2],
            ["Node a owns VIP public: it is handed over first.", "Nodes b and c serve until this node is back."]
        );
        let mut status = full();
        status.nodes[2].fitness = "unfit".to_owned();
        assert_eq!(
            told(&Plan::drain(&status, true))[1],
            "Only node b serves while it is drained: another failure would end the service."
        );
        status.nodes[1].drained = true;
        let plan = Plan::power(Power::Poweroff, Some(&status));
        assert_eq!(
            plan.effects[0],
            (Tone::Bad, "No other node is fit to serve: clients get no answer until this node is back.".to_owned())
        );
    }

    #[test]
    fn a_vip_goes_only_where_it_can_and_is_not_yet() {
        let mut status = full();
        assert_eq!(targets(&status, "public"), ["b", "c"]);
        assert_eq!(targets(&status, "public6"), ["a", "c"]);
        status.nodes[0].drained = true;
        status.nodes[2].heard = false;
        assert_eq!(targets(&status, "public6"), Vec::<String>::new());
    }
}
