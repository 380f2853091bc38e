//! Raft's way to the other nodes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use trilith_core::config::NodeId;

use crate::active::{Pulse, SNAPSHOT_PATIENCE};
use crate::net::Alpn;
use crate::net::links::Links;
use crate::protocol::{RaftAnswer, RaftCall, RaftMessage};
use crate::types::{Member, RaftId, Snapshot, Types, Vote};

/// The pause before a node that could not be reached is tried again.
const PAUSE: Duration = Duration::from_millis(250);

/// Makes the way to each node.
#[derive(Clone)]
pub struct Network {
    /// [`crate::store::Identity::set`].
    pub set: String,
    /// The nodes of the document, in order.
    pub nodes: Arc<[String]>,
    pub links: Arc<Links>,
    pub pulse: Arc<Pulse>,
}

/// The way to one node.
pub struct Peer {
    network: Network,
    id: RaftId,
    /// Its place in the document, if it has one.
    node: Option<NodeId>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, id: RaftId, member: &Member) -> Peer {
        let place = self.nodes.iter().position(|name| *name == member.name);
        Peer { network: self.clone(), id, node: place.map(|place| NodeId(place as u8)) }
    }
}

impl Peer {
    async fn call(&self, message: RaftMessage, patience: Duration) -> io::Result<RaftAnswer> {
        let Some(node) = self.node else { return Err(io::Error::other("the node is not in the document any more")) };
        let call = RaftCall { set: self.network.set.clone(), to: self.id, message };
        match self.network.links.call(node, Alpn::Raft, &call, patience).await? {
            RaftAnswer::Refused(why) => Err(io::Error::other(why)),
            answer => Ok(answer),
        }
    }
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<RaftId>, RPCError<RaftId, Member, RaftError<RaftId>>> {
        match self.call(RaftMessage::Append(request), option.hard_ttl()).await {
            Ok(RaftAnswer::Append(answer)) => {
                if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
                    self.network.pulse.ack(self.id);
                }
                Ok(answer)
            }
            other => Err(RPCError::Unreachable(Unreachable::new(&unexpected(other)))),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<RaftId>,
        option: RPCOption,
    ) -> Result<VoteResponse<RaftId>, RPCError<RaftId, Member, RaftError<RaftId>>> {
        match self.call(RaftMessage::Vote(request), option.hard_ttl()).await {
            Ok(RaftAnswer::Vote(answer)) => Ok(answer),
            other => Err(RPCError::Network(NetworkError::new(&unexpected(other)))),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<RaftId>, StreamingError<Types, Fatal<RaftId>>> {
        let message = RaftMessage::Snapshot { vote, meta: snapshot.meta, image: *snapshot.snapshot };
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = self.call(message, SNAPSHOT_PATIENCE) => match answer {
                Ok(RaftAnswer::Snapshot(vote)) => Ok(SnapshotResponse::new(vote)),
                other => Err(StreamingError::Unreachable(Unreachable::new(&unexpected(other)))),
            },
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(PAUSE))
    }
}

fn unexpected(answer: io::Result<RaftAnswer>) -> io::Error {
    answer.err().unwrap_or_else(|| io::Error::other("an answer of another kind than asked for"))
}
