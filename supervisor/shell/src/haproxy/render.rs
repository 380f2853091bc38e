//! The configuration of a node's HAProxy as a value: the same settings give the same text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use sha2::{Digest, Sha256};
use trilith_core::command::BackendState;
use trilith_core::config::{FRONT_PORT, Health, Mode, Node, NodeId, Service, Settings};

use super::certificate::Copies;

/// What [`FRONT_PORT`] answers with 200.
pub const FRONT_PATH: &str = "/trilith/front";

/// Most connections that HAProxy serves at once. Each takes two file descriptors, to the client and to the backend: with the listeners
/// and checks of the largest set (64 services, 16 VIPs, 7 nodes) 19,538 by HAProxy's own count. The unit allows 65,536, but where a
/// container's host allows 20,000 that is all, and a HAProxy that needs more does not start.
///
/// An idle one costs 4 KiB in HAProxy (32 with TLS) and 9 in the kernel, so all together 115 MiB, where the smallest machine, of 256 MiB,
/// has 190 left. One that is stuck on both sides costs two buffers of 16 KiB more, so 36 KiB in HAProxy at most (64 with TLS), and
/// what the kernel queues. Who expects thousands of those, or of TLS, gives the machine more.
const MAXCONN: usize = 9000;
/// Most connections of one service: one that is flooded leaves room for the others and for the node's own probe. (Equal parts would
/// protect them from two that are flooded, but a busy service of ten would have to do with 880. A HAProxy that is full is told from
/// one that hangs instead: `front.rs`.)
const SERVICE_MAXCONN: usize = MAXCONN - FRONT_MAXCONN;
/// Most connections of the node's own probe.
const FRONT_MAXCONN: usize = 200;
/// How long a worker that a reload has replaced may go on serving its connections, unless a service's drain takes longer.
const HARD_STOP_AFTER: Duration = Duration::from_secs(3600);
/// How many reloads such a worker outlives: bounds the memory that old workers hold, about 10 MiB each.
const MAX_RELOADS: u32 = 8;
/// Backends are on the same link and a lost SYN would only come again after 1 s, so waiting longer than this for a
/// connection gains nothing. The request then goes to the next server.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(100);
/// Slow machines are given more, but not so much that a lost SYN comes again.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_millis(900);
/// How often a request is tried again elsewhere: enough to meet every node of a set of three.
const RETRIES: u32 = 3;
/// How long an instance may take to answer a health check.
const CHECK_TIMEOUT: Duration = Duration::from_millis(300);
/// Shortest time between two checks of one instance. One that hangs is out after at most this, one [`FAST_CHECK`], and two
/// [`CHECK_TIMEOUT`]s: 1.35 s. One that is dead refuses connections, which costs a request no time even before that.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Time to the next check after the first that differs from those before.
const FAST_CHECK: Duration = Duration::from_millis(250);
/// What one check adds to every interval, so that large sets make no more than 100 checks a second.
const CHECK_SPACING: Duration = Duration::from_millis(10);

/// Renders the configuration of node `me`.
///
/// The servers of a node that is not [`BackendState::Ready`] start `disabled`, so a HAProxy that systemd starts again by itself
/// sends it no request, not even its first. (HAProxy has no word for "draining from the start"; without old
/// connections it would mean the same.) A node without a state is ready.
///
/// `mark` is [`mark`], by which a running HAProxy says what it has loaded.
pub fn render(
    settings: &Settings,
    me: NodeId,
    states: &BTreeMap<NodeId, BackendState>,
    certificates: &Copies,
    mark: &str,
) -> String {
    let mut out = String::new();
    write_all(&mut out, settings, me, states, certificates, mark).expect("a String takes every write");
    out
}

/// Identifies the configuration that [`render`] makes, whatever the states of the nodes: 16 hexadecimal digits. The names of copies
/// stand for what is in them.
pub fn mark(settings: &Settings, me: NodeId, certificates: &Copies) -> String {
    digest(render(settings, me, &BTreeMap::new(), certificates, "").as_bytes())
}

/// Tells texts apart that nobody made alike: 16 hexadecimal digits.
pub fn digest(text: &[u8]) -> String {
    Sha256::digest(text)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Name of a service's backend in HAProxy.
pub fn backend(service: &Service) -> String {
    format!("be_{}", service.name)
}

fn write_all(
    out: &mut String,
    settings: &Settings,
    me: NodeId,
    states: &BTreeMap<NodeId, BackendState>,
    certificates: &Copies,
    mark: &str,
) -> std::fmt::Result {
    let slowness = settings.set.lease.slowness();
    let [interval, fast_check, check_timeout] =
        [check_interval(settings), FAST_CHECK * slowness, CHECK_TIMEOUT * slowness].map(|time| time.as_millis());
    let connect_timeout = (CONNECT_TIMEOUT * slowness).min(MAX_CONNECT_TIMEOUT).as_millis();
    let drains = settings.services.iter().map(|service| service.drain_deadline);
    let hard_stop_after = drains.fold(HARD_STOP_AFTER, Duration::max).as_secs();
    write!(
        out,
        "\
# Written by the Trilith supervisor for node {name} of set {set}. Changes made here are lost.
global
    description trilith {mark}
    maxconn {MAXCONN}
    stats socket {dir}/admin.sock mode 660 level admin expose-fd listeners
    hard-stop-after {hard_stop_after}s
    mworker-max-reloads {MAX_RELOADS}

defaults
    maxconn {SERVICE_MAXCONN}
    retries {RETRIES}
    # At once and elsewhere, not a second later at the same server.
    option redispatch 1
    timeout connect {connect_timeout}ms
    timeout check {check_timeout}ms
    timeout queue 5s
    default-server check inter {interval}ms fastinter {fast_check}ms rise 2 fall 2
",
        name = node(settings, me).name,
        set = settings.set.name,
        dir = crate::paths::HAPROXY_DIR,
    )?;
    write_front(out, settings)?;
    for service in &settings.services {
        write_frontend(out, settings, certificates, service)?;
        write_backend(out, settings, me, states, service)?;
    }
    Ok(())
}

/// The node's own probe: `tcp-request` comes first, because no later rule can keep anyone from a `monitor-uri`.
fn write_front(out: &mut String, settings: &Settings) -> std::fmt::Result {
    write!(out, "\nfrontend trilith\n    mode http\n    maxconn {FRONT_MAXCONN}\n")?;
    for vip in &settings.vips {
        writeln!(out, "    bind {}", endpoint(vip.address, FRONT_PORT))?;
    }
    for vip in &settings.vips {
        writeln!(out, "    acl self src {}", vip.address)?;
    }
    write!(
        out,
        "    tcp-request connection reject unless self
    monitor-uri {FRONT_PATH}
    http-request return status 404
    timeout client 1s
    timeout http-request 1s
"
    )
}

fn write_frontend(out: &mut String, settings: &Settings, certificates: &Copies, service: &Service) -> std::fmt::Result {
    writeln!(out, "\nfrontend fe_{}", service.name)?;
    for vip in &service.vips {
        let vip = &settings.vips[usize::from(vip.0)];
        write!(out, "    bind {} name {}", endpoint(vip.address, service.port), vip.name)?;
        if let Some(file) = &service.tls_certificate {
            // Without a copy HAProxy will not see this line.
            write!(out, " ssl crt {}", quoted(certificates.get(&service.name).unwrap_or(file)))?;
            if service.mode == Mode::Http {
                out.push_str(" alpn h2,http/1.1");
            }
        }
        out.push('\n');
    }
    out.push_str(match service.mode {
        Mode::Http => {
            "    mode http
    option forwardfor
    timeout client 1m
    timeout http-request 10s
    timeout http-keep-alive 1m
    # While it stops, a client that has just sent its next request is still answered, and told to close.
    option idle-close-on-response
"
        }
        Mode::Tcp => {
            "    mode tcp
    # A client that is gone is found by the kernel; one that is silent may stay.
    option clitcpka
    clitcpka-idle 60s
    clitcpka-intvl 10s
    clitcpka-cnt 6
    timeout client 24h
    timeout client-fin 30s
"
        }
    });
    if service.mode == Mode::Http {
        let proto = if service.tls_certificate.is_some() { "https" } else { "http" };
        writeln!(out, "    http-request set-header X-Forwarded-Proto {proto}")?;
    }
    writeln!(out, "    default_backend {}", backend(service))
}

fn write_backend(
    out: &mut String,
    settings: &Settings,
    me: NodeId,
    states: &BTreeMap<NodeId, BackendState>,
    service: &Service,
) -> std::fmt::Result {
    writeln!(out, "\nbackend {}", backend(service))?;
    out.push_str(match service.mode {
        Mode::Http => {
            "    mode http
    balance roundrobin
    # A request that the server may have seen is sent again only if that does no harm (RFC 9110, 9.2.1).
    retry-on conn-failure empty-response
    http-request disable-l7-retry unless { method GET HEAD OPTIONS }
    # What waits at a server whose node is gone is asked elsewhere after 7s, before the supervisor ends it after 10s.
    option srvtcpka
    srvtcpka-idle 3s
    srvtcpka-intvl 1s
    srvtcpka-cnt 3
    timeout server 1m
    timeout tunnel 24h
"
        }
        Mode::Tcp => {
            "    mode tcp
    balance leastconn
    option srvtcpka
    srvtcpka-idle 30s
    srvtcpka-intvl 5s
    srvtcpka-cnt 3
    timeout server 24h
    timeout server-fin 30s
"
        }
    });
    if let Health::Get { path } = &service.health {
        // The host that a client names which knows nothing but the VIP.
        let host = match service.vips.first() {
            Some(vip) => bracketed(settings.vips[usize::from(vip.0)].address),
            None => "localhost".to_owned(),
        };
        out.push_str("    option httpchk\n");
        writeln!(out, "    http-check send meth GET uri {} ver HTTP/1.1 hdr Host {host}", quoted(path))?;
    }
    let source = node(settings, me).address;
    for (id, node) in (0..).map(NodeId).zip(&settings.nodes) {
        write!(out, "    server {} {}", node.name, endpoint(node.address, service.backend_port))?;
        // Never from the VIP, which its owner might prefer for IPv6 (RFC 6724): the answer would end on the other node's `lo`.
        if source.is_ipv4() == node.address.is_ipv4() {
            write!(out, " source {}", bracketed(source))?;
        }
        // Of what was sent and not acknowledged keepalive knows nothing. (`default-server` takes this word, but not to its servers.)
        if service.mode == Mode::Http {
            out.push_str(" tcp-ut 6s");
        }
        match states.get(&id) {
            None | Some(BackendState::Ready) => {}
            Some(BackendState::Drain | BackendState::Down | BackendState::Gone) => out.push_str(" disabled"),
        }
        out.push('\n');
    }
    Ok(())
}

/// Time between two checks of one instance.
pub fn check_interval(settings: &Settings) -> Duration {
    let checks = settings.services.len() * settings.nodes.len();
    CHECK_INTERVAL.max(CHECK_SPACING * checks as u32) * settings.set.lease.slowness()
}

fn node(settings: &Settings, id: NodeId) -> &Node {
    &settings.nodes[usize::from(id.0)]
}

fn endpoint(address: IpAddr, port: u16) -> String {
    format!("{}:{port}", bracketed(address))
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// A word of HAProxy's configuration, quoted so that nothing in it is special (configuration manual, 2.2).
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::haproxy::testing;

    #[test]
    fn the_example_set_renders_as_the_golden_file_says() {
        let settings = testing::settings();
        let copies = Copies::from([("secure".to_owned(), "/run/trilith/tls/secure-0123456789abcdef.pem".to_owned())]);
        let text = render(&settings, NodeId(0), &BTreeMap::new(), &copies, &mark(&settings, NodeId(0), &copies));
        assert_eq!(text, include_str!("golden.cfg"), "\n{text}");
    }

    #[test]
    fn a_node_that_is_not_ready_starts_disabled_in_every_backend_and_the_mark_stays() {
        let settings = testing::settings();
        let states = [(NodeId(1), BackendState::Drain), (NodeId(2), BackendState::Down)].into_iter().collect();
        let text = render(&settings, NodeId(0), &states, &Copies::new(), "");
        let disabled: Vec<&str> = text
            .lines()
            .filter(|line| line.ends_with(" disabled"))
            .map(|line| line.trim_start().split_once(" 1").expect("an address").0)
            .collect();
        assert_eq!(disabled, ["server b", "server c", "server b", "server c", "server b", "server c"]);
        let ready = render(&settings, NodeId(0), &BTreeMap::new(), &Copies::new(), "");
        assert_eq!(text.replace(" disabled\n", "\n"), ready);
    }

    #[test]
    fn another_port_node_or_certificate_gives_another_mark() {
        let settings = testing::settings();
        let mut other = settings.clone();
        other.services[0].backend_port += 1;
        let none = Copies::new();
        let renewed = Copies::from([("secure".to_owned(), "/renewed.pem".to_owned())]);
        let known = mark(&settings, NodeId(0), &none);
        assert_ne!(known, mark(&other, NodeId(0), &none));
        assert_ne!(known, mark(&settings, NodeId(1), &none));
        assert_ne!(known, mark(&settings, NodeId(0), &renewed));
    }

    #[test]
    fn a_large_set_is_checked_less_often() {
        let mut settings = testing::settings();
        assert_eq!(check_interval(&settings), CHECK_INTERVAL);
        settings.services = vec![settings.services[0].clone(); 64];
        assert_eq!(check_interval(&settings), Duration::from_millis(1920));
    }

    #[test]
    fn a_quoted_word_holds_no_magic() {
        assert_eq!(quoted("/a b#$\"\\"), "'/a b#$\"\\'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }
}
