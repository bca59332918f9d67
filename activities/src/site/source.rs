//! The machine at VMware: off, and on again.
//!
//! The VMA answers before a machine is off, so its state is read until it is, and once more a little later: a cluster may
//! start it again by itself. One that is suspended is not touched: it cannot shut down, and to switch it off is to lose what
//! it has in memory.

use std::sync::Arc;

use async_trait::async_trait;
use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Context, Failure, Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use super::Site;
use super::change::left;
use super::guard::{HostName, mark};
use crate::remote::{Kind, Trouble};
use crate::vma::{Power, VCenter};

pub(super) struct PowerOffSource(pub Arc<Site>);
pub(super) struct PowerOnSource(pub Arc<Site>);

/// A machine to be switched off.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Off {
    /// The id of its instance.
    id: String,
    vcenter: VCenter,
    /// It is asked to go down; if it has not after so long, it is switched off. Left out: never by force.
    #[serde(default)]
    force_after: Option<Span>,
}

/// A machine to be switched on again.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct On {
    /// The id of its instance.
    id: String,
    vcenter: VCenter,
    /// The host name of its copy, which must not run beside it.
    copy: HostName,
    /// If it was asked to go down and did not: so long it may still do so.
    #[serde(default)]
    force_after: Option<Span>,
}

/// How it is, and how it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct PoweredOff {
    /// `poweredOff`.
    state: String,
    /// As it was before anybody touched it.
    original: Was,
    /// `graceful`, `forced` or `already-off`.
    method: String,
}

/// How it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Powered {
    /// `poweredOn`, `poweredOff`, …
    state: String,
}

/// Saved once, before it is touched: what it was like is not to be found out later.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Before {
    original: Was,
    #[serde(default)]
    method: Option<String>,
}

/// How it was before it was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum Was {
    PoweredOn,
    PoweredOff,
}

impl PowerOffSource {
    /// Off, and off still a little later.
    async fn is_off_for_good(&self, context: &Context, input: &Off) -> Result<bool, Failure> {
        let site = &self.0;
        if site.vma.power_state(&input.id, &input.vcenter).await?.power_state != Power::Off {
            return Ok(false);
        }
        context.progress(80.0, "it is off; looking again");
        site.breathe_for(context, "looking again whether the source is off", site.settings.look_twice.0)
            .await?;
        Ok(site.vma.power_state(&input.id, &input.vcenter).await?.power_state == Power::Off)
    }

    /// How it is, right before it is touched.
    async fn awake(&self, input: &Off) -> Result<Was, Failure> {
        match self.0.vma.power_state(&input.id, &input.vcenter).await?.power_state {
            Power::On => Ok(Was::PoweredOn),
            Power::Off => Ok(Was::PoweredOff),
            Power::Suspended => {
                let message = "the source machine is suspended: what it has in memory would be lost. Resume it, or switch it \
                               off yourself if nothing there is needed";
                Err(Failure::permanent("source_suspended", message).not_applied())
            }
            Power::Unknown => {
                let message = "the state of the source machine is not known; it is not touched before it is";
                Err(Failure::retryable("source_unknown", message).not_applied())
            }
        }
    }
}

#[async_trait]
impl Activity for PowerOffSource {
    const NAME: &'static str = "power-off-source";
    type Input = Off;
    type Output = PoweredOff;

    fn effect(&self) -> Effect {
        Effect { probed: false, ..self.0.effect() }
    }

    fn pool(&self) -> Option<String> {
        Some(super::VMA_POOL.into())
    }

    async fn run(&self, context: &Context, input: Off) -> Result<PoweredOff, Failure> {
        let vma = &self.0.vma;
        let mut before: Before = match context.saved()? {
            Some(before) => before,
            None => {
                let before = Before { original: self.awake(&input).await?, method: None };
                context.save(&before).await?;
                before
            }
        };
        let resource = context.resource("source power", &input.id);
        if !self.is_off_for_good(context, &input).await? {
            for force in [false, true] {
                if force && input.force_after.is_none() {
                    break;
                }
                let now = self.awake(&input).await?;
                if before.method.is_none() {
                    // Somebody may have started it since.
                    before.original = now;
                }
                resource.planned().await?;
                context.progress(30.0, if force { "switching it off" } else { "asking it to shut down" });
                before.method = Some(if force { "forced".into() } else { "graceful".into() });
                context.save(&before).await?;
                // Whatever is answered: its state tells.
                let answered = vma.power_off(&input.id, &input.vcenter, force).await;
                match answered {
                    Ok(answer) => {
                        if answer.shutdown_method.is_some() && answer.shutdown_method != before.method {
                            before.method = answer.shutdown_method;
                            context.save(&before).await?;
                        }
                    }
                    Err(trouble)
                        if matches!(trouble.kind(), Kind::Operator | Kind::Missing | Kind::Refused) =>
                    {
                        return Err(trouble.into());
                    }
                    Err(trouble) => {
                        tracing::warn!(%trouble, "the VMA did not say that it switched the source off")
                    }
                }
                match self.wait_off(context, &input).await {
                    Ok(()) => break,
                    Err(late) if late.kind() == Kind::Late && input.force_after.is_some() && !force => {}
                    Err(trouble) => return Err(trouble.into()),
                }
            }
            if !self.is_off_for_good(context, &input).await? {
                let message = "the source machine is not off, or was started again by somebody";
                return Err(Failure::retryable("source_not_off", message));
            }
        }
        if before.original == Was::PoweredOn {
            resource.present(json!({ "state": "poweredOff", "original": before.original })).await?;
        }
        Ok(PoweredOff {
            state: Power::Off.word().into(),
            original: before.original,
            method: before.method.unwrap_or_else(|| "already-off".into()),
        })
    }
}

impl PowerOffSource {
    async fn wait_off(&self, context: &Context, input: &Off) -> Result<(), Trouble> {
        let vma = &self.0.vma;
        let settings = vma.settings();
        let deadline = input.force_after.unwrap_or(settings.power_off_wait);
        let pace = crate::remote::Pace { first: settings.power_poll, ceiling: settings.power_poll, deadline };
        let what = "waiting for the source machine to go down";
        crate::remote::wait("VMA", what, pace, context.cancelled(), || async {
            let state = vma.power_state(&input.id, &input.vcenter).await?;
            Ok((state.power_state == Power::Off).then_some(()))
        })
        .await
    }
}

impl PowerOnSource {
    /// A guest that was asked to shut down does so when it is ready, also after nobody waits for it any more.
    async fn may_go_down_yet(&self, context: &Context, input: &On) -> Result<Power, Failure> {
        let vma = &self.0.vma;
        let settings = vma.settings();
        let end = Instant::now() + input.force_after.unwrap_or(settings.power_off_wait).0;
        loop {
            let state = vma.power_state(&input.id, &input.vcenter).await?.power_state;
            if state != Power::On || Instant::now() >= end {
                return Ok(state);
            }
            let what = "the source was asked to shut down, and may do so yet";
            context.progress(10.0, what);
            self.0.breathe_for(context, what, settings.power_poll.0).await?;
        }
    }
}

#[async_trait]
impl Activity for PowerOnSource {
    const NAME: &'static str = "power-on-source";
    type Input = On;
    type Output = Powered;

    fn effect(&self) -> Effect {
        Effect { probed: false, ..self.0.effect() }
    }

    fn pool(&self) -> Option<String> {
        Some(super::VMA_POOL.into())
    }

    /// Only if it was on before, and only while its copy is known not to run.
    async fn run(&self, context: &Context, input: On) -> Result<Powered, Failure> {
        let site = &self.0;
        let resource = context.resource("source power", &input.id);
        let undone = context.undone();
        let (saved, told) = undone.map(|undone| (undone.checkpoint.as_ref(), undone.output.as_ref())).unzip();
        let what = "how the source machine was before";
        let output = told.flatten();
        let (original, asked) = match left(what, saved.flatten())? {
            Some(Before { original, method }) => (Some(original), method.is_some()),
            None => (left(what, output)?.map(|told: PoweredOff| told.original), false),
        };
        let mut state = site.vma.power_state(&input.id, &input.vcenter).await?.power_state;
        if asked && output.is_none() && state == Power::On {
            state = self.may_go_down_yet(context, &input).await?;
        }
        // Nothing on record: it was not touched.
        let Some(original) = original else { return Ok(Powered { state: state.word().into() }) };
        if original == Was::PoweredOff || state == Power::On {
            resource.gone().await?;
            return Ok(Powered { state: state.word().into() });
        }
        let copy = site.made_by(&mark(context.run()), &input.copy.of(context.run())).await?;
        if let Some(copy) = copy.filter(crate::cloudstack::Vm::may_run) {
            let state = copy.state.as_deref().unwrap_or("in no known state");
            let message = format!(
                "the copy of the source machine is {state}: the source is started once it is stopped"
            );
            return Err(Failure::retryable("copy_may_run", message).not_applied());
        }
        context.progress(30.0, "starting the source machine");
        let answered = site.vma.power_on(&input.id, &input.vcenter).await;
        if let Err(trouble) = &answered {
            tracing::warn!(%trouble, "the VMA did not say that it started the source");
        }
        match site.vma.wait_for_power(&input.id, &input.vcenter, Power::On, context.cancelled()).await {
            Ok(_) => {
                resource.gone().await?;
                Ok(Powered { state: Power::On.word().into() })
            }
            Err(late) => Err(answered.err().unwrap_or(late).into()),
        }
    }
}
