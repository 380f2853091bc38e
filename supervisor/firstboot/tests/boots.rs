//! Boot after boot in a root of its own: what is taken, what is kept, and what an admin is told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

use std::fs;
use std::path::{Path, PathBuf};

use trilith_firstboot::report::{NetworkOutcome, Outcome, Report};
use trilith_firstboot::run::{Options, run};
use trilith_firstboot::store::Store;

/// A machine: its root, and a disk with answers that may be attached.
struct Machine {
    directory: PathBuf,
}

impl Machine {
    fn new(test: &str) -> Machine {
        let directory = std::env::temp_dir().join(format!("trilith-boots-{test}-{}", std::process::id()));
        let machine = Machine { directory };
        fs::create_dir_all(machine.root().join("etc")).unwrap();
        machine.detach();
        machine
    }

    fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    fn attach(&self, id: &str, user_data: &str, network: Option<&str>) {
        let disk = self.directory.join("disk");
        let _ = fs::remove_dir_all(&disk);
        fs::create_dir_all(&disk).unwrap();
        fs::write(disk.join("meta-data"), format!("instance-id: {id}\n")).unwrap();
        fs::write(disk.join("user-data"), user_data).unwrap();
        if let Some(network) = network {
            fs::write(disk.join("network-config"), network).unwrap();
        }
    }

    /// A CD-ROM as a hypervisor makes it of an OVA's properties.
    fn attach_properties(&self, properties: &str) {
        self.detach();
        let namespace = "http://schemas.dmtf.org/ovf/environment/1";
        let xml = format!(
            "<Environment xmlns=\"{namespace}\" xmlns:oe=\"{namespace}\"><PropertySection>\n{properties}</PropertySection>\n\
             </Environment>\n"
        );
        fs::write(self.directory.join("disk/ovf-env.xml"), xml).unwrap();
    }

    fn detach(&self) {
        let disk = self.directory.join("disk");
        let _ = fs::remove_dir_all(&disk);
        fs::create_dir_all(&disk).unwrap();
    }

    /// A boot: `/etc` and `/run` are new, the state stays.
    fn boot(&self) -> Report {
        for new in ["etc", "run"] {
            let _ = fs::remove_dir_all(self.root().join(new));
            fs::create_dir_all(self.root().join(new)).unwrap();
        }
        run(&Options { root: self.root(), seed: Some(self.directory.join("disk")) }).unwrap()
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn has(&self, path: &str) -> bool {
        self.root().join(path).exists()
    }

    fn networks(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root().join("etc/systemd/network")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    fn notices(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root().join("run/trilith/notices")).unwrap().flatten();
        let mut notices: Vec<String> = entries.map(|entry| fs::read_to_string(entry.path()).unwrap()).collect();
        notices.sort();
        notices
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

const GOOD: &str = "\
#cloud-config
hostname: a
users:
  - {name: eve, passwd: '$6$abcdefgh$abcdefghijklmnopqrstuvwxyz', lock_passwd: false}
trilith:
  secret: 0123456789abcdef
  set: {name: edge}
  node: [{name: a, address: 10.0.0.11}]
  vip: [{name: public, address: 10.0.0.10/24, interface: eth0}]
";
const NETWORK: &str = "version: 2\nethernets: {eth0: {addresses: [10.0.0.11/24]}}\n";

#[test]
fn answers_are_taken_once_and_a_detached_disk_changes_nothing() {
    let machine = Machine::new("once");
    machine.attach("one", GOOD, Some(NETWORK));
    let first = machine.boot();
    assert_eq!((first.outcome, first.network), (Outcome::Taken, NetworkOutcome::Answers));
    assert_eq!(machine.read("var/lib/trilith/node"), "a\n");
    let etc = |machine: &Machine| {
        ["etc/hostname", "etc/hosts", "etc/passwd", "etc/shadow", "etc/systemd/network/10-trilith-00-eth0.network"]
            .map(|path| machine.read(path))
    };
    let before = etc(&machine);
    machine.detach();
    let second = machine.boot();
    assert_eq!((second.outcome, second.faults, second.notices), (Outcome::Kept, vec![], vec![]));
    assert_eq!(etc(&machine), before);
    assert!(before[3].contains("eve:$6$"));
}

#[test]
fn other_answers_are_told_and_ignored_until_a_reset() {
    let machine = Machine::new("other");
    machine.attach("one", GOOD, Some(NETWORK));
    machine.boot();
    machine.attach("two", &GOOD.replace("edge", "other"), Some(NETWORK));
    let told = machine.boot();
    assert_eq!(told.outcome, Outcome::Kept);
    assert!(
        machine.notices()[0].contains("instance-id two, in force is one")
            && machine.notices()[0].contains("node reset")
    );
    assert!(machine.read("var/lib/trilith/set.toml").contains("edge"));
    Store::below(&machine.root()).want_reset().unwrap();
    assert_eq!(machine.boot().outcome, Outcome::Taken);
    assert!(machine.read("var/lib/trilith/set.toml").contains("other"));
    assert_eq!(machine.boot().outcome, Outcome::Kept);
}

#[test]
fn wrong_answers_leave_the_node_reachable_and_mended_ones_are_taken_at_the_next_boot() {
    let machine = Machine::new("wrong");
    machine.attach("one", &GOOD.replace("10.0.0.10/24", "10.0.0.10"), Some(NETWORK));
    let wrong = machine.boot();
    assert_eq!((wrong.outcome, wrong.network), (Outcome::Wrong, NetworkOutcome::Answers));
    assert_eq!((wrong.faults[0].line, wrong.faults[0].key.as_str()), (9, "trilith.vip.address"));
    assert!(machine.notices()[0].contains("user-data:9: trilith.vip.address"), "{:?}", machine.notices());
    assert_eq!(machine.networks(), ["10-trilith-00-eth0.network"]);
    assert_eq!(machine.read("etc/hostname"), "a\n");
    assert!(!machine.has("var/lib/trilith/set.toml") && !machine.has("var/lib/trilith/answers.toml"));
    machine.attach("one", GOOD, Some(NETWORK));
    assert_eq!(machine.boot().outcome, Outcome::Taken);
    assert!(machine.notices().is_empty());
}

#[test]
fn a_file_that_cannot_be_read_keeps_all_from_being_stored_and_the_network_stands() {
    let machine = Machine::new("unreadable");
    for (file, network) in [("user-data", NetworkOutcome::Answers), ("network-config", NetworkOutcome::Wrong)] {
        machine.attach("one", GOOD, Some(NETWORK));
        // A folder in its place can't be read by root either.
        fs::remove_file(machine.directory.join("disk").join(file)).unwrap();
        fs::create_dir(machine.directory.join("disk").join(file)).unwrap();
        let wrong = machine.boot();
        assert_eq!((wrong.outcome, wrong.network), (Outcome::Wrong, network));
        let told = format!("the first-boot answers are wrong: {file}: can't be read: ");
        assert!(machine.notices()[0].starts_with(&told), "{:?}", machine.notices());
        assert!(!machine.has("var/lib/trilith/set.toml") && !machine.has("var/lib/trilith/answers.toml"));
    }
    machine.attach("one", GOOD, Some(NETWORK));
    assert_eq!(machine.boot().outcome, Outcome::Taken);
}

/// What of it is right by itself is applied, in memory only: the next boot asks again.
#[test]
fn wrong_ovf_properties_are_told_on_the_console_and_leave_nothing_behind() {
    const GOOD: [(&str, &str); 7] = [
        ("node", "a"),
        ("address", "10.0.0.11/24"),
        ("gateway", "10.0.0.1"),
        ("set-name", "edge"),
        ("nodes", "a=10.0.0.11, b=10.0.0.12, c=10.0.0.13"),
        ("vips", "public=10.0.0.10/24"),
        ("secret", "&quot;0123456789&quot; &amp; 東京"),
    ];
    let long = "x".repeat(64 * 1024);
    let machine = Machine::new("properties");
    let boot = |changed: &str, value: &str| {
        let line = |(key, good): (&str, &str)| {
            let value = if key == changed { value } else { good };
            format!("<Property oe:key=\"trilith.{key}\" oe:value=\"{value}\"/>\n")
        };
        machine.attach_properties(&GOOD.map(line).concat());
        machine.boot()
    };
    for (key, value, told) in [
        ("secret", "", "trilith: the secret is missing"),
        ("secret", &long, "trilith.secret: has 65536 bytes"),
        ("address", "10.0.0.11", "ethernets.eth0.addresses: \"10.0.0.11\" is no address with a prefix length"),
        (
            "nodes",
            "a=10.0.0.11, b=10.0.0.11, c=10.0.0.13",
            "trilith.node.address: 10.0.0.11 is the address of node a already",
        ),
        (
            "vips",
            "public=10.9.0.10/24",
            "trilith.vip.address: the subnet of 10.9.0.10/24 does not hold node a's address 10.0.0.11",
        ),
        ("set-name", "&quot;edge&quot; &amp;&#10;", "trilith.set.name: \"\\\"edge\\\" &\" is no DNS label"),
        ("set-name", "東京", "trilith.set.name: \"東京\" is no DNS label"),
    ] {
        let report = boot(key, value);
        let network = if key == "address" { NetworkOutcome::Wrong } else { NetworkOutcome::Answers };
        assert_eq!((report.outcome, report.network), (Outcome::Wrong, network), "{key} = {value:.80}");
        let [notice] = &machine.notices()[..] else { panic!("{:?}", machine.notices()) };
        assert!(notice.starts_with("the first-boot answers are wrong: OVF environment:"), "{notice}");
        assert!(notice.contains(told) && notice.len() < 500, "{notice:.500}");
        let state = fs::read_dir(machine.root().join("var/lib/trilith")).into_iter().flatten().flatten();
        assert_eq!(state.map(|entry| entry.file_name()).collect::<Vec<_>>(), Vec::<std::ffi::OsString>::new());
    }
    assert_eq!(boot("", "").outcome, Outcome::Taken);
    assert_eq!(machine.read("var/lib/trilith/secret").trim_end(), "\"0123456789\" & 東京");
}

#[test]
fn a_wrong_network_is_not_replaced_by_a_guess_and_no_network_is_dhcp() {
    let machine = Machine::new("network");
    machine.attach("one", GOOD, Some("version: 2\nethernets: {eth0: {addresses: [10.0.0.11]}}\n"));
    let wrong = machine.boot();
    assert_eq!((wrong.outcome, wrong.network), (Outcome::Wrong, NetworkOutcome::Wrong));
    assert_eq!(machine.networks(), Vec::<String>::new());
    machine.attach("one", GOOD, None);
    assert_eq!(machine.boot().network, NetworkOutcome::Dhcp);
    assert_eq!(machine.networks(), ["90-trilith-dhcp.network"]);
}

#[test]
fn without_any_answers_the_node_takes_dhcp_and_says_what_to_do() {
    let machine = Machine::new("nothing");
    let nothing = machine.boot();
    assert_eq!((nothing.outcome, nothing.network), (Outcome::Nothing, NetworkOutcome::Dhcp));
    assert!(machine.notices()[0].contains("attach a disk labelled cidata"));
    assert_eq!(machine.networks(), ["90-trilith-dhcp.network"]);
}

#[test]
fn a_reset_without_answers_or_with_wrong_ones_keeps_those_in_force() {
    let machine = Machine::new("reset");
    machine.attach("one", GOOD, Some(NETWORK));
    machine.boot();
    Store::below(&machine.root()).want_reset().unwrap();
    machine.detach();
    assert_eq!(machine.boot().outcome, Outcome::Kept);
    machine.attach("two", "#cloud-config\nhostname: b_\n", None);
    let wrong = machine.boot();
    assert_eq!((wrong.outcome, wrong.network), (Outcome::Wrong, NetworkOutcome::Answers));
    assert_eq!(machine.read("etc/hostname"), "a\n");
    assert!(machine.read("var/lib/trilith/set.toml").contains("edge"));
    machine.attach("three", GOOD, Some(NETWORK));
    assert_eq!(machine.boot().outcome, Outcome::Taken);
}

#[test]
fn a_damaged_record_is_told_and_the_answers_are_taken_anew() {
    let machine = Machine::new("damaged");
    machine.attach("one", GOOD, Some(NETWORK));
    machine.boot();
    fs::write(machine.root().join("var/lib/trilith/answers.toml"), "\0\0\0").unwrap();
    let anew = machine.boot();
    assert_eq!(anew.outcome, Outcome::Taken);
    assert!(anew.notices[0].contains("can't be used"), "{:?}", anew.notices);
}

#[test]
fn nothing_that_is_said_repeats_a_secret() {
    let machine = Machine::new("secrets");
    machine.attach("one", GOOD, Some(NETWORK));
    machine.boot();
    let holds = |path: &Path| fs::read_to_string(path).unwrap();
    for path in ["run/trilith/firstboot.json", "var/lib/trilith/answers.toml", "var/lib/trilith/set.toml"] {
        let text = holds(&machine.root().join(path));
        assert!(!text.contains("0123456789abcdef") && !text.contains("$6$"), "{path}: {text}");
    }
}
