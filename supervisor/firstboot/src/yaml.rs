//! YAML as a bounded tree in which every value knows its line.
//!
//! cloud-init reads YAML 1.1 by PyYAML, in which `yes` is a boolean and `0644` an octal number. Scalars therefore stay text here
//! until somebody asks for a boolean or a number; a MAC address or a version number keeps its spelling.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};

use crate::encoding;
use crate::finding::{Finding, quoted};

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Line, from 1; of a block (`|`) the first of its text.
    pub line: u32,
    /// The value itself.
    pub value: Value,
}

/// What a value may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// One piece of text.
    Scalar(Scalar),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the document; no key twice.
    Map(Vec<(Key, Node)>),
}

/// The key of a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Line, from 1.
    pub line: u32,
    /// Its text.
    pub text: String,
}

/// Text that is perhaps a number, a boolean or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// Without quotes: what it means depends on who asks.
    Plain(String),
    /// In quotes or as a block, or tagged `!!str`: text and nothing else.
    Text(String),
    /// Tagged `!!binary`, decoded.
    Binary(Vec<u8>),
}

impl Scalar {
    /// Whether it is nothing: empty, `~` or `null` without quotes.
    pub fn is_null(&self) -> bool {
        matches!(self, Scalar::Plain(text) if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// A boolean of YAML 1.1, or its word in quotes, which cloud-init takes as well (`util.is_true`).
    pub fn boolean(&self) -> Option<bool> {
        let (Scalar::Plain(text) | Scalar::Text(text)) = self else { return None };
        match text.to_ascii_lowercase().as_str() {
            "yes" | "true" | "on" | "1" => Some(true),
            "no" | "false" | "off" | "0" => Some(false),
            _ => None,
        }
    }

    /// An integer of YAML 1.1 (decimal, `0x…`, `0b…`, octal `0…`), or a decimal one in quotes.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Scalar::Plain(text) => plain_integer(text),
            Scalar::Text(text) => text.trim().parse().ok(),
            Scalar::Binary(_) => None,
        }
    }
}

/// Reads one document. `name` is only for the error.
///
/// # Errors
/// The first thing that is wrong: syntax, a second document, a key that is given twice, or a bound that is passed
/// ([`MAX_DEPTH`], [`MAX_NODES`]).
pub fn parse(text: &str, name: &str) -> Result<Node, Box<Finding>> {
    let mut builder = Builder { name, open: Vec::new(), anchors: BTreeMap::new(), nodes: 0, root: None };
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| {
            let wrong = format!("is no YAML: {}", error.info());
            let mend = "look at the indentation, quotes and brackets of this line and the one before it".to_owned();
            builder.fault(error.marker().line() as u32, "", wrong, mend)
        })?;
        let line = span.start.line() as u32;
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let scalar = builder.scalar(line, text.into_owned(), style, tag.as_deref())?;
                builder.value(Node { line, value: Value::Scalar(scalar) }, anchor)?;
            }
            Event::SequenceStart(anchor, tag) => {
                builder.begin(line, Value::List(Vec::new()), anchor, tag.as_deref())?
            }
            Event::MappingStart(anchor, tag) => builder.begin(line, Value::Map(Vec::new()), anchor, tag.as_deref())?,
            Event::SequenceEnd | Event::MappingEnd => builder.end()?,
            Event::Alias(anchor) => builder.alias(line, anchor)?,
            Event::DocumentStart(_) if builder.root.is_some() => {
                let wrong = "a second document begins here".to_owned();
                return Err(builder.fault(line, "", wrong, "leave out this \"---\" and what follows it".to_owned()));
            }
            _ => {}
        }
    }
    Ok(builder.root.unwrap_or(Node { line: 1, value: Value::Scalar(Scalar::Plain(String::new())) }))
}

/// The most levels that a document may nest.
pub const MAX_DEPTH: usize = 24;
/// The most values of a document, those that aliases repeat included.
pub const MAX_NODES: usize = 20_000;

/// A collection that has begun and not ended.
struct Open {
    node: Node,
    key: Option<Key>,
    anchor: usize,
}

struct Builder<'n> {
    name: &'n str,
    open: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
    root: Option<Node>,
}

impl Builder<'_> {
    fn fault(&self, line: u32, key: &str, wrong: String, mend: String) -> Box<Finding> {
        Box::new(Finding { document: self.name.to_owned(), line, key: key.to_owned(), wrong, mend })
    }

    fn scalar(&self, line: u32, text: String, style: ScalarStyle, tag: Option<&Tag>) -> Result<Scalar, Box<Finding>> {
        match tag.map(|tag| (tag.is_yaml_core_schema(), tag.suffix.as_str())) {
            None if style == ScalarStyle::Plain => Ok(Scalar::Plain(text)),
            None | Some((true, "str")) => Ok(Scalar::Text(text)),
            Some((true, "int" | "bool" | "null" | "float")) => Ok(Scalar::Plain(text)),
            Some((true, "binary")) => match encoding::base64(text.as_bytes()) {
                Some(bytes) => Ok(Scalar::Binary(bytes)),
                None => {
                    let mend = "encode the content anew, for example with base64(1)".to_owned();
                    Err(self.fault(line, "", "the !!binary value is no base64".to_owned(), mend))
                }
            },
            Some(_) => Err(self.tag_fault(line)),
        }
    }

    fn begin(&mut self, line: u32, value: Value, anchor: usize, tag: Option<&Tag>) -> Result<(), Box<Finding>> {
        if tag.is_some_and(|tag| !tag.is_yaml_core_schema()) {
            return Err(self.tag_fault(line));
        }
        if self.open.len() >= MAX_DEPTH {
            let wrong = format!("nests more than {MAX_DEPTH} levels");
            return Err(self.fault(line, "", wrong, "is this the right document?".to_owned()));
        }
        self.open.push(Open { node: Node { line, value }, key: None, anchor });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Box<Finding>> {
        let Some(Open { mut node, anchor, .. }) = self.open.pop() else { return Ok(()) };
        merge(&mut node);
        self.value(node, anchor)
    }

    /// An alias stands for a copy of what it names, whose values all count: a bomb of aliases ends at the bound.
    fn alias(&mut self, line: u32, anchor: usize) -> Result<(), Box<Finding>> {
        let Some(node) = self.anchors.get(&anchor) else {
            let mend = "write the value itself".to_owned();
            return Err(self.fault(line, "", "an alias names what it is itself a part of".to_owned(), mend));
        };
        self.nodes += size(node);
        self.bounded(line)?;
        let node = node.clone();
        self.value(node, 0)
    }

    /// A whole value: it goes into the collection around it, or is the document.
    fn value(&mut self, node: Node, anchor: usize) -> Result<(), Box<Finding>> {
        self.nodes += 1;
        self.bounded(node.line)?;
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
            self.nodes += size(&node);
            self.bounded(node.line)?;
        }
        let Some(Open { node: around, key, .. }) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut around.value {
            Value::List(list) => list.push(node),
            Value::Map(map) => match key.take() {
                Some(key) => map.push((key, node)),
                None => {
                    let line = node.line;
                    let Value::Scalar(Scalar::Plain(text) | Scalar::Text(text)) = node.value else {
                        let mend = "write plain text before the colon".to_owned();
                        return Err(self.fault(line, "", "a key is a list or a table".to_owned(), mend));
                    };
                    if map.iter().any(|(key, _)| key.text == text) {
                        let wrong = format!("{} is given a second time", quoted(&text));
                        return Err(self.fault(line, &text, wrong, "leave one of the two out".to_owned()));
                    }
                    *key = Some(Key { line, text });
                }
            },
            Value::Scalar(_) => {}
        }
        Ok(())
    }

    fn bounded(&self, line: u32) -> Result<(), Box<Finding>> {
        if self.nodes <= MAX_NODES {
            return Ok(());
        }
        let wrong = format!("there are more than {MAX_NODES} values, counting what aliases repeat");
        Err(self.fault(line, "", wrong, "is this the right document?".to_owned()))
    }

    fn tag_fault(&self, line: u32) -> Box<Finding> {
        let wrong = "a tag (!…) is used that is not known here".to_owned();
        self.fault(line, "", wrong, "leave the tag out; known are !!str, !!int, !!bool, !!null and !!binary".to_owned())
    }
}

/// YAML 1.1's merge key: `<<: *base` puts in what the table does not say itself.
fn merge(node: &mut Node) {
    let Value::Map(map) = &mut node.value else { return };
    let Some(place) = map.iter().position(|(key, node)| key.text == "<<" && !matches!(node.value, Value::Scalar(_)))
    else {
        return;
    };
    let bases = match map.remove(place).1.value {
        Value::List(bases) => bases,
        base => vec![Node { line: node.line, value: base }],
    };
    for base in bases {
        let Value::Map(entries) = base.value else { continue };
        for (key, value) in entries {
            if !map.iter().any(|(own, _)| own.text == key.text) {
                map.push((key, value));
            }
        }
    }
}

/// How many values a value holds, itself included. The depth is bounded, so the recursion is.
fn size(node: &Node) -> usize {
    match &node.value {
        Value::Scalar(_) => 1,
        Value::List(list) => 1 + list.iter().map(size).sum::<usize>(),
        Value::Map(map) => 1 + map.iter().map(|(_, node)| size(node)).sum::<usize>(),
    }
}

fn plain_integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let digits = digits.replace('_', "");
    let magnitude = if let Some(hex) = digits.strip_prefix("0x") {
        i64::from_str_radix(hex, 16)
    } else if let Some(binary) = digits.strip_prefix("0b") {
        i64::from_str_radix(binary, 2)
    } else if let Some(octal) = digits.strip_prefix("0o").or(digits.strip_prefix('0')).filter(|octal| !octal.is_empty())
    {
        i64::from_str_radix(octal, 8)
    } else {
        digits.parse()
    };
    magnitude.ok().filter(|magnitude| *magnitude >= 0).map(|magnitude| sign * magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> Finding {
        *parse(text, "t").unwrap_err()
    }

    fn get<'n>(node: &'n Node, name: &str) -> &'n Node {
        let Value::Map(map) = &node.value else { panic!("{node:?}") };
        &map.iter().find(|(key, _)| key.text == name).unwrap().1
    }

    fn scalar(text: &str) -> Scalar {
        match parse(text, "t").unwrap().value {
            Value::Scalar(scalar) => scalar,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_value_knows_its_line() {
        let node = parse("a: 1\nb:\n  - x\n  - y: |\n      text\n", "t").unwrap();
        let Value::List(list) = &get(&node, "b").value else { panic!() };
        assert_eq!((list[0].line, get(&list[1], "y").line), (3, 5));
        assert_eq!(get(&list[1], "y").value, Value::Scalar(Scalar::Text("text\n".into())));
    }

    #[test]
    fn scalars_mean_what_pyyaml_and_cloud_init_read() {
        for (text, boolean) in [("yes", true), ("'on'", true), ("No", false), ("\"false\"", false)] {
            assert_eq!(scalar(text).boolean(), Some(boolean), "{text}");
        }
        for (text, integer) in [("0644", 0o644), ("0x1f", 31), ("1_000", 1000), ("-5", -5), ("'42'", 42), ("0", 0)] {
            assert_eq!(scalar(text).integer(), Some(integer), "{text}");
        }
        for text in ["1.5", "52:54:00:12:34:56", "+", "9".repeat(30).as_str(), "0o9"] {
            assert_eq!(scalar(text).integer(), None, "{text}");
        }
        assert!(scalar("~").is_null() && scalar("").is_null() && !scalar("''").is_null());
        assert_eq!(scalar("!!binary aGkK"), Scalar::Binary(b"hi\n".to_vec()));
    }

    #[test]
    fn merge_keys_and_aliases_are_followed() {
        let node = parse("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\n", "t").unwrap();
        let merged = get(&node, "use");
        assert_eq!(get(merged, "y").value, Value::Scalar(Scalar::Plain("3".into())));
        assert_eq!(get(merged, "x").value, Value::Scalar(Scalar::Plain("1".into())));
    }

    #[test]
    fn a_bomb_of_aliases_ends_at_the_bound() {
        let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..9 {
            let previous = vec![format!("*a{}", level - 1); 10].join(",");
            text += &format!("a{level}: &a{level} [{previous}]\n");
        }
        assert!(wrong(&text).wrong.contains("more than 20000 values"));
    }

    #[test]
    fn deep_nesting_and_odd_documents_are_refused_with_their_line() {
        assert!(wrong(&"[".repeat(100)).wrong.contains("24 levels"));
        assert!(wrong(&"- ".repeat(100_000)).wrong.contains("24 levels"));
        let twice = wrong("a: 1\nb: 2\na: 3\n");
        assert_eq!((twice.line, twice.key.as_str()), (3, "a"));
        assert_eq!(wrong("a: 1\n---\nb: 2\n").line, 2);
        assert_eq!(wrong("a: 1\n b: 2\n").line, 2);
        assert!(wrong("a: !python/object x\n").wrong.contains("tag"));
        assert!(wrong("a: &a [*a]\n").wrong.contains("alias"));
    }
}
