//! What is wrong with the answers, or was left out of them: where, why, and what would mend it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing that is wrong (a fault) or was left out (a warning).
///
/// Its `Display` is one line: `user-data:12: trilith.node: …; …`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The document, such as `user-data`.
    pub document: String,
    /// Line, from 1; 0 for what concerns the whole document.
    pub line: u32,
    /// The key, such as `users.name`; empty for what concerns the whole document.
    pub key: String,
    /// What is wrong.
    pub wrong: String,
    /// What would mend it.
    pub mend: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { document, line, key, wrong, mend } = self;
        f.write_str(document)?;
        if *line > 0 {
            write!(f, ":{line}")?;
        }
        if !key.is_empty() {
            write!(f, ": {key}")?;
        }
        write!(f, ": {wrong}")?;
        if mend.is_empty() { Ok(()) } else { write!(f, "; {mend}") }
    }
}

/// All that was found in some documents, at most [`MAX_FINDINGS`] of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// What must be mended before the answers are taken.
    pub faults: Vec<Finding>,
    /// What was left out, or understood otherwise than it may have been meant.
    pub warnings: Vec<Finding>,
}

impl Findings {
    /// Notes a fault; one that says the same again is not kept.
    pub fn fault(&mut self, fault: Finding) {
        note(&mut self.faults, fault);
    }

    /// Notes a warning; one that says the same again is not kept.
    pub fn warn(&mut self, warning: Finding) {
        note(&mut self.warnings, warning);
    }

    /// Takes over what another one holds.
    pub fn append(&mut self, other: Findings) {
        other.faults.into_iter().for_each(|fault| self.fault(fault));
        other.warnings.into_iter().for_each(|warning| self.warn(warning));
    }
}

fn note(list: &mut Vec<Finding>, mut finding: Finding) {
    // Parts of it can be somebody's text.
    finding.key = shown(&finding.key);
    if list.len() < MAX_FINDINGS && !list.contains(&finding) {
        list.push(finding);
    }
}

/// A value as it is shown in a message: in quotes, on one line, and not longer than a line can be.
pub fn quoted(value: &str) -> String {
    format!("\"{}\"", shown(value))
}

fn shown(value: &str) -> String {
    let mut shown: String = value.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if value.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// The most faults, and the most warnings, that are kept: a document with more is the wrong document.
pub const MAX_FINDINGS: usize = 100;
const SHOWN: usize = 60;
