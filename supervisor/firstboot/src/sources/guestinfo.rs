//! VMware's guestinfo, as cloud-init's DataSourceVMware reads it: `guestinfo.metadata`, `.userdata` and `.vendordata`, each with
//! an `.encoding` beside it, and `guestinfo.ovfEnv`.
//!
//! The hypervisor is asked by `vmware-rpctool` of open-vm-tools, which the image has anyway. Speaking to the backdoor port here
//! would save a process, and cost assembler, and an exception of the kernel's lockdown wherever VMware does not trap the port.

use std::io;
use std::process::{Command, Output, Stdio};

use super::{Content, Document, Documents, ovf};
use crate::encoding;
use crate::finding::{Findings, quoted};
use crate::yaml::{Node, Scalar, Value};

/// What a question comes to: nothing when there is no such value. An error says, as part of a sentence, why nobody knows whether
/// there is one.
pub type Answer = Result<Option<Vec<u8>>, String>;

/// Asks the hypervisor this machine runs on.
pub fn ask(name: &str) -> Answer {
    answer(Command::new(TOOL).arg(format!("info-get {name}")).stdin(Stdio::null()).output())
}

/// What the tool's end means. That there is no such value ends it as everything else that fails; cloud-init, too, knows it by the words.
fn answer(ended: io::Result<Output>) -> Answer {
    let tool = ended.map_err(|error| format!("can't be asked for: {TOOL} can't be run: {error}"))?;
    if tool.status.success() {
        return Ok(Some(tool.stdout));
    }
    let said = String::from_utf8_lossy(&tool.stderr);
    if said.lines().any(|line| line.trim() == "No value found") {
        return Ok(None);
    }
    Err(format!("can't be asked for: {TOOL} ended with {} and said {}", tool.status, quoted(said.trim())))
}

/// The documents that the answers of `ask` make, and what is wrong with a source that gives none.
pub fn documents(ask: impl Fn(&str) -> Answer, problems: &mut Vec<String>) -> Option<Documents> {
    let (meta, user) = (document(META, &ask), document(USER, &ask));
    if let (Err(wrong), Err(_)) = (&meta, &user) {
        problems.push(format!("{META} {wrong}"));
        return None;
    }
    let (meta, user, vendor) = (known(META, meta), known(USER, user), known(VENDOR, document(VENDOR, &ask)));
    if meta.is_none() && user.is_none() {
        let environment = value(ENVIRONMENT, &ask).map_err(|wrong| format!("{ENVIRONMENT} {wrong}"));
        return match environment.and_then(|held| held.map_or(Ok(None), |xml| ovf::documents(&xml, ENVIRONMENT))) {
            Ok(documents) => documents,
            Err(wrong) => {
                problems.push(wrong);
                None
            }
        };
    }
    let network = meta.as_ref().and_then(network);
    Some(Documents {
        source: "VMware guestinfo".to_owned(),
        meta: meta.into_iter().collect(),
        user: vendor.into_iter().chain(user).collect(),
        network,
    })
}

/// A value; empty and `---`, by which cloud-init blots out what it has read, are none.
fn value(name: &str, ask: &impl Fn(&str) -> Answer) -> Answer {
    Ok(ask(name)?.filter(|value| !matches!(value.trim_ascii(), b"" | b"---")))
}

fn document(name: &str, ask: &impl Fn(&str) -> Answer) -> Result<Option<Document>, String> {
    let Some(bytes) = value(name, ask)? else { return Ok(None) };
    let encoding = value(&format!("{name}.encoding"), ask)?.unwrap_or_default();
    Ok(Some(decoded(name, bytes, &String::from_utf8_lossy(&encoding), &format!("{name}.encoding"))))
}

/// A source that answers may have what it could not be asked for: that is a fault, and no document that is absent.
fn known(name: &str, document: Result<Option<Document>, String>) -> Option<Document> {
    document.unwrap_or_else(|wrong| Some(Document::unreadable(name, wrong, "boot again")))
}

/// A document; `key` is where the name of its encoding stands.
fn decoded(name: &str, bytes: Vec<u8>, encoding: &str, key: &str) -> Document {
    match encoding::named(bytes, encoding) {
        Ok(bytes) => Document::new(name, bytes),
        Err(wrong) => Document::unreadable(name, wrong, format!("encode it anew, or correct {key}")),
    }
}

/// The network stands in the meta-data: as a table, or as a text with an encoding of its own.
///
/// Of meta-data that can't be read nobody knows what it says of the network, so it stands for the network, too: none is then made
/// up in its place.
fn network(meta: &Document) -> Option<Document> {
    // What is wrong with the meta-data is told when it is read.
    let entries = match meta.tree(&mut Findings::default()).map(|root| root.value) {
        Some(Value::Map(entries)) => entries,
        Some(Value::Scalar(scalar)) if scalar.is_null() => return None,
        _ => return Some(meta.clone()),
    };
    let get = |name: &str| entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node);
    let network = get("network")?;
    let name = format!("{}: network", meta.name);
    Some(match &network.value {
        Value::Scalar(Scalar::Text(text) | Scalar::Plain(text)) => {
            let encoding = match get("network.encoding").map(|node| &node.value) {
                Some(Value::Scalar(Scalar::Text(encoding) | Scalar::Plain(encoding))) => encoding,
                _ => "",
            };
            decoded(&name, text.clone().into_bytes(), encoding, "network.encoding")
        }
        Value::Scalar(Scalar::Binary(bytes)) => Document::new(&name, bytes.clone()),
        Value::Map(_) | Value::List(_) => Document { name, content: Content::Tree(unwrapped(network).clone()) },
    })
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

const TOOL: &str = "vmware-rpctool";
const META: &str = "guestinfo.metadata";
const USER: &str = "guestinfo.userdata";
const VENDOR: &str = "guestinfo.vendordata";
const ENVIRONMENT: &str = "guestinfo.ovfEnv";

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;
    use crate::take::take;

    fn from(values: &[(&str, &str)]) -> (Option<Documents>, Vec<String>) {
        let mut problems = Vec::new();
        let ask = |name: &str| match values.iter().find(|(held, _)| *held == name) {
            Some((_, "(silent)")) => Err("can't be asked for: the tool died".to_owned()),
            value => Ok(value.map(|(_, value)| value.as_bytes().to_vec())),
        };
        (documents(ask, &mut problems), problems)
    }

    #[test]
    fn only_the_hypervisors_word_that_there_is_no_value_is_no_value() {
        let ended = |status: i32, said: &str| {
            let (status, stderr) = (ExitStatus::from_raw(status), said.as_bytes().to_vec());
            answer(Ok(Output { status, stdout: b"value\n".to_vec(), stderr }))
        };
        let failed = 1 << 8;
        assert_eq!(ended(0, ""), Ok(Some(b"value\n".to_vec())));
        assert_eq!(ended(failed, "No value found\n"), Ok(None));
        assert_eq!(ended(failed, "a library warns\nNo value found\n"), Ok(None));
        for (status, said, told) in [
            (failed, "RpcOut: Unable to open the communication channel\n", "exit status: 1 and said \"RpcOut: Unable"),
            (failed, "", "exit status: 1 and said \"\""),
            (11, "", "signal: 11 (SIGSEGV) and said \"\""),
        ] {
            let wrong = ended(status, said).unwrap_err();
            assert!(wrong.starts_with(&format!("can't be asked for: vmware-rpctool ended with {told}")), "{wrong}");
        }
        let absent = answer(Err(io::ErrorKind::NotFound.into())).unwrap_err();
        assert_eq!(absent, "can't be asked for: vmware-rpctool can't be run: entity not found");
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
    fn nothing_and_what_was_blotted_out_are_no_answers() {
        assert_eq!(from(&[]).0, None);
        assert_eq!(from(&[("guestinfo.userdata", "---"), ("guestinfo.metadata", "")]).0, None);
        let (documents, problems) = from(&[("guestinfo.ovfEnv", "<Environment")]);
        assert!(
            documents.is_none() && problems[0].starts_with("guestinfo.ovfEnv is no OVF environment"),
            "{problems:?}"
        );
    }

    /// What is wrong with the answers, and whether the network is.
    fn told(values: &[(&str, &str)]) -> (Vec<String>, bool) {
        let (documents, problems) = from(values);
        assert_eq!(problems, Vec::<String>::new());
        let taken = take(&documents.unwrap());
        (taken.findings.faults.iter().map(ToString::to_string).collect(), taken.network_is_wrong)
    }

    const META_DATA: &str = "local-hostname: a\nnetwork: {version: 2, ethernets: {eth0: {dhcp4: true}}}\n";

    #[test]
    fn user_data_that_is_not_encoded_as_it_says_is_a_fault_and_the_network_stands() {
        let mend = "encode it anew, or correct guestinfo.userdata.encoding";
        for (encoding, wrong) in [
            ("base64", "is no base64"),
            ("rot13", "has an unknown encoding; known are base64, gzip and gzip+base64"),
            ("gzip", "is damaged gzip: unexpected end of file"),
        ] {
            let values = [("guestinfo.userdata", "!!"), ("guestinfo.userdata.encoding", encoding)];
            let fault = vec![format!("guestinfo.userdata: {wrong}; {mend}")];
            assert_eq!(told(&[&values[..], &[("guestinfo.metadata", META_DATA)]].concat()), (fault.clone(), false));
            assert_eq!(told(&values), (fault, false), "alone");
        }
        let vendor = [
            ("guestinfo.metadata", META_DATA),
            ("guestinfo.vendordata", "!!"),
            ("guestinfo.vendordata.encoding", "b64"),
        ];
        assert_eq!(told(&vendor).0.len(), 1);
    }

    #[test]
    fn what_cannot_be_asked_for_is_a_fault_and_a_source_that_cannot_be_asked_at_all_is_told() {
        let user = ("guestinfo.userdata", "#cloud-config\n");
        let silent = [
            ("guestinfo.metadata", true),
            ("guestinfo.metadata.encoding", true),
            ("guestinfo.userdata", false),
            ("guestinfo.userdata.encoding", false),
            ("guestinfo.vendordata", false),
        ];
        for (name, network_is_wrong) in silent {
            let document = name.trim_end_matches(".encoding");
            let fault = format!("{document}: can't be asked for: the tool died; boot again");
            let values = [(name, "(silent)"), ("guestinfo.metadata", META_DATA), user];
            assert_eq!(told(&values), (vec![fault], network_is_wrong), "{name}");
        }
        let told = |name: &str| (None, vec![format!("{name} can't be asked for: the tool died")]);
        assert_eq!(from(&[(META, "(silent)"), (USER, "(silent)")]), told(META));
        assert_eq!(from(&[(ENVIRONMENT, "(silent)")]), told(ENVIRONMENT));
    }

    #[test]
    fn meta_data_that_cannot_be_read_is_one_fault_and_no_network_is_made_up_for_it() {
        let user = ("guestinfo.userdata", "#cloud-config\n");
        let encoded = encoding::to_base64(META_DATA.as_bytes());
        for (meta, encoding, wrong) in [
            (META_DATA, "base64", ": is no base64; encode it anew, or correct guestinfo.metadata.encoding"),
            (&encoded, "", ":1: is \"bG9jYWw"),
            ("network: {version: 2", "", ":2: is no YAML"),
            ("- network", "", ":1: is a list, not a table"),
        ] {
            let (faults, network_is_wrong) =
                told(&[("guestinfo.metadata", meta), ("guestinfo.metadata.encoding", encoding), user]);
            assert!(faults.len() == 1 && faults[0].starts_with(&format!("guestinfo.metadata{wrong}")), "{faults:?}");
            assert!(network_is_wrong, "{meta}");
        }
        assert_eq!(told(&[("guestinfo.metadata", "# nothing"), user]), (Vec::new(), false));
    }

    #[test]
    fn a_network_that_cannot_be_read_is_wrong_and_not_absent() {
        let name = "guestinfo.metadata: network";
        for (network, wrong) in [
            ("'!!'\nnetwork.encoding: base64", ": is no base64; encode it anew, or correct network.encoding"),
            ("'version: 2'\nnetwork.encoding: rot13", ": has an unknown encoding"),
            ("dmVyc2lvbjogMQo=", ":1: is \"dmVyc2lvbjogMQo=\", not a table"),
            ("[a]", ":1: is a list, not a table"),
        ] {
            let (faults, network_is_wrong) = told(&[("guestinfo.metadata", &format!("network: {network}\n"))]);
            assert!(faults.len() == 1 && faults[0].starts_with(&format!("{name}{wrong}")), "{faults:?}");
            assert!(network_is_wrong, "{network}");
        }
    }

    #[test]
    fn metadata_that_is_packed_without_saying_so_has_its_network() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(META_DATA.as_bytes()).unwrap();
        let packed = encoding::to_base64(&packed.finish().unwrap());
        let (documents, _) = from(&[("guestinfo.metadata", &packed), ("guestinfo.metadata.encoding", "base64")]);
        let taken = take(&documents.unwrap());
        assert!(taken.findings.faults.is_empty() && taken.answers.network.unwrap().links[0].dhcp4);
    }
}
