//! From answers to the files of `/etc`, as plain data.

use std::fmt::Write;

use crate::answers::{ADMIN, Answers, Ntp, User};
use crate::network;

/// A file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Absolute path.
    pub path: String,
    /// What it shall be.
    pub content: Content,
}

/// What a path shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file that all may read.
    File(String),
    /// A file that exists and keeps its owner and permissions.
    Edited(String),
    /// A symbolic link.
    Link(String),
}

/// What the image has already and is added to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Base {
    /// `/etc/passwd`
    pub passwd: String,
    /// `/etc/shadow`
    pub shadow: String,
    /// `/etc/group`
    pub group: String,
    /// `/etc/ssl/certs/ca-certificates.crt`
    pub certificates: String,
    /// Whether the image knows the time zone of the answers.
    pub has_timezone: bool,
}

/// Everything but the network.
///
/// Doing it twice gives the same as doing it once: accounts and certificates that are there already are replaced.
pub fn render(answers: &Answers, base: &Base) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut file =
        |path: &str, text: String| entries.push(Entry { path: path.to_owned(), content: Content::File(text) });
    if let Some(hostname) = &answers.hostname {
        file("/etc/hostname", format!("{hostname}\n"));
        file("/etc/hosts", hosts(hostname, answers.fqdn.as_deref()));
    }
    if let Some(ntp) = &answers.ntp {
        file("/etc/systemd/timesyncd.conf.d/50-trilith.conf", timesyncd(ntp));
    }
    if answers.ca_certs.remove_defaults || !answers.ca_certs.trusted.is_empty() {
        file("/etc/ssl/certs/ca-certificates.crt", certificates(answers, &base.certificates));
    }
    for user in answers.users.iter().filter(|user| !user.ssh_authorized_keys.is_empty()) {
        let mut keys: Vec<&str> = Vec::new();
        for key in &user.ssh_authorized_keys {
            if !keys.contains(&key.as_str()) {
                keys.push(key);
            }
        }
        file(&format!("/etc/ssh/authorized_keys.d/{}", user.name), keys.join("\n") + "\n");
    }
    if let Some(timezone) = answers.timezone.as_ref().filter(|_| base.has_timezone) {
        let target = Content::Link(format!("../usr/share/zoneinfo/{timezone}"));
        entries.push(Entry { path: "/etc/localtime".to_owned(), content: target });
    }
    let mut edited = |path: &str, text| entries.push(Entry { path: path.to_owned(), content: Content::Edited(text) });
    let accounts = Accounts::of(answers);
    edited("/etc/group", with_lines(&base.group, &groups(&base.group, &accounts.names)));
    edited("/etc/passwd", with_lines(&base.passwd, &accounts.passwd));
    edited("/etc/shadow", with_lines(&base.shadow, &accounts.shadow));
    entries
}

/// The files of systemd-networkd.
pub fn render_network(network: Option<&network::Network>) -> Vec<Entry> {
    let files = match network {
        Some(network) => network::render(network),
        None => vec![("90-trilith-dhcp.network".to_owned(), network::DHCP_EVERYWHERE.to_owned())],
    };
    let entry = |(name, text)| Entry { path: format!("{NETWORK_DIR}/{name}"), content: Content::File(text) };
    files.into_iter().map(entry).collect()
}

/// Where the network's files lie.
pub const NETWORK_DIR: &str = "/etc/systemd/network";
/// The certificates that an overlay brings, and ours.
pub const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

fn hosts(hostname: &str, fqdn: Option<&str>) -> String {
    let own = fqdn.map_or_else(|| hostname.to_owned(), |fqdn| format!("{fqdn} {hostname}"));
    format!("127.0.0.1 localhost\n127.0.1.1 {own}\n::1 localhost ip6-localhost ip6-loopback\n")
}

/// Without servers, those of the image stay; when it is not to set the clock, it gets none at all.
fn timesyncd(ntp: &Ntp) -> String {
    match (ntp.enabled, ntp.servers.join(" ")) {
        (false, _) => "[Time]\nNTP=\nFallbackNTP=\n".to_owned(),
        (true, servers) if servers.is_empty() => "[Time]\n".to_owned(),
        (true, servers) => format!("[Time]\nNTP={servers}\n"),
    }
}

fn certificates(answers: &Answers, base: &str) -> String {
    let mut bundle = if answers.ca_certs.remove_defaults { String::new() } else { base.to_owned() };
    for certificate in &answers.ca_certs.trusted {
        if !bundle.contains(certificate.trim_end()) {
            bundle.push_str(certificate);
        }
    }
    bundle
}

/// Lines of passwd(5) and shadow(5).
struct Accounts {
    names: Vec<String>,
    passwd: Vec<String>,
    shadow: Vec<String>,
}

impl Accounts {
    /// The account of the image comes first, whether or not the answers name it: its number never changes.
    fn of(answers: &Answers) -> Accounts {
        let admin = User { name: ADMIN.to_owned(), ..User::default() };
        let named = answers.users.iter().find(|user| user.name == ADMIN).unwrap_or(&admin);
        let others = answers.users.iter().filter(|user| user.name != ADMIN);
        let mut accounts = Accounts { names: Vec::new(), passwd: Vec::new(), shadow: Vec::new() };
        for (uid, user) in (FIRST_UID..).zip(std::iter::once(named).chain(others)) {
            let User { name, gecos, password, .. } = user;
            accounts.passwd.push(format!("{name}:x:{uid}:{GID}:{gecos}:/:{SHELL}"));
            // A password that nothing can be the hash of: SSH by key goes on.
            let hash = password.as_ref().map_or("*", |hash| hash.0.as_str());
            accounts.shadow.push(format!("{name}:{hash}:::::::"));
            accounts.names.push(name.clone());
        }
        accounts
    }
}

/// Lines of group(5): ours, and with our accounts in it the one whose members may read the journal, which the console shows.
fn groups(base: &str, accounts: &[String]) -> Vec<String> {
    let journal = base.lines().find(|line| line.split(':').next() == Some(JOURNAL_GROUP));
    let number = journal.and_then(|line| line.split(':').nth(2));
    let journal = number.map(|number| format!("{JOURNAL_GROUP}:x:{number}:{}", accounts.join(",")));
    std::iter::once(format!("{GROUP}:x:{GID}:")).chain(journal).collect()
}

/// The lines of a file of accounts, with ours in the place of those with the same name.
fn with_lines(base: &str, ours: &[String]) -> String {
    let name = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    let mut text = String::new();
    for line in base.lines().filter(|line| !ours.iter().any(|our| name(our) == name(line))) {
        writeln!(text, "{line}").expect("a String takes everything");
    }
    for line in ours {
        writeln!(text, "{line}").expect("a String takes everything");
    }
    text
}

/// The group of all accounts: it may ask the supervisor.
const GROUP: &str = "trilith-admin";
const GID: u32 = 900;
/// Its members may read the journal. (systemd-journald.service(8))
const JOURNAL_GROUP: &str = "systemd-journal";
/// Number of the account `admin`; the others follow.
const FIRST_UID: u32 = 900;
/// The console is the only shell there is.
const SHELL: &str = "/usr/bin/trilith-shell";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answers::Secret;

    fn text<'e>(entries: &'e [Entry], path: &str) -> &'e str {
        match &entries.iter().find(|entry| entry.path == path).unwrap().content {
            Content::File(text) | Content::Edited(text) | Content::Link(text) => text,
        }
    }

    #[test]
    fn accounts_are_added_to_the_images_own_and_twice_is_once() {
        let mut answers = Answers::default();
        answers.user("alice").ssh_authorized_keys = vec!["k".to_owned(), "k".to_owned()];
        answers.user("admin").password = Some(Secret("$6$salt$hash".to_owned()));
        let base = Base {
            passwd: "root:x:0:0::/root:/bin/false\nadmin:x:5:5:::\n".to_owned(),
            group: "root:x:0:\nsystemd-journal:x:999:\n".to_owned(),
            ..Base::default()
        };
        let entries = render(&answers, &base);
        assert_eq!(
            text(&entries, "/etc/group"),
            "root:x:0:\ntrilith-admin:x:900:\nsystemd-journal:x:999:admin,alice\n"
        );
        let passwd = text(&entries, "/etc/passwd");
        assert!(passwd.starts_with("root:x:0:0:"), "{passwd}");
        assert!(passwd.contains("admin:x:900:900::/:/usr/bin/trilith-shell\nalice:x:901:900:"), "{passwd}");
        assert!(text(&entries, "/etc/shadow").contains("admin:$6$salt$hash:::::::\nalice:*:"));
        assert_eq!(text(&entries, "/etc/ssh/authorized_keys.d/alice"), "k\n");
        let again = Base { passwd: passwd.to_owned(), ..Base::default() };
        assert_eq!(text(&render(&answers, &again), "/etc/passwd"), passwd);
    }

    #[test]
    fn a_certificate_is_added_once_and_may_stand_alone() {
        let mut answers = Answers::default();
        answers.ca_certs.trusted = vec!["OURS\n".to_owned()];
        let base = Base { certificates: "THEIRS\n".to_owned(), ..Base::default() };
        assert_eq!(text(&render(&answers, &base), CERTIFICATES), "THEIRS\nOURS\n");
        let base = Base { certificates: "THEIRS\nOURS\n".to_owned(), ..Base::default() };
        assert_eq!(text(&render(&answers, &base), CERTIFICATES), "THEIRS\nOURS\n");
        answers.ca_certs.remove_defaults = true;
        assert_eq!(text(&render(&answers, &base), CERTIFICATES), "OURS\n");
    }
}
