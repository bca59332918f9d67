//! What the VMA answers. Two vocabularies say how a copy is, its own and that of the program that copies; both are read,
//! in whatever case.

use serde::{Deserialize, Deserializer, Serialize};

use crate::remote::{Shape, decode, loose};

/// Whether a machine is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Power {
    /// It is.
    On,
    /// It is not.
    Off,
    /// It sleeps, and can go on at any time.
    Suspended,
    /// Nobody knows.
    Unknown,
}

impl Power {
    /// As VMware says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::On => "poweredOn",
            Self::Off => "poweredOff",
            Self::Suspended => "suspended",
            Self::Unknown => "unknown",
        }
    }

    /// Everything counts as on that is not known to be off.
    pub fn may_run(self) -> bool {
        self != Self::Off
    }
}

impl<'de> Deserialize<'de> for Power {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = loose::some_text(from)?.unwrap_or_default().to_ascii_lowercase();
        Ok(match text.as_str() {
            "poweredon" => Self::On,
            "poweredoff" => Self::Off,
            "suspended" => Self::Suspended,
            _ => Self::Unknown,
        })
    }
}

/// How a machine is.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PowerState {
    /// Which one.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub vm_id: Option<String>,
    /// Whether it is on.
    pub power_state: Power,
    /// How its tools are.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub tools_status: Option<String>,
}

/// What is answered to a call that powers off or on.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PowerAnswer {
    /// Said of the call, not of the machine.
    #[serde(deserialize_with = "loose::flag")]
    pub success: bool,
    /// How it was before.
    pub previous_state: Power,
    /// How it is now: often still as before.
    pub new_state: Power,
    /// `graceful`, `forced` or `already-off`.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub shutdown_method: Option<String>,
    /// How its tools are.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub tools_status: Option<String>,
    /// For people.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub message: Option<String>,
}

/// How a copy is, in either vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copying {
    /// It goes on.
    Running,
    /// It is done.
    Succeeded,
    /// It failed.
    Failed,
    /// It says something that nobody knows: neither an end nor a success.
    Unknown(String),
}

impl<'de> Deserialize<'de> for Copying {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let said = loose::text(from)?;
        Ok(match said.to_ascii_lowercase().as_str() {
            "queued" | "pending" | "preparing" | "snapshotting" | "streaming" | "finalizing" | "running"
            | "replicating" => Self::Running,
            "succeeded" | "completed" => Self::Succeeded,
            "failed" => Self::Failed,
            _ => Self::Unknown(said),
        })
    }
}

/// How far a copy is.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Progress {
    /// Which one: its job, or the name of an export.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub job_id: Option<String>,
    /// How it is.
    pub status: Copying,
    /// `full` or `incremental`.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub sync_type: Option<String>,
    /// Where it is.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub phase: Option<String>,
    /// From 0 to 100.
    #[serde(default, deserialize_with = "loose::fraction")]
    pub percentage: f64,
    /// What it does, for people.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub current_operation: Option<String>,
    /// So far.
    #[serde(default, deserialize_with = "loose::some_number")]
    pub bytes_transferred: Option<i64>,
    /// In all.
    #[serde(default, deserialize_with = "loose::some_number")]
    pub total_bytes: Option<i64>,
    /// Why it failed.
    #[serde(default, deserialize_with = "last_error")]
    pub last_error: Option<String>,
    /// Disk by disk, where there are several.
    #[serde(default, deserialize_with = "loose::list")]
    pub disk_progresses: Vec<DiskProgress>,
}

/// How far a disk is.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[allow(missing_docs, reason = "the names are the VMA's")]
pub struct DiskProgress {
    #[serde(deserialize_with = "loose::text")]
    pub disk_id: String,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub bytes_transferred: Option<i64>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub total_bytes: Option<i64>,
    #[serde(default, deserialize_with = "loose::fraction")]
    pub percent: f64,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub status: Option<String>,
}

/// A text, or an object around one.
fn last_error<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(match serde_json::Value::deserialize(from)? {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text).filter(|text| !text.is_empty()),
        other => Some(other.to_string()),
    })
}

/// A copy was begun.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Started {
    /// Its id: the caller's.
    #[serde(deserialize_with = "loose::text")]
    pub job_id: String,
    /// How it is.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub status: Option<String>,
}

/// How a job is, as the VMA keeps it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct JobStatus {
    /// Which one.
    #[serde(deserialize_with = "loose::text")]
    pub job_id: String,
    /// How it is.
    pub status: Copying,
    /// How far.
    #[serde(default, deserialize_with = "loose::fraction")]
    pub progress_percent: f64,
    /// What it does, for people.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub current_operation: Option<String>,
}

/// Whether changed blocks are tracked.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct CbtStatus {
    /// Whether.
    pub enabled: bool,
    /// Of which machine.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub vm_name: Option<String>,
}

/// What has changed about a machine.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct SpecChanges {
    /// Whether anything.
    #[serde(default, deserialize_with = "loose::flag")]
    pub has_changes: bool,
    /// What, for people.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub changes_summary: Option<String>,
    /// `success` or `error`.
    #[serde(deserialize_with = "loose::text")]
    pub status: String,
    /// Why it could not be found out.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub error_message: Option<String>,
}

impl SpecChanges {
    /// Why it is not known; nothing if it is.
    pub(super) fn error(&self) -> Option<String> {
        if self.status == "success" {
            return None;
        }
        Some(self.error_message.clone().unwrap_or_else(|| format!("its status is \"{}\"", self.status)))
    }
}

/// A machine, as vCenter has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the VMA's")]
pub struct VmInfo {
    #[serde(deserialize_with = "loose::text")]
    pub id: String,
    #[serde(deserialize_with = "loose::text")]
    pub name: String,
    #[serde(deserialize_with = "loose::text")]
    pub path: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub datacenter: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub power_state: Option<String>,
    /// Some builds say it under both names.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub guest_os: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub os_type: Option<String>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub memory_mb: Option<i64>,
    /// 0 where it is not known. Some builds say it under both names.
    #[serde(default, deserialize_with = "loose::some_number")]
    pub num_cpu: Option<i64>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub cpus: Option<i64>,
    #[serde(default, deserialize_with = "loose::list")]
    pub disks: Vec<Disk>,
    #[serde(default, deserialize_with = "loose::list")]
    pub networks: Vec<NicInfo>,
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the VMA's")]
pub struct Disk {
    /// Such as `disk-2000`.
    #[serde(deserialize_with = "loose::text")]
    pub id: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub label: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub path: Option<String>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub size_gb: Option<i64>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub capacity_bytes: Option<i64>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub datastore: Option<String>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub unit_number: Option<i64>,
}

/// A card of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the VMA's")]
pub struct NicInfo {
    #[serde(default, deserialize_with = "loose::some_text")]
    pub label: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub network_name: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub adapter_type: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub mac_address: Option<String>,
    #[serde(default, deserialize_with = "loose::some_flag")]
    pub connected: Option<bool>,
}

/// Reads the machines of a vCenter.
pub fn machines(bytes: &[u8]) -> Result<Vec<VmInfo>, Shape> {
    #[derive(Deserialize)]
    struct Found {
        #[serde(deserialize_with = "loose::list")]
        vms: Vec<VmInfo>,
    }
    Ok(decode::<Found>(bytes)?.vms)
}

/// Reads what is answered to a call about power.
pub fn power_answer(bytes: &[u8]) -> Result<PowerAnswer, Shape> {
    decode(bytes)
}

/// Reads whether a machine is on.
pub fn power_state(bytes: &[u8]) -> Result<PowerState, Shape> {
    decode(bytes)
}

/// Reads how far a copy is.
pub fn progress(bytes: &[u8]) -> Result<Progress, Shape> {
    decode(bytes)
}

/// Reads that a copy was begun.
pub fn started(bytes: &[u8]) -> Result<Started, Shape> {
    decode(bytes)
}

/// Reads how a job is.
pub fn job_status(bytes: &[u8]) -> Result<JobStatus, Shape> {
    decode(bytes)
}

/// Reads whether changed blocks are tracked.
pub fn cbt_status(bytes: &[u8]) -> Result<CbtStatus, Shape> {
    decode(bytes)
}

/// Reads what has changed about a machine.
pub fn spec_changes(bytes: &[u8]) -> Result<SpecChanges, Shape> {
    decode(bytes)
}

/// Reads that it is well.
pub fn health(bytes: &[u8]) -> Result<(), Shape> {
    #[derive(Deserialize)]
    struct Health {
        status: String,
    }
    match decode::<Health>(bytes)?.status.as_str() {
        "healthy" => Ok(()),
        other => Err(Shape::new(format!("says that it is \"{other}\""))),
    }
}
