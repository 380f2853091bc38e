//! The console's state machine, driven by keys.

use super::*;
use crate::console::testing::{facts, press, pressed, typed};

fn locked() -> App {
    let mut app = App::new(Session::Locked { line: Some("tty1".to_owned()) }, Instant::now());
    app.facts = Some(facts());
    app
}

/// An app with somebody logged in.
fn open() -> App {
    let mut app = App::new(Session::LoggedIn { user: "admin".to_owned() }, Instant::now());
    app.facts = Some(facts());
    app
}

fn right() -> Outcome {
    Outcome::Verified { name: "admin".to_owned(), right: true }
}

#[test]
fn the_right_password_opens_the_menu() {
    let mut app = locked();
    assert_eq!(press(&mut app, KeyCode::Enter), None);
    typed(&mut app, "secret");
    let effect = press(&mut app, KeyCode::Enter);
    let password = Zeroizing::new("secret".to_owned());
    assert_eq!(effect, Some(Effect::Verify { name: "admin".to_owned(), password }));
    assert_eq!(press(&mut app, KeyCode::Enter), None, "one try at a time");
    app.take(right(), Instant::now());
    assert_eq!((app.page, app.user.as_deref()), (Page::Menu(0), Some("admin")));
}

#[test]
fn a_form_that_is_left_gets_nobody_a_second_try_while_the_first_is_checked() {
    let mut app = locked();
    press(&mut app, KeyCode::Enter);
    typed(&mut app, "first");
    assert!(press(&mut app, KeyCode::Enter).is_some());
    press(&mut app, KeyCode::Esc);
    press(&mut app, KeyCode::Enter);
    typed(&mut app, "second");
    assert_eq!(press(&mut app, KeyCode::Enter), None);
    app.take(Outcome::Verified { name: "admin".to_owned(), right: false }, Instant::now());
    assert!(app.throttle.wait_s(Instant::now()) > 0);
    app.throttle = Throttle::default();
    assert!(press(&mut app, KeyCode::Enter).is_some(), "the first is over");
}

#[test]
fn wrong_passwords_make_the_next_one_wait_also_when_the_form_is_left_meanwhile() {
    let (mut app, now) = (locked(), Instant::now());
    for leave in [false, true] {
        press(&mut app, KeyCode::Enter);
        typed(&mut app, "x");
        assert!(press(&mut app, KeyCode::Enter).is_some());
        if leave {
            press(&mut app, KeyCode::Esc);
        }
        app.take(Outcome::Verified { name: "admin".to_owned(), right: false }, now);
        press(&mut app, KeyCode::Esc);
        assert_eq!(app.user, None);
        if !leave {
            press(&mut app, KeyCode::Enter);
            typed(&mut app, "y");
            assert_eq!(press(&mut app, KeyCode::Enter), None, "too early");
            let Page::Login(form) = &app.page else { panic!("{:?}", app.page) };
            assert_eq!(form.said.as_deref(), Some("the next may be tried in 1 s"));
            app.throttle = Throttle::default();
            press(&mut app, KeyCode::Esc);
        }
    }
    assert!(app.throttle.wait_s(now) > 0);
}

#[test]
fn nobody_logs_in_where_nobody_has_a_password() {
    let mut app = locked();
    app.facts.as_mut().unwrap().accounts = Ok(Vec::new());
    for code in [KeyCode::Enter, KeyCode::Char('1'), KeyCode::Esc] {
        assert_eq!(press(&mut app, code), None);
        assert_eq!(app.page, Page::Front);
    }
}

#[test]
fn before_login_no_key_does_anything_but_look_and_log_in() {
    let mut app = locked();
    for code in (0..=255u8).map(|c| KeyCode::Char(c.into())).chain([KeyCode::Esc, KeyCode::F(1), KeyCode::Delete]) {
        assert_eq!(press(&mut app, code), None);
        assert_eq!((&app.page, &app.user), (&Page::Front, &None));
    }
}

#[test]
fn a_reboot_is_done_after_y_and_after_nothing_else() {
    let mut app = open();
    for other in [KeyCode::Enter, KeyCode::Char('n'), KeyCode::Esc, KeyCode::Char(' ')] {
        assert_eq!(press(&mut app, KeyCode::Char('7')), None);
        assert!(matches!(app.page, Page::Confirm(_)));
        assert_eq!((press(&mut app, other), &app.page), (None, &Page::Menu(0)));
    }
    press(&mut app, KeyCode::Char('7'));
    let request = Request::Power { deed: Power::Reboot, node: None, force: true };
    assert_eq!(press(&mut app, KeyCode::Char('y')), Some(Effect::Order(request)));
    assert_eq!(press(&mut app, KeyCode::Esc), None, "it goes on");
    assert_eq!(app.page, Page::Busy("reboot node a".to_owned()));
    let said = Outcome::Said { good: false, text: "refused".to_owned() };
    assert_eq!(app.take(said, Instant::now()), Some(Effect::Look));
    press(&mut app, KeyCode::Char('x'));
    assert_eq!(app.page, Page::Menu(0));
}

#[test]
fn the_answers_are_taken_anew_after_y_and_after_nothing_else() {
    let mut app = open();
    for other in [KeyCode::Enter, KeyCode::Char('n'), KeyCode::Esc, KeyCode::Char('a')] {
        assert_eq!(press(&mut app, KeyCode::Char('a')), None);
        assert!(matches!(app.page, Page::Confirm(_)));
        assert_eq!((press(&mut app, other), &app.page), (None, &Page::Menu(0)));
    }
    press(&mut app, KeyCode::Char('a'));
    assert_eq!(press(&mut app, KeyCode::Char('y')), Some(Effect::Order(Request::Reset)));
    assert_eq!(app.page, Page::Busy("take the first-boot answers anew".to_owned()));
}

#[test]
fn every_item_of_the_menu_is_reached_by_its_key_and_by_the_arrows() {
    for (place, (key, item)) in Item::ALL.into_iter().enumerate() {
        let (mut typed, mut walked) = (open(), open());
        let effect = press(&mut typed, KeyCode::Char(key));
        let keys = [vec![KeyCode::Down; place], vec![KeyCode::Enter]].concat();
        assert_eq!((pressed(&mut walked, &keys), &walked.page), (effect, &typed.page), "{item:?}");
        assert_ne!(typed.page, Page::Menu(0), "{item:?}");
    }
}

#[test]
fn a_vip_is_chosen_then_its_node_then_confirmed() {
    let mut app = open();
    let request = Request::VipMove { vip: "public6".to_owned(), node: "c".to_owned() };
    let keys = [KeyCode::Char('6'), KeyCode::Down, KeyCode::Enter, KeyCode::Down, KeyCode::Enter, KeyCode::Char('y')];
    assert_eq!(pressed(&mut app, &keys), Some(Effect::Order(request)));
}

#[test]
fn without_a_supervisor_only_what_needs_none_is_offered() {
    let mut app = open();
    app.facts.as_mut().unwrap().status = Err("the supervisor is not running".to_owned());
    for digit in ['5', '6'] {
        press(&mut app, KeyCode::Char(digit));
        assert!(matches!(app.page, Page::Said { good: false, .. }), "{digit}");
        press(&mut app, KeyCode::Esc);
    }
    press(&mut app, KeyCode::Char('8'));
    assert!(matches!(press(&mut app, KeyCode::Char('y')), Some(Effect::Order(Request::Power { .. }))));
    app.take(Outcome::Said { good: false, text: "refused".to_owned() }, Instant::now());
    press(&mut app, KeyCode::Esc);
    press(&mut app, KeyCode::Char('a'));
    assert_eq!(press(&mut app, KeyCode::Char('y')), Some(Effect::Order(Request::Reset)));
}

#[test]
fn logging_out_ends_an_ssh_session_and_locks_the_machines_own_console() {
    assert_eq!(press(&mut open(), KeyCode::Char('0')), Some(Effect::End));
    let mut app = locked();
    press(&mut app, KeyCode::Enter);
    app.take(right(), Instant::now());
    assert_eq!(press(&mut app, KeyCode::Char('0')), None);
    assert_eq!((app.page, app.user), (Page::Front, None));
}

#[test]
fn whoever_types_nothing_for_five_minutes_is_logged_out() {
    let (mut app, start) = (open(), Instant::now());
    press(&mut app, KeyCode::Char('1'));
    assert_eq!(app.idle(start + IDLE - Duration::from_secs(1)), None);
    assert_eq!(app.idle(start + IDLE + Duration::from_secs(1)), Some(Effect::End));
    let mut app = locked();
    assert_eq!(app.idle_at(), None);
    press(&mut app, KeyCode::Enter);
    typed(&mut app, "half a passw");
    app.idle(Instant::now() + LOGIN_IDLE);
    assert_eq!(app.page, Page::Front);
}

#[test]
fn an_answer_that_comes_after_the_log_out_is_not_shown() {
    let mut app = locked();
    app.take(Outcome::Said { good: true, text: "done".to_owned() }, Instant::now());
    app.take(Outcome::Logs { urgent: false, lines: vec!["secret".to_owned()] }, Instant::now());
    assert_eq!(app.page, Page::Front);
}
