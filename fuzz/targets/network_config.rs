//! Network config of any version: what is accepted is stored and loaded as it was, and no value breaks out of its line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trilith_firstboot::finding::Findings;
use trilith_firstboot::network::{Network, read, render};
use trilith_firstboot::yaml;

fuzz_target!(|text: &str| {
    let Ok(root) = yaml::parse(text, "network-config") else { return };
    let mut findings = Findings::default();
    let Some(network) = read("network-config", &root, &mut findings) else {
        assert!(!findings.faults.is_empty(), "a network that is refused has a reason");
        return;
    };
    let stored = toml::to_string(&network).expect("a network can be written");
    assert_eq!(toml::from_str::<Network>(&stored).expect("a network can be read"), network);
    for (name, text) in render(&network) {
        assert!(name.len() < 128 && !name.contains('/') && !name.contains(".."));
        for line in text.lines().filter(|line| !line.is_empty()) {
            assert!(line.starts_with('[') && line.ends_with(']') || line.contains('='), "{line}");
        }
    }
});
