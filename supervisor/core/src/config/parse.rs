//! From a document to [`Settings`]: first each table by itself, then what must hold between them.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeTable;

use super::fault::{ConfigError, Faults, Kind, Wrong, error, quoted};
use super::table::Table;
use super::{
    DEFAULT_LEASE, Health, LeaseBounds, Lone, MAX_DOCUMENT, MAX_NODES, MAX_SERVICES, MAX_VIPS, Mode, PEER_PORT,
    Settings, addresses, fingerprint, relations, values,
};

/// Reads a document. `file_name` is only for the error.
///
/// # Errors
/// The first fault of the document, with its line, what is wrong and what would be right.
pub fn parse(text: &str, file_name: &str) -> Result<Settings, ConfigError> {
    if text.len() > MAX_DOCUMENT {
        let wrong = format!("is {} bytes long", text.len());
        let right = format!("keep it to {MAX_DOCUMENT} bytes; is this the right file?");
        return Err(ConfigError {
            excerpt: Box::default(),
            ..error("", file_name, 0..0, "document", Wrong::new(wrong, right))
        });
    }
    let document = DeTable::parse(text).map_err(|fault| syntax_error(text, file_name, &fault))?;
    let mut faults = Faults::default();
    let draft = Draft::read(document.get_ref(), &mut faults);
    let settings = match draft {
        Some(draft) if faults.is_empty() => relations::resolve(draft, &mut faults),
        _ => None,
    };
    match (faults.into_error(text, file_name), settings) {
        (Some(error), _) => Err(error),
        (None, settings) => {
            let settings = settings.expect("a draft lacks something only where a fault was noted");
            Ok(Settings { fingerprint: fingerprint::of(&settings), ..settings })
        }
    }
}

/// Reads a document that may not even be text.
///
/// # Errors
/// Those of [`parse`], and one for the first byte that is not UTF-8.
pub fn parse_bytes(bytes: &[u8], file_name: &str) -> Result<Settings, ConfigError> {
    match str::from_utf8(bytes) {
        Ok(text) => parse(text, file_name),
        Err(fault) => {
            let good = String::from_utf8_lossy(&bytes[..fault.valid_up_to()]);
            let wrong = format!("is not UTF-8 text: byte {:#04x}", bytes[fault.valid_up_to()]);
            let right = "save it as UTF-8; is this the right file?";
            let at = good.len()..good.len();
            Err(error(&good, file_name, at, "document", Wrong::new(wrong, right)))
        }
    }
}

/// A document whose tables are right by themselves, with the places of what may yet clash.
pub(super) struct Draft {
    pub(super) set: super::Set,
    pub(super) nodes: Vec<NodeDraft>,
    pub(super) vips: Vec<VipDraft>,
    pub(super) services: Vec<ServiceDraft>,
}

pub(super) struct NodeDraft {
    pub(super) at: Range<usize>,
    pub(super) name: Spanned<String>,
    pub(super) address: Spanned<IpAddr>,
    pub(super) address6: Option<Spanned<Ipv6Addr>>,
    pub(super) zone: Option<String>,
}

pub(super) struct VipDraft {
    pub(super) name: Spanned<String>,
    pub(super) address: Spanned<(IpAddr, u8)>,
    pub(super) interface: String,
    pub(super) prefer: Option<Spanned<String>>,
}

pub(super) struct ServiceDraft {
    pub(super) name: Spanned<String>,
    pub(super) vips: Vec<Spanned<String>>,
    pub(super) port: Spanned<u16>,
    pub(super) mode: Mode,
    pub(super) backend_port: Spanned<u16>,
    pub(super) health: Health,
    pub(super) unit: Option<String>,
    pub(super) tls_certificate: Option<String>,
    pub(super) drain_deadline: Duration,
}

impl Draft {
    /// `None` only where a fault was noted.
    fn read(entries: &DeTable<'_>, faults: &mut Faults) -> Option<Draft> {
        let mut document = Table::document(entries);
        let set = document.table(faults, "set");
        let nodes = document.tables(faults, "node");
        let vips = document.tables(faults, "vip");
        let services = document.tables(faults, "service");
        if set.is_none() {
            let right = "begin the document with [set], name and secret_file";
            faults.note(Kind::Missing, 0..0, "set", Wrong::new("is missing", right));
        }
        count(faults, "node", &nodes, 1, MAX_NODES);
        count(faults, "vip", &vips, 1, MAX_VIPS);
        count(faults, "service", &services, 0, MAX_SERVICES);
        document.finish(faults);

        // Every table is read, also after a fault: the earliest one is to be found.
        let set = set.and_then(|table| read_set(table, faults));
        let nodes: Vec<_> = nodes.into_iter().map(|table| read_node(table, faults)).collect();
        let vips: Vec<_> = vips.into_iter().map(|table| read_vip(table, faults)).collect();
        let services: Vec<_> = services.into_iter().map(|table| read_service(table, faults)).collect();
        Some(Draft {
            set: set?,
            nodes: nodes.into_iter().collect::<Option<_>>()?,
            vips: vips.into_iter().collect::<Option<_>>()?,
            services: services.into_iter().collect::<Option<_>>()?,
        })
    }
}

fn count(faults: &mut Faults, key: &str, tables: &[Table<'_>], least: usize, most: usize) {
    if tables.len() < least {
        let wrong = Wrong::new("is missing", format!("add at least one [[{key}]]"));
        faults.note(Kind::Missing, 0..0, key, wrong);
    }
    if let Some(surplus) = tables.get(most) {
        let wrong = format!("is one too many: there are {}", tables.len());
        faults.note(Kind::Value, surplus.at(), key, Wrong::new(wrong, format!("a set has at most {most}")));
    }
}

fn read_set(mut table: Table<'_>, faults: &mut Faults) -> Option<super::Set> {
    let name = table.required(faults, "name", "\"edge-1\"", values::label);
    let secret_file = table.required(faults, "secret_file", "\"/var/lib/trilith/secret\"", values::path);
    let peer_port = table.optional(faults, "peer_port", values::port);
    let lone = table.optional(faults, "lone", values::lone);
    let rebalance =
        table.optional(faults, "rebalance_after", |value| values::duration_or_never(value, REBALANCE_AFTER));
    let stun = table.optional(faults, "stun", |value| values::duration(value, STUN));
    let lease = table.table(faults, "lease");
    table.finish(faults);
    let lease = match lease {
        Some(lease) => read_lease(lease, faults),
        None => Some(DEFAULT_LEASE),
    };
    Some(super::Set {
        name: name?.into_inner(),
        secret_file: secret_file?.into_inner(),
        peer_port: peer_port.map_or(PEER_PORT, Spanned::into_inner),
        lone: lone.map_or(Lone::Serve, Spanned::into_inner),
        rebalance_after: rebalance.and_then(Spanned::into_inner),
        stun: stun.map_or(Duration::ZERO, Spanned::into_inner),
        lease: lease?,
    })
}

fn read_lease(mut table: Table<'_>, faults: &mut Faults) -> Option<LeaseBounds> {
    let heartbeat = table.optional(faults, "heartbeat", |value| values::duration(value, HEARTBEAT));
    let shortest = *HEARTBEAT.start() * HALF_HEARTBEATS_PER_LEASE / 2;
    let min = table.optional(faults, "min", |value| values::duration(value, shortest..=LONGEST_LEASE));
    let max = table.optional(faults, "max", |value| values::duration(value, shortest..=LONGEST_LEASE));
    let bounds = LeaseBounds {
        heartbeat: heartbeat.as_ref().map_or(DEFAULT_LEASE.heartbeat, |at| *at.get_ref()),
        min: min.as_ref().map_or(DEFAULT_LEASE.min, |at| *at.get_ref()),
        max: max.as_ref().map_or(DEFAULT_LEASE.max, |at| *at.get_ref()),
    };
    let least = bounds.heartbeat * HALF_HEARTBEATS_PER_LEASE / 2;
    if bounds.min < least {
        let at = min.as_ref().map_or(table.at(), Spanned::span);
        let wrong = format!(
            "{} is less than two heartbeats and a half of {}",
            of_value(bounds.min, min.is_some()),
            values::in_words(bounds.heartbeat)
        );
        let right = format!("write min = \"{}\" or more: a lost packet must not cost the VIP", values::in_words(least));
        faults.note(Kind::Relation, at, table.path("min"), Wrong::new(wrong, right));
    }
    if bounds.max < bounds.min {
        let at = max.as_ref().map_or(table.at(), Spanned::span);
        let wrong = format!(
            "{} is less than min, which is {}",
            of_value(bounds.max, max.is_some()),
            values::in_words(bounds.min)
        );
        let right = format!("write max = \"{}\" or more", values::in_words(bounds.min));
        faults.note(Kind::Relation, at, table.path("max"), Wrong::new(wrong, right));
    }
    table.finish(faults);
    Some(bounds)
}

fn of_value(duration: Duration, written: bool) -> String {
    let words = values::in_words(duration);
    if written { words } else { format!("{words}, the default,") }
}

fn read_node(mut table: Table<'_>, faults: &mut Faults) -> Option<NodeDraft> {
    let name = table.required(faults, "name", "\"a\"", values::label);
    let address = table.required(faults, "address", "\"10.77.0.11\"", addresses::address);
    let address6 = table.optional(faults, "address6", addresses::address6);
    let zone = table.optional(faults, "zone", values::zone);
    let at = table.at();
    table.finish(faults);
    Some(NodeDraft { at, name: name?, address: address?, address6, zone: zone.map(Spanned::into_inner) })
}

fn read_vip(mut table: Table<'_>, faults: &mut Faults) -> Option<VipDraft> {
    let name = table.required(faults, "name", "\"public\"", values::label);
    let address = table.required(faults, "address", "\"10.77.0.10/24\"", addresses::subnet_address);
    let interface = table.required(faults, "interface", "\"eth0\"", values::interface);
    let prefer = table.optional(faults, "prefer", values::reference);
    table.finish(faults);
    Some(VipDraft { name: name?, address: address?, interface: interface?.into_inner(), prefer })
}

fn read_service(mut table: Table<'_>, faults: &mut Faults) -> Option<ServiceDraft> {
    let name = table.required(faults, "name", "\"portal\"", values::label);
    let vips = table.required(faults, "vip", "\"public\"", values::references);
    let port = table.required(faults, "port", "443", values::service_port);
    let mode = table.optional(faults, "mode", values::mode).map_or(Mode::Http, Spanned::into_inner);
    let backend_port = table.required(faults, "backend_port", "8080", values::backend_port);
    let health = table.optional(faults, "health", values::health);
    let unit = table.optional(faults, "unit", values::unit);
    let tls_certificate = table.optional(faults, "tls_certificate", values::path);
    let drain_deadline = table.optional(faults, "drain_deadline", |value| values::duration(value, DRAIN_DEADLINE));
    table.finish(faults);
    let usual_health = match mode {
        Mode::Tcp => Health::Connect,
        Mode::Http => Health::Get { path: "/".to_owned() },
    };
    Some(ServiceDraft {
        name: name?,
        vips: vips.map(spread_span)?,
        port: port?,
        mode,
        backend_port: backend_port?,
        health: health.map_or(usual_health, Spanned::into_inner),
        unit: unit.map(Spanned::into_inner),
        tls_certificate: tls_certificate.map(Spanned::into_inner),
        drain_deadline: drain_deadline.map_or(DEFAULT_DRAIN_DEADLINE, Spanned::into_inner),
    })
}

/// A single name has the place of the whole value.
fn spread_span(names: Spanned<Vec<Spanned<String>>>) -> Vec<Spanned<String>> {
    let whole = names.span();
    let place = |name: Spanned<String>| {
        if name.span().is_empty() { Spanned::new(whole.clone(), name.into_inner()) } else { name }
    };
    names.into_inner().into_iter().map(place).collect()
}

/// What the TOML parser says, in our form: `what is wrong, expected what is right`.
fn syntax_error(text: &str, file_name: &str, fault: &toml::de::Error) -> ConfigError {
    let at = fault.span().unwrap_or(0..0);
    let wrong = match fault.message().split_once(", expected ").unwrap_or((fault.message(), "")) {
        ("duplicate key", _) => {
            let key = text.get(at.clone()).unwrap_or_default();
            Wrong::new(format!("{} is given a second time", quoted(key)), "leave one of the two out")
        }
        ("string values must be quoted", _) => {
            Wrong::new("a text stands here without quotes", "put it in quotes: \"…\"")
        }
        (wrong, "") => Wrong::new(wrong, "see the TOML specification, toml.io"),
        (wrong, expected) => Wrong::new(wrong, format!("expected here: {expected}")),
    };
    error(text, file_name, at, "TOML syntax", wrong)
}

/// The shortest lease must hold two heartbeats and a half: with less, one lost packet ends it.
const HALF_HEARTBEATS_PER_LEASE: u32 = 5;
const HEARTBEAT: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(1);
const LONGEST_LEASE: Duration = Duration::from_secs(10);
const REBALANCE_AFTER: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(24 * 3_600);
/// Longer than that, and connections to its services are ended, too ([`crate::node::GONE_AFTER`]).
const STUN: std::ops::RangeInclusive<Duration> = Duration::ZERO..=crate::node::GONE_AFTER;
const DRAIN_DEADLINE: std::ops::RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3_600);
const DEFAULT_DRAIN_DEADLINE: Duration = Duration::from_secs(30);
