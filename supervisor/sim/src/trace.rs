//! What a run leaves behind besides its verdict: nothing, a hash, or text to read.

use std::fmt::{self, Write};

/// Where a run's course is noted.
#[derive(Clone, Debug)]
pub enum Trace {
    /// Nowhere: fast.
    Off,
    /// In a hash, so that two runs can be compared.
    Hash(Fnv),
    /// On standard output.
    Text,
}

impl Trace {
    /// Whether anything is noted.
    pub fn is_on(&self) -> bool {
        !matches!(self, Trace::Off)
    }

    /// Notes what happened at true time `at` (microseconds) to `who`.
    pub fn write(&mut self, at: u64, who: &str, what: fmt::Arguments<'_>) {
        match self {
            Trace::Off => {}
            Trace::Hash(hash) => hash.add(format_args!("{at} {who} {what}")),
            Trace::Text => println!("{:>6}.{:03} ms  {who:<6} {what}", at / 1000, at % 1000),
        }
    }

    /// The hash, zero when none is made.
    pub fn hash(&self) -> u64 {
        match self {
            Trace::Hash(hash) => hash.0,
            Trace::Off | Trace::Text => 0,
        }
    }
}

/// A 64-bit FNV-1a hash of text: the same on every machine.
#[derive(Clone, Debug)]
pub struct Fnv(pub u64);

impl Fnv {
    /// Of nothing.
    pub fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    /// Adds text.
    pub fn add(&mut self, text: fmt::Arguments<'_>) {
        // Writing into the hash cannot fail.
        let _ = self.write_fmt(text);
    }
}

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv::new()
    }
}

impl Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Ok(())
    }
}
