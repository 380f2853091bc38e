//! The network as a shell: VIP addresses, announcements, link state, conflicts, the relay ring and the probes of the link.
//!
//! Every VIP is on `lo` for good, so that each node accepts its packets; on its interface it is only while it is held, and then
//! with a lifetime that the supervisor must renew: if it hangs, the kernel ends the ownership by itself.

pub mod kernel;
#[cfg(test)]
mod tests;
pub mod tunnel;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::sync::{mpsc, watch};
use trilith_core::command::{Command, Deed, Ring};
use trilith_core::config::{NodeId, Settings, Vip, VipId};
use trilith_core::decision::describe_mac;
use trilith_core::event::{Event, Probe};
use trilith_core::health::PROBE_TIMEOUT;
use trilith_core::time::Time;
use trilith_core::vip::Rival;

use crate::neighbour::frame::Mac;
use crate::neighbour::{Heard, Neighbour, Question};
use crate::{relay, sysctl};
use kernel::{Changes, Gateway, Kernel, LOOPBACK, Link, Watch};
use tunnel::Tunnels;

/// Commands that may wait; the core has at most a few for each VIP under way.
const COMMAND_QUEUE: usize = 256;
/// Relay rings that may wait; only the newest of them is put in force.
const RING_QUEUE: usize = 16;
/// How long a peer's kernel may take to answer: a lost owner costs as long at the least.
const KERNEL_TIMEOUT: Duration = Duration::from_millis(90);
/// How long it takes until something that concerns the tunnel alone is tried again, or a tunnel that nobody needs is gone.
const SETTLE_PAUSE: Duration = Duration::from_secs(5);
/// At most one conflict is reported for a VIP within this time, however often it is claimed.
const CONFLICT_PAUSE: Duration = Duration::from_millis(100);
/// An address of the node itself is said to be here once within this time, however often another machine claims it (`DEFEND_INTERVAL`,
/// RFC 5227, section 2.4 (c)).
const DEFEND_PAUSE: Duration = Duration::from_secs(10);

/// The way to the shell of the network.
#[derive(Clone)]
pub struct Handle {
    /// Takes `Hold`, `Release`, `Announce`, `Relay`, and `Probe` of the gateway, a VIP or a kernel.
    pub commands: mpsc::Sender<Command>,
    world: Arc<World>,
}

impl Handle {
    /// MAC address of the interface that this node relays by, that of the first VIP; zero while there is no such interface.
    pub fn own_mac(&self) -> Mac {
        self.world.link(VipId(0)).map_or([0; 6], |link| link.mac)
    }

    /// Addresses of this node itself that another machine has, too, and which.
    pub fn rivals(&self) -> Vec<(IpAddr, Mac)> {
        let (rivals, now) = (locked(&self.world.rivals), self.world.now());
        rivals.iter().filter_map(|(address, rival)| Some((*address, rival.stubborn(now)?))).collect()
    }

    /// Nodes to which what is relayed goes through a tunnel, or why there is none although there must be.
    ///
    /// # Errors
    /// What the kernel has refused.
    pub fn tunnels(&self) -> Result<Vec<NodeId>, String> {
        let tunnels = locked(&self.world.tunnels).clone()?;
        let nodes = (0..self.world.settings.nodes.len() as u8).map(NodeId);
        Ok(nodes.filter(|node| tunnels.leads_to(*node)).collect())
    }

    /// Packets passed on to the next node since the rules were first loaded.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn relayed_packets(&self) -> Result<u64> {
        relay::relayed_packets()
    }
}

/// Makes the network ready and serves commands from then on: kernel parameters, relay rules, then the VIPs on `lo`.
///
/// A VIP that an earlier run has left on its interface is taken off: a node that has just started owns nothing. Relay rules
/// that an earlier run has left stay in force until the first [`Command::Relay`]. `tunnels` says what the peer channel has found out.
///
/// # Errors
/// A kernel parameter, the rules or an address is refused; a raw socket is not permitted.
pub async fn start(
    settings: Arc<Settings>,
    me: NodeId,
    events: mpsc::Sender<Event>,
    tunnels: watch::Receiver<Tunnels>,
) -> Result<Handle> {
    sysctl::apply_global()?;
    let kernel = Kernel::open()?;
    let watch = Watch::open()?;
    let vips: Vec<IpAddr> = settings.vips.iter().map(|vip| vip.address).collect();
    let own = &settings.nodes[usize::from(me.0)];
    let own: Vec<IpAddr> = [own.address].into_iter().chain(own.address6.map(IpAddr::V6)).collect();
    let claims: Vec<IpAddr> = vips.into_iter().chain(own.iter().copied()).collect();
    let v6 = claims.iter().chain(settings.nodes.iter().map(|node| &node.address)).any(IpAddr::is_ipv6);
    let neighbour = Neighbour::open(&claims, v6)?;
    let world = Arc::new(World {
        settings,
        me,
        kernel,
        neighbour,
        links: Mutex::default(),
        gateway: Mutex::default(),
        tunnels: Mutex::new(Ok(Tunnels::default())),
        rivals: Mutex::new(own.into_iter().map(|address| (address, Rival::default())).collect()),
        begun: Instant::now(),
    });

    let (rings, ring_queue) = mpsc::channel(RING_QUEUE);
    let mut shell =
        Shell { world: world.clone(), events: events.clone(), held: BTreeMap::new(), asked: Arc::default(), rings };
    world.remove_leftovers().await?;
    shell.look_at_links().await?;
    if !relay::in_force().await? {
        relay::apply(&relay::ruleset(&world.settings, None, &world.present(), Tunnels::default())).await?;
    }
    world.assert_loopback().await?;

    let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
    tokio::spawn(listen(world.clone(), events.clone()));
    tokio::spawn(keep_ring(world.clone(), ring_queue, tunnels, events));
    tokio::spawn(shell.run(queue, watch));
    Ok(Handle { commands, world })
}

/// What the tasks of this shell share.
struct World {
    settings: Arc<Settings>,
    me: NodeId,
    kernel: Kernel,
    neighbour: Neighbour,
    /// The interfaces of VIPs that exist now, by name.
    links: Mutex<BTreeMap<String, Link>>,
    gateway: Mutex<Gateways>,
    /// Those in use, or why there are none.
    tunnels: Mutex<Result<Tunnels, String>>,
    /// The node's own addresses, and who else has them.
    rivals: Mutex<BTreeMap<IpAddr, Rival>>,
    begun: Instant,
}

/// What is known of the default gateways.
#[derive(Default)]
struct Gateways {
    /// Those of the routing table; `None` when it has changed since.
    list: Option<Vec<Gateway>>,
    /// Where the one that was asked last has answered from.
    answered: Option<(IpAddr, Mac)>,
}

impl World {
    fn link(&self, vip: VipId) -> Option<Link> {
        let vip = self.settings.vips.get(usize::from(vip.0))?;
        locked(&self.links).get(&vip.interface).copied()
    }

    /// The time that rivals are counted in.
    fn now(&self) -> Time {
        Time::ZERO + self.begun.elapsed()
    }

    /// Another machine says that it has an address of the node itself: what is for this node goes there until this node says, too,
    /// that it has it.
    fn defend(&self, address: IpAddr, mac: Mac, index: u32, defended: &mut BTreeMap<IpAddr, Instant>) {
        let mut rivals = locked(&self.rivals);
        let Some(rival) = rivals.get_mut(&address) else { return };
        // The same address on another network, such as one for storage, is another matter.
        let here = self.vip_ids().filter_map(|id| self.link(id)).find(|link| link.index == index);
        let ours = || locked(&self.links).values().any(|link| link.mac == mac);
        let Some(here) = here.filter(|_| !ours()) else { return };
        rival.heard(self.now(), mac);
        if defended.get(&address).is_none_or(|at| at.elapsed() >= DEFEND_PAUSE) {
            defended.insert(address, Instant::now());
            tracing::warn!("machine {} claims {address}, which is this node's", describe_mac(mac));
            if let Err(error) = self.neighbour.announce(here, address) {
                tracing::warn!(%address, %error, "not announced");
            }
        }
    }

    fn vip_ids(&self) -> impl Iterator<Item = VipId> {
        (0..self.settings.vips.len() as u8).map(VipId)
    }

    fn present(&self) -> BTreeSet<String> {
        locked(&self.links).keys().cloned().collect()
    }

    /// VIP and link of a command's operand, or why there is none.
    fn operand(&self, id: VipId) -> Result<(IpAddr, Link)> {
        let vip =
            self.settings.vips.get(usize::from(id.0)).ok_or_else(|| anyhow!("there is no VIP number {}", id.0))?;
        let link = self.link(id);
        let link = link.ok_or_else(|| anyhow!("interface {} of VIP {} does not exist", vip.interface, vip.name))?;
        Ok((vip.address, link))
    }

    /// Takes off what earlier runs have left: every address of ours but the configured VIPs on `lo`.
    async fn remove_leftovers(&self) -> Result<()> {
        for (index, address) in self.kernel.own_addresses().await? {
            if index != LOOPBACK || !self.settings.vips.iter().any(|vip| vip.address == address) {
                let removed = self.kernel.remove_address(index, address).await;
                removed.with_context(|| {
                    format!("address {address} of an earlier run cannot be removed from interface {index}")
                })?;
            }
        }
        Ok(())
    }

    async fn assert_loopback(&self) -> Result<()> {
        for vip in &self.settings.vips {
            let added = self.kernel.add_address(LOOPBACK, vip.address, None).await;
            added.with_context(|| format!("VIP {} ({}) cannot be added to lo", vip.name, vip.address))?;
        }
        Ok(())
    }

    /// Has the tunnel there: its index. Nobody but the other nodes may use it, not even while it is being made.
    async fn tunnel_up(&self) -> Result<u32> {
        relay::apply(&tunnel::guard(&self.settings, self.me, true)).await?;
        tunnel::put_up(&self.kernel, &self.settings, self.me).await
    }

    async fn tunnel_down(&self) -> Result<()> {
        tunnel::take_down(&self.kernel).await?;
        relay::apply(&tunnel::guard(&self.settings, self.me, false)).await
    }

    /// Index of the tunnel's interface, while that is up.
    async fn tunnel_there(&self) -> Option<u32> {
        let links = self.kernel.links().await.inspect_err(|error| tracing::error!("{error:#}")).ok()?;
        links.get(tunnel::NAME).filter(|link| link.up).map(|link| link.index)
    }

    /// Keeps for `status` which tunnels are used, or why none is although there must be.
    fn tell_tunnels(&self, now: Result<Tunnels, String>) {
        let before = std::mem::replace(&mut *locked(&self.tunnels), now.clone());
        match now {
            now if now == before => {}
            Ok(now) if now.any() => {
                let names = |nodes: u8| {
                    let nodes = (0..).zip(&self.settings.nodes).filter(|(number, _)| nodes & 1 << number != 0);
                    nodes.map(|(_, node)| node.name.as_str()).collect::<Vec<_>>().join(", ")
                };
                tracing::warn!(
                    to = names(now.to),
                    from = names(now.from),
                    "the network does not carry packets with clients' addresses: a tunnel between nodes carries what is relayed"
                );
            }
            Ok(_) => tracing::info!("nothing is relayed through a tunnel any more"),
            Err(why) => tracing::error!("no tunnel, but the network does not carry what is relayed: {why}"),
        }
    }

    /// Asks what can be asked on the link; a question to nobody is not answered, but for a gateway that there is not.
    async fn probe(&self, probe: Probe) -> bool {
        match probe {
            Probe::Gateway => self.probe_gateway().await,
            Probe::Vip(vip) => match self.operand(vip) {
                Ok((target, link)) => {
                    let source = Ipv4Addr::UNSPECIFIED;
                    let question = Question { link, source, target, known: None, timeout: PROBE_TIMEOUT };
                    self.neighbour.ask(question).await.is_some()
                }
                Err(_) => false,
            },
            Probe::Kernel(node) if node == self.me => true,
            Probe::Kernel(node) => match self.settings.nodes.get(usize::from(node.0)) {
                Some(node) => self.probe_kernel(node.address).await,
                None => false,
            },
            // Not of the link: HAProxy's shell asks it.
            Probe::Front => false,
        }
    }

    async fn probe_kernel(&self, target: IpAddr) -> bool {
        let Some((link, source)) = self.way_to(target).await else { return false };
        let question = Question { link, source, target, known: None, timeout: KERNEL_TIMEOUT };
        self.neighbour.ask(question).await.is_some()
    }

    async fn probe_gateway(&self) -> bool {
        let Some(gateway) = self.default_gateway().await else { return true };
        // A gateway behind something that is no Ethernet, such as a tunnel, cannot be asked.
        let link = locked(&self.links).values().copied().find(|link| link.index == gateway.index);
        let Some(link) = link else { return true };
        let source = self.way_to(gateway.address).await.map_or(Ipv4Addr::UNSPECIFIED, |(_, source)| source);
        let target = gateway.address;
        let known = locked(&self.gateway).answered;
        let known = known.filter(|(address, _)| *address == target).map(|(_, mac)| mac);
        let says = self.neighbour.ask(Question { link, source, target, known, timeout: PROBE_TIMEOUT }).await;
        if let Some(mac) = says.and_then(|says| says.mac) {
            locked(&self.gateway).answered = Some((target, mac));
        }
        says.is_some()
    }

    /// The gateway that matters most: on the interface of a VIP rather than elsewhere, IPv4 rather than IPv6, least metric.
    async fn default_gateway(&self) -> Option<Gateway> {
        let cached = locked(&self.gateway).list.clone();
        let list = match cached {
            Some(list) => list,
            None => {
                let list = self.kernel.gateways().await.inspect_err(|error| tracing::warn!("{error:#}")).ok()?;
                locked(&self.gateway).list = Some(list.clone());
                list
            }
        };
        let carriers: Vec<_> = self.vip_ids().filter_map(|id| self.link(id)).map(|link| link.index).collect();
        let asked = list.into_iter().filter(|gateway| gateway.address.is_ipv4() || self.neighbour.speaks_v6());
        asked.min_by_key(|gateway| (!carriers.contains(&gateway.index), gateway.address.is_ipv6(), gateway.metric))
    }

    /// The interface to an address on the link, and the node's own address there.
    async fn way_to(&self, target: IpAddr) -> Option<(Link, Ipv4Addr)> {
        let path = self.kernel.path(target).await?;
        let links = locked(&self.links);
        let link = links.values().copied().find(|link| link.index == path.index)?;
        let source = if let Some(IpAddr::V4(source)) = path.source { source } else { Ipv4Addr::UNSPECIFIED };
        Some((link, source))
    }
}

/// The task that does the commands.
struct Shell {
    world: Arc<World>,
    events: mpsc::Sender<Event>,
    /// Until when each VIP is held, if it is not renewed.
    held: BTreeMap<VipId, Instant>,
    /// Questions that are being asked.
    asked: Arc<Mutex<BTreeSet<Probe>>>,
    rings: mpsc::Sender<RingChange>,
}

/// Why the relay rules are written anew.
enum RingChange {
    /// The core wants another ring.
    Set(Ring),
    /// An interface has come back with another index, which the rules in force do not know; or that of the tunnel has changed.
    Interfaces,
}

impl Shell {
    async fn run(mut self, mut queue: mpsc::Receiver<Command>, watch: Watch) {
        let mut up = BTreeMap::new();
        self.report_links(&mut up).await;
        loop {
            tokio::select! {
                command = queue.recv() => match command {
                    Some(command) => self.carry_out(command).await,
                    None => return,
                },
                changes = watch.changed() => match changes {
                    Ok(changes) => {
                        self.follow(changes).await;
                        self.report_links(&mut up).await;
                    }
                    Err(error) => {
                        tracing::error!(%error, "the kernel's word of changes has ended: link state is no longer followed");
                        return;
                    }
                },
            }
        }
    }

    async fn carry_out(&mut self, command: Command) {
        let (deed, result) = match command {
            Command::Hold { vip, lifetime } => (Deed::Hold(vip), self.hold(vip, lifetime).await),
            Command::Release { vip } => (Deed::Release(vip), self.release(vip).await),
            Command::Announce { vip } => (Deed::Announce(vip), self.announce(vip)),
            Command::Relay(ring) => match self.rings.try_send(RingChange::Set(ring)) {
                // Answered when it is in force.
                Ok(()) => return,
                Err(_) => (Deed::Relay, Err(anyhow!("{RING_QUEUE} relay rings wait for nft already"))),
            },
            Command::Probe(probe) => return self.ask(probe),
            other => {
                tracing::error!(?other, "not a command for the network");
                return;
            }
        };
        answer(&self.events, deed, &result).await;
    }

    async fn hold(&mut self, id: VipId, lifetime: Duration) -> Result<()> {
        let (address, link) = self.world.operand(id)?;
        if lifetime < Duration::from_secs(1) {
            bail!("a lifetime of {lifetime:?} is shorter than the second that the kernel counts in");
        }
        let until = Instant::now() + lifetime;
        let added = self.world.kernel.add_address(link.index, address, Some(lifetime)).await;
        added.with_context(|| {
            format!("{address} cannot be added to {}", self.world.settings.vips[usize::from(id.0)].interface)
        })?;
        self.held.insert(id, until);
        Ok(())
    }

    async fn release(&mut self, id: VipId) -> Result<()> {
        self.held.remove(&id);
        // An interface that is gone has no address.
        let Ok((address, link)) = self.world.operand(id) else { return Ok(()) };
        let removed = self.world.kernel.remove_address(link.index, address).await;
        removed.with_context(|| {
            format!("{address} cannot be removed from {}", self.world.settings.vips[usize::from(id.0)].interface)
        })
    }

    fn announce(&self, id: VipId) -> Result<()> {
        let (address, link) = self.world.operand(id)?;
        if self.held.get(&id).is_none_or(|until| *until <= Instant::now()) {
            bail!("{address} is not announced: this node does not hold it");
        }
        let interface = &self.world.settings.vips[usize::from(id.0)].interface;
        self.world
            .neighbour
            .announce(link, address)
            .with_context(|| format!("{address} cannot be announced on {interface}"))
    }

    /// Asks in a task of its own; a question that is being asked is not asked again, its answer serves both.
    fn ask(&self, probe: Probe) {
        let (world, events, asked) = (self.world.clone(), self.events.clone(), self.asked.clone());
        if !locked(&asked).insert(probe) {
            return;
        }
        tokio::spawn(async move {
            let answered = world.probe(probe).await;
            locked(&asked).remove(&probe);
            // The loop has ended when nobody takes it: so will this.
            let _ = events.send(Event::Probed { probe, answered }).await;
        });
    }

    async fn follow(&mut self, changes: Changes) {
        if changes.links
            && let Err(error) = self.look_at_links().await
        {
            tracing::error!("{error:#}");
        }
        if changes.addresses
            && let Err(error) = self.world.assert_loopback().await
        {
            tracing::error!("{error:#}");
        }
        if changes.routes {
            locked(&self.world.gateway).list = None;
        }
    }

    /// Takes in which interfaces there are, and makes those of VIPs that are new ready.
    async fn look_at_links(&mut self) -> Result<()> {
        let now = self.world.kernel.links().await?;
        let before = std::mem::replace(&mut *locked(&self.world.links), now.clone());
        let mut result = Ok(());
        let mut made = false;
        for vip in &self.world.settings.vips {
            let known = before.get(&vip.interface).map(|link| link.index);
            if let Some(&link) = now.get(&vip.interface).filter(|link| Some(link.index) != known) {
                made = true;
                let ready = sysctl::apply_interface(&vip.interface, vip.address.is_ipv6());
                self.listen_for(vip, link);
                result = result.and(ready.with_context(|| format!("interface {} of VIP {}", vip.interface, vip.name)));
            }
        }
        made |= now.get(tunnel::NAME) != before.get(tunnel::NAME);
        if made && !before.is_empty() && self.rings.try_send(RingChange::Interfaces).is_err() {
            tracing::debug!("rules are about to be written anyway");
        }
        result
    }

    fn listen_for(&self, vip: &Vip, link: Link) {
        if let IpAddr::V6(address) = vip.address
            && let Err(error) = self.world.neighbour.listen_for(link, address)
        {
            tracing::warn!(vip = vip.name, interface = vip.interface, %error, "hand-overs will change what the card lets through");
        }
    }

    async fn report_links(&self, known: &mut BTreeMap<VipId, bool>) {
        for id in self.world.vip_ids() {
            let up = self.world.link(id).is_some_and(|link| link.up);
            if known.insert(id, up) != Some(up) {
                // The loop has ended when nobody takes it: so will this.
                let _ = self.events.send(Event::Link { vip: id, up }).await;
            }
        }
    }
}

/// Puts rings in force, one after the other, and of several that wait only the newest; and the tunnel, while it is needed.
async fn keep_ring(
    world: Arc<World>,
    mut queue: mpsc::Receiver<RingChange>,
    mut tunnels: watch::Receiver<Tunnels>,
    events: mpsc::Sender<Event>,
) {
    let mut ring = None;
    let mut tunnel = None;
    let mut unsettled = false;
    loop {
        let first = tokio::select! {
            change = queue.recv() => match change {
                Some(change) => Some(change),
                None => return,
            },
            Ok(()) = tunnels.changed() => None,
            () = tokio::time::sleep(SETTLE_PAUSE), if unsettled => None,
        };
        // A ring does not wait for a tunnel that could not be had before.
        let is_urgent = first.is_some() && unsettled;
        let mut answers = 0;
        for change in first.into_iter().chain(std::iter::from_fn(|| queue.try_recv().ok())) {
            if let RingChange::Set(newest) = change {
                ring = Some(newest);
                answers += 1;
            }
        }
        // Until then the rules of an earlier run stay, which know its tunnel.
        if ring.is_none() {
            continue;
        }
        let wanted = *tunnels.borrow_and_update();
        let there = world.tunnel_there().await;
        tunnel = tunnel.filter(|_| tunnel == there);
        let mut problem = None;
        if wanted.any() && tunnel.is_none() && !is_urgent {
            match world.tunnel_up().await {
                Ok(index) => tunnel = Some(index),
                Err(error) => problem = Some(format!("{error:#}")),
            }
        }
        let used = if tunnel.is_some() { wanted } else { Tunnels::default() };
        if !is_urgent {
            world.tell_tunnels(problem.map_or(Ok(used), Err));
        }
        let rules = relay::ruleset(&world.settings, ring.as_ref(), &world.present(), used);
        let result = relay::apply(&rules).await;
        for _ in 0..answers {
            answer(&events, Deed::Relay, &result).await;
        }
        if answers == 0
            && let Err(error) = &result
        {
            tracing::error!("{error:#}");
        }
        // Others may send into it for a moment longer, so it goes when things have settled.
        let mut is_left = !wanted.any() && there.is_some();
        if is_left && unsettled && !is_urgent && result.is_ok() {
            match world.tunnel_down().await {
                Ok(()) => is_left = false,
                Err(error) => tracing::error!("{error:#}"),
            }
        }
        unsettled = is_left || wanted.any() && tunnel.is_none() || result.is_err() && answers == 0;
    }
}

/// Reports who claims a VIP that is not their own, and defends the node's own addresses; whoever has asked a question has heard it already.
async fn listen(world: Arc<World>, events: mpsc::Sender<Event>) {
    let mut reported: BTreeMap<VipId, Instant> = BTreeMap::new();
    let mut defended = BTreeMap::new();
    loop {
        let Heard { says, index } = match world.neighbour.hear().await {
            Ok(heard) => heard,
            Err(error) => {
                tracing::error!(%error, "claims to VIPs are no longer heard");
                return;
            }
        };
        if let Some(mac) = says.mac {
            world.defend(says.address, mac, index, &mut defended);
        }
        for (id, vip) in world.vip_ids().zip(&world.settings.vips) {
            let Some(link) = world.link(id) else { continue };
            let Some(mac) = says.mac.filter(|mac| *mac != link.mac) else { continue };
            let is_news = reported.get(&id).is_none_or(|at| at.elapsed() >= CONFLICT_PAUSE);
            if vip.address == says.address && link.index == index && is_news {
                reported.insert(id, Instant::now());
                let _ = events.send(Event::Conflict { vip: id, mac }).await;
            }
        }
    }
}

/// What a mutex holds, also when a thread died that held it: nothing here is ever half written.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(events: &mpsc::Sender<Event>, deed: Deed, result: &Result<()>) {
    let result = match result {
        Ok(()) => Ok(()),
        Err(error) => Err(format!("{error:#}")),
    };
    // The loop has ended when nobody takes it: so will this.
    let _ = events.send(Event::Done { deed, result }).await;
}
