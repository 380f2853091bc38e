//! From documents to answers.

use crate::answers::Answers;
use crate::cloud_config::{self, Part};
use crate::finding::Findings;
use crate::network;
use crate::set_part;
use crate::sources::{Content, Documents};
use crate::yaml;

/// What the documents say, and what is wrong with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The answers, as far as they are right.
    pub answers: Answers,
    /// Faults and warnings.
    pub findings: Findings,
    /// Whether a network was asked for but can't be had: then none is made up in its place.
    pub network_is_wrong: bool,
}

/// Reads all documents of a source.
///
/// With faults the answers hold what is right by itself, so that a node can be reached and mended: the network, names and
/// accounts. The set's part and the files are then empty: a node never joins a set by half of its answers.
pub fn take(documents: &Documents) -> Taken {
    let mut taken = Taken::default();
    let Taken { answers, findings, network_is_wrong } = &mut taken;
    answers.source = documents.source.clone();
    for document in &documents.meta {
        if let Some(root) = document.tree(findings) {
            cloud_config::read_meta(&document.name, &root, answers, findings);
        }
    }
    if let Some(document) = &documents.network {
        let root = document.tree(findings);
        // An empty document says nothing.
        let says =
            root.as_ref().is_none_or(|root| root.value != yaml::Value::Scalar(yaml::Scalar::Plain(String::new())));
        answers.network = root.filter(|_| says).and_then(|root| network::read(&document.name, &root, findings));
        *network_is_wrong = says && answers.network.is_none();
    }
    let mut parts = Vec::new();
    for document in &documents.user {
        match &document.content {
            Content::Bytes(bytes) => parts.extend(cloud_config::parts(&document.name, bytes.clone(), findings)),
            Content::Tree(_) | Content::Unreadable { .. } => {
                parts.extend(document.tree(findings).map(|root| Part { name: document.name.clone(), root }));
            }
        }
    }
    let set = cloud_config::read(&parts, answers, findings);
    answers.set = set.and_then(|field| set_part::read(&field, answers, findings));
    if !findings.faults.is_empty() {
        answers.set = None;
        answers.files = Vec::new();
    }
    taken
}
