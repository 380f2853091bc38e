//! What is wrong with a document, where, and what would be right.

use std::fmt;
use std::ops::Range;

/// The one thing to mend first: the earliest fault of the document, unless another kind would only follow from it.
///
/// Its `Display` is for a terminal: one line, then the line of the document with the place marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Name of the file, as it was handed in.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// The key, such as `node.address`; `document` for what concerns the whole of it.
    pub key: String,
    /// What is wrong.
    pub wrong: String,
    /// What would be right.
    pub right: String,
    /// The line of the document, and under it the place marked; empty when there is no such line.
    pub excerpt: Box<str>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ConfigError { file, line, column, key, wrong, right, excerpt } = self;
        write!(f, "{file}:{line}:{column}: {key}: {wrong}; {right}")?;
        if excerpt.is_empty() { Ok(()) } else { write!(f, "\n{excerpt}") }
    }
}

impl std::error::Error for ConfigError {}

/// What is wrong with a value and what would be right; its place is known to whoever asked for it.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) wrong: String,
    pub(super) right: String,
}

impl Wrong {
    pub(super) fn new(wrong: impl Into<String>, right: impl Into<String>) -> Wrong {
        Wrong { wrong: wrong.into(), right: right.into() }
    }
}

/// Kinds of faults, in the order in which they are reported: a later kind may only follow from an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A key or value that is wrong by itself.
    Value,
    /// A key that is missing, perhaps because it is misspelt.
    Missing,
    /// Values that do not go together.
    Relation,
}

/// The faults found so far; only the one to report is kept.
#[derive(Debug, Default)]
pub(super) struct Faults {
    first: Option<Fault>,
}

#[derive(Debug)]
struct Fault {
    kind: Kind,
    at: Range<usize>,
    key: String,
    wrong: Wrong,
}

impl Faults {
    pub(super) fn note(&mut self, kind: Kind, at: Range<usize>, key: impl Into<String>, wrong: Wrong) {
        let earlier = self.first.as_ref().is_none_or(|first| (kind, at.start) < (first.kind, first.at.start));
        if earlier {
            self.first = Some(Fault { kind, at, key: key.into(), wrong });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The fault to report. `text` is the document that it was found in.
    pub(super) fn into_error(self, text: &str, file: &str) -> Option<ConfigError> {
        self.first.map(|fault| error(text, file, fault.at, &fault.key, fault.wrong))
    }
}

/// An error at a place of a document.
pub(super) fn error(text: &str, file: &str, at: Range<usize>, key: &str, wrong: Wrong) -> ConfigError {
    let start = floor_char_boundary(text, at.start);
    let end = floor_char_boundary(text, at.end).max(start);
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = text[start..].find(['\r', '\n']).map_or(text.len(), |newline| start + newline);
    let line = text[..start].matches('\n').count() + 1;
    let before = text[line_start..start].chars().count();
    let marked = text[start..end.min(line_end)].chars().count().max(1);
    ConfigError {
        file: file.to_owned(),
        line: line as u32,
        column: before as u32 + 1,
        key: key.to_owned(),
        wrong: wrong.wrong,
        right: wrong.right,
        excerpt: excerpt(&text[line_start..line_end], line, before, marked).into(),
    }
}

/// A value as it is shown in a message: in quotes, on one line, and not longer than a line can be.
pub(super) fn quoted(value: &str) -> String {
    const SHOWN: usize = 60;
    let mut shown: String = value.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if value.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

/// The known word that was probably meant by `word`.
pub(super) fn closest<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    const SHORTEST: usize = 3;
    const LONGEST: usize = 64;
    if word.len() > LONGEST {
        return None;
    }
    // A short word is near to every other short word: that would be no hint.
    let likely = |known: &&str| known.len() >= SHORTEST && word.len() >= SHORTEST;
    let near = |known: &str| known.starts_with(word) || word.starts_with(known);
    known
        .into_iter()
        .filter(likely)
        .map(|known| (if near(known) { 1 } else { distance(word, known) }, known))
        .filter(|(distance, known)| *distance <= known.len().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// Levenshtein's distance: how many characters must be put in, left out or replaced.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.chars().count()]
}

/// The line and a marker under the place; of a long line the part around it.
fn excerpt(line: &str, number: usize, before: usize, marked: usize) -> String {
    const WIDTH: usize = 72;
    const LEAD: usize = 24;
    let skipped = if before + marked.min(LEAD) > WIDTH { before - LEAD } else { 0 };
    let shown: String = line.chars().skip(skipped).take(WIDTH).map(printable).collect();
    let shown = shown.trim_end();
    if shown.is_empty() {
        return String::new();
    }
    let gutter = " ".repeat(number.to_string().len());
    let indent = " ".repeat(before - skipped);
    let marker = "^".repeat(marked.min(WIDTH - (before - skipped)).max(1));
    format!("{gutter} |\n{number} | {shown}\n{gutter} | {indent}{marker}")
}

/// Keeps a terminal safe from what a file may hold, and every character one column wide.
fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

fn floor_char_boundary(text: &str, index: usize) -> usize {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likely_meant_word_is_found_and_a_far_one_is_not() {
        let known = ["name", "address", "address6", "zone"];
        assert_eq!(closest("adress", known), Some("address"));
        assert_eq!(closest("nmae", known), Some("name"));
        assert_eq!(closest("addr", known), Some("address"));
        assert_eq!(closest("backend", known), None);
        assert_eq!(closest("x", ["a", "b", "c"]), None);
    }

    #[test]
    fn a_long_line_is_shown_around_the_place() {
        let text = format!("{}HERE{}", "x".repeat(5_000), "y".repeat(5_000));
        let error = error(&text, "f", 5_000..5_004, "k", Wrong::new("w", "r"));
        assert_eq!(error.column, 5_001);
        let lines: Vec<&str> = error.excerpt.lines().collect();
        assert_eq!(lines[1].find("HERE"), lines[2].find("^^^^"));
        assert!(lines[1].len() < 90);
    }
}
