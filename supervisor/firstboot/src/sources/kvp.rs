//! Hyper-V's data exchange: keys and values from the host, which `hv_kvp_daemon` keeps in a pool file.
//!
//! The keys are those of the OVF environment. A value holds at most 2047 bytes, so a long one comes in pieces that are joined by
//! their numbers: `user-data.0`, `user-data.1`, ….

use std::collections::BTreeMap;

use super::Documents;
use super::ovf::{self, Property};

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
    for ((name, _), (line, value)) in pieces {
        match properties.last_mut() {
            Some(property) if property.key == name => property.value.push_str(&value),
            _ => properties.push(Property { line, key: name, value }),
        }
    }
    properties.retain(|property| !property.value.trim().is_empty());
    ovf::from_properties(&properties, "Hyper-V data exchange", "pool 0")
}

/// The text up to its first zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

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
}
