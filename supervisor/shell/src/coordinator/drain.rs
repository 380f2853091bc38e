//! The end of this node's connections before it restarts: those of the other nodes' HAProxies to its services, those of its own
//! HAProxy, and what the kernel still has of these.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tracing::info;
use trilith_core::config::{NodeId, Settings};
use trilith_raft::Replica;

use super::peers;
use super::sight::status;
use crate::{paths, systemd};

/// Waits until no HAProxy of the set has a connection to these services on this node, or until the deadline. A node that is heard but
/// does not tell of its connections may have some.
pub async fn quiet(
    services: &BTreeSet<String>,
    replica: &Replica,
    settings: &Settings,
    me: NodeId,
    deadline: Duration,
) {
    let begun = Instant::now();
    let (mut looks, mut left) = (0, Some(0));
    while looks < QUIET_LOOKS && begun.elapsed() < deadline {
        tokio::time::sleep(QUIET_LOOK).await;
        left = connections(services, replica, settings, me).await;
        looks = if left == Some(0) { looks + 1 } else { 0 };
    }
    if left != Some(0) {
        let left = left.map_or("an unknown number of".to_owned(), |left| left.to_string());
        info!(
            "{left} connections to services of this node are left after {} s: they end with those",
            deadline.as_secs()
        );
    }
}

/// How many there are; none when that is not known.
async fn connections(services: &BTreeSet<String>, replica: &Replica, settings: &Settings, me: NodeId) -> Option<u64> {
    let status = status().await?;
    let heard = |node: &NodeId| status.nodes.iter().any(|seen| seen.heard && seen.name == settings.node_name(*node));
    let others = (0..settings.nodes.len() as u8).map(NodeId).filter(|node| *node != me && heard(node));
    let asked = others.map(|peer| peers::connections_to_us(replica, peer));
    let mut all = futures_util::future::join_all(asked).await;
    // Its own HAProxy ends meanwhile, and says nothing any more: whoever has it end waits for that.
    all.push(Some(peers::connections(&status, settings.node_name(me)).unwrap_or_default()));
    sum(all, services)
}

/// The connections to these services, by what each HAProxy says; none when one of them does not tell.
fn sum(all: Vec<Option<BTreeMap<String, u64>>>, services: &BTreeSet<String>) -> Option<u64> {
    let to_these = |told: BTreeMap<String, u64>| -> u64 {
        told.iter().filter(|(name, _)| services.contains(*name)).map(|(_, connections)| connections).sum()
    };
    all.into_iter().map(|told| told.map(to_these)).sum()
}

/// Lets HAProxy end: it takes nothing new, tells those that are connected to go elsewhere, each in its protocol's words, and ends
/// with the last of them. What is left at the deadline is closed. One that does not run has nothing to end.
pub async fn end_connections(deadline: Duration) -> Result<(), String> {
    let begun = Instant::now();
    let (mut asked, mut cut, mut trouble) = (false, false, None);
    loop {
        let late = begun.elapsed() >= deadline;
        let looked = match systemd::runs(paths::HAPROXY_UNIT).await {
            Ok(false) => break,
            Ok(true) if late && !cut => {
                info!("connections are left after {} s: they are closed", deadline.as_secs());
                systemd::signal(paths::HAPROXY_UNIT, Signal::SIGTERM).await.map(|()| cut = true)
            }
            Ok(true) if !late && !asked => {
                systemd::signal(paths::HAPROXY_UNIT, Signal::SIGUSR1).await.map(|()| asked = true)
            }
            look => look.map(drop),
        };
        // It may end just now, and systemd may be busy.
        trouble = looked.err().or(trouble);
        if begun.elapsed() > deadline + CUT {
            if !(asked || cut) {
                // It is started again and again: nothing lives for long enough to be asked.
                break;
            }
            let why = trouble.map_or_else(String::new, |trouble| format!(": {trouble}"));
            return Err(format!("{} does not end{why}", paths::HAPROXY_UNIT));
        }
        tokio::time::sleep(LOOK).await;
    }
    delivered(deadline.saturating_sub(begun.elapsed()) + CUT, undelivered).await?;
    info!("all connections have ended after {} s", begun.elapsed().as_secs());
    Ok(())
}

/// Waits until clients have what HAProxy wrote for them before it ended, by what `look` finds: of a slow one's download the last
/// seconds lie in the kernel, which a restart would lose.
async fn delivered(patience: Duration, look: impl Fn() -> Result<Left, String>) -> Result<(), String> {
    let mut tail = Tail { until: Instant::now() + patience, moved: Instant::now(), left: Left::new() };
    while tail.waits(look()?, Instant::now()) {
        tokio::time::sleep(LOOK).await;
    }
    if !tail.left.is_empty() {
        info!("{} clients have not taken all that was written for them: they are not waited for", tail.left.len());
    }
    Ok(())
}

/// Bytes by the two ends of the connection.
type Left = BTreeMap<String, u32>;

/// What clients have not taken yet.
struct Tail {
    until: Instant,
    /// When one of them has last taken something.
    moved: Instant,
    left: Left,
}

impl Tail {
    /// Whether to wait on, after a look. Who takes nothing for [`STALLED`] is not waited for.
    fn waits(&mut self, left: Left, now: Instant) -> bool {
        if left != self.left {
            (self.left, self.moved) = (left, now);
        }
        !self.left.is_empty() && now < self.until && now < self.moved + STALLED
    }
}

/// Bytes, with the end itself, that were written to connections which have been closed here, and that have not been acknowledged.
/// (proc(5), `/proc/net/tcp`.)
fn undelivered() -> Result<Left, String> {
    let mut all = Left::new();
    for table in ["/proc/self/net/tcp", TCP6] {
        match fs::read_to_string(table) {
            Ok(text) => all.extend(text.lines().filter_map(undelivered_in)),
            // A kernel without IPv6.
            Err(error) if error.kind() == ErrorKind::NotFound && table == TCP6 => {}
            Err(error) => return Err(format!("{table}: {error}")),
        }
    }
    Ok(all)
}

fn undelivered_in(line: &str) -> Option<(String, u32)> {
    let mut words = line.split_whitespace().skip(1);
    let (local, remote, state, queues) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let bytes = u32::from_str_radix(queues.split_once(':')?.0, 16).ok()?;
    (CLOSED_HERE.contains(&state) && bytes > 0).then(|| (format!("{local} {remote}"), bytes))
}

const TCP6: &str = "/proc/self/net/tcp6";
/// How often the connections of the set are looked at.
const QUIET_LOOK: Duration = Duration::from_millis(500);
/// Looks in a row that find no connection: the first may come before all nodes know of the drain.
const QUIET_LOOKS: u32 = 3;
/// How often a HAProxy that is ending is looked at: systemd tells of units that change, but not whether a message was lost.
const LOOK: Duration = Duration::from_millis(200);
/// How long a HAProxy may take to end once its deadline has come, and what it wrote to be taken.
const CUT: Duration = Duration::from_secs(10);
/// Longer than a client that is there takes nothing: a packet is sent again after 0.2, 0.4, 0.8 and 1.6 s.
const STALLED: Duration = Duration::from_secs(5);
/// `TCP_FIN_WAIT1`, `TCP_LAST_ACK` and `TCP_CLOSING` (net/tcp_states.h): our end has been sent, or waits for what is before it.
const CLOSED_HERE: [&str; 3] = ["04", "09", "0B"];

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::path::Path;

    use super::*;

    #[test]
    fn a_haproxy_that_does_not_tell_of_its_connections_may_have_some() {
        let services = ["portal".to_owned()].into();
        let told = |portal| Some([("portal".to_owned(), portal), ("echo".to_owned(), 9)].into());
        assert_eq!(sum(vec![told(2), told(3), Some(BTreeMap::new())], &services), Some(5));
        assert_eq!(sum(vec![told(0), None], &services), None);
    }

    /// A connection that was closed here with more written than its other end has room for: that end, and what is left of it.
    fn closed(address: &str) -> (TcpStream, impl Fn() -> Result<Left, String>) {
        let listener = TcpListener::bind(address).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut here, _) = listener.accept().unwrap();
        here.set_nonblocking(true).unwrap();
        while here.write(&[0; 1 << 16]).is_ok() {}
        let port = format!(":{:04X} ", here.local_addr().unwrap().port());
        // Others of this machine have closed connections, too.
        (client, move || Ok(undelivered()?.into_iter().filter(|(ends, _)| ends.contains(&port)).collect()))
    }

    #[tokio::test]
    async fn what_a_slow_client_has_not_taken_yet_is_waited_for() {
        let version6 = Path::new(TCP6).exists().then_some("[::1]:0");
        for address in version6.into_iter().chain(["127.0.0.1:0"]) {
            let (mut client, left) = closed(address);
            let begun = Instant::now();
            let mut most: u32 = 0;
            // A program that another test starts has copies of all open files until it executes.
            while most <= 1 << 16 {
                assert!(begun.elapsed() < Duration::from_secs(60), "{most}");
                most = left().unwrap().values().sum();
            }
            let early = tokio::time::timeout(LOOK * 5, delivered(Duration::from_secs(60), &left)).await;
            assert!(early.is_err(), "it was not waited for");
            let reader = tokio::task::spawn_blocking(move || std::io::copy(&mut client, &mut std::io::sink()).unwrap());
            delivered(Duration::from_secs(60), &left).await.unwrap();
            assert_eq!(left().unwrap(), Left::new());
            assert!(reader.await.unwrap() > u64::from(most));
        }
    }

    #[test]
    fn clients_are_waited_for_while_one_takes_something_and_not_beyond_the_end_of_patience() {
        let (begun, patience) = (Instant::now(), STALLED * 4);
        let new = || Tail { until: begun + patience, moved: begun, left: Left::new() };
        let left = |bytes| [("a client".to_owned(), bytes)].into();
        assert!(!new().waits(Left::new(), begun));
        let mut stalled = new();
        assert!(stalled.waits(left(9), begun));
        assert!(stalled.waits(left(9), begun + STALLED - LOOK));
        assert!(!stalled.waits(left(9), begun + STALLED));
        let mut slow = new();
        for seconds in 0..patience.as_secs() {
            assert!(slow.waits(left(99 - seconds as u32), begun + Duration::from_secs(seconds)), "{seconds}");
        }
        assert!(!slow.waits(left(9), begun + patience), "however it goes on");
        assert!(!slow.left.is_empty());
    }

    #[test]
    fn only_connections_that_were_closed_here_with_bytes_left_count() {
        let line = |state: &str, queues: &str| {
            let line = format!(
                "   7: 0A004D0A:0050 0200004D0A:AE5C {state} {queues} 01:00000014 00000000     0        0 0 2 0"
            );
            undelivered_in(&line).map(|(_, bytes)| bytes)
        };
        for state in CLOSED_HERE {
            assert_eq!(line(state, "0016FF5E:00000000"), Some(0x16_ff5e));
            assert_eq!(line(state, "00000000:00000000"), None);
        }
        for state in ["01", "05", "06", "08", "0A"] {
            assert_eq!(line(state, "0016FF5E:00000000"), None, "{state}");
        }
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        assert_eq!(undelivered_in(head), None);
        assert_eq!(undelivered_in(""), None);
    }
}
