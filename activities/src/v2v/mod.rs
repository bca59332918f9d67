//! The program virt-v2v-in-place, which puts drivers into a guest's disks so that it starts on KVM.
//!
//! ```text
//!   guest     the disks of a guest, and how the program is told of them
//!   verdict   what its last words mean
//!   remains   what a predecessor has left running
//! ```
//!
//! It changes the disks where they are, and leaves no mark: whatever ends it before its time leaves them in a state that
//! only a snapshot from before can mend. So it is run once on a disk, never beside another, and never again without going
//! back first. A run holds a lock for each of its devices, and its processes hold them with it.

mod guest;
mod remains;
mod verdict;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use backstay_engine::Span;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::{Instant, sleep_until};

pub use guest::{BlockDriver, Features, Firmware, Format, Guest, GuestDisk, features};
pub use verdict::{Cause, Verdict, Warning, verdict};

use crate::command::group::Group;
use crate::command::lock::{Lock, NotTaken, take_named};
use crate::remote::{Kind, Trouble};

/// The name of the program in errors.
pub(crate) const SYSTEM: &str = "virt-v2v-in-place";

/// Where the program is, and how it is run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct V2vSettings {
    /// The program: an absolute path.
    pub program: PathBuf,
    /// The folder with logs, locks, and descriptions of guests.
    pub dir: PathBuf,
    /// The folder in which each disk of the appliance has a name that ends with the first 20 digits of its volume's id.
    pub devices: PathBuf,
    /// The drivers for Windows: an image or a folder. Left out: where the program looks by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtio_win: Option<PathBuf>,
    /// The folder for what is large and passes; the program wants a gigabyte.
    pub tmp: PathBuf,
    /// How libguestfs starts its machine; `direct` needs no libvirtd.
    pub backend: String,
    /// Where it finds other programs.
    pub path: String,
    /// Which system of a guest with several is meant: `single` refuses them, `first` takes the first.
    pub root: String,
    /// The driver that the guest is prepared for, where the program can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_driver: Option<BlockDriver>,
    /// It says all that it does.
    pub verbose: bool,
    /// How long a run may take.
    pub deadline: Span,
    /// How long it may take to end once it is asked to, before it is killed.
    pub grace: Span,
    /// How long it may take to say what it can do.
    pub features_timeout: Span,
    /// How long is waited for another run on the same disk.
    pub lock_wait: Span,
    /// The largest log that is kept, in bytes.
    pub max_log: u64,
}

impl Default for V2vSettings {
    fn default() -> Self {
        Self {
            program: "/usr/bin/virt-v2v-in-place".into(),
            dir: "/var/lib/backstay/v2v".into(),
            devices: "/dev/disk/by-id".into(),
            virtio_win: None,
            tmp: "/var/tmp".into(),
            backend: "direct".into(),
            path: "/usr/sbin:/usr/bin:/sbin:/bin".into(),
            root: "single".into(),
            block_driver: None,
            verbose: false,
            deadline: Span::secs(3600),
            grace: Span::secs(10),
            features_timeout: Span::secs(30),
            lock_wait: Span::secs(5),
            max_log: 16 << 20,
        }
    }
}

/// The program. Cheap to clone.
#[derive(Clone, Debug)]
pub struct V2v {
    settings: Arc<V2vSettings>,
}

/// It was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// What is odd. A guest without drivers starts slowly or not at all.
    pub warnings: Vec<Warning>,
    /// What it said.
    pub log: PathBuf,
}

/// As much of the end of its words is read for their meaning.
const TAIL: usize = 64 << 10;

impl V2v {
    /// The error says what is wrong with the settings.
    pub fn new(settings: V2vSettings) -> Result<Self, String> {
        for (name, path) in [("program", &settings.program), ("dir", &settings.dir), ("tmp", &settings.tmp)] {
            if !path.is_absolute() {
                return Err(format!("v2v.{name} is {}, which is no absolute path", path.display()));
            }
        }
        Ok(Self { settings: Arc::new(settings) })
    }

    /// What it was made with.
    pub fn settings(&self) -> &V2vSettings {
        &self.settings
    }

    /// The device of a volume that hangs at this machine, the appliance, whatever anybody else says.
    pub fn device_here(&self, volume: &str) -> Option<PathBuf> {
        let ending = device_ending(volume);
        let here = std::fs::read_dir(&self.settings.devices).ok()?.flatten();
        here.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with(&ending))
    }

    /// What the program can do.
    pub async fn features(&self) -> Result<Features, Trouble> {
        let said = self.ask("--machine-readable").await?;
        let mut found = features(&said).map_err(|shape| {
            Trouble::new(SYSTEM, Kind::Unknown, format!("what it can do {shape}")).not_applied()
        })?;
        // Some can be told of a driver, and say so only where they list their options.
        if !found.block_driver && self.settings.block_driver.is_some() {
            let options = self.ask("--long-options").await.unwrap_or_default();
            found.block_driver = guest::lists_option(&options, "block-driver");
        }
        Ok(found)
    }

    /// Ends what a predecessor has left running on these devices: how many groups of processes. What they have done to
    /// the disks is not known then.
    pub async fn end_leftovers(&self, devices: &[PathBuf]) -> Result<usize, Trouble> {
        let mut ended = 0;
        for device in devices {
            let lock = self.locks().join(lock_name(&real(device)?));
            ended += usize::from(remains::end(&lock, self.settings.grace.0).await?);
        }
        Ok(ended)
    }

    /// Puts the drivers in. `label` names the log. Whoever calls has made sure that there is a snapshot to go back to.
    pub async fn inject(
        &self,
        guest: &Guest,
        label: &str,
        stop: impl Future<Output = ()>,
    ) -> Result<Injected, Trouble> {
        let settings = &*self.settings;
        let end = Instant::now() + settings.deadline.0;
        let before = |kind, text: String| Trouble::new(SYSTEM, kind, text).not_applied();
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if label.is_empty() || label.len() > 100 || label.starts_with('.') || !label.chars().all(fits) {
            return Err(before(Kind::Refused, format!("\"{}\" is no name of a log", label.escape_debug())));
        }
        guest.check().map_err(|wrong| before(Kind::Refused, wrong))?;
        tokio::pin!(stop);
        let ready = async { Ok::<_, Trouble>((self.features().await?, self.lock(guest).await?)) };
        let (features, locks) = tokio::select! {
            biased;
            () = &mut stop => return Err(before(Kind::Cancelled, "it was not begun".into())),
            ready = ready => ready?,
        };
        let files = |error: std::io::Error| {
            before(Kind::Operator, format!("the folder {}: {error}", settings.dir.display()))
        };
        std::fs::create_dir_all(&settings.dir).map_err(files)?;
        let described = settings.dir.join(format!("{label}.xml"));
        let args =
            guest.args(settings, &features, &described).map_err(|wrong| before(Kind::Refused, wrong))?;
        if guest.disks.len() > 1 {
            std::fs::write(&described, guest.describe()).map_err(files)?;
        }
        let path = settings.dir.join(format!("{label}.log"));
        let log = Mutex::new(Log::create(&path, settings.max_log).map_err(files)?);

        let mut command = self.command();
        command.args(&args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut group = Group::spawn(&mut command, &locks, settings.grace.0).map_err(|error| {
            before(Kind::Operator, format!("{} could not be started: {error}", settings.program.display()))
        })?;
        if let Some(number) = group.number() {
            for lock in &locks {
                // Without it a leftover is found held, and not ended.
                let _ = lock.note(&number.as_raw_nonzero().to_string());
            }
        }
        let (stdout, stderr) = (group.stdout(), group.stderr());
        let both = async {
            let ended = async {
                let status = group.leader_ended().await;
                // What it has left running would hold the pipes open, and the disks.
                group.end().await;
                status
            };
            tokio::join!(ended, follow(stdout, &log), follow(stderr, &log))
        };
        // The future is dropped before the group is asked to end, so nothing waits for itself.
        let why = tokio::select! {
            biased;
            () = &mut stop => Kind::Cancelled,
            (status, _, said) = both => {
                locks.into_iter().for_each(Lock::free);
                return judge(status, &said, path);
            }
            () = sleep_until(end) => Kind::Late,
        };
        group.end().await;
        let text = format!(
            "it was ended with all its processes; what it did to the disks is not known; see {}",
            path.display()
        );
        Err(Trouble::new(SYSTEM, why, text))
    }

    async fn lock(&self, guest: &Guest) -> Result<Vec<Lock>, Trouble> {
        // In one order everywhere, so that no two wait for each other.
        let mut devices = guest.disks.iter().map(|disk| real(&disk.device)).collect::<Result<Vec<_>, _>>()?;
        devices.sort();
        if devices.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err(Trouble::new(SYSTEM, Kind::Refused, "two of the disks are one device").not_applied());
        }
        let end = Instant::now() + self.settings.lock_wait.0;
        let mut locks = Vec::new();
        for device in &devices {
            let taken = take_named(&self.locks(), &lock_name(device), end, std::future::pending()).await;
            locks.push(taken.map_err(|why| {
                let (kind, text) = match why {
                    NotTaken::Broken(error) => {
                        (Kind::Operator, format!("the folder {}: {error}", self.locks().display()))
                    }
                    NotTaken::Held(_) | NotTaken::Stopped => {
                        (Kind::Busy, format!("it is at work on {} already", device.display()))
                    }
                };
                Trouble::new(SYSTEM, kind, text).because("running").not_applied()
            })?);
        }
        Ok(locks)
    }

    fn locks(&self) -> PathBuf {
        self.settings.dir.join("locks")
    }

    fn command(&self) -> Command {
        let settings = &*self.settings;
        let mut command = Command::new(&settings.program);
        command
            .env_clear()
            .env("PATH", &settings.path)
            .env("LIBGUESTFS_BACKEND", &settings.backend)
            .env("TMPDIR", &settings.tmp)
            .env("LIBGUESTFS_CACHEDIR", &settings.tmp)
            .env("HOME", &settings.tmp)
            // Its words are read.
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null());
        if let Some(drivers) = &settings.virtio_win {
            command.env("VIRTIO_WIN", drivers);
        }
        command
    }

    /// What it says to a question about itself.
    async fn ask(&self, option: &str) -> Result<Vec<u8>, Trouble> {
        let program = self.settings.program.display().to_string();
        let fails = |kind, text: String| Trouble::new(SYSTEM, kind, text).not_applied();
        let mut command = self.command();
        command.arg(option).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut group = Group::spawn(&mut command, &[], self.settings.grace.0)
            .map_err(|error| fails(Kind::Operator, format!("{program} could not be started: {error}")))?;
        let stdout = group.stdout();
        let answer = async {
            let mut said = Vec::new();
            if let Some(pipe) = stdout {
                let _ = pipe.take(TAIL as u64).read_to_end(&mut said).await;
            }
            (group.leader_ended().await, said)
        };
        let answer = tokio::time::timeout(self.settings.features_timeout.0, answer).await;
        group.end().await;
        match answer {
            Ok((Ok(status), said)) if status.success() => Ok(said),
            Ok((Ok(status), _)) => {
                Err(fails(Kind::Refused, format!("{program} {option} ended with {status}")))
            }
            Ok((Err(error), _)) => Err(fails(Kind::Internal, format!("{program} {option}: {error}"))),
            Err(_) => Err(fails(Kind::Late, format!("{program} {option}"))),
        }
    }
}

/// How the name of a volume's device ends.
pub fn device_ending(volume: &str) -> String {
    volume.chars().filter(|c| *c != '-').take(20).collect()
}

/// The device itself, by whatever name it was given: a disk by its id is the same disk.
fn real(device: &Path) -> Result<PathBuf, Trouble> {
    std::fs::canonicalize(device).map_err(|error| {
        let text = format!("the device {}: {error}", device.display());
        Trouble::new(SYSTEM, Kind::Look, text).because("no_device").not_applied()
    })
}

fn lock_name(device: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, device.as_os_str().as_bytes()).to_string()
}

/// What its end means.
fn judge(status: std::io::Result<ExitStatus>, said: &[u8], log: PathBuf) -> Result<Injected, Trouble> {
    let Verdict { cause, warnings, text } = verdict(said);
    let status =
        status.map_err(|error| Trouble::new(SYSTEM, Kind::Internal, format!("it is lost: {error}")))?;
    match status.code() {
        Some(0) => Ok(Injected { warnings, log }),
        Some(code) => {
            let text = format!("{}: {text} (see {})", cause.meaning(), log.display());
            Err(Trouble::new(SYSTEM, Kind::Look, text).because(cause.name()).code_of(code.into(), None))
        }
        None => {
            let text = format!("it was ended from outside ({status}): {text} (see {})", log.display());
            Err(Trouble::new(SYSTEM, Kind::Internal, text).because("killed"))
        }
    }
}

/// All that is said, as far as it fits, and then the end of it.
struct Log {
    file: File,
    room: u64,
}

impl Log {
    fn create(path: &Path, room: u64) -> std::io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options().create(true).truncate(true).write(true).mode(0o640).open(path)?;
        Ok(Self { file, room })
    }

    fn add(&mut self, bytes: &[u8]) {
        let fits = usize::try_from(self.room).unwrap_or(usize::MAX).min(bytes.len());
        // A full disk is no reason to stop what changes another.
        let _ = self.file.write_all(bytes.get(..fits).unwrap_or_default());
        if fits < bytes.len() && self.room > 0 {
            let _ = self.file.write_all(b"\n[the log is full; its end follows]\n");
        }
        self.room -= fits as u64;
    }
}

/// Reads a pipe to its end, into the log, and gives its end.
async fn follow(pipe: Option<impl AsyncRead + Unpin>, log: &Mutex<Log>) -> Vec<u8> {
    let Some(mut pipe) = pipe else { return Vec::new() };
    let (mut buffer, mut tail) = (vec![0; 8 << 10], Vec::new());
    let mut lost = false;
    while let Ok(read) = pipe.read(&mut buffer).await {
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            log.add(bytes);
            lost |= log.room == 0;
        }
        tail.extend_from_slice(bytes);
        tail.drain(..tail.len().saturating_sub(TAIL));
    }
    if lost {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = log.file.write_all(&tail);
    }
    tail
}
