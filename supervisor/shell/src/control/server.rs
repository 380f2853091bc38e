//! The supervisor's side of the control socket.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, chown};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::peer::{ADMIN_GROUP, Peer, admin_group};
use super::{ANSWER_WITHIN, MAX_CONNECTIONS, MAX_REQUEST, PATIENCE, Request, Response, read};

/// A request, and where its answer goes. A dropped sender is answered for: the supervisor is going down.
type Exchange = (Request, oneshot::Sender<Response>);

/// Opens the socket at `path` and passes every request on to `requests`, until the runtime ends. The socket's file is left
/// behind; the next start replaces it.
///
/// # Errors
/// Another supervisor answers at `path`, or the socket can't be made.
pub fn start(path: &Path, requests: mpsc::Sender<Exchange>) -> anyhow::Result<()> {
    let group = admin_group();
    let listener = listen(path, group)?;
    tokio::spawn(accept(listener, group, move |stream, peer| {
        let requests = requests.clone();
        async move { serve(stream, peer, &requests).await }
    }));
    Ok(())
}

/// Opens a socket for root and the group.
///
/// # Errors
/// Somebody answers there already, or it can't be made.
pub(crate) fn listen(path: &Path, group: Option<Gid>) -> anyhow::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!("another one answers at {}: see systemctl list-units 'trilith*'", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // The socket of a supervisor that is gone.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("removing the old socket {}", path.display()))?;
        }
        Err(error) => return Err(error).with_context(|| format!("looking for the socket {}", path.display())),
    }
    // Never open to others, not even between two calls: Linux gives the file the mode that the socket has when it is bound. (A
    // umask is that of the whole process, whatever its other threads make meanwhile.)
    let open = || -> io::Result<UnixListener> {
        let socket = UnixSocket::new_stream()?;
        fchmod(socket.as_fd(), Mode::from_bits_truncate(0o600))?;
        socket.bind(path)?;
        socket.listen(BACKLOG)
    };
    let listener = open().with_context(|| format!("opening the control socket {}", path.display()))?;
    let mut mode = 0o600;
    if let Some(group) = group {
        // Without CAP_CHOWN it takes a member of the group: SupplementaryGroups= in the supervisor's unit.
        match chown(path, None, Some(group)) {
            Ok(()) => mode = 0o660,
            Err(error) => {
                tracing::warn!("giving {} to group {ADMIN_GROUP}: {error}; only root may ask", path.display())
            }
        }
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("closing the control socket {} to others", path.display()))?;
    Ok(listener)
}

/// Accepts connections of those who may ask, at most [`MAX_CONNECTIONS`] at a time, until the runtime ends.
pub(crate) async fn accept<F: Future<Output = io::Result<()>> + Send + 'static>(
    listener: UnixListener,
    group: Option<Gid>,
    serve: impl Fn(UnixStream, Peer) -> F,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let peer = match Peer::of(stream.as_fd(), group) {
                    Ok(peer) => peer,
                    Err(error) => {
                        tracing::warn!("control connection refused: {error}");
                        continue;
                    }
                };
                let served = serve(stream, peer);
                tokio::spawn(async move {
                    if let Err(error) = served.await {
                        tracing::debug!("control connection ended: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of files or memory: the condition can't be awaited, and asking again at once would take the CPU.
                tracing::warn!("control socket: accepting a connection failed: {error}");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }
}

/// Serves one connection until its end, its silence, or a line that can't be read.
async fn serve(stream: UnixStream, peer: Peer, requests: &mpsc::Sender<Exchange>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut reader).take(MAX_REQUEST as u64);
        timeout(PATIENCE, bounded.read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let whole = line.last() == Some(&b'\n');
        let response = match whole {
            true => respond(&line, peer, requests).await,
            false => invalid(format!("a request is one line of at most {MAX_REQUEST} bytes")),
        };
        let mut bytes = serde_json::to_vec(&response)?;
        bytes.push(b'\n');
        timeout(PATIENCE, writer.write_all(&bytes)).await??;
        if !whole {
            return Ok(());
        }
    }
}

async fn respond(line: &[u8], peer: Peer, requests: &mpsc::Sender<Exchange>) -> Response {
    let request = match read(line) {
        Ok(request) => request,
        Err(response) => return response,
    };
    if request == Request::Status {
        return put(request, requests).await;
    }
    let asked = format!("uid {} (pid {}) asked to {request}", peer.uid, peer.pid);
    let response = put(request, requests).await;
    tracing::info!("{asked}: {}", response.text());
    response
}

/// Puts a request to the supervisor and waits for its answer.
async fn put(request: Request, requests: &mpsc::Sender<Exchange>) -> Response {
    let (sender, receiver) = oneshot::channel();
    let answered = async {
        requests.send((request, sender)).await.ok()?;
        receiver.await.ok()
    };
    match timeout(ANSWER_WITHIN, answered).await {
        Ok(Some(response)) => response,
        Ok(None) => {
            Response::Refused { text: "the supervisor is shutting down; try again in a few seconds".to_owned() }
        }
        Err(_) => Response::TimedOut {
            text: format!(
                "the supervisor did not answer within {} s; the node's logs say more",
                ANSWER_WITHIN.as_secs()
            ),
        },
    }
}

fn invalid(text: String) -> Response {
    Response::Invalid { text }
}

/// How many may wait to be accepted.
const BACKLOG: u32 = 128;

#[cfg(test)]
mod tests {
    use super::super::client::{Unanswered, ask};
    use super::*;
    use std::io::{BufRead, Write};
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    /// A socket of its own for one test, gone at its end.
    struct Socket(PathBuf);

    impl Socket {
        fn new(test: &str) -> Socket {
            Socket(std::env::temp_dir().join(format!("trilith-control-{test}-{}.sock", std::process::id())))
        }
    }

    impl Drop for Socket {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// Leaves the file of a socket behind that nobody listens on any more.
    fn leave_behind(socket: &Socket) {
        drop(std::os::unix::net::UnixListener::bind(&socket.0).unwrap());
        // A program that another test starts has a copy of the listener until it executes.
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket.0).is_ok() {
            assert!(start.elapsed() < Duration::from_secs(60), "somebody listens at {}", socket.0.display());
            std::thread::yield_now();
        }
    }

    /// A supervisor that says back what it was asked.
    async fn echo(socket: &Socket) {
        let (requests, mut asked) = mpsc::channel::<Exchange>(MAX_CONNECTIONS);
        start(&socket.0, requests).unwrap();
        tokio::spawn(async move {
            while let Some((request, reply)) = asked.recv().await {
                let _ = reply.send(Response::done(format!("{request:?}")));
            }
        });
    }

    async fn asked(socket: &Socket, request: Request) -> Result<Response, Unanswered> {
        let path = socket.0.clone();
        tokio::task::spawn_blocking(move || ask(&path, request)).await.unwrap()
    }

    /// Sends raw bytes and returns the first line that comes back, empty when the connection is closed without one.
    async fn said_to(socket: &Socket, bytes: Vec<u8>) -> String {
        let path = socket.0.clone();
        let talk = move || {
            let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            // The other side may close before it has read everything.
            let _ = (&stream).write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut line = String::new();
            let _ = std::io::BufReader::new(stream).read_line(&mut line);
            line
        };
        tokio::task::spawn_blocking(talk).await.unwrap()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_request_is_answered_and_only_root_and_the_admins_may_ask() {
        let socket = Socket::new("answered");
        echo(&socket).await;
        let file = std::fs::metadata(&socket.0).unwrap();
        match admin_group() {
            Some(group) => assert_eq!((file.mode() & 0o777, file.gid()), (0o660, group.as_raw())),
            None => assert_eq!(file.mode() & 0o777, 0o600),
        }
        let request = Request::VipMove { vip: "public".to_owned(), node: "b".to_owned() };
        let answer = asked(&socket, request).await.unwrap();
        assert_eq!(answer, Response::done("VipMove { vip: \"public\", node: \"b\" }".to_owned()));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_supervisor_that_is_not_there_is_said_to_be_not_running() {
        let socket = Socket::new("absent");
        let error = asked(&socket, Request::Status).await.unwrap_err();
        assert!(matches!(&error, Unanswered::NotRunning(text) if text.ends_with("the node's logs say why")), "{error}");
        leave_behind(&socket);
        assert!(matches!(asked(&socket, Request::Status).await.unwrap_err(), Unanswered::NotRunning(_)));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
        let socket = Socket::new("left");
        leave_behind(&socket);
        echo(&socket).await;
        assert!(asked(&socket, Request::Status).await.is_ok());
        let (requests, _asked) = mpsc::channel(1);
        let error = start(&socket.0, requests).unwrap_err();
        assert!(error.to_string().starts_with("another one answers at "), "{error}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn noise_is_answered_in_words_and_never_reaches_the_supervisor() {
        let socket = Socket::new("noise");
        echo(&socket).await;
        for (bytes, words) in [
            (b"hello\n".to_vec(), "not understood"),
            (b"\xff\xfe\x00\n".to_vec(), "not understood"),
            (b"{\"version\":9,\"request\":\"status\"}\n".to_vec(), "speaks version 1, not 9"),
            (b"{\"version\":1,\"request\":\"reboot\"}\n".to_vec(), "not understood"),
            (b"{\"version\":1,\"request\":\"status\",\"x\":1}\n".to_vec(), "not understood"),
            (b"{\"version\":1,\"request\":\"status\"}".to_vec(), "one line of at most 65536 bytes"),
            (vec![b'['; MAX_REQUEST * 4], ""),
            (Vec::new(), ""),
        ] {
            let said = said_to(&socket, bytes).await;
            assert!(said.contains(words) && !said.contains("done"), "{said}");
        }
        assert!(asked(&socket, Request::Status).await.is_ok());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn more_connections_than_places_wait_and_are_then_served() {
        let socket = Socket::new("many");
        echo(&socket).await;
        let idle: Vec<_> =
            (0..MAX_CONNECTIONS).map(|_| std::os::unix::net::UnixStream::connect(&socket.0).unwrap()).collect();
        let path = socket.0.clone();
        let waiting = tokio::task::spawn_blocking(move || ask(&path, Request::Status));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!waiting.is_finished());
        drop(idle);
        assert!(waiting.await.unwrap().is_ok());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_supervisor_that_goes_down_says_so() {
        let socket = Socket::new("down");
        let (requests, asked_for) = mpsc::channel(1);
        start(&socket.0, requests).unwrap();
        drop(asked_for);
        let answer = asked(&socket, Request::Status).await.unwrap();
        assert!(matches!(answer, Response::Refused { text } if text.contains("shutting down")));
    }
}
