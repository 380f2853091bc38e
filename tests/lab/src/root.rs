//! What a node's root is made of: the tree that mkosi built, and over it the overlays and today's binaries.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::run;
use crate::lab::Mode;

/// The layers of a root, uppermost first, ready for overlayfs' `lowerdir`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers(Vec<PathBuf>);

impl Layers {
    /// Builds the tree if its inputs changed (showing progress on standard error) and stages what lies over it in
    /// `stage`: a copy, so that files belong to root and do not change under a running node.
    pub fn prepare(mode: Mode, stage: &Path) -> Result<Layers> {
        let repo = repository()?;
        let tree = match mode {
            Mode::Trilith => "root",
            Mode::Peer => "peer",
        };
        let status = Command::new(repo.join("image/build")).arg(tree).status().context("cannot start image/build")?;
        if !status.success() {
            bail!("image/build {tree} failed: {status}");
        }
        Version::first()?.stage(mode, stage)?;
        Ok(Layers(vec![stage.to_owned(), build_directory(&repo).join(tree)]))
    }

    /// The value of overlayfs' option `lowerdir`.
    pub fn lowerdir(&self) -> String {
        let paths: Vec<String> = self.0.iter().map(|path| path.display().to_string()).collect();
        paths.join(":")
    }
}

/// A version of what lies over the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// The checkout with its overlays.
    source: PathBuf,
    /// The directory of its programs.
    programs: PathBuf,
}

impl Version {
    /// This build's, with the programs of the directory that `TRILITH_LAB_PROGRAMS` names, if it does.
    ///
    /// # Errors
    /// When the checkout is gone.
    pub fn this() -> Result<Version> {
        let programs = std::env::var_os("TRILITH_LAB_PROGRAMS").map_or_else(binaries, |path| Ok(path.into()))?;
        Ok(Version { source: repository()?, programs })
    }

    /// The version that a laboratory begins with: another checkout with its release build, if `TRILITH_LAB_VERSION` names one.
    ///
    /// # Errors
    /// When this build's checkout is gone.
    pub fn first() -> Result<Version> {
        match std::env::var_os("TRILITH_LAB_VERSION").map(PathBuf::from) {
            Some(source) => Ok(Version { programs: source.join("target/release"), source }),
            None => Version::this(),
        }
    }

    /// Lays it over what is in that directory. The laboratory's own programs are always this build's.
    ///
    /// # Errors
    /// When a program has not been built, or the directory can't be written.
    pub fn stage(&self, mode: Mode, to: &Path) -> Result<()> {
        let own = binaries()?;
        fs::create_dir_all(to)?;
        copy_tree(&self.source.join("overlays/base"), to)?;
        copy_tree(&self.source.join("overlays/services/lab"), to)?;
        install(&own.join("lab-service"), to)?;
        match mode {
            Mode::Trilith => {
                for program in ["trilith", "trilith-supervisor"] {
                    install(&self.programs.join(program), to)?;
                }
                trust(&own.join("trilith-mkbundle"), to)
            }
            Mode::Peer => copy_tree(&repository()?.join("tests/lab/peer"), to),
        }
    }
}

/// Where the programs of this build are: beside the running one, also when that is a test.
pub fn binaries() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot find the running program")?;
    let directory = exe.parent().context("a program lies in a directory")?;
    let in_deps = directory.ends_with("deps") || directory.ends_with("examples");
    Ok(if in_deps { directory.parent().unwrap_or(directory) } else { directory }.to_owned())
}

/// The checkout that this program was built from.
///
/// # Errors
/// When it is not there any more.
pub fn repository() -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    path.canonicalize().with_context(|| format!("the source tree is gone: {}", path.display()))
}

/// Where what is built lies: `build`, or what `TRILITH_BUILD` says.
pub fn build_directory(repo: &Path) -> PathBuf {
    std::env::var_os("TRILITH_BUILD").map_or_else(|| repo.join("build"), PathBuf::from)
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let all = format!("{}/.", from.display());
    run("cp", &["--recursive", "--no-dereference", "--preserve=mode,links", &all, &to.display().to_string()]).map(drop)
}

/// A key of the laboratory's own, whose bundles the nodes take.
fn trust(program: &Path, stage: &Path) -> Result<()> {
    let (keys, folder) = (crate::lab::keys(), stage.join("usr/lib/trilith"));
    run(&program.display().to_string(), &["keys", &keys.display().to_string()])?;
    fs::create_dir_all(&folder)?;
    fs::copy(keys.join("bundle.pub"), folder.join("bundle.pub")).context("the laboratory's key")?;
    Ok(())
}

fn install(binary: &Path, stage: &Path) -> Result<()> {
    let to = stage.join("usr/bin").join(binary.file_name().context("a binary has a name")?);
    fs::create_dir_all(stage.join("usr/bin"))?;
    fs::copy(binary, &to)
        .with_context(|| format!("no {} (build it with `cargo build --workspace`)", binary.display()))?;
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
