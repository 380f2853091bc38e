//! What this node does for the others: it answers their calls.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::error::{ClientWriteError, RaftError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tokio::time::timeout;
use trilith_core::set::State;

use crate::active::Active;
use crate::keeper::{Command, Refused};
use crate::machine;
use crate::net::{Alpn, Incoming, Stream, decode, read_frame, write_frame};
use crate::protocol::{Answer, Call, Greeting, RaftAnswer, RaftCall};
use crate::replica::Shared;
use crate::types::Proposal;
use crate::{IDLE_PATIENCE, Inbound, MAX_REQUEST, PROPOSE_PATIENCE};

/// Takes a connection that a peer has made.
pub(crate) fn serve(shared: &Arc<Shared>, incoming: Incoming) {
    let Incoming { stream, from, alpn, place } = incoming;
    let shared = shared.clone();
    match alpn {
        Alpn::Blocks => match &shared.blocks {
            Some(blocks) => blocks(Inbound { stream, peer: shared.nodes[usize::from(from.0)].clone(), _place: place }),
            None => tracing::debug!("set: nobody here has bundles to give"),
        },
        Alpn::Raft => drop(tokio::spawn(async move {
            let answer = |call: RaftCall| {
                let active = shared.active();
                async move {
                    match active {
                        Some(active) => active.answer(call).await,
                        None => RaftAnswer::Refused("the disk of this node is empty".to_owned()),
                    }
                }
            };
            answer_all(&shared, stream, answer).await;
            drop(place);
        })),
        Alpn::Set => drop(tokio::spawn(async move {
            answer_all(&shared, stream, |call| Shared::answer(shared.clone(), call)).await;
            drop(place);
        })),
    }
}

/// Answers one call after the other until the connection ends, idles for [`IDLE_PATIENCE`] or speaks nonsense, or the node stops.
async fn answer_all<C: DeserializeOwned, A: Serialize, F: Future<Output = A>>(
    shared: &Shared,
    mut stream: Stream,
    answer: impl Fn(C) -> F,
) {
    let calls = async {
        loop {
            let frame = match timeout(IDLE_PATIENCE, read_frame(&mut stream)).await {
                Ok(Ok(Some(frame))) => frame,
                Ok(Ok(None)) | Err(_) => return Ok(()),
                Ok(Err(error)) => return Err(error),
            };
            let answer = answer(decode(&frame)?).await;
            drop(frame);
            timeout(IDLE_PATIENCE, write_frame(&mut stream, &answer)).await.unwrap_or(Ok(()))?;
        }
    };
    tokio::select! {
        () = shared.stopped() => {}
        ended = calls => if let Err(error) = ended {
            let error: std::io::Error = error;
            tracing::debug!("set: a peer's connection ends: {error}");
        }
    }
}

impl Shared {
    async fn answer(self: Arc<Self>, call: Call) -> Answer {
        match call {
            // Neither is to be taken for one with an empty disk.
            Call::Hello if self.active().is_none() && self.failed.borrow().is_some() => {
                Answer::Refused { why: "the disk of this node fails".to_owned() }
            }
            Call::Hello if self.active().is_none() && self.anew.load(Ordering::Acquire) => {
                Answer::Refused { why: "the state of this node is being made anew".to_owned() }
            }
            Call::Hello => Answer::Hello(Box::new(self.greeting())),
            Call::Propose { proposal, patience_ms } => match self.active() {
                Some(active) => {
                    let patience = Duration::from_millis(patience_ms).min(PROPOSE_PATIENCE);
                    self.lead(&active, proposal, patience).await
                }
                None => Answer::NotLeader,
            },
            Call::Admit(admission) => match self.keeper(|done| Command::Admit(admission, done)).await {
                Some(Ok(())) => Answer::Done,
                Some(Err(why)) => Answer::Refused { why },
                None => Answer::Refused { why: "this node stops".to_owned() },
            },
            Call::Replace { node } => match self.keeper(|done| Command::Replace(node, done)).await {
                Some(Ok(())) => Answer::Done,
                Some(Err(Refused::Because(why))) => Answer::Refused { why },
                Some(Err(Refused::NotLeader)) | None => Answer::NotLeader,
            },
            Call::Unknown => Answer::Unknown,
        }
    }

    fn greeting(&self) -> Greeting {
        Greeting {
            version: trilith_core::VERSION,
            nodes: self.nodes.to_vec(),
            member: self.active().map(|active| active.standing()),
        }
    }

    /// Has the keeper do something; `None`: the node stops.
    pub(crate) async fn keeper<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (done, answer) = oneshot::channel();
        self.commands.send(command(done)).await.ok()?;
        answer.await.ok()
    }

    /// Carries a request out, as the leader.
    pub(crate) async fn lead(&self, active: &Active, proposal: Proposal, patience: Duration) -> Answer {
        let voters = active.standing().voters.len();
        let founding = **self.states.borrow() == State::default();
        if !active.leads() || (founding && voters * 2 <= self.nodes.len()) {
            // What is confirmed must be on a majority of the document's nodes, also while the set is being founded.
            return Answer::NotLeader;
        }
        let length = proposal.0.to_string().len();
        if length > MAX_REQUEST {
            return Answer::Refused { why: format!("the request has {length} bytes, more than {MAX_REQUEST}") };
        }
        if machine::request(&proposal).is_none() {
            let why =
                "the set's leader runs an older version, which does not know this kind of request: upgrade it first";
            return Answer::Refused { why: why.to_owned() };
        }
        match timeout(patience, active.raft.client_write(proposal)).await {
            Ok(Ok(written)) => Answer::Applied { outcome: written.data, index: written.log_id.index },
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) | Err(_) => Answer::NotLeader,
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => {
                Answer::Refused { why: error.to_string() }
            }
            Ok(Err(RaftError::Fatal(error))) => {
                tracing::warn!("set: a request was not carried out: {error}");
                Answer::NotLeader
            }
        }
    }
}
