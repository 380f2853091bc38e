//! Versions of the laboratory's web service, good and bad, as signed bundles.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::run;
use crate::root::binaries;

/// The service that is upgraded.
pub const SERVICE: &str = "web";

/// What is in a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// It serves.
    Good,
    /// Its program ends at once.
    Dead,
    /// It answers that it is ill.
    Ill,
}

impl Build {
    /// What the version of that number is.
    pub fn of(number: usize) -> Build {
        match number % 10 {
            3 => Build::Dead,
            7 => Build::Ill,
            _ => Build::Good,
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Build::Good => "a version that serves",
            Build::Dead => "a version that does not start",
            Build::Ill => "a version that answers that it is ill",
        }
    }
}

/// Makes the bundle of a version in `home`, signed by the laboratory's key.
pub fn bundle(home: &Path, version: &str, build: Build) -> Result<PathBuf> {
    let tree = home.join(version);
    let put = |file: &str, content: &[u8]| {
        let path = tree.join(file);
        let folder = path.parent().context("a file lies in a directory")?;
        fs::create_dir_all(folder).and_then(|()| fs::write(&path, content)).with_context(|| path.display().to_string())
    };
    put(&format!("usr/lib/extension-release.d/extension-release.{SERVICE}"), b"ID=_any\n")?;
    put("usr/share/lab-service/version", version.as_bytes())?;
    match build {
        Build::Good => {}
        Build::Dead => {
            put("usr/bin/lab-service", b"#!/usr/bin/false\n")?;
            run("chmod", &["755", &tree.join("usr/bin/lab-service").display().to_string()])?;
        }
        Build::Ill => put("usr/share/lab-service/ill", b"")?,
    }
    let (image, bundle) = (home.join(format!("{version}.tar")), home.join(format!("{SERVICE}-{version}.bundle")));
    let text = |path: &Path| path.display().to_string();
    let (into, from) = (format!("--file={}", text(&image)), format!("--directory={}", text(&tree)));
    run("tar", &["--create", "--format=ustar", "--owner=0", "--group=0", &into, &from, "usr"])?;
    let program = text(&binaries()?.join("trilith-mkbundle"));
    let keys = text(&crate::lab::keys());
    let output = text(&bundle);
    run(&program, &["make", "--keys", &keys, "--output", &output, "service", SERVICE, version, &text(&image)])?;
    Ok(bundle)
}
