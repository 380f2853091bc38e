//! `/usr/bin/trilith-shell`, the login shell of operators: the same program under another name.
//!
//! sshd starts it without arguments for a session, and with `-c LINE` for a command. The line is split into words here; no shell
//! sees it, so nothing in it can start another program.

use std::ffi::OsStr;
use std::path::Path;

/// Whether the program was started under the name of the login shell. (login(1) and sshd(8) put a `-` before it.)
pub fn is_meant(name: &OsStr) -> bool {
    let name = Path::new(name).file_name().unwrap_or(name).to_string_lossy();
    name.trim_start_matches('-') == NAME
}

/// The words of a line that begins with `trilith`.
///
/// # Errors
/// One line that says why nothing is run.
pub fn read(line: &str) -> Result<Vec<String>, String> {
    let words = split(line)?;
    let program = words.first().map(String::as_str).unwrap_or_default();
    let program = Path::new(program).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match program.as_str() {
        "trilith" => Ok(words),
        "sftp-server" | "internal-sftp" | "sftp" | "scp" | "rsync" => {
            Err("files are not copied to or from a node: see trilith support-bundle --help for what can be fetched"
                .to_owned())
        }
        _ => {
            Err("this account runs trilith commands and nothing else: try trilith status, or trilith --help".to_owned())
        }
    }
}

/// Splits a line as a shell would (POSIX, 2.2 Quoting), but refuses all that a shell would do more than that.
fn split(line: &str) -> Result<Vec<String>, String> {
    if line.len() > LONGEST {
        return Err(format!("the command is longer than {LONGEST} bytes"));
    }
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err("a quotation mark ' is not closed".to_owned()),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                            Some(c) => word.extend(['\\', c]),
                            None => return Err("a quotation mark \" is not closed".to_owned()),
                        },
                        Some(c @ ('$' | '`')) => return Err(no_shell(c)),
                        Some(c) => word.push(c),
                        None => return Err("a quotation mark \" is not closed".to_owned()),
                    }
                }
            }
            '\\' => match chars.next() {
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err("the command ends with a lone \\".to_owned()),
            },
            ' ' | '\t' => words.extend(word.take()),
            '|' | '&' | ';' | '<' | '>' | '(' | ')' | '$' | '`' | '*' | '?' | '[' | '#' | '~' | '\n' | '\r' => {
                return Err(no_shell(c));
            }
            c if c.is_control() => return Err(no_shell(c)),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn no_shell(c: char) -> String {
    format!(
        "there is no shell here that would know what {c:?} means: give one trilith command, with words that hold it in quotes"
    )
}

const NAME: &str = "trilith-shell";
/// The longest line, in bytes.
const LONGEST: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides_with_or_without_folder_and_dash() {
        for name in ["trilith-shell", "-trilith-shell", "/usr/bin/trilith-shell"] {
            assert!(is_meant(name.as_ref()), "{name}");
        }
        for name in ["trilith", "/usr/bin/trilith", "trilith-shellx", ""] {
            assert!(!is_meant(name.as_ref()), "{name}");
        }
    }

    #[test]
    fn words_are_split_as_a_shell_splits_them() {
        for line in [
            "trilith status",
            "  trilith \t status  --json ",
            "trilith vip move 'public one' \"b c\"",
            r"trilith a\ b \'c\' \\",
            r#"trilith "a \"b\" \\ \$ \n" ''"#,
            "trilith 'a'\"b\"c",
            "trilith 'a|b;c' \"d&e>f*\"",
            "trilith",
        ] {
            let script = format!("printf '%s\\n' {line}");
            let said = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            let shells: Vec<String> = String::from_utf8(said.stdout).unwrap().lines().map(str::to_owned).collect();
            assert_eq!(read(line).unwrap(), shells, "{line}");
        }
    }

    #[test]
    fn whatever_only_a_shell_could_do_is_refused() {
        for line in [
            "trilith status; reboot",
            "trilith status|sh",
            "trilith status && sh",
            "trilith $(sh)",
            "trilith \"$(sh)\"",
            "trilith `sh`",
            "trilith \"`sh`\"",
            "trilith status > /etc/shadow",
            "trilith status\nsh",
            "trilith $HOME",
            "trilith *",
            "trilith 'open",
            "trilith \"open",
            "trilith \\",
            "trilith \u{1b}[2J",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
        assert!(read(&format!("trilith {}", "x".repeat(5000))).is_err());
    }

    #[test]
    fn other_programs_are_refused_with_a_word() {
        assert!(read("/usr/lib/openssh/sftp-server").unwrap_err().starts_with("files are not copied"));
        assert!(read("scp -t /tmp").unwrap_err().contains("trilith support-bundle"));
        for line in ["sh", "bash -i", "", "supervise", "/bin/sh -c 'trilith status'"] {
            assert!(read(line).unwrap_err().contains("trilith commands and nothing else"), "{line}");
        }
    }
}
