//! What tests of HAProxy's neighbours share: an example set, and a real HAProxy of the image's root tree in namespaces of its own.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use trilith_core::config::{
    Health, LeaseBounds, Lone, Mode, Node, NodeId, Service, ServiceId, Set, Settings, Vip, VipId,
};

/// Three nodes, a VIP of each family, an HTTP service, an HTTPS service and a TCP service.
pub fn settings() -> Settings {
    let node = |name: &str, address: &str| Node {
        name: name.to_owned(),
        address: address.parse().unwrap(),
        address6: None,
        zone: None,
    };
    let vip = |name: &str, address: &str, prefix| Vip {
        name: name.to_owned(),
        address: address.parse().unwrap(),
        prefix,
        interface: "eth0".to_owned(),
        prefer: NodeId(0),
    };
    let service = |name: &str, port, mode, backend_port, health| Service {
        name: name.to_owned(),
        vips: vec![VipId(0), VipId(1)],
        port,
        mode,
        backend_port,
        health,
        unit: None,
        tls_certificate: None,
        drain_deadline: Duration::from_secs(30),
    };
    let get = || Health::Get { path: "/healthz".to_owned() };
    let mut secure = service("secure", 443, Mode::Http, 8080, get());
    secure.tls_certificate = Some("/etc/trilith/tls/secure.pem".to_owned());
    Settings {
        set: Set {
            name: "edge-1".to_owned(),
            secret_file: "/var/lib/trilith/secret".to_owned(),
            peer_port: 7077,
            lone: Lone::Serve,
            rebalance_after: None,
            stun: Duration::ZERO,
            lease: LeaseBounds {
                heartbeat: Duration::from_millis(20),
                min: Duration::from_millis(100),
                max: Duration::from_millis(1000),
            },
        },
        nodes: vec![node("a", "10.77.0.11"), node("b", "10.77.0.12"), node("c", "10.77.0.13")],
        vips: vec![vip("public", "10.77.0.10", 24), vip("public6", "fd77::10", 64)],
        services: vec![
            service("portal", 80, Mode::Http, 8080, get()),
            secure,
            service("echo", 9000, Mode::Tcp, 9001, Health::Connect),
        ],
        fingerprint: 0,
    }
}

/// [`settings`] without the service that needs a certificate.
pub fn plain_settings() -> Settings {
    let mut settings = settings();
    settings.services.remove(usize::from(ServiceId(1).0));
    settings
}

/// Runs the calling test again in mount, network and process namespaces of its own, with the root tree's `/run` empty.
///
/// Returns the tree inside; `None` outside, when the test has been run inside, or when there is no tree (`just lab` builds it).
pub fn inside(test: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/root");
    if !root.join("usr/sbin/haproxy").exists() {
        assert!(std::env::var_os("TRILITH_TEST_ALL").is_none(), "{test}: there is no root tree in build/root");
        eprintln!("{test}: left out, because there is no root tree in build/root");
        return None;
    }
    let root = root.canonicalize().unwrap();
    if std::env::var_os("TRILITH_TEST_INSIDE").is_none() {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--net", "--pid", "--mount-proc", "--fork", "--kill-child"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env("TRILITH_TEST_INSIDE", "1")
            .stdout(Stdio::piped());
        let output = unshared(&mut command).wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let passed = output.status.success() && said.contains("test result: ok. 1 passed");
        assert!(passed, "{test}: failed inside its namespaces: {said}");
        return None;
    }
    let tree = root.display();
    shell(&format!(
        "mount --types tmpfs tmpfs {tree}/run && mount --types tmpfs tmpfs {tree}/dev &&
         touch {tree}/dev/null {tree}/dev/urandom && mount --bind /dev/null {tree}/dev/null &&
         mkdir --parents {tree}{} {tree}{} && chroot {tree} ip link set lo up",
        crate::paths::HAPROXY_DIR,
        crate::paths::TLS
    ));
    add_addresses(&format!("chroot {tree}"));
    Some(root)
}

/// Held by whoever has something mounted that is to be free again when he unmounts it: mounts of his own namespace are copied to each
/// that is made meanwhile.
pub static MOUNTED: RwLock<()> = RwLock::new(());

/// Starts an unshare(1) of mounts while nobody has anything mounted, and waits until it has its own.
pub fn unshared(command: &mut Command) -> Child {
    let _nothing_mounted = MOUNTED.write().unwrap_or_else(PoisonError::into_inner);
    let child = command.spawn().unwrap();
    let (ours, its) = (Path::new("/proc/self/ns/mnt"), format!("/proc/{}/ns/mnt", child.id()));
    // One that has ended has none.
    while fs::read_link(&its).is_ok_and(|its| its == fs::read_link(ours).unwrap()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

/// Puts the VIPs and the nodes' addresses of [`settings`] on `lo`, by the `ip` that `prefix` leads to.
pub fn add_addresses(prefix: &str) {
    for address in ["10.77.0.10/32", "10.77.0.11/32", "10.77.0.12/32", "10.77.0.13/32", "fd77::10/128"] {
        shell(&format!("{prefix} ip address add {address} dev lo"));
    }
}

/// What comes at once comes late on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for what `look` is to see, [`PATIENCE`] at most.
pub async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let seen = async {
        while !look().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"));
}

/// Runs a line of shell and demands that it succeeds.
pub fn shell(line: &str) {
    let status = Command::new("sh").args(["-c", line]).status().unwrap();
    assert!(status.success(), "{line}");
}

/// A HAProxy, master and worker, as the unit starts it; killed when dropped.
pub struct Proxy(Child);

impl Proxy {
    /// Starts it and waits until it answers through the VIP.
    pub async fn start(root: &Path) -> Proxy {
        let dir = crate::paths::HAPROXY_DIR;
        let mut command = Command::new("chroot");
        command
            .arg(root)
            .args(["/usr/sbin/haproxy", "-W", "-f"])
            .arg("/run/trilith/haproxy.cfg")
            .args(["-S", &format!("{dir}/master.sock,mode,660")])
            .stdin(Stdio::null());
        let proxy = Proxy(command.spawn().unwrap());
        until("HAProxy comes up", async || TcpStream::connect(("10.77.0.10", 80)).await.is_ok()).await;
        proxy
    }

    /// Sends a signal to all its processes, named as for `kill`.
    pub fn signal(&self, name: &str) {
        let id = self.0.id();
        // A worker that a reload has replaced may end just now.
        shell(&format!("kill -{name} $(cat /proc/{id}/task/{id}/children) {id} || true"));
    }

    /// Kills it hard, as systemd does for a restart, and waits until nothing of it is left.
    pub async fn kill(mut self) {
        self.signal("KILL");
        self.0.wait().unwrap();
        until("nothing of HAProxy is left", async || TcpStream::connect(("10.77.0.10", 80)).await.is_err()).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // After a panic the process namespace ends it.
        if !std::thread::panicking() && self.0.try_wait().unwrap().is_none() {
            self.signal("KILL");
            self.0.wait().unwrap();
        }
    }
}

/// An HTTP service that says who it is, on every connection once.
pub async fn instance(name: &'static str, address: &str) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n{name}");
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
}

/// One request to a port of the VIP: the body, or nothing if there was no proper answer.
pub async fn get(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("10.77.0.10", port)).await.ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.strip_prefix("HTTP/1.").filter(|rest| rest[1..].starts_with(" 200"))?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

/// The way to a HAProxy in this tree.
pub fn master(root: &Path) -> super::Master {
    super::Master::at(&root.join(&crate::paths::HAPROXY_DIR[1..]).join("master.sock"))
}

/// Writes the configuration where HAProxy reads it.
pub fn install(root: &Path, settings: &Settings) {
    let text = super::render::render(settings, NodeId(0), &Default::default(), &Default::default(), "");
    let path = root.join("run/trilith/haproxy.cfg");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
}
