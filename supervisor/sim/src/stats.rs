//! Counters that show that the things a simulation is for really happen.

use std::ops::AddAssign;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What has happened in one run or in many.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl AddAssign for Stats {
            fn add_assign(&mut self, other: Stats) {
                $(self.$name += other.$name;)*
            }
        }

        impl Stats {
            /// All counters by name.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }
    };
}

pub(crate) use counters;

counters! {
    /// True time, in microseconds.
    simulated_us,
    /// Time from the heal until everything was as it should be, in microseconds.
    settled_us,
    /// Steps of cores.
    steps,
    /// Faults that struck.
    faults,
    /// Machines that lost power.
    crashes,
    /// Machines that were switched on.
    boots,
    /// Supervisors that were started.
    starts,
    /// Supervisors that died alone.
    supervisor_deaths,
    /// Machines that stood still.
    stuns,
    /// Supervisors that stood still.
    freezes,
    /// HAProxies that died.
    haproxy_deaths,
    /// HAProxies that hung.
    haproxy_hangs,
    /// Ownerships by majority.
    owners,
    /// Ownerships without one.
    lone,
    /// Ownerships ended by an operator or for the preferred node.
    moves,
    /// Ownerships that ran out or were superseded.
    failovers,
    /// Ownerships given up for other reasons.
    yields,
    /// Conflicts logged.
    conflicts,
    /// Gaps in a node's own loop.
    gaps,
    /// Heartbeats sent.
    heartbeats,
    /// Datagrams that were handled.
    datagrams,
    /// Datagrams that were lost or cut.
    lost_datagrams,
    /// Datagrams of the attacker that authentication let pass.
    replays,
    /// Datagrams that did not open.
    refused_datagrams,
    /// Probes.
    probes,
    /// Commands that failed.
    failures,
    /// Announcements.
    announcements,
    /// Claims by somebody foreign.
    poisonings,
    /// Operators' requests.
    requests,
    /// Of these, done.
    moves_done,
    /// Of these, refused.
    refused_requests,
    /// Connections opened.
    flows,
    /// Attempts to connect that failed.
    failed_connects,
    /// Packets that arrived by way of the relay ring.
    relayed,
    /// Connections that were reset.
    resets,
    /// Packets that were lost.
    lost_packets,
}
