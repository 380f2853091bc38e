//! The keys whose signatures count.

use minisign_verify::{Error, PublicKey, Signature};

use crate::refusal::Refusal;
use crate::text::plain;

/// Public keys of minisign. Each of them may sign: two, while one replaces the other.
#[derive(Clone, Debug)]
pub struct Keys(Vec<PublicKey>);

impl Keys {
    /// Reads a file of public keys as `minisign -G` writes it, or several of them one behind the other.
    ///
    /// # Errors
    /// What is wrong with the file, without its name.
    pub fn parse(text: &str) -> Result<Keys, String> {
        let lines =
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("untrusted comment:"));
        let keys = lines
            .map(|line| {
                PublicKey::from_base64(line)
                    .map_err(|error| format!("{:?} is no minisign public key: {error}", plain(line, 80)))
            })
            .collect::<Result<Vec<_>, _>>()?;
        match keys.len() {
            0 => Err("holds no minisign public key".into()),
            1..=MAX_KEYS => Ok(Keys(keys)),
            count => Err(format!("holds {count} keys; at most {MAX_KEYS} can be trusted")),
        }
    }

    /// Checks a signature (the text of a `.minisig` file).
    ///
    /// # Errors
    /// [`Refusal::WrongSignature`].
    pub fn verify(&self, signed: &[u8], signature: &[u8]) -> Result<(), Refusal> {
        let wrong = |why: String| Refusal::WrongSignature { why };
        if signature.len() > MAX_SIGNATURE {
            return Err(wrong(format!("it has more than {MAX_SIGNATURE} bytes")));
        }
        let text = std::str::from_utf8(signature).map_err(|_| wrong("it is no text".into()))?;
        let signature = Signature::decode(text).map_err(|error| wrong(format!("it is none of minisign's: {error}")))?;
        let mut why = "made by a key that is not trusted here";
        for key in &self.0 {
            match key.verify(signed, &signature, false) {
                Ok(()) => return Ok(()),
                Err(Error::InvalidSignature) => why = "the manifest was changed after it was signed",
                Err(_) => {}
            }
        }
        Err(wrong(why.into()))
    }
}

/// Keys in a file.
const MAX_KEYS: usize = 8;
/// Bytes of a signature file; minisign's have about 300.
pub const MAX_SIGNATURE: usize = 4096;
