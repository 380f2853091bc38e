//! Two sides of a stream in one process, with a wire that can be cut and can lie.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context as Task, Poll};

use minisign::KeyPair;
use tokio::io::{DuplexStream, ReadBuf};
use trilith_core::slots::Version;

use super::*;
use crate::BLOCK;
use crate::source::Source;
use crate::store::Store;
use crate::testing::{System, context, keys, pair, service};

const BLOCKS: usize = 300;
const NEW: Version = Version::new(1, 5, 0);

/// A node with version 1.4.0 in its slot, and a bundle of 1.5.0 in which these blocks differ.
struct Scene {
    directory: tempfile::TempDir,
    pair: KeyPair,
    have: Have,
}

impl Scene {
    fn new() -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let old = System::new(Version::new(1, 4, 0), BLOCKS, &[]);
        let at = directory.path().join("slot");
        std::fs::create_dir(&at).unwrap();
        old.files(&at);
        // A partition is larger than what is in it.
        let verity = std::fs::OpenOptions::new().append(true).open(at.join("root.verity")).unwrap();
        verity.set_len(1 << 20).unwrap();
        let have =
            Have { roots: vec![(at.join("root.erofs"), at.join("root.verity"))], files: vec![at.join("trilith.efi")] };
        Scene { directory, pair: pair(), have }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn store(&self) -> Store {
        Store::open(&self.path().join("bundles")).unwrap()
    }

    fn bundle(&self, changed: &[usize]) -> std::path::PathBuf {
        System::new(NEW, BLOCKS, changed).bundle(self.path(), &self.pair)
    }

    /// One attempt over a wire that breaks after that many bytes.
    async fn attempt(
        &self,
        bundle: &Path,
        have: Have,
        most: usize,
    ) -> (Result<Received, Failure>, Result<Received, Failure>) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let mut near = Cut { stream: near, left: most };
        let mut far = far;
        let (store, keys) = (self.store(), keys(&self.pair));
        let mut last = Progress::default();
        let taken = async {
            let told = |progress: Progress| {
                assert!(progress.moved >= last.moved);
                last = progress;
            };
            let ended =
                receive(&mut near, None, &store, &keys, |verified| verified.admit(&context()), have, told).await;
            drop(near);
            ended
        };
        let given = async {
            let ended = send(&mut far, |_| Source::open(bundle), |_| ()).await;
            drop(far);
            ended
        };
        tokio::join!(taken, given)
    }
}

/// A stream that ends after so many bytes were read.
struct Cut {
    stream: DuplexStream,
    left: usize,
}

impl AsyncRead for Cut {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Task<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let mut piece = vec![0; self.left.min(buffer.remaining())];
        let mut piece = ReadBuf::new(&mut piece);
        let ready = Pin::new(&mut self.stream).poll_read(task, &mut piece);
        buffer.put_slice(piece.filled());
        self.left -= piece.filled().len();
        ready
    }
}

impl AsyncWrite for Cut {
    fn poll_write(mut self: Pin<&mut Self>, task: &mut Task<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(task, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(task)
    }
}

const ALL: usize = usize::MAX >> 1;

#[tokio::test(flavor = "current_thread")]
async fn only_blocks_that_differ_are_moved() {
    let scene = Scene::new();
    let bundle = scene.bundle(&[7, 8, 200]);
    let (taken, given) = scene.attempt(&bundle, scene.have.clone(), ALL).await;
    let taken = taken.unwrap();
    assert_eq!(taken, given.unwrap());
    // Three blocks of the root, the one of the kernel that differs, manifest, signature and lists.
    let lists = 5 * BLOCK as u64 + 4 * 32;
    assert!(taken.moved > 4 * BLOCK as u64 + lists && taken.moved < 6 * BLOCK as u64 + lists, "{taken:?}");
    let system = System::new(NEW, BLOCKS, &[7, 8, 200]);
    let stored = scene.store().get(&taken.release).unwrap();
    assert_eq!(stored.whole("root.erofs").unwrap(), system.root);
    assert_eq!(stored.whole("trilith.efi").unwrap(), system.uki);
    assert_eq!(scene.store().list().unwrap(), [Release::system(NEW)]);
    // Once more: nothing but the manifest.
    let (again, _) = scene.attempt(&bundle, scene.have.clone(), ALL).await;
    assert!(again.unwrap().moved < 4096);
}

#[tokio::test(flavor = "current_thread")]
async fn without_anything_to_go_by_all_is_moved_once_and_a_cut_loses_little() {
    let scene = Scene::new();
    let bundle = scene.bundle(&[]);
    let size = std::fs::metadata(&bundle).unwrap().len();
    let mut moved = 0;
    for attempt in 1.. {
        assert!(attempt < 100);
        match scene.attempt(&bundle, Have::default(), 400_000).await {
            (Ok(received), _) => {
                moved += received.moved;
                break;
            }
            (Err(Failure::Io { .. }), Err(_)) => moved += 400_000,
            (Err(other), _) => panic!("{other}"),
        }
        assert!(scene.store().list().unwrap().is_empty(), "nothing is there before it is whole");
        assert!(scene.store().get(&Release::system(NEW)).is_err());
        assert_eq!(scene.store().unfinished().unwrap(), [Release::system(NEW)]);
    }
    // Each attempt may lose the answer that was cut off, and repeats the manifest.
    assert!(moved > size / 3 && moved < size + 3 * MAX_ANSWER as u64, "{moved} of {size}");
    assert!(scene.store().get(&Release::system(NEW)).is_ok());
    assert!(scene.store().unfinished().unwrap().is_empty());
}

#[tokio::test(flavor = "current_thread")]
async fn a_rest_that_was_damaged_is_mended() {
    let scene = Scene::new();
    let bundle = scene.bundle(&[5]);
    let (cut, _) = scene.attempt(&bundle, Have::default(), 30_000).await;
    cut.unwrap_err();
    let partial = scene.path().join("bundles/1.5.0.part");
    for part in ["root.erofs", "root.verity", "trilith.efi", "uki.blocks"] {
        std::fs::write(partial.join(part), [0xff; 10_000]).unwrap();
    }
    let (taken, _) = scene.attempt(&bundle, scene.have.clone(), ALL).await;
    assert_eq!(taken.unwrap().release, Release::system(NEW));
}

#[tokio::test(flavor = "current_thread")]
async fn a_bundle_that_is_refused_leaves_nothing_and_both_sides_know_why() {
    let scene = Scene::new();
    let other = Scene::new();
    let stranger = other.bundle(&[]);
    let (taken, given) = scene.attempt(&stranger, scene.have.clone(), ALL).await;
    assert_eq!((taken.unwrap_err().exit_code(), given.unwrap_err().exit_code()), (20, 20));
    let old = System::new(Version::new(1, 1, 0), BLOCKS, &[]).bundle(scene.path(), &scene.pair);
    let (taken, given) = scene.attempt(&old, scene.have.clone(), ALL).await;
    assert_eq!(taken.unwrap_err().exit_code(), 23);
    let words = given.unwrap_err().to_string();
    assert!(words.contains("below 1.2.0"), "{words}");
    assert_eq!(std::fs::read_dir(scene.path().join("bundles")).unwrap().count(), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn a_damaged_bundle_is_noticed_block_by_block() {
    let scene = Scene::new();
    let bundle = scene.bundle(&(0..BLOCKS).collect::<Vec<_>>());
    let mut bytes = std::fs::read(&bundle).unwrap();
    let at = bytes.len() - 700_000;
    bytes[at] ^= 1;
    std::fs::write(&bundle, &bytes).unwrap();
    let (taken, given) = scene.attempt(&bundle, scene.have.clone(), ALL).await;
    let words = taken.unwrap_err().to_string();
    assert!(words.contains("corrupted: root.erofs: block"), "{words}");
    assert_eq!(given.unwrap_err().exit_code(), 22);
}

#[tokio::test(flavor = "current_thread")]
async fn another_bundle_of_the_same_release_does_not_replace_the_first() {
    let scene = Scene::new();
    scene.attempt(&scene.bundle(&[1]), scene.have.clone(), ALL).await.0.unwrap();
    let (taken, _) = scene.attempt(&scene.bundle(&[2]), scene.have.clone(), ALL).await;
    assert!(matches!(taken, Err(Failure::OtherBundle { .. })), "{taken:?}");
    let (store, release) = (scene.store(), Release::system(NEW));
    let id = |manifest: &[u8]| crate::Hash(<sha2::Sha256 as sha2::Digest>::digest(manifest).into()).to_string();
    let held = id(store.get(&release).unwrap().manifest());
    assert!(store.holds(&release, &held));
    assert!(!store.holds(&release, &id(b"made anew")) && !store.holds(&Release::system(Version::default()), &held));
    scene.store().remove(&Release::system(NEW)).unwrap();
    let (taken, _) = scene.attempt(&scene.bundle(&[2]), scene.have.clone(), ALL).await;
    taken.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn peers_fetch_from_each_other_and_services_move_likewise() {
    let scene = Scene::new();
    let content: Vec<u8> = (0..200_000_u32).map(|at| (at / 4096 * 3 + at % 251) as u8).collect();
    let bundle = service(scene.path(), &content, &scene.pair);
    scene.attempt(&bundle, Have::default(), ALL).await.0.unwrap();
    let other = Store::open(&scene.path().join("other")).unwrap();
    let release = Release::service("web", Version::new(2, 0, 0));
    let (mut near, mut far) = tokio::io::duplex(1 << 16);
    let (here, keys) = (scene.store(), keys(&scene.pair));
    let find = |asked: Option<&Release>| here.get(asked.unwrap());
    let admit = |verified: &crate::Verified| verified.admit(&crate::Context { floor: Version::default(), ..context() });
    // The last version of the service has most of it.
    let donor = scene.path().join("web.raw");
    let mut before = content.clone();
    before[5000] ^= 1;
    std::fs::write(&donor, before).unwrap();
    let have = Have { files: vec![donor], ..Have::default() };
    let (taken, given) = tokio::join!(
        receive(&mut near, Some(release.clone()), &other, &keys, admit, have, |_| ()),
        send(&mut far, find, |_| ())
    );
    assert_eq!(taken.as_ref().unwrap(), given.as_ref().unwrap());
    assert!(taken.unwrap().moved < 2 * 4096 + 3000);
    assert_eq!(other.get(&release).unwrap().whole("service.raw").unwrap(), content);
    // What is not there is told.
    let (mut near, mut far) = tokio::io::duplex(1 << 16);
    let release = Release::service("web", Version::new(3, 0, 0));
    let (taken, _) = tokio::join!(
        receive(&mut near, Some(release), &other, &keys, admit, Have::default(), |_| ()),
        send(&mut far, find, |_| ())
    );
    assert!(matches!(taken, Err(Failure::Other { code: 1, .. })), "{taken:?}");
}

#[test]
fn both_sides_can_be_spawned() {
    fn sendable(_: impl Future + Send) {}
    let scene = Scene::new();
    let (store, keys) = (scene.store(), keys(&scene.pair));
    let (mut near, mut far) = tokio::io::duplex(1);
    sendable(receive(&mut near, None, &store, &keys, |_| Ok(()), Have::default(), |_| ()));
    sendable(send(&mut far, |_| Source::open("".as_ref()), |_| ()));
}

#[tokio::test(flavor = "current_thread")]
async fn nonsense_on_the_wire_ends_the_transfer() {
    for nonsense in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x02{}", b"\0\0\0\x01\xff", b""] {
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        far.write_all(nonsense).await.unwrap();
        drop(far);
        let ended = send(&mut near, |_| panic!("nothing was asked"), |_| ()).await;
        assert!(matches!(ended, Err(Failure::Protocol { .. } | Failure::Io { .. })), "{ended:?}");
    }
    let scene = Scene::new();
    let bundle = service(scene.path(), b"content", &scene.pair);
    for question in [r#"{"ask":{"\u001b[2J":1}}"#, r#"{"ask":{"bytes":{"part":"\u001b[2J","from":0,"length":1}}}"#] {
        let framed = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        let asked = [r#"{"ask":{"open":{"release":null}}}"#, question].map(framed).concat();
        let mut stream = tokio::io::join(&asked[..], Vec::new());
        let words = send(&mut stream, |_| Source::open(&bundle), |_| ()).await.unwrap_err().to_string();
        assert!(words.contains("u{1b}[2J") && !words.contains('\x1b'), "{words:?}");
    }
    let later = br#"{"ask":{"open":{"release":null,"later":1}},"progress":{"moved":1,"total":2,"eta":3},"new":true}"#;
    let question: Question = serde_json::from_slice(later).unwrap();
    assert_eq!(question.ask, Ask::Open { release: None });
}
