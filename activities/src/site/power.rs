//! The machine at CloudStack starts and stops; and whether it came up.

use std::sync::Arc;

use async_trait::async_trait;
use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Context, Failure, Probe, Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::change::{Found, NotBegun, Saved};
use super::guard::{at_work, mark, no_machine};
use super::{Site, TEST_NETWORK_TAG};
use crate::cloudstack::Tag;
use crate::vma::{Power, VCenter};

pub(super) struct StartVm(pub Arc<Site>);
pub(super) struct StopVm(pub Arc<Site>);
pub(super) struct CheckBoot(pub Arc<Site>);

/// A machine to be started.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Start {
    /// Its id.
    vm: String,
    /// The networks that it may have cards in.
    networks: Vec<String>,
    /// The volumes that it has to have, the one that it starts from first: all of them, and no other.
    volumes: Vec<String>,
    /// A rehearsal: it may only have cards in networks that are marked as being for that.
    rehearsal: bool,
    /// The machine that it is the copy of: it has to be off, unless this is a rehearsal.
    source: Source,
}

/// A machine at VMware.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    /// The id of its instance.
    pub id: String,
    /// Where it is.
    pub vcenter: VCenter,
}

/// A machine to be stopped.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Stop {
    /// Its id; nothing: it was never made.
    vm: Option<String>,
}

/// How a machine is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct State {
    /// Its id.
    vm: Option<String>,
    /// As CloudStack says it.
    state: String,
}

/// What it takes to have come up.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Boot {
    /// The machine's id.
    vm: String,
    /// It has to run for so long without a break.
    steady: Span,
    /// It has so long for that, with all its restarts: Windows makes some after new drivers.
    within: Span,
}

/// It came up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Booted {
    /// As CloudStack says it.
    state: String,
    /// How often it was seen to go down meanwhile.
    restarts: u32,
    /// Its addresses, as far as its networks give some.
    addresses: Vec<String>,
}

impl StartVm {
    async fn look(&self, input: &Start) -> Result<Found<State>, Failure> {
        let vm = self.0.machine(&input.vm).await?;
        if let Some(job) = at_work(vm.jobid.as_ref(), vm.jobstatus) {
            return Ok(Found::AtWork(job));
        }
        let state = vm.state.as_deref().unwrap_or("in no known state");
        match state {
            "Running" => Ok(Found::Done(State { vm: Some(vm.id), state: "Running".into() })),
            "Stopped" => Ok(Found::Todo),
            "Destroyed" | "Expunging" | "Error" => {
                Err(Failure::permanent("vm_lost", format!("the machine {} is {state}", input.vm)))
            }
            moving => Ok(Found::Moving(moving.to_owned())),
        }
    }

    /// Right before the call: nothing runs twice, nothing runs where the world sees it unless it should, and it starts with
    /// all of its disks.
    async fn guard(&self, context: &Context, input: &Start) -> Result<(), Failure> {
        let site = &self.0;
        let vm = site.machine(&input.vm).await?;
        site.only_ours(&vm, &mark(context.run()))?;
        for nic in &vm.nic {
            let network = nic.networkid.as_deref().unwrap_or_default();
            if !input.networks.iter().any(|allowed| allowed == network) {
                let message = format!(
                    "the machine {} has a card in the network {network}, which the plan does not have",
                    vm.id
                );
                return Err(Failure::permanent("wrong_network", message).not_applied());
            }
            if input.rehearsal
                && let Some(why) = site.not_for_rehearsals(network).await?
            {
                return Err(Failure::permanent("not_a_test_network", why).not_applied());
            }
        }
        if !input.rehearsal {
            let state = site.vma.power_state(&input.source.id, &input.source.vcenter).await?;
            if state.power_state != Power::Off {
                let message = format!(
                    "the source machine is {}: its copy is started once it is known to be off",
                    state.power_state.word()
                );
                return Err(Failure::retryable("source_not_off", message).not_applied());
            }
        }
        let volumes = site.cloudstack.volumes_of(&input.vm).await?;
        for (n, wanted) in input.volumes.iter().enumerate() {
            let there = volumes.iter().find(|volume| volume.id == *wanted);
            if there.is_none_or(|volume| (volume.deviceid == Some(0)) != (n == 0)) {
                let message = format!("the volume {wanted} is not where it belongs at the machine {}", vm.id);
                return Err(Failure::permanent("disks_incomplete", message).not_applied());
            }
        }
        if let Some(other) = volumes.iter().find(|volume| !input.volumes.contains(&volume.id)) {
            let message =
                format!("the machine {} has the volume {}, which is not one of its disks", vm.id, other.id);
            return Err(Failure::permanent("foreign_disk", message).not_applied());
        }
        Ok(())
    }
}

/// Whether these are the tags of a network for rehearsals.
pub(super) fn for_rehearsals(tags: &[Tag]) -> bool {
    tags.iter().any(|tag| {
        tag.key == TEST_NETWORK_TAG
            && tag.value.as_deref().is_some_and(|value| value.eq_ignore_ascii_case("true"))
    })
}

impl Site {
    /// Why no rehearsal may take place in a network, if that is so.
    pub(super) async fn not_for_rehearsals(&self, network: &str) -> Result<Option<String>, Failure> {
        let tags = self.cloudstack.list_tags("Network", network).await?;
        Ok((!for_rehearsals(&tags)).then(|| {
            format!(
                "the network {network} is not marked as one for rehearsals: a copy that runs there beside its source could \
                 be taken for it. If it is cut off from the world, give it the tag {TEST_NETWORK_TAG}=true at CloudStack"
            )
        }))
    }
}

#[async_trait]
impl Activity for StartVm {
    const NAME: &'static str = "start-vm";
    type Input = Start;
    type Output = State;

    fn effect(&self) -> Effect {
        self.0.effect()
    }

    fn pool(&self) -> Option<String> {
        Some(super::CLOUDSTACK_POOL.into())
    }

    async fn run(&self, context: &Context, input: Start) -> Result<State, Failure> {
        let mut saved: Saved = context.saved()?.unwrap_or_default();
        let what = format!("starting the machine {}", input.vm);
        let call = |job| {
            let input = &input;
            async move {
                self.guard(context, input).await?;
                Ok::<_, NotBegun>(self.0.cloudstack.start_vm(&input.vm, Some(job)).await?)
            }
        };
        self.0.bring_about(context, &mut saved, &what, || self.look(&input), call).await
    }

    async fn probe(&self, _: &Context, input: Start) -> Result<Probe<State>, Failure> {
        Ok(self.look(&input).await?.probe(Probe::Present))
    }
}

impl StopVm {
    async fn look(&self, input: &Stop) -> Result<Found<State>, Failure> {
        let gone = || Found::Done(State { vm: input.vm.clone(), state: "gone".into() });
        let Some(id) = &input.vm else { return Ok(gone()) };
        let Some(vm) = self.0.cloudstack.vm(id).await? else { return Ok(gone()) };
        if let Some(job) = at_work(vm.jobid.as_ref(), vm.jobstatus) {
            return Ok(Found::AtWork(job));
        }
        let state = vm.state.as_deref().unwrap_or("in no known state").to_owned();
        Ok(match state.as_str() {
            "Stopped" | "Destroyed" | "Expunging" | "Error" => Found::Done(State { vm: Some(vm.id), state }),
            "Starting" | "Stopping" | "Migrating" => Found::Moving(state),
            _ => Found::Todo,
        })
    }
}

#[async_trait]
impl Activity for StopVm {
    const NAME: &'static str = "stop-vm";
    type Input = Stop;
    type Output = State;

    fn effect(&self) -> Effect {
        self.0.effect()
    }

    fn pool(&self) -> Option<String> {
        Some(super::CLOUDSTACK_POOL.into())
    }

    /// Asks first. If that did not help, the next attempt uses force, but only where its host is known to be reached: a
    /// forced stop marks a machine as stopped also where nobody could stop it, and its disks would be taken from under it.
    async fn run(&self, context: &Context, input: Stop) -> Result<State, Failure> {
        let site = &self.0;
        let mut saved: Saved = context.saved()?.unwrap_or_default();
        let what = "stopping the machine";
        let asked = saved.calls > 0;
        let id = input.vm.clone().unwrap_or_default();
        let call = |job| {
            let id = &id;
            async move {
                let vm = site.machine(id).await?;
                site.only_ours(&vm, &mark(context.run()))?;
                let reachable = vm.host_is_reachable();
                if reachable == Some(false) {
                    let message = format!(
                        "the host of the machine {id} cannot be reached, so whether the machine runs is not known, and it is \
                         not taken for stopped. Mend the host, or make sure at its console that the machine is off, and \
                         retry this step"
                    );
                    return Err(Failure::retryable("host_unreachable", message).not_applied().into());
                }
                let forced = asked && reachable == Some(true);
                Ok::<_, NotBegun>(site.cloudstack.stop_vm(id, forced, Some(job)).await?)
            }
        };
        let stopped = site.bring_about(context, &mut saved, what, || self.look(&input), call).await?;
        if stopped.state == "gone" {
            return Ok(stopped);
        }
        // A cluster that keeps machines up may start it again, and its disks are detached next.
        site.breathe_for(context, "looking again whether it is stopped", site.settings.look_twice.0).await?;
        match self.look(&input).await? {
            Found::Done(state) => Ok(state),
            _ => {
                let message = format!("the machine {id} was stopped, and something has started it again");
                Err(Failure::retryable("started_again", message))
            }
        }
    }

    async fn probe(&self, _: &Context, input: Stop) -> Result<Probe<State>, Failure> {
        // Whether it stays so is for the next attempt to see.
        Ok(self.look(&input).await?.probe(|_| Probe::Partial))
    }
}

#[async_trait]
impl Activity for CheckBoot {
    const NAME: &'static str = "check-boot";
    type Input = Boot;
    type Output = Booted;

    fn pool(&self) -> Option<String> {
        Some(super::CLOUDSTACK_POOL.into())
    }

    async fn run(&self, context: &Context, input: Boot) -> Result<Booted, Failure> {
        let site = &self.0;
        let end = Instant::now() + input.within.0;
        let (mut up_since, mut restarts) = (None, 0);
        loop {
            let vm = match site.cloudstack.vm(&input.vm).await {
                Ok(Some(vm)) => vm,
                Err(trouble) if !trouble.kind().is_retryable() || Instant::now() >= end => {
                    return Err(trouble.into());
                }
                Ok(None) if Instant::now() >= end => return Err(no_machine(&input.vm)),
                // No news. That the machine is well or not is not known from that.
                Ok(None) | Err(_) => {
                    site.breathe(context, "CloudStack does not tell how the machine is").await?;
                    continue;
                }
            };
            let state = vm.state.clone().unwrap_or_else(|| "in no known state".into());
            if vm.is("Running") {
                let since = *up_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= input.steady.0 {
                    let addresses = vm.nic.into_iter().filter_map(|nic| nic.ipaddress).collect();
                    return Ok(Booted { state, restarts, addresses });
                }
                let percent = since.elapsed().as_secs_f64() * 100.0 / input.steady.0.as_secs_f64().max(0.001);
                context
                    .progress(percent, format!("it runs, for {:.0} s so far", since.elapsed().as_secs_f64()));
            } else if up_since.take().is_some() {
                restarts += 1;
            }
            if Instant::now() >= end {
                let message = format!(
                    "the machine {} is {state} and did not run for {} without a break within {}; it went down {restarts} times",
                    input.vm, input.steady, input.within
                );
                return Err(Failure::permanent("did_not_boot", message));
            }
            site.breathe(context, "waiting for the machine to come up").await?;
        }
    }
}
