//! Screens as they are seen: 80 columns, 24 lines, recorded under `testdata`.
//!
//! `TRILITH_BLESS=1 cargo test --package trilith-shell` records them anew; their diff is read as a review.

use std::time::Instant;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::KeyCode;

use super::*;
use crate::console::app;
use crate::console::login::Account;
use crate::console::testing::{facts, press, pressed, typed};
use crate::notices::Notice;

const FULL: Look = Look { colour: true, unicode: true };
const POOR: Look = Look { colour: false, unicode: false };

fn locked() -> App {
    let mut app = App::new(Session::Locked { line: Some("ttyS0".to_owned()) }, Instant::now());
    app.facts = Some(facts());
    app
}

fn open() -> App {
    let mut app = App::new(Session::LoggedIn { user: "admin".to_owned() }, Instant::now());
    app.facts = Some(facts());
    app
}

fn shown(app: &mut App, look: Look, width: u16, height: u16) -> (String, Buffer) {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(app, look, frame)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let rows = buffer.content.chunks(usize::from(width));
    let rows = rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned() + "\n");
    (rows.collect(), buffer)
}

fn must_look_like(recorded: &str, app: &mut App) {
    must_look(FULL, recorded, app);
}

fn must_look(look: Look, recorded: &str, app: &mut App) {
    let (shown, _) = shown(app, look, 80, 24);
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/console/testdata").join(recorded);
    if std::env::var_os("TRILITH_BLESS").is_some() {
        std::fs::write(path, shown).unwrap();
    } else {
        assert_eq!(shown, std::fs::read_to_string(path).unwrap(), "\n{shown}");
    }
}

fn notice(name: &str, text: &str) -> Notice {
    Notice { name: name.to_owned(), text: text.to_owned() }
}

#[test]
fn a_healthy_set_is_seen_at_a_glance() {
    must_look_like("front-healthy.txt", &mut locked());
    must_look(POOR, "front-healthy-vt100.txt", &mut locked());
}

#[test]
fn a_machine_without_answers_says_how_to_give_it_some() {
    let mut app = locked();
    let facts = app.facts.as_mut().unwrap();
    let report = facts.first_boot.as_mut().unwrap();
    (report.outcome, report.source) = (Outcome::Nothing, None);
    facts.status = Err("The supervisor does not run.".to_owned());
    facts.accounts = Ok(Vec::new());
    facts.interfaces[0].addresses.clear();
    facts.boot.tries_left = Some(2);
    must_look_like("front-no-answers.txt", &mut app);
}

#[test]
fn answers_that_can_not_be_read_are_told_where_none_are_found() {
    let mut app = locked();
    let facts = app.facts.as_mut().unwrap();
    let report = facts.first_boot.as_mut().unwrap();
    report.outcome = Outcome::Nothing;
    report.notices = vec!["ovf-env.xml is no OVF environment".to_owned(), "no first-boot answers are found".to_owned()];
    let notices = report.notices.iter().enumerate();
    facts.notices = notices.map(|(number, text)| notice(&format!("{NOTICE_PREFIX}{number:02}"), text)).collect();
    facts.status = Err("The supervisor does not run.".to_owned());
    let (screen, _) = shown(&mut app, FULL, 80, 24);
    assert!(screen.contains("\n   ! ovf-env.xml is no OVF environment\n"), "{screen}");
    assert!(!screen.contains("answers are found\n"), "{screen}");
}

#[test]
fn wrong_answers_are_shown_with_their_place_and_their_mend() {
    let mut app = locked();
    let facts = app.facts.as_mut().unwrap();
    let fault = |line, key: &str, wrong: &str, mend: &str| Finding {
        document: "user-data".to_owned(),
        line,
        key: key.to_owned(),
        wrong: wrong.to_owned(),
        mend: mend.to_owned(),
    };
    let report = facts.first_boot.as_mut().unwrap();
    report.outcome = Outcome::Wrong;
    report.faults = vec![
        fault(12, "trilith.node", "\"d\" is no node of the set; it has: a, b, c", "use one of these names"),
        fault(3, "users.name", "\"root\" cannot be an operator", "use another name, such as admin"),
    ];
    facts.status = Err("The supervisor does not run.".to_owned());
    facts.notices =
        vec![notice("firstboot-answers", "2 answers are wrong"), notice("state", "the state partition was made anew")];
    must_look_like("front-wrong-answers.txt", &mut app);
}

#[test]
fn a_supervisor_that_is_away_is_told_with_what_to_do() {
    let mut app = locked();
    let facts = app.facts.as_mut().unwrap();
    facts.status = Err("The supervisor does not run.".to_owned());
    facts.last_words = vec![
        "trilith: /var/lib/trilith/set.toml:7:11: node.address: \"10.77.0.311\" is no IP address; write it like 10.77.0.11"
            .to_owned(),
        "    |".to_owned(),
        "  7 | address = \"10.77.0.311\"".to_owned(),
        "    |           ^^^^^^^^^^^^^".to_owned(),
    ];
    facts.notices = vec![notice(
        "state",
        "the state partition could not be mounted and was made anew: this node has forgotten its answers",
    )];
    must_look_like("front-supervisor-down.txt", &mut app);
}

#[test]
fn a_console_that_nobody_can_open_says_so() {
    let mut app = locked();
    app.facts.as_mut().unwrap().accounts = Ok(Vec::new());
    must_look_like("front-locked.txt", &mut app);
}

#[test]
fn trouble_comes_first_and_what_does_not_fit_can_be_reached() {
    let mut app = locked();
    let facts = app.facts.as_mut().unwrap();
    let status = facts.status.as_mut().unwrap();
    status.alarms = vec![
        "nobody owns VIP public: no node is fit to hold it".to_owned(),
        "node b has another configuration (00000001): bring it into line with this node's".to_owned(),
        "the state partition could not be mounted and was made anew".to_owned(),
    ];
    status.vips[0].owner = None;
    status.nodes[1].fitness = "unfit".to_owned();
    status.nodes[1].reason = Some("haproxy.service is not active".to_owned());
    must_look_like("front-trouble.txt", &mut app);
    press(&mut app, KeyCode::End);
    let (end, _) = shown(&mut app, FULL, 80, 24);
    assert!(end.contains("ens192") && !end.contains("↓ more"), "{end}");
}

#[test]
fn the_password_is_not_shown() {
    let mut app = locked();
    press(&mut app, KeyCode::Enter);
    typed(&mut app, "geheim");
    must_look_like("login.txt", &mut app);
    press(&mut app, KeyCode::Enter);
    app.take(app::Outcome::Verified { name: "admin".to_owned(), right: false }, Instant::now());
    must_look_like("login-wrong.txt", &mut app);
}

#[test]
fn the_menu_names_what_it_acts_on() {
    let mut app = open();
    press(&mut app, KeyCode::Down);
    must_look_like("menu.txt", &mut app);
    must_look(POOR, "menu-vt100.txt", &mut app);
    let status = app.facts.as_mut().unwrap().status.as_mut().unwrap();
    status.nodes[0].drained = true;
    let (menu, _) = shown(&mut app, FULL, 80, 24);
    assert!(menu.contains("Put node a back into service"), "{menu}");
}

#[test]
fn what_a_reboot_brings_about_is_told_before() {
    let mut app = open();
    press(&mut app, KeyCode::Char('7'));
    must_look_like("confirm-reboot.txt", &mut app);
}

#[test]
fn what_new_answers_bring_about_is_told_before() {
    let mut app = open();
    press(&mut app, KeyCode::Char('a'));
    must_look_like("confirm-reset.txt", &mut app);
}

#[test]
fn the_network_page_says_where_its_settings_come_from() {
    let mut app = open();
    press(&mut app, KeyCode::Char('2'));
    must_look_like("network.txt", &mut app);
}

#[test]
fn the_vips_node_is_chosen_from_those_that_can_own_it() {
    let mut app = open();
    pressed(&mut app, &[KeyCode::Char('6'), KeyCode::Enter]);
    must_look_like("choose-node.txt", &mut app);
}

#[test]
fn logs_begin_at_their_end_and_control_characters_do_nothing() {
    let mut app = open();
    press(&mut app, KeyCode::Char('4'));
    let lines = (1..=200).map(|number| format!("line {number} \u{1b}[2J\u{7}{}", "x".repeat(100))).collect();
    app.take(app::Outcome::Logs { urgent: false, lines }, Instant::now());
    let (end, _) = shown(&mut app, FULL, 80, 24);
    assert!(end.contains("line 200 [2J") && !end.contains('\u{1b}'), "{end}");
    press(&mut app, KeyCode::Home);
    let (start, _) = shown(&mut app, FULL, 80, 24);
    assert!(start.contains("line 1 ") && start.contains("↓ more"), "{start}");
}

#[test]
fn a_poor_terminal_gets_neither_colours_nor_anything_but_ascii() {
    for keys in ["", "1", "2", "3", "6", "7", "8", "a"] {
        let mut app = open();
        typed(&mut app, keys);
        let (text, buffer) = shown(&mut app, POOR, 80, 24);
        assert!(text.is_ascii(), "{text}");
        assert!(buffer.content.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
    }
}

#[test]
fn every_page_can_be_drawn_at_every_size() {
    for (width, height) in [(1, 1), (10, 3), (39, 24), (40, 10), (41, 50), (132, 43), (300, 100)] {
        for keys in ["", "1", "2", "3", "4", "5", "6", "7", "8", "a"] {
            let (mut app, mut front) = (open(), locked());
            typed(&mut app, keys);
            shown(&mut app, FULL, width, height);
            shown(&mut front, POOR, width, height);
        }
        let mut app = locked();
        app.facts.as_mut().unwrap().accounts = Ok(vec![Account::sample("a"), Account::sample("b")]);
        press(&mut app, KeyCode::Enter);
        typed(&mut app, &"n".repeat(300));
        shown(&mut app, FULL, width, height);
    }
}
