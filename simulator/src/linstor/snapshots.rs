//! Taking a snapshot, going back to one, and deleting one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::codes::{
    self, CREATE, CREATED, DELETE, DELETED, ERROR, INFO, MODIFIED, MODIFY, SUCCESS, WARN, WARN_NOT_FOUND,
    entry, with,
};
use super::views::no_definition;
use super::{Placed, disks_on, report, used_on, volume_of};
use crate::answer::Answer;
use crate::faults::Fault;
use crate::rest::Call;
use crate::world::table::Tie;
use crate::world::things::SnapshotBy;
use crate::world::{Cause, State, World};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Wish {
    name: String,
    resource_name: String,
    nodes: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Several {
    snapshots: Vec<Wish>,
}

/// One that is being taken.
#[derive(Clone)]
struct Taken {
    id: Uuid,
    wish: Wish,
    volume: Uuid,
}

pub async fn create_one(world: &World, call: &Call) -> Answer {
    let Ok(wish) = call.json::<Wish>() else { return codes::wrong(400, "Failed to parse the request") };
    let wish = Wish { resource_name: call.arg(0).to_owned(), ..wish };
    create(world, "POST /resource-definitions/{resource}/snapshots", vec![wish]).await
}

/// All of them at one moment, or none.
pub async fn create_several(world: &World, call: &Call) -> Answer {
    let Ok(several) = call.json::<Several>() else { return codes::wrong(400, "Failed to parse the request") };
    create(world, "POST /actions/snapshot/multi", several.snapshots).await
}

async fn create(world: &World, call: &str, wishes: Vec<Wish>) -> Answer {
    let about: Vec<&str> = wishes.iter().map(|wish| wish.resource_name.as_str()).collect();
    let cause = Cause::new("linstor", call, about.join(" "));
    let registered = world.change(cause.clone(), |state| register(state, &wishes));
    let taken = match registered {
        Ok(taken) => taken,
        Err(refusals) => return codes::list(201, refusals),
    };
    let ms = world.look(|state| state.settings.linstor.snapshot_ms);
    world.pause(Duration::from_millis(ms)).await;
    let entries = world.change(cause, |state| {
        // One change for all: no write comes between the first and the last of them.
        taken.iter().flat_map(|one| take(state, one)).collect()
    });
    codes::list(201, entries)
}

/// The names are taken from now on; a second call for one of them hears that it exists, whether it is done yet or not.
fn register(state: &mut State, wishes: &[Wish]) -> Result<Vec<Taken>, Vec<Value>> {
    let mut refusals = Vec::new();
    let mut volumes = Vec::new();
    for wish in wishes {
        let Some(volume) = volume_of(state, &wish.resource_name) else {
            refusals.push(no_definition(&wish.resource_name));
            continue;
        };
        state.asked_about_oma_root(volume);
        let offline = &state.settings.linstor.offline_nodes;
        let online = disks_on(state, volume).into_iter().any(|node| !offline.contains(&node));
        if !is_name(&wish.name) {
            let text = format!("The specified snapshot name '{}' is invalid.", wish.name);
            refusals.push(entry(ERROR, CREATE, codes::INVALID_SNAPSHOT_NAME, text));
        } else if find(state, volume, &wish.name).is_some() {
            refusals.push(exists(wish));
        } else if !online {
            let text = format!("No active diskful resource of '{}' is connected.", wish.resource_name);
            refusals.push(entry(ERROR, CREATE, codes::NOT_CONNECTED, text));
        } else if state.linstor.rolling.contains(&volume) {
            let text = format!("Resource '{}' is being rolled back.", wish.resource_name);
            refusals.push(entry(ERROR, CREATE, codes::ROLLBACK_IN_PROGRESS, text));
        }
        volumes.push((wish, volume));
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let register = |(wish, volume): (&Wish, Uuid)| {
        let id = state.new_snapshot(volume, &wish.name, SnapshotBy::Linstor, BTreeMap::new()).ok()?;
        if let Ok(row) = state.snapshot_mut(id) {
            row.state = "Creating".to_owned();
        }
        Some(Taken { id, wish: wish.clone(), volume })
    };
    Ok(volumes.into_iter().filter_map(register).collect())
}

/// Letters, digits, `-` and `_`, beginning with a letter or `_`; from 2 to 48 of them.
fn is_name(name: &str) -> bool {
    let mut letters = name.chars();
    let first = letters.next().is_some_and(|letter| letter.is_ascii_alphabetic() || letter == '_');
    first
        && (2..=48).contains(&name.len())
        && letters.all(|letter| letter.is_ascii_alphanumeric() || "-_".contains(letter))
}

fn exists(wish: &Wish) -> Value {
    let Wish { name, resource_name, .. } = wish;
    let text = format!(
        "A snapshot definition with the name '{name}' already exists in resource definition '{resource_name}'."
    );
    let more = json!({
        "cause": "A snapshot with the same name already exists", "correction": "Use another name, or delete the snapshot",
        "obj_refs": {"RscDfn": resource_name, "Snapshot": name},
    });
    with(entry(ERROR, CREATE, codes::SNAPSHOT_DEFINITION_EXISTS, text), more)
}

/// On each node in turn. One that fails spoils the whole; one that is away is left out.
fn take(state: &mut State, taken: &Taken) -> Vec<Value> {
    let Taken { id, wish, volume } = taken;
    let settings = state.settings.linstor.clone();
    let refs = json!({"obj_refs": {"RscDfn": wish.resource_name, "Snapshot": wish.name}});
    let registered = format!("New snapshot '{}' of resource '{}' registered.", wish.name, wish.resource_name);
    let mut entries = vec![with(entry(SUCCESS, CREATE, CREATED, registered), refs)];
    let mut placed = Placed::default();
    let wanted = disks_on(state, *volume)
        .into_iter()
        .filter(|node| wish.nodes.is_empty() || wish.nodes.contains(node));
    for node in wanted.collect::<Vec<_>>() {
        let what = format!("'[{}]' on '{node}'", wish.resource_name);
        if settings.offline_nodes.contains(&node) {
            let text = format!("No active connection to satellite '{node}': the snapshot is not taken there");
            entries.push(entry(WARN, CREATE, codes::NOT_CONNECTED, text));
        } else if settings.failing_nodes.contains(&node) {
            let text =
                format!("(Node: '{node}') Failed to create snapshot {} of {}", wish.name, wish.resource_name);
            let id = report(state, &node, &text);
            let more =
                json!({"error_report_ids": [id], "details": "Command 'lvcreate' returned with exitcode 5."});
            entries.push(with(entry(ERROR, CREATE, codes::UNKNOWN_ERROR, text), more));
            placed.failed_on.insert(node);
        } else {
            entries.push(entry(INFO, CREATE, MODIFIED, format!("Suspended IO of {what} for snapshot")));
            entries.push(entry(INFO, CREATE, CREATED, format!("Took snapshot of {what}")));
            entries.push(entry(INFO, CREATE, MODIFIED, format!("Resumed IO of {what} after snapshot")));
            placed.on.insert(node);
        }
    }
    let whole = placed.failed_on.is_empty() && !placed.on.is_empty();
    state.linstor.nodes.insert(*id, placed);
    if whole {
        let _ = state.capture(*id);
    } else if let Ok(row) = state.snapshot_mut(*id) {
        row.state = "Error".to_owned();
    }
    entries
}

/// A snapshot that is not there is gone already: a warning.
pub fn delete(world: &World, call: &Call, fault: Option<Fault>) -> Answer {
    let (resource, name) = (call.arg(0), call.arg(1));
    let cause = Cause::new("linstor", call.command("/v1"), format!("{resource} {name}"));
    let entries = world.change(cause.clone(), |state| {
        let Some(volume) = volume_of(state, resource) else {
            return Err(vec![entry(
                WARN,
                DELETE,
                WARN_NOT_FOUND,
                format!("Resource definition '{resource}' not found."),
            )]);
        };
        state.asked_about_oma_root(volume);
        let Some(snapshot) = find(state, volume, name) else {
            let text = format!("Snapshot definition '{name}' of resource '{resource}' not found.");
            return Err(vec![entry(WARN, DELETE, WARN_NOT_FOUND, text)]);
        };
        let _ = state.delete_snapshot(snapshot);
        let text = format!("Snapshot definition '{name}' of resource '{resource}' deleted.");
        Ok((snapshot, vec![entry(SUCCESS, DELETE, DELETED, text)]))
    });
    match entries {
        Err(entries) => codes::list(200, entries),
        Ok((snapshot, entries)) => {
            if let Some(Fault::Reappears { ms }) = fault {
                reappear(world, cause, snapshot, ms);
            }
            codes::list(200, entries)
        }
    }
}

/// It was not deleted on a node that came back.
fn reappear(world: &World, cause: Cause, snapshot: Uuid, ms: u64) {
    world.change_after(ms, cause, move |state| {
        if let Some(row) = state.snapshots.get_mut(&snapshot) {
            (row.removed, row.state) = (None, "BackedUp".to_owned());
        }
    });
}

/// Refused while anybody uses the resource, and while any of its nodes is away.
pub async fn roll_back(world: &World, call: &Call) -> Answer {
    let (resource, name) = (call.arg(0), call.arg(1));
    let cause = Cause::new("linstor", call.command("/v1"), format!("{resource} {name}"));
    let begun = world.change(cause.clone(), |state| may_roll_back(state, resource, name));
    let (volume, snapshot) = match begun {
        Ok(found) => found,
        Err(refusal) => return codes::list(200, vec![refusal]),
    };
    let ms = world.look(|state| state.settings.linstor.rollback_ms);
    world.pause(Duration::from_millis(ms)).await;
    let entries = world.change(cause, |state| {
        state.linstor.rolling.remove(&volume);
        let mut entries =
            vec![entry(INFO, MODIFY, MODIFIED, format!("Deactivated resource '{resource}' for rollback"))];
        if let Err(refusal) = state.revert(snapshot) {
            entries.push(entry(ERROR, MODIFY, codes::UNKNOWN_ERROR, refusal.to_string()));
            return entries;
        }
        if state.settings.linstor.zfs {
            lose_newer(state, volume, snapshot);
        }
        entries.push(entry(
            SUCCESS,
            MODIFY,
            MODIFIED,
            format!("Rolled back resource '{resource}' to snapshot '{name}'"),
        ));
        entries
    });
    codes::list(200, entries)
}

fn may_roll_back(state: &mut State, resource: &str, name: &str) -> Result<(Uuid, Uuid), Value> {
    let Some(id) = volume_of(state, resource) else { return Err(no_definition(resource)) };
    state.asked_about_oma_root(id);
    let Some(snapshot) = find(state, id, name) else {
        let text = format!("Snapshot definition '{name}' of resource '{resource}' not found.");
        return Err(entry(ERROR, MODIFY, codes::NO_SNAPSHOT_DEFINITION, text));
    };
    let users: BTreeSet<String> =
        state.volumes.get(&id).map(|volume| used_on(state, volume)).unwrap_or_default();
    if let Some(node) = users.first() {
        let text = format!("Resource '{resource}' on node '{node}' is still in use.");
        let more = json!({"cause": "Resource is mounted/in use.", "correction": format!("Un-mount resource '{resource}' on the node '{node}'.")});
        return Err(with(entry(ERROR, MODIFY, codes::IN_USE, text), more));
    }
    let offline = &state.settings.linstor.offline_nodes;
    if let Some(node) = disks_on(state, id).into_iter().find(|node| offline.contains(node)) {
        return Err(entry(
            ERROR,
            MODIFY,
            codes::NOT_CONNECTED,
            format!("Node '{node}' is not connected; cannot roll back."),
        ));
    }
    if state.snapshots.get(&snapshot).is_some_and(|row| row.state != "BackedUp") {
        let text =
            format!("Unable to roll back to snapshot '{name}': it is not successful on all of its nodes.");
        return Err(entry(ERROR, MODIFY, codes::SNAPSHOT_NOT_UP_TO_DATE, text));
    }
    if !state.linstor.rolling.insert(id) {
        let text = format!("A rollback of resource '{resource}' is in progress already.");
        return Err(entry(ERROR, MODIFY, codes::ROLLBACK_IN_PROGRESS, text));
    }
    Ok((id, snapshot))
}

fn lose_newer(state: &mut State, volume: Uuid, than: Uuid) {
    let Some(taken) = state.snapshots.get(&than).map(|row| row.created) else { return };
    let rows = state.snapshots.tied(&Tie::Volume(volume)).filter(|row| row.by == SnapshotBy::Linstor);
    let newer: Vec<Uuid> =
        rows.filter(|row| row.removed.is_none() && row.created > taken).map(|row| row.id).collect();
    for snapshot in newer {
        let _ = state.delete_snapshot(snapshot);
    }
}

fn find(state: &State, volume: Uuid, name: &str) -> Option<Uuid> {
    let mut rows = state.snapshots.tied(&Tie::Volume(volume)).filter(|row| row.by == SnapshotBy::Linstor);
    rows.find(|row| row.removed.is_none() && row.name == name).map(|row| row.id)
}
