//! The demo's folder, while a process plays in it.
//!
//! ```text
//!   <data_dir>/demo/
//!     .backstay-demo                 says that the folder is ours; locked while a demo plays; how the last one left it
//!     postgres/, admin-token, …      what a server has in its data folder
//!     data-centre.json, devices/     the pretend data centre
//!     secrets/, virt-v2v-in-place    what the configuration of a server beside it names
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use backstay_engine::RunId;

use crate::trouble::Trouble;

const MARK: &str = ".backstay-demo";

/// The word for a demo that was begun, and has no run yet.
const BEGUN: &str = "begun";

/// The folder, while this process plays in it.
pub(super) struct Stage {
    folder: PathBuf,
    mark: File,
    /// The run of a demo that did not come to its end here.
    left_at: Option<RunId>,
}

impl Stage {
    /// Takes the folder. A folder with somebody else's files is left as it is.
    pub(super) fn take(data_dir: &Path) -> Result<Self, Trouble> {
        let folder = data_dir.join("demo");
        fs::create_dir_all(&folder).map_err(Trouble::file("Creating the folder", &folder))?;
        let folder = folder.canonicalize().map_err(Trouble::file("Resolving the folder", &folder))?;
        let path = folder.join(MARK);
        let mut entries = fs::read_dir(&folder).map_err(Trouble::file("Listing", &folder))?;
        if !path.exists() && entries.next().is_some() {
            return Err(Trouble::conflict(format!(
                "{} has files that no demo made, so it is left alone. Name another folder with --data-dir.",
                folder.display()
            )));
        }
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut mark = opened.map_err(Trouble::file("Opening", &path))?;
        let locked = mark.try_lock();
        let mut text = String::new();
        mark.read_to_string(&mut text).map_err(Trouble::file("Reading", &path))?;
        let mut words = text.split_whitespace();
        let process = words.next().unwrap_or("unknown").to_owned();
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Trouble::conflict(format!(
                    "A demo is playing in {} already (process {process}). Wait for its end, or name another folder \
                     with --data-dir.",
                    folder.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(Trouble::file("Locking", &path)(error)),
        }
        let left = words.next().map(str::to_owned);
        let left_at = left.as_deref().and_then(|run| run.parse().ok());
        let mut stage = Self { folder, mark, left_at };
        if left.is_none() {
            stage.clear()?;
        }
        stage.write(&left.unwrap_or_else(|| BEGUN.to_owned()))?;
        Ok(stage)
    }

    /// The last demo came to its end, its database too: nobody works here, and this one begins anew.
    fn clear(&self) -> Result<(), Trouble> {
        let entries = fs::read_dir(&self.folder).map_err(Trouble::file("Listing", &self.folder))?;
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| !path.ends_with(MARK)) {
            let is_folder = path.symlink_metadata().is_ok_and(|about| about.is_dir());
            let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(Trouble::file("Removing", &path))?;
        }
        Ok(())
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether a demo was cut off while, or right after, it played this run.
    pub(super) fn was_left_at(&self, run: RunId) -> bool {
        self.left_at == Some(run)
    }

    /// From here on the demo plays this run. Only a hint for what is told later: the truth is in the journal.
    pub(super) fn plays(&mut self, run: RunId) -> Result<(), Trouble> {
        self.write(&run.to_string())
    }

    /// The demo came to its end, and so did its database: the next one begins anew.
    pub(super) fn leave(mut self) -> Result<(), Trouble> {
        self.write("")
    }

    /// What was played is told, and there is more to come: the next process goes on.
    pub(super) fn rest(mut self) -> Result<(), Trouble> {
        self.write(BEGUN)
    }

    fn write(&mut self, left: &str) -> Result<(), Trouble> {
        let text = format!("{} {left}\n", std::process::id());
        let path = self.folder.join(MARK);
        let written = self
            .mark
            .rewind()
            .and_then(|()| self.mark.write_all(text.as_bytes()))
            .and_then(|()| self.mark.set_len(text.len() as u64));
        written.map_err(Trouble::file("Writing", &path))
    }
}
