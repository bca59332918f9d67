//! A run as a page that a person can work from by hand, if there is nothing else left.

use std::fmt::Write;

use serde_json::Value;

use crate::Time;
use crate::action::Fate;
use crate::event::{CourseId, Direction};
use crate::names::StepIx;
use crate::plan::{Source, Template};
use crate::state::{CourseAt, Phase, State};

/// Writes the page, in Markdown: what is done, what is not known, what is left to do, and how to undo it.
pub fn runbook(state: &State, now: Time) -> String {
    let mut page = String::new();
    let plan = state.plan();
    let (done, all) = state.progress();
    let _ = writeln!(
        page,
        "# {}: run {}\n",
        plan.spec().title.as_deref().unwrap_or(plan.workflow()),
        state.run()
    );
    let _ = writeln!(page, "Written at {now}, from {} events of its journal.\n", state.seq());
    let _ = writeln!(page, "| | |\n|---|---|\n| status | {} |", state.status().as_str());
    let _ = writeln!(page, "| workflow | {} |", plan.workflow());
    let _ = writeln!(page, "| plan | {} |", plan.hash());
    let _ = writeln!(page, "| steps | {done} of {all} {} |", if back(state) { "undone" } else { "done" });
    if let Some(at) = state.at() {
        let _ = writeln!(page, "| last event | {at} |");
    }
    if let Some(waits) = state.waits_for() {
        let _ = writeln!(page, "| waits for | {waits} |");
    }
    unknown(state, &mut page);
    made(state, &mut page);
    finished(state, &mut page);
    ahead(state, &mut page);
    behind(state, &mut page);
    page
}

fn back(state: &State) -> bool {
    state.phase() == Phase::RollingBack
}

/// What has to be looked at before anything else: it may have happened.
fn unknown(state: &State, page: &mut String) {
    let open: Vec<_> = courses(state)
        .filter(|id| matches!(state.course(*id).at, CourseAt::Running | CourseAt::InDoubt { .. }))
        .collect();
    if open.is_empty() {
        return;
    }
    let _ = writeln!(
        page,
        "\n## First look at these: they began, and nobody knows whether they had their effect\n"
    );
    for id in open {
        let course = state.course(id);
        let key = crate::idempotency_key(
            state.run(),
            &state.plan().step(id.step).name,
            id.direction,
            course.generation,
        );
        let _ = writeln!(page, "- {}: attempt {}, idempotency key {key}", name(state, id), course.attempts);
        value(page, "input", course.input.as_ref().map(|input| input.value()));
        value(page, "saved", course.checkpoint.as_ref().map(|saved| saved.value()));
    }
}

fn made(state: &State, page: &mut String) {
    let mut first = true;
    for one in state.resources() {
        if std::mem::take(&mut first) {
            let _ = writeln!(
                page,
                "\n## What it made, moved, or was about to\n\n| what | by | is |\n|---|---|---|"
            );
        }
        let fate = match one.fate {
            Fate::Planned => "planned: look whether it is there",
            Fate::Present => "there",
            Fate::Gone => "gone",
            Fate::Kept => "there, and stays",
            Fate::Unproven => "not known: look whether it is there",
        };
        let details = one.details.as_ref().map_or(String::new(), |details| format!(" `{details}`"));
        let _ = writeln!(page, "| {} {}{details} | {} | {fate} |", one.kind, one.name, one.step);
    }
}

fn finished(state: &State, page: &mut String) {
    let done: Vec<_> = courses(state).filter(|id| state.course(*id).at.is_done()).collect();
    let _ = writeln!(page, "\n## Done\n");
    if done.is_empty() {
        let _ = writeln!(page, "Nothing.");
    }
    for id in done {
        let course = state.course(id);
        let by_hand = matches!(course.at, CourseAt::Skipped { .. });
        let _ =
            writeln!(page, "- {}{}", name(state, id), if by_hand { " (an operator says so)" } else { "" });
        value(page, "input", course.input.as_ref().map(|input| input.value()));
        value(page, "output", course.output().map(|output| output.value()));
    }
}

fn ahead(state: &State, page: &mut String) {
    if !matches!(state.phase(), Phase::Forward | Phase::Committing) {
        return;
    }
    let _ = writeln!(page, "\n## Left to do, in this order\n");
    let mut n = 0;
    for &ix in state.plan().order() {
        let step = state.plan().step(ix);
        let id = CourseId::forward(ix);
        if state.settled(ix) {
            continue;
        }
        n += 1;
        let when = if step.finalize { ", once it is committed" } else { "" };
        let _ = writeln!(page, "{n}. {}: activity {}{when}", name(state, id), step.forward.activity);
        if let CourseAt::Failed { error } = &state.course(id).at {
            let _ = writeln!(page, "   - failed: {}", error.message);
        }
        if let CourseAt::Held { why } = &state.course(id).at {
            let _ = writeln!(page, "   - held: {why}");
        }
        for proof in &step.requires {
            let of = &state.plan().step(proof.step).name;
            let _ = writeln!(page, "   - only if \"{of}{}\" is {}", proof.at, proof.equals);
        }
        let input = match &state.course(id).input {
            Some(input) => input.value(),
            None => filled(state, ix, &step.forward.input),
        };
        value(page, "input", Some(input));
    }
    if n == 0 {
        let _ = writeln!(page, "Nothing.");
    }
}

fn behind(state: &State, page: &mut String) {
    if matches!(state.phase(), Phase::Committing | Phase::Over(_)) {
        return;
    }
    let _ = writeln!(page, "\n## To undo it, in this order\n");
    let mut n = 0;
    for &ix in state.plan().order().iter().rev() {
        let step = state.plan().step(ix);
        let id = CourseId::undo(ix);
        let Some(undo) = &step.undo else { continue };
        if !state.course(CourseId::forward(ix)).may_be_applied || state.course(id).at.is_done() {
            continue;
        }
        n += 1;
        let _ = writeln!(page, "{n}. {}: activity {}", name(state, id), undo.activity);
        if let CourseAt::Failed { error } = &state.course(id).at {
            let _ = writeln!(page, "   - failed: {}", error.message);
        }
        let input = match &state.course(id).input {
            Some(input) => input.value(),
            None => filled(state, ix, &undo.input),
        };
        value(page, "input", Some(input));
        value(
            page,
            "saved by the step",
            state.course(CourseId::forward(ix)).checkpoint.as_ref().map(|c| c.value()),
        );
    }
    if n == 0 {
        let _ = writeln!(page, "Nothing.");
    }
}

/// An input with what is known filled in, and what is not said as such.
fn filled(state: &State, own: StepIx, template: &Template) -> Value {
    let mut value = template.written().clone();
    for bound in template.bound() {
        let from = match bound.source {
            Source::Step(ix) => ix,
            Source::Own => own,
        };
        let course = state.course(CourseId::forward(from));
        let known = course.output().and_then(|output| output.value().pointer(&bound.path).cloned());
        let said = known.unwrap_or_else(|| {
            Value::String(format!("<what {} gives at \"{}\">", state.plan().step(from).name, bound.path))
        });
        if let Some(place) = value.pointer_mut(&bound.at) {
            *place = said;
        }
    }
    value
}

fn courses(state: &State) -> impl Iterator<Item = CourseId> {
    let order = state.plan().order();
    let forward = order.iter().copied().map(CourseId::forward);
    forward.chain(order.iter().rev().copied().map(CourseId::undo))
}

fn name(state: &State, id: CourseId) -> String {
    let step = state.plan().step(id.step);
    let title = step.title.as_ref().map_or(String::new(), |title| format!(" ({title})"));
    match id.direction {
        Direction::Forward => format!("**{}**{title}", step.name),
        Direction::Undo => format!("undo of **{}**{title}", step.name),
    }
}

fn value(page: &mut String, what: &str, value: Option<Value>) {
    match value {
        None | Some(Value::Null) => {}
        Some(Value::Object(map)) if map.is_empty() => {}
        Some(value) => {
            let _ = writeln!(page, "   - {what}: `{value}`");
        }
    }
}
