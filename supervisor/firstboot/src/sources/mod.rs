//! Where answers may come from, and how they are found.

use std::fs;
use std::path::Path;
use std::time::Duration;

use self::arrivals::Arrivals;
use crate::encoding;
use crate::finding::{Finding, Findings};
use crate::yaml::{self, Node};

pub mod arrivals;
pub mod disks;
pub mod guestinfo;
pub mod kvp;
pub mod ovf;
pub mod seed;
pub mod smbios;

/// What a source holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Documents {
    /// The source in words, such as `NoCloud on /dev/sr0`.
    pub source: String,
    /// Who this machine is: `instance-id`, `local-hostname`, `public-keys`; the first document that says it counts.
    pub meta: Vec<Document>,
    /// What is asked for; a later document overrides an earlier one key by key.
    pub user: Vec<Document>,
    /// The network.
    pub network: Option<Document>,
}

/// One document under the name that it has in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Such as `user-data`.
    pub name: String,
    /// What is in it.
    pub content: Content,
}

/// A document's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// As it was found.
    Bytes(Vec<u8>),
    /// Read already, as part of another document.
    Tree(Node),
    /// It is there, but what it says can't be known. A fault, never a document that says nothing: answers that lack it would be
    /// stored, and it would not be asked for again.
    Unreadable {
        /// Why, as part of a sentence.
        wrong: String,
        /// What would mend it.
        mend: String,
    },
}

impl Document {
    /// A document as it was found.
    pub fn new(name: &str, bytes: Vec<u8>) -> Document {
        Document { name: name.to_owned(), content: Content::Bytes(bytes) }
    }

    /// One that is there and can't be read: why, as part of a sentence, and what would mend it.
    pub fn unreadable(name: &str, wrong: impl Into<String>, mend: impl Into<String>) -> Document {
        Document { name: name.to_owned(), content: Content::Unreadable { wrong: wrong.into(), mend: mend.into() } }
    }

    /// The document as a tree; `None` when a fault was noted.
    pub fn tree(&self, findings: &mut Findings) -> Option<Node> {
        let fault = |wrong: &str, mend: &str| Finding {
            document: self.name.clone(),
            line: 0,
            key: String::new(),
            wrong: wrong.to_owned(),
            mend: mend.to_owned(),
        };
        let bytes = match &self.content {
            Content::Tree(root) => return Some(root.clone()),
            Content::Unreadable { wrong, mend } => {
                findings.fault(fault(wrong, mend));
                return None;
            }
            Content::Bytes(bytes) => bytes.clone(),
        };
        let bytes = match encoding::unpacked(bytes) {
            Ok(bytes) => bytes,
            Err(wrong) => {
                findings.fault(fault(&wrong, "pack it anew, or give it as it is"));
                return None;
            }
        };
        let Ok(text) = String::from_utf8(bytes) else {
            findings.fault(fault("is not UTF-8 text", "save the document as UTF-8"));
            return None;
        };
        match yaml::parse(text.strip_prefix('\u{feff}').unwrap_or(&text), &self.name) {
            Ok(root) => Some(root),
            Err(fault) => {
                findings.fault(*fault);
                None
            }
        }
    }
}

/// Looks for answers on this machine: the documents of the first source that has any, and what went wrong on the way.
///
/// With `wait`, a device that is not there yet is waited for, for at most [`LATEST`].
pub fn look(wait: bool) -> (Option<Documents>, Vec<String>) {
    let arrivals = if wait { Arrivals::watch(Path::new("/dev"), LATEST) } else { None };
    let hints = smbios::hints(&dmi("product_serial"));
    let hinted = hints.as_ref().and_then(smbios::documents);
    loop {
        let mut problems = Vec::new();
        let found = look_once(hints.as_ref(), &mut problems);
        if found.is_none() && arrivals.as_ref().is_some_and(Arrivals::next) {
            continue;
        }
        let Some(mut found) = found else {
            // Hints say who this machine is, not what it shall do: beside a source that can't be read they are not all there is.
            return (hinted.filter(|_| problems.is_empty()), problems);
        };
        found.meta.extend(hinted.map(|hinted| hinted.meta).unwrap_or_default());
        return (Some(found), problems);
    }
}

/// The sources in their order: labelled disks first, since somebody attached them on purpose.
fn look_once(hints: Option<&smbios::Hints>, problems: &mut Vec<String>) -> Option<Documents> {
    let volumes = disks::volumes();
    let (labelled, others): (Vec<_>, Vec<_>) = volumes.iter().partition(|volume| volume.is_labelled());
    from_volumes(&labelled, problems)
        .or_else(|| smbios::seed(hints?, problems))
        .or_else(|| from_vmware(problems))
        .or_else(|| from_volumes(&others, problems))
        .or_else(|| kvp::documents(&fs::read(kvp::POOL).ok()?))
}

fn from_volumes(volumes: &[&disks::Volume], problems: &mut Vec<String>) -> Option<Documents> {
    volumes.iter().find_map(|volume| match disks::read(volume) {
        Ok(documents) => documents,
        Err(error) => {
            problems.push(format!("{error:#}"));
            None
        }
    })
}

fn from_vmware(problems: &mut Vec<String>) -> Option<Documents> {
    if !dmi("sys_vendor").starts_with("VMware") {
        return None;
    }
    guestinfo::documents(guestinfo::ask, problems)
}

/// A word of the firmware about this machine; empty when it has none.
fn dmi(name: &str) -> String {
    fs::read_to_string(Path::new("/sys/class/dmi/id").join(name)).unwrap_or_default()
}

/// The longest that is waited for a device with answers.
pub const LATEST: Duration = Duration::from_secs(5);
