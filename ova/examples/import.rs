//! An OVA without vSphere: `cargo run --package trilith-ova --example import -- X.ova DIRECTORY node=a address=10.77.0.11/24 …` leaves
//! the disk and the CD-ROM with the answers in DIRECTORY.

use std::env::args;
use std::path::Path;

use anyhow::{Context, Result, bail};
use trilith_ova::import::import;

fn main() -> Result<()> {
    let words: Vec<String> = args().skip(1).collect();
    let [ova, into, answers @ ..] = &words[..] else { bail!("import X.ova DIRECTORY KEY=VALUE…") };
    let pair = |answer: &'_ String| answer.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    let answers: Vec<_> = answers.iter().map(pair).collect::<Option<_>>().context("answers are KEY=VALUE")?;
    let answers: Vec<_> = answers.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let imported = import(Path::new(ova), Path::new(into), "trilith", &answers)?;
    println!("{}\n{}", imported.disk.display(), imported.cd_rom.display());
    Ok(())
}
