//! Reading a tree key by key: whatever nobody asked for is named in a warning, whatever is wrong becomes a fault with its line.

use crate::finding::{Finding, Findings, quoted};
use crate::yaml::{Key, Node, Scalar, Value};

/// A mapping while it is read.
pub struct Table<'d> {
    document: &'d str,
    path: String,
    line: u32,
    entries: Vec<(&'d Key, Field<'d>)>,
    known: Vec<&'static str>,
}

/// A value, with the words for what is wrong with it.
#[derive(Clone)]
pub struct Field<'d> {
    /// The document, such as `user-data`.
    pub document: &'d str,
    /// The key's full name, such as `users.name`.
    pub path: String,
    /// Line of the key, from 1.
    pub line: u32,
    /// The value itself.
    pub node: &'d Node,
}

impl<'d> Field<'d> {
    /// The whole of a document.
    pub fn document(document: &'d str, node: &'d Node) -> Field<'d> {
        Field { document, path: String::new(), line: node.line, node }
    }

    /// Notes what is wrong with the value.
    pub fn fault(&self, findings: &mut Findings, wrong: impl Into<String>, mend: impl Into<String>) {
        findings.fault(self.finding(wrong, mend));
    }

    /// Notes what is left out or meant otherwise.
    pub fn warn(&self, findings: &mut Findings, wrong: impl Into<String>, mend: impl Into<String>) {
        findings.warn(self.finding(wrong, mend));
    }

    /// Whether it is nothing: an absent value, as cloud-init takes it.
    pub fn is_null(&self) -> bool {
        matches!(&self.node.value, Value::Scalar(scalar) if scalar.is_null())
    }

    /// Its text, numbers and booleans as they are written.
    pub fn text(&self, findings: &mut Findings) -> Option<&'d str> {
        match &self.node.value {
            Value::Scalar(Scalar::Plain(text) | Scalar::Text(text)) if !self.is_null() => Some(text),
            _ => self.not("a text", findings),
        }
    }

    /// Its text if it is a scalar at all, without a fault.
    pub fn plain(&self) -> Option<&'d str> {
        match &self.node.value {
            Value::Scalar(Scalar::Plain(text) | Scalar::Text(text)) if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// Its bytes: a text's or those of a `!!binary`.
    pub fn bytes(&self, findings: &mut Findings) -> Option<Vec<u8>> {
        match &self.node.value {
            Value::Scalar(Scalar::Binary(bytes)) => Some(bytes.clone()),
            _ => self.text(findings).map(|text| text.as_bytes().to_vec()),
        }
    }

    /// A boolean.
    pub fn boolean(&self, findings: &mut Findings) -> Option<bool> {
        match &self.node.value {
            Value::Scalar(scalar) if scalar.boolean().is_some() => scalar.boolean(),
            _ => self.not("true or false", findings),
        }
    }

    /// An integer within bounds.
    pub fn integer<T: TryFrom<i64>>(&self, least: i64, most: i64, findings: &mut Findings) -> Option<T> {
        let number = match &self.node.value {
            Value::Scalar(scalar) => scalar.integer(),
            _ => None,
        };
        match number.filter(|number| (least..=most).contains(number)).and_then(|number| T::try_from(number).ok()) {
            Some(number) => Some(number),
            None => self.not(&format!("a number from {least} to {most}"), findings),
        }
    }

    /// Something that is written as a text and can be read in only one way.
    pub fn read<T: std::str::FromStr>(&self, what: &str, example: &str, findings: &mut Findings) -> Option<T> {
        let text = self.text(findings)?;
        match text.trim().parse() {
            Ok(value) => Some(value),
            Err(_) => {
                self.fault(findings, format!("{} is no {what}", quoted(text)), format!("write one such as {example}"));
                None
            }
        }
    }

    /// The values of a list; none for nothing.
    pub fn list(&self, findings: &mut Findings) -> Option<Vec<Field<'d>>> {
        match &self.node.value {
            Value::List(list) => Some(list.iter().map(|node| self.inner(node)).collect()),
            _ if self.is_null() => Some(Vec::new()),
            _ => self.not("a list", findings),
        }
    }

    /// The values of a list, or the one value that stands where a list could.
    pub fn one_or_many(&self) -> Vec<Field<'d>> {
        match &self.node.value {
            Value::List(list) => list.iter().map(|node| self.inner(node)).collect(),
            _ if self.is_null() => Vec::new(),
            _ => vec![self.clone()],
        }
    }

    /// Texts: a list of them, or one text with white space or commas between them, as cloud-init takes it.
    pub fn words(&self, findings: &mut Findings) -> Vec<String> {
        let split = |text: &str| {
            let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty());
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        self.one_or_many().iter().filter_map(|field| field.text(findings)).flat_map(split).collect()
    }

    /// A mapping.
    pub fn table(&self, findings: &mut Findings) -> Option<Table<'d>> {
        let Value::Map(map) = &self.node.value else { return self.not("a table (key: value)", findings) };
        let entries = map
            .iter()
            .map(|(key, node)| {
                let path = if self.path.is_empty() { key.text.clone() } else { format!("{}.{}", self.path, key.text) };
                (key, Field { document: self.document, path, line: key.line, node })
            })
            .collect();
        Some(Table { document: self.document, path: self.path.clone(), line: self.line, entries, known: Vec::new() })
    }

    fn inner(&self, node: &'d Node) -> Field<'d> {
        Field { document: self.document, path: self.path.clone(), line: node.line, node }
    }

    fn not<T>(&self, what: &str, findings: &mut Findings) -> Option<T> {
        let is = match &self.node.value {
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a table".to_owned(),
            Value::Scalar(Scalar::Binary(_)) => "binary".to_owned(),
            Value::Scalar(_) if self.is_null() => "empty".to_owned(),
            Value::Scalar(Scalar::Plain(text) | Scalar::Text(text)) => quoted(text),
        };
        self.fault(findings, format!("is {is}, not {what}"), format!("write {what} here"));
        None
    }

    fn finding(&self, wrong: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding {
            document: self.document.to_owned(),
            line: self.line,
            key: self.path.clone(),
            wrong: wrong.into(),
            mend: mend.into(),
        }
    }
}

impl<'d> Table<'d> {
    /// The tables of several documents as one: of a key that more than one has, the last counts, as with cloud-init's parts.
    pub fn joined(tables: Vec<Table<'d>>) -> Table<'d> {
        let mut joined =
            Table { document: "user-data", path: String::new(), line: 1, entries: Vec::new(), known: Vec::new() };
        for table in tables {
            for (key, field) in table.entries {
                joined.entries.retain(|(held, _)| held.text != key.text);
                joined.entries.push((key, field));
            }
        }
        joined
    }

    /// The value of a key; `None` when it is absent or nothing.
    pub fn get(&mut self, key: &'static str) -> Option<Field<'d>> {
        self.known.push(key);
        let (_, field) = self.entries.iter().find(|(held, _)| held.text == key)?;
        (!field.is_null()).then(|| field.clone())
    }

    /// The value of a key that must be there.
    pub fn require(&mut self, key: &'static str, example: &str, findings: &mut Findings) -> Option<Field<'d>> {
        let field = self.get(key);
        if field.is_none() {
            let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
            findings.fault(Finding {
                document: self.document.to_owned(),
                line: self.line,
                key: path,
                wrong: "is missing".to_owned(),
                mend: format!("add {key}: {example}"),
            });
        }
        field
    }

    /// A key that means nothing here and needs no word: what other programs read.
    pub fn skip(&mut self, key: &'static str) {
        self.known.push(key);
    }

    /// A key that is known and left out, with the reason.
    pub fn refuse(&mut self, key: &'static str, why: &str, findings: &mut Findings) {
        if let Some(field) = self.get(key) {
            field.warn(findings, "is not supported and left out", why);
        }
    }

    /// All entries, whatever their names are.
    pub fn entries(self) -> impl Iterator<Item = (&'d str, Field<'d>)> {
        self.entries.into_iter().map(|(key, field)| (key.text.as_str(), field))
    }

    /// Ends the reading: every key that was never asked for is named in a warning.
    pub fn finish(self, findings: &mut Findings) {
        for (key, field) in &self.entries {
            if !self.known.contains(&key.text.as_str()) {
                field.warn(findings, "is not supported and left out", "");
            }
        }
    }
}
