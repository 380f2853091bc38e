"""systemd-networkd's files, ours and cloud-init's, as one plain form that can be compared.

cloud-init's renderer for networkd writes no .netdev files, so bonds and VLANs are compared with its NetworkState instead: what it
has understood of the document.
"""

import os
import shutil
import subprocess

# cloud-init's names of a bond's parameters and networkd's.
BOND = {
    "bond-mode": "Mode", "bond-miimon": "MIIMonitorSec", "bond-updelay": "UpDelaySec", "bond-downdelay": "DownDelaySec",
    "bond-lacp-rate": "LACPTransmitRate", "bond-xmit-hash-policy": "TransmitHashPolicy", "bond-ad-select": "AdSelect",
    "bond-min-links": "MinLinks", "bond-arp-interval": "ARPIntervalSec", "bond-arp-ip-target": "ARPIPTargets",
    "bond-arp-validate": "ARPValidate", "bond-fail-over-mac": "FailOverMACPolicy", "bond-num-grat-arp": "GratuitousARP",
    "bond-primary-reselect": "PrimaryReselectPolicy",
}
MODES = ["balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"]


def theirs(directory, state):
    """cloud-init's files, with what its NetworkState says of bonds and VLANs."""
    if isinstance(state, str):
        return {"error": state}
    links = {}
    for path in sorted(directory.glob("10-cloud-init-*.network")):
        links[path.stem.removeprefix("10-cloud-init-")] = link(sections(path), [])
    for interface in state.iter_interfaces() if state else []:
        name = interface["name"]
        if name not in links:
            continue
        if interface["type"] == "vlan":
            links[name]["vlan"] = {"id": int(interface["vlan_id"]), "on": interface["vlan-raw-device"]}
        if "bond-slaves" in interface:
            links[name]["bond"] = {BOND[key]: parameter(key, value) for key, value in interface.items() if key in BOND}
        if "bond-master" in interface:
            links[name]["member-of"] = interface["bond-master"]
            if interface.get("bond-primary") == name:
                links[name]["primary"] = True
    return links


def ours(directory, model):
    """Our files; the model tells which link of the document each is for."""
    links, vlans = {}, {}
    for number, about in enumerate(model):
        (path,) = directory.glob(f"10-trilith-{number:02}-*.network")
        name = about.get("set_name") or about["id"]
        netdevs = [sections(made) for made in directory.glob(f"10-trilith-{number:02}-*.netdev")]
        read = sections(path)
        links[name] = link(read, netdevs)
        for vlan in values(read, "Network", "VLAN"):
            vlans[vlan] = name
        for bond in values(read, "Network", "Bond"):
            links[name]["member-of"] = bond
        if values(read, "Network", "PrimarySlave"):
            links[name]["primary"] = True
    for vlan, on in vlans.items():
        links[vlan]["vlan"]["on"] = on
    return links


def complaints(directory):
    """What the real networkd says against files, in the empty network namespace that we are in."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    for path in ["/run/systemd/netif", "/run/systemd/netif/links", "/run/systemd/netif/leases", "/run/systemd/netif/lldp"]:
        os.makedirs(path)
        shutil.chown(path, "systemd-network", "systemd-network")
    subprocess.run(["mount", "--bind", directory, "/etc/systemd/network"], check=True)
    said, finished = [], False
    # At this level it says when it has read all files; timeout(1) is for the day when it no longer does.
    command = ["timeout", "20", "/usr/lib/systemd/systemd-networkd"]
    daemon = subprocess.Popen(command, env={**os.environ, "SYSTEMD_LOG_LEVEL": "debug"}, stderr=subprocess.PIPE, text=True)
    for line in daemon.stderr:
        finished = "Enumeration completed" in line
        if finished:
            break
        if "/etc/systemd/network/" in line and "Successfully loaded" not in line:
            said.append(line.strip())
    daemon.terminate()
    daemon.communicate()
    return said if finished else said + ["networkd ended before it had looked at interfaces"]


def link(read, netdevs):
    mac = values(read, "Match", "MACAddress") + values(read, "Match", "PermanentMACAddress")
    found = {
        # Who has a MAC address is known by it; its name is given before networkd starts.
        "match": {"mac": mac[0].lower()} if mac else {"name": values(read, "Match", "Name")},
        "driver": values(read, "Match", "Driver"),
        "mtu": values(read, "Link", "MTUBytes"),
        "optional": values(read, "Link", "RequiredForOnline") == ["no"],
        "dhcp": values(read, "Network", "DHCP"),
        "accept-ra": [value in ("yes", "True", "true") for value in values(read, "Network", "IPv6AcceptRA")],
        "dns": words(values(read, "Network", "DNS")),
        "domains": words(values(read, "Network", "Domains")),
        "addresses": sorted(values(read, "Address", "Address")),
        "routes": sorted(route(entries) for name, entries in read if name == "Route"),
    }
    for version in ["DHCPv4", "DHCPv6"]:
        for name, entries in read:
            if name == version:
                found[version] = {key: boolean(value) for key, value in entries}
    for netdev in netdevs:
        for name, entries in netdev:
            if name == "Bond":
                found["bond"] = dict(entries)
            if name == "VLAN":
                found["vlan"] = {"id": int(dict(entries)["Id"])}
        if values(netdev, "NetDev", "Kind") == ["bond"]:
            found.setdefault("bond", {})
    return found


def route(entries):
    """Destination, gateway, metric, on the link or not; no destination is the default of the gateway's family."""
    entries = dict(entries)
    gateway = entries.get("Gateway", "")
    anywhere = "::/0" if ":" in gateway else "0.0.0.0/0"
    return entries.get("Destination", anywhere), gateway, entries.get("Metric", ""), entries.get("GatewayOnLink", "no")


def parameter(key, value):
    if key in ("bond-miimon", "bond-updelay", "bond-downdelay", "bond-arp-interval"):
        return f"{value}ms"
    if key == "bond-mode" and str(value).isdigit():
        return MODES[int(value)]
    if key == "bond-lacp-rate" and str(value).isdigit():
        return ["slow", "fast"][int(value)]
    return " ".join(value) if isinstance(value, list) else str(value)


def boolean(value):
    return {"True": "yes", "False": "no", "true": "yes", "false": "no"}.get(value, value)


def sections(path):
    """A list of sections, since one may come more than once: name, list of key and value."""
    found = []
    for line in path.read_text().splitlines():
        if line.startswith("["):
            found.append((line.strip("[]"), []))
        elif "=" in line:
            found[-1][1].append(tuple(line.split("=", 1)))
    return found


def values(read, section, key):
    return [value for name, entries in read if name == section for held, value in entries if held == key]


def words(values):
    return sorted({word for value in values for word in value.split()})
