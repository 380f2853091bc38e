//! Fields of a heartbeat and of the disk record, to bytes and back.
//!
//! A list is written as one field for each element, so that an element may grow in a later version like any other field.
//!
//! | tag | field | bytes |
//! |---|---|---|
//! | 1 | node | mac 6, fingerprint u32, version 3 × u16 |
//! | 2 | fitness | level u8 (0 fit, 1 degraded, 2 unfit), reason u8, its VIP u8, drained u8 |
//! | 3 | lease | µs u32 |
//! | 4 | heard, one for each node | node u8, live u8, session u64, counter u64 |
//! | 5 | VIP, one for each | key u32, seen u64, flags u8, claim epoch u64, grant: owner u8, epoch u64, session u64, counter u64, successor u8 |
//! | 6 | ask | serial u32, node u8, kind u8 (1 move, 2 drain), key u32, epoch u64, to u8, drained u8 |
//! | 7 | deaf ([`super::Sealer::set_deaf`]) | bitmap of nodes u8 |
//! | 8 | relaying ([`super::Relaying`]) | bitmaps of nodes: open u8, barred u8, tunnelled u8 |
//!
//! Fields 1 to 3 are in every heartbeat. Tags 128 and above are free for tests.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{
    Ask, Claim, DiskRecord, Echo, Grant, Heartbeat, MAX_DATAGRAM, MAX_LEASE, MIN_LEASE, Relaying, Session, VERSION,
    VipKey, VipReport, What, WireError,
};
use crate::config::{MAX_NODES, MAX_VIPS, NodeId, VipId};
use crate::health::{Fitness, Reason};

impl Heartbeat {
    /// Appends the fields to `out`; session and counter are not among them, since the datagram's header carries them.
    ///
    /// # Panics
    ///
    /// When the lease is outside [`MIN_LEASE`]..=[`MAX_LEASE`] (clamped, it would run out earlier at a granter than at the
    /// owner) or there are more than [`MAX_VIPS`] reports.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!((MIN_LEASE..=MAX_LEASE).contains(&self.lease), "lease of {:?} is out of range", self.lease);
        assert!(self.vips.len() <= MAX_VIPS, "{} VIP reports", self.vips.len());
        field(out, NODE, |out| {
            out.extend(self.mac);
            out.extend(self.fingerprint.to_be_bytes());
            self.version.iter().for_each(|part| out.extend(part.to_be_bytes()));
        });
        let (level, reason) = match self.fitness {
            Fitness::Fit => (FIT, (0, 0)),
            Fitness::Degraded(reason) => (DEGRADED, reason_to_number(reason)),
            Fitness::Unfit(reason) => (UNFIT, reason_to_number(reason)),
        };
        field(out, FITNESS, |out| out.extend([level, reason.0, reason.1, u8::from(self.drained)]));
        // Rounded up: a grant may end after its claim, but never before.
        let lease_us = self.lease.as_nanos().div_ceil(1000) as u32;
        field(out, LEASE, |out| out.extend(lease_us.to_be_bytes()));
        for (node, echo) in self.heard.iter().enumerate() {
            if let Some(echo) = echo {
                field(out, HEARD, |out| {
                    out.extend([node as u8, u8::from(echo.live)]);
                    out.extend(echo.session.0.to_be_bytes());
                    out.extend(echo.counter.to_be_bytes());
                });
            }
        }
        self.vips.iter().for_each(|report| field(out, VIP, |out| encode_vip(report, out)));
        if let Some(ask) = &self.ask {
            field(out, ASK, |out| encode_ask(ask, out));
        }
    }

    /// Reads what [`Heartbeat::encode`] of this version, an older one or a newer one wrote.
    ///
    /// Nodes that are named are below [`MAX_NODES`], but not always nodes of the reader's document. A level of fitness that is
    /// not known counts as unfit; a request that is not known is left out.
    ///
    /// # Errors
    ///
    /// The first thing that is not as the format says, or a datagram that could not hold so many bytes.
    pub fn decode(session: Session, counter: u64, fields: &[u8]) -> Result<Heartbeat, WireError> {
        if fields.len() > MAX_DATAGRAM {
            return Err(WireError::TooLong { length: fields.len() });
        }
        let (mut node, mut fitness, mut lease, mut ask) = (None, None, None, None);
        let mut heard = [None; MAX_NODES];
        let mut vips: Vec<VipReport> = Vec::new();
        for next in Fields(fields) {
            let (tag, mut field) = next?;
            match tag {
                NODE => once(&mut node, tag, decode_node(&mut field)?)?,
                FITNESS => once(&mut fitness, tag, decode_fitness(&mut field)?)?,
                LEASE => once(&mut lease, tag, decode_lease(&mut field)?)?,
                HEARD => {
                    let (NodeId(node), echo) = (field.node()?, decode_echo(&mut field)?);
                    once(&mut heard[usize::from(node)], tag, echo)?;
                }
                VIP => {
                    let report = decode_vip(&mut field)?;
                    if vips.iter().any(|known| known.vip == report.vip) {
                        return Err(WireError::Repeated { tag });
                    }
                    if vips.len() == MAX_VIPS {
                        return Err(WireError::OutOfRange { tag, value: MAX_VIPS as u64 + 1 });
                    }
                    vips.push(report);
                }
                ASK => once(&mut ask, tag, decode_ask(&mut field)?)?,
                _ => {}
            }
        }
        let (mac, fingerprint, version) = node.ok_or(WireError::Missing { tag: NODE })?;
        let (fitness, drained) = fitness.ok_or(WireError::Missing { tag: FITNESS })?;
        let lease = lease.ok_or(WireError::Missing { tag: LEASE })?;
        let ask = ask.flatten();
        Ok(Heartbeat {
            session,
            counter,
            routine: false,
            heard,
            fitness,
            drained,
            mac,
            fingerprint,
            version,
            lease,
            vips,
            ask,
        })
    }
}

impl DiskRecord {
    /// The record as bytes: `"TR" | version u8 | length u8 | epoch ceiling u64 | drained u8 | first 8 bytes of the SHA-256
    /// of all before`. `length` counts what lies between it and the checksum; later versions may add to that.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(RECORD_HEADER + RECORD_BODY + CHECKSUM);
        out.extend(RECORD_MARK);
        out.extend([VERSION, RECORD_BODY as u8]);
        out.extend(self.epoch_ceiling.to_be_bytes());
        out.push(u8::from(self.drained));
        let checksum = checksum(&out);
        out.extend(checksum);
        out
    }

    /// Reads what [`DiskRecord::encode`] of any version wrote.
    ///
    /// # Errors
    ///
    /// Whatever is not exactly as it was written: too short, too long, changed, or no record at all.
    pub fn decode(bytes: &[u8]) -> Result<DiskRecord, WireError> {
        let length = bytes.len();
        if length < RECORD_HEADER + RECORD_BODY + CHECKSUM {
            return Err(WireError::TooShort { length });
        }
        if bytes[..2] != RECORD_MARK {
            return Err(WireError::Foreign);
        }
        let (content, sum) = bytes.split_at(length - CHECKSUM);
        if checksum(content) != sum {
            return Err(WireError::Checksum);
        }
        if bytes[2] == 0 {
            return Err(WireError::Version);
        }
        match usize::from(bytes[3]).cmp(&(content.len() - RECORD_HEADER)) {
            std::cmp::Ordering::Less => return Err(WireError::TooLong { length }),
            std::cmp::Ordering::Greater => return Err(WireError::TooShort { length }),
            std::cmp::Ordering::Equal => {}
        }
        let mut body = Field { tag: 0, rest: &content[RECORD_HEADER..] };
        Ok(DiskRecord { epoch_ceiling: body.u64()?, drained: body.flag()? })
    }
}

/// The nodes that the sender does not hear on the direct path; none when it does not say.
pub(super) fn deaf(fields: &[u8]) -> u8 {
    find(fields, DEAF).and_then(|mut field| field.u8().ok()).unwrap_or(0)
}

/// Appends the field that [`deaf`] reads.
pub(super) fn encode_deaf(nodes: u8, out: &mut Vec<u8>) {
    field(out, DEAF, |out| out.push(nodes));
}

/// What the sender says of relaying; `None` when it says nothing.
pub(super) fn relaying(fields: &[u8]) -> Option<Relaying> {
    let mut field = find(fields, RELAYING)?;
    let (open, barred, tunnelled) = (field.u8().ok()?, field.u8().ok()?, field.u8().ok()?);
    Some(Relaying { open, barred, tunnelled })
}

/// Appends the field that [`relaying`] reads.
pub(super) fn encode_relaying(relaying: Relaying, out: &mut Vec<u8>) {
    field(out, RELAYING, |out| out.extend([relaying.open, relaying.barred, relaying.tunnelled]));
}

fn find(fields: &[u8], wanted: u8) -> Option<Field<'_>> {
    Fields(fields).filter_map(Result::ok).find(|(tag, _)| *tag == wanted).map(|(_, field)| field)
}

fn encode_vip(report: &VipReport, out: &mut Vec<u8>) {
    let flags = [
        (report.claim.is_some(), CLAIMS),
        (report.claim.is_some_and(|claim| claim.held), HOLDS),
        (report.grant.is_some(), GRANTS),
        (report.successor.is_some(), NAMES),
    ];
    let claim_epoch = report.claim.map_or(0, |claim| claim.epoch);
    let nobody = Grant { owner: NodeId(0), epoch: 0, session: Session(0), counter: 0 };
    let grant = report.grant.unwrap_or(nobody);
    out.extend(report.vip.0.to_be_bytes());
    out.extend(report.seen.to_be_bytes());
    out.push(flags.iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum());
    out.extend(claim_epoch.to_be_bytes());
    out.push(grant.owner.0);
    [grant.epoch, grant.session.0, grant.counter].iter().for_each(|number| out.extend(number.to_be_bytes()));
    out.push(report.successor.map_or(0, |node| node.0));
}

fn decode_vip(field: &mut Field) -> Result<VipReport, WireError> {
    let (vip, seen, flags) = (VipKey(field.u32()?), field.u64()?, field.u8()?);
    let claim = Claim { epoch: field.u64()?, held: flags & HOLDS != 0 };
    let grant =
        Grant { owner: field.node()?, epoch: field.u64()?, session: Session(field.u64()?), counter: field.u64()? };
    let successor = field.node()?;
    Ok(VipReport {
        vip,
        seen,
        claim: (flags & CLAIMS != 0).then_some(claim),
        grant: (flags & GRANTS != 0).then_some(grant),
        successor: (flags & NAMES != 0).then_some(successor),
    })
}

fn encode_ask(ask: &Ask, out: &mut Vec<u8>) {
    let (kind, vip, epoch, to, drained) = match ask.what {
        What::Move { vip, epoch, to } => (MOVE, vip.0, epoch, to.0, false),
        What::Drain(drained) => (DRAIN, 0, 0, 0, drained),
    };
    out.extend(ask.serial.to_be_bytes());
    out.extend([ask.node.0, kind]);
    out.extend(vip.to_be_bytes());
    out.extend(epoch.to_be_bytes());
    out.extend([to, u8::from(drained)]);
}

/// `None` is a request of a newer version: the heartbeat is still a sign of life.
fn decode_ask(field: &mut Field) -> Result<Option<Ask>, WireError> {
    let (serial, node, kind) = (field.u32()?, field.node()?, field.u8()?);
    let what = match kind {
        MOVE => What::Move { vip: VipKey(field.u32()?), epoch: field.u64()?, to: field.node()? },
        DRAIN => {
            field.skip(4 + 8 + 1)?;
            What::Drain(field.flag()?)
        }
        _ => return Ok(None),
    };
    Ok(Some(Ask { serial, node, what }))
}

fn decode_node(field: &mut Field) -> Result<([u8; 6], u32, [u16; 3]), WireError> {
    Ok((field.take()?, field.u32()?, [field.u16()?, field.u16()?, field.u16()?]))
}

fn decode_fitness(field: &mut Field) -> Result<(Fitness, bool), WireError> {
    let (level, number, vip, drained) = (field.u8()?, field.u8()?, field.u8()?, field.flag()?);
    let reason = reason_from_number(number, vip);
    let fitness = match level {
        FIT => Fitness::Fit,
        DEGRADED => Fitness::Degraded(reason),
        _ => Fitness::Unfit(reason),
    };
    Ok((fitness, drained))
}

fn decode_lease(field: &mut Field) -> Result<Duration, WireError> {
    let us = field.u32()?;
    let lease = Duration::from_micros(us.into());
    let fits = (MIN_LEASE..=MAX_LEASE).contains(&lease);
    if fits { Ok(lease) } else { Err(WireError::OutOfRange { tag: LEASE, value: us.into() }) }
}

fn decode_echo(field: &mut Field) -> Result<Echo, WireError> {
    let live = field.flag()?;
    Ok(Echo { session: Session(field.u64()?), counter: field.u64()?, live })
}

/// A reason's number, and the VIP that it is about.
fn reason_to_number(reason: Reason) -> (u8, u8) {
    match reason {
        Reason::Starting => (1, 0),
        Reason::LinkDown(vip) => (2, vip.0),
        Reason::HaproxyDown => (3, 0),
        Reason::FrontSilent => (4, 0),
        Reason::GatewayLost => (5, 0),
        Reason::AddressRefused(vip) => (6, vip.0),
        Reason::RelayRefused => (7, 0),
        Reason::Drained => (8, 0),
        Reason::Stopping => (9, 0),
        Reason::Other(number) => (number, 0),
    }
}

fn reason_from_number(number: u8, vip: u8) -> Reason {
    let vip_known = usize::from(vip) < MAX_VIPS;
    match number {
        1 => Reason::Starting,
        2 if vip_known => Reason::LinkDown(VipId(vip)),
        3 => Reason::HaproxyDown,
        4 => Reason::FrontSilent,
        5 => Reason::GatewayLost,
        6 if vip_known => Reason::AddressRefused(VipId(vip)),
        7 => Reason::RelayRefused,
        8 => Reason::Drained,
        9 => Reason::Stopping,
        // The place of a VIP that this version cannot have says nothing here; 0 is never a reason's number.
        2 | 6 => Reason::Other(0),
        _ => Reason::Other(number),
    }
}

fn checksum(content: &[u8]) -> [u8; CHECKSUM] {
    let digest = Sha256::digest(content);
    std::array::from_fn(|at| digest[at])
}

/// Appends one field: its tag, the length of what `write` appends, and that.
pub(super) fn field(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.extend([tag, 0, 0]);
    let start = out.len();
    write(out);
    let length = (out.len() - start) as u16;
    out[start - 2..start].copy_from_slice(&length.to_be_bytes());
}

fn once<T>(place: &mut Option<T>, tag: u8, value: T) -> Result<(), WireError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(WireError::Repeated { tag }),
    }
}

/// The fields that a byte string is made of; ends after the first error.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u8, Field<'a>), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&tag, rest) = self.0.split_first()?;
        self.0 = &[];
        let Some((length, rest)) = rest.split_first_chunk() else {
            return Some(Err(WireError::CutOff { tag }));
        };
        let Some((value, rest)) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length))) else {
            return Some(Err(WireError::CutOff { tag }));
        };
        self.0 = rest;
        Some(Ok((tag, Field { tag, rest: value })))
    }
}

/// What is left to read of one field.
struct Field<'a> {
    tag: u8,
    rest: &'a [u8],
}

impl Field<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(WireError::CutOff { tag: self.tag })?;
        self.rest = rest;
        Ok(*head)
    }

    fn skip(&mut self, count: usize) -> Result<(), WireError> {
        self.rest = self.rest.get(count..).ok_or(WireError::CutOff { tag: self.tag })?;
        Ok(())
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.take().map(u64::from_be_bytes)
    }

    fn flag(&mut self) -> Result<bool, WireError> {
        self.u8().map(|byte| byte != 0)
    }

    fn node(&mut self) -> Result<NodeId, WireError> {
        let node = self.u8()?;
        let fits = usize::from(node) < MAX_NODES;
        if fits { Ok(NodeId(node)) } else { Err(WireError::OutOfRange { tag: self.tag, value: node.into() }) }
    }
}

const NODE: u8 = 1;
const FITNESS: u8 = 2;
const LEASE: u8 = 3;
const HEARD: u8 = 4;
const VIP: u8 = 5;
const ASK: u8 = 6;
const DEAF: u8 = 7;
const RELAYING: u8 = 8;

const FIT: u8 = 0;
const DEGRADED: u8 = 1;
const UNFIT: u8 = 2;

const CLAIMS: u8 = 1;
const HOLDS: u8 = 2;
const GRANTS: u8 = 4;
const NAMES: u8 = 8;

const MOVE: u8 = 1;
const DRAIN: u8 = 2;

const RECORD_MARK: [u8; 2] = *b"TR";
const RECORD_HEADER: usize = 4;
const RECORD_BODY: usize = 9;
const CHECKSUM: usize = 8;
