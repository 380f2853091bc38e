//! A tar archive in gzip: just what a few text files need. (POSIX.1-2017, pax, ustar interchange format.)

use std::io::{self, Write};
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;

/// An archive that grows; all its files are in one folder.
pub struct Archive {
    folder: String,
    time: u64,
    out: GzEncoder<Vec<u8>>,
}

impl Archive {
    /// An empty archive; `time` is put down as the files' own.
    pub fn new(folder: &str, time: SystemTime) -> Archive {
        let time = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Archive { folder: folder.to_owned(), time, out: GzEncoder::new(Vec::new(), Compression::default()) }
    }

    /// Adds a file.
    ///
    /// # Errors
    /// Its name is longer than 100 bytes with the folder's.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = format!("{}/{name}", self.folder);
        if path.len() > BLOCK_NAME {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is too long a name for tar")));
        }
        let mut header = [0; BLOCK];
        let mut field = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        field(0, &path);
        field(100, "0000640");
        field(108, "0000000");
        field(116, "0000000");
        field(124, &format!("{:011o}", bytes.len()));
        field(136, &format!("{:011o}", self.time));
        field(148, "        ");
        field(156, "0");
        field(257, "ustar\x0000");
        field(265, "root");
        field(297, "root");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.out.write_all(&header)?;
        self.out.write_all(bytes)?;
        self.out.write_all(&[0; BLOCK][..bytes.len().next_multiple_of(BLOCK) - bytes.len()])
    }

    /// The whole archive.
    ///
    /// # Errors
    /// None in practice: it is in memory.
    pub fn finish(mut self) -> io::Result<Vec<u8>> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.finish()
    }
}

const BLOCK: usize = 512;
const BLOCK_NAME: usize = 100;
