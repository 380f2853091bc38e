//! Documents as data: good ones are read, bad ones are refused with exactly the recorded words.
//!
//! `TRILITH_BLESS=1 cargo test -p trilith-core --test config` records the words anew; their diff is read as a review.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test reads its data, and stops where it stands")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use trilith_core::config::{
    ConfigError, FRONT_PORT, Health, Lone, MAX_DOCUMENT, Mode, NodeId, PEER_PORT, SSH_PORT, VipId,
};
use trilith_core::config::{parse, parse_bytes};

#[test]
fn every_bad_document_is_refused_with_the_recorded_words() {
    let bless = std::env::var_os("TRILITH_BLESS").is_some();
    let mut unlike = Vec::new();
    for path in documents("bad") {
        let recorded = path.with_extension("err");
        let error = read(&path).expect_err(&format!("{} must be refused", path.display()));
        let said = format!("{error}\n");
        if bless {
            fs::write(&recorded, said).unwrap();
        } else if fs::read_to_string(&recorded).unwrap_or_default() != said {
            unlike.push(format!("{}:\n{said}", path.display()));
        }
    }
    assert!(unlike.is_empty(), "said otherwise than recorded:\n\n{}", unlike.join("\n"));
}

#[test]
fn every_recorded_error_names_its_place_and_what_would_be_right() {
    for path in documents("bad") {
        let error = read(&path).unwrap_err();
        let text = fs::read(&path).unwrap();
        let lines = text.split(|byte| *byte == b'\n').count();
        assert!((1..=lines).contains(&(error.line as usize)), "{error}");
        for words in [&error.key, &error.wrong, &error.right] {
            assert!(!words.is_empty() && !words.contains('\n'), "{error}");
        }
        assert!(error.to_string().lines().all(|line| line.chars().count() < 250), "{error}");
    }
}

#[test]
fn every_good_document_is_read() {
    for path in documents("good") {
        if let Err(error) = read(&path) {
            panic!("{error}");
        }
    }
}

/// The guide goes with the kit, so it has the table of keys, too.
#[test]
fn the_admin_guide_lists_the_same_keys_as_the_module() {
    let module = include_str!("../src/config/mod.rs").replace("[`PEER_PORT`]", &PEER_PORT.to_string());
    let keys: Vec<&str> = module.lines().filter_map(|line| line.strip_prefix("//! ")).collect();
    let keys: Vec<&str> = keys.into_iter().filter(|line| line.starts_with("| `")).collect();
    let guide = include_str!("../../../docs/admin-guide.md");
    let guide = guide.split("## All keys").nth(1).expect("its last part");
    let listed: Vec<&str> = guide.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(keys.len() > 20);
    assert_eq!(listed, keys);
}

#[test]
fn the_issues_example_becomes_settings_with_the_documented_defaults() {
    let settings = parse(&good("minimal.toml"), "minimal.toml").unwrap();
    assert_eq!(settings.set.name, "edge-1");
    assert_eq!(settings.set.peer_port, PEER_PORT);
    assert_eq!(settings.set.lone, Lone::Serve);
    assert_eq!(settings.set.rebalance_after, None);
    assert_eq!(settings.set.stun, Duration::ZERO);
    assert_eq!(settings.set.lease.heartbeat, Duration::from_millis(40));
    assert_eq!(settings.set.lease.min, Duration::from_millis(100));
    assert_eq!(settings.set.lease.max, Duration::from_millis(500));
    assert_eq!(settings.nodes[0].zone.as_deref(), Some("host-1"));
    assert_eq!((settings.vips[0].prefix, settings.vips[0].prefer), (24, NodeId(0)));
    let portal = &settings.services[0];
    assert_eq!((portal.port, portal.backend_port, portal.mode), (443, 8080, Mode::Http));
    assert_eq!(portal.health, Health::Get { path: "/healthz".to_owned() });
    assert_eq!(portal.drain_deadline, Duration::from_secs(30));
}

#[test]
fn every_key_of_a_full_document_is_read() {
    let settings = parse(&good("full.toml"), "full.toml").unwrap();
    assert_eq!(settings.set.peer_port, 7000);
    assert_eq!(settings.set.lone, Lone::Release);
    assert_eq!(settings.set.rebalance_after, Some(Duration::from_secs(600)));
    assert_eq!(settings.set.stun, Duration::from_millis(2500));
    assert_eq!(settings.set.lease.max, Duration::from_secs(2));
    assert_eq!(settings.nodes.len(), 3);
    assert_eq!(settings.node_named("c"), Some(NodeId(2)));
    assert_eq!(settings.node_name(NodeId(2)), "c");
    assert_eq!(settings.node_name(NodeId(9)), "?");
    assert_eq!(settings.vip_named("public6"), Some(VipId(1)));
    assert_eq!(settings.vips[0].prefer, NodeId(2));
    assert_eq!(settings.vips[1].prefer, NodeId(1), "without prefer the VIPs are spread in turn");
    let vip6 = settings.vips[1].address;
    assert_eq!(settings.nodes[0].address_like(vip6), Some("fd77::11".parse().unwrap()));
    assert_eq!(settings.services[0].vips, [VipId(0), VipId(1)]);
    assert_eq!(settings.services[0].unit.as_deref(), Some("portal.service"));
    assert_eq!(settings.services[1].mode, Mode::Tcp);
    assert_eq!(settings.services[1].health, Health::Connect);
    assert_eq!(settings.services[1].drain_deadline, Duration::ZERO);
}

#[test]
fn the_fingerprint_follows_the_meaning_and_not_the_text() {
    let text = good("minimal.toml");
    let fingerprint = parse(&text, "f").unwrap().fingerprint;
    assert_eq!(fingerprint, 0x346b_53eb, "nodes of another version would disagree: see fingerprint.rs");
    let spelt_out = text.replace("[[node]]", "peer_port = 8745 # the default\nlone = 'serve'\n\n[[node]]");
    assert_eq!(parse(&spelt_out, "f").unwrap().fingerprint, fingerprint);
    for (from, to) in [("8080", "8081"), ("edge-1", "edge-2"), ("/24", "/23"), ("host-1", "host-2"), ("/healthz", "/")]
    {
        let other = parse(&text.replace(from, to), "f").unwrap();
        assert_ne!(other.fingerprint, fingerprint, "{from} -> {to}");
    }
}

#[test]
fn a_document_cut_off_anywhere_is_refused_or_read_but_never_a_panic() {
    for path in documents("good") {
        let bytes = fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            bearable(parse_bytes(&bytes[..length], "cut.toml").err());
        }
    }
}

#[test]
fn a_document_with_any_byte_changed_is_refused_or_read_but_never_a_panic() {
    for path in documents("good") {
        let mut bytes = fs::read(&path).unwrap();
        for place in 0..bytes.len() {
            let was = bytes[place];
            for other in [0, b'"', b'\n', b'[', was ^ 1, 0xff] {
                bytes[place] = other;
                bearable(parse_bytes(&bytes, "changed.toml").err());
            }
            bytes[place] = was;
        }
    }
}

#[test]
fn noise_and_scrambled_documents_are_never_a_panic() {
    let mut random = XorShift(0x5eed_0f7e_57a5_1234);
    let lines: Vec<String> =
        documents("good").chain(documents("bad")).filter_map(|path| fs::read_to_string(path).ok()).collect();
    let lines: Vec<&str> = lines.iter().flat_map(|text| text.lines()).collect();
    for _ in 0..1_000 {
        let noise: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
        bearable(parse_bytes(&noise, "noise.toml").err());
        let scrambled: Vec<&str> = (0..random.below(30)).map(|_| lines[random.below(lines.len())]).collect();
        bearable(parse_bytes(scrambled.join("\n").as_bytes(), "scrambled.toml").err());
    }
}

#[test]
fn a_document_of_the_greatest_size_is_read_in_bounded_time_and_a_longer_one_is_refused() {
    let begun = std::time::Instant::now();
    for piece in
        ["[", "[[a]]\n", "a.", "x={", "[[node]]\nname='a'\n", "\"", "#\n", "é", "a=1\n", "[[vip]]\nprefer='a'\n", " "]
    {
        let text = piece.repeat(MAX_DOCUMENT / piece.len());
        bearable(parse(&text, "great.toml").err());
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "took {:?}", begun.elapsed());
    let error = parse(&" ".repeat(MAX_DOCUMENT + 1), "great.toml").unwrap_err();
    assert_eq!(
        error.to_string(),
        "great.toml:1:1: document: is 262145 bytes long; keep it to 262144 bytes; is this the right file?"
    );
}

#[test]
fn the_ports_of_the_supervisor_itself_are_no_services() {
    let text = good("minimal.toml").replace("8080", &FRONT_PORT.to_string());
    assert_eq!(parse(&text, "f").unwrap_err().key, "service.backend_port");
}

#[test]
fn the_node_s_ssh_server_may_be_behind_a_service_but_not_in_its_place() {
    let behind = good("minimal.toml").replace("8080", &SSH_PORT.to_string());
    assert_eq!(parse(&behind, "f").unwrap().services[0].backend_port, SSH_PORT);
    let text = good("minimal.toml").replace("port = 443", &format!("port = {SSH_PORT}"));
    assert_eq!(parse(&text, "f").unwrap_err().key, "service.port");
}

/// What holds for every error, whatever the document.
fn bearable(error: Option<ConfigError>) {
    if let Some(error) = error {
        let shown = error.to_string();
        assert!(shown.len() < 2_000, "{} bytes: {shown}", shown.len());
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
    }
}

fn read(path: &Path) -> Result<trilith_core::config::Settings, ConfigError> {
    let name = path.file_name().expect("the test documents are there").to_string_lossy();
    parse_bytes(&fs::read(path).expect("the test documents are there"), &name)
}

fn good(name: &str) -> String {
    fs::read_to_string(folder("good").join(name)).expect("the test documents are there")
}

fn documents(kind: &str) -> impl Iterator<Item = PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder(kind))
        .expect("the test documents are there")
        .map(|entry| entry.expect("the test documents are there").path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    assert!(!paths.is_empty(), "no documents in {kind}");
    paths.into_iter()
}

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(kind)
}

/// Marsaglia's xorshift: the same numbers on every run.
struct XorShift(u64);

impl XorShift {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
