//! The answers: what was asked for, read and checked, whichever source and form it came in.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::network::Network;

/// All answers of one node.
///
/// Serialized it is the record `answers.toml`, from which every later boot works: no secret and no password is in it, and what
/// is written once only (files, the set's part) isn't either.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Answers {
    /// Where they came from, such as `NoCloud on /dev/sr0`.
    pub source: String,
    /// Identifies them: another one means that somebody gave new answers.
    pub instance_id: String,
    /// The host's name, its first label only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The host's full name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fqdn: Option<String>,
    /// A name of the IANA time zone database, such as `Europe/Vienna`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Where the time comes from; `None`: as the image has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ntp: Option<Ntp>,
    /// Certificate authorities.
    pub ca_certs: CaCerts,
    /// Accounts for the console and SSH.
    #[serde(rename = "user")]
    pub users: Vec<User>,
    /// The network; `None`: nothing was said, so DHCP on every interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Files to write once.
    #[serde(skip)]
    pub files: Vec<StateFile>,
    /// The set's part, to write once.
    #[serde(skip)]
    pub set: Option<SetPart>,
}

/// Where the time comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ntp {
    /// Whether the clock is set at all.
    pub enabled: bool,
    /// Servers and pools, by name or address.
    pub servers: Vec<String>,
}

/// Certificate authorities that are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaCerts {
    /// Whether the image's own are believed no more.
    pub remove_defaults: bool,
    /// Certificates in PEM form.
    pub trusted: Vec<String>,
}

/// An account for the console and SSH.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Words for humans.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gecos: String,
    /// Public keys that may log in by SSH.
    pub ssh_authorized_keys: Vec<String>,
    /// The password's hash (crypt(5)); `None`: no login by password.
    #[serde(skip)]
    pub password: Option<Secret>,
}

/// A file of the state, below [`FILES`].
#[derive(Clone, PartialEq, Eq)]
pub struct StateFile {
    /// Path below [`FILES`], without a leading slash.
    pub path: String,
    /// What is in it.
    pub content: Vec<u8>,
    /// Permissions.
    pub mode: u32,
    /// Whether the content is added to what is there.
    pub append: bool,
}

/// A file's content may be a key: only its length is shown.
impl fmt::Debug for StateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:04o}, {} bytes)", self.path, self.mode, self.content.len())
    }
}

/// What makes this machine a node of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetPart {
    /// The set's document, as TOML.
    pub document: String,
    /// The set secret, when it is given here and not in a file of its own.
    pub secret: Option<Secret>,
    /// Which node of the document this is.
    pub node: String,
}

/// Text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Answers {
    /// The account of this name, made if there is none.
    pub fn user(&mut self, name: &str) -> &mut User {
        let place = self.users.iter().position(|user| user.name == name).unwrap_or_else(|| {
            self.users.push(User { name: name.to_owned(), ..User::default() });
            self.users.len() - 1
        });
        &mut self.users[place]
    }
}

/// The account that is in every image, for keys and passwords that name no other.
pub const ADMIN: &str = "admin";
/// Files of `write_files` lie below this.
pub const FILES: &str = "/var/lib/trilith/files";
