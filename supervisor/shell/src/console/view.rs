//! What the console looks like: a heading, a page, and a line of keys. Made for 80 columns and 24 lines.

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use trilith_firstboot::finding::Finding;
use trilith_firstboot::report::{NOTICE_PREFIX, Outcome, Report};

use super::app::{App, Form, Item, Logs, Page, Topic, is_drained};
use super::facts::Facts;
use super::plan;
use super::{Session, look::Look};
use crate::cli::paint::{Line, Tone, Word, wrap};
use crate::cli::status;
use crate::utc::Utc;
use crate::version;

/// Draws all of it.
pub fn draw(app: &mut App, look: Look, frame: &mut Frame<'_>) {
    let area = frame.area();
    if area.width < NARROWEST || area.height < LOWEST {
        frame.buffer_mut().set_stringn(0, 0, "too small", usize::from(area.width), Style::new());
        return;
    }
    let page = Rect::new(1, 2, area.width - 2, area.height - 4);
    let lines = page_lines(app, usize::from(page.width));
    app.height = usize::from(page.height);
    app.scroll = app.scroll.min(lines.len().saturating_sub(app.height));
    let buffer = frame.buffer_mut();
    heading(app, area, buffer);
    for (row, line) in lines.iter().skip(app.scroll).take(app.height).enumerate() {
        put(line, page.x, page.y + row as u16, page.width, buffer);
    }
    let below = lines.len() - (app.scroll + app.height).min(lines.len());
    footing(app, area, below, buffer);
    let cursor = match &app.page {
        Page::Login(form) => Some(cursor(form, page)),
        _ => None,
    };
    look.fold(buffer);
    if let Some(at) = cursor {
        frame.set_cursor_position(at);
    }
}

/// The page's text, in lines of at most `width` characters.
fn page_lines(app: &App, width: usize) -> Vec<Line> {
    let Some(facts) = &app.facts else { return vec![vec![Word::toned(Tone::Dim, "looking around…")]] };
    match &app.page {
        Page::Front => front(facts, width),
        Page::Login(form) => login(form, width),
        Page::Menu(at) => menu(app, *at, width),
        Page::Show(Topic::Status) => match &facts.status {
            Ok(status) => status::view(status, width),
            Err(_) => front(facts, width),
        },
        Page::Show(Topic::Network) => network(facts, width),
        Page::Show(Topic::Decisions) => match &facts.status {
            Ok(status) if status.decisions.is_empty() => text(Tone::Dim, "This node has decided nothing yet.", width),
            Ok(status) => status::decisions(status, width, usize::MAX),
            Err(_) => front(facts, width),
        },
        Page::Logs(Logs { lines: None, .. }) => text(Tone::Dim, "reading the journal…", width),
        Page::Logs(Logs { lines: Some(lines), .. }) => {
            lines.iter().flat_map(|line| broken(line, width)).map(|line| vec![Word::new(line)]).collect()
        }
        Page::Choose { vip, choices, at } => {
            let title = match vip {
                None => "Which VIP shall move?".to_owned(),
                Some(vip) => format!("To which node shall VIP {vip} move?"),
            };
            let mut lines = vec![vec![Word::toned(Tone::Bold, title)], Line::new()];
            lines.extend(choices.iter().enumerate().map(|(place, name)| marked(place == *at, "", name)));
            lines
        }
        Page::Confirm(plan) => {
            let mut lines = plan::lines(plan, width);
            lines.push(Line::new());
            lines.push(vec![
                Word::new("Press "),
                Word::toned(Tone::Bold, "y"),
                Word::new(format!(" to {}, any other key to go back.", plan.title)),
            ]);
            lines
        }
        Page::Busy(what) => text(Tone::Plain, &format!("About to {what}…"), width),
        Page::Said { good, text: said } => {
            let mut lines = text(if *good { Tone::Good } else { Tone::Bad }, said, width);
            lines.extend([Line::new(), vec![Word::toned(Tone::Dim, "Press any key.")]]);
            lines
        }
    }
}

/// The page for everybody.
fn front(facts: &Facts, width: usize) -> Vec<Line> {
    // Of what the first boot noted, its report says more.
    let others = |name: &str| !name.starts_with(NOTICE_PREFIX);
    let mut lines = match (&facts.status, &facts.first_boot) {
        (Ok(status), _) => status::summary(status, width),
        (Err(_), Some(report)) if report.outcome == Outcome::Wrong => {
            [wrong_answers(report, width), alarms(facts, others, width)].concat()
        }
        (Err(_), Some(report)) if report.outcome == Outcome::Nothing => {
            // Those before its last tell what was found and can't be read; that one says what this page says.
            let last = format!("{NOTICE_PREFIX}{:02}", report.notices.len().saturating_sub(1));
            [no_answers(width), alarms(facts, |name| name != last, width)].concat()
        }
        (Err(why), _) => supervisor_down(why, facts, width),
    };
    lines.push(Line::new());
    lines.extend(machine(facts, width));
    lines
}

/// What was wrong with the answers, and what to do about it.
fn wrong_answers(report: &Report, width: usize) -> Vec<Line> {
    let from = report.source.as_ref().map(|source| format!(" (from {source})")).unwrap_or_default();
    let mut lines = text(Tone::Bad, &format!("The first-boot answers{from} are wrong:"), width);
    report.faults.iter().for_each(|fault| lines.extend(finding(fault, Tone::Bad, width)));
    lines.push(Line::new());
    let next = "Mend them where they come from, then reboot: they are read again at the next boot. Until then this node does not \
                take part in the set.";
    lines.extend(text(Tone::Plain, next, width));
    lines
}

fn no_answers(width: usize) -> Vec<Line> {
    let mut lines =
        text(Tone::Bad, "This machine has found no first-boot answers, so it does not know what to be.", width);
    let ways = [
        "ESX: set guestinfo.metadata and guestinfo.userdata, or the OVF properties",
        "KVM, Hyper-V, any: attach a disk labelled cidata with meta-data and user-data",
    ];
    lines.extend([Line::new(), vec![Word::new("Give it some, then reboot:")]]);
    ways.iter().for_each(|way| lines.extend(indented(Tone::Plain, way, 2, width)));
    lines
}

fn finding(finding: &Finding, tone: Tone, width: usize) -> Vec<Line> {
    let Finding { document, line, key, wrong, mend } = finding;
    let place = if *line > 0 { format!("{document}, line {line}") } else { document.clone() };
    let what = if key.is_empty() { wrong.clone() } else { format!("{key}: {wrong}") };
    let mut lines = vec![vec![Word::new("  "), Word::toned(Tone::Bold, place)]];
    lines.extend(indented(tone, &what, 4, width));
    if !mend.is_empty() {
        lines.extend(indented(Tone::Plain, &format!("To mend it: {mend}"), 4, width));
    }
    lines
}

fn supervisor_down(why: &str, facts: &Facts, width: usize) -> Vec<Line> {
    let mut lines = text(Tone::Bad, &format!("This node does not take part in the set. {why}"), width);
    lines.extend(alarms(facts, |_| true, width));
    if !facts.last_words.is_empty() {
        lines.extend([Line::new(), vec![Word::toned(Tone::Dim, "  ITS LAST WORDS")]]);
        let words = facts.last_words.iter().flat_map(|line| broken(line, width - 2));
        lines.extend(words.map(|line| vec![Word::new("  "), Word::new(line)]));
    }
    let next = "It is started again by itself; the other nodes carry on without it. If this stays, log in and read the logs, \
                or reset the machine.";
    lines.push(Line::new());
    lines.extend(text(Tone::Dim, next, width));
    lines
}

/// Notices whose names are wanted.
fn alarms(facts: &Facts, wanted: impl Fn(&str) -> bool, width: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    for notice in facts.notices.iter().filter(|notice| wanted(&notice.name)) {
        for (place, part) in wrap(&notice.text, width - 4).into_iter().enumerate() {
            lines.push(vec![Word::new(if place == 0 { "  ! " } else { "    " }), Word::toned(Tone::Bad, part)]);
        }
    }
    lines
}

fn machine(facts: &Facts, width: usize) -> Vec<Line> {
    let mut lines = vec![vec![Word::toned(Tone::Dim, "  THIS MACHINE")]];
    let slot = facts.boot.slot.map_or(String::new(), |slot| format!("slot {slot}, "));
    let mut line =
        vec![Word::toned(Tone::Dim, label("Boot")), Word::new(format!("{slot}version {}", version::words()))];
    if let Some(tries) = facts.boot.tries_left {
        let plural = if tries == 1 { "try" } else { "tries" };
        line.push(Word::toned(Tone::Warn, format!(", not proved yet: {tries} {plural} left")));
    }
    lines.push(line);
    for interface in &facts.interfaces {
        let addresses = match interface.addresses.is_empty() {
            true => "no address".to_owned(),
            false => {
                let named = interface.addresses.iter().map(|address| match vip_at(address, facts) {
                    Some(vip) => format!("{address} (VIP {vip})"),
                    None => address.clone(),
                });
                named.collect::<Vec<_>>().join(", ")
            }
        };
        for (place, part) in wrap(&addresses, width - LABEL).into_iter().enumerate() {
            let name = if place == 0 { interface.name.as_str() } else { "" };
            let tone = if interface.addresses.is_empty() { Tone::Warn } else { Tone::Plain };
            let mut line = vec![Word::toned(Tone::Dim, label(name)), Word::toned(tone, part)];
            if place == 0 && !interface.up {
                line.insert(1, Word::toned(Tone::Bad, "no link  "));
            }
            lines.push(line);
        }
    }
    lines
}

/// Name of the VIP that has this address.
fn vip_at<'f>(address: &str, facts: &'f Facts) -> Option<&'f str> {
    let vips = facts.status.as_ref().map(|status| status.vips.as_slice()).unwrap_or_default();
    // The owner has it with a prefix of its own.
    let bare = |address: &str| address.split('/').next().map(str::to_owned);
    vips.iter().find(|vip| bare(&vip.address) == bare(address)).map(|vip| vip.name.as_str())
}

fn network(facts: &Facts, width: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    for interface in &facts.interfaces {
        let state = if interface.up { Word::toned(Tone::Good, "link") } else { Word::toned(Tone::Bad, "no link") };
        lines.push(vec![
            Word::toned(Tone::Bold, format!("{:<LABEL$}", interface.name)),
            state,
            Word::toned(Tone::Dim, format!("  {}", interface.mac)),
        ]);
        for address in &interface.addresses {
            lines.push(vec![Word::new(" ".repeat(LABEL)), Word::new(address.clone())]);
        }
    }
    let routes = facts.routes.iter().map(|line| ("Routes", line));
    let servers = facts.resolvers.iter().map(|line| ("DNS", line));
    for (name, line) in routes.chain(servers) {
        lines.push(vec![Word::toned(Tone::Dim, format!("{name:<LABEL$}")), Word::new(line.clone())]);
    }
    if let Some(report) = &facts.first_boot {
        let source = report.source.as_deref().unwrap_or("nowhere");
        let what = match report.outcome {
            Outcome::Taken => format!("from {source}, taken at this boot"),
            Outcome::Kept => format!("from {source}, taken at an earlier boot"),
            Outcome::Wrong => format!("from {source}: wrong, not taken"),
            Outcome::Nothing => "none found".to_owned(),
        };
        lines.push(vec![Word::toned(Tone::Dim, format!("{:<LABEL$}", "Answers")), Word::new(what)]);
        report.faults.iter().for_each(|fault| lines.extend(finding(fault, Tone::Bad, width)));
        report.warnings.iter().for_each(|warning| lines.extend(finding(warning, Tone::Warn, width)));
    }
    lines.push(Line::new());
    let how = "These settings come from the first-boot answers. To change them, change the answers where they come from (cidata \
               disk, guestinfo or OVF properties), choose in the menu to take them anew, and reboot.";
    lines.extend(text(Tone::Dim, how, width));
    lines
}

fn login(form: &Form, width: usize) -> Vec<Line> {
    let mark = |here: bool| if here { Tone::Bold } else { Tone::Dim };
    let stars = "*".repeat(form.password.chars().count().min(width.saturating_sub(LABEL + 1)));
    let mut lines = vec![
        vec![Word::toned(Tone::Bold, "Log in")],
        Line::new(),
        vec![Word::toned(mark(!form.at_password), format!("{:<LABEL$}", "Name")), Word::new(form.name.clone())],
        vec![Word::toned(mark(form.at_password), format!("{:<LABEL$}", "Password")), Word::new(stars)],
        Line::new(),
    ];
    match (&form.said, form.checking) {
        (_, true) => lines.extend(text(Tone::Dim, "checking…", width)),
        (Some(said), false) => lines.extend(text(Tone::Bad, said, width)),
        (None, false) => {}
    }
    lines
}

fn cursor(form: &Form, page: Rect) -> Position {
    let field = if form.at_password { &*form.password } else { &form.name };
    let column = (LABEL + field.chars().count()).min(usize::from(page.width) - 1);
    Position::new(page.x + column as u16, page.y + if form.at_password { 3 } else { 2 })
}

fn menu(app: &App, at: usize, width: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    for (place, (key, item)) in Item::ALL.into_iter().enumerate() {
        lines.push(marked(place == at, &format!("{key}  "), &item_label(item, app)));
    }
    lines.push(Line::new());
    if let Some(facts) = &app.facts {
        let verdict = match &facts.status {
            Ok(status) => status::verdict(status, width),
            Err(why) => text(Tone::Bad, why, width),
        };
        lines.extend(verdict);
    }
    lines
}

fn item_label(item: Item, app: &App) -> String {
    let node = app.status().map_or("this node".to_owned(), |status| format!("node {}", status.node));
    match item {
        Item::Status => "Status of the set".to_owned(),
        Item::Network => "Network settings".to_owned(),
        Item::Decisions => "Recent decisions".to_owned(),
        Item::Logs => "Logs".to_owned(),
        Item::Drain if app.status().is_some_and(is_drained) => format!("Put {node} back into service"),
        Item::Drain => format!("Drain {node}: take it out of service"),
        Item::MoveVip => "Move a VIP".to_owned(),
        Item::Reboot => format!("Reboot {node}"),
        Item::Poweroff => format!("Shut {node} down"),
        Item::Bundle => "Write a support bundle".to_owned(),
        Item::Reset => "Take the first-boot answers anew".to_owned(),
        Item::Logout => "Log out".to_owned(),
    }
}

fn marked(here: bool, key: &str, label: &str) -> Line {
    let tone = if here { Tone::Bold } else { Tone::Plain };
    vec![Word::toned(tone, if here { "▸ " } else { "  " }), Word::toned(Tone::Dim, key), Word::toned(tone, label)]
}

fn heading(app: &App, area: Rect, buffer: &mut Buffer) {
    let name = match (app.status(), &app.facts) {
        (Some(status), _) => format!("set {}, node {}", status.set, status.node),
        (None, Some(facts)) => facts.host.clone(),
        (None, None) => String::new(),
    };
    let line = vec![Word::toned(Tone::Bold, "Trilith"), Word::new("  "), Word::new(name)];
    put(&line, 1, 0, area.width - 2, buffer);
    if let Some(facts) = &app.facts {
        right(&Word::toned(Tone::Dim, format!(" {}", Utc::of(facts.now))), 0, area, buffer);
    }
    rule(1, area, buffer);
}

fn footing(app: &App, area: Rect, below: usize, buffer: &mut Buffer) {
    rule(area.height - 2, area, buffer);
    let keys = match &app.page {
        Page::Front => match app.locked() {
            Some(why) => why,
            None => "Enter: log in".to_owned(),
        },
        Page::Login(_) => "Enter: go on   Tab: other field   Esc: back".to_owned(),
        Page::Menu(_) => "↑ ↓ Enter, or its key".to_owned(),
        Page::Show(_) => "↑ ↓ PgUp PgDn: read   Esc: back".to_owned(),
        Page::Logs(logs) => {
            let other = if logs.urgent { "all" } else { "warnings only" };
            format!("↑ ↓ PgUp PgDn: read   w: {other}   r: read anew   Esc: back")
        }
        Page::Choose { .. } => "↑ ↓ Enter: choose   Esc: back".to_owned(),
        Page::Confirm(_) | Page::Busy(_) | Page::Said { .. } => String::new(),
    };
    put(&[Word::new(keys)], 1, area.height - 1, area.width - 2, buffer);
    let scrolls = matches!(app.page, Page::Front | Page::Show(_) | Page::Logs(_));
    let who = match (&app.user, &app.session) {
        _ if below > 0 && scrolls => Word::toned(Tone::Bold, " ↓ more".to_owned()),
        (Some(user), _) => Word::toned(Tone::Dim, format!(" {user}")),
        (None, Session::Locked { line: Some(line) }) => Word::toned(Tone::Dim, format!(" {line}")),
        (None, _) => Word::new(""),
    };
    right(&who, area.height - 1, area, buffer);
}

fn rule(row: u16, area: Rect, buffer: &mut Buffer) {
    put(&[Word::toned(Tone::Dim, "─".repeat(usize::from(area.width)))], 0, row, area.width, buffer);
}

fn right(word: &Word, row: u16, area: Rect, buffer: &mut Buffer) {
    let width = word.text.chars().count().min(usize::from(area.width) - 2) as u16;
    put(std::slice::from_ref(word), area.width - 1 - width, row, width, buffer);
}

fn put(line: &[Word], x: u16, y: u16, width: u16, buffer: &mut Buffer) {
    let (mut at, end) = (x, x + width);
    for word in line {
        (at, _) = buffer.set_stringn(at, y, &word.text, usize::from(end - at), style(word.tone));
    }
}

fn style(tone: Tone) -> Style {
    match tone {
        Tone::Plain => Style::new(),
        Tone::Good => Style::new().fg(Color::Green),
        Tone::Warn => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        Tone::Bold => Style::new().add_modifier(Modifier::BOLD),
        Tone::Dim => Style::new().add_modifier(Modifier::DIM),
    }
}

fn text(tone: Tone, text: &str, width: usize) -> Vec<Line> {
    indented(tone, text, 0, width)
}

fn indented(tone: Tone, text: &str, indent: usize, width: usize) -> Vec<Line> {
    let parts = wrap(text, width.saturating_sub(indent).max(1));
    parts.into_iter().map(|part| vec![Word::new(" ".repeat(indent)), Word::toned(tone, part)]).collect()
}

/// A line of a log as it is, continued below where it is too long, between words if there are any.
fn broken(line: &str, width: usize) -> Vec<String> {
    let mut rest: Vec<char> = line.chars().map(|c| if c == '\t' { ' ' } else { c }).collect();
    let mut lines = Vec::new();
    while rest.len() > width {
        let space = rest[..width].iter().rposition(|c| *c == ' ').filter(|at| *at > width / 2);
        let after = rest.split_off(space.map_or(width, |at| at + 1));
        lines.push(rest.iter().collect());
        rest = "  ".chars().chain(after).collect();
    }
    lines.push(rest.iter().collect());
    lines
}

fn label(name: &str) -> String {
    format!("  {name:<width$}", width = LABEL - 2)
}

/// Columns of the names before values.
const LABEL: usize = 11;
/// Nothing sensible fits into less.
const NARROWEST: u16 = 40;
const LOWEST: u16 = 10;

#[cfg(test)]
mod tests;
