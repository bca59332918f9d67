//! What is moved, from where to where, and how.

use backstay_machine::plan::Span;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The input of the workflow `failover`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Failover {
    /// The machine, as it is known here: two failovers of one never run at once.
    #[schemars(length(min = 1, max = 64))]
    pub context: String,
    /// A rehearsal (`test`) or for real (`live`).
    pub mode: Mode,
    /// The machine at VMware.
    pub source: Source,
    /// The machine that is made of it.
    pub destination: Destination,
    /// Who takes the snapshots that are the way back.
    #[serde(default)]
    pub snapshots: Snapshots,
    /// Whether drivers are put into the disks.
    #[serde(default)]
    pub drivers: Drivers,
    /// Live: the source is asked to go down; if it has not after so long, it is switched off. `null`: never by force.
    #[serde(default = "force_after")]
    pub force_after: Option<Span>,
    /// Live: whether the last changes are copied once the source is off. Without that, what it wrote since the last
    /// replication is lost.
    #[serde(default = "yes")]
    pub final_sync: bool,
    /// How long the copy of the last changes may take.
    #[serde(default = "sync_within")]
    pub sync_within: Span,
    /// A rehearsal is undone after so long, unless somebody ends it before.
    #[serde(default = "test_for")]
    pub test_for: Span,
    /// Live: it is undone if nobody has committed it after so long. `null`: somebody has to decide.
    #[serde(default)]
    pub commit_within: Option<Span>,
    /// The copy has to run for so long without a break to count as up.
    #[serde(default = "steady")]
    pub steady: Span,
    /// And has so long for that, with its restarts.
    #[serde(default = "boot_within")]
    pub boot_within: Span,
}

/// A rehearsal or for real.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The source goes on; the copy is cut off from the world, and goes when its time is over.
    Test,
    /// The copy takes the place of the source.
    Live,
}

impl Mode {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Live => "live",
        }
    }
}

/// Who takes the snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Snapshots {
    /// CloudStack, of each volume.
    #[default]
    CloudStack,
    /// LINSTOR, of all volumes at one moment.
    Linstor,
    /// CloudStack, of the copy with all its volumes, before it is started. Not with drivers: they are written before.
    Machine,
    /// Nobody: what the copy writes cannot be taken back.
    None,
}

/// Whether drivers are put into the disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Drivers {
    /// If it runs Windows.
    #[default]
    Auto,
    /// Never: they are there already.
    Never,
}

/// The machine at VMware.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The id of its instance.
    #[schemars(length(min = 1, max = 64))]
    pub id: String,
    /// Its name.
    #[schemars(length(min = 1, max = 120))]
    pub name: String,
    /// Its path in vCenter.
    #[schemars(length(min = 1, max = 500))]
    pub path: String,
    /// It runs Windows.
    pub windows: bool,
    /// How it starts.
    pub boot_type: BootType,
    /// Its processors.
    #[schemars(range(min = 1, max = 512))]
    pub cpus: u32,
    /// Its memory.
    #[schemars(range(min = 64, max = 25_165_824))]
    pub memory_mb: u32,
    /// Where it is.
    pub vcenter: VCenter,
    /// All of its disks; it starts from the first.
    #[schemars(length(min = 1, max = 60))]
    pub disks: Vec<Disk>,
}

/// How a machine starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BootType {
    /// BIOS.
    #[serde(rename = "BIOS")]
    Bios,
    /// UEFI.
    #[serde(rename = "UEFI")]
    Uefi,
}

/// A vCenter.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VCenter {
    /// Its host.
    pub host: String,
    /// The data centre in it.
    pub datacenter: String,
    /// Who calls: a word, or the name of a secret.
    pub username: Value,
    /// The password: the name of a secret, as `{"secret": "name"}`.
    pub password: Secret,
}

/// The name of a secret.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// The name.
    #[schemars(length(min = 1, max = 200))]
    pub secret: String,
}

/// One disk.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its key at VMware, from 2000.
    #[schemars(range(min = 1))]
    pub key: u32,
    /// The volume at CloudStack that it is replicated to.
    #[schemars(length(min = 1, max = 64))]
    pub volume: String,
    /// Its size in bytes.
    #[schemars(range(min = 1))]
    pub size: u64,
}

/// The machine that is made.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// Its zone.
    pub zone: String,
    /// Its service offering, of any size.
    pub offering: String,
    /// A small template: the disk that it brings is thrown away.
    pub template: String,
    /// Its cards; the first is the default one.
    #[schemars(length(min = 1, max = 16))]
    pub nics: Vec<Nic>,
    /// The name of its host. Left out: the source's, as far as a host can be called so.
    #[serde(default)]
    pub name: Option<String>,
}

/// A card.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// The network at CloudStack.
    pub network: String,
    /// Its hardware address, if it is to be kept.
    #[serde(default)]
    pub mac: Option<String>,
}

fn yes() -> bool {
    true
}

fn force_after() -> Option<Span> {
    Some(Span::secs(300))
}

fn sync_within() -> Span {
    Span::secs(4 * 3600)
}

fn test_for() -> Span {
    Span::secs(2 * 3600)
}

fn steady() -> Span {
    Span::secs(60)
}

fn boot_within() -> Span {
    Span::secs(1800)
}

impl Failover {
    pub(super) fn is_live(&self) -> bool {
        self.mode == Mode::Live
    }

    pub(super) fn injects(&self) -> bool {
        self.source.windows && self.drivers == Drivers::Auto
    }

    /// What no schema says.
    pub(super) fn problems(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        let mut add = |place: &str, message: &str| wrong.push((place.to_owned(), message.to_owned()));
        for (n, disk) in self.source.disks.iter().enumerate() {
            let twice = |other: &&Disk| other.volume == disk.volume || other.key == disk.key;
            if self.source.disks.iter().take(n).any(|other| twice(&other)) {
                add(&format!("source.disks[{n}]"), "another disk has the same key or the same volume");
            }
        }
        if self.injects() && matches!(self.snapshots, Snapshots::Machine | Snapshots::None) {
            add(
                "snapshots",
                "drivers are written into the disks before the copy has them, so the volumes themselves need snapshots: take \
                 \"cloudstack\" or \"linstor\", or say \"drivers\": \"never\"",
            );
        }
        if !self.is_live() && self.snapshots == Snapshots::None {
            add("snapshots", "a rehearsal writes to the replicas, and has to be able to take that back");
        }
        if self.host_name().is_empty() {
            add("destination.name", "a host needs a name of letters, digits and \"-\"");
        }
        wrong
    }

    /// The name that a host can have: what is written, in lower case, without what is not allowed there. A rehearsal adds its
    /// run's mark, so there is room for that.
    pub(super) fn host_name(&self) -> String {
        const MOST: usize = 48;
        let wanted = self.destination.name.as_deref().unwrap_or(&self.source.name).to_ascii_lowercase();
        let mut name = String::new();
        for c in wanted.chars() {
            let c = if c.is_ascii_alphanumeric() { c } else { '-' };
            if c != '-' || !name.ends_with('-') {
                name.push(c);
            }
        }
        let name = name.trim_matches('-');
        let name = if name.starts_with(|c: char| c.is_ascii_digit()) {
            format!("vm-{name}")
        } else {
            name.to_owned()
        };
        let name: String = name.chars().take(MOST).collect();
        name.trim_end_matches('-').to_owned()
    }
}
