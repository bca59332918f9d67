//! Drivers for Windows, put into its disks while they are at the appliance.
//!
//! A conversion that was cut off leaves disks that nobody can vouch for, and the program itself neither marks what it has
//! converted nor refuses to do so twice. So what was begun is on record before it begins, and before a second try the
//! disks go back to their snapshots.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Context, Failure, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::change::Saved;
use super::snapshots::{Back, Taken};
use super::{Site, VIRTIO_TAG};
use crate::v2v::{Firmware, Format, Guest, GuestDisk, Warning, device_ending};

pub(super) struct InjectDrivers(pub Arc<Site>);

/// The guest.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Convert {
    /// Its name.
    name: String,
    memory_mb: u32,
    cpus: u32,
    /// BIOS or UEFI.
    boot_type: String,
    /// Its volumes, which are attached to the appliance. It starts from the first.
    volumes: Vec<String>,
    /// Their snapshots: there has to be a way back before anything is written.
    snapshots: Taken,
}

/// It was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(super) struct Converted {
    /// What the program found odd.
    warnings: Vec<String>,
    /// Where its words are kept, at the appliance.
    log: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct How {
    /// It was begun so often.
    begun: u32,
    /// It came to its end.
    done: Option<Converted>,
    /// The disks are as they were before.
    clean: bool,
}

impl Site {
    /// Whoever began a conversion may be gone, and the program not. It can be at work only on what is attached here.
    pub(super) async fn end_leftovers(&self, volumes: &[String]) -> Result<(), Failure> {
        let Some(v2v) = &self.v2v else { return Ok(()) };
        let mut devices = Vec::new();
        for id in volumes {
            let known = self.daemon.device(id).await?.and_then(|device| device.path().map(PathBuf::from));
            devices.extend(known.filter(|device| device.exists()));
        }
        v2v.end_leftovers(&devices).await?;
        Ok(())
    }
}

impl InjectDrivers {
    /// The device of each volume, by the name that says which volume it is: others change when a machine starts anew.
    async fn devices(&self, context: &Context, volumes: &[String]) -> Result<Vec<PathBuf>, Failure> {
        let site = &self.0;
        let mut devices = Vec::new();
        for id in volumes {
            let volume = site.volume(id).await?;
            if volume.virtualmachineid.as_deref() != Some(site.settings.oma.as_str()) {
                return Err(Failure::permanent(
                    "not_home",
                    format!("the volume {id} is not at the appliance"),
                )
                .not_applied());
            }
            let end = tokio::time::Instant::now() + site.settings.settle.0;
            let device = loop {
                if let Some(path) =
                    site.daemon.device(id).await?.and_then(|device| device.path().map(PathBuf::from))
                {
                    break path;
                }
                if tokio::time::Instant::now() >= end {
                    return Err(Failure::retryable("no_device", format!("the volume {id} has no device"))
                        .not_applied());
                }
                site.breathe(context, "waiting for a device").await?;
            };
            if !device.to_string_lossy().ends_with(&device_ending(id)) {
                let message = format!(
                    "the Volume Daemon says that the volume {id} is {}, which does not bear its id: it is not written to",
                    device.display()
                );
                return Err(Failure::permanent("wrong_device", message).not_applied());
            }
            devices.push(device);
        }
        Ok(devices)
    }

    /// Takes the disks back to their snapshots: off the appliance, back, and on again. It may have been cut off before, so
    /// each of them may be anywhere on that way.
    async fn start_over(
        &self,
        context: &Context,
        saved: &mut Saved<How>,
        input: &Convert,
    ) -> Result<(), Failure> {
        let site = &self.0;
        context.progress(5.0, "an earlier conversion did not come to its end: going back to the snapshots");
        for volume in &input.volumes {
            site.at_rest(context, saved, volume).await?;
        }
        for volume in &input.volumes {
            site.take(context, saved, volume).await?;
            saved.begun = None;
        }
        for volume in &input.volumes {
            if let Back::Failed(failure) = site.put_back(context, saved, &input.snapshots, volume).await? {
                return Err(failure);
            }
        }
        for volume in &input.volumes {
            site.lend(context, saved, volume).await?;
            saved.begun = None;
        }
        saved.more.clean = true;
        context.save(saved).await
    }

    /// Whoever has this step done once more starts without what was saved; what was noted on the disk is still there.
    async fn was_begun(&self, run: RunId, input: &Convert) -> Result<bool, Failure> {
        let Some(first) = input.volumes.first() else { return Ok(false) };
        let volume = self.0.volume(first).await?;
        Ok(volume.tag(VIRTIO_TAG).is_some_and(|said| said.starts_with(&format!("{run}:"))))
    }

    async fn note(
        &self,
        context: &Context,
        saved: &mut Saved<How>,
        input: &Convert,
        word: &str,
    ) -> Result<(), Failure> {
        let Some(first) = input.volumes.first() else { return Ok(()) };
        let said = format!("{}:{word}", context.run());
        self.0.tag(context, saved, ("Volume", first), (VIRTIO_TAG, &said)).await
    }
}

#[async_trait]
impl Activity for InjectDrivers {
    const NAME: &'static str = "inject-drivers";
    type Input = Convert;
    type Output = Converted;

    fn effect(&self) -> Effect {
        Effect { probed: false, ..self.0.effect() }
    }

    fn pool(&self) -> Option<String> {
        Some(super::V2V_POOL.into())
    }

    async fn run(&self, context: &Context, input: Convert) -> Result<Converted, Failure> {
        let v2v = self.0.v2v.as_ref().ok_or_else(|| {
            let message = "the conversion is not configured: it runs at the appliance, with v2v.program set";
            Failure::permanent("no_v2v", message).not_applied()
        })?;
        let mut saved: Saved<How> = context.saved()?.unwrap_or_default();
        if let Some(done) = saved.more.done {
            return Ok(done);
        }
        let begun = saved.more.begun > 0 || self.was_begun(context.run(), &input).await?;
        if begun && !saved.more.clean {
            self.0.end_leftovers(&input.volumes).await?;
            self.start_over(context, &mut saved, &input).await?;
        }
        self.0.way_back(context, &input.snapshots, &input.volumes).await?;
        let devices = self.devices(context, &input.volumes).await?;
        for volume in &input.volumes {
            self.0.close_export(volume).await?;
        }
        saved.more.begun += 1;
        saved.more.clean = false;
        context.save(&saved).await?;
        self.note(context, &mut saved, &input, "started").await?;
        let guest = Guest {
            name: input.name.clone(),
            disks: devices.into_iter().map(|device| GuestDisk { device, format: Format::Raw }).collect(),
            memory_mib: input.memory_mb,
            vcpus: input.cpus,
            firmware: if input.boot_type == "UEFI" { Firmware::Uefi } else { Firmware::Bios },
        };
        context.progress(20.0, "virt-v2v-in-place is at work on the disks");
        let label = format!("{}-{}", context.run(), saved.more.begun);
        let injected = v2v.inject(&guest, &label, context.cancelled()).await?;
        // It ends well without them, and such a guest would not find its disks.
        if injected.warnings.contains(&Warning::MissingDrivers) {
            let message = format!(
                "virt-v2v found no VirtIO drivers for {}, so its copy would not start. Put drivers for its version of Windows \
                 where v2v.virtio_win points, and fail it over again (its words: {})",
                input.name,
                injected.log.display()
            );
            return Err(Failure::permanent("no_drivers", message));
        }
        let done = Converted {
            warnings: injected.warnings.iter().map(|warning| format!("{warning:?}")).collect(),
            log: injected.log.display().to_string(),
        };
        saved.more.done = Some(done.clone());
        context.save(&saved).await?;
        self.note(context, &mut saved, &input, "done").await?;
        Ok(done)
    }
}
