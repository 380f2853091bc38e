//! Certificates: where they lie, how HAProxy gets them, and how another one is put in force.
//!
//! A certificate lies with its chain and key in one file (PEM) that the configuration names, below the state or in the image, for
//! root's eyes. HAProxy is another user from its first instruction on, so it reads copies in [`paths::TLS`]. Each bears its digest in its
//! name, so that one which HAProxy refuses replaces none, and so that HAProxy loads one that was renewed as it loads another
//! configuration: connections go on, for as many reloads and as long as `render.rs` allows.
//!
//! Keys do not travel from node to node: whoever brings one brings it to each.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use trilith_core::config::is_label;
use zeroize::{Zeroize, Zeroizing};

use super::render::digest;
use super::{Shell, seen_from};
use crate::{disk, paths};

/// Where HAProxy finds the certificates of services, by their names.
pub type Copies = BTreeMap<String, String>;

/// The longest certificate with chain and key that is taken, in bytes: ten times the usual.
pub const MAX_PEM: usize = 32 << 10;
/// Name of the copy that HAProxy judges. No service can have it.
const TRIED: &str = "new+.pem";
/// Name of the configuration by which it does.
const TRIAL: &str = "certificate.cfg";

/// A certificate with chain and private key. It is shown to nobody.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pem(String);

impl Pem {
    /// The text of a file.
    pub fn new(text: String) -> Pem {
        Pem(text)
    }

    /// Whether it is longer than [`MAX_PEM`].
    pub fn is_too_long(&self) -> bool {
        self.0.len() > MAX_PEM
    }
}

impl Drop for Pem {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a certificate and its key, {} bytes", self.0.len())
    }
}

/// An order to put a certificate in force.
pub struct Install {
    pub service: String,
    pub pem: Pem,
    pub reply: oneshot::Sender<Result<String, String>>,
}

impl Shell {
    /// Copies the certificates that the configuration names to where HAProxy may read them. Returns the copies by service.
    pub(super) fn take_certificates(&self) -> Result<Copies, String> {
        let mut copies = Copies::new();
        for service in &self.settings.services {
            let Some(path) = &service.tls_certificate else { continue };
            let text = read(&seen_from(&self.installed.root, path)).map_err(|error| {
                let name = &service.name;
                format!(
                    "the certificate of service {name}, {path}: {error}; `trilith service certificate {name} FILE` puts \
                     one into {}/{name}.pem",
                    paths::CERTIFICATES
                )
            })?;
            let copy = format!("{}/{}-{}.pem", paths::TLS, service.name, digest(&text));
            self.copy(&copy, &text)?;
            copies.insert(service.name.clone(), copy);
        }
        Ok(copies)
    }

    /// Removes copies that nobody reads any more: those which the configuration in force does not name.
    pub(super) fn tidy_certificates(&self) {
        let used: Vec<_> = self.copies.values().map(|copy| seen_from(&self.installed.root, copy)).collect();
        let folder = seen_from(&self.installed.root, paths::TLS);
        for entry in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if !used.contains(&entry)
                && let Err(error) = fs::remove_file(&entry)
            {
                tracing::warn!("{} is left: {error}", entry.display());
            }
        }
    }

    /// [`super::Handle::install`].
    pub(super) async fn install_certificate(&mut self, service: &str, pem: &Pem) -> Result<String, String> {
        if !is_label(service) {
            return Err(format!("{service:?} is no name of a service: use lower-case letters, digits and hyphens"));
        }
        let path = format!("{}/{service}.pem", paths::CERTIFICATES);
        let known = self.settings.services.iter().find(|known| known.name == service);
        let named = known.and_then(|service| service.tls_certificate.clone());
        if let Some(other) = named.as_ref().filter(|named| **named != path) {
            return Err(format!(
                "the configuration has the certificate of service {service} in {other}: name {path} there, which alone \
                 can be replaced"
            ));
        }
        self.judge(pem).await?;
        let (target, pem) = (seen_from(&self.installed.root, &path), pem.clone());
        disk::aside(move || store(&target, &pem)).await?;
        if named.is_none() {
            return Ok(format!("the certificate of service {service} is in {path}, for the configuration to name"));
        }
        self.adopt().await.map_err(|error| format!("{error:#}"))?;
        match &self.refused {
            None => Ok(format!("the certificate of service {service} is in force for new connections")),
            Some(why) => Err(format!("it is in {path}, but {why}")),
        }
    }

    /// Has HAProxy say whether it could serve with this certificate: whether key and chain belong to it, and nothing is missing.
    async fn judge(&self, pem: &Pem) -> Result<(), String> {
        let (tried, trial) = (format!("{}/{TRIED}", paths::TLS), self.installed.dir.with_file_name(TRIAL));
        self.copy(&tried, pem.0.as_bytes())?;
        let text = format!(
            "frontend certificate\n    mode http\n    bind 127.0.0.1:1 ssl crt {tried}\n    timeout client 1s\n"
        );
        let written = fs::write(&trial, text).map_err(|error| format!("{}: {error}", trial.display()));
        let judged = match written {
            Ok(()) => self.check(TRIAL).await,
            Err(why) => Err(why),
        };
        for left in [trial, seen_from(&self.installed.root, &tried)] {
            if let Err(error) = fs::remove_file(&left) {
                tracing::warn!("{} is left: {error}", left.display());
            }
        }
        judged
    }

    /// Puts a file where HAProxy may read it: in a directory that gives it HAProxy's group.
    fn copy(&self, path: &str, text: &[u8]) -> Result<(), String> {
        disk::replace_with(&seen_from(&self.installed.root, path), text, 0o640).map_err(|error| format!("{error:#}"))
    }
}

fn store(path: &Path, pem: &Pem) -> Result<(), String> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| format!("{}: {error}", folder.display()))?;
    disk::replace_with(path, pem.0.as_bytes(), 0o600).map_err(|error| format!("{error:#}"))
}

fn read(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_PEM + 1));
    File::open(path)?.take(MAX_PEM as u64 + 1).read_to_end(&mut text)?;
    if text.len() > MAX_PEM {
        let why = format!("it has more than {MAX_PEM} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
    }
    Ok(text)
}
