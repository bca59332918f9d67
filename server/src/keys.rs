//! The installation's keys, where they are kept: in a file that may change while the server runs, or in the environment.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Config;
use crate::seal::{Keyring, SealError};
use crate::trouble::Trouble;

/// Holds the keys themselves, in place of a file.
pub const VARIABLE: &str = "BACKSTAY_SECRET_KEYS";

/// The keys as they are now. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Read again when it looks different; `None`: the keys never change.
    file: Option<PathBuf>,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    ring: Arc<Keyring>,
    looked: Option<Look>,
}

/// How a file looks: different once another stands in its place.
type Look = (u64, u64, i64, i64);

fn look(path: &Path) -> Option<Look> {
    std::fs::metadata(path).ok().map(|meta| (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

/// Where the keys of an installation are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the variable.
    Variable,
    /// In the file that the configuration names.
    Named(PathBuf),
    /// In the data folder.
    Own(PathBuf),
}

impl Place {
    /// By the configuration and the environment.
    pub fn of(config: &Config) -> Result<Self, Trouble> {
        let given = std::env::var_os(VARIABLE).is_some_and(|text| !text.is_empty());
        match (&config.secrets.key_file, given) {
            (Some(file), true) => Err(Trouble::usage(format!(
                "The keys are in {VARIABLE} and in the file {} of secrets.key_file: which of them is meant? State one.",
                file.display()
            ))),
            (Some(file), false) => Ok(Self::Named(file.clone())),
            (None, true) => Ok(Self::Variable),
            (None, false) => Ok(Self::Own(config.data_dir.join("secret.key"))),
        }
    }

    /// The file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Variable => None,
            Self::Named(file) | Self::Own(file) => Some(file),
        }
    }

    /// Reads the keys. `None`: the installation has none of its own yet.
    pub fn read(&self) -> Result<Option<Keys>, SealError> {
        match self {
            Self::Variable => {
                // Its text is never part of an error.
                let text = std::env::var(VARIABLE).unwrap_or_default();
                Keyring::parse(&text, VARIABLE).map(|ring| Some(Keys::fixed(ring)))
            }
            Self::Own(file) if matches!(std::fs::metadata(file), Err(error) if error.kind() == ErrorKind::NotFound) => {
                Ok(None)
            }
            Self::Named(file) | Self::Own(file) => Keys::in_file(file.clone()).map(Some),
        }
    }

    /// Makes the installation's first key.
    pub fn make(&self) -> Result<Keys, Trouble> {
        if let Self::Own(file) = self {
            if let Some(folder) = file.parent() {
                std::fs::create_dir_all(folder).map_err(Trouble::file("Making", folder))?;
            }
            Keyring::read_or_make(file).map_err(unusable)?;
        }
        self.read().map_err(unusable)?.ok_or_else(|| Trouble::failed("There are no keys for secrets."))
    }

    /// Whether others than the owner can read the file.
    pub fn is_open(&self) -> bool {
        self.file().and_then(|file| std::fs::metadata(file).ok()).is_some_and(|meta| meta.mode() & 0o007 != 0)
    }
}

/// For `backstay config check`: whether the keys can be read, and by nobody else.
pub fn check(config: &Config) -> Result<(), Trouble> {
    let place = Place::of(config)?;
    place.read().map_err(unusable)?;
    match place.file().filter(|_| place.is_open()) {
        None => Ok(()),
        Some(file) => Err(Trouble::failed(format!(
            "Everybody on this machine can read the keys of secrets: chmod o= {}",
            file.display()
        ))),
    }
}

/// What that means for a command.
pub fn unusable(error: SealError) -> Trouble {
    Trouble::failed(format!("Secrets cannot be sealed or opened: {error}."))
}

impl Keys {
    /// These, for ever.
    pub fn fixed(ring: Keyring) -> Self {
        Self(Arc::new(Inner { file: None, now: Mutex::new(Now { ring: Arc::new(ring), looked: None }) }))
    }

    fn in_file(file: PathBuf) -> Result<Self, SealError> {
        // Before it is read: what changes while it is is seen at the next look.
        let looked = look(&file);
        let ring = Arc::new(Keyring::read(&file)?);
        Ok(Self(Arc::new(Inner { file: Some(file), now: Mutex::new(Now { ring, looked }) })))
    }

    /// The keys as they are now. A file that has become wrong, or is gone, is complained about, and what was read before
    /// it goes on to be good.
    pub fn now(&self) -> Arc<Keyring> {
        let mut now = self.0.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &self.0.file {
            let looked = look(file);
            if looked != now.looked {
                now.looked = looked;
                match Keyring::read(file) {
                    Ok(ring) => {
                        let names = ring.names().collect::<Vec<_>>().join(", ");
                        tracing::info!(file = %file.display(), current = ring.current(), names, "the keys were read again");
                        now.ring = Arc::new(ring);
                    }
                    Err(error) => {
                        tracing::error!(%error, "the keys that were read before go on to be used");
                    }
                }
            }
        }
        Arc::clone(&now.ring)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_is_read_again_and_one_that_became_wrong_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let place = Place::Own(file.clone());
        assert!(place.read().unwrap().is_none());
        let keys = place.make().unwrap();
        let sealed = keys.now().seal("a", b"text").unwrap();
        let old = std::fs::read_to_string(&file).unwrap();
        for (text, current) in [
            (format!("k2:{}\n{old}", "ab".repeat(32)), "k2"),
            ("nonsense".to_owned(), "k2"),
            (old.clone(), sealed.key_id.as_str()),
        ] {
            // Another file takes its place, as those who write files do.
            let next = dir.path().join("next");
            std::fs::write(&next, text).unwrap();
            std::fs::rename(&next, &file).unwrap();
            assert_eq!(keys.now().current(), current);
            assert_eq!(keys.now().open("a", &sealed).unwrap(), b"text");
        }
    }
}
