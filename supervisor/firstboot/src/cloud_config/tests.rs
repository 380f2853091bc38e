use super::*;
use crate::encoding::to_base64;
use crate::sources::{Document, Documents};
use crate::take::{Taken, take};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGqQOTJkDHVAXB0buOplQGayvlmeWstVdwXhKEtsgdej test";
const HASH: &str = "$6$abcdefgh$abcdefghijklmnopqrstuvwxyzABCDEF";

fn taken(user_data: &str) -> Taken {
    let user = vec![Document::new("user-data", user_data.as_bytes().to_vec())];
    take(&Documents { user, ..Documents::default() })
}

fn answers(user_data: &str) -> Answers {
    let taken = taken(user_data);
    assert_eq!(taken.findings.faults, [], "{user_data}");
    taken.answers
}

/// The only fault: line, key, and a part of what is wrong.
fn fault(user_data: &str) -> (u32, String, String) {
    let mut faults = taken(user_data).findings.faults;
    assert_eq!(faults.len(), 1, "{user_data}: {faults:?}");
    let fault = faults.remove(0);
    assert!(!fault.mend.is_empty(), "{fault}");
    (fault.line, fault.key, fault.wrong)
}

#[test]
fn names_are_understood_as_cloud_init_does() {
    for (text, hostname, fqdn) in [
        ("hostname: a", "a", None),
        ("hostname: a.example.org", "a", Some("a.example.org")),
        ("fqdn: b.example.org", "b", Some("b.example.org")),
        ("hostname: c\nfqdn: b.example.org", "c", Some("b.example.org")),
    ] {
        let answers = answers(&format!("#cloud-config\n{text}\n"));
        assert_eq!((answers.hostname.as_deref(), answers.fqdn.as_deref()), (Some(hostname), fqdn), "{text}");
    }
    assert_eq!(fault("#cloud-config\nhostname: a_b\n").0, 2);
}

#[test]
fn keys_go_to_the_account_that_they_name_and_else_to_admin() {
    let answers = answers(&format!(
        "#cloud-config\nssh_authorized_keys: ['{KEY}']\nusers:\n  - default\n  - name: eve\n    ssh_authorized_keys:\n      - {KEY}\n"
    ));
    let keys: Vec<_> = answers.users.iter().map(|user| (user.name.as_str(), user.ssh_authorized_keys.len())).collect();
    assert_eq!(keys, [("admin", 1), ("eve", 1)]);
}

#[test]
fn a_damaged_key_or_a_private_one_is_refused_with_its_line() {
    let damaged = KEY.replace("AAAAC3", "AAAAC4");
    assert_eq!(fault(&format!("#cloud-config\nssh_authorized_keys:\n  - {damaged}\n")).0, 3);
    let private = "#cloud-config\nssh_authorized_keys:\n  - '-----BEGIN OPENSSH PRIVATE KEY-----'\n";
    assert!(fault(private).2.contains("private key"));
}

#[test]
fn a_password_is_taken_as_a_hash_only_and_locked_unless_it_is_unlocked() {
    let user = |lines: &str| format!("#cloud-config\nusers:\n  - name: eve\n{lines}");
    let open = answers(&user(&format!("    passwd: {HASH}\n    lock_passwd: false\n")));
    assert_eq!(open.users[0].password.as_ref().unwrap().0, HASH);
    let locked = taken(&user(&format!("    hashed_passwd: {HASH}\n")));
    assert_eq!(locked.answers.users[0].password, None);
    assert!(locked.findings.warnings[0].mend.contains("lock_passwd: false"));
    let plain = taken(&user("    plain_text_passwd: hunter2\n"));
    assert!(plain.findings.faults.is_empty() && plain.findings.warnings[0].key == "users.plain_text_passwd");
    for wrong in ["hunter2hunter2hunter2", "$1$abcdefgh$abcdefghijklmnopqrstuv", "$6$short"] {
        let (line, key, said) = fault(&user(&format!("    passwd: {wrong}\n")));
        assert_eq!((line, key.as_str()), (4, "users.passwd"));
        assert!(!said.contains(wrong), "a password must not be repeated: {said}");
    }
    assert_eq!(answers(&format!("#cloud-config\npassword: {HASH}\n")).users[0].name, "admin");
}

#[test]
fn files_are_written_below_the_state_only() {
    let packed = to_base64(&{
        use std::io::Write;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(b"packed\n").unwrap();
        gzip.finish().unwrap()
    });
    let taken = taken(&format!(
        "#cloud-config\nwrite_files:\n- path: /etc/passwd\n  content: x\n- path: /var/lib/trilith/files/../secret\n  content: x\n\
         - path: /var/lib/trilith/files/a\n  content: {packed}\n  encoding: gz+b64\n  permissions: 0600\n"
    ));
    let refused: Vec<u32> = taken.findings.warnings.iter().map(|warning| warning.line).collect();
    assert_eq!(refused, [3, 5]);
    let [file] = taken.answers.files.as_slice() else { panic!() };
    assert_eq!((file.path.as_str(), file.content.as_slice(), file.mode), ("a", &b"packed\n"[..], 0o600));
}

#[test]
fn certificates_are_taken_when_they_are_some() {
    let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", to_base64(&[0x30, 1, 2, 3]));
    let block = pem.replace('\n', "\n      ");
    let good =
        answers(&format!("#cloud-config\nca_certs:\n  remove_defaults: true\n  trusted:\n    - |\n      {block}\n"));
    assert_eq!((good.ca_certs.trusted, good.ca_certs.remove_defaults), (vec![pem], true));
    assert_eq!(fault("#cloud-config\nca_certs:\n  trusted:\n    - nonsense\n").0, 4);
}

#[test]
fn what_is_not_supported_is_named_with_its_line() {
    let taken =
        taken("#cloud-config\nhostname: a\nruncmd: [reboot]\nntp: {servers: [t], peers: [p]}\nswap: {size: 1}\n");
    let named: Vec<_> = taken.findings.warnings.iter().map(|warning| (warning.line, warning.key.as_str())).collect();
    assert_eq!(named, [(4, "ntp.peers"), (3, "runcmd"), (5, "swap")]);
}

#[test]
fn user_data_without_its_first_line_is_refused_and_scripts_are_named() {
    assert!(fault("hostname: a\n").2.contains("not with #cloud-config"));
    assert!(fault("#cloud-config\nhostname: [\n").2.contains("no YAML"));
    assert!(taken("#!/bin/sh\nreboot\n").findings.warnings[0].wrong.contains("a script"));
    assert!(taken("## template: jinja\n#cloud-config\n").findings.warnings[0].wrong.contains("a template"));
}

#[test]
fn parts_of_a_mime_document_are_joined_and_the_later_key_counts() {
    let part = to_base64(b"#cloud-config\nhostname: b\n");
    let text = format!(
        "Content-Type: multipart/mixed; boundary=\"==B==\"\nMIME-Version: 1.0\n\n--==B==\n\
         Content-Type: text/cloud-config; charset=\"us-ascii\"\n\nhostname: a\ntimezone: UTC\n--==B==\n\
         Content-Type: text/x-shellscript\n\n#!/bin/sh\n--==B==\n\
         Content-Type: text/cloud-config\nContent-Transfer-Encoding: base64\n\n{part}\n--==B==--\n"
    );
    let taken = taken(&text);
    assert_eq!(taken.findings.faults, []);
    assert_eq!((taken.answers.hostname.as_deref(), taken.answers.timezone.as_deref()), (Some("b"), Some("UTC")));
    assert_eq!(taken.findings.warnings[0].document, "user-data part 2");
    assert!(fault(&text.replace("--==B==--", "")).2.contains("without an end"));
    assert!(fault(&text.replace("boundary", "b")).2.contains("no boundary"));
}

#[test]
fn no_document_makes_the_reader_panic() {
    let good = format!(
        "#cloud-config\nusers:\n- name: a\n  passwd: \"{HASH}\"\ntrilith:\n  node: [{{name: a}}]\nntp: {{servers: [x]}}\n"
    );
    for cut in 0..good.len() {
        taken(&good[..cut]);
        taken(&format!("{}\u{0}{}", &good[..cut], &good[cut..]));
        taken(&format!("{}:\n- [{}", &good[..cut], &good[cut..]));
    }
}
