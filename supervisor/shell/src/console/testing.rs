//! What the tests of the console look at and press.

use std::time::{Duration, Instant, SystemTime};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use trilith_firstboot::report::{NetworkOutcome, Outcome, Report};

use super::app::{App, Effect};
use super::facts::Facts;
use super::login;
use super::machine::{Boot, Interface};
use crate::cli::testing::full;

/// A healthy node of a healthy set.
pub fn facts() -> Facts {
    let interface = Interface {
        name: "ens192".to_owned(),
        up: true,
        mac: "00:50:56:9a:10:02".to_owned(),
        addresses: vec!["10.77.0.11/24".to_owned(), "10.77.0.10/24".to_owned(), "fd77::11/64".to_owned()],
    };
    Facts {
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_769_903_999),
        last_words: Vec::new(),
        status: Ok(Box::new(full())),
        notices: Vec::new(),
        first_boot: Some(report()),
        interfaces: vec![interface],
        routes: vec!["default via 10.77.0.1 dev ens192".to_owned()],
        resolvers: vec!["10.77.0.1".to_owned()],
        boot: Boot { slot: Some('A'), tries_left: None },
        host: "node-a".to_owned(),
        accounts: Ok(vec![login::Account::sample("admin")]),
    }
}

/// Answers of an earlier boot.
fn report() -> Report {
    Report {
        outcome: Outcome::Kept,
        source: Some("cidata on /dev/sr0".to_owned()),
        instance_id: "i-1".to_owned(),
        hostname: Some("node-a".to_owned()),
        network: NetworkOutcome::Answers,
        faults: Vec::new(),
        warnings: Vec::new(),
        notices: Vec::new(),
    }
}

/// Presses a key.
pub fn press(app: &mut App, code: KeyCode) -> Option<Effect> {
    app.key(KeyEvent::new(code, KeyModifiers::NONE), Instant::now())
}

/// Presses keys and returns what comes of the last.
pub fn pressed(app: &mut App, codes: &[KeyCode]) -> Option<Effect> {
    codes.iter().map(|code| press(app, *code)).last().flatten()
}

/// Types a text.
pub fn typed(app: &mut App, text: &str) {
    text.chars().for_each(|c| _ = press(app, KeyCode::Char(c)));
}
