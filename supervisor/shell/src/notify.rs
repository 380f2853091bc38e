//! What systemd is told of this process, and what it asks for. (sd_notify(3), sd_watchdog_enabled(3).)

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager; outside of it every message is dropped.
#[derive(Debug)]
pub struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` of the environment.
    ///
    /// # Errors
    /// `NOTIFY_SOCKET` is set, but names neither a path nor an abstract socket, or there is no socket to be had.
    pub fn from_env() -> io::Result<Notify> {
        let socket = match std::env::var_os("NOTIFY_SOCKET") {
            None => None,
            Some(name) => Some(open(name.as_bytes())?),
        };
        let variable = |name| std::env::var(name).ok();
        Ok(Notify {
            socket,
            watchdog: watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), std::process::id()),
        })
    }

    /// How often [`Notify::alive`] is due: half of what systemd grants, `None` when it does not watch.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The start is complete.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The process still works.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// The process is about to end.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// Never waits: a manager whose queue is full hears the next one. That it heard nothing is for its watchdog to judge.
    fn send(&self, message: &str) {
        if let Some((socket, manager)) = &self.socket
            && let Err(error) = socket.send_to_addr(message.as_bytes(), manager)
        {
            tracing::warn!("cannot notify systemd of {message:?}: {error}");
        }
    }
}

fn open(name: &[u8]) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("NOTIFY_SOCKET={} is neither a path nor an abstract socket", name.escape_ascii()),
            ));
        }
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

/// Half of `WATCHDOG_USEC`, if it is meant for this process.
fn watchdog(usec: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid != own.to_string()) {
        return None;
    }
    let usec: u64 = usec?.parse().ok().filter(|&usec| usec > 0)?;
    Some(Duration::from_micros(usec) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard_through(name: &[u8], listener: &UnixDatagram) -> Vec<String> {
        let notify = Notify { socket: Some(open(name).unwrap()), watchdog: None };
        notify.ready();
        notify.alive();
        notify.stopping();
        let mut buffer = [0; 64];
        (0..3)
            .map(|_| {
                let length = listener.recv(&mut buffer).unwrap();
                String::from_utf8(buffer[..length].to_vec()).unwrap()
            })
            .collect()
    }

    const ALL: [&str; 3] = ["READY=1", "WATCHDOG=1", "STOPPING=1"];

    #[test]
    fn an_abstract_socket_hears_every_message() {
        let name = format!("trilith-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixDatagram::bind_addr(&address).unwrap();
        assert_eq!(heard_through(format!("@{name}").as_bytes(), &listener), ALL);
    }

    #[test]
    fn a_socket_at_a_path_hears_every_message() {
        let path = std::env::temp_dir().join(format!("trilith-notify-{}", std::process::id()));
        let listener = UnixDatagram::bind(&path).unwrap();
        let heard = heard_through(path.as_os_str().as_bytes(), &listener);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(heard, ALL);
    }

    #[test]
    fn a_manager_that_is_gone_harms_nobody() {
        let notify = Notify { socket: Some(open(b"/nonexistent/notify").unwrap()), watchdog: None };
        notify.ready();
        Notify { socket: None, watchdog: None }.ready();
        assert!(open(b"vsock:2:1").is_err());
    }

    #[test]
    fn the_watchdog_is_fed_at_half_its_time_and_only_by_the_process_it_watches() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(watchdog(text("10000000"), text("7"), 7), Some(Duration::from_secs(5)));
        assert_eq!(watchdog(text("10000000"), None, 7), Some(Duration::from_secs(5)));
        assert_eq!(watchdog(text("10000000"), text("8"), 7), None);
        assert_eq!(watchdog(text("0"), None, 7), None);
        assert_eq!(watchdog(text("soon"), None, 7), None);
        assert_eq!(watchdog(None, None, 7), None);
    }
}
