//! The formats read back as their specifications say, by readers that share nothing with the writers. Foreign programs judge the
//! released files in tests/conformance/ova.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use trilith_ova::crc;
use trilith_ova::disk::{BLOCK, Disk};
use trilith_ova::ova::{self, Label};
use trilith_ova::{import, vhdx, vmdk, zip};

#[test]
fn a_disk_that_grows_keeps_its_bytes_and_takes_its_second_table_to_the_end() {
    let place = Place::new("grow");
    let raw = place.raw();
    let last = (CAPACITY / 512 - 1) as usize;
    let sector = |number: usize| &raw[number * 512..][..512];
    let number = |header: &[u8], at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap()) as usize;
    for (here, other, table) in [(1, last, 2), (last, 1, last - 32)] {
        let mut header = sector(here).to_vec();
        assert_eq!(&header[..8], b"EFI PART");
        assert_eq!((number(&header, 24), number(&header, 32), number(&header, 72)), (here, other, table));
        assert_eq!(number(&header, 48), last - 33);
        let sum = u32::from_le_bytes(header[16..20].try_into().unwrap());
        header[16..20].fill(0);
        assert_eq!(crc::ieee(&header[..92]), sum);
        assert_eq!(sector(table)[..16], [7; 16], "the entries are there");
    }
    assert_eq!(number(sector(0), 458) as u32, last as u32);
    let image = place.image();
    let end = image.len() - 33 * 512;
    assert_eq!(raw[1024..end], image[1024..end]);
    assert!(raw[end..image.len()].iter().all(|byte| *byte == 0), "the old second table is gone");
}

#[test]
fn the_vmdk_holds_the_disk_and_can_be_read_as_a_stream() {
    let place = Place::new("vmdk");
    let mut file = Vec::new();
    let bytes = vmdk::write(&place.disk(), "x.vmdk", &mut file).unwrap();
    assert_eq!(bytes, file.len() as u64);
    assert_eq!(streamed(&file), place.raw());
    assert_eq!(by_tables(&file), place.raw());
    let descriptor = String::from_utf8_lossy(&file[512..10 * 1024]);
    assert!(descriptor.contains("RDONLY 131072 SPARSE \"x.vmdk\""), "{descriptor}");
}

#[test]
fn the_vhdx_holds_the_disk_in_blocks_of_a_whole_mib() {
    let place = Place::new("vhdx");
    let mut file = Vec::new();
    let bytes = vhdx::write(&place.disk(), &mut file).unwrap();
    assert_eq!(bytes, file.len() as u64);
    let mut raw = Vec::new();
    for entry in file[3 * MIB..][..8 * (CAPACITY as usize / MIB)].chunks(8) {
        let entry = u64::from_le_bytes(entry.try_into().unwrap());
        let at = (entry >> 20) as usize * MIB;
        raw.extend_from_slice(if entry & 7 == 6 { &file[at..at + MIB] } else { &[0; MIB] });
    }
    assert!(raw == place.raw());
}

#[test]
fn equal_disks_give_equal_bytes_and_another_disk_another_identity() {
    let (one, other) = (Place::new("one"), Place::new("other"));
    assert_eq!(one.ova(), other.ova());
    let mut image = other.image();
    image[300_000] ^= 1;
    fs::write(other.path("image"), &image).unwrap();
    assert_ne!(one.disk().identity, other.disk().identity);
}

#[test]
fn an_ova_unpacks_to_the_disk_that_its_descriptor_describes_and_damage_is_told() {
    let place = Place::new("ova");
    let mut bytes = place.ova();
    let path = place.path("x.ova");
    fs::write(&path, &bytes).unwrap();
    let unpacked = ova::unpack(&path, place.0.as_path()).unwrap();
    let disk = fs::read(&unpacked.disk).unwrap();
    assert_eq!(streamed(&disk), place.raw());
    assert!(unpacked.descriptor.contains(&format!("ovf:size=\"{}\"", disk.len())));
    assert!(unpacked.descriptor.contains(&format!("ovf:capacity=\"{CAPACITY}\"")));

    let middle = bytes.len() - 100_000;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = format!("{:#}", ova::unpack(&path, place.0.as_path()).unwrap_err());
    assert!(error.contains("x.ova is damaged: its manifest says"), "{error}");
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(
        format!("{:#}", ova::unpack(&path, place.0.as_path()).unwrap_err()).contains("x.ova is no OVA, or damaged")
    );
}

#[test]
fn an_imported_machine_finds_the_answers_on_its_cd_rom() {
    let place = Place::new("import");
    fs::write(place.path("x.ova"), place.ova()).unwrap();
    let secret = "salt & \"pepper\" 東京";
    let answers = [("node", "a"), ("set-name", "edge-1"), ("trilith.secret", secret)];
    let imported = import::import(&place.path("x.ova"), &place.0, "vm-1", &answers).unwrap();
    assert_eq!(streamed(&fs::read(imported.disk).unwrap()), place.raw());
    let cd_rom = fs::read(imported.cd_rom).unwrap();
    // The one file comes after the directories.
    let xml = String::from_utf8_lossy(&cd_rom[25 * 2048..]);
    let documents = trilith_firstboot::sources::ovf::documents(xml.trim_end_matches('\0').as_bytes(), "test");
    assert!(documents.unwrap().is_some() && xml.contains("oe:key=\"trilith.mtu\" oe:value=\"1500\""));
    let error = import::import(&place.path("x.ova"), &place.0, "vm-1", &answers[..2]).unwrap_err().to_string();
    assert!(error.contains("trilith.secret has 0 characters"), "{error}");
}

#[test]
fn what_is_no_disk_image_is_refused_by_name() {
    let place = Place::new("none");
    let open = |capacity| format!("{:#}", Disk::open(&place.path("image"), capacity).unwrap_err());
    assert!(open(1 << 20).contains("choose a larger capacity"), "{}", open(1 << 20));
    fs::write(place.path("image"), vec![0; 4 * MIB]).unwrap();
    assert!(open(CAPACITY).contains("has no partition table"), "{}", open(CAPACITY));
    fs::remove_file(place.path("image")).unwrap();
    assert!(open(CAPACITY).contains("just image"));
}

#[test]
fn the_zip_is_one_that_its_own_format_describes() {
    let content = b"the same again and again ".repeat(1_000);
    let zip = zip::of("x.vhdx", &content).unwrap();
    let word = |at: usize| u32::from_le_bytes(zip[at..at + 4].try_into().unwrap()) as usize;
    let end = zip.len() - 22;
    assert_eq!(&zip[end..end + 4], b"PK\x05\x06");
    let directory = word(end + 16);
    assert_eq!((&zip[directory..directory + 4], directory + word(end + 12)), (&b"PK\x01\x02"[..], end));
    assert_eq!((word(directory + 16) as u32, word(directory + 24)), (crc::ieee(&content), content.len()));
    let packed = &zip[30 + 6..][..word(directory + 20)];
    let mut unpacked = Vec::new();
    flate2::read::DeflateDecoder::new(packed).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, content);
}

/// A directory with a small image in it: a GPT with one entry, and content here and there.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let place = Place(std::env::temp_dir().join(format!("trilith-ova-{name}-{}", std::process::id())));
        fs::create_dir_all(&place.0).unwrap();
        let mut image = vec![0_u8; 4 * MIB];
        let last = image.len() / 512 - 1;
        image[446 + 4] = 0xee;
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        for (here, other, table) in [(1_usize, last, 2_usize), (last, 1, last - 32)] {
            image[table * 512..][..16].fill(7);
            let header = &mut image[here * 512..][..512];
            header[..8].copy_from_slice(b"EFI PART");
            header[12..16].copy_from_slice(&92_u32.to_le_bytes());
            for (at, value) in [(24, here), (32, other), (40, 34), (48, last - 33), (72, table)] {
                header[at..at + 8].copy_from_slice(&(value as u64).to_le_bytes());
            }
            header[80..84].copy_from_slice(&128_u32.to_le_bytes());
            header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        }
        // Two grains side by side, one of them hardly compressible, and one far off.
        let mut state = 1_u32;
        for byte in &mut image[256 * 1024..384 * 1024 + 100] {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        image[3 * MIB + 5] = 9;
        fs::write(place.path("image"), image).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn image(&self) -> Vec<u8> {
        fs::read(self.path("image")).unwrap()
    }

    fn disk(&self) -> Disk {
        Disk::open(&self.path("image"), CAPACITY).unwrap()
    }

    fn raw(&self) -> Vec<u8> {
        let path = self.path("raw");
        self.disk().write_raw(&mut File::create(&path).unwrap()).unwrap();
        fs::read(path).unwrap()
    }

    fn ova(&self) -> Vec<u8> {
        let secure_boot = ["REI=".to_owned(), "S0VL".to_owned()];
        let (name, version) = ("trilith-1.2.3".to_owned(), "1.2.3".to_owned());
        ova::pack(&self.disk(), &Label { name, version, time: 1, secure_boot, signature: None }).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let directory: &Path = &self.0;
        let _ = fs::remove_dir_all(directory);
    }
}

/// A VMDK as it is read without going back: grains by the sector that each names, until the end's marker.
fn streamed(file: &[u8]) -> Vec<u8> {
    let mut raw = vec![0; CAPACITY as usize];
    let mut at = 128 * 512;
    loop {
        let value = u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
        let size = u32::from_le_bytes(file[at + 8..at + 12].try_into().unwrap()) as usize;
        if size > 0 {
            let grain = inflated(&file[at + 12..at + 12 + size]);
            raw[value as usize * 512..][..BLOCK].copy_from_slice(&grain);
            at += (12 + size).next_multiple_of(512);
            continue;
        }
        let kind = u32::from_le_bytes(file[at + 12..at + 16].try_into().unwrap());
        if kind == 0 {
            assert_eq!(at + 512, file.len(), "nothing comes after the end");
            return raw;
        }
        at += 512 + value as usize * 512;
    }
}

/// A VMDK as it is read at random: footer, directory, tables.
fn by_tables(file: &[u8]) -> Vec<u8> {
    let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let footer = file.len() - 1024;
    assert_eq!(&file[footer..footer + 4], b"KDMV");
    let directory = word(footer + 56) * 512;
    let mut raw = vec![0; CAPACITY as usize];
    for (number, grain) in raw.chunks_mut(BLOCK).enumerate() {
        let table = word(directory + number / 512 * 4) * 512;
        let at = if table == 0 { 0 } else { word(table + number % 512 * 4) * 512 };
        if at > 0 {
            assert_eq!(word(at), number * BLOCK / 512);
            grain.copy_from_slice(&inflated(&file[at + 12..at + 12 + word(at + 8)]));
        }
    }
    raw
}

fn inflated(bytes: &[u8]) -> Vec<u8> {
    let mut grain = Vec::new();
    flate2::read::ZlibDecoder::new(bytes).read_to_end(&mut grain).unwrap();
    assert_eq!(grain.len(), BLOCK);
    grain
}

const MIB: usize = 1024 * 1024;
const CAPACITY: u64 = 64 << 20;
