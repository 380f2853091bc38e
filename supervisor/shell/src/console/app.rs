//! What the console does with keys and news: a state machine without a terminal, a clock or any IO.
//!
//! ```text
//!            Enter          right password
//!   Front ────────▶ Login ────────────────▶ Menu ──▶ Show, Logs
//!     ▲               │ Esc                  │  └──▶ Choose ─▶ Confirm ─y─▶ Busy ─▶ Said ─▶ Menu
//!     └───────────────┴──────────────────────┘ log out, or idle
//! ```

use std::time::{Duration, Instant};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use trilith_core::status::Status;
use zeroize::Zeroizing;

use super::Session;
use super::facts::Facts;
use super::login::Throttle;
use super::plan::{Plan, targets};
use crate::control::{Power, Request};

/// The console's state.
pub struct App {
    /// How it was started.
    pub session: Session,
    /// The user who is logged in.
    pub user: Option<String>,
    /// What is known; `None` until the first look.
    pub facts: Option<Facts>,
    /// What is shown.
    pub page: Page,
    /// The first line of the page's text that is shown; kept within bounds when it is drawn.
    pub scroll: usize,
    /// Lines that fit on a page; set when it is drawn.
    pub height: usize,
    throttle: Throttle,
    /// A password is being checked, also when its form was left.
    checking: bool,
    last_key: Instant,
}

/// What is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// The state of the set and of the machine, for everybody.
    Front,
    /// Name and password.
    Login(Form),
    /// What can be done; the number of the item that is marked.
    Menu(usize),
    /// Something to read that changes by itself.
    Show(Topic),
    /// The journal.
    Logs(Logs),
    /// A VIP, or the node that one shall go to.
    Choose {
        /// The VIP, when it is chosen.
        vip: Option<String>,
        /// What can be chosen.
        choices: Vec<String>,
        /// The number of the one that is marked.
        at: usize,
    },
    /// Something to be confirmed.
    Confirm(Plan),
    /// Something is being done.
    Busy(String),
    /// How it ended.
    Said {
        /// As it should.
        good: bool,
        /// In words.
        text: String,
    },
}

/// The form for name and password.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// The user's name.
    pub name: String,
    /// The password.
    pub password: Zeroizing<String>,
    /// The password is being typed, not the name.
    pub at_password: bool,
    /// The password is being looked at.
    pub checking: bool,
    /// Why it did not work.
    pub said: Option<String>,
}

/// What there is to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// All of `trilith status`.
    Status,
    /// Addresses, and where they are set.
    Network,
    /// Why this node did what it did.
    Decisions,
}

/// The journal's last lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logs {
    /// Warnings and worse only.
    pub urgent: bool,
    /// `None` until they are read.
    pub lines: Option<Vec<String>>,
}

/// What the menu offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    Status,
    Network,
    Decisions,
    Logs,
    Drain,
    MoveVip,
    Reboot,
    Poweroff,
    Bundle,
    Reset,
    Logout,
}

impl Item {
    /// In the order of the menu, each with its key.
    pub const ALL: [(char, Item); 11] = [
        ('1', Item::Status),
        ('2', Item::Network),
        ('3', Item::Decisions),
        ('4', Item::Logs),
        ('5', Item::Drain),
        ('6', Item::MoveVip),
        ('7', Item::Reboot),
        ('8', Item::Poweroff),
        ('9', Item::Bundle),
        ('a', Item::Reset),
        ('0', Item::Logout),
    ];
}

/// What the world is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Look whether a password is right.
    Verify { name: String, password: Zeroizing<String> },
    /// Put a request to the supervisor.
    Order(Request),
    /// Read the journal.
    ReadLogs { urgent: bool },
    /// Look at everything anew.
    Look,
    /// End.
    End,
}

/// What the world answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Whether the password was right.
    Verified { name: String, right: bool },
    /// What came of a request.
    Said { good: bool, text: String },
    /// The journal, or why it can't be read.
    Logs { urgent: bool, lines: Vec<String> },
}

impl App {
    /// A console that has just been started.
    pub fn new(session: Session, now: Instant) -> App {
        let (user, page) = match &session {
            Session::LoggedIn { user } => (Some(user.clone()), Page::Menu(0)),
            Session::Locked { .. } => (None, Page::Front),
        };
        App {
            session,
            user,
            facts: None,
            page,
            scroll: 0,
            height: 1,
            throttle: Throttle::default(),
            checking: false,
            last_key: now,
        }
    }

    /// When [`App::idle`] is due, if nobody types until then.
    pub fn idle_at(&self) -> Option<Instant> {
        match (&self.user, &self.page) {
            (Some(_), _) => Some(self.last_key + IDLE),
            (None, Page::Login(_)) => Some(self.last_key + LOGIN_IDLE),
            (None, _) => None,
        }
    }

    /// Nobody has typed for too long: the user is logged out.
    pub fn idle(&mut self, now: Instant) -> Option<Effect> {
        if self.idle_at().is_none_or(|at| now < at) {
            return None;
        }
        self.log_out()
    }

    /// A key was pressed.
    pub fn key(&mut self, key: KeyEvent, now: Instant) -> Option<Effect> {
        self.last_key = now;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('d') if self.user.is_some() => self.log_out(),
                KeyCode::Char('c') => self.back(),
                _ => None,
            };
        }
        if self.scrolled(key.code) {
            return None;
        }
        match self.page.clone() {
            Page::Front => self.open_login(key.code),
            Page::Login(form) => self.type_in(form, key.code, now),
            Page::Menu(at) => self.walk_menu(at, key.code),
            Page::Show(_) => self.leave(key.code),
            Page::Logs(logs) => match key.code {
                KeyCode::Char('r') => self.open_logs(logs.urgent),
                KeyCode::Char('w') => self.open_logs(!logs.urgent),
                code => self.leave(code),
            },
            Page::Choose { vip, choices, at } => self.walk_choices(vip, choices, at, key.code),
            Page::Confirm(plan) => match key.code {
                KeyCode::Char('y' | 'Y') => {
                    self.show(Page::Busy(plan.title));
                    Some(Effect::Order(plan.request))
                }
                _ => self.back(),
            },
            // It goes on, whoever presses what.
            Page::Busy(_) => None,
            Page::Said { .. } => self.back(),
        }
    }

    /// Something that was asked for has happened.
    pub fn take(&mut self, outcome: Outcome, now: Instant) -> Option<Effect> {
        match outcome {
            Outcome::Verified { name, right } => {
                self.checking = false;
                if right {
                    self.throttle.succeeded();
                } else {
                    // Also when the form was left meanwhile.
                    self.throttle.failed(now);
                }
                let wait = self.throttle.wait_s(now);
                let Page::Login(form) = &mut self.page else { return None };
                form.checking = false;
                if right {
                    self.user = Some(name);
                    self.show(Page::Menu(0));
                } else {
                    form.said = Some(format!("wrong name or password; the next may be tried in {wait} s"));
                }
                None
            }
            Outcome::Said { good, text } => {
                if self.user.is_some() {
                    self.show(Page::Said { good, text });
                }
                Some(Effect::Look)
            }
            Outcome::Logs { urgent, lines } => {
                if self.page == Page::Logs(Logs { urgent, lines: None }) {
                    self.show(Page::Logs(Logs { urgent, lines: Some(lines) }));
                    self.scroll = usize::MAX;
                }
                None
            }
        }
    }

    /// The status, while the supervisor answers.
    pub fn status(&self) -> Option<&Status> {
        self.facts.as_ref()?.status.as_deref().ok()
    }

    /// Why nobody can log in here; `None` when somebody can.
    pub fn locked(&self) -> Option<String> {
        match self.facts.as_ref().map(|facts| &facts.accounts) {
            None => Some("not ready yet".to_owned()),
            Some(Err(why)) => Some(format!("locked: {why}")),
            Some(Ok(accounts)) if accounts.is_empty() => Some("locked: no user has a password (use SSH)".to_owned()),
            Some(Ok(_)) => None,
        }
    }

    /// Where this console is, for the journal: ` at ttyS0`.
    pub fn place(&self) -> String {
        match &self.session {
            Session::Locked { line: Some(line) } => format!(" at {line}"),
            _ => String::new(),
        }
    }

    fn show(&mut self, page: Page) {
        self.page = page;
        self.scroll = 0;
    }

    fn log_out(&mut self) -> Option<Effect> {
        self.user = None;
        self.show(Page::Front);
        matches!(self.session, Session::LoggedIn { .. }).then_some(Effect::End)
    }

    /// To where the user came from.
    fn back(&mut self) -> Option<Effect> {
        match (&self.page, &self.user) {
            (Page::Busy(_), _) => {}
            (Page::Menu(_), Some(_)) => {}
            (_, Some(_)) => self.show(Page::Menu(0)),
            (_, None) => self.show(Page::Front),
        }
        None
    }

    fn leave(&mut self, code: KeyCode) -> Option<Effect> {
        match code {
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Enter | KeyCode::Left | KeyCode::Char('q') => self.back(),
            _ => None,
        }
    }

    /// Whether the key has moved the text.
    fn scrolled(&mut self, code: KeyCode) -> bool {
        if !matches!(self.page, Page::Front | Page::Show(_) | Page::Logs(_)) {
            return false;
        }
        let page = self.height.saturating_sub(1).max(1);
        self.scroll = match code {
            KeyCode::Up => self.scroll.saturating_sub(1),
            KeyCode::Down => self.scroll.saturating_add(1),
            KeyCode::PageUp => self.scroll.saturating_sub(page),
            KeyCode::PageDown | KeyCode::Char(' ') => self.scroll.saturating_add(page),
            KeyCode::Home => 0,
            KeyCode::End => usize::MAX,
            _ => return false,
        };
        true
    }

    fn open_login(&mut self, code: KeyCode) -> Option<Effect> {
        if self.locked().is_some() || code != KeyCode::Enter {
            return None;
        }
        let accounts = self.facts.iter().filter_map(|facts| facts.accounts.as_ref().ok()).flatten();
        let names: Vec<_> = accounts.map(|account| account.name.as_str()).collect();
        let form = match names[..] {
            [only] => Form { name: only.to_owned(), at_password: true, ..Form::default() },
            _ => Form::default(),
        };
        self.show(Page::Login(form));
        None
    }

    fn type_in(&mut self, mut form: Form, code: KeyCode, now: Instant) -> Option<Effect> {
        let field: &mut String = if form.at_password { &mut form.password } else { &mut form.name };
        match code {
            KeyCode::Esc => return self.back(),
            _ if form.checking => {}
            KeyCode::Char(c) if field.chars().count() < LONGEST => {
                // Room for all of it at once: a string that grows leaves its old copies behind.
                field.reserve(LONGEST * 4 - field.len());
                field.push(c);
            }
            KeyCode::Backspace => _ = field.pop(),
            KeyCode::Tab | KeyCode::BackTab | KeyCode::Up | KeyCode::Down => form.at_password = !form.at_password,
            KeyCode::Enter if !form.at_password => form.at_password = true,
            // Of a form that was left: one at a time, or waiting after a wrong one could be got round.
            KeyCode::Enter if self.checking => form.said = Some("the one before is still being checked".to_owned()),
            KeyCode::Enter => match self.throttle.wait_s(now) {
                0 => {
                    (form.checking, self.checking) = (true, true);
                    form.said = None;
                    let effect =
                        Effect::Verify { name: form.name.clone(), password: std::mem::take(&mut form.password) };
                    self.page = Page::Login(form);
                    return Some(effect);
                }
                wait => form.said = Some(format!("the next may be tried in {wait} s")),
            },
            _ => {}
        }
        self.page = Page::Login(form);
        None
    }

    fn walk_menu(&mut self, at: usize, code: KeyCode) -> Option<Effect> {
        let count = Item::ALL.len();
        let chosen = match code {
            KeyCode::Up => {
                self.page = Page::Menu((at + count - 1) % count);
                return None;
            }
            KeyCode::Down | KeyCode::Tab => {
                self.page = Page::Menu((at + 1) % count);
                return None;
            }
            KeyCode::Enter | KeyCode::Right => at,
            KeyCode::Char(typed) => Item::ALL.iter().position(|(key, _)| *key == typed)?,
            _ => return None,
        };
        self.choose(Item::ALL[chosen].1)
    }

    fn choose(&mut self, item: Item) -> Option<Effect> {
        let unanswered = || Page::Said { good: false, text: "the supervisor does not answer: see Logs".to_owned() };
        let page = match item {
            Item::Status => Page::Show(Topic::Status),
            Item::Network => Page::Show(Topic::Network),
            Item::Decisions => Page::Show(Topic::Decisions),
            Item::Logs => return self.open_logs(false),
            Item::Reboot => Page::Confirm(Plan::power(Power::Reboot, self.status())),
            Item::Poweroff => Page::Confirm(Plan::power(Power::Poweroff, self.status())),
            Item::Drain => {
                self.status().map_or_else(unanswered, |status| Page::Confirm(Plan::drain(status, !is_drained(status))))
            }
            Item::MoveVip => match self.status() {
                None => unanswered(),
                Some(status) if status.vips.len() == 1 => choose_target(status, &status.vips[0].name),
                Some(status) => {
                    let choices = status.vips.iter().map(|vip| vip.name.clone()).collect();
                    Page::Choose { vip: None, choices, at: 0 }
                }
            },
            Item::Bundle => {
                self.show(Page::Busy("write a support bundle".to_owned()));
                return Some(Effect::Order(Request::SupportBundle));
            }
            Item::Reset => Page::Confirm(Plan::reset()),
            Item::Logout => return self.log_out(),
        };
        self.show(page);
        None
    }

    fn open_logs(&mut self, urgent: bool) -> Option<Effect> {
        self.show(Page::Logs(Logs { urgent, lines: None }));
        Some(Effect::ReadLogs { urgent })
    }

    fn walk_choices(&mut self, vip: Option<String>, choices: Vec<String>, at: usize, code: KeyCode) -> Option<Effect> {
        let count = choices.len().max(1);
        let at = match code {
            KeyCode::Up => (at + count - 1) % count,
            KeyCode::Down | KeyCode::Tab => (at + 1) % count,
            KeyCode::Enter | KeyCode::Right => {
                let (Some(chosen), Some(status)) = (choices.get(at), self.status()) else { return self.back() };
                let page = match &vip {
                    None => choose_target(status, chosen),
                    Some(vip) => Page::Confirm(Plan::move_vip(status, vip, chosen)),
                };
                self.show(page);
                return None;
            }
            code => return self.leave(code),
        };
        self.page = Page::Choose { vip, choices, at };
        None
    }
}

/// Whether this node is out of service.
pub fn is_drained(status: &Status) -> bool {
    status.nodes.iter().any(|node| node.name == status.node && node.drained)
}

fn choose_target(status: &Status, vip: &str) -> Page {
    let choices = targets(status, vip);
    if choices.is_empty() {
        return Page::Said { good: false, text: format!("no other node is fit to own VIP {vip}") };
    }
    Page::Choose { vip: Some(vip.to_owned()), choices, at: 0 }
}

/// After so long without a key a user is logged out.
const IDLE: Duration = Duration::from_secs(5 * 60);
/// After so long without a key a half-filled form is given up.
const LOGIN_IDLE: Duration = Duration::from_secs(60);
/// The longest name or password, in characters.
const LONGEST: usize = 256;

#[cfg(test)]
mod tests;
