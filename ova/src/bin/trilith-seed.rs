//! `trilith-seed SET.TOML DIRECTORY`: what three machines are told at their first boot, for every hypervisor.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use trilith_ova::{deploy, seed, set};

/// Turns one set file into what three machines are told at their first boot: CD-ROMs, OVF properties, libvirt domains.
///
/// Every document is checked by the code that the nodes themselves run.
#[derive(Parser)]
#[command(name = "trilith-seed", version)]
struct Arguments {
    /// The set file; begin with a copy of the set.toml that lies beside the deploy scripts.
    set: PathBuf,
    /// Where to write; absent: only check.
    directory: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trilith-seed: {error:#}");
            ExitCode::from(65)
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let name = arguments.set.display().to_string();
    let text = fs::read_to_string(&arguments.set).with_context(|| name.clone())?;
    let set = set::parse(&text, &name)?;
    let names: Vec<String> = set.settings.nodes.iter().map(|node| deploy::machine(&set, &node.name)).collect();
    match &arguments.directory {
        Some(directory) => {
            deploy::write(&set, directory)?;
            println!("{}: {}", directory.display(), names.join(", "));
        }
        None => {
            // Any secret: it is not kept.
            let secret = set.first_boot.secret.clone().unwrap_or_else(|| "only for this check".to_owned());
            seed::seeds(&set, &secret)?;
            println!("{name} is right: {}", names.join(", "));
        }
    }
    Ok(())
}
