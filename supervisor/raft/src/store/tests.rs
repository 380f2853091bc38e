//! The power is cut at every byte that the store writes, and every byte that it wrote is damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use openraft::{CommittedLeaderId, EntryPayload};
use serde_json::json;

use super::medium::trace::{self, Op};
use super::*;
use crate::tests::Folder;
use crate::types::Proposal;

/// What must be there after a restart.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    identity: Identity,
    content: Content,
    snapshot: Option<(SnapshotMeta, Image)>,
}

fn opened(directory: &Path) -> Result<Option<Kept>, StoreError> {
    Ok(open(directory)?.map(|(_, loaded)| {
        let Loaded { identity, content, snapshot } = loaded;
        Kept { identity, content, snapshot }
    }))
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 0), index)
}

fn entry(term: u64, index: u64) -> Entry {
    let text = "x".repeat(index as usize % 7 * 3);
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(Proposal(json!({"ask": "note", "text": text}))) }
}

fn image(index: u64) -> (SnapshotMeta, Image) {
    let meta = SnapshotMeta { last_log_id: Some(log_id(2, index)), ..SnapshotMeta::default() };
    (meta, Image { state: json!({"index": index}), generation: 1 })
}

fn identity(set: &str) -> Identity {
    Identity { set: set.to_owned(), id: 9, name: "b".to_owned(), previous: vec![] }
}

/// Does all that a store can do, and calls `done` after each step that was acknowledged.
fn live(directory: &Path, mut done: impl FnMut()) {
    let (mut store, _) = create(directory, &identity("one"), None).unwrap();
    done();
    work(&mut store, &mut done);
    drop(store);
    // The node is replaced, or the set recovered.
    let seed = Seed { base: log_id(2, 11), vote: Vote::new(3, 17), snapshot: image(11) };
    create(directory, &identity("two"), Some(seed)).unwrap();
    done();
}

/// Does all that an open store can do.
fn work(store: &mut Store, mut done: impl FnMut()) {
    let mut step = |act: &dyn Fn(&mut Store) -> Result<(), StoreError>| {
        act(store).unwrap();
        done();
    };
    step(&|store| store.save_vote(Vote::new(1, 0)));
    step(&|store| store.append(&[entry(1, 0)]));
    step(&|store| store.append(&[entry(1, 1), entry(1, 2), entry(1, 3)]));
    step(&|store| store.save_committed(Some(log_id(1, 1))));
    step(&|store| store.save_vote(Vote::new_committed(2, 9)));
    // Another leader's entries take the place of those that were not committed, one of them longer, one shorter.
    step(&|store| store.truncate(2));
    step(&|store| store.append(&[entry(2, 2), entry(2, 3)]));
    step(&|store| store.save_committed(Some(log_id(2, 3))));
    step(&|store| store.save_snapshot(&image(2).0, &image(2).1));
    step(&|store| store.purge(log_id(2, 2)));
    step(&|store| store.append(&[entry(2, 4)]));
    // A snapshot of the leader goes beyond all that is here.
    step(&|store| store.save_snapshot(&image(9).0, &image(9).1));
    step(&|store| store.purge(log_id(2, 9)));
    step(&|store| store.append(&[entry(3, 10)]));
}

/// The files as a power cut leaves them.
#[derive(Clone, Default)]
struct Disk {
    files: BTreeMap<PathBuf, Vec<u8>>,
    /// Some write is there in part.
    halves: bool,
}

impl Disk {
    fn write(&mut self, path: &Path, offset: u64, bytes: &[u8]) {
        let file = self.files.entry(path.into()).or_default();
        let end = offset as usize + bytes.len();
        file.resize(file.len().max(end), 0);
        file[offset as usize..end].copy_from_slice(bytes);
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        let moved: Vec<_> = self.files.keys().filter(|path| path.starts_with(from)).cloned().collect();
        self.files.retain(|path, _| moved.contains(path) || !path.starts_with(to));
        for path in moved {
            let file = self.files.remove(&path).unwrap();
            let rest = path.strip_prefix(from).unwrap();
            self.files.insert(if rest == Path::new("") { to.into() } else { to.join(rest) }, file);
        }
    }

    fn put(&self, directory: &Path) {
        let _ = fs::remove_dir_all(directory);
        for (path, bytes) in &self.files {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
}

/// Writes and renames that no sync has followed yet may be on the disk, or not, or half of a write.
#[derive(Default)]
struct Pending {
    ops: Vec<Op>,
}

impl Pending {
    fn add(&mut self, op: &Op, durable: &mut Disk) {
        match op {
            Op::Sync { path } => {
                self.settle(durable, |op| matches!(op, Op::Write { path: of, .. } if of == path));
            }
            Op::SyncFolder => self.settle(durable, |op| matches!(op, Op::Rename { .. })),
            Op::Create { path } => drop(durable.files.insert(path.clone(), vec![])),
            Op::Write { .. } | Op::Rename { .. } => self.ops.push(op.clone()),
        }
    }

    fn settle(&mut self, durable: &mut Disk, settles: impl Fn(&Op) -> bool) {
        for op in std::mem::take(&mut self.ops) {
            if !settles(&op) {
                self.ops.push(op);
                continue;
            }
            apply(durable, &op, usize::MAX);
            if let Op::Rename { from, to } = &op {
                // Writes go with the file, not with the name.
                self.ops.retain(|op| !matches!(op, Op::Write { path, .. } if path.starts_with(to)));
                for op in &mut self.ops {
                    if let Op::Write { path, .. } = op
                        && let Ok(rest) = path.strip_prefix(from)
                    {
                        *path = to.join(rest);
                    }
                }
            }
        }
    }

    /// Every combination of what may have reached the disk.
    fn outcomes(&self, durable: &Disk) -> Vec<Disk> {
        let mut disks = vec![durable.clone()];
        for op in &self.ops {
            let shares: &[usize] = match op {
                Op::Write { bytes, .. } => &[0, bytes.len() / 2, 100, usize::MAX],
                _ => &[0, usize::MAX],
            };
            let with = |share: usize| {
                disks.iter().cloned().map(move |mut disk| {
                    apply(&mut disk, op, share);
                    disk.halves |= !matches!(share, 0 | usize::MAX);
                    disk
                })
            };
            disks = shares.iter().flat_map(|share| with(*share)).collect();
        }
        disks
    }
}

/// Does a deed, of a write only so many bytes.
fn apply(disk: &mut Disk, op: &Op, share: usize) {
    match op {
        Op::Write { path, offset, bytes } if share > 0 => disk.write(path, *offset, &bytes[..share.min(bytes.len())]),
        Op::Rename { from, to } if share > 0 => disk.rename(from, to),
        _ => {}
    }
}

#[test]
fn a_power_cut_at_any_byte_leaves_what_was_acknowledged_or_what_was_being_written_and_nothing_else() {
    let folder = Folder::new("power-cut");
    let directory = folder.path().join("raft");
    let mut acknowledged = vec![(0, None)];
    trace::begin();
    live(&directory, || {
        // Opening syncs the log, which would hide what a cut may leave: that is done to a copy, and not written down.
        let copy = folder.path().join("copy");
        copy_folder(&directory, &copy);
        let at = trace::count();
        let ops = trace::end();
        acknowledged.push((at, opened(&copy).unwrap()));
        trace::resume(ops);
    });
    let ops = trace::end();
    assert!(acknowledged.len() > 15 && ops.len() > 60);

    let scratch = folder.path().join("cut");
    let map = |path: &Path| scratch.join(path.strip_prefix(&directory).unwrap());
    let (mut durable, mut pending, mut cuts) = (Disk::default(), Pending::default(), 0);
    for (at, op) in ops.iter().enumerate() {
        let op = moved(op, &map);
        let now = acknowledged.iter().rposition(|(count, _)| *count <= at).unwrap();
        let allowed: Vec<_> = acknowledged[now..].iter().take(2).map(|(_, kept)| kept.clone()).collect();
        let mut seen = BTreeSet::new();
        let mut check = |disk: &Disk, byte: usize| {
            let mut hasher = DefaultHasher::new();
            disk.files.hash(&mut hasher);
            if !seen.insert(hasher.finish()) {
                return;
            }
            cuts += 1;
            disk.put(&scratch);
            let found =
                opened(&scratch).unwrap_or_else(|error| panic!("cut in deed {at}, {op:?}, byte {byte}: {error}"));
            assert!(allowed.contains(&found), "cut in deed {at}, {op:?}, byte {byte}: {found:#?}\nnot {allowed:#?}");
        };
        for before in pending.outcomes(&durable) {
            check(&before, 0);
            let Op::Write { path, offset, bytes } = &op else { continue };
            if before.halves {
                continue;
            }
            let mut disk = before.clone();
            for (byte, value) in bytes.iter().enumerate() {
                let old = disk.files.get(path).and_then(|file| file.get(*offset as usize + byte)).copied();
                disk.write(path, *offset + byte as u64, &[*value]);
                // Zeros over zeros change nothing, unless they are the last ones.
                if old != Some(*value) && (*value != 0 || byte + 1 == bytes.len()) {
                    check(&disk, byte + 1);
                }
            }
        }
        pending.add(&op, &mut durable);
    }
    assert!(cuts > 5_000, "{cuts} cuts");
    println!("{cuts} cuts");
}

#[test]
fn a_disk_that_is_full_at_any_write_ends_nothing_while_room_is_held_back() {
    let folder = Folder::new("full");
    // What the files hold after each step, and whether the room was needed.
    let run = |room: Option<usize>| {
        let directory = folder.path().join(format!("raft-{room:?}"));
        let (mut store, _) = create(&directory, &identity("one"), None).unwrap();
        assert_eq!(store.hold_room(), None);
        trace::fill(room);
        let mut steps = vec![];
        work(&mut store, || {
            let log = log::read(&fs::read(directory.join(CURRENT).join(LOG)).unwrap()).unwrap();
            steps.push((log, fs::read(directory.join(CURRENT).join(SNAPSHOT)).ok()));
        });
        trace::fill(None);
        drop(store);
        let spent = fs::metadata(directory.join("reserve")).unwrap().len() == 0;
        (steps, opened(&directory).unwrap(), spent)
    };
    let (steps, kept, spent) = run(None);
    assert!(!spent);
    for room in 0.. {
        let (found_steps, found, spent) = run(Some(room));
        assert_eq!((found_steps, found), (steps.clone(), kept.clone()), "full after {room} writes");
        if !spent {
            assert!(room > 25, "{room} writes");
            break;
        }
    }
}

#[test]
fn room_that_is_used_up_is_missed_and_held_back_again() {
    let folder = Folder::new("used-up");
    let directory = folder.path().join("raft");
    let (mut store, _) = create(&directory, &identity("one"), None).unwrap();
    let reserve = directory.join("reserve");
    assert_eq!(store.hold_room(), None);
    assert_eq!(fs::metadata(&reserve).unwrap().len(), RESERVE);
    trace::fill(Some(0));
    store.append(&[entry(1, 0)]).unwrap();
    assert_eq!(fs::metadata(&reserve).unwrap().len(), 0);
    trace::fill(Some(0));
    let error = store.append(&[entry(1, 1)]).unwrap_err();
    assert!(error.is_full(), "{error}");
    assert_eq!(store.hold_room(), None);
    assert_eq!(fs::metadata(&reserve).unwrap().len(), RESERVE);
    // A store that is opened again finds it.
    drop(store);
    let (mut store, _) = open(&directory).unwrap().unwrap();
    assert_eq!(store.hold_room(), None);
    trace::fill(Some(0));
    store.append(&[entry(1, 1)]).unwrap();
}

#[test]
fn a_log_that_is_cut_or_damaged_anywhere_holds_all_or_is_refused_with_the_place() {
    let folder = Folder::new("damage");
    let directory = folder.path().join("raft");
    let (mut store, _) = create(&directory, &identity("one"), None).unwrap();
    store.save_vote(Vote::new(1, 0)).unwrap();
    for index in 0..5 {
        store.append(&[entry(1, index)]).unwrap();
    }
    drop(store);
    let path = directory.join(CURRENT).join(LOG);
    let whole = fs::read(&path).unwrap();
    let content = log::read(&whole).unwrap();
    assert_eq!((content.entries.len(), content.vote), (5, Some(Vote::new(1, 0))));

    for length in 0..whole.len() {
        log::read(&whole[..length]).expect_err("a log that is cut short is refused");
    }
    let mut refused = 0;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        match log::read(&bytes) {
            Ok(found) => assert_eq!(found, content, "byte {at}"),
            Err((offset, _)) => {
                assert!(offset <= at as u64, "byte {at} was blamed on {offset}");
                refused += 1;
            }
        }
    }
    let records = whole.len() - 3 * 4096;
    assert!(refused > records, "every byte of the records and of the header");

    let mut bytes = whole.clone();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let words = opened(&directory).unwrap_err().to_string();
    assert!(
        words.contains("current/log is damaged at byte") && words.contains("entry 4, which was acknowledged"),
        "{words}"
    );
    assert!(words.contains("run `trilith node replace`"), "{words}");
}

#[test]
fn records_of_before_in_place_of_those_that_were_acknowledged_are_refused() {
    let folder = Folder::new("lost-write");
    let directory = folder.path().join("raft");
    let (mut store, _) = create(&directory, &identity("one"), None).unwrap();
    let file = || fs::read(directory.join(CURRENT).join(LOG)).unwrap();
    store.append(&[entry(1, 0), entry(1, 1)]).unwrap();
    let before = file();
    store.truncate(1).unwrap();
    store.append(&[entry(2, 1)]).unwrap();
    let mut after = file();
    assert_eq!(log::read(&after).unwrap().entries.last().map(|entry| entry.log_id), Some(log_id(2, 1)));
    assert_eq!(before.len(), after.len(), "or they would differ anyway");
    // The disk said that the last records were written, and they were not.
    after[3 * 4096..].copy_from_slice(&before[3 * 4096..]);
    let (_, fault) = log::read(&after).unwrap_err();
    assert_eq!(fault, Fault::Damaged("the records are not those that were acknowledged".to_owned()));
}

#[test]
fn a_head_that_the_disk_damaged_is_found_in_its_other_copy() {
    let folder = Folder::new("copies");
    let directory = folder.path().join("raft");
    let (mut store, _) = create(&directory, &identity("one"), None).unwrap();
    for term in 1..4 {
        store.save_vote(Vote::new(term, 0)).unwrap();
        let path = directory.join(CURRENT).join(LOG);
        let whole = fs::read(&path).unwrap();
        for head in [4096, 8192] {
            let mut bytes = whole.clone();
            bytes[head..head + 4096].fill(0xa5);
            assert_eq!(log::read(&bytes).unwrap().vote, Some(Vote::new(term, 0)));
        }
        let mut bytes = whole;
        bytes[4096..3 * 4096].fill(0xa5);
        log::read(&bytes).expect_err("both copies are gone");
    }
}

#[test]
fn a_snapshot_or_identity_that_is_damaged_or_gone_is_refused() {
    let folder = Folder::new("files");
    let directory = folder.path().join("raft");
    let seed = Seed { base: log_id(2, 9), vote: Vote::new(2, 0), snapshot: image(9) };
    create(&directory, &identity("one"), Some(seed)).unwrap();
    for name in [SNAPSHOT, IDENTITY] {
        let path = directory.join(CURRENT).join(name);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(opened(&directory), Err(StoreError::Damaged { .. })), "{name} cut to {length}");
        }
        fs::remove_file(&path).unwrap();
        let words = opened(&directory).unwrap_err().to_string();
        assert!(words.contains(name), "{words}");
        fs::write(&path, whole).unwrap();
        assert!(opened(&directory).unwrap().is_some());
    }
}

#[test]
fn what_is_damaged_stays_where_it_is_and_the_words_say_what_an_admin_without_a_shell_can_do() {
    let folder = Folder::new("words");
    let directory = folder.path().join("raft");
    create(&directory, &identity("one"), None).unwrap();
    let path = directory.join(CURRENT).join(LOG);
    fs::write(&path, b"nothing").unwrap();
    for _ in 0..2 {
        let words = opened(&directory).unwrap_err().to_string();
        assert!(words.contains("make this machine anew") && !words.contains("remove"), "{words}");
    }
    assert_eq!(fs::read(&path).unwrap(), b"nothing");
}

#[test]
fn the_store_that_was_replaced_is_kept_once() {
    let folder = Folder::new("replaced");
    let directory = folder.path().join("raft");
    for set in ["one", "two", "three"] {
        create(&directory, &identity(set), None).unwrap();
        assert_eq!(opened(&directory).unwrap().unwrap().identity.set, set);
    }
    let kept: Identity = read(&directory.join(REPLACED).join(IDENTITY), "identity", MAX_IDENTITY).unwrap();
    assert_eq!(kept.set, "two");
}

fn copy_folder(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let beside = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &beside);
        } else {
            fs::copy(&path, &beside).unwrap();
        }
    }
}

fn moved(op: &Op, map: &impl Fn(&Path) -> PathBuf) -> Op {
    match op {
        Op::Create { path } => Op::Create { path: map(path) },
        Op::Write { path, offset, bytes } => Op::Write { path: map(path), offset: *offset, bytes: bytes.clone() },
        Op::Sync { path } => Op::Sync { path: map(path) },
        Op::Rename { from, to } => Op::Rename { from: map(from), to: map(to) },
        Op::SyncFolder => Op::SyncFolder,
    }
}
