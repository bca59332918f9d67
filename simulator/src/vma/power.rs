//! The power of the sources: asked for, and what comes of it.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Credentials, Refused, find, power_word, wrong};
use crate::answer::Answer;
use crate::faults::Fault;
use crate::rest::Call;
use crate::world::things::{DiskRef, Power, Source};
use crate::world::{Cause, State, World};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Request {
    #[serde(flatten)]
    credentials: Credentials,
    force: bool,
    wait_for_tools: bool,
}

/// What a power-off comes to, before anybody waited.
enum Off {
    Already,
    Hard,
    Asked,
}

/// The graceful way answers success when its five seconds are over, whatever the guest does with them.
pub async fn off(world: &World, call: &Call, fault: Option<Fault>) -> Answer {
    let Ok(request) = call.json::<Request>() else { return wrong(400, "Invalid request body") };
    let id = call.arg(0);
    let begun = Utc::now();
    let cause = Cause::new("vma", call.command("/api/v1"), id);
    let decided = world.change(cause.clone(), |state| -> Result<_, Refused> {
        request.credentials.check(state)?;
        let source = find(state, id)?;
        let before = power_word(source);
        let tools = matches!(source.tools.as_str(), "toolsOk" | "toolsOld");
        let how = match source.power {
            Power::Off => Off::Already,
            // It cannot be asked.
            Power::Suspended => Off::Hard,
            Power::On if request.force || !tools => Off::Hard,
            Power::On => Off::Asked,
        };
        state.applied("power-off call", id);
        Ok((before, how))
    });
    let (before, how) = match decided {
        Ok(decided) => decided,
        Err((status, text)) => return wrong(status, &text),
    };
    let method = match how {
        Off::Already => "already-off",
        Off::Hard => {
            pause(world, |state| state.settings.vma.power_ms).await;
            switch_off(world, cause, id);
            "forced"
        }
        Off::Asked => {
            if fault != Some(Fault::StopsOnlyInName) {
                ask(world, cause, id);
            }
            pause(world, |state| state.settings.vma.early_ms).await;
            "graceful"
        }
    };
    let message = match how {
        Off::Already => "VM is already powered off",
        Off::Hard => "VM powered off successfully",
        Off::Asked => "VM shutdown initiated successfully",
    };
    world.look(|state| response(state, id, "power-off", before, Some(method), begun, message))
}

pub async fn on(world: &World, call: &Call) -> Answer {
    let Ok(request) = call.json::<Request>() else { return wrong(400, "Invalid request body") };
    let id = call.arg(0);
    let begun = Utc::now();
    let cause = Cause::new("vma", call.command("/api/v1"), id);
    let found = world.look(|state| -> Result<_, Refused> {
        request.credentials.check(state)?;
        find(state, id).map(power_word)
    });
    let before = match found {
        Ok(before) => before,
        Err((status, text)) => return wrong(status, &text),
    };
    pause(world, |state| state.settings.vma.power_ms).await;
    world.change(cause, |state| {
        let _ = state.source_power(id, Power::On);
    });
    if request.wait_for_tools {
        pause(world, |state| state.settings.vma.tools_ms.min(60_000)).await;
    }
    world.look(|state| response(state, id, "power-on", before, None, begun, "VM powered on successfully"))
}

pub fn state(world: &World, call: &Call) -> Answer {
    let id = call.arg(0);
    let told = world.look(|state| -> Result<(Value, bool), Refused> {
        Credentials::asked(call).check(state)?;
        let source = find(state, id)?;
        let unknown = &state.settings.vma.power_unknown;
        let known = !unknown.contains(&source.id) && !unknown.contains(&source.name);
        let word = if known { power_word(source) } else { "unknown" };
        let news = known && source.power == Power::Off && !state.seen_off.contains(&source.id);
        let body =
            json!({"vm_id": id, "power_state": word, "tools_status": tools(source), "timestamp": Utc::now()});
        Ok((body, news))
    });
    let (body, news) = match told {
        Ok(told) => told,
        Err((status, text)) => return wrong(status, &text),
    };
    if news {
        world.change(Cause::new("vma", call.command("/api/v1"), id), |state| {
            let off = find(state, id).ok().filter(|source| source.power == Power::Off);
            if let Some(source) = off.map(|source| source.id.clone()) {
                state.seen_off.insert(source);
            }
        });
    }
    Answer::json(200, &body)
}

fn response(
    state: &State,
    id: &str,
    operation: &str,
    before: &str,
    method: Option<&str>,
    begun: DateTime<Utc>,
    message: &str,
) -> Answer {
    let source = match find(state, id) {
        Ok(source) => source,
        Err((status, text)) => return wrong(status, &text),
    };
    let seconds = (Utc::now() - begun).num_seconds();
    let body: Value = json!({
        "success": true, "vm_id": id, "previous_state": before, "new_state": power_word(source), "operation": operation,
        "shutdown_method": method.unwrap_or_default(), "tools_status": tools(source), "duration_seconds": seconds,
        "timestamp": Utc::now(), "message": message,
    });
    Answer::json(200, &body)
}

/// Of a guest that does not run no tools run.
fn tools(source: &Source) -> &str {
    match (source.power, source.tools.as_str()) {
        (Power::Off | Power::Suspended, tools) if tools != "toolsNotInstalled" => "toolsNotRunning",
        (_, tools) => tools,
    }
}

/// The guest is asked to go down. One that was asked already has its time; one at a prompt takes all the time there is.
fn ask(world: &World, cause: Cause, id: &str) {
    let due = world.change(cause, |state| {
        let settings = &state.settings;
        let takes = Duration::from_millis(settings.vma.shutdown_ms).mul_f64(settings.pace.max(0.0));
        let due = Utc::now() + TimeDelta::from_std(takes).unwrap_or_default();
        let hanging = settings.vma.hangs_at_prompt.clone();
        let source = state.sources.get_mut(id)?;
        let hangs = hanging.contains(&source.id) || hanging.contains(&source.name);
        if hangs || source.going_down.is_some() {
            return None;
        }
        source.going_down = Some(due);
        Some(due)
    });
    if let Some(due) = due {
        goes_down(world, id.to_owned(), due);
    }
}

/// The guest writes the last of what it had in memory, and is off.
pub fn goes_down(world: &World, source: String, due: DateTime<Utc>) {
    let later = world.clone();
    world.spawn(async move {
        tokio::time::sleep((due - Utc::now()).to_std().unwrap_or_default()).await;
        let asked = later
            .look(|state| state.sources.get(&source).is_some_and(|source| source.going_down == Some(due)));
        if !asked {
            return;
        }
        later.change(Cause::new("vma", "guest shutdown", &source), |state| {
            let disks = state.sources.get(&source).map(|source| source.disks.clone()).unwrap_or_default();
            for disk in disks {
                state.source_writes(&DiskRef { source: source.clone(), key: disk.key });
            }
        });
        switch_off(&later, Cause::new("vma", "guest shutdown", &source), &source);
    });
}

/// It is off, unless something brings it back.
fn switch_off(world: &World, cause: Cause, id: &str) {
    let back = world.change(cause, |state| {
        if state.sources.get(id).is_some_and(|source| source.power == Power::Suspended) {
            state.broke(
                "memory",
                format!("{id} is suspended and switched off: what it had in memory is lost"),
            );
        }
        let _ = state.source_power(id, Power::Off);
        let name = state.sources.get(id).map(|source| source.name.clone()).unwrap_or_default();
        let comes_back = &mut state.settings.vma.comes_back_after_ms;
        comes_back.remove(id).or_else(|| comes_back.remove(&name))
    });
    let Some(ms) = back else { return };
    let (later, id) = (world.clone(), id.to_owned());
    world.spawn(async move {
        later.pause(Duration::from_millis(ms)).await;
        later.change(Cause::new("vma", "high availability", &id), |state| {
            let _ = state.source_power(&id, Power::On);
        });
    });
}

async fn pause(world: &World, ms: impl FnOnce(&State) -> u64) {
    let ms = world.look(ms);
    world.pause(Duration::from_millis(ms)).await;
}
