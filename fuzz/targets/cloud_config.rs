//! user-data: bounded, never a panic, and a finding never has a line beyond the document.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trilith_firstboot::sources::{Document, Documents};
use trilith_firstboot::take::take;

fuzz_target!(|bytes: &[u8]| {
    let user = vec![Document::new("user-data", bytes.to_vec())];
    let taken = take(&Documents { user, ..Documents::default() });
    let lines = bytes.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count() as u32 + 1;
    let packed =
        bytes.starts_with(&[0x1f, 0x8b]) || bytes.windows(8).any(|word| word.eq_ignore_ascii_case(b"encoding"));
    for finding in taken.findings.faults.iter().chain(&taken.findings.warnings) {
        assert!(packed || finding.line <= lines + 1, "{finding}");
    }
    if taken.findings.faults.is_empty() {
        // What is stored is what is loaded.
        let text = toml::to_string(&taken.answers).expect("answers can be written");
        toml::from_str::<trilith_firstboot::answers::Answers>(&text).expect("answers can be read");
    } else {
        assert!(taken.answers.set.is_none() && taken.answers.files.is_empty());
    }
});
