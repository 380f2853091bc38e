//! `write_files`, which may write below one directory of the state only.

use crate::answers::{FILES, StateFile};
use crate::encoding;
use crate::fields::Field;
use crate::finding::{Findings, quoted};

pub(super) fn read(field: &Field<'_>, findings: &mut Findings) -> Vec<StateFile> {
    let mut files = Vec::new();
    let mut total = 0;
    for field in field.list(findings).unwrap_or_default() {
        if let Some(file) = file(&field, findings) {
            total += file.content.len();
            files.push(file);
        }
    }
    if total > MAX_CONTENT || files.len() > MAX_FILES {
        let wrong = format!("{} files of {total} bytes in all", files.len());
        field.fault(findings, wrong, format!("keep to {MAX_FILES} files and {MAX_CONTENT} bytes"));
        return Vec::new();
    }
    files
}

fn file(field: &Field<'_>, findings: &mut Findings) -> Option<StateFile> {
    let mut table = field.table(findings)?;
    let at = table.require("path", "/var/lib/trilith/files/name", findings)?;
    let path = at.text(findings)?.trim();
    let below = path.strip_prefix(FILES).and_then(|rest| rest.strip_prefix('/'));
    let Some(below) = below.filter(|below| is_plain(below)) else {
        let mend = format!("write below {FILES}: the rest of the system is the image's");
        at.warn(findings, format!("{} is not written", quoted(path)), mend);
        return None;
    };
    let encoding = table.get("encoding").and_then(|field| field.text(findings)).unwrap_or_default();
    let content = match table.get("content") {
        Some(field) => match encoding::named(field.bytes(findings)?, encoding) {
            Ok(content) => content,
            Err(wrong) => {
                field.fault(findings, wrong, format!("encode the content of {path} anew"));
                return None;
            }
        },
        None => Vec::new(),
    };
    let mode = table.get("permissions").map_or(Some(0o644), |field| permissions(&field, findings))?;
    let append = table.get("append").and_then(|field| field.boolean(findings)).unwrap_or(false);
    // All files are written at one time, before anything that could want them.
    table.skip("defer");
    if table.get("owner").is_some_and(|field| !matches!(field.plain(), Some("root" | "root:root"))) {
        table.refuse("owner", "files belong to root", findings);
    }
    table.refuse("source", "nothing is fetched at first boot: give the content", findings);
    table.finish(findings);
    Some(StateFile { path: below.to_owned(), content, mode, append })
}

/// Octal digits in quotes, or YAML 1.1's octal number, which is the same.
fn permissions(field: &Field<'_>, findings: &mut Findings) -> Option<u32> {
    let text = field.text(findings)?.trim();
    let octal = u32::from_str_radix(text.strip_prefix("0o").unwrap_or(text), 8);
    match octal {
        // Nothing is executed from the state and no bit gives rights: setuid and its like make no sense.
        Ok(mode) if mode <= 0o777 => Some(mode),
        _ => {
            field.fault(findings, format!("{} are no permissions", quoted(text)), "write octal digits such as '0640'");
            None
        }
    }
}

fn is_plain(path: &str) -> bool {
    path.len() <= 255
        && path.split('/').count() <= 8
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".." && !part.chars().any(char::is_control))
}

/// The most bytes that `write_files` may write in all.
const MAX_CONTENT: usize = 4 * 1024 * 1024;
const MAX_FILES: usize = 100;
