//! Where a section of a PE file lies (a UKI is one): enough to take the kernel out of it, or to spoil it.

use std::ops::Range;

/// The bytes of the section of that name in the file; `None` when this is no PE file, or has none.
///
/// Source: PE format, "COFF File Header" and "Section Table".
pub fn section(file: &[u8], name: &str) -> Option<Range<usize>> {
    let header = number(file, 0x3c, 4)?;
    if file.get(header..header + 4)? != b"PE\0\0" {
        return None;
    }
    let sections = number(file, header + 6, 2)?;
    let first = header + 24 + number(file, header + 20, 2)?;
    (0..sections).map(|index| first + index * 40).find_map(|at| {
        let found = file.get(at..at + 8)?;
        if found.iter().take_while(|byte| **byte != 0).ne(name.as_bytes()) {
            return None;
        }
        // What is in memory may be shorter than what is in the file, which is padded.
        let size = number(file, at + 8, 4)?.min(number(file, at + 16, 4)?);
        let from = number(file, at + 20, 4)?;
        (from + size <= file.len()).then_some(from..from + size)
    })
}

fn number(file: &[u8], at: usize, bytes: usize) -> Option<usize> {
    Some(file.get(at..at + bytes)?.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_found_by_its_whole_name() {
        let mut file = vec![0; 512];
        file[0x3c] = 0x40;
        file[0x40..0x44].copy_from_slice(b"PE\0\0");
        file[0x46] = 2;
        file[0x54] = 16;
        for (index, name, size, from) in [(0, b".linuxes", 7u8, 200u8), (1, b".linux\0\0", 5, 220)] {
            let at = 0x58 + 16 + index * 40;
            file[at..at + 8].copy_from_slice(name);
            file[at + 8] = size;
            file[at + 16] = 64;
            file[at + 20] = from;
        }
        assert_eq!(section(&file, ".linux"), Some(220..225));
        assert_eq!(section(&file, ".initrd"), None);
        assert_eq!(section(&file[..100], ".linux"), None, "a file that ends early");
        assert_eq!(section(b"MZ", ".linux"), None);
    }
}
