//! From what is asked of a run to the events that are journaled: the asking and what follows from it, or why not.

use crate::Time;
use crate::action::{Action, Fate, RollBack, Verb, limits};
use crate::decide::turning;
use crate::event::{ActivityError, Applied, CourseId, Direction, Event, Outcome, StepEvent};
use crate::json::Json;
use crate::names::StepIx;
use crate::plan::{Fit, Kind, LITERAL, Step};
use crate::state::{CourseAt, Phase, State, Status};

/// Decides about an action: the events that it comes to, or why it is refused. The first of them is the action.
///
/// An action that the journal knows was answered before: whoever asks again gets that answer, and nothing is journaled.
/// One that has a flaw is turned away where it comes in: it may not fit into a journal at all.
pub fn judge_action(state: &State, action: &Action, now: Time) -> Result<Vec<Event>, String> {
    if let Some(flaw) = action.flaw() {
        return Err(flaw);
    }
    if state.knows(action.id) {
        return Err("it was granted or refused before".into());
    }
    let step = action.verb.step().map(|(name, _)| found(state, name)).transpose()?;
    if let Phase::Over(outcome) = state.phase() {
        return Err(format!("the run is over: {}", over(outcome)));
    }
    unmoved(state, action, step)?;
    if state.quarantined() && !matches!(action.verb, Verb::Resume | Verb::Close { .. } | Verb::Account { .. })
    {
        return Err("the run is left alone; its last events say why. Resume it, or close it, first".into());
    }
    let mut events = vec![Event::Acted(Box::new(action.clone()))];
    events.extend(consequences(state, action, now)?);
    Ok(events)
}

/// How a refusal ends whose only reason is that what the asker saw is no longer so.
pub const MOVED: &str = "; look again";

fn found(state: &State, name: &str) -> Result<StepIx, String> {
    state.plan().find(name).ok_or_else(|| format!("the plan has no step \"{name}\""))
}

fn over(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => "it succeeded",
        Outcome::Committed => "it is committed",
        Outcome::RolledBack => "it is rolled back",
        Outcome::Closed => "somebody closed it",
    }
}

/// Of two who act on what they see at the same time, one wins, and the other is told by whom.
fn unmoved(state: &State, action: &Action, step: Option<StepIx>) -> Result<(), String> {
    let Some(seen) = action.seen else { return Ok(()) };
    let what = step.map_or("the run".into(), |ix| state.plan().step(ix).name.to_string());
    if let Some((seq, who, verb)) = state.last_action(step)
        && seq > seen
    {
        return Err(format!("{who} has asked for \"{verb}\" of {what} since (event {seq}){MOVED}"));
    }
    let moved = state.moved(step);
    if moved > seen {
        return Err(format!("{what} has moved on since (event {moved}){MOVED}"));
    }
    Ok(())
}

fn consequences(state: &State, action: &Action, now: Time) -> Result<Vec<Event>, String> {
    let who = &action.who;
    // What is looked at has to stay as it is meanwhile.
    if matches!(
        action.verb,
        Verb::Retry { .. } | Verb::Skip { .. } | Verb::UndoStep { .. } | Verb::RollBack(_) | Verb::Commit
    ) && state.check().is_some()
    {
        return Err("the world is being looked at; ask again once that is done".into());
    }
    match &action.verb {
        Verb::Retry { step, undo, input, in_doubt } => retry(state, step, *undo, input.as_ref(), *in_doubt),
        Verb::Skip { step, undo, output } => skip(state, step, *undo, output),
        Verb::UndoStep { step, cascade } => undo_step(state, step, *cascade),
        Verb::Override { step } => waive(state, step, who),
        Verb::Approve { step, right, plan } => {
            votes(state, step, right, who)?;
            if plan != state.plan().hash() {
                return Err(format!(
                    "what was looked at has the hash {plan}; the run's plan has {}",
                    state.plan().hash()
                ));
            }
            Ok(Vec::new())
        }
        Verb::Reject { step, right } => votes(state, step, right, who).map(|()| Vec::new()),
        Verb::Signal { name, payload } => signal(state, name, payload).map(|()| Vec::new()),
        Verb::Pause => match state.paused() {
            Some(by) => Err(format!("{by} has paused it already")),
            None if state.phase() == Phase::Succeeded => Err("all its steps are done".into()),
            None => Ok(Vec::new()),
        },
        Verb::Resume if state.paused().is_some() && state.needs_check(now) => {
            let because = format!("{who} resumes it after a long time");
            Ok(vec![Event::Checking { then: None, because }])
        }
        Verb::Resume if state.paused().is_some() || state.quarantined() => Ok(Vec::new()),
        Verb::Resume => Err("nobody has paused it".into()),
        Verb::RollBack(how) => roll_back(state, action, how, now),
        Verb::Commit => match state.phase() {
            Phase::Succeeded => Ok(vec![Event::Committing { because: format!("{who} committed it") }]),
            Phase::Committing => Err("it is being committed already".into()),
            Phase::RollingBack => Err("it is rolling back".into()),
            _ => Err("not all its steps are done; what is committed cannot be undone any more".into()),
        },
        Verb::Close { .. } => match state.status() {
            Status::Stuck | Status::Quarantined if state.running() > 0 => {
                Err("an attempt is in flight; wait for its end".into())
            }
            Status::Stuck | Status::Quarantined => Ok(vec![Event::Finished { outcome: Outcome::Closed }]),
            _ => Err("only a run that is stuck or left alone is closed; roll it back first".into()),
        },
        Verb::Ended { step, run, outcome } => ended(state, step, *run, *outcome),
        Verb::Account { step, kind, name, became } => account(state, step, kind, name, *became),
    }
}

/// An event about a step's present beginning.
fn about(state: &State, id: CourseId, what: StepEvent) -> Event {
    let course = state.course(id);
    let attempt = if matches!(what, StepEvent::Resource { .. }) { 0 } else { course.attempts };
    Event::Step { course: id, generation: course.generation, attempt, what }
}

fn retry(
    state: &State,
    step: &str,
    undo: bool,
    input: Option<&serde_json::Value>,
    in_doubt: bool,
) -> Result<Vec<Event>, String> {
    let ix = found(state, step)?;
    let id = if undo { CourseId::undo(ix) } else { CourseId::forward(ix) };
    let course = state.course(id);
    if undo && state.plan().step(ix).undo.is_none() {
        return Err(format!("{step} has nothing to undo"));
    }
    if !undo && !matches!(state.phase(), Phase::Forward | Phase::Committing) {
        return Err("the run does not go forward: a rollback begins no step anew".into());
    }
    let anew = || {
        let what = StepEvent::Retried { input: input.map(Json::of) };
        vec![Event::Step { course: id, generation: course.generation + 1, attempt: 0, what }]
    };
    let sooner = || vec![about(state, id, StepEvent::Hastened)];
    if !undo && state.recalled(ix) {
        return Err(format!("{step} is being undone"));
    }
    if !undo && state.settled(ix) && !state.may_restart(ix) {
        return Err(format!("{step} is done, and others have gone on from it{}", by_whom(state, ix)));
    }
    if let Some(input) = input.filter(|_| !undo) {
        keeps_its_words(state.plan().step(ix), input)?;
    }
    let doubtful = !undo && course.doubtful_since.is_some() && course.attempts > 0;
    let unsure = || {
        format!(
            "attempt {} of {step} may have had its effect. Retry it as it is, and the world is asked first; or say \"in_doubt\": true",
            course.attempts
        )
    };
    match &course.at {
        CourseAt::BackingOff { .. } if input.is_none() => Ok(sooner()),
        CourseAt::InDoubt { .. } if !undo && input.is_none() && !in_doubt => Ok(sooner()),
        CourseAt::Held { .. } | CourseAt::Failed { .. }
            if doubtful && input.is_none() && !in_doubt && state.is_proven(ix) =>
        {
            Ok(sooner())
        }
        CourseAt::Held { .. }
        | CourseAt::Failed { .. }
        | CourseAt::BackingOff { .. }
        | CourseAt::InDoubt { .. }
            if doubtful && !in_doubt =>
        {
            Err(unsure())
        }
        CourseAt::Held { .. } | CourseAt::Failed { .. } | CourseAt::BackingOff { .. } => Ok(anew()),
        CourseAt::InDoubt { .. } if !undo => Ok(anew()),
        CourseAt::InDoubt { .. } => Err(format!("{step} is being undone already")),
        CourseAt::Running => Err(format!("an attempt of {step} is running{}", by_whom(state, ix))),
        CourseAt::Waiting(_) => Err(format!("{step} waits, and has not failed")),
        CourseAt::Untouched => Err(format!("{step} has not been tried yet")),
        CourseAt::Succeeded { .. } | CourseAt::Skipped { .. } if !undo && state.may_restart(ix) => Ok(anew()),
        CourseAt::Succeeded { .. } | CourseAt::Skipped { .. } => {
            Err(format!("{step} is done{}", by_whom(state, ix)))
        }
    }
}

/// Another input of a step that waits says for how long, never for whom: who may say what to a run stands in its plan.
fn keeps_its_words(step: &Step, input: &serde_json::Value) -> Result<(), String> {
    if step.kind == Kind::Call {
        return Ok(());
    }
    let planned = step.forward.input.written();
    match LITERAL.iter().find(|field| planned.pointer(field) != input.pointer(field)) {
        Some(field) => Err(format!("its input at \"{field}\" stands in the plan, and cannot be another")),
        None => Ok(()),
    }
}

fn by_whom(state: &State, ix: StepIx) -> String {
    state
        .last_action(Some(ix))
        .map_or(String::new(), |(seq, who, verb)| format!("; {who} asked for \"{verb}\" (event {seq})"))
}

fn skip(state: &State, step: &str, undo: bool, output: &serde_json::Value) -> Result<Vec<Event>, String> {
    let ix = found(state, step)?;
    let id = if undo { CourseId::undo(ix) } else { CourseId::forward(ix) };
    let declared = state.plan().step(ix);
    match &state.course(id).at {
        CourseAt::Running => return Err(format!("an attempt of {step} is running; wait for its end")),
        CourseAt::Waiting(wait) if wait.run.is_some() && !undo => {
            return Err(format!("{step} is a run, and under way; act on that run"));
        }
        CourseAt::Succeeded { .. } | CourseAt::Skipped { .. } => return Err(format!("{step} is done")),
        _ if !undo && state.settled(ix) => {
            return Err(format!("{step} failed, and the run went on without it"));
        }
        _ => {}
    }
    match id.direction {
        Direction::Undo if declared.undo.is_none() => return Err(format!("{step} has nothing to undo")),
        Direction::Undo if state.phase() != Phase::RollingBack && !state.recalled(ix) => {
            return Err("nothing is being undone".into());
        }
        Direction::Undo if !state.course(CourseId::forward(ix)).may_be_applied => {
            return Err(format!("{step} never had an effect, so there is nothing to undo"));
        }
        Direction::Undo if state.course(CourseId::forward(ix)).at == CourseAt::Running => {
            return Err(format!("an attempt of {step} is running; wait for its end"));
        }
        Direction::Forward if !matches!(state.phase(), Phase::Forward | Phase::Committing) => {
            return Err("the run does not go forward".into());
        }
        Direction::Forward if declared.finalize && state.phase() == Phase::Forward => {
            return Err(format!("{step} runs when the run is committed"));
        }
        Direction::Forward if state.recalled(ix) => return Err(format!("{step} is being undone")),
        _ => {}
    }
    Ok(vec![about(state, id, StepEvent::Skipped { output: Json::of(output) })])
}

fn undo_step(state: &State, step: &str, cascade: bool) -> Result<Vec<Event>, String> {
    let first = found(state, step)?;
    if state.phase() != Phase::Forward {
        return Err("single steps are undone while the run goes forward; roll back the run instead".into());
    }
    // Of a run that somebody has paused. What failed would be forgotten until the ground it stood on is there again.
    if let Some((failed, _)) = turning(state) {
        return Err(format!("{failed} failed, which turns the run round; retry it or skip it first"));
    }
    // Everything behind it that may be there, the step itself last.
    let plan = state.plan();
    let mut behind = vec![false; plan.len()];
    let mut all = Vec::new();
    for &ix in plan.order() {
        let follows = ix == first
            || plan.step(ix).after.iter().any(|before| behind.get(before.index()).copied().unwrap_or(false));
        if let Some(mark) = behind.get_mut(ix.index()) {
            *mark = follows;
        }
        if follows {
            all.push(ix);
        }
    }
    let mut events = Vec::new();
    let mut live = Vec::new();
    for ix in all.into_iter().rev() {
        let id = CourseId::forward(ix);
        let course = state.course(id);
        let name = &plan.step(ix).name;
        match &course.at {
            CourseAt::Running
            | CourseAt::Waiting(_)
            | CourseAt::InDoubt { .. }
            | CourseAt::BackingOff { .. } => {
                return Err(format!("{name} is under way; pause the run and wait for it"));
            }
            _ if state.recalled(ix) => return Err(format!("{name} is being undone already")),
            _ if ix == first && !course.may_be_applied => {
                return Err(format!("{name} never had an effect, so there is nothing to undo"));
            }
            _ if ix == first && plan.step(ix).undo.is_none() => return Err(format!("{name} has no undo")),
            _ if ix == first => {}
            _ if course.may_be_applied && plan.step(ix).undo.is_some() => live.push(name.to_string()),
            // What only looked or waited, or was skipped, or was gone on without, comes again when its turn comes: what it
            // found was found on ground that goes away.
            _ if state.settled(ix) => {}
            _ => continue,
        }
        events.push(about(state, id, StepEvent::Recalled));
    }
    if !cascade && !live.is_empty() {
        return Err(format!(
            "these came after it and would stand on nothing: {}. Say \"cascade\": true to undo them too",
            live.join(", ")
        ));
    }
    Ok(events)
}

fn waive(state: &State, step: &str, who: &str) -> Result<Vec<Event>, String> {
    let ix = found(state, step)?;
    let id = CourseId::forward(ix);
    goes_forward(state)?;
    if state.is_proven(ix) {
        return Err(format!("{step} lacks no proof"));
    }
    if !matches!(state.course(id).at, CourseAt::Held { .. }) || state.course(id).attempts > 0 {
        return Err(format!("{step} is not held for want of a proof"));
    }
    let before = state.overrides(ix);
    if before.iter().any(|other| other == who) {
        return Err(format!("{who} has said so already; it takes a second person"));
    }
    if before.is_empty() && !state.plan().spec().override_alone {
        return Ok(Vec::new());
    }
    Ok(vec![about(state, id, StepEvent::Waived)])
}

fn votes(state: &State, step: &str, right: &str, who: &str) -> Result<(), String> {
    let ix = found(state, step)?;
    goes_forward(state)?;
    if state.plan().step(ix).kind != Kind::Approve {
        return Err(format!("{step} does not wait for anybody to say yes"));
    }
    let CourseAt::Waiting(wait) = &state.course(CourseId::forward(ix)).at else {
        return Err(format!("{step} does not wait at present"));
    };
    match &wait.approval {
        Some((needed, _)) if needed != right => {
            return Err(format!("it takes the right \"{needed}\", not \"{right}\""));
        }
        _ => {}
    }
    if let Some(other) = state.rejected(ix) {
        return Err(format!("{other} said no already"));
    }
    if state.approvals(ix).iter().any(|other| other == who) {
        return Err(format!("{who} said yes already"));
    }
    Ok(())
}

fn goes_forward(state: &State) -> Result<(), String> {
    match state.phase() {
        Phase::Forward | Phase::Committing => Ok(()),
        _ => Err("the run does not go forward".into()),
    }
}

fn signal(state: &State, name: &str, payload: &serde_json::Value) -> Result<(), String> {
    let plan = state.plan();
    // After the last step only the commit reads signals, and what comes after it.
    let committer = plan.spec().commit.as_ref().and_then(|commit| commit.signal.as_deref());
    let finalizes = || plan.listeners(name).any(|(ix, _)| plan.step(ix).finalize);
    let read = match state.phase() {
        Phase::Forward => true,
        Phase::Succeeded => committer == Some(name) || finalizes(),
        Phase::Committing => finalizes(),
        Phase::RollingBack | Phase::Over(_) => false,
    };
    if !plan.signals().contains(&name) {
        let known = plan.signals().join(", ");
        let known = if known.is_empty() { "none".into() } else { known };
        return Err(format!("nothing in this run waits for a signal \"{name}\"; it knows: {known}"));
    }
    if !read {
        return Err(match state.phase() {
            Phase::Succeeded => "the run is over: it succeeded".into(),
            _ => "the run does not go forward any more: nothing reads this signal".into(),
        });
    }
    if state.signals().count() >= limits::SIGNALS {
        return Err(format!("{} signals wait to be read; no more are taken", limits::SIGNALS));
    }
    for (ix, schema) in plan.listeners(name) {
        let Some(schema) = schema else { continue };
        // The plan's check has compiled it once; if this release cannot, it is not the sender's fault.
        if let Some(wrong) = Fit::to(schema).and_then(|fit| fit.misfit(payload)) {
            return Err(format!("{} takes no such payload: {wrong}", plan.step(ix).name));
        }
    }
    Ok(())
}

fn roll_back(state: &State, action: &Action, how: &RollBack, now: Time) -> Result<Vec<Event>, String> {
    match state.phase() {
        Phase::Forward | Phase::Succeeded => {}
        Phase::RollingBack => return Err("it is rolling back already".into()),
        _ => return Err("it is being committed: nothing can be undone any more".into()),
    }
    for name in &how.leave {
        found(state, name)?;
    }
    if state.past_no_return() && !how.past_no_return {
        return Err(
            "the run is past its point of no return. Say \"past_no_return\": true if it is to be undone all the same"
                .into(),
        );
    }
    let because = if action.why.is_empty() {
        format!("{} asked for it", action.who)
    } else {
        format!("{} asked for it: {}", action.who, action.why)
    };
    if state.needs_check(now) {
        return Ok(vec![Event::Checking { then: Some(how.clone()), because }]);
    }
    Ok(vec![Event::RollingBack { because, how: how.clone() }])
}

/// A run that is a step of this one has come to an end, forward or back.
fn ended(state: &State, step: &str, run: crate::RunId, outcome: Outcome) -> Result<Vec<Event>, String> {
    let ix = found(state, step)?;
    if state.run_of(ix) != Some(run) {
        return Err(format!("run {run} is not, or no longer, the run of {step}"));
    }
    let [forward, undo] = [CourseId::forward(ix), CourseId::undo(ix)];
    let waits = |id| matches!(&state.course(id).at, CourseAt::Waiting(wait) if wait.run == Some(run));
    let failed = |applied| {
        let error = ActivityError {
            code: "run_ended".into(),
            message: format!("its run {run} ended: {}", over(outcome)),
            retryable: false,
            retry_after: None,
            applied,
            details: None,
        };
        StepEvent::Failed { error, retry_at: None }
    };
    let done =
        || StepEvent::Succeeded { output: Json::of(&serde_json::json!({ "run": run, "outcome": outcome })) };
    let (id, what) = match outcome {
        Outcome::RolledBack if waits(undo) => (undo, done()),
        Outcome::Closed | Outcome::Committed if waits(undo) => (undo, failed(Applied::Maybe)),
        Outcome::Succeeded | Outcome::Committed if waits(forward) && !waits(undo) => (forward, done()),
        Outcome::RolledBack if waits(forward) => (forward, failed(Applied::No)),
        Outcome::Closed if waits(forward) => (forward, failed(Applied::Maybe)),
        _ => return Err(format!("{step} does not wait for that")),
    };
    Ok(vec![about(state, id, what)])
}

fn account(state: &State, step: &str, kind: &str, name: &str, became: Fate) -> Result<Vec<Event>, String> {
    let ix = found(state, step)?;
    if state.phase() == Phase::Succeeded {
        return Err("all its steps are done; roll it back first".into());
    }
    if !became.is_settled() {
        return Err("an operator says that it is gone, or that it is kept".into());
    }
    let id = CourseId::forward(ix);
    let known = |one: &crate::Resource| one.step.as_ref() == step && one.kind == kind && one.name == name;
    if !state.resources().any(known) {
        return Err(format!("{step} has no {kind} \"{name}\""));
    }
    let what = StepEvent::Resource { kind: kind.into(), name: name.into(), fate: became, details: None };
    Ok(vec![about(state, id, what)])
}
