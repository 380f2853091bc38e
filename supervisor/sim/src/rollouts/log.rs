//! Consensus as one log: who may add to it, who has it on disk, who sees how much of it.

use std::sync::Arc;

use trilith_core::set::{Refusal, Reply, Request, State};

/// The committed log: the state after each entry. Entry 0 is the empty state.
#[derive(Debug)]
pub struct Log {
    states: Vec<Arc<State>>,
    /// How many entries each node's disk holds.
    pub stored: Vec<usize>,
    /// Who leads.
    pub leader: Option<usize>,
}

impl Log {
    /// A log that begins with this state, on the disks of all nodes.
    pub fn new(state: State, nodes: usize) -> Log {
        Log { states: vec![Arc::new(state)], stored: vec![1; nodes], leader: None }
    }

    /// How many entries are committed.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// The state after so many entries.
    pub fn after(&self, entries: usize) -> Arc<State> {
        Arc::clone(&self.states[entries.clamp(1, self.states.len()) - 1])
    }

    /// The state after all of them.
    pub fn last(&self) -> &Arc<State> {
        &self.states[self.states.len() - 1]
    }

    /// Adds a request that is stored by these nodes.
    ///
    /// # Errors
    /// Why the state refuses it.
    pub fn commit(&mut self, request: &Request, stored_by: &[usize]) -> Result<Reply, Refusal> {
        let mut state = (**self.last()).clone();
        let reply = state.apply(request)?;
        if reply != Reply::Already {
            // For people only, and most of what there is to copy.
            state.history.iter_mut().for_each(|past| past.notes.clear());
            state.rollout.iter_mut().for_each(|rollout| rollout.notes.clear());
            self.states.push(Arc::new(state));
        }
        for node in stored_by {
            self.stored[*node] = self.len();
        }
        Ok(reply)
    }

    /// Makes the node lead that has most of the log among these, which are a majority.
    ///
    /// # Errors
    /// How many committed entries are lost, because none of these has them.
    pub fn elect(&mut self, among: &[usize]) -> Result<(), usize> {
        self.leader = among.iter().copied().max_by_key(|node| self.stored[*node]);
        let most = self.leader.map_or(0, |leader| self.stored[leader]);
        if most < self.len() { Err(self.len() - most) } else { Ok(()) }
    }
}
