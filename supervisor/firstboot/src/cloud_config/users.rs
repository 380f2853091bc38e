//! Accounts: their public keys and password hashes. All of them get the console and nothing else.

use super::{DEFAULT_USER, whole};
use crate::answers::{Answers, Secret};
use crate::encoding;
use crate::fields::{Field, Table};
use crate::finding::{Findings, quoted};
use crate::yaml::Value;

/// Reads `users`, `ssh_authorized_keys` and `password`.
pub(super) fn read(table: &mut Table<'_>, answers: &mut Answers, findings: &mut Findings) {
    if let Some(field) = table.get("ssh_authorized_keys") {
        let keys = keys(&field, findings);
        answers.user(DEFAULT_USER).ssh_authorized_keys.extend(keys);
    }
    if let Some(field) = table.get("users") {
        list(&field, answers, findings);
    }
    if let Some(field) = table.get("password") {
        match field.text(findings) {
            Some(text) if hash_fault(text).is_none() => {
                answers.user(DEFAULT_USER).password = Some(Secret(text.trim().to_owned()));
            }
            _ => field.warn(findings, PLAIN, HASH),
        }
    }
    // What is so anyway: no login by SSH with a password, none as root.
    for (key, always) in [("ssh_pwauth", false), ("disable_root", true)] {
        if let Some(field) = table.get(key)
            && field.boolean(findings) != Some(always)
        {
            field.warn(findings, format!("is always {always}"), "");
        }
    }
}

/// The public keys of meta-data: a list, a text, or a table by name (EC2's and OpenStack's form).
pub(super) fn keys_of_metadata(field: &Field<'_>, answers: &mut Answers, findings: &mut Findings) {
    let found = match &field.node.value {
        Value::Map(_) => {
            let entries = field.table(findings).into_iter().flat_map(Table::entries);
            entries.flat_map(|(_, field)| keys(&field, findings)).collect()
        }
        _ => keys(field, findings),
    };
    answers.user(DEFAULT_USER).ssh_authorized_keys.extend(found);
}

fn list(field: &Field<'_>, answers: &mut Answers, findings: &mut Findings) {
    match &field.node.value {
        // {name: {…}} as well as [{name: …}], and "one, two".
        Value::Map(_) => {
            for (name, field) in field.table(findings).into_iter().flat_map(Table::entries) {
                if let Some(table) = field.table(findings) {
                    account(name, &field, table, answers, findings);
                }
            }
        }
        _ => {
            for field in field.one_or_many() {
                if let Value::Map(_) = &field.node.value {
                    let Some(mut table) = field.table(findings) else { continue };
                    let name = table.require("name", "alice", findings).and_then(|field| field.text(findings));
                    let Some(name) = name else { continue };
                    account(name, &field, table, answers, findings);
                } else {
                    for name in field.words(findings) {
                        let name = if name == "default" { DEFAULT_USER } else { &name };
                        if name_is_good(name, &field, findings) {
                            answers.user(name);
                        }
                    }
                }
            }
        }
    }
}

fn account(name: &str, field: &Field<'_>, mut table: Table<'_>, answers: &mut Answers, findings: &mut Findings) {
    let name = if name == "default" { DEFAULT_USER } else { name };
    if !name_is_good(name, field, findings) {
        return;
    }
    let gecos = table.get("gecos").and_then(|field| gecos(&field, findings));
    let mut found = Vec::new();
    for key in ["ssh_authorized_keys", "ssh-authorized-keys"] {
        if let Some(field) = table.get(key) {
            found.extend(keys(&field, findings));
        }
    }
    let mut password = None;
    for key in ["passwd", "hashed_passwd"] {
        let Some(field) = table.get(key) else { continue };
        let Some(hash) = field.text(findings) else { continue };
        match hash_fault(hash) {
            None => password = Some((Secret(hash.trim().to_owned()), field)),
            Some(wrong) => field.fault(findings, wrong, HASH),
        }
    }
    // cloud-init locks the password unless it is told not to.
    let mut locked = true;
    for key in ["lock_passwd", "lock-passwd"] {
        locked = table.get(key).and_then(|field| field.boolean(findings)).unwrap_or(locked);
    }
    if let (true, Some((_, field))) = (locked, &password) {
        field.warn(
            findings,
            "no login with it: the password is locked, as cloud-init has it",
            "add lock_passwd: false",
        );
    }
    for key in ["plain_text_passwd", "plain-text-passwd"] {
        table.refuse(key, HASH, findings);
    }
    table.refuse("sudo", "accounts get the console, which does what an admin may do", findings);
    table.refuse("shell", "accounts get the console", findings);
    table.refuse("groups", "accounts get the console and are in trilith-admin", findings);
    table.skip("name");
    table.finish(findings);
    let user = answers.user(name);
    user.gecos = gecos.unwrap_or_default();
    user.ssh_authorized_keys.extend(found);
    if !locked {
        user.password = password.map(|(hash, _)| hash);
    }
}

/// What is wrong with a password's hash (crypt(5)); `None` when nothing is. The text itself is never repeated.
pub fn hash_fault(text: &str) -> Option<&'static str> {
    let text = text.trim();
    let method = text.strip_prefix('$').and_then(|rest| rest.split('$').next());
    let plain = text.chars().all(|c| c.is_ascii_graphic() && !":!*\\".contains(c));
    match method {
        Some("6" | "5" | "y" | "gy" | "7" | "2b" | "2a" | "2y") if plain && text.len() >= 20 => None,
        Some("1") => Some("is an MD5 hash, which is broken in minutes"),
        Some(_) => Some("is no hash of a password that is known here"),
        None => Some(PLAIN),
    }
}

/// What is wrong with a public key in OpenSSH's form (sshd(8), AUTHORIZED_KEYS FILE FORMAT); `None` when nothing is.
pub fn key_fault(line: &str) -> Option<String> {
    if line.contains("PRIVATE KEY") {
        return Some("is a private key: keep it secret, and make a new one, for this one has been shown".to_owned());
    }
    let mut words = line.split_whitespace();
    // Options may stand before the type.
    let Some(kind) = words.find(|word| KEY_TYPES.iter().any(|known| known == word)) else {
        return Some(format!("{} is no public key of OpenSSH", quoted(line)));
    };
    let blob = words.next().and_then(|blob| encoding::base64(blob.as_bytes()));
    let inner = blob.as_ref().and_then(|blob| {
        let length = u32::from_be_bytes(blob.get(..4)?.try_into().ok()?) as usize;
        blob.get(4..4_usize.checked_add(length)?)
    });
    if inner != Some(kind.as_bytes()) || line.contains(['\n', '\r']) {
        return Some(format!("the public key {} is damaged", quoted(line)));
    }
    None
}

fn keys(field: &Field<'_>, findings: &mut Findings) -> Vec<String> {
    let mut found = Vec::new();
    for field in field.one_or_many() {
        let Some(text) = field.text(findings) else { continue };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match key_fault(line) {
                None => found.push(line.to_owned()),
                Some(wrong) => field.fault(findings, wrong, "paste the whole line of the .pub file"),
            }
        }
    }
    if found.len() > MAX_KEYS {
        findings.fault(whole(field.document, format!("{} public keys", found.len()), format!("keep to {MAX_KEYS}")));
    }
    found
}

/// A name of an account (useradd(8)) that is not one of the system's.
fn name_is_good(name: &str, field: &Field<'_>, findings: &mut Findings) -> bool {
    if name == "root" || name.starts_with("systemd-") || name.starts_with("trilith") {
        field.warn(findings, format!("{name} is the system's own account and left as it is"), "choose another name");
        return false;
    }
    let good = (1..=32).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c));
    if !good {
        let mend = "write 1 to 32 lower-case letters, digits, _ and -, a letter first";
        field.fault(findings, format!("{} is no name of an account", quoted(name)), mend);
    }
    good
}

fn gecos(field: &Field<'_>, findings: &mut Findings) -> Option<String> {
    let text = field.text(findings)?.trim();
    if text.len() > 128 || text.chars().any(|c| c.is_control() || c == ':') {
        field.fault(findings, format!("{} can't stand in the list of accounts", quoted(text)), "leave out colons");
        return None;
    }
    Some(text.to_owned())
}

const PLAIN: &str = "is no hash: a password in plain text is not taken";
const HASH: &str = "give its hash, from: openssl passwd -6 (or mkpasswd), in quotes";
/// The most public keys of one account.
const MAX_KEYS: usize = 100;
const KEY_TYPES: &[&str] = &[
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-ed25519-cert-v01@openssh.com",
    "ssh-rsa-cert-v01@openssh.com",
];
