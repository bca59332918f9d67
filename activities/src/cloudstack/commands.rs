//! What CloudStack is asked for. Each method is one command; those that take long give the job that was begun, and take
//! the id that the job should have.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::envelope::{self, Started};
use super::{
    Account, Api, Capabilities, CloudStack, Command, Configuration, DiskOffering, Network, PendingJob,
    ServiceOffering, Snapshot, Tag, Template, Vm, VmSnapshot, Volume, Zone, unknown,
};
use crate::remote::{Kind, Nature, TOO_LARGE, Trouble};

/// A machine to be made.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct DeployVm {
    pub zoneid: String,
    pub serviceofferingid: String,
    pub templateid: String,
    /// The name of the host.
    pub name: String,
    pub displayname: Option<String>,
    pub group: Option<String>,
    /// The first is the default one.
    pub networkids: Vec<String>,
    /// Of the card in the default network.
    pub macaddress: Option<String>,
    pub ipaddress: Option<String>,
    /// In place of `networkids`, where each card has a MAC of its own: network, MAC, address.
    pub nics: Vec<(String, Option<String>, Option<String>)>,
    /// CloudStack starts it, unless it is told not to.
    pub startvm: bool,
    /// In GB; never less than the template.
    pub rootdisksize: Option<u64>,
    pub hypervisor: Option<String>,
    /// `cpuNumber`, `memory`, `cpuSpeed`, `rootDiskController` and others that are allowed.
    pub details: BTreeMap<String, String>,
    /// BIOS or UEFI.
    pub boottype: Option<String>,
    /// LEGACY or SECURE.
    pub bootmode: Option<String>,
    /// The machine's id, where a root administrator may choose it.
    pub customid: Option<Uuid>,
    pub account: Option<String>,
    pub domainid: Option<String>,
}

/// A volume to be attached.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct AttachVolume {
    pub id: String,
    pub virtualmachineid: String,
    /// 0 makes it the disk that the machine starts from. Left out: the first that is free.
    pub deviceid: Option<u32>,
}

/// A volume to be made.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct CreateVolume {
    pub name: String,
    pub zoneid: Option<String>,
    pub diskofferingid: Option<String>,
    /// In GB.
    pub size: Option<u64>,
    pub snapshotid: Option<String>,
    pub customid: Option<Uuid>,
}

/// A snapshot of a machine to be made.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "the names are CloudStack's")]
pub struct CreateVmSnapshot {
    pub virtualmachineid: String,
    /// Of one machine, each name is there once: a second is refused.
    pub name: String,
    pub description: Option<String>,
    pub snapshotmemory: bool,
    pub quiescevm: bool,
}

/// Which machines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListVms {
    /// With this id.
    pub id: Option<String>,
    /// With exactly this name. The server finds all that have it somewhere in theirs.
    pub name: Option<String>,
    /// With this tag.
    pub tag: Option<(String, String)>,
}

/// Which volumes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListVolumes {
    /// With this id.
    pub id: Option<String>,
    /// Of this machine.
    pub virtualmachineid: Option<String>,
    /// ROOT or DATADISK.
    pub kind: Option<String>,
    /// With exactly this name.
    pub name: Option<String>,
    /// With this tag.
    pub tag: Option<(String, String)>,
}

/// What the key may use and see.
impl CloudStack {
    /// The commands that this key may use, or the one of this name. All of them are megabytes.
    pub async fn list_apis(&self, name: Option<&str>) -> Result<Vec<Api>, Trouble> {
        self.list(Command::new("listApis").maybe("name", name)).await
    }

    /// Those of some commands that this key may not use. `None`: what it may is not told here.
    ///
    /// All that it may is asked for at once; where that is more than is read, each is asked for by its name.
    pub async fn lacks<'a>(&self, commands: &[&'a str]) -> Result<Option<Vec<&'a str>>, Trouble> {
        let missing = |known: &[Api]| {
            let unknown = |command: &&&str| !known.iter().any(|api| api.name == **command);
            commands.iter().filter(unknown).copied().collect()
        };
        match none_if_missing(self.list_apis(None).await) {
            Ok(known) => return Ok(Some(missing(&known))),
            // It is told by a plugin, which is not there, or not for us.
            Err(no) if no.code() == Some(432) => return Ok(None),
            Err(large) if large.reason() == Some(TOO_LARGE) => {}
            Err(trouble) => return Err(trouble),
        }
        let mut known = Vec::new();
        for command in commands {
            known.extend(none_if_missing(self.list_apis(Some(command)).await)?);
        }
        Ok(Some(missing(&known)))
    }

    /// The zones.
    pub async fn list_zones(&self) -> Result<Vec<Zone>, Trouble> {
        self.list(Command::new("listZones")).await
    }

    /// The templates of a filter, such as `executable` or `featured`.
    pub async fn list_templates(&self, filter: &str, id: Option<&str>) -> Result<Vec<Template>, Trouble> {
        self.list(Command::new("listTemplates").with("templatefilter", filter).maybe("id", id)).await
    }

    /// The offerings of processors and memory.
    pub async fn list_service_offerings(&self, id: Option<&str>) -> Result<Vec<ServiceOffering>, Trouble> {
        self.list(Command::new("listServiceOfferings").maybe("id", id)).await
    }

    /// The offerings of disks.
    pub async fn list_disk_offerings(&self, id: Option<&str>) -> Result<Vec<DiskOffering>, Trouble> {
        self.list(Command::new("listDiskOfferings").maybe("id", id)).await
    }

    /// The networks.
    pub async fn list_networks(&self, id: Option<&str>) -> Result<Vec<Network>, Trouble> {
        self.list(Command::new("listNetworks").with("listall", true).maybe("id", id)).await
    }

    /// The value of a setting of the server's, such as `kvm.snapshot.enabled`. Only administrators are told.
    pub async fn configuration(&self, name: &str) -> Result<Option<String>, Trouble> {
        let command = Command::new("listConfigurations").with("name", name);
        let found: Vec<Configuration> = self.list(command).await?;
        Ok(found.into_iter().find(|one| one.name == name).and_then(|one| one.value))
    }

    /// What the server can do.
    pub async fn capabilities(&self) -> Result<Capabilities, Trouble> {
        let content = self.call(Nature::Looks, Command::new("listCapabilities")).await?;
        envelope::only(content).map_err(|shape| unknown(&shape, Nature::Looks))
    }

    /// The accounts that this key sees: the first is its own.
    pub async fn list_accounts(&self) -> Result<Vec<Account>, Trouble> {
        self.list(Command::new("listAccounts")).await
    }

    /// The jobs of this account that are at work.
    pub async fn list_pending_jobs(&self) -> Result<Vec<PendingJob>, Trouble> {
        self.list(Command::new("listAsyncJobs")).await
    }
}

/// Machines.
impl CloudStack {
    /// The machines that fit, from all pages.
    pub async fn list_vms(&self, which: &ListVms) -> Result<Vec<Vm>, Trouble> {
        let command = Command::new("listVirtualMachines")
            .with("listall", true)
            .maybe("id", which.id.as_deref())
            .maybe("name", which.name.as_deref());
        let mut found: Vec<Vm> = self.list(with_tag(command, which.tag.as_ref())).await?;
        found.retain(|vm| {
            which.id.as_deref().is_none_or(|id| vm.id == id)
                && which.name.as_deref().is_none_or(|name| vm.name.as_deref() == Some(name))
                && which.tag.as_ref().is_none_or(|(key, value)| vm.tag(key) == Some(value))
        });
        Ok(found)
    }

    /// The machine with this id. Whether it is not there or not to be seen by this key is not told.
    pub async fn vm(&self, id: &str) -> Result<Option<Vm>, Trouble> {
        let which = ListVms { id: Some(id.into()), ..ListVms::default() };
        Ok(nothing_if_unknown(self.list_vms(&which).await)?.into_iter().next())
    }

    /// Makes a machine.
    pub async fn deploy_vm(&self, vm: &DeployVm, job: Option<Uuid>) -> Result<Started, Trouble> {
        let networks = (!vm.networkids.is_empty() && vm.nics.is_empty()).then(|| vm.networkids.join(","));
        let mut command = Command::new("deployVirtualMachine")
            .with("zoneid", &vm.zoneid)
            .with("serviceofferingid", &vm.serviceofferingid)
            .with("templateid", &vm.templateid)
            .with("name", &vm.name)
            .with("startvm", vm.startvm)
            .maybe("displayname", vm.displayname.as_deref())
            .maybe("group", vm.group.as_deref())
            .maybe("networkids", networks)
            .maybe("macaddress", vm.macaddress.as_deref())
            .maybe("ipaddress", vm.ipaddress.as_deref())
            .maybe("rootdisksize", vm.rootdisksize)
            .maybe("hypervisor", vm.hypervisor.as_deref())
            .maybe("boottype", vm.boottype.as_deref())
            .maybe("bootmode", vm.bootmode.as_deref())
            .maybe("customid", vm.customid.map(|id| id.hyphenated()))
            .maybe("account", vm.account.as_deref())
            .maybe("domainid", vm.domainid.as_deref());
        for (n, (network, mac, ip)) in vm.nics.iter().enumerate() {
            let at = format!("iptonetworklist[{n}]");
            command = command
                .with(&format!("{at}.networkid"), network)
                .maybe(&format!("{at}.mac"), mac.as_deref())
                .maybe(&format!("{at}.ip"), ip.as_deref());
        }
        for (name, value) in &vm.details {
            // The one name whose capitals count: it is the key of a map over there.
            command.params.insert(format!("details[0].{name}"), value.clone());
        }
        self.start(command, job).await
    }

    /// Starts a machine.
    pub async fn start_vm(&self, id: &str, job: Option<Uuid>) -> Result<Started, Trouble> {
        self.start(Command::new("startVirtualMachine").with("id", id), job).await
    }

    /// Stops a machine. By force it counts as stopped even if its host cannot be reached, and may run on there.
    pub async fn stop_vm(&self, id: &str, forced: bool, job: Option<Uuid>) -> Result<Started, Trouble> {
        self.start(Command::new("stopVirtualMachine").with("id", id).with("forced", forced), job).await
    }

    /// Destroys a machine, with the disk that it starts from. Whoever calls this has made sure whose disk that is.
    pub async fn destroy_vm(&self, id: &str, expunge: bool, job: Option<Uuid>) -> Result<Started, Trouble> {
        let command = Command::new("destroyVirtualMachine").with("id", id).with("expunge", expunge);
        self.start(command, job).await
    }

    /// Puts a card into a machine.
    pub async fn add_nic(
        &self,
        vm: &str,
        network: &str,
        mac: Option<&str>,
        job: Option<Uuid>,
    ) -> Result<Started, Trouble> {
        let command = Command::new("addNicToVirtualMachine")
            .with("virtualmachineid", vm)
            .with("networkid", network)
            .maybe("macaddress", mac);
        self.start(command, job).await
    }

    /// Takes a card out of a machine; never the default one.
    pub async fn remove_nic(&self, vm: &str, nic: &str, job: Option<Uuid>) -> Result<Started, Trouble> {
        let command =
            Command::new("removeNicFromVirtualMachine").with("virtualmachineid", vm).with("nicid", nic);
        self.start(command, job).await
    }

    /// Makes a card the default one.
    pub async fn set_default_nic(&self, vm: &str, nic: &str, job: Option<Uuid>) -> Result<Started, Trouble> {
        let command =
            Command::new("updateDefaultNicForVirtualMachine").with("virtualmachineid", vm).with("nicid", nic);
        self.start(command, job).await
    }
}

/// Volumes and their snapshots.
impl CloudStack {
    /// The volumes that fit, from all pages.
    pub async fn list_volumes(&self, which: &ListVolumes) -> Result<Vec<Volume>, Trouble> {
        let command = Command::new("listVolumes")
            .with("listall", true)
            .maybe("id", which.id.as_deref())
            .maybe("virtualmachineid", which.virtualmachineid.as_deref())
            .maybe("type", which.kind.as_deref())
            .maybe("name", which.name.as_deref());
        let mut found: Vec<Volume> = self.list(with_tag(command, which.tag.as_ref())).await?;
        found.retain(|volume| {
            which.id.as_deref().is_none_or(|id| volume.id == id)
                && which.name.as_deref().is_none_or(|name| volume.name.as_deref() == Some(name))
                && which.kind.as_deref().is_none_or(|kind| volume.kind.as_deref() == Some(kind))
                && which
                    .virtualmachineid
                    .as_deref()
                    .is_none_or(|vm| volume.virtualmachineid.as_deref() == Some(vm))
                && which.tag.as_ref().is_none_or(|(key, value)| volume.tag(key) == Some(value))
        });
        Ok(found)
    }

    /// The volume with this id.
    pub async fn volume(&self, id: &str) -> Result<Option<Volume>, Trouble> {
        let which = ListVolumes { id: Some(id.into()), ..ListVolumes::default() };
        Ok(nothing_if_unknown(self.list_volumes(&which).await)?.into_iter().next())
    }

    /// The volumes of a machine.
    pub async fn volumes_of(&self, vm: &str) -> Result<Vec<Volume>, Trouble> {
        self.list_volumes(&ListVolumes { virtualmachineid: Some(vm.into()), ..ListVolumes::default() }).await
    }

    /// Attaches a volume.
    pub async fn attach_volume(&self, what: &AttachVolume, job: Option<Uuid>) -> Result<Started, Trouble> {
        let command = Command::new("attachVolume")
            .with("id", &what.id)
            .with("virtualmachineid", &what.virtualmachineid)
            .maybe("deviceid", what.deviceid);
        self.start(command, job).await
    }

    /// Detaches a volume.
    pub async fn detach_volume(&self, id: &str, job: Option<Uuid>) -> Result<Started, Trouble> {
        self.start(Command::new("detachVolume").with("id", id), job).await
    }

    /// Makes a volume.
    pub async fn create_volume(&self, volume: &CreateVolume, job: Option<Uuid>) -> Result<Started, Trouble> {
        let command = Command::new("createVolume")
            .with("name", &volume.name)
            .maybe("zoneid", volume.zoneid.as_deref())
            .maybe("diskofferingid", volume.diskofferingid.as_deref())
            .maybe("size", volume.size)
            .maybe("snapshotid", volume.snapshotid.as_deref())
            .maybe("customid", volume.customid.map(|id| id.hyphenated()));
        self.start(command, job).await
    }

    /// Deletes a volume for good, at once. It has to be detached.
    pub async fn delete_volume(&self, id: &str) -> Result<(), Trouble> {
        self.do_now(Command::new("deleteVolume").with("id", id)).await
    }

    /// The snapshots of a volume, or the one with this id.
    pub async fn list_snapshots(
        &self,
        volume: Option<&str>,
        id: Option<&str>,
    ) -> Result<Vec<Snapshot>, Trouble> {
        let command =
            Command::new("listSnapshots").with("listall", true).maybe("volumeid", volume).maybe("id", id);
        let found = self.list(command).await;
        let mut found: Vec<Snapshot> = if id.is_some() { nothing_if_unknown(found)? } else { found? };
        found.retain(|one| {
            id.is_none_or(|id| one.id == id)
                && volume.is_none_or(|volume| one.volumeid.as_deref().is_none_or(|of| of == volume))
        });
        Ok(found)
    }

    /// Makes a snapshot of a volume, with tags. Names are no keys: a second of the same name is made.
    pub async fn create_snapshot(
        &self,
        volume: &str,
        name: &str,
        tags: &BTreeMap<String, String>,
        job: Option<Uuid>,
    ) -> Result<Started, Trouble> {
        let command = Command::new("createSnapshot").with("volumeid", volume).with("name", name);
        self.start(with_tags(command, tags), job).await
    }

    /// Puts a volume back to where it was at a snapshot.
    pub async fn revert_snapshot(&self, id: &str, job: Option<Uuid>) -> Result<Started, Trouble> {
        self.start(Command::new("revertSnapshot").with("id", id), job).await
    }

    /// Deletes a snapshot.
    pub async fn delete_snapshot(&self, id: &str, job: Option<Uuid>) -> Result<Started, Trouble> {
        self.start(Command::new("deleteSnapshot").with("id", id), job).await
    }
}

/// Snapshots of machines, and tags.
impl CloudStack {
    /// The snapshots of a machine.
    pub async fn list_vm_snapshots(&self, vm: &str) -> Result<Vec<VmSnapshot>, Trouble> {
        let command = Command::new("listVMSnapshot").with("listall", true).with("virtualmachineid", vm);
        let mut found: Vec<VmSnapshot> = self.list(command).await?;
        found.retain(|one| one.virtualmachineid.as_deref().is_none_or(|of| of == vm));
        Ok(found)
    }

    /// Makes a snapshot of a machine.
    pub async fn create_vm_snapshot(
        &self,
        what: &CreateVmSnapshot,
        job: Option<Uuid>,
    ) -> Result<Started, Trouble> {
        let command = Command::new("createVMSnapshot")
            .with("virtualmachineid", &what.virtualmachineid)
            .with("name", &what.name)
            .maybe("description", what.description.as_deref())
            .with("snapshotmemory", what.snapshotmemory)
            .with("quiescevm", what.quiescevm);
        self.start(command, job).await
    }

    /// Puts a machine back to where it was.
    pub async fn revert_vm_snapshot(&self, id: &str, job: Option<Uuid>) -> Result<Started, Trouble> {
        self.start(Command::new("revertToVMSnapshot").with("vmsnapshotid", id), job).await
    }

    /// Deletes a snapshot of a machine.
    pub async fn delete_vm_snapshot(&self, id: &str, job: Option<Uuid>) -> Result<Started, Trouble> {
        self.start(Command::new("deleteVMSnapshot").with("vmsnapshotid", id), job).await
    }

    /// The tags of a thing.
    pub async fn list_tags(&self, kind: &str, id: &str) -> Result<Vec<Tag>, Trouble> {
        let command =
            Command::new("listTags").with("listall", true).with("resourcetype", kind).with("resourceid", id);
        self.list(command).await
    }

    /// Puts tags on a thing of a kind: UserVm, Volume, Snapshot, VMSnapshot, Network. One that is there already is an error.
    pub async fn create_tags(
        &self,
        kind: &str,
        id: &str,
        tags: &BTreeMap<String, String>,
        job: Option<Uuid>,
    ) -> Result<Started, Trouble> {
        let command = Command::new("createTags").with("resourcetype", kind).with("resourceids", id);
        self.start(with_tags(command, tags), job).await
    }

    /// Takes tags off a thing, by their keys.
    pub async fn delete_tags(
        &self,
        kind: &str,
        id: &str,
        keys: &[&str],
        job: Option<Uuid>,
    ) -> Result<Started, Trouble> {
        let mut command = Command::new("deleteTags").with("resourcetype", kind).with("resourceids", id);
        for (n, key) in keys.iter().enumerate() {
            command = command.with(&format!("tags[{n}].key"), key);
        }
        self.start(command, job).await
    }
}

/// None at all is told as an error.
fn none_if_missing(found: Result<Vec<Api>, Trouble>) -> Result<Vec<Api>, Trouble> {
    match found {
        Err(no) if no.kind() == Kind::Missing => Ok(Vec::new()),
        other => other,
    }
}

fn with_tag(command: Command, tag: Option<&(String, String)>) -> Command {
    match tag {
        Some((key, value)) => command.with("tags[0].key", key).with("tags[0].value", value),
        None => command,
    }
}

fn with_tags(mut command: Command, tags: &BTreeMap<String, String>) -> Command {
    for (n, (key, value)) in tags.iter().enumerate() {
        command = command.with(&format!("tags[{n}].key"), key).with(&format!("tags[{n}].value"), value);
    }
    command
}

/// The cserrorcodes of "there is no thing with this id" would be 4350 and 9999, which also stand for others; so only a
/// list that was asked for one id, and refused as a wrong parameter, is taken for an empty one.
fn nothing_if_unknown<T>(found: Result<Vec<T>, Trouble>) -> Result<Vec<T>, Trouble> {
    match found {
        Err(trouble) if trouble.code() == Some(super::errors::PARAMETER) => Ok(Vec::new()),
        other => other,
    }
}
