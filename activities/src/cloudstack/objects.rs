//! The things of CloudStack, as its lists show them: what is used of them, read leniently. What is left out there is
//! `None` or empty here; ids are texts that mean nothing.

use serde::{Deserialize, Serialize};

use crate::remote::loose;

/// A zone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct Zone {
    #[serde(deserialize_with = "loose::text")]
    pub id: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub name: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub allocationstate: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub networktype: Option<String>,
}

/// A template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct Template {
    #[serde(deserialize_with = "loose::text")]
    pub id: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub name: Option<String>,
    #[serde(default, deserialize_with = "loose::some_flag")]
    pub isready: Option<bool>,
    /// In bytes: no root disk is smaller.
    #[serde(default, deserialize_with = "loose::some_number")]
    pub size: Option<i64>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub zoneid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub hypervisor: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub ostypeid: Option<String>,
}

/// An offering of processors and memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct ServiceOffering {
    #[serde(deserialize_with = "loose::text")]
    pub id: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub name: Option<String>,
    /// Whoever deploys says how many and how much.
    #[serde(default, deserialize_with = "loose::some_flag")]
    pub iscustomized: Option<bool>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub cpunumber: Option<i64>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub cpuspeed: Option<i64>,
    /// In MiB.
    #[serde(default, deserialize_with = "loose::some_number")]
    pub memory: Option<i64>,
}

/// An offering of disks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct DiskOffering {
    #[serde(deserialize_with = "loose::text")]
    pub id: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub name: Option<String>,
    /// In GB; 0 where whoever makes one says how large.
    #[serde(default, deserialize_with = "loose::some_number")]
    pub disksize: Option<i64>,
    #[serde(default, deserialize_with = "loose::some_flag")]
    pub iscustomized: Option<bool>,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct Network {
    #[serde(deserialize_with = "loose::text")]
    pub id: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub name: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub displaytext: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub state: Option<String>,
    /// Isolated, Shared or L2.
    #[serde(default, rename = "type", deserialize_with = "loose::some_text")]
    pub kind: Option<String>,
    #[serde(default, deserialize_with = "loose::some_flag")]
    pub canusefordeploy: Option<bool>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub zoneid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub zonename: Option<String>,
    #[serde(default, deserialize_with = "loose::some_flag")]
    pub isdefault: Option<bool>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub cidr: Option<String>,
    #[serde(default, deserialize_with = "loose::list")]
    pub tags: Vec<Tag>,
}

/// One setting of the server's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct Configuration {
    #[serde(deserialize_with = "loose::text")]
    pub name: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub value: Option<String>,
}

/// What the server can do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct Capabilities {
    #[serde(default, deserialize_with = "loose::some_text")]
    pub cloudstackversion: Option<String>,
    #[serde(default, deserialize_with = "loose::some_flag")]
    pub kvmsnapshotenabled: Option<bool>,
    #[serde(default, deserialize_with = "loose::some_flag")]
    pub allowuserexpungerecovervm: Option<bool>,
    #[serde(default, deserialize_with = "loose::some_flag")]
    pub allowuserexpungerecovervolume: Option<bool>,
}

/// An account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct Account {
    #[serde(deserialize_with = "loose::text")]
    pub id: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub name: Option<String>,
    /// 1 is a root administrator.
    #[serde(default, deserialize_with = "loose::some_number")]
    pub accounttype: Option<i64>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub domainid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub domain: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub rolename: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub state: Option<String>,
}

/// A command that this key may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct Api {
    #[serde(deserialize_with = "loose::text")]
    pub name: String,
    #[serde(default, deserialize_with = "loose::some_flag")]
    pub isasync: Option<bool>,
    #[serde(default, deserialize_with = "loose::list")]
    pub params: Vec<ApiParam>,
}

/// A parameter of a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct ApiParam {
    #[serde(deserialize_with = "loose::text")]
    pub name: String,
    #[serde(default, deserialize_with = "loose::some_flag")]
    pub required: Option<bool>,
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct Vm {
    #[serde(deserialize_with = "loose::text")]
    pub id: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub name: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub displayname: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub group: Option<String>,
    /// Running, Stopped, and others: see [`Vm::is`].
    #[serde(default, deserialize_with = "loose::some_text")]
    pub state: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub account: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub domainid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub zoneid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub hostid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub hostname: Option<String>,
    /// Whether its host can be reached, for those who may see hosts: see [`Vm::host_is_reachable`].
    #[serde(default, deserialize_with = "loose::some_text")]
    pub hostcontrolstate: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub hypervisor: Option<String>,
    /// Backups of it are made: nothing is attached to it or detached from it.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub backupofferingid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub templateid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub serviceofferingid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub cpunumber: Option<i64>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub memory: Option<i64>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub ostypeid: Option<String>,
    #[serde(default, deserialize_with = "loose::list")]
    pub nic: Vec<Nic>,
    #[serde(default, deserialize_with = "loose::list")]
    pub tags: Vec<Tag>,
    /// A job that is at work on it.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub jobid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub jobstatus: Option<i64>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub created: Option<String>,
}

/// A card of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct Nic {
    #[serde(deserialize_with = "loose::text")]
    pub id: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub networkid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub networkname: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub macaddress: Option<String>,
    /// Networks of type L2 give none.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub ipaddress: Option<String>,
    #[serde(default, deserialize_with = "loose::flag")]
    pub isdefault: bool,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub deviceid: Option<String>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct Volume {
    #[serde(deserialize_with = "loose::text")]
    pub id: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub name: Option<String>,
    /// ROOT or DATADISK.
    #[serde(default, rename = "type", deserialize_with = "loose::some_text")]
    pub kind: Option<String>,
    /// Ready, Allocated, and others.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub state: Option<String>,
    /// In bytes.
    #[serde(default, deserialize_with = "loose::some_number")]
    pub size: Option<i64>,
    /// Nothing: it is attached to no machine.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub virtualmachineid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub vmname: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub vmstate: Option<String>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub deviceid: Option<i64>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub zoneid: Option<String>,
    /// Where its storage keeps it; shown to administrators.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub path: Option<String>,
    /// The storage pool; shown to administrators.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub storageid: Option<String>,
    /// Its name; shown to administrators.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub storage: Option<String>,
    /// shared, or local: one host's own.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub storagetype: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub diskofferingid: Option<String>,
    #[serde(default, deserialize_with = "loose::list")]
    pub tags: Vec<Tag>,
    /// A job that is at work on it.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub jobid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub jobstatus: Option<i64>,
}

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct Snapshot {
    #[serde(deserialize_with = "loose::text")]
    pub id: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub name: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub volumeid: Option<String>,
    /// BackedUp is the one that can be used.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub state: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub created: Option<String>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub virtualsize: Option<i64>,
    #[serde(default, deserialize_with = "loose::some_flag")]
    pub revertable: Option<bool>,
    #[serde(default, deserialize_with = "loose::list")]
    pub tags: Vec<Tag>,
}

/// A snapshot of a machine. While there is one, none of the machine's volumes can be attached or detached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct VmSnapshot {
    #[serde(deserialize_with = "loose::text")]
    pub id: String,
    /// Made up by the server.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub name: Option<String>,
    /// The one that was asked for: of a machine, each is there once.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub displayname: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub virtualmachineid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub state: Option<String>,
    #[serde(default, rename = "type", deserialize_with = "loose::some_text")]
    pub kind: Option<String>,
}

/// A tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct Tag {
    #[serde(deserialize_with = "loose::text")]
    pub key: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub value: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub resourceid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub resourcetype: Option<String>,
}

/// A job that is at work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct PendingJob {
    #[serde(deserialize_with = "loose::text")]
    pub jobid: String,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub cmd: Option<String>,
    #[serde(default, deserialize_with = "loose::some_number")]
    pub jobstatus: Option<i64>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub jobinstancetype: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub jobinstanceid: Option<String>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub created: Option<String>,
}

impl Vm {
    /// Whether it is in this state.
    pub fn is(&self, state: &str) -> bool {
        self.state.as_deref() == Some(state)
    }

    /// Whether it may be running: everything that is not known to be off.
    pub fn may_run(&self) -> bool {
        !matches!(self.state.as_deref(), Some("Stopped" | "Destroyed"))
    }

    /// Whether its host answers. Nothing: it runs nowhere, or hosts are not for this account to see.
    pub fn host_is_reachable(&self) -> Option<bool> {
        let state = self.hostcontrolstate.as_deref()?;
        Some(["Enabled", "Disabled", "Maintenance"].iter().any(|known| state.eq_ignore_ascii_case(known)))
    }

    /// The value of a tag.
    pub fn tag(&self, key: &str) -> Option<&str> {
        tag(&self.tags, key)
    }
}

impl Volume {
    /// Whether it is in this state.
    pub fn is(&self, state: &str) -> bool {
        self.state.as_deref() == Some(state)
    }

    /// Whether it is the disk that a machine starts from.
    pub fn is_root(&self) -> bool {
        self.kind.as_deref() == Some("ROOT")
    }

    /// The value of a tag.
    pub fn tag(&self, key: &str) -> Option<&str> {
        tag(&self.tags, key)
    }
}

impl Snapshot {
    /// Whether it can be reverted to.
    pub fn is_usable(&self) -> bool {
        self.state.as_deref() == Some("BackedUp")
    }

    /// The value of a tag.
    pub fn tag(&self, key: &str) -> Option<&str> {
        tag(&self.tags, key)
    }
}

fn tag<'a>(tags: &'a [Tag], key: &str) -> Option<&'a str> {
    tags.iter().find(|tag| tag.key == key)?.value.as_deref()
}
