//! Where things are on a node.

/// HAProxy's configuration and sockets. The base overlay's `tmpfiles.d/trilith.conf` makes it: owner `haproxy`, setgid root.
pub const HAPROXY_DIR: &str = "/run/trilith/haproxy";

/// The control socket: `trilith status` and the other commands talk to the supervisor through it.
pub const CONTROL_SOCKET: &str = "/run/trilith/control.sock";
/// The set's document, unless `--config` names another.
pub const SET_FILE: &str = "/var/lib/trilith/set.toml";
/// The name of this node: one line. When it is missing the host's name counts.
pub const NODE_FILE: &str = "/var/lib/trilith/node";
/// What this node must not forget between runs.
pub const RECORD_FILE: &str = "/var/lib/trilith/record";
/// The host's name, of which the first label counts.
pub const HOSTNAME: &str = "/proc/sys/kernel/hostname";
/// HAProxy's unit, in the base overlay.
pub const HAPROXY_UNIT: &str = "haproxy.service";
