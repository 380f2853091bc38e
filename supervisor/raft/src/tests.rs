//! What the tests of this crate share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use trilith_core::config::{self, Settings};

/// A folder of its own for one test, gone at its end.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(test: &str) -> Folder {
        // In memory where that can be: thousands of syncs on a slow disk would test the disk.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let path = place.join(format!("trilith-raft-{test}-{}", std::process::id()));
        // RUST_LOG=trilith_raft=info shows what happens in a test that fails.
        let _ = tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env()).with_test_writer().try_init();
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Settings of a set of these nodes, on loopback addresses that no other set of this process has.
pub fn settings(nodes: &[&str], port: u16) -> Arc<Settings> {
    static SETS: AtomicU8 = AtomicU8::new(1);
    let set = SETS.fetch_add(1, Ordering::Relaxed);
    let mut text = format!("[set]\nname = \"edge-1\"\nsecret_file = \"/secret\"\npeer_port = {port}\n");
    for (place, name) in nodes.iter().enumerate() {
        text += &format!("[[node]]\nname = \"{name}\"\naddress = \"10.77.0.{}\"\n", place + 1);
    }
    text += "[[vip]]\nname = \"web\"\naddress = \"10.77.0.200/24\"\ninterface = \"eth0\"\n";
    let mut settings = config::parse(&text, "test.toml").unwrap();
    for (place, node) in settings.nodes.iter_mut().enumerate() {
        node.address = [127, 77, set, place as u8 + 1].into();
    }
    Arc::new(settings)
}

/// A port for one test. Each set has addresses of its own, so one is enough for a process; it differs between processes.
pub fn port() -> u16 {
    20_000 + (std::process::id() % 10_000) as u16
}

/// Waits until `holds`.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
