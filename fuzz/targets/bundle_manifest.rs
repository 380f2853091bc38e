//! A bundle's manifest, which is read also when nobody has signed it: bounded, and fit to be shown.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trilith_bundle::Manifest;

fuzz_target!(|bytes: &[u8]| match Manifest::parse(bytes) {
    Ok(manifest) => {
        assert!(manifest.needed().count() == manifest.kind.parts().len());
        assert!(!manifest.summary().chars().any(char::is_control));
        let text = toml::to_string(&manifest).expect("a manifest can be written");
        assert_eq!(Manifest::parse(text.as_bytes()), Ok(manifest));
    }
    Err(refusal) => assert!(!refusal.to_string().chars().any(char::is_control), "{refusal}"),
});
