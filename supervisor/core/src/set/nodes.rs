//! The table of nodes and the catalogue of bundles.

use super::{
    Bundle, MAX_BUNDLES, MAX_NAME, MAX_NODES, MAX_SERVICES, Node, Refusal, Release, Reply, Request, State, cut,
    done_if, limit, name,
};

impl State {
    pub(super) fn report(&mut self, request: &Request, node: &str, report: &Node) -> Result<Reply, Refusal> {
        name("name of a node", node)?;
        limit("services of a node", report.services.len(), MAX_SERVICES)?;
        limit("name of a slot", report.slot.len(), MAX_NAME)?;
        for service in report.services.keys() {
            name("name of a service", service)?;
        }
        let report = report.bounded();
        let known = self.nodes.get(node);
        match known {
            Some(known) if known.generation > report.generation => {
                return Err(Refusal::Replaced { node: node.to_owned() });
            }
            Some(known) if *known == report => return Ok(Reply::Already),
            Some(_) => {}
            None => limit("nodes", self.nodes.len() + 1, MAX_NODES)?,
        }
        let joins = known.is_none_or(|known| known.generation < report.generation);
        if joins {
            // Where another machine took the place of one, nothing that was done there holds here.
            self.forget(node);
        }
        self.nodes.insert(node.to_owned(), report);
        if joins {
            self.join_rollout(node);
        } else {
            self.keep_true(request, node);
        }
        Ok(Reply::Done)
    }

    pub(super) fn remove(&mut self, request: &Request, node: &str) -> Result<Reply, Refusal> {
        if self.nodes.remove(node).is_none() {
            return Ok(Reply::Already);
        }
        self.forget(node);
        self.leave_rollout(request, node);
        Ok(Reply::Done)
    }

    /// What was known of a machine that is gone.
    fn forget(&mut self, node: &str) {
        for bundle in self.bundles.values_mut() {
            bundle.held_by.remove(node);
        }
        for lease in self.leases.values_mut().filter(|lease| lease.holder.as_deref() == Some(node)) {
            // The machine may still run; its lease is taken only after the whole term, as if it had died.
            lease.renewal = lease.renewal.saturating_add(1);
        }
    }

    pub(super) fn add_bundle(&mut self, release: &Release, bundle: &Bundle) -> Result<Reply, Refusal> {
        if let Some(service) = &release.service {
            name("name of a service", service)?;
        }
        name("hash of the manifest", &bundle.manifest)?;
        if let Some(known) = self.bundles.get_mut(release) {
            if known.manifest != bundle.manifest {
                return Err(Refusal::OtherBundle { release: release.clone() });
            }
            let before = known.held_by.len();
            known.held_by.extend(bundle.held_by.iter().filter(|node| self.nodes.contains_key(*node)).cloned());
            return Ok(done_if(known.held_by.len() > before));
        }
        limit("bundles; remove one with: trilith upgrade remove", self.bundles.len() + 1, MAX_BUNDLES)?;
        let held_by = bundle.held_by.iter().filter(|node| self.nodes.contains_key(*node)).cloned().collect();
        let bundle = Bundle { summary: cut(&bundle.summary), held_by, ..bundle.clone() };
        self.bundles.insert(release.clone(), bundle);
        Ok(Reply::Done)
    }

    pub(super) fn hold(&mut self, release: &Release, node: &str, held: bool) -> Result<Reply, Refusal> {
        self.node(node)?;
        let bundle = self.bundles.get_mut(release).ok_or_else(|| Refusal::NoBundle { release: release.clone() })?;
        Ok(done_if(if held { bundle.held_by.insert(node.to_owned()) } else { bundle.held_by.remove(node) }))
    }

    pub(super) fn remove_bundle(&mut self, release: &Release) -> Result<Reply, Refusal> {
        if self.rollout.as_ref().and_then(|rollout| rollout.kind.release()).as_ref() == Some(release) {
            return Err(Refusal::InUse { release: release.clone() });
        }
        Ok(done_if(self.bundles.remove(release).is_some()))
    }

    pub(super) fn node(&self, node: &str) -> Result<&Node, Refusal> {
        self.nodes.get(node).ok_or_else(|| Refusal::NoNode { node: node.to_owned() })
    }
}
