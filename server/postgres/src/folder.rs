//! The data folder: whose it is, who holds it, and where things lie in it.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::account::Account;
use crate::{Error, PORT};

const LOCK: &str = "backstay.lock";
const UNFINISHED: &str = "data.new-";
const SOCKET_DIR: &str = "backstay-socket-";
const THROWAWAY: &str = "backstay-throwaway-";
/// `sockaddr_un` has room for 107 bytes on Linux and 103 on macOS.
const SOCKET_PATH_LIMIT: usize = 103;
const LOG_LIMIT: u64 = 16 << 20;
const TAIL: u64 = 4 << 10;

/// A data folder that this process holds the lock of.
pub(crate) struct Folder {
    path: PathBuf,
    account: Option<Account>,
    lock: File,
}

impl Folder {
    /// Makes the folder ours and takes its lock. A folder with somebody else's files is left exactly as it was.
    pub fn take(path: &Path, account: Option<Account>) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(Error::file("Creating the data folder", path))?;
        let path = path.canonicalize().map_err(Error::file("Resolving the data folder", path))?;
        refuse_foreign(&path)?;

        // Also Postgres insists on 0700; and whoever can reach the socket in here is the superuser.
        fs::set_permissions(&path, Permissions::from_mode(0o700))
            .map_err(Error::file("Closing to others", &path))?;
        if let Some(account) = &account {
            chown(&path, Some(account.uid), Some(account.gid))
                .map_err(Error::file("Changing the owner of", &path))?;
        }
        let lock = take_lock(&path)?;
        let folder = Self { path, account, lock };
        folder.rotate_log()?;
        Ok(folder)
    }

    /// Gives the lock up at once. Closing the file would do so only when a child that is being forked right now, in
    /// another thread, has closed its copy.
    pub fn release(&mut self) {
        // The kernel releases the lock when we end, so a failure here costs nothing that could be repaired.
        let _ = self.lock.unlock();
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn account(&self) -> Option<&Account> {
        self.account.as_ref()
    }

    pub fn cluster(&self) -> PathBuf {
        self.path.join("data")
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("postgres.log")
    }

    /// The Postgres version that created the cluster; `None` where there is no cluster.
    pub fn major(&self) -> Result<Option<u32>, Error> {
        major_in(&self.path)
    }

    /// A place for a cluster to be created in. Never the same twice: an initdb of an earlier life may still be ending.
    pub fn unfinished_cluster(&self) -> PathBuf {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.path.join(format!("{UNFINISHED}{}-{}", std::process::id(), now.as_nanos()))
    }

    /// Gives a complete cluster its name; durable before we rely on it.
    pub fn adopt_cluster(&self, unfinished: &Path) -> Result<(), Error> {
        fs::rename(unfinished, self.cluster())
            .map_err(Error::file("Renaming the new cluster", unfinished))?;
        File::open(&self.path)
            .and_then(|folder| folder.sync_all())
            .map_err(Error::file("Syncing the data folder", &self.path))
    }

    pub fn unfinished_leftovers(&self) -> Result<Vec<PathBuf>, Error> {
        let entries = fs::read_dir(&self.path).map_err(Error::file("Listing", &self.path))?;
        let is_unfinished = |path: &PathBuf| file_name(path).starts_with(UNFINISHED);
        Ok(entries.flatten().map(|entry| entry.path()).filter(is_unfinished).collect())
    }

    /// The data folder itself where its path is short enough: nobody else can reach into it, and operators find the
    /// socket without asking. Else a new private folder in the temporary folder; new, because a name that others can
    /// guess could be taken already.
    pub fn make_socket_dir(&self) -> Result<PathBuf, Error> {
        if fits_socket(&self.path) {
            return Ok(self.path.clone());
        }
        let base = socket_bases()
            .into_iter()
            .find(|base| fits_socket(&base.join(format!("{SOCKET_DIR}123456"))))
            .ok_or_else(|| Error::SocketPathTooLong {
                folder: self.path.clone(),
                limit: SOCKET_PATH_LIMIT,
            })?;
        let folder = make_private(&base, SOCKET_DIR)?;
        if let Some(account) = &self.account {
            chown(&folder, Some(account.uid), Some(account.gid))
                .map_err(Error::file("Changing the owner of", &folder))?;
        }
        Ok(folder)
    }

    /// Whether this is a folder that [`Self::make_socket_dir`] made outside the data folder, and that may be removed.
    pub fn is_made_socket_dir(path: &Path) -> bool {
        let in_base = socket_bases().iter().any(|base| path.parent() == Some(base));
        let is_folder = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
        in_base && is_folder && file_name(path).starts_with(SOCKET_DIR)
    }

    pub fn log_length(&self) -> u64 {
        fs::symlink_metadata(self.log()).map_or(0, |metadata| metadata.len())
    }

    /// The end of what was logged since the log had this length.
    pub fn log_tail(&self, since: u64) -> String {
        let read = || {
            let mut file = without_following_links().read(true).open(self.log())?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(since.max(length.saturating_sub(TAIL))))?;
            let mut bytes = Vec::new();
            file.take(TAIL).read_to_end(&mut bytes)?;
            io::Result::Ok(String::from_utf8_lossy(&bytes).trim_end().to_string())
        };
        match read() {
            Ok(text) if text.is_empty() => "(nothing)".into(),
            Ok(text) => text,
            Err(error) => format!("(the log cannot be read: {error})"),
        }
    }

    fn rotate_log(&self) -> Result<(), Error> {
        if self.log_length() < LOG_LIMIT {
            return Ok(());
        }
        let old = self.path.join("postgres.log.1");
        fs::rename(self.log(), &old).map_err(Error::file("Setting the old log aside as", &old))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.release();
    }
}

/// The version of Postgres that the cluster in a data folder is of; nothing, if there is none.
pub(crate) fn major_in(folder: &Path) -> Result<Option<u32>, Error> {
    let path = folder.join("data").join("PG_VERSION");
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(major) => Ok(Some(major)),
            Err(_) => Err(Error::file("Reading the version in", &path)(io::ErrorKind::InvalidData.into())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("Reading", &path)(error)),
    }
}

/// A folder is ours when it holds our lock file. `lost+found` is what an empty file system has.
fn refuse_foreign(folder: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(folder).map_err(Error::file("Listing the data folder", folder))?;
    let names: Vec<String> = entries.flatten().map(|entry| file_name(&entry.path())).collect();
    if names.iter().any(|name| name == LOCK) {
        return Ok(());
    }
    match names.into_iter().find(|name| name != "lost+found") {
        Some(found) => Err(Error::NotOurs { folder: folder.to_path_buf(), found }),
        None => Ok(()),
    }
}

/// The kernel releases the lock when its holder ends, however it ends. The text is only for the error message.
fn take_lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join(LOCK);
    let mut lock = without_following_links()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(Error::file("Opening the lock", &path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let pid = lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(Error::InUse { folder: folder.to_path_buf(), pid });
        }
        Err(TryLockError::Error(error)) => return Err(Error::file("Locking", &path)(error)),
    }
    lock.set_len(0)
        .and_then(|()| lock.write_all(format!("{}\n", std::process::id()).as_bytes()))
        .map_err(Error::file("Writing the lock", &path))?;
    Ok(lock)
}

/// The server's account owns the folder, and root opens files in it: a link planted there must lead nowhere.
fn without_following_links() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    options
}

fn fits_socket(folder: &Path) -> bool {
    folder.as_os_str().len() + format!("/.s.PGSQL.{PORT}").len() <= SOCKET_PATH_LIMIT
}

fn socket_bases() -> [PathBuf; 2] {
    [std::env::temp_dir(), PathBuf::from("/tmp")]
}

fn make_private(base: &Path, prefix: &str) -> Result<PathBuf, Error> {
    tempfile::Builder::new()
        .prefix(prefix)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(base)
        .map(tempfile::TempDir::keep)
        .map_err(Error::file("Creating a private folder in", base))
}

pub(crate) fn make_throwaway() -> Result<PathBuf, Error> {
    make_private(&std::env::temp_dir(), THROWAWAY)
}

/// Removes throw-away folders whose server, guard and owner were all killed. The guard removes a folder in every other
/// case. A young folder is left alone: its owner may not have taken the lock yet.
pub(crate) fn sweep_throwaways(older_than: std::time::Duration) {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for path in
        entries.flatten().map(|entry| entry.path()).filter(|path| file_name(path).starts_with(THROWAWAY))
    {
        let age =
            fs::symlink_metadata(path.join(LOCK)).ok().and_then(|lock| lock.modified().ok()?.elapsed().ok());
        let is_old = age.is_some_and(|age| age >= older_than);
        let is_mine = fs::symlink_metadata(&path).is_ok_and(|metadata| may_remove(metadata.uid()));
        if is_old
            && is_mine
            && take_lock(&path).is_ok()
            && crate::leftovers::processes_in(&path.join("data")).is_empty()
        {
            // Best effort: the next sweep tries again.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn may_remove(owner: u32) -> bool {
    let me = rustix::process::geteuid();
    me.is_root() || me.as_raw() == owner
}

pub(crate) fn default_data_dir() -> PathBuf {
    for_root_or_user("/var/lib/backstay/postgres", "XDG_DATA_HOME", ".local/share", "backstay/postgres")
}

pub(crate) fn default_cache_dir() -> PathBuf {
    for_root_or_user("/var/cache/backstay", "XDG_CACHE_HOME", ".cache", "backstay")
}

fn for_root_or_user(root: &str, variable: &str, below_home: &str, name: &str) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return root.into();
    }
    let named = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    named
        .or_else(|| std::env::home_dir().map(|home| home.join(below_home)))
        .unwrap_or_else(std::env::temp_dir)
        .join(name)
}

pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
