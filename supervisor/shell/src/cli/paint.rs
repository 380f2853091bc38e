//! Words with a tone, in columns; and colours for a terminal that has them.
//!
//! A view is made once, as [`Line`]s. `trilith status` paints them with escape sequences ([`Paint`]), the console with its own
//! styles.

/// What a word is to the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Neither good nor bad.
    Plain,
    /// All is well.
    Good,
    /// Worth a look.
    Warn,
    /// Needs a hand.
    Bad,
    /// Headings and names.
    Bold,
    /// What the eye may skip.
    Dim,
}

/// A word, or a few, with one tone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The text, on one line.
    pub text: String,
    /// Its tone.
    pub tone: Tone,
}

/// Words that stand side by side; spaces are words, too.
pub type Line = Vec<Word>;

impl Word {
    /// A plain word.
    pub fn new(text: impl Into<String>) -> Word {
        Word::toned(Tone::Plain, text)
    }

    /// A word with a tone.
    pub fn toned(tone: Tone, text: impl Into<String>) -> Word {
        Word { text: text.into(), tone }
    }
}

/// Paints words, or leaves them as they are.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// For stdout: colours only on a terminal, and not when `NO_COLOR` is set (no-color.org) or the terminal is dumb.
    pub fn for_stdout() -> Paint {
        use std::io::IsTerminal;
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Paint { on: std::io::stdout().is_terminal() && !refused && !dumb }
    }

    /// Never paints.
    #[cfg(test)]
    pub const OFF: Paint = Paint { on: false };
    /// Always paints.
    #[cfg(test)]
    pub const ON: Paint = Paint { on: true };

    /// A line as a terminal takes it.
    pub fn line(self, line: &[Word]) -> String {
        line.iter().map(|word| self.with(word.tone, &word.text)).collect()
    }

    /// All is well.
    pub fn good(self, text: &str) -> String {
        self.with(Tone::Good, text)
    }

    /// Worth a look.
    pub fn warn(self, text: &str) -> String {
        self.with(Tone::Warn, text)
    }

    /// Needs a hand.
    pub fn bad(self, text: &str) -> String {
        self.with(Tone::Bad, text)
    }

    /// Headings.
    pub fn bold(self, text: &str) -> String {
        self.with(Tone::Bold, text)
    }

    /// What the eye may skip.
    pub fn dim(self, text: &str) -> String {
        self.with(Tone::Dim, text)
    }

    fn with(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "1;31",
            Tone::Bold => "1",
            Tone::Dim => "2",
        };
        if self.on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Rows of words under a heading, in columns as wide as they must be; what is too long for `width` is cut.
///
/// Each row may have a remark, which stands below it.
#[derive(Debug)]
pub struct Table {
    heading: Vec<&'static str>,
    rows: Vec<(Vec<Word>, Option<Word>)>,
}

impl Table {
    /// An empty table.
    pub fn new(heading: &[&'static str]) -> Table {
        Table { heading: heading.to_vec(), rows: Vec::new() }
    }

    /// Adds a row: as many words as the heading has.
    pub fn row(&mut self, words: Vec<Word>, remark: Option<Word>) {
        self.rows.push((words, remark));
    }

    /// The table in lines of at most `width` characters.
    pub fn lines(&self, width: usize) -> Vec<Line> {
        let mut widths: Vec<usize> = self.heading.iter().map(|word| count(word)).collect();
        for (words, _) in &self.rows {
            for (width, word) in widths.iter_mut().zip(words) {
                *width = (*width).max(count(&word.text));
            }
        }
        // The widest column gives way first.
        while widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1) + INDENT > width {
            let Some(widest) = widths.iter_mut().max() else { break };
            if *widest <= NARROWEST {
                break;
            }
            *widest -= 1;
        }
        let heading = self.heading.iter().map(|word| Word::toned(Tone::Dim, *word)).collect::<Vec<_>>();
        let mut lines = vec![row(&heading, &widths)];
        for (words, remark) in &self.rows {
            lines.push(row(words, &widths));
            if let Some(remark) = remark {
                let indent = INDENT + widths[0] + GAP;
                for part in wrap(&remark.text, width.saturating_sub(indent).max(NARROWEST)) {
                    lines.push(vec![Word::new(" ".repeat(indent)), Word::toned(remark.tone, part)]);
                }
            }
        }
        lines
    }
}

/// Columns of the terminal, within what reads well; 80 when there is no terminal.
pub fn width() -> usize {
    terminal_size::terminal_size().map_or(80, |(columns, _)| usize::from(columns.0)).clamp(60, 120)
}

/// Text in lines of at most `width` characters, broken between words where there are any.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let mut word = word;
        if !line.is_empty() && count(&line) + 1 + count(word) > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        while count(word) > width {
            let at = word.char_indices().nth(width).map_or(word.len(), |(at, _)| at);
            lines.push(word[..at].to_owned());
            word = &word[at..];
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// Text of at most `width` characters.
pub fn cut(text: &str, width: usize) -> String {
    if count(text) <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// Characters, each taken as one column wide.
pub fn count(text: &str) -> usize {
    text.chars().count()
}

fn row(words: &[Word], widths: &[usize]) -> Line {
    let mut line = Vec::new();
    let mut padding = INDENT;
    for (word, width) in words.iter().zip(widths) {
        let text = cut(&word.text, *width);
        let filled = count(&text);
        if filled > 0 {
            line.push(Word::new(" ".repeat(padding)));
            line.push(Word { text, tone: word.tone });
            padding = 0;
        }
        padding += width - filled + GAP;
    }
    line
}

const INDENT: usize = 2;
const GAP: usize = 2;
const NARROWEST: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_keeps_to_its_width_and_the_widest_column_gives_way() {
        let mut table = Table::new(&["NAME", "WHAT"]);
        table.row(vec![Word::new("a"), Word::new("x".repeat(100))], Some(Word::new("a remark ".repeat(20))));
        let lines: Vec<String> = table.lines(40).iter().map(|line| Paint::OFF.line(line)).collect();
        assert!(lines.iter().all(|line| count(line) <= 40), "{lines:#?}");
        assert_eq!(lines[0], "  NAME  WHAT");
        assert!(lines[1].starts_with("  a     xxx") && lines[1].ends_with('…'));
        assert!(lines[2].starts_with("        a remark"));
    }

    #[test]
    fn words_are_wrapped_and_too_long_ones_broken() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij kl", 4), ["abcd", "efgh", "ij", "kl"]);
        assert!(wrap("  ", 4).is_empty());
    }

    #[test]
    fn colours_are_put_around_words_and_not_around_padding() {
        let mut table = Table::new(&["A", "B"]);
        table.row(vec![Word::toned(Tone::Good, "x"), Word::new("y")], None);
        assert_eq!(Paint::ON.line(&table.lines(80)[1]), "  \u{1b}[32mx\u{1b}[0m  y");
    }
}
