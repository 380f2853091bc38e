//! A VMDK as vCenter streams it into a datastore: "stream optimized", grains compressed one by one, each table after the grains
//! that it names, and the header once more at the end.
//!
//! ```text
//!  header (no directory yet) │ descriptor │ grain grain … table │ grain … table │ directory │ footer = header │ end
//! ```
//!
//! Written here and not by `qemu-img convert`, whose output has a random identity, so that equal disks give equal files, and
//! which leaves out the footer that readers of streams go by. Source: VMware, "Virtual Disk Format 5.0", and its revision 1.1.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::disk::{BLOCK, Disk, SECTOR};

/// Writes the disk; `name` is the file's own, which the descriptor within names. Returns how many bytes were written.
///
/// # Errors
/// Those of the disk and of `out`.
pub fn write(disk: &Disk, name: &str, out: &mut impl Write) -> io::Result<u64> {
    let mut out = Stream { out, sectors: 0 };
    out.put(&header(disk, GD_AT_END))?;
    let mut descriptor = descriptor(disk, name).into_bytes();
    descriptor.resize(((OVERHEAD - 1) * SECTOR) as usize, 0);
    out.put(&descriptor)?;

    let mut directory = Vec::new();
    let mut block = vec![0; BLOCK];
    for from in (0..disk.blocks()).step_by(GRAINS_PER_TABLE) {
        let mut table = [0_u32; GRAINS_PER_TABLE];
        for number in (from..disk.blocks().min(from + GRAINS_PER_TABLE)).filter(|number| disk.is_used(*number)) {
            disk.read(number, &mut block)?;
            table[number - from] = out.place()?;
            out.grain((number * BLOCK) as u64 / SECTOR, &block)?;
        }
        if table == [0; GRAINS_PER_TABLE] {
            directory.push(0);
        } else {
            directory.push(out.table(GRAIN_TABLE, &table)?);
        }
    }
    let directory = out.table(GRAIN_DIRECTORY, &directory)?;
    out.marker(FOOTER, 1)?;
    out.put(&header(disk, u64::from(directory)))?;
    out.marker(END_OF_STREAM, 0)?;
    Ok(out.sectors * SECTOR)
}

struct Stream<'o, W> {
    out: &'o mut W,
    sectors: u64,
}

impl<W: Write> Stream<'_, W> {
    /// The next sector's number, as tables have it.
    fn place(&self) -> io::Result<u32> {
        u32::try_from(self.sectors).map_err(|_| io::Error::other("a VMDK can't have more than 2 TiB"))
    }

    /// Bytes, up to a whole sector.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let whole = bytes.len().next_multiple_of(SECTOR as usize);
        self.out.write_all(bytes)?;
        self.out.write_all(&[0; SECTOR as usize][..whole - bytes.len()])?;
        self.sectors += whole as u64 / SECTOR;
        Ok(())
    }

    fn grain(&mut self, sector: u64, block: &[u8]) -> io::Result<()> {
        let mut packed = ZlibEncoder::new(Vec::with_capacity(BLOCK), Compression::best());
        packed.write_all(block)?;
        let packed = packed.finish()?;
        let size = packed.len() as u32;
        self.put(&[&sector.to_le_bytes()[..], &size.to_le_bytes(), &packed].concat())
    }

    /// A table behind its marker; returns where the table itself begins.
    fn table(&mut self, kind: u32, entries: &[u32]) -> io::Result<u32> {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        self.marker(kind, bytes.len().div_ceil(SECTOR as usize) as u64)?;
        let place = self.place()?;
        self.put(&bytes)?;
        Ok(place)
    }

    fn marker(&mut self, kind: u32, sectors: u64) -> io::Result<()> {
        self.put(&[&sectors.to_le_bytes()[..], &0_u32.to_le_bytes(), &kind.to_le_bytes()].concat())
    }
}

/// `SparseExtentHeader`.
fn header(disk: &Disk, directory: u64) -> Vec<u8> {
    let mut header = b"KDMV".to_vec();
    let word = |header: &mut Vec<u8>, word: u32| header.extend(word.to_le_bytes());
    let long = |header: &mut Vec<u8>, long: u64| header.extend(long.to_le_bytes());
    word(&mut header, VERSION);
    word(&mut header, FLAGS);
    long(&mut header, disk.capacity() / SECTOR);
    long(&mut header, BLOCK as u64 / SECTOR);
    // The descriptor: from sector 1.
    long(&mut header, 1);
    long(&mut header, DESCRIPTOR);
    word(&mut header, GRAINS_PER_TABLE as u32);
    // No second directory.
    long(&mut header, 0);
    long(&mut header, directory);
    long(&mut header, OVERHEAD);
    header.push(0);
    // Damaged by whatever takes a binary file for text.
    header.extend(b"\n \r\n");
    header.extend(DEFLATE.to_le_bytes());
    header.resize(SECTOR as usize, 0);
    header
}

fn descriptor(disk: &Disk, name: &str) -> String {
    let id = u32::from_le_bytes([disk.identity[0], disk.identity[1], disk.identity[2], disk.identity[3]]);
    // Two values have a meaning of their own: no parent, and a long one.
    let id = if id >= 0xffff_fffe { 1 } else { id };
    let sectors = disk.capacity() / SECTOR;
    // 255 heads and 63 sectors, as every BIOS has counted since disks were large.
    let cylinders = (sectors / (255 * 63)).min(65_535);
    format!(
        "# Disk DescriptorFile\nversion=1\nCID={id:08x}\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n\n\
         # Extent description\nRDONLY {sectors} SPARSE \"{name}\"\n\n\
         # The Disk Data Base\n#DDB\n\n\
         ddb.adapterType = \"lsilogic\"\nddb.geometry.cylinders = \"{cylinders}\"\nddb.geometry.heads = \"255\"\n\
         ddb.geometry.sectors = \"63\"\nddb.longContentID = \"{long}{id:08x}\"\n\
         ddb.toolsInstallType = \"4\"\nddb.toolsVersion = \"2147483647\"\nddb.virtualHWVersion = \"15\"\n",
        long = disk.identity[4..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
    )
}

const VERSION: u32 = 3;
/// Bit 0: the line ends below are there to be checked; 16: grains are compressed; 17: there are markers.
const FLAGS: u32 = 0x3_0001;
const DEFLATE: u16 = 1;
const GD_AT_END: u64 = u64::MAX;
const GRAINS_PER_TABLE: usize = 512;
/// Sectors that the descriptor has, and those before the first grain.
const DESCRIPTOR: u64 = 20;
const OVERHEAD: u64 = 128;
const END_OF_STREAM: u32 = 0;
const GRAIN_TABLE: u32 = 1;
const GRAIN_DIRECTORY: u32 = 2;
const FOOTER: u32 = 3;
