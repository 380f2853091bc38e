//! What VMware and the firmware tell a machine on its first boot: values by name, and hints in a serial number.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trilith_firstboot::encoding::MAX_DOCUMENT;
use trilith_firstboot::sources::{Content, guestinfo, smbios};
use trilith_firstboot::take::take;

/// In the input their values stand in this order, with a zero byte between two of them; `?` is a failure.
const NAMES: [&str; 5] = [
    "guestinfo.metadata",
    "guestinfo.metadata.encoding",
    "guestinfo.userdata",
    "guestinfo.userdata.encoding",
    "guestinfo.ovfEnv",
];

fuzz_target!(|bytes: &[u8]| {
    let values: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
    let ask = |name: &str| match NAMES.iter().position(|known| *known == name).and_then(|place| values.get(place)) {
        Some(&b"?") => Err("can't be asked for".to_owned()),
        value => Ok(value.map(|value| value.to_vec())),
    };
    let mut problems = Vec::new();
    if let Some(documents) = guestinfo::documents(ask, &mut problems) {
        for document in documents.meta.iter().chain(&documents.user).chain(&documents.network) {
            if let Content::Bytes(held) = &document.content {
                assert!(held.len() <= MAX_DOCUMENT.max(bytes.len()), "{}", document.name);
            }
        }
        take(&documents);
    }
    if let Some(hints) = smbios::hints(&String::from_utf8_lossy(bytes)) {
        let field = |key: &str, value: &Option<String>| value.as_ref().map(|value| format!(";{key}={value}"));
        let fields = [field("h", &hints.hostname), field("i", &hints.instance_id), field("s", &hints.seed_from)];
        let serial = "ds=nocloud".to_owned() + &fields.into_iter().flatten().collect::<String>();
        assert_eq!(smbios::hints(&serial).as_ref(), Some(&hints));
        if let Some(documents) = smbios::documents(&hints) {
            take(&documents);
        }
    }
});
