//! Invariant 3: once faults have healed, a fit node owns each VIP, it alone has the address, clients know it, the relay ring is
//! whole, and the nodes agree. With a fault that lasts: as far as that fault allows.

use trilith_core::command::BackendState;
use trilith_core::config::Lone;

use crate::check::Scene;
use crate::clients::{Clients, Neighbour, mac};
use crate::machine::HaproxyState;

/// Whether everything is as it should be in the end.
///
/// # Errors
/// What is not yet as it should be.
pub fn settled(scene: &Scene, clients: &Clients) -> Result<(), String> {
    for vip in 0..scene.vips() {
        one_vip(scene, clients, vip)?;
    }
    for node in (0..scene.nodes()).filter(|n| scene.machines[*n].runs()) {
        ring(scene, node)?;
        backends(scene, node)?;
    }
    Ok(())
}

fn one_vip(scene: &Scene, clients: &Clients, vip: usize) -> Result<(), String> {
    let nodes = 0..scene.nodes();
    let owners: Vec<usize> =
        nodes.clone().filter(|n| scene.machines[*n].runs() && scene.owns(*n, vip).is_some()).collect();
    let holders: Vec<usize> = nodes.clone().filter(|n| scene.machines[*n].answers_for(vip, scene.now)).collect();
    if holders != owners {
        return Err(format!("vip {vip} is owned by {owners:?} but on the interface of {holders:?}"));
    }
    let best = nodes.clone().filter(|n| can_win(scene, *n)).map(|n| level(scene, n)).min().unwrap_or(UNFIT);
    let survivors: Vec<usize> = nodes
        .clone()
        .filter(|n| scene.machines[*n].runs() && level(scene, *n) < UNFIT && !scene.conditions.gateway_lost[*n])
        .collect();
    let lone = best == UNFIT && scene.settings.set.lone == Lone::Serve;
    match owners[..] {
        [] if best < UNFIT => return Err(format!("vip {vip} has no owner")),
        [] if lone && survivors.len() == 1 && !scene.conditions.isolated[survivors[0]] => {
            return Err(format!("vip {vip} is not taken by the lone survivor {}", survivors[0]));
        }
        [] => return Ok(()),
        [owner] if best == UNFIT && !lone => return Err(format!("vip {vip} is owned by {owner} without a majority")),
        [owner] => {
            // A degraded owner stays when it hears no fit node, even if others hear one.
            let heard = |n: &usize| level(scene, owner) == UNFIT || scene.linked(owner, *n);
            let better =
                nodes.filter(|n| can_win(scene, *n) && heard(n)).find(|n| level(scene, *n) < level(scene, owner));
            if let Some(better) = better {
                return Err(format!(
                    "vip {vip} is owned by {owner}, of fitness level {}, not {better}",
                    level(scene, owner)
                ));
            }
            known(scene, clients, vip, owner)?;
        }
        // Two halves that cannot reach each other at all each serve whoever reaches them.
        [a, b] if lone && !scene.conditions.answers(a, b) && !scene.conditions.answers(b, a) => {}
        _ => return Err(format!("vip {vip} has many owners: {owners:?}")),
    }
    Ok(())
}

/// Clients and nodes know the owner.
fn known(scene: &Scene, clients: &Clients, vip: usize, owner: usize) -> Result<(), String> {
    if !scene.conditions.isolated[owner] {
        for (client, cache) in clients.cache.iter().enumerate() {
            if cache[vip] != Neighbour::Node(owner) {
                return Err(format!(
                    "client {client} takes {:?} for the owner of vip {vip}, which is {owner}",
                    cache[vip]
                ));
            }
        }
    }
    let name = &scene.settings.nodes[owner].name;
    for node in (0..scene.nodes()).filter(|n| scene.linked(*n, owner)) {
        let machine = &scene.machines[node];
        let Some(supervisor) = &machine.supervisor else { continue };
        let status = supervisor.node.status(machine.clock.read(scene.now));
        if status.vips[vip].owner.as_ref() != Some(name) {
            return Err(format!(
                "node {node} takes {:?} for the owner of vip {vip}, which is {name}",
                status.vips[vip].owner
            ));
        }
        if let Some(deaf) = status.nodes.iter().enumerate().position(|(n, s)| scene.linked(node, n) && !s.heard) {
            return Err(format!("node {node} does not hear node {deaf}"));
        }
    }
    Ok(())
}

/// The relay ring goes over all kernels that live. (Where frames pass in one direction only, nodes may differ.)
fn ring(scene: &Scene, node: usize) -> Result<(), String> {
    let count = scene.nodes();
    let symmetric =
        (0..count).all(|a| (0..count).all(|b| scene.conditions.frames(a, b) == scene.conditions.frames(b, a)));
    let knows = |n: usize| n == node || scene.machines[node].supervisor.as_ref().is_some_and(|s| s.knows[n]);
    let equal = (0..count).all(|n| (scene.conditions.answers(node, n) && knows(n)) || reachless(scene, n));
    if !symmetric || !equal || scene.conditions.isolated[node] {
        return Ok(());
    }
    // A kernel that lives below a silent supervisor stays in the ring unless it was once silent too.
    let alive: Vec<usize> = (1..count).map(|step| (node + step) % count).filter(|n| !reachless(scene, *n)).collect();
    let heard: Vec<usize> = alive.iter().copied().filter(|n| scene.linked(node, *n)).collect();
    let ring = scene.machines[node].kernel.ring.as_ref();
    let right = ring.is_some_and(|ring| {
        let macs = heard.iter().all(|n| ring.peer_macs.contains(&mac(*n)));
        let next = match ring.next {
            None => heard.is_empty(),
            Some(next) => {
                alive.iter().take_while(|n| !heard.contains(n)).chain(heard.first()).any(|n| *n == usize::from(next.0))
            }
        };
        next && usize::from(ring.last_hop) >= heard.len() && macs && !ring.waits
    });
    if right {
        Ok(())
    } else {
        Err(format!("node {node} relays by {ring:?}, but {alive:?} are alive, {heard:?} heard"))
    }
}

/// A drained node gets no new work from any HAProxy, all others do.
fn backends(scene: &Scene, node: usize) -> Result<(), String> {
    for peer in (0..scene.nodes()).filter(|n| scene.linked(node, *n)) {
        let want = if drained(scene, peer) { BackendState::Drain } else { BackendState::Ready };
        let is = scene.machines[node].backends[peer];
        if is != want {
            return Err(format!("at node {node} the backends of node {peer} are {is:?}, not {want:?}"));
        }
    }
    Ok(())
}

/// Dead, or out of everybody's reach.
fn reachless(scene: &Scene, node: usize) -> bool {
    let c = scene.conditions;
    c.isolated[node] || !scene.machines[node].lives()
}

fn can_win(scene: &Scene, node: usize) -> bool {
    (0..scene.nodes()).filter(|n| scene.linked(node, *n)).count() > scene.nodes() / 2
}

/// 0 for fit, 1 for what may serve when there is nothing better, 2 for unfit: as the world knows it.
fn level(scene: &Scene, node: usize) -> u8 {
    let (machine, c) = (&scene.machines[node], scene.conditions);
    if c.link_down[node] || machine.haproxy.state != HaproxyState::Alive {
        return UNFIT;
    }
    u8::from(c.isolated[node] || c.gateway_lost[node] || drained(scene, node))
}

fn drained(scene: &Scene, node: usize) -> bool {
    let said = scene.machines[node].supervisor.as_ref().and_then(|s| s.said.as_ref());
    said.is_some_and(|heartbeat| heartbeat.drained)
}

const UNFIT: u8 = 2;
