//! Moving a bundle: the receiver asks, the sender answers, and only blocks that the receiver lacks are moved.
//!
//! ```text
//!   receiver                                   sender (a command with a file, or a peer with a store)
//!   open 1.5.0                           ──▶
//!                                        ◀──   manifest and signature: checked before anything else is asked for
//!   bytes of root.verity, uki.blocks     ──▶   lists of blocks: checked by SHA-256
//!                                        ◀──
//!   blocks 17–20, 400 of root.erofs      ──▶   those that are in no slot, no other bundle and no earlier attempt
//!                                        ◀──   each checked by its hash before it is written
//!   done, or why not                     ──▶
//! ```
//!
//! It runs over any byte stream that two who trust each other already have: authentication is the stream's, truth is the
//! signature's. A message is its length (4 bytes, the highest first) and JSON of at most [`MAX_MESSAGE`]; an answer is followed by
//! as many bytes as it says, at most [`MAX_ANSWER`]. Unknown fields are skipped, so the next version may add some.

use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use trilith_core::set::Release;

use crate::failure::Failure;
use crate::text::plain;

mod assembly;
mod receive;
mod send;
#[cfg(test)]
mod tests;

pub use assembly::Have;
pub use receive::receive;
pub use send::send;

/// Bytes of a message, at most.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Bytes that follow an answer, at most: what a cut connection can cost, and 5 MB a second over a line of 50 ms.
pub const MAX_ANSWER: usize = 256 << 10;
/// A side that hears nothing for so long gives up. The receiver may be busy with a slow disk, but says so before.
pub const SILENCE: Duration = Duration::from_secs(60);

/// How far a transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes that came over the stream.
    pub moved: u64,
    /// Bytes that will have come when it is done; 0 as long as that is not known.
    pub total: u64,
}

/// A transfer that has ended well: the bundle is in the store, whole and checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// What it brings.
    pub release: Release,
    /// Bytes that came over the stream, in this attempt.
    pub moved: u64,
    /// Bytes of the whole bundle.
    pub size: u64,
}

/// What a receiver says.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Question {
    ask: Ask,
    #[serde(default)]
    progress: Progress,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Ask {
    /// Manifest and signature of this release, or of the only one that is offered.
    Open { release: Option<Release> },
    /// A piece of a part.
    Bytes { part: String, from: u64, length: u64 },
    /// Blocks of a part: number of the first one, and how many.
    Blocks { part: String, ranges: Vec<(u64, u64)> },
    /// Nothing: just to be heard while there is much to do here.
    Wait,
    /// It is whole.
    Done(Received),
    /// It is not taken.
    Refused { what: String, code: u8 },
}

/// What a sender says.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    /// Followed by both.
    Opened { manifest: usize, signature: usize },
    /// Followed by them.
    Bytes(usize),
    /// Heard.
    Waiting,
    /// It cannot.
    Sorry { what: String, code: u8 },
}

impl Answer {
    fn sorry(failure: &Failure) -> Answer {
        Answer::Sorry { what: plain(&failure.to_string(), MAX_REASON), code: failure.exit_code() }
    }
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, message: &impl Serialize, bytes: &[u8]) -> Result<(), Failure> {
    let text = serde_json::to_vec(message).map_err(|error| Failure::Protocol { what: error.to_string() })?;
    let mut frame = (text.len() as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(&text);
    frame.extend_from_slice(bytes);
    let written = async {
        stream.write_all(&frame).await?;
        stream.flush().await
    };
    in_time(written).await
}

async fn read<S: AsyncRead + Unpin, M: DeserializeOwned>(stream: &mut S, moved: &mut u64) -> Result<M, Failure> {
    let length = u32::from_be_bytes(exact(stream, 4, moved).await?.try_into().unwrap_or_default()) as usize;
    if length > MAX_MESSAGE {
        return Err(Failure::Protocol { what: format!("a message of {length} bytes") });
    }
    let text = exact(stream, length, moved).await?;
    serde_json::from_slice(&text).map_err(|error| {
        let shown = |text: &str| plain(text, MAX_REASON);
        Failure::Protocol { what: format!("{}: {}", shown(&String::from_utf8_lossy(&text)), shown(&error.to_string())) }
    })
}

async fn exact<S: AsyncRead + Unpin>(stream: &mut S, length: usize, moved: &mut u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; length];
    in_time(stream.read_exact(&mut bytes)).await?;
    *moved += length as u64;
    Ok(bytes)
}

async fn in_time<T>(work: impl Future<Output = std::io::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(SILENCE, work).await {
        Ok(done) => done.map_err(Failure::io("the transfer broke off")),
        Err(_) => Err(Failure::io("the transfer broke off")(std::io::ErrorKind::TimedOut.into())),
    }
}

/// Disks and hashes take their time: elsewhere, so that whoever drives the stream can do other things meanwhile.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|error| Err(Failure::io("the work was interrupted")(std::io::Error::other(error))))
}

/// Characters of the other side's words that are shown.
const MAX_REASON: usize = 500;
