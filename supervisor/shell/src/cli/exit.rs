//! Exit codes, the same for every command.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It is as it was asked to be.
    Ok = 0,
    /// It failed, or the set refused it.
    Failed = 1,
    /// The command line is wrong. (clap uses the same number.)
    Usage = 2,
    /// Configuration, secret or node name are missing or wrong.
    Configuration = 3,
    /// The supervisor is not running, or this user may not talk to it.
    Unreachable = 4,
    /// There was no answer in time; what was asked may yet happen.
    TimedOut = 5,
    /// The login shell does not run this. (Shells use the same number for what they find but can't execute.)
    Barred = 126,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// The last part of every command's `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done, or it was so already
  1  it failed, or the set refused it: the reason is on stderr
  2  the command line is wrong
  3  the configuration, the set secret or the node's name is missing or wrong
  4  the supervisor is not running, or this user may not talk to it
  5  no answer in time: what was asked may yet happen; see trilith status";
