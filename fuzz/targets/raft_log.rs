//! The log file and the sealed files of the replicated state. The checksums keep random bytes out, so the parts are also tried with
//! the right ones: the first line is the header's value, the second the head's, the rest are records.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use trilith_raft::store::{Identity, log, sealed};

const BLOCK: usize = 4096;

fn block(kind: &str, json: &[u8]) -> Option<Vec<u8>> {
    let value: Value = serde_json::from_slice(json).ok()?;
    let mut block = sealed::seal(kind, &value);
    block.resize(BLOCK, 0);
    Some(block)
}

fuzz_target!(|bytes: &[u8]| {
    let _ = log::read(bytes);
    let _ = sealed::open::<Identity>("identity", bytes);
    let mut parts = bytes.splitn(3, |byte| *byte == b'\n');
    let (Some(header), Some(head), Some(records)) = (parts.next(), parts.next(), parts.next()) else { return };
    if let (Some(header), Some(head)) = (block("log", header), block("head", head)) {
        let file = [&header, &head, &head, records].concat();
        if let Ok(content) = log::read(&file) {
            let first = content.base.map_or(0, |base| base.index + 1);
            for (place, entry) in content.entries.iter().enumerate() {
                assert_eq!(entry.log_id.index, first + place as u64, "a log without a gap");
            }
        }
    }
    if let Ok(value) = serde_json::from_slice::<Value>(header)
        && let Ok(identity) = sealed::open::<Identity>("identity", &sealed::seal("identity", &value))
    {
        assert_eq!(sealed::open("identity", &sealed::seal("identity", &identity)), Ok(identity));
    }
});
