//! Makes bundles of what a build has left, and the keys that sign them. Runs where images are built, never on an appliance.

use std::fs::{self, File};
use std::io::{BufWriter, Cursor, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use minisign::{KeyPair, SecretKey, SecretKeyBox};
use trilith_bundle::inspect::inspect;
use trilith_bundle::manifest::{FORMAT, Kind, Manifest, ROOT, SERVICE, SERVICE_BLOCKS, UKI, UKI_BLOCKS, VERITY};
use trilith_bundle::transfer::{self, Have, Received};
use trilith_bundle::uki::Uki;
use trilith_bundle::utc::Utc;
use trilith_bundle::{Keys, Source, Store, make};
use trilith_core::slots::Version;

/// Make bundles, which patch appliances.
#[derive(Parser)]
#[command(name = "trilith-mkbundle", version)]
enum Cli {
    /// Make the keys that sign bundles, DIRECTORY/bundle.key and bundle.pub, unless they are there.
    Keys {
        /// Where.
        directory: PathBuf,
    },
    /// Make a bundle, and print what is in it. The last line is one JSON object.
    Make(Make),
    /// How many bytes a node fetches that has OLD and is to get NEW: by doing it. The last line is one JSON object.
    Moves {
        /// The directory with bundle.pub.
        #[arg(long, value_name = "DIRECTORY")]
        keys: PathBuf,
        /// The bundle of what runs.
        old: PathBuf,
        /// The bundle of what comes.
        new: PathBuf,
    },
}

#[derive(clap::Args)]
struct Make {
    /// The directory with bundle.key and bundle.pub.
    #[arg(long, value_name = "DIRECTORY")]
    keys: PathBuf,
    /// The file to write; a directory gets trilith-VERSION.bundle, or trilith-SERVICE-VERSION.bundle.
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
    /// The lowest version that may still be installed after this one.
    #[arg(long, default_value = "0.0.0")]
    floor: Version,
    /// The lowest version of the system that it can be installed over.
    #[arg(long, default_value = "0.0.0")]
    min_version: Version,
    /// When it must no longer be installed, as in 2027-11-21T07:00:00Z.
    #[arg(long, value_name = "UTC")]
    expires: Option<Utc>,
    /// Release notes: a file of plain text.
    #[arg(long, value_name = "FILE")]
    notes: Option<PathBuf>,
    /// Another product than the one that the content names: for tests of refusals.
    #[arg(long, hide = true)]
    product: Option<String>,
    /// Make it although it would be refused: for tests of refusals.
    #[arg(long, hide = true)]
    flawed: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Of the system: what image/disk leaves beside the disk.
    Os {
        /// The directory with root.erofs, root.verity and trilith.efi.
        image: PathBuf,
    },
    /// Of one service.
    Service {
        /// Its name.
        name: String,
        /// Its version.
        version: Version,
        /// Its tree, a tar (ustar) of what is laid over /usr.
        image: PathBuf,
    },
}

fn main() -> Result<()> {
    match Cli::parse() {
        Cli::Keys { directory } => keys(&directory),
        Cli::Make(make) => self::make(&make),
        Cli::Moves { keys, old, new } => moves(&keys, &old, &new),
    }
}

/// Keys for trying things out: whoever has this directory can sign. Real ones come from `minisign -G`, with a password.
fn keys(directory: &Path) -> Result<()> {
    let (secret, public) = (directory.join(SECRET), directory.join(PUBLIC));
    if public.exists() {
        // Its secret half may lie where nobody builds.
        return Ok(());
    }
    fs::create_dir_all(directory).with_context(|| format!("{}: cannot be made", directory.display()))?;
    let KeyPair { pk, sk } = KeyPair::generate_unencrypted_keypair()?;
    let put = |path: &Path, mode: u32, text: String| {
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("{}: cannot be written", path.display()))
    };
    put(&secret, 0o600, sk.to_box(Some("Trilith trial key"))?.to_string())?;
    put(&public, 0o644, pk.to_box()?.into_string())
}

fn make(make: &Make) -> Result<()> {
    let mut manifest = Manifest {
        format: FORMAT,
        kind: Kind::Os,
        product: PRODUCT.into(),
        service: None,
        version: Version::default(),
        created: created()?,
        expires: make.expires,
        floor: make.floor,
        min_version: make.min_version,
        roothash: None,
        notes: match &make.notes {
            None => String::new(),
            Some(path) => fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?,
        },
        parts: Vec::new(),
    };
    // The list of blocks is no file of the build.
    let list = make.output.with_extension("blocks");
    let files = match &make.what {
        What::Os { image } => {
            let path = image.join(UKI);
            let bytes = fs::read(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
            let uki = Uki::open(&bytes).map_err(|what| anyhow::anyhow!("{}: it {what}", path.display()))?;
            (manifest.product, manifest.version, manifest.roothash) =
                (uki.product, uki.image.version, Some(uki.image.root));
            fs::write(&list, make::list_of_blocks(&path)?)?;
            vec![(VERITY, image.join(VERITY)), (UKI_BLOCKS, list.clone()), (UKI, path), (ROOT, image.join(ROOT))]
        }
        What::Service { name, version, image } => {
            (manifest.kind, manifest.service, manifest.version) = (Kind::Service, Some(name.clone()), *version);
            let blocks = make::list_of_blocks(image).with_context(|| format!("{}: cannot be read", image.display()))?;
            fs::write(&list, blocks)?;
            vec![(SERVICE_BLOCKS, list.clone()), (SERVICE, image.clone())]
        }
    };
    if let Some(product) = &make.product {
        manifest.product = product.clone();
    }
    let written = pack(make, manifest, &files);
    fs::remove_file(&list)?;
    written
}

/// Describes, signs, writes, and reads the result as an appliance would.
fn pack(make: &Make, mut manifest: Manifest, files: &[make::Named]) -> Result<()> {
    make::describe(&mut manifest, files)?;
    let text = toml::to_string(&manifest)?;
    Manifest::parse(text.as_bytes())?;
    let label = format!("{} {}", manifest.product, manifest.release());
    let key = secret_key(&make.keys.join(SECRET))?;
    let signature = minisign::sign(None, &key, Cursor::new(&text), Some(&label), None)?.into_string();
    let file = format!("{}.bundle", label.replace([' ', '@'], "-"));
    let output = if make.output.is_dir() { make.output.join(file) } else { make.output.clone() };
    let name = |what: &str| format!("{}: cannot be {what}", output.display());
    let mut target = BufWriter::new(File::create(&output).with_context(|| name("made"))?);
    make::write(&mut target, text.as_bytes(), signature.as_bytes(), manifest.created.0, files)
        .with_context(|| name("written"))?;
    target.into_inner().with_context(|| name("written"))?.sync_all().with_context(|| name("written"))?;
    let report = inspect(&output, Some(&public_keys(&make.keys)?), None)?;
    print!("{report}");
    if let Some(problem) = report.problems.first().filter(|_| !make.flawed) {
        bail!("{}: {}", output.display(), problem.what);
    }
    let bytes = fs::metadata(&output)?.len();
    let (version, id) = (manifest.release(), report.id);
    println!("{}", serde_json::json!({ "bundle": output, "version": version, "bytes": bytes, "id": id }));
    Ok(())
}

/// Over a stream in this process, into a store of its own that is removed afterwards.
fn moves(keys: &Path, old: &Path, new: &Path) -> Result<()> {
    let keys = public_keys(keys)?;
    let directory = tempfile::tempdir()?;
    let store = Store::open(directory.path())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let fetch = |path: &Path| {
        let (store, keys, path) = (&store, &keys, path.to_owned());
        runtime.block_on(async move {
            let (mut near, mut far) = tokio::io::duplex(1 << 16);
            let (received, sent) = tokio::join!(
                transfer::receive(&mut near, None, store, keys, |_| Ok(()), Have::default(), |_| ()),
                transfer::send(&mut far, |_| Source::open(&path), |_| ()),
            );
            sent?;
            received
        })
    };
    let from = fetch(old)?.release;
    let Received { release, moved, size } = fetch(new)?;
    println!("{}", serde_json::json!({ "from": from, "to": release, "bytes_moved": moved, "bytes": size }));
    Ok(())
}

fn public_keys(directory: &Path) -> Result<Keys> {
    let path = directory.join(PUBLIC);
    let text = fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
    Keys::parse(&text).map_err(|what| anyhow::anyhow!("{}: {what}", path.display()))
}

/// Without a password, or with one that is asked for on the terminal.
fn secret_key(path: &Path) -> Result<SecretKey> {
    let text = fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let boxed =
        || SecretKeyBox::from_string(&text).with_context(|| format!("{}: no minisign secret key", path.display()));
    match boxed()?.into_unencrypted_secret_key() {
        Ok(key) => Ok(key),
        Err(_) => {
            boxed()?.into_secret_key(None).with_context(|| format!("{}: the password does not open it", path.display()))
        }
    }
}

/// SOURCE_DATE_EPOCH, so that the same input gives the same bundle; else now.
fn created() -> Result<Utc> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => Ok(Utc(text.parse().context("SOURCE_DATE_EPOCH is no number of seconds")?)),
        Err(_) => Ok(Utc(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())),
    }
}

const PRODUCT: &str = "trilith";
const SECRET: &str = "bundle.key";
const PUBLIC: &str = "bundle.pub";
