//! A new set from one node's state, when the majority of the disks is lost.

use openraft::{CommittedLeaderId, EntryPayload, Membership};
use serde_json::Value;

use super::{Keeper, random_name};
use crate::active::Active;
use crate::machine;
use crate::store::{self, Identity, Seed};
use crate::types::{Image, LogId, Member, SnapshotMeta, StoredMembership, Vote, generation, raft_id};

/// What a set of `identity` alone starts from: a snapshot at this term and index.
pub(super) fn seed(identity: &Identity, term: u64, index: u64, state: Value) -> Seed {
    let base = LogId::new(CommittedLeaderId::new(term, identity.id), index);
    let member = Member { name: identity.name.clone() };
    let membership = Membership::new(
        vec![[identity.id].into()],
        [(identity.id, member)].into_iter().collect::<std::collections::BTreeMap<_, _>>(),
    );
    let meta = SnapshotMeta {
        last_log_id: Some(base),
        last_membership: StoredMembership::new(Some(base), membership),
        snapshot_id: base.to_string(),
    };
    let image = Image { state, generation: generation(identity.id) };
    Seed { base, vote: Vote::new(term, identity.id), snapshot: (meta, image) }
}

fn too_old(what: &str) -> String {
    format!(
        "this node does not understand {what}: recover on a node of a newer version; where there is none, make the set again"
    )
}

impl Keeper {
    /// Makes this node's state that of a new set, of which it is the only member; it then admits the others.
    ///
    /// Entries of the log that are not known to be committed are applied, too: the majority that is lost may have confirmed them.
    /// So nothing that was confirmed and is on this disk is lost; what was confirmed and is not on it can't be brought back.
    pub(super) async fn recover(&mut self) -> Result<(), String> {
        let Some(active) = self.shared.active() else {
            return Err("the disk of this node is empty: recover on a node that has the set's state".to_owned());
        };
        if active.leader().is_some() {
            return Err("the set works: there is nothing to recover".to_owned());
        }
        self.check_others(&active).await?;
        let highest = self.highest_generation(&active);
        let stuck = active.progress().stuck;
        if let Some(stuck) = stuck {
            return Err(too_old(&stuck));
        }
        self.shared.leave();
        active.stop().await;
        let recovered = self.made_anew(highest).await;
        if let Err(error) = &recovered {
            // What was there is there still; it is taken up again.
            match store::open(&self.shared.directory) {
                Ok(Some(opened)) => drop(self.shared.enter(opened).await.map_err(|error| self.failed(&error))),
                Ok(None) => {}
                Err(error) => self.failed(&error.into()),
            }
            tracing::error!("set: recovery failed: {error}");
        }
        recovered
    }

    /// Refuses where more would be lost than must be.
    async fn check_others(&self, active: &Active) -> Result<(), String> {
        let greetings = self.greet().await;
        let mine = active.writer.last();
        let mut holders = vec![active.identity.id];
        for (node, greeting) in &greetings {
            let Some(member) = greeting.as_ref().and_then(|greeting| greeting.member.as_ref()) else { continue };
            let name = &self.shared.nodes[usize::from(node.0)];
            if member.identity.set != active.identity.set {
                continue;
            }
            if member.led {
                return Err(format!("node {name} hears a leader: the set works without this node"));
            }
            if member.last > mine {
                let (theirs, ours) = (member.last.map_or(0, |last| last.index), mine.map_or(0, |last| last.index));
                return Err(format!(
                    "node {name} knows more than this one (entry {theirs} against {ours}): recover there"
                ));
            }
            holders.push(member.identity.id);
        }
        match active.has_quorum(&active.metrics(), |id| holders.contains(id)) {
            true => {
                Err("a majority of the disks is there: the set will work again by itself in some seconds".to_owned())
            }
            false => Ok(()),
        }
    }

    async fn made_anew(&mut self, highest: u64) -> Result<(), String> {
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let opened = store::open(&self.shared.directory).map_err(|error| said(&error))?;
        let Some((store, loaded)) = opened else { return Err("the disk is empty".to_owned()) };
        drop(store);
        let start = loaded.snapshot.as_ref().map_or(Value::Null, |(_, image)| image.state.clone());
        let (state, unknown) = machine::understand(&start);
        let (Some(mut state), None) = (state, unknown) else { return Err("the snapshot is not understood".to_owned()) };
        let reached = loaded.snapshot.as_ref().and_then(|(meta, _)| meta.last_log_id);
        for entry in loaded.content.entries.iter().filter(|entry| Some(entry.log_id) > reached) {
            if let EntryPayload::Normal(proposal) = &entry.payload {
                let index = entry.log_id.index;
                machine::apply(&mut state, proposal)
                    .ok_or_else(|| too_old(&format!("the request in entry {index}")))?;
            }
        }
        let last = loaded.content.entries.last().map(|entry| entry.log_id).max(reached);
        let (term, index) = last.map_or((0, 0), |last| (last.leader_id.term, last.index));
        let term = term.max(loaded.content.vote.map_or(0, |vote| vote.leader_id.term));
        let identity = loaded.identity.recovered(random_name(), raft_id(highest + 1, self.shared.me.0));
        tracing::warn!(
            from = loaded.identity.set,
            set = identity.set,
            "recovering: this node's state is now the set's"
        );
        let state = serde_json::to_value(&state).map_err(|error| said(&error))?;
        let seed = seed(&identity, term + 1, index + 1, state);
        self.begin(identity, Some(seed)).await.map_err(|error| said(&error))
    }
}
