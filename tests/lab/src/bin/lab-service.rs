//! The gateway services that the laboratory's nodes serve: `lab-service web` HTTP/1.1 on port 8080, `lab-service echo` TCP echo on
//! port 9001.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the node's name |
//! | `GET /healthz` | `ok`, or 503 where a file `ill` lies in the service's directory |
//! | `GET /version` | what the file `version` there says; 404 without it |
//! | `GET /bytes/N` | N bytes, at most 10 GB |
//! | `GET /slow/MS` | the node's name after MS milliseconds, at most 60,000 |
//! | `GET /proc/uptime`, `/proc/meminfo` | what the node's kernel says there |
//!
//! One thread per connection, with small stacks: the laboratory opens a few thousand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let node: &'static str = nix::unistd::gethostname()?.to_string_lossy().into_owned().leak();
    match std::env::args().nth(1).as_deref() {
        Some("web") => serve(&listen(HTTP_PORT)?, move |stream| answer_all(stream, node)),
        Some("echo") => serve(&listen(ECHO_PORT)?, echo_all),
        _ => bail!("say which: lab-service web, or lab-service echo"),
    }
    Ok(())
}

/// IPv6 sockets take IPv4 connections as well (`net.ipv6.bindv6only=0`).
fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).with_context(|| format!("cannot listen on port {port}"))
}

fn serve(listener: &TcpListener, handle: impl Fn(TcpStream) -> Result<()> + Clone + Send + 'static) {
    for stream in listener.incoming() {
        // A connection that ended before it was accepted, or too many open files: the next one may do better.
        let Ok(stream) = stream else { continue };
        if OPEN.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            OPEN.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let handle = handle.clone();
        let started = thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            // How a client leaves is its own affair.
            let _ = stream.set_nodelay(true).map_err(anyhow::Error::from).and_then(|()| handle(stream));
            OPEN.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            OPEN.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn echo_all(mut stream: TcpStream) -> Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn answer_all(mut stream: TcpStream, node: &str) -> Result<()> {
    let mut reader = BufReader::with_capacity(MAX_LINE, stream.try_clone()?);
    while let Some(request) = Request::read(&mut reader)? {
        answer(&mut stream, &request, node)?;
        if request.close {
            break;
        }
    }
    Ok(())
}

fn answer(stream: &mut TcpStream, request: &Request, node: &str) -> Result<()> {
    let number = |prefix: &str| request.path.strip_prefix(prefix).and_then(|rest| rest.parse::<u64>().ok());
    if let Some(length) = number("/bytes/").filter(|length| *length <= MAX_BYTES) {
        stream.write_all(head("200 OK", length, node, request.close).as_bytes())?;
        let mut left = length;
        while left > 0 {
            let piece = left.min(PIECE.len() as u64);
            stream.write_all(&PIECE[..usize::try_from(piece)?])?;
            left -= piece;
        }
        return Ok(());
    }
    if let Some(delay_ms) = number("/slow/").filter(|delay_ms| *delay_ms <= MAX_DELAY_MS) {
        thread::sleep(Duration::from_millis(delay_ms));
        return whole(stream, "200 OK", &format!("{node}\n"), node, request.close);
    }
    match request.path.as_str() {
        "/" => whole(stream, "200 OK", &format!("{node}\n"), node, request.close),
        "/healthz" if Path::new(FILES).join("ill").exists() => {
            whole(stream, "503 Service Unavailable", "ill\n", node, request.close)
        }
        "/version" if Path::new(FILES).join("version").exists() => {
            let version = std::fs::read_to_string(Path::new(FILES).join("version"))?;
            whole(stream, "200 OK", &version, node, request.close)
        }
        "/healthz" => whole(stream, "200 OK", "ok\n", node, request.close),
        file @ ("/proc/uptime" | "/proc/meminfo") => {
            whole(stream, "200 OK", &std::fs::read_to_string(file)?, node, request.close)
        }
        _ => whole(stream, "404 Not Found", "no such page\n", node, request.close),
    }
}

fn whole(stream: &mut TcpStream, status: &str, body: &str, node: &str, close: bool) -> Result<()> {
    let answer = head(status, body.len() as u64, node, close) + body;
    Ok(stream.write_all(answer.as_bytes())?)
}

fn head(status: &str, length: u64, node: &str, close: bool) -> String {
    let close = if close { "Connection: close\r\n" } else { "" };
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nX-Node: {node}\r\n{close}\r\n")
}

struct Request {
    path: String,
    close: bool,
}

impl Request {
    /// The next request of a connection; `None` when the client has no more.
    fn read(reader: &mut impl BufRead) -> Result<Option<Request>> {
        let Some(first) = line(reader)? else {
            return Ok(None);
        };
        let mut words = first.split(' ');
        let (Some("GET"), Some(path), Some(version)) = (words.next(), words.next(), words.next()) else {
            bail!("only GET is served");
        };
        let mut request = Request { path: path.to_owned(), close: version == "HTTP/1.0" };
        for _ in 0..MAX_HEADERS {
            match line(reader)? {
                Some(header) if !header.is_empty() => {
                    request.close |= header.eq_ignore_ascii_case("connection: close");
                }
                Some(_) => return Ok(Some(request)),
                None => bail!("the request ends early"),
            }
        }
        bail!("too many headers")
    }
}

fn line(reader: &mut impl BufRead) -> Result<Option<String>> {
    let mut bytes = Vec::new();
    reader.take(MAX_LINE as u64).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.pop() != Some(b'\n') {
        bail!("a line is too long");
    }
    Ok(Some(String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned()))
}

static OPEN: AtomicUsize = AtomicUsize::new(0);
static PIECE: [u8; 64 * 1024] = [b'.'; 64 * 1024];

/// What an image of the service may bring beside the program.
const FILES: &str = "/usr/share/lab-service";
const HTTP_PORT: u16 = 8080;
const ECHO_PORT: u16 = 9001;
const MAX_CONNECTIONS: usize = 8_000;
const STACK_BYTES: usize = 128 * 1024;
const MAX_LINE: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;
const MAX_BYTES: u64 = 10_000_000_000;
const MAX_DELAY_MS: u64 = 60_000;
