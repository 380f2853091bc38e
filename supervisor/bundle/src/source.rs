//! Where a bundle's bytes are read from: one file, or a directory with a file for each part.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::failure::Failure;
use crate::manifest::{Kind, MAX_MANIFEST, Manifest, ROOT, SERVICE, SERVICE_BLOCKS, UKI, UKI_BLOCKS, VERITY};
use crate::refusal::Refusal;
use crate::tar::{self, MANIFEST, SIGNATURE};
use crate::text::plain;
use crate::uki::Uki;
use crate::verity::Tree;
use crate::{BLOCK, Hash};

/// A bundle that can be read at any place. Nothing in it has been checked but its outer form.
#[derive(Clone, Debug)]
pub struct Source {
    manifest: Vec<u8>,
    signature: Vec<u8>,
    parts: BTreeMap<String, Extent>,
}

#[derive(Clone, Debug)]
struct Extent {
    file: Arc<File>,
    offset: u64,
    size: u64,
}

impl Source {
    /// Opens a bundle file.
    ///
    /// # Errors
    /// It cannot be read, is truncated or no bundle.
    pub fn open(path: &Path) -> Result<Source, Failure> {
        match Source::open_damaged(path)? {
            (_, Some(fault)) => Err(fault),
            (source, None) => Ok(source),
        }
    }

    /// Opens a bundle file as far as it can be read, and says what is wrong.
    ///
    /// # Errors
    /// It cannot be read, or has no manifest and signature.
    pub fn open_damaged(path: &Path) -> Result<(Source, Option<Failure>), Failure> {
        let mut file = File::open(path).map_err(Failure::file("opened", path))?;
        if !file.metadata().map_err(Failure::file("read", path))?.is_file() {
            return Err(Refusal::malformed(format!("{} is no regular file", path.display())).into());
        }
        let (members, fault) = tar::walk(&mut file);
        let file = Arc::new(file);
        let extent =
            |member: &tar::Member| Extent { file: Arc::clone(&file), offset: member.offset, size: member.size };
        let mut parts: BTreeMap<_, _> = members.iter().map(|member| (member.name.clone(), extent(member))).collect();
        match (parts.remove(MANIFEST), parts.remove(SIGNATURE), fault) {
            (Some(manifest), Some(signature), fault) => {
                let whole = |extent: Extent| extent.whole().map_err(Failure::file("read", path));
                Ok((Source { manifest: whole(manifest)?, signature: whole(signature)?, parts }, fault))
            }
            (_, _, Some(fault)) => Err(fault),
            (..) => Err(Refusal::malformed("it has no manifest and signature").into()),
        }
    }

    /// Opens a directory with a file for each part, as a [`crate::store::Store`] keeps it.
    ///
    /// # Errors
    /// A file of it is missing or cannot be read.
    pub fn open_directory(path: &Path) -> Result<Source, Failure> {
        let small = |name: &str| {
            let path = path.join(name);
            let mut bytes = Vec::new();
            let file = File::open(&path).map_err(Failure::file("opened", &path))?;
            file.take(MAX_MANIFEST as u64 + 1).read_to_end(&mut bytes).map_err(Failure::file("read", &path))?;
            Ok::<_, Failure>(bytes)
        };
        let manifest = small(MANIFEST)?;
        let mut parts = BTreeMap::new();
        for part in Manifest::parse(&manifest)?.needed() {
            let path = path.join(&part.name);
            let file = File::open(&path).map_err(Failure::file("opened", &path))?;
            let size = file.metadata().map_err(Failure::file("read", &path))?.len();
            parts.insert(part.name.clone(), Extent { file: Arc::new(file), offset: 0, size });
        }
        Ok(Source { manifest, signature: small(SIGNATURE)?, parts })
    }

    /// The bytes of the manifest, whoever wrote them.
    pub fn manifest(&self) -> &[u8] {
        &self.manifest
    }

    /// What should be the signature over them.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// Bytes of a part, if it is there.
    pub fn size(&self, part: &str) -> Option<u64> {
        self.parts.get(part).map(|extent| extent.size)
    }

    /// Names of all parts that are there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.keys().map(String::as_str)
    }

    /// Fills the buffer from byte `from` of a part on.
    ///
    /// # Errors
    /// There is no such part, it ends before, or it cannot be read.
    pub fn read_at(&self, part: &str, from: u64, buffer: &mut [u8]) -> io::Result<()> {
        let failed = |kind, what: &str| io::Error::new(kind, format!("{} {what}", plain(part, MAX_NAME)));
        let extent = self.parts.get(part).ok_or_else(|| failed(io::ErrorKind::NotFound, "is no part of it"))?;
        if from.checked_add(buffer.len() as u64).is_none_or(|end| end > extent.size) {
            return Err(failed(io::ErrorKind::UnexpectedEof, "ends before"));
        }
        extent.file.read_exact_at(buffer, extent.offset + from)
    }

    /// A whole part, for those that are small by their manifest.
    ///
    /// # Errors
    /// As [`Source::read_at`].
    pub fn whole(&self, part: &str) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.size(part).unwrap_or_default() as usize];
        self.read_at(part, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads all of it, and checks each byte against the manifest, which is what vouches for it.
    ///
    /// # Errors
    /// The first part that is missing, cut off or changed, or that contradicts another one.
    pub fn check(&self, manifest: &Manifest) -> Result<(), Failure> {
        for part in manifest.needed() {
            let found = self.size(&part.name).unwrap_or_default();
            if found != part.size {
                return Err(Refusal::Truncated { part: part.name.clone(), expected: part.size, found }.into());
            }
            if self.sha256(&part.name)? != part.sha256 {
                return Err(Refusal::corrupted(&part.name, "its SHA-256 is not that of the manifest").into());
            }
        }
        match manifest.kind {
            Kind::Os => {
                self.tree(manifest)?;
                self.check_uki(manifest)?;
                self.check_list(UKI_BLOCKS, UKI)
            }
            Kind::Service => self.check_list(SERVICE_BLOCKS, SERVICE),
        }
    }

    /// SHA-256 of a part.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn sha256(&self, part: &str) -> Result<Hash, Failure> {
        let mut digest = Sha256::new();
        self.pieces(part, |piece| digest.update(piece))?;
        Ok(Hash(digest.finalize().into()))
    }

    /// The hash tree, checked up to the manifest's root hash.
    ///
    /// # Errors
    /// [`Refusal::Corrupted`], or it cannot be read.
    pub fn tree(&self, manifest: &Manifest) -> Result<Tree, Failure> {
        let bytes = self.whole(VERITY).map_err(Failure::io(format!("{VERITY} cannot be read")))?;
        let root = manifest.roothash.unwrap_or(Hash([0; 32]));
        let tree = Tree::open(&bytes, root).map_err(|what| Refusal::corrupted(VERITY, what))?;
        match tree.leaves().len() as u64 * BLOCK as u64 == self.size(ROOT).unwrap_or_default() {
            true => Ok(tree),
            false => Err(Refusal::corrupted(
                VERITY,
                format!("it is the hash tree of something longer or shorter than {ROOT}"),
            )
            .into()),
        }
    }

    fn check_uki(&self, manifest: &Manifest) -> Result<(), Failure> {
        let bytes = self.whole(UKI).map_err(Failure::io(format!("{UKI} cannot be read")))?;
        let uki = Uki::open(&bytes).map_err(|what| Refusal::corrupted(UKI, format!("it {what}")))?;
        if uki.product != manifest.product {
            let (bundle, here) = (crate::text::plain(&uki.product, 64), manifest.product.clone());
            return Err(Refusal::WrongProduct { bundle, here }.into());
        }
        match uki.image.version == manifest.version && Some(uki.image.root) == manifest.roothash {
            true => Ok(()),
            false => {
                let what = format!(
                    "it starts version {} with root hash {}, not what the manifest says",
                    uki.image.version, uki.image.root
                );
                Err(Refusal::corrupted(UKI, what).into())
            }
        }
    }

    fn check_list(&self, list: &str, part: &str) -> Result<(), Failure> {
        let mut hashes = Vec::new();
        self.pieces(part, |piece| {
            hashes.extend(piece.chunks(BLOCK).flat_map(|block| <[u8; 32]>::from(Sha256::digest(block))))
        })?;
        match self.whole(list).map_err(Failure::io(format!("{list} cannot be read")))? == hashes {
            true => Ok(()),
            false => Err(Refusal::corrupted(list, format!("it is not the list of the blocks of {part}")).into()),
        }
    }

    /// Hands a part over in pieces of whole blocks.
    fn pieces(&self, part: &str, mut take: impl FnMut(&[u8])) -> Result<(), Failure> {
        let mut buffer = vec![0; PIECE];
        let (size, mut from) = (self.size(part).unwrap_or_default(), 0);
        while from < size {
            let piece = &mut buffer[..(size - from).min(PIECE as u64) as usize];
            self.read_at(part, from, piece)
                .map_err(Failure::io(format!("{part} cannot be read from byte {from} on")))?;
            take(piece);
            from += piece.len() as u64;
        }
        Ok(())
    }
}

impl Extent {
    fn whole(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.size as usize];
        self.file.read_exact_at(&mut bytes, self.offset)?;
        Ok(bytes)
    }
}

/// Characters of a part's name, which others may have chosen, that are shown.
const MAX_NAME: usize = 64;
/// Bytes read at once, a multiple of [`BLOCK`].
const PIECE: usize = 1 << 20;
