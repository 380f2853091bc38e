//! Leases of singletons: given, renewed, given back.

use super::{Lease, MAX_SERVICES, Refusal, Reply, State, limit, name};

impl State {
    /// `seen` is the epoch and the renewal that the asker saw: whoever renewed or got it meanwhile wins.
    pub(super) fn acquire(
        &mut self,
        lease: &str,
        node: &str,
        seen: (u64, u64),
        session: u64,
    ) -> Result<Reply, Refusal> {
        name("name of a lease", lease)?;
        self.node(node)?;
        let now = self.leases.get(lease).cloned().unwrap_or_default();
        // A holder may say any number for its renewal.
        let (epoch, renewal) = (now.epoch + 1, now.renewal.saturating_add(1));
        if now.holder.as_deref() == Some(node) && now.session == session {
            return Ok(Reply::Already);
        }
        if (now.epoch, now.renewal) != seen {
            return Err(Refusal::LeaseMoved { holder: now.holder, epoch: now.epoch });
        }
        if !self.leases.contains_key(lease) {
            limit("leases", self.leases.len() + 1, MAX_SERVICES)?;
        }
        let next = Lease { holder: Some(node.to_owned()), epoch, renewal, session };
        self.leases.insert(lease.to_owned(), next);
        Ok(Reply::Held { epoch })
    }

    pub(super) fn renew(&mut self, lease: &str, node: &str, epoch: u64, renewal: u64) -> Result<Reply, Refusal> {
        let lease = self.held(lease, node, epoch)?;
        if renewal <= lease.renewal {
            return Ok(Reply::Already);
        }
        lease.renewal = renewal;
        Ok(Reply::Held { epoch })
    }

    pub(super) fn release(&mut self, lease: &str, node: &str, epoch: u64) -> Result<Reply, Refusal> {
        let lease = self.held(lease, node, epoch)?;
        lease.holder = None;
        Ok(Reply::Done)
    }

    fn held(&mut self, lease: &str, node: &str, epoch: u64) -> Result<&mut Lease, Refusal> {
        match self.leases.get_mut(lease) {
            Some(lease) if lease.holder.as_deref() == Some(node) && lease.epoch == epoch => Ok(lease),
            Some(lease) => Err(Refusal::LeaseMoved { holder: lease.holder.clone(), epoch: lease.epoch }),
            None => Err(Refusal::LeaseMoved { holder: None, epoch: 0 }),
        }
    }
}
