//! A document on trial that the supervisor does not survive: counted by starts, before anything of it is read.
//!
//! ```text
//!   coordinator: begin ──▶ the document, restart ──▶ seen serving: end
//!   supervisor:             each start counts one; after STARTS of them the document of before comes back
//! ```
//!
//! The coordinator judges what runs ([`trilith_core::rollout`]); of a supervisor that crashes or hangs at once it may see nothing, and
//! it may hang on the same document. So whoever starts counts, and needs nothing but this file for the way back. The alternative,
//! `StartLimitBurst=` with a unit that mends, forgets its count at a reboot.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::disk;

/// Starts that a document on trial has to be accepted in.
pub const STARTS: u32 = 3;

/// What is on trial, and the way back. Unknown fields are skipped, missing ones have defaults, so N and N+1 read each other's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trial {
    /// Version of the document on trial.
    pub document: u64,
    /// The text of the document before it.
    pub before: String,
    /// Starts of the supervisor with it.
    pub starts: u32,
    /// Why the document of before is back.
    pub given_up: Option<String>,
}

impl Trial {
    /// The trial that is kept at `path`; `None` when there is none, or none that can be read.
    pub fn read(path: &Path) -> Option<Trial> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// Begins one: to be called before the new document is put in place.
    ///
    /// # Errors
    /// The disk does not take it: then nothing has changed.
    pub fn begin(path: &Path, document: u64, before: &str) -> Result<()> {
        Trial { document, before: before.to_owned(), ..Trial::default() }.write(path)
    }

    /// Ends it, whatever came of it.
    ///
    /// # Errors
    /// The file stays.
    pub fn end(path: &Path) -> Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{} can't be removed", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Counts a start of the supervisor, and puts the document of before back into `document` when there were too many. Says why,
    /// if so.
    ///
    /// # Errors
    /// The disk does not take it. The supervisor starts all the same: a full disk is no reason to be out of service.
    pub fn count_start(path: &Path, document: &Path) -> Result<Option<String>> {
        let Some(mut trial) = Trial::read(path).filter(|trial| trial.given_up.is_none()) else { return Ok(None) };
        if trial.starts < STARTS {
            trial.starts += 1;
            return trial.write(path).map(|()| None);
        }
        // The document first: one that is cut off here is put back once more.
        disk::replace(document, trial.before.as_bytes())?;
        let why = format!("{STARTS} starts of the supervisor with it, and it was seen serving after none of them");
        trial.given_up = Some(why.clone());
        trial.write(path)?;
        Ok(Some(format!("document {}: {why}; the one before it is back", trial.document)))
    }

    fn write(&self, path: &Path) -> Result<()> {
        disk::replace(path, &serde_json::to_vec_pretty(self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_of_before_comes_back_after_three_starts_and_only_once() {
        let folder = std::env::temp_dir().join(format!("trilith-trial-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (path, document) = (folder.join("trial.json"), folder.join("set.toml"));
        let text = || fs::read_to_string(&document).unwrap();
        fs::write(&document, "new").unwrap();
        assert_eq!(Trial::count_start(&path, &document).unwrap(), None, "nothing is on trial");
        Trial::begin(&path, 7, "old").unwrap();
        for start in 1..=STARTS {
            assert_eq!(Trial::count_start(&path, &document).unwrap(), None);
            assert_eq!((Trial::read(&path).unwrap().starts, text().as_str()), (start, "new"));
        }
        let why = Trial::count_start(&path, &document).unwrap().unwrap();
        assert!(why.contains("document 7"), "{why}");
        assert_eq!(text(), "old");
        fs::write(&document, "of an operator").unwrap();
        assert_eq!(Trial::count_start(&path, &document).unwrap(), None);
        assert_eq!(text(), "of an operator");
        Trial::end(&path).unwrap();
        Trial::end(&path).unwrap();
        assert_eq!(Trial::read(&path), None);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_damaged_trial_is_none() {
        let path = std::env::temp_dir().join(format!("trilith-trial-damaged-{}.json", std::process::id()));
        fs::write(&path, "{").unwrap();
        assert_eq!(Trial::count_start(&path, Path::new("/nonexistent")).unwrap(), None);
        fs::remove_file(path).unwrap();
    }
}
