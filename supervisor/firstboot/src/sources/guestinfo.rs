//! VMware's guestinfo, as cloud-init's DataSourceVMware reads it: `guestinfo.metadata`, `.userdata` and `.vendordata`, each with
//! an `.encoding` beside it, and `guestinfo.ovfEnv`.
//!
//! The hypervisor is asked by `vmware-rpctool` of open-vm-tools, which the image has anyway. Speaking to the backdoor port here
//! would save a process, and cost assembler, and an exception of the kernel's lockdown wherever VMware does not trap the port.

use std::process::{Command, Stdio};

use super::{Content, Document, Documents, ovf};
use crate::encoding;
use crate::yaml::{self, Node, Scalar, Value};

/// Asks the hypervisor this machine runs on. `None` when it has nothing to say, or is not there to be asked.
pub fn ask(name: &str) -> Option<Vec<u8>> {
    let tool = Command::new("vmware-rpctool").arg(format!("info-get {name}")).stdin(Stdio::null()).output().ok()?;
    tool.status.success().then_some(tool.stdout)
}

/// The documents that the answers of `ask` make, and what is wrong with them.
pub fn documents(ask: impl Fn(&str) -> Option<Vec<u8>>, problems: &mut Vec<String>) -> Option<Documents> {
    let mut get = |name: &str| document(name, &ask, problems);
    let (meta, user, vendor) = (get("guestinfo.metadata"), get("guestinfo.userdata"), get("guestinfo.vendordata"));
    if meta.is_none() && user.is_none() {
        let environment = value("guestinfo.ovfEnv", &ask)?;
        return match ovf::documents(&environment, "guestinfo.ovfEnv") {
            Ok(documents) => documents,
            Err(wrong) => {
                problems.push(wrong);
                None
            }
        };
    }
    let network = meta.as_ref().and_then(|meta| network(meta, problems));
    Some(Documents {
        source: "VMware guestinfo".to_owned(),
        meta: meta.into_iter().collect(),
        user: vendor.into_iter().chain(user).collect(),
        network,
    })
}

/// A value; empty and `---`, by which cloud-init blots out what it has read, are none.
fn value(name: &str, ask: &impl Fn(&str) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    ask(name).filter(|value| !matches!(value.trim_ascii(), b"" | b"---"))
}

fn document(name: &str, ask: &impl Fn(&str) -> Option<Vec<u8>>, problems: &mut Vec<String>) -> Option<Document> {
    let bytes = value(name, ask)?;
    let encoding = value(&format!("{name}.encoding"), ask).unwrap_or_default();
    match encoding::named(bytes, &String::from_utf8_lossy(&encoding)) {
        Ok(bytes) => Some(Document::new(name, bytes)),
        Err(wrong) => {
            problems.push(format!("{name} {wrong}"));
            None
        }
    }
}

/// The network stands in the meta-data: as a table, or as a text with an encoding of its own.
fn network(meta: &Document, problems: &mut Vec<String>) -> Option<Document> {
    let Content::Bytes(bytes) = &meta.content else { return None };
    // What is wrong with the meta-data as a whole is told when it is read.
    let Value::Map(entries) = yaml::parse(&String::from_utf8_lossy(bytes), &meta.name).ok()?.value else { return None };
    let get = |name: &str| entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node);
    let network = get("network")?;
    let name = format!("{}: network", meta.name);
    match &network.value {
        Value::Map(_) => Some(Document { name, content: Content::Tree(unwrapped(network).clone()) }),
        Value::Scalar(Scalar::Text(text) | Scalar::Plain(text)) => {
            let encoding = match get("network.encoding").map(|node| &node.value) {
                Some(Value::Scalar(Scalar::Text(encoding) | Scalar::Plain(encoding))) => encoding,
                _ => "",
            };
            match encoding::named(text.clone().into_bytes(), encoding) {
                Ok(bytes) => Some(Document::new(&name, bytes)),
                Err(wrong) => {
                    problems.push(format!("{name} {wrong}"));
                    None
                }
            }
        }
        _ => None,
    }
}

/// `network: {config: {version: …}}` is written, too.
fn unwrapped(network: &Node) -> &Node {
    match &network.value {
        Value::Map(entries) => match entries.as_slice() {
            [(key, inner)] if key.text == "config" => inner,
            _ => network,
        },
        _ => network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(values: &[(&str, &str)]) -> (Option<Documents>, Vec<String>) {
        let mut problems = Vec::new();
        let ask =
            |name: &str| values.iter().find(|(held, _)| *held == name).map(|(_, value)| value.as_bytes().to_vec());
        (documents(ask, &mut problems), problems)
    }

    #[test]
    fn metadata_and_userdata_come_plain_or_encoded_and_the_network_in_either_form() {
        let meta = "instance-id: i\nnetwork: {config: {version: 2}}\n";
        let encoded = encoding::to_base64(meta.as_bytes());
        for (text, name) in [(meta, ""), (encoded.as_str(), "base64")] {
            let (documents, problems) = from(&[
                ("guestinfo.metadata", text),
                ("guestinfo.metadata.encoding", name),
                ("guestinfo.userdata", "#cloud-config\n"),
            ]);
            let documents = documents.unwrap();
            assert_eq!(documents.meta[0].content, Content::Bytes(meta.as_bytes().to_vec()));
            assert!(matches!(documents.network.unwrap().content, Content::Tree(_)));
            assert!(problems.is_empty());
        }
        let network = encoding::to_base64(b"version: 1\n");
        let meta = format!("network: {network}\nnetwork.encoding: b64\n");
        let (documents, _) = from(&[("guestinfo.metadata", &meta)]);
        assert_eq!(documents.unwrap().network.unwrap().content, Content::Bytes(b"version: 1\n".to_vec()));
    }

    #[test]
    fn nothing_and_what_was_blotted_out_are_no_answers_and_damage_is_told() {
        assert_eq!(from(&[]).0, None);
        assert_eq!(from(&[("guestinfo.userdata", "---"), ("guestinfo.metadata", "")]).0, None);
        let (documents, problems) = from(&[("guestinfo.userdata", "!!"), ("guestinfo.userdata.encoding", "base64")]);
        assert_eq!(documents, None);
        assert_eq!(problems, ["guestinfo.userdata is no base64"]);
    }
}
