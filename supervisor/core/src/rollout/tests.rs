//! One agent at a time, in sights that are set by hand.

use super::*;
use crate::set::{Goal, Options, Pause, Request, Window};

const OLD: Version = Version::new(1, 0, 0);
const NEW: Version = Version::new(1, 0, 1);

/// A set of three seen by one of its nodes.
struct Bench {
    now: Time,
    agent: Agent,
    state: State,
    nodes: BTreeMap<String, Seen>,
    own: Own,
    leads: bool,
    quorum: bool,
    utc: Option<u64>,
}

impl Bench {
    /// Node `me`, with a rollout of the new system staged everywhere.
    fn new(me: &str, options: Options) -> Bench {
        let mut bench = Bench::idle(me);
        bench.ask(Ask::Start { token: "t".into(), goal: Goal::System { version: NEW }, options });
        for node in ["a", "b", "c"] {
            bench.ask(Ask::Staged { rollout: 1, node: node.into() });
        }
        bench
    }

    fn idle(me: &str) -> Bench {
        let mut state = State::with_document("one");
        let node =
            Node { running: OLD, other: Some(NEW), blessed: true, slot: "a".into(), config: 1, ..Node::default() };
        for name in ["a", "b", "c"] {
            let ask = Ask::Report { node: name.into(), report: node.clone() };
            state.apply(&Request::new(name, None, ask)).unwrap();
        }
        let nodes = ["a", "b", "c"].map(|name| (name.to_owned(), Seen { heard: true, ..Seen::default() }));
        let seen_by = ["a", "b", "c"].into_iter().filter(|name| *name != me).map(str::to_owned).collect();
        let own = Own { node, seen_by, ..Own::default() };
        let agent = Agent::new(me, Planted::default());
        let (now, nodes) = (Time(1_000_000), nodes.into());
        Bench { now, agent, state, nodes, own, leads: false, quorum: true, utc: None }
    }

    fn ask(&mut self, ask: Ask) {
        self.state.apply(&Request::new("test", None, ask)).unwrap();
    }

    fn turn(&mut self, node: &str, steps: &[Step]) {
        self.ask(Ask::Offer { rollout: 1, node: node.into() });
        for to in steps {
            let round = self.state.rollout.as_ref().unwrap().round;
            self.ask(Ask::Step { rollout: 1, node: node.into(), round, to: *to });
        }
    }

    fn sight(&self) -> Sight<'_> {
        let Bench { state, nodes, own, leads, quorum, utc, .. } = self;
        Sight { state, leads: *leads, quorum: *quorum, utc: *utc, nodes, own }
    }

    /// Lets seconds pass, one step a second; what was said meanwhile.
    fn pass(&mut self, seconds: u64) -> Vec<Act> {
        let mut said = Vec::new();
        for _ in 0..seconds {
            self.now = self.now + Duration::from_secs(1);
            let mut agent = self.agent.clone();
            said.extend(agent.step(self.now, &self.sight()));
            self.agent = agent;
        }
        said
    }

    fn seen(&mut self, node: &str) -> &mut Seen {
        self.nodes.get_mut(node).unwrap()
    }
}

fn goes(acts: &[Act], step: Step) -> bool {
    acts.iter().any(|act| matches!(act, Act::Propose(Ask::Step { to, .. }) if *to == step))
}

#[test]
fn a_node_takes_its_turn_only_while_all_others_serve() {
    let mut bench = Bench::new("a", Options::default());
    bench.turn("a", &[]);
    bench.seen("c").unfit = Some("no carrier".into());
    assert!(!goes(&bench.pass(60), Step::Draining));
    bench.seen("c").unfit = None;
    assert!(goes(&bench.pass(1), Step::Draining));
}

#[test]
fn a_node_that_drains_serves_again_at_once_when_another_fails() {
    let mut bench = Bench::new("a", Options::default());
    bench.turn("a", &[Step::Draining]);
    assert!(bench.pass(1).contains(&Act::Drain { deadline_s: None }));
    bench.own.drain = Drain::Done;
    bench.seen("b").heard = false;
    assert_eq!(bench.pass(1), [Act::Undrain]);
    bench.own.drain = Drain::No;
    let said = bench.pass(FLICKER.as_secs());
    let why = Pause::SecondFailure { node: "b".into(), reason: "is not heard".into() };
    assert!(said.contains(&Act::Propose(Ask::Pause { rollout: 1, why })), "{said:?}");
}

#[test]
fn nothing_is_switched_before_the_drain_has_ended_and_the_vips_are_gone() {
    let mut bench = Bench::new("a", Options::default());
    bench.seen("a").vips = 1;
    bench.turn("a", &[Step::Draining, Step::Acting]);
    let said = bench.pass(1);
    assert!(said.contains(&Act::HandOver) && said.contains(&Act::Drain { deadline_s: None }), "{said:?}");
    bench.own.drain = Drain::Done;
    assert!(!bench.pass(10).iter().any(|act| matches!(act, Act::Switch { .. })), "it owns a VIP");
    bench.seen("a").vips = 0;
    assert!(bench.pass(1).contains(&Act::Switch { to: Target::System(NEW), trial: true }));
}

#[test]
fn what_runs_on_trial_is_blessed_only_when_it_was_seen_serving_for_long_enough() {
    let mut bench = Bench::new("a", Options::default());
    bench.turn("a", &[Step::Draining, Step::Acting, Step::Verifying, Step::Settling]);
    bench.own.node = Node { running: NEW, other: Some(OLD), blessed: false, ..bench.own.node.clone() };
    bench.own.trial = Some(bench.now);
    let settle = SETTLE.as_secs();
    assert!(!bench.pass(settle).contains(&Act::Bless));
    let peers = std::mem::take(&mut bench.own.seen_by);
    assert!(!bench.pass(settle).contains(&Act::Bless), "nobody sees it");
    bench.own.seen_by = peers;
    assert!(!bench.pass(settle).contains(&Act::Bless), "it is counted anew");
    assert!(bench.pass(1).contains(&Act::Bless));
}

#[test]
fn a_document_with_which_a_service_does_not_answer_here_never_brings_the_node_back_into_service() {
    let mut bench = Bench::idle("a");
    let goal = Goal::Config { base: 1, text: "two".into() };
    bench.ask(Ask::Start { token: "t".into(), goal, options: Options::default() });
    bench.turn("a", &[Step::Draining, Step::Acting]);
    bench.own.node.config = 2;
    (bench.own.trial, bench.own.drain) = (Some(bench.now), Drain::Done);
    bench.own.ails = Some("service web does not answer on this node (DOWN)".into());
    let said = bench.pass(RESTART_TRIAL.as_secs() - 1);
    assert!(!said.contains(&Act::Undrain) && !goes(&said, Step::Verifying), "{said:?}");
    let reason = "after 60 s service web does not answer on this node (DOWN)".into();
    assert!(bench.pass(1).contains(&Act::Revert { reason }));
    bench.own.ails = None;
    let said = bench.pass(2);
    assert!(said.contains(&Act::Undrain) && goes(&said, Step::Verifying), "{said:?}");
}

#[test]
fn a_node_that_is_back_and_fit_is_not_waited_for_for_ever_because_a_service_is_silent() {
    let mut bench = Bench::new("a", Options::default());
    bench.turn("a", &[Step::Draining, Step::Acting]);
    let round = bench.state.rollout.as_ref().unwrap().round;
    bench.ask(Ask::Failed { rollout: 1, node: "a".into(), round, reason: "nobody saw it".into() });
    bench.own.ails = Some("service web does not answer on this node (DOWN)".into());
    let settles = |acts: &[Act]| acts.iter().any(|act| matches!(act, Act::Propose(Ask::Settled { .. })));
    assert!(!settles(&bench.pass(TRIAL.as_secs() - 1)));
    bench.seen("a").unfit = Some("no carrier".into());
    assert!(!settles(&bench.pass(2)), "it is not in service");
    bench.seen("a").unfit = None;
    assert!(settles(&bench.pass(1)));
}

#[test]
fn a_node_that_hears_nobody_goes_back_by_its_own_clock() {
    let mut bench = Bench::new("a", Options::default());
    bench.turn("a", &[Step::Draining, Step::Acting]);
    bench.own.node = Node { running: NEW, other: Some(OLD), blessed: false, ..bench.own.node.clone() };
    (bench.own.trial, bench.quorum) = (Some(bench.now), false);
    bench.own.seen_by.clear();
    ["b", "c"].into_iter().for_each(|node| bench.seen(node).heard = false);
    // Which follows from that.
    bench.own.ails = Some("service web does not answer on this node (DOWN)".into());
    let reverts = |acts: &[Act]| acts.iter().any(|act| matches!(act, Act::Revert { .. }));
    assert!(!reverts(&bench.pass(TRIAL.as_secs() - 1)));
    let said = bench.pass(1);
    assert!(said.contains(&Act::Revert { reason: "it has heard no other node for 300 s".into() }), "{said:?}");
}

#[test]
fn a_revert_that_was_cut_off_goes_on() {
    let mut bench = Bench::new("a", Options::default());
    bench.turn("a", &[Step::Draining, Step::Acting]);
    bench.own.node = Node { running: NEW, other: Some(OLD), blessed: false, ..bench.own.node.clone() };
    bench.own.trial = Some(bench.now);
    bench.own.failed = Some(Failure { what: Target::System(NEW), reason: "nobody saw it".into() });
    let said = bench.pass(1);
    assert!(said.contains(&Act::Revert { reason: "nobody saw it".into() }), "{said:?}");
    bench.own.node = Node { running: OLD, blessed: true, ..bench.own.node.clone() };
    bench.own.trial = None;
    let round = bench.state.rollout.as_ref().unwrap().round;
    let failed = Ask::Failed { rollout: 1, node: "a".into(), round, reason: "nobody saw it".into() };
    assert!(bench.pass(1).contains(&Act::Propose(failed)));
}

#[test]
fn an_abort_while_the_switch_is_under_way_waits_for_the_restart() {
    let mut bench = Bench::new("a", Options::default());
    bench.turn("a", &[Step::Draining, Step::Acting]);
    bench.own.drain = Drain::Done;
    let switch = Act::Switch { to: Target::System(NEW), trial: true };
    assert_eq!(bench.pass(1), std::slice::from_ref(&switch));
    bench.ask(Ask::Abort { rollout: 1, reason: "no".into() });
    assert_eq!(bench.pass(2), [switch], "it is not known any more which system will run");
}

#[test]
fn what_is_on_its_way_back_already_is_not_judged_meanwhile() {
    let mut bench = Bench::new("a", Options { drain_s: Some(3600), ..Options::default() });
    bench.turn("a", &[Step::Draining, Step::Acting, Step::Verifying]);
    bench.own.node = Node { running: NEW, other: Some(OLD), blessed: false, ..bench.own.node.clone() };
    bench.own.trial = Some(bench.now);
    bench.ask(Ask::Abort { rollout: 1, reason: "no".into() });
    bench.own.drain = Drain::Going;
    bench.own.seen_by.clear();
    let reverts = |acts: &[Act]| acts.iter().any(|act| matches!(act, Act::Revert { .. }));
    assert!(!reverts(&bench.pass(TRIAL.as_secs() + 1)), "connections have their deadline");
    bench.quorum = false;
    assert!(reverts(&bench.pass(1)), "nobody tells it to go on");
}

#[test]
fn the_coordinator_offers_turns_in_the_window_only_and_to_the_owner_last() {
    let window = Window { from_min: 23 * 60, to_min: 60 };
    let mut bench = Bench::new("c", Options { window: Some(window), ..Options::default() });
    bench.leads = true;
    bench.seen("a").vips = 1;
    assert_eq!(bench.pass(60), [], "the time of the day is not known");
    bench.utc = Some(12 * 3600);
    assert_eq!(bench.pass(60), []);
    assert_eq!(waits("c", &bench.sight()).as_deref(), Some("it is not the time for it"));
    bench.utc = Some(30 * 60);
    assert_eq!(bench.pass(1), [Act::Propose(Ask::Offer { rollout: 1, node: "b".into() })]);
}

#[test]
fn what_has_come_between_the_start_and_the_hour_is_looked_at_again_before_anybody_leaves_service() {
    let mut bench = Bench::new("a", Options { not_before: Some(3600), ..Options::default() });
    (bench.leads, bench.utc) = (true, Some(0));
    assert_eq!(bench.pass(60), [], "it is not the time yet");
    bench.utc = Some(3600);
    bench.seen("c").unfit = Some("no carrier".into());
    assert_eq!(bench.pass(60), []);
    assert_eq!(waits("a", &bench.sight()).as_deref(), Some("node c is unfit: no carrier"));
    bench.ask(Ask::Pause { rollout: 1, why: Pause::Operator });
    bench.ask(Ask::Resume { rollout: 1 });
    assert_eq!(bench.pass(60), [], "an operator's word does not mend it");
    bench.seen("c").unfit = None;
    assert_eq!(bench.pass(1), [Act::Propose(Ask::Offer { rollout: 1, node: "b".into() })]);
}

#[test]
fn a_node_that_serves_badly_before_its_turn_does_not_have_a_version_blamed_for_it() {
    let ails = "its HAProxy does not run what the document asks for: no certificate";
    let ailing = |options| {
        let mut bench = Bench::new("a", options);
        bench.turn("a", &[]);
        bench.own.ails = Some(ails.into());
        bench
    };
    let mut bench = ailing(Options::default());
    assert_eq!(bench.pass(FLICKER.as_secs()), [], "it may be passing");
    let why = Pause::GaveBack { node: "a".into(), reason: ails.into() };
    assert_eq!(bench.pass(1), [Act::Propose(Ask::Pause { rollout: 1, why: why.clone() })]);
    bench.ask(Ask::Pause { rollout: 1, why: why.clone() });
    assert_eq!(bench.pass(1), []);
    bench.ask(Ask::Resume { rollout: 1 });
    bench.turn("a", &[]);
    assert_eq!(bench.pass(1), [Act::Propose(Ask::Pause { rollout: 1, why })], "nobody has mended it");
    bench.own.ails = None;
    assert!(goes(&bench.pass(1), Step::Draining));

    let mut bench = ailing(Options::default());
    bench.own.ails = None;
    bench.seen("c").unfit = Some("no carrier".into());
    assert_eq!(bench.pass(FLICKER.as_secs() + 1), [], "it waits for another");
    bench.seen("c").unfit = None;
    bench.own.ails = Some(ails.into());
    assert_eq!(bench.pass(1), [], "it ails only now");

    assert!(goes(&ailing(Options { force: true, ..Options::default() }).pass(1), Step::Draining));
}

#[test]
fn an_offer_is_taken_back_when_another_node_fails_before_it_is_taken() {
    let mut bench = Bench::new("a", Options::default());
    bench.leads = true;
    bench.turn("b", &[]);
    bench.seen("c").drained = true;
    let reason = "node c is drained".into();
    assert_eq!(bench.pass(1), [Act::Propose(Ask::Withdraw { rollout: 1, node: "b".into(), reason })]);
}

#[test]
fn a_node_that_an_operator_has_drained_gets_no_turn() {
    let mut bench = Bench::new("a", Options { force: true, ..Options::default() });
    bench.leads = true;
    bench.seen("b").drained = true;
    let offer = |node: &str| Act::Propose(Ask::Offer { rollout: 1, node: node.into() });
    assert_eq!(bench.pass(1), [], "while one is out of service no other one leaves it");
    assert_eq!(waits("a", &bench.sight()).as_deref(), Some("node b is drained"));
    bench.seen("b").drained = false;
    assert_eq!(bench.pass(1), [offer("b")]);
    bench.turn("b", &[]);
    bench.seen("b").drained = true;
    let reason = "node b is drained".into();
    assert_eq!(bench.pass(1), [Act::Propose(Ask::Withdraw { rollout: 1, node: "b".into(), reason })]);

    let mut bench = Bench::new("b", Options::default());
    bench.turn("b", &[]);
    bench.seen("b").drained = true;
    assert_eq!(bench.pass(1), [], "it does not take a turn that it was offered just before");
}

#[test]
fn a_drain_that_came_to_nothing_is_begun_again() {
    let mut bench = Bench::new("b", Options::default());
    bench.turn("b", &[Step::Draining]);
    let drain = Act::Drain { deadline_s: None };
    assert_eq!(bench.pass(1), std::slice::from_ref(&drain));
    (bench.own.drain, bench.seen("b").drained) = (Drain::Going, true);
    assert_eq!(bench.pass(REPEAT.as_secs()), [drain]);
    bench.own.drain = Drain::Done;
    assert!(matches!(&bench.pass(REPEAT.as_secs())[..], [Act::Propose(Ask::Step { to: Step::Acting, .. })]));
}

#[test]
fn a_node_that_is_lost_halts_the_rollout() {
    let mut bench = Bench::new("a", Options::default());
    bench.leads = true;
    bench.turn("b", &[Step::Draining, Step::Acting]);
    bench.seen("b").heard = false;
    assert_eq!(bench.pass(LOST.as_secs()), []);
    let said = bench.pass(1);
    assert!(matches!(&said[..], [Act::Propose(Ask::Halt { node, .. })] if node == "b"), "{said:?}");
}

#[test]
fn it_is_said_that_the_node_whose_turn_it_is_is_not_heard() {
    let mut bench = Bench::new("a", Options::default());
    let says = |bench: &Bench| waits("a", &bench.sight());
    bench.turn("b", &[Step::Draining]);
    assert_eq!(says(&bench), None);
    bench.seen("b").heard = false;
    assert_eq!(says(&bench).as_deref(), Some("node b is not heard"));
    let to = Step::Acting;
    let round = bench.state.rollout.as_ref().unwrap().round;
    bench.ask(Ask::Step { rollout: 1, node: "b".into(), round, to });
    let restarts = "node b is not heard: it restarts, or is lost; after 900 s at this the rollout halts";
    assert_eq!(says(&bench).as_deref(), Some(restarts));
    bench.seen("b").heard = true;
    assert_eq!(says(&bench), None, "it switches, and has not ended yet");
    bench.seen("b").heard = false;
    bench.seen("c").heard = false;
    assert_eq!(says(&bench).as_deref(), Some("node c is not heard"), "the other one is what is wrong");
}

#[test]
fn a_document_that_is_not_confirmed_is_taken_back() {
    let mut bench = Bench::idle("a");
    bench.leads = true;
    let goal = Goal::Config { base: 1, text: "two".into() };
    let options = Options { confirm_within_s: Some(60), ..Options::default() };
    bench.ask(Ask::Start { token: "t".into(), goal, options });
    for node in ["a", "b", "c"] {
        bench.turn(node, &[Step::Draining, Step::Acting, Step::Verifying, Step::Settling]);
        let round = bench.state.rollout.as_ref().unwrap().round;
        bench.ask(Ask::Settled { rollout: 1, node: node.into(), round, new: true });
    }
    bench.own.node.config = 2;
    let aborts = |acts: &[Act]| acts.iter().any(|act| matches!(act, Act::Propose(Ask::Abort { .. })));
    assert!(!aborts(&bench.pass(60)));
    assert!(aborts(&bench.pass(1)));
}

#[test]
fn a_job_is_tried_a_few_times_and_then_halts_the_rollout() {
    let mut bench = Bench::idle("b");
    bench.own.node.other = None;
    let bundle = crate::set::Bundle { manifest: "00".into(), ..Default::default() };
    bench.ask(Ask::AddBundle { release: Release::system(NEW), bundle });
    bench.ask(Ask::Report { node: "b".into(), report: bench.own.node.clone() });
    bench.ask(Ask::Start { token: "t".into(), goal: Goal::System { version: NEW }, options: Options::default() });
    bench.own.job = Job::Failed("sda4: disk full".into());
    let said = bench.pass(60);
    let fetch = Act::Fetch(Release::system(NEW));
    assert_eq!(said.iter().filter(|act| **act == fetch).count(), TRIES as usize);
    let halt = Ask::Halt { rollout: 1, node: "b".into(), reason: "sda4: disk full".into() };
    assert!(said.contains(&Act::Propose(halt)));
}

#[test]
fn what_the_other_slot_holds_counts_only_when_the_set_s_own_bundle_of_it_is_here() {
    let mut bench = Bench::idle("b");
    bench.own.node.other = Some(NEW);
    let release = Release::system(NEW);
    let bundle = crate::set::Bundle { manifest: "00".into(), ..Default::default() };
    bench.ask(Ask::AddBundle { release: release.clone(), bundle });
    bench.ask(Ask::Report { node: "b".into(), report: bench.own.node.clone() });
    bench.ask(Ask::Start { token: "t".into(), goal: Goal::System { version: NEW }, options: Options::default() });
    let staged = Act::Propose(Ask::Staged { rollout: 1, node: "b".into() });
    let said = bench.pass(1);
    assert!(said.contains(&Act::Fetch(release.clone())) && !said.contains(&staged), "{said:?}");
    bench.own.job = Job::Failed("nobody has it".into());
    let halted = bench.pass(60).into_iter().find_map(|act| match act {
        Act::Propose(Ask::Halt { reason, .. }) => Some(reason),
        _ => None,
    });
    assert!(halted.unwrap().ends_with("trilith upgrade remove 1.0.1"), "the way out is named");
    bench.own.bundles.insert(release);
    assert!(bench.pass(1).contains(&staged));
}

#[test]
fn a_bundle_that_has_just_come_in_is_not_taken_for_one_that_the_set_has_forgotten() {
    let mut bench = Bench::idle("a");
    let release = Release::system(NEW);
    bench.own.bundles.insert(release.clone());
    assert_eq!(bench.pass(ORPHAN.as_secs()), []);
    assert_eq!(bench.pass(1), [Act::Discard(release)]);
}

#[test]
fn a_bundle_needs_room_where_it_is_not_and_shall_be() {
    let mut bench = Bench::idle("a");
    let bundle = crate::set::Bundle { size: 7, held_by: ["a".into()].into(), ..Default::default() };
    bench.ask(Ask::AddBundle {
        release: Release::system(NEW),
        bundle: crate::set::Bundle { manifest: "00".into(), ..bundle },
    });
    bench.state.nodes.get_mut("b").unwrap().running = NEW;
    let plan = plan("a", &bench.sight(), &Goal::System { version: NEW }, &Options::default());
    assert_eq!(plan.fetched, [("c".to_owned(), 7)].into());
}

#[test]
fn the_dry_run_says_what_would_be_done_and_what_speaks_against_it() {
    let mut bench = Bench::idle("b");
    bench.seen("a").vips = 2;
    let goal = Goal::System { version: NEW };
    let fine = plan("b", &bench.sight(), &goal, &Options { drain_s: Some(30), ..Options::default() });
    assert_eq!(fine.objections, [""; 0]);
    assert_eq!(
        fine.steps,
        [
            "node c: drain within 30 s, reboot into 1.0.1, be seen serving for 15 s",
            "node b: drain within 30 s, reboot into 1.0.1, be seen serving for 15 s",
            "node a: hand 2 VIP(s) over, drain within 30 s, reboot into 1.0.1, be seen serving for 15 s",
        ]
    );
    bench.seen("c").unfit = Some("no carrier".into());
    let other = plan("b", &bench.sight(), &Goal::System { version: OLD }, &Options::default());
    assert_eq!(
        other.objections,
        ["every node has it already", "node c is unfit: no carrier; mend that first, or say --force"]
    );
}
