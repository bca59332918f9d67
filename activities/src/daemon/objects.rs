//! What the Volume Daemon answers. Lists may be `null`, and what it does not know it leaves out or empty.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::remote::{Shape, decode, loose};

/// What is under way, or was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Its id.
    #[serde(deserialize_with = "loose::text")]
    pub id: String,
    /// What it does.
    #[serde(rename = "type")]
    pub kind: OperationKind,
    /// How it is.
    pub status: OperationStatus,
    /// Of which volume. Empty for as long as a volume is made: see [`Operation::volume`].
    #[serde(default, deserialize_with = "loose::some_text")]
    pub volume_id: Option<String>,
    /// Of which machine.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub vm_id: Option<String>,
    /// What came of it.
    #[serde(default)]
    pub response: Value,
    /// Why it failed.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub error: Option<String>,
    /// When it was asked for.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub created_at: Option<String>,
    /// When it last moved.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub updated_at: Option<String>,
}

impl Operation {
    /// Its volume: what was made is named in the response alone.
    pub fn volume(&self) -> Option<&str> {
        let made = self.response.get("volume_id").and_then(Value::as_str).filter(|id| !id.is_empty());
        made.or(self.volume_id.as_deref())
    }

    /// Where the volume is on the appliance. A volume of another machine has no device here, whatever stands there.
    pub fn device_path(&self) -> Option<&str> {
        self.response.get("device_path").and_then(Value::as_str).filter(|path| path.starts_with('/'))
    }
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are the daemon's")]
pub enum OperationKind {
    Create,
    Attach,
    Detach,
    Delete,
    Cleanup,
}

/// How an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are the daemon's")]
pub enum OperationStatus {
    Pending,
    Executing,
    Completed,
    Failed,
    Cancelled,
}

/// Where a volume is, as far as the daemon knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceMapping {
    /// The volume's id in CloudStack. An older daemon says `volume_id`.
    #[serde(alias = "volume_id", deserialize_with = "loose::text")]
    pub volume_uuid: String,
    /// The machine that it is attached to.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub vm_id: Option<String>,
    /// `oma` or `failover`.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub operation_mode: Option<String>,
    /// Where it stands in CloudStack.
    #[serde(default, deserialize_with = "loose::some_number")]
    pub cloudstack_device_id: Option<i64>,
    /// A path on the appliance, or `remote-vm-…` for a volume of another machine: see [`DeviceMapping::path`].
    #[serde(default, deserialize_with = "loose::some_text")]
    pub device_path: Option<String>,
    /// How CloudStack had it.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub cloudstack_state: Option<String>,
    /// `detected` or `n/a`.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub linux_state: Option<String>,
    /// In bytes; 0 where nobody looked.
    #[serde(default, deserialize_with = "loose::some_number")]
    pub size: Option<i64>,
    /// A snapshot that is remembered with it.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub ossea_snapshot_id: Option<String>,
    /// How that snapshot is.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub snapshot_status: Option<String>,
    /// A link to the device.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub symlink_path: Option<String>,
    /// When it last looked.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub last_sync: Option<String>,
}

impl DeviceMapping {
    /// The device on the appliance, where it is one.
    pub fn path(&self) -> Option<&str> {
        on_appliance(self.device_path.as_deref())
    }
}

fn on_appliance(path: Option<&str>) -> Option<&str> {
    path.filter(|path| path.starts_with('/'))
}

/// A volume of a machine, as far as the daemon knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the daemon's")]
pub struct VmVolume {
    #[serde(deserialize_with = "loose::text")]
    pub volume_id: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub vm_id: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub device_path: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub state: Option<String>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub size: Option<i64>,
}

impl VmVolume {
    /// As [`DeviceMapping::path`].
    pub fn path(&self) -> Option<&str> {
        on_appliance(self.device_path.as_deref())
    }
}

/// An export of a volume over NBD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the daemon's")]
pub struct Export {
    #[serde(default, deserialize_with = "loose::some_text")]
    pub id: Option<String>,
    #[serde(deserialize_with = "loose::text")]
    pub volume_id: String,
    #[serde(deserialize_with = "loose::text")]
    pub export_name: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub device_path: Option<String>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub port: Option<i64>,
    /// `pending`, `active` or `failed`.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub status: Option<String>,
    /// What whoever had it made said of it.
    #[serde(default)]
    pub metadata: Value,
}

impl Export {
    /// Which of its machine's disks it is, as far as anybody said.
    pub fn disk_number(&self) -> Option<i64> {
        self.metadata.get("disk_number").and_then(loose::whole)
    }
}

/// A list of exports, with their number; some answer the bare list.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum ExportList {
    /// With their number.
    Counted {
        /// The exports.
        #[serde(deserialize_with = "loose::list")]
        exports: Vec<Export>,
    },
    /// The list alone, or null.
    Bare(Option<Vec<Export>>),
}

/// A snapshot that the daemon remembers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the daemon's")]
pub struct TrackedSnapshot {
    #[serde(deserialize_with = "loose::text")]
    pub volume_uuid: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub vm_context_id: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub device_path: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub operation_mode: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub snapshot_id: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub snapshot_created_at: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub snapshot_status: Option<String>,
}

/// How the daemon says that it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonHealth {
    /// Always "healthy".
    #[serde(default, deserialize_with = "loose::some_text")]
    pub status: Option<String>,
    /// "healthy", or "unhealthy: why".
    #[serde(default, deserialize_with = "loose::some_text")]
    pub database_health: Option<String>,
}

impl DaemonHealth {
    /// Whether what it says of its database is good; the rest it says whatever is the case.
    pub fn is_well(&self) -> bool {
        self.database_health.as_deref() == Some("healthy")
    }
}

/// Reads an operation.
pub fn operation(bytes: &[u8]) -> Result<Operation, Shape> {
    decode(bytes)
}

/// Reads a list of operations.
pub fn operations(bytes: &[u8]) -> Result<Vec<Operation>, Shape> {
    Ok(decode::<Option<_>>(bytes)?.unwrap_or_default())
}

/// Reads where a volume is.
pub fn device(bytes: &[u8]) -> Result<DeviceMapping, Shape> {
    decode(bytes)
}

/// Reads the volumes of a machine.
pub fn vm_volumes(bytes: &[u8]) -> Result<Vec<VmVolume>, Shape> {
    Ok(decode::<Option<_>>(bytes)?.unwrap_or_default())
}

/// Reads an export.
pub fn export(bytes: &[u8]) -> Result<Export, Shape> {
    decode(bytes)
}

/// Reads a list of exports.
pub fn exports(bytes: &[u8]) -> Result<Vec<Export>, Shape> {
    Ok(match decode(bytes)? {
        ExportList::Counted { exports } => exports,
        ExportList::Bare(exports) => exports.unwrap_or_default(),
    })
}

/// Reads the snapshots that are remembered.
pub fn snapshots(bytes: &[u8]) -> Result<Vec<TrackedSnapshot>, Shape> {
    #[derive(Deserialize)]
    struct List {
        #[serde(deserialize_with = "loose::list")]
        snapshots: Vec<TrackedSnapshot>,
    }
    Ok(decode::<List>(bytes)?.snapshots)
}

/// Reads how the daemon is.
pub fn health(bytes: &[u8]) -> Result<DaemonHealth, Shape> {
    let health: DaemonHealth = decode(bytes)?;
    match health.database_health {
        Some(_) => Ok(health),
        None => Err(Shape::new("does not say how its database is")),
    }
}

/// Reads an error.
pub fn error_text(bytes: &[u8]) -> Result<String, Shape> {
    #[derive(Deserialize)]
    struct Error {
        error: String,
    }
    Ok(decode::<Error>(bytes)?.error)
}

/// Reads "it was done".
pub fn message(bytes: &[u8]) -> Result<String, Shape> {
    #[derive(Deserialize)]
    struct Message {
        message: String,
    }
    Ok(decode::<Message>(bytes)?.message)
}

/// Reads how many snapshots were forgotten.
pub fn forgotten(bytes: &[u8]) -> Result<i64, Shape> {
    fn count<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
        let count = loose::number(from)?;
        if count < 0 { Err(D::Error::custom("it is less than nothing")) } else { Ok(count) }
    }
    #[derive(Deserialize)]
    struct Forgotten {
        #[serde(deserialize_with = "count")]
        snapshots_cleared: i64,
    }
    Ok(decode::<Forgotten>(bytes)?.snapshots_cleared)
}
