//! The wire: a bridge in a namespace of its own, a TAP device for each machine, clients and DHCP in another namespace.
//!
//! ```text
//!                   trio-client  10.78.0.1 gateway, clients and DHCP server
//!                        |
//!                   trio-switch  a bridge
//!                    |   |   |
//!                    a   b   c   10.78.0.11–13   VIP 10.78.0.10, fd78::10
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use trilith_lab::netns::Netns;
use trilith_lab::switch::{BRIDGE_NAME, Switch};

use crate::plan::{GATEWAY, GATEWAY6, NODES, address, mac};
use crate::process::Group;
use crate::tools;

/// The wire and the clients on it.
#[derive(Debug, Clone)]
pub struct Network {
    /// The bridge; its ports have the nodes' names, and its faults work as in the laboratory.
    pub switch: Switch,
    /// Where the clients are.
    pub client: Netns,
}

impl Network {
    /// The one that there is or will be: its names are fixed.
    pub fn named() -> Network {
        Network { switch: Switch::in_namespace(switch()), client: Netns::named(CLIENT) }
    }

    /// Its two namespaces.
    pub fn namespaces(&self) -> [Netns; 2] {
        [switch(), self.client.clone()]
    }

    /// Makes it, with a port for each node and the DHCP server. `home` is for the server's log and process number.
    ///
    /// # Errors
    /// When a step fails.
    pub fn create(&self, home: &Path) -> Result<()> {
        self.switch.create()?;
        self.client.create()?;
        self.switch.plug("client", CLIENT_MAC, &self.client)?;
        self.client.ip(&format!("address add {GATEWAY}/24 dev eth0\naddress add {GATEWAY6}/64 dev eth0 nodad\n"))?;
        let ports = NODES.map(|port| {
            format!(
                "tuntap add dev {port} mode tap\nlink set dev {port} master {BRIDGE_NAME}\nlink set dev {port} up\n"
            )
        });
        switch().ip(&ports.concat())?;
        self.serve_dhcp(home)
    }

    /// Ends the DHCP server and removes both namespaces with all that is in them. No error when there is nothing.
    pub fn remove(&self, home: &Path) -> Result<()> {
        let server = Group::read(&home.join("dhcp")).map_or(Ok(()), |group| group.kill());
        let (switch, client) = (switch().delete(), self.client.delete());
        server.and(switch).and(client)
    }

    /// Does something in the clients' namespace, in a thread of its own.
    pub fn as_client<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.client.enter()?;
                act()
            });
            thread.join().unwrap_or_else(|_| bail!("a client's thread ended early"))
        })
    }

    /// Asks a service as a client does, with a new connection, and returns the body of the answer.
    ///
    /// # Errors
    /// When nobody answers within [`HTTP_PATIENCE`], or the answer is not `200`.
    pub fn get(&self, server: IpAddr, path: &str) -> Result<String> {
        self.get_port(server, 80, path)
    }

    /// [`Network::get`] at another port than 80.
    pub fn get_port(&self, server: IpAddr, port: u16, path: &str) -> Result<String> {
        self.as_client(|| get(SocketAddr::new(server, port), path))
    }

    /// One server, a fixed lease for each node: who asks gets the address that the set's document says.
    fn serve_dhcp(&self, home: &Path) -> Result<()> {
        let mut command = tools::command(home, Some(&self.client), "dnsmasq")?;
        command.args(DHCP).arg(format!("--dhcp-option=option:router,{GATEWAY}"));
        for index in 0..NODES.len() as u8 {
            command.arg(format!("--dhcp-host={},{},{LEASE}", mac(index), address(index)));
        }
        Group::start(command, &home.join("dhcp.log"), &home.join("dhcp")).map(drop)
    }
}

/// The switch's namespace, where the machines' TAP devices are.
pub fn switch() -> Netns {
    Netns::named(SWITCH)
}

fn get(server: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, CONNECT_PATIENCE)?;
    stream.set_read_timeout(Some(HTTP_PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: trio\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of its head")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("{}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

/// Both differ from the laboratory's, so that one of each can be up.
const SWITCH: &str = "trio-switch";
const CLIENT: &str = "trio-client";
const CLIENT_MAC: &str = "02:00:0a:4e:00:01";
const LEASE: &str = "5m";
/// No DNS, no file to read or write, addresses for those only whom it knows.
const DHCP: [&str; 9] = [
    "--keep-in-foreground",
    "--log-facility=-",
    "--conf-file=/dev/null",
    "--port=0",
    "--interface=eth0",
    "--leasefile-ro",
    "--pid-file=",
    "--user=root",
    "--dhcp-range=10.78.0.0,static,255.255.255.0",
];
/// A kernel answers a SYN at once, also a translated one. What waits longer may wait for a SYN to be sent again (after 1 s).
const CONNECT_PATIENCE: Duration = Duration::from_millis(250);
/// A translated guest takes its time.
pub const HTTP_PATIENCE: Duration = Duration::from_secs(2);
const MAX_ANSWER: u64 = 64 * 1024;
