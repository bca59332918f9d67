//! What there is in the pretend data centre.
//!
//! Two views of one thing stand side by side where the real systems can disagree: what CloudStack's database says
//! (`state`, `attached`), and what is so (`power`, `plugged`). Only the second one is the truth.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A virtual machine of CloudStack. The OMA is one of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Vm {
    /// Its id.
    pub id: Uuid,
    /// Its host name: unique in its network's domain.
    pub name: String,
    /// What people see.
    pub display_name: String,
    /// A free word.
    pub group: Option<String>,
    /// What CloudStack says.
    pub state: VmState,
    /// Whether it runs, whatever CloudStack says.
    pub power: Power,
    /// Where it runs.
    pub host: Option<Uuid>,
    /// What runs it: `KVM`, as its template says.
    #[serde(default = "kvm")]
    pub hypervisor: String,
    /// Backups of it are made: nothing is attached or detached then.
    #[serde(default)]
    pub backup_offering: Option<Uuid>,
    /// Its zone.
    pub zone: Uuid,
    /// Its account.
    pub account: String,
    /// What it was made from.
    pub template: Option<Uuid>,
    /// Its size.
    pub offering: Uuid,
    /// Its cores.
    pub cpus: u32,
    /// Its memory.
    pub memory_mb: u32,
    /// `BIOS` or `UEFI`.
    pub boot_type: String,
    /// Its interfaces; the first that says so is the default.
    pub nics: Vec<Nic>,
    /// Settings as they were sent.
    pub details: BTreeMap<String, String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// Gone, but still a row.
    pub removed: Option<DateTime<Utc>>,
    /// How often it began to run.
    pub boots: u32,
}

/// What CloudStack says of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// On its way up.
    Starting,
    /// Up.
    Running,
    /// On its way down.
    Stopping,
    /// Down.
    Stopped,
    /// Deleted, and can be brought back.
    Destroyed,
    /// On its way out.
    Expunging,
    /// Its first deployment failed.
    Error,
}

/// Whether a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    /// It runs.
    On,
    /// It does not.
    Off,
    /// It stands still with what it has in memory: sources only.
    Suspended,
}

/// An interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Nic {
    /// Its id.
    pub id: Uuid,
    /// Where it leads.
    pub network: Uuid,
    /// Its hardware address.
    pub mac: String,
    /// Its address, where the network gives one.
    pub ip: Option<String>,
    /// The one that the guest takes by default.
    pub default: bool,
}

/// A volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    pub id: Uuid,
    /// Its name: not unique.
    pub name: String,
    /// What the storage calls it: `cs-` and this is its LINSTOR resource. Mostly its id, which nobody promises.
    pub path: String,
    /// What CloudStack says.
    pub state: VolumeState,
    /// ROOT or DATADISK.
    pub root: bool,
    /// The storage that it lies on; none while it is only a row.
    #[serde(default)]
    pub pool: Option<Uuid>,
    /// Where CloudStack says that it hangs.
    pub attached: Option<Attachment>,
    /// Where it hangs. Two of them is the worst that can happen.
    pub plugged: BTreeSet<Uuid>,
    /// Its size in bytes.
    pub size: u64,
    /// Its zone.
    pub zone: Uuid,
    /// Its account.
    pub account: String,
    /// What is on it.
    pub content: Content,
    /// The source disk that it is the replica of: then it is protected, and must never be lost.
    pub replica_of: Option<DiskRef>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// Gone, but still a row.
    pub removed: Option<DateTime<Utc>>,
    /// Since when it hangs nowhere.
    pub adrift_since: Option<DateTime<Utc>>,
}

/// What CloudStack says of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeState {
    /// A row without storage.
    Allocated,
    /// Being made.
    Creating,
    /// Good.
    Ready,
    /// Being attached.
    Attaching,
    /// A snapshot of it is being taken.
    Snapshotting,
    /// It goes back to a snapshot.
    RevertSnapshotting,
    /// It is copied to another storage.
    Migrating,
    /// Deleted, and can be brought back.
    Destroy,
    /// Gone.
    Expunged,
}

/// A primary storage.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pool {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// The hosts that reach it; none: all of the zone.
    pub cluster: Option<Uuid>,
    /// It is one host's own.
    pub local: bool,
    /// Each volume is a thing of its own there, with rules of its own.
    pub managed: bool,
    /// What can run from it: `KVM`.
    pub hypervisor: String,
}

fn kvm() -> String {
    "KVM".to_owned()
}

/// A place at a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The VM.
    pub vm: Uuid,
    /// The slot: 0 is the root.
    pub device: u32,
}

/// One disk of a source VM.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DiskRef {
    /// The source VM, by its instance id.
    pub source: String,
    /// The disk's key, from 2000.
    pub key: u32,
}

/// What is on a volume: up to which version of its source disk, and what others wrote since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The version of the source disk that replication brought last.
    pub replicated: u64,
    /// What was written by anyone but replication, in order: `virtio …`, `guest … boot n`. Empty: clean.
    pub foreign: Vec<String>,
    /// Replication wrote over what others had written: nothing on it can be trusted.
    pub mixed: bool,
    /// A conversion began, and did not end.
    pub half_converted: bool,
    /// A copy began, and did not end: half of it is older than the rest. The next copy that ends makes it whole.
    #[serde(default)]
    pub torn: bool,
}

/// A snapshot of one volume, by CloudStack or by LINSTOR.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: Uuid,
    /// Its name: not unique with CloudStack, unique for a resource with LINSTOR.
    pub name: String,
    /// Of what.
    pub volume: Uuid,
    /// What it holds.
    pub content: Content,
    /// The size of the volume then.
    pub size: u64,
    /// Who took it.
    pub by: SnapshotBy,
    /// What its system says: `Allocated`, `Creating`, `BackingUp`, `BackedUp`, `Error`, `Destroyed`.
    pub state: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// When it was taken.
    pub created: DateTime<Utc>,
    /// Gone, but still a row.
    pub removed: Option<DateTime<Utc>>,
}

/// Who took a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotBy {
    /// CloudStack, of a volume.
    CloudStack,
    /// LINSTOR, of a resource.
    Linstor,
}

/// A snapshot of a VM with all its volumes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmSnapshot {
    /// Its id.
    pub id: Uuid,
    /// What it is called: unique for a VM.
    pub display_name: String,
    /// Of what.
    pub vm: Uuid,
    /// What it holds of each volume.
    pub contents: BTreeMap<Uuid, Content>,
    /// `Allocated`, `Creating`, `Ready`, `Reverting`, `Expunging`, `Error`, `Removed`.
    pub state: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// When it was taken.
    pub created: DateTime<Utc>,
    /// Gone, but still a row.
    pub removed: Option<DateTime<Utc>>,
}

/// A network of CloudStack.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Network {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// `Isolated`, `Shared` or `L2`.
    pub kind: String,
    /// `Implemented`, `Allocated`, `Setup`, …
    pub state: String,
    /// Its DNS domain: names of VMs are unique in it.
    pub domain: String,
    /// Its addresses, none for an L2 one: `10.1.0.`, to which the host is added.
    pub prefix: Option<String>,
    /// The world sees it: a source and its replica must never both run in such ones.
    pub production: bool,
    /// Its zone.
    pub zone: Uuid,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// A virtual machine of VMware.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    /// Its instance id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its path in the inventory.
    pub path: String,
    /// Its operating system, as VMware calls it.
    pub guest_os: String,
    /// Windows.
    pub windows: bool,
    /// `bios` or `efi`.
    pub firmware: String,
    /// Whether it runs.
    pub power: Power,
    /// It is asked to go down, and will be down then.
    pub going_down: Option<DateTime<Utc>>,
    /// `toolsOk`, `toolsOld`, `toolsNotRunning`, `toolsNotInstalled`.
    pub tools: String,
    /// Its cores.
    pub cpus: u32,
    /// Its memory.
    pub memory_mb: u32,
    /// Its disks.
    pub disks: Vec<SourceDisk>,
    /// Its interfaces.
    pub nics: Vec<SourceNic>,
    /// The snapshots that replications left, by name.
    pub snapshots: Vec<String>,
}

/// A disk of a source VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceDisk {
    /// Its key: 2000 is the one that it boots from, unless the VM says otherwise.
    pub key: u32,
    /// What people see.
    pub label: String,
    /// Its size in bytes.
    pub size: u64,
    /// What is on it: grows with each write of the guest.
    pub version: u64,
    /// The first half of its change id: another one means that tracking began anew.
    pub tracking: Uuid,
    /// The volume that it is replicated to.
    pub replica: Uuid,
}

/// An interface of a source VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceNic {
    /// What people see.
    pub label: String,
    /// The port group.
    pub network: String,
    /// Its hardware address.
    pub mac: String,
}

/// A zone, template or offering: what is only named and listed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fixture {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// The rest of it, as it is listed.
    pub more: serde_json::Map<String, serde_json::Value>,
}

/// A hypervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// What CloudStack says: `Up`, `Down`. Its VMs can run while it says `Down`.
    pub state: String,
    /// What its VMs can have in all.
    pub memory_mb: u64,
}

/// An account, and the key that signs for it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Account {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// The id of its one user.
    pub user: Uuid,
    /// Its domain.
    pub domain: Uuid,
    /// A root admin may say which id a thing gets, is never throttled, and is told what went wrong.
    pub root_admin: bool,
    /// The public half of its key.
    pub key: String,
    /// The secret half.
    pub secret: String,
    /// From now on nothing that it signs is good.
    pub expired: bool,
    /// How much it may have: `vm`, `volume`, `snapshot`. Missing: as much as it likes.
    pub limits: BTreeMap<String, u64>,
}
