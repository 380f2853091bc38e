//! Ethernet frames of ARP (RFC 826) and neighbour discovery (RFC 4861), as few of their fields as watching a VIP takes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Serialize, Serializer};

/// An Ethernet address; in JSON and `Display` it reads `02:00:00:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// In which form a node claims an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimKind {
    /// ARP request for the sender's own address (RFC 5227, announcement).
    GratuitousRequest,
    /// ARP reply that names its own address as sender and as target.
    GratuitousReply,
    /// ARP reply to somebody's request.
    Reply,
    /// ARP request for another address, sent from the VIP: `arp_announce=2` should prevent it.
    RequestFrom,
    /// Unsolicited neighbour advertisement.
    UnsolicitedNa,
    /// Neighbour advertisement that answers a solicitation.
    SolicitedNa,
}

impl ClaimKind {
    /// Whether it answers a question rather than being announced.
    pub fn is_answer(self) -> bool {
        matches!(self, ClaimKind::Reply | ClaimKind::SolicitedNa)
    }
}

/// A claim read from a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard {
    pub mac: Mac,
    pub kind: ClaimKind,
    /// To whom the frame went; for an answer, who had asked.
    pub to: Mac,
}

/// Reads a claim to `vip` from an Ethernet frame; `None` if it is none.
pub(super) fn claim(frame: &[u8], vip: IpAddr) -> Option<Heard> {
    match vip {
        IpAddr::V4(vip) => arp_claim(frame, vip),
        IpAddr::V6(vip) => na_claim(frame, vip),
    }
}

fn arp_claim(frame: &[u8], vip: Ipv4Addr) -> Option<Heard> {
    let arp = frame.get(ETH_LEN..ETH_LEN + ARP_LEN)?;
    if frame[12..14] != ETHERTYPE_ARP || arp[..6] != ARP_ETHERNET_IPV4 || arp[14..18] != vip.octets() {
        return None;
    }
    let own = arp[24..28] == arp[14..18];
    let kind = match (arp[7], own) {
        (1, true) => ClaimKind::GratuitousRequest,
        (1, false) => ClaimKind::RequestFrom,
        (2, true) => ClaimKind::GratuitousReply,
        (2, false) => ClaimKind::Reply,
        _ => return None,
    };
    Some(Heard { mac: mac(&arp[8..14]), kind, to: mac(&arp[18..24]) })
}

fn na_claim(frame: &[u8], vip: Ipv6Addr) -> Option<Heard> {
    let icmp = frame.get(ETH_LEN + IPV6_LEN..)?;
    if frame[12..14] != ETHERTYPE_IPV6 || frame[ETH_LEN + 6] != ICMPV6 || icmp.len() < 24 {
        return None;
    }
    if icmp[0] != NEIGHBOUR_ADVERTISEMENT || icmp[8..24] != vip.octets() {
        return None;
    }
    let solicited = icmp[4] & 0x40 != 0;
    // The target link-layer option; without it (RFC 4861, 4.4 allows that in answers) the frame's sender.
    let option = icmp.get(24..32).filter(|option| option[..2] == [2, 1]);
    let owner = option.map_or(mac(&frame[6..12]), |option| mac(&option[2..8]));
    let kind = if solicited { ClaimKind::SolicitedNa } else { ClaimKind::UnsolicitedNa };
    Some(Heard { mac: owner, kind, to: mac(&frame[..6]) })
}

/// An ARP request: who has `target`? Tell `from`, who is at `mac`.
pub(super) fn arp_request(from: Ipv4Addr, mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETH_LEN + ARP_LEN);
    frame.extend([0xff; 6]);
    frame.extend(mac.0);
    frame.extend(ETHERTYPE_ARP);
    frame.extend(ARP_ETHERNET_IPV4);
    frame.extend([0, 1]);
    frame.extend(mac.0);
    frame.extend(from.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// A neighbour solicitation for `target`, sent from the link-local address of `mac`.
pub(super) fn solicitation(mac: Mac, target: Ipv6Addr) -> Vec<u8> {
    let [.., x, y, z] = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]);
    let mut icmp = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    icmp.extend(target.octets());
    icmp.extend([1, 1]);
    icmp.extend(mac.0);
    let mut frame = Vec::with_capacity(ETH_LEN + IPV6_LEN + icmp.len());
    frame.extend([0x33, 0x33, 0xff, x, y, z]);
    frame.extend(mac.0);
    frame.extend(ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0, 0, icmp.len() as u8, ICMPV6, 255]);
    frame.extend(link_local(mac).octets());
    frame.extend(group.octets());
    let sum = icmp_checksum(&frame[ETH_LEN + 8..], &icmp);
    icmp[2..4].copy_from_slice(&sum);
    frame.extend(icmp);
    frame
}

/// The link-local address that a MAC gives (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// The Internet checksum over the pseudo-header (`addresses`: source and destination) and the message (RFC 4443, 2.3).
fn icmp_checksum(addresses: &[u8], icmp: &[u8]) -> [u8; 2] {
    let words = addresses.chunks(2).chain(icmp.chunks(2)).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum = words.sum::<u32>() + icmp.len() as u32 + u32::from(ICMPV6);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn mac(bytes: &[u8]) -> Mac {
    let mut octets = [0; 6];
    octets.copy_from_slice(bytes);
    Mac(octets)
}

const ETH_LEN: usize = 14;
const ARP_LEN: usize = 28;
const IPV6_LEN: usize = 40;
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// Hardware type Ethernet, protocol IPv4, address lengths 6 and 4.
const ARP_ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
    const NODE: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn every_form_of_arp_claim_is_told_apart() {
        let mut gratuitous = arp_request(VIP, NODE, VIP);
        let kind = |frame: &[u8]| claim(frame, VIP.into()).map(|heard| (heard.mac, heard.kind));
        assert_eq!(kind(&gratuitous), Some((NODE, ClaimKind::GratuitousRequest)));
        gratuitous[21] = 2;
        assert_eq!(kind(&gratuitous), Some((NODE, ClaimKind::GratuitousReply)));
        let mut asks = arp_request(VIP, NODE, Ipv4Addr::new(10, 77, 0, 1));
        assert_eq!(kind(&asks), Some((NODE, ClaimKind::RequestFrom)));
        asks[21] = 2;
        assert_eq!(kind(&asks), Some((NODE, ClaimKind::Reply)));
    }

    #[test]
    fn a_question_for_the_vip_is_no_claim_and_neither_is_a_cut_frame() {
        let question = arp_request(Ipv4Addr::new(10, 77, 0, 1), NODE, VIP);
        assert_eq!(claim(&question, VIP.into()), None);
        let gratuitous = arp_request(VIP, NODE, VIP);
        for cut in 0..gratuitous.len() {
            assert_eq!(claim(&gratuitous[..cut], VIP.into()), None, "{cut}");
        }
        let vip6: Ipv6Addr = "fd77::10".parse().expect("an address");
        let solicitation = solicitation(NODE, vip6);
        for cut in 0..=solicitation.len() {
            assert_eq!(claim(&solicitation[..cut], vip6.into()), None, "{cut}");
        }
    }
}
