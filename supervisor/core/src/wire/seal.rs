//! Sealing heartbeats into datagrams, and opening those of peers.
//!
//! Opening must be cheap for what is not genuine, and the attacker may know everything but the secret:
//!
//! | datagram | costs |
//! |---|---|
//! | wrong length, mark, version or sender | a few comparisons |
//! | replayed in a session that is cached | one comparison more |
//! | forged in a session that is cached | one Poly1305 |
//! | forged or replayed in another session | one HKDF expansion more |
//!
//! So the last row is what a reader has to bound; the shell does it (`shell/src/peers`), since only there can datagrams be
//! kept from queueing before the genuine ones. A keyed tag over the header instead would save the expansion, but neither the
//! system call nor the queue, which cost more.

use std::sync::Arc;

use chacha20poly1305::aead::{AeadInOut, Tag};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::codec;
use super::{Authentic, Heartbeat, MAX_DATAGRAM, Relaying, Session, VERSION, WireError};
use crate::config::{MAX_NODES, NodeId};

/// Length of a datagram's header in bytes.
pub const HEADER: usize = 20;
/// Where its version is, and in the upper bit of it whether the heartbeat is [`Heartbeat::routine`]: said openly, so that the
/// receiver's kernel can sort by it, and authenticated like all of the header.
pub const VERSION_AT: usize = 2;
/// See [`VERSION_AT`].
pub const ROUTINE: u8 = 0x80;

/// Makes the datagrams of one session of one node.
pub struct Sealer {
    key: ChaCha20Poly1305,
    me: NodeId,
    session: Session,
    last: Option<u64>,
    deaf: u8,
    relaying: Option<Relaying>,
}

impl Sealer {
    /// A sealer for `session` of node `me` in the set of this name.
    ///
    /// `session` must be drawn at random for each sealer: with the same one, a key would be used again with the same nonces.
    pub fn new(secret: &[u8], set: &str, me: NodeId, session: Session) -> Sealer {
        let key = Keys::new(secret, set).key(me, session);
        Sealer { key, me, session, last: None, deaf: 0, relaying: None }
    }

    /// Which nodes (a bitmap) are not heard on the direct path: said in every datagram from now on, so that those nodes also
    /// try another path. The core has no part in it; see `shell/src/peers`.
    pub fn set_deaf(&mut self, nodes: u8) {
        self.deaf = nodes;
    }

    /// What is said of relaying in every datagram from now on. `None`, which is not said: this node does not send
    /// [`Sealer::probe`]s.
    pub fn set_relaying(&mut self, relaying: Option<Relaying>) {
        self.relaying = relaying;
    }

    /// Puts `heartbeat` as one datagram into `out`, whose old content is dropped.
    ///
    /// # Panics
    ///
    /// When the heartbeat is of another session, its counter is not above the last one (the nonce would be used twice, which
    /// gives the key stream away), or [`Heartbeat::encode`] panics.
    pub fn seal(&mut self, heartbeat: &Heartbeat, out: &mut Vec<u8>) {
        assert_eq!(heartbeat.session, self.session, "a heartbeat of another session");
        let counter = heartbeat.counter;
        assert!(self.last.is_none_or(|last| last < counter), "counter {counter} after {:?}", self.last);
        self.last = Some(counter);
        out.clear();
        let version = if heartbeat.routine { VERSION | ROUTINE } else { VERSION };
        out.extend(Header { version, sender: self.me.0, session: self.session, counter }.to_bytes());
        heartbeat.encode(out);
        if self.deaf != 0 {
            codec::encode_deaf(self.deaf, out);
        }
        if let Some(relaying) = self.relaying {
            codec::encode_relaying(relaying, out);
        }
        seal_in_place(&self.key, nonce(counter), out);
    }

    /// Puts a probe into `out`, whose old content is dropped: a header and its tag, with the counter of the last heartbeat. It says
    /// nothing; where it comes from is what counts. Before the first heartbeat `out` is left empty.
    pub fn probe(&self, out: &mut Vec<u8>) {
        out.clear();
        let Some(counter) = self.last else { return };
        out.extend(Header { version: VERSION | ROUTINE, sender: self.me.0, session: self.session, counter }.to_bytes());
        out[..PROBE.len()].copy_from_slice(&PROBE);
        seal_in_place(&self.key, probe_nonce(counter), out);
    }
}

/// Opens the datagrams of all peers. Bounded: it keeps at most two derived keys for each node.
pub struct Opener {
    keys: Keys,
    nodes: u8,
    me: NodeId,
    known: [Known; MAX_NODES],
    deaf: [u8; MAX_NODES],
    relaying: [Option<Relaying>; MAX_NODES],
    buffer: Zeroizing<Vec<u8>>,
}

impl Opener {
    /// An opener for node `me` of a set with this name and `nodes` nodes (at most [`MAX_NODES`]).
    pub fn new(secret: &[u8], set: &str, nodes: u8, me: NodeId) -> Opener {
        assert!(usize::from(nodes) <= MAX_NODES, "{nodes} nodes");
        Opener {
            keys: Keys::new(secret, set),
            nodes,
            me,
            known: Default::default(),
            deaf: [0; MAX_NODES],
            relaying: [None; MAX_NODES],
            buffer: Zeroizing::new(Vec::with_capacity(MAX_DATAGRAM)),
        }
    }

    /// Opens a datagram. Within a session that is cached each counter is opened once, and none below it afterwards.
    ///
    /// Authentic is not fresh: a datagram of an earlier session opens as well, see [`super`].
    ///
    /// # Errors
    ///
    /// Whatever is not a whole, unchanged datagram of another node of this set. Nothing is remembered of it.
    pub fn open(&mut self, datagram: &[u8]) -> Result<Authentic, WireError> {
        let length = datagram.len();
        if length > MAX_DATAGRAM {
            return Err(WireError::TooLong { length });
        }
        let (header, sealed) = datagram.split_first_chunk::<HEADER>().ok_or(WireError::TooShort { length })?;
        let (cipher, tag) = sealed.split_last_chunk::<TAG>().ok_or(WireError::TooShort { length })?;
        let Header { version, sender, session, counter } = Header::from_bytes(header, MAGIC)?;
        let from = self.sender(sender)?;
        let known = &mut self.known[usize::from(sender)];
        let cached = known.find(session);
        if cached.as_ref().is_some_and(|cached| counter <= cached.highest) {
            return Err(WireError::Replayed { counter });
        }

        let stamp = Stamp { header, session, counter };
        let mut heartbeat = match cached {
            Some(cached) => {
                let heartbeat = stamp.unseal(&cached.key, cipher, tag, &mut self.buffer)?;
                cached.highest = counter;
                heartbeat
            }
            None => {
                let key = self.keys.key(from, session);
                let heartbeat = stamp.unseal(&key, cipher, tag, &mut self.buffer)?;
                known.insert(Cached { session, key, highest: counter, probed: 0 });
                heartbeat
            }
        };
        heartbeat.routine = version & ROUTINE != 0;
        self.deaf[usize::from(sender)] = codec::deaf(&self.buffer);
        self.relaying[usize::from(sender)] = codec::relaying(&self.buffer);
        Ok(Authentic { from, heartbeat: Arc::new(heartbeat) })
    }

    /// Opens a [`Sealer::probe`]: whose it is. Only the session that its sender is believed to be in is asked, and each counter opens once.
    ///
    /// # Errors
    ///
    /// Whatever is not a whole, unchanged probe of that session, younger than the last one. Nothing is remembered of it.
    pub fn open_probe(&mut self, datagram: &[u8]) -> Result<NodeId, WireError> {
        let length = datagram.len();
        let (header, tag) = datagram.split_first_chunk::<HEADER>().ok_or(WireError::TooShort { length })?;
        let Ok(tag) = <&[u8; TAG]>::try_from(tag) else { return Err(WireError::TooLong { length }) };
        let Header { sender, session, counter, .. } = Header::from_bytes(header, PROBE)?;
        let from = self.sender(sender)?;
        let used = self.known[usize::from(sender)].used.as_mut();
        let cached = used.filter(|cached| cached.session == session).ok_or(WireError::Replayed { counter })?;
        if counter <= cached.probed {
            return Err(WireError::Replayed { counter });
        }
        let tag = Tag::<ChaCha20Poly1305>::from(*tag);
        let opened = cached.key.decrypt_inout_detached(&probe_nonce(counter), header, (&mut [][..]).into(), &tag);
        opened.map_err(|_| WireError::Forged)?;
        cached.probed = counter;
        Ok(from)
    }

    fn sender(&self, sender: u8) -> Result<NodeId, WireError> {
        match NodeId(sender) {
            _ if sender >= self.nodes => Err(WireError::UnknownSender(sender)),
            from if from == self.me => Err(WireError::OwnEcho),
            from => Ok(from),
        }
    }

    /// Takes `session` for the one that `from` runs in now: the core has found it fresh. Its key then stays cached, however
    /// many recorded datagrams of other sessions are opened.
    pub fn settle(&mut self, from: NodeId, session: Session) {
        if let Some(known) = self.known.get_mut(usize::from(from.0)) {
            known.settle(session);
        }
    }

    /// Which nodes `from` does not hear on the direct path, by the last datagram of it that was opened.
    pub fn deaf(&self, from: NodeId) -> u8 {
        self.deaf.get(usize::from(from.0)).copied().unwrap_or(0)
    }

    /// What `from` says of relaying in the last datagram of it that was opened, fresh or not. `None`: nothing, and it sends no
    /// probes itself.
    pub fn relaying(&self, from: NodeId) -> Option<Relaying> {
        self.relaying.get(usize::from(from.0)).copied().flatten()
    }
}

/// The sessions of one sender whose keys are cached.
#[derive(Default)]
struct Known {
    /// The one in use: found fresh by the core, or the first that was heard.
    used: Option<Cached>,
    /// The last other one that authenticated. Only this place is open to replayed datagrams.
    candidate: Option<Cached>,
}

struct Cached {
    session: Session,
    key: ChaCha20Poly1305,
    /// The highest counter that was opened.
    highest: u64,
    /// The highest counter of a probe.
    probed: u64,
}

impl Known {
    fn find(&mut self, session: Session) -> Option<&mut Cached> {
        [&mut self.used, &mut self.candidate].into_iter().flatten().find(|cached| cached.session == session)
    }

    fn insert(&mut self, cached: Cached) {
        let place = if self.used.is_none() { &mut self.used } else { &mut self.candidate };
        *place = Some(cached);
    }

    fn settle(&mut self, session: Session) {
        if self.candidate.as_ref().is_some_and(|cached| cached.session == session) {
            std::mem::swap(&mut self.used, &mut self.candidate);
        }
    }
}

/// The set secret, extracted (RFC 5869, 2.2) once; what is left for each session is the expansion.
struct Keys {
    extracted: Hkdf<Sha256>,
    set: String,
}

impl Keys {
    fn new(secret: &[u8], set: &str) -> Keys {
        Keys { extracted: Hkdf::new(Some(SALT), secret), set: set.to_owned() }
    }

    fn key(&self, sender: NodeId, session: Session) -> ChaCha20Poly1305 {
        let mut key = Zeroizing::new([0; 32]);
        // The set's name comes last: all else is of fixed length, so no two inputs run together.
        let info = [&[sender.0][..], &session.0.to_be_bytes(), self.set.as_bytes()];
        self.extracted.expand_multi_info(&info, key.as_mut()).expect("32 bytes are one block of SHA-256");
        ChaCha20Poly1305::new((&*key).into())
    }
}

struct Header {
    version: u8,
    sender: u8,
    session: Session,
    counter: u64,
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[VERSION_AT] = self.version;
        bytes[3] = self.sender;
        bytes[4..12].copy_from_slice(&self.session.0.to_be_bytes());
        bytes[12..].copy_from_slice(&self.counter.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER], magic: [u8; 2]) -> Result<Header, WireError> {
        let [m0, m1, version, sender, s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, c4, c5, c6, c7] = *bytes;
        if [m0, m1] != magic {
            return Err(WireError::Foreign);
        }
        if version & !ROUTINE == 0 {
            return Err(WireError::Version);
        }
        let session = Session(u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]));
        Ok(Header { version, sender, session, counter: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]) })
    }
}

/// What a datagram says openly, once it is checked for form.
struct Stamp<'a> {
    header: &'a [u8; HEADER],
    session: Session,
    counter: u64,
}

impl Stamp<'_> {
    fn unseal(
        &self,
        key: &ChaCha20Poly1305,
        cipher: &[u8],
        tag: &[u8; TAG],
        fields: &mut Vec<u8>,
    ) -> Result<Heartbeat, WireError> {
        fields.clear();
        fields.extend_from_slice(cipher);
        let tag = Tag::<ChaCha20Poly1305>::from(*tag);
        key.decrypt_inout_detached(&nonce(self.counter), self.header, fields.as_mut_slice().into(), &tag)
            .map_err(|_| WireError::Forged)?;
        Heartbeat::decode(self.session, self.counter, fields)
    }
}

/// Encrypts all behind the header, and appends the tag.
fn seal_in_place(key: &ChaCha20Poly1305, nonce: Nonce, datagram: &mut Vec<u8>) {
    let (header, fields) = datagram.split_at_mut(HEADER);
    let tag = key
        .encrypt_inout_detached(&nonce, header, fields.into())
        .expect("a datagram is shorter than the cipher's limit");
    datagram.extend_from_slice(&tag);
    assert!(datagram.len() <= MAX_DATAGRAM, "a heartbeat of {} bytes", datagram.len());
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = Nonce::default();
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

/// No heartbeat has this nonce.
fn probe_nonce(counter: u64) -> Nonce {
    let mut nonce = nonce(counter);
    nonce[0] = 1;
    nonce
}

const TAG: usize = 16;
const MAGIC: [u8; 2] = *b"TL";
/// How a [`Sealer::probe`] begins.
pub const PROBE: [u8; 2] = *b"TP";
const SALT: &[u8] = b"trilith peer datagram";
