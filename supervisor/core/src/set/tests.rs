//! The rules of the state, request by request.

use super::*;

fn v(patch: u16) -> Version {
    Version::new(1, 0, patch)
}

/// Three nodes at 1.0.0 that hold a bundle of 1.0.1.
fn three() -> State {
    let mut state = State::with_document("one");
    for node in ["a", "b", "c"] {
        let report = Node { running: v(0), blessed: true, config: 1, level: LEVEL, ..Node::default() };
        assert_eq!(ask(&mut state, Ask::Report { node: node.into(), report }), Ok(Reply::Done));
    }
    let bundle = Bundle { manifest: "00".into(), floor: v(1), ..Bundle::default() };
    assert_eq!(ask(&mut state, Ask::AddBundle { release: Release::system(v(1)), bundle }), Ok(Reply::Done));
    state
}

fn ask(state: &mut State, ask: Ask) -> Result<Reply, Refusal> {
    let before = state.clone();
    let reply = state.apply(&Request::new("test", Some(7), ask));
    assert!(reply.is_ok() || before == *state, "a refused request changes nothing");
    reply
}

fn start(state: &mut State, goal: Goal) -> Result<Reply, Refusal> {
    ask(state, Ask::Start { token: format!("{goal}{}", state.rollouts), goal, options: Options::default() })
}

fn system(version: Version) -> Goal {
    Goal::System { version }
}

fn step(state: &mut State, node: &str, to: Step) -> Result<Reply, Refusal> {
    ask(state, Ask::Step { rollout: state.rollouts, node: node.into(), round: round(state), to })
}

fn round(state: &State) -> u64 {
    state.rollout.as_ref().map_or(0, |rollout| rollout.round)
}

fn settled(state: &mut State, node: &str) -> Result<Reply, Refusal> {
    let new = state.rollout.as_ref().is_some_and(|rollout| rollout.wants_new(node));
    ask(state, Ask::Settled { rollout: state.rollouts, node: node.into(), round: round(state), new })
}

fn failed(state: &mut State, node: &str, reason: &str) -> Result<Reply, Refusal> {
    ask(state, Ask::Failed { rollout: state.rollouts, node: node.into(), round: round(state), reason: reason.into() })
}

fn offer(state: &mut State, node: &str) -> Result<Reply, Refusal> {
    ask(state, Ask::Offer { rollout: state.rollouts, node: node.into() })
}

fn stage(state: &mut State) {
    for node in ["a", "b", "c"] {
        assert_eq!(ask(state, Ask::Staged { rollout: state.rollouts, node: node.into() }), Ok(Reply::Done));
    }
}

/// A whole turn of a node for which all goes well.
fn turn(state: &mut State, node: &str) {
    assert_eq!(offer(state, node), Ok(Reply::Done));
    for to in [Step::Draining, Step::Acting, Step::Verifying, Step::Settling] {
        assert_eq!(step(state, node, to), Ok(Reply::Done));
    }
    assert_eq!(settled(state, node), Ok(Reply::Done));
}

#[test]
fn a_rollout_that_goes_well_ends_done_and_raises_the_floor() {
    let mut state = three();
    let begun = Ok(Reply::Started { rollout: 1, config: None });
    assert_eq!(start(&mut state, system(v(1))), begun);
    assert!(matches!(offer(&mut state, "a"), Err(Refusal::NotItsTurn { .. })), "nothing is staged yet");
    stage(&mut state);
    ["a", "b", "c"].into_iter().for_each(|node| turn(&mut state, node));
    assert_eq!(state.rollout, None);
    assert_eq!(state.history[0].outcome, Outcome::Done);
    assert_eq!(state.floor, v(1));
    assert_eq!(start(&mut state, system(v(0))), Err(Refusal::BelowFloor { version: v(0), floor: v(1) }));
}

#[test]
fn the_same_request_twice_changes_nothing_more() {
    let mut state = three();
    let start = Ask::Start { token: "t".into(), goal: system(v(1)), options: Options::default() };
    let begun = Ok(Reply::Started { rollout: 1, config: None });
    assert_eq!(ask(&mut state, start.clone()), begun);
    assert_eq!(ask(&mut state, start), begun);
    stage(&mut state);
    assert_eq!(offer(&mut state, "b"), Ok(Reply::Done));
    assert_eq!(offer(&mut state, "b"), Ok(Reply::Already));
    assert_eq!(step(&mut state, "b", Step::Draining), Ok(Reply::Done));
    assert_eq!(step(&mut state, "b", Step::Draining), Ok(Reply::Already));
    let text: Vec<&str> = state.rollout.as_ref().unwrap().notes.iter().map(|note| note.text.as_str()).collect();
    assert_eq!(text.len(), 6, "{text:?}");
}

#[test]
fn only_one_node_at_a_time_has_the_turn_and_only_its_own_word_ends_it() {
    let mut state = three();
    start(&mut state, system(v(1))).unwrap();
    stage(&mut state);
    offer(&mut state, "a").unwrap();
    step(&mut state, "a", Step::Draining).unwrap();
    assert!(offer(&mut state, "b").is_err());
    let withdraw = Ask::Withdraw { rollout: 1, node: "a".into(), reason: "late".into() };
    assert!(ask(&mut state, withdraw).is_err());
    ask(&mut state, Ask::Halt { rollout: 1, node: "a".into(), reason: "silent".into() }).unwrap();
    assert_eq!(state.rollout.as_ref().unwrap().step_of("a"), Some(Step::Draining));
    let other = start(&mut state, system(v(2)));
    assert_eq!(other, Err(Refusal::StillOut { node: "a".into() }));
    ask(&mut state, Ask::Remove { node: "a".into() }).unwrap();
    assert_eq!(state.rollout.as_ref().unwrap().turn, None);
}

#[test]
fn a_failed_system_is_banned_and_halts_until_the_ban_is_lifted_or_another_starts() {
    let mut state = three();
    start(&mut state, system(v(1))).unwrap();
    stage(&mut state);
    turn(&mut state, "a");
    offer(&mut state, "b").unwrap();
    step(&mut state, "b", Step::Draining).unwrap();
    step(&mut state, "b", Step::Acting).unwrap();
    failed(&mut state, "b", "panic").unwrap();
    assert!(state.bans.contains_key(&Release::system(v(1))));
    assert!(matches!(ask(&mut state, Ask::Resume { rollout: 1 }), Err(Refusal::Banned { .. })));
    settled(&mut state, "b").unwrap();
    let bundle = Bundle { manifest: "02".into(), ..Bundle::default() };
    ask(&mut state, Ask::AddBundle { release: Release::system(v(2)), bundle }).unwrap();
    let mut other = state.clone();
    assert!(start(&mut other, system(v(2))).is_ok(), "a good bundle is accepted afterwards");
    assert!(matches!(other.history[0].outcome, Outcome::Halted { .. }));

    ask(&mut state, Ask::Unban { release: Release::system(v(1)) }).unwrap();
    ask(&mut state, Ask::Resume { rollout: 1 }).unwrap();
    assert_eq!(state.rollout.as_ref().unwrap().phase, Phase::Staging, "what failed is fetched and checked again");
}

#[test]
fn an_abort_sends_the_nodes_back_that_have_the_new_version_and_no_others() {
    let mut state = three();
    start(&mut state, system(v(1))).unwrap();
    stage(&mut state);
    turn(&mut state, "c");
    offer(&mut state, "a").unwrap();
    ask(&mut state, Ask::Abort { rollout: 1, reason: "second thoughts".into() }).unwrap();
    let rollout = state.rollout.clone().unwrap();
    assert_eq!(rollout.turn, None, "an offer that nobody took is withdrawn");
    assert_eq!(rollout.left().collect::<Vec<_>>(), ["c"]);
    turn(&mut state, "c");
    assert_eq!(state.history[0].outcome, Outcome::Back { reason: "second thoughts".into() });
    assert_eq!(state.floor, Version::default());
}

#[test]
fn a_document_is_on_trial_until_it_is_confirmed() {
    let mut state = three();
    let goal = Goal::Config { base: 1, text: "two".into() };
    let options = Options { confirm_within_s: Some(300), ..Options::default() };
    let begun = ask(&mut state, Ask::Start { token: "t".into(), goal, options });
    assert_eq!(begun, Ok(Reply::Started { rollout: 1, config: Some(2) }));
    offer(&mut state, "a").unwrap();
    step(&mut state, "a", Step::Draining).unwrap();
    assert_eq!(state.document_for("a").version, 1);
    step(&mut state, "a", Step::Acting).unwrap();
    assert_eq!((state.document_for("a").version, state.document_for("b").version), (2, 1));
    step(&mut state, "a", Step::Verifying).unwrap();
    step(&mut state, "a", Step::Settling).unwrap();
    settled(&mut state, "a").unwrap();
    assert_eq!(ask(&mut state, Ask::Confirm { rollout: 1 }), Err(Refusal::NotConfirming));
    ["b", "c"].into_iter().for_each(|node| turn(&mut state, node));
    let mut reverted = state.clone();
    ask(&mut state, Ask::Confirm { rollout: 1 }).unwrap();
    assert_eq!(ask(&mut state, Ask::Confirm { rollout: 1 }), Ok(Reply::Already));
    assert_eq!((state.config.good.version, state.config.previous.as_ref().map(|was| was.version)), (2, Some(1)));
    assert_eq!(
        start(&mut state, Goal::Config { base: 1, text: "x".into() }),
        Err(Refusal::Outdated { base: 1, now: 2 })
    );

    ask(&mut reverted, Ask::Abort { rollout: 1, reason: "not confirmed".into() }).unwrap();
    ["a", "b", "c"].into_iter().for_each(|node| turn(&mut reverted, node));
    assert_eq!((reverted.config.good.version, reverted.config.trial.clone()), (1, None));
    let begun = start(&mut reverted, Goal::Config { base: 1, text: "three".into() });
    assert_eq!(begun, Ok(Reply::Started { rollout: 2, config: Some(3) }), "a version is never used twice");
}

#[test]
fn a_document_or_service_that_fails_is_taken_back_everywhere() {
    let mut state = three();
    start(&mut state, Goal::Config { base: 1, text: "two".into() }).unwrap();
    turn(&mut state, "a");
    offer(&mut state, "b").unwrap();
    step(&mut state, "b", Step::Draining).unwrap();
    step(&mut state, "b", Step::Acting).unwrap();
    failed(&mut state, "b", "unfit").unwrap();
    assert_eq!(state.document_for("b").version, 1);
    assert_eq!(state.document_for("a").version, 2, "its turn to go back comes later");
    settled(&mut state, "b").unwrap();
    turn(&mut state, "a");
    assert_eq!(state.history[0].outcome, Outcome::Back { reason: "node b: unfit".into() });
}

#[test]
fn an_abort_drains_a_node_again_that_serves_with_the_new_version() {
    let mut state = three();
    start(&mut state, system(v(1))).unwrap();
    stage(&mut state);
    offer(&mut state, "a").unwrap();
    for to in [Step::Draining, Step::Acting, Step::Verifying] {
        step(&mut state, "a", to).unwrap();
    }
    ask(&mut state, Ask::Abort { rollout: 1, reason: "no".into() }).unwrap();
    assert_eq!(state.rollout.as_ref().unwrap().step_of("a"), Some(Step::Draining));
    for to in [Step::Acting, Step::Verifying, Step::Settling] {
        step(&mut state, "a", to).unwrap();
    }
    settled(&mut state, "a").unwrap();
    assert_eq!(state.rollout, None);
}

#[test]
fn a_word_that_was_long_on_its_way_moves_nothing() {
    let mut state = three();
    start(&mut state, system(v(1))).unwrap();
    stage(&mut state);
    offer(&mut state, "a").unwrap();
    step(&mut state, "a", Step::Draining).unwrap();
    step(&mut state, "a", Step::Acting).unwrap();
    let late = Ask::Step { rollout: 1, node: "a".into(), round: round(&state), to: Step::Verifying };
    ask(&mut state, Ask::Abort { rollout: 1, reason: "no".into() }).unwrap();
    assert!(matches!(ask(&mut state, late), Err(Refusal::Stale { .. })), "it spoke of the new version");
    assert_eq!(state.rollout.as_ref().unwrap().step_of("a"), Some(Step::Acting));
}

#[test]
fn a_pause_lets_nobody_leave_service() {
    let mut state = three();
    start(&mut state, system(v(1))).unwrap();
    stage(&mut state);
    offer(&mut state, "a").unwrap();
    step(&mut state, "a", Step::Draining).unwrap();
    ask(&mut state, Ask::Pause { rollout: 1, why: Pause::Operator }).unwrap();
    assert!(matches!(step(&mut state, "a", Step::Acting), Err(Refusal::Held { .. })));
    let round = round(&state);
    ask(&mut state, Ask::GiveBack { rollout: 1, node: "a".into(), round, new: false, reason: "paused".into() })
        .unwrap();
    assert!(matches!(offer(&mut state, "b"), Err(Refusal::Held { .. })));
    ask(&mut state, Ask::Resume { rollout: 1 }).unwrap();
    assert_eq!(offer(&mut state, "b"), Ok(Reply::Done));
}

#[test]
fn two_nodes_need_a_word_of_force() {
    let mut state = three();
    ask(&mut state, Ask::Remove { node: "c".into() }).unwrap();
    assert_eq!(start(&mut state, system(v(1))), Err(Refusal::FewNodes { nodes: 2 }));
    let options = Options { force: true, ..Options::default() };
    assert!(ask(&mut state, Ask::Start { token: "t".into(), goal: system(v(1)), options }).is_ok());
}

#[test]
fn a_node_that_comes_to_the_set_during_a_rollout_gets_its_turn() {
    let mut state = three();
    start(&mut state, system(v(1))).unwrap();
    stage(&mut state);
    turn(&mut state, "a");
    let report = Node { generation: 1, running: v(0), ..Node::default() };
    ask(&mut state, Ask::Report { node: "a".into(), report }).unwrap();
    let rollout = state.rollout.clone().unwrap();
    assert_eq!((rollout.phase, rollout.left().count()), (Phase::Staging, 3), "another machine took the place of a");
}

#[test]
fn a_node_that_lost_what_it_was_brought_to_gets_its_turn_again_before_the_rollout_is_done() {
    let mut state = three();
    start(&mut state, system(v(1))).unwrap();
    stage(&mut state);
    let runs = |state: &mut State, node: &str, running| {
        let report = Node { running, ..state.nodes[node].clone() };
        ask(state, Ask::Report { node: node.into(), report }).unwrap();
    };
    for node in ["a", "b"] {
        turn(&mut state, node);
        runs(&mut state, node, v(1));
    }
    let left = |state: &State| state.rollout.as_ref().map(|rollout| rollout.left().collect::<Vec<_>>().join(" "));
    assert_eq!(left(&state).as_deref(), Some("c"));
    runs(&mut state, "a", v(0));
    assert_eq!(left(&state).as_deref(), Some("a c"));
    let notes = &state.rollout.as_ref().unwrap().notes;
    assert_eq!(notes.last().unwrap().text, "node a runs 1.0.0, although it was not its turn");
    ask(&mut state, Ask::Staged { rollout: 1, node: "a".into() }).unwrap();
    turn(&mut state, "c");
    runs(&mut state, "c", v(1));
    assert_eq!(left(&state).as_deref(), Some("a"));
    turn(&mut state, "a");
    assert_eq!(left(&state), None);
    assert_eq!(state.history[0].outcome, Outcome::Done);
    assert_eq!(
        state.stray().as_deref(),
        Some("node a runs 1.0.0, not 1.0.1 like the set: bring it there with: trilith upgrade start 1.0.1")
    );
    let strays = state.clone();
    runs(&mut state, "a", v(1));
    assert_eq!(state.stray(), None);
    let taken_back = Past { outcome: Outcome::Back { reason: "no".into() }, ..state.history[0].clone() };
    let later = State { history: vec![state.history[0].clone(), taken_back], ..strays };
    assert!(later.stray().is_some(), "what was taken back has changed nothing");
}

#[test]
fn a_rollout_goes_on_when_the_last_node_that_has_not_staged_turns_out_to_have_it() {
    let mut state = three();
    start(&mut state, system(v(1))).unwrap();
    ["a", "b"].into_iter().for_each(|node| _ = ask(&mut state, Ask::Staged { rollout: 1, node: node.into() }).unwrap());
    let phase = |state: &State| state.rollout.as_ref().unwrap().phase;
    assert_eq!(phase(&state), Phase::Staging);
    let mut came = state.clone();
    let report = Node { running: v(1), ..state.nodes["c"].clone() };
    ask(&mut state, Ask::Report { node: "c".into(), report: report.clone() }).unwrap();
    assert_eq!(phase(&state), Phase::Rolling);
    let report = Node { generation: 1, ..report };
    ask(&mut came, Ask::Report { node: "c".into(), report }).unwrap();
    assert_eq!(phase(&came), Phase::Rolling, "another machine took its place");
}

#[test]
fn a_service_has_a_floor_and_a_minimum_of_its_own() {
    let mut state = three();
    let web = |patch| Goal::Service { name: "web".into(), version: v(patch) };
    let bundle = |state: &mut State, patch, floor, minimum| {
        let bundle = Bundle { manifest: "00".into(), floor, minimum, ..Bundle::default() };
        ask(state, Ask::AddBundle { release: Release::service("web", v(patch)), bundle }).unwrap();
    };
    bundle(&mut state, 1, v(0), v(0));
    bundle(&mut state, 2, v(2), v(0));
    bundle(&mut state, 3, v(0), v(1));
    start(&mut state, web(2)).unwrap();
    stage(&mut state);
    ["a", "b", "c"].into_iter().for_each(|node| turn(&mut state, node));
    assert_eq!(state.history[0].outcome, Outcome::Done);
    assert_eq!((state.floor_of(&Release::service("web", v(2))), state.floor), (v(2), Version::default()));
    assert_eq!(start(&mut state, web(1)), Err(Refusal::BelowFloor { version: v(1), floor: v(2) }));
    state.nodes.get_mut("b").unwrap().running = v(1);
    state.nodes.get_mut("c").unwrap().running = v(1);
    let minimum = Refusal::TooOld { node: "a".into(), running: v(0), minimum: v(1) };
    assert_eq!(start(&mut state, web(3)), Err(minimum));
}

#[test]
fn before_is_what_the_nodes_ran_and_never_what_was_only_staged() {
    let done = Outcome::Done;
    let back = Outcome::Back { reason: "an operator wants it".into() };
    let halted = Outcome::Halted { node: "a".into(), reason: "panic".into() };
    let before = |now: u16, other: [Option<u16>; 3], past: &[(u16, &Outcome)]| {
        let node = |other: &Option<u16>| Node { running: v(now), other: other.map(v), ..Node::default() };
        let history = past.iter().map(|(version, outcome)| Past {
            id: 1,
            token: String::new(),
            kind: Kind::System { version: v(*version) },
            outcome: (*outcome).clone(),
            notes: Vec::new(),
        });
        let nodes = ["a", "b", "c"].into_iter().map(str::to_owned).zip(other.iter().map(node)).collect();
        State { nodes, history: history.collect(), ..State::default() }.previous()
    };
    let (all, none) = (|version| [Some(version); 3], [None; 3]);
    assert_eq!(before(2, all(1), &[(1, &done), (2, &done)]), Some(v(1)));
    assert_eq!(before(1, all(2), &[(1, &done), (2, &done), (1, &done)]), Some(v(2)), "a rollback is taken back, too");
    assert_eq!(before(2, all(3), &[(1, &done), (2, &done), (3, &back)]), Some(v(1)), "3 was only staged");
    assert_eq!(before(2, all(1), &[(2, &done), (2, &done)]), Some(v(1)), "made with 1; a node was replaced");
    assert_eq!(before(2, all(1), &[]), Some(v(1)), "all that is long ago");
    assert_eq!(before(2, all(3), &[(2, &done), (3, &back)]), None);
    assert_eq!(before(2, all(3), &[]), None, "3 was staged long ago");
    assert_eq!(before(2, all(1), &[(2, &done), (1, &halted)]), None, "made with another, for all that is known");
    assert_eq!(before(2, [Some(1), Some(1), None], &[(2, &done)]), None);
    assert_eq!(before(2, none, &[]), None);
    let mut state = three();
    state.nodes.get_mut("b").unwrap().running = v(1);
    assert_eq!(state.previous(), None, "they differ");
}

#[test]
fn words_of_a_replaced_node_are_refused() {
    let mut state = three();
    let mut report = Node { generation: 2, ..Node::default() };
    ask(&mut state, Ask::Report { node: "a".into(), report: report.clone() }).unwrap();
    report.generation = 1;
    let replaced = ask(&mut state, Ask::Report { node: "a".into(), report });
    assert_eq!(replaced, Err(Refusal::Replaced { node: "a".into() }));
}

#[test]
fn a_lease_that_was_renewed_meanwhile_is_not_taken() {
    let mut state = three();
    let acquire = |node: &str, seen: &Lease| {
        let (epoch, renewal) = (seen.epoch, seen.renewal);
        Ask::Acquire { lease: "volume".into(), node: node.into(), epoch, renewal, session: 5 }
    };
    assert_eq!(ask(&mut state, acquire("a", &Lease::default())), Ok(Reply::Held { epoch: 1 }));
    let seen = state.leases["volume"].clone();
    let renew = Ask::Renew { lease: "volume".into(), node: "a".into(), epoch: 1, renewal: 2 };
    assert_eq!(ask(&mut state, renew.clone()), Ok(Reply::Held { epoch: 1 }));
    assert_eq!(ask(&mut state, renew), Ok(Reply::Already));
    assert!(ask(&mut state, acquire("b", &seen)).is_err());
    let seen = state.leases["volume"].clone();
    assert_eq!(ask(&mut state, acquire("b", &seen)), Ok(Reply::Held { epoch: 2 }));
    let late = Ask::Renew { lease: "volume".into(), node: "a".into(), epoch: 1, renewal: 9 };
    assert!(ask(&mut state, late).is_err());
}

#[test]
fn a_lease_outlives_the_highest_number_of_a_renewal() {
    let mut state = three();
    let acquire = |node: &str, epoch, renewal| Ask::Acquire {
        lease: "volume".into(),
        node: node.into(),
        epoch,
        renewal,
        session: 5,
    };
    ask(&mut state, acquire("a", 0, 0)).unwrap();
    let renew = Ask::Renew { lease: "volume".into(), node: "a".into(), epoch: 1, renewal: u64::MAX };
    assert_eq!(ask(&mut state, renew), Ok(Reply::Held { epoch: 1 }));
    assert_eq!(ask(&mut state, acquire("b", 1, u64::MAX)), Ok(Reply::Held { epoch: 2 }));
    ask(&mut state, Ask::Report { node: "b".into(), report: Node { generation: 9, ..Node::default() } }).unwrap();
    assert_eq!(state.leases["volume"].holder.as_deref(), Some("b"));
}

#[test]
fn everything_stays_within_its_bounds() {
    let mut state = three();
    for n in 0..60 {
        let goal = Goal::Config { base: state.config.good.version, text: format!("document {n}") };
        start(&mut state, goal).unwrap();
        let rollout = state.rollouts;
        for _ in 0..80 {
            ask(&mut state, Ask::Pause { rollout, why: Pause::Operator }).unwrap();
            ask(&mut state, Ask::Resume { rollout }).unwrap();
        }
        assert!(state.rollout.as_ref().unwrap().notes.len() <= MAX_NOTES);
        ask(&mut state, Ask::Abort { rollout, reason: "é".repeat(MAX_TEXT) }).unwrap();
        assert!(state.history.len() <= MAX_HISTORY);
    }
    let bundle = Bundle { manifest: "f".repeat(MAX_NAME + 1), ..Bundle::default() };
    assert!(ask(&mut state, Ask::AddBundle { release: Release::system(v(9)), bundle }).is_err());
    for patch in 0..2 * MAX_BUNDLES as u16 {
        let bundle = Bundle { manifest: "00".into(), ..Bundle::default() };
        let _ = ask(&mut state, Ask::AddBundle { release: Release::system(v(100 + patch)), bundle });
    }
    assert_eq!(state.bundles.len(), MAX_BUNDLES);
}

#[test]
fn json_goes_round_and_forgives_what_it_does_not_know() {
    let mut state = three();
    start(&mut state, system(v(1))).unwrap();
    offer(&mut state, "a").unwrap_err();
    stage(&mut state);
    offer(&mut state, "a").unwrap();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    assert_eq!(serde_json::from_str::<State>("{}").unwrap(), State::default());
    let newer = text.replacen('{', "{\"of-a-later-version\":[1,{\"x\":2}],", 1);
    assert_eq!(serde_json::from_str::<State>(&newer).unwrap(), state);

    let asks = [
        Ask::Start { token: "t".into(), goal: system(v(1)), options: Options::default() },
        Ask::Step { rollout: 1, node: "a".into(), round: 1, to: Step::Draining },
        Ask::Hold { release: Release::service("web", v(1)), node: "a".into(), held: true },
        Ask::Pause { rollout: 1, why: Pause::GaveBack { node: "a".into(), reason: "x".into() } },
    ];
    for ask in asks {
        let request = Request::new("a", None, ask);
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request, "{text}");
    }
    let later = r#"{"by":"a","utc":1,"ask":"promote","node":"b"}"#;
    assert_eq!(serde_json::from_str::<Request>(later).unwrap().ask, Ask::Unknown);
}
