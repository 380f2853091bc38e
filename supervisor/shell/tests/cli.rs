//! The binary itself, from its command line to its exit code.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

#[test]
fn a_good_document_is_said_to_be_valid() {
    let output = trilith(&["config", "check", &document("good/full.toml")]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = stdout(&output);
    assert!(said.contains("full.toml: valid: set edge-2 with 3 nodes, 2 VIPs and 3 services, fingerprint "), "{said}");
}

#[test]
fn a_bad_document_is_code_3_with_its_line_on_stderr_and_as_json_on_stdout() {
    let file = document("bad/node-address-bad.toml");
    let output = trilith(&["config", "check", &file]);
    assert_eq!(output.status.code(), Some(3));
    let said = stderr(&output);
    assert!(
        said.starts_with("trilith: ") && said.contains(":7:11: node.address: \"10.77.0.311\" is no IP address; "),
        "{said}"
    );
    assert!(said.contains("7 | address = \"10.77.0.311\"\n"), "{said}");
    let output = trilith(&["config", "check", "--json", &file]);
    assert_eq!(output.status.code(), Some(3));
    let finding: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&finding["valid"], &finding["line"], &finding["key"]),
        (&false.into(), &7.into(), &"node.address".into())
    );
}

#[test]
fn a_missing_document_is_code_3_for_the_check_and_for_the_supervisor() {
    let mut supervisor = Command::new(env!("CARGO_BIN_EXE_trilith-supervisor"));
    supervisor.args(["--config", "/nonexistent.toml"]);
    for mut command in [command(&["config", "check", "/nonexistent.toml"]), supervisor] {
        let output = command.output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(stderr(&output).contains("configuration /nonexistent.toml is missing: "), "{output:?}");
    }
}

#[test]
fn a_document_is_also_read_from_stdin() {
    let mut child = command(&["config", "check", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let text = std::fs::read(document("good/minimal.toml")).unwrap();
    child.stdin.take().unwrap().write_all(&text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(stdout(&output).starts_with("stdin: valid: set edge-1 with 1 node, 1 VIP and 1 service, "));
}

#[test]
fn without_a_supervisor_every_command_is_code_4_and_says_where_to_look() {
    for words in [&["status"][..], &["vip", "move", "public", "b"], &["node", "drain", "b"], &["node", "undrain", "b"]]
    {
        let output = command(words).args(["--socket", "/nonexistent.sock"]).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        assert!(stderr(&output).contains("the supervisor is not running"), "{output:?}");
        assert!(stderr(&output).contains("the node's logs say why"), "{output:?}");
        let output = command(words).args(["--json", "--socket", "/nonexistent.sock"]).output().unwrap();
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((output.status.code(), &said["result"]), (Some(4), &"unreachable".into()));
    }
}

#[test]
fn a_wrong_command_line_is_code_2() {
    for words in [&["stauts"][..], &["vip", "move", "public"], &["status", "--loud"], &[]] {
        assert_eq!(trilith(words).status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn answers_become_words_and_exit_codes() {
    for (answer, code, words) in [
        (r#"{"done":{"text":"VIP public is on node b"}}"#, 0, "VIP public is on node b\n"),
        (r#"{"refused":{"text":"node b is not heard"}}"#, 1, "trilith: node b is not heard\n"),
        (r#"{"timed-out":{"text":"not done in time"}}"#, 5, "trilith: not done in time\n"),
        ("nonsense", 1, "talking to the supervisor"),
    ] {
        let supervisor = Supervisor::answering("order", answer);
        let output = command(&["vip", "move", "public", "b"]).arg("--socket").arg(&supervisor.path).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let said = if code == 0 { stdout(&output) } else { stderr(&output) };
        assert!(said.contains(words), "{said}");
        let asked = supervisor.asked();
        assert_eq!(asked, "{\"version\":1,\"request\":{\"vip-move\":{\"vip\":\"public\",\"node\":\"b\"}}}\n");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let script = format!("{} completion bash | head --lines=1", env!("CARGO_BIN_EXE_trilith"));
    let output = Command::new("bash").args(["-o", "pipefail", "-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(stderr(&output), "");
}

#[test]
fn the_bash_completion_is_a_script_that_bash_accepts() {
    for shell in ["bash", "zsh", "fish"] {
        let output = trilith(&["completion", shell]);
        assert!(output.status.success() && stdout(&output).contains("undrain"), "{shell}");
    }
    let script = format!("{} completion bash | bash -n", env!("CARGO_BIN_EXE_trilith"));
    assert!(Command::new("bash").args(["-o", "pipefail", "-c", &script]).status().unwrap().success());
}

/// Stands in for a supervisor: takes one request and gives one answer.
struct Supervisor {
    path: PathBuf,
    asked: std::thread::JoinHandle<String>,
}

impl Supervisor {
    fn answering(test: &str, answer: &'static str) -> Supervisor {
        let path = std::env::temp_dir().join(format!("trilith-cli-{test}-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket in the temporary folder");
        let asked = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("the command connects");
            let mut asked = String::new();
            BufReader::new(&stream).read_line(&mut asked).expect("a request");
            (&stream).write_all(format!("{answer}\n").as_bytes()).expect("the command reads");
            asked
        });
        Supervisor { path, asked }
    }

    /// What it was asked.
    fn asked(self) -> String {
        let _ = std::fs::remove_file(&self.path);
        self.asked.join().expect("it was asked")
    }
}

fn trilith(words: &[&str]) -> Output {
    command(words).output().expect("the binary runs")
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trilith"));
    command.args(words).env_remove("BLESS").stdin(Stdio::null());
    command
}

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/config").join(name);
    path.to_str().expect("a path in UTF-8").to_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
