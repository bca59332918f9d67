//! Where the demo plays: a folder with two "hosts", which are folders, too.
//!
//! ```text
//!   <data_dir>/demo/
//!     .backstay-demo                 says that the folder is ours; locked while a demo plays; who played last
//!     old-host/<vm>/disk-<n>.img     where a machine is at first
//!     old-host/<vm>/snapshot.json
//!     new-host/<vm>/disk-<n>.img     where it is moved to
//!     new-host/<vm>/vm.json, slot-<n>.json
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use backstay_engine::{Failure, RunId};
use sha2::{Digest, Sha256};

use crate::trouble::Trouble;

const MARK: &str = ".backstay-demo";
/// The sizes of a machine's disks.
pub(super) const DISKS: [usize; 2] = [2 << 20, 3 << 20];

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
        let left_at = words.next().and_then(|run| run.parse().ok());
        let mut stage = Self { folder, mark, left_at };
        stage.write(stage.left_at)?;
        Ok(stage)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Tells this folder from every other, on this machine and on others.
    pub(super) fn id(&self) -> String {
        let host = rustix::system::uname();
        let mut hash = Sha256::new();
        hash.update(host.nodename().to_bytes());
        hash.update(self.folder.as_os_str().as_encoded_bytes());
        hex::encode(hash.finalize()).chars().take(12).collect()
    }

    /// Whether a demo was cut off while, or right after, it played this run.
    pub(super) fn was_left_at(&self, run: RunId) -> bool {
        self.left_at == Some(run)
    }

    /// From here on the demo plays this run. Only a hint for what is told later: the truth is in the journal.
    pub(super) fn plays(&mut self, run: RunId) -> Result<(), Trouble> {
        self.write(Some(run))
    }

    /// The demo came to its end.
    pub(super) fn leave(mut self) -> Result<(), Trouble> {
        self.write(None)
    }

    fn write(&mut self, run: Option<RunId>) -> Result<(), Trouble> {
        let run = run.map_or(String::new(), |run| run.to_string());
        let text = format!("{} {run}\n", std::process::id());
        let path = self.folder.join(MARK);
        let written = self
            .mark
            .rewind()
            .and_then(|()| self.mark.write_all(text.as_bytes()))
            .and_then(|()| self.mark.set_len(text.len() as u64));
        written.map_err(Trouble::file("Writing", &path))
    }

    /// Both hosts as they are before anything moves.
    pub(super) fn set_up(&self, machines: &[&str]) -> Result<(), Trouble> {
        for host in ["old-host", "new-host"] {
            let host = self.folder.join(host);
            if host.exists() {
                fs::remove_dir_all(&host).map_err(Trouble::file("Clearing", &host))?;
            }
        }
        for vm in machines {
            let room = Room { folder: self.folder.clone(), vm: (*vm).to_owned() };
            fs::create_dir_all(room.on_old()).map_err(Trouble::file("Creating", &room.on_old()))?;
            for disk in 0..DISKS.len() {
                let path = room.old_disk(disk);
                fs::write(&path, image(vm, disk)).map_err(Trouble::file("Writing", &path))?;
            }
        }
        fs::create_dir_all(self.folder.join("new-host")).map_err(Trouble::file("Creating", &self.folder))
    }

    /// Whether the machine is where it should be, with all it needs; else what is wrong.
    pub(super) fn arrived(&self, vm: &str) -> Result<(), String> {
        let room = Room { folder: self.folder.clone(), vm: vm.to_owned() };
        let mut wanted = vec!["vm.json".to_owned()];
        for disk in 0..DISKS.len() {
            wanted.extend([format!("disk-{disk}.img"), format!("slot-{disk}.json")]);
            if fs::read(room.new_disk(disk)).ok() != Some(image(vm, disk)) {
                return Err(format!("{} is not what was copied", room.new_disk(disk).display()));
            }
        }
        same_files(&room.on_new(), wanted)
    }

    /// Whether nothing of the machine is on the new host, and the old one is as it was; else what is wrong.
    pub(super) fn never_left(&self, vm: &str) -> Result<(), String> {
        let room = Room { folder: self.folder.clone(), vm: vm.to_owned() };
        if room.on_new().exists() {
            return Err(format!("{} is still there", room.on_new().display()));
        }
        for disk in 0..DISKS.len() {
            if fs::read(room.old_disk(disk)).ok() != Some(image(vm, disk)) {
                return Err(format!("{} has changed", room.old_disk(disk).display()));
            }
        }
        same_files(&room.on_old(), (0..DISKS.len()).map(|disk| format!("disk-{disk}.img")).collect())
    }
}

fn same_files(folder: &Path, mut wanted: Vec<String>) -> Result<(), String> {
    let listed = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut found: Vec<_> =
        listed.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    found.sort();
    wanted.sort();
    if found == wanted {
        return Ok(());
    }
    let (found, wanted) = (found.join(", "), wanted.join(", "));
    Err(format!("{} holds {found}, and should hold {wanted}", folder.display()))
}

/// What is on a disk: no two of them are alike, and anybody can say what has to be there.
fn image(vm: &str, disk: usize) -> Vec<u8> {
    let size = DISKS.get(disk).copied().unwrap_or_default();
    let block = Sha256::digest(format!("{vm}/{disk}"));
    block.iter().copied().cycle().take(size).collect()
}

/// One machine's places on both hosts, as an activity finds them.
pub(super) struct Room {
    folder: PathBuf,
    vm: String,
}

impl Room {
    /// Only a folder that a demo has marked is touched, whatever a plan says.
    pub(super) fn enter(folder: &str, vm: &str) -> Result<Self, Failure> {
        let simple = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if vm.is_empty() || !vm.chars().all(simple) {
            return Err(Failure::permanent("bad_name", "a machine's name has letters, digits and - only")
                .not_applied());
        }
        let folder = PathBuf::from(folder);
        if !folder.is_absolute() || !folder.join(MARK).is_file() {
            let what = format!("{} is no demo's folder on this machine", folder.display());
            return Err(Failure::retryable("no_stage", what).not_applied());
        }
        Ok(Self { folder, vm: vm.to_owned() })
    }

    pub(super) fn vm(&self) -> &str {
        &self.vm
    }

    pub(super) fn on_old(&self) -> PathBuf {
        self.folder.join("old-host").join(&self.vm)
    }

    pub(super) fn on_new(&self) -> PathBuf {
        self.folder.join("new-host").join(&self.vm)
    }

    pub(super) fn old_disk(&self, disk: usize) -> PathBuf {
        self.on_old().join(format!("disk-{disk}.img"))
    }

    pub(super) fn new_disk(&self, disk: usize) -> PathBuf {
        self.on_new().join(format!("disk-{disk}.img"))
    }

    pub(super) fn snapshot(&self) -> PathBuf {
        self.on_old().join("snapshot.json")
    }

    pub(super) fn description(&self) -> PathBuf {
        self.on_new().join("vm.json")
    }

    pub(super) fn slot(&self, slot: usize) -> PathBuf {
        self.on_new().join(format!("slot-{slot}.json"))
    }
}
