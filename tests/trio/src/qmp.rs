//! The QEMU Machine Protocol (docs/interop/qmp-spec of QEMU), and what the guest's agent makes of it (docs/interop/qemu-ga): one command
//! on one connection, with a bounded wait.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Runs one command at the QEMU whose socket is `socket`, and returns what it returns.
///
/// # Errors
/// When nobody listens there, no answer comes within [`PATIENCE`], or QEMU refuses: in its own words.
pub fn execute(socket: &Path, command: &str, arguments: Value) -> Result<Value> {
    talk(socket, command, arguments).with_context(|| format!("QMP {command} at {}", socket.display()))
}

/// Runs one command at the guest's agent whose channel is `socket`, and returns what it returns.
///
/// # Errors
/// As [`execute`].
pub fn ask_agent(socket: &Path, command: &str, arguments: Value) -> Result<Value> {
    let stream = tell_agent(socket, command, arguments)?;
    returned(&mut BufReader::new(stream).lines()).with_context(|| format!("agent's {command} at {}", socket.display()))
}

/// [`ask_agent`] without waiting for the answer, for a command that has none; the connection to be kept until it is done.
///
/// # Errors
/// When nobody listens there.
pub fn tell_agent(socket: &Path, command: &str, arguments: Value) -> Result<UnixStream> {
    let stream = connect(socket).with_context(|| format!("no agent at {}", socket.display()))?;
    writeln!(&stream, "{}", json!({ "execute": command, "arguments": arguments }))?;
    Ok(stream)
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn talk(socket: &Path, command: &str, arguments: Value) -> Result<Value> {
    let stream = connect(socket)?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let greeting = next(&mut lines)?;
    if greeting.get("QMP").is_none() {
        bail!("no greeting but {greeting}");
    }
    let mut answer = Value::Null;
    for (command, arguments) in [("qmp_capabilities", json!({})), (command, arguments)] {
        writeln!(&stream, "{}", json!({ "execute": command, "arguments": arguments }))?;
        answer = returned(&mut lines)?;
    }
    Ok(answer)
}

/// The answer to a command; events that come before it are nobody's here.
fn returned(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Result<Value> {
    for _ in 0..MAX_EVENTS {
        let mut message = next(lines)?;
        if let Some(answer) = message.get_mut("return") {
            return Ok(answer.take());
        }
        if let Some(error) = message.get("error") {
            bail!("{}", error.get("desc").and_then(Value::as_str).unwrap_or("refused"));
        }
    }
    bail!("{MAX_EVENTS} events and no answer")
}

fn next(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Result<Value> {
    let line = lines.next().context("QEMU closed the connection")??;
    serde_json::from_str(&line).with_context(|| format!("no JSON: {line}"))
}

/// QEMU answers within milliseconds, unless the host is very busy.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events of a machine between a command and its answer.
const MAX_EVENTS: usize = 1_000;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A QEMU that greets, then says `answers`, one for each command.
    fn with_qemu(answers: &[&str], ask: impl FnOnce(&Path) -> Result<Value>) -> Result<Value> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("trilith-qmp-{}-{number}", std::process::id()));
        let listener = UnixListener::bind(&path)?;
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| -> Result<()> {
                let stream = listener.accept()?.0;
                writeln!(&stream, r#"{{"QMP": {{"version": {{}}, "capabilities": []}}}}"#)?;
                let mut lines = BufReader::new(stream.try_clone()?).lines();
                for answer in answers {
                    lines.next().context("no command")??;
                    writeln!(&stream, "{answer}")?;
                }
                Ok(())
            });
            ask(&path)
        });
        std::fs::remove_file(&path)?;
        answer
    }

    #[test]
    fn events_before_an_answer_are_passed_over() -> Result<()> {
        let answers = [r#"{"return": {}}"#, "{\"event\": \"STOP\"}\n{\"return\": {\"status\": \"paused\"}}"];
        let answer = with_qemu(&answers, |path| execute(path, "query-status", json!({})))?;
        assert_eq!(answer["status"], "paused");
        Ok(())
    }

    #[test]
    fn what_qemu_refuses_is_said_in_its_own_words() {
        let answers = [r#"{"return": {}}"#, r#"{"error": {"class": "GenericError", "desc": "no such thing"}}"#];
        let error = with_qemu(&answers, |path| execute(path, "fly", json!({}))).expect_err("refused");
        assert!(format!("{error:#}").ends_with("no such thing"), "{error:#}");
    }
}
