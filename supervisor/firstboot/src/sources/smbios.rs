//! Hints in the machine's SMBIOS serial number, as cloud-init's NoCloud takes them: `ds=nocloud;h=node-a;i=id-1;s=…`.

use std::path::Path;

use super::{Content, Document, Documents, seed};
use crate::yaml::{Key, Node, Scalar, Value};

/// What the serial number says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `h` or `local-hostname`
    pub hostname: Option<String>,
    /// `i` or `instance-id`
    pub instance_id: Option<String>,
    /// `s` or `seedfrom`
    pub seed_from: Option<String>,
}

/// Reads a serial number; `None` when it has no hints.
pub fn hints(serial: &str) -> Option<Hints> {
    let mut fields = serial.trim().split(';');
    if !matches!(fields.next()?.trim(), "ds=nocloud" | "ds=nocloud-net") {
        return None;
    }
    let mut hints = Hints::default();
    for (key, value) in fields.filter_map(|field| field.split_once('=')) {
        let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        match key.trim() {
            "h" | "local-hostname" => hints.hostname = value,
            "i" | "instance-id" => hints.instance_id = value,
            "s" | "seedfrom" => hints.seed_from = value,
            _ => {}
        }
    }
    Some(hints)
}

/// The directory that the hints name, if it is one of this machine.
pub fn seed(hints: &Hints, problems: &mut Vec<String>) -> Option<Documents> {
    let from = hints.seed_from.as_deref()?;
    let Some(path) = from.strip_prefix("file://").or(Some(from)).filter(|path| path.starts_with('/')) else {
        problems.push(format!(
            "the SMBIOS serial number names {from}, but nothing is fetched: attach a disk labelled cidata"
        ));
        return None;
    };
    seed::read(Path::new(path), path).unwrap_or_else(|error| {
        problems.push(format!("the SMBIOS serial number names a place that can't be read: {error}"));
        None
    })
}

/// The hints themselves as meta-data.
pub fn documents(hints: &Hints) -> Option<Documents> {
    let entries: Vec<_> = [("local-hostname", &hints.hostname), ("instance-id", &hints.instance_id)]
        .into_iter()
        .filter_map(|(key, value)| {
            let value = Value::Scalar(Scalar::Text(value.clone()?));
            Some((Key { line: 1, text: key.to_owned() }, Node { line: 1, value }))
        })
        .collect();
    let name = "SMBIOS serial number".to_owned();
    let content = Content::Tree(Node { line: 1, value: Value::Map(entries.clone()) });
    (!entries.is_empty()).then(|| Documents {
        source: name.clone(),
        meta: vec![Document { name, content }],
        ..Documents::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_read_from_a_serial_number_and_other_serial_numbers_are_left_alone() {
        let hint = hints("ds=nocloud;h=node-a;i=id-1;s=file:///seed/\n").unwrap();
        assert_eq!(hint.hostname.as_deref(), Some("node-a"));
        assert_eq!(hint.instance_id.as_deref(), Some("id-1"));
        assert_eq!(hint.seed_from.as_deref(), Some("file:///seed/"));
        assert_eq!(hints("VMware-56 4d 1c 9a"), None);
        assert_eq!(hints(""), None);
    }
}
