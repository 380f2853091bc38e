//! As much of HTTP/1.1 (RFC 9112) as asking for a page and reading its answer takes.

use std::net::SocketAddr;

use super::Failure;

/// The head of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub status: u16,
    /// Length of the head, so the body's offset.
    pub len: usize,
    /// Bytes of body.
    pub body_len: usize,
    /// The server will close this connection after the answer.
    pub close: bool,
}

/// A GET request, to be sent as it is.
pub(super) fn request(target: SocketAddr, path: &str, close: bool) -> Vec<u8> {
    let connection = if close { "Connection: close\r\n" } else { "" };
    format!("GET {path} HTTP/1.1\r\nHost: {target}\r\n{connection}\r\n").into_bytes()
}

/// Reads the head of an answer; `None` while it is incomplete.
///
/// # Errors
/// `BadAnswer` for what is no HTTP/1.x answer, or one without Content-Length, which no service of the lab sends.
pub(super) fn head(bytes: &[u8]) -> Result<Option<Head>, Failure> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if bytes.len() < MAX_HEAD { Ok(None) } else { Err(Failure::BadAnswer) };
    };
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| Failure::BadAnswer)?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (version, status) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let status = status.parse().map_err(|_| Failure::BadAnswer)?;
    let mut found = Head { status, len: end + 4, body_len: 0, close: version == "HTTP/1.0" };
    let mut sized = false;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            found.body_len = value.parse().map_err(|_| Failure::BadAnswer)?;
            sized = true;
        } else if name.eq_ignore_ascii_case("connection") {
            found.close = value.eq_ignore_ascii_case("close");
        }
    }
    // HAProxy's own errors (503 and the like) carry a length as well since 2.2.
    if version.starts_with("HTTP/1.") && sized { Ok(Some(found)) } else { Err(Failure::BadAnswer) }
}

/// The name of the node that answered: the first word of the body, as the lab's service tells it.
pub(super) fn node(body: &[u8]) -> Option<String> {
    let word = body.iter().take_while(|byte| byte.is_ascii_graphic()).take(MAX_NODE);
    Some(word.map(|byte| char::from(*byte)).collect()).filter(|name: &String| !name.is_empty())
}

/// The names of nodes in order of their first appearance, so that what is kept of each answer is one small number.
#[derive(Default)]
pub(super) struct Nodes(Vec<String>);

impl Nodes {
    /// The number of a name; `None` for more than 256 of them, which no set has.
    pub fn index(&mut self, name: &str) -> Option<u8> {
        let known = self.0.iter().position(|known| known == name);
        let index = u8::try_from(known.unwrap_or(self.0.len())).ok()?;
        if known.is_none() {
            self.0.push(name.to_owned());
        }
        Some(index)
    }

    pub fn name(&self, index: u8) -> Option<&str> {
        self.0.get(usize::from(index)).map(String::as_str)
    }
}

const MAX_HEAD: usize = 8 * 1024;
const MAX_NODE: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_once_its_head_is_complete() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nConnection: Close\r\n\r\na\n";
        for cut in 0..answer.len() - 2 {
            assert_eq!(head(&answer[..cut]), Ok(None), "{cut}");
        }
        let expected = Head { status: 200, len: answer.len() - 2, body_len: 2, close: true };
        assert_eq!(head(answer), Ok(Some(expected)));
    }

    #[test]
    fn what_is_no_answer_or_has_no_length_is_refused() {
        for bad in ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "\r\n\r\n"] {
            assert_eq!(head(bad.as_bytes()), Err(Failure::BadAnswer), "{bad}");
        }
        assert_eq!(head(&vec![b'x'; MAX_HEAD]), Err(Failure::BadAnswer));
    }

    #[test]
    fn the_node_is_the_first_word_of_the_body() {
        assert_eq!(node(b"node-a\nmore\n").as_deref(), Some("node-a"));
        assert_eq!(node(b"\n"), None);
    }
}
