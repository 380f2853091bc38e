"""A reader of [MS-VHDX] that knows nothing of how the file was made: what Hyper-V checks when it opens a disk."""

import struct
import uuid

KIB, MIB = 1024, 1024 * 1024
BAT = "2dc27766-f623-4200-9d64-115e9bfd4a08"
METADATA = "8b7ca206-4790-4b9a-b8fe-575f050f886e"
PARAMETERS = "caa16737-fa36-4d43-b3b6-33f0aa44e76b"
SIZE = "2fa54224-cd1b-4876-b211-5dbed83bf4b8"
SECTOR = "8141bf1d-a96f-4709-ba47-f233a8faab5f"
PHYSICAL = "cda348c7-445d-4471-9cc9-e9885251c556"
ID = "beca12ab-b2e6-4523-93ef-c309e000c746"


def check(path):
    with open(path, "rb") as file:
        data = file.read()
    must(data[:8] == b"vhdxfile", "no signature")
    must(len(data) % MIB == 0, "the file is no whole number of MiB")
    headers = [header(data[at:at + 4 * KIB]) for at in (64 * KIB, 128 * KIB)]
    must(headers[0]["sequence"] != headers[1]["sequence"], "two headers of one age")
    current = max(headers, key=lambda header: header["sequence"])
    must(current["log_guid"] == uuid.UUID(int=0), "there is a log to replay")
    must(current["version"] == 1 and current["log_version"] == 0, "another version")
    must(data[192 * KIB:256 * KIB] == data[256 * KIB:320 * KIB], "two region tables that differ")
    regions = table(data[192 * KIB:256 * KIB])
    must(set(regions) == {BAT, METADATA}, f"other regions: {sorted(regions)}")
    used = [(0, MIB), (current["log_at"], current["log_bytes"]), *regions.values()]
    for at, length in used[1:]:
        must(at >= MIB and at % MIB == 0 and length % MIB == 0 and at + length <= len(data), f"a region at {at} of {length} bytes")
    items = metadata(data, *regions[METADATA])
    block, flags = struct.unpack("<II", items[PARAMETERS])
    must(block in [MIB << shift for shift in range(9)] and flags == 0, f"blocks of {block} bytes, flags {flags}")
    size, = struct.unpack("<Q", items[SIZE])
    must(struct.unpack("<I", items[SECTOR]) == (512,) and struct.unpack("<I", items[PHYSICAL])[0] in (512, 4096), "sectors of another size")
    must(len(items[ID]) == 16 and any(items[ID]), "no identity")
    blocks = -(-size // block)
    chunk = (1 << 23) * 512 // block
    at, length = regions[BAT]
    entries = blocks + (blocks - 1) // chunk
    must(entries * 8 <= length, "a block allocation table that is too short")
    present = 0
    for number, (entry,) in enumerate(struct.iter_unpack("<Q", data[at:at + entries * 8])):
        state, place = entry & 7, (entry >> 20) * MIB
        must(entry & 0xffff8 == 0, f"reserved bits in entry {number}")
        if (number + 1) % (chunk + 1) == 0 or state == 0:
            must(entry == 0, f"entry {number} is {entry:#x}")
            continue
        must(state == 6, f"entry {number} has state {state}")
        used.append((place, block))
        present += 1
    used.sort()
    for (one, length), (other, _) in zip(used, used[1:]):
        must(one + length <= other, f"two things at {other}")
    must(used[-1][0] + used[-1][1] <= len(data), "a block beyond the end")
    return f"ok ({present} of {blocks} blocks of {block // MIB} MiB)"


def header(bytes_):
    must(bytes_[:4] == b"head", "no header")
    checksum(bytes_)
    sequence, _, _, log = struct.unpack("<Q16s16s16s", bytes_[8:64])
    log_version, version, log_bytes, log_at = struct.unpack("<HHIQ", bytes_[64:80])
    must(not any(bytes_[80:]), "something in the reserved part of a header")
    return {"sequence": sequence, "log_guid": uuid.UUID(bytes_le=log), "log_version": log_version, "version": version,
            "log_bytes": log_bytes, "log_at": log_at}


def table(bytes_):
    must(bytes_[:4] == b"regi", "no region table")
    checksum(bytes_)
    count, reserved = struct.unpack("<II", bytes_[8:16])
    must(reserved == 0 and count <= 2047, "a strange region table")
    regions = {}
    for number in range(count):
        guid, at, length, required = struct.unpack("<16sQII", bytes_[16 + 32 * number:48 + 32 * number])
        must(required == 1, "a region that is not required")
        regions[str(uuid.UUID(bytes_le=guid))] = (at, length)
    return regions


def metadata(data, at, length):
    must(data[at:at + 8] == b"metadata", "no metadata")
    count, = struct.unpack("<H", data[at + 10:at + 12])
    items, used = {}, []
    for number in range(count):
        guid, offset, size, flags, _ = struct.unpack("<16sIIII", data[at + 32 + 32 * number:at + 64 + 32 * number])
        guid = str(uuid.UUID(bytes_le=guid))
        must(offset >= 64 * KIB and offset + size <= length, f"metadata outside its region: {guid}")
        must(flags == (4 if guid == PARAMETERS else 6), f"flags {flags} of {guid}")
        items[guid] = data[at + offset:at + offset + size]
        used.append((offset, size))
    must(set(items) == {PARAMETERS, SIZE, SECTOR, PHYSICAL, ID}, f"other metadata: {sorted(items)}")
    used.sort()
    must(all(one + size <= other for (one, size), (other, _) in zip(used, used[1:])), "metadata that overlaps")
    return items


def checksum(bytes_):
    """CRC-32C of the structure with its own field zero."""
    crc = 0xffffffff
    for byte in bytes_[:4] + bytes(4) + bytes_[8:]:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    must(crc ^ 0xffffffff == struct.unpack("<I", bytes_[4:8])[0], f"a wrong checksum of {bytes_[:4].decode()}")


def must(holds, what):
    if not holds:
        raise AssertionError(f"VHDX: {what}")
