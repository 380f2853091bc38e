//! Exit codes, the same for every command.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It is as it was asked to be.
    Ok,
    /// It failed, or the set refused it.
    Failed,
    /// The command line is wrong. (clap uses the same number.)
    Usage,
    /// Configuration, secret or node name are missing or wrong.
    Configuration,
    /// The supervisor or the coordinator is not running, or this user may not talk to it.
    Unreachable,
    /// There was no answer in time; what was asked may yet happen.
    TimedOut,
    /// The login shell does not run this. (Shells use the same number for what they find but can't execute.)
    Barred,
    /// A bundle is refused, for the reason that has this number ([`trilith_bundle::REFUSAL_CODES`]).
    Code(u8),
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Configuration => 3,
            Exit::Unreachable => 4,
            Exit::TimedOut => 5,
            Exit::Barred => 126,
            Exit::Code(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// The last part of every command's `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done, or it was so already
  1  it failed, or the set refused it: the reason is on stderr
  2  the command line is wrong
  3  the configuration, the set secret or the node's name is missing or wrong
  4  the supervisor or the coordinator is not running, or this user may not talk to it
  5  no answer in time: what was asked may yet happen; see trilith status
  126  this account may not run that";
