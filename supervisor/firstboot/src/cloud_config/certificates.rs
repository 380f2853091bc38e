//! `ca_certs`: certificate authorities in PEM form.

use crate::answers::CaCerts;
use crate::encoding;
use crate::fields::Field;
use crate::finding::Findings;

pub(super) fn read(field: &Field<'_>, findings: &mut Findings) -> CaCerts {
    let mut found = CaCerts::default();
    let Some(mut table) = field.table(findings) else { return found };
    for key in ["remove_defaults", "remove-defaults"] {
        if let Some(field) = table.get(key) {
            found.remove_defaults = field.boolean(findings).unwrap_or(false);
        }
    }
    for field in table.get("trusted").iter().flat_map(Field::one_or_many) {
        let Some(text) = field.text(findings) else { continue };
        match certificates(text) {
            Ok(certificates) => found.trusted.extend(certificates),
            Err(wrong) => {
                field.fault(findings, wrong, "paste the certificate with its BEGIN and END lines, as a block: |")
            }
        }
    }
    table.finish(findings);
    found
}

/// The certificates of a text, each with one newline at its end. RFC 7468 allows words around them.
fn certificates(text: &str) -> Result<Vec<String>, &'static str> {
    if text.contains("PRIVATE KEY-----") {
        return Err("holds a private key, which belongs nowhere near it");
    }
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find(BEGIN) {
        let body = &rest[begin + BEGIN.len()..];
        let Some(end) = body.find(END) else { return Err("a certificate has no END line") };
        // DER of a certificate is a sequence: 0x30.
        if encoding::base64(&body.as_bytes()[..end]).is_none_or(|der| der.first() != Some(&0x30)) {
            return Err("a certificate is damaged");
        }
        let lines: Vec<&str> = body[..end].lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        found.push(format!("{BEGIN}\n{}\n{END}\n", lines.join("\n")));
        rest = &body[end + END.len()..];
    }
    if found.is_empty() { Err("is no certificate in PEM form") } else { Ok(found) }
}

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";
