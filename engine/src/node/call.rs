//! One attempt, or one probe, as a task.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use backstay_machine::plan::{Source, Work};
use backstay_machine::{Answer, CourseId, Direction, Json, State, StepIx, Time, idempotency_key};
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::pools::Slot;
use super::{AbortOnDrop, Message, Shared};
use crate::activity::{Context, Failure, Filled, Probe, Undone};
use crate::fact::Facts;
use crate::trace;

/// A call in flight. Dropping it ends it wherever it is.
pub(super) struct Call {
    pub attempt: (u32, u32),
    pub cancel: CancellationToken,
    /// When its progress was journaled last.
    pub noted: Option<std::time::Instant>,
    /// Its place in the pool of its target, until it ends.
    pub slot: Option<Slot>,
    _task: AbortOnDrop,
}

impl Drop for Call {
    fn drop(&mut self) {
        // Whatever the activity has set going beside itself learns of it too.
        self.cancel.cancel();
    }
}

/// Calls the activity of an attempt whose start is durable.
pub(super) fn start(shared: &Shared, state: &State, course: CourseId, now: Time) -> Call {
    let cancel = CancellationToken::new();
    let (mut context, work) = prepare(shared, state, course, now, &cancel);
    let traced = trace::Call::begin("attempt", &context, &work.activity, &shared.life.name);
    context.traceparent = traced.traceparent();
    let attempt = (context.generation, context.attempt);
    let activity = shared.registry.get(&work.activity).cloned();
    let name = work.activity.clone();
    let input = state.course(course).input.clone().unwrap_or_else(Json::null);
    let timeout = work.timeout;
    let span = span("attempt", &context);
    let shared = shared.clone();
    let task = async move {
        shared.crash_point("call.before").await;
        let begun = std::time::Instant::now();
        let result = match activity {
            None => {
                Err(Failure::permanent("activity_missing", format!("this node has no activity \"{name}\""))
                    .not_applied()
                    .into_error())
            }
            Some(activity) => {
                let call = async {
                    let timed = tokio::time::timeout(timeout.0, activity.run(&context, &input)).await;
                    timed.unwrap_or_else(|_| {
                        let message = format!("it took longer than {timeout}");
                        Err(Failure::retryable("timeout", message).into_error())
                    })
                };
                // Whatever panics, also while a call that took too long is dropped: an attempt always has an end.
                AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(|panic| Err(panicked(&*panic)))
            }
        };
        let outcome = if result.is_ok() { "succeeded" } else { "failed" };
        metrics::counter!("backstay_attempts_total", "outcome" => outcome).increment(1);
        metrics::histogram!("backstay_attempt_seconds").record(begun.elapsed().as_secs_f64());
        if let Err(error) = &result {
            tracing::warn!(code = error.code, applied = ?error.applied, "the attempt failed: {}", error.message);
        }
        traced.ended(&result);
        shared.crash_point("call.after").await;
        let (run, fact) = (context.run, context.facts.take());
        let _ = shared.inbox.send(Message::Outcome { run, course, attempt, result, fact });
    };
    let task = tokio::spawn(task.instrument(span));
    Call { attempt, cancel, noted: None, slot: None, _task: AbortOnDrop(task.abort_handle()) }
}

/// A probe under way. Dropping it ends it wherever it is.
pub(super) struct Question {
    pub attempt: (u32, u32),
    _task: AbortOnDrop,
}

/// Asks the world about an attempt in doubt.
pub(super) fn probe(shared: &Shared, state: &State, step: StepIx, now: Time) -> Question {
    let course = CourseId::forward(step);
    let (mut context, work) = prepare(shared, state, course, now, &CancellationToken::new());
    let traced = trace::Call::begin("probe", &context, &work.activity, &shared.life.name);
    context.traceparent = traced.traceparent();
    let attempt = (context.generation, context.attempt);
    let activity = shared.registry.get(&work.activity).cloned();
    let input = state.course(course).input.clone().unwrap_or_else(Json::null);
    let timeout = work.timeout;
    let span = span("probe", &context);
    let shared = shared.clone();
    let task = async move {
        let found = match activity {
            None => Ok(Probe::Unknown("this node has no such activity".into())),
            Some(activity) => {
                let call = AssertUnwindSafe(activity.probe(&context, &input)).catch_unwind();
                match tokio::time::timeout(timeout.0, call).await {
                    Ok(Ok(found)) => found,
                    Ok(Err(panic)) => Err(panicked(&*panic)),
                    Err(_) => Ok(Probe::Unknown(format!("the probe took longer than {timeout}"))),
                }
            }
        };
        traced.ended(&found);
        let (answer, output) = match found {
            Ok(Probe::Present(output)) => (Answer::Present, Some(output)),
            Ok(Probe::Absent) => (Answer::Absent, None),
            Ok(Probe::Partial) => (Answer::Partial, None),
            Ok(Probe::Unknown(why)) => (Answer::Unknown { why }, None),
            Err(error) => (Answer::Unknown { why: error.message }, None),
        };
        let run = context.run;
        let _ = shared.inbox.send(Message::Probed { run, step, attempt, answer, output, asked_at: now });
    };
    let task = tokio::spawn(task.instrument(span));
    Question { attempt, _task: AbortOnDrop(task.abort_handle()) }
}

/// What every line of its log says. It is no span of level info: a log that is to show warnings alone would show them
/// without their run.
fn span(call: &str, context: &Context) -> tracing::Span {
    let request = context.sender.as_ref().and_then(|sender| sender.via.as_deref());
    tracing::error_span!("call", call, run = %context.run, step = %context.step, attempt = context.attempt,
        undo = context.direction == Direction::Undo, request)
}

fn prepare<'a>(
    shared: &Shared,
    state: &'a State,
    id: CourseId,
    now: Time,
    cancel: &CancellationToken,
) -> (Context, &'a Work) {
    let step = state.plan().step(id.step);
    let course = state.course(id);
    let key = |direction, generation| idempotency_key(state.run(), &step.name, direction, generation);
    let forward = state.course(CourseId::forward(id.step));
    let (work, undone) = match (&step.undo, id.direction) {
        (Some(undo), Direction::Undo) => {
            let undone = Undone {
                key: key(Direction::Forward, forward.generation),
                input: forward.input.clone(),
                filled: filled(&step.forward),
                output: forward.output().cloned(),
                checkpoint: forward.checkpoint.clone(),
                resources: state.resources().filter(|resource| resource.step == step.name).cloned().collect(),
            };
            (undo, Some(undone))
        }
        _ => (&step.forward, None),
    };
    let context = Context {
        run: state.run(),
        step: Arc::clone(&step.name),
        sender: state.sender().cloned(),
        direction: id.direction,
        generation: course.generation,
        attempt: course.attempts,
        key: key(id.direction, course.generation),
        checkpoint: std::sync::Mutex::new(course.checkpoint.clone()),
        undone,
        filled: filled(work),
        traceparent: None,
        deadline: now + work.timeout.delta(),
        cancel: cancel.clone(),
        course: id,
        node: shared.inbox.clone(),
        reported: std::sync::Mutex::default(),
        facts: Facts::of(shared),
    };
    (context, work)
}

fn filled(work: &Work) -> Vec<Filled> {
    let of = |bound: &backstay_machine::plan::Bound| Filled {
        at: bound.at.clone(),
        path: bound.path.clone(),
        own: bound.source == Source::Own,
    };
    work.input.bound().iter().map(of).collect()
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> backstay_machine::ActivityError {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".into());
    // A bug does not go away by trying again at once, but it may depend on what the world answered.
    Failure::retryable("panic", format!("the activity panicked: {text}")).into_error()
}
