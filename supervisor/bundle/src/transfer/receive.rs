//! The side that asks.

use tokio::io::{AsyncRead, AsyncWrite};
use trilith_core::set::Release;

use super::assembly::{Assembly, Hashing, Have};
use super::{Answer, Ask, MAX_ANSWER, Progress, Question, Received, aside, exact, read, write};
use crate::failure::Failure;
use crate::manifest::{
    Kind, MAX_MANIFEST, Manifest, Part, ROOT, SERVICE, SERVICE_BLOCKS, UKI, UKI_BLOCKS, VERITY, Verified,
};
use crate::refusal::Refusal;
use crate::store::{Partial, Store};
use crate::text::plain;
use crate::verity::Tree;
use crate::{Hash, Keys};

/// Takes a bundle from the other side of a stream into the store. `release`: which one, when the other side has several. `admit`
/// is asked as soon as the signature is known to be good. `progress` is told now and then, at least once in [`super::SILENCE`].
///
/// What came is kept when this ends early: the next attempt goes on.
///
/// # Errors
/// The bundle is refused, the disk is full or fails, or the stream broke off. The other side is told.
pub async fn receive<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    release: Option<Release>,
    store: &Store,
    keys: &Keys,
    admit: impl FnOnce(&Verified) -> Result<(), Refusal>,
    have: Have,
    progress: impl FnMut(Progress),
) -> Result<Received, Failure> {
    let mut receiver = Receiver { stream, told: progress, progress: Progress::default() };
    let ended = receiver.run(release, store, keys, admit, have).await;
    let farewell = match &ended {
        Ok(received) => Ask::Done(received.clone()),
        Err(Failure::Other { .. }) => return ended,
        Err(failure) => {
            Ask::Refused { what: plain(&failure.to_string(), super::MAX_REASON), code: failure.exit_code() }
        }
    };
    let told = receiver.say(farewell).await;
    ended.and_then(|received| told.map(|()| received))
}

struct Receiver<'a, S, P> {
    stream: &'a mut S,
    told: P,
    progress: Progress,
}

impl<S: AsyncRead + AsyncWrite + Unpin, P: FnMut(Progress)> Receiver<'_, S, P> {
    async fn run(
        &mut self,
        release: Option<Release>,
        store: &Store,
        keys: &Keys,
        admit: impl FnOnce(&Verified) -> Result<(), Refusal>,
        mut have: Have,
    ) -> Result<Received, Failure> {
        let verified = self.open(release.as_ref(), keys).await?;
        let manifest = verified.manifest().clone();
        if release.is_some_and(|release| release != manifest.release()) {
            return Err(Failure::Protocol {
                what: format!("{} was asked for, {} came", manifest.release(), manifest.version),
            });
        }
        admit(&verified)?;
        let store = store.clone();
        let begun = aside(move || {
            add_bundles(&store, &mut have)?;
            Ok((store.begin(&verified)?, have))
        });
        let (begun, have) = begun.await?;
        let received = |moved| Received { release: manifest.release(), moved, size: manifest.size() };
        let Some(mut partial) = begun else { return Ok(received(self.progress.moved)) };
        for list in manifest.needed().filter(|part| is_list(&part.name)) {
            partial = self.fetch_list(partial, list).await?;
        }
        let parts = manifest.clone();
        let (partial, assemblies) = self.busy(move || assemble(partial, &parts, &have)).await?;
        self.progress.total = self.progress.moved + assemblies.iter().map(Assembly::bytes_wanted).sum::<u64>();
        for assembly in assemblies {
            self.fetch_blocks(assembly).await?;
        }
        self.busy(move || partial.finish()).await?;
        self.progress.total = self.progress.moved;
        Ok(received(self.progress.moved))
    }

    async fn open(&mut self, release: Option<&Release>, keys: &Keys) -> Result<Verified, Failure> {
        match self.ask(Ask::Open { release: release.cloned() }).await? {
            Answer::Opened { manifest, signature } if manifest.max(signature) <= MAX_MANIFEST => {
                let manifest = exact(self.stream, manifest, &mut self.progress.moved).await?;
                let signature = exact(self.stream, signature, &mut self.progress.moved).await?;
                Ok(Verified::open(&manifest, &signature, keys)?)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// A list of blocks is small and is moved whole, unless it is there already.
    async fn fetch_list(&mut self, partial: Partial, list: &Part) -> Result<Partial, Failure> {
        use sha2::{Digest as _, Sha256};
        let (path, expected) = (partial.part(&list.name), list.sha256);
        let there =
            aside(move || Ok(std::fs::read(path).is_ok_and(|bytes| Hash(Sha256::digest(bytes).into()) == expected)));
        if there.await? {
            return Ok(partial);
        }
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < list.size {
            let (from, length) = (bytes.len() as u64, (list.size - bytes.len() as u64).min(MAX_ANSWER as u64));
            bytes.extend(self.bytes(Ask::Bytes { part: list.name.clone(), from, length }, length).await?);
        }
        let name = list.name.clone();
        aside(move || {
            if Hash(Sha256::digest(&bytes).into()) != expected {
                return Err(Refusal::corrupted(&name, "its SHA-256 is not that of the manifest").into());
            }
            partial.put(&name, &bytes)?;
            Ok(partial)
        })
        .await
    }

    async fn fetch_blocks(&mut self, mut assembly: Assembly) -> Result<(), Failure> {
        loop {
            let ranges = assembly.next();
            if ranges.is_empty() {
                return Ok(());
            }
            let length = assembly.length(&ranges);
            let bytes =
                self.bytes(Ask::Blocks { part: assembly.name().to_owned(), ranges: ranges.clone() }, length).await?;
            assembly = aside(move || assembly.take(&ranges, &bytes).map(|()| assembly)).await?;
        }
    }

    async fn bytes(&mut self, ask: Ask, length: u64) -> Result<Vec<u8>, Failure> {
        match self.ask(ask).await? {
            Answer::Bytes(found) if found as u64 == length => {
                let bytes = exact(self.stream, found, &mut self.progress.moved).await?;
                (self.told)(self.progress);
                Ok(bytes)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Long work: the other side is told that it goes on.
    async fn busy<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let work = aside(work);
        tokio::pin!(work);
        loop {
            match tokio::time::timeout(super::SILENCE / 4, &mut work).await {
                Ok(done) => return done,
                Err(_) => match self.ask(Ask::Wait).await? {
                    Answer::Waiting => (self.told)(self.progress),
                    other => return Err(unexpected(&other)),
                },
            }
        }
    }

    async fn ask(&mut self, ask: Ask) -> Result<Answer, Failure> {
        self.say(ask).await?;
        match read(self.stream, &mut self.progress.moved).await? {
            Answer::Sorry { what, code } => Err(Failure::Other { what: plain(&what, super::MAX_REASON), code }),
            answer => Ok(answer),
        }
    }

    async fn say(&mut self, ask: Ask) -> Result<(), Failure> {
        write(self.stream, &Question { ask, progress: self.progress }, &[]).await
    }
}

fn unexpected(answer: &Answer) -> Failure {
    Failure::Protocol { what: plain(&format!("{answer:?} is no answer to that"), super::MAX_REASON) }
}

fn is_list(name: &str) -> bool {
    [VERITY, UKI_BLOCKS, SERVICE_BLOCKS].contains(&name)
}

/// The bundles that are here already have blocks, too.
fn add_bundles(store: &Store, have: &mut Have) -> Result<(), Failure> {
    for release in store.list()? {
        let path = store.path(&release);
        match release.service {
            None => {
                have.roots.push((path.join(ROOT), path.join(VERITY)));
                have.files.push(path.join(UKI));
            }
            Some(_) => have.files.push(path.join(SERVICE)),
        }
    }
    Ok(())
}

/// All parts that are made of blocks, with what is found here in them.
fn assemble(partial: Partial, manifest: &Manifest, have: &Have) -> Result<(Partial, Vec<Assembly>), Failure> {
    let list = |name: &str| {
        let path = partial.part(name);
        let bytes = std::fs::read(&path).map_err(Failure::file("read", &path))?;
        Ok::<_, Failure>(
            bytes.chunks_exact(32).map(|hash| Hash(hash.try_into().unwrap_or_default())).collect::<Vec<_>>(),
        )
    };
    let mut assemblies = Vec::new();
    let parts: &[(&str, &str)] = match manifest.kind {
        Kind::Os => &[(UKI, UKI_BLOCKS), (ROOT, VERITY)],
        Kind::Service => &[(SERVICE, SERVICE_BLOCKS)],
    };
    for (name, by) in parts {
        let Some(part) = manifest.part(name) else { continue };
        let (hashing, expected) = match *by == VERITY {
            true => {
                let path = partial.part(VERITY);
                let bytes = std::fs::read(&path).map_err(Failure::file("read", &path))?;
                let root = manifest.roothash.unwrap_or(Hash([0; 32]));
                let tree = Tree::open(&bytes, root).map_err(|what| Refusal::corrupted(VERITY, what))?;
                let leaves = tree.leaves().to_vec();
                (Hashing::Tree(tree), leaves)
            }
            false => (Hashing::Plain, list(by)?),
        };
        if expected.len() as u64 != part.size.div_ceil(crate::BLOCK as u64) {
            return Err(
                Refusal::corrupted(*by, format!("it is the list of something longer or shorter than {name}")).into()
            );
        }
        assemblies.push(Assembly::begin(partial.part(name), part, &expected, hashing, have)?);
    }
    Ok((partial, assemblies))
}
