//! A short name for what a document means, by which nodes see whether they agree.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::{Health, Lone, Mode, Settings};

/// The first 4 bytes of the SHA-256 of [`meaning`].
pub(super) fn of(settings: &Settings) -> u32 {
    let digest = Sha256::digest(meaning(settings).as_bytes());
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// One line for each setting, in a fixed order. Values hold no newline, so different settings never read the same.
///
/// A setting of a later version is written only where it differs from what versions before it did: otherwise the nodes of
/// a set would disagree during every rolling upgrade.
fn meaning(settings: &Settings) -> String {
    let Settings { set, nodes, vips, services, fingerprint: _ } = settings;
    let mut text = String::new();
    let mut line = |key: &str, value: &dyn std::fmt::Display| {
        writeln!(text, "{key}={value}").expect("a String takes everything");
    };
    line("set.name", &set.name);
    line("set.secret_file", &set.secret_file);
    line("set.peer_port", &set.peer_port);
    line("set.lone", &lone(set.lone));
    if let Some(after) = set.rebalance_after {
        line("set.rebalance_after", &after.as_millis());
    }
    if !set.stun.is_zero() {
        line("set.stun", &set.stun.as_millis());
    }
    line("set.lease.heartbeat", &set.lease.heartbeat.as_millis());
    line("set.lease.min", &set.lease.min.as_millis());
    line("set.lease.max", &set.lease.max.as_millis());
    for node in nodes {
        line("node.name", &node.name);
        line("node.address", &node.address);
        if let Some(address6) = node.address6 {
            line("node.address6", &address6);
        }
        if let Some(zone) = &node.zone {
            line("node.zone", zone);
        }
    }
    for vip in vips {
        line("vip.name", &vip.name);
        line("vip.address", &vip.address);
        line("vip.prefix", &vip.prefix);
        line("vip.interface", &vip.interface);
        line("vip.prefer", &vip.prefer.0);
    }
    for service in services {
        line("service.name", &service.name);
        for vip in &service.vips {
            line("service.vip", &vip.0);
        }
        line("service.port", &service.port);
        line("service.mode", &mode(service.mode));
        line("service.backend_port", &service.backend_port);
        line("service.health", &health(&service.health));
        if let Some(unit) = &service.unit {
            line("service.unit", unit);
        }
        if let Some(certificate) = &service.tls_certificate {
            line("service.tls_certificate", certificate);
        }
        line("service.drain_deadline", &service.drain_deadline.as_millis());
    }
    text
}

fn lone(lone: Lone) -> &'static str {
    match lone {
        Lone::Serve => "serve",
        Lone::Release => "release",
    }
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Tcp => "tcp",
        Mode::Http => "http",
    }
}

fn health(health: &Health) -> String {
    match health {
        Health::Connect => "connect".to_owned(),
        Health::Get { path } => format!("GET {path}"),
    }
}
