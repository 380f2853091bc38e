#!/usr/bin/env python3
"""The judges of the OVA, the VHDX, the qcow2, the seeds and the deploy scripts: programs and libraries that no one here wrote say
what they think of them. `judge.py REPOSITORY BUILD TRILITH [JUDGE…]`, started by `run`. The last line is one JSON object.

Every judge is shown something damaged as well, where it could be blind: what it does not refuse, it does not judge.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import select
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile

from lxml import etree

import vhdx

HERE = pathlib.Path(__file__).resolve().parent
REPO, BUILD, TRILITH = (pathlib.Path(argument) for argument in sys.argv[1:4])
DIST = BUILD / "dist"
IMAGE = pathlib.Path(os.environ.get("TRILITH_IMAGE", BUILD / "image")) / "trilith.raw"
WORK = BUILD / "judges.work"
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
# Longer than any judge takes; a hang is a failure.
TIMEOUT_S = 600
BLESS = os.environ.get("TRILITH_BLESS") == "1"


class Skipped(Exception):
    """A judge that is not to be had here, with the reason."""


def main():
    judges = [value for name, value in globals().items() if name.startswith("judge_")]
    wanted = sys.argv[4:]
    results = {}
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    try:
        unpack()
        for judge in judges:
            name = judge.__name__.removeprefix("judge_")
            if wanted and name not in wanted:
                continue
            try:
                results[name] = judge() or "ok"
            except Skipped as reason:
                results[name] = f"skipped: {reason}"
            except Exception as error:
                results[name] = f"failed: {error}"
            print(f"{'FAIL' if results[name].startswith('failed') else 'ok  '} {name}: {results[name]}", flush=True)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    failed = [name for name, result in results.items() if result.startswith("failed")]
    print(json.dumps({"judges": results, "failed": failed}))
    sys.exit(1 if failed or not results else 0)


def unpack():
    """What the judges look at: the OVA's members, the VHDX, raw copies, seeds."""
    global NAME, DISKS
    NAME = next(DIST.glob("*.ova")).stem
    with tarfile.open(DIST / f"{NAME}.ova") as ova:
        ova.extractall(WORK / "ova", filter="data")
    with zipfile.ZipFile(DIST / f"{NAME}.vhdx.zip") as archive:
        archive.extractall(WORK)
    DISKS = {"vmdk": WORK / f"ova/{NAME}-disk1.vmdk", "vhdx": WORK / f"{NAME}.vhdx", "qcow2": DIST / f"{NAME}.qcow2"}
    with tarfile.open(DIST / f"{NAME}-deploy.tar.gz") as kit:
        kit.extractall(WORK / "kit", filter="data")
    run(WORK / f"kit/{NAME}-deploy/trilith-seed", WORK / f"kit/{NAME}-deploy/set.toml", WORK / "seed")


def descriptor():
    return etree.parse(WORK / f"ova/{NAME}.ovf")


# --- the OVA ---

def judge_tar_order():
    """vCenter reads the archive as a stream: descriptor, manifest, signature, disk."""
    expected = [f"{NAME}.ovf", f"{NAME}.mf", f"{NAME}.cert", f"{NAME}-disk1.vmdk"]
    if not (WORK / f"ova/{NAME}.cert").exists():
        expected.remove(f"{NAME}.cert")
    ova = DIST / f"{NAME}.ova"
    same(run("tar", "--list", "--file", ova).split(), expected)
    same(inside("bsdtar", "-tf", ova).split(), expected)
    for line in run("tar", "--list", "--verbose", "--numeric-owner", "--file", ova).splitlines():
        check(re.match(r"-rw-r--r-- 0/0 ", line), f"owner or mode: {line}")
    with open(ova, "rb") as file:
        check(file.read(512)[257:265] == b"ustar\x0000", "no ustar archive")


def judge_manifest():
    """`SHA256(name)= hex`, letter by letter, and true."""
    lines = (WORK / f"ova/{NAME}.mf").read_text().splitlines()
    found = {}
    for line in lines:
        parts = re.fullmatch(r"SHA256\(([^()]+)\)= ([0-9a-f]{64})", line)
        check(parts, f"not as importers compare it: {line}")
        found[parts[1]] = parts[2]
    same(sorted(found), sorted([f"{NAME}.ovf", f"{NAME}-disk1.vmdk"]))
    for name, digest in found.items():
        same(sha256(WORK / "ova" / name), digest)


def judge_signature():
    """Packed once more with a key: the same bytes and a certificate, by which openssl verifies the manifest."""
    key, certificate, signed = WORK / "signing.key", WORK / "signing.crt", WORK / "signed"
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=judge",
        "-keyout", key, "-out", certificate)
    with tarfile.open(DIST / f"{NAME}.ova") as ova:
        time = ova.getmembers()[0].mtime
    keys = (BUILD / "keys.path").read_text().strip()
    run(TRILITH.parent.parent / "release/trilith-pack", IMAGE, signed, "--version", NAME.removeprefix("trilith-"),
        "--time", time, "--keys", keys, "--key", key, "--certificate", certificate)
    with tarfile.open(signed / f"{NAME}.ova") as ova:
        same([member.name for member in ova], [f"{NAME}.ovf", f"{NAME}.mf", f"{NAME}.cert", f"{NAME}-disk1.vmdk"])
        ova.extractall(signed, filter="data")
    for name in [f"{NAME}.ovf", f"{NAME}.mf", f"{NAME}-disk1.vmdk"]:
        same(sha256(signed / name), sha256(WORK / "ova" / name))
    same(sha256(signed / f"{NAME}.vhdx.zip"), sha256(DIST / f"{NAME}.vhdx.zip"))
    line, pem = (signed / f"{NAME}.cert").read_text().split("\n", 1)
    signature = re.fullmatch(rf"SHA256\({re.escape(NAME)}\.mf\)= ([0-9a-f]+)", line)
    check(signature, f"not as importers compare it: {line}")
    same(pem, certificate.read_text())
    (signed / "signature").write_bytes(bytes.fromhex(signature[1]))
    (signed / "key").write_text(run("openssl", "x509", "-in", certificate, "-pubkey", "-noout"))
    verify = ["openssl", "dgst", "-sha256", "-verify", signed / "key", "-signature", signed / "signature"]
    run(*verify, signed / f"{NAME}.mf")
    run(*verify, signed / f"{NAME}.ovf", fails=True)
    shutil.rmtree(signed)


def judge_sizes():
    """ovf:size is the file's, ovf:capacity the disk's."""
    file, disk = descriptor().find(f".//{OVF}File"), descriptor().find(f".//{OVF}Disk")
    same(int(file.get(f"{OVF}size")), DISKS["vmdk"].stat().st_size)
    for path in DISKS.values():
        same(int(disk.get(f"{OVF}capacity")), info(path)["virtual-size"])
    check((DIST / f"{NAME}.ova").stat().st_size <= 60 << 20, "larger than 60 MiB")


def judge_dmtf_schema():
    """DMTF's own schema of the OVF envelope."""
    schema = BUILD / "judges.dmtf/dsp8023_1.1.0.xsd"
    if not schema.exists():
        raise Skipped("schemas.dmtf.org can't be reached, and build/judges.dmtf does not hold its schemas")
    parser = etree.XMLParser(no_network=True)
    parser.resolvers.add(Local())
    judge = etree.XMLSchema(etree.parse(schema, parser))
    judge.assertValid(descriptor())
    broken = descriptor()
    item = broken.find(f".//{OVF}Item")
    item.append(item[0])
    check(not judge.validate(broken), "it would take fields in any order")


class Local(etree.Resolver):
    """Schemas name each other by addresses; all of them lie in one directory."""

    def resolve(self, url, public_id, context):
        path = BUILD / "judges.dmtf" / url.rsplit("/", 1)[-1]
        return self.resolve_filename(str(path), context) if path.exists() else self.resolve_empty(context)


def judge_cot():
    """Cisco's COT reads the descriptor, and refuses what the limits of the properties forbid."""
    alone = WORK / "cot"
    alone.mkdir()
    # COT knows no SHA-256 in manifests of OVF 1: the manifest has a judge of its own.
    shutil.copy(WORK / f"ova/{NAME}.ovf", alone)
    shutil.copy(DISKS["vmdk"], alone)
    said = cot("info", "--verbose", alone / f"{NAME}.ovf")
    for expected in ["vmx-15", "VirtualSCSI", "VmxNet3", "com.vmware.guestInfo iso", "medium (default)", "harddisk @ SCSI 0:0",
                     "4 GiB"]:
        check(expected in said, f"{expected} is missing in: {said}")
    check("ERROR" not in said and "WARNING" not in said, said)
    changed = WORK / "changed.ovf"
    cot("edit-properties", alone / f"{NAME}.ovf", "--output", changed, "--properties", "node=a", "secret=0123456789abcdef")
    for wrong in ["secret=short", "node="]:
        refused = cot("edit-properties", alone / f"{NAME}.ovf", "--output", WORK / "never.ovf", "--properties", wrong, fails=True)
        check("shorter than" in refused, f"{wrong} was taken: {refused}")


def judge_virt_v2v():
    """virt-v2v takes the OVA for a machine that it could migrate, and a damaged one not."""
    ova = DIST / f"{NAME}.ova"
    said = inside("virt-v2v", "-i", "ova", ova, "--print-source")
    for expected in ["hypervisor type: vmware", "memory: 2147483648", "nr vCPUs: 2", "firmware: uefi", "0 [scsi]", "CD-ROM [sata]",
                     "[vmxnet3]"]:
        check(expected in said, f"{expected} is missing in: {said}")
    with damaged(ova, ova.stat().st_size // 2) as broken:
        check("checksum" in inside("virt-v2v", "-i", "ova", broken, "--print-source", fails=True), "damage was not noticed")


# --- disks ---

def judge_qemu_img():
    """All three are sound and hold the same bytes."""
    for kind, path in DISKS.items():
        inside("qemu-img", "check", "-q", "-f", kind, path)
        same(info(path)["format"], kind)
    for one, other in [("vmdk", "vhdx"), ("vmdk", "qcow2"), ("vhdx", "qcow2")]:
        inside("qemu-img", "compare", "-q", "-f", one, "-F", other, DISKS[one], DISKS[other])
    with damaged(DISKS["vhdx"], -4096) as broken:
        inside("qemu-img", "compare", "-q", "-f", "vhdx", "-F", "vmdk", broken, DISKS["vmdk"], fails=True)
    # In a checksummed part, for what looks at nothing else: both copies of the region table.
    with damaged(DISKS["vhdx"], (192 << 10) + 40, (256 << 10) + 40) as broken:
        inside("qemu-img", "check", "-q", "-f", "vhdx", broken, fails=True)


def judge_partition_table():
    """The table fits the disk's size, and every byte of the image but the table's is on the disk."""
    raw = WORK / "disk.raw"
    inside("qemu-img", "convert", "-f", "vmdk", "-O", "raw", DISKS["vmdk"], raw)
    said = inside("sfdisk", "--verify", raw)
    check("No errors detected" in said, said)
    end = IMAGE.stat().st_size - 33 * 512
    with open(IMAGE, "rb") as ours, open(raw, "rb") as theirs:
        ours.seek(2 * 512)
        theirs.seek(2 * 512)
        for place in range(2 * 512, end, 1 << 20):
            length = min(1 << 20, end - place)
            check(ours.read(length) == theirs.read(length), f"another content near byte {place}")
    raw.unlink()


def judge_vhdx_layout():
    """[MS-VHDX], read by the letter: checksums, alignment, no block twice or outside the file."""
    for place in [(64 << 10) + 20, (192 << 10) + 40, (3 << 20) + 2, 2 << 20]:
        with damaged(DISKS["vhdx"], place) as broken:
            try:
                vhdx.check(broken)
            except AssertionError:
                continue
            raise AssertionError(f"damage at byte {place} was not noticed")
    return vhdx.check(DISKS["vhdx"])


def judge_zip():
    with zipfile.ZipFile(DIST / f"{NAME}.vhdx.zip") as archive:
        same(archive.namelist(), [f"{NAME}.vhdx"])
        same(archive.testzip(), None)
    inside("bsdtar", "-tf", DIST / f"{NAME}.vhdx.zip")


def judge_checksums():
    run("sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS", at=DIST)
    listed = {line.split()[1] for line in (DIST / "SHA256SUMS").read_text().splitlines()}
    same(listed, {path.name for path in DIST.iterdir()} - {"SHA256SUMS", "SHA256SUMS.sig"})


# --- seeds and scripts ---

def judge_seed_isos():
    """Two implementations read from the CD-ROM what was put there."""
    for node in "abc":
        iso = WORK / f"seed/{node}.iso"
        same(inside("xorriso", "-indev", iso, "-pvd_info").split("Volume Id    : ")[1].split()[0], "cidata")
        for name in ["meta-data", "user-data", "network-config"]:
            document = (WORK / f"seed/{node}/{name}").read_text()
            same(inside("bsdtar", "-xOf", iso, name), document)
            out = WORK / "extracted"
            inside("xorriso", "-osirrox", "on", "-joliet", "on", "-indev", iso, "-extract", f"/{name}", out)
            same(out.read_text(), document)
            out.unlink()


def judge_libvirt_schema():
    for node in "abc":
        inside("virt-xml-validate", WORK / f"seed/{node}.domain.xml", "domain")
    broken = WORK / "broken.xml"
    broken.write_text((WORK / "seed/a.domain.xml").read_text().replace("<vcpu>", "<vcpus>").replace("</vcpu>", "</vcpus>"))
    inside("virt-xml-validate", broken, "domain", fails=True)


def judge_libvirt():
    """kvm.sh on a real libvirt: twice up, one machine lost, twice down."""
    seed = WORK / "seed-libvirt"
    shutil.copytree(WORK / "seed", seed)
    said = inside(HERE / "libvirt", WORK / f"kit/{NAME}-deploy", seed, DISKS["qcow2"], network=False)
    check("as it should be" in said, said)


def judge_vsphere():
    """vsphere.sh by VMware's govc on VMware's simulator of vCenter, which is asked what it holds: up, broken off, up, up, mended, down,
    down; and what the script says when vCenter does not answer. No name in [vsphere] is the default."""
    if not (BUILD / "judges.govmomi").exists():
        raise Skipped("govc and vcsim could not be built, build/judges.govmomi.log says why")
    kit, seed = WORK / f"kit/{NAME}-deploy", WORK / "seed-vsphere"
    wanted = (kit / "set.toml").read_text()
    for name, other in [("dc", '"DC0"'), ("cluster", '"DC0_C0"'), ("datastore1", '["LocalDS_0", "LocalDS_1", "LocalDS_2"]'),
                        ("VM Network", '"DC0_DVPG0"'), ("medium", '"small"\nfolder = "edge"')]:
        check(f'"{name}"' in wanted, f"set.toml names no {name}")
        wanted = wanted.replace(f'"{name}"', other)
    (WORK / "vsphere.toml").write_text(wanted)
    run(kit / "trilith-seed", WORK / "vsphere.toml", seed)
    plan = json.loads((seed / "deploy.json").read_text())
    names = [node["machine"] for node in plan["nodes"]]
    whole, broken = without_sata(DIST / f"{NAME}.ova"), WORK / "broken.ova"
    broken.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])

    with vcenter() as (access, log), socket.create_server(("127.0.0.1", 0)) as server:
        # In the place of the set.
        (seed / "deploy.json").write_text(json.dumps(plan | {"vips": ["127.0.0.1"], "port": server.getsockname()[1]}))

        def script(*words, status=0, **environment):
            """vsphere.sh's whole output, if it ends with that status."""
            said = run("bash", "-c", '"$@" 2>&1; echo "status $?"', "-", kit / "vsphere.sh", *words, **access | environment)
            check(f"\n{said}".endswith(f"\nstatus {status}\n"), f"{words[0]}: not status {status}: {said[-800:]}")
            return said

        def govc(*words):
            return run(HERE / "govc", *words, **access)

        def ask(*words):
            """govc's JSON, with the names as they are since 0.32."""
            return json.loads(govc(*words), object_pairs_hook=lambda pairs: {key[:1].lower() + key[1:]: value for key, value in pairs})

        def machines():
            return ask("vm.info", "-json", "*")["virtualMachines"]

        def there():
            """The machines' states, and of each rule whether it is on, and for which machines."""
            found = machines()
            name = {machine["self"]["value"]: machine["name"] for machine in found}
            rules = ask("object.collect", "-json", "/DC0/host/DC0_C0", "configurationEx")[0]["val"].get("rule") or []
            return ({machine["name"]: machine["runtime"]["powerState"] for machine in found},
                    {rule["name"]: (rule["enabled"], [name.get(machine["value"]) for machine in rule["vm"]]) for rule in rules})

        def ours(state):
            return others[0] | dict.fromkeys(names, state), {"trilith-edge-1": (True, names)}

        govc("folder.create", "/DC0/vm/edge")
        others = there()
        check(others[0] and not others[1], f"not what vcsim begins with: {others}")
        up = ["up", seed, whole]
        # When a vcsim takes it, `without_sata` can go.
        check("unsupported resource type: 20" in script("up", seed, DIST / f"{NAME}.ova", status=1), "vcsim knows SATA")
        check("unexpected EOF" in script("up", seed, broken, status=1), "an upload that breaks off is not told")
        same(there(), others)
        script(*up, FAIL="vm.power", status=1)
        same(there(), ours("poweredOff"))
        same(script(*up).count("is there already"), 4)
        same(there(), ours("poweredOn"))
        same(govc("cluster.rule.ls", "-cluster", "DC0_C0", "-l"), "trilith-edge-1 (ClusterAntiAffinityRuleSpec)\n")
        same(log().count(f"transferred {DISKS['vmdk'].stat().st_size} bytes"), 3)
        imported(seed, plan, machines(), govc)
        # With the names in govc's JSON as they were, and as they are.
        for small in ["", "1"]:
            said = script(*up, SMALL=small)
            same([said.count(told) for told in ["is there already", "runs already"]], [4, 3])
            same(script("status", seed, SMALL=small), "".join(f"{name}\tpoweredOn\n" for name in names) + "status 0\n")
        same(there(), ours("poweredOn"))

        # A machine is lost: vcsim's rule still names it, vCenter's does not. One is suspended.
        govc("vm.destroy", names[1])
        same(script(*up).count("runs already"), 2)
        same(there(), ours("poweredOn"))
        govc("cluster.rule.change", "-cluster", "DC0_C0", "-name", "trilith-edge-1", *names[1:])
        govc("vm.power", "-suspend", names[0])
        same(script(*up).count("runs already"), 2)
        same(there(), ours("poweredOn"))

        for command in ["about", "find", "vm.info", "cluster.rule.ls"]:
            check("vsphere.sh: vCenter does not" in script(*up, FAIL=command, status=69), f"silent when govc {command} fails")
        for told, wrong in [("Login failure", {"GOVC_PASSWORD": "wrong"}), ("failed to verify certificate", {"GOVC_INSECURE": "0"})]:
            said = script("status", seed, status=69, **wrong)
            check(told in said and "vsphere.sh: vCenter does not answer" in said, said)
        same(there(), ours("poweredOn"))
        script("down", seed)
        same(there(), others)
        script("down", seed)
        same(script("status", seed), "".join(f"{name}\tnot there\n" for name in names) + "status 0\n")
        same(there(), others)
    said = script("down", seed, status=69)
    check("connection refused" in said and "vsphere.sh: vCenter does not answer" in said, said)


def imported(seed, plan, machines, govc):
    """Whether the machines are those of the descriptor, on the datastores and the network of set.toml, with the seed's answers. vcsim
    keeps no firmware and no options of VMware's own, and takes the answers for options."""
    for node, datastore in zip(plan["nodes"], ["LocalDS_0", "LocalDS_1", "LocalDS_2"], strict=True):
        config = next(machine["config"] for machine in machines if machine["name"] == node["machine"])
        hardware = config["hardware"]
        same([config["guestId"], config["version"], hardware["numCPU"], hardware["memoryMB"]], ["debian10_64Guest", "vmx-15", 1, 1024])
        answers = json.loads((seed / f"{node['name']}.govc.json").read_text())["PropertyMapping"]
        kept = {option["key"]: option["value"] for option in config["extraConfig"]}
        same({name: value for name, value in kept.items() if name.startswith("trilith.")},
             {answer["Key"]: answer["Value"] for answer in answers})
        said = govc("vm.info", "-r", node["machine"]) + govc("device.ls", "-vm", node["machine"])
        for expected in [f"/DC0/vm/edge/{node['machine']}\n", f" {datastore}\n", " DC0_DVPG0\n", "ParaVirtualSCSIController",
                         "VirtualVmxnet3", "4,194,304 KB"]:
            check(expected in said, f"{expected!r} is missing in: {said}")


def without_sata(ova):
    """A copy without what vcsim refuses: the SATA controller, and with it the CD-ROM drive."""
    copy = WORK / "without-sata.ova"
    tree = descriptor()
    for item in list(tree.iter(f"{OVF}Item")):
        if item.findtext("{*}ResourceType") in ["15", "20"]:
            item.getparent().remove(item)
    with tarfile.open(ova) as old, tarfile.open(copy, "w") as new:
        for member in old:
            content = etree.tostring(tree) if member.name.endswith(".ovf") else old.extractfile(member).read()
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return copy


@contextlib.contextmanager
def vcenter():
    """A simulated vCenter on loopback: what the script's environment has to say, and a function that returns vCenter's log. It ends
    with this block, or with this program."""
    programs, log = BUILD / "judges.govmomi", WORK / "vcenter.log"
    start = ["setpriv", "--pdeathsig", "KILL", programs / "vcsim", "-l", "127.0.0.1:0", "-cluster", "1", "-host", "3", "-ds", "3",
             "-username", "judge", "-password", "right"]
    with log.open("w") as errors:
        process = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, "TMPDIR": str(WORK)})
    with process:
        try:
            line = process.stdout.readline() if select.select([process.stdout], [], [], TIMEOUT_S)[0] else ""
            told = re.search(r"GOVC_URL=https://[^@]*@(\S+)", line)
            check(told, f"vcsim does not start: {log.read_text()}")
            yield {"PATH": f"{HERE}:{os.environ['PATH']}", "GOVC": str(programs / "govc"), "GOVC_URL": told[1], "GOVC_USERNAME": "judge",
                   "GOVC_PASSWORD": "right", "GOVC_INSECURE": "1", "GOVC_PERSIST_SESSION": "0"}, log.read_text
        finally:
            process.kill()


def judge_shellcheck():
    scripts = ["ova/dist", "ova/deploy/kvm.sh", "ova/deploy/vsphere.sh", "ova/deploy/common.sh"]
    scripts = [REPO / name for name in scripts] + [HERE / name for name in ["run", "libvirt", "govc", "govmomi"]]
    inside("shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *scripts)


def judge_powershell():
    """tree-sitter's grammar of PowerShell; and PowerShell's own parser where it is installed."""
    import tree_sitter
    import tree_sitter_powershell

    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))
    script = (REPO / "ova/deploy/hyperv.ps1").read_bytes()

    def wrong(node):
        if node.type == "ERROR" or node.is_missing:
            yield f"line {node.start_point[0] + 1}: {script[node.start_byte:node.end_byte][:60]!r}"
        for child in node.children:
            yield from wrong(child)

    found = list(wrong(parser.parse(script).root_node))
    check(not found, "; ".join(found))
    check(parser.parse(script.replace(b"finally {", b"finally ", 1)).root_node.has_error, "it would take anything")
    if not shutil.which("pwsh"):
        return "ok (tree-sitter only: no pwsh here)"
    run("pwsh", "-NoProfile", "-Command",
        "$errors = $null; $null = [System.Management.Automation.Language.Parser]::ParseFile($args[0], [ref] $null, [ref] $errors); "
        "if ($errors) { $errors; exit 1 }", REPO / "ova/deploy/hyperv.ps1")
    return "ok (tree-sitter and pwsh)"


def judge_dry_runs():
    """What the scripts would do, against what was reviewed; record anew with TRILITH_BLESS=1."""
    kit = WORK / f"kit/{NAME}-deploy"
    (WORK / "disk").touch()
    (WORK / "damaged").mkdir()
    (WORK / "damaged/deploy.json").touch()
    for script in ["kvm", "vsphere"]:
        for what, more in [("up", ["disk"]), ("down", [])]:
            said = run(kit / f"{script}.sh", "--dry-run", what, "seed", *more, at=WORK)
            golden = HERE / f"golden/{script}-{what}.txt"
            if BLESS:
                golden.write_text(said)
            same(said, golden.read_text())
        for words, told in [(["up", "nowhere", "disk"], "there is no nowhere/deploy.json"), (["up", "seed", "nothing"], "there is no file"),
                            (["down", "damaged"], "damaged/deploy.json is damaged"), (["sideways"], f"{script}.sh status seed"),
                            (["--dry-run", "status", "seed"], f"{script}.sh status seed")]:
            said = run(kit / f"{script}.sh", *words, at=WORK, fails=True)
            check(told in said, f"{script}.sh {' '.join(words)}: {said}")


# --- the way of the answers on ESX ---

def judge_guestinfo():
    """The image's own vmware-rpctool fetches answers through a fake of VMware's backdoor (backdoor.c), and the first boot takes
    them. Without a backdoor, as on every other hypervisor, both say so and go on."""
    fake = WORK / "guestinfo"
    (fake / "values").mkdir(parents=True)
    run("cc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", fake / "backdoor.so", HERE / "backdoor.c")
    shutil.copy(TRILITH, fake / "trilith")
    answers = {"node": "b", "address": "10.77.0.12/24", "set-name": "edge-1", "nodes": "a=10.77.0.11, b=10.77.0.12, c=10.77.0.13",
               "vips": "public=10.77.0.10/24", "secret": 'salt & "pepper" 東京', "user-data": "#cloud-config\n# " + "x" * 60_000}
    (fake / "values/guestinfo.ovfEnv").write_text(environment(answers))
    (fake / "values/guestinfo.test").write_text(hashlib.sha256(b"").hexdigest() * 1000)
    same(in_root(fake, "yes", "vmware-rpctool", "info-get guestinfo.test").rstrip("\n"), hashlib.sha256(b"").hexdigest() * 1000)
    check("No value found" in in_root(fake, "yes", "vmware-rpctool", "info-get guestinfo.nothing", fails=True), "a value from nowhere")
    check("must be run inside a virtual machine" in in_root(fake, "", "vmware-rpctool", "info-get guestinfo.test", fails=True), "it should tell")
    taken = json.loads(in_root(fake, "yes", "/tmp/trilith", "firstboot", "--root", "/tmp/root", "--json"))
    same((taken["outcome"], taken["faults"], taken["source"]), ("taken", [], "OVF environment (guestinfo.ovfEnv)"))
    nothing = json.loads(in_root(fake, "", "/tmp/trilith", "firstboot", "--root", "/tmp/root", "--json"))
    same(nothing["outcome"], "nothing")


def environment(answers):
    """The environment that vCenter would make, by the letter of DSP0243, section 11."""
    namespace = "http://schemas.dmtf.org/ovf/environment/1"
    root = etree.Element(f"{{{namespace}}}Environment", nsmap={None: namespace, "oe": namespace})
    section = etree.SubElement(root, f"{{{namespace}}}PropertySection")
    for product in descriptor().iter(f"{OVF}ProductSection"):
        for asked in product.iter(f"{OVF}Property"):
            key = asked.get(f"{OVF}key")
            value = answers.get(key, asked.get(f"{OVF}value", ""))
            etree.SubElement(section, f"{{{namespace}}}Property", {
                f"{{{namespace}}}key": f"{product.get(f'{OVF}class')}.{key}", f"{{{namespace}}}value": value})
    return etree.tostring(root, xml_declaration=True, encoding="UTF-8").decode()


def in_root(fake, backdoor, *command, fails=False):
    """Runs a program in the appliance's root, on a machine that calls itself VMware's, with or without the backdoor."""
    script = """
        root=$1 fake=$2 backdoor=$3
        shift 3
        for directory in dev sys tmp; do mount -t tmpfs tmpfs "$root/$directory"; done
        mknod "$root/dev/null" c 1 3
        mkdir -p "$root/sys/class/dmi/id" "$root"/tmp/root/{etc,usr/share}
        echo 'VMware, Inc.' > "$root/sys/class/dmi/id/sys_vendor"
        cp "$root"/etc/{passwd,shadow,group} "$root/tmp/root/etc"
        cp -r "$fake"/* "$root/tmp"
        [ -z "$backdoor" ] || export LD_PRELOAD=/tmp/backdoor.so BACKDOOR=/tmp/values
        exec chroot "$root" "$@"
    """
    enter = ["unshare", "--mount", "--propagation", "private", "bash", "-euc", script, "in_root", BUILD / "root", fake, backdoor]
    return run(*enter, *command, fails=fails)


# --- helpers ---

def cot(*arguments, fails=False):
    start = "import sys; from COT.ui.cli import main; sys.argv[0] = 'cot'; main()"
    return run(sys.executable, "-c", start, "--force", *arguments, fails=fails)


def inside(*command, network=True, fails=False):
    """Runs a program of build/judges; the checkout and the build directory are at their own paths there. With `network` false it
    has one of its own, with nothing in it."""
    enter = ["unshare", *([] if network else ["--net"]), "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private",
             REPO / "image/build", "--inside-tools", REPO, BUILD, WORK]
    return run(*enter, *command, fails=fails, TRILITH_TOOLS=str(BUILD / "judges"))


def run(*command, at=None, fails=False, **environment):
    """Runs a program; returns its standard output, or both outputs if it is meant to fail."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=at, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace",
                          timeout=TIMEOUT_S, env={**os.environ, "LC_ALL": "C.UTF-8", **environment})
    if (done.returncode != 0) != fails:
        raise AssertionError(f"{' '.join(words[-6:])}: status {done.returncode}: {done.stdout[-800:]}{done.stderr[-800:]}")
    return done.stdout + done.stderr if fails else done.stdout


@contextlib.contextmanager
def damaged(path, *places):
    """A copy with one bit turned over at each of these places; those before 0 count from the end."""
    copy = WORK / f"damaged{path.suffix}"
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= 1
    copy.write_bytes(content)
    try:
        yield copy
    finally:
        copy.unlink()


def info(path):
    return json.loads(inside("qemu-img", "info", "--output=json", path))


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same(found, expected):
    check(found == expected, f"{found!r} instead of {expected!r}")


def check(holds, what):
    if not holds:
        raise AssertionError(what)


if __name__ == "__main__":
    main()
