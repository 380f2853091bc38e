//! Where things are on a node.

/// HAProxy's sockets; its configuration is beside it. The base overlay's `tmpfiles.d/trilith.conf` makes it: owner `haproxy`, setgid root.
pub const HAPROXY_DIR: &str = "/run/trilith/haproxy";

/// Copies of certificates, each with its key, that HAProxy reads.
pub const TLS: &str = "/run/trilith/tls";
/// Where certificates that were put on this node lie, by service.
pub const CERTIFICATES: &str = "/var/lib/trilith/files/tls";

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
/// Notices of other programs: a file each, its first line the alarm.
pub const NOTICES: &str = "/run/trilith/notices";
/// What the first boot did, and what was wrong with the answers.
pub const FIRSTBOOT_REPORT: &str = "/run/trilith/firstboot.json";
/// Where support bundles are put, for root and the group trilith-admin to fetch.
pub const SUPPORT_DIR: &str = "/run/trilith-support";
/// Hashes of passwords. (shadow(5))
pub const SHADOW: &str = "/etc/shadow";
/// HAProxy's unit, in the base overlay.
pub const HAPROXY_UNIT: &str = "haproxy.service";
/// The coordinator's socket: rollouts, bundles, documents.
pub const COORDINATOR_SOCKET: &str = "/run/trilith/coordinator.sock";
/// How the coordinator's last run ended, unless it lasted or ended as it should.
pub const COORDINATOR_LIFE: &str = "/run/trilith/coordinator.life";
/// What the coordinator must not forget between runs.
pub const COORDINATOR: &str = "/var/lib/trilith/coordinator.json";
/// A document on trial, and the way back from it.
pub const TRIAL: &str = "/var/lib/trilith/document-trial.json";
/// The replicated state.
pub const RAFT: &str = "/var/lib/trilith/raft";
/// Bundles, each in a directory of its release.
pub const BUNDLES: &str = "/var/lib/trilith/bundles";
/// The versions that were chosen for services, a file each.
pub const SERVICES: &str = "/var/lib/trilith/services";
/// Trees of services' images, unpacked.
pub const SERVICE_TREES: &str = "/run/trilith-service";
/// What the last deed on the slots came to.
pub const SLOTS: &str = "/run/trilith-slot/slots.json";
/// Where the boot loader looks for systems, on the ESP.
pub const BOOT_ENTRIES: &str = "/efi/EFI/Linux";
/// The public keys that sign bundles.
pub const BUNDLE_KEYS: &str = "/usr/lib/trilith/bundle.pub";
/// It is there once a time server has set the clock.
pub const CLOCK_IS_RIGHT: &str = "/run/systemd/timesync/synchronized";
/// The supervisor's unit, in the base overlay.
pub const SUPERVISOR_UNIT: &str = "trilith.service";
