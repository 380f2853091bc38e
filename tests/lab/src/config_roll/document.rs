//! The documents that are applied, good and bad.

/// One change of the configuration.
pub struct Change {
    /// In words.
    pub what: &'static str,
    /// The whole document.
    pub text: String,
    /// How long it waits to be confirmed, in seconds.
    pub confirm_within_s: Option<u32>,
    /// What must become of it.
    pub fate: Fate,
}

/// What must become of a document.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    /// All nodes have it in the end. It is confirmed where that was asked for.
    Kept,
    /// It is taken back for a reason with these words in it.
    Reverted(&'static str),
    /// The supervisor does not survive it; it is taken back.
    Crashes,
}

impl Change {
    /// The change of that number, made from the document in force.
    pub fn of(number: usize, good: &str) -> Change {
        let change = |what, text, confirm_within_s, fate| Change { what, text, confirm_within_s, fate };
        let silent = Fate::Reverted("does not answer on this node");
        match number % 10 {
            1 => change("a document that is confirmed", with_deadline(good, number), Some(300), Fate::Kept),
            3 => {
                let back = Fate::Reverted("not confirmed within 2 s");
                change("a document that nobody confirms", with_deadline(good, number), Some(2), back)
            }
            5 if number % 20 == 5 => {
                let text = good.replacen("backend_port = 8080", "backend_port = 8099", 1);
                change("a port that nobody listens at", text, None, silent)
            }
            5 => {
                let text = good.replacen("GET /healthz", "GET /nothing", 1);
                change("a health check that fails", text, None, silent)
            }
            8 => change("a supervisor that does not survive it", with_deadline(good, number), Some(300), Fate::Crashes),
            2 | 6 => change("one service more, or it goes", with_or_without_service(good), None, Fate::Kept),
            _ => change("another deadline", with_deadline(good, number), None, Fate::Kept),
        }
    }
}

/// Another deadline for every service: a change that HAProxy need not load.
fn with_deadline(good: &str, number: usize) -> String {
    let line = format!("drain_deadline = \"{}s\"", 600 + number);
    let kept = good.lines().filter(|line| !line.starts_with("drain_deadline"));
    kept.flat_map(|old| {
        let begins = old == "[[service]]";
        [Some(old.to_owned()), begins.then(|| line.clone())].into_iter().flatten()
    })
    .fold(String::new(), |text, line| text + &line + "\n")
}

fn with_or_without_service(good: &str) -> String {
    match good.split_once(COMMENT) {
        Some((before, _)) => before.to_owned(),
        None => format!("{good}{COMMENT}{MORE}"),
    }
}

/// The service that comes and goes begins with this line, and is the last of the document.
const COMMENT: &str = "\n# The same again, at another port.\n";
const MORE: &str = "[[service]]
name = \"web-too\"
vip = \"public\"
port = 8000
mode = \"http\"
backend_port = 8080
health = \"GET /healthz\"
unit = \"lab-service.service\"
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::DOCUMENT;

    #[test]
    fn every_change_changes_something_and_a_service_comes_and_goes() {
        let mut good = DOCUMENT.to_owned();
        for number in 0..100 {
            let change = Change::of(number, &good);
            assert_ne!(change.text, good, "{number}: {}", change.what);
            trilith_core::config::parse(&change.text, change.what).expect("a document that every node takes");
            if change.fate == Fate::Kept {
                good = change.text;
            }
        }
        let once = with_or_without_service(DOCUMENT);
        assert_eq!(with_or_without_service(&once), DOCUMENT);
    }
}
