//! Who owns the VIP, as a third party on the LAN hears it.
//!
//! Passively every claim is recorded: gratuitous ARP, ARP replies, neighbour advertisements. Actively the watch asks
//! for the VIP's MAC every few milliseconds and records *who answers each question*: none, one, or two at once.
//!
//! The questions come from a made-up MAC (and IP), so that the answers pass by the kernel of the namespace: its own
//! neighbour table, and with it what the clients there see, is not repaired by our asking. The MAC takes sixteen forms
//! in turn, so that a late answer is booked to its question.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::epoll::EpollFlags;
use serde::Serialize;
use socket2::{Domain, SockAddr, SockFilter, Socket, Type};

use super::frames::{self, ClaimKind, Mac};
use super::poller::Poller;
use super::worker::{Nice, Worker};
use super::{NS_PER_MS, Window, lock, ms, now_ns};

/// Where to listen, for which VIP, and how to ask.
#[derive(Debug, Clone)]
pub struct ArpWatchOptions {
    /// Network namespace to listen in, by path; `None` is the caller's own.
    pub netns: Option<PathBuf>,
    /// Interface to listen and ask on.
    pub interface: String,
    /// The VIP, IPv4 or IPv6.
    pub vip: IpAddr,
    /// Time between two questions; `None` only listens.
    pub ask_every: Option<Duration>,
    /// The IPv4 address that the questions come from: one of the VIP's subnet that nobody has. Not used for IPv6, where
    /// the question comes from the made-up MAC's link-local address.
    pub ask_from: Ipv4Addr,
}

impl ArpWatchOptions {
    /// Asks every 20 ms from the caller's namespace; for an IPv4 VIP from the address 250 of its /24.
    pub fn new(interface: &str, vip: IpAddr) -> ArpWatchOptions {
        let ask_from = match vip {
            IpAddr::V4(vip) => Ipv4Addr::from_bits(vip.to_bits() & 0xffff_ff00 | 250),
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let ask_every = Some(Duration::from_millis(20));
        ArpWatchOptions { netns: None, interface: interface.to_owned(), vip, ask_every, ask_from }
    }
}

/// A claim that was heard, answers to our own questions excluded.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Claim {
    /// When.
    pub at_ns: u64,
    /// Which MAC claims the VIP.
    pub mac: Mac,
    /// In which form.
    pub kind: ClaimKind,
}

/// From a question on, the set of those who answered was this.
#[derive(Debug, Clone, Serialize)]
pub struct OwnerChange {
    /// When the question was sent.
    pub at_ns: u64,
    /// Who answered it; empty if nobody.
    pub owners: Vec<Mac>,
}

/// Who claimed and who answered within a window.
#[derive(Debug, Clone, Serialize)]
pub struct ArpReport {
    /// For which address.
    pub vip: IpAddr,
    /// Questions asked that have had their time for an answer.
    pub questions: u64,
    /// Questions that nobody answered.
    pub unanswered: u64,
    /// The largest number of MACs that answered one question.
    pub owners_max: usize,
    /// The longest time from an unanswered question to the next answered one (or the last question), in milliseconds.
    pub longest_none_ms: f64,
    /// The longest time from a question that two or more answered to the next that fewer did, in milliseconds.
    pub longest_many_ms: f64,
    /// The set of owners at the start, and each time that it changed; at most the first 10,000 changes.
    pub owners: Vec<OwnerChange>,
    /// Who answered the last question.
    pub current: Vec<Mac>,
    /// How many claims of each kind each MAC made, answers to our own questions excluded.
    pub claims_by: BTreeMap<Mac, BTreeMap<ClaimKind, u64>>,
    /// The claims themselves; at most the latest 10,000.
    pub claims: Vec<Claim>,
    /// How late our own thread was at worst, in milliseconds, since the start.
    pub lag_ms_max: f64,
    /// Processor time of our own thread, in milliseconds; known at the end.
    pub cpu_ms: Option<f64>,
}

/// What to show while it runs.
#[derive(Debug, Clone, Serialize)]
pub struct ArpLive {
    /// Who answered the latest question that has had its time for an answer; empty if nobody or nothing was asked.
    pub owners: Vec<Mac>,
    /// Claims heard so far.
    pub claims: u64,
}

/// A listener for claims to a VIP.
pub struct ArpWatch {
    shared: Arc<Mutex<Record>>,
    vip: IpAddr,
    worker: Worker<()>,
}

impl ArpWatch {
    /// Listens, and asks for the first time, at once.
    ///
    /// # Errors
    /// When the interface does not exist in that namespace, or packet sockets are not allowed (they need CAP_NET_RAW).
    pub fn start(options: ArpWatchOptions) -> Result<ArpWatch> {
        if options.ask_every.is_some_and(|every| every < MIN_ASK_EVERY) {
            bail!("ask_every {:?} is below {MIN_ASK_EVERY:?}", options.ask_every.unwrap_or_default());
        }
        let shared = Arc::new(Mutex::new(Record::default()));
        let (vip, for_run) = (options.vip, Arc::clone(&shared));
        let interface = options.interface.clone();
        let worker = Worker::start(
            "arpwatch",
            options.netns.clone(),
            Nice::First,
            move |poller| {
                let socket = packet_socket(&interface, vip)
                    .with_context(|| format!("cannot listen on interface {interface}"))?;
                poller.add(&socket, 0, EpollFlags::EPOLLIN)?;
                Ok(socket)
            },
            move |socket, poller| watch(&options, &socket, poller, &for_run),
        )?;
        Ok(ArpWatch { shared, vip, worker })
    }

    /// How it stands now.
    pub fn live(&self) -> ArpLive {
        let record = lock(&self.shared);
        let settled = record.settled(now_ns()).last();
        ArpLive {
            owners: settled.map_or_else(Vec::new, |question| record.macs_of(question.owners)),
            claims: record.claims.len() as u64,
        }
    }

    /// What was heard within `window` so far.
    pub fn report(&self, window: Window) -> ArpReport {
        lock(&self.shared).report(self.vip, window)
    }

    /// Ends the watch and reports on the whole time.
    pub fn finish(self) -> ArpReport {
        let ended = self.worker.finish();
        let mut report = lock(&self.shared).report(self.vip, Window::ALL);
        report.cpu_ms = Some(ended.cpu_ms);
        report
    }
}

#[derive(Debug, Clone, Copy)]
struct Question {
    sent_ns: u64,
    /// One bit for each of [`Record::macs`].
    owners: u32,
}

#[derive(Default)]
struct Record {
    questions: VecDeque<Question>,
    /// Questions that were forgotten, oldest first, to bound memory.
    forgotten: u64,
    claims: VecDeque<Claim>,
    macs: Vec<Mac>,
    lag_ns: u64,
}

impl Record {
    fn asked(&mut self, sent_ns: u64) {
        if self.questions.len() == MAX_QUESTIONS {
            self.questions.pop_front();
            self.forgotten += 1;
        }
        self.questions.push_back(Question { sent_ns, owners: 0 });
    }

    /// Books an answer to the latest question that was asked in this form.
    fn answered(&mut self, form: u64, mac: Mac) {
        let bit = self.macs.iter().position(|known| *known == mac).unwrap_or_else(|| {
            self.macs.push(mac);
            self.macs.len() - 1
        });
        let asked = self.forgotten + self.questions.len() as u64;
        let back = (asked + FORMS - 1 - form) % FORMS;
        let index = self.questions.len().checked_sub(1 + back as usize);
        if let Some(question) = index.and_then(|index| self.questions.get_mut(index)) {
            question.owners |= 1u32.checked_shl(bit as u32).unwrap_or(0);
        }
    }

    fn claimed(&mut self, claim: Claim) {
        if self.claims.len() == MAX_CLAIMS {
            self.claims.pop_front();
        }
        self.claims.push_back(claim);
    }

    fn macs_of(&self, owners: u32) -> Vec<Mac> {
        self.macs
            .iter()
            .enumerate()
            .filter(|(bit, _)| *bit < 32 && owners & 1 << bit != 0)
            .map(|(_, mac)| *mac)
            .collect()
    }

    /// The questions that are answered or had their time for it.
    fn settled(&self, now: u64) -> impl Iterator<Item = &Question> {
        self.questions.iter().filter(move |it| it.owners != 0 || it.sent_ns + SETTLE_NS <= now)
    }

    fn report(&self, vip: IpAddr, window: Window) -> ArpReport {
        let questions: Vec<Question> = self.settled(now_ns()).filter(|it| window.holds(it.sent_ns)).copied().collect();
        let mut owners: Vec<OwnerChange> = Vec::new();
        let mut before = None;
        for question in &questions {
            if before != Some(question.owners) && owners.len() < MAX_CHANGES {
                before = Some(question.owners);
                owners.push(OwnerChange { at_ns: question.sent_ns, owners: self.macs_of(question.owners) });
            }
        }
        let claims: Vec<Claim> = self.claims.iter().filter(|it| window.holds(it.at_ns)).copied().collect();
        let mut claims_by: BTreeMap<Mac, BTreeMap<ClaimKind, u64>> = BTreeMap::new();
        for claim in &claims {
            *claims_by.entry(claim.mac).or_default().entry(claim.kind).or_default() += 1;
        }
        ArpReport {
            vip,
            questions: questions.len() as u64,
            unanswered: questions.iter().filter(|it| it.owners == 0).count() as u64,
            owners_max: questions.iter().map(|it| it.owners.count_ones() as usize).max().unwrap_or(0),
            longest_none_ms: longest_ms(&questions, |owners| owners == 0),
            longest_many_ms: longest_ms(&questions, |owners| owners.count_ones() > 1),
            current: questions.last().map_or_else(Vec::new, |it| self.macs_of(it.owners)),
            owners,
            claims_by,
            claims,
            lag_ms_max: ms(self.lag_ns),
            cpu_ms: None,
        }
    }
}

/// The longest time from the first question of a run whose owners are `like` that, to the first after it.
fn longest_ms(questions: &[Question], like: impl Fn(u32) -> bool) -> f64 {
    let mut since_ns = None;
    let mut longest_ns = 0;
    for question in questions {
        if let Some(since_ns) = since_ns {
            longest_ns = longest_ns.max(question.sent_ns - since_ns);
        }
        since_ns = like(question.owners).then(|| since_ns.unwrap_or(question.sent_ns));
    }
    ms(longest_ns)
}

fn watch(options: &ArpWatchOptions, socket: &Socket, mut poller: Poller, shared: &Mutex<Record>) {
    let own = own_mac();
    let every_ns = options.ask_every.map(|every| every.as_nanos() as u64);
    let mut ask_at = every_ns.map(|_| now_ns());
    let mut asked = 0;
    let mut ready = Vec::new();
    let mut buffer = [MaybeUninit::uninit(); FRAME_LEN];
    // Answers to the last question still count, so listening goes on for as long as one may take.
    let mut end_at = None;
    loop {
        while let Ok(len) = socket.recv(&mut buffer) {
            let frame: Vec<u8> = buffer[..len.min(FRAME_LEN)]
                .iter()
                // SAFETY: recv(2) has written the first `len` bytes.
                .map(|byte| unsafe { byte.assume_init() })
                .collect();
            let Some(heard) = frames::claim(&frame, options.vip) else { continue };
            let mut record = lock(shared);
            match own.form_of(heard.to) {
                Some(form) if heard.kind.is_answer() => record.answered(form, heard.mac),
                _ => record.claimed(Claim { at_ns: now_ns(), mac: heard.mac, kind: heard.kind }),
            }
        }
        let now = now_ns();
        if poller.stopping() && end_at.is_none() {
            end_at = Some(now + SETTLE_NS);
            ask_at = None;
        }
        if end_at.is_some_and(|end_at| end_at <= now) {
            return;
        }
        if let (Some(due_ns), Some(every_ns)) = (ask_at, every_ns)
            && due_ns <= now
        {
            let mac = own.form(asked % FORMS);
            asked += 1;
            let mut record = lock(shared);
            record.lag_ns = record.lag_ns.max(now - due_ns);
            record.asked(now_ns());
            drop(record);
            let question = match options.vip {
                IpAddr::V4(vip) => frames::arp_request(options.ask_from, mac, vip),
                IpAddr::V6(vip) => frames::solicitation(mac, vip),
            };
            // While the link is down nothing can be sent; the question then stays without an answer, which is the truth.
            let _ = socket.send(&question);
            ask_at = Some((due_ns + every_ns).max(now));
        }
        if poller.wait(end_at.or(ask_at).unwrap_or(u64::MAX), &mut ready).is_err() {
            return;
        }
    }
}

/// A made-up, locally administered MAC; its last four bits are the form.
#[derive(Clone, Copy)]
struct OwnMac([u8; 6]);

impl OwnMac {
    fn form(self, form: u64) -> Mac {
        let mut octets = self.0;
        octets[5] |= form as u8;
        Mac(octets)
    }

    fn form_of(self, mac: Mac) -> Option<u64> {
        let form = u64::from(mac.0[5] & (FORMS as u8 - 1));
        (self.form(form) == mac).then_some(form)
    }
}

/// Different for each watch, so that several on one LAN don't take each other's answers.
fn own_mac() -> OwnMac {
    let [a, b, c, ..] = (now_ns() / 1_000).to_le_bytes();
    OwnMac([0x02, 0x77, a, b, c, (std::process::id() as u8) << 4])
}

/// A packet socket that gets ARP, or only neighbour advertisements of all the IPv6 there is.
pub(super) fn packet_socket(interface: &str, vip: IpAddr) -> Result<Socket> {
    let index = if_nametoindex(interface).context("no such interface in this network namespace")?;
    // Without a protocol it receives nothing until it is bound, when the filter is in place.
    let socket =
        Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None).context("no packet socket; it needs root")?;
    let protocol = match vip {
        IpAddr::V4(_) => libc::ETH_P_ARP,
        IpAddr::V6(_) => {
            socket.attach_filter(&neighbour_advertisements())?;
            libc::ETH_P_IPV6
        }
    };
    socket.bind(&link_address(protocol as u16, index as i32)?)?;
    hear_all(&socket, index as i32)?;
    Ok(socket)
}

/// Answers go to a MAC that no interface has; only in promiscuous mode do a bridge or a real NIC hand them up. It ends
/// with the socket (packet(7), PACKET_ADD_MEMBERSHIP).
fn hear_all(socket: &Socket, index: i32) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    // SAFETY: the option takes exactly this structure, which lives during the call, and its size is given along.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const request).cast(),
            size_of_val(&request) as libc::socklen_t,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Classic BPF: next header (offset 20) is ICMPv6, its type (offset 54) is neighbour advertisement.
fn neighbour_advertisements() -> [SockFilter; 6] {
    let load = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    let jump_if_equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let end = (libc::BPF_RET | libc::BPF_K) as u16;
    [
        SockFilter::new(load, 0, 0, 20),
        SockFilter::new(jump_if_equal, 0, 3, 58),
        SockFilter::new(load, 0, 0, 54),
        SockFilter::new(jump_if_equal, 0, 1, 136),
        SockFilter::new(end, 0, 0, FRAME_LEN as u32),
        SockFilter::new(end, 0, 0, 0),
    ]
}

/// packet(7): `sockaddr_ll` with protocol (in network order) and interface.
fn link_address(protocol: u16, index: i32) -> io::Result<SockAddr> {
    // SAFETY: sockaddr_ll is a plain C structure smaller than sockaddr_storage, and its length is set along with it.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, len| {
            storage.cast::<libc::sockaddr_ll>().write(libc::sockaddr_ll {
                sll_family: libc::AF_PACKET as u16,
                sll_protocol: protocol.to_be(),
                sll_ifindex: index,
                sll_hatype: 0,
                sll_pkttype: 0,
                sll_halen: 0,
                sll_addr: [0; 8],
            });
            len.write(size_of::<libc::sockaddr_ll>() as libc::socklen_t);
            Ok(())
        })?
    };
    Ok(address)
}

const MIN_ASK_EVERY: Duration = Duration::from_millis(2);
const FORMS: u64 = 16;
const FRAME_LEN: usize = 128;
/// An unanswered question counts as such after this long.
const SETTLE_NS: u64 = 50 * NS_PER_MS;
const MAX_QUESTIONS: usize = 1_000_000;
const MAX_CLAIMS: usize = 10_000;
const MAX_CHANGES: usize = 10_000;
