//! What is promised of records that leave the process.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::time::{Duration, Instant};

use super::codec::field;
use super::*;
use crate::config::{MAX_VIPS, VipId};
use crate::health::Reason;

const SECRET: &[u8] = b"correct horse battery staple";
const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);

#[test]
fn what_version_1_wrote_is_read_for_ever() {
    let datagram = from_hex(GOLDEN_DATAGRAM);
    let heard = opener().open(&datagram).expect("the recorded datagram opens");
    assert_eq!((heard.from(), heard.heartbeat()), (A, &golden()));
    assert_eq!(DiskRecord::decode(&from_hex(GOLDEN_RECORD)), Ok(GOLDEN_DISK));
}

#[test]
fn version_1_is_still_written_the_same() {
    let mut datagram = Vec::new();
    sealer(SESSION).seal(&golden(), &mut datagram);
    assert_eq!(to_hex(&datagram), GOLDEN_DATAGRAM);
    assert_eq!(to_hex(&GOLDEN_DISK.encode()), GOLDEN_RECORD);
}

#[test]
fn whatever_is_encoded_decodes_to_the_same() {
    let mut random = Random(1);
    for _ in 0..20_000 {
        let heartbeat = random.heartbeat();
        let mut fields = Vec::new();
        heartbeat.encode(&mut fields);
        assert_eq!(Heartbeat::decode(heartbeat.session, heartbeat.counter, &fields), Ok(heartbeat));
    }
}

#[test]
fn the_fullest_heartbeat_fits_a_datagram() {
    let mut random = Random(2);
    let mut heartbeat = random.heartbeat();
    let echo = Echo { session: SESSION, counter: u64::MAX, live: true };
    heartbeat.heard = [Some(echo); MAX_NODES];
    heartbeat.vips = (0..MAX_VIPS as u32).map(|key| random.report(VipKey(key))).collect();
    heartbeat.ask = Some(random.ask());
    let mut sealer = Sealer::new(SECRET, "edge-1", A, heartbeat.session);
    sealer.set_deaf(0x7f);
    sealer.set_relaying(Some(Relaying { open: 0x7f, barred: 0x7f, tunnelled: 0x7f }));
    let mut datagram = Vec::new();
    sealer.seal(&heartbeat, &mut datagram);
    assert!(datagram.len() <= MAX_DATAGRAM);
    assert!(opener().open(&datagram).is_ok());
}

#[test]
fn every_truncation_of_a_datagram_is_refused() {
    let datagram = from_hex(GOLDEN_DATAGRAM);
    for length in 0..datagram.len() {
        assert!(opener().open(&datagram[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn every_flipped_bit_of_a_datagram_is_refused() {
    let genuine = from_hex(GOLDEN_DATAGRAM);
    let mut warm = opener();
    warm.open(&genuine).expect("genuine");
    for bit in 0..genuine.len() * 8 {
        let mut datagram = genuine.clone();
        datagram[bit / 8] ^= 1 << (bit % 8);
        assert!(opener().open(&datagram).is_err(), "bit {bit}");
        assert!(warm.open(&datagram).is_err(), "bit {bit} in a known session");
    }
}

#[test]
fn every_truncation_and_flipped_bit_of_a_disk_record_is_refused() {
    let record = GOLDEN_DISK.encode();
    for length in 0..record.len() {
        assert!(DiskRecord::decode(&record[..length]).is_err(), "{length} bytes");
    }
    for bit in 0..record.len() * 8 {
        let mut record = record.clone();
        record[bit / 8] ^= 1 << (bit % 8);
        assert!(DiskRecord::decode(&record).is_err(), "bit {bit}");
    }
}

#[test]
fn a_longer_disk_record_of_a_newer_version_is_read() {
    let mut record = GOLDEN_DISK.encode();
    record.truncate(record.len() - 8);
    record[2] = 2;
    record[3] += 3;
    record.extend([1, 2, 3]);
    let digest = Sha256::digest(&record);
    record.extend(&digest[..8]);
    assert_eq!(DiskRecord::decode(&record), Ok(GOLDEN_DISK));
}

#[test]
fn a_newer_datagram_is_read_as_far_as_it_is_known() {
    let mut fields = Vec::new();
    golden().encode(&mut fields);
    let mut newer = Vec::new();
    let mut rest = &fields[..];
    while let Some((&tag, after)) = rest.split_first() {
        let length = usize::from(u16::from_be_bytes([after[0], after[1]]));
        field(&mut newer, 200, |out| out.extend([9; 5]));
        field(&mut newer, tag, |out| {
            out.extend(&after[2..2 + length]);
            out.extend(b"more");
        });
        rest = &after[2 + length..];
    }
    let datagram = sealed_by_hand(2, &newer);
    assert_eq!(opener().open(&datagram).expect("it is read").heartbeat(), &golden());
}

#[test]
fn what_is_not_known_is_taken_in_its_safest_meaning() {
    let heartbeat = decode_with(2, &[77, 99, 3, 0]).expect("it is read");
    assert_eq!(heartbeat.fitness, Fitness::Unfit(Reason::Other(99)));
    let heartbeat = decode_with(2, &[1, 2, MAX_VIPS as u8, 1]).expect("it is read");
    assert_eq!(heartbeat.fitness, Fitness::Degraded(Reason::Other(0)));
    let heartbeat = decode_with(6, &[0, 0, 0, 1, 2, 55]).expect("it is read");
    assert_eq!(heartbeat.ask, None);
}

#[test]
fn bounds_are_kept() {
    assert_eq!(decode_with(3, &999_u32.to_be_bytes()), Err(WireError::OutOfRange { tag: 3, value: 999 }));
    assert_eq!(decode_with(3, &60_000_001_u32.to_be_bytes()), Err(WireError::OutOfRange { tag: 3, value: 60_000_001 }));
    assert!(decode_with(3, &60_000_000_u32.to_be_bytes()).is_ok());
    assert_eq!(decode_with(3, &[1, 2, 3]), Err(WireError::CutOff { tag: 3 }));
    let mut echo = vec![MAX_NODES as u8];
    echo.extend([0; 17]);
    assert_eq!(decode_with(4, &echo), Err(WireError::OutOfRange { tag: 4, value: MAX_NODES as u64 }));

    let mut heartbeat = golden();
    heartbeat.vips = (0..MAX_VIPS as u32).map(|key| Random(3).report(VipKey(key))).collect();
    let mut fields = Vec::new();
    heartbeat.encode(&mut fields);
    let mut one_more = Vec::new();
    Heartbeat { vips: vec![Random(3).report(VipKey(99))], ..golden() }.encode(&mut one_more);
    field(&mut fields, 5, |out| out.extend(value_of(&one_more, 5)));
    assert_eq!(Heartbeat::decode(SESSION, 1, &fields), Err(WireError::OutOfRange { tag: 5, value: 17 }));
    assert_eq!(Heartbeat::decode(SESSION, 1, &[0; 1401]), Err(WireError::TooLong { length: 1401 }));
}

#[test]
fn a_missing_or_repeated_field_is_refused() {
    let mut fields = Vec::new();
    golden().encode(&mut fields);
    for tag in 1..=3 {
        let without = without(&fields, tag);
        assert_eq!(Heartbeat::decode(SESSION, 1, &without), Err(WireError::Missing { tag }));
    }
    for tag in 1..=6 {
        let mut twice = fields.clone();
        field(&mut twice, tag, |out| out.extend(value_of(&fields, tag)));
        assert_eq!(Heartbeat::decode(SESSION, 1, &twice), Err(WireError::Repeated { tag }));
    }
}

#[test]
fn no_bytes_make_the_decoders_panic() {
    let mut random = Random(4);
    let mut fields = Vec::new();
    golden().encode(&mut fields);
    for _ in 0..200_000 {
        let mut bytes = fields.clone();
        for _ in 0..1 + random.below(4) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.next() as u8;
        }
        bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
        // Whatever it is read as can be written, and reads the same again.
        if let Ok(heartbeat) = Heartbeat::decode(SESSION, 1, &bytes) {
            let mut again = Vec::new();
            heartbeat.encode(&mut again);
            assert_eq!(Heartbeat::decode(SESSION, 1, &again), Ok(heartbeat));
        }
    }
}

#[test]
fn a_lease_is_rounded_up_so_that_a_grant_never_ends_before_its_claim() {
    let mut fields = Vec::new();
    Heartbeat { lease: Duration::from_nanos(1_000_001), ..golden() }.encode(&mut fields);
    let read = Heartbeat::decode(SESSION, 1, &fields).expect("it is read");
    assert_eq!(read.lease, Duration::from_micros(1001));
}

#[test]
fn a_datagram_of_another_set_secret_sender_or_ourselves_is_refused() {
    let datagram = from_hex(GOLDEN_DATAGRAM);
    assert_eq!(Opener::new(SECRET, "edge-2", 3, B).open(&datagram), Err(WireError::Forged));
    assert_eq!(Opener::new(b"another", "edge-1", 3, B).open(&datagram), Err(WireError::Forged));
    assert_eq!(Opener::new(SECRET, "edge-1", 3, A).open(&datagram), Err(WireError::OwnEcho));
    let mut stranger = datagram.clone();
    stranger[3] = 3;
    assert_eq!(opener().open(&stranger), Err(WireError::UnknownSender(3)));
    stranger[3] = 2;
    assert_eq!(opener().open(&stranger), Err(WireError::Forged));
}

#[test]
fn routine_is_said_openly_and_authenticated() {
    let (mut sealer, mut opener) = (sealer(SESSION), opener());
    let mut out = Vec::new();
    sealer.seal(&Heartbeat { session: SESSION, counter: 1, routine: true, ..golden() }, &mut out);
    assert_eq!(out[VERSION_AT], VERSION | ROUTINE);
    let mut urgent = out.clone();
    urgent[VERSION_AT] ^= ROUTINE;
    assert_eq!(opener.open(&urgent), Err(WireError::Forged));
    assert!(opener.open(&out).expect("it is genuine").heartbeat().routine);
}

#[test]
fn a_counter_is_opened_once_and_none_below_it_afterwards() {
    let (mut sealer, mut opener) = (sealer(SESSION), opener());
    let datagrams: Vec<_> = [1, 2, 5].map(|counter| datagram(&mut sealer, SESSION, counter)).into();
    assert!(opener.open(&datagrams[1]).is_ok());
    assert_eq!(opener.open(&datagrams[1]), Err(WireError::Replayed { counter: 2 }));
    assert_eq!(opener.open(&datagrams[0]), Err(WireError::Replayed { counter: 1 }));
    // A forged counter, however high, moves nothing.
    let mut forged = datagrams[2].clone();
    forged[12] = 0xff;
    assert_eq!(opener.open(&forged), Err(WireError::Forged));
    assert!(opener.open(&datagrams[2]).is_ok());
}

#[test]
fn recorded_sessions_never_evict_the_one_in_use() {
    let mut opener = opener();
    let mut current = sealer(SESSION);
    let old: Vec<_> = (0..50).map(|at| datagram(&mut sealer(Session(at)), Session(at), 9)).collect();
    opener.open(&old[0]).expect("an old one came first");
    opener.open(&datagram(&mut current, SESSION, 1)).expect("genuine");
    opener.settle(A, SESSION);
    for (round, old) in old[1..].iter().enumerate() {
        opener.open(old).expect("authentic, though not fresh");
        let counter = 2 + round as u64;
        let genuine = datagram(&mut current, SESSION, counter);
        opener.open(&genuine).expect("genuine");
        // That it is refused as a replay shows that the session is cached still.
        assert_eq!(opener.open(&genuine), Err(WireError::Replayed { counter }));
    }
}

#[test]
fn deafness_is_told_to_the_shell_of_the_other_side() {
    let (mut sealer, mut opener) = (sealer(SESSION), opener());
    sealer.set_deaf(0b110);
    opener.open(&datagram(&mut sealer, SESSION, 1)).expect("genuine");
    assert_eq!(opener.deaf(A), 0b110);
    sealer.set_deaf(0);
    opener.open(&datagram(&mut sealer, SESSION, 2)).expect("genuine");
    assert_eq!(opener.deaf(A), 0);
}

#[test]
fn what_is_relayed_how_is_told_and_so_is_that_nobody_looks() {
    let (mut sealer, mut opener) = (sealer(SESSION), opener());
    let some = Relaying { open: 0b1, barred: 0b10, tunnelled: 0b100 };
    for (counter, said) in (1..).zip([None, Some(Relaying::default()), Some(some), None]) {
        sealer.set_relaying(said);
        opener.open(&datagram(&mut sealer, SESSION, counter)).expect("genuine");
        assert_eq!(opener.relaying(A), said);
    }
}

#[test]
fn a_probe_opens_once_in_the_session_that_its_sender_is_in_and_is_no_heartbeat() {
    let (mut sealer, mut opener) = (sealer(SESSION), opener());
    let mut probe = Vec::new();
    sealer.probe(&mut probe);
    assert!(probe.is_empty(), "before the first heartbeat there is no counter for it");
    let heartbeat = datagram(&mut sealer, SESSION, 1);
    sealer.probe(&mut probe);
    assert_eq!(opener.open_probe(&probe), Err(WireError::Replayed { counter: 1 }), "not of a session that is known");
    opener.open(&heartbeat).expect("genuine");
    for at in 0..probe.len() {
        let mut changed = probe.clone();
        changed[at] ^= 1;
        assert!(opener.open_probe(&changed).is_err(), "byte {at}");
        assert!(opener.open_probe(&probe[..at]).is_err(), "cut off at {at}");
    }
    assert_eq!(opener.open_probe(&[&probe[..], &[0]].concat()), Err(WireError::TooLong { length: probe.len() + 1 }));
    assert_eq!(opener.open(&probe).err(), Some(WireError::Foreign));
    assert_eq!(opener.open_probe(&heartbeat).err(), Some(WireError::TooLong { length: heartbeat.len() }));
    let mut posing = probe.clone();
    posing[..2].copy_from_slice(&heartbeat[..2]);
    assert!(opener.open(&posing).is_err());
    assert_eq!(opener.open_probe(&probe), Ok(A));
    assert_eq!(opener.open_probe(&probe), Err(WireError::Replayed { counter: 1 }));
    let later = datagram(&mut sealer, SESSION, 2);
    sealer.probe(&mut probe);
    assert_eq!(opener.open_probe(&probe), Ok(A), "before its heartbeat or after it");
    opener.open(&later).expect("a probe takes no heartbeat's counter");
}

#[test]
#[should_panic(expected = "counter 5 after Some(5)")]
fn a_nonce_is_never_used_twice() {
    let mut sealer = sealer(SESSION);
    datagram(&mut sealer, SESSION, 5);
    datagram(&mut sealer, SESSION, 5);
}

#[test]
fn keys_of_different_sets_and_senders_differ_even_when_their_inputs_look_alike() {
    let mut seen = BTreeSet::new();
    for set in ["a", "ab", "b"] {
        for sender in 0..3 {
            let mut out = Vec::new();
            Sealer::new(SECRET, set, NodeId(sender), SESSION).seal(&golden(), &mut out);
            assert!(seen.insert(out.split_off(HEADER)));
        }
    }
}

/// `cargo test --release -p trilith-core -- --ignored --nocapture what_sealing`
#[test]
#[ignore = "a measurement"]
#[expect(clippy::disallowed_methods, reason = "it measures time, and nothing follows from what it measures")]
fn what_sealing_and_opening_cost() {
    const ROUNDS: u64 = 200_000;
    let (mut sealer, mut opener) = (sealer(SESSION), opener());
    let time = |what: &str, deed: &mut dyn FnMut(u64)| {
        let start = Instant::now();
        (1..=ROUNDS).for_each(deed);
        println!("{what}: {} ns", start.elapsed().as_nanos() as u64 / ROUNDS);
    };
    let mut heartbeat = golden();
    let (mut out, mut all) = (Vec::new(), Vec::new());
    time("seal", &mut |counter| {
        heartbeat.counter = counter;
        sealer.seal(&heartbeat, &mut out);
        if counter <= 10_000 {
            all.push(out.clone());
        }
    });
    println!("datagram: {} bytes", out.len());
    let start = Instant::now();
    all.iter().for_each(|datagram| assert!(black_box(opener.open(datagram)).is_ok()));
    println!("open genuine: {} ns", start.elapsed().as_nanos() as usize / all.len());
    time("open replayed", &mut |_| assert!(black_box(opener.open(&all[0])).is_err()));
    let mut forged = out.clone();
    *forged.last_mut().expect("not empty") ^= 1;
    time("open forged in a known session", &mut |_| assert!(black_box(opener.open(&forged)).is_err()));
    time("open forged in a random session", &mut |round| {
        forged[4..12].copy_from_slice(&round.to_be_bytes());
        assert!(black_box(opener.open(&forged)).is_err());
    });
    time("open of no node", &mut |_| {
        forged[3] = 9;
        assert!(black_box(opener.open(&forged)).is_err());
    });
}

const SESSION: Session = Session(0x0123_4567_89ab_cdef);

fn golden() -> Heartbeat {
    let mut heard = [None; MAX_NODES];
    heard[1] = Some(Echo { session: Session(7), counter: 8, live: true });
    heard[2] = Some(Echo { session: Session(u64::MAX), counter: 0, live: false });
    Heartbeat {
        session: SESSION,
        counter: 42,
        routine: false,
        heard,
        fitness: Fitness::Degraded(Reason::LinkDown(VipId(1))),
        drained: true,
        mac: [2, 0, 0, 0, 0, 1],
        fingerprint: 0xfeed_beef,
        version: [0, 1, 2],
        lease: Duration::from_micros(123_456),
        vips: vec![
            VipReport {
                vip: VipKey::of("public"),
                seen: 9,
                claim: Some(Claim { epoch: 9, held: true }),
                grant: Some(Grant { owner: A, epoch: 9, session: SESSION, counter: 41 }),
                successor: None,
            },
            VipReport { vip: VipKey::of("private"), seen: 3, claim: None, grant: None, successor: Some(NodeId(2)) },
        ],
        ask: Some(Ask { serial: 6, node: B, what: What::Move { vip: VipKey::of("private"), epoch: 3, to: NodeId(2) } }),
    }
}

const GOLDEN_DISK: DiskRecord = DiskRecord { epoch_ceiling: 0x0102_0304, drained: true };
const GOLDEN_RECORD: &str = "54520109000000000102030401d6b2215fb549e9c0";
const GOLDEN_DATAGRAM: &str = "544c01000123456789abcdef000000000000002ab0ebd05b7eba44002d6090e18fc171a39b945861161e54d8\
     e3a65a6a932b6ab99b31f0d42fcd98a1be822906a48a81abd0415197b771019718c3ebd9a5a784edec175494\
     0f95dd3bb36ca2fb23f8efd586601b782f209bc71994243be3f5454dab43f35f5793fffc872bc53b89222821\
     7a9c1397c03d854994a09ad798a95d06ef7d5785f8258507787a1423ad38a70b52aa99a2430a42033dc63675\
     75f81deb787b3ff045ac4f1e44ea74fc0d1b4cae0c891b0e3856d24f39ab0b54791924d1074605cc57e38f5f\
     5ab27e0cf67352a0a489ff827963";

fn sealer(session: Session) -> Sealer {
    Sealer::new(SECRET, "edge-1", A, session)
}

fn opener() -> Opener {
    Opener::new(SECRET, "edge-1", 3, B)
}

fn datagram(sealer: &mut Sealer, session: Session, counter: u64) -> Vec<u8> {
    let mut out = Vec::new();
    sealer.seal(&Heartbeat { session, counter, ..golden() }, &mut out);
    out
}

/// A datagram of `A` with these fields, made from the format's description alone.
fn sealed_by_hand(version: u8, fields: &[u8]) -> Vec<u8> {
    use chacha20poly1305::aead::{Aead, Payload};
    use chacha20poly1305::{ChaCha20Poly1305, KeyInit};
    let mut header = vec![b'T', b'L', version, A.0];
    header.extend(SESSION.0.to_be_bytes());
    header.extend(42_u64.to_be_bytes());
    let mut info = vec![A.0];
    info.extend(SESSION.0.to_be_bytes());
    info.extend(b"edge-1");
    let mut key = [0; 32];
    hkdf::Hkdf::<Sha256>::new(Some(b"trilith peer datagram"), SECRET).expand(&info, &mut key).expect("32 bytes");
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&42_u64.to_be_bytes());
    let payload = Payload { msg: fields, aad: &header };
    let sealed = ChaCha20Poly1305::new(&key.into()).encrypt(&nonce.into(), payload).expect("short");
    [header, sealed].concat()
}

fn decode_with(tag: u8, value: &[u8]) -> Result<Heartbeat, WireError> {
    let mut fields = Vec::new();
    golden().encode(&mut fields);
    let mut fields = without(&fields, tag);
    field(&mut fields, tag, |out| out.extend(value));
    Heartbeat::decode(SESSION, 42, &fields)
}

fn split(fields: &[u8]) -> Vec<(u8, &[u8])> {
    let (mut found, mut rest) = (Vec::new(), fields);
    while let Some((&tag, after)) = rest.split_first() {
        let end = 2 + usize::from(u16::from_be_bytes([after[0], after[1]]));
        found.push((tag, &after[2..end]));
        rest = &after[end..];
    }
    found
}

fn without(fields: &[u8], tag: u8) -> Vec<u8> {
    let mut out = Vec::new();
    for (kept, value) in split(fields).into_iter().filter(|(kept, _)| *kept != tag) {
        field(&mut out, kept, |out| out.extend(value));
    }
    out
}

fn value_of(fields: &[u8], tag: u8) -> Vec<u8> {
    split(fields).into_iter().find(|(found, _)| *found == tag).expect("the field is there").1.to_vec()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex")).collect()
}

/// SplitMix64: every run of the tests sees the same numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Random) -> T) -> Option<T> {
        (self.below(2) == 0).then(|| make(self))
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 0
    }

    fn node(&mut self) -> NodeId {
        NodeId(self.below(MAX_NODES as u64) as u8)
    }

    fn reason(&mut self) -> Reason {
        let vip = VipId(self.below(MAX_VIPS as u64) as u8);
        let other = Reason::Other(10 + self.below(246) as u8);
        let known = [Reason::Starting, Reason::LinkDown(vip), Reason::HaproxyDown, Reason::FrontSilent];
        let more = [
            Reason::GatewayLost,
            Reason::AddressRefused(vip),
            Reason::RelayRefused,
            Reason::Drained,
            Reason::Stopping,
            other,
        ];
        let all: Vec<_> = known.into_iter().chain(more).collect();
        all[self.below(all.len() as u64) as usize]
    }

    fn report(&mut self, vip: VipKey) -> VipReport {
        VipReport {
            vip,
            seen: self.next(),
            claim: self.maybe(|random| Claim { epoch: random.next(), held: random.flag() }),
            grant: self.maybe(|random| {
                let (owner, epoch) = (random.node(), random.next());
                Grant { owner, epoch, session: Session(random.next()), counter: random.next() }
            }),
            successor: self.maybe(Random::node),
        }
    }

    fn ask(&mut self) -> Ask {
        let what = match self.flag() {
            true => What::Move { vip: VipKey(self.next() as u32), epoch: self.next(), to: self.node() },
            false => What::Drain(self.flag()),
        };
        Ask { serial: self.next() as u32, node: self.node(), what }
    }

    fn heartbeat(&mut self) -> Heartbeat {
        let keys: BTreeSet<u32> = (0..self.below(MAX_VIPS as u64 + 1)).map(|_| self.next() as u32).collect();
        let reason = self.reason();
        let levels = [Fitness::Fit, Fitness::Degraded(reason), Fitness::Unfit(reason)];
        Heartbeat {
            session: Session(self.next()),
            counter: self.next(),
            routine: false,
            heard: std::array::from_fn(|_| {
                self.maybe(|random| Echo {
                    session: Session(random.next()),
                    counter: random.next(),
                    live: random.flag(),
                })
            }),
            fitness: levels[self.below(3) as usize],
            drained: self.flag(),
            mac: std::array::from_fn(|_| self.next() as u8),
            fingerprint: self.next() as u32,
            version: std::array::from_fn(|_| self.next() as u16),
            lease: Duration::from_micros(1000 + self.below(59_999_001)),
            vips: keys.into_iter().map(|key| self.report(VipKey(key))).collect(),
            ask: self.maybe(Random::ask),
        }
    }
}
