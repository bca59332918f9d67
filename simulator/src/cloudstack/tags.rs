//! Tags of VMs, volumes, snapshots, VM snapshots and networks.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use super::jobs::{Begun, End, Job};
use super::request::Asked;
use crate::world::State;
use crate::world::moves::Refusal;

type Result<T> = std::result::Result<T, Refusal>;

/// The tags of a thing that is there.
pub fn of<'a>(state: &'a mut State, kind: &str, id: Uuid) -> Result<&'a mut BTreeMap<String, String>> {
    Ok(match kind.to_lowercase().as_str() {
        "uservm" | "virtualmachine" => &mut state.vm_mut(id)?.tags,
        "volume" => &mut state.volume_mut(id)?.tags,
        "snapshot" => &mut state.snapshot_mut(id)?.tags,
        "vmsnapshot" => &mut state.vm_snapshot_mut(id)?.tags,
        "network" => {
            let network = state.networks.get_mut(&id);
            &mut network
                .ok_or_else(|| Refusal::code(431, format!("Unable to find resource by id {id}")))?
                .tags
        }
        other => return Err(Refusal::param(format!("Invalid resource type {other}"))),
    })
}

/// `createTags`, `deleteTags`: the resources must be there.
pub fn begin(state: &mut State, asked: &Asked) -> Result<Begun> {
    let kind = asked.params.need("resourcetype")?;
    asked.params.need("resourceids")?;
    for id in asked.params.ids("resourceids")? {
        of(state, kind, id)?;
    }
    if asked.command == "createTags" && asked.params.pairs("tags").is_empty() {
        return Err(Refusal::code(
            431,
            "Unable to execute API command createtags due to missing parameter tags",
        ));
    }
    Ok(Begun::default())
}

/// The job that makes tags: all or none. A key that is there is refused by the database.
pub async fn create(job: Job) -> std::result::Result<Value, End> {
    job.effect(|state| {
        let params = &job.asked.params;
        let (kind, ids, tags) =
            (params.need("resourcetype")?, params.ids("resourceids")?, params.pairs("tags"));
        for id in &ids {
            let there = of(state, kind, *id)?;
            if let Some(key) = tags.keys().find(|key| there.contains_key(*key)) {
                return Err(Refusal::internal(format!("tag {key} already on {kind} with id {id}")));
            }
        }
        for id in ids {
            let there = of(state, kind, id)?;
            there.extend(tags.iter().map(|(key, value)| (key.clone(), value.clone().unwrap_or_default())));
            state.applied("createTags", id);
        }
        Ok(())
    })
    .await?;
    Ok(json!({ "success": true }))
}

/// The job that removes tags: those named, or all.
pub async fn delete(job: Job) -> std::result::Result<Value, End> {
    job.effect(|state| {
        let params = &job.asked.params;
        let (kind, ids, tags) =
            (params.need("resourcetype")?, params.ids("resourceids")?, params.pairs("tags"));
        let mut gone = 0;
        for id in ids {
            of(state, kind, id)?.retain(|key, value| {
                let named = tags.is_empty()
                    || tags.get(key).is_some_and(|wish| wish.as_ref().is_none_or(|wish| wish == value));
                gone += usize::from(named);
                !named
            });
            state.applied("deleteTags", id);
        }
        if gone == 0 {
            return Err(Refusal::param("Unable to find any tags which can be deleted"));
        }
        Ok(())
    })
    .await?;
    Ok(json!({ "success": true }))
}
