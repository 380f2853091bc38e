//! Decisions, reasons and answers in one calm line each, with the names of the document. Said of "this node".

use super::{Decision, Ordered, WhyClaim, WhyYield};
use crate::command::{Accepted, Refused};
use crate::config::Settings;
use crate::event::Request;
use crate::health::{Fitness, Reason};

/// A decision in one line, such as `owns VIP public (epoch 7)`.
pub fn describe(decision: &Decision, settings: &Settings) -> String {
    let node = |id| settings.node_name(id);
    let vip = |id| settings.vip_name(id);
    match decision {
        Decision::Claim { vip: id, epoch, why } => {
            let why = match *why {
                WhyClaim::Vacant => "nobody owns it".to_owned(),
                WhyClaim::Expired(owner) => format!("the lease of {} ran out", node(owner)),
                WhyClaim::Named(owner) => format!("{} named this node its successor", node(owner)),
                WhyClaim::Lone => {
                    "no other node is heard, the gateway answers, and nobody answers for the VIP".to_owned()
                }
            };
            format!("asks for VIP {} (epoch {epoch}): {why}", vip(*id))
        }
        Decision::Own { vip: id, epoch, lone: false } => format!("owns VIP {} (epoch {epoch})", vip(*id)),
        Decision::Own { vip: id, epoch, lone: true } => {
            format!("owns VIP {} (epoch {epoch}) as the lone survivor, without a majority", vip(*id))
        }
        Decision::Yield { vip: id, epoch, to, why } => {
            let to = to.map(|to| format!(" to {}", node(to))).unwrap_or_default();
            format!("gives up VIP {} (epoch {epoch}){to}: {}", vip(*id), describe_yield(*why, settings))
        }
        Decision::Fitness { from, to: Fitness::Fit } => format!("is fit (was {})", describe_fitness(*from, settings)),
        Decision::Fitness { from: _, to } => format!("is {}", describe_fitness(*to, settings)),
        Decision::PeerHeard { peer } => format!("hears {}", node(*peer)),
        Decision::PeerLost { peer } => format!("no longer hears {}", node(*peer)),
        Decision::Kernel { peer, alive: true } => {
            format!("the kernel of {} answers: it joins the relay ring", node(*peer))
        }
        Decision::Kernel { peer, alive: false } => {
            format!("the kernel of {} does not answer either: it leaves the relay ring", node(*peer))
        }
        Decision::GivenUp { peer } => {
            format!("{} is silent for longer than a machine stands still: what it carried is reset", node(*peer))
        }
        Decision::Conflict { vip: id, mac } => {
            format!("hears {} claim VIP {} too", describe_mac(*mac), vip(*id))
        }
        Decision::Lease { lease_ms, jitter_ms } => {
            format!("the lease is {lease_ms} ms now: heartbeats come up to {jitter_ms} ms late")
        }
        Decision::UnitRestart { why } => {
            format!("starts a unit anew: {}", describe_reason(*why, settings))
        }
        Decision::Failed { what } => format!("will try again: {what}"),
        Decision::Operator { node: id, what } => match what {
            Ordered::Move(moved) => {
                format!("an operator moves VIP {} to {}", vip(*moved), node(*id))
            }
            Ordered::Drain => format!("an operator takes {} out of service", node(*id)),
            Ordered::Undrain => format!("an operator puts {} back into service", node(*id)),
        },
        Decision::Gap { gap_ms } => {
            format!("did not run for {gap_ms} ms: confirms what it owned before it goes on")
        }
    }
}

/// A fitness and its reason, such as `unfit: haproxy.service is not active`.
pub fn describe_fitness(fitness: Fitness, settings: &Settings) -> String {
    match fitness {
        Fitness::Fit => "fit".to_owned(),
        Fitness::Degraded(reason) => format!("degraded: {}", describe_reason(reason, settings)),
        Fitness::Unfit(reason) => format!("unfit: {}", describe_reason(reason, settings)),
    }
}

/// Why a node is not fit.
pub fn describe_reason(reason: Reason, settings: &Settings) -> String {
    match reason {
        Reason::Starting => "the supervisor has only just started".to_owned(),
        Reason::LinkDown(id) => match settings.vips.get(usize::from(id.0)) {
            Some(vip) => format!("interface {} of VIP {} has no carrier", vip.interface, vip.name),
            None => "the interface of a VIP has no carrier".to_owned(),
        },
        Reason::HaproxyDown => "haproxy.service is not active".to_owned(),
        Reason::FrontSilent => "HAProxy does not answer through the VIP on lo".to_owned(),
        Reason::GatewayLost => "the default gateway does not answer".to_owned(),
        Reason::AddressRefused(id) => format!("the kernel refused the address of VIP {}", settings.vip_name(id)),
        Reason::RelayRefused => "the kernel refused the relay rules".to_owned(),
        Reason::Drained => "an operator has taken it out of service".to_owned(),
        Reason::Stopping => "its supervisor is about to end".to_owned(),
        Reason::Other(number) => format!("reason {number}, which only a newer version knows"),
    }
}

/// Why an operator's request is refused, and what would help.
pub fn describe_refused(refused: Refused, settings: &Settings) -> String {
    match refused {
        Refused::NotHeard(id) => {
            format!(
                "node {} is not heard; see trilith status, and the network between the nodes",
                settings.node_name(id)
            )
        }
        Refused::NotFit(id) => {
            format!("node {} is not fit to own a VIP; see its reason in trilith status", settings.node_name(id))
        }
        Refused::NoOwner(id) => {
            format!("nobody owns VIP {} just now; wait until trilith status shows an owner", settings.vip_name(id))
        }
        Refused::NoOtherFit => {
            "no other node is fit to take over; mend or undrain another node first (trilith status)".to_owned()
        }
        Refused::TimedOut => "it was not done in time; see trilith status for how things stand".to_owned(),
        Refused::Busy => "too many requests wait already; try again in a few seconds".to_owned(),
    }
}

/// What has come of an operator's request.
pub fn describe_accepted(accepted: Accepted, request: Request, settings: &Settings) -> String {
    let already = match accepted {
        Accepted::Done => "",
        Accepted::Already => " already",
    };
    match request {
        Request::Move { vip, to } => {
            format!("VIP {} is{already} on node {}", settings.vip_name(vip), settings.node_name(to))
        }
        Request::Drain { node, drained: true } => {
            format!("node {} is{already} out of service", settings.node_name(node))
        }
        Request::Drain { node, drained: false } => {
            format!("node {} is{already} in service", settings.node_name(node))
        }
    }
}

fn describe_yield(why: WhyYield, settings: &Settings) -> String {
    match why {
        WhyYield::Expired => "the majority's grants ran out".to_owned(),
        WhyYield::Superseded(id) => {
            format!("{} owns it with a higher epoch", settings.node_name(id))
        }
        WhyYield::Moved => "an operator moves it".to_owned(),
        WhyYield::Fitness(reason) => describe_reason(reason, settings),
        WhyYield::Rebalanced => "its preferred node has been fit for long enough".to_owned(),
        WhyYield::Rejoined(id) => format!("{} is heard again and has the better claim", settings.node_name(id)),
        WhyYield::Gap => "the supervisor had stopped for too long".to_owned(),
        WhyYield::Conflict => "as a lone survivor it heard somebody else claim it".to_owned(),
    }
}

/// Says a MAC address the usual way.
pub fn describe_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{NodeId, VipId, parse};

    const DOCUMENT: &str = include_str!("../../tests/config/good/full.toml");

    #[test]
    fn decisions_are_told_with_the_documents_names_and_reasons() {
        let settings = parse(DOCUMENT, "full.toml").unwrap();
        let told = |decision| describe(&decision, &settings);
        let (vip, epoch) = (VipId(0), 7);
        assert_eq!(
            told(Decision::Claim { vip, epoch, why: WhyClaim::Expired(NodeId(1)) }),
            "asks for VIP public (epoch 7): the lease of b ran out"
        );
        assert_eq!(told(Decision::Own { vip, epoch, lone: false }), "owns VIP public (epoch 7)");
        let why = WhyYield::Fitness(Reason::HaproxyDown);
        assert_eq!(
            told(Decision::Yield { vip, epoch, to: Some(NodeId(2)), why }),
            "gives up VIP public (epoch 7) to c: haproxy.service is not active"
        );
        let from = Fitness::Unfit(Reason::LinkDown(VipId(1)));
        assert_eq!(
            told(Decision::Fitness { from, to: Fitness::Fit }),
            "is fit (was unfit: interface eth0 of VIP public6 has no carrier)"
        );
        assert_eq!(
            told(Decision::Conflict { vip, mac: [2, 0, 0, 0xab, 0, 9] }),
            "hears 02:00:00:ab:00:09 claim VIP public too"
        );
        assert_eq!(
            told(Decision::Operator { node: NodeId(1), what: Ordered::Move(vip) }),
            "an operator moves VIP public to b"
        );
    }

    #[test]
    fn numbers_that_the_document_does_not_know_are_told_too() {
        let settings = parse(DOCUMENT, "full.toml").unwrap();
        assert_eq!(describe(&Decision::PeerLost { peer: NodeId(200) }, &settings), "no longer hears ?");
        assert_eq!(describe_reason(Reason::LinkDown(VipId(99)), &settings), "the interface of a VIP has no carrier");
    }

    #[test]
    fn answers_say_what_is_so_and_what_to_do() {
        let settings = parse(DOCUMENT, "full.toml").unwrap();
        let request = Request::Move { vip: VipId(0), to: NodeId(2) };
        assert_eq!(describe_accepted(Accepted::Done, request, &settings), "VIP public is on node c");
        assert_eq!(describe_accepted(Accepted::Already, request, &settings), "VIP public is already on node c");
        assert!(describe_refused(Refused::NotHeard(NodeId(1)), &settings).starts_with("node b is not heard; "));
    }
}
