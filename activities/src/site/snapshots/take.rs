//! Snapshots are taken: of all disks, or the step has not come to its end.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Context, Failure};
use serde_json::json;
use tokio::time::Instant;

use super::{Provider, Set, Taken, name_of, record};
use crate::cloudstack::{CreateVmSnapshot, Snapshot};
use crate::linstor;
use crate::site::change::{Change, Found, Saved};
use crate::site::guard::at_work;
use crate::site::{CLOUDSTACK_POOL, RUN_TAG, Site};

pub(in crate::site) struct TakeSnapshots(pub Arc<Site>);

#[async_trait]
impl Activity for TakeSnapshots {
    const NAME: &'static str = "take-snapshots";
    type Input = Set;
    type Output = Taken;

    fn effect(&self) -> Effect {
        Effect { probed: false, ..self.0.effect() }
    }

    fn pool(&self) -> Option<String> {
        Some(CLOUDSTACK_POOL.into())
    }

    async fn run(&self, context: &Context, set: Set) -> Result<Taken, Failure> {
        let snapshots = match set.provider {
            Provider::CloudStack => self.by_cloudstack(context, &set).await?,
            Provider::Linstor => self.by_linstor(context, &set).await?,
            Provider::Machine => self.by_machine(context, &set).await?,
            Provider::None => BTreeMap::new(),
        };
        Ok(Taken { provider: set.provider, snapshots })
    }
}

impl TakeSnapshots {
    async fn by_cloudstack(&self, context: &Context, set: &Set) -> Result<BTreeMap<String, String>, Failure> {
        let (site, name) = (&self.0, name_of(context.run()));
        let tags = BTreeMap::from([(RUN_TAG.to_owned(), context.run().to_string())]);
        let mut saved: Saved = context.saved()?.unwrap_or_default();
        let mut taken = BTreeMap::new();
        for (n, volume) in set.volumes.iter().enumerate() {
            let record = record(context, set.provider, volume);
            record.planned().await?;
            let idle = OnceLock::new();
            let look = || self.look_one(context, volume, &idle);
            let call = |job| site.cloudstack.create_snapshot(volume, &name, &tags, Some(job));
            let what = format!("taking a snapshot of the volume {volume}");
            let within = Some(site.cloudstack.settings().snapshot_deadline);
            let id =
                site.bring_about(context, &mut saved, Change { what: &what, within }, look, call).await?;
            saved.begun = None;
            record.present(json!({ "id": id, "volume": volume })).await?;
            context.progress((n + 1) as f64 * 100.0 / set.volumes.len() as f64, what);
            taken.insert(volume.clone(), id);
        }
        Ok(taken)
    }

    async fn look_one(
        &self,
        context: &Context,
        volume: &str,
        idle: &OnceLock<Instant>,
    ) -> Result<Found<String>, Failure> {
        let site = &self.0;
        let found = site.snapshots_of(context.run(), volume).await?;
        let held = site.volume(volume).await?;
        if let Some(one) = found.iter().find(|one| one.is_usable()) {
            return match (one.virtualsize, held.size) {
                (Some(holds), Some(all)) if holds != all => {
                    let message = format!(
                        "the snapshot {} holds {holds} bytes of the volume {volume}, which has {all}: there would be no way back",
                        one.id
                    );
                    Err(Failure::permanent("snapshot_size", message))
                }
                _ => Ok(Found::Done(one.id.clone())),
            };
        }
        if let Some(job) = at_work(held.jobid.as_ref(), held.jobstatus) {
            return Ok(Found::AtWork(job));
        }
        if let Some(one) = found.iter().find(|one| !is_failed(one)) {
            // One whose job was lost stays what it was for ever. It is removed with the others in the end.
            let given_up =
                held.is("Ready") && idle.get_or_init(Instant::now).elapsed() >= site.settings.settle.0;
            if !given_up {
                return Ok(Found::Moving(one.state.clone().unwrap_or_else(|| "in no known state".into())));
            }
        }
        Ok(Found::Todo)
    }

    async fn by_linstor(&self, context: &Context, set: &Set) -> Result<BTreeMap<String, String>, Failure> {
        let (site, linstor, name) = (&self.0, self.0.linstor()?, name_of(context.run()));
        let mut resources = BTreeMap::new();
        for volume in &set.volumes {
            resources.insert(volume.clone(), site.resource_of(linstor, volume).await?);
            record(context, set.provider, volume).planned().await?;
        }
        let names: Vec<&str> = resources.values().map(String::as_str).collect();
        let look = || async {
            let found = linstor.view_snapshots(&names).await?;
            let of = |resource: &str| {
                let is = |one: &&linstor::Snapshot| {
                    one.name == name && one.resource_name.eq_ignore_ascii_case(resource)
                };
                found.iter().find(is).cloned()
            };
            let all: Vec<_> = names.iter().map(|resource| of(resource)).collect();
            Ok::<_, Failure>(There::of(&all))
        };
        let mut trouble = None;
        if look().await? == There::None {
            let made = match names.as_slice() {
                [one] => linstor.create_snapshot(one, &name).await,
                all => linstor.create_snapshots(all, &name).await,
            };
            trouble = made.err().filter(|trouble| !linstor::is_taken(trouble));
        }
        let mut there = look().await?;
        // Another attempt may be at it still: what is half there is taken away once it stays so.
        let end = Instant::now() + site.settings.settle.0 / 10;
        while there == There::Some && Instant::now() < end {
            site.breathe(context, "waiting for the snapshots of LINSTOR").await?;
            there = look().await?;
        }
        let (code, message) = match there {
            There::All => {
                for (volume, resource) in &resources {
                    let details = json!({ "resource": resource, "name": name });
                    record(context, set.provider, volume).present(details).await?;
                }
                return Ok(resources);
            }
            // A set with a hole protects nobody.
            There::Some => {
                for resource in &names {
                    linstor.delete_snapshot(resource, &name).await?;
                }
                ("snapshot_incomplete", "only some nodes or disks have the snapshot; it was removed")
            }
            There::None => ("not_seen", "LINSTOR says that it made the snapshots, and does not show them"),
        };
        Err(trouble.map_or_else(|| Failure::retryable(code, message), Failure::from))
    }

    async fn by_machine(&self, context: &Context, set: &Set) -> Result<BTreeMap<String, String>, Failure> {
        let (site, name) = (&self.0, name_of(context.run()));
        let vm = set.vm.as_deref().ok_or_else(|| {
            Failure::permanent("no_vm", "a snapshot of a machine needs the machine").not_applied()
        })?;
        let record = record(context, set.provider, vm);
        record.planned().await?;
        let mut saved: Saved = context.saved()?.unwrap_or_default();
        let look = || async {
            let found = site.cloudstack.list_vm_snapshots(vm).await?;
            Ok(match found.into_iter().find(|one| one.displayname.as_deref() == Some(name.as_str())) {
                None => Found::Todo,
                Some(one) => match one.state.as_deref() {
                    Some("Ready") => Found::Done(one.id),
                    Some("Error") => {
                        let message = format!("the snapshot {name} of the machine failed");
                        return Err(Failure::permanent("snapshot_failed", message));
                    }
                    Some("Removed") => Found::Todo,
                    state => Found::Moving(state.unwrap_or("in no known state").to_owned()),
                },
            })
        };
        let order = CreateVmSnapshot {
            virtualmachineid: vm.to_owned(),
            name: name.clone(),
            ..CreateVmSnapshot::default()
        };
        let call = |job| site.cloudstack.create_vm_snapshot(&order, Some(job));
        let what = format!("taking a snapshot of the machine {vm}");
        let id = site.bring_about(context, &mut saved, &what, look, call).await?;
        record.present(json!({ "id": id, "vm": vm })).await?;
        Ok(BTreeMap::from([(vm.to_owned(), id)]))
    }
}

fn is_failed(snapshot: &Snapshot) -> bool {
    snapshot.state.as_deref() == Some("Error")
}

/// Of the snapshots of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    None,
    Some,
    All,
}

impl There {
    fn of(all: &[Option<linstor::Snapshot>]) -> Self {
        if all.iter().all(|one| one.as_ref().is_some_and(linstor::Snapshot::is_whole)) {
            Self::All
        } else if all.iter().all(Option::is_none) {
            Self::None
        } else {
            Self::Some
        }
    }
}
