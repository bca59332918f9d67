//! The exports: the way by which replication writes to volumes of the appliance.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Context, Failure, Probe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::copies::{Watches, ours};
use super::{DIRTY_TAG, Site};
use crate::daemon::CreateExport;

pub(super) struct CloseExports(pub Arc<Site>);
pub(super) struct OpenExports(pub Arc<Site>);

/// The disks of one machine.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Exported {
    /// The source machine's id.
    source: String,
    /// Its name.
    name: String,
    /// Its disks.
    disks: Vec<Disk>,
    /// The copy that this run has made of all of them, from a source that is off.
    #[serde(default)]
    copied: Option<String>,
}

/// One of them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Disk {
    /// Its volume.
    volume: String,
    /// Its place among the machine's disks, from 0.
    number: i64,
}

/// What became of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Exports {
    /// The volumes that replication can reach.
    open: Vec<String>,
    /// Those that it cannot.
    closed: Vec<String>,
}

/// What outlives an attempt.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Closing {
    /// The exports that were open when it began to close them: a closed one tells its name no more.
    names: Vec<String>,
    /// Those on which another copy was seen at work.
    others: BTreeSet<String>,
    /// They are closed, and the disks were found to be whole.
    whole: bool,
}

impl Site {
    async fn exports(&self, exported: &Exported) -> Result<Exports, Failure> {
        let mut exports = Exports { open: Vec::new(), closed: Vec::new() };
        for disk in &exported.disks {
            let found = self.daemon.export(&disk.volume).await?;
            let to = if found.is_some() { &mut exports.open } else { &mut exports.closed };
            to.push(disk.volume.clone());
        }
        Ok(exports)
    }

    /// Nothing can be replicated to a volume whose export is closed. It is seen to be.
    pub(super) async fn close_export(&self, volume: &str) -> Result<(), Failure> {
        if self.daemon.export(volume).await?.is_none() {
            return Ok(());
        }
        self.daemon.delete_export(volume).await?;
        if self.daemon.export(volume).await?.is_some() {
            return Err(Failure::retryable("exports_open", format!("the export of {volume} is open still")));
        }
        Ok(())
    }
}

#[async_trait]
impl Activity for CloseExports {
    const NAME: &'static str = "close-exports";
    type Input = Exported;
    type Output = Exports;

    fn effect(&self) -> Effect {
        self.0.effect()
    }

    fn pool(&self) -> Option<String> {
        Some(super::DAEMON_POOL.into())
    }

    async fn run(&self, context: &Context, exported: Exported) -> Result<Exports, Failure> {
        let site = &self.0;
        let mut closing: Closing = context.saved()?.unwrap_or_default();
        let mut open = Vec::new();
        for disk in &exported.disks {
            if let Some(export) = site.daemon.export(&disk.volume).await? {
                open.push(disk);
                if !closing.names.contains(&export.export_name) {
                    closing.names.push(export.export_name);
                }
            }
        }
        // A copy that is cut off leaves a disk that is half as it was before and half as it is now.
        let ours = ours(context);
        let ours = exported.copied.as_ref().map(|_| ours.as_str());
        let (mut watches, end) = (Watches::default(), Instant::now() + site.settings.others_within.0);
        while let Some(other) = site.at_work(&closing.names, ours, &mut watches).await? {
            // Whoever comes after this attempt has to know that there was one.
            if !other.completed && closing.others.insert(other.export.clone()) {
                context.save(&closing).await?;
            }
            site.wait_for(context, &other, end).await?;
        }
        closing.whole = false;
        context.save(&closing).await?;
        for disk in open {
            let resource = context.resource("closed export", &disk.volume);
            resource.planned().await?;
            site.close_export(&disk.volume).await?;
            resource.present(serde_json::json!({ "volume": disk.volume })).await?;
        }
        let exports = site.exports(&exported).await?;
        if !exports.open.is_empty() {
            let message = format!("the exports of {} are open still", exports.open.join(", "));
            return Err(Failure::retryable("exports_open", message));
        }
        // One may have begun in the last moment.
        if let Some(why) = site.no_whole_copy(&closing.names, &closing.others, ours).await? {
            let message = format!(
                "the disks are no whole copy of the source: {why}. Have it replicated, and fail it over again"
            );
            return Err(Failure::permanent("no_whole_copy", message));
        }
        closing.whole = true;
        context.save(&closing).await?;
        Ok(exports)
    }

    async fn probe(&self, context: &Context, exported: Exported) -> Result<Probe<Exports>, Failure> {
        let exports = self.0.exports(&exported).await?;
        let closing: Closing = context.saved()?.unwrap_or_default();
        Ok(match (exports.open.is_empty(), exports.closed.is_empty()) {
            (true, _) if closing.whole || closing.names.is_empty() => Probe::Present(exports),
            // Whether the disks are whole the next attempt says.
            (true, _) => Probe::Partial,
            (false, true) => Probe::Absent,
            (false, false) => Probe::Partial,
        })
    }
}

#[async_trait]
impl Activity for OpenExports {
    const NAME: &'static str = "open-exports";
    type Input = Exported;
    type Output = Exports;

    fn effect(&self) -> Effect {
        Effect { probed: false, ..self.0.effect() }
    }

    fn pool(&self) -> Option<String> {
        Some(super::DAEMON_POOL.into())
    }

    async fn run(&self, context: &Context, exported: Exported) -> Result<Exports, Failure> {
        let site = &self.0;
        let mut exports = Exports { open: Vec::new(), closed: Vec::new() };
        for disk in &exported.disks {
            let volume = site.volume(&disk.volume).await?;
            if volume.virtualmachineid.as_deref() != Some(site.settings.oma.as_str()) {
                let message = format!("the volume {} is not attached to the appliance", volume.id);
                return Err(Failure::retryable("not_home", message));
            }
            let resource = context.resource("closed export", &disk.volume);
            // Replication would write into what is no copy of the source any more.
            if volume.tag(DIRTY_TAG).is_some() {
                site.close_export(&disk.volume).await?;
                resource
                    .kept("the volume is no copy of its source any more; an operator has to decide")
                    .await?;
                exports.closed.push(disk.volume.clone());
                continue;
            }
            if site.daemon.export(&disk.volume).await?.is_none() {
                let export = CreateExport {
                    volume: disk.volume.clone(),
                    vm_name: exported.name.clone(),
                    vm: exported.source.clone(),
                    disk_number: disk.number,
                };
                site.daemon.create_export(&export).await?;
                if site.daemon.export(&disk.volume).await?.is_none() {
                    let message =
                        format!("the export of the volume {} was made, but it is not there", disk.volume);
                    return Err(Failure::retryable("export_missing", message));
                }
            }
            resource.gone().await?;
            exports.open.push(disk.volume.clone());
        }
        Ok(exports)
    }
}
