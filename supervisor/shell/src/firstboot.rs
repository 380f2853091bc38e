//! `trilith firstboot` and `trilith node reset`: thin, since everything about answers is in the crate `trilith-firstboot`.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use trilith_firstboot::finding::Findings;
use trilith_firstboot::report::{Outcome, Report};
use trilith_firstboot::run::{self, Options};
use trilith_firstboot::store::Store;

use crate::control::client::Unanswered;
use crate::systemd;

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Check the answers in this directory, and touch nothing.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["root", "seed"])]
    check: Option<PathBuf>,
    /// Work on the system below this directory.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Take the answers from this directory, instead of looking for a disk or asking the hypervisor.
    #[arg(long, value_name = "DIR")]
    seed: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// How it ended, with what there is to say.
pub enum Ended {
    /// As it was asked to be.
    Done(String),
    /// The answers are wrong.
    Wrong(String),
    /// It could not be done.
    Failed(String),
}

/// Takes and applies the answers, or checks a directory. Wrong answers are an error of `--check` only: at a boot they are told
/// by notices, and the node boots on.
pub fn firstboot(args: &Args) -> Ended {
    if let Some(directory) = &args.check {
        return match run::check(directory) {
            Ok(taken) => check(&taken.findings, args.json),
            Err(error) => Ended::Failed(format!("{error:#}")),
        };
    }
    match run::run(&Options { root: args.root.clone(), seed: args.seed.clone() }) {
        Ok(report) if args.json => in_json(&report).map_or_else(Ended::Failed, Ended::Done),
        Ok(report) => Ended::Done(in_words(&report)),
        Err(error) => Ended::Failed(format!("first boot: {error:#}")),
    }
}

/// Has the next boot take the answers anew. Takes root.
///
/// # Errors
/// One line: the disk does not take it.
pub fn want_reset() -> Result<String, String> {
    let done = Store::below("/".as_ref()).want_reset();
    done.map_err(|error| format!("{error:#}"))?;
    Ok(WANTED.to_owned())
}

/// The same for root where the state can't be written, as in the console's sandbox: systemd has the command do it.
///
/// # Errors
/// One line: what systemd refused, or that the command failed.
pub async fn want_reset_by_unit() -> Result<String, String> {
    systemd::run_program(RESET_UNIT, &RESET, PATIENCE).await?;
    Ok(WANTED.to_owned())
}

/// Nobody but a supervisor lends an operator root's rights, and a node without a set has none.
pub fn with_a_way_to_reset(unanswered: Unanswered) -> Unanswered {
    match unanswered {
        Unanswered::NotRunning(why) => Unanswered::NotRunning(format!(
            "{why}; while none runs only root may: log in on the machine's console and choose \"Take the first-boot answers anew\""
        )),
        other => other,
    }
}

fn check(findings: &Findings, json: bool) -> Ended {
    let text = if json {
        let value = serde_json::json!({ "faults": findings.faults, "warnings": findings.warnings });
        serde_json::to_string_pretty(&value).unwrap_or_default()
    } else {
        let faults = findings.faults.iter().map(ToString::to_string);
        let warnings = findings.warnings.iter().map(|warning| format!("warning: {warning}"));
        let verdict = match findings.faults.len() {
            0 => "the answers are right".to_owned(),
            1 => "1 thing to mend".to_owned(),
            many => format!("{many} things to mend"),
        };
        faults.chain(warnings).chain([verdict]).collect::<Vec<_>>().join("\n")
    };
    if findings.faults.is_empty() { Ended::Done(text) } else { Ended::Wrong(text) }
}

fn in_json(report: &Report) -> Result<String, String> {
    serde_json::to_string_pretty(report).map_err(|error| format!("writing JSON: {error}"))
}

/// For the journal.
fn in_words(report: &Report) -> String {
    let source = report.source.as_deref().unwrap_or("nowhere");
    let first = match report.outcome {
        Outcome::Taken => format!("answers taken from {source}"),
        Outcome::Kept => format!("answers of an earlier boot in force, from {source}"),
        Outcome::Wrong => format!("answers from {source} are wrong and not taken"),
        Outcome::Nothing => "no answers".to_owned(),
    };
    let warnings = report.warnings.iter().map(|warning| format!("warning: {warning}"));
    [first].into_iter().chain(report.notices.iter().cloned()).chain(warnings).collect::<Vec<_>>().join("\n")
}

/// Whether a human says that the answers shall be taken anew.
pub fn confirmed() -> bool {
    if !io::stdin().is_terminal() {
        return false;
    }
    // Without stderr there is nobody to ask.
    let asked = write!(
        io::stderr(),
        "The next boot will take the first-boot answers anew and replace the node's set, names, accounts and network.\n\
         Type yes to do so: "
    );
    let mut line = String::new();
    asked.is_ok() && io::stdin().lock().read_line(&mut line).is_ok() && line.trim() == "yes"
}

const WANTED: &str = "the next boot takes the first-boot answers anew: reboot when it suits";
const RESET: [&str; 4] = ["/usr/bin/trilith", "node", "reset", "--yes"];
const RESET_UNIT: &str = "trilith-reset.service";
/// Longer than the command waits for a supervisor that does not answer.
const PATIENCE: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_reset_for_want_of_a_supervisor_is_told_of_the_console() {
        let told = |unanswered: fn(String) -> Unanswered| with_a_way_to_reset(unanswered("x".to_owned())).to_string();
        let way = told(Unanswered::NotRunning);
        assert!(way.starts_with("x; ") && way.contains("on the machine's console"), "{way}");
        assert_eq!((told(Unanswered::TimedOut), told(Unanswered::Broken)), ("x".to_owned(), "x".to_owned()));
    }
}
