//! Small bundles for tests: a real root hash, a real hash tree, real signatures.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use minisign::KeyPair;
use trilith_core::slots::{Image, Version};

use crate::manifest::{FORMAT, Kind, Manifest, ROOT, Room, SERVICE, SERVICE_BLOCKS, UKI, UKI_BLOCKS, VERITY};
use crate::utc::Utc;
use crate::{BLOCK, Context, Keys, make, uki, verity};

/// The salt of all images.
const SALT: [u8; 32] = [0x5a; 32];

/// A system as the build makes it.
pub(crate) struct System {
    pub(crate) version: Version,
    pub(crate) root: Vec<u8>,
    pub(crate) verity: Vec<u8>,
    pub(crate) uki: Vec<u8>,
    pub(crate) image: Image,
}

impl System {
    /// Of that many blocks; a block is the same in two versions unless `changed` names it.
    pub(crate) fn new(version: Version, blocks: usize, changed: &[usize]) -> System {
        let block = |number: usize| {
            let salt = if changed.contains(&number) { (version.minor * 7 + version.patch + 1) as u8 } else { 0 };
            (0..BLOCK).map(move |at| (number * 31 + at % 253) as u8 ^ salt).collect::<Vec<_>>()
        };
        let root: Vec<u8> = (0..blocks).flat_map(block).collect();
        let (verity, hash) = verity::make(&root, SALT);
        let image = Image { version, root: hash };
        let kernel: Vec<u8> = (0..3 * BLOCK + 100).map(|at| (at % 249) as u8).collect();
        let uki = uki::tests::uki("trilith", image, &kernel);
        System { version, root, verity, uki, image }
    }

    pub(crate) fn manifest(&self) -> Manifest {
        manifest(Kind::Os, self.version, Some(self.image.root))
    }

    /// Writes the files that the build leaves, and says which they are, in the bundle's order.
    pub(crate) fn files(&self, directory: &Path) -> Vec<make::Named> {
        let put = |name: &'static str, bytes: &[u8]| {
            let path = directory.join(name);
            std::fs::write(&path, bytes).unwrap();
            (name, path)
        };
        let uki = put(UKI, &self.uki);
        let list = make::list_of_blocks(&uki.1).unwrap();
        vec![put(VERITY, &self.verity), put(UKI_BLOCKS, &list), uki, put(ROOT, &self.root)]
    }

    /// Makes the bundle `<version>.bundle`.
    pub(crate) fn bundle(&self, directory: &Path, pair: &KeyPair) -> PathBuf {
        let mut manifest = self.manifest();
        let files = self.files(directory);
        make::describe(&mut manifest, &files).unwrap();
        bundle(directory, &manifest, &files, pair)
    }
}

/// A manifest without parts.
pub(crate) fn manifest(kind: Kind, version: Version, roothash: Option<crate::Hash>) -> Manifest {
    Manifest {
        format: FORMAT,
        kind,
        product: "trilith".into(),
        service: (kind == Kind::Service).then(|| "web".into()),
        version,
        created: Utc(1_795_244_400),
        expires: Some(Utc(1_826_780_400)),
        floor: Version::new(1, 0, 0),
        min_version: Version::new(1, 1, 0),
        roothash,
        notes: "Mends the relay.\n\nMore \u{1b}[31mcolour.\n".into(),
        parts: Vec::new(),
    }
}

/// A bundle of one service.
pub(crate) fn service(directory: &Path, content: &[u8], pair: &KeyPair) -> PathBuf {
    let raw = directory.join(SERVICE);
    std::fs::write(&raw, content).unwrap();
    let list = directory.join(SERVICE_BLOCKS);
    std::fs::write(&list, make::list_of_blocks(&raw).unwrap()).unwrap();
    let files = vec![(SERVICE_BLOCKS, list), (SERVICE, raw)];
    let mut manifest = manifest(Kind::Service, Version::new(2, 0, 0), None);
    make::describe(&mut manifest, &files).unwrap();
    bundle(directory, &manifest, &files, pair)
}

/// Signs a manifest as it stands and writes the bundle.
pub(crate) fn bundle(directory: &Path, manifest: &Manifest, files: &[make::Named], pair: &KeyPair) -> PathBuf {
    let text = toml::to_string(manifest).unwrap();
    let path = directory.join(format!("{}.bundle", manifest.version));
    let mut bytes = Vec::new();
    make::write(&mut bytes, text.as_bytes(), &sign(text.as_bytes(), pair), 0, files).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

pub(crate) fn sign(bytes: &[u8], pair: &KeyPair) -> Vec<u8> {
    minisign::sign(Some(&pair.pk), &pair.sk, Cursor::new(bytes), None, None).unwrap().into_string().into_bytes()
}

pub(crate) fn pair() -> KeyPair {
    KeyPair::generate_unencrypted_keypair().unwrap()
}

pub(crate) fn keys(pair: &KeyPair) -> Keys {
    Keys::parse(&pair.pk.to_box().unwrap().into_string()).unwrap()
}

/// An appliance that takes the bundle of [`manifest`].
pub(crate) fn context() -> Context<'static> {
    Context {
        product: "trilith",
        running: Version::new(1, 4, 0),
        floor: Version::new(1, 2, 0),
        banned: None,
        room: Room { root: 2 << 20, verity: 1 << 16, uki: 1 << 16, service: 1 << 20 },
        now: Some(1_795_244_500),
        synchronised: true,
    }
}
