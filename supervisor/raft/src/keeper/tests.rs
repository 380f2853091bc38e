//! Whole sets in one process: real TLS, real files, each node at an address of its own.

use std::time::Duration;

use trilith_core::config::Settings;
use trilith_core::set::{Ask, Node, Reply, Request, State};
use zeroize::Zeroizing;

use super::*;
use crate::protocol::Standing;
use crate::tests::{Folder, eventually, port, settings};
use crate::{Alarm, Health, Options, ProposeError, Replica, Rhythm};

const RHYTHM: Rhythm = Rhythm {
    heartbeat: Duration::from_millis(150),
    lease: Duration::from_millis(700),
    round: Duration::from_millis(100),
};
const SECRET: &[u8] = b"0123456789abcdef";
/// How often it is tried what may be spoilt by an election that the machine's load has brought about.
const TRIES: u32 = 10;
const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];

struct Cluster {
    folder: Folder,
    settings: Arc<Settings>,
    nodes: Vec<Option<Replica>>,
}

impl Cluster {
    /// A set of so many nodes, none of which runs.
    fn new(test: &str, nodes: usize) -> Cluster {
        let settings = settings(&NAMES[..nodes], port());
        Cluster { folder: Folder::new(test), settings, nodes: (0..nodes).map(|_| None).collect() }
    }

    async fn formed(test: &str, nodes: usize) -> Cluster {
        let mut cluster = Cluster::new(test, nodes);
        for node in 0..nodes {
            cluster.start(node).await;
        }
        cluster.whole().await;
        cluster
    }

    async fn start(&mut self, node: usize) {
        let started = self.try_start(node).await;
        self.nodes[node] = Some(started.unwrap_or_else(|error| panic!("{error}")));
    }

    async fn try_start(&self, node: usize) -> Result<Replica, Unstarted> {
        let options = || Options {
            directory: self.directory(node),
            settings: self.settings.clone(),
            me: NodeId(node as u8),
            secret: Zeroizing::new(SECRET.to_vec()),
            rhythm: RHYTHM,
            blocks: None,
        };
        loop {
            match Replica::start(options()).await {
                // The one before it has ended, but its last connections may hold the address for a moment.
                Err(Unstarted::Port(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                other => return other,
            }
        }
    }

    fn directory(&self, node: usize) -> std::path::PathBuf {
        self.folder.path().join(NAMES[node])
    }

    async fn stop(&mut self, node: usize) {
        self.nodes[node].take().unwrap().shutdown().await;
    }

    /// As if its disk had been changed for a new one.
    async fn empty(&mut self, node: usize) {
        self.stop(node).await;
        std::fs::remove_dir_all(self.directory(node)).unwrap();
        self.start(node).await;
    }

    fn replica(&self, node: usize) -> &Replica {
        self.nodes[node].as_ref().unwrap()
    }

    fn health(&self, node: usize) -> Health {
        self.replica(node).health().borrow().clone()
    }

    fn state(&self, node: usize) -> Arc<State> {
        self.replica(node).state().borrow().clone()
    }

    fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].is_some()).collect()
    }

    /// All nodes of the document have a vote, know the same leader, and no alarm is left.
    async fn whole(&self) {
        eventually("the set is whole", async || {
            let healths: Vec<Health> = self.running().iter().map(|node| self.health(*node)).collect();
            healths.iter().all(|health| {
                health.voters.len() == self.nodes.len()
                    && health.leader.is_some()
                    && health.leader == healths[0].leader
                    && health.alarms.is_empty()
            })
        })
        .await;
    }

    /// Proposes on a node until it is confirmed, as whoever needs it would.
    async fn note(&self, on: usize, config: u64) {
        let reply = loop {
            match self.replica(on).propose(&note(config)).await {
                Err(ProposeError::NoQuorum { .. }) => {}
                other => break other.unwrap(),
            }
        };
        assert!(matches!(reply, Reply::Done | Reply::Already), "{reply:?}");
        assert_eq!(noted(&self.state(on)), config, "whoever proposed sees it at once");
    }

    async fn all_see(&self, config: u64) {
        eventually("all nodes have the state", async || {
            self.running().iter().all(|node| noted(&self.state(*node)) == config)
        })
        .await;
    }

    /// Whoever leads, as soon as somebody does.
    async fn leader(&self) -> usize {
        let leader = || self.running().into_iter().find(|node| self.replica(*node).is_leader());
        eventually("somebody leads", async || leader().is_some()).await;
        // Should it have ended just now, any node is as good.
        leader().unwrap_or_else(|| self.running()[0])
    }

    /// Has a node replaced by way of another one until it is, as an operator would: nobody may lead for a moment.
    async fn replace(&self, lost: usize, on: usize) {
        eventually("the node is replaced", async || match self.replica(on).replace(NAMES[lost]).await {
            Ok(()) => true,
            // Done when it was tried before.
            Err(words) => words.contains("nothing to replace"),
        })
        .await;
    }

    /// A node is not replaced, for this reason.
    async fn replaces_nobody(&self, name: &str, on: usize, why: &str) {
        eventually(why, async || {
            self.replica(on).replace(name).await.expect_err("nothing is wrong with it").contains(why)
        })
        .await;
    }

    /// A leader believes in its majority for one lease more.
    async fn no_leader(&self, node: usize) {
        eventually("nobody leads", async || self.health(node).leader.is_none()).await;
    }

    async fn alarm(&self, node: usize, alarm: Alarm) {
        eventually(&format!("{alarm} on {}", NAMES[node]), async || self.health(node).alarms.contains(&alarm)).await;
    }
}

/// A request that can be told from others by a number.
fn note(config: u64) -> Request {
    let report = Node { config, ..Node::default() };
    Request::new("test", None, Ask::Report { node: "x".to_owned(), report })
}

fn noted(state: &State) -> u64 {
    state.nodes.get("x").map_or(0, |node| node.config)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(flavor = "current_thread")]
async fn a_set_of_one_node_works_at_once_and_after_a_restart() {
    let mut cluster = Cluster::formed("one", 1).await;
    cluster.note(0, 7).await;
    cluster.stop(0).await;
    cluster.start(0).await;
    cluster.whole().await;
    assert_eq!(noted(&cluster.state(0)), 7);
    cluster.note(0, 8).await;
}

#[tokio::test(flavor = "current_thread")]
async fn three_nodes_found_the_set_by_themselves_and_any_of_them_takes_requests() {
    let mut cluster = Cluster::new("three", 3);
    cluster.start(1).await;
    cluster.start(2).await;
    cluster.alarm(1, Alarm::Founding { silent: names(&["a"]) }).await;
    assert!(!cluster.health(1).member);
    cluster.start(0).await;
    cluster.whole().await;
    for node in 0..3 {
        cluster.note(node, node as u64 + 1).await;
        cluster.all_see(node as u64 + 1).await;
    }
    let resume = Request::new("test", None, Ask::Resume { rollout: 9 });
    eventually("the answer", async || match cluster.replica(1).propose(&resume).await {
        Err(ProposeError::NoQuorum { .. }) => false,
        refused => matches!(refused, Err(ProposeError::Refused(_))) || panic!("{refused:?}"),
    })
    .await;
    // What is at the disk at once is there without a majority.
    for node in 0..3 {
        cluster.stop(node).await;
    }
    cluster.start(1).await;
    assert_eq!(noted(&cluster.state(1)), 3);
}

#[tokio::test(flavor = "current_thread")]
async fn seven_nodes_are_a_set_too() {
    let cluster = Cluster::formed("seven", 7).await;
    cluster.note(6, 70).await;
    cluster.all_see(70).await;
}

#[tokio::test(flavor = "current_thread")]
async fn the_set_outlives_its_leader_and_a_restart_of_all() {
    let mut cluster = Cluster::formed("leader", 3).await;
    cluster.note(0, 1).await;
    let first = cluster.leader().await;
    cluster.stop(first).await;
    let other = (first + 1) % 3;
    // A busy machine may cost any leader its lease now and then. A node that disturbs would do so each time.
    let mut returns = 0..TRIES;
    loop {
        assert!(returns.next().is_some(), "the one that returns disturbs the others");
        cluster.note(other, 2).await;
        let term = cluster.health(other).term;
        cluster.start(first).await;
        cluster.whole().await;
        cluster.all_see(2).await;
        if cluster.health(first).term == term {
            break;
        }
        cluster.stop(first).await;
    }
    for node in 0..3 {
        cluster.stop(node).await;
    }
    for node in 0..3 {
        cluster.start(node).await;
    }
    cluster.whole().await;
    cluster.all_see(2).await;
    cluster.note(2, 3).await;
    cluster.all_see(3).await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_node_alone_decides_nothing_keeps_its_term_and_says_who_is_silent() {
    let mut cluster = Cluster::formed("alone", 3).await;
    cluster.note(0, 1).await;
    let follower = (cluster.leader().await + 1) % 3;
    for node in (0..3).filter(|node| *node != follower) {
        cluster.stop(node).await;
    }
    let silent: Vec<&str> = (0..3).filter(|node| *node != follower).map(|node| NAMES[node]).collect();
    cluster.alarm(follower, Alarm::NoQuorum { silent: names(&silent) }).await;
    // The two others may have had time for an election of their own, but from now on there is none.
    let term = cluster.health(follower).term;
    let error = cluster.replica(follower).propose(&note(2)).await.unwrap_err();
    assert!(matches!(&error, ProposeError::NoQuorum { silent: who } if *who == names(&silent)), "{error}");
    assert_eq!(noted(&cluster.state(follower)), 1);
    tokio::time::sleep(3 * RHYTHM.lease).await;
    assert_eq!(cluster.health(follower).term, term, "it has not even stood for election");
}

#[test]
fn only_nodes_of_the_set_that_hear_no_leader_and_have_no_longer_log_would_elect_this_one() {
    let at = |index| Some(LogId::new(openraft::CommittedLeaderId::new(2, 0), index));
    let me = Identity { set: "ours".to_owned(), id: 1, ..Identity::default() };
    let other = |id, set: &str, last, led| {
        let identity = Identity { set: set.to_owned(), id, ..Identity::default() };
        let member = Some(Standing { identity, last, led, ..Standing::default() });
        (NodeId(id as u8), Some(Greeting { member, ..Greeting::default() }))
    };
    let greetings = Greetings::from([
        other(2, "ours", at(7), false),
        other(3, "ours", at(8), false),
        other(4, "ours", at(7), true),
        other(5, "theirs", at(1), false),
        (NodeId(6), Some(Greeting::default())),
        (NodeId(7), None),
    ]);
    assert_eq!(willing(&me, at(7), &greetings), [1, 2].into());
}

#[tokio::test(flavor = "current_thread")]
async fn an_empty_disk_is_told_and_a_replaced_node_gets_all_from_the_others() {
    let mut cluster = Cluster::formed("replace", 3).await;
    for config in 1..20 {
        cluster.note(0, config).await;
    }
    let lost = (cluster.leader().await + 1) % 3;
    let (healthy, other) = ((lost + 1) % 3, (lost + 2) % 3);
    cluster.replaces_nobody(NAMES[lost], healthy, "nothing to replace").await;
    cluster.replaces_nobody("z", healthy, "has no node \"z\": it has a, b, c").await;
    cluster.empty(lost).await;
    let alarm = Alarm::DiskLost { node: NAMES[lost].to_owned(), set: "edge-1".to_owned() };
    assert!(alarm.to_string().contains(&format!("run `trilith node replace {}`", NAMES[lost])));
    cluster.alarm(lost, alarm.clone()).await;
    eventually("its leader knows", async || cluster.health(cluster.leader().await).alarms.contains(&alarm)).await;
    assert!(!cluster.health(lost).member, "it is not let in by itself");
    cluster.note(healthy, 20).await;
    // On whichever of the two does not lead: it is passed on.
    let asked = if cluster.leader().await == healthy { other } else { healthy };
    cluster.replace(lost, asked).await;
    cluster.whole().await;
    cluster.all_see(20).await;
    assert!(cluster.health(lost).generation > cluster.health(healthy).generation);
    // It counts: with it and without another the set decides.
    cluster.stop(other).await;
    cluster.note(lost, 21).await;
}

#[tokio::test(flavor = "current_thread")]
async fn two_empty_disks_of_three_are_refused_until_the_third_is_made_the_set() {
    let mut cluster = Cluster::formed("recover", 3).await;
    cluster.note(0, 1).await;
    cluster.all_see(1).await;
    // On a busy machine a lease may just have run out.
    eventually("a set that works refuses", async || {
        cluster.replica(1).recover().await.expect_err("a set that works").contains("the set works")
    })
    .await;
    let keeps = cluster.leader().await;
    let empty: Vec<usize> = (0..3).filter(|node| *node != keeps).collect();
    for node in &empty {
        cluster.stop(*node).await;
        std::fs::remove_dir_all(cluster.directory(*node)).unwrap();
    }
    for node in &empty {
        cluster.start(*node).await;
    }
    let alarm = Alarm::MajorityLost {
        empty: empty.iter().map(|node| NAMES[*node].to_owned()).collect(),
        silent: vec![],
        holder: NAMES[keeps].to_owned(),
    };
    for node in 0..3 {
        cluster.alarm(node, alarm.clone()).await;
    }
    assert!(alarm.to_string().contains(&format!("run `trilith node recover` on {}", NAMES[keeps])));
    let words = cluster.replica(empty[0]).recover().await.unwrap_err();
    assert!(words.contains("recover on a node that has"), "{words}");
    assert_eq!(noted(&cluster.state(keeps)), 1);

    cluster.no_leader(keeps).await;
    cluster.replica(keeps).recover().await.unwrap();
    cluster.whole().await;
    cluster.all_see(1).await;
    cluster.note(empty[0], 2).await;
    for node in 0..3 {
        cluster.stop(node).await;
    }
    for node in 0..3 {
        cluster.start(node).await;
    }
    cluster.whole().await;
    cluster.all_see(2).await;
}

#[tokio::test(flavor = "current_thread")]
async fn with_a_disk_empty_and_a_node_silent_it_is_said_that_this_one_must_come_back() {
    let mut cluster = Cluster::formed("silent", 3).await;
    let keeps = cluster.leader().await;
    let (away, lost) = ((keeps + 1) % 3, (keeps + 2) % 3);
    cluster.stop(away).await;
    cluster.empty(lost).await;
    let alarm = Alarm::MajorityLost {
        empty: names(&[NAMES[lost]]),
        silent: names(&[NAMES[away]]),
        holder: NAMES[keeps].to_owned(),
    };
    for node in [keeps, lost] {
        eventually("nothing else is advised", async || cluster.health(node).alarms == [alarm.clone()]).await;
    }
    let words = alarm.to_string();
    let (first, last) = (format!("bring {} back", NAMES[away]), format!("`trilith node recover` on {}", NAMES[keeps]));
    assert!(words.find(&first).unwrap() < words.find(&last).unwrap(), "{words}");
    assert!(!words.contains("node replace"), "nobody could carry that out: {words}");
    eventually("a command fails with the same words", async || cluster.replica(keeps).shared().no_majority() == words)
        .await;
    cluster.start(away).await;
    let alarm = Alarm::DiskLost { node: NAMES[lost].to_owned(), set: "edge-1".to_owned() };
    cluster.alarm(lost, alarm).await;
    cluster.replace(lost, away).await;
    cluster.whole().await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_node_that_was_away_while_the_set_was_recovered_is_taken_in_with_its_state_set_aside() {
    let mut cluster = Cluster::formed("away", 3).await;
    cluster.note(0, 1).await;
    cluster.all_see(1).await;
    let keeps = cluster.leader().await;
    let (away, lost) = ((keeps + 1) % 3, (keeps + 2) % 3);
    cluster.stop(away).await;
    cluster.empty(lost).await;
    cluster.no_leader(keeps).await;
    cluster.replica(keeps).recover().await.unwrap();
    cluster.note(keeps, 2).await;
    cluster.start(away).await;
    cluster.whole().await;
    cluster.all_see(2).await;
    assert!(cluster.directory(away).join("replaced/log").exists());
}

#[tokio::test(flavor = "current_thread")]
async fn a_log_that_has_become_a_snapshot_brings_a_new_node_up_and_is_read_at_the_next_start() {
    let mut cluster = Cluster::formed("snapshot", 3).await;
    let lost = (cluster.leader().await + 1) % 3;
    let last = crate::COMPACT_ENTRIES + 20;
    for config in 1..=last {
        cluster.note(cluster.leader().await, config).await;
    }
    for node in 0..3 {
        eventually("the log was compacted", async || cluster.directory(node).join("current/snapshot").exists()).await;
    }
    cluster.empty(lost).await;
    cluster.replace(lost, (lost + 1) % 3).await;
    cluster.whole().await;
    cluster.all_see(last).await;
    cluster.stop(lost).await;
    cluster.start(lost).await;
    assert_eq!(noted(&cluster.state(lost)), last);
    cluster.whole().await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_request_that_only_a_later_version_knows_stops_this_ones_state_but_not_the_set() {
    let mut cluster = Cluster::formed("newer", 3).await;
    cluster.note(0, 1).await;
    cluster.all_see(1).await;
    let leads = cluster.leader().await;
    // As a leader of a later version would have it: it is in the log, and a majority has confirmed it.
    let newer = crate::types::Proposal(serde_json::json!({"by": "test", "ask": "teleport", "to": "mars"}));
    let active = cluster.replica(leads).shared().active().unwrap();
    drop(active.raft.client_write_ff(newer.clone()).await.unwrap());
    for node in 0..3 {
        eventually("the alarm", async || {
            cluster.health(node).alarms.iter().any(|alarm| matches!(alarm, Alarm::Newer { .. }))
        })
        .await;
        assert_eq!(noted(&cluster.state(node)), 1);
    }
    // Entries after it are confirmed, but not applied here.
    let before = active.metrics().last_log_index;
    drop(active.raft.client_write_ff(crate::types::Proposal(serde_json::to_value(note(2)).unwrap())).await.unwrap());
    eventually("the log goes on", async || active.metrics().last_log_index > before).await;
    drop(active);
    // Whoever does not understand the log does not lead: a later version would.
    for node in 0..3 {
        cluster.no_leader(node).await;
    }
    // A restart neither crashes nor forgets.
    cluster.stop(leads).await;
    cluster.start(leads).await;
    eventually("the alarm again", async || {
        cluster.health(leads).alarms.iter().any(|alarm| matches!(alarm, Alarm::Newer { .. }))
    })
    .await;
    assert_eq!(noted(&cluster.state(leads)), 1);
    // What its leader does not understand it does not take.
    let refused = cluster.replica(leads).shared().propose(newer).await;
    assert!(matches!(refused, Err(ProposeError::Failed(_) | ProposeError::NoQuorum { .. })), "{refused:?}");
}

#[tokio::test(flavor = "current_thread")]
async fn documents_that_differ_found_no_set_and_say_so() {
    let mut cluster = Cluster::new("documents", 2);
    cluster.start(0).await;
    let mut swapped = (*cluster.settings).clone();
    swapped.nodes.swap(0, 1);
    cluster.settings = Arc::new(swapped);
    // In its document, node a is the second one.
    let options = Options {
        directory: cluster.directory(1),
        settings: cluster.settings.clone(),
        me: NodeId(0),
        secret: Zeroizing::new(SECRET.to_vec()),
        rhythm: RHYTHM,
        blocks: None,
    };
    cluster.nodes[1] = Some(Replica::start(options).await.unwrap_or_else(|error| panic!("{error}")));
    cluster.alarm(0, Alarm::Documents { node: "b".to_owned(), theirs: names(&["b", "a"]) }).await;
    cluster.alarm(1, Alarm::Documents { node: "a".to_owned(), theirs: names(&["a", "b"]) }).await;
    assert!(!cluster.health(0).member && !cluster.health(1).member);
}

#[tokio::test(flavor = "current_thread")]
async fn a_damaged_disk_does_not_start_and_says_where() {
    let mut cluster = Cluster::formed("damaged", 1).await;
    cluster.note(0, 1).await;
    cluster.stop(0).await;
    let path = cluster.directory(0).join("current/log");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = cluster.try_start(0).await.err().unwrap().to_string();
    assert!(error.contains("current/log is damaged at byte"), "{error}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_founding_that_is_interrupted_at_any_moment_goes_on_at_the_next_start() {
    for delay in 0..12 {
        let mut cluster = Cluster::new(&format!("interrupted-{delay}"), 3);
        for node in 0..3 {
            cluster.start(node).await;
        }
        tokio::time::sleep(Duration::from_millis(15 * delay)).await;
        for node in 0..3 {
            cluster.stop(node).await;
        }
        for node in 0..3 {
            cluster.start(node).await;
        }
        cluster.whole().await;
        cluster.note(1, 1).await;
        cluster.all_see(1).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn calls_of_a_later_version_are_answered_as_far_as_they_are_known() {
    let mut cluster = Cluster::new("later", 2);
    cluster.start(0).await;
    let net = crate::net::Net::new(SECRET, cluster.settings.clone(), NodeId(1));
    let mut stream = net.connect(NodeId(0), Alpn::Set).await.unwrap();
    let mut ask = async |call: serde_json::Value| -> serde_json::Value {
        crate::net::write_frame(&mut stream, &call).await.unwrap();
        crate::net::decode(&crate::net::read_frame(&mut stream).await.unwrap().unwrap()).unwrap()
    };
    let hello = ask(serde_json::json!({"call": "hello", "mood": "good", "more": {"new": [1, 2]}})).await;
    assert_eq!((&hello["answer"], &hello["nodes"][1]), (&"hello".into(), &"b".into()), "{hello}");
    let unknown = ask(serde_json::json!({"call": "teleport", "to": "mars"})).await;
    assert_eq!(unknown["answer"], "unknown");
    // What a later version answers is read in the same way.
    let mut later = hello;
    later["weather"] = "fair".into();
    later["member"] =
        serde_json::json!({"identity": {"set": "s", "id": 9, "colour": "red"}, "voters": [[9, "b"]], "x": 1});
    let Answer::Hello(greeting) = serde_json::from_value(later).unwrap() else { panic!() };
    assert_eq!(greeting.member.unwrap().voters, [(9, "b".to_owned())]);
    assert!(matches!(
        serde_json::from_value(serde_json::json!({"answer": "riddle", "x": 1})).unwrap(),
        Answer::Unknown
    ));
    // Nonsense ends the connection, and nothing else.
    crate::net::write_frame(&mut stream, &[1, 2, 3]).await.unwrap();
    assert!(!matches!(crate::net::read_frame(&mut stream).await, Ok(Some(_))));
    assert!(net.connect(NodeId(0), Alpn::Set).await.is_ok());
}

#[tokio::test(flavor = "current_thread")]
async fn connections_for_bundles_are_handed_on_with_the_name_of_the_peer() {
    let mut cluster = Cluster::new("blocks", 2);
    let (arrive, mut arrived) = mpsc::channel(1);
    let options = Options {
        directory: cluster.directory(0),
        settings: cluster.settings.clone(),
        me: NodeId(0),
        secret: Zeroizing::new(SECRET.to_vec()),
        rhythm: RHYTHM,
        blocks: Some(Box::new(move |inbound| drop(arrive.try_send(inbound)))),
    };
    cluster.nodes[0] = Some(Replica::start(options).await.unwrap_or_else(|error| panic!("{error}")));
    cluster.start(1).await;
    let mut there = cluster.replica(1).connect(NodeId(0), Alpn::Blocks).await.unwrap();
    let mut here = arrived.recv().await.unwrap();
    assert_eq!(here.peer, "b");
    crate::net::write_frame(&mut there, &"part 3").await.unwrap();
    let frame = crate::net::read_frame(&mut here.stream).await.unwrap().unwrap();
    assert_eq!(crate::net::decode::<String>(&frame).unwrap(), "part 3");
    // Whoever does not take them closes them.
    let mut closed = cluster.replica(0).connect(NodeId(1), Alpn::Blocks).await.unwrap();
    assert!(!matches!(crate::net::read_frame(&mut closed).await, Ok(Some(_))));
}
