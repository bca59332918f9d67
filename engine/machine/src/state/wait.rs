//! What a step waits for, once it has begun to wait.

use serde_json::json;
use uuid::Uuid;

use crate::Time;
use crate::event::StepEvent;
use crate::json::Json;
use crate::names::{RunId, StepIx};
use crate::plan::builtin::{ApproveInput, Kind, WaitInput};
use crate::state::{Signal, State};

/// What a step waits for.
#[derive(Clone, Debug, PartialEq)]
pub struct Wait {
    /// It is done then.
    pub until: Option<Time>,
    /// It has failed then.
    pub expires: Option<Time>,
    /// It is done once this signal comes.
    pub signal: Option<String>,
    /// It is done once so many people with this right have said yes.
    pub approval: Option<(String, u32)>,
    /// It is done once this run has come to its end.
    pub run: Option<RunId>,
    /// Its input made no sense.
    pub wrong: Option<String>,
}

impl Wait {
    /// What an input, resolved at this time, means.
    pub(crate) fn new(kind: Kind, input: &Json, at: Time) -> Self {
        let nothing =
            Self { until: None, expires: None, signal: None, approval: None, run: None, wrong: None };
        let wrong = |error: serde_json::Error| Self { wrong: Some(error.to_string()), ..nothing.clone() };
        match kind {
            Kind::Approve => match input.read::<ApproveInput>() {
                Err(error) => wrong(error),
                Ok(input) => Self {
                    expires: input.within.map(|span| span.after(at)),
                    approval: Some((input.right, input.people)),
                    ..nothing
                },
            },
            Kind::Wait | Kind::Call | Kind::Run => match input.read::<WaitInput>() {
                Err(error) => wrong(error),
                Ok(input) => Self {
                    until: input.length.map(|span| span.after(at)).into_iter().chain(input.until).min(),
                    expires: input.within.map(|span| span.after(at)),
                    signal: input.signal,
                    ..nothing
                },
            },
        }
    }
}

impl Wait {
    /// For the end of a run.
    pub(super) fn for_run(run: RunId) -> Self {
        Self { until: None, expires: None, signal: None, approval: None, run: Some(run), wrong: None }
    }
}

/// The run that a step's generation is: found again by whoever knows when it started, and in the order of time like
/// every other.
pub fn run_of_step(started: Time, key: Uuid) -> RunId {
    let millis = u64::try_from(started.timestamp_millis()).unwrap_or_default();
    let [_, _, _, _, _, _, a, b, rest @ ..] = key.into_bytes();
    let [c, d, e, f, g, h, i, j] = rest;
    let bytes = [a, b, c, d, e, f, g, h, i, j];
    RunId(uuid::Builder::from_unix_timestamp_millis(millis, &bytes).into_uuid())
}

/// What a wait has come to.
pub(crate) enum Waited {
    /// This.
    For(Box<StepEvent>),
    /// Nothing yet; look again then.
    Until(Option<Time>),
}

impl State {
    /// What a wait has come to by now. What was said comes before what time brings: somebody may have been just in time.
    /// A signal that this same decision gives to another step is not there any more.
    pub(crate) fn waited(&self, ix: StepIx, wait: &Wait, taken: &mut Vec<Uuid>, now: Time) -> Waited {
        let done = |output: serde_json::Value| {
            Waited::For(Box::new(StepEvent::Succeeded { output: Json::of(&output) }))
        };
        if let Some(wrong) = &wait.wrong {
            return failed("input", format!("what it is to wait for is not understood: {wrong}"));
        }
        let unread = |name: &String| {
            let mut signals = self.signals();
            signals.find(|signal| signal.name == *name && !taken.contains(&signal.id))
        };
        if let Some(Signal { id, who, payload, .. }) = wait.signal.as_ref().and_then(unread) {
            taken.push(*id);
            return done(json!({ "by": "signal", "signal": { "id": id, "who": who, "payload": payload } }));
        }
        if let Some((right, people)) = &wait.approval {
            if let Some(who) = self.rejected(ix) {
                return failed("rejected", format!("{who} said no, by the right \"{right}\""));
            }
            let yes = self.approvals(ix);
            if yes.len() >= *people as usize {
                return done(json!({ "by": yes }));
            }
        }
        match (wait.until, wait.expires) {
            (Some(at), _) if at <= now => done(json!({ "by": "time", "signal": null })),
            (_, Some(at)) if at <= now => failed("expired", "nothing came in time".into()),
            (until, expires) => Waited::Until(until.into_iter().chain(expires).min()),
        }
    }
}

fn failed(code: &str, message: String) -> Waited {
    use crate::event::{ActivityError, Applied};
    let error = ActivityError {
        code: code.into(),
        message,
        retryable: false,
        retry_after: None,
        applied: Applied::No,
        details: None,
    };
    Waited::For(Box::new(StepEvent::Failed { error, retry_at: None }))
}
