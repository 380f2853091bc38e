//! `trilith`: the commands, the console, the coordinator and what runs once, in one binary.

fn main() -> std::process::ExitCode {
    trilith_shell::daemon::end_at_panics();
    trilith_shell::cli::main()
}
