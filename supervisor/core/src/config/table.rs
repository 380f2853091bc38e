//! One TOML table, read key by key; what nobody asked for is unknown.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Faults, Kind, Wrong, closest, quoted};

/// A table of the document while it is read.
pub(super) struct Table<'d> {
    name: String,
    at: Range<usize>,
    entries: &'d DeTable<'d>,
    known: Vec<&'static str>,
}

/// Turns a value into what it means.
pub(super) trait Read<T>: Fn(&DeValue<'_>) -> Result<T, Wrong> {}
impl<T, F: Fn(&DeValue<'_>) -> Result<T, Wrong>> Read<T> for F {}

impl<'d> Table<'d> {
    /// The table that is the whole document.
    pub(super) fn document(entries: &'d DeTable<'d>) -> Table<'d> {
        Table { name: String::new(), at: 0..0, entries, known: Vec::new() }
    }

    /// The key's full name, as it is shown.
    pub(super) fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// Where the table begins.
    pub(super) fn at(&self) -> Range<usize> {
        self.at.clone()
    }

    /// A value that may be absent.
    pub(super) fn optional<T>(
        &mut self,
        faults: &mut Faults,
        key: &'static str,
        read: impl Read<T>,
    ) -> Option<Spanned<T>> {
        let value = self.look_up(key)?;
        match read(value.get_ref()) {
            Ok(meant) => Some(Spanned::new(value.span(), meant)),
            Err(wrong) => {
                faults.note(Kind::Value, value.span(), self.path(key), wrong);
                None
            }
        }
    }

    /// A value that must be there; `example` shows what it could be.
    pub(super) fn required<T>(
        &mut self,
        faults: &mut Faults,
        key: &'static str,
        example: &str,
        read: impl Read<T>,
    ) -> Option<Spanned<T>> {
        if self.look_up(key).is_none() {
            let wrong = Wrong::new("is missing", format!("add a line such as {key} = {example}"));
            faults.note(Kind::Missing, self.at.clone(), self.path(key), wrong);
        }
        self.optional(faults, key, read)
    }

    /// A `[table]`, if it is there.
    pub(super) fn table(&mut self, faults: &mut Faults, key: &'static str) -> Option<Table<'d>> {
        let value = self.look_up(key)?;
        let DeValue::Table(entries) = value.get_ref() else {
            let wrong = Wrong::new(
                format!("is {}, not a table", type_name(value.get_ref())),
                format!("begin it with a line [{}]", self.path(key)),
            );
            faults.note(Kind::Value, value.span(), self.path(key), wrong);
            return None;
        };
        Some(Table { name: self.path(key), at: value.span(), entries, known: Vec::new() })
    }

    /// The `[[tables]]` of this name, none when it is absent.
    pub(super) fn tables(&mut self, faults: &mut Faults, key: &'static str) -> Vec<Table<'d>> {
        let Some(value) = self.look_up(key) else {
            return Vec::new();
        };
        let path = self.path(key);
        let right = format!("begin each with a line [[{path}]], in two pairs of brackets");
        let DeValue::Array(values) = value.get_ref() else {
            let wrong = Wrong::new(format!("is {}, not a list of tables", type_name(value.get_ref())), right);
            faults.note(Kind::Value, value.span(), path, wrong);
            return Vec::new();
        };
        let mut tables = Vec::new();
        for value in values.iter() {
            match value.get_ref() {
                DeValue::Table(entries) => {
                    tables.push(Table { name: path.clone(), at: value.span(), entries, known: Vec::new() });
                }
                other => {
                    let wrong = Wrong::new(format!("holds {}, not only tables", type_name(other)), right.clone());
                    faults.note(Kind::Value, value.span(), path.clone(), wrong);
                }
            }
        }
        tables
    }

    /// Ends the reading: every key that was never asked for is unknown.
    pub(super) fn finish(self, faults: &mut Faults) {
        for (key, _) in self.entries.iter() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let right = match closest(name, self.known.iter().copied()) {
                Some(meant) => format!("did you mean {meant}?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            let path = match quoted(name) {
                odd if odd.len() != name.len() + 2 => self.path(&odd),
                _ => self.path(name),
            };
            faults.note(Kind::Value, key.span(), path, Wrong::new("is no known key", right));
        }
    }

    fn look_up(&mut self, key: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.entries.get(key)
    }
}

/// What a value is, with its article.
pub(super) fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
