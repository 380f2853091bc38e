//! Who may log in at the console: users with a password in `/etc/shadow` (shadow(5)), and how often it may be tried.

use std::path::Path;
use std::time::{Duration, Instant};

use super::crypt;

/// A user who can log in with a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user's name.
    pub name: String,
    hash: String,
}

#[cfg(test)]
impl Account {
    /// Somebody with a password that nobody knows.
    pub fn sample(name: &str) -> Account {
        Account { name: name.to_owned(), hash: NOBODYS.to_owned() }
    }
}

/// Users with a password, in the order of the file; none of them locked, nor past the day on which the account ends.
///
/// # Errors
/// The file can't be read; in words.
pub fn accounts(shadow: &Path, today: u64) -> Result<Vec<Account>, String> {
    let text = std::fs::read_to_string(shadow).map_err(|error| format!("{}: {error}", shadow.display()))?;
    Ok(text.lines().filter_map(|line| account(line, today)).take(MOST).collect())
}

/// One line of the file. A hash begins with `$`; `!` and `*` lock, and an empty field, which would let anybody in, counts as lock.
fn account(line: &str, today: u64) -> Option<Account> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, hash, ..] = fields[..] else { return None };
    let ends = fields.get(7).and_then(|day| day.parse::<u64>().ok());
    let ended = ends.is_some_and(|day| day <= today);
    (!name.is_empty() && hash.starts_with('$') && !ended)
        .then(|| Account { name: name.to_owned(), hash: hash.to_owned() })
}

/// Whether this user has this password. Takes equally long when there is no such user.
pub fn verify(accounts: &[Account], name: &str, password: &str) -> bool {
    match accounts.iter().find(|account| account.name == name) {
        Some(account) => crypt::belongs(password, &account.hash),
        None => {
            let hash = accounts.first().map_or(NOBODYS, |account| &account.hash);
            crypt::belongs(password, hash);
            false
        }
    }
}

/// Lets passwords be tried ever more slowly while they are wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttle {
    failures: u32,
    until: Option<Instant>,
}

impl Throttle {
    /// A wrong password: the next may be tried after 1, 2, 4… seconds, a minute at most.
    pub fn failed(&mut self, now: Instant) {
        let wait = FIRST_WAIT * 2u32.saturating_pow(self.failures.min(16));
        self.failures += 1;
        self.until = Some(now + wait.min(LONGEST_WAIT));
    }

    /// The right one.
    pub fn succeeded(&mut self) {
        *self = Throttle::default();
    }

    /// How long to wait still, in whole seconds; 0 when a password may be tried.
    pub fn wait_s(&self, now: Instant) -> u64 {
        let left = self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        left.as_millis().div_ceil(1000) as u64
    }
}

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// More accounts than these are not looked at.
const MOST: usize = 256;
/// Belongs to no password that anybody knows; asks for as much work as a real one.
const NOBODYS: &str = "$y$j9T$nobodysnobodys$";

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str =
        "$6$k2XAnEHBqQ1Ct2aM$FvemyDnyNttCR6eAiHXpKiDuojJQLBKX4NL0tBRXSn2qunXvtPlcN6I6UvFK0eaY81bhnYwv6/aD8P7VrpwJg.";

    fn shadow() -> tempfile::Shadow {
        tempfile::Shadow::new(&format!(
            "root:*:20000:0:99999:7:::\nadmin:{HASH}:20000:0:99999:7:::\nlocked:!{HASH}:20000::::::\nopen::20000::::::\n\
             gone:{HASH}:20000:0:99999:7::20100:\nlater:{HASH}:20000:0:99999:7::20500:\nshort:{HASH}\nnonsense\n\n"
        ))
    }

    mod tempfile {
        pub struct Shadow(pub std::path::PathBuf);
        impl Shadow {
            pub fn new(text: &str) -> Shadow {
                let path = std::env::temp_dir().join(format!(
                    "trilith-shadow-{}-{:?}",
                    std::process::id(),
                    std::thread::current().id()
                ));
                std::fs::write(&path, text).unwrap();
                Shadow(path)
            }
        }
        impl Drop for Shadow {
            fn drop(&mut self) {
                let _ = std::fs::remove_file(&self.0);
            }
        }
    }

    #[test]
    fn only_users_with_a_password_that_is_neither_locked_nor_ended_may_log_in() {
        let file = shadow();
        let names: Vec<_> = accounts(&file.0, 20_200).unwrap().into_iter().map(|account| account.name).collect();
        assert_eq!(names, ["admin", "later", "short"]);
        assert!(accounts(Path::new("/nonexistent"), 0).unwrap_err().starts_with("/nonexistent: "));
    }

    #[test]
    fn the_password_counts_for_its_user_only() {
        let file = shadow();
        let accounts = accounts(&file.0, 20_200).unwrap();
        assert!(verify(&accounts, "admin", "ein Pferd"));
        for (name, password) in
            [("admin", ""), ("admin", "ein pferd"), ("root", "ein Pferd"), ("open", ""), ("", "ein Pferd")]
        {
            assert!(!verify(&accounts, name, password), "{name} {password}");
        }
        assert!(!verify(&[], "admin", "ein Pferd"));
    }

    #[test]
    fn wrong_passwords_make_the_next_wait_longer_up_to_a_minute() {
        let start = Instant::now();
        let mut throttle = Throttle::default();
        assert_eq!(throttle.wait_s(start), 0);
        let mut waits = Vec::new();
        for _ in 0..9 {
            throttle.failed(start);
            waits.push(throttle.wait_s(start));
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(throttle.wait_s(start + Duration::from_secs(60)), 0);
        throttle.succeeded();
        assert_eq!(throttle.wait_s(start), 0);
    }
}
