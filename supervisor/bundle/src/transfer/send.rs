//! The side that answers.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use trilith_core::set::Release;

use super::{Answer, Ask, MAX_ANSWER, Progress, Question, Received, aside, read, write};
use crate::BLOCK;
use crate::failure::Failure;
use crate::source::Source;
use crate::text::plain;

/// Answers the other side of a stream until it has what it wants. `open` finds the bundle that is asked for: a command has only
/// one, a peer looks into its store. `progress` is what the receiver says.
///
/// # Errors
/// The receiver refuses the bundle ([`Failure::Other`], with its reason and exit code), or the stream broke off.
pub async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    mut open: impl FnMut(Option<&Release>) -> Result<Source, Failure>,
    mut progress: impl FnMut(Progress),
) -> Result<Received, Failure> {
    let mut source: Option<Arc<Source>> = None;
    loop {
        let question: Question = read(stream, &mut 0).await?;
        progress(question.progress);
        let opened = || {
            source.clone().ok_or_else(|| Failure::Protocol { what: "a part of a bundle that was not opened".into() })
        };
        let answer = match question.ask {
            Ask::Done(received) => return Ok(received),
            Ask::Refused { what, code } => return Err(Failure::Other { what: plain(&what, super::MAX_REASON), code }),
            Ask::Wait => Ok((Answer::Waiting, Vec::new())),
            Ask::Open { release } => open(release.as_ref()).map(|found| {
                let bytes = [found.manifest(), found.signature()].concat();
                let answer = Answer::Opened { manifest: found.manifest().len(), signature: found.signature().len() };
                source = Some(Arc::new(found));
                (answer, bytes)
            }),
            Ask::Bytes { part, from, length } => match opened() {
                Ok(source) => aside(move || bytes(&source, &part, &[(from, length)])).await,
                Err(failure) => Err(failure),
            },
            Ask::Blocks { part, ranges } => match opened() {
                Ok(source) => aside(move || blocks(&source, &part, &ranges)).await,
                Err(failure) => Err(failure),
            },
        };
        match answer {
            Ok((answer, bytes)) => write(stream, &answer, &bytes).await?,
            Err(failure) => {
                write(stream, &Answer::sorry(&failure), &[]).await?;
                return Err(failure);
            }
        }
    }
}

/// The last block of a part may be shorter than the others.
fn blocks(source: &Source, part: &str, ranges: &[(u64, u64)]) -> Result<(Answer, Vec<u8>), Failure> {
    let size = source.size(part).unwrap_or_default();
    let extent = |(first, count): &(u64, u64)| {
        let from = first.saturating_mul(BLOCK as u64);
        (from, count.saturating_mul(BLOCK as u64).min(size.saturating_sub(from)))
    };
    bytes(source, part, &ranges.iter().map(extent).collect::<Vec<_>>())
}

fn bytes(source: &Source, part: &str, extents: &[(u64, u64)]) -> Result<(Answer, Vec<u8>), Failure> {
    let length = extents.iter().fold(0_u64, |sum, (_, length)| sum.saturating_add(*length));
    if length > MAX_ANSWER as u64 {
        return Err(Failure::Protocol { what: format!("{length} bytes at once; at most {MAX_ANSWER} are possible") });
    }
    let mut bytes = vec![0; length as usize];
    let mut rest = &mut bytes[..];
    for (from, length) in extents {
        let (piece, others) = rest.split_at_mut(*length as usize);
        let what = || format!("{} cannot be read from byte {from} on", plain(part, 64));
        source.read_at(part, *from, piece).map_err(|error| Failure::io(what())(error))?;
        rest = others;
    }
    Ok((Answer::Bytes(bytes.len()), bytes))
}
