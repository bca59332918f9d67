//! The client of the Volume Daemon, which attaches volumes, finds their devices, and exports them.
//!
//! It answers at once with an operation, and the operation's end is found by asking. What it knows is not always so: an
//! operation that failed may have attached the volume, one whose daemon died stays pending for ever, and no row means
//! only that it has none. So [`Kind::Look`] is what most of its failures are.

mod objects;

use std::path::PathBuf;
use std::sync::Arc;

use backstay_engine::Span;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use objects::{
    DaemonHealth, DeviceMapping, Export, ExportList, Operation, OperationKind, OperationStatus,
    TrackedSnapshot, VmVolume,
};
pub use objects::{
    device, error_text, export, exports, forgotten, health, message, operation, operations, snapshots,
    vm_volumes,
};

use crate::http::Origin;
use crate::remote::{Ask, Kind, Line, Looks, Nature, Pace, Reach, Said, Trouble, wait};
use crate::secrets::{Scrub, Secrets};

/// The name of the system in errors.
pub(crate) const SYSTEM: &str = "Volume Daemon";

/// Where the daemon is, and how it is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DaemonSettings {
    /// Its address, with the path of its API.
    pub url: String,
    /// A file with the certificates (PEM) that it is trusted by, in place of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// How long a connection may take.
    pub connect_timeout: Span,
    /// How long it may take to the head of an answer, and from one piece to the next.
    pub answer_timeout: Span,
    /// How long a call may take in all.
    pub timeout: Span,
    /// The largest answer that is read, in bytes.
    pub max_answer: usize,
    /// How calls that only look are repeated.
    pub looks: Looks,
    /// The pause between looks at an operation.
    pub poll: Span,
    /// How long an attach is waited for.
    pub attach_deadline: Span,
    /// How long a detach is waited for.
    pub detach_deadline: Span,
}

impl Default for DaemonSettings {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:8090/api/v1".into(),
            ca: None,
            connect_timeout: Span::secs(10),
            answer_timeout: Span::secs(30),
            timeout: Span::secs(30),
            max_answer: 4 << 20,
            looks: Looks::default(),
            poll: Span::secs(2),
            attach_deadline: Span::secs(300),
            detach_deadline: Span::secs(180),
        }
    }
}

/// The client. Cheap to clone.
#[derive(Clone)]
pub struct Daemon {
    line: Line,
    settings: Arc<DaemonSettings>,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Volume Daemon at {}", self.line.origin())
    }
}

/// Which operations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOperations {
    /// Such as `attach`.
    pub kind: Option<String>,
    /// Such as `pending`.
    pub status: Option<String>,
    /// Of this volume.
    pub volume: Option<String>,
    /// Of this machine.
    pub vm: Option<String>,
    /// At most so many; the newest come first.
    pub limit: Option<u32>,
}

/// Which exports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListExports {
    /// Of this volume.
    pub volume: Option<String>,
    /// Such as `active`.
    pub status: Option<String>,
    /// Of this machine.
    pub vm_name: Option<String>,
    /// At most so many.
    pub limit: Option<u32>,
}

/// An export to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateExport {
    /// Of this volume.
    pub volume: String,
    /// Its machine, for people.
    pub vm_name: String,
    /// The machine that it is attached to.
    pub vm: String,
    /// Which of the machine's disks it is.
    pub disk_number: i64,
}

/// A snapshot to be remembered by the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrackSnapshot {
    /// Of this volume.
    pub volume: String,
    /// Of this VM context.
    pub vm_context: String,
    /// Its id in CloudStack.
    pub snapshot: String,
    /// Its name.
    pub name: Option<String>,
    /// Such as `disk-2000`.
    pub disk: Option<String>,
    /// The daemon takes `ready` if it is left out.
    pub status: Option<String>,
}

impl Daemon {
    /// The error says what is wrong with the settings.
    pub fn new(settings: DaemonSettings, secrets: Arc<dyn Secrets>) -> Result<Self, String> {
        let reach = Reach {
            url: &settings.url,
            ca: settings.ca.as_deref(),
            connect_timeout: settings.connect_timeout,
            answer_timeout: settings.answer_timeout,
            timeout: settings.timeout,
            max_answer: settings.max_answer,
            looks: settings.looks,
            refused,
        };
        let line = Line::new(SYSTEM, &reach, secrets)?;
        Ok(Self { line, settings: Arc::new(settings) })
    }

    /// What it was made with.
    pub fn settings(&self) -> &DaemonSettings {
        &self.settings
    }

    /// Where it calls.
    pub fn origin(&self) -> &Origin {
        self.line.origin()
    }

    /// Begins to attach a volume. Nothing keeps it from being attached twice at once: look before.
    pub async fn attach(&self, volume: &str, vm: &str) -> Result<Operation, Trouble> {
        self.begin(&["volumes", volume, "attach"], Some(vm)).await
    }

    /// Begins to attach a volume as the disk that a machine starts from.
    pub async fn attach_root(&self, volume: &str, vm: &str) -> Result<Operation, Trouble> {
        self.begin(&["volumes", volume, "attach-root"], Some(vm)).await
    }

    /// Begins to detach a volume. Its export ends with it.
    pub async fn detach(&self, volume: &str) -> Result<Operation, Trouble> {
        self.begin(&["volumes", volume, "detach"], None).await
    }

    /// How an operation is. `None`: the daemon does not have it.
    pub async fn operation(&self, id: &str) -> Result<Option<Operation>, Trouble> {
        let said = self.get(&["operations", id], Vec::new()).await?;
        if is_missing(&said) {
            return Ok(None);
        }
        let found = said.read(objects::operation, refused)?;
        if found.id != id {
            return Err(said.unknown(&crate::remote::Shape::new("is about another operation")));
        }
        Ok(Some(found))
    }

    /// The operations that fit, the newest first.
    pub async fn list_operations(&self, which: &ListOperations) -> Result<Vec<Operation>, Trouble> {
        let query = words([
            ("type", which.kind.clone()),
            ("status", which.status.clone()),
            ("volume_id", which.volume.clone()),
            ("vm_id", which.vm.clone()),
            ("limit", which.limit.map(|limit| limit.to_string())),
        ]);
        self.get(&["operations"], query).await?.read(objects::operations, refused)
    }

    /// Waits for the end of an operation that attaches or detaches, as long as the settings say. One that failed is
    /// [`Kind::Look`]: it may have had its effect. When the time is over, the daemon goes on.
    pub async fn finish(
        &self,
        operation: &Operation,
        stop: impl Future<Output = ()>,
    ) -> Result<Operation, Trouble> {
        let deadline = match operation.kind {
            OperationKind::Detach => self.settings.detach_deadline,
            _ => self.settings.attach_deadline,
        };
        self.finish_within(&operation.id, deadline, stop).await
    }

    /// The same for any operation, for so long.
    pub async fn finish_within(
        &self,
        id: &str,
        deadline: Span,
        stop: impl Future<Output = ()>,
    ) -> Result<Operation, Trouble> {
        let pace = Pace { first: self.settings.poll, ceiling: self.settings.poll, deadline };
        let what = format!("while its operation {id} went on");
        let ended = wait(SYSTEM, &what, pace, stop, || async {
            let Some(found) = self.operation(id).await? else {
                let text =
                    format!("it does not have the operation {id}, which says nothing about what it did");
                return Err(Trouble::new(SYSTEM, Kind::Look, text));
            };
            match found.status {
                OperationStatus::Pending | OperationStatus::Executing => Ok(None),
                OperationStatus::Completed => Ok(Some(found)),
                OperationStatus::Failed | OperationStatus::Cancelled => {
                    let text = found.error.unwrap_or_else(|| format!("its operation {id} failed"));
                    Err(Trouble::new(SYSTEM, Kind::Look, text))
                }
            }
        });
        // A look that fails has no effect, but what is waited for may have.
        ended.await.map_err(Trouble::maybe_applied)
    }

    /// Where a volume is, as far as the daemon knows. `None`: it has no row, which is no proof that it is nowhere.
    pub async fn device(&self, volume: &str) -> Result<Option<DeviceMapping>, Trouble> {
        let said = self.get(&["volumes", volume, "device"], Vec::new()).await?;
        if is_missing(&said) {
            return Ok(None);
        }
        said.read(objects::device, refused).map(Some)
    }

    /// The volumes of a machine, as far as the daemon knows.
    pub async fn vm_volumes(&self, vm: &str) -> Result<Vec<VmVolume>, Trouble> {
        self.get(&["vms", vm, "volumes"], Vec::new()).await?.read(objects::vm_volumes, refused)
    }

    /// Makes an export, at once.
    pub async fn create_export(&self, export: &CreateExport) -> Result<Export, Trouble> {
        let body = json!({
            "volume_id": export.volume, "vm_name": export.vm_name, "vm_id": export.vm,
            "disk_number": export.disk_number,
        });
        self.change(Method::POST, &["exports"], Some(body)).await?.read(objects::export, refused)
    }

    /// The export of a volume.
    pub async fn export(&self, volume: &str) -> Result<Option<Export>, Trouble> {
        let said = self.get(&["exports", volume], Vec::new()).await?;
        if is_missing(&said) {
            return Ok(None);
        }
        said.read(objects::export, refused).map(Some)
    }

    /// The exports that fit.
    pub async fn list_exports(&self, which: &ListExports) -> Result<Vec<Export>, Trouble> {
        let query = words([
            ("volume_id", which.volume.clone()),
            ("status", which.status.clone()),
            ("vm_name", which.vm_name.clone()),
            ("limit", which.limit.map(|limit| limit.to_string())),
        ]);
        self.get(&["exports"], query).await?.read(objects::exports, refused)
    }

    /// Takes an export away. Whether there was one is what is given.
    pub async fn delete_export(&self, volume: &str) -> Result<bool, Trouble> {
        let said = self.change(Method::DELETE, &["exports", volume], None).await?;
        if is_missing(&said) {
            return Ok(false);
        }
        said.read(objects::message, refused).map(|_| true)
    }

    /// Has a snapshot remembered with its volume.
    pub async fn track_snapshot(&self, snapshot: &TrackSnapshot) -> Result<(), Trouble> {
        let mut body = json!({
            "volume_uuid": snapshot.volume, "vm_context_id": snapshot.vm_context,
            "snapshot_id": snapshot.snapshot,
        });
        for (name, value) in [
            ("snapshot_name", &snapshot.name),
            ("disk_id", &snapshot.disk),
            ("snapshot_status", &snapshot.status),
        ] {
            if let (Some(value), Some(map)) = (value, body.as_object_mut()) {
                map.insert(name.into(), value.as_str().into());
            }
        }
        let said = self.change(Method::POST, &["snapshots", "track"], Some(body)).await?;
        said.read(objects::message, refused).map(|_| ())
    }

    /// The snapshots that are remembered of a VM context.
    pub async fn snapshots(&self, vm_context: &str) -> Result<Vec<TrackedSnapshot>, Trouble> {
        self.get(&["snapshots", "vm", vm_context], Vec::new()).await?.read(objects::snapshots, refused)
    }

    /// Has the snapshots of a VM context forgotten: how many.
    pub async fn forget_snapshots(&self, vm_context: &str) -> Result<i64, Trouble> {
        let said = self.change(Method::DELETE, &["snapshots", "vm", vm_context], None).await?;
        said.read(objects::forgotten, refused)
    }

    /// How it is. It says "healthy" whatever is the case: [`DaemonHealth::is_well`] reads what means something.
    pub async fn health(&self) -> Result<DaemonHealth, Trouble> {
        self.get(&["health"], Vec::new()).await?.read(objects::health, refused)
    }

    async fn begin(&self, path: &[&str], vm: Option<&str>) -> Result<Operation, Trouble> {
        // The daemon hands an empty id on to CloudStack, and fails later.
        if vm.is_some_and(str::is_empty) {
            return Err(Trouble::new(SYSTEM, Kind::Refused, "the id of the machine is empty").not_applied());
        }
        let body = vm.map(|vm| json!({ "vm_id": vm }));
        self.change(Method::POST, path, body).await?.read(objects::operation, refused)
    }

    async fn get(&self, path: &[&str], query: Vec<(&str, String)>) -> Result<Said, Trouble> {
        self.line.ask(Ask::get(path, self.settings.timeout).query(query), &Scrub::default()).await
    }

    async fn change(&self, method: Method, path: &[&str], body: Option<Value>) -> Result<Said, Trouble> {
        let ask = Ask::new(Nature::Changes, method, path, self.settings.timeout);
        let ask = match body {
            Some(body) => ask.json(body),
            None => ask,
        };
        self.line.ask(ask, &Scrub::default()).await
    }
}

fn words<const N: usize>(pairs: [(&'static str, Option<String>); N]) -> Vec<(&'static str, String)> {
    pairs.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// 404 in the daemon's own words. Anybody else's 404 says that the url is wrong.
fn is_missing(said: &Said) -> bool {
    said.status == 404 && objects::error_text(&said.body).is_ok()
}

fn refused(said: &Said) -> Trouble {
    match objects::error_text(&said.body) {
        Ok(text) => said.by_status(text),
        Err(_) if said.status == 404 => {
            let text = format!("there is no such path: {}", said.excerpt());
            Trouble::new(SYSTEM, Kind::Unknown, text)
                .status(said.status)
                .of(said.nature)
                .hint("is its url right?")
        }
        Err(_) => said.by_status(said.excerpt()),
    }
}
