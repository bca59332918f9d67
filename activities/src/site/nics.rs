//! The cards of a machine that this run has made: for plans of your own.
//!
//! A failover has no use for it, as its machine is made with the right cards. A plan that goes on with a machine from a
//! rehearsal into production does: stop it, give it other cards, start it. It is undone by itself, with the cards as they
//! were, or by destroying the machine.

use std::sync::Arc;

use async_trait::async_trait;
use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Context, Failure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Site;
use super::change::{Found, NotBegun, Saved};
use super::guard::{at_work, mark};
use super::machine::{Made, NewNic};
use crate::cloudstack::{Nic, Vm};

pub(super) struct SetNics(pub Arc<Site>);

/// A machine and its cards.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Cards {
    /// The machine's id.
    vm: String,
    /// Its networks; the first is the default one.
    nics: Vec<NewNic>,
}

impl SetNics {
    /// A look at its cards, while no job is at work on them.
    async fn look(&self, vm: &str, wanted: impl Fn(&Vm) -> bool) -> Result<Found<Vm>, Failure> {
        let vm = self.0.machine(vm).await?;
        if let Some(job) = at_work(vm.jobid.as_ref(), vm.jobstatus) {
            return Ok(Found::AtWork(job));
        }
        Ok(if wanted(&vm) { Found::Done(vm) } else { Found::Todo })
    }

    /// Right before each call. What its cards may lead to is asked when it is started, so it has to be stopped now.
    async fn guard(&self, vm: &str, mark: &str) -> Result<(), Failure> {
        let machine = self.0.machine(vm).await?;
        self.0.only_ours(&machine, mark)?;
        if !machine.is("Stopped") {
            let state = machine.state.as_deref().unwrap_or("in no known state");
            let message = format!("the machine {vm} is {state}; its cards are changed while it is stopped");
            return Err(Failure::retryable("vm_not_stopped", message).not_applied());
        }
        Ok(())
    }
}

fn card<'a>(vm: &'a Vm, network: &str) -> Option<&'a Nic> {
    vm.nic.iter().find(|card| card.networkid.as_deref() == Some(network))
}

#[async_trait]
impl Activity for SetNics {
    const NAME: &'static str = "set-nics";
    type Input = Cards;
    type Output = Made;

    fn effect(&self) -> Effect {
        Effect { probed: false, ..self.0.effect() }
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
        let (id, guard) = (input.vm.as_str(), || self.guard(&input.vm, &mark));
        let mut saved: Saved = context.saved()?.unwrap_or_default();
        for nic in &input.nics {
            let what = format!("adding a card to the machine {id}");
            let look = || self.look(id, |vm| card(vm, &nic.network).is_some());
            let call = |job| async move {
                guard().await?;
                let added = site.cloudstack.add_nic(id, &nic.network, nic.mac.as_deref(), Some(job));
                Ok::<_, NotBegun>(added.await?)
            };
            site.bring_about(context, &mut saved, &what, look, call).await?;
            saved.begun = None;
        }
        let what = format!("choosing the default card of the machine {id}");
        let look = || self.look(id, |vm| card(vm, &first.network).is_some_and(|card| card.isdefault));
        let call = |job| async move {
            guard().await?;
            let vm = site.machine(id).await?;
            let default = card(&vm, &first.network).map(|card| card.id.clone()).unwrap_or_default();
            Ok::<_, NotBegun>(site.cloudstack.set_default_nic(id, &default, Some(job)).await?)
        };
        site.bring_about(context, &mut saved, &what, look, call).await?;
        saved.begun = None;
        let wanted = |card: &Nic| {
            card.networkid.as_ref().is_some_and(|id| input.nics.iter().any(|nic| nic.network == *id))
        };
        while let Some(extra) = site.machine(id).await?.nic.into_iter().find(|card| !wanted(card)) {
            let what = format!("removing a card of the machine {id}");
            let extra = extra.id.as_str();
            let look = || self.look(id, move |vm| !vm.nic.iter().any(|card| card.id == extra));
            let call = |job| async move {
                guard().await?;
                Ok::<_, NotBegun>(site.cloudstack.remove_nic(id, extra, Some(job)).await?)
            };
            site.bring_about(context, &mut saved, &what, look, call).await?;
            saved.begun = None;
        }
        let vm = site.machine(id).await?;
        Ok(Made {
            vm: vm.id,
            name: vm.name.unwrap_or_default(),
            networks: vm.nic.into_iter().filter_map(|nic| nic.networkid).collect(),
        })
    }
}
