//! From what is known to what an operator should know.

use std::collections::{BTreeMap, BTreeSet};

use super::{Greetings, Keeper};
use crate::active::Active;
use crate::health::{Alarm, Health};
use crate::protocol::{Greeting, Standing};
use crate::types::{RaftId, generation};

/// Leases without a leader after which an alarm says so although enough nodes answer.
const LEADERLESS: u32 = 5;

impl Keeper {
    /// Publishes how this node's part in the set stands.
    pub(super) fn report(&self, greetings: &Greetings) {
        let active = self.shared.active();
        let mut health = Health::default();
        let name = |place: u8| self.shared.nodes[usize::from(place)].clone();
        health.silent =
            greetings.iter().filter(|(_, greeting)| greeting.is_none()).map(|(node, _)| name(node.0)).collect();
        match &active {
            Some(active) => self.report_member(active, greetings, &mut health),
            None => health.alarms = self.empty_alarms(greetings),
        }
        if let Some(why) = self.shared.failed.borrow().clone() {
            health.alarms.push(Alarm::Storage { why });
        }
        self.shared.health.send_if_modified(|published| {
            let changed = *published != health;
            if changed {
                for alarm in health.alarms.iter().filter(|alarm| !published.alarms.contains(alarm)) {
                    tracing::warn!("set: {alarm}");
                }
                *published = health;
            }
            changed
        });
    }

    fn report_member(&self, active: &Active, greetings: &Greetings, health: &mut Health) {
        let (metrics, progress, standing) = (active.metrics(), active.progress(), active.standing());
        health.member = true;
        health.leader = active.leader().map(|(_, name)| name);
        health.leads = active.leads();
        health.term = metrics.current_term;
        health.applied = standing.applied;
        health.generation = generation(active.identity.id);
        health.voters = self.in_order(standing.voters.iter().map(|(_, name)| name));
        health.lagging = self.lagging(active, greetings);
        if let Some(what) = progress.stuck {
            health.alarms.push(Alarm::Newer { node: self.shared.name().to_owned(), what });
        }
        if let Err(why) = metrics.running_state {
            health.alarms.push(Alarm::Storage { why: why.to_string() });
        }
        if let Some(why) = active.writer.short() {
            health.alarms.push(Alarm::Full { why });
        }
        let empty = self.empty_voters(&standing, greetings);
        let lost = self.majority_lost(&standing, &empty, Some(&standing), greetings);
        let decides = lost.is_none();
        match lost {
            Some(alarm) => health.alarms.push(alarm),
            None => health.alarms.extend(empty.into_iter().map(|node| self.disk_lost(node))),
        }
        for (node, greeting) in greetings {
            let Some(other) = greeting.as_ref().and_then(|greeting| greeting.member.as_ref()) else { continue };
            let (mine, theirs) = (&active.identity, &other.identity);
            // A set that the other one was recovered from gives way by itself, unless it still works.
            let settles = mine.previous.contains(&theirs.set) && !other.led
                || theirs.previous.contains(&mine.set) && health.leader.is_none();
            if theirs.set != mine.set && !settles {
                health.alarms.push(Alarm::Foreign { node: self.shared.nodes[usize::from(node.0)].clone() });
            }
        }
        if !decides || health.leader.is_some() {
            return;
        }
        if !health.silent.is_empty() && !self.quorum_there(active, greetings) {
            health.alarms.push(Alarm::NoQuorum { silent: health.silent.clone() });
        } else if self.led_at.elapsed() > self.shared.rhythm.lease * LEADERLESS {
            health.alarms.push(Alarm::NoLeader);
        }
    }

    /// Why an empty node is not in a set.
    fn empty_alarms(&self, greetings: &Greetings) -> Vec<Alarm> {
        let standings = greetings.values().flatten().filter_map(|greeting| greeting.member.as_ref());
        let latest = standings.max_by_key(|other| other.last);
        if let Some(latest) = latest {
            let mut empty = self.empty_voters(latest, greetings);
            let mine = self.shared.name();
            if latest.voters.iter().map(|(_, name)| name).any(|voter| voter == mine) {
                empty.push(mine.to_owned());
                let empty = self.in_order(empty.iter());
                let lost = self.majority_lost(latest, &empty, None, greetings);
                return vec![lost.unwrap_or_else(|| self.disk_lost(mine.to_owned()))];
            }
            return vec![Alarm::Founding { silent: Vec::new() }];
        }
        for (node, greeting) in greetings {
            if let Some(greeting) = greeting
                && *greeting.nodes != *self.shared.nodes
            {
                let node = self.shared.nodes[usize::from(node.0)].clone();
                return vec![Alarm::Documents { node, theirs: greeting.nodes.clone() }];
            }
        }
        let silent = greetings.iter().filter(|(_, greeting)| greeting.is_none());
        vec![Alarm::Founding {
            silent: silent.map(|(node, _)| self.shared.nodes[usize::from(node.0)].clone()).collect(),
        }]
    }

    fn disk_lost(&self, node: String) -> Alarm {
        Alarm::DiskLost { node, set: self.shared.settings.set.name.clone() }
    }

    /// The other nodes that have a vote in `standing`'s view, and have lost it with their disks: those that are empty, and
    /// those that began anew before that was decided.
    fn empty_voters(&self, standing: &Standing, greetings: &Greetings) -> Vec<String> {
        let lost = |name: &str, greeting: &Greeting| {
            let member = greeting.member.as_ref().map(|member| &member.identity);
            let mut votes = standing.voters.iter().filter(|(_, voter)| voter == name).map(|(id, _)| *id).peekable();
            votes.peek().is_some()
                && member.is_none_or(|member| member.set == standing.identity.set && !votes.any(|id| id == member.id))
        };
        let names = greetings.iter().filter_map(|(node, greeting)| {
            let name = &self.shared.nodes[usize::from(node.0)];
            lost(name, greeting.as_ref()?).then(|| name.clone())
        });
        names.collect()
    }

    /// The alarm, if disks are `empty` and what is left of the voters can't decide without them. While somebody leads, one that is
    /// silent here is left all the same; without a leader only those are that answer.
    fn majority_lost(
        &self,
        standing: &Standing,
        empty: &[String],
        me: Option<&Standing>,
        greetings: &Greetings,
    ) -> Option<Alarm> {
        let others = greetings.values().flatten().filter_map(|greeting| greeting.member.as_ref());
        let holders = others.chain(me).filter(|other| other.identity.set == standing.identity.set);
        let led = holders.clone().any(|holder| holder.led);
        let silent = greetings.iter().filter(|(_, greeting)| greeting.is_none());
        let silent: Vec<&String> = silent.map(|(node, _)| &self.shared.nodes[usize::from(node.0)]).collect();
        let voters = || standing.voters.iter().map(|(_, name)| name);
        let away: Vec<&String> = voters().filter(|voter| silent.contains(voter)).collect();
        let left = voters().filter(|voter| !empty.contains(voter) && (led || !away.contains(voter))).count();
        if left * 2 > standing.voters.len() || empty.is_empty() {
            return None;
        }
        let holder = holders.max_by_key(|other| other.last)?.identity.name.clone();
        Some(Alarm::MajorityLost { empty: empty.to_vec(), silent: self.in_order(away.into_iter()), holder })
    }

    /// Whether those who answer, with this node, could elect a leader.
    fn quorum_there(&self, active: &Active, greetings: &Greetings) -> bool {
        let there: BTreeSet<RaftId> = greetings
            .values()
            .flatten()
            .filter_map(|greeting| greeting.member.as_ref())
            .filter(|other| other.identity.set == active.identity.set)
            .map(|other| other.identity.id)
            .chain([active.identity.id])
            .collect();
        let metrics = active.metrics();
        // One that was just admitted knows no voters yet.
        metrics.membership_config.voter_ids().next().is_none() || active.has_quorum(&metrics, |id| there.contains(id))
    }

    /// The members that answer, but have not all that this node has applied.
    fn lagging(&self, active: &Active, greetings: &Greetings) -> Vec<String> {
        let applied = active.progress().applied.map_or(0, |last| last.index);
        let behind = greetings.iter().filter(|(_, greeting)| {
            let Some(greeting) = greeting else { return false };
            greeting.member.as_ref().is_none_or(|other| other.applied < applied)
        });
        behind.map(|(node, _)| self.shared.nodes[usize::from(node.0)].clone()).collect()
    }

    /// Names in the order of the document.
    fn in_order<'a>(&self, names: impl Iterator<Item = &'a String>) -> Vec<String> {
        let place = |name: &String| self.shared.nodes.iter().position(|node| node == name);
        let ordered: BTreeMap<_, _> = names.map(|name| ((place(name).unwrap_or(usize::MAX), name), ())).collect();
        ordered.into_keys().map(|(_, name)| name.clone()).collect()
    }
}
