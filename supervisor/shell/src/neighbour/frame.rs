//! ARP frames (RFC 826, RFC 5227), neighbour discovery messages (RFC 4861), and the kernel filters for both. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use socket2::SockFilter;

/// A MAC address.
pub type Mac = [u8; 6];
/// Ethernet's broadcast address.
pub const BROADCAST: Mac = [0xff; 6];
/// All nodes on the link (RFC 4291).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Somebody says that an address is at a MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Says {
    /// The address.
    pub address: IpAddr,
    /// Where it is; a solicited advertisement need not say it.
    pub mac: Option<Mac>,
}

/// The two forms of ARP packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arp {
    /// Who has it?
    Request,
    /// It is here.
    Reply,
}

/// An ARP packet in its Ethernet frame.
///
/// A probe (RFC 5227) has the sender address 0.0.0.0; a gratuitous packet has sender and target address the same.
pub fn arp(form: Arp, from: Mac, to: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> [u8; 42] {
    let mut frame = [0; 42];
    frame[0..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    // EtherType ARP; hardware type Ethernet, protocol IPv4, lengths 6 and 4.
    frame[12..20].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4]);
    frame[21] = match form {
        Arp::Request => 1,
        Arp::Reply => 2,
    };
    frame[22..28].copy_from_slice(&from);
    frame[28..32].copy_from_slice(&sender.octets());
    // A request does not know the target's MAC address: zero. A broadcast reply is for everybody.
    if form == Arp::Reply {
        frame[32..38].copy_from_slice(&to);
    }
    frame[38..42].copy_from_slice(&target.octets());
    frame
}

/// What the sender of an ARP frame says of itself; `None` for probes, which say nothing, and for what is no ARP for IPv4.
pub fn read_arp(frame: &[u8]) -> Option<Says> {
    let frame: &[u8; 42] = frame.first_chunk()?;
    if frame[12..20] != [0x08, 0x06, 0, 1, 0x08, 0, 6, 4] {
        return None;
    }
    let sender = Ipv4Addr::new(frame[28], frame[29], frame[30], frame[31]);
    let mac = [frame[22], frame[23], frame[24], frame[25], frame[26], frame[27]];
    (!sender.is_unspecified()).then_some(Says { address: IpAddr::V4(sender), mac: Some(mac) })
}

/// A neighbour solicitation for `target`; the kernel fills in the checksum.
pub fn solicitation(target: Ipv6Addr, from: Mac) -> [u8; 32] {
    discovery(SOLICITATION, 0, target, SOURCE_OPTION, from)
}

/// An unsolicited neighbour advertisement: `target` is at `from`, whatever was known before (override).
pub fn advertisement(target: Ipv6Addr, from: Mac) -> [u8; 32] {
    discovery(ADVERTISEMENT, OVERRIDE, target, TARGET_OPTION, from)
}

/// What a neighbour advertisement says; `None` for everything else.
pub fn read_advertisement(message: &[u8]) -> Option<Says> {
    let (head, mut options) = message.split_first_chunk::<24>()?;
    if head[0] != ADVERTISEMENT || head[1] != 0 {
        return None;
    }
    let target: [u8; 16] = head[8..24].try_into().ok()?;
    let mut mac = None;
    // Options: type, length in units of 8 bytes. A length of zero ends it all (RFC 4861, section 4.6).
    while let [kind, units, ..] = *options {
        let length = usize::from(units) * 8;
        let option = options.get(..length).filter(|option| !option.is_empty())?;
        if kind == TARGET_OPTION && length == 8 {
            mac = option[2..8].try_into().ok();
        }
        options = &options[length..];
    }
    Some(Says { address: IpAddr::V6(Ipv6Addr::from(target)), mac })
}

/// The multicast group in which the holder of `target` listens for solicitations (RFC 4291, section 2.7.1).
pub fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let low = target.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(low[13]), u16::from_be_bytes([low[14], low[15]]))
}

/// Passes ARP frames whose sender has one of these addresses, and replies to this machine.
pub fn arp_filter(vips: &[Ipv4Addr]) -> Vec<SockFilter> {
    let mut program = vec![load(WORD, 28)];
    for vip in vips {
        program.extend([skip_unless(u32::from(*vip), 1), PASS]);
    }
    program.extend([load(HALF, 20), skip_unless(2, 3), load(BYTE, PACKET_TYPE), skip_unless(0, 1), PASS, DROP]);
    program
}

/// Passes neighbour advertisements for one of these addresses, and solicited ones, unless they came through a router.
pub fn advertisement_filter(vips: &[Ipv6Addr]) -> Vec<SockFilter> {
    let mut program = vec![load(BYTE, 0), skip_if(u32::from(ADVERTISEMENT), 1), DROP];
    program.extend([load(BYTE, HOP_LIMIT), skip_if(255, 1), DROP]);
    program.extend([load(BYTE, 4), skip_unless_bits(SOLICITED, 1), PASS]);
    for vip in vips {
        let octets = vip.octets();
        for (place, word) in octets.chunks_exact(4).enumerate() {
            program.push(load(WORD, 8 + 4 * place as u32));
            // To the next address: over the rest of these four comparisons and the PASS behind them.
            program.push(skip_unless(u32::from_be_bytes([word[0], word[1], word[2], word[3]]), 7 - 2 * place as u8));
        }
        program.push(PASS);
    }
    program.push(DROP);
    program
}

fn discovery(kind: u8, flags: u8, target: Ipv6Addr, option: u8, mac: Mac) -> [u8; 32] {
    let mut message = [0; 32];
    message[0] = kind;
    message[4] = flags;
    message[8..24].copy_from_slice(&target.octets());
    message[24..26].copy_from_slice(&[option, 1]);
    message[26..32].copy_from_slice(&mac);
    message
}

// Classic BPF (linux/filter.h): what a load reads, and where the kernel keeps what is not in the packet.
const WORD: u16 = 0x20;
const HALF: u16 = 0x28;
const BYTE: u16 = 0x30;
const PACKET_TYPE: u32 = 0xffff_f004;
/// Byte 7 of the network header.
const HOP_LIMIT: u32 = 0xfff0_0007;
const PASS: SockFilter = SockFilter::new(0x06, 0, 0, u32::MAX);
const DROP: SockFilter = SockFilter::new(0x06, 0, 0, 0);

fn load(size: u16, at: u32) -> SockFilter {
    SockFilter::new(size, 0, 0, at)
}

fn skip_if(value: u32, count: u8) -> SockFilter {
    SockFilter::new(0x15, count, 0, value)
}

fn skip_unless(value: u32, count: u8) -> SockFilter {
    SockFilter::new(0x15, 0, count, value)
}

fn skip_unless_bits(bits: u32, count: u8) -> SockFilter {
    SockFilter::new(0x45, 0, count, bits)
}

// RFC 4861, sections 4.3, 4.4 and 4.6.1.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOLICITED: u32 = 0x40;
const OVERRIDE: u8 = 0x20;
const SOURCE_OPTION: u8 = 1;
const TARGET_OPTION: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];
    const VIP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);

    #[test]
    fn an_announcement_is_read_as_it_was_written_and_a_probe_says_nothing() {
        let says = Some(Says { address: IpAddr::V4(VIP), mac: Some(MAC) });
        assert_eq!(read_arp(&arp(Arp::Request, MAC, BROADCAST, VIP, VIP)), says);
        assert_eq!(read_arp(&arp(Arp::Reply, MAC, BROADCAST, VIP, VIP)), says);
        assert_eq!(read_arp(&arp(Arp::Request, MAC, BROADCAST, Ipv4Addr::UNSPECIFIED, VIP)), None);
    }

    #[test]
    fn an_advertisement_is_read_as_it_was_written() {
        let vip: Ipv6Addr = "fd77::10".parse().unwrap();
        assert_eq!(
            read_advertisement(&advertisement(vip, MAC)),
            Some(Says { address: IpAddr::V6(vip), mac: Some(MAC) })
        );
        assert_eq!(read_advertisement(&solicitation(vip, MAC)), None);
        assert_eq!(solicited_node(vip), "ff02::1:ff00:10".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn what_is_cut_short_or_malformed_is_never_read_beyond_its_end() {
        let frame = arp(Arp::Reply, MAC, BROADCAST, VIP, VIP);
        let message = advertisement("fd77::10".parse().unwrap(), MAC);
        for length in 0..frame.len() {
            assert_eq!(read_arp(&frame[..length]), None);
        }
        for length in 0..24 {
            assert_eq!(read_advertisement(&message[..length]), None);
        }
        let mut endless = message;
        endless[25] = 0;
        assert_eq!(read_advertisement(&endless), None);
    }
}
