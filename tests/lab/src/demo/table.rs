//! What is left of the demo: one row for each act.

use std::time::Duration;

use trilith_shell::cli::paint::Paint;

use super::stage::Seen;

/// One act.
pub struct Row {
    /// What was done.
    pub title: String,
    /// It was a planned move, which nobody may notice.
    pub planned: bool,
    /// Who owned the VIP before.
    pub from: &'static str,
    /// Who answered for it at the end of the fault.
    pub to: Option<&'static str>,
    pub seen: Seen,
    /// What broke that must not, in words.
    pub breaks: Vec<String>,
    /// From the end of the fault until the set was at rest.
    pub agreed: Duration,
}

impl Row {
    /// Whether something broke that must not.
    pub fn broke_a_promise(&self) -> bool {
        let seen = &self.seen;
        let noticed = seen.refused + seen.failed + seen.requests_failed > 0;
        seen.broken > 0 || (self.planned && noticed)
    }

    /// The row in one line, for those who watch.
    pub fn line(&self) -> String {
        let seen = &self.seen;
        let broken = format!("broken {} of {}", seen.broken, seen.spared);
        format!("gap {}, refused {}, {broken}, stall {}", ms(seen.gap_ms), seen.refused, stall(seen.stall_ms))
    }
}

/// The table, with a legend.
pub fn lines(rows: &[Row], paint: Paint) -> Vec<String> {
    let mut lines = vec![
        String::new(),
        paint.dim(&format!("{:33} ─── new connections ───  ── lasting ones ──  lost", "")),
        paint.bold(&format!(
            "{:<31}  {:<5} {:>7} {:>7} {:>6}  {:>8} {:>8}  {:>7}",
            "what was done", "VIP", "gap", "refused", "failed", "broken", "stall", "with it"
        )),
    ];
    for row in rows {
        let seen = &row.seen;
        let to = row.to.unwrap_or("?");
        let mark = |bad: bool, text: String| if bad { paint.bad(&text) } else { text };
        let good = |bad: bool, text: String| if bad { paint.bad(&text) } else { paint.good(&text) };
        lines.push(format!(
            "{:<31}  {:<5} {:>7} {} {}  {} {:>8}  {:>7}",
            row.title,
            format!("{}→{to}", row.from),
            ms(seen.gap_ms),
            mark(row.planned && seen.refused > 0, format!("{:>7}", seen.refused)),
            mark(row.planned && seen.failed > 0, format!("{:>6}", seen.failed)),
            good(seen.broken > 0, format!("{:>8}", format!("{}/{}", seen.broken, seen.spared))),
            stall(seen.stall_ms),
            if seen.exposed == 0 { "–".to_owned() } else { format!("{}/{}", seen.lost, seen.exposed) },
        ));
        lines.extend(row.breaks.iter().map(|broken| paint.bad(&format!("  {broken}"))));
    }
    let legend = [
        "gap      longest time in which no new connection was answered, of 200 begun each second",
        "broken   lasting connections broken, of those carried by nodes to which nothing was done",
        "stall    longest wait for an echo on one of those that stood",
        "lost     broken, of those that the node itself carried: their state died, or was cut off, with it",
    ];
    lines.push(String::new());
    lines.extend(legend.iter().map(|line| paint.dim(line)));
    let (asked, failed) =
        rows.iter().fold((0, 0), |(asked, failed), row| (asked + row.seen.requests, failed + row.seen.requests_failed));
    let planned: u64 = rows.iter().filter(|row| row.planned).map(|row| row.seen.requests_failed).sum();
    lines.push(paint.dim(&format!(
        "besides  {asked} requests on kept connections: {failed} failed, {planned} of these during planned moves"
    )));
    let slowest = rows.iter().map(|row| row.agreed.as_millis()).max().unwrap_or(0);
    lines.push(paint.dim(&format!("         after each fault all was as before within {slowest} ms, boot included")));
    lines
}

fn ms(ms: f64) -> String {
    format!("{ms:.0} ms")
}

/// Waits below 10 ms are not told apart.
fn stall(ms: f64) -> String {
    if ms < 10.0 { "<10 ms".to_owned() } else { format!("{ms:.0} ms") }
}
