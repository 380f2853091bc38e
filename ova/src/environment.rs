//! The OVF environment that a hypervisor makes for one machine out of the descriptor's properties and what somebody filled in, and
//! the CD-ROM that the transport `iso` puts it on. vCenter does this by itself; tests and other hypervisors need it made.

use anyhow::{Result, bail, ensure};

use crate::descriptor::{self, escaped};
use crate::iso9660;

/// The environment of the machine `id`: every property of the descriptor, with the answer given for it (its key with or without
/// `trilith.`), else its default.
///
/// # Errors
/// An answer that the descriptor does not ask for, or that is shorter or longer than it allows: what an importing person would be
/// told by vCenter.
pub fn xml(descriptor: &str, id: &str, answers: &[(&str, &str)]) -> Result<String> {
    let properties = descriptor::properties(descriptor)?;
    let bare = |key: &str| key.strip_prefix("trilith.").unwrap_or(key).to_owned();
    for (key, _) in answers {
        if !properties.iter().any(|property| bare(&property.key) == bare(key)) {
            bail!("the descriptor asks for no property {key}");
        }
    }
    let mut lines = String::new();
    for property in &properties {
        let given = answers.iter().find(|(key, _)| bare(key) == bare(&property.key));
        let value = given.map_or(property.default.as_str(), |(_, value)| value);
        let (least, most) = property.length;
        let length = value.chars().count();
        ensure!((least..=most).contains(&length), "{} has {length} characters, not {least} to {most}", property.key);
        lines += &format!("    <Property oe:key=\"{}\" oe:value=\"{}\"/>\n", escaped(&property.key), escaped(value));
    }
    Ok(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Environment xmlns=\"{NAMESPACE}\" xmlns:oe=\"{NAMESPACE}\" \
         xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" oe:id=\"{}\">\n  <PlatformSection>\n    \
         <Kind>Trilith's packager</Kind>\n    <Version>{}</Version>\n    <Vendor>Trilith</Vendor>\n    <Locale>en</Locale>\n  \
         </PlatformSection>\n  <PropertySection>\n{lines}  </PropertySection>\n</Environment>\n",
        escaped(id),
        env!("CARGO_PKG_VERSION"),
    ))
}

/// The CD-ROM of the transport `iso` with that environment (DMTF DSP0243, section 11.2).
///
/// # Errors
/// Those of [`iso9660::image`].
pub fn iso(xml: &str) -> Result<Vec<u8>> {
    iso9660::image("OVF ENV", &[("ovf-env.xml", xml.as_bytes())])
}

const NAMESPACE: &str = "http://schemas.dmtf.org/ovf/environment/1";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::TEMPLATE;
    use trilith_firstboot::sources::ovf;
    use trilith_firstboot::take::take;

    const GOOD: &[(&str, &str)] = &[
        ("node", "a"),
        ("address", "10.77.0.11/24"),
        ("gateway", "10.77.0.1"),
        ("set-name", "edge-1"),
        ("nodes", "a=10.77.0.11, b=10.77.0.12, c=10.77.0.13"),
        ("vips", "public=10.77.0.10/24"),
        ("secret", "\"quotes\", & and < are 東京 fine"),
    ];

    #[test]
    fn what_is_filled_in_reaches_the_first_boot_as_it_was_meant() {
        let xml = xml(TEMPLATE, "vm-1", GOOD).unwrap();
        let taken = take(&ovf::documents(xml.as_bytes(), "test").unwrap().unwrap());
        assert_eq!(taken.findings.faults, []);
        assert_eq!(taken.findings.warnings, []);
        assert_eq!(taken.answers.hostname.as_deref(), Some("a"));
        let set = taken.answers.set.unwrap();
        assert_eq!((set.node.as_str(), set.secret.unwrap().0.as_str()), ("a", GOOD[6].1));
    }

    #[test]
    fn what_vcenter_would_refuse_is_refused() {
        let with = |key: &'static str, value: &'static str| {
            let others = GOOD.iter().filter(|(held, _)| *held != key).copied();
            xml(TEMPLATE, "vm-1", &others.chain([(key, value)]).collect::<Vec<_>>()).unwrap_err().to_string()
        };
        assert_eq!(with("secret", "short"), "trilith.secret has 5 characters, not 16 to 4096");
        assert!(with("node", "").contains("trilith.node has 0"));
        assert!(with("colour", "blue").contains("no property colour"));
    }
}
