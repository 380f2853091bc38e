//! The one call into libcrypt: whether a password belongs to a hash. (crypt(3), crypt(5); libxcrypt of Debian: yescrypt, sha512…)

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use zeroize::Zeroizing;

#[link(name = "crypt")]
unsafe extern "C" {
    fn crypt_rn(phrase: *const c_char, setting: *const c_char, data: *mut c_void, size: c_int) -> *mut c_char;
}

/// Whether `password` is the one that `hash` was made of. Takes as long as the hash's method asks for: a tenth of a second or so.
///
/// A hash that libcrypt does not know belongs to no password.
pub fn belongs(password: &str, hash: &str) -> bool {
    let (Ok(phrase), Ok(setting)) = (CString::new(password), CString::new(hash)) else { return false };
    let phrase = Zeroizing::new(phrase.into_bytes_with_nul());
    let mut scratch = Zeroizing::new(vec![0u64; SCRATCH / size_of::<u64>()]);
    // SAFETY: both strings end with NUL; the scratch area is zeroed, aligned for anything crypt keeps in it, and as large as is
    // said. What is returned points into it, or is null.
    let made = unsafe {
        let made = crypt_rn(phrase.as_ptr().cast(), setting.as_ptr(), scratch.as_mut_ptr().cast(), SCRATCH as c_int);
        if made.is_null() {
            return false;
        }
        CStr::from_ptr(made).to_bytes().to_vec()
    };
    same(&made, hash.as_bytes())
}

/// Whether two strings are the same, in a time that tells nothing of where they differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// `sizeof(struct crypt_data)` of libxcrypt.
const SCRATCH: usize = 32_768;

#[cfg(test)]
mod tests {
    use super::*;

    // mkpasswd --method=METHOD 'ein Pferd'
    const YESCRYPT: &str = "$y$j9T$k2XAnEHBqQ1Ct2aMXFKNa/$YEtir9ZpE.xTggElkqNziRC.PVuGO2tuQFx6DsI5PzC";
    const SHA512: &str =
        "$6$k2XAnEHBqQ1Ct2aM$FvemyDnyNttCR6eAiHXpKiDuojJQLBKX4NL0tBRXSn2qunXvtPlcN6I6UvFK0eaY81bhnYwv6/aD8P7VrpwJg.";

    #[test]
    fn passwords_belong_to_their_hashes_only() {
        for hash in [YESCRYPT, SHA512] {
            assert!(belongs("ein Pferd", hash), "{hash}");
            for wrong in ["ein Pfer", "ein Pferd ", "", "ein Pferd\0"] {
                assert!(!belongs(wrong, hash), "{wrong:?} {hash}");
            }
        }
    }

    #[test]
    fn what_is_no_hash_belongs_to_no_password() {
        for hash in ["", "*", "!", "!*", "x", "$", "$y$", "$99$abc$def", "\0", "*0", "*1"] {
            assert!(!belongs("", hash) && !belongs(hash, hash), "{hash:?}");
        }
    }
}
