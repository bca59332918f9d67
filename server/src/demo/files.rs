//! Small things that activities do to files; each can be done twice.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use backstay_engine::Failure;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::fs;

/// While it is being written a file has another name, so that a file is there as a whole or not at all.
pub(super) fn part(path: &Path) -> PathBuf {
    path.with_added_extension("part")
}

/// Writes a file as a whole.
pub(super) async fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), Failure> {
    let text = serde_json::to_vec_pretty(value)?;
    let part = part(path);
    fs::write(&part, text).await?;
    fs::File::open(&part).await?.sync_all().await?;
    Ok(fs::rename(&part, path).await?)
}

/// Reads one; `None` if it is not there.
pub(super) async fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Failure> {
    match fs::read(path).await {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes a file and what was written of it. That it is not there is fine.
pub(super) async fn remove(path: &Path) -> Result<(), Failure> {
    for path in [path.to_path_buf(), part(path)] {
        match fs::remove_file(&path).await {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Removes a folder if nothing is left in it.
pub(super) async fn remove_if_empty(path: &Path) -> Result<(), Failure> {
    match fs::remove_dir(path).await {
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
            Err(error.into())
        }
        _ => Ok(()),
    }
}

/// The SHA-256 of a file.
pub(super) async fn digest(path: &Path) -> Result<String, Failure> {
    Ok(hex::encode(Sha256::digest(fs::read(path).await?)))
}
