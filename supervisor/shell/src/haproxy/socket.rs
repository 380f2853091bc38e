//! HAProxy's master socket: one line out, one answer in. (Management guide, 9.3 and 9.4.)
//!
//! Everything goes through the master and, where it is for the worker, by `@1`: the present one. The worker's own socket is
//! shared with the one that a reload has just replaced, which might still take a command and keep it for itself.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use trilith_core::status::{BackendStatus, Flows};

use super::ends::parse_end;

/// How long HAProxy may take to answer. It does in a millisecond, unless it hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long it may take to read its configuration and to have a new worker running.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer that is read, in bytes: four times what 64 services on 7 nodes have to say.
const MAX_ANSWER: u64 = 1 << 20;
/// How many commands go in one line, which HAProxy bounds by its buffer of 16 KiB.
const COMMANDS_PER_LINE: usize = 32;

/// The longest name or state that is taken over, in characters: a DNS label's, and above all of HAProxy's.
const MAX_WORD: usize = 63;
/// The most characters of each part of what a health check found.
const MAX_FINDING: usize = 100;

/// Name of a certificate that is only looked at.
const JUDGED: &str = "trilith-judged";

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens, or not for long enough: HAProxy does not run, not yet, or is ending.
    NotRunning,
    /// One line: it did not answer in time, because it is busy or hangs.
    Late(String),
    /// One line that names the socket and what is wrong.
    Failed(String),
}

impl Failure {
    /// What is wrong; nothing with a HAProxy that does not run, because it reads what is wanted when it starts.
    pub fn wrong(self) -> Option<String> {
        match self {
            Failure::NotRunning => None,
            Failure::Late(why) | Failure::Failed(why) => Some(why),
        }
    }
}

/// The way to a HAProxy.
#[derive(Clone, Debug)]
pub struct Master {
    path: PathBuf,
}

impl Master {
    /// The HAProxy whose master listens at `path`.
    pub fn at(path: &Path) -> Master {
        Master { path: path.to_owned() }
    }

    /// The `description` of the configuration that the worker has loaded.
    pub async fn description(&self) -> Result<Option<String>, Failure> {
        let info = self.info().await?;
        // One that is ending has closed its listeners, takes no more commands, and goes with its last connection.
        if ending(&info) {
            return Err(Failure::NotRunning);
        }
        Ok(info.lines().find_map(|line| line.strip_prefix("description: ")).map(str::to_owned))
    }

    /// Whether the worker was asked to end with its last connection, and no other has taken its place.
    pub async fn is_ending(&self) -> Result<bool, Failure> {
        Ok(ending(&self.info().await?))
    }

    /// Whether the worker runs and has as many connections as it may: it accepts no more until some end.
    pub async fn is_full(&self) -> bool {
        let info = self.info().await.unwrap_or_default();
        let number = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        number("CurrConns:").zip(number("Maxconn:")).is_some_and(|(now, most)| now >= most)
    }

    /// `show info` of the worker.
    async fn info(&self) -> Result<String, Failure> {
        let info = self.ask("@1 show info", ANSWER_TIMEOUT).await?;
        // The master has no worker yet, or ended before it could ask one: it begins anew once its worker is made.
        if info.starts_with("Name: HAProxy") { Ok(info) } else { Err(Failure::NotRunning) }
    }

    /// Has the worker carry out commands that answer an empty line each when they succeed. What refuses them because it is
    /// ending does not run.
    pub async fn run(&self, commands: &[String]) -> Result<(), Failure> {
        for chunk in commands.chunks(COMMANDS_PER_LINE) {
            let line: Vec<String> = chunk.iter().map(|command| format!("@1 {command}")).collect();
            let answer = self.ask(&line.join(";"), ANSWER_TIMEOUT).await?;
            if !answer.trim().is_empty() {
                self.description().await?;
                return Err(Failure::Failed(format!(
                    "HAProxy refuses `{}` or one of {} that follow: {}",
                    chunk[0],
                    chunk.len() - 1,
                    alerts(&answer)
                )));
            }
            if answer.len() < chunk.len() {
                // It ended, or its master began anew, before it had done them all.
                return Err(Failure::NotRunning);
            }
        }
        Ok(())
    }

    /// Loads the configuration file anew: a new worker takes the listeners over, the old one ends with its connections.
    pub async fn reload(&self) -> Result<(), Failure> {
        let answer = self.ask("reload", RELOAD_TIMEOUT).await?;
        if answer.starts_with("Success=1") { Ok(()) } else { Err(Failure::Failed(alerts(&answer))) }
    }

    /// What the worker counts. `relayed` is not HAProxy's to know and stays 0.
    pub async fn flows(&self) -> Result<Flows, Failure> {
        // All proxies; frontends (1) and servers (4); all of them.
        Ok(parse_flows(&self.show_stat().await?))
    }

    /// What the worker counts, as it says it.
    pub async fn show_stat(&self) -> Result<String, Failure> {
        self.ask("@1 show stat -1 5 -1", ANSWER_TIMEOUT).await
    }

    /// When a certificate that the worker has loaded from `file` ends, in seconds of UTC since 1970; none if it has not.
    pub async fn certificate_end(&self, file: &str) -> Result<Option<u64>, Failure> {
        Ok(parse_end(&self.ask(&format!("@1 show ssl cert {file}"), ANSWER_TIMEOUT).await?))
    }

    /// When this certificate ends (PEM, without empty lines): the worker takes it, without its key, as an authority's that nothing uses,
    /// tells, and forgets it.
    pub async fn end_of(&self, certificate: &str) -> Result<Option<u64>, Failure> {
        let mut told = String::new();
        for line in [
            format!("@1 new ssl ca-file {JUDGED}"),
            format!("@1 set ssl ca-file {JUDGED} <<\n{certificate}"),
            format!("@1 show ssl ca-file *{JUDGED}:1"),
            format!("@1 abort ssl ca-file {JUDGED};@1 del ssl ca-file {JUDGED}"),
        ] {
            told += &self.ask(&line, ANSWER_TIMEOUT).await?;
        }
        Ok(parse_end(&told))
    }

    async fn ask(&self, line: &str, patience: Duration) -> Result<String, Failure> {
        let exchange = async {
            let mut stream = UnixStream::connect(&self.path).await?;
            stream.write_all(format!("{line}\n").as_bytes()).await?;
            // The master takes one line after the other until it is told that there are no more.
            stream.shutdown().await?;
            let mut answer = Vec::new();
            stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        let path = self.path.display();
        match timeout(patience, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(match std::io::Error::kind(&error) {
                ErrorKind::NotFound
                | ErrorKind::ConnectionRefused
                | ErrorKind::ConnectionReset
                | ErrorKind::BrokenPipe => Failure::NotRunning,
                // So many wait already that the kernel takes no more.
                ErrorKind::WouldBlock => Failure::Late(format!("{path}: HAProxy does not accept what it is asked")),
                _ => Failure::Failed(format!("{path}: {error}")),
            }),
            Err(_) => Err(Failure::Late(format!(
                "{path}: HAProxy did not answer `{}` within {patience:?}",
                line.split(';').next().unwrap_or_default()
            ))),
        }
    }
}

fn ending(info: &str) -> bool {
    info.lines().any(|line| line == "Stopping: 1")
}

/// The reasons in what HAProxy prints, in one line of at most 500 characters.
pub fn alerts(output: &str) -> String {
    let reasons: Vec<&str> = output
        .lines()
        .filter(|line| line.starts_with("[ALERT]"))
        .filter_map(|line| line.split_once(" : ").map(|(_, reason)| reason))
        .collect();
    let text = if reasons.is_empty() { output.trim().replace('\n', "; ") } else { reasons.join("; ") };
    text.chars().filter(|c| !c.is_control()).take(500).collect()
}

/// Reads `show stat`: comma-separated, its columns named in the first line. Rows that make no sense are left out.
pub fn parse_flows(csv: &str) -> Flows {
    let mut flows = Flows::default();
    let mut lines = csv.lines();
    let header = lines.next().unwrap_or_default().trim_start_matches("# ");
    let columns: BTreeMap<&str, usize> = header.split(',').enumerate().map(|(place, name)| (name, place)).collect();
    for line in lines {
        let mut quoted = false;
        let fields = line.split(|c| {
            quoted ^= c == '"';
            c == ',' && !quoted
        });
        let fields: Vec<&str> = fields.collect();
        let field = |name| columns.get(name).and_then(|&place| fields.get(place)).copied();
        let (Some(proxy), Some(server), Some(state)) = (field("pxname"), field("svname"), field("status")) else {
            continue;
        };
        let number = |name| field(name).and_then(|text| text.parse().ok()).unwrap_or(0);
        if server == "FRONTEND" {
            if proxy.starts_with("fe_") {
                flows.current = flows.current.saturating_add(number("scur"));
                flows.total = flows.total.saturating_add(number("stot"));
            }
        } else if let Some(service) = proxy.strip_prefix("be_") {
            let finding = |name| plain(field(name).unwrap_or_default().trim_matches('"'), MAX_FINDING);
            let parts = [("", "check_desc"), (", ", "check_code"), (": ", "last_chk")];
            let said =
                parts.map(|(before, name)| (before, finding(name))).into_iter().filter(|(_, part)| !part.is_empty());
            flows.backends.push(BackendStatus {
                service: plain(service, MAX_WORD),
                node: plain(server, MAX_WORD),
                state: plain(state, MAX_WORD),
                since_ms: number("lastchg").saturating_mul(1000),
                check: said.map(|(before, part)| format!("{before}{part}")).collect(),
                current: number("scur"),
            });
        }
    }
    flows
}

/// Without what an admin's terminal could take for a command.
fn plain(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "\
# pxname,svname,qcur,qmax,scur,smax,slim,stot,status,
trilith,FRONTEND,,,1,1,7800,940,OPEN,
fe_portal,FRONTEND,,,3,9,7800,70,OPEN,
fe_echo,FRONTEND,,,4,9,7800,30,OPEN,
be_portal,a,0,0,2,5,,41,UP,
be_portal,b,0,0,1,5,,29,DOWN 1/2,
";

    #[test]
    fn flows_are_summed_over_the_services_and_the_own_probe_is_no_flow() {
        let flows = parse_flows(STAT);
        assert_eq!((flows.current, flows.total, flows.relayed), (7, 100, 0));
        let backends: Vec<_> = flows
            .backends
            .iter()
            .map(|row| (row.service.as_str(), row.node.as_str(), row.state.as_str(), row.current))
            .collect();
        assert_eq!(backends, [("portal", "a", "UP", 2), ("portal", "b", "DOWN 1/2", 1)]);
    }

    #[test]
    fn what_a_health_check_found_is_told_in_haproxy_s_words_commas_and_all() {
        let stat = "\
# pxname,svname,scur,status,lastchg,check_status,check_code,last_chk,check_desc,
be_portal,a,0,DOWN,7,L7STS,503,\"Service, well, \"\"Unavailable\"\"\",Layer7 wrong status,
be_portal,b,0,DOWN,8,L4CON,,Connection refused,Layer4 connection problem,
be_portal,c,0,MAINT,9,,,,,
";
        let told: Vec<_> = parse_flows(stat).backends.into_iter().map(|row| (row.since_ms, row.check)).collect();
        assert_eq!(told[0], (7000, "Layer7 wrong status, 503: Service, well, \"\"Unavailable".to_owned()));
        assert_eq!(told[1], (8000, "Layer4 connection problem: Connection refused".to_owned()));
        assert_eq!(told[2], (9000, String::new()));
    }

    #[test]
    fn nonsense_gives_no_flows_and_no_panic() {
        let hostile = parse_flows("# pxname,svname,status,scur\nbe_x,\u{1b}[2Ja,UP\u{7}\u{9b}1m,1\n");
        assert_eq!((hostile.backends[0].node.as_str(), hostile.backends[0].state.as_str()), ("[2Ja", "UP1m"));
        for nonsense in ["", "\n\n", "# a,b\n1", "# pxname,svname,status,scur\n,,,\nfe_x,FRONTEND,OPEN,-1\nbe_"] {
            assert_eq!(parse_flows(nonsense), Flows::default(), "{nonsense:?}");
        }
    }

    #[test]
    fn of_what_haproxy_prints_the_alerts_are_the_reason() {
        let output = "[NOTICE]   (7) : haproxy version is 3.0\n[ALERT]    (7) : config : line 3\n[WARNING]  (7) : w\n[ALERT]    (7) : config : fatal\n";
        assert_eq!(alerts(output), "config : line 3; config : fatal");
        assert_eq!(alerts("cannot\nexec\n"), "cannot; exec");
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_means_that_haproxy_does_not_run() {
        let master = Master::at(Path::new("/nonexistent/master.sock"));
        assert_eq!(master.reload().await, Err(Failure::NotRunning));
    }
}
