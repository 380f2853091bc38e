use super::*;
use crate::yaml;

fn read_text(text: &str) -> (Option<Network>, Findings) {
    let mut findings = Findings::default();
    let root = yaml::parse(text, "network-config").unwrap();
    (read("network-config", &root, &mut findings), findings)
}

fn files(text: &str) -> Vec<(String, String)> {
    let (network, findings) = read_text(text);
    assert_eq!(findings.faults, [], "{text}");
    // What is stored is what was read.
    let network = network.unwrap();
    assert_eq!(toml::from_str::<Network>(&toml::to_string(&network).unwrap()).unwrap(), network);
    render(&network)
}

fn faults(text: &str) -> Vec<(u32, String)> {
    let (network, findings) = read_text(text);
    assert_eq!(network, None, "{text}");
    findings.faults.into_iter().map(|fault| (fault.line, fault.key)).collect()
}

#[test]
fn v1_and_v2_of_one_network_give_the_same_files() {
    let v1 = "\
version: 1
config:
  - type: physical
    name: eth0
    mac_address: 'AA:BB:CC:00:00:01'
    mtu: 9000
    subnets:
      - {type: static, address: 10.0.0.2, netmask: 255.255.255.0, gateway: 10.0.0.1, dns_nameservers: [10.0.0.3]}
      - {type: static6, address: 'fd00::2/64'}
";
    let v2 = "\
network:
  version: 2
  ethernets:
    eth0:
      match: {macaddress: aa:bb:cc:00:00:01}
      set-name: eth0
      mtu: 9000
      addresses: [10.0.0.2/24, fd00::2/64]
      gateway4: 10.0.0.1
      nameservers: {addresses: [10.0.0.3]}
";
    assert_eq!(files(v1), files(v2));
}

#[test]
fn a_bond_with_a_vlan_on_it_is_made_and_its_members_join() {
    let files = files(
        "version: 2\nethernets: {a: {match: {macaddress: '02:00:00:00:00:01'}}, eth1: {}}\n\
         bonds: {bond0: {interfaces: [a, eth1], parameters: {mode: 1, mii-monitor-interval: 100, primary: eth1}, dhcp4: yes}}\n\
         vlans: {bond0.7: {id: 7, link: bond0, addresses: [10.7.0.2/24]}}\n",
    );
    let file = |name: &str| &files.iter().find(|(held, _)| held == name).unwrap().1;
    assert_eq!(
        file("10-trilith-00-a.network"),
        "[Match]\nPermanentMACAddress=02:00:00:00:00:01\n\n[Network]\nDHCP=no\nBond=bond0\n"
    );
    assert!(file("10-trilith-01-eth1.network").ends_with("Bond=bond0\nPrimarySlave=yes\n"));
    assert_eq!(
        file("10-trilith-02-bond0.netdev"),
        "[NetDev]\nName=bond0\nKind=bond\n\n[Bond]\nMode=active-backup\nMIIMonitorSec=100ms\n"
    );
    assert!(file("10-trilith-02-bond0.network").contains("DHCP=ipv4\nVLAN=bond0.7\n"));
    assert!(file("10-trilith-03-bond0-7.netdev").ends_with("[VLAN]\nId=7\n"));
}

#[test]
fn a_gateway_outside_every_subnet_is_on_the_link() {
    let files =
        files("version: 2\nethernets: {eth0: {addresses: [10.0.0.2/32], gateway4: 192.0.2.1, gateway6: 'fe80::1'}}\n");
    let text = &files[0].1;
    assert!(text.contains("Gateway=192.0.2.1\nGatewayOnLink=yes\n"), "{text}");
    assert!(text.ends_with("Gateway=fe80::1\n"), "{text}");
}

#[test]
fn openstacks_network_data_is_read() {
    let files = files(
        r#"{"links": [{"id": "tap1", "vif_id": "x", "type": "ovs", "mtu": 1500, "ethernet_mac_address": "fa:16:3e:00:00:01"}],
            "networks": [{"id": "n", "type": "ipv4", "link": "tap1", "ip_address": "10.0.0.2", "netmask": "255.255.255.0",
              "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.0.1"}]}],
            "services": [{"type": "dns", "address": "10.0.0.3"}]}"#,
    );
    let text = &files[0].1;
    for line in ["PermanentMACAddress=fa:16:3e:00:00:01", "Address=10.0.0.2/24", "Gateway=10.0.0.1", "DNS=10.0.0.3"] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn what_is_wrong_has_its_line_and_nothing_is_applied_in_part() {
    assert_eq!(
        faults("version: 2\nethernets:\n  eth0:\n    addresses: [10.0.0.2/33]\n"),
        [(4, "ethernets.eth0.addresses".to_owned())]
    );
    assert_eq!(faults("version: 2\nethernets:\n  eth0:\n    routes:\n      - to: default\n")[0].0, 5);
    assert_eq!(faults("version: 2\nvlans:\n  v:\n    id: 5000\n    link: eth0\n")[0].0, 4);
    assert_eq!(faults("version: 3\n")[0].1, "version");
    assert_eq!(faults("ethernets: {}\n").len(), 1);
    assert_eq!(faults("version: 1\nconfig:\n- type: physical\n  name: eth0\n  subnets: [{type: static, address: 10.0.0.2, netmask: 255.0.255.0}]\n")[0].0, 5);
    assert!(!faults("version: 2\nethernets: {a: {match: {macaddress: '02:00:00:00:00:01'}, addresses: [10.0.0.1/24]}, b: {addresses: [10.0.0.1/24]}}\n").is_empty());
    assert!(!faults("version: 2\nvlans: {v: {id: 5, link: v}}\n").is_empty());
}

#[test]
fn what_is_not_supported_is_named() {
    let (network, findings) =
        read_text("version: 2\nbridges: {br0: {}}\nethernets: {eth0: {dhcp4: true, openvswitch: {}}}\n");
    let named: Vec<_> = findings.warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(named, ["ethernets.eth0.openvswitch", "bridges"]);
    assert!(network.is_some());
}

#[test]
fn netmasks_and_prefixes_are_one() {
    for (mask, prefix) in [("24", 24), ("255.255.255.0", 24), ("0", 0), ("0.0.0.0", 0), ("255.255.255.255", 32)] {
        assert_eq!(Cidr::of([10, 0, 0, 1].into(), mask).unwrap().prefix, prefix, "{mask}");
    }
    for mask in ["33", "255.0.255.0", "+24", "", "ffff::"] {
        assert_eq!(Cidr::of([10, 0, 0, 1].into(), mask), None, "{mask}");
    }
    let six: IpAddr = "fd00::1".parse().unwrap();
    assert_eq!(Cidr::of(six, "ffff:ffff:ffff:ffff::").unwrap().prefix, 64);
    assert!("fd00::1/64".parse::<Cidr>().unwrap().holds("fd00::2".parse().unwrap()));
    assert!(!"fd00::1/64".parse::<Cidr>().unwrap().holds("10.0.0.1".parse().unwrap()));
    assert!(Cidr::default_like(six).holds(six));
}
