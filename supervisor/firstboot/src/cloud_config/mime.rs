//! The forms of user-data: plain text by its first line, gzip, and MIME documents of several parts.

use super::whole;
use crate::encoding;
use crate::finding::{Findings, quoted};

/// The texts of all cloud-config parts, each with its name. Others are named in warnings.
pub(super) fn texts(name: &str, bytes: Vec<u8>, findings: &mut Findings) -> Vec<(String, String)> {
    let mut found = Vec::new();
    part(name, bytes, Told::Nothing, 0, &mut found, findings);
    found
}

/// What is known of a part before one looks at its first line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    CloudConfig,
}

fn part(
    name: &str,
    bytes: Vec<u8>,
    told: Told,
    depth: usize,
    found: &mut Vec<(String, String)>,
    findings: &mut Findings,
) {
    let text = match encoding::unpacked(bytes).map(String::from_utf8) {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => {
            let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|c| **c == b'\n').count() + 1;
            findings.fault(whole(name, format!("line {line} is not UTF-8 text"), "save the document as UTF-8"));
            return;
        }
        Err(wrong) => {
            findings.fault(whole(name, wrong, "pack it anew, or give it as it is"));
            return;
        }
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let first = text.trim_start().lines().next().unwrap_or_default().trim_end();
    if text.trim().is_empty() {
        return;
    }
    if told == Told::CloudConfig || first.split_whitespace().next() == Some("#cloud-config") {
        found.push((name.to_owned(), text.to_owned()));
    } else if first.to_ascii_lowercase().starts_with("content-type:")
        || first.to_ascii_lowercase().starts_with("mime-version:")
    {
        multipart(name, text, depth, found, findings);
    } else if let Some((_, what)) = OTHERS.iter().find(|(begins, _)| first.starts_with(begins)) {
        findings.warn(whole(name, format!("is {what}, which is not supported and left out"), "write #cloud-config"));
    } else {
        let wrong = format!("begins with {}, not with #cloud-config", quoted(first));
        findings.fault(whole(name, wrong, "make #cloud-config its first line"));
    }
}

/// RFC 2046, as far as cloud-init's tools write it.
fn multipart(name: &str, text: &str, depth: usize, found: &mut Vec<(String, String)>, findings: &mut Findings) {
    let (headers, body) = head_and_body(text);
    let kind = header(headers, "content-type").unwrap_or_default();
    if !kind.to_ascii_lowercase().starts_with("multipart/") {
        return entity(name, text, depth, found, findings);
    }
    if depth >= MAX_DEPTH {
        findings.fault(whole(name, "nests MIME parts too deep", "give the parts one after the other"));
        return;
    }
    let Some(boundary) = parameter(&kind, "boundary") else {
        findings.fault(whole(
            name,
            "is a MIME document that names no boundary",
            "make it anew with cloud-init's tools",
        ));
        return;
    };
    let mut number = 0;
    let mut inside: Option<Vec<&str>> = None;
    for line in body.split_inclusive('\n') {
        let plain = line.trim_end();
        let ends = plain.strip_prefix("--").is_some_and(|rest| rest.strip_suffix("--") == Some(&boundary));
        if !ends && plain.strip_prefix("--") != Some(&boundary) {
            if let Some(lines) = &mut inside {
                lines.push(line);
            }
            continue;
        }
        if let Some(lines) = inside.take() {
            number += 1;
            entity(&format!("{name} part {number}"), &lines.concat(), depth, found, findings);
        }
        if ends {
            return;
        }
        if number >= MAX_PARTS {
            findings.fault(whole(name, "has too many MIME parts", format!("keep to {MAX_PARTS}")));
            return;
        }
        inside = Some(Vec::new());
    }
    findings.fault(whole(name, "is a MIME document without an end", "is it cut off?"));
}

/// One part: its own headers say what it is and how it is encoded.
fn entity(name: &str, text: &str, depth: usize, found: &mut Vec<(String, String)>, findings: &mut Findings) {
    let (headers, body) = head_and_body(text);
    let kind = header(headers, "content-type").unwrap_or_default().to_ascii_lowercase();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.starts_with("multipart/") {
        return multipart(name, text, depth + 1, found, findings);
    }
    let encoding = header(headers, "content-transfer-encoding").unwrap_or_default().trim().to_ascii_lowercase();
    let bytes = match encoding.as_str() {
        "base64" => encoding::base64(body.as_bytes()),
        "" | "7bit" | "8bit" | "binary" => Some(body.as_bytes().to_vec()),
        "quoted-printable" => Some(quoted_printable(body)),
        _ => None,
    };
    let Some(bytes) = bytes else {
        let wrong = format!("is not encoded as {} says", quoted(&encoding));
        findings.fault(whole(name, wrong, "encode the part anew, or as 7bit"));
        return;
    };
    let begins = bytes.get(..64.min(bytes.len())).unwrap_or_default();
    let nests = begins.to_ascii_lowercase().starts_with(b"content-type:") || begins.starts_with(b"MIME-Version:");
    match kind {
        _ if nests => {
            findings.warn(whole(name, "is a MIME document within one and left out", "put its parts side by side"))
        }
        "text/cloud-config" => part(name, bytes, Told::CloudConfig, depth, found, findings),
        ""
        | "text/plain"
        | "application/octet-stream"
        | "application/x-gzip"
        | "application/gzip"
        | "text/x-not-multipart" => {
            part(name, bytes, Told::Nothing, depth, found, findings);
        }
        other => {
            let wrong = format!("is of the type {}, which is not supported and left out", quoted(other));
            findings.warn(whole(name, wrong, "supported is text/cloud-config"));
        }
    }
}

/// The headers, up to the first empty line, and what follows it.
fn head_and_body(text: &str) -> (&str, &str) {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.trim_end().is_empty() {
            return (&text[..at], &text[at + line.len()..]);
        }
        at += line.len();
    }
    (text, "")
}

/// A header's value, its folded lines joined (RFC 5322, section 2.2.3).
fn header(headers: &str, name: &str) -> Option<String> {
    let mut value: Option<String> = None;
    for line in headers.lines() {
        if line.starts_with([' ', '\t']) {
            if let Some(value) = &mut value {
                value.push_str(line);
            }
            continue;
        }
        if value.is_some() {
            break;
        }
        value = line
            .split_once(':')
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, rest)| rest.trim().to_owned());
    }
    value
}

/// A parameter such as `boundary="…"`.
fn parameter(value: &str, name: &str) -> Option<String> {
    let found = value.split(';').skip(1).find_map(|part| {
        let (key, value) = part.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"').to_owned())
    })?;
    (!found.is_empty() && found.len() <= 70).then_some(found)
}

/// RFC 2045, section 6.7.
fn quoted_printable(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'=' {
            bytes.push(*first);
            continue;
        }
        let hex = after.get(..2).and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        match (hex, after) {
            (Some(byte), _) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (None, [b'\r', b'\n', after @ ..] | [b'\n', after @ ..]) => rest = after,
            _ => bytes.push(b'='),
        }
    }
    bytes
}

/// What else cloud-init knows by its first line (`cloudinit.handlers.INCLUSION_TYPES_MAP`).
const OTHERS: &[(&str, &str)] = &[
    ("#!", "a script"),
    ("#include", "a list of addresses to fetch from"),
    ("#cloud-boothook", "a boot hook"),
    ("#part-handler", "a part handler"),
    ("#cloud-config-archive", "a cloud-config archive"),
    ("#cloud-config-jsonp", "a JSON patch"),
    ("#upstart-job", "an upstart job"),
    ("## template:", "a template"),
    ("rem cmd", "a script"),
    ("#ps1", "a script"),
];
const MAX_DEPTH: usize = 4;
const MAX_PARTS: usize = 32;
