//! The order of things at a boot.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::answers::Answers;
use crate::report::{NetworkOutcome, Outcome, Report};
use crate::sources::{self, Documents};
use crate::store::Store;
use crate::take::{Taken, take};
use crate::{apply, rename};

/// What to work on.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where `/etc`, `/run` and `/var/lib/trilith` are: `/` on a node.
    pub root: PathBuf,
    /// A directory with the answers, instead of looking for a source.
    pub seed: Option<PathBuf>,
}

/// Takes the answers if none are stored yet, applies those that are in force, and writes the report.
///
/// Wrong or missing answers are no error: the node boots, and the report says what to do.
///
/// # Errors
/// The state or `/etc` can't be written.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let store = Store::below(&options.root);
    let mut notices = Vec::new();
    store.recover()?;
    let stored = store.load().unwrap_or_else(|error| {
        notices.push(format!("the stored answers can't be used and are taken anew: {error:#}"));
        None
    });
    let (answers, report) = match stored {
        Some(stored) if !store.reset_is_wanted() => {
            notices.extend(others(&stored, &look(options, Patience::None).0));
            let report = report(Outcome::Kept, Some(&stored), None, notices);
            (Some(stored), report)
        }
        stored => take_anew(options, &store, stored, notices)?,
    };
    apply::apply(&options.root, answers.as_ref(), report.network).context("applying the answers")?;
    let mut report = report;
    if options.root == Path::new("/")
        && let Some(network) = answers.as_ref().and_then(|answers| answers.network.as_ref())
        && report.network == NetworkOutcome::Answers
    {
        report.notices.extend(rename::rename(network));
    }
    apply::say(&options.root, &report).context("writing the report")?;
    Ok(report)
}

/// Reads a directory as [`run`] would, and touches nothing.
///
/// # Errors
/// The directory can't be read, or holds no answers.
pub fn check(directory: &Path) -> anyhow::Result<Taken> {
    match sources::seed::read(directory, &directory.display().to_string())? {
        Some(documents) => Ok(take(&documents)),
        None => {
            let names = "user-data and meta-data, openstack/latest/meta_data.json, or ovf-env.xml";
            anyhow::bail!("{} holds no answers: put {names} there", directory.display())
        }
    }
}

/// How long to wait for a source.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Answers are stored: only what is there already is looked at.
    None,
    /// A device may yet appear.
    Bounded,
}

/// The documents of the first source that has any, and what went wrong on the way.
fn look(options: &Options, patience: Patience) -> (Option<Documents>, Vec<String>) {
    match &options.seed {
        Some(seed) => match sources::seed::read(seed, &seed.display().to_string()) {
            Ok(documents) => (documents, Vec::new()),
            Err(error) => (None, vec![format!("the answers can't be read: {error}")]),
        },
        None => sources::look(patience == Patience::Bounded),
    }
}

/// Answers to apply, and the report. Answers that were stored before stay in force until better ones are whole.
fn take_anew(
    options: &Options,
    store: &Store,
    stored: Option<Answers>,
    mut notices: Vec<String>,
) -> anyhow::Result<(Option<Answers>, Report)> {
    let (documents, problems) = look(options, Patience::Bounded);
    notices.extend(problems);
    let Some(documents) = documents else {
        if stored.is_some() {
            notices.push("a reset was asked for, but no answers are found: those before stay in force".to_owned());
            let report = report(Outcome::Kept, stored.as_ref(), None, notices);
            return Ok((stored, report));
        }
        notices.push(NOTHING.to_owned());
        return Ok((None, report(Outcome::Nothing, None, None, notices)));
    };
    let taken = take(&documents);
    if taken.findings.faults.is_empty() {
        store.store(&taken.answers).context("storing the answers")?;
        let report = report(Outcome::Taken, Some(&taken.answers), Some(&taken), notices);
        return Ok((Some(taken.answers), report));
    }
    notices.extend(taken.findings.faults.iter().map(|fault| format!("the first-boot answers are wrong: {fault}")));
    if let Some(stored) = stored {
        notices.push("a reset was asked for, but the new answers are wrong: those before stay in force".to_owned());
        let report = report(Outcome::Wrong, Some(&stored), Some(&Taken { network_is_wrong: false, ..taken }), notices);
        return Ok((Some(stored), report));
    }
    let report = report(Outcome::Wrong, Some(&taken.answers), Some(&taken), notices);
    Ok((Some(taken.answers), report))
}

fn report(outcome: Outcome, answers: Option<&Answers>, taken: Option<&Taken>, notices: Vec<String>) -> Report {
    let network = match (taken, answers.and_then(|answers| answers.network.as_ref())) {
        (Some(taken), _) if taken.network_is_wrong => NetworkOutcome::Wrong,
        (_, Some(_)) => NetworkOutcome::Answers,
        (_, None) => NetworkOutcome::Dhcp,
    };
    let findings = taken.map(|taken| taken.findings.clone()).unwrap_or_default();
    Report {
        outcome,
        source: answers.map(|answers| answers.source.clone()),
        instance_id: answers.map(|answers| answers.instance_id.clone()).unwrap_or_default(),
        hostname: answers.and_then(|answers| answers.hostname.clone()),
        network,
        faults: findings.faults,
        warnings: findings.warnings,
        notices,
    }
}

/// Answers that are not those in force, by their instance-id. A source that is gone means nothing.
fn others(stored: &Answers, documents: &Option<Documents>) -> Option<String> {
    let seen = take(documents.as_ref()?).answers.instance_id;
    (!seen.is_empty() && seen != stored.instance_id).then(|| {
        format!(
            "other first-boot answers are there (instance-id {seen}, in force is {}) and are ignored; to take them: trilith node reset",
            stored.instance_id
        )
    })
}

const NOTHING: &str = "no first-boot answers are found: attach a disk labelled cidata with user-data, meta-data and \
    network-config, or give guestinfo or OVF properties, and boot again";
