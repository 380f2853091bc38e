//! A CD-ROM with a few files in one directory: ISO 9660 with Joliet's names, which Linux and Windows read as they are written.
//!
//! Written here so that whoever deploys needs no other program, and equal files give equal bytes. Source: ECMA-119 (ISO 9660);
//! Microsoft, "Joliet Specification".

use anyhow::{Result, ensure};

/// The CD-ROM with that label (up to 16 characters) and these files, by name.
///
/// # Errors
/// More or longer names than fit into one sector's directory.
pub fn image(label: &str, files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    ensure!(label.len() <= 16, "the label {label} has more than 16 characters");
    let mut places = Vec::new();
    let mut next = FIRST_FILE;
    for (_, content) in files {
        places.push(next);
        next += content.len().div_ceil(SECTOR) as u32;
    }
    let mut image = vec![0; FIRST_FILE as usize * SECTOR];
    let mut put = |sector: u32, bytes: &[u8]| image[sector as usize * SECTOR..][..bytes.len()].copy_from_slice(bytes);
    for tree in [Tree::Primary, Tree::Joliet] {
        put(tree.descriptor_at(), &tree.descriptor(label, next));
        put(tree.path_tables_at(), &path_table(tree.root_at().to_le_bytes(), 1_u16.to_le_bytes()));
        put(tree.path_tables_at() + 1, &path_table(tree.root_at().to_be_bytes(), 1_u16.to_be_bytes()));
        put(tree.root_at(), &tree.directory(files, &places)?);
    }
    put(TERMINATOR, b"\xffCD001\x01");
    for (_, content) in files {
        image.extend_from_slice(content);
        image.resize(image.len().next_multiple_of(SECTOR), 0);
    }
    Ok(image)
}

/// The same files under two sorts of names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tree {
    /// Capital letters, digits and `_` only.
    Primary,
    /// UTF-16.
    Joliet,
}

impl Tree {
    fn descriptor_at(self) -> u32 {
        if self == Tree::Primary { 16 } else { 17 }
    }

    fn path_tables_at(self) -> u32 {
        if self == Tree::Primary { 19 } else { 21 }
    }

    fn root_at(self) -> u32 {
        if self == Tree::Primary { 23 } else { 24 }
    }

    /// Text of a descriptor, padded with blanks.
    fn text(self, text: &str, bytes: usize) -> Vec<u8> {
        let mut field = match self {
            Tree::Primary => text.as_bytes().to_vec(),
            Tree::Joliet => wide(text),
        };
        while field.len() < bytes {
            field.extend(if self == Tree::Primary { &b" "[..] } else { &b"\0 "[..] });
        }
        field.truncate(bytes);
        field
    }

    /// A name as its files have it: with a version, and a full stop even when nothing follows it.
    fn name(self, name: &str) -> Vec<u8> {
        match self {
            Tree::Primary => {
                let allowed =
                    |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_uppercase() } else { '_' };
                let name: String = name.chars().map(allowed).collect();
                format!("{name}{};1", if name.contains('.') { "" } else { "." }).into_bytes()
            }
            Tree::Joliet => wide(name),
        }
    }

    fn descriptor(self, label: &str, sectors: u32) -> Vec<u8> {
        let mut sector = vec![0; SECTOR];
        let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, if self == Tree::Primary { b"\x01CD001\x01" } else { b"\x02CD001\x01" });
        put(8, &self.text("LINUX", 32));
        put(40, &self.text(label, 32));
        put(80, &both(sectors));
        if self == Tree::Joliet {
            // UCS-2, level 3.
            put(88, b"%/E");
        }
        for at in [120, 124] {
            put(at, &both16(1));
        }
        put(128, &both16(SECTOR as u16));
        put(132, &both(PATH_TABLE_BYTES));
        put(140, &self.path_tables_at().to_le_bytes());
        put(148, &(self.path_tables_at() + 1).to_be_bytes());
        put(156, &record(&[0], self.root_at(), SECTOR as u32, DIRECTORY));
        for (at, bytes) in [(190, 128), (318, 128), (446, 128), (574, 128), (702, 37), (739, 37), (776, 37)] {
            put(at, &self.text("", bytes));
        }
        // No dates.
        for at in [813, 830, 847, 864] {
            put(at, b"0000000000000000\0");
        }
        put(881, &[1]);
        sector
    }

    fn directory(self, files: &[(&str, &[u8])], places: &[u32]) -> Result<Vec<u8>> {
        let mut records = vec![
            (vec![0], record(&[0], self.root_at(), SECTOR as u32, DIRECTORY)),
            (vec![1], record(&[1], self.root_at(), SECTOR as u32, DIRECTORY)),
        ];
        for ((name, content), place) in files.iter().zip(places) {
            let name = self.name(name);
            ensure!(name.len() <= LONGEST_NAME, "a name on the CD-ROM is too long");
            records.push((name.clone(), record(&name, *place, content.len() as u32, 0)));
        }
        records[2..].sort();
        let directory: Vec<u8> = records.into_iter().flat_map(|(_, record)| record).collect();
        ensure!(directory.len() <= SECTOR, "too many files for the CD-ROM's one directory");
        Ok(directory)
    }
}

/// A directory's record of a file.
fn record(name: &[u8], place: u32, bytes: u32, flags: u8) -> Vec<u8> {
    let mut record = vec![0; (33 + name.len()).next_multiple_of(2)];
    record[0] = record.len() as u8;
    record[2..10].copy_from_slice(&both(place));
    record[10..18].copy_from_slice(&both(bytes));
    // 1980-01-01.
    record[18..21].copy_from_slice(&[80, 1, 1]);
    record[25] = flags;
    record[28..32].copy_from_slice(&both16(1));
    record[32] = name.len() as u8;
    record[33..33 + name.len()].copy_from_slice(name);
    record
}

/// The one directory there is.
fn path_table(place: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    [&[1, 0][..], &place, &parent, &[0, 0]].concat()
}

/// A number in both byte orders, as the standard wants it.
fn both(number: u32) -> Vec<u8> {
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

fn both16(number: u16) -> Vec<u8> {
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

const SECTOR: usize = 2048;
const TERMINATOR: u32 = 18;
const FIRST_FILE: u32 = 25;
const PATH_TABLE_BYTES: u32 = 10;
const DIRECTORY: u8 = 2;
/// In bytes; Joliet's limit is 64 characters.
const LONGEST_NAME: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_lie_where_both_directories_say() {
        let files: [(&str, &[u8]); 2] = [("user-data", b"one"), ("meta-data", &[2; 3000])];
        let image = image("cidata", &files).unwrap();
        assert_eq!(image.len(), (25 + 1 + 2) * SECTOR);
        for (directory, names) in
            [(23, ["META_DATA.;1".into(), "USER_DATA.;1".into()]), (24, [wide("meta-data"), wide("user-data")])]
        {
            let names: [Vec<u8>; 2] = names;
            let mut records = &image[directory * SECTOR + 68..];
            for (name, content) in names.iter().zip([files[1].1, files[0].1]) {
                let (length, name_bytes) = (usize::from(records[0]), usize::from(records[32]));
                assert_eq!(&records[33..33 + name_bytes], name.as_slice());
                let place = u32::from_le_bytes([records[2], records[3], records[4], records[5]]) as usize * SECTOR;
                assert_eq!(&image[place..place + content.len()], content);
                records = &records[length..];
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(super::image("a label that is long", &[]).is_err());
        assert!(super::image("x", &[(&"n".repeat(65), b"")]).is_err());
    }
}
