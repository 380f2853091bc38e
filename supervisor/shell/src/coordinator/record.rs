//! What a node must remember by itself, because the set cannot know it: what it was about to do when it was cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use trilith_core::rollout::Failure;
use trilith_core::set::Version;

use crate::disk;

/// The record. Unknown fields are skipped, missing ones have defaults, so versions N and N+1 read each other's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Version of the document in force.
    pub config: u64,
    /// That document is on trial.
    pub config_trial: bool,
    /// The version that this node was switched to. It went back by itself when something else runs.
    pub switched: Option<Version>,
    /// What did not work here, and why.
    pub failed: Option<Failure>,
    /// This node is drained for a rollout, not by an operator.
    pub drained: bool,
    /// That drain is over: its connections have ended.
    pub quiet: bool,
    /// The services that did not answer here before this node left service for a rollout: they say nothing of what it was brought.
    pub silent: BTreeSet<String>,
    /// The services that were upgraded here, with the version that runs.
    pub services: BTreeMap<String, Version>,
    #[serde(skip)]
    path: PathBuf,
}

impl Record {
    /// Reads it; an empty one when there is none.
    ///
    /// # Errors
    /// It is damaged: forgetting it could try again what has failed.
    pub fn read(path: &Path) -> Result<Record> {
        let mut record: Record = match fs::read_to_string(path) {
            Ok(text) => serde_json::from_str(&text).with_context(|| {
                format!("{} is damaged: remove it, and this node tries again what may have failed", path.display())
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Record::default(),
            Err(error) => return Err(error).with_context(|| format!("{} can't be read", path.display())),
        };
        record.path = path.to_owned();
        Ok(record)
    }

    /// Changes it, on the disk first.
    ///
    /// # Errors
    /// The disk does not take it: then nothing has changed.
    pub fn change(&mut self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut next = self.clone();
        change(&mut next);
        if next != *self {
            disk::replace(&self.path, &serde_json::to_vec_pretty(&next)?)?;
            *self = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_read_again_and_a_damaged_record_is_refused() {
        let path = std::env::temp_dir().join(format!("trilith-record-{}.json", std::process::id()));
        let _ = fs::remove_file(&path);
        let mut record = Record::read(&path).unwrap();
        assert_eq!(record, Record { path: path.clone(), ..Record::default() });
        record.change(|record| (record.config, record.drained) = (7, true)).unwrap();
        assert_eq!(Record::read(&path).unwrap(), record);
        fs::write(&path, br#"{"config": 8, "of_the_next_version": []}"#).unwrap();
        assert_eq!(Record::read(&path).unwrap().config, 8);
        fs::write(&path, b"{").unwrap();
        assert!(Record::read(&path).unwrap_err().to_string().contains("damaged"));
        fs::remove_file(path).unwrap();
    }
}
