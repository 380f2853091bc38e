//! The node's own test of its HAProxy: a real HTTP request through the VIP on `lo`.
//!
//! A HAProxy that has as many connections as it may does not accept this one either. It serves those that it has, so it counts as
//! one that answers: to kill it, or to move its VIP to nodes that will soon be as full, would only break them.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use trilith_core::command::Command;
use trilith_core::config::{FRONT_PORT, Settings};
use trilith_core::event::{Event, Probe};
use trilith_core::health::PROBE_TIMEOUT;

use crate::haproxy::{FRONT_PATH, Master};

/// How many commands may wait.
const QUEUE: usize = 4;

/// The running shell.
pub struct Handle {
    /// Takes [`Command::Probe`] of [`Probe::Front`].
    pub commands: mpsc::Sender<Command>,
}

/// After a probe without an answer, HAProxy may take this part of its patience to say that it is full: a small one, because one that
/// hangs says nothing.
const FULL_PATIENCE: u32 = 5;

/// Starts to take commands. One probe runs at a time, so there is never more than one outstanding.
pub fn start(settings: &Settings, haproxy: Master, events: mpsc::Sender<Event>) -> Handle {
    let (target, patience) = (target(settings), PROBE_TIMEOUT * settings.set.lease.slowness());
    let (commands, mut queue) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        while let Some(command) = queue.recv().await {
            match command {
                Command::Probe(Probe::Front) => {
                    let answered = answers_in_time(target, patience).await
                        || timeout(patience / FULL_PATIENCE, haproxy.is_full()).await == Ok(true);
                    if events.send(Event::Probed { probe: Probe::Front, answered }).await.is_err() {
                        return;
                    }
                }
                other => tracing::error!(?other, "not a command for the front"),
            }
        }
    });
    Handle { commands }
}

/// The first VIP: HAProxy's threads serve all of them, so more would only cost more.
fn target(settings: &Settings) -> SocketAddr {
    SocketAddr::new(settings.vips[0].address, FRONT_PORT)
}

async fn answers_in_time(target: SocketAddr, patience: Duration) -> bool {
    matches!(timeout(patience, answers(target)).await, Ok(Ok(true)))
}

/// A new connection each time, because to accept one is what HAProxy must be able to do.
async fn answers(target: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(target).await?;
    let request = format!("GET {FRONT_PATH} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut status = [0; b"HTTP/1.1 200 ".len()];
    stream.read_exact(&mut status).await?;
    Ok(status.starts_with(b"HTTP/1.") && status.ends_with(b" 200 "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::haproxy::testing::{self, until};

    #[tokio::test]
    async fn only_a_proper_200_in_time_is_an_answer() {
        for (reply, expected) in [
            (Some("HTTP/1.1 200 OK\r\n\r\n"), true),
            (Some("HTTP/1.0 200 OK\r\n\r\n"), true),
            (Some("HTTP/1.1 503 Service Unavailable\r\n\r\n"), false),
            (Some("HTTP/1.1 200"), false),
            (Some("SSH-2.0-OpenSSH_9.2p1 200 \r\n"), false),
            (None, false),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let target = listener.local_addr().unwrap();
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                match reply {
                    Some(reply) => {
                        let _ = stream.read(&mut [0; 1024]).await;
                        stream.write_all(reply.as_bytes()).await.unwrap();
                    }
                    None => std::future::pending().await,
                }
            });
            // Only silence is waited for as briefly as the supervisor does.
            let patience = if reply.is_some() { testing::PATIENCE } else { PROBE_TIMEOUT };
            assert_eq!(answers_in_time(target, patience).await, expected, "{reply:?}");
            server.abort();
        }
    }

    #[tokio::test]
    async fn nobody_there_is_no_answer() {
        // Bound, so that nobody else listens there.
        let nobody = tokio::net::TcpSocket::new_v4().unwrap();
        nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(!answers_in_time(nobody.local_addr().unwrap(), PROBE_TIMEOUT).await);
    }

    #[tokio::test]
    async fn a_real_haproxy_answers_its_own_node_only_and_not_while_it_hangs() {
        let Some(root) =
            testing::inside("front::tests::a_real_haproxy_answers_its_own_node_only_and_not_while_it_hangs")
        else {
            return;
        };
        let settings = testing::plain_settings();
        testing::install(&root, &settings);
        let (events, mut received) = mpsc::channel(4);
        let handle = start(&settings, testing::master(&root), events);
        let mut ask = async || {
            handle.commands.send(Command::Probe(Probe::Front)).await.unwrap();
            let Some(Event::Probed { probe: Probe::Front, answered }) = received.recv().await else {
                panic!("a probe is answered");
            };
            answered
        };
        assert!(!ask().await, "before HAProxy runs");
        let proxy = testing::Proxy::start(&root).await;
        until("HAProxy runs", &mut ask).await;
        let stranger = tokio::net::TcpSocket::new_v4().unwrap();
        stranger.bind("10.77.0.12:0".parse().unwrap()).unwrap();
        let mut heard = Vec::new();
        // Refused before or after the connection is complete.
        if let Ok(mut stream) = stranger.connect("10.77.0.10:9909".parse().unwrap()).await {
            let _ = stream.write_all(b"GET /trilith/front HTTP/1.0\r\n\r\n").await;
            let _ = stream.read_to_end(&mut heard).await;
        }
        assert!(heard.is_empty(), "another node is answered");
        proxy.signal("STOP");
        assert!(!ask().await, "HAProxy hangs");
        proxy.signal("CONT");
        until("HAProxy goes on", &mut ask).await;
        proxy.kill().await;
        assert!(!ask().await, "HAProxy is dead");
    }

    #[tokio::test]
    async fn a_haproxy_that_is_full_counts_as_one_that_answers() {
        const MOST: usize = 20;
        let Some(root) = testing::inside("front::tests::a_haproxy_that_is_full_counts_as_one_that_answers") else {
            return;
        };
        let settings = testing::plain_settings();
        testing::install(&root, &settings);
        let path = root.join("run/trilith/haproxy.cfg");
        let limit = format!("    maxconn {MOST}");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().map(|line| if line.trim_start().starts_with("maxconn ") { &limit } else { line });
        std::fs::write(&path, lines.collect::<Vec<_>>().join("\n") + "\n").unwrap();
        let _proxy = testing::Proxy::start(&root).await;
        let master = testing::master(&root);
        assert!(!master.is_full().await);
        let mut idle = Vec::new();
        for _ in 0..2 * MOST {
            idle.push(TcpStream::connect(("10.77.0.10", 80)).await.unwrap());
        }
        until("HAProxy is full", async || master.is_full().await).await;
        assert!(!answers_in_time(target(&settings), PROBE_TIMEOUT).await, "it does not accept the probe");
        let (events, mut received) = mpsc::channel(4);
        let handle = start(&settings, master, events);
        let answered = Event::Probed { probe: Probe::Front, answered: true };
        // It has a twentieth of a second to say so, which a busy machine may need for something else.
        until("a full one is taken for one that answers", async || {
            handle.commands.send(Command::Probe(Probe::Front)).await.unwrap();
            received.recv().await.as_ref() == Some(&answered)
        })
        .await;
    }
}
