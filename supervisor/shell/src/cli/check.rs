//! `trilith config check`

use std::io::Read;
use std::path::Path;

use serde::Serialize;
use trilith_core::config::{ConfigError, MAX_DOCUMENT, Settings, parse_bytes};
use trilith_core::status::fingerprint;

use super::exit::Exit;
use super::{print, print_json, report};
use crate::disk;

/// Reads a document and says whether it is right.
pub fn check(file: &Path, json: bool) -> Exit {
    let (name, read) = match file.to_str() {
        Some("-") => ("stdin".to_owned(), from_stdin()),
        _ => (file.display().to_string(), disk::load_settings(file)),
    };
    match read {
        Ok(settings) if json => print_json(&Finding::good(&name, &settings), Exit::Ok),
        Ok(settings) => print(&in_words(&name, &settings), Exit::Ok),
        Err(error) => {
            let finding = error.downcast_ref::<ConfigError>().filter(|_| json);
            match finding {
                Some(error) => print_json(&Finding::bad(error), Exit::Configuration),
                None => report(Exit::Configuration, "failed", &format!("{error:#}"), json),
            }
        }
    }
}

/// What is found, for a program.
#[derive(Serialize)]
#[serde(untagged)]
enum Finding<'f> {
    Good {
        valid: bool,
        file: &'f str,
        set: &'f str,
        nodes: Vec<&'f str>,
        vips: Vec<&'f str>,
        services: Vec<&'f str>,
        fingerprint: String,
    },
    Bad {
        valid: bool,
        file: &'f str,
        line: u32,
        column: u32,
        key: &'f str,
        wrong: &'f str,
        right: &'f str,
    },
}

impl<'f> Finding<'f> {
    fn good(file: &'f str, settings: &'f Settings) -> Finding<'f> {
        Finding::Good {
            valid: true,
            file,
            set: &settings.set.name,
            nodes: settings.nodes.iter().map(|node| node.name.as_str()).collect(),
            vips: settings.vips.iter().map(|vip| vip.name.as_str()).collect(),
            services: settings.services.iter().map(|service| service.name.as_str()).collect(),
            fingerprint: fingerprint(settings.fingerprint),
        }
    }

    fn bad(error: &'f ConfigError) -> Finding<'f> {
        let ConfigError { file, line, column, key, wrong, right, excerpt: _ } = error;
        Finding::Bad { valid: false, file, line: *line, column: *column, key, wrong, right }
    }
}

fn in_words(name: &str, settings: &Settings) -> String {
    let counted = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    format!(
        "{name}: valid: set {} with {}, {} and {}, fingerprint {:08x}\n",
        settings.set.name,
        counted(settings.nodes.len(), "node"),
        counted(settings.vips.len(), "VIP"),
        counted(settings.services.len(), "service"),
        settings.fingerprint
    )
}

fn from_stdin() -> anyhow::Result<Settings> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(MAX_DOCUMENT as u64 + 1).read_to_end(&mut bytes)?;
    Ok(parse_bytes(&bytes, "stdin")?)
}
