//! Services of another version than the system's: `trilith service-image`, which systemd runs as trilith-service@.service.
//!
//! ```text
//!   /var/lib/trilith/services/web           1.2.0            which version: one rename
//!   /var/lib/trilith/bundles/web@1.2.0/     service.raw      what was fetched
//!   /run/trilith-service/web -> web-1.2.0/  usr/…            checked against the signed manifest, and unpacked into memory
//!   web.service                             ExtensionDirectories=-/run/trilith-service/web
//! ```
//!
//! The service's own unit asks for its image (`Wants=` and `After=trilith-service@web.service`), and systemd lays the tree over `/usr` for
//! that unit alone, with nothing to do where there is none. So it is the same at boot, at an upgrade and on the way back, and an image
//! that is not there any more or is damaged leaves the version of the system. The coordinator, which speaks to the network, can only
//! choose among images that a trusted key has signed.
//!
//! `RootImage=` and `ExtensionImages=` would take the image as it is, but need a loop device, which containers have not.

use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path};

use anyhow::{Context, Result, anyhow, ensure};
use sha2::{Digest as _, Sha256};
use trilith_bundle::manifest::SERVICE;
use trilith_bundle::{Hash, Store, Verified, tree};
use trilith_core::set::{Release, Version};

use crate::{disk, paths, slot};

/// The version that was chosen for a service; nothing where it is the system's own.
///
/// # Errors
/// The choice cannot be read.
pub fn chosen(name: &str) -> Result<Option<Version>> {
    let path = Path::new(paths::SERVICES).join(name);
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| anyhow!("{}: {text:?} is no version", path.display())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Chooses a version, or the system's own.
///
/// # Errors
/// The disk does not take it.
pub fn choose(name: &str, version: Option<Version>) -> Result<()> {
    let path = Path::new(paths::SERVICES).join(name);
    match version {
        Some(version) => {
            fs::create_dir_all(paths::SERVICES).context(paths::SERVICES)?;
            disk::replace(&path, format!("{version}\n").as_bytes())
        }
        None => gone(fs::remove_file(&path)).with_context(|| path.display().to_string()),
    }
}

/// Why a service does not run as the version that was chosen for it, if so. One line.
pub fn ails(name: &str, version: Version) -> Option<String> {
    let link = Path::new(paths::SERVICE_TREES).join(name);
    let laid = fs::read_link(link).is_ok_and(|tree| tree == Path::new(&tree_name(name, version)));
    (!laid).then(|| {
        format!(
            "service {name} runs as it is in the system and not as {version}, whose image here is missing or damaged: see the logs of \
             trilith-service@{name}.service, and roll out another version of it"
        )
    })
}

/// Has the tree of the chosen version where the service's unit looks for it.
///
/// # Errors
/// What is wrong with the image. The service starts as it is in the system then.
pub fn lay(name: &str) -> Result<()> {
    let plain = Path::new(name).components().eq([Component::Normal(name.as_ref())]);
    ensure!(plain, "{name:?} is no name of a service");
    let trees = Path::new(paths::SERVICE_TREES);
    let link = trees.join(name);
    let laid = chosen(name).and_then(|version| match version {
        Some(version) => prepare(name, version, trees).map(Some),
        None => Ok(None),
    });
    let before = fs::read_link(&link).ok();
    match &laid {
        Ok(Some(tree)) => {
            let beside = trees.join(format!("{name}.link"));
            gone(fs::remove_file(&beside))?;
            std::os::unix::fs::symlink(tree, &beside)?;
            fs::rename(&beside, &link).with_context(|| link.display().to_string())?;
        }
        _ => gone(fs::remove_file(&link)).with_context(|| link.display().to_string())?,
    }
    // The version before may still run: its tree goes with the next one.
    for entry in fs::read_dir(trees)?.flatten() {
        let of = entry.file_name().to_string_lossy().into_owned();
        let ours = of.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')).map(str::parse::<Version>);
        let used = laid.as_ref().ok().and_then(Option::as_ref) == Some(&of);
        if matches!(ours, Some(Ok(_))) && !used && before.as_deref() != Some(Path::new(&of)) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    laid.map(drop)
}

/// The tree of a version, and its name: made unless it is there.
fn prepare(name: &str, version: Version, trees: &Path) -> Result<String> {
    let tree = tree_name(name, version);
    let path = trees.join(&tree);
    if !path.exists() {
        let release = Release::service(name, version);
        let source = Store::open(paths::BUNDLES.as_ref()).and_then(|store| store.get(&release))?;
        let verified = Verified::open(source.manifest(), source.signature(), &slot::keys()?)?;
        let manifest = verified.manifest();
        ensure!(manifest.release() == release, "the bundle of {release} is one of {}", manifest.release());
        let part = manifest.part(SERVICE).with_context(|| format!("the bundle of {release} has no {SERVICE}"))?;
        let image = source.whole(SERVICE)?;
        ensure!(Hash(Sha256::digest(&image).into()) == part.sha256, "{SERVICE} of {release} is damaged");
        let beside = trees.join(format!("{name}.new"));
        gone(fs::remove_dir_all(&beside))?;
        tree::unpack(&image, &beside).map_err(|why| anyhow!("{SERVICE} of {release}: {why}"))?;
        fs::rename(&beside, &path)?;
    }
    Ok(tree)
}

fn tree_name(name: &str, version: Version) -> String {
    format!("{name}-{version}")
}

fn gone(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
