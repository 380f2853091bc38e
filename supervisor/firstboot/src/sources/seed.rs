//! A directory with answers: what a disk holds, or what somebody wants to have checked.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{Document, Documents, ovf};
use crate::encoding::MAX_DOCUMENT;

/// Reads a directory. `None` when it holds no answers in any form.
///
/// # Errors
/// A file that is there and can't be read.
pub fn read(directory: &Path, place: &str) -> io::Result<Option<Documents>> {
    let file = |name: &str| -> io::Result<Option<Document>> {
        Ok(read_bounded(&directory.join(name))?.map(|bytes| Document::new(name, bytes)))
    };
    let (meta, user) = (file("meta-data")?, file("user-data")?);
    if meta.is_some() || user.is_some() {
        return Ok(Some(Documents {
            source: format!("NoCloud on {place}"),
            meta: meta.into_iter().collect(),
            user: file("vendor-data")?.into_iter().chain(user).collect(),
            network: file("network-config")?,
        }));
    }
    if let Some(meta) = file("openstack/latest/meta_data.json")? {
        return Ok(Some(Documents {
            source: format!("ConfigDrive on {place}"),
            meta: vec![meta],
            user: file("openstack/latest/user_data")?.into_iter().collect(),
            network: file("openstack/latest/network_data.json")?,
        }));
    }
    // An ISO 9660 without longer names has the other one.
    for name in ["ovf-env.xml", "ovf_env.xml"] {
        if let Some(xml) = read_bounded(&directory.join(name))? {
            return ovf::documents(&xml, &format!("{name} on {place}")).map_err(io::Error::other);
        }
    }
    Ok(None)
}

/// A whole file, one byte more than a document may have at most; `None` when there is none.
fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(named(path, error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut bytes).map_err(|error| named(path, error))?;
    Ok(Some(bytes))
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
