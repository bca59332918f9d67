//! Fetching server binaries, once, for a machine that has none.
//!
//! What is fetched is fixed: one release of `theseus-rs/postgresql-binaries`, and the SHA-256 of its archive for each
//! kind of machine. Those hashes were not computed by us. They are the published ones, as at least three independent
//! public projects have them pinned. An archive from a mirror has to have the same hash, so a mirror need not be trusted.
//!
//! Everything happens in a temporary folder of the cache under the cache's lock, and is renamed when it is complete
//! and its server has said its version: a kill half way leaves nothing that would be used.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::error::FetchError;
use crate::{Binaries, Progress, Settings, folder};

/// Below it: `<version>/postgresql-<version>-<target>.tar.gz`. A mirror has the same paths.
pub const DEFAULT_SOURCE: &str = "https://github.com/theseus-rs/postgresql-binaries/releases/download";

const VERSION: &str = "18.4.0";
/// Target and SHA-256. Linux archives need glibc 2.36 or later.
const PINNED: [(&str, &str); 4] = [
    ("x86_64-unknown-linux-gnu", "65c06cf318b9a57525d842d658d6d18cd461d12b3a89b57d6d8ed7cccbe2db53"),
    ("aarch64-unknown-linux-gnu", "569984d426365c6ca3c197d2b3a999b73161ff1f3abc963824a8c3624620e5dd"),
    ("x86_64-apple-darwin", "cbc38067a795d10bbddc730e61c835df0b351c36a7bd2544d388790fcf50aa4d"),
    ("aarch64-apple-darwin", "1b68828f524b638a24918e258b173d0f16773547a0d3b83d9ba74473b61649f2"),
];

const INCOMING: &str = ".incoming-";
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Between two pieces of the archive, not for the whole.
const SILENCE_PATIENCE: Duration = Duration::from_secs(30);

/// One archive of server binaries, and the only content that is accepted under its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// The release, as in `18.4.0`.
    pub version: String,
    /// The kind of machine, as in `x86_64-unknown-linux-gnu`.
    pub target: String,
    /// In hexadecimal digits.
    pub sha256: String,
}

impl Archive {
    /// `None` for a kind of machine that nothing is published for.
    pub fn for_this_machine() -> Option<Self> {
        let system = match std::env::consts::OS {
            "linux" => "unknown-linux-gnu",
            "macos" => "apple-darwin",
            _ => return None,
        };
        let target = format!("{}-{system}", std::env::consts::ARCH);
        let (_, sha256) = PINNED.into_iter().find(|(pinned, _)| *pinned == target)?;
        Some(Self { version: VERSION.into(), target, sha256: sha256.into() })
    }

    /// Where the archive is, below this source.
    pub fn url(&self, source: &str) -> String {
        let Self { version, target, .. } = self;
        format!("{}/{version}/postgresql-{version}-{target}.tar.gz", source.trim_end_matches('/'))
    }

    pub(crate) fn major(&self) -> u32 {
        self.version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or_default()
    }

    /// The hash is part of the name, so that a corrected archive is not mistaken for the one in the cache.
    fn folder_name(&self) -> String {
        let hash: String = self.sha256.chars().take(12).collect();
        format!("postgresql-{}-{}-{hash}", self.version, self.target)
    }
}

/// The binaries of this archive: from the cache, without a request, or fetched into it.
pub(crate) async fn install(archive: &Archive, settings: &Settings) -> Result<Binaries, FetchError> {
    let cache = &settings.cache_dir;
    let installed = cache.join(archive.folder_name());
    if let Ok(binaries) = Binaries::inspect(&installed.join("bin")) {
        return Ok(binaries);
    }
    fs::create_dir_all(cache).map_err(FetchError::file("Creating the cache folder", cache))?;
    let _lock = lock(cache).await?;
    if let Ok(binaries) = Binaries::inspect(&installed.join("bin")) {
        return Ok(binaries);
    }
    remove_leftovers(cache, &installed)?;

    let url = archive.url(settings.mirror.as_deref().unwrap_or(DEFAULT_SOURCE));
    let incoming = tempfile::Builder::new()
        .prefix(INCOMING)
        .tempdir_in(cache)
        .map_err(FetchError::file("Creating a temporary folder in", cache))?;
    let file = incoming.path().join("archive.tar.gz");
    let found = fetch(&url, archive, &file, settings).await?;
    if !found.eq_ignore_ascii_case(&archive.sha256) {
        return Err(FetchError::WrongHash { url, expected: archive.sha256.clone(), found });
    }

    settings.report(Progress::Unpacking);
    let unpacked = incoming.path().join("unpacked");
    let root =
        unpack(&file, &unpacked).await.map_err(|reason| FetchError::Unpack { url: url.clone(), reason })?;
    Binaries::inspect(&root.join("bin")).map_err(|reason| FetchError::DoNotRun { url, reason })?;

    // The server's account has to get in; temporary folders are closed to others.
    fs::set_permissions(&root, Permissions::from_mode(0o755))
        .map_err(FetchError::file("Opening to others", &root))?;
    fs::rename(&root, &installed)
        .map_err(FetchError::file("Renaming the unpacked archive to", &installed))?;
    let folder = installed.join("bin");
    tracing::info!(folder = %folder.display(), version = archive.version, "Postgres server binaries are installed");
    Ok(Binaries { folder, major: archive.major() })
}

/// One process fetches, the others wait and then find it done. The kernel releases the lock of one that was killed.
async fn lock(cache: &Path) -> Result<File, FetchError> {
    let path = cache.join("install.lock");
    let file = File::create(&path).map_err(FetchError::file("Opening the lock", &path))?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => {}
            Err(fs::TryLockError::Error(error)) => return Err(FetchError::file("Locking", &path)(error)),
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!(lock = %path.display(), "waiting for another process that is fetching Postgres");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Of processes that were killed; also an installed folder whose server no longer runs.
fn remove_leftovers(cache: &Path, installed: &Path) -> Result<(), FetchError> {
    let entries = fs::read_dir(cache).map_err(FetchError::file("Listing", cache))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path == installed || folder::file_name(&path).starts_with(INCOMING) {
            fs::remove_dir_all(&path).map_err(FetchError::file("Removing the leftover", &path))?;
        }
    }
    Ok(())
}

/// Returns the SHA-256 of what came. Says what it does: a program that fetches programs must not do so silently.
async fn fetch(url: &str, archive: &Archive, file: &Path, settings: &Settings) -> Result<String, FetchError> {
    let failed =
        |error: reqwest::Error| FetchError::Transfer { url: url.into(), reason: with_causes(&error) };
    // Of no effect where the program has chosen its provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .user_agent("backstay")
        .connect_timeout(CONNECT_PATIENCE)
        .read_timeout(SILENCE_PATIENCE)
        .build()
        .map_err(failed)?;
    let mut response =
        client.get(url).send().await.and_then(reqwest::Response::error_for_status).map_err(failed)?;

    let total = response.content_length();
    let size = total.map_or("unknown size".into(), megabytes);
    tracing::info!(
        "this machine has no Postgres server: fetching Postgres {} from {url} ({size}), once, into {}",
        archive.version,
        settings.cache_dir.display()
    );
    let mut out = File::create(file).map_err(FetchError::file("Creating", file))?;
    let mut hash = Sha256::new();
    let mut received = 0;
    let mut last_word = Instant::now();
    settings.report(Progress::Fetching { url: url.into(), received, total });
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        out.write_all(&piece).map_err(FetchError::file("Writing", file))?;
        hash.update(&piece);
        received += piece.len() as u64;
        settings.report(Progress::Fetching { url: url.into(), received, total });
        if last_word.elapsed() > Duration::from_secs(5) {
            last_word = Instant::now();
            tracing::info!("fetching Postgres: {} of {size}", megabytes(received));
        }
    }
    Ok(hex::encode(hash.finalize()))
}

/// Returns the folder that holds `bin`: the archive's top, or the one folder at its top.
async fn unpack(archive: &Path, into: &Path) -> Result<PathBuf, String> {
    let (archive, into) = (archive.to_path_buf(), into.to_path_buf());
    let work = tokio::task::spawn_blocking(move || {
        let file = File::open(archive)?;
        // Refuses paths that would leave the folder; keeps the modes, but not the owners.
        tar::Archive::new(flate2::read::GzDecoder::new(file)).unpack(&into)?;
        let mut roots = vec![into.clone()];
        roots.extend(fs::read_dir(&into)?.flatten().map(|entry| entry.path()));
        std::io::Result::Ok(roots.into_iter().find(|root| root.join("bin/postgres").is_file()))
    });
    match work.await {
        Ok(Ok(Some(root))) => Ok(root),
        Ok(Ok(None)) => Err("there is no bin/postgres in it".into()),
        Ok(Err(error)) => Err(with_causes(&error)),
        Err(error) => Err(error.to_string()),
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}

/// The outermost message of an HTTP error rarely names the cause.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
