//! What the set says of a node must be what the node's own network says: otherwise its peers would look for it in vain, two
//! machines would have one address, or a node would ask its own set whether the network is alive.

use std::net::IpAddr;

use trilith_core::config::{Node, Settings};

use crate::answers::Answers;
use crate::fields::Field;
use crate::finding::Findings;

/// Compares the fixed addresses of this machine with those of the set. What DHCP will give is not known here.
///
/// `None` when a fault was noted.
pub(super) fn check(
    settings: &Settings,
    node: &str,
    whole: &Field<'_>,
    answers: &Answers,
    findings: &mut Findings,
) -> Option<()> {
    let links = answers.network.iter().flat_map(|network| &network.links);
    let fixed: Vec<IpAddr> = links.clone().flat_map(|link| &link.addresses).map(|address| address.address).collect();
    if let Some(vip) = settings.vips.iter().find(|vip| fixed.contains(&vip.address)) {
        let wrong = format!("this machine's network has {}, which is VIP {}", vip.address, vip.name);
        whole.fault(findings, wrong, "give it the node's own address: the set places VIPs by itself");
        return None;
    }
    let own = settings.nodes.iter().find(|known| known.name == node)?;
    for other in settings.nodes.iter().filter(|other| other.name != node) {
        let theirs = [Some(other.address), other.address6.map(IpAddr::V6)];
        if let Some(address) = theirs.into_iter().flatten().find(|address| fixed.contains(address)) {
            let wrong =
                format!("this machine is node {node}, and its network has {address}, which is node {}'s", other.name);
            whole.fault(findings, wrong, format!("give it {}, or the other name", own.address));
            return None;
        }
    }
    for gateway in links.clone().flat_map(|link| &link.routes).filter_map(|route| route.via) {
        let node = |known: &Node| known.address == gateway || known.address6.is_some_and(|address| gateway == address);
        let of_node =
            settings.nodes.iter().find(|known| node(known)).map(|known| format!("node {}'s address", known.name));
        let of_vip = settings.vips.iter().find(|vip| vip.address == gateway).map(|vip| format!("VIP {}", vip.name));
        if let Some(whose) = of_node.or(of_vip) {
            whole.fault(findings, format!("the gateway {gateway} is {whose}"), "give the address of a router");
            return None;
        }
    }
    for address in [Some(own.address), own.address6.map(IpAddr::V6)].into_iter().flatten() {
        let leased = links
            .clone()
            .any(|link| if address.is_ipv4() { link.dhcp4 } else { link.dhcp6 || link.accept_ra != Some(false) });
        let alike = fixed.iter().any(|fixed| fixed.is_ipv4() == address.is_ipv4());
        if alike && !leased && !fixed.contains(&address) {
            let wrong = format!("node {node} has {address}, but this machine's network does not");
            whole.fault(findings, wrong, "give the same address in both places");
            return None;
        }
    }
    Some(())
}
