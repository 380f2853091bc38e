//! Colours and columns for a terminal.

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

    /// All is well.
    pub fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    /// Worth a look.
    pub fn warn(self, text: &str) -> String {
        self.with("33", text)
    }

    /// Needs a hand.
    pub fn bad(self, text: &str) -> String {
        self.with("1;31", text)
    }

    /// Headings.
    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// What the eye may skip.
    pub fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// A word of a table and how it is painted.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    paint: fn(Paint, &str) -> String,
}

impl Cell {
    /// A plain word.
    pub fn new(text: impl Into<String>) -> Cell {
        Cell { text: text.into(), paint: |_, text| text.to_owned() }
    }

    /// A painted word.
    pub fn painted(text: impl Into<String>, paint: fn(Paint, &str) -> String) -> Cell {
        Cell { text: text.into(), paint }
    }
}

/// Rows of cells under a heading, in columns as wide as they must be; what is too long for `width` is cut.
///
/// Each row may have a remark, which stands below it.
#[derive(Debug)]
pub struct Table {
    heading: Vec<&'static str>,
    rows: Vec<(Vec<Cell>, Option<Cell>)>,
}

impl Table {
    /// An empty table.
    pub fn new(heading: &[&'static str]) -> Table {
        Table { heading: heading.to_vec(), rows: Vec::new() }
    }

    /// Adds a row: as many cells as the heading has.
    pub fn row(&mut self, cells: Vec<Cell>, remark: Option<Cell>) {
        self.rows.push((cells, remark));
    }

    /// The table in lines of at most `width` characters.
    pub fn lines(&self, width: usize, paint: Paint) -> Vec<String> {
        let mut widths: Vec<usize> = self.heading.iter().map(|word| count(word)).collect();
        for (cells, _) in &self.rows {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(count(&cell.text));
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
        let heading = self.heading.iter().map(|word| Cell::painted(*word, Paint::dim)).collect::<Vec<_>>();
        let mut lines = vec![line(&heading, &widths, paint)];
        for (cells, remark) in &self.rows {
            lines.push(line(cells, &widths, paint));
            if let Some(remark) = remark {
                let indent = INDENT + widths[0] + GAP;
                for part in wrap(&remark.text, width.saturating_sub(indent).max(NARROWEST)) {
                    lines.push(format!("{:indent$}{}", "", (remark.paint)(paint, &part)));
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

fn line(cells: &[Cell], widths: &[usize], paint: Paint) -> String {
    let mut line = " ".repeat(INDENT);
    let mut padding = 0;
    for (cell, width) in cells.iter().zip(widths) {
        let text = cut(&cell.text, *width);
        if !text.is_empty() {
            line.push_str(&" ".repeat(padding));
            line.push_str(&(cell.paint)(paint, &text));
            padding = 0;
        }
        padding += width - count(&text) + GAP;
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
        table.row(vec![Cell::new("a"), Cell::new("x".repeat(100))], Some(Cell::new("a remark ".repeat(20))));
        let lines = table.lines(40, Paint::OFF);
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
        table.row(vec![Cell::painted("x", Paint::good), Cell::new("y")], None);
        assert_eq!(table.lines(80, Paint::ON)[1], "  \u{1b}[32mx\u{1b}[0m  y");
    }
}
