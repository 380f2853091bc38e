//! Slots on a disk that is cut at every single write, and on one that lies.

use std::rc::Rc;

use trilith_core::slots::{EntryName, Tries, Version};

use super::medium::{Bug, Medium};
use super::*;
use crate::testing::{System, pair};

const BLOCKS: usize = 64;
/// Where the number of blocks shows nothing.
const FEW: usize = 8;
const RUNNING: Version = Version::new(1, 4, 0);
const NEW: Version = Version::new(1, 5, 0);

/// A new system as a bundle, and a disk on which another one runs from slot A.
struct Scene {
    _directory: tempfile::TempDir,
    source: Source,
    manifest: Manifest,
    old: System,
    new: System,
    medium: Medium,
}

/// What is in slot B.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Before {
    Nothing,
    /// The version before the running one.
    Older,
    /// A newer one that was installed and not started yet: the boot loader would take it.
    Staged,
    /// The new one, cut off before its kernel came.
    Half,
}

impl Scene {
    fn new(before: Before) -> Scene {
        Scene::sized(before, BLOCKS)
    }

    fn sized(before: Before, blocks: usize) -> Scene {
        let directory = tempfile::tempdir().unwrap();
        let system = |version| System::new(version, blocks, &(0..blocks).collect::<Vec<_>>());
        let (old, new) = (system(RUNNING), system(NEW));
        let path = new.bundle(directory.path(), &pair());
        let source = Source::open(&path).unwrap();
        let manifest = Manifest::parse(source.manifest()).unwrap();
        let mut medium = Medium::new();
        for slot in [Slot::A, Slot::B] {
            medium.partitions.insert(Partition::Root(slot), Rc::new(vec![0x33; (blocks + 2) * BLOCK]));
            medium.partitions.insert(Partition::Verity(slot), Rc::new(vec![0x44; 6 * BLOCK]));
        }
        let mut scene = Scene { _directory: directory, source, manifest, old, new, medium };
        scene.fill(Slot::A, &system(RUNNING), None);
        match before {
            Before::Nothing => {}
            Before::Older => scene.fill(Slot::B, &system(Version::new(1, 3, 0)), None),
            Before::Staged => scene.fill(Slot::B, &system(Version::new(1, 4, 5)), Some(Tries::NEW)),
            Before::Half => {
                scene.fill(Slot::B, &system(NEW), None);
                scene.medium.names.remove(&EntryName { version: NEW, tries: None }.to_string());
                scene.medium.put("trilith_1.5.0.new", &system(NEW).uki[..5000]);
            }
        }
        scene
    }

    fn fill(&mut self, slot: Slot, system: &System, tries: Option<Tries>) {
        let mut put = |partition: Partition, bytes: &[u8]| {
            let content = Rc::make_mut(self.medium.partitions.get_mut(&partition).unwrap());
            content[..bytes.len()].copy_from_slice(bytes);
        };
        put(Partition::Root(slot), &system.root);
        put(Partition::Verity(slot), &system.verity);
        self.medium.put(&EntryName { version: system.version, tries }.to_string(), &system.uki);
    }

    fn bundle(&self) -> Bundle<'_> {
        Bundle { source: &self.source, manifest: &self.manifest }
    }

    fn install(&self, medium: &mut Medium) -> Result<(), Failure> {
        let mut slots = observe(medium, Slot::A, self.old.image.root)?;
        install(medium, &mut slots, self.bundle(), &mut |_, _, _| ())
    }

    /// Does something with the disk, and looks at what is left when it is cut at any moment of it. `judge` says whether to go on.
    fn cut_everywhere(
        &self,
        act: impl Fn(&mut Medium) -> Result<(), Failure>,
        mut judge: impl FnMut(usize, Medium) -> bool,
    ) -> usize {
        let mut random = random();
        let mut medium = self.medium.clone();
        act(&mut medium).unwrap();
        let moments = std::mem::take(&mut medium.moments);
        for (write, moment) in moments.iter().chain([&medium]).enumerate() {
            for left in moment.remains(&mut random) {
                if !judge(write, left) {
                    return write;
                }
            }
        }
        moments.len()
    }
}

/// What the firmware, the boot loader and the initrd would make of a disk, with nothing to go by but its bytes.
#[derive(Default)]
struct Checker {
    /// Most slots and kernels have been seen before: it is enough to check them once.
    known: Vec<Seen>,
    ukis: Vec<(Vec<u8>, Option<Image>)>,
}

/// Root, hash tree, and what they are.
type Seen = (Rc<Vec<u8>>, Rc<Vec<u8>>, Content);

impl Checker {
    fn look(&mut self, medium: &Medium) -> Slots {
        let mut medium = medium.clone();
        let contents = [Slot::A, Slot::B].map(|slot| self.content(&mut medium, slot));
        let mut slots = Slots { running: Slot::A, contents, entries: Vec::new(), leftovers: Vec::new() };
        for file in medium.names().unwrap() {
            let bytes = medium.read_file(&file, MAX_UKI).unwrap();
            let empty = bytes.is_empty();
            let known = self.ukis.iter().find(|known| known.0 == bytes).map(|known| known.1);
            let image = known.unwrap_or_else(|| {
                let image = Uki::open(&bytes).ok().map(|uki| uki.image);
                self.ukis.push((bytes, image));
                image
            });
            note(&mut slots, Entry { file, image }, empty);
        }
        slots
    }

    fn content(&mut self, medium: &mut Medium, slot: Slot) -> Content {
        let (root, verity) = (&medium.partitions[&Partition::Root(slot)], &medium.partitions[&Partition::Verity(slot)]);
        let (root, verity) = (Rc::clone(root), Rc::clone(verity));
        let same = |known: &&Seen| {
            (Rc::ptr_eq(&known.0, &root) || known.0 == root) && (Rc::ptr_eq(&known.1, &verity) || known.1 == verity)
        };
        if let Some((.., content)) = self.known.iter().rev().find(same) {
            return *content;
        }
        let content = content(medium, slot);
        self.known.push((root, verity, content));
        content
    }

    /// What would be started, of what could be: else what is wrong.
    fn starts(&mut self, medium: &Medium) -> Result<(Image, Slots), String> {
        let slots = self.look(medium);
        slots.check().map_err(|violation| violation.to_string())?;
        let next = slots.boots_next().and_then(|entry| entry.image).ok_or("nothing starts")?;
        Ok((next, slots))
    }
}

/// The same numbers in each run (xorshift).
fn random() -> impl FnMut() -> u32 {
    let mut state = 0x9e37_79b9_u32;
    move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    }
}

#[test]
fn an_installation_cut_at_every_single_write_leaves_the_old_system_or_the_new_one() {
    for before in [Before::Nothing, Before::Older, Before::Staged, Before::Half] {
        let scene = Scene::new(before);
        let mut checker = Checker::default();
        let (mut news, mut states) = (0, 0);
        let writes = scene.cut_everywhere(
            |medium| scene.install(medium),
            |cut, left| {
                let (next, slots) =
                    checker.starts(&left).unwrap_or_else(|what| panic!("{before:?}, write {cut}: {what}"));
                let staged = before == Before::Staged && next.version == Version::new(1, 4, 5);
                assert!(
                    next == scene.old.image || next == scene.new.image || staged,
                    "{before:?}, write {cut}: {next:?}"
                );
                assert_eq!(slots.image(Slot::A), Some(scene.old.image), "{before:?}, write {cut}: no way back");
                news += usize::from(next == scene.new.image);
                states += 1;
                true
            },
        );
        assert!(writes > if before == Before::Half { 10 } else { BLOCKS }, "{before:?}: {writes} writes");
        assert!(news > 0 && states > writes, "{before:?}: {news} of {states}");
    }
}

#[test]
fn an_installation_that_was_cut_can_be_done_again_once_the_esp_is_mended_and_not_always_before() {
    let (mut random, mut spoilt) = (random(), 0);
    for before in [Before::Nothing, Before::Older, Before::Staged, Before::Half] {
        let scene = Scene::sized(before, FEW);
        let mut checker = Checker::default();
        scene.cut_everywhere(
            |medium| scene.install(medium),
            |cut, left| {
                if checker.starts(&left).unwrap().0 == scene.old.image {
                    let mut again = |mut medium: Medium| {
                        scene.install(&mut medium).map_err(|failure| failure.to_string())?;
                        checker.starts(&medium).map(|(next, _)| next)
                    };
                    spoilt += usize::from(again(left.clone()) != Ok(scene.new.image));
                    assert_eq!(again(left.mended(&mut random)), Ok(scene.new.image), "{before:?}, write {cut}");
                }
                true
            },
        );
    }
    assert!(spoilt > 0);
}

/// Whatever is left of a disk on which this was done in full, is as it was told to be.
fn outlives_a_power_cut(scene: &Scene, act: impl Fn(&mut Medium) -> Result<(), Failure>) {
    let mut medium = scene.medium.clone();
    act(&mut medium).unwrap();
    let told = observe(&mut medium, Slot::A, scene.old.image.root).unwrap();
    for mut left in medium.remains(&mut random()) {
        assert_eq!(observe(&mut left, Slot::A, scene.old.image.root).unwrap(), told);
    }
}

#[test]
fn what_was_done_outlives_a_power_cut_the_moment_after() {
    for before in [Before::Nothing, Before::Older, Before::Staged, Before::Half] {
        let scene = Scene::sized(before, FEW);
        outlives_a_power_cut(&scene, |medium| scene.install(medium));
    }
    let mut scene = Scene::sized(Before::Older, FEW);
    let name = |tries| EntryName { version: RUNNING, tries }.to_string();
    let file = scene.medium.names.remove(&name(None)).unwrap();
    scene.medium.names.insert(name(Some(Tries { left: 2, done: 1 })), file);
    let plans: [Plan; 3] = [Slots::plan_bless, |slots| slots.plan_rollback(true), |slots| slots.plan_rollback(false)];
    for plan in plans {
        outlives_a_power_cut(&scene, |medium| {
            let mut slots = observe(medium, Slot::A, scene.old.image.root)?;
            let steps = plan(&slots)?;
            carry_out(medium, &mut slots, &steps, None, &mut |_, _, _| ())
        });
    }
}

type Plan = fn(&Slots) -> Result<Vec<Step>, trilith_core::slots::Refused>;

#[test]
fn a_blessing_and_a_rollback_cut_anywhere_leave_a_complete_system() {
    for (lonely, tries) in
        [(true, Tries { left: 2, done: 1 }), (false, Tries { left: 0, done: 3 }), (false, Tries::NEW)]
    {
        let mut scene = Scene::sized(if lonely { Before::Nothing } else { Before::Older }, FEW);
        let name = |tries| EntryName { version: RUNNING, tries }.to_string();
        let file = scene.medium.names.remove(&name(None)).unwrap();
        scene.medium.names.insert(name(Some(tries)), file);
        let mut checker = Checker::default();
        let plans: [Plan; 4] =
            [Slots::plan_bless, |slots| slots.plan_rollback(true), |slots| slots.plan_rollback(false), Slots::plan_ban];
        for plan in plans {
            let act = |medium: &mut Medium| {
                let mut slots = observe(medium, Slot::A, scene.old.image.root)?;
                let steps = plan(&slots)?;
                carry_out(medium, &mut slots, &steps, None, &mut |_, _, _| ())
            };
            if matches!(act(&mut scene.medium.clone()), Err(Failure::Slots(_))) {
                assert!(lonely, "there is something to go back to");
                continue;
            }
            scene.cut_everywhere(act, |cut, left| {
                checker.starts(&left).unwrap_or_else(|what| panic!("{tries:?}, write {cut}: {what}"));
                true
            });
        }
    }
}

#[test]
fn a_disk_that_flips_a_bit_in_any_write_is_found_out_before_the_switch() {
    let scene = Scene::sized(Before::Nothing, FEW);
    let mut checker = Checker::default();
    let mut found = 0;
    let mut medium = scene.medium.clone();
    scene.install(&mut medium).unwrap();
    let writes = medium.moments.len();
    for write in 0..writes {
        let mut medium = scene.medium.with(Bug::Flip(write));
        let ended = scene.install(&mut medium);
        let (next, _) = checker.starts(&medium.remains(&mut random())[0]).unwrap();
        match ended {
            Ok(()) => assert_eq!(next, scene.new.image, "write {write}"),
            Err(failure) => {
                assert!(matches!(failure, Failure::BadMedium { .. }), "write {write}: {failure}");
                assert_eq!(next, scene.old.image, "write {write}");
                found += 1;
            }
        }
    }
    assert!(found > FEW + 4, "{found} of {writes}");
}

/// Whether the checker finds something on any disk that is left.
fn found(scene: &Scene, act: impl Fn(&mut Medium) -> Result<(), Failure>) -> bool {
    let mut checker = Checker::default();
    let mut found = false;
    scene.cut_everywhere(act, |_, left| {
        found |= checker.starts(&left).is_err() || checker.look(&left).image(Slot::A) != Some(scene.old.image);
        !found
    });
    found
}

#[test]
fn the_checker_finds_planted_bugs() {
    let steps = |scene: &Scene| {
        let slots = observe(&mut scene.medium.clone(), Slot::A, scene.old.image.root).unwrap();
        (slots.plan_install(scene.new.image).unwrap(), slots)
    };
    let carry = |scene: &Scene, medium: &mut Medium, steps: &[Step]| {
        let (_, mut slots) = (0, observe(medium, Slot::A, scene.old.image.root)?);
        carry_out(medium, &mut slots, steps, Some(scene.bundle()), &mut |_, _, _| ())
    };
    let scene = Scene::sized(Before::Staged, FEW);
    let (good, _) = steps(&scene);
    assert!(!found(&scene, |medium| carry(&scene, medium, &good)), "nothing is wrong with the real plan");

    // Nothing is flushed: the name comes before the kernel and the root.
    let scene = Scene { medium: scene.medium.with(Bug::NoFlush), ..scene };
    assert!(found(&scene, |medium| carry(&scene, medium, &good)), "no flush");

    // The staged system's slot is written while the boot loader may still take it.
    let scene = Scene::sized(Before::Staged, FEW);
    let late: Vec<Step> = good[1..].iter().chain(&good[..1]).cloned().collect();
    assert!(found(&scene, |medium| carry(&scene, medium, &late)), "the stale entry is removed last");

    // The kernel is written under its final name.
    let scene = Scene::sized(Before::Older, FEW);
    let (good, _) = steps(&scene);
    let hasty: Vec<Step> = good
        .iter()
        .filter(|step| !matches!(step, Step::Rename { .. }))
        .map(|step| match step {
            Step::WriteUki { image, .. } => Step::WriteUki { file: "trilith_1.5.0+3.efi".into(), image: *image },
            step => step.clone(),
        })
        .collect();
    assert!(found(&scene, |medium| carry(&scene, medium, &hasty)), "no temporary name");

    // A disk that lies is not read back.
    let blind: Vec<Step> = good.iter().filter(|step| !matches!(step, Step::Verify { .. })).cloned().collect();
    let scene = Scene { medium: scene.medium.with(Bug::Flip(FEW / 2)), ..scene };
    assert!(found(&scene, |medium| carry(&scene, medium, &blind)), "not read back");

    // The only entry is renamed instead of copied.
    let scene = Scene::sized(Before::Nothing, FEW);
    let rename = [Step::Rename { from: "trilith_1.4.0.efi".into(), to: "trilith_1.4.0+0.efi".into() }];
    assert!(found(&scene, |medium| carry(&scene, medium, &rename)), "the only entry is renamed");

    // Something writes into the slot that runs.
    let scene = Scene::sized(Before::Older, FEW);
    let astray = |medium: &mut Medium| {
        medium
            .write(Partition::Root(Slot::A), 0, &scene.new.root)
            .and_then(|()| medium.flush(Partition::Root(Slot::A)))
            .map_err(Failure::io("astray"))
    };
    assert!(found(&scene, astray), "the running slot is written");
}

#[test]
#[should_panic(expected = "the running slot is never written")]
fn a_plan_that_writes_the_running_slot_is_not_carried_out() {
    let scene = Scene::new(Before::Older);
    let mut medium = scene.medium.clone();
    let mut slots = observe(&mut medium, Slot::A, scene.old.image.root).unwrap();
    let astray = [Step::WriteRoot { slot: Slot::A }];
    let _ = carry_out(&mut medium, &mut slots, &astray, Some(scene.bundle()), &mut |_, _, _| ());
}

#[test]
fn a_bundle_larger_than_the_partition_fails_before_anything_changes_for_the_boot_loader() {
    let mut scene = Scene::sized(Before::Older, FEW);
    Rc::make_mut(scene.medium.partitions.get_mut(&Partition::Root(Slot::B)).unwrap()).truncate(2 * BLOCK);
    let failure = scene.install(&mut scene.medium.clone()).unwrap_err();
    assert_eq!(failure.exit_code(), 31, "{failure}");
}

#[test]
fn real_files_work_like_the_model() {
    let scene = Scene::new(Before::Older);
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let devices = SlotDevices {
        root: [at("root-a"), at("root-b")],
        verity: [at("verity-a"), at("verity-b")],
        entries: at("EFI/Linux"),
    };
    for (partition, content) in &scene.medium.partitions {
        std::fs::write(at(&partition.to_string()), content.as_slice()).unwrap();
    }
    std::fs::create_dir_all(&devices.entries).unwrap();
    for (name, file) in &scene.medium.names {
        std::fs::write(devices.entries.join(name), &scene.medium.files[file]).unwrap();
    }
    let mut devices = devices;
    let mut slots = observe(&mut devices, Slot::A, scene.old.image.root).unwrap();
    assert_eq!(slots, observe(&mut scene.medium.clone(), Slot::A, scene.old.image.root).unwrap());
    let mut last = None;
    install(&mut devices, &mut slots, scene.bundle(), &mut |step, done, all| {
        last = Some((step.to_string(), done, all))
    })
    .unwrap();
    assert_eq!(last.unwrap().0, "read slot b back: is it 1.5.0?");
    assert_eq!(
        slots,
        observe(&mut devices, Slot::A, scene.old.image.root).unwrap(),
        "what is believed is what is there"
    );
    assert_eq!(slots.boots_next().unwrap().file, "trilith_1.5.0+3.efi");
    assert!(devices.read_file("../root-a", 1).is_err());
    for name in ["FSCK0000.REC", "FSCK0012.REC", "FSCK.REC", "FSCK00000.REC", "fsck0000.txt"] {
        std::fs::write(at(name), "chain").unwrap();
    }
    std::fs::create_dir(at("FSCK0001.REC")).unwrap();
    devices.remove_salvage().unwrap();
    let left = ["FSCK0000.REC", "FSCK0001.REC", "FSCK0012.REC", "FSCK.REC", "FSCK00000.REC", "fsck0000.txt"];
    assert_eq!(left.map(|name| at(name).exists()), [false, true, false, true, true, true]);
    // The node starts into it, and its peers are content.
    let mut slots = observe(&mut devices, Slot::B, scene.new.image.root).unwrap();
    let steps = slots.plan_bless().unwrap();
    carry_out(&mut devices, &mut slots, &steps, None, &mut |_, _, _| ()).unwrap();
    assert_eq!(devices.names().unwrap(), ["trilith_1.4.0.efi", "trilith_1.5.0.efi"]);
}
