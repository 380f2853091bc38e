//! What is refused, one reason after the other.

use super::*;
use crate::testing::{System, bundle, context, keys, manifest, pair, sign};

const VERSION: Version = Version::new(1, 5, 0);

fn good() -> Manifest {
    let directory = tempfile::tempdir().unwrap();
    let system = System::new(VERSION, 20, &[]);
    let mut manifest = system.manifest();
    crate::make::describe(&mut manifest, &system.files(directory.path())).unwrap();
    manifest
}

fn verified(manifest: &Manifest) -> Verified {
    let pair = pair();
    let text = toml::to_string(manifest).unwrap();
    Verified::open(text.as_bytes(), &sign(text.as_bytes(), &pair), &keys(&pair)).unwrap()
}

#[test]
fn what_is_signed_and_fits_is_admitted() {
    let manifest = good();
    let verified = verified(&manifest);
    assert_eq!(verified.manifest(), &manifest);
    assert_eq!(verified.admit(&context()), Ok(()));
    assert_eq!(manifest.summary(), "Mends the relay.");
    assert_eq!(manifest.release().to_string(), "1.5.0");
}

#[test]
fn only_a_trusted_key_counts_and_only_for_what_it_signed() {
    let (ours, theirs) = (pair(), pair());
    let text = toml::to_string(&good()).unwrap().into_bytes();
    let open = |text: &[u8], signature: &[u8], keys: &Keys| Verified::open(text, signature, keys).unwrap_err();
    let code = |refusal: Refusal| (refusal.exit_code(), refusal.to_string());
    let (number, words) = code(open(&text, &sign(&text, &theirs), &keys(&ours)));
    assert!(number == 20 && words.contains("not trusted"), "{words}");
    for at in [0, text.len() / 2, text.len() - 1] {
        let mut changed = text.clone();
        changed[at] ^= 1;
        let (number, words) = code(open(&changed, &sign(&text, &ours), &keys(&ours)));
        assert!(number == 20 && words.contains("changed"), "{words}");
    }
    let signature = sign(&text, &ours);
    for signature in [&[][..], b"\xff\xfe", b"nonsense\n", &signature[..signature.len() / 2], &[b'a'; 5000]] {
        assert_eq!(open(&text, signature, &keys(&ours)).exit_code(), 20);
    }
    // While one key replaces the other, both count.
    let both = Keys::parse(&(ours.pk.to_box().unwrap().to_string() + "\n" + &theirs.pk.to_base64())).unwrap();
    for pair in [&ours, &theirs] {
        assert!(Verified::open(&text, &sign(&text, pair), &both).is_ok());
    }
    assert!(Keys::parse("untrusted comment: nothing\n").is_err());
}

#[test]
fn each_reason_not_to_install_it_has_its_word() {
    let here = context();
    let refused = |context: Context<'_>| verified(&good()).admit(&context).unwrap_err();
    let named = |refusal: Refusal| (refusal.exit_code(), refusal.to_string());
    let (code, words) = named(refused(Context { product: "other", ..here.clone() }));
    assert_eq!((code, words.as_str()), (25, "wrong product: a bundle for trilith, and this is other"));
    assert_eq!(refused(Context { floor: Version::new(1, 5, 1), ..here.clone() }).exit_code(), 23);
    assert_eq!(refused(Context { running: Version::new(1, 0, 9), ..here.clone() }).exit_code(), 27);
    let (code, words) = named(refused(Context { now: Some(1_826_780_400), ..here.clone() }));
    assert_eq!(code, 26);
    assert_eq!(words, "expired at 2027-11-21T07:00:00Z, and it is 2027-11-21T07:00:00Z here: get a newer bundle");
    let unset = Context { now: Some(1_826_780_401), synchronised: false, ..here.clone() };
    let (code, words) = named(refused(unset));
    assert_eq!(code, 26, "a clock that nobody has set counts all the same");
    assert!(
        words.contains("by a clock that says 2027-11-21T07:00:01Z here and that no time server has set"),
        "{words}"
    );
    let (code, words) = named(refused(Context { banned: Some("node b:\nHAProxy never answered"), ..here.clone() }));
    assert_eq!(code, 28);
    assert!(words.contains("node b:\\nHAProxy never answered"), "{words}");
    let room = Room { root: 20 * 4096 - 1, ..here.room };
    let (code, words) = named(refused(Context { room, ..here.clone() }));
    assert_eq!((code, words.as_str()), (24, "too large: root.erofs has 81920 bytes, and there is room for 81919"));
    assert_eq!(refused(Context { room: Room { uki: 1, ..here.room }, ..here.clone() }).exit_code(), 24);
    // Without a clock nothing expires.
    assert_eq!(verified(&good()).admit(&Context { now: None, ..here }), Ok(()));
}

#[test]
fn the_next_version_may_add_what_can_be_skipped() {
    let mut text = toml::to_string(&good()).unwrap();
    let sha256 = "0".repeat(64);
    text.push_str(&format!("\n[[part]]\nname = \"firmware\"\nsize = 7\nsha256 = \"{sha256}\"\nlater = true\n"));
    let text = format!("colour = \"green\"\n{text}");
    let manifest = Manifest::parse(text.as_bytes()).unwrap();
    assert_eq!(manifest.parts.len(), 5);
    assert_eq!(manifest.needed().count(), 4);
    let refusal = Manifest::parse(text.replace("format = 1", "format = 2").as_bytes()).unwrap_err();
    assert_eq!(refusal, Refusal::UnknownFormat { format: 2 });
}

#[test]
fn a_manifest_that_makes_no_sense_is_refused_with_its_place() {
    let text = toml::to_string(&good()).unwrap();
    for (from, to, expected) in [
        ("product = \"trilith\"", "product = \"../etc\"", "no name of a product"),
        ("version = \"1.5.0\"", "version = \"1.5\"", "line 4: "),
        ("floor = \"1.0.0\"", "floor = \"1.6.0\"", "below its own floor"),
        ("name = \"root.verity\"", "name = \"root.erofs\"", "twice"),
        ("name = \"root.verity\"", "name = \"other\"", "has no part root.verity"),
        ("size = 81920", "size = 81921", "no hash tree"),
        ("size = 81920", "size = 0", "between 1 and"),
        ("size = 81920", "size = 9999999999999", "between 1 and"),
        ("size = 81920", "size = -1", "invalid value"),
        ("kind = \"os\"", "kind = \"service\"", "has no part service.blocks"),
        ("kind = \"os\"", "kind = \"magic\"", "unknown variant"),
        ("format = 1", "", "missing field `format`"),
        ("created = \"2026", "created = \"1926", "a moment is written like"),
    ] {
        assert!(text.contains(from), "{from} in {text}");
        let refusal = Manifest::parse(text.replacen(from, to, 1).as_bytes()).unwrap_err();
        assert!(refusal.to_string().contains(expected), "{refusal}");
        assert_eq!(refusal.exit_code(), 30);
    }
    assert!(Manifest::parse(&[b'\n'; MAX_MANIFEST + 1]).is_err());
    assert!(Manifest::parse(b"\xff").is_err());
    let notes = Manifest { notes: "n".repeat(MAX_NOTES + 1), ..good() };
    assert!(Manifest::parse(toml::to_string(&notes).unwrap().as_bytes()).is_err());
}

#[test]
fn a_report_tells_what_is_damaged_and_what_is_a_lie() {
    use crate::inspect::inspect;
    let directory = tempfile::tempdir().unwrap();
    let pair = pair();
    let keys = keys(&pair);
    let system = System::new(VERSION, 20, &[]);
    let path = system.bundle(directory.path(), &pair);
    let report = inspect(&path, Some(&keys), Some(&context())).unwrap();
    assert!(report.problems.is_empty(), "{report}");
    let words = report.to_string();
    assert!(words.contains("signed    by a trusted key") && words.contains("holds     trilith 1.5.0"), "{words}");
    assert!(words.ends_with("\nMends the relay.\n\nMore \\u{1b}[31mcolour.\n"), "{words}");
    assert!(serde_json::to_string(&report).unwrap().contains("\"version\":\"1.5.0\""));

    let bytes = std::fs::read(&path).unwrap();
    let mut damaged = bytes.clone();
    let middle = bytes.len() - 30_000;
    damaged[middle] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let report = inspect(&path, Some(&keys), Some(&context())).unwrap();
    assert_eq!(report.exit_code(), 22, "{report}");
    assert!(report.to_string().contains("DAMAGED"));
    std::fs::write(&path, &bytes[..middle]).unwrap();
    assert_eq!(inspect(&path, Some(&keys), Some(&context())).unwrap().exit_code(), 21);
    std::fs::write(&path, &bytes[..100]).unwrap();
    assert_eq!(inspect(&path, Some(&keys), None).unwrap_err().exit_code(), 21);
    assert_eq!(inspect("/dev/zero".as_ref(), Some(&keys), None).unwrap_err().exit_code(), 30);

    // Signed, but its kernel belongs to another appliance, or to another root.
    let other = crate::uki::tests::uki("other", system.image, b"kernel");
    let uki = System { uki: other, ..System::new(VERSION, 20, &[]) }.bundle(directory.path(), &pair);
    assert_eq!(inspect(&uki, Some(&keys), Some(&context())).unwrap().exit_code(), 25);
    let stale = System { uki: System::new(VERSION, 20, &[3]).uki, ..system }.bundle(directory.path(), &pair);
    let report = inspect(&stale, Some(&keys), Some(&context())).unwrap();
    assert!(report.exit_code() == 22 && report.to_string().contains("not what the manifest says"), "{report}");
}

#[test]
fn a_service_is_a_bundle_too() {
    use crate::inspect::inspect;
    let directory = tempfile::tempdir().unwrap();
    let pair = pair();
    let path = crate::testing::service(directory.path(), &[3; 9000], &pair);
    let report = inspect(&path, Some(&keys(&pair)), Some(&context())).unwrap();
    assert!(report.problems.is_empty(), "{report}");
    assert!(report.to_string().contains("holds     service web of trilith 2.0.0"));
    // An empty one has no parts.
    let empty = bundle(directory.path(), &manifest(Kind::Service, VERSION, None), &[], &pair);
    assert_eq!(inspect(&empty, None, None).unwrap().exit_code(), 30);
}
