//! The machine at CloudStack: made, stripped of the blank disk that it was born with, its cards; and unmade.
//!
//! A machine is found again by what was written on it when it was made: a group that names the run, which the same call
//! sets, so there is no moment at which it exists without. Its name alone proves nothing: names are no keys, and the
//! server's search finds parts of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Context, Failure, Probe, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::change::{Found, NotBegun, Saved};
use super::guard::{HostName, at_work, mark};
use super::{RUN_TAG, Site};
use crate::cloudstack::{DeployVm, Vm, Volume};

pub(super) struct CreateVm(pub Arc<Site>);
pub(super) struct DestroyVm(pub Arc<Site>);
pub(super) struct DropBlankRoot(pub Arc<Site>);
pub(super) struct RemoveBlankDisk(pub Arc<Site>);
pub(super) struct SetNics(pub Arc<Site>);

/// A machine to be made.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewVm {
    /// The name of its host, which no other machine of its networks has.
    name: HostName,
    /// What people see.
    display_name: String,
    zone: String,
    offering: String,
    template: String,
    cpus: u32,
    memory_mb: u32,
    /// BIOS or UEFI.
    boot_type: String,
    /// Its cards; the first is the default one.
    nics: Vec<NewNic>,
    /// Further settings, as CloudStack names them.
    #[serde(default)]
    details: BTreeMap<String, String>,
}

/// A card.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewNic {
    /// The network's id at CloudStack.
    network: String,
    /// Its hardware address, if it is to be kept.
    #[serde(default)]
    mac: Option<String>,
}

/// The machine that was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Made {
    /// Its id.
    vm: String,
    /// The name of its host.
    name: String,
    /// The networks of its cards.
    networks: Vec<String>,
}

/// A machine to be unmade.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OldVm {
    /// Its id. Nothing: it never came to one, and is looked for by its name and our mark.
    vm: Option<String>,
    /// The name of its host.
    name: HostName,
    /// The volumes that hold replicas: a machine that has one of them is not destroyed.
    protected: Vec<String>,
}

/// A machine and what it must not have.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Newborn {
    /// Its id.
    vm: String,
    /// The volumes that hold replicas.
    protected: Vec<String>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Gone {
    /// What is gone now; nothing: it never was.
    id: Option<String>,
}

/// A machine and its cards.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Cards {
    /// The machine's id.
    vm: String,
    /// Its networks; the first is the default one.
    nics: Vec<NewNic>,
}

impl CreateVm {
    /// The id that it is to have, where we may choose: the same for every attempt.
    fn chosen(&self, key: Uuid) -> Option<Uuid> {
        self.0.settings.root_admin.then(|| Uuid::new_v5(&key, b"vm"))
    }

    async fn find(&self, key: Uuid, mark: &str, name: &str) -> Result<Option<Vm>, Failure> {
        if let Some(id) = self.chosen(key)
            && let Some(vm) = self.0.cloudstack.vm(&id.to_string()).await?
        {
            return Ok(Some(vm));
        }
        self.0.made_by(mark, name).await
    }

    async fn look(&self, key: Uuid, mark: &str, name: &str) -> Result<Found<Vm>, Failure> {
        let Some(vm) = self.find(key, mark, name).await? else { return Ok(Found::Todo) };
        if let Some(job) = at_work(vm.jobid.as_ref(), vm.jobstatus) {
            return Ok(Found::AtWork(job));
        }
        match vm.state.as_deref() {
            Some("Stopped") => {}
            Some("Error") => {
                let message =
                    format!("CloudStack could not make the machine {name}; it is in the state Error");
                return Err(Failure::permanent("vm_error", message));
            }
            state => return Ok(Found::Moving(state.unwrap_or("in no known state").to_owned())),
        }
        Ok(Found::Done(vm))
    }
}

#[async_trait]
impl Activity for CreateVm {
    const NAME: &'static str = "create-vm";
    type Input = NewVm;
    type Output = Made;

    fn effect(&self) -> Effect {
        self.0.effect()
    }

    fn pool(&self) -> Option<String> {
        Some(super::CLOUDSTACK_POOL.into())
    }

    async fn run(&self, context: &Context, input: NewVm) -> Result<Made, Failure> {
        let (site, mark, key) = (&self.0, mark(context.run()), context.key());
        let name = input.name.of(context.run());
        let resource = context.resource("vm", &name);
        resource.planned().await?;
        let mut saved: Saved = context.saved()?.unwrap_or_default();
        let custom = input.nics.iter().any(|nic| nic.mac.is_some());
        let order = DeployVm {
            zoneid: input.zone.clone(),
            serviceofferingid: input.offering.clone(),
            templateid: input.template.clone(),
            name: name.clone(),
            displayname: Some(input.display_name.clone()),
            group: Some(mark.clone()),
            networkids: input.nics.iter().map(|nic| nic.network.clone()).collect(),
            nics: input
                .nics
                .iter()
                .filter(|_| custom)
                .map(|nic| (nic.network.clone(), nic.mac.clone(), None))
                .collect(),
            startvm: false,
            details: input
                .details
                .clone()
                .into_iter()
                .chain([
                    ("cpuNumber".to_owned(), input.cpus.to_string()),
                    ("memory".to_owned(), input.memory_mb.to_string()),
                ])
                .collect(),
            boottype: Some(input.boot_type.clone()),
            bootmode: (input.boot_type == "UEFI").then(|| "LEGACY".to_owned()),
            customid: self.chosen(key),
            ..DeployVm::default()
        };
        let what = format!("creating the machine {name}");
        let look = || self.look(key, &mark, &name);
        let call = |job| site.cloudstack.deploy_vm(&order, Some(job));
        let vm = site.bring_about(context, &mut saved, &what, look, call).await?;
        site.tag(context, "UserVm", &vm.id, (RUN_TAG, &context.run().to_string())).await?;
        let made = Made {
            vm: vm.id.clone(),
            name: name.clone(),
            networks: vm.nic.iter().filter_map(|nic| nic.networkid.clone()).collect(),
        };
        let wanted: Vec<_> = input.nics.iter().map(|nic| &nic.network).collect();
        if made.networks.iter().any(|network| !wanted.contains(&network)) {
            let message = format!("the machine {name} has a card in a network that nobody asked for");
            return Err(Failure::permanent("wrong_network", message));
        }
        resource.present(serde_json::json!({ "id": vm.id, "name": name })).await?;
        Ok(made)
    }

    async fn probe(&self, context: &Context, input: NewVm) -> Result<Probe<Made>, Failure> {
        Ok(match self.look(context.key(), &mark(context.run()), &input.name.of(context.run())).await? {
            Found::Todo => Probe::Absent,
            // Its tag and its cards are for the next attempt to see.
            Found::Done(_) => Probe::Partial,
            Found::AtWork(job) => Probe::Unknown(format!("the job {job} is at work on it")),
            Found::Moving(state) => Probe::Unknown(format!("it is {state}")),
        })
    }
}

impl DestroyVm {
    async fn find(&self, run: RunId, input: &OldVm) -> Result<Option<Vm>, Failure> {
        if let Some(id) = &input.vm {
            return Ok(self.0.cloudstack.vm(id).await?);
        }
        self.0.made_by(&mark(run), &input.name.of(run)).await
    }

    async fn look(&self, run: RunId, input: &OldVm) -> Result<Found<Gone>, Failure> {
        let Some(vm) = self.find(run, input).await? else {
            return Ok(Found::Done(Gone { id: input.vm.clone() }));
        };
        if let Some(job) = at_work(vm.jobid.as_ref(), vm.jobstatus) {
            return Ok(Found::AtWork(job));
        }
        match vm.state.as_deref() {
            Some("Expunging") => Ok(Found::Moving("Expunging".into())),
            Some(state @ ("Starting" | "Stopping" | "Migrating")) => Ok(Found::Moving(state.to_owned())),
            _ => Ok(Found::Todo),
        }
    }

    /// Right before the call. To destroy a machine is to destroy the disk that it starts from.
    async fn guard(&self, vm: &Vm, mark: &str, protected: &[String]) -> Result<(), Failure> {
        let site = &self.0;
        site.only_ours(vm, mark)?;
        if vm.may_run() && !vm.is("Error") {
            let state = vm.state.as_deref().unwrap_or("in no known state");
            let message = format!("the machine {} is {state}; it is destroyed once it is stopped", vm.id);
            return Err(Failure::retryable("vm_not_stopped", message).not_applied());
        }
        let volumes = site.cloudstack.volumes_of(&vm.id).await?;
        match volumes.iter().find(|volume| protected.contains(&volume.id) || !is_blank(volume)) {
            None => Ok(()),
            Some(volume) => {
                let name = volume.name.as_deref().unwrap_or("?");
                let message = format!(
                    "the machine {} has the volume {name} ({}), which is not the blank disk that it was made with. It is not \
                     destroyed, as the volume would be destroyed with it: detach it first",
                    vm.id, volume.id
                );
                Err(Failure::retryable("holds_a_volume", message).not_applied())
            }
        }
    }
}

/// The disk that a machine is born with, before its first start: a row without storage.
fn is_blank(volume: &Volume) -> bool {
    volume.is_root() && volume.is("Allocated")
}

#[async_trait]
impl Activity for DestroyVm {
    const NAME: &'static str = "destroy-vm";
    type Input = OldVm;
    type Output = Gone;

    fn effect(&self) -> Effect {
        self.0.effect()
    }

    fn pool(&self) -> Option<String> {
        Some(super::CLOUDSTACK_POOL.into())
    }

    async fn run(&self, context: &Context, input: OldVm) -> Result<Gone, Failure> {
        let (site, run) = (&self.0, context.run());
        let name = input.name.of(run);
        let mut saved: Saved = context.saved()?.unwrap_or_default();
        // A machine whose answer was lost may not show yet.
        if input.vm.is_none() {
            let may_come = context.undone().is_some_and(|undone| undone.checkpoint.is_some());
            if may_come && self.find(run, &input).await?.is_none() {
                site.breathe_for(
                    context,
                    "waiting for a machine that may still come",
                    site.settings.longest_delay.0,
                )
                .await?;
            }
        }
        let what = format!("destroying the machine {name}");
        let mark = mark(run);
        let call = |job| {
            let (input, mark) = (&input, &mark);
            async move {
                let vm = self.find(run, input).await?;
                let vm =
                    vm.ok_or_else(|| Failure::retryable("vm_missing", "it is gone already").not_applied())?;
                self.guard(&vm, mark, &input.protected).await?;
                Ok::<_, NotBegun>(site.cloudstack.destroy_vm(&vm.id, true, Some(job)).await?)
            }
        };
        let gone = site.bring_about(context, &mut saved, &what, || self.look(run, &input), call).await?;
        context.resource("vm", &name).gone().await?;
        Ok(gone)
    }

    async fn probe(&self, context: &Context, input: OldVm) -> Result<Probe<Gone>, Failure> {
        Ok(match self.look(context.run(), &input).await? {
            Found::Done(_) => Probe::Partial,
            Found::Todo => Probe::Absent,
            Found::AtWork(job) => Probe::Unknown(format!("the job {job} is at work on it")),
            Found::Moving(state) => Probe::Unknown(format!("it is {state}")),
        })
    }
}

/// What is left of a blank disk.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Leftover {
    /// The machine that it came with.
    vm: Option<String>,
    /// The volumes that hold replicas.
    protected: Vec<String>,
}

#[async_trait]
impl Activity for RemoveBlankDisk {
    const NAME: &'static str = "remove-blank-disk";
    type Input = Leftover;
    type Output = Gone;

    fn effect(&self) -> Effect {
        Effect { probed: false, ..self.0.effect() }
    }

    fn pool(&self) -> Option<String> {
        Some(super::CLOUDSTACK_POOL.into())
    }

    /// The undo of throwing it away: where that stopped half way, the disk is at no machine, and would be left.
    async fn run(&self, context: &Context, input: Leftover) -> Result<Gone, Failure> {
        let cloudstack = &self.0.cloudstack;
        let saved: Option<Saved<Option<String>>> = context
            .undone()
            .and_then(|undone| undone.checkpoint.as_ref())
            .and_then(|saved| serde_json::from_str(saved.as_str()).ok());
        let Some(id) = saved.and_then(|saved| saved.more) else { return Ok(Gone { id: None }) };
        let told = context.resource("blank disk", &id);
        let Some(volume) = cloudstack.volume(&id).await? else {
            told.gone().await?;
            return Ok(Gone { id: Some(id) });
        };
        if input.protected.contains(&id)
            || volume.virtualmachineid != input.vm && volume.virtualmachineid.is_some()
        {
            let message = format!("the volume {id} is not the blank disk that it was: it is not removed");
            return Err(Failure::permanent("not_blank", message).not_applied());
        }
        if volume.virtualmachineid.is_some() {
            told.kept("it goes with the machine that it is attached to").await?;
            return Ok(Gone { id: None });
        }
        if let Err(trouble) = cloudstack.delete_volume(&id).await
            && cloudstack.volume(&id).await?.is_some()
        {
            return Err(trouble.into());
        }
        told.gone().await?;
        Ok(Gone { id: Some(id) })
    }
}

impl DropBlankRoot {
    async fn blank(&self, input: &Newborn) -> Result<Option<Volume>, Failure> {
        let volumes = self.0.cloudstack.volumes_of(&input.vm).await?;
        let Some(root) = volumes.into_iter().find(|volume| volume.is_root() || volume.deviceid == Some(0))
        else {
            return Ok(None);
        };
        if input.protected.contains(&root.id) {
            let message = format!(
                "the machine {} starts from the volume {}, which holds a replica: it is not removed",
                input.vm, root.id
            );
            return Err(Failure::permanent("root_is_protected", message).not_applied());
        }
        if !is_blank(&root) {
            let message = format!(
                "the disk {} that the machine {} starts from has been used ({}): it is not the blank one, and is not removed",
                root.id,
                input.vm,
                root.state.as_deref().unwrap_or("in no known state")
            );
            return Err(Failure::permanent("root_not_blank", message).not_applied());
        }
        Ok(Some(root))
    }
}

#[async_trait]
impl Activity for DropBlankRoot {
    const NAME: &'static str = "drop-blank-root";
    type Input = Newborn;
    type Output = Gone;

    fn effect(&self) -> Effect {
        self.0.effect()
    }

    fn pool(&self) -> Option<String> {
        Some(super::CLOUDSTACK_POOL.into())
    }

    /// Detached first: an attached volume cannot be deleted.
    async fn run(&self, context: &Context, input: Newborn) -> Result<Gone, Failure> {
        let site = &self.0;
        let mut saved: Saved<Option<String>> = context.saved()?.unwrap_or_default();
        let Some(vm) = site.cloudstack.vm(&input.vm).await? else {
            return Err(Failure::permanent(
                "vm_missing",
                format!("CloudStack does not know the machine {}", input.vm),
            ));
        };
        site.only_ours(&vm, &mark(context.run()))?;
        if saved.more.is_none() {
            let Some(root) = self.blank(&input).await? else { return Ok(Gone { id: None }) };
            context.resource("blank disk", &root.id).planned().await?;
            saved.more = Some(root.id);
            context.save(&saved).await?;
        }
        let Some(id) = saved.more.clone() else { return Ok(Gone { id: None }) };
        if input.protected.contains(&id) {
            return Err(Failure::permanent("root_is_protected", "this volume holds a replica").not_applied());
        }
        let look = || async {
            Ok(match site.cloudstack.volume(&id).await? {
                None => Found::Done(()),
                Some(volume)
                    if matches!(volume.state.as_deref(), Some("Destroy" | "Expunging" | "Expunged")) =>
                {
                    Found::Done(())
                }
                Some(volume) => {
                    match (at_work(volume.jobid.as_ref(), volume.jobstatus), &volume.virtualmachineid) {
                        (Some(job), _) => Found::AtWork(job),
                        (None, None) => Found::Done(()),
                        (None, Some(at)) if *at == input.vm => Found::Todo,
                        (None, Some(_)) => {
                            let message = format!("the blank disk {id} is attached to another machine");
                            return Err(Failure::permanent("volume_elsewhere", message));
                        }
                    }
                }
            })
        };
        let what = format!("detaching the blank disk of the machine {}", input.vm);
        let call = |job| {
            let (id, input) = (&id, &input);
            async move {
                if let Some(root) = self.blank(input).await?
                    && root.id != *id
                {
                    let message =
                        format!("the machine {} starts from {} now, and not from {id}", input.vm, root.id);
                    return Err(Failure::permanent("another_root", message).not_applied().into());
                }
                Ok::<_, NotBegun>(site.cloudstack.detach_volume(id, Some(job)).await?)
            }
        };
        site.bring_about(context, &mut saved, &what, look, call).await?;
        if let Some(volume) = site.cloudstack.volume(&id).await? {
            if volume.virtualmachineid.is_some() {
                let message = format!("the blank disk {id} was attached again");
                return Err(Failure::retryable("attached_again", message));
            }
            if let Err(trouble) = site.cloudstack.delete_volume(&id).await
                && site.cloudstack.volume(&id).await?.is_some()
            {
                return Err(trouble.into());
            }
        }
        context.resource("blank disk", &id).gone().await?;
        Ok(Gone { id: Some(id) })
    }

    async fn probe(&self, _: &Context, input: Newborn) -> Result<Probe<Gone>, Failure> {
        Ok(match self.blank(&input).await? {
            Some(_) => Probe::Absent,
            // Detached perhaps, and not deleted.
            None => Probe::Partial,
        })
    }
}

#[async_trait]
impl Activity for SetNics {
    const NAME: &'static str = "set-nics";
    type Input = Cards;
    type Output = Made;

    fn effect(&self) -> Effect {
        self.0.effect()
    }

    fn pool(&self) -> Option<String> {
        Some(super::CLOUDSTACK_POOL.into())
    }

    /// Adds what is missing, makes the first one the default, removes the rest; in this order, as the default card cannot be
    /// removed.
    async fn run(&self, context: &Context, input: Cards) -> Result<Made, Failure> {
        let (site, mark) = (&self.0, mark(context.run()));
        let Some(first) = input.nics.first() else {
            return Err(Failure::permanent("no_nics", "a machine needs one card at least").not_applied());
        };
        let mut saved: Saved = context.saved()?.unwrap_or_default();
        let machine = || async {
            let vm = site.cloudstack.vm(&input.vm).await?;
            vm.ok_or_else(|| {
                Failure::permanent("vm_missing", format!("CloudStack does not know the machine {}", input.vm))
            })
        };
        site.only_ours(&machine().await?, &mark)?;
        for nic in &input.nics {
            let look = || async {
                let vm = machine().await?;
                if let Some(job) = at_work(vm.jobid.as_ref(), vm.jobstatus) {
                    return Ok(Found::AtWork(job));
                }
                let there = vm.nic.iter().any(|card| card.networkid.as_ref() == Some(&nic.network));
                Ok(if there { Found::Done(()) } else { Found::Todo })
            };
            let call = |job| site.cloudstack.add_nic(&input.vm, &nic.network, nic.mac.as_deref(), Some(job));
            let what = format!("adding a card to the machine {}", input.vm);
            site.bring_about(context, &mut saved, &what, look, call).await?;
            saved.begun = None;
        }
        let card =
            |vm: &Vm| vm.nic.iter().find(|card| card.networkid.as_ref() == Some(&first.network)).cloned();
        let look = || async {
            let vm = machine().await?;
            if let Some(job) = at_work(vm.jobid.as_ref(), vm.jobstatus) {
                return Ok(Found::AtWork(job));
            }
            Ok(if card(&vm).is_some_and(|card| card.isdefault) { Found::Done(()) } else { Found::Todo })
        };
        let default = card(&machine().await?).map(|card| card.id).unwrap_or_default();
        let call = |job| site.cloudstack.set_default_nic(&input.vm, &default, Some(job));
        let what = format!("choosing the default card of the machine {}", input.vm);
        site.bring_about(context, &mut saved, &what, look, call).await?;
        saved.begun = None;
        let extra = |vm: &Vm| {
            let wanted = |id: &String| input.nics.iter().any(|nic| nic.network == *id);
            vm.nic
                .iter()
                .find(|card| !card.networkid.as_ref().is_some_and(wanted))
                .map(|card| card.id.clone())
        };
        while let Some(card) = extra(&machine().await?) {
            let look = || async {
                let vm = machine().await?;
                if let Some(job) = at_work(vm.jobid.as_ref(), vm.jobstatus) {
                    return Ok(Found::AtWork(job));
                }
                Ok(if vm.nic.iter().any(|other| other.id == card) { Found::Todo } else { Found::Done(()) })
            };
            let call = |job| site.cloudstack.remove_nic(&input.vm, &card, Some(job));
            let what = format!("removing a card of the machine {}", input.vm);
            site.bring_about(context, &mut saved, &what, look, call).await?;
            saved.begun = None;
        }
        let vm = machine().await?;
        Ok(Made {
            vm: vm.id,
            name: vm.name.unwrap_or_default(),
            networks: vm.nic.into_iter().filter_map(|nic| nic.networkid).collect(),
        })
    }
}
