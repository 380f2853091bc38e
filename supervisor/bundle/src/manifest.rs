//! What a bundle says of itself: read without trust, and opened by the keys that are trusted.
//!
//! ```toml
//! format = 1
//! kind = "os"
//! product = "trilith"
//! version = "1.5.0"
//! created = "2026-11-21T07:00:00Z"
//! expires = "2027-11-21T07:00:00Z"     # may be left out
//! floor = "1.3.0"                      # nothing older may be installed once this runs
//! min_version = "1.4.0"                # this can be installed where that runs, or something newer
//! roothash = "2f1b…"
//! notes = """
//! What changes for the operator."""
//!
//! [[part]]
//! name = "root.verity"
//! size = 282624
//! sha256 = "90aa…"
//! ```
//!
//! The signature is over these bytes, and they vouch for each part. Unknown keys are skipped and unknown parts are not fetched, so
//! that the next version may add some; what must not be skipped raises `format`.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use trilith_core::set::Release;
use trilith_core::slots::Version;

use crate::refusal::Refusal;
use crate::text::plain;
use crate::utc::Utc;
use crate::{BLOCK, Hash, Keys, verity};

#[cfg(test)]
mod tests;

/// The format that is written and read.
pub const FORMAT: u64 = 1;
/// Bytes of a manifest, at most.
pub const MAX_MANIFEST: usize = 64 << 10;
/// Bytes of the release notes in it, at most.
pub const MAX_NOTES: usize = 16 << 10;
/// Bytes of a part, at most: what a hash tree is made for here.
pub const MAX_PART: u64 = verity::MOST_BLOCKS * BLOCK as u64;
/// Bytes of a UKI, at most: three of them fit on the ESP, and one into memory.
pub const MAX_UKI: u64 = 32 << 20;
/// Parts, at most.
pub const MAX_PARTS: usize = 16;

/// The root file system.
pub const ROOT: &str = "root.erofs";
/// Its hash tree, which is also the list of its blocks.
pub const VERITY: &str = "root.verity";
/// The kernel with its initrd and command line, signed.
pub const UKI: &str = "trilith.efi";
/// The list of its blocks.
pub const UKI_BLOCKS: &str = "uki.blocks";
/// The archive of a service's tree.
pub const SERVICE: &str = "service.raw";
/// The list of its blocks.
pub const SERVICE_BLOCKS: &str = "service.blocks";

/// What a bundle holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A version of the system.
    #[default]
    Os,
    /// A version of one service: an archive of its tree.
    Service,
}

impl Kind {
    /// The parts it must have, in the order in which they lie in the bundle: lists of blocks before what they are of.
    pub fn parts(self) -> &'static [&'static str] {
        match self {
            Kind::Os => &[VERITY, UKI_BLOCKS, UKI, ROOT],
            Kind::Service => &[SERVICE_BLOCKS, SERVICE],
        }
    }
}

/// One part of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name in the bundle.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Of all of them.
    pub sha256: Hash,
}

/// A manifest whose form is right. Nobody vouches for it, unless it comes out of a [`Verified`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u64,
    /// What it holds.
    #[serde(default)]
    pub kind: Kind,
    /// The appliance that it is for.
    pub product: String,
    /// The service that it is of; nothing for the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Of the system, or of the service.
    pub version: Version,
    /// When it was made.
    pub created: Utc,
    /// When it must no longer be installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Utc>,
    /// The lowest version of the same thing that may still be installed after this one.
    #[serde(default)]
    pub floor: Version,
    /// The lowest version of the system that it can be installed over.
    #[serde(default)]
    pub min_version: Version,
    /// Of the root: for [`Kind::Os`] only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roothash: Option<Hash>,
    /// What changes, for operators. Plain text.
    #[serde(default)]
    pub notes: String,
    /// What else is in the bundle.
    #[serde(rename = "part")]
    pub parts: Vec<Part>,
}

/// Where a bundle is to be installed.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// The appliance: `IMAGE_ID` of os-release.
    pub product: &'a str,
    /// The version of the system that runs.
    pub running: Version,
    /// The lowest version that may be installed, of the system or of that service.
    pub floor: Version,
    /// Why the set has banned this release, if it has.
    pub banned: Option<&'a str>,
    /// Bytes that there is room for.
    pub room: Room,
    /// Seconds of UTC since 1970. Nothing where there is no clock: then nothing is expired.
    pub now: Option<u64>,
    /// A time server has set that clock. It changes the words of a refusal, not whether there is one.
    pub synchronised: bool,
}

/// Bytes that there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// A root partition.
    pub root: u64,
    /// A verity partition.
    pub verity: u64,
    /// One UKI on the ESP.
    pub uki: u64,
    /// The archive of a service's tree.
    pub service: u64,
}

/// A manifest that a trusted key has signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    manifest: Manifest,
    bytes: Vec<u8>,
    signature: Vec<u8>,
}

impl Verified {
    /// Checks the signature, then the form: nothing of an unsigned manifest is looked at.
    ///
    /// # Errors
    /// [`Refusal::WrongSignature`], [`Refusal::UnknownFormat`], [`Refusal::Malformed`].
    pub fn open(bytes: &[u8], signature: &[u8], keys: &Keys) -> Result<Verified, Refusal> {
        if bytes.len() > MAX_MANIFEST {
            return Err(Refusal::malformed(format!("a manifest of more than {MAX_MANIFEST} bytes")));
        }
        keys.verify(bytes, signature)?;
        Ok(Verified { manifest: Manifest::parse(bytes)?, bytes: bytes.to_vec(), signature: signature.to_vec() })
    }

    /// Whether it may be installed there and now. To be asked again before it is installed: what has changed meanwhile counts.
    ///
    /// # Errors
    /// The first reason not to.
    pub fn admit(&self, context: &Context<'_>) -> Result<(), Refusal> {
        let Manifest { product, version, expires, min_version, .. } = &self.manifest;
        if product != context.product {
            return Err(Refusal::WrongProduct { bundle: plain(product, MAX_NAME), here: context.product.to_owned() });
        }
        if *version < context.floor {
            return Err(Refusal::BelowFloor { version: *version, floor: context.floor });
        }
        if context.running < *min_version {
            return Err(Refusal::NeedsNewer { min_version: *min_version, running: context.running });
        }
        if let (Some(expires), Some(now)) = (*expires, context.now)
            && expires.0 <= now
        {
            return Err(Refusal::Expired { expires, now: Utc(now), synchronised: context.synchronised });
        }
        if let Some(reason) = context.banned {
            return Err(Refusal::Banned { version: *version, reason: plain(reason, MAX_REASON) });
        }
        let too_large = self.manifest.parts.iter().find_map(|part| {
            let room = context.room.of(&part.name).filter(|room| part.size > *room)?;
            Some(Refusal::TooLarge { part: part.name.clone(), size: part.size, room })
        });
        too_large.map_or(Ok(()), Err)
    }

    /// What it says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The signed bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The signature over them.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// Which bundle it is: the SHA-256 of the manifest.
    pub fn id(&self) -> Hash {
        Hash(Sha256::digest(&self.bytes).into())
    }
}

impl Room {
    fn of(&self, part: &str) -> Option<u64> {
        match part {
            ROOT => Some(self.root),
            VERITY => Some(self.verity),
            UKI => Some(self.uki),
            SERVICE => Some(self.service),
            _ => None,
        }
    }
}

impl Manifest {
    /// Reads a manifest, whoever wrote it.
    ///
    /// # Errors
    /// [`Refusal::UnknownFormat`], [`Refusal::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Manifest, Refusal> {
        #[derive(Deserialize)]
        struct Format {
            format: u64,
        }
        let wrong = |what: String| Refusal::malformed(format!("manifest.toml: {}", plain(&what, MAX_REASON)));
        if bytes.len() > MAX_MANIFEST {
            return Err(wrong(format!("more than {MAX_MANIFEST} bytes")));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| wrong(error.to_string()))?;
        let unread = |error: toml::de::Error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            wrong(format!("line {line}: {}", error.message()))
        };
        let Format { format } = toml::from_str(text).map_err(unread)?;
        if format != FORMAT {
            return Err(Refusal::UnknownFormat { format });
        }
        let manifest: Manifest = toml::from_str(text).map_err(unread)?;
        manifest.check().map_err(wrong)?;
        Ok(manifest)
    }

    /// What it brings.
    pub fn release(&self) -> Release {
        match &self.service {
            None => Release::system(self.version),
            Some(name) => Release::service(name, self.version),
        }
    }

    /// A part by its name.
    pub fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// The parts that [`Kind`] asks for, in their order. All of them are there.
    pub fn needed(&self) -> impl Iterator<Item = &Part> {
        self.kind.parts().iter().filter_map(|name| self.part(name))
    }

    /// Bytes of all parts that are needed.
    pub fn size(&self) -> u64 {
        self.needed().map(|part| part.size).sum()
    }

    /// The first line of the notes, fit to be shown.
    pub fn summary(&self) -> String {
        plain(self.notes.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default(), MAX_SUMMARY)
    }

    fn check(&self) -> Result<(), String> {
        named("product", &self.product)?;
        if let Some(service) = &self.service {
            named("service", service)?;
        }
        if self.notes.len() > MAX_NOTES {
            return Err(format!("notes have more than {MAX_NOTES} bytes"));
        }
        if self.floor > self.version {
            return Err(format!("version {} is below its own floor {}", self.version, self.floor));
        }
        if self.parts.len() > MAX_PARTS {
            return Err(format!("has more than {MAX_PARTS} parts"));
        }
        for (at, part) in self.parts.iter().enumerate() {
            named("part", &part.name)?;
            if self.parts[..at].iter().any(|other| other.name == part.name) {
                return Err(format!("has part {} twice", part.name));
            }
            if !(1..=MAX_PART).contains(&part.size) {
                return Err(format!(
                    "part {} has {} bytes; between 1 and {MAX_PART} are possible",
                    part.name, part.size
                ));
            }
        }
        if let Some(name) = self.kind.parts().iter().find(|name| self.part(name).is_none()) {
            return Err(format!("has no part {name}"));
        }
        let size = |name: &str| self.part(name).map_or(0, |part| part.size);
        match self.kind {
            Kind::Os => {
                if self.service.is_some() || self.roothash.is_none() {
                    return Err("a system has a roothash and no service".into());
                }
                if verity::tree_bytes(size(ROOT)) != Some(size(VERITY)) {
                    return Err(format!(
                        "{VERITY} of {} bytes is no hash tree of {ROOT} of {} bytes",
                        size(VERITY),
                        size(ROOT)
                    ));
                }
                if size(UKI) > MAX_UKI {
                    return Err(format!("{UKI} has {} bytes; at most {MAX_UKI} are possible", size(UKI)));
                }
                listed(UKI, size(UKI), UKI_BLOCKS, size(UKI_BLOCKS))
            }
            Kind::Service => {
                if self.service.is_none() || self.roothash.is_some() {
                    return Err("a service has a name and no roothash".into());
                }
                listed(SERVICE, size(SERVICE), SERVICE_BLOCKS, size(SERVICE_BLOCKS))
            }
        }
    }
}

/// Names go to file names and terminals.
fn named(what: &str, name: &str) -> Result<(), String> {
    let fit = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    match (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(fit) && !name.starts_with(['.', '-']) {
        true => Ok(()),
        false => Err(format!("{name:?} is no name of a {what}: up to {MAX_NAME} of a-z, 0-9, '-', '.', '_'")),
    }
}

fn listed(part: &str, size: u64, list: &str, list_size: u64) -> Result<(), String> {
    match size.div_ceil(BLOCK as u64) * 32 == list_size {
        true => Ok(()),
        false => Err(format!("{list} of {list_size} bytes is no list of the blocks of {part} of {size} bytes")),
    }
}

/// Characters of a product, service or part.
const MAX_NAME: usize = 64;
/// Characters of what others wrote that an error shows.
const MAX_REASON: usize = 300;
/// Characters of the notes' first line that are shown.
const MAX_SUMMARY: usize = 120;
