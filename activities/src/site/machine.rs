//! The machine at CloudStack: made, and unmade.
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

use super::blank::is_blank;
use super::change::{Found, NotBegun, Saved};
use super::guard::{HostName, at_work, mark};
use super::{RUN_TAG, Site};
use crate::cloudstack::{DeployVm, Nic, Vm};

pub(super) struct CreateVm(pub Arc<Site>);
pub(super) struct DestroyVm(pub Arc<Site>);

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
    pub network: String,
    /// Its hardware address, if it is to be kept.
    #[serde(default)]
    pub mac: Option<String>,
}

/// The machine that was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Made {
    /// Its id.
    pub vm: String,
    /// The name of its host.
    pub name: String,
    /// The networks of its cards.
    pub networks: Vec<String>,
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

/// What became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Gone {
    /// What is gone now; nothing: it never was.
    pub id: Option<String>,
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
        site.tag(context, &mut saved, ("UserVm", &vm.id), (RUN_TAG, &context.run().to_string())).await?;
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
        if let Some(why) = wrong_cards(&vm.nic, &input.nics) {
            let message = format!("the machine {name} does not have the cards that were asked for: {why}");
            return Err(Failure::permanent("wrong_cards", message));
        }
        resource.present(serde_json::json!({ "id": vm.id, "name": name })).await?;
        Ok(made)
    }

    async fn probe(&self, context: &Context, input: NewVm) -> Result<Probe<Made>, Failure> {
        let (mark, name) = (mark(context.run()), input.name.of(context.run()));
        // Its tag and its cards are for the next attempt to see.
        Ok(self.look(context.key(), &mark, &name).await?.probe(|_| Probe::Partial))
    }
}

/// In which way the cards that are there are not those that were asked for, of which the first is the default one.
fn wrong_cards(there: &[Nic], wanted: &[NewNic]) -> Option<String> {
    if there.len() != wanted.len() {
        return Some(format!("it has {} of them, not {}", there.len(), wanted.len()));
    }
    for (n, card) in wanted.iter().enumerate() {
        let fits = |nic: &&Nic| {
            let mac = nic.macaddress.as_deref().unwrap_or_default();
            nic.networkid.as_deref() == Some(card.network.as_str())
                && card.mac.as_deref().is_none_or(|kept| kept.eq_ignore_ascii_case(mac))
        };
        let Some(nic) = there.iter().find(fits) else {
            let mac = card.mac.as_deref().map(|mac| format!(" with the address {mac}")).unwrap_or_default();
            return Some(format!("there is none in the network {}{mac}", card.network));
        };
        if n == 0 && !nic.isdefault {
            return Some(format!("the one in the network {} is not the default one", card.network));
        }
    }
    None
}

impl DestroyVm {
    async fn find(&self, run: RunId, input: &OldVm) -> Result<Option<Vm>, Failure> {
        if let Some(id) = &input.vm {
            return Ok(self.0.cloudstack.vm(id).await?);
        }
        self.0.made_by(&mark(run), &input.name.of(run)).await
    }

    /// An ordinary account may have to leave that to CloudStack, which does it after its own delay; until then the machine's
    /// name is taken.
    async fn may_expunge(&self) -> Result<bool, Failure> {
        let site = &self.0;
        let may = site.settings.root_admin
            || site.cloudstack.capabilities().await?.allowuserexpungerecovervm == Some(true);
        Ok(may)
    }

    async fn look(&self, run: RunId, input: &OldVm, expunge: bool) -> Result<Found<Gone>, Failure> {
        let Some(vm) = self.find(run, input).await? else {
            return Ok(Found::Done(Gone { id: input.vm.clone() }));
        };
        if let Some(job) = at_work(vm.jobid.as_ref(), vm.jobstatus) {
            return Ok(Found::AtWork(job));
        }
        match vm.state.as_deref() {
            Some("Destroyed" | "Expunging") if !expunge => Ok(Found::Done(Gone { id: Some(vm.id) })),
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
        let (mark, expunge) = (mark(run), self.may_expunge().await?);
        let call = |job| {
            let (input, mark) = (&input, &mark);
            async move {
                let vm = self.find(run, input).await?;
                let vm =
                    vm.ok_or_else(|| Failure::retryable("vm_missing", "it is gone already").not_applied())?;
                self.guard(&vm, mark, &input.protected).await?;
                Ok::<_, NotBegun>(site.cloudstack.destroy_vm(&vm.id, expunge, Some(job)).await?)
            }
        };
        let gone =
            site.bring_about(context, &mut saved, &what, || self.look(run, &input, expunge), call).await?;
        context.resource("vm", &name).gone().await?;
        Ok(gone)
    }

    async fn probe(&self, context: &Context, input: OldVm) -> Result<Probe<Gone>, Failure> {
        let expunge = self.may_expunge().await?;
        Ok(self.look(context.run(), &input, expunge).await?.probe(|_| Probe::Partial))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(network: &str, mac: &str, isdefault: bool) -> Nic {
        let nic =
            serde_json::json!({ "id": "n", "networkid": network, "macaddress": mac, "isdefault": isdefault });
        serde_json::from_value(nic).unwrap()
    }

    fn card(network: &str, mac: Option<&str>) -> NewNic {
        NewNic { network: network.into(), mac: mac.map(str::to_owned) }
    }

    #[test]
    fn cards_are_those_that_were_asked_for() {
        let wanted = [card("lan", Some("02:00:0A:00:00:01")), card("dmz", None)];
        let lan = |default| nic("lan", "02:00:0a:00:00:01", default);
        let dmz = |default| nic("dmz", "02:00:0a:00:00:02", default);
        assert_eq!(wrong_cards(&[dmz(false), lan(true)], &wanted), None);
        for (there, why) in [
            (vec![lan(true)], "1 of them, not 2"),
            (vec![lan(true), dmz(false), dmz(false)], "3 of them, not 2"),
            (vec![lan(true), lan(false)], "none in the network dmz"),
            (vec![nic("lan", "02:00:0a:00:00:09", true), dmz(false)], "with the address 02:00:0A:00:00:01"),
            (vec![lan(false), dmz(true)], "not the default one"),
        ] {
            let found = wrong_cards(&there, &wanted).unwrap_or_default();
            assert!(found.contains(why), "{found:?}, and not {why:?}");
        }
    }
}
