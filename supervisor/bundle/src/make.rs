//! Making a bundle from the files of a build. The signature comes from outside: no private key is known here.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::manifest::{Manifest, Part};
use crate::tar::{MANIFEST, SIGNATURE, append, finish};
use crate::{BLOCK, Hash};

/// A part and the file that it is.
pub type Named = (&'static str, PathBuf);

/// The list of a file's blocks: `uki.blocks` of `trilith.efi`.
///
/// # Errors
/// It cannot be read.
pub fn list_of_blocks(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.chunks(BLOCK).flat_map(|block| <[u8; 32]>::from(Sha256::digest(block))).collect())
}

/// Adds what these files are to a manifest, in their order.
///
/// # Errors
/// One cannot be read.
pub fn describe(manifest: &mut Manifest, files: &[Named]) -> io::Result<()> {
    for (name, path) in files {
        let mut file = File::open(path)?;
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut size = 0;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => {
                    digest.update(&buffer[..read]);
                    size += read as u64;
                }
            }
        }
        manifest.parts.push(Part { name: (*name).to_owned(), size, sha256: Hash(digest.finalize().into()) });
    }
    Ok(())
}

/// Writes the bundle: the manifest as it was signed, its signature, then the files. The same input gives the same bytes.
///
/// # Errors
/// Something cannot be read or written.
pub fn write(output: &mut impl Write, manifest: &[u8], signature: &[u8], time: u64, files: &[Named]) -> io::Result<()> {
    for (name, mut bytes) in [(MANIFEST, manifest), (SIGNATURE, signature)] {
        append(output, name, bytes.len() as u64, time, &mut bytes)?;
    }
    for (name, path) in files {
        let mut file = File::open(path)?;
        append(output, name, file.metadata()?.len(), time, &mut file)?;
    }
    finish(output)
}
