//! user-data in cloud-init's formats: `#cloud-config`, alone or as parts of a MIME document.

use crate::answers::{ADMIN, Answers, Ntp};
use crate::fields::{Field, Table};
use crate::finding::{Finding, Findings, quoted};
use crate::yaml::{self, Node};

mod certificates;
mod files;
mod mime;
mod users;

pub use users::{hash_fault, key_fault};

/// A cloud-config as a tree, under the name that it has in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Such as `user-data`, or `user-data part 2`.
    pub name: String,
    /// The tree.
    pub root: Node,
}

/// Takes user-data apart. What isn't cloud-config (scripts, includes, templates) is named in a warning.
pub fn parts(name: &str, bytes: Vec<u8>, findings: &mut Findings) -> Vec<Part> {
    let mut found = Vec::new();
    for (name, text) in mime::texts(name, bytes, findings) {
        match yaml::parse(&text, &name) {
            Ok(root) => found.push(Part { name, root }),
            Err(fault) => findings.fault(*fault),
        }
    }
    found
}

/// Reads cloud-config parts, of which a later one overrides an earlier one key by key. `trilith:` is left to
/// [`crate::set_part`], and comes back as it stands.
pub fn read<'d>(parts: &'d [Part], answers: &mut Answers, findings: &mut Findings) -> Option<Field<'d>> {
    let tables = parts
        .iter()
        .map(|part| Field::document(&part.name, &part.root))
        .filter(|field| !field.is_null())
        .filter_map(|field| field.table(findings))
        .collect();
    let mut table = Table::joined(tables);
    names(&mut table, answers, findings);
    answers.timezone = table.get("timezone").and_then(|field| timezone(&field, findings)).or(answers.timezone.take());
    if let Some(field) = table.get("ntp") {
        answers.ntp = ntp(&field, findings);
    }
    for key in ["ca_certs", "ca-certs"] {
        if let Some(field) = table.get(key) {
            answers.ca_certs = certificates::read(&field, findings);
        }
    }
    users::read(&mut table, answers, findings);
    if let Some(field) = table.get("write_files") {
        answers.files = files::read(&field, findings);
    }
    let set = table.get("trilith");
    table.refuse("network", "give it as a document of its own, network-config", findings);
    table.refuse("runcmd", NO_SHELL, findings);
    table.refuse("bootcmd", NO_SHELL, findings);
    table.refuse("packages", "nothing can be installed: services come with the image", findings);
    table.finish(findings);
    set
}

/// Reads meta-data (NoCloud's, guestinfo's, OpenStack's): names and public keys.
pub fn read_meta(name: &str, root: &Node, answers: &mut Answers, findings: &mut Findings) {
    let field = Field::document(name, root);
    if field.is_null() {
        return;
    }
    let Some(mut table) = field.table(findings) else { return };
    for key in ["instance-id", "uuid"] {
        if let Some(field) = table.get(key)
            && let Some(id) = field.text(findings)
            && answers.instance_id.is_empty()
        {
            answers.instance_id = id.trim().to_owned();
        }
    }
    for key in ["local-hostname", "hostname"] {
        if answers.hostname.is_none()
            && let Some(name) = table.get(key).and_then(|field| host_name(&field, findings))
        {
            set_name(name, answers);
        }
    }
    for key in ["public-keys", "public_keys", "public-keys-data"] {
        let Some(field) = table.get(key) else { continue };
        users::keys_of_metadata(&field, answers, findings);
    }
    table.refuse("network-interfaces", "write network-config, version 2, instead", findings);
    // What sources and other programs keep there.
    for key in MACHINERY {
        table.skip(key);
    }
    table.finish(findings);
}

/// `hostname` and `fqdn`, as cloud-init understands them (`util.get_hostname_fqdn`).
fn names(table: &mut Table<'_>, answers: &mut Answers, findings: &mut Findings) {
    let hostname = table.get("hostname").and_then(|field| host_name(&field, findings));
    let fqdn = table.get("fqdn").and_then(|field| host_name(&field, findings));
    match (hostname, fqdn) {
        (Some(hostname), Some(fqdn)) => {
            answers.hostname = Some(first_label(&hostname).to_owned());
            answers.fqdn = Some(fqdn);
        }
        (Some(name), None) | (None, Some(name)) => set_name(name, answers),
        (None, None) => {}
    }
    table.refuse("prefer_fqdn_over_hostname", "the host's name is its first label", findings);
    table.refuse("preserve_hostname", "the name is set at each boot", findings);
}

fn set_name(name: String, answers: &mut Answers) {
    answers.hostname = Some(first_label(&name).to_owned());
    answers.fqdn = name.contains('.').then_some(name);
}

/// A host's name (RFC 1123, section 2.1), with or without its domain.
fn host_name(field: &Field<'_>, findings: &mut Findings) -> Option<String> {
    let text = field.text(findings)?.trim().trim_end_matches('.');
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > 253 || !text.split('.').all(label) {
        let mend = "write letters, digits and hyphens, such as node-a or node-a.example.org";
        field.fault(findings, format!("{} is no name of a host", quoted(text)), mend);
        return None;
    }
    Some(text.to_owned())
}

fn first_label(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn timezone(field: &Field<'_>, findings: &mut Findings) -> Option<String> {
    let text = field.text(findings)?.trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+-/".contains(c);
    if text.is_empty() || text.len() > 64 || text.starts_with('/') || !text.chars().all(plain) {
        field.fault(findings, format!("{} is no time zone", quoted(text)), "write one such as Europe/Vienna or UTC");
        return None;
    }
    Some(text.to_owned())
}

/// A source of time, by name or address; no white space or comments may get into timesyncd's file.
fn ntp(field: &Field<'_>, findings: &mut Findings) -> Option<Ntp> {
    let mut table = field.table(findings)?;
    let enabled = table.get("enabled").and_then(|field| field.boolean(findings)).unwrap_or(true);
    let mut servers = Vec::new();
    for key in ["servers", "pools"] {
        let Some(field) = table.get(key) else { continue };
        servers.extend(server_names(&field, findings));
    }
    // The client is systemd-timesyncd; whoever names it means what there is.
    if table.get("ntp_client").is_some_and(|field| matches!(field.plain(), Some("auto" | "systemd-timesyncd"))) {
        table.skip("ntp_client");
    }
    table.finish(findings);
    Some(Ntp { enabled, servers })
}

/// Names or addresses of servers.
pub fn server_names(field: &Field<'_>, findings: &mut Findings) -> Vec<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_".contains(c);
    let mut servers = field.words(findings);
    servers.retain(|server| {
        let good = server.len() <= 253 && server.chars().all(plain);
        if !good {
            let wrong = format!("{} is no name of a server", quoted(server));
            field.fault(findings, wrong, "write one such as ntp.example.org or 10.0.0.1");
        }
        good
    });
    servers
}

/// A fault of a document as a whole.
fn whole(document: &str, wrong: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding { document: document.to_owned(), line: 0, key: String::new(), wrong: wrong.into(), mend: mend.into() }
}

/// The account that keys and passwords without a name are for.
const DEFAULT_USER: &str = ADMIN;
const NO_SHELL: &str = "there is no shell in the image: what must run comes with it as a service";
/// Keys of meta-data that need no word: they tell cloud-init how to run, or repeat what is known.
const MACHINERY: &[&str] = &[
    "dsmode",
    "network",
    "network.encoding",
    "network-encoding",
    "cleanup-guestinfo",
    "wait-on-network",
    "seedfrom",
    "name",
    "availability_zone",
    "launch_index",
    "project_id",
    "random_seed",
    "devices",
    "meta",
    "keys",
    "network_config",
    "files",
    "platform",
    "cloud-name",
    "instance_id",
    "local_hostname",
    "region",
    "dedicated_cpus",
];

#[cfg(test)]
mod tests;
