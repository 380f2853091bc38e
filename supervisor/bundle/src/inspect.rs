//! Explaining a bundle without trusting it: `trilith upgrade inspect`.

use std::fmt::{Display, Formatter, Result as Formatted};
use std::path::Path;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::failure::Failure;
use crate::manifest::{Context, Kind, MAX_NOTES, Manifest, Verified};
use crate::refusal::Refusal;
use crate::source::Source;
use crate::text::{plain, plain_lines};
use crate::utc::Utc;
use crate::{Hash, Keys};
use trilith_core::slots::Version;

/// What a bundle says of itself, what of it is true, and whether it could be installed here. Fit to be shown.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The file.
    pub file: String,
    /// SHA-256 of the manifest: which bundle it is.
    pub id: Hash,
    /// Whether a trusted key has signed it; nothing when no keys were given.
    pub signed: Option<bool>,
    /// What it says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub says: Option<Says>,
    /// Its parts.
    pub parts: Vec<PartReport>,
    /// Everything that speaks against it; empty for a bundle that could be installed.
    pub problems: Vec<Problem>,
}

/// What a manifest says.
#[derive(Clone, Debug, Serialize)]
pub struct Says {
    /// A system or a service.
    pub kind: Kind,
    /// The appliance that it is for.
    pub product: String,
    /// The service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Its version.
    pub version: Version,
    /// When it was made.
    pub created: Utc,
    /// Until when it may be installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Utc>,
    /// The lowest version after it.
    pub floor: Version,
    /// The lowest version before it.
    pub min_version: Version,
    /// Of the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roothash: Option<Hash>,
    /// The release notes.
    pub notes: String,
}

/// One part.
#[derive(Clone, Debug, Serialize)]
pub struct PartReport {
    /// Its name.
    pub name: String,
    /// Its bytes by the manifest.
    pub size: u64,
    /// It is there, and its bytes are those that the manifest names.
    pub intact: bool,
}

/// Something that speaks against a bundle.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// In words.
    pub what: String,
    /// The exit code of a command that is refused for it.
    pub code: u8,
}

impl Report {
    /// The exit code that says it all: 0, or that of the first problem.
    pub fn exit_code(&self) -> u8 {
        self.problems.first().map_or(0, |problem| problem.code)
    }
}

/// Reads a bundle file to its end and reports what it finds. Without `keys` the signature is not judged; without `context`
/// nothing is said about installing it.
///
/// # Errors
/// The file cannot be read, or has no manifest and signature to report on.
pub fn inspect(path: &Path, keys: Option<&Keys>, context: Option<&Context<'_>>) -> Result<Report, Failure> {
    let (source, fault) = Source::open_damaged(path)?;
    let mut report = Report {
        file: path.display().to_string(),
        id: Hash(Sha256::digest(source.manifest()).into()),
        signed: None,
        says: None,
        parts: Vec::new(),
        problems: Vec::new(),
    };
    let verified = keys.map(|keys| Verified::open(source.manifest(), source.signature(), keys));
    report.signed = verified.as_ref().map(|verified| !matches!(verified, Err(Refusal::WrongSignature { .. })));
    if let Some(Err(refusal)) = &verified {
        report.problem(refusal.clone().into());
    }
    let manifest = match Manifest::parse(source.manifest()) {
        Ok(manifest) => manifest,
        Err(refusal) => {
            report.problem(refusal.into());
            return Ok(report);
        }
    };
    if let (Some(Ok(verified)), Some(context)) = (&verified, context)
        && let Err(refusal) = verified.admit(context)
    {
        report.problem(refusal.into());
    }
    for part in manifest.needed() {
        let whole = source.size(&part.name) == Some(part.size);
        let intact = whole && source.sha256(&part.name)? == part.sha256;
        report.parts.push(PartReport { name: part.name.clone(), size: part.size, intact });
    }
    match (fault, source.check(&manifest)) {
        (Some(fault), _) | (None, Err(fault)) => report.problem(fault),
        (None, Ok(())) => {}
    }
    report.says = Some(Says {
        kind: manifest.kind,
        product: manifest.product,
        service: manifest.service,
        version: manifest.version,
        created: manifest.created,
        expires: manifest.expires,
        floor: manifest.floor,
        min_version: manifest.min_version,
        roothash: manifest.roothash,
        notes: plain_lines(&manifest.notes, MAX_NOTES),
    });
    Ok(report)
}

impl Report {
    fn problem(&mut self, failure: Failure) {
        let (what, code) = (plain(&failure.to_string(), MAX_PROBLEM), failure.exit_code());
        if self.problems.iter().all(|known| known.what != what) {
            self.problems.push(Problem { what, code });
        }
    }
}

impl Display for Report {
    fn fmt(&self, out: &mut Formatter<'_>) -> Formatted {
        writeln!(out, "bundle    {}", plain(&self.file, 200))?;
        writeln!(out, "id        {}", self.id)?;
        let signed = match self.signed {
            Some(true) => "by a trusted key",
            Some(false) => "NOT by a trusted key: nothing below can be believed",
            None => "not checked: no keys are known here",
        };
        writeln!(out, "signed    {signed}")?;
        if let Some(says) = &self.says {
            let service = says.service.as_ref().map(|name| format!("service {name} of ")).unwrap_or_default();
            writeln!(out, "holds     {service}{} {}", says.product, says.version)?;
            writeln!(out, "created   {}", says.created)?;
            if let Some(expires) = says.expires {
                writeln!(out, "expires   {expires}")?;
            }
            writeln!(out, "over      {} and later", says.min_version)?;
            writeln!(out, "floor     {}: nothing older can be installed afterwards", says.floor)?;
            if let Some(roothash) = says.roothash {
                writeln!(out, "roothash  {roothash}")?;
            }
        }
        for part in &self.parts {
            let state = if part.intact { "" } else { "   DAMAGED" };
            writeln!(out, "part      {:<14} {:>12} bytes{state}", part.name, part.size)?;
        }
        for problem in &self.problems {
            writeln!(out, "problem   {}", problem.what)?;
        }
        match self.says.as_ref().map(|says| says.notes.trim()) {
            Some(notes) if !notes.is_empty() => write!(out, "\n{notes}\n"),
            _ => Ok(()),
        }
    }
}

/// Characters of a problem.
const MAX_PROBLEM: usize = 500;
