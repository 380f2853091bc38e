//! Whether the coordinator lasts. systemd starts one that cannot begin, or that crashes, again each second; an admin must hear of it.
//!
//! A file is there from a start until the process has lasted for [`LASTS`] or ends as it should, with the words of an error that ends
//! it. So what the next start finds is how the one before ended, whatever ended it. To watch the unit from the supervisor would
//! not do: one that crashes soon after each start is active again and again. Price: an accident in the first minute is told for
//! another minute. The file is in `/run`, so a power cut is none.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::warn;

use super::publish;

/// A process that has run for so long is no matter of its start any more.
const LASTS: Duration = Duration::from_secs(60);
/// What is known of an end that left no words.
const CRASHED: &str = "it crashed or was killed, and the node's logs say why (trilith support-bundle)";

/// The life of one process.
pub struct Life {
    path: PathBuf,
    notices: PathBuf,
    began: Instant,
    /// How the process before this one ended, if that was an accident.
    before: Option<String>,
    lasted: bool,
}

impl Life {
    /// It begins; how the one before ended is told at once, because this one may get no further.
    pub fn begin(path: &Path, notices: &Path) -> Life {
        let before = match fs::read_to_string(path) {
            Ok(words) if words.is_empty() => Some(CRASHED.to_owned()),
            Ok(words) => Some(words),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => Some(format!("{}: {error}", path.display())),
        };
        let (path, notices) = (path.to_owned(), notices.to_owned());
        let life = Life { path, notices, began: Instant::now(), before, lasted: false };
        life.keep("");
        life.tell();
        life
    }

    /// What an operator should know of it now.
    pub fn ails(&mut self) -> Option<String> {
        self.ails_at(self.began.elapsed())
    }

    fn ails_at(&mut self, age: Duration) -> Option<String> {
        if age >= LASTS && !self.lasted {
            (self.lasted, self.before) = (true, None);
            self.forget();
        }
        self.words()
    }

    /// It ends, as it should or with an error.
    pub fn end(mut self, error: Option<&anyhow::Error>) {
        let Some(error) = error else { return self.forget() };
        // A notice is one line.
        let words = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
        self.keep(&words);
        self.before = Some(words);
        self.tell();
    }

    fn words(&self) -> Option<String> {
        let why = self.before.as_ref()?;
        Some(format!(
            "the coordinator of this node does not last: {why}. It is started again and again; until it lasts, what the \
             set decides stands still here, and nothing can be upgraded from here"
        ))
    }

    fn tell(&self) {
        if let Some(words) = self.words() {
            publish(&self.notices, &super::left(&self.notices), &[words]);
        }
    }

    fn keep(&self, words: &str) {
        fs::write(&self.path, words).unwrap_or_else(|error| warn!("{}: {error}", self.path.display()));
    }

    fn forget(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => warn!("{}: {error}", self.path.display()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder for the file and the notices, gone at the end.
    struct Run(PathBuf);

    impl Run {
        fn new(test: &str) -> Run {
            let folder = std::env::temp_dir().join(format!("trilith-life-{test}-{}", std::process::id()));
            fs::create_dir(&folder).unwrap();
            Run(folder)
        }

        fn begin(&self) -> Life {
            Life::begin(&self.0.join("life"), &self.0.join("notices"))
        }

        fn told(&self) -> Vec<String> {
            crate::coordinator::left(&self.0.join("notices"))
        }
    }

    impl Drop for Run {
        fn drop(&mut self) {
            _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn an_error_at_the_start_is_told_in_its_words_until_one_lasts() {
        let run = Run::new("error");
        // What the one before had to say is of yesterday.
        let old = ["disk".to_owned(), "clock".to_owned()];
        assert!(publish(&run.0.join("notices"), &[], &old));
        run.begin().end(Some(&anyhow::anyhow!("raft/current/log is damaged\nat byte 9").context("starting")));
        let words = run.told();
        assert!(words[0].contains("does not last: starting: raft/current/log is damaged at byte 9."), "{words:?}");
        assert_eq!(words.len(), 1, "{words:?}");
        let mut next = run.begin();
        assert_eq!(next.ails_at(LASTS - Duration::from_secs(1)).as_ref(), words.first());
        assert_eq!(next.ails_at(LASTS), None);
        drop(next);
        assert_eq!(run.begin().ails_at(Duration::ZERO), None, "one that had lasted is no matter of its start");
    }

    #[test]
    fn one_that_crashes_again_and_again_is_told_by_its_successor_and_a_proper_end_is_not() {
        let run = Run::new("crash");
        drop(run.begin());
        assert_eq!(run.told(), [""; 0]);
        let second = run.begin();
        assert!(run.told()[0].contains("it crashed or was killed"), "{:?}", run.told());
        drop(second);
        let mut third = run.begin();
        assert!(third.ails_at(Duration::ZERO).is_some());
        third.end(None);
        assert_eq!(run.begin().ails_at(Duration::ZERO), None);
    }
}
