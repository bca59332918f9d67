//! The machine at VMware: off, on again, and its last changes copied.
//!
//! The VMA answers before a machine is off, so its state is read until it is, and once more a little later: a cluster may
//! start it again by itself.

use std::sync::Arc;

use async_trait::async_trait;
use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Context, Failure, Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::guard::{HostName, mark};
use super::{DIRTY_TAG, Site};
use crate::remote::{Kind, Trouble};
use crate::vma::{Copying, NbdTarget, Power, Replicate, VCenter};

pub(super) struct PowerOffSource(pub Arc<Site>);
pub(super) struct PowerOnSource(pub Arc<Site>);
pub(super) struct FinalSync(pub Arc<Site>);

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
}

/// How it is, and how it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct PoweredOff {
    /// `poweredOff`.
    state: String,
    /// As it was before anybody touched it.
    original: String,
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
    original: Power2,
    #[serde(default)]
    method: Option<String>,
}

/// As the journal writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Power2 {
    PoweredOn,
    PoweredOff,
    Suspended,
    Unknown,
}

impl From<Power> for Power2 {
    fn from(power: Power) -> Self {
        match power {
            Power::On => Self::PoweredOn,
            Power::Off => Self::PoweredOff,
            Power::Suspended => Self::Suspended,
            Power::Unknown => Self::Unknown,
        }
    }
}

fn word(power: Power) -> &'static str {
    match power {
        Power::On => "poweredOn",
        Power::Off => "poweredOff",
        Power::Suspended => "suspended",
        Power::Unknown => "unknown",
    }
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
                let original = vma.power_state(&input.id, &input.vcenter).await?.power_state;
                if original == Power::Unknown {
                    let message =
                        "the state of the source machine is not known; it is not touched before it is";
                    return Err(Failure::retryable("source_unknown", message).not_applied());
                }
                let before = Before { original: original.into(), method: None };
                context.save(&before).await?;
                before
            }
        };
        let original = format!("{}", json!(before.original)).trim_matches('"').to_owned();
        let resource = context.resource("source power", &input.id);
        if before.original != Power2::PoweredOff {
            resource.planned().await?;
        }
        let done = |method: Option<String>| PoweredOff {
            state: word(Power::Off).into(),
            original: original.clone(),
            method: method.unwrap_or_else(|| "already-off".into()),
        };
        if !self.is_off_for_good(context, &input).await? {
            for force in [false, true] {
                if force && input.force_after.is_none() {
                    break;
                }
                context.progress(30.0, if force { "switching it off" } else { "asking it to shut down" });
                before.method = Some(if force { "forced".into() } else { "graceful".into() });
                context.save(&before).await?;
                // Whatever is answered: its state tells.
                let answered = vma.power_off(&input.id, &input.vcenter, force).await;
                match answered {
                    Ok(answer) => {
                        if let Some(method) = answer.shutdown_method {
                            before.method = Some(method);
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
        if before.original != Power2::PoweredOff {
            resource.present(json!({ "state": "poweredOff", "original": original })).await?;
        }
        Ok(done(before.method))
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
        let before: Option<Before> = context
            .undone()
            .and_then(|undone| undone.checkpoint.as_ref())
            .and_then(|saved| serde_json::from_str(saved.as_str()).ok());
        let state = site.vma.power_state(&input.id, &input.vcenter).await?.power_state;
        let Some(before) = before else {
            // It was not touched.
            return Ok(Powered { state: word(state).into() });
        };
        if before.original != Power2::PoweredOn || state == Power::On {
            resource.gone().await?;
            return Ok(Powered { state: word(state).into() });
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
                Ok(Powered { state: word(Power::On).into() })
            }
            Err(late) => Err(answered.err().unwrap_or(late).into()),
        }
    }
}

/// The last changes of a machine.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Sync {
    /// The id of its instance.
    id: String,
    /// Its path in vCenter.
    path: String,
    vcenter: VCenter,
    /// All of its disks.
    disks: Vec<SyncDisk>,
    /// How long it may take.
    within: Span,
}

/// One of them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SyncDisk {
    /// Its key in VMware, from 2000.
    key: u32,
    /// The volume that it is copied to.
    volume: String,
}

/// They are copied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Synced {
    /// The job of the VMA.
    job: String,
    /// What it copied, as far as it says.
    bytes: Option<i64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Copy {
    job: String,
    tries: u32,
}

#[async_trait]
impl Activity for FinalSync {
    const NAME: &'static str = "final-sync";
    type Input = Sync;
    type Output = Synced;

    fn effect(&self) -> Effect {
        Effect { probed: false, ..self.0.effect() }
    }

    fn pool(&self) -> Option<String> {
        Some(super::VMA_POOL.into())
    }

    /// A copy that nobody knows any more is begun again: the source is off, so the second brings the same.
    async fn run(&self, context: &Context, input: Sync) -> Result<Synced, Failure> {
        let (site, vma) = (&self.0, &self.0.vma);
        let mut copy: Copy = context.saved()?.unwrap_or_default();
        let end = tokio::time::Instant::now() + input.within.0;
        loop {
            if copy.tries > 0 {
                match self.follow(context, &copy.job, end).await? {
                    Ended::Well(bytes) => {
                        self.guard(&input).await?;
                        return Ok(Synced { job: copy.job, bytes });
                    }
                    Ended::Forgotten => {
                        tracing::warn!(job = copy.job, "the VMA forgot the copy; it is begun again")
                    }
                    Ended::Badly(why) => {
                        copy.tries += 1;
                        copy.job.clear();
                        context.save(&copy).await?;
                        return Err(Failure::retryable("sync_failed", why));
                    }
                }
            }
            self.guard(&input).await?;
            copy.tries += 1;
            copy.job = format!("backstay-{}-{}", context.key().simple(), copy.tries);
            context.save(&copy).await?;
            let mut targets = Vec::new();
            for disk in &input.disks {
                let export = site.daemon.export(&disk.volume).await?.ok_or_else(|| {
                    let message =
                        format!("the volume {} has no export, so nothing can be copied to it", disk.volume);
                    Failure::permanent("no_export", message).not_applied()
                })?;
                targets.push(NbdTarget {
                    device_path: format!("nbd://{}/{}", site.settings.nbd_host, export.export_name),
                    vm_disk_id: i64::from(disk.key),
                    vmware_disk_key: disk.key.to_string(),
                });
            }
            let order = Replicate {
                job: copy.job.clone(),
                vm_paths: vec![input.path.clone()],
                oma_url: site.settings.oma_url.clone(),
                targets,
            };
            context.progress(1.0, "beginning the copy of the last changes");
            // If its answer is lost, it shows whether it goes on.
            if let Err(trouble) = vma.replicate(&order, &input.vcenter).await
                && (trouble.applied() == backstay_engine::machine::Applied::No
                    || vma.progress(&copy.job).await?.is_none())
            {
                return Err(trouble.into());
            }
        }
    }
}

enum Ended {
    Well(Option<i64>),
    Badly(String),
    Forgotten,
}

impl FinalSync {
    /// The source is off, and every volume is where replication may write to it and as it left it.
    async fn guard(&self, input: &Sync) -> Result<(), Failure> {
        let site = &self.0;
        let state = site.vma.power_state(&input.id, &input.vcenter).await?.power_state;
        if state != Power::Off {
            let message = format!("the source machine is {}; what it writes now would be lost", word(state));
            return Err(Failure::retryable("source_not_off", message).not_applied());
        }
        for disk in &input.disks {
            let volume = site.volume(&disk.volume).await?;
            if volume.virtualmachineid.as_deref() != Some(site.settings.oma.as_str()) {
                let message = format!("the volume {} is not attached to the appliance", volume.id);
                return Err(Failure::permanent("not_home", message).not_applied());
            }
            if volume.tag(DIRTY_TAG).is_some() {
                let message = format!(
                    "the volume {} is no copy of its source any more: it needs a full copy first",
                    volume.id
                );
                return Err(Failure::permanent("dirty", message).not_applied());
            }
        }
        Ok(())
    }

    async fn follow(
        &self,
        context: &Context,
        job: &str,
        end: tokio::time::Instant,
    ) -> Result<Ended, Failure> {
        let vma = &self.0.vma;
        let mut unknown_since = None;
        loop {
            match vma.progress(job).await {
                Ok(Some(progress)) => {
                    unknown_since = None;
                    match &progress.status {
                        Copying::Succeeded => {
                            // One disk that failed is a machine that failed.
                            let failed = progress.disk_progresses.iter().find(|disk| {
                                disk.status
                                    .as_deref()
                                    .is_some_and(|status| status.eq_ignore_ascii_case("failed"))
                            });
                            return Ok(match failed {
                                Some(disk) => {
                                    Ended::Badly(format!("the copy of the disk {} failed", disk.disk_id))
                                }
                                None => Ended::Well(progress.bytes_transferred),
                            });
                        }
                        Copying::Failed => {
                            let why =
                                progress.last_error.unwrap_or_else(|| "the VMA does not say why".into());
                            return Ok(Ended::Badly(format!("the copy failed: {why}")));
                        }
                        Copying::Running | Copying::Unknown(_) => {
                            let note = progress.current_operation.unwrap_or_else(|| "copying".into());
                            context.progress(progress.percentage, note);
                        }
                    }
                }
                // It has forgotten everything if it was restarted; a moment after the start it may not know it yet.
                Ok(None) => {
                    let since = *unknown_since.get_or_insert_with(tokio::time::Instant::now);
                    if since.elapsed() >= vma.settings().progress_grace.0 {
                        return Ok(Ended::Forgotten);
                    }
                }
                Err(trouble) if trouble.kind().is_retryable() => {
                    tracing::debug!(%trouble, job, "the VMA does not tell how far the copy is");
                }
                Err(trouble) => return Err(trouble.into()),
            }
            if tokio::time::Instant::now() >= end {
                let message = format!("the copy {job} did not end in time, and may still go on");
                return Err(Failure::retryable("sync_late", message));
            }
            self.0.breathe_for(context, "copying the last changes", vma.settings().progress_poll.0).await?;
        }
    }
}
