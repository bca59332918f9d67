//! Everything that can be known before anything is touched. All that is wrong is told at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use backstay_engine::{Activity, Context, Failure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::guard::{HostName, at_work};
use super::pairing::numbered_otherwise;
use super::power::for_rehearsals;
use super::{DIRTY_TAG, Site};
use crate::cloudstack::ListVms;
use crate::daemon::ListExports;
use crate::vma::{Power, VCenter};

pub(super) struct Validate(pub Arc<Site>);

/// What is about to be moved, and where.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Moving {
    source: String,
    /// Its path in vCenter.
    path: String,
    vcenter: VCenter,
    /// The disks.
    disks: Vec<MovingDisk>,
    /// The name that the machine is to have at CloudStack.
    name: HostName,
    zone: String,
    offering: String,
    template: String,
    /// Its networks.
    networks: Vec<String>,
    /// A rehearsal: the source goes on.
    rehearsal: bool,
    /// Its disks are converted.
    windows: bool,
    /// Who takes the snapshots: the key needs the rights for that.
    #[serde(default)]
    snapshots: Option<String>,
}

/// One of the disks.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MovingDisk {
    /// Its key in VMware.
    key: u32,
    volume: String,
    /// The size of the source's disk, in bytes: the volume is not smaller.
    size: u64,
}

/// What was looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Valid {
    /// The source, as it is now.
    source_power: String,
    /// What was found in order.
    checks: Vec<String>,
}

/// What the key at CloudStack has to be allowed, beside what is looked up here anyhow.
const RIGHTS: [&str; 9] = [
    "deployVirtualMachine",
    "startVirtualMachine",
    "stopVirtualMachine",
    "destroyVirtualMachine",
    "detachVolume",
    "deleteVolume",
    "createTags",
    // The mark of a conversion, or of a disk that could not be put back, comes off again.
    "deleteTags",
    "queryAsyncJobResult",
];

/// And for the snapshots of each provider.
fn rights_for_snapshots(provider: Option<&str>) -> &'static [&'static str] {
    match provider {
        Some("cloudstack") => &["createSnapshot", "listSnapshots", "revertSnapshot", "deleteSnapshot"],
        Some("machine") => &["createVMSnapshot", "revertToVMSnapshot", "deleteVMSnapshot"],
        _ => &[],
    }
}

/// So many disks of a machine are asked for one by one.
const ONE_BY_ONE: usize = 3;

#[derive(Default)]
struct Report {
    fine: Vec<String>,
    wrong: Vec<String>,
}

impl Report {
    fn check(&mut self, what: impl Into<String>, wrong: Option<String>) {
        match wrong {
            None => self.fine.push(what.into()),
            Some(why) => self.wrong.push(why),
        }
    }
}

#[async_trait]
impl Activity for Validate {
    const NAME: &'static str = "validate-move";
    type Input = Moving;
    type Output = Valid;

    fn pool(&self) -> Option<String> {
        Some(super::CLOUDSTACK_POOL.into())
    }

    async fn run(&self, context: &Context, input: Moving) -> Result<Valid, Failure> {
        let mut report = Report::default();
        let power = self.source(&mut report, &input).await?;
        context.progress(25.0, "the source is there");
        let there = self.appliance(&mut report).await?;
        self.disks(&mut report, &input, there).await?;
        context.progress(60.0, "the disks are there");
        self.rights(&mut report, &input).await?;
        self.destination(&mut report, context, &input).await?;
        if report.wrong.is_empty() {
            return Ok(Valid { source_power: power, checks: report.fine });
        }
        let message = format!(
            "{} of {} checks failed: {}",
            report.wrong.len(),
            report.wrong.len() + report.fine.len(),
            report.wrong.join("; ")
        );
        let details = json!({ "failed": report.wrong, "passed": report.fine });
        Err(Failure::permanent("not_ready", message).not_applied().details(details))
    }
}

impl Validate {
    async fn source(&self, report: &mut Report, input: &Moving) -> Result<String, Failure> {
        let state = self.0.vma.power_state(&input.source, &input.vcenter).await?;
        let unknown = state.power_state == Power::Unknown;
        report.check(
            "the VMA reaches the source",
            unknown.then(|| "the VMA does not know whether the source is on".to_owned()),
        );
        let odd = !input.rehearsal && state.power_state == Power::Suspended;
        report.check(
            "the source can be shut down",
            odd.then(|| "the source is suspended: what it has in memory is not on its disks. Resume it, and shut it down".to_owned()),
        );
        let wanted: Vec<_> = input.disks.iter().map(|disk| (disk.key, Some(disk.size))).collect();
        let others = self.0.other_disks(&input.vcenter, &input.path, &wanted).await?;
        report.check("the disks are all disks of the source", others);
        Ok(state.power_state.word().to_owned())
    }

    /// A right that is missing must not show in the middle.
    async fn rights(&self, report: &mut Report, input: &Moving) -> Result<(), Failure> {
        let wanted = RIGHTS.iter().chain(rights_for_snapshots(input.snapshots.as_deref()));
        let wanted: Vec<_> = wanted.copied().collect();
        // Where nobody tells what it may, the calls themselves will.
        let missing = self.0.cloudstack.lacks(&wanted).await?.unwrap_or_default();
        let wrong = (!missing.is_empty()).then(|| {
            format!(
                "the key at CloudStack has no right to {}: give its role the right, or take another key",
                missing.join(", ")
            )
        });
        report.check("the key at CloudStack has the rights", wrong);
        Ok(())
    }

    /// Whether it is there.
    async fn appliance(&self, report: &mut Report) -> Result<bool, Failure> {
        let site = &self.0;
        let oma = &site.settings.oma;
        let wrong = match site.cloudstack.vm(oma).await? {
            None => Some(format!(
                "there is no machine {oma}: site.oma has to be the id of the appliance at CloudStack"
            )),
            Some(vm) if !vm.is("Running") => {
                Some(format!("the appliance is {}", vm.state.as_deref().unwrap_or("in no known state")))
            }
            Some(vm) if vm.backupofferingid.is_some() => {
                Some("CloudStack makes backups of the appliance: as long as it has a backup offering, no volume can be detached from it".to_owned())
            }
            Some(_) => None,
        };
        let there = wrong.is_none();
        report.check("the appliance runs", wrong);
        if there {
            let snapshots = site.cloudstack.list_vm_snapshots(oma).await?;
            let one = snapshots.iter().find(|one| one.state.as_deref() != Some("Removed"));
            report.check(
                "the appliance has no snapshot of itself",
                one.map(|one| {
                    let name = one.displayname.as_deref().unwrap_or(&one.id);
                    format!("the appliance has the snapshot \"{name}\": while it is there no volume can be detached from it")
                }),
            );
        }
        let health = site.daemon.health().await?;
        report.check(
            "the Volume Daemon is well",
            (!health.is_well()).then(|| "the Volume Daemon does not reach its database".to_owned()),
        );
        Ok(there)
    }

    /// A few disks are asked for one by one. With more of them all volumes of the appliance are asked for at once, as each call
    /// takes its time; but it has those of all machines, and a thousand machines would each be told of a thousand volumes.
    async fn disks(&self, report: &mut Report, input: &Moving, appliance: bool) -> Result<(), Failure> {
        let site = &self.0;
        let oma = &site.settings.oma;
        let many = input.disks.len() > ONE_BY_ONE;
        let is_ours = |id: &str| input.disks.iter().any(|disk| disk.volume == id);
        let mut at_oma = if many && appliance { site.cloudstack.volumes_of(oma).await? } else { Vec::new() };
        at_oma.retain(|volume| is_ours(&volume.id));
        at_oma.shrink_to_fit();
        // The volumes whose device the daemon knows.
        let mut devices = Vec::new();
        if many {
            let known = site.daemon.vm_volumes(oma).await?.into_iter();
            devices.extend(
                known.filter(|one| one.path().is_some()).map(|one| one.volume_id).filter(|id| is_ours(id)),
            );
        } else {
            for disk in &input.disks {
                let known = site.daemon.device(&disk.volume).await?;
                let is_at_oma = |vm: &String| vm == oma;
                let known = known.filter(|one| one.vm_id.as_ref().is_none_or(is_at_oma));
                devices.extend(known.filter(|one| one.path().is_some()).map(|one| one.volume_uuid));
            }
        }
        if input.disks.is_empty() {
            report.check("", Some("the machine has no disks".into()));
        }
        let mut pools = BTreeSet::new();
        for (n, disk) in input.disks.iter().enumerate() {
            let id = &disk.volume;
            let what = format!("disk {n} ({id})");
            let volume = match at_oma.iter().find(|volume| volume.id == *id) {
                Some(volume) => Some(volume.clone()),
                None => site.cloudstack.volume(id).await?,
            };
            let Some(volume) = volume else {
                report.check(&what, Some(format!("{what}: CloudStack does not know its volume")));
                continue;
            };
            let at = volume.virtualmachineid.as_deref();
            let wrong = if input.disks.iter().filter(|other| other.volume == *id).count() > 1 {
                Some("two disks have the same volume".to_owned())
            } else if at != Some(oma.as_str()) {
                Some(format!(
                    "its volume is attached to {}, not to the appliance",
                    volume.vmname.as_deref().or(at).unwrap_or("nothing")
                ))
            } else if volume.deviceid == Some(0) || volume.is_root() {
                Some("its volume is the one that the appliance starts from".to_owned())
            } else if !volume.is("Ready") {
                Some(format!("its volume is {}", volume.state.as_deref().unwrap_or("in no known state")))
            } else if let Some(job) = at_work(volume.jobid.as_ref(), volume.jobstatus) {
                Some(format!("the job {job} is at work on its volume"))
            } else if volume.tag(DIRTY_TAG).is_some() {
                Some("its volume is no copy of the source any more; it needs a full copy first".to_owned())
            } else if volume.size.is_some_and(|size| u64::try_from(size).is_ok_and(|size| size < disk.size)) {
                Some(format!(
                    "its volume has {} bytes, fewer than the {} of the source's disk",
                    volume.size.unwrap_or(0),
                    disk.size
                ))
            } else if volume.storagetype.as_deref() == Some("local") {
                Some("its volume is on one host's own storage: it cannot be attached to a machine that runs elsewhere".to_owned())
            } else if !devices.contains(id) {
                Some("the Volume Daemon does not know its device".to_owned())
            } else {
                None
            };
            report.check(format!("{what} is at the appliance"), wrong.map(|why| format!("{what}: {why}")));
            pools.extend(volume.storageid.map(|id| (volume.storage.unwrap_or_else(|| id.clone()), id)));
        }
        // CloudStack may copy what is attached to where the other disks are: for hours, and past the snapshots that lead back.
        // Where volumes lie is shown to administrators.
        if site.settings.one_storage && !pools.is_empty() {
            let several = (pools.len() > 1).then(|| {
                let names = pools.into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
                format!(
                    "its volumes lie on several storages ({names}): bring them to one of them first, or say that CloudStack moves \
                     nothing between these (site.one_storage)"
                )
            });
            report.check("its volumes lie on one storage", several);
        }
        if let [_, _, ..] = input.disks[..] {
            let exports = site.daemon.list_exports(&ListExports::default()).await?;
            let disks: Vec<_> = input.disks.iter().map(|disk| (disk.key, disk.volume.as_str())).collect();
            let wrong = numbered_otherwise(&disks, &exports);
            report.check("no export tells another order of the disks", wrong);
        }
        Ok(())
    }

    async fn destination(
        &self,
        report: &mut Report,
        context: &Context,
        input: &Moving,
    ) -> Result<(), Failure> {
        let cloudstack = &self.0.cloudstack;
        let zones = cloudstack.list_zones().await?;
        report.check(
            "the zone is there",
            (!zones.iter().any(|zone| zone.id == input.zone))
                .then(|| format!("there is no zone {}", input.zone)),
        );
        let offerings = cloudstack.list_service_offerings(Some(&input.offering)).await?;
        let wrong = match offerings.iter().find(|offering| offering.id == input.offering) {
            None => Some(format!("there is no service offering {}", input.offering)),
            Some(offering) if offering.iscustomized != Some(true) => Some(format!(
                "the service offering {} is of a fixed size: take one whose CPU and memory can be chosen",
                offering.name.as_deref().unwrap_or(&offering.id)
            )),
            Some(_) => None,
        };
        report.check("the service offering takes any size", wrong);
        let templates = cloudstack.list_templates("executable", Some(&input.template)).await?;
        let largest = self.0.settings.largest_template;
        let wrong = match templates.iter().find(|template| template.id == input.template) {
            None => Some(format!("there is no template {}", input.template)),
            Some(template) if template.isready == Some(false) => Some("the template is not ready".to_owned()),
            Some(template) if template.size.is_some_and(|size| size > largest) => Some(format!(
                "the template has {} bytes: its disk is thrown away, so take one of at most {largest} (site.largest_template)",
                template.size.unwrap_or(0)
            )),
            Some(_) => None,
        };
        report.check("the template is small and ready", wrong);
        if input.networks.is_empty() {
            report.check("", Some("no network was chosen".into()));
        }
        // One is asked for by its id, several together with all others.
        let only = if let [one] = &input.networks[..] { Some(one.as_str()) } else { None };
        let networks = cloudstack.list_networks(only).await?;
        for id in &input.networks {
            let wrong = match networks.iter().find(|network| network.id == *id) {
                None => Some(format!("there is no network {id}")),
                Some(network) if network.canusefordeploy == Some(false) => {
                    Some(format!("the network {} takes no machines", network.name.as_deref().unwrap_or(id)))
                }
                Some(network) if input.rehearsal && !for_rehearsals(&network.tags) => {
                    self.0.not_for_rehearsals(id).await?
                }
                Some(_) => None,
            };
            report.check(format!("the network {id} can be used"), wrong);
        }
        let name = input.name.of(context.run());
        let which = ListVms { name: Some(name.clone()), ..ListVms::default() };
        let taken = cloudstack.list_vms(&which).await?;
        let mark = super::guard::mark(context.run());
        let other = taken.iter().find(|vm| vm.group.as_deref() != Some(&mark));
        report.check(
            "its name is free",
            other.map(|vm| format!("there is a machine called {name} already ({})", vm.id)),
        );
        if input.windows && self.0.v2v.is_none() {
            report.check(
                "",
                Some("the machine runs Windows, and no conversion is configured (v2v.program)".into()),
            );
        }
        Ok(())
    }
}
