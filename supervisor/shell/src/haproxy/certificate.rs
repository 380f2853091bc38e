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
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::PoisonError;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use trilith_core::config::is_label;
use zeroize::{Zeroize, Zeroizing};

use super::ends::{Ends, first_certificate, moment};
use super::render::digest;
use super::{CONFIG, Shell, seen_from};
use crate::{disk, paths, utc};

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

    /// Removes copies that nobody reads any more, or never will: those which the configuration on disk does not name.
    pub(super) fn tidy_certificates(&self) {
        let used = match fs::read_to_string(self.installed.dir.with_file_name(CONFIG)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return tracing::warn!("copies of certificates are left: {CONFIG}: {error}");
            }
            read => read.unwrap_or_default(),
        };
        let folder = seen_from(&self.installed.root, paths::TLS);
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let copy = format!("{}/{}", paths::TLS, entry.file_name().display());
            if !used.contains(&copy)
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::warn!("{copy} is left: {error}");
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
        self.refuse_ended(pem).await?;
        let (target, pem) = (seen_from(&self.installed.root, &path), pem.clone());
        disk::aside(move || store(&target, &pem)).await?;
        if named.is_none() {
            return Ok(format!("the certificate of service {service} is in {path}, for the configuration to name"));
        }
        self.adopt().await.map_err(|error| format!("{error:#}"))?;
        match &self.refused {
            None => {
                self.asking_ends().await;
                let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
                let until = ends.get(service).map(|end| format!(", and holds until {}", moment(*end)));
                let until = until.unwrap_or_default();
                Ok(format!("the certificate of service {service} is in force for new connections{until}"))
            }
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

    /// Refuses a certificate that has ended already, if HAProxy runs and can tell, and the clock is right.
    async fn refuse_ended(&self, pem: &Pem) -> Result<(), String> {
        let now = utc::now_if_right(&seen_from(&self.installed.root, paths::CLOCK_IS_RIGHT));
        let (Some(now), Some(certificate)) = (now, first_certificate(&pem.0)) else { return Ok(()) };
        match self.master.end_of(&certificate).await {
            Ok(Some(end)) if end < now => Err(format!("it ended on {}: clients would refuse it", moment(end))),
            _ => Ok(()),
        }
    }

    /// Has the HAProxy that runs tell when its certificates end. If it does not answer, what it has told before counts.
    pub(super) fn asking_ends(&self) -> impl Future<Output = ()> + use<> {
        let (copies, master, known) = (self.copies.clone(), self.master.clone(), self.ends.clone());
        async move {
            let mut ends = Ends::new();
            for (service, copy) in copies {
                match master.certificate_end(&copy).await {
                    Ok(Some(end)) => _ = ends.insert(service, end),
                    Ok(None) => tracing::warn!("HAProxy does not tell when the certificate of service {service} ends"),
                    Err(_) => return,
                }
            }
            *known.lock().unwrap_or_else(PoisonError::into_inner) = ends;
        }
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

/// Reads what is to be copied. Whoever may change the configuration chooses the path, and HAProxy's user reads the copy: so nothing
/// is read by way of a link, nor what is no certificate.
fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let wrong = |why: String| Err(io::Error::new(ErrorKind::InvalidData, why));
    // A pipe is never waited for.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits()).open(path) {
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
            return wrong("it is a symbolic link".to_owned());
        }
        opened => opened?,
    };
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_PEM + 1));
    file.take(MAX_PEM as u64 + 1).read_to_end(&mut text)?;
    if text.len() > MAX_PEM {
        return wrong(format!("it has more than {MAX_PEM} bytes"));
    }
    if !is_pem(&text) {
        return wrong("it holds no certificate and private key in PEM".to_owned());
    }
    Ok(text)
}

/// Whether it has the form of a certificate and a private key (RFC 7468). Whether they are any good is for HAProxy to say.
fn is_pem(text: &[u8]) -> bool {
    let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let key = |line: &[u8]| line.starts_with(b"-----BEGIN ") && line.ends_with(b"PRIVATE KEY-----");
    lines.clone().any(|line| line == b"-----BEGIN CERTIFICATE-----") && lines.any(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_certificate_with_its_key_is_read_and_by_no_link() {
        let folder = std::env::temp_dir().join(format!("trilith-certificate-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (path, link) = (folder.join("secure.pem"), folder.join("link.pem"));
        let (certificate, key) = ("-----BEGIN CERTIFICATE-----\r\n", "-----BEGIN EC PRIVATE KEY-----\n");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let why = |path: &Path| read(path).unwrap_err().to_string();
        for text in ["", "root:*:20000:0:99999:7:::\n", certificate, key, &format!("# {certificate}{key}")] {
            fs::write(&path, text).unwrap();
            assert_eq!(why(&path), "it holds no certificate and private key in PEM", "{text:?}");
        }
        fs::write(&path, format!("{key}{certificate}")).unwrap();
        assert_eq!(read(&path).unwrap().as_slice(), fs::read(&path).unwrap());
        assert_eq!(why(&link), "it is a symbolic link");
        nix::unistd::mkfifo(&folder.join("pipe.pem"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(why(&folder.join("pipe.pem")), "it holds no certificate and private key in PEM");
        fs::remove_dir_all(folder).unwrap();
    }
}
