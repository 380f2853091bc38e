//! The wire: a bridge in a namespace of its own, one port per node and one for the clients.
//!
//! Faults are elements of nftables sets on the bridge, so a cut is one netlink transaction and takes effect between two
//! frames; neither end sees its carrier change, like a host whose uplink died. [`Switch::link`] is the fault that both
//! ends do see.

use std::net::IpAddr;

use anyhow::{Result, bail};

use crate::netns::Netns;

/// Which way frames are lost, as the node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What others send does not reach it.
    In,
    /// What it sends reaches nobody.
    Out,
    /// Both.
    Both,
}

/// The bridge and its faults. Ports are named after what is plugged in: `a`, `b`, `c`, `client`.
#[derive(Debug, Clone)]
pub struct Switch {
    netns: Netns,
}

impl Switch {
    /// The switch that lives in that namespace.
    pub fn in_namespace(netns: Netns) -> Self {
        Switch { netns }
    }

    /// Makes namespace, bridge and the (empty) sets of faults.
    pub fn create(&self) -> Result<()> {
        self.netns.create()?;
        self.netns.ip(BRIDGE)?;
        self.netns.run_with_input("nft", &["--file", "-"], FAULTS).map(drop)
    }

    /// Plugs `eth0` of another namespace into a new port; `mac` is the address of that `eth0`.
    pub fn plug(&self, port: &str, mac: &str, into: &Netns) -> Result<()> {
        self.netns.ip(&format!(
            "link add name {port} type veth peer name eth0 address {mac} netns {}\n\
             link set dev {port} master {BRIDGE_NAME} up\n",
            into.name()
        ))?;
        into.ip("link set dev eth0 up\n")
    }

    /// Takes the port away, with the `eth0` at its other end. No error when there is none.
    pub fn unplug(&self, port: &str) -> Result<()> {
        match self.netns.ip(&format!("link del dev {port}\n")) {
            Err(error) if !error.to_string().contains("Cannot find device") => Err(error),
            _ => Ok(()),
        }
    }

    /// Loses every frame from or to the port.
    pub fn cut(&self, port: &str, direction: Direction) -> Result<()> {
        self.nft(&lines(direction, |set| format!("add element bridge faults {set} {{ {port} }}\n")))
    }

    /// Loses every frame between two ports, in both directions; both still reach all others.
    pub fn cut_between(&self, one: &str, other: &str) -> Result<()> {
        self.nft(&format!("add element bridge faults pairs {{ {one} . {other}, {other} . {one} }}\n"))
    }

    /// Splits the ports into two groups that do not hear each other.
    pub fn partition(&self, one: &[&str], other: &[&str]) -> Result<()> {
        let pairs: Vec<String> =
            one.iter().flat_map(|a| other.iter().map(move |b| format!("{a} . {b}, {b} . {a}"))).collect();
        self.nft(&format!("add element bridge faults pairs {{ {} }}\n", pairs.join(", ")))
    }

    /// Hands what a port receives to these processors, a mask (`Documentation/networking/scaling.rst`, RPS); 0: to none, so that the
    /// sender's system call carries it all the way into the receiver's socket.
    ///
    /// # Errors
    /// No such port, or a kernel without receive packet steering.
    pub fn receive_on(&self, port: &str, processors: u64) -> Result<()> {
        // /sys shows the network namespace in which it was mounted.
        let file = format!("/sys/class/net/{port}/queues/rx-0/rps_cpus");
        let script = format!("mount -t sysfs sysfs /sys && echo {processors:x} > {file}");
        self.netns.run("unshare", &["--mount", "sh", "-ec", &script]).map(drop)
    }

    /// Loses that share of all frames that enter the switch, 0–100 percent, at random.
    pub fn lose(&self, percent: u8) -> Result<()> {
        if percent > 100 {
            bail!("{percent} % of all frames cannot be lost: 0 to 100");
        }
        let rule = if percent == 0 {
            String::new()
        } else {
            format!("add rule bridge faults loss numgen random mod 100 < {percent} drop\n")
        };
        self.nft(&format!("flush chain bridge faults loss\n{rule}"))
    }

    /// Loses what the port sends from other addresses than these, as SpoofGuard, IP source guard and `clean-traffic` do.
    pub fn guard(&self, port: &str, own: &[IpAddr]) -> Result<()> {
        let own = own.iter().map(|address| {
            let set = if address.is_ipv4() { "own" } else { "own6" };
            format!("add element bridge faults {set} {{ {port} . {address} }}\n")
        });
        let own: String = own.collect();
        self.nft(&format!("{own}add element bridge faults guarded {{ {port} }}\n"))
    }

    /// Sets the link of a port; the node's `eth0` loses or gets its carrier.
    pub fn link(&self, port: &str, up: bool) -> Result<()> {
        self.netns.ip(&format!("link set dev {port} {}\n", if up { "up" } else { "down" }))
    }

    /// Ends all cuts and losses and sets all links up.
    pub fn heal(&self) -> Result<()> {
        self.nft(
            "flush set bridge faults from\nflush set bridge faults to\nflush set bridge faults pairs\n\
             flush set bridge faults guarded\nflush set bridge faults own\nflush set bridge faults own6\n\
             flush chain bridge faults loss\n",
        )?;
        for port in self.ports()? {
            self.link(&port, true)?;
        }
        Ok(())
    }

    /// Ends the cut of one port in that direction, leaving other faults.
    pub fn heal_port(&self, port: &str, direction: Direction) -> Result<()> {
        // Adding first makes the deletion succeed also where there was no cut.
        self.cut(port, direction)?;
        self.nft(&lines(direction, |set| format!("delete element bridge faults {set} {{ {port} }}\n")))
    }

    /// The faults in force, in nftables' words; empty when the wire is whole.
    pub fn faults(&self) -> Result<Vec<String>> {
        let listing = self.netns.run("nft", &["list", "table", "bridge", "faults"])?;
        let mut set = "";
        let mut faults = Vec::new();
        for line in listing.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("set ") {
                set = name.trim_end_matches(" {");
            } else if let Some(elements) = line.strip_prefix("elements = ") {
                faults.push(format!("{set} {elements}"));
            } else if line.starts_with("numgen") {
                faults.push(line.to_owned());
            }
        }
        Ok(faults)
    }

    /// The ports that something is plugged into.
    pub fn ports(&self) -> Result<Vec<String>> {
        let links = self.netns.run("ip", &["-brief", "link", "show", "type", "veth"])?;
        let names = links.lines().filter_map(|line| line.split(['@', ' ']).next());
        Ok(names.map(str::to_owned).collect())
    }

    fn nft(&self, commands: &str) -> Result<()> {
        self.netns.run_with_input("nft", &["--file", "-"], commands).map(drop)
    }
}

fn lines(direction: Direction, line: impl Fn(&str) -> String) -> String {
    match direction {
        Direction::In => line("to"),
        Direction::Out => line("from"),
        Direction::Both => line("to") + &line("from"),
    }
}

/// The name of the bridge within its namespace.
pub const BRIDGE_NAME: &str = "lan";

/// No spanning tree and no snooping: the bridge forwards from the first frame on, as a vSwitch does.
const BRIDGE: &str =
    "link add name lan type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set dev lan up\n";

const FAULTS: &str = "
table bridge faults {
    set from { type ifname; }
    set to { type ifname; }
    set pairs { type ifname . ifname; }
    set guarded { type ifname; }
    set own { type ifname . ipv4_addr; }
    set own6 { type ifname . ipv6_addr; }
    chain loss { }
    chain guard {
        iifname . ip saddr @own return
        iifname . ip6 saddr @own6 return
        ip6 saddr fe80::/10 return
        meta protocol { ip, ip6 } drop
    }
    chain forward {
        type filter hook forward priority 0
        iifname @from drop
        oifname @to drop
        iifname . oifname @pairs drop
        iifname @guarded jump guard
        jump loss
    }
}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_listed_until_it_is_healed() -> Result<()> {
        let switch = Switch::in_namespace(Netns::named(format!("tx-switch-{}", std::process::id())));
        let client = Netns::named(format!("tx-port-{}", std::process::id()));
        let result = (|| {
            switch.create()?;
            client.create()?;
            switch.plug("a", "02:00:00:00:00:01", &client)?;
            switch.cut("a", Direction::Both)?;
            switch.cut("a", Direction::Both)?;
            switch.cut_between("a", "b")?;
            switch.lose(10)?;
            switch.guard("a", &["10.77.0.11".parse()?, "fd77::11".parse()?])?;
            assert_eq!(switch.faults()?.len(), 7);
            switch.heal_port("a", Direction::In)?;
            switch.heal_port("a", Direction::In)?;
            assert_eq!(switch.faults()?.len(), 6);
            switch.heal()?;
            assert_eq!(switch.faults()?, Vec::<String>::new());
            assert_eq!(switch.ports()?, ["a"]);
            switch.unplug("a")?;
            switch.unplug("a")?;
            anyhow::Ok(())
        })();
        client.delete()?;
        switch.netns.delete()?;
        result
    }
}
