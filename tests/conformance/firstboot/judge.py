#!/usr/bin/env python3
"""The judge of the first boot: Debian's real cloud-init and ours read the same documents, and this compares what came of it.

Runs in the tools tree (`image/build run`), as root: `judge.py TRILITH [CASE…]`. For every directory of cases/ cloud-init runs in
private mount, network and host-name namespaces over throw-away overlays; ours runs with --root. What may differ is listed in
differences.toml with its reason; a difference that is not listed fails, and so does a listed one that no longer shows.
The last line is one JSON object.
"""

import fnmatch
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tempfile
import tomllib
import traceback

sys.dont_write_bytecode = True
import networkd  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
CASES = HERE / "cases"
FILES = "var/lib/trilith/files"
# Longer than any case takes; a hang is a failure.
TIMEOUT_S = 60

# What Debian's cloud.cfg says, less what cannot run in a throw-away root, and with our account in the place of "debian".
CLOUD_CFG = """
datasource_list: [NoCloud]
users: [default]
disable_root: true
manage_etc_hosts: true
ssh_deletekeys: false
ssh_genkeytypes: []
system_info:
  distro: debian
  default_user: {name: admin, lock_passwd: true, gecos: ""}
  ntp_client: systemd-timesyncd
  network: {renderers: [networkd]}
  paths: {cloud_dir: /var/lib/cloud/, templates_dir: /etc/cloud/templates/}
"""
MODULES = ["write_files", "set_hostname", "update_etc_hosts", "ca_certs", "users_groups", "ssh", "set_passwords", "ntp",
           "timezone", "write_files_deferred"]


def main():
    trilith, wanted = os.path.abspath(sys.argv[1]), sys.argv[2:]
    with open(HERE / "differences.toml", "rb") as file:
        allowed = tomllib.load(file)["difference"]
    import cloudinit.stages  # noqa: F401  once for all children: it takes longer than a case
    cases = sorted(case.name for case in CASES.iterdir() if case.is_dir() and (not wanted or case.name in wanted))
    failed, listed, compared = [], 0, 0
    for name in cases:
        theirs, ours = in_child(cloud_init, CASES / name), in_child(first_boot, CASES / name, trilith)
        differences = list(compare(theirs, ours))
        compared += count(theirs)
        unlisted = []
        for what, their, our in differences:
            rule = next((rule for rule in allowed if matches(rule, name, what)), None)
            if rule is None:
                unlisted.append(f"  {what}\n    cloud-init: {json.dumps(their, default=str)}\n    trilith:    {json.dumps(our, default=str)}")
            else:
                rule["seen"] = True
                listed += 1
        print(f"{'FAIL' if unlisted else 'ok  '} {name}", *unlisted, sep="\n" if unlisted else "", flush=True)
        if unlisted:
            failed.append(name)
    stale = [f"{rule['case']}: {rule['what']}" for rule in allowed if not wanted and not rule.get("seen")]
    for rule in stale:
        print(f"FAIL differences.toml lists what does not differ (any more): {rule}")
    print(json.dumps({"cases": len(cases), "compared": compared, "listed_differences": listed, "failed": failed,
                      "stale": stale, "cloud_init": version()}))
    sys.exit(1 if failed or stale or not cases else 0)


def matches(rule, case, what):
    return fnmatch.fnmatch(case, rule["case"]) and fnmatch.fnmatch(what, rule["what"])


def compare(theirs, ours, path=""):
    """Walks both results and yields what differs: path, theirs, ours."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            yield from compare(theirs.get(key), ours.get(key), f"{path}.{key}" if path else key)
    elif theirs != ours:
        yield path, theirs, ours


def count(result):
    return sum(count(value) for value in result.values()) if isinstance(result, dict) else 1


def in_child(work, *arguments):
    """Runs work in a child with namespaces of its own and returns its result; the child takes all its mounts with it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.unshare(os.CLONE_NEWNS | os.CLONE_NEWNET | os.CLONE_NEWUTS)
            run("mount", "--make-rprivate", "/")
            run("mount", "-t", "tmpfs", "tmpfs", "/mnt")
            result = pickle.dumps(work(*arguments))
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(result)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        result = pipe.read()
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(f"judge: {work.__name__} failed on {arguments[0]}")
    return pickle.loads(result)


def first_boot(case, trilith):
    """Ours, in a root that has the accounts of an image, and the certificates and time zones that an overlay may bring."""
    root = pathlib.Path("/mnt/root")
    (root / "etc/ssl/certs").mkdir(parents=True)
    (root / "usr/share").mkdir(parents=True)
    os.symlink("/usr/share/zoneinfo", root / "usr/share/zoneinfo")
    for name in ["etc/passwd", "etc/shadow", "etc/group", "etc/ssl/certs/ca-certificates.crt"]:
        shutil.copy(f"/{name}", root / name)
    shutil.copy("/etc/localtime", root / "etc/localtime", follow_symlinks=False)
    done = run(trilith, "firstboot", "--root", str(root), "--seed", str(case), "--json")
    report = json.loads(done)
    if report["outcome"] != "taken":
        return {"error": [str(fault) for fault in report["faults"]] or report["notices"]}
    with open(root / "var/lib/trilith/answers.toml", "rb") as file:
        links = tomllib.load(file).get("network", {}).get("link", [])
    found = result(root, "/etc/ssh/authorized_keys.d/{name}", networkd.ours(root / "etc/systemd/network", links))
    found["complaints"] = networkd.complaints(root / "etc/systemd/network")
    return found


def cloud_init(case):
    """The real one: datasource NoCloud from a seed directory, networkd as renderer, then the modules one by one."""
    from cloudinit import sources, stages, util
    from cloudinit.config.modules import Modules
    from cloudinit.distros import Distro
    from cloudinit.distros.networking import LinuxNetworking as Networking
    from cloudinit.net import network_state, networkd as renderer

    for directory in ["/etc", "/usr/local", "/home", "/root"]:
        upper, lower = f"/mnt{directory}/upper", f"/mnt{directory}/work"
        os.makedirs(upper)
        os.makedirs(lower)
        run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={directory},upperdir={upper},workdir={lower}", directory)
    for directory in ["/var/lib/cloud", "/var/log", "/run", "/var/cache", "/var/lib/trilith"]:
        os.makedirs(directory, exist_ok=True)
        run("mount", "-t", "tmpfs", "tmpfs", directory)
    pathlib.Path("/etc/cloud/cloud.cfg").write_text(CLOUD_CFG)
    shutil.rmtree("/etc/cloud/cloud.cfg.d", ignore_errors=True)
    shutil.copytree(case, "/var/lib/cloud/seed/nocloud")
    if not (case / "user-data").exists():
        pathlib.Path("/var/lib/cloud/seed/nocloud/user-data").write_text("")
    shutil.rmtree("/etc/systemd/network", ignore_errors=True)
    # Nothing is installed or started in a throw-away root, and networkd is there in spirit.
    Distro.manage_service = staticmethod(lambda *_, **__: ("", ""))
    Distro.install_packages = lambda *_, **__: None
    renderer.available = lambda *_, **__: True
    # Nor are there cards to wait for or to rename.
    Networking.wait_for_physdevs = Networking.apply_network_config_names = lambda *_, **__: None
    util.chownbyname = lambda *_, **__: None
    quiet = os.open("/mnt/log", os.O_CREAT | os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)

    init = stages.Init(ds_deps=[sources.DEP_FILESYSTEM])
    init.read_cfg()
    init.initialize()
    init.fetch(existing="check")
    init.instancify()
    init.setup_datasource()
    init.update()
    state = None
    try:
        config, _ = init._find_networking_config()
        if (case / "network-config").exists():
            state = network_state.parse_net_config_data(config)
            init.apply_network_config(bring_up=False)
    except Exception as error:
        state = str(error) or type(error).__name__
    init.consume_data("always")
    modules = Modules(init)
    for name in MODULES:
        modules.run_single(name, freq="always")
    links = networkd.theirs(pathlib.Path("/etc/systemd/network"), state)
    return {**result(pathlib.Path("/"), "~/.ssh/authorized_keys", links), "complaints": []}


def result(root, keys_at, links):
    """What both are compared by, read from the files of a root."""
    found = {"hostname": text(root / "etc/hostname").strip(), "fqdn": fqdn(root), "users": {}, "files": {}, "network": links}
    hashes = {line.split(":")[0]: line.split(":")[1] for line in text(root / "etc/shadow").splitlines()}
    for line in text(root / "etc/passwd").splitlines():
        name, _, uid, _, gecos, home, _ = line.split(":")
        if not 900 <= int(uid) < 60000:
            continue
        path = root / home.lstrip("/") / ".ssh/authorized_keys" if keys_at.startswith("~") else root / keys_at.format(name=name).lstrip("/")
        keys = sorted(key for key in text(path).splitlines() if key.strip() and not key.startswith("#"))
        login = hashes.get(name, "*")
        found["users"][name] = {"gecos": gecos, "keys": keys, "password": login if login[:1] == "$" else None}
    for path in sorted(root.joinpath(FILES).rglob("*")):
        if path.is_file():
            content = path.read_bytes().decode("latin-1")
            found["files"][str(path.relative_to(root / FILES))] = {"content": content, "mode": oct(path.stat().st_mode & 0o7777)}
    zone = root / "etc/localtime"
    found["timezone"] = os.readlink(zone).split("zoneinfo/")[-1] if zone.is_symlink() else None
    found["ntp"] = sorted(ntp(root))
    bundle = text(root / "etc/ssl/certs/ca-certificates.crt")
    found["certificates"] = sorted(part.split("-----END")[0].strip() for part in bundle.split("-----BEGIN CERTIFICATE-----")[1:])
    return found


def fqdn(root):
    for line in text(root / "etc/hosts").splitlines():
        words = line.split()
        if words[:1] == ["127.0.1.1"]:
            return words[1]
    return None


def ntp(root):
    for path in sorted(root.joinpath("etc/systemd/timesyncd.conf.d").glob("*.conf")):
        for line in text(path).splitlines():
            if line.startswith("NTP="):
                yield from line[4:].split()


def text(path):
    return path.read_text(errors="surrogateescape") if path.is_file() else ""


def version():
    from cloudinit import version
    return version.version_string()


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=TIMEOUT_S).stdout.decode()


if __name__ == "__main__":
    main()
