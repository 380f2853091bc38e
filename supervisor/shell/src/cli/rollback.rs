//! `trilith upgrade rollback`: where it goes, and why it does not.

use trilith_core::set::{Kind, Node, Release, State, Version};

/// The version that all nodes ran before, which each of them has still or gets from its bundle.
///
/// # Errors
/// Why there is none, and what to do instead.
pub fn target(state: &State) -> Result<Version, String> {
    if let Some(rollout) = state.rollout.as_ref().filter(|rollout| matches!(rollout.kind, Kind::System { .. })) {
        return Err(format!(
            "rollout {} of {} has not ended: take that back with: trilith upgrade abort",
            rollout.id, rollout.kind
        ));
    }
    if let Some(why) = state.stray() {
        return Err(why);
    }
    let version = state.previous().ok_or(
        "it is not known what all nodes ran before: see trilith upgrade status and \
                                          history, and name a version with: trilith upgrade start VERSION",
    )?;
    let bundle = state.bundles.contains_key(&Release::system(version));
    let lacks = |node: &Node| node.running != version && node.other != Some(version);
    match state.nodes.iter().find(|(_, node)| !bundle && lacks(node)) {
        None => Ok(version),
        Some((name, node)) => {
            let other = node.other.map_or("nothing".to_owned(), |other| other.to_string());
            Err(format!(
                "node {name} has {version} no longer, but {other} in its other slot, and no bundle of {version} is in the set; upload it \
                 first"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use trilith_core::set::{Bundle, Hold, Options, Outcome, Past, Phase, Rollout};

    use super::*;

    fn v(minor: u16) -> Version {
        Version::new(0, minor, 0)
    }

    /// Three nodes that were upgraded from 0.1.0 to 0.2.0.
    fn upgraded() -> State {
        let node = || Node { running: v(2), other: Some(v(1)), ..Node::default() };
        let nodes = ["a", "b", "c"].map(|name| (name.to_owned(), node())).into();
        let kind = Kind::System { version: v(2) };
        let past = Past { id: 1, token: String::new(), kind, outcome: Outcome::Done, notes: Vec::new() };
        State { nodes, history: vec![past], rollouts: 1, ..State::default() }
    }

    fn must_be_refused(state: &State, word: &str) {
        let why = target(state).unwrap_err();
        assert!(why.contains(word), "{why}");
    }

    #[test]
    fn it_goes_to_what_the_nodes_ran_before() {
        assert_eq!(target(&upgraded()), Ok(v(1)));
    }

    #[test]
    fn a_node_that_has_it_no_longer_is_named_unless_there_is_its_bundle() {
        let mut state = upgraded();
        let done = Past { id: 2, kind: Kind::System { version: v(3) }, ..state.history[0].clone() };
        state.history.push(done);
        for node in state.nodes.values_mut() {
            (node.running, node.other) = (v(3), Some(v(2)));
        }
        assert_eq!(target(&state), Ok(v(2)));
        state.nodes.get_mut("b").unwrap().other = Some(v(4));
        must_be_refused(&state, "node b has 0.2.0 no longer, but 0.4.0 in its other slot");
        state.bundles.insert(Release::system(v(2)), Bundle::default());
        assert_eq!(target(&state), Ok(v(2)));
    }

    #[test]
    fn what_was_only_staged_is_not_gone_to() {
        let mut state = upgraded();
        state.nodes.values_mut().for_each(|node| node.other = Some(v(3)));
        must_be_refused(&state, "not known what all nodes ran before");
    }

    #[test]
    fn while_nodes_differ_or_a_rollout_of_the_system_has_not_ended_the_way_is_told() {
        let mut state = upgraded();
        state.nodes.get_mut("b").unwrap().running = v(1);
        must_be_refused(&state, "node b runs 0.1.0, not 0.2.0");
        state.rollout = Some(Rollout {
            id: 2,
            token: String::new(),
            kind: Kind::System { version: v(3) },
            options: Options::default(),
            phase: Phase::Rolling,
            hold: Hold::Going,
            round: 0,
            back: None,
            nodes: [].into(),
            turn: None,
            notes: Vec::new(),
        });
        must_be_refused(&state, "trilith upgrade abort");
    }
}
