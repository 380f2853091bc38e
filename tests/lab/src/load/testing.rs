//! What the tests of this module measure: small servers on loopback that misbehave on request, and network namespaces
//! that go away with the thread that holds them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use socket2::SockRef;

/// How a server treats its clients from now on; read before each read from a connection.
#[derive(Default)]
pub struct Orders {
    /// How many connections are still to be reset.
    pub reset: AtomicUsize,
    /// How many connections are still to be closed without a word.
    pub close: AtomicUsize,
    /// Nobody is answered.
    pub hold: AtomicBool,
    /// Echoes come back with one bit turned.
    pub garble: AtomicBool,
    /// HTTP answers with 503.
    pub unavailable: AtomicBool,
    /// HTTP announces the end of each kept connection.
    pub announce_close: AtomicBool,
    /// Bodies end after half of their length.
    pub cut_short: AtomicBool,
}

/// A server on loopback: a thread for each connection, until all clients are gone.
pub struct Server {
    pub addr: SocketAddr,
    pub orders: Arc<Orders>,
    stop: Arc<AtomicBool>,
}

impl Server {
    pub fn echo(host: &str) -> Server {
        Server::start(host, echo)
    }

    pub fn http(host: &str) -> Server {
        Server::start(host, serve_http)
    }

    fn start(host: &str, serve: fn(TcpStream, &Orders)) -> Server {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let (orders, stop) = (Arc::new(Orders::default()), Arc::new(AtomicBool::new(false)));
        let (for_clients, stopped) = (Arc::clone(&orders), Arc::clone(&stop));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (stream, orders) = (stream.unwrap(), Arc::clone(&for_clients));
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
                thread::Builder::new().stack_size(128 << 10).spawn(move || serve(stream, &orders)).unwrap();
            }
        });
        Server { addr, orders, stop }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.orders.hold.store(false, Ordering::Relaxed);
        // Wakes accept, which closes the listener.
        let _ = TcpStream::connect(self.addr);
    }
}

impl Orders {
    /// Reads what has come, carrying out the orders that concern the connection as a whole; `None` ends it.
    fn read(&self, stream: &mut TcpStream, buffer: &mut [u8]) -> Option<usize> {
        loop {
            let one_less = |left: usize| left.checked_sub(1);
            if self.reset.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
                // Closing with a linger time of zero sends RST (socket(7)).
                SockRef::from(&*stream).set_linger(Some(Duration::ZERO)).unwrap();
                return None;
            }
            if self.close.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
                return None;
            }
            if self.hold.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(2));
                continue;
            }
            match stream.read(buffer) {
                Ok(0) => return None,
                Ok(count) => return Some(count),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return None,
            }
        }
    }
}

fn echo(mut stream: TcpStream, orders: &Orders) {
    let mut buffer = [0; 4096];
    while let Some(count) = orders.read(&mut stream, &mut buffer) {
        buffer[0] ^= u8::from(orders.garble.load(Ordering::Relaxed));
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// `GET /bytes/N` gives N bytes, everything else the name of a node.
fn serve_http(mut stream: TcpStream, orders: &Orders) {
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    while let Some(count) = orders.read(&mut stream, &mut buffer) {
        request.extend_from_slice(&buffer[..count]);
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8(std::mem::take(&mut request)).unwrap();
        let path = text.split(' ').nth(1).unwrap();
        let bytes = path.strip_prefix("/bytes/").map(|len| len.parse().unwrap());
        let body = bytes.map_or_else(|| b"node-a\n".to_vec(), |len| vec![b'x'; len]);
        let status = if orders.unavailable.load(Ordering::Relaxed) { "503 No" } else { "200 OK" };
        let close = text.contains("close") || orders.announce_close.load(Ordering::Relaxed);
        let connection = if close { "Connection: close\r\n" } else { "" };
        let head = format!("HTTP/1.1 {status}\r\n{connection}Content-Length: {}\r\n\r\n", body.len());
        let cut = orders.cut_short.load(Ordering::Relaxed);
        let body = &body[..if cut { body.len() / 2 } else { body.len() }];
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).is_err() || close || cut {
            return;
        }
    }
}

/// A network namespace of one's own, held by a thread; it vanishes when this is dropped.
pub struct Namespace {
    pub path: PathBuf,
    tid: i32,
    /// Dropping it ends the thread.
    _hold: mpsc::Sender<()>,
}

impl Namespace {
    pub fn new() -> Namespace {
        let (hold, held) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests with namespaces need root");
            tell.send(gettid().as_raw()).unwrap();
            let _ = held.recv();
        });
        let tid = told.recv().unwrap();
        let path = PathBuf::from(format!("/proc/{}/task/{tid}/ns/net", std::process::id()));
        let namespace = Namespace { path, tid, _hold: hold };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs ip(8) inside.
    pub fn ip(&self, arguments: &str) {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(format!("--net={}", self.path.display())).arg("ip").args(arguments.split(' '));
        assert!(nsenter.status().unwrap().success(), "ip {arguments}");
    }

    /// A veth from here, named `veth0` on both sides, up.
    pub fn wire_to(&self, other: &Namespace) {
        self.ip(&format!("link add veth0 type veth peer name veth0 netns {}", other.tid));
        for side in [self, other] {
            // Without duplicate address detection an IPv6 address can be used at once.
            side.ip("link set veth0 up");
        }
    }

    /// Runs `body` in a thread inside.
    pub fn run<R: Send>(&self, body: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                super::worker::enter(Some(&self.path)).unwrap();
                body()
            });
            inside.join().unwrap()
        })
    }
}

/// Awaits a condition, looking every few milliseconds, for at most [`PATIENCE`].
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Measures times until they are as they should be, at most [`TRIES`] times: a busy machine spoils a try now and then, a fault
/// spoils all.
pub fn on_some_try(measure: impl Fn() -> Result<(), String>) {
    let mut last = String::new();
    for _ in 0..TRIES {
        match measure() {
            Ok(()) => return,
            Err(what) => last = what,
        }
    }
    panic!("not once in {TRIES} tries, at last {last}");
}

/// What comes at once comes late on a busy machine; what never comes is waited for in vain.
pub const PATIENCE: Duration = Duration::from_secs(60);
const TRIES: u32 = 20;
