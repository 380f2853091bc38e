//! `trilith:`: the set's document written as YAML, turned into TOML, so that one parser decides what is right.

use std::fmt::Write;
use std::net::IpAddr;

use trilith_core::config::{self, Settings};

use crate::answers::{Answers, FILES, Secret, SetPart};
use crate::fields::Field;
use crate::finding::{Findings, quoted};
use crate::yaml::{Node, Scalar, Value};

/// Reads `trilith:`. The network and the host's name help to find out which node this is.
///
/// `None` when a fault was noted.
pub fn read(field: &Field<'_>, answers: &Answers, findings: &mut Findings) -> Option<SetPart> {
    let Value::Map(entries) = &field.node.value else {
        field.fault(findings, "is no table", "begin with set:, node: and vip: below it");
        return None;
    };
    let mut toml = Toml { field, text: String::new(), lines: Vec::new(), good: true };
    let mut table = field.table(findings)?;
    let name = table.get("name");
    let secret = table.get("secret");
    for (key, node) in entries.iter().filter(|(key, _)| !matches!(key.text.as_str(), "name" | "secret")) {
        toml.top(&key.text, node, findings);
    }
    if !toml.good {
        return None;
    }
    let mut document = toml.text.clone();
    if !has(entries, "set", "secret_file") {
        document = with_secret_file(&document, &mut toml.lines);
    }
    let settings = match config::parse(&document, "set.toml") {
        Ok(settings) => settings,
        Err(error) => {
            toml.place(error.line).fault_at(&error, findings);
            return None;
        }
    };
    let secret = secret_of(secret.as_ref(), &settings, field, answers, findings);
    let node = node_of(name.as_ref(), &settings, field, answers, findings)?;
    agreement::check(&settings, &node, field, answers, findings)?;
    Some(SetPart { document, secret: secret?, node })
}

/// The secret as it will lie in its file. `Some(None)`: it comes in a file of `write_files`.
#[allow(clippy::option_option)]
fn secret_of(
    given: Option<&Field<'_>>,
    settings: &Settings,
    whole: &Field<'_>,
    answers: &Answers,
    findings: &mut Findings,
) -> Option<Option<Secret>> {
    let file = settings.set.secret_file.as_str();
    let written = file.strip_prefix(FILES).and_then(|path| path.strip_prefix('/'));
    match (given, written) {
        (None, Some(path)) if answers.files.iter().any(|file| file.path == path) => Some(None),
        (None, _) => {
            let mend =
                "add below trilith: the same secret on all nodes, such as the output of: openssl rand -base64 32";
            whole.fault(findings, "the secret is missing", mend);
            None
        }
        (Some(field), None) if file == SECRET_FILE => {
            let text = field.text(findings)?.trim();
            if !(MIN_SECRET..=MAX_SECRET).contains(&text.len()) {
                let wrong = format!("has {} bytes", text.len());
                let mend =
                    format!("give {MIN_SECRET} to {MAX_SECRET} bytes, such as the output of: openssl rand -base64 32");
                field.fault(findings, wrong, mend);
                return None;
            }
            Some(Some(Secret(text.to_owned())))
        }
        (Some(field), _) => {
            let mend = "leave out either secret or set.secret_file";
            field.fault(findings, format!("is given beside set.secret_file {}", quoted(file)), mend);
            None
        }
    }
}

/// Which node this is: as `name` says, else the one with the host's name, else the one whose address this machine gets.
fn node_of(
    name: Option<&Field<'_>>,
    settings: &Settings,
    whole: &Field<'_>,
    answers: &Answers,
    findings: &mut Findings,
) -> Option<String> {
    let known = settings.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(field) = name {
        let text = field.text(findings)?;
        if settings.node_named(text).is_none() {
            field.fault(findings, format!("{} is no node of the set", quoted(text)), format!("write one of {known}"));
            return None;
        }
        return Some(text.to_owned());
    }
    if let Some(hostname) = answers.hostname.as_deref().map(str::to_ascii_lowercase)
        && settings.node_named(&hostname).is_some()
    {
        return Some(hostname);
    }
    let own: Vec<IpAddr> = answers
        .network
        .iter()
        .flat_map(|network| &network.links)
        .flat_map(|link| &link.addresses)
        .map(|address| address.address)
        .collect();
    let mut here = settings.nodes.iter().filter(|node| {
        own.contains(&node.address) || node.address6.is_some_and(|address| own.contains(&IpAddr::V6(address)))
    });
    match (here.next(), here.next()) {
        (Some(node), None) => Some(node.name.clone()),
        _ => {
            let mend = format!("add name: and one of {known}, or give the host the name of its node");
            whole.fault(findings, "which node this is can't be told from the host's name or address", mend);
            None
        }
    }
}

/// TOML text under construction, with the line of the YAML for each of its lines.
struct Toml<'f, 'd> {
    field: &'f Field<'d>,
    text: String,
    lines: Vec<u32>,
    good: bool,
}

impl<'d> Toml<'_, 'd> {
    /// `set`, `node`, `vip`, `service`: a table, or a list of tables.
    fn top(&mut self, key: &str, node: &'d Node, findings: &mut Findings) {
        let name = quoted_key(key);
        match &node.value {
            Value::Map(_) => self.table(&format!("[{name}]"), &name, node, findings),
            Value::List(tables) => {
                for table in tables {
                    match table.value {
                        Value::Map(_) => self.table(&format!("[[{name}]]"), &name, table, findings),
                        _ => self.unfit(key, table, "is no table", findings),
                    }
                }
            }
            Value::Scalar(_) => {
                // At the end of the document it would belong to the last table.
                let line = format!("{name} = {}\n", inline(node));
                self.text.insert_str(0, &line);
                self.lines.insert(0, node.line);
            }
        }
    }

    fn table(&mut self, header: &str, name: &str, node: &'d Node, findings: &mut Findings) {
        let Value::Map(entries) = &node.value else { return };
        self.line(node.line, header);
        for (key, value) in entries {
            if !matches!(value.value, Value::Map(_)) {
                self.line(value.line.min(key.line.max(1)), &format!("{} = {}", quoted_key(&key.text), inline(value)));
            }
        }
        // Tables within tables come after all values.
        for (key, value) in entries {
            if matches!(value.value, Value::Map(_)) {
                if header.starts_with("[[") || name.contains('.') {
                    self.unfit(&format!("{name}.{}", key.text), value, "is a table where none can be", findings);
                    continue;
                }
                let inner = format!("{name}.{}", quoted_key(&key.text));
                self.table(&format!("[{inner}]"), &inner, value, findings);
            }
        }
    }

    fn line(&mut self, from: u32, text: &str) {
        writeln!(self.text, "{text}").expect("a String takes everything");
        // Quoting leaves no newline inside a value, so that one call is one line.
        self.lines.push(from);
    }

    fn unfit(&mut self, key: &str, node: &Node, wrong: &str, findings: &mut Findings) {
        self.good = false;
        let field = Field { path: format!("trilith.{key}"), line: node.line, ..self.field.clone() };
        field.fault(findings, wrong, "see *All keys* in docs/admin-guide.md");
    }

    /// The place in the YAML of a line of the TOML.
    fn place(&self, line: u32) -> Place<'_, 'd> {
        let index = (line as usize).saturating_sub(1);
        Place { field: self.field, line: self.lines.get(index).copied().unwrap_or(self.field.line) }
    }
}

struct Place<'f, 'd> {
    field: &'f Field<'d>,
    line: u32,
}

impl Place<'_, '_> {
    /// The core's words, for somebody who writes YAML.
    fn fault_at(&self, error: &config::ConfigError, findings: &mut Findings) {
        let path = format!("trilith.{}", error.key);
        // What concerns the whole document, such as a missing table, has no line of its own.
        let line = if error.wrong == "is missing" && !error.key.contains('.') { self.field.line } else { self.line };
        let field = Field { path, line, ..self.field.clone() };
        field.fault(findings, error.wrong.clone(), in_yaml(&error.right));
    }
}

/// Mends that name TOML's syntax, in YAML's.
fn in_yaml(right: &str) -> String {
    if let Some((before, key)) = right.split_once("[[")
        && let Some((key, after)) = key.split_once("]]")
    {
        let after = if after.starts_with(',') { "" } else { after };
        return format!(
            "{}{key}: with a list below it, each beginning with \"- \"{after}",
            before.replace("at least one ", "")
        );
    }
    match right.split_once(" = ") {
        Some((before, after)) if before.starts_with("add a line") => format!("{before}: {after}"),
        _ => right.replace("begin the document with [set], name and secret_file", "add set: with name: below it"),
    }
}

/// A value on one line of TOML: what YAML reads as a number or a boolean is one.
fn inline(node: &Node) -> String {
    match &node.value {
        Value::Scalar(Scalar::Plain(text)) => match Scalar::Plain(text.clone()) {
            scalar if scalar.is_null() => "\"\"".to_owned(),
            scalar => match (scalar.integer(), text.as_str()) {
                (Some(number), _) => number.to_string(),
                (None, "true" | "True" | "TRUE" | "yes" | "Yes" | "on" | "On") => "true".to_owned(),
                (None, "false" | "False" | "FALSE" | "no" | "No" | "off" | "Off") => "false".to_owned(),
                (None, text) => quoted_string(text),
            },
        },
        Value::Scalar(Scalar::Text(text)) => quoted_string(text),
        Value::Scalar(Scalar::Binary(bytes)) => quoted_string(&String::from_utf8_lossy(bytes)),
        Value::List(list) => format!("[{}]", list.iter().map(inline).collect::<Vec<_>>().join(", ")),
        Value::Map(map) => {
            let entries = map.iter().map(|(key, node)| format!("{} = {}", quoted_key(&key.text), inline(node)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
    }
}

/// A basic string of TOML, without newlines.
fn quoted_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => write!(quoted, "\\U{:08X}", u32::from(c)).expect("a String takes everything"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn quoted_key(key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    if bare { key.to_owned() } else { quoted_string(key) }
}

fn has(entries: &[(crate::yaml::Key, Node)], table: &str, key: &str) -> bool {
    entries
        .iter()
        .filter(|(held, _)| held.text == table)
        .any(|(_, node)| matches!(&node.value, Value::Map(map) if map.iter().any(|(held, _)| held.text == key)))
}

/// Says where the secret lies, in `[set]`, unless there is no such table: then the core says so.
fn with_secret_file(document: &str, lines: &mut Vec<u32>) -> String {
    let mut text = String::with_capacity(document.len() + 64);
    for (place, line) in document.split_inclusive('\n').enumerate() {
        text.push_str(line);
        if line == "[set]\n" {
            text.push_str(&format!("secret_file = \"{SECRET_FILE}\"\n"));
            lines.insert(place + 1, lines.get(place).copied().unwrap_or(1));
        }
    }
    text
}

mod agreement;

/// Where the set secret lies unless the document says otherwise.
pub const SECRET_FILE: &str = "/var/lib/trilith/secret";
/// The shortest secret, in bytes, as the supervisor has it.
const MIN_SECRET: usize = 16;
/// The longest secret, in bytes, as the supervisor has it.
const MAX_SECRET: usize = 4096;

#[cfg(test)]
mod tests;
