//! Every plan from every state, cut after every step and in the middle of every step.

use std::collections::BTreeSet;

use super::*;

const VERSIONS: [Version; 3] = [Version::new(1, 0, 0), Version::new(1, 1, 0), Version::new(1, 10, 0)];

fn image(at: usize) -> Image {
    Image { version: VERSIONS[at], root: RootHash([at as u8; 32]) }
}

fn entry(at: usize, tries: Option<Tries>) -> Entry {
    Entry { file: EntryName { version: VERSIONS[at], tries }.to_string(), image: Some(image(at)) }
}

fn counters() -> [Option<Tries>; 6] {
    [
        None,
        Some(Tries::NEW),
        Some(Tries { left: 2, done: 1 }),
        Some(Tries { left: 0, done: 3 }),
        Some(Tries::RETIRED),
        Some(Tries { left: 1, done: 2 }),
    ]
}

/// All states that a disk may be in: which versions, which counters, what is broken, what was left over.
fn states() -> Vec<Slots> {
    let mut states = Vec::new();
    for (running, other) in [(0, 1), (1, 0)] {
        for mine in counters() {
            for theirs in counters().map(Some).into_iter().chain([None]) {
                for content in [Content::Unknown, Content::Verified(image(other).root)] {
                    for oddity in 0..5 {
                        let mut entries = vec![entry(running, mine)];
                        entries.extend(theirs.map(|tries| entry(other, tries)));
                        let mut leftovers = Vec::new();
                        match oddity {
                            0 => {}
                            1 => leftovers.push(Entry { file: "trilith_1.1.0.new".into(), image: None }),
                            2 => entries.push(entry(running, Some(Tries { left: 1, done: 2 }))),
                            3 => entries[0].file = "TRILIT~1.EFI".into(),
                            _ => entries.push(Entry { image: None, ..entry(2, Some(Tries::RETIRED)) }),
                        }
                        let contents = [Content::Verified(image(running).root), content];
                        states.push(Slots { running: Slot::A, contents, entries, leftovers });
                    }
                }
            }
        }
    }
    states.retain(|slots| slots.check().is_ok());
    assert!(states.len() > 100, "{} states", states.len());
    states
}

/// What the disk may hold when the power fails in the middle of a step.
fn torn(before: &Slots, step: &Step) -> Vec<Slots> {
    let mut after = before.clone();
    after.apply(step);
    let changed = |change: &dyn Fn(&mut Slots)| {
        let mut slots = after.clone();
        change(&mut slots);
        slots
    };
    match step {
        // A directory's sectors are written in any order: one name, both, or neither; or the new one without its long form.
        Step::Rename { from, to } => {
            let moved =
                before.entries.iter().chain(&before.leftovers).find(|entry| entry.file == *from).unwrap().clone();
            let both = changed(&|slots| match super::plan::starts(from) {
                true => slots.entries.push(moved.clone()),
                false => slots.leftovers.push(moved.clone()),
            });
            let neither = changed(&|slots| slots.entries.retain(|entry| entry.file != *to));
            let short = changed(&|slots| {
                let entry = slots.entries.iter_mut().find(|entry| entry.file == *to).unwrap();
                entry.file = "TRILIT~2.EFI".into();
            });
            vec![both, neither, short]
        }
        Step::WriteUki { .. } | Step::Copy { .. } => {
            vec![changed(&|slots| slots.leftovers.last_mut().unwrap().image = None)]
        }
        Step::WriteRoot { slot } | Step::WriteVerity { slot } => {
            vec![changed(&|slots| slots.contents[*slot as usize] = Content::Unknown)]
        }
        Step::Remove { .. } | Step::Verify { .. } => Vec::new(),
    }
}

/// Carries a plan out and looks at every state on the way: promises hold, the running slot and its way in stay.
fn carry_out(start: &Slots, steps: &[Step]) -> Slots {
    let mut slots = start.clone();
    let kept = start.image(start.running).unwrap();
    for step in steps {
        for state in torn(&slots, step) {
            state
                .check()
                .unwrap_or_else(|what| panic!("{what}: in the middle of '{step}' of {steps:?} from {start:?}"));
        }
        slots.apply(step);
        slots.check().unwrap_or_else(|what| panic!("{what}: after '{step}' of {steps:?} from {start:?}"));
        assert_eq!(slots.content(slots.running), start.content(start.running), "the running slot was written");
        assert_eq!(slots.image(slots.running), Some(kept), "no way back: after '{step}' of {steps:?} from {start:?}");
    }
    slots
}

/// Starts what is next, as often as it takes: all of these must be complete. The last one is what remains when none is blessed.
fn fall_back(mut slots: Slots) -> (Image, Image) {
    let mut first = None;
    for _ in 0..20 {
        let entry = slots.boots_next().unwrap().clone();
        assert!(slots.leads_to(&entry).is_some(), "{entry:?} of {slots:?}");
        first = first.or(entry.image);
        let Some(Tries { left, done }) = entry.tries().filter(|_| !entry.failed()) else {
            return (first.unwrap(), entry.image.unwrap());
        };
        let tries = Some(Tries { left: left.saturating_sub(1), done: done + 1 });
        let name = EntryName { tries, ..entry.name().unwrap() };
        slots.apply(&Step::Rename { from: entry.file, to: name.to_string() });
    }
    panic!("tries do not run out: {slots:?}");
}

#[test]
fn an_installation_never_leaves_the_disk_without_the_system_that_runs() {
    for start in states() {
        for at in 0..3 {
            let running = start.image(Slot::A).unwrap();
            let entry = start.entry(Slot::A).unwrap();
            let trusted = entry.proven();
            let Ok(steps) = start.plan_install(image(at)) else {
                assert!(!trusted || running == image(at), "refused: {start:?}");
                continue;
            };
            assert!(trusted, "the last good version would be lost: {start:?}");
            let end = carry_out(&start, &steps);
            let (first, last) = fall_back(end.clone());
            assert_eq!((first, last), (image(at), running), "{end:?}");
            assert!(end.leftovers.is_empty() && end.entries.len() == 2, "{end:?}");
            assert_eq!(end.plan_install(image(at)), Ok(Vec::new()), "once is enough");
        }
    }
}

#[test]
fn an_installation_that_was_cut_off_anywhere_can_be_done_again() {
    for start in states() {
        for at in 0..3 {
            let Ok(steps) = start.plan_install(image(at)) else { continue };
            let mut slots = start.clone();
            for step in &steps {
                for cut in torn(&slots, step).into_iter().chain([slots.clone()]) {
                    // The machine starts anew, with what the boot loader takes.
                    let running = cut.leads_to(cut.boots_next().unwrap()).unwrap();
                    let cut = Slots { running, ..cut };
                    if cut.image(running) == Some(image(at)) {
                        continue;
                    }
                    // A running system that has lost its long name has to be blessed anew.
                    let cut = match cut.plan_install(image(at)) {
                        Err(Refused::Unproven(_)) => carry_out(&cut, &cut.plan_bless().unwrap()),
                        _ => cut,
                    };
                    let again = cut.plan_install(image(at)).unwrap();
                    assert_eq!(fall_back(carry_out(&cut, &again)).0, image(at));
                }
                slots.apply(step);
            }
        }
    }
}

#[test]
fn a_blessing_never_loses_the_only_entry() {
    for start in states() {
        let Ok(steps) = start.plan_bless() else { continue };
        let end = carry_out(&start, &steps);
        assert!(end.entry(Slot::A).unwrap().blessed());
        assert_eq!(end.plan_bless(), Ok(Vec::new()), "once is enough");
    }
}

#[test]
fn after_a_rollback_the_other_system_starts_and_a_failed_one_never_again() {
    let mut done = 0;
    for start in states() {
        for failed in [false, true] {
            let Ok(steps) = start.plan_rollback(failed) else { continue };
            let end = carry_out(&start, &steps);
            let other = start.image(Slot::B).unwrap();
            assert_eq!(end.boots_next().unwrap().image, Some(other), "{end:?}");
            let left = Slots { running: Slot::B, ..end.clone() };
            match failed {
                true => {
                    assert_eq!(left.plan_rollback(false), Err(Refused::Failed(start.image(Slot::A).unwrap().version)))
                }
                false if start.entry(Slot::A).unwrap().failed() => {}
                false => assert!(left.plan_rollback(false).is_ok(), "forth and back: {left:?}"),
            }
            done += 1;
        }
    }
    assert!(done > 100, "{done} rollbacks");
}

#[test]
fn a_banned_system_is_taken_only_when_nothing_else_is_left() {
    for start in states() {
        let Ok(steps) = start.plan_ban() else { continue };
        let end = carry_out(&start, &steps);
        let others = end.entries.iter().filter(|entry| end.leads_to(entry) != Some(Slot::A));
        assert!(others.into_iter().all(Entry::failed), "{end:?}");
        if end.entry(Slot::A).is_some_and(|entry| !entry.spent()) {
            assert_eq!(end.boots_next().unwrap().image, start.image(Slot::A));
        }
    }
}

#[test]
fn nothing_is_done_when_no_entry_leads_to_what_runs() {
    let contents = [Content::Verified(image(0).root), Content::Unknown];
    let slots = Slots { running: Slot::A, contents, entries: vec![entry(1, None)], leftovers: Vec::new() };
    assert_eq!(slots.check(), Err(Violation::Incomplete { file: "trilith_1.1.0.efi".into() }));
    assert_eq!(slots.plan_install(image(2)), Err(Refused::Unanchored(Slot::A)));
    assert_eq!(slots.plan_bless(), Err(Refused::Unanchored(Slot::A)));
    assert_eq!(Slots { entries: Vec::new(), ..slots }.check(), Err(Violation::NothingBoots));
}

#[test]
fn a_system_whose_entry_was_torn_gets_one_again_from_what_is_left_of_it() {
    let contents = [Content::Verified(image(1).root), Content::Verified(image(0).root)];
    let left = Entry { file: "trilith_1.1.0.new".into(), image: Some(image(1)) };
    let start = Slots { running: Slot::A, contents, entries: vec![entry(0, None)], leftovers: vec![left.clone()] };
    assert!(!start.proven() && start.way_back() == Some(image(0)), "on trial");
    assert_eq!(start.plan_rollback(true), Ok(vec![Step::Remove { file: left.file.clone() }]));
    let steps = start.plan_bless().unwrap();
    for state in torn(&start, &steps[0]) {
        state.check().unwrap();
    }
    let mut end = start.clone();
    steps.iter().for_each(|step| end.apply(step));
    assert!(end.proven() && end.leftovers.is_empty(), "{end:?}");
    assert_eq!(end.boots_next().unwrap().image, Some(image(1)));
    // It gives way to the other one, and nobody waits for a verdict that cannot be carried out.
    let lost = Slots { leftovers: Vec::new(), ..start };
    assert!(lost.proven() && lost.boots_next().unwrap().image == Some(image(0)));
}

#[test]
fn there_is_no_way_back_to_what_has_failed() {
    let contents = [Content::Verified(image(1).root), Content::Verified(image(0).root)];
    let with = |tries| {
        let entries = vec![entry(1, Some(Tries { left: 0, done: 1 })), entry(0, tries)];
        Slots { running: Slot::A, contents, entries, leftovers: Vec::new() }.way_back()
    };
    assert_eq!(with(Some(Tries::failed(3))), None);
    assert_eq!([None, Some(Tries::RETIRED), Some(Tries::NEW)].map(with), [Some(image(0)); 3]);
}

#[test]
fn a_version_of_before_is_on_trial_again_when_it_is_brought_back() {
    let contents = [Content::Verified(image(1).root), Content::Verified(image(0).root)];
    let entries = vec![entry(1, None), entry(0, None)];
    let start = Slots { running: Slot::A, contents, entries, leftovers: Vec::new() };
    let words: Vec<String> = start.plan_install(image(0)).unwrap().iter().map(Step::to_string).collect();
    let expected =
        ["rename trilith_1.0.0.efi to trilith_1.0.0+3.efi", "rename trilith_1.1.0.efi to trilith_1.1.0+0.efi"];
    assert_eq!(words, expected);
}

#[test]
fn an_upgrade_reads_like_this() {
    let contents = [Content::Verified(image(0).root), Content::Unknown];
    let start = Slots { running: Slot::A, contents, entries: vec![entry(0, None)], leftovers: Vec::new() };
    let words = |steps: &[Step]| steps.iter().map(Step::to_string).collect::<Vec<_>>();
    let steps = start.plan_install(image(1)).unwrap();
    let expected = [
        "write root-b",
        "write verity-b",
        "read slot b back: is it 1.1.0?",
        "write the kernel of 1.1.0 to trilith_1.1.0.new",
        "rename trilith_1.1.0.new to trilith_1.1.0+3.efi",
    ];
    assert_eq!(words(&steps), expected);
    let mut next = Slots { running: Slot::B, ..carry_out(&start, &steps) };
    let bless = next.plan_bless().unwrap();
    let expected = [
        "copy trilith_1.1.0+3.efi to trilith_1.1.0.new",
        "rename trilith_1.1.0.new to trilith_1.1.0.efi",
        "remove trilith_1.1.0+3.efi",
    ];
    assert_eq!(words(&bless), expected);
    bless.iter().for_each(|step| next.apply(step));
    let steps = next.plan_install(image(2)).unwrap();
    assert_eq!(words(&steps)[..2], ["remove trilith_1.0.0.efi", "write root-a"]);
}

#[test]
fn the_boot_loader_takes_higher_versions_first_and_spent_ones_last() {
    let contents = [Content::Verified(image(0).root), Content::Verified(image(1).root)];
    let start = |entries| Slots { running: Slot::A, contents, entries, leftovers: Vec::new() };
    let next = |entries| start(entries).boots_next().unwrap().image;
    assert_eq!(next(vec![entry(0, None), entry(1, Some(Tries::NEW))]), Some(image(1)));
    assert_eq!(next(vec![entry(0, None), entry(1, Some(Tries::RETIRED))]), Some(image(0)));
    assert_eq!(next(vec![entry(0, Some(Tries::failed(3))), entry(1, Some(Tries::RETIRED))]), Some(image(1)));
    // 1.10.0 is higher than 1.1.0, as strverscmp_improved() has it.
    assert_eq!(next(vec![entry(1, None), entry(2, None)]), Some(image(2)));
}

#[test]
fn plans_that_cut_corners_are_found_out() {
    let contents = [Content::Verified(image(0).root), Content::Verified(image(1).root)];
    let entries = vec![entry(0, None), entry(1, Some(Tries::NEW))];
    let start = Slots { running: Slot::A, contents, entries, leftovers: Vec::new() };
    let good = start.plan_install(image(2)).unwrap();
    let sound = |steps: &[Step]| std::panic::catch_unwind(|| carry_out(&start, steps)).is_ok();
    assert!(sound(&good));
    let kinds: BTreeSet<String> =
        good.iter().map(|step| format!("{step:?}").split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(kinds.len(), 6, "{good:?}");
    // Written before the stale entry is gone; not read back; the switch before the kernel is complete; into what runs.
    assert!(!sound(&[good[1].clone(), good[0].clone()]));
    assert!(!sound(&good.iter().filter(|step| !matches!(step, Step::Verify { .. })).cloned().collect::<Vec<_>>()));
    assert!(!sound(&[good[0].clone(), Step::WriteRoot { slot: Slot::A }]));
    let one =
        Slots { entries: vec![entry(0, Some(Tries::NEW))], contents: [contents[0], Content::Unknown], ..start.clone() };
    let rename = Step::Rename { from: one.entries[0].file.clone(), to: "trilith_1.0.0.efi".into() };
    assert!(std::panic::catch_unwind(|| carry_out(&one, &[rename])).is_err(), "the only entry is renamed");
}
