//! `trilith`: the supervisor of a node and the commands that talk to it, in one binary.

use std::{panic, process};

fn main() -> process::ExitCode {
    // Whatever panics ends the whole process, also where it was built to unwind: half a supervisor must not go on.
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |what| {
        tell(what);
        process::abort();
    }));
    trilith_shell::cli::main()
}
