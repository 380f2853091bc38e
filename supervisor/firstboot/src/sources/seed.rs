//! A directory with answers: what a disk holds, or what somebody wants to have checked.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{Document, Documents, ovf};
use crate::encoding::MAX_DOCUMENT;
use crate::finding::Findings;
use crate::yaml::Value;

/// Reads a directory. `None` when it holds no answers in any form. A file that is there and can't be read is a fault of the answers.
///
/// # Errors
/// An OVF environment that can't be read or is none.
pub fn read(directory: &Path, place: &str) -> io::Result<Option<Documents>> {
    let file = |name: &str| match read_bounded(&directory.join(name)) {
        Ok(bytes) => bytes.map(|bytes| Document::new(name, bytes)),
        Err(error) => Some(Document::unreadable(name, format!("can't be read: {error}"), "make the disk anew")),
    };
    let (meta, user) = (file("meta-data"), file("user-data"));
    if meta.is_some() || user.is_some() {
        return Ok(Some(Documents {
            source: format!("NoCloud on {place}"),
            meta: meta.into_iter().collect(),
            user: file("vendor-data").into_iter().chain(user).collect(),
            network: file("network-config"),
        }));
    }
    if let Some(meta) = file("openstack/latest/meta_data.json") {
        return Ok(Some(Documents {
            source: format!("ConfigDrive on {place}"),
            user: file("openstack/latest/user_data").into_iter().collect(),
            network: file("openstack/latest/network_data.json").or_else(|| interfaces(&meta)),
            meta: vec![meta],
        }));
    }
    // An ISO 9660 without longer names has the other one.
    for name in ["ovf-env.xml", "ovf_env.xml"] {
        let path = directory.join(name);
        let read =
            read_bounded(&path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())));
        if let Some(xml) = read? {
            return ovf::documents(&xml, &format!("{name} on {place}")).map_err(io::Error::other);
        }
    }
    Ok(None)
}

/// The network as OpenStack gave it before `network_data.json`: in the format of Debian's interfaces(5), which is not read here. With
/// that file nobody looks at it; without, it is the network that was asked for, and none is made up in its place.
fn interfaces(meta: &Document) -> Option<Document> {
    // Of meta-data that can't be read nobody knows, and what is wrong with it is told when it is read.
    let Some(Value::Map(entries)) = meta.tree(&mut Findings::default()).map(|root| root.value) else {
        return Some(meta.clone());
    };
    let (_, pointer) = entries.iter().find(|(key, _)| key.text == "network_config")?;
    if matches!(&pointer.value, Value::Scalar(scalar) if scalar.is_null()) {
        return None;
    }
    let name = format!("{}: network_config", meta.name);
    let wrong = "is in the format of Debian's /etc/network/interfaces, which is not read";
    Some(Document::unreadable(&name, wrong, "give openstack/latest/network_data.json"))
}

/// A whole file, one byte more than a document may have at most; `None` when there is none.
fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::take::{Taken, take};

    /// What is taken of these files, of which `broken` can't be read.
    fn taken(test: &str, files: &[(&str, &str)], broken: &str) -> Taken {
        let directory = std::env::temp_dir().join(format!("trilith-seed-{test}-{}", std::process::id()));
        for (name, text) in files {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            // A folder in its place can't be read by root either.
            let put = if *name == broken { fs::create_dir(path) } else { fs::write(path, text) };
            put.unwrap();
        }
        let documents = read(&directory, "here");
        fs::remove_dir_all(&directory).unwrap();
        take(&documents.unwrap().unwrap())
    }

    #[test]
    fn a_file_that_cannot_be_read_is_a_fault_and_not_a_file_that_is_absent() {
        let network = "version: 2\nethernets: {eth0: {dhcp4: true}}\n";
        let no_cloud =
            [("meta-data", "local-hostname: a\n"), ("user-data", "#cloud-config\n"), ("network-config", network)];
        let config_drive = [
            ("openstack/latest/meta_data.json", "{\"hostname\": \"a\"}"),
            ("openstack/latest/user_data", "#cloud-config\n"),
            ("openstack/latest/network_data.json", network),
        ];
        for (kind, files) in [("nocloud", no_cloud), ("configdrive", config_drive)] {
            assert_eq!(taken(kind, &files, "").findings.faults, [], "{kind}");
            for (place, (broken, _)) in files.iter().enumerate() {
                let taken = taken(kind, &files, broken);
                let [fault] = &taken.findings.faults[..] else { panic!("{broken}: {:?}", taken.findings) };
                assert!(fault.to_string().starts_with(&format!("{broken}: can't be read: ")), "{fault}");
                let right = (taken.answers.hostname.is_some(), taken.answers.network.is_some());
                assert_eq!((right, taken.network_is_wrong), ((place != 0, place != 2), place == 2), "{broken}");
            }
        }
    }

    #[test]
    fn a_config_drives_network_in_debians_format_is_a_fault_unless_there_is_one_that_can_be_read() {
        let meta = |pointer: &str| format!("{{\"hostname\": \"a\", \"network_config\": {pointer}}}");
        let (legacy, none) = (meta("{\"content_path\": \"/content/0000\"}"), meta("null"));
        let name = "openstack/latest/meta_data.json";
        let network = ("openstack/latest/network_data.json", "{\"links\": []}");
        let told = taken("interfaces", &[(name, &legacy)], "");
        let [fault] = &told.findings.faults[..] else { panic!("{:?}", told.findings) };
        assert!(fault.to_string().starts_with(&format!("{name}: network_config: is in the format of")), "{fault}");
        assert!(told.network_is_wrong && told.answers.hostname.as_deref() == Some("a"));
        let told = taken("interfaces", &[(name, "{")], "");
        assert!(told.findings.faults.len() == 1 && told.network_is_wrong, "nobody knows what it would say");
        for files in [&[(name, legacy.as_str()), network][..], &[(name, &none)]] {
            let told = taken("interfaces", files, "");
            assert_eq!((told.findings.faults, told.network_is_wrong), (Vec::new(), false), "{files:?}");
        }
    }

    #[test]
    fn documents_that_are_damaged_gzip_are_faults_on_every_disk() {
        let damaged = [0x1f, 0x8b, 8, 0];
        for (name, network_is_wrong) in [("user-data", false), ("network-config", true)] {
            let document = Some(Document::new(name, damaged.to_vec()));
            let (network, user) = if network_is_wrong { (document, None) } else { (None, document) };
            let taken = take(&Documents { user: user.into_iter().collect(), network, ..Documents::default() });
            assert_eq!((taken.findings.faults.len(), taken.network_is_wrong), (1, network_is_wrong));
            assert!(taken.findings.faults[0].wrong.starts_with("is damaged gzip"), "{:?}", taken.findings);
        }
    }
}
