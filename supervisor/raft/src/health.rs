//! How a node's part in the set stands, in values and in words.

use std::fmt;

/// How this node's part in the set stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// This node is in a set. Otherwise its disk is empty, and [`Health::alarms`] say what it waits for.
    pub member: bool,
    /// The leader, if there is one that a majority follows, as far as this node knows.
    pub leader: Option<String>,
    /// It is this node.
    pub leads: bool,
    /// Raft's term.
    pub term: u64,
    /// The last entry that this node has applied.
    pub applied: u64,
    /// This node's generation: higher after it was replaced.
    pub generation: u64,
    /// The nodes with a vote, as far as this node knows.
    pub voters: Vec<String>,
    /// Other nodes that did not answer lately. Known to the leader, and to all while there is none.
    pub silent: Vec<String>,
    /// Other nodes that have yet to receive or apply what this node has. Known as `silent` is.
    pub lagging: Vec<String>,
    /// What an operator should know.
    pub alarms: Vec<Alarm>,
}

/// What an operator should know. Its words say what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// The set is not founded yet.
    Founding {
        /// Nodes that have not answered yet.
        silent: Vec<String>,
    },
    /// The set is not founded, because the nodes' documents name different nodes.
    Documents {
        /// The node whose document differs from this one's.
        node: String,
        /// The nodes of its document.
        theirs: Vec<String>,
    },
    /// The disk of a node is empty, but the set remembers it.
    DiskLost {
        /// The node.
        node: String,
        /// The set's name.
        set: String,
    },
    /// Disks are empty, and what is left can't decide.
    MajorityLost {
        /// The nodes whose disks are empty.
        empty: Vec<String>,
        /// Voters that do not answer: they may have their disks still.
        silent: Vec<String>,
        /// The node that has the latest state, of those that answer.
        holder: String,
    },
    /// A node has the state of another set of this name.
    Foreign {
        /// The node.
        node: String,
    },
    /// No leader, because too few nodes answer.
    NoQuorum {
        /// Those that do not.
        silent: Vec<String>,
    },
    /// No leader, although enough nodes answer.
    NoLeader,
    /// The set has decided something that this version does not understand.
    Newer {
        /// This node.
        node: String,
        /// What.
        what: String,
    },
    /// The disk has no room to hold back for what must be kept.
    Full {
        /// What is found.
        why: String,
    },
    /// The disk does not take what must be kept: this node has no part in the set until it is restarted.
    Storage {
        /// The words of whoever failed.
        why: String,
    },
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Alarm::Founding { silent } if silent.is_empty() => {
                write!(f, "the set is being founded: this node waits to be admitted")
            }
            Alarm::Founding { silent } => write!(
                f,
                "the set is not founded yet: all its nodes must be there for that once, and {} did not answer",
                silent.join(", ")
            ),
            Alarm::Documents { node, theirs } => write!(
                f,
                "the set is not founded: the document of node {node} names the nodes {}, this node's does not, or in \
                 another order: give all nodes the same document",
                theirs.join(", ")
            ),
            Alarm::DiskLost { node, set } => write!(
                f,
                "the disk of node {node} is empty, but the set {set} remembers it: run `trilith node replace {node}` on \
                 another node"
            ),
            Alarm::MajorityLost { empty, silent, holder } if silent.is_empty() => write!(
                f,
                "{}, so the rest of the set can't decide: run `trilith node recover` on {holder}, whose state then \
                 counts, and the others are given it",
                Disks(empty)
            ),
            // With a silent one alive somewhere, a recovery makes two sets of one, or forgets what only that one knows.
            Alarm::MajorityLost { empty, silent, holder } => write!(
                f,
                "{} and {} {} silent, so the rest of the set can't decide: bring {1} back, and it is said here what \
                 to do then. Only if that is impossible for good, run `trilith node recover` on {holder}: its state then \
                 counts, and what only {1} knew is lost",
                Disks(empty),
                silent.join(", "),
                if silent.len() == 1 { "is" } else { "are" },
            ),
            Alarm::Foreign { node } => write!(
                f,
                "node {node} has the state of another set: run `trilith node replace {node}` on another node if that \
                 state may go (it is kept on its disk as raft/replaced)"
            ),
            Alarm::NoQuorum { silent } => write!(
                f,
                "the set can't decide, because too few of its nodes answer: {} {} silent",
                silent.join(", "),
                if silent.len() == 1 { "is" } else { "are" }
            ),
            Alarm::NoLeader => write!(
                f,
                "nobody leads the set, although enough of its nodes answer: see what else they say; if they say nothing, \
                 their logs tell why (`trilith support-bundle`)"
            ),
            // No rollout mends that: a node whose state stands still takes no part in it.
            Alarm::Newer { node, what } => write!(
                f,
                "the set is newer than this node, which does not understand {what}: nothing decided since takes effect on it, \
                 upgrades neither. Make this machine again from an image of the others' version, then run `trilith node replace \
                 {node}` on another node"
            ),
            Alarm::Full { why } => write!(
                f,
                "the disk of this node is nearly full ({why}): what the set decides has only that room left. Remove versions \
                 that are not needed (`trilith upgrade remove`) and what services have left there, or enlarge the disk"
            ),
            Alarm::Storage { why } => {
                write!(f, "this node can't keep what the set decides: {why}; mend its disk, then restart it")
            }
        }
    }
}

/// Whose disks are empty.
struct Disks<'a>(&'a [String]);

impl fmt::Display for Disks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (noun, verb) = if self.0.len() == 1 { ("disk", "is") } else { ("disks", "are") };
        write!(f, "the {noun} of {} {verb} empty", self.0.join(", "))
    }
}
