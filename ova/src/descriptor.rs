//! The OVF descriptor: the template with its gaps filled, and the properties that it asks for.

use anyhow::{Context, Result, ensure};
use roxmltree::Document;

/// The template.
pub const TEMPLATE: &str = include_str!("../trilith.ovf");

/// Fills the gaps: `{{name}}` for each name given.
///
/// # Errors
/// A gap that is left, or a name that has none: template and packager have drifted apart.
pub fn filled(values: &[(&str, &str)]) -> Result<String> {
    let mut text = TEMPLATE.to_owned();
    for (name, value) in values {
        let gap = format!("{{{{{name}}}}}");
        ensure!(text.contains(&gap), "the template has no gap {gap}");
        text = text.replace(&gap, &escaped(value));
    }
    ensure!(!text.contains("{{"), "the template has a gap that nothing fills");
    Ok(text)
}

/// A property that a descriptor asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// As the environment has it: with the class of its product before it.
    pub key: String,
    /// What it is when nobody says anything.
    pub default: String,
    /// Least and most characters.
    pub length: (usize, usize),
    /// Whether it is hidden while it is typed.
    pub password: bool,
}

/// The properties of a descriptor, in its order.
///
/// # Errors
/// It is no XML.
pub fn properties(descriptor: &str) -> Result<Vec<Property>> {
    let xml = Document::parse(descriptor).context("the OVF descriptor")?;
    let products = xml.descendants().filter(|node| node.has_tag_name((NAMESPACE, "ProductSection")));
    let mut found = Vec::new();
    for product in products {
        let class = product.attribute((NAMESPACE, "class")).map(|class| format!("{class}.")).unwrap_or_default();
        for property in product.children().filter(|node| node.has_tag_name((NAMESPACE, "Property"))) {
            let get = |name| property.attribute((NAMESPACE, name)).unwrap_or_default();
            let limit = |name| limit(get("qualifiers"), name);
            found.push(Property {
                key: format!("{class}{}", get("key")),
                default: get("value").to_owned(),
                length: (limit("MinLen").unwrap_or(0), limit("MaxLen").unwrap_or(usize::MAX)),
                password: get("password") == "true",
            });
        }
    }
    Ok(found)
}

/// A number of the qualifiers, as in `MinLen(1), MaxLen(63)`.
fn limit(qualifiers: &str, name: &str) -> Option<usize> {
    let (_, rest) = qualifiers.split_once(name)?;
    rest.strip_prefix('(')?.split(')').next()?.parse().ok()
}

/// Text as an attribute's value holds it. Newlines and tabs are written so that no reader makes blanks of them.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\r' | '\t' => escaped.push_str(&format!("&#{};", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped
}

const NAMESPACE: &str = "http://schemas.dmtf.org/ovf/envelope/1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_asks_for_exactly_what_the_first_boot_reads() {
        let asked: Vec<String> = properties(TEMPLATE).unwrap().into_iter().map(|property| property.key).collect();
        let mut asked: Vec<&str> = asked.iter().map(|key| key.strip_prefix("trilith.").unwrap()).collect();
        let mut read = trilith_firstboot::sources::ovf::KNOWN.to_vec();
        asked.sort_unstable();
        read.sort_unstable();
        assert_eq!(asked, read);
    }

    #[test]
    fn every_gap_has_to_be_filled_and_every_value_has_a_gap() {
        assert!(filled(&[("version", "1.0.0")]).unwrap_err().to_string().contains("nothing fills"));
        assert!(filled(&[("colour", "blue")]).is_err());
    }

    #[test]
    fn text_survives_an_attribute_whatever_is_in_it() {
        for text in
            ["a & b", "\"quoted\" 'too'", "two\nlines\tand a tab\r", "<tag>", "Büro 東京 🪨", &"x".repeat(65_536)]
        {
            let xml = format!("<a b=\"{}\"/>", escaped(text));
            assert_eq!(Document::parse(&xml).unwrap().root_element().attribute("b"), Some(text));
        }
    }
}
