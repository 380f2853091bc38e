//! Scenario transcripts: what happens on the left of a script, what the nodes do about it below.
//!
//! Each `*.txt` here is a script, a line of `=`, and the transcript: every command of every node but heartbeats and probes.
//! `./justw bless` records the transcripts anew; a diff of one is read as a design review. The script's language:
//!
//! ```text
//! set nodes=3 lone=serve rebalance=never stun=0s   once, at the start; what is not said is as here
//! at MS start NODE…         the supervisor starts, on its disk's record
//! at MS crash NODE…         the machine is off
//! at MS freeze NODE…        the supervisor stands still, its clock runs on, datagrams wait
//! at MS resume NODE…        it goes on
//! at MS cut A B             no frame passes between the two; `cut A > B`: in this direction only
//! at MS mend                all cuts are mended
//! at MS down|up FACT NODE…  FACT is haproxy, gateway, link, hold or relay (the kernel refuses the address or the rules)
//! at MS claim               somebody foreign claims the VIP
//! at MS ask NODE move TO    an operator asks NODE to move the VIP; also `drain OF`, `undrain OF`
//! at MS alarms NODE…        what its `status` would have an admin look at
//! at MS end
//! ```

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test reads its data, and stops where it stands")]
#![expect(clippy::disallowed_methods, reason = "the core does no IO, but its transcripts are files")]

mod world;

use std::fs;
use std::path::Path;

#[test]
fn scenarios_go_as_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let files = fs::read_dir(&folder).expect("the folder of scenarios is there").flatten().map(|entry| entry.path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "txt")).collect();
    files.sort();
    assert!(!files.is_empty());
    let bless = std::env::var_os("TRILITH_BLESS").is_some();
    let mut changed = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).expect("a scenario can be read");
        let script = text.split(LINE).next().unwrap_or_default();
        let fresh = format!("{script}{LINE}{}", world::play(script));
        if fresh == text {
            continue;
        }
        if bless {
            fs::write(&path, fresh).expect("a scenario can be written");
        } else {
            let at = text.lines().zip(fresh.lines()).position(|(a, b)| a != b);
            let at = at.unwrap_or(text.lines().count().min(fresh.lines().count()));
            let (was, is) = (text.lines().nth(at).unwrap_or("(end)"), fresh.lines().nth(at).unwrap_or("(end)"));
            changed.push(format!("{}:{}\n  was {was}\n  is  {is}", path.display(), at + 1));
        }
    }
    assert!(changed.is_empty(), "changed; if that is right: ./justw bless\n{}", changed.join("\n"));
}

const LINE: &str = "================================================================\n";
