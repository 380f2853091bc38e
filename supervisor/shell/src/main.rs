//! `trilith`: the supervisor of a node and the commands that talk to it, in one binary.

fn main() -> std::process::ExitCode {
    trilith_shell::cli::main()
}
