//! The leader's part: who is in the set.

use std::collections::BTreeSet;

use openraft::ChangeMembers;
use trilith_core::config::NodeId;

use super::{Greetings, Keeper, Refused};
use crate::MEMBERSHIP_PATIENCE;
use crate::active::{Active, within};
use crate::net::Alpn;
use crate::protocol::{Admission, Answer, Call};
use crate::store::Identity;
use crate::types::{Member, RaftId, generation, raft_id};

/// Entries that a new node may be behind when it is given its vote.
const CAUGHT_UP: u64 = 16;

impl Keeper {
    /// Brings the membership to what the document and the nodes' disks say, one step at a time.
    pub(super) async fn keep_members(&self, active: &Active, greetings: &Greetings) {
        let metrics = active.metrics();
        if *metrics.membership_config.log_id() > metrics.last_applied {
            // Not decided yet: it may still become another one.
            return;
        }
        let membership = metrics.membership_config.membership().clone();
        if membership.get_joint_config().len() > 1 {
            // A leader before this one has ended in the middle of a change.
            self.change(active, ChangeMembers::AddVoterIds(BTreeSet::new())).await;
            return;
        }
        let voters: BTreeSet<RaftId> = membership.voter_ids().collect();
        for (node, greeting) in greetings {
            let (Some(greeting), name) = (greeting, &self.shared.nodes[usize::from(node.0)]) else { continue };
            let identity = greeting.member.as_ref().map(|member| &member.identity);
            let ours = identity.filter(|identity| identity.set == active.identity.set);
            let known: Vec<RaftId> =
                membership.nodes().filter(|(_, member)| member.name == *name).map(|(id, _)| *id).collect();
            let stale = known.iter().filter(|id| !voters.contains(id) && ours.map(|ours| ours.id) != Some(**id));
            let stale: BTreeSet<RaftId> = stale.copied().collect();
            if !stale.is_empty() {
                self.change(active, ChangeMembers::RemoveNodes(stale)).await;
                return;
            }
            match ours {
                Some(ours) if voters.contains(&ours.id) => continue,
                // It holds a vote under another number: an operator must decide.
                _ if known.iter().any(|id| voters.contains(id)) => continue,
                Some(ours) if known.contains(&ours.id) => {
                    let reached = metrics.replication.as_ref().and_then(|all| *all.get(&ours.id)?);
                    let reached = reached.map_or(0, |last| last.index + 1);
                    if reached + CAUGHT_UP > metrics.last_log_index.unwrap_or(0) {
                        self.change(active, ChangeMembers::AddVoterIds([ours.id].into())).await;
                    }
                }
                // Admitted already, before this step was cut short.
                Some(ours) if generation(ours.id) > self.highest_generation(active) => {
                    self.add(active, ours.id, name).await;
                }
                // Replaced or left behind by a recovery: the set has decided that it begins anew.
                Some(_) => self.admit(active, *node, identity.cloned(), false).await,
                None => match identity {
                    Some(other) if !active.identity.previous.contains(&other.set) => continue,
                    other => self.admit(active, *node, other.cloned(), false).await,
                },
            }
            return;
        }
    }

    /// Gives a node a new identity, then lets Raft replicate to it.
    async fn admit(&self, active: &Active, node: NodeId, instead_of: Option<Identity>, forced: bool) {
        let name = &self.shared.nodes[usize::from(node.0)];
        let id = raft_id(self.highest_generation(active) + 1, node.0);
        let identity = Identity { id, name: name.clone(), ..active.identity.clone() };
        let call = Call::Admit(Admission { identity, instead_of, forced });
        match self.shared.links.call(node, Alpn::Set, &call, MEMBERSHIP_PATIENCE).await {
            Ok(Answer::Done) => self.add(active, id, name).await,
            Ok(Answer::Refused { why }) => tracing::warn!("set: node {name} is not admitted: {why}"),
            Ok(_) => tracing::warn!("set: node {name} does not know how to be admitted: is its version too old?"),
            Err(error) => tracing::info!("set: node {name} is not admitted yet: {error}"),
        }
    }

    async fn add(&self, active: &Active, id: RaftId, name: &str) {
        tracing::info!(id, "set: node {name} is admitted");
        let added =
            within(MEMBERSHIP_PATIENCE, active.raft.add_learner(id, Member { name: name.to_owned() }, false)).await;
        if let Err(error) = added {
            tracing::info!("set: node {name} is not admitted yet: {error}");
        }
    }

    async fn change(&self, active: &Active, change: ChangeMembers<RaftId, Member>) -> bool {
        let what = format!("{change:?}");
        match within(MEMBERSHIP_PATIENCE, active.raft.change_membership(change, true)).await {
            Ok(_) => {
                tracing::info!("set: membership changed: {what}");
                true
            }
            Err(error) => {
                tracing::warn!("set: the membership is not changed ({what}): {error}");
                false
            }
        }
    }

    /// No number of a higher one was ever given away, as far as the set has decided.
    pub(super) fn highest_generation(&self, active: &Active) -> u64 {
        let metrics = active.metrics();
        let members = metrics.membership_config.membership().nodes().map(|(id, _)| generation(*id)).max();
        members.unwrap_or(0).max(active.progress().generation)
    }

    /// Removes the old identity of a node; it is admitted anew when it answers.
    pub(super) async fn replace(&mut self, name: &str) -> Result<(), Refused> {
        let because = |why: String| Err(Refused::Because(why));
        let Some(active) = self.shared.active().filter(|active| active.leads()) else { return Err(Refused::NotLeader) };
        let membership = active.metrics().membership_config.membership().clone();
        let known = membership.nodes().filter(|(_, member)| member.name == name);
        let old: BTreeSet<RaftId> = known.map(|(id, _)| *id).collect();
        // A node that is a member only has left the document: then this is how it leaves the set.
        let place = self.shared.nodes.iter().position(|node| node == name);
        if place.is_none() && old.is_empty() {
            return because(format!("the document has no node {name:?}: it has {}", self.shared.nodes.join(", ")));
        }
        let node = place.map(|place| NodeId(place as u8));
        if node == Some(self.shared.me) {
            return because(format!("node {name} leads the set and has its state: there is nothing to replace"));
        }
        let greetings = self.greet().await;
        let greeting = node.and_then(|node| greetings.get(&node).cloned().flatten());
        let identity = greeting.and_then(|greeting| greeting.member).map(|member| member.identity);
        if let Some(identity) = &identity
            && identity.set == active.identity.set
            && old.contains(&identity.id)
        {
            return because(format!("node {name} is there and has the set's state: there is nothing to replace"));
        }
        if !old.is_empty() {
            let removed = active.raft.change_membership(ChangeMembers::RemoveVoters(old), false);
            let removed = within(MEMBERSHIP_PATIENCE, removed).await;
            removed.map_err(|error| Refused::Because(format!("node {name} could not be removed: {error}")))?;
            tracing::info!("set: node {name} is replaced: its old identity is removed");
        }
        if let (Some(node), Some(identity)) = (node, identity) {
            // It has another set's state, which only an operator may have set aside.
            self.admit(&active, node, Some(identity), true).await;
        }
        Ok(())
    }
}
