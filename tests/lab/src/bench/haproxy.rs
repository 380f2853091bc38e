//! What a node's HAProxy says over its runtime socket.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::NODES;
use crate::node::Node;

/// The connections of the echo service that this node's HAProxy carries: the client's port, and the node that serves it.
///
/// # Errors
/// When HAProxy does not answer.
pub fn sessions(node: &Node) -> Result<BTreeMap<u16, String>> {
    let text = ask(node, "show sess")?;
    let session = |line: &str| {
        let word = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key));
        word("fe=").filter(|frontend| *frontend == "fe_echo")?;
        let port = word("src=")?.rsplit(':').next()?.parse().ok()?;
        Some((port, word("srv=")?.to_owned()))
    };
    Ok(text.lines().filter_map(session).collect())
}

/// The servers that this node's HAProxy sends nothing to, as `backend/server state`.
///
/// # Errors
/// When HAProxy does not answer.
pub fn servers_down(node: &Node) -> Result<Vec<String>> {
    let text = ask(node, "show stat")?;
    let down = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        let (proxy, server, state) = (fields.first()?, fields.get(1)?, fields.get(STATUS)?);
        let is_server = proxy.starts_with("be_") && *server != "BACKEND";
        (is_server && *state != "UP").then(|| format!("{proxy}/{server} {state}"))
    };
    Ok(text.lines().filter_map(down).collect())
}

/// Ends all connections of the echo service that this node's HAProxy still knows: those whose client is long gone, too.
///
/// # Errors
/// When HAProxy does not answer.
pub fn forget_sessions(node: &Node) -> Result<()> {
    NODES.iter().try_for_each(|server| ask(node, &format!("shutdown sessions server be_echo/{server}")).map(drop))
}

fn ask(node: &Node, command: &str) -> Result<String> {
    let what = || format!("HAProxy of node {}: {command}", node.name());
    let mut stream = UnixStream::connect(node.path(SOCKET)?).with_context(what)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{command}\n").as_bytes()).with_context(what)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(what)?;
    Ok(text)
}

const SOCKET: &str = "/run/trilith/haproxy/admin.sock";
const PATIENCE: Duration = Duration::from_secs(10);
/// Column of `status` in HAProxy's statistics (management guide, 9.1).
const STATUS: usize = 17;
