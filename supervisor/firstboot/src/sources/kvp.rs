//! Hyper-V's data exchange: keys and values from the host, which `hv_kvp_daemon` keeps in a pool file.
//!
//! The keys are those of the OVF environment. A value holds at most 2047 bytes, so a long one comes in pieces that are joined by
//! their numbers: `user-data.0`, `user-data.1`, ….

use std::collections::BTreeMap;

use super::ovf::{self, Property};
use super::{Document, Documents};

/// What the host has sent (`hv_kvp_daemon.c`): pool 0 is the external one, from the host to the guest.
pub const POOL: &str = "/var/lib/hyperv/.kvp_pool_0";

/// The documents that a pool's keys make; only those that begin with `trilith.` are ours.
pub fn documents(pool: &[u8]) -> Option<Documents> {
    let mut pieces: BTreeMap<(String, u32), (u32, String)> = BTreeMap::new();
    for (number, record) in (1..).zip(pool.chunks_exact(KEY + VALUE).take(MAX_RECORDS)) {
        let (key, value) = (text(&record[..KEY]), text(&record[KEY..]));
        let Some(key) = key.strip_prefix("trilith.") else { continue };
        let (name, piece) = match key.rsplit_once('.').map(|(name, piece)| (name, piece.parse())) {
            Some((name, Ok(piece))) => (name, piece),
            _ => (key, 0),
        };
        pieces.insert((name.to_owned(), piece), (number, value));
    }
    let mut properties: Vec<Property> = Vec::new();
    let (mut due, mut missing) = (0, Vec::new());
    for ((name, piece), (line, value)) in pieces {
        match properties.last_mut() {
            Some(property) if property.key == name => property.value.push_str(&value),
            _ => {
                due = 0;
                properties.push(Property { line, key: name.clone(), value });
            }
        }
        if piece != due && ovf::KNOWN.contains(&name.as_str()) {
            missing.push((name, due));
        }
        due = piece.saturating_add(1);
    }
    properties.retain(|property| !property.value.trim().is_empty());
    let mut documents = ovf::from_properties(&properties, SOURCE, "pool 0")?;
    // What is left of a text with a hole in it may read well, and mean something else.
    for (name, piece) in missing {
        let wrong = format!("trilith.{name}.{piece} is missing, and a later piece is there");
        let document = Document::unreadable(SOURCE, wrong, "send all pieces, numbered from 0");
        match name.as_str() {
            "network-config" => documents.network = Some(document),
            _ => documents.user.push(document),
        }
    }
    Some(documents)
}

/// The text up to its first zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

const SOURCE: &str = "Hyper-V data exchange";
/// `HV_KVP_EXCHANGE_MAX_KEY_SIZE` and `HV_KVP_EXCHANGE_MAX_VALUE_SIZE` of linux/hyperv.h.
const KEY: usize = 512;
const VALUE: usize = 2048;
const MAX_RECORDS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::take::take;

    fn pool(records: &[(&str, &str)]) -> Vec<u8> {
        let mut pool = Vec::new();
        for (key, value) in records {
            let mut record = vec![0; KEY + VALUE];
            record[..key.len()].copy_from_slice(key.as_bytes());
            record[KEY..KEY + value.len()].copy_from_slice(value.as_bytes());
            pool.extend(record);
        }
        pool
    }

    #[test]
    fn pieces_are_joined_by_their_numbers_and_others_keys_are_left_alone() {
        let pool = pool(&[
            ("HostName", "host-1"),
            ("trilith.user-data.1", "zone: UTC\n"),
            ("trilith.hostname", "a"),
            ("trilith.user-data.0", "#cloud-config\ntime"),
        ]);
        let taken = take(&documents(&pool).unwrap());
        assert_eq!((taken.answers.hostname.as_deref(), taken.answers.timezone.as_deref()), (Some("a"), Some("UTC")));
        assert_eq!(taken.findings.warnings, []);
        assert_eq!(documents(&pool[..KEY]), None);
    }

    #[test]
    fn a_piece_that_is_missing_is_a_fault_and_the_rest_is_no_document() {
        let told = |records: &[(&str, &str)]| {
            let taken = take(&documents(&pool(records)).unwrap());
            (taken.findings.faults.iter().map(ToString::to_string).collect::<Vec<_>>(), taken.network_is_wrong)
        };
        let fault = |key: &str| {
            format!("{SOURCE}: trilith.{key} is missing, and a later piece is there; send all pieces, numbered from 0")
        };
        let user = [("trilith.user-data.0", "#cloud-config\n"), ("trilith.user-data.2", "timezone: UTC\n")];
        assert_eq!(told(&user), (vec![fault("user-data.1")], false));
        let network = [("trilith.hostname", "a"), ("trilith.network-config.1", "version: 2\n")];
        assert_eq!(told(&network), (vec![fault("network-config.0")], true));
    }
}
