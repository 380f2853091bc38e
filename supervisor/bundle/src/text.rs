//! What others wrote, as it may be shown: one line, no control characters, bounded.

/// A text of a bundle, made fit for a terminal and a log: control characters and what turns text around are escaped, the rest
/// after `most` characters is cut.
pub fn plain(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == most {
            shown.push('…');
            break;
        }
        match character {
            '\n' => shown.push_str("\\n"),
            character if harmless(character) => shown.push(character),
            character => shown.extend(character.escape_unicode()),
        }
    }
    shown
}

/// The same for a text of several lines, which stay lines.
pub fn plain_lines(text: &str, most: usize) -> String {
    let cut: String = text.chars().take(most).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    cut.lines().map(|line| plain(line, most)).collect::<Vec<_>>().join("\n") + more
}

/// Not a control character, and none that changes the direction of writing or cannot be seen (Unicode, UAX 9).
fn harmless(character: char) -> bool {
    let hidden =
        matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !character.is_control() && !hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_a_terminal_but_text() {
        assert_eq!(plain("a\x1b[2Jb\nc\u{202e}d", 80), "a\\u{1b}[2Jb\\nc\\u{202e}d");
        assert_eq!(plain("grüße", 3), "grü…");
        assert_eq!(plain_lines("a\r\n\tb\nc", 80), "a\n\\u{9}b\nc");
        assert_eq!(plain_lines("abc", 2), "ab…");
    }
}
