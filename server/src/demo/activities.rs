//! What can be done to a machine, each with its undo beside it.
//!
//! Each is right when it is killed anywhere and done again: files appear as a whole, removing what is not there is
//! fine, and where a second attempt would be dear (a copy) the first one says in the journal how far it came.

use std::time::Duration;

use backstay_engine::{Activity, Context, Effect, Failure, Probe, Registry, async_trait};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::fs;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, SeekFrom};

use super::files;
use super::stage::{DISKS, Room};

/// All of them.
pub(crate) fn activities() -> Registry {
    Registry::new()
        .with(TakeSnapshot)
        .with(DeleteSnapshot)
        .with(CopyDisk)
        .with(DeleteCopy)
        .with(CreateVm)
        .with(DeleteVm)
        .with(AttachDisks)
        .with(DetachDisks)
        .with(CheckVm)
}

/// They can look whether they have had their effect, and having it twice is having it once.
const LOOKS: Effect = Effect {
    longest_delay: backstay_engine::Span::millis(0),
    probed: true,
    refuses_duplicates: true,
    at_most_once: false,
};

/// Time for somebody to watch.
async fn pause(context: &Context, millis: u64) {
    let _ = tokio::time::timeout(Duration::from_millis(millis), context.cancelled()).await;
}

/// Which machine.
#[derive(Debug, Deserialize, JsonSchema)]
struct Machine {
    /// The demo's folder.
    folder: String,
    vm: String,
    #[serde(default)]
    pause_ms: u64,
}

impl Machine {
    fn room(&self) -> Result<Room, Failure> {
        Room::enter(&self.folder, &self.vm)
    }
}

#[derive(Debug, Serialize, JsonSchema)]
struct Nothing {}

// ---- snapshot ----

struct TakeSnapshot;
struct DeleteSnapshot;

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Snapshot {
    /// The SHA-256 of each disk.
    digests: Vec<String>,
}

#[async_trait]
impl Activity for TakeSnapshot {
    const NAME: &'static str = "demo-take-snapshot";
    type Input = Machine;
    type Output = Snapshot;

    fn effect(&self) -> Effect {
        LOOKS
    }

    async fn run(&self, context: &Context, machine: Machine) -> Result<Snapshot, Failure> {
        let room = machine.room()?;
        let mut digests = Vec::new();
        for disk in 0..DISKS.len() {
            digests.push(files::digest(&room.old_disk(disk)).await?);
        }
        pause(context, machine.pause_ms).await;
        let snapshot = Snapshot { digests };
        files::write(&room.snapshot(), &snapshot).await?;
        Ok(snapshot)
    }

    async fn probe(&self, _: &Context, machine: Machine) -> Result<Probe<Snapshot>, Failure> {
        let found = files::read(&machine.room()?.snapshot()).await?;
        Ok(found.map_or(Probe::Absent, Probe::Present))
    }
}

#[async_trait]
impl Activity for DeleteSnapshot {
    const NAME: &'static str = "demo-delete-snapshot";
    type Input = Machine;
    type Output = Nothing;

    async fn run(&self, context: &Context, machine: Machine) -> Result<Nothing, Failure> {
        let room = machine.room()?;
        pause(context, machine.pause_ms).await;
        files::remove(&room.snapshot()).await?;
        Ok(Nothing {})
    }
}

// ---- copy a disk ----

struct CopyDisk;
struct DeleteCopy;

/// How much is copied at once.
const PIECE: usize = 64 << 10;

#[derive(Debug, Deserialize, JsonSchema)]
struct Disk {
    folder: String,
    vm: String,
    disk: usize,
    /// After each piece.
    #[serde(default)]
    pause_ms: u64,
}

impl Disk {
    fn room(&self) -> Result<Room, Failure> {
        Room::enter(&self.folder, &self.vm)
    }
}

#[derive(Debug, Serialize, JsonSchema)]
struct Copied {
    file: String,
    bytes: u64,
}

impl Copied {
    fn of(room: &Room, disk: usize, bytes: u64) -> Self {
        Self { file: format!("new-host/{}/disk-{disk}.img", room.vm()), bytes }
    }
}

#[async_trait]
impl Activity for CopyDisk {
    const NAME: &'static str = "demo-copy-disk";
    type Input = Disk;
    type Output = Copied;

    fn effect(&self) -> Effect {
        LOOKS
    }

    async fn run(&self, context: &Context, input: Disk) -> Result<Copied, Failure> {
        let room = input.room()?;
        let (from, to) = (room.old_disk(input.disk), room.new_disk(input.disk));
        let part = files::part(&to);
        fs::create_dir_all(room.on_new()).await?;
        let mut source = fs::File::open(&from).await?;
        let size = source.metadata().await?.len();
        let mut target = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&part).await?;
        // What was saved is on the disk: it was flushed before.
        let saved: u64 = context.saved()?.unwrap_or(0);
        let mut at = saved.min(target.metadata().await?.len());
        source.seek(SeekFrom::Start(at)).await?;
        target.seek(SeekFrom::Start(at)).await?;
        let mut piece = vec![0; PIECE];
        let mut quarter = at * 4 / size.max(1);
        while at < size {
            if context.is_cancelled() {
                return Err(Failure::retryable("stopped", "it was told to stop"));
            }
            let read = source.read(&mut piece).await?;
            let Some(bytes) = piece.get(..read).filter(|bytes| !bytes.is_empty()) else {
                return Err(Failure::permanent(
                    "source_shrank",
                    "the disk became shorter while it was copied",
                ));
            };
            target.write_all(bytes).await?;
            at += read as u64;
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let note = format!("{:.1} of {:.1} MiB", mib(at), mib(size));
            context.progress(at as f64 * 100.0 / size as f64, note);
            pause(context, input.pause_ms).await;
            if at * 4 / size > quarter && at < size {
                quarter = at * 4 / size;
                target.sync_data().await?;
                context.save(&at).await?;
            }
        }
        target.flush().await?;
        target.sync_all().await?;
        match fs::rename(&part, &to).await {
            // Another attempt, at the same time, was a moment earlier.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && to.exists() => {}
            done => done?,
        }
        Ok(Copied::of(&room, input.disk, size))
    }

    async fn probe(&self, _: &Context, input: Disk) -> Result<Probe<Copied>, Failure> {
        let room = input.room()?;
        let to = room.new_disk(input.disk);
        Ok(match fs::metadata(&to).await {
            Ok(found) => Probe::Present(Copied::of(&room, input.disk, found.len())),
            Err(_) if files::part(&to).exists() => Probe::Partial,
            Err(_) => Probe::Absent,
        })
    }
}

#[async_trait]
impl Activity for DeleteCopy {
    const NAME: &'static str = "demo-delete-copy";
    type Input = Disk;
    type Output = Nothing;

    async fn run(&self, context: &Context, input: Disk) -> Result<Nothing, Failure> {
        let room = input.room()?;
        pause(context, input.pause_ms).await;
        files::remove(&room.new_disk(input.disk)).await?;
        files::remove_if_empty(&room.on_new()).await?;
        Ok(Nothing {})
    }
}

// ---- create the machine ----

struct CreateVm;
struct DeleteVm;

#[derive(Debug, Deserialize, JsonSchema)]
struct NewVm {
    folder: String,
    vm: String,
    /// The copied disks.
    disks: Vec<String>,
    /// So many attempts find the host busy.
    #[serde(default)]
    busy: u32,
    #[serde(default)]
    pause_ms: u64,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Vm {
    id: String,
    disks: Vec<String>,
}

#[async_trait]
impl Activity for CreateVm {
    const NAME: &'static str = "demo-create-vm";
    type Input = NewVm;
    type Output = Vm;

    fn effect(&self) -> Effect {
        LOOKS
    }

    async fn run(&self, context: &Context, input: NewVm) -> Result<Vm, Failure> {
        let room = Room::enter(&input.folder, &input.vm)?;
        pause(context, input.pause_ms).await;
        if context.attempt() <= input.busy {
            return Err(Failure::retryable("busy", "new-host is busy").not_applied());
        }
        let vm = Vm { id: context.key().to_string(), disks: input.disks };
        files::write(&room.description(), &vm).await?;
        Ok(vm)
    }

    async fn probe(&self, _: &Context, input: NewVm) -> Result<Probe<Vm>, Failure> {
        let room = Room::enter(&input.folder, &input.vm)?;
        Ok(files::read(&room.description()).await?.map_or(Probe::Absent, Probe::Present))
    }
}

#[async_trait]
impl Activity for DeleteVm {
    const NAME: &'static str = "demo-delete-vm";
    type Input = Machine;
    type Output = Nothing;

    async fn run(&self, context: &Context, machine: Machine) -> Result<Nothing, Failure> {
        let room = machine.room()?;
        pause(context, machine.pause_ms).await;
        files::remove(&room.description()).await?;
        Ok(Nothing {})
    }
}

// ---- attach its disks ----

struct AttachDisks;
struct DetachDisks;

#[derive(Debug, Deserialize, JsonSchema)]
struct Attach {
    folder: String,
    vm: String,
    vm_id: String,
    disks: Vec<String>,
    /// How many disks the new host takes.
    slots: usize,
    #[serde(default)]
    pause_ms: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Attached {
    slots: usize,
}

#[derive(Debug, Serialize)]
struct Slot<'a> {
    vm: &'a str,
    disk: &'a str,
}

#[async_trait]
impl Activity for AttachDisks {
    const NAME: &'static str = "demo-attach-disks";
    type Input = Attach;
    type Output = Attached;

    fn effect(&self) -> Effect {
        LOOKS
    }

    async fn run(&self, context: &Context, input: Attach) -> Result<Attached, Failure> {
        let room = Room::enter(&input.folder, &input.vm)?;
        for (slot, disk) in input.disks.iter().enumerate() {
            pause(context, input.pause_ms).await;
            if slot >= input.slots {
                let (slots, disks) = (input.slots, input.disks.len());
                let what = format!("new-host has {slots} free disk slot, {} has {disks} disks", input.vm);
                return Err(Failure::permanent("no_free_slot", what));
            }
            files::write(&room.slot(slot), &Slot { vm: &input.vm_id, disk }).await?;
        }
        Ok(Attached { slots: input.disks.len() })
    }

    async fn probe(&self, _: &Context, input: Attach) -> Result<Probe<Attached>, Failure> {
        let room = Room::enter(&input.folder, &input.vm)?;
        let slots = input.disks.len();
        Ok(match (0..slots).filter(|slot| room.slot(*slot).exists()).count() {
            0 => Probe::Absent,
            some if some < slots => Probe::Partial,
            _ => Probe::Present(Attached { slots }),
        })
    }
}

#[async_trait]
impl Activity for DetachDisks {
    const NAME: &'static str = "demo-detach-disks";
    type Input = Machine;
    type Output = Nothing;

    async fn run(&self, context: &Context, machine: Machine) -> Result<Nothing, Failure> {
        let room = machine.room()?;
        pause(context, machine.pause_ms).await;
        for slot in 0..DISKS.len() {
            files::remove(&room.slot(slot)).await?;
        }
        Ok(Nothing {})
    }
}

// ---- check that it is all there ----

struct CheckVm;

#[derive(Debug, Deserialize, JsonSchema)]
struct Expected {
    folder: String,
    vm: String,
    /// What the snapshot says of the disks.
    digests: Vec<String>,
    #[serde(default)]
    pause_ms: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Checked {
    disks: usize,
}

#[async_trait]
impl Activity for CheckVm {
    const NAME: &'static str = "demo-check-vm";
    type Input = Expected;
    type Output = Checked;

    async fn run(&self, context: &Context, input: Expected) -> Result<Checked, Failure> {
        let room = Room::enter(&input.folder, &input.vm)?;
        for (disk, expected) in input.digests.iter().enumerate() {
            pause(context, input.pause_ms).await;
            if files::digest(&room.new_disk(disk)).await? != *expected {
                let what = format!("disk {disk} on new-host is not the disk of the snapshot");
                return Err(Failure::permanent("wrong_disk", what));
            }
            context.progress((disk + 1) as f64 * 100.0 / DISKS.len() as f64, format!("disk {disk} is right"));
        }
        Ok(Checked { disks: input.digests.len() })
    }
}
