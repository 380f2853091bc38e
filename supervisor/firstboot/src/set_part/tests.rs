use crate::finding::Finding;
use crate::sources::{Document, Documents};
use crate::take::{Taken, take};

const GOOD: &str = "\
#cloud-config
hostname: b
trilith:
  secret: 0123456789abcdef
  set:
    name: edge
    lease: {heartbeat: 50ms, min: 200ms}
  node:
    - {name: a, address: 10.0.0.11}
    - name: b
      address: 10.0.0.12
  vip:
    - name: public
      address: 10.0.0.10/24
      interface: eth0
  service:
    - name: web
      vip: [public]
      port: 80
      backend_port: 8080
      health: GET /healthz
";

fn taken(user_data: &str) -> Taken {
    taken_at("10.0.0.12/24", user_data)
}

fn taken_at(address: &str, user_data: &str) -> Taken {
    let network = format!("version: 2\nethernets: {{eth0: {{addresses: [{address}]}}}}\n");
    take(&Documents {
        user: vec![Document::new("user-data", user_data.as_bytes().to_vec())],
        network: Some(Document::new("network-config", network.into_bytes())),
        ..Documents::default()
    })
}

fn fault(from: &str, to: &str) -> Finding {
    assert!(GOOD.contains(from), "{from}");
    let mut faults = taken(&GOOD.replacen(from, to, 1)).findings.faults;
    assert_eq!(faults.len(), 1, "{faults:?}");
    faults.remove(0)
}

#[test]
fn the_document_becomes_toml_that_the_supervisor_reads() {
    let taken = taken(GOOD);
    assert_eq!(taken.findings.faults, []);
    let set = taken.answers.set.unwrap();
    let settings = trilith_core::config::parse(&set.document, "set.toml").unwrap();
    assert_eq!(settings.set.name, "edge");
    assert_eq!(settings.set.secret_file, "/var/lib/trilith/secret");
    assert_eq!(settings.set.lease.heartbeat.as_millis(), 50);
    assert_eq!(settings.services[0].backend_port, 8080);
    assert_eq!(set.secret.unwrap().0, "0123456789abcdef");
}

#[test]
fn which_node_this_is_comes_from_name_hostname_or_address() {
    let node = |address: &str, text: &str| taken_at(address, text).answers.set.unwrap().node;
    assert_eq!(node("10.0.0.11/24", &GOOD.replace("  secret", "  name: a\n  secret")), "a");
    assert_eq!(node("10.0.0.12/24", GOOD), "b");
    assert_eq!(node("10.0.0.11/24", &GOOD.replace("hostname: b", "hostname: elsewhere")), "a");
    let unknown = taken_at("10.0.0.14/24", &GOOD.replace("hostname: b", "hostname: x")).findings.faults;
    assert_eq!((unknown[0].line, unknown[0].key.as_str()), (3, "trilith"));
    assert!(unknown[0].mend.contains("one of a, b"), "{unknown:?}");
}

#[test]
fn an_address_that_is_not_the_nodes_own_is_refused_and_one_by_dhcp_is_trusted() {
    for (address, wrong) in [
        ("10.0.0.11/24", "which is node a's"),
        ("10.0.0.10/24", "which is VIP public"),
        ("10.0.0.14/24", "node b has 10.0.0.12"),
    ] {
        let taken = taken_at(address, GOOD);
        assert!(taken.findings.faults[0].wrong.contains(wrong), "{:?}", taken.findings);
        assert_eq!(taken.answers.set, None);
    }
    assert_eq!(taken_at("], dhcp4: true, search: [", GOOD).findings.faults, []);
    assert_eq!(taken_at("10.0.1.7/24], dhcp4: true, search: [", GOOD).findings.faults, []);
}

#[test]
fn faults_of_the_set_have_the_lines_of_the_yaml_and_its_syntax() {
    let wrong = fault("10.0.0.12", "10.0.0.999");
    assert_eq!((wrong.line, wrong.key.as_str()), (11, "trilith.node.address"));
    let wrong = fault("backend_port: 8080", "backend_port: many");
    assert_eq!((wrong.line, wrong.key.as_str()), (20, "trilith.service.backend_port"));
    let wrong = fault("      interface: eth0\n", "");
    assert_eq!((wrong.line, wrong.mend.as_str()), (13, "add a line such as interface: \"eth0\""));
    let wrong = fault("  vip:\n    - name: public\n      address: 10.0.0.10/24\n      interface: eth0\n", "");
    assert_eq!((wrong.line, wrong.key.as_str()), (3, "trilith.vip"), "{wrong}");
    assert!(!wrong.mend.contains('['), "{wrong}");
    let wrong = fault("min: 200ms", "min: 60ms");
    assert_eq!((wrong.line, wrong.key.as_str()), (7, "trilith.set.lease.min"));
    let wrong = fault("  service:", "  servise:");
    assert_eq!((wrong.line, wrong.mend.as_str()), (17, "did you mean service?"));
}

#[test]
fn the_secret_is_required_bounded_and_never_repeated() {
    assert!(fault("  secret: 0123456789abcdef\n", "").mend.contains("openssl rand"));
    let short = fault("0123456789abcdef", "tooshort");
    assert_eq!((short.line, short.key.as_str()), (4, "trilith.secret"));
    assert!(!short.to_string().contains("tooshort"));
    let debug = format!("{:?}", taken(GOOD));
    assert!(!debug.contains("0123456789abcdef"), "{debug}");
}

#[test]
fn with_a_fault_nothing_of_the_set_is_taken_but_the_network_is() {
    let taken = taken(&GOOD.replace("10.0.0.12", "nowhere"));
    assert_eq!(taken.answers.set, None);
    assert!(taken.answers.network.is_some() && !taken.network_is_wrong);
    assert_eq!(taken.answers.hostname.as_deref(), Some("b"));
}
