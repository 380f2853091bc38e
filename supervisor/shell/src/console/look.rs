//! What the terminal can show. Everything is drawn with colours and Unicode; what it lacks is taken out afterwards, here.

use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier};

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Colours.
    pub colour: bool,
    /// More than ASCII.
    pub unicode: bool,
}

impl Look {
    /// From the environment: `TERM`, `NO_COLOR` (no-color.org) and the locale (locale(7)).
    pub fn from_env() -> Look {
        Look::of(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Look {
        let term = variable("TERM").unwrap_or_else(|| "dumb".to_owned());
        // What systemd gives a serial port is vt220: its real terminal may be anything.
        let plain = term == "dumb" || term == "unknown" || term.starts_with("vt1") || term.starts_with("vt2");
        let locale = variable("LC_ALL").or_else(|| variable("LC_CTYPE")).or_else(|| variable("LANG"));
        let utf8 = locale.is_some_and(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.ends_with("utf-8") || locale.ends_with("utf8")
        });
        // The kernel's own font has a few hundred glyphs.
        Look { colour: !plain && variable("NO_COLOR").is_none(), unicode: utf8 && !plain && term != "linux" }
    }

    /// Takes out of a drawn screen what the terminal cannot show.
    pub fn fold(self, buffer: &mut Buffer) {
        for cell in &mut buffer.content {
            if !self.colour {
                cell.fg = Color::Reset;
                cell.bg = Color::Reset;
                cell.modifier.remove(Modifier::DIM);
            }
            if !self.unicode && !cell.symbol().is_ascii() {
                cell.set_symbol(ascii(cell.symbol()));
            }
        }
    }
}

/// The nearest that ASCII has.
fn ascii(symbol: &str) -> &'static str {
    match symbol {
        "─" | "—" | "–" | "‐" => "-",
        "│" => "|",
        "…" => "~",
        "·" | "•" | "●" => "*",
        "▸" | "›" | "→" => ">",
        "↑" => "^",
        "↓" => "v",
        "“" | "”" | "„" => "\"",
        "‘" | "’" => "'",
        "\u{a0}" => " ",
        _ => "?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(variables: &[(&str, &str)]) -> (bool, bool) {
        let found =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let Look { colour, unicode } = Look::of(found);
        (colour, unicode)
    }

    #[test]
    fn a_terminal_gets_what_it_says_it_can_show() {
        assert_eq!(look(&[("TERM", "xterm-256color"), ("LANG", "de_DE.UTF-8")]), (true, true));
        assert_eq!(look(&[("TERM", "xterm"), ("LANG", "C.utf8")]), (true, true));
        assert_eq!(look(&[("TERM", "xterm"), ("LANG", "en_GB.UTF-8"), ("LC_ALL", "C")]), (true, false));
        assert_eq!(look(&[("TERM", "xterm"), ("LANG", "C.UTF-8"), ("NO_COLOR", "1")]), (false, true));
        assert_eq!(look(&[("TERM", "linux"), ("LANG", "C.UTF-8")]), (true, false));
        for term in ["vt100", "vt220", "dumb"] {
            assert_eq!(look(&[("TERM", term), ("LANG", "C.UTF-8")]), (false, false), "{term}");
        }
        assert_eq!(look(&[]), (false, false));
    }

    #[test]
    fn every_symbol_has_a_stand_in_of_one_column() {
        for symbol in ["─", "…", "●", "▸", "é", "中", "\u{301}"] {
            assert_eq!(ascii(symbol).len(), 1);
        }
    }
}
