//! Three nodes and a client on a bridge, each in a network namespace without a name: it ends with its thread, whatever happens.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command as Program;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use trilith_core::command::{Command, Deed, Ring};
use trilith_core::config::{LeaseBounds, Lone, Node, NodeId, Set, Settings, Vip, VipId};
use trilith_core::event::{Event, Probe};

use crate::net::tunnel::Tunnels;
use crate::net::{Handle, Kernel, Link, start};

/// The VIP 10.77.0.10.
pub const V4: VipId = VipId(0);
/// The VIP fd77::10.
pub const V6: VipId = VipId(1);
/// Port of every node's echo service.
pub const PORT: u16 = 9000;
/// What the service takes as the wish that it ends the connection.
const END: u8 = 4;
/// Longer than a test may take.
pub const LIFETIME: Duration = Duration::from_secs(3600);
/// What comes at once comes late on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A network namespace, with the thread that lives in it.
pub struct Place {
    name: String,
    runtime: tokio::runtime::Handle,
    path: String,
    _end: oneshot::Sender<()>,
}

impl Place {
    pub async fn new(name: &str) -> Place {
        let (made, place) = oneshot::channel();
        let (end, ended) = oneshot::channel::<()>();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("the tests run as root");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let path = format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid());
            let _ = made.send((runtime.handle().clone(), path));
            let _ = runtime.block_on(ended);
        });
        let (runtime, path) = place.await.unwrap();
        let place = Place { name: name.to_owned(), runtime, path, _end: end };
        place.run("ip link set lo up").await;
        place
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub async fn on<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        self.begin(future).await.unwrap()
    }

    pub fn begin<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.runtime.spawn(future)
    }

    /// Runs a program, which must succeed; returns what it prints.
    pub async fn run(&self, words: &str) -> String {
        let (words, name) = (words.to_owned(), self.name.clone());
        self.on(async move {
            let mut parts = words.split_whitespace();
            let output = Program::new(parts.next().unwrap()).args(parts).output().unwrap();
            assert!(output.status.success(), "{name}: {words}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
        .await
    }
}

pub struct Stone {
    pub place: Place,
    pub net: Handle,
    pub tunnels: watch::Sender<Tunnels>,
    events: mpsc::Receiver<Event>,
}

impl Stone {
    pub async fn new(switch: &Place, name: &str, id: NodeId) -> Stone {
        let place = joined(switch, name, id.0 + 11).await;
        let (tunnels, tunnels_receiver) = watch::channel(Tunnels::default());
        let (net, events) = Stone::start(&place, id, tunnels_receiver).await;
        place.on(async { serve("0.0.0.0").await }).await;
        place.on(async { serve("::").await }).await;
        Stone { place, net, tunnels, events }
    }

    async fn start(place: &Place, id: NodeId, tunnels: watch::Receiver<Tunnels>) -> (Handle, mpsc::Receiver<Event>) {
        let (sender, events) = mpsc::channel(1024);
        let net = place.on(async move { start(Arc::new(settings()), id, sender, tunnels).await }).await.unwrap();
        (net, events)
    }

    pub async fn restart(&mut self, id: NodeId) {
        (self.net, self.events) = Stone::start(&self.place, id, self.tunnels.subscribe()).await;
    }

    pub async fn event(&mut self) -> Event {
        timeout(PATIENCE, self.events.recv()).await.expect("an event comes").unwrap()
    }
}

pub struct Lab {
    pub switch: Place,
    pub client: Place,
    pub nodes: Vec<Stone>,
}

impl Lab {
    pub async fn up() -> Lab {
        let switch = Place::new("switch").await;
        switch.run("ip link add br0 type bridge mcast_snooping 0").await;
        switch.run("ip link set br0 up").await;
        let client = joined(&switch, "client", 1).await;
        let mut nodes = Vec::new();
        for (name, id) in ["a", "b", "c"].into_iter().zip(0..) {
            nodes.push(Stone::new(&switch, name, NodeId(id)).await);
        }
        Lab { switch, client, nodes }
    }

    pub async fn links(&self, place: &Place) -> BTreeMap<String, Link> {
        place.on(async { Kernel::open().unwrap().links().await.unwrap() }).await
    }

    /// Has a command done, and waits for its answer.
    pub async fn does(&mut self, node: usize, command: Command) -> Result<(), String> {
        let wanted = match &command {
            Command::Hold { vip, .. } => Deed::Hold(*vip),
            Command::Release { vip } => Deed::Release(*vip),
            Command::Announce { vip } => Deed::Announce(*vip),
            Command::Relay(_) => Deed::Relay,
            other => panic!("{other:?}"),
        };
        self.nodes[node].net.commands.send(command).await.unwrap();
        loop {
            if let Event::Done { deed, result } = self.nodes[node].event().await
                && deed == wanted
            {
                return result;
            }
        }
    }

    pub async fn probe(&mut self, node: usize, wanted: Probe) -> bool {
        self.nodes[node].net.commands.send(Command::Probe(wanted)).await.unwrap();
        loop {
            if let Event::Probed { probe, answered } = self.nodes[node].event().await
                && probe == wanted
            {
                return answered;
            }
        }
    }

    /// Asks until that is the answer: where the machine is busy, one may come too late to count.
    pub async fn probed(&mut self, node: usize, wanted: Probe, answered: bool) {
        let asked = timeout(PATIENCE, async { while self.probe(node, wanted).await != answered {} });
        asked.await.unwrap_or_else(|_| panic!("node {node}, {wanted:?}: never {answered}"));
    }

    /// Has these nodes relay in this order.
    pub async fn ring(&mut self, members: &[usize]) {
        self.ring_that_waits(members, false).await;
    }

    /// The same, perhaps waiting for one that has left.
    pub async fn ring_that_waits(&mut self, members: &[usize], waits: bool) {
        for (place, node) in members.iter().enumerate() {
            let next = members[(place + 1) % members.len()];
            let others = members.iter().filter(|other| *other != node);
            let peer_macs = others.map(|other| self.nodes[*other].net.own_mac()).collect();
            let last_hop = members.len() as u8 - 1;
            let ring = Ring { next: Some(NodeId(next as u8)).filter(|_| last_hop > 0), last_hop, peer_macs, waits };
            self.does(*node, Command::Relay(ring)).await.unwrap();
        }
    }

    pub async fn give(&mut self, node: usize) {
        for vip in [V4, V6] {
            self.does(node, Command::Hold { vip, lifetime: LIFETIME }).await.unwrap();
            self.does(node, Command::Announce { vip }).await.unwrap();
        }
    }

    pub async fn hand_over(&mut self, to: usize) {
        for vip in [V4, V6] {
            for node in 0..self.nodes.len() {
                if node != to {
                    self.does(node, Command::Release { vip }).await.unwrap();
                }
            }
        }
        self.give(to).await;
    }

    pub async fn cut(&self, node: usize, down: bool) {
        let name = &self.nodes[node].place.name;
        self.switch.run(&format!("ip link set p{name} {}", if down { "down" } else { "up" })).await;
    }

    pub async fn relayed(&self) -> u64 {
        let mut sum = 0;
        for node in &self.nodes {
            let net = node.net.clone();
            sum += node.place.on(async move { net.relayed_packets().unwrap() }).await;
        }
        sum
    }

    /// Long-lived connections, `each` to either VIP, and new ones all the time.
    pub async fn load(&self, each: usize) -> Load {
        let seen = Arc::new(Tally::default());
        for vip in ["10.77.0.10", "fd77::10"] {
            let to = SocketAddr::new(vip.parse::<IpAddr>().unwrap(), PORT);
            for number in 0..each {
                // Every fifth one moves more than fits into one packet, so that relayed packets are also large ones.
                let size = if number % 5 == 0 { 32_768 } else { 16 };
                let (seen, ready) = (seen.clone(), Connected::open(to));
                let mut connection = self.client.on(ready).await.expect("connects");
                seen.running.fetch_add(1, Ordering::Relaxed);
                self.client.runtime.spawn(async move {
                    while !seen.end.load(Ordering::Relaxed) {
                        match connection.echo_of(size).await {
                            Ok(()) => _ = seen.echoes.fetch_add(1, Ordering::Relaxed),
                            Err(_) => {
                                seen.broken.fetch_add(1, Ordering::Relaxed);
                                break;
                            }
                        }
                        sleep(Duration::from_millis(5)).await;
                    }
                    seen.running.fetch_sub(1, Ordering::Relaxed);
                });
            }
            let seen = seen.clone();
            seen.running.fetch_add(1, Ordering::Relaxed);
            self.client.runtime.spawn(async move {
                while !seen.end.load(Ordering::Relaxed) {
                    let once = async { Connected::open(to).await?.echo().await };
                    let counter = if once.await.is_ok() { &seen.opened } else { &seen.refused };
                    counter.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(3)).await;
                }
                seen.running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        Load(seen)
    }
}

/// Waits for what `look` is to find, [`PATIENCE`] at most.
pub async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let found = timeout(PATIENCE, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(Duration::from_millis(5)).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

pub struct Load(Arc<Tally>);

#[derive(Default)]
struct Tally {
    end: AtomicBool,
    running: AtomicU32,
    broken: AtomicU32,
    refused: AtomicU32,
    opened: AtomicU32,
    echoes: AtomicU32,
}

/// What clients have seen.
#[derive(Debug)]
pub struct Seen {
    pub broken: u32,
    pub refused: u32,
    pub opened: u32,
}

impl Load {
    /// Waits until every long-lived connection has had some echoes more, and some new ones were opened.
    pub async fn goes_on(&self) {
        let count = || (self.0.echoes.load(Ordering::Relaxed), self.0.opened.load(Ordering::Relaxed));
        let (echoes, opened) = count();
        let enough = || count().0 >= echoes + 5 * self.0.running.load(Ordering::Relaxed) && count().1 >= opened + 10;
        until("the load goes on", async || enough().then_some(())).await;
    }

    pub async fn end(self) -> Seen {
        self.0.end.store(true, Ordering::Relaxed);
        while self.0.running.load(Ordering::Relaxed) > 0 {
            sleep(Duration::from_millis(5)).await;
        }
        Seen {
            broken: self.0.broken.load(Ordering::Relaxed),
            refused: self.0.refused.load(Ordering::Relaxed),
            opened: self.0.opened.load(Ordering::Relaxed),
        }
    }
}

pub struct Connected(pub TcpStream);

impl Connected {
    pub async fn open(to: SocketAddr) -> std::io::Result<Connected> {
        Ok(Connected(timeout(PATIENCE, TcpStream::connect(to)).await??))
    }

    /// From that very address and port.
    pub async fn open_from(from: SocketAddr, to: SocketAddr) -> std::io::Result<Connected> {
        let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.bind(from)?;
        Ok(Connected(timeout(PATIENCE, socket.connect(to)).await??))
    }

    /// Has the node end it first: the node's kernel remembers it for a minute then (TIME_WAIT).
    pub async fn end(mut self) -> std::io::Result<()> {
        self.0.write_all(&[END]).await?;
        let left = timeout(PATIENCE, self.0.read(&mut [0])).await??;
        assert_eq!(left, 0);
        Ok(())
    }

    pub async fn echo(&mut self) -> std::io::Result<()> {
        self.echo_of(16).await
    }

    /// Sends something of this size and waits until it comes back.
    pub async fn echo_of(&mut self, size: usize) -> std::io::Result<()> {
        let (sent, mut received) = (vec![b'?'; size], vec![0; size]);
        let (mut reader, mut writer) = self.0.split();
        let both = async { tokio::try_join!(writer.write_all(&sent), reader.read_exact(&mut received)) };
        timeout(PATIENCE, both).await??;
        assert_eq!(sent, received);
        Ok(())
    }
}

/// A namespace with an `eth0` on the bridge.
async fn joined(switch: &Place, name: &str, host: u8) -> Place {
    let place = Place::new(name).await;
    // A link-local address that is still being examined solicits nobody, for a second or two.
    place.run("sysctl -q net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0").await;
    place.run(&format!("ip link add eth0 type veth peer name p{name} netns {}", switch.path)).await;
    switch.run(&format!("ip link set p{name} master br0 up")).await;
    place.run(&format!("ip address add 10.77.0.{host}/24 dev eth0")).await;
    place.run(&format!("ip address add fd77::{host}/64 dev eth0 nodad")).await;
    place.run("ip link set eth0 up").await;
    place
}

async fn serve(address: &str) {
    let socket = socket2::Socket::new(
        if address == "::" { socket2::Domain::IPV6 } else { socket2::Domain::IPV4 },
        socket2::Type::STREAM,
        None,
    );
    let socket = socket.unwrap();
    if address == "::" {
        socket.set_only_v6(true).unwrap();
    }
    socket.set_nonblocking(true).unwrap();
    socket.bind(&SocketAddr::new(address.parse().unwrap(), PORT).into()).unwrap();
    socket.listen(1024).unwrap();
    let listener = TcpListener::from_std(socket.into()).unwrap();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 16 * 1024];
                while let Ok(length @ 1..) = connection.read(&mut buffer).await {
                    if buffer[length - 1] == END || connection.write_all(&buffer[..length]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
}

/// The configuration of the three.
pub fn settings() -> Settings {
    let node = |name: &str, host: u8| Node {
        name: name.to_owned(),
        address: format!("10.77.0.{host}").parse().unwrap(),
        address6: Some(format!("fd77::{host}").parse().unwrap()),
        zone: None,
    };
    let vip = |name: &str, address: &str, prefix| Vip {
        name: name.to_owned(),
        address: address.parse().unwrap(),
        prefix,
        interface: "eth0".to_owned(),
        prefer: NodeId(0),
    };
    Settings {
        set: Set {
            name: "test".to_owned(),
            secret_file: String::new(),
            peer_port: 7077,
            lone: Lone::Serve,
            rebalance_after: None,
            stun: Duration::ZERO,
            lease: LeaseBounds { heartbeat: Duration::ZERO, min: Duration::ZERO, max: Duration::ZERO },
        },
        nodes: vec![node("a", 11), node("b", 12), node("c", 13)],
        vips: vec![vip("public", "10.77.0.10", 24), vip("public6", "fd77::10", 64)],
        services: Vec::new(),
        fingerprint: 0,
    }
}
