//! CRC-32 in its two polynomials: GPT and ZIP have IEEE 802.3's, VHDX has Castagnoli's (RFC 3720, appendix B.4).

/// CRC-32 of IEEE 802.3.
pub fn ieee(bytes: &[u8]) -> u32 {
    of(&IEEE, bytes)
}

/// CRC-32C.
pub fn castagnoli(bytes: &[u8]) -> u32 {
    of(&CASTAGNOLI, bytes)
}

fn of(table: &[u32; 256], bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| table[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8))
}

/// What each value of a byte does to the remainder; both are the reflected forms.
const fn table(polynomial: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ polynomial } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

static IEEE: [u32; 256] = table(0xedb8_8320);
static CASTAGNOLI: [u32; 256] = table(0x82f6_3b78);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_give_the_check_values_of_their_catalogue() {
        assert_eq!(ieee(b"123456789"), 0xcbf4_3926);
        assert_eq!(castagnoli(b"123456789"), 0xe306_9283);
    }
}
