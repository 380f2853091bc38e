//! Reads the counter of relayed packets from the kernel (nfnetlink, `linux/netfilter/nf_tables.h`).
//!
//! Consoles and the coordinator look at the status again and again, and `nft` would have to be started for each look, by a process that
//! is locked in memory and runs in real time. Rules are put in force by `nft` all the same: there its syntax and checks are worth it.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

/// What the counter named `relayed` of our table of this family (`NFPROTO_*`) has counted; 0 while there is no such table.
///
/// # Errors
/// What the kernel says, or that its answer is not as expected.
pub(super) fn packets(family: i32) -> Result<u64> {
    let protocol = Some(Protocol::from(libc::NETLINK_NETFILTER));
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, protocol).context("a socket of nfnetlink")?;
    socket.set_read_timeout(Some(PATIENCE)).context("a socket of nfnetlink")?;
    // To nobody named, so to the kernel, which has answered by the time that this returns.
    socket.send(&question(family)).context("a question to nfnetlink")?;
    let mut answer = Vec::with_capacity(ROOM);
    let length = socket.recv(answer.spare_capacity_mut()).context("an answer of nfnetlink")?;
    // SAFETY: so many bytes have been written.
    unsafe { answer.set_len(length) };
    counted(&answer)
}

fn question(family: i32) -> Vec<u8> {
    let mut message = Vec::with_capacity(ROOM);
    message.extend([0; LENGTH]);
    message.extend(kind(libc::NFT_MSG_GETOBJ).to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // Sequence and port: there is one question and one answer.
    message.extend([0; 8]);
    // struct nfgenmsg.
    message.extend([family as u8, libc::NFNETLINK_V0 as u8, 0, 0]);
    for (number, value) in [(TABLE, &b"trilith\0"[..]), (NAME, b"relayed\0"), (TYPE, &COUNTER.to_be_bytes())] {
        message.extend(((4 + value.len()) as u16).to_ne_bytes());
        message.extend(number.to_ne_bytes());
        message.extend(value);
    }
    let length = (message.len() as u32).to_ne_bytes();
    message[..LENGTH].copy_from_slice(&length);
    message
}

/// The count in an answer; a table that is not there has counted nothing.
pub(super) fn counted(answer: &[u8]) -> Result<u64> {
    let number = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    let answered = answer.get(LENGTH..LENGTH + 2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    if answered == Some(libc::NLMSG_ERROR as u16) {
        let error = number(HEADER).context("an error of nfnetlink is cut off")? as i32;
        if error == -libc::ENOENT {
            return Ok(0);
        }
        return Err(io::Error::from_raw_os_error(error.wrapping_neg())).context("nfnetlink does not tell the counter");
    }
    if answered != Some(kind(libc::NFT_MSG_NEWOBJ)) {
        bail!("nfnetlink answers with a message of type {answered:?}");
    }
    answer
        .get(HEADER + GENERIC..)
        .and_then(|attributes| attribute(attributes, DATA))
        .and_then(|data| attribute(data, PACKETS))
        .and_then(|packets| packets.try_into().ok())
        .map(u64::from_be_bytes)
        .context("nfnetlink's answer has no count of packets")
}

/// The value of the first attribute of that number (struct nlattr).
fn attribute(mut attributes: &[u8], number: u16) -> Option<&[u8]> {
    loop {
        let (length, rest) = attributes.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes(*kind) & libc::NLA_TYPE_MASK as u16 == number {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

const fn kind(message: i32) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES << 8 | message) as u16
}

/// Bytes of a message's length, the first of its header.
const LENGTH: usize = 4;
/// Bytes of struct nlmsghdr.
const HEADER: usize = 16;
/// Bytes of struct nfgenmsg.
const GENERIC: usize = 4;
/// More than either message takes.
const ROOM: usize = 512;
/// `NFTA_OBJ_*`.
const TABLE: u16 = 1;
const NAME: u16 = 2;
const TYPE: u16 = 3;
const DATA: u16 = 4;
/// `NFT_OBJECT_COUNTER`.
const COUNTER: u32 = 1;
/// `NFTA_COUNTER_PACKETS`.
const PACKETS: u16 = 2;
/// The answer is there before the question's system call returns; were it not, status must not hang.
const PATIENCE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    /// What Linux 6.12 answered, its header and attributes shortened to what is read.
    fn answer(kind: u16, attributes: &[u8]) -> Vec<u8> {
        let mut answer = vec![0; HEADER];
        answer[LENGTH..LENGTH + 2].copy_from_slice(&kind.to_ne_bytes());
        answer.extend([2, 0, 0, 0]);
        answer.extend(attributes);
        answer
    }

    fn nested(number: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(number.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn packets_are_told_from_bytes_and_other_attributes() {
        let data = [nested(1, &7_u64.to_be_bytes()), nested(PACKETS, &412_u64.to_be_bytes())].concat();
        let attributes = [nested(TABLE, b"trilith\0"), nested(NAME, b"x\0"), nested(DATA | 0x8000, &data)].concat();
        let whole = answer(kind(libc::NFT_MSG_NEWOBJ), &attributes);
        assert_eq!(counted(&whole).unwrap(), 412);
        for cut in 0..whole.len() {
            assert!(counted(&whole[..cut]).is_err(), "{cut} bytes");
        }
    }

    #[test]
    fn no_table_is_nothing_relayed_and_other_errors_are_told() {
        let error = |number: i32| {
            let mut answer = answer(libc::NLMSG_ERROR as u16, &[]);
            answer[HEADER..].copy_from_slice(&number.wrapping_neg().to_ne_bytes());
            answer
        };
        assert_eq!(counted(&error(libc::ENOENT)).unwrap(), 0);
        assert!(format!("{:#}", counted(&error(libc::EPERM)).unwrap_err()).contains("not permitted"));
        assert!(counted(&error(i32::MIN)).is_err());
        assert!(counted(&answer(0, &[])).is_err());
    }

    #[test]
    fn attributes_that_lie_about_their_length_end_the_search() {
        for length in [0_u16, 1, 3, 9, u16::MAX] {
            let mut lie = nested(TABLE, b"abcd");
            lie[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(attribute(&lie, DATA), None, "{length}");
        }
    }
}
