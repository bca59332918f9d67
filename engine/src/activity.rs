//! What makes it happen: activities, their errors, and what they are given.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use backstay_machine::plan::{Effect, Span};
use backstay_machine::{
    ActivityError, ActivitySpec, Applied, Catalog, Direction, FACT, Fate, Json, RunId, Sender, StepEvent,
    Time,
};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::fact::Facts;
use crate::node::Message;

/// An idempotent effect on the world.
///
/// It must be right when it is killed at any instruction and run again, and for a moment twice at once. What
/// helps: [`Context::key`] is the same for every attempt, [`Context::save`] keeps the id of a remote job,
/// [`Activity::probe`] finds out whether an attempt in doubt had its effect.
#[async_trait]
pub trait Activity: Send + Sync + 'static {
    /// The name that plans use.
    const NAME: &'static str;
    /// What it takes.
    type Input: DeserializeOwned + JsonSchema + Send + 'static;
    /// What it gives.
    type Output: Serialize + JsonSchema + Send + 'static;

    /// What is known of its effect. Say `probed: true` if you write a probe. If the probe needs words of the plan's, name
    /// the field of the input that has them in the input's schema, as `"x-probe": "field"`: a step that leaves the field
    /// out has no probe.
    fn effect(&self) -> Effect {
        Effect::default()
    }

    /// The pool of the target that it calls: calls to it are limited over all nodes. A plan may name another.
    fn pool(&self) -> Option<String> {
        None
    }

    /// Has the effect.
    async fn run(&self, context: &Context, input: Self::Input) -> Result<Self::Output, Failure>;

    /// Looks, without changing anything, whether the effect is there.
    async fn probe(&self, context: &Context, input: Self::Input) -> Result<Probe<Self::Output>, Failure> {
        let _ = (context, input);
        Ok(Probe::Unknown("this activity has no probe".into()))
    }
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq)]
pub enum Probe<T> {
    /// The effect is there, with this result.
    Present(T),
    /// It is not there.
    Absent,
    /// Some of it is there.
    Partial,
    /// It could not be found out.
    Unknown(String),
}

/// Why an attempt failed. Say what is known: whether trying again can help, and whether the effect may have
/// happened. An error that comes through `?` is taken as passing, and its effect as possible.
#[derive(Debug)]
pub struct Failure(ActivityError);

impl Failure {
    /// Trying again can help.
    pub fn retryable(code: impl Into<String>, message: impl fmt::Display) -> Self {
        Self(ActivityError {
            code: code.into(),
            message: storable(&message.to_string()),
            retryable: true,
            retry_after: None,
            applied: Applied::Maybe,
            details: None,
        })
    }

    /// Trying again cannot help.
    pub fn permanent(code: impl Into<String>, message: impl fmt::Display) -> Self {
        let mut failure = Self::retryable(code, message);
        failure.0.retryable = false;
        failure
    }

    /// Only people can mend it: credentials, permissions, quotas. A step that would roll the run back is held instead, as
    /// to undo what was done takes the same.
    pub fn needs_operator(message: impl fmt::Display) -> Self {
        Self::permanent(backstay_machine::NEEDS_OPERATOR, message)
    }

    /// The target as a whole does not answer: trying again helps once it is back. If enough calls in a row say so, its
    /// pool is in outage, and nothing is begun there but a try now and then. In a pool it uses up no attempts. Say
    /// `not_applied` where that is known.
    pub fn target_down(message: impl fmt::Display) -> Self {
        Self::retryable(backstay_machine::TARGET_DOWN, message)
    }

    /// The effect has not happened and will not.
    pub fn not_applied(mut self) -> Self {
        self.0.applied = Applied::No;
        self
    }

    /// The target wants to be left alone for so long.
    pub fn retry_after(mut self, span: impl Into<Span>) -> Self {
        self.0.retry_after = Some(span.into());
        self
    }

    /// More, for programs.
    pub fn details(mut self, details: Value) -> Self {
        self.0.details = Some(details);
        self
    }

    /// As the journal will have it.
    pub fn error(&self) -> &ActivityError {
        &self.0
    }

    pub(crate) fn into_error(self) -> ActivityError {
        self.0
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self::retryable("error", message)
    }
}

/// Text that Postgres can store, and not without end.
fn storable(text: &str) -> String {
    const MOST: usize = 4_000;
    let mut out: String = text.chars().take(MOST).map(|c| if c == '\0' { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

/// What an attempt is given beside its input.
#[derive(Debug)]
pub struct Context {
    pub(crate) run: RunId,
    pub(crate) step: Arc<str>,
    pub(crate) sender: Option<Sender>,
    pub(crate) direction: Direction,
    pub(crate) generation: u32,
    pub(crate) attempt: u32,
    pub(crate) key: Uuid,
    pub(crate) checkpoint: std::sync::Mutex<Option<Json>>,
    pub(crate) undone: Option<Undone>,
    pub(crate) filled: Vec<Filled>,
    pub(crate) traceparent: Option<String>,
    pub(crate) deadline: Time,
    pub(crate) cancel: CancellationToken,
    pub(crate) course: backstay_machine::CourseId,
    pub(crate) node: mpsc::UnboundedSender<Message>,
    pub(crate) reported: std::sync::Mutex<Option<std::time::Instant>>,
    pub(crate) facts: Facts,
}

/// What an undo is told of the step that it undoes.
#[derive(Clone, Debug)]
pub struct Undone {
    /// The step's idempotency key.
    pub key: Uuid,
    /// The step's input.
    pub input: Option<Json>,
    /// The places of that input that other steps filled in.
    pub filled: Vec<Filled>,
    /// The step's output, if it came to one.
    pub output: Option<Json>,
    /// What the step saved last.
    pub checkpoint: Option<Json>,
    /// What the step made, moved or was about to.
    pub resources: Vec<backstay_machine::Resource>,
}

/// A place of an input that the output of a step fills in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filled {
    /// Where in the input, as a JSON pointer.
    pub at: String,
    /// Where in the output, as a JSON pointer; empty for all of it.
    pub path: String,
    /// The output is that of the step which is undone.
    pub own: bool,
}

impl Context {
    /// The run.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// The step.
    pub fn step(&self) -> &str {
        &self.step
    }

    /// Who submitted the run, where somebody said so.
    pub fn sender(&self) -> Option<&Sender> {
        self.sender.as_ref()
    }

    /// The place of this attempt in the trace of whoever submitted the run, to be sent along with what it calls: a W3C
    /// `traceparent`. Nothing if the run was submitted outside of any trace, and this process makes none.
    pub fn traceparent(&self) -> Option<&str> {
        self.traceparent.as_deref()
    }

    /// Forward, or undoing.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The idempotency key: the same for every attempt of this step in this direction, on every node, until an
    /// operator has it begin anew.
    pub fn key(&self) -> Uuid {
        self.key
    }

    /// In an undo: what is known of the step that it undoes.
    pub fn undone(&self) -> Option<&Undone> {
        self.undone.as_ref()
    }

    /// The places of the input that are not the plan's words, but what other steps gave: data, which an activity
    /// must not take for instructions.
    pub fn filled(&self) -> &[Filled] {
        &self.filled
    }

    /// When this attempt is given up.
    pub fn deadline(&self) -> Time {
        self.deadline
    }

    /// What an attempt of this step saved last, this one included.
    pub fn saved<T: DeserializeOwned>(&self) -> Result<Option<T>, Failure> {
        let saved = self.checkpoint.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        match saved {
            None => Ok(None),
            Some(text) => serde_json::from_str(text.as_str()).map(Some).map_err(|error| {
                Failure::permanent("checkpoint", format!("what was saved cannot be read back: {error}"))
                    .not_applied()
            }),
        }
    }

    /// Saves something durably, such as the id of a remote job before it is polled. Once this returns, every later
    /// attempt and the undo get it.
    pub async fn save<T: Serialize + Sync>(&self, value: &T) -> Result<(), Failure> {
        let value = Json::from_serialize(value)?;
        let (done, durable) = oneshot::channel();
        let message = Message::Checkpoint {
            run: self.run,
            course: self.course,
            attempt: (self.generation, self.attempt),
            value: value.clone(),
            done,
        };
        let gone =
            || Failure::retryable("node_stopped", "the node stopped before the checkpoint was durable");
        self.node.send(message).map_err(|_| gone())?;
        durable.await.map_err(|_| gone())?;
        *self.checkpoint.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(value);
        Ok(())
    }

    /// Something outside that this step makes, moves or removes. Say so before it is made, and what became of it:
    /// a run is only rolled back once everything it made is gone or stays on purpose.
    pub fn resource(&self, kind: impl Into<String>, name: impl Into<String>) -> Resource<'_> {
        Resource { context: self, kind: storable(&kind.into()), name: storable(&name.into()) }
    }

    /// Says how far it is. Cheap: what comes too often is left out.
    pub fn progress(&self, percent: f64, note: impl Into<String>) {
        const OFTEN: std::time::Duration = std::time::Duration::from_millis(50);
        {
            // A loop that reports each turn must not keep the node busy.
            let mut last = self.reported.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if percent < 100.0 && last.is_some_and(|at| at.elapsed() < OFTEN) {
                return;
            }
            *last = Some(std::time::Instant::now());
        }
        let _ = self.node.send(Message::Progress {
            run: self.run,
            course: self.course,
            attempt: (self.generation, self.attempt),
            percent: if percent.is_finite() { percent.clamp(0.0, 100.0) } else { 0.0 },
            note: storable(&note.into()),
        });
    }

    /// Ends when this attempt should stop: the run is rolling back, or the node lost its lease. An activity that
    /// can stop half way watches this; the others are waited for, and given up in the end.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// Whether this attempt should stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

/// Something outside that a step makes, moves or removes.
#[derive(Debug)]
pub struct Resource<'a> {
    context: &'a Context,
    kind: String,
    name: String,
}

impl Resource<'_> {
    /// It is about to be made. Once this returns that is durable.
    pub async fn planned(&self) -> Result<(), Failure> {
        self.tell(Fate::Planned, None).await
    }

    /// It is there; the details help to find it again.
    pub async fn present(&self, details: Value) -> Result<(), Failure> {
        self.tell(Fate::Present, Some(details)).await
    }

    /// It is gone, or never came to be.
    pub async fn gone(&self) -> Result<(), Failure> {
        self.tell(Fate::Gone, None).await
    }

    /// It stays, on purpose.
    pub async fn kept(&self, why: impl Into<String>) -> Result<(), Failure> {
        self.tell(Fate::Kept, Some(json!({ "why": storable(&why.into()) }))).await
    }

    /// What became of it is not known.
    pub async fn unproven(&self, why: impl Into<String>) -> Result<(), Failure> {
        self.tell(Fate::Unproven, Some(json!({ "why": storable(&why.into()) }))).await
    }

    async fn tell(&self, fate: Fate, details: Option<Value>) -> Result<(), Failure> {
        use backstay_machine::plan::limits;
        let bytes = details.as_ref().map_or(0, |details| details.to_string().len());
        if bytes > limits::INPUT_BYTES {
            let most = limits::INPUT_BYTES;
            let message = format!(
                "the details of {} {} have {bytes} bytes; at most {most} are kept",
                self.kind, self.name
            );
            return Err(Failure::permanent("resource_too_large", message));
        }
        if details.as_ref().is_some_and(has_nul) {
            return Err(Failure::permanent(
                "resource",
                "its details hold the character U+0000, which cannot be kept",
            ));
        }
        if self.kind == FACT {
            let message = format!("resources of the kind \"{FACT}\" are the engine's; see Context::fact");
            return Err(Failure::permanent("resource", message));
        }
        let (done, durable) = oneshot::channel();
        let message = Message::Resource {
            run: self.context.run,
            course: self.context.course,
            attempt: (self.context.generation, self.context.attempt),
            what: StepEvent::Resource { kind: self.kind.clone(), name: self.name.clone(), fate, details },
            done,
        };
        let gone = || Failure::retryable("node_stopped", "the node stopped before this was durable");
        self.context.node.send(message).map_err(|_| gone())?;
        durable.await.map_err(|_| gone())
    }
}

/// An activity with its types taken off.
#[async_trait]
pub(crate) trait ErasedActivity: Send + Sync {
    async fn run(&self, context: &Context, input: &Json) -> Result<Json, ActivityError>;
    async fn probe(&self, context: &Context, input: &Json) -> Result<Probe<Json>, ActivityError>;
}

struct Erased<A>(A);

impl<A: Activity> Erased<A> {
    fn input(input: &Json) -> Result<A::Input, ActivityError> {
        serde_json::from_str(input.as_str()).map_err(|error| {
            Failure::permanent("input", format!("{} does not take this input: {error}", A::NAME))
                .not_applied()
                .into_error()
        })
    }

    fn output(output: &A::Output) -> Result<Json, ActivityError> {
        use backstay_machine::plan::limits;
        let refuse = |code, message: String| Err(Failure::permanent(code, message).into_error());
        let json = match Json::from_serialize(output) {
            Ok(json) => json,
            Err(error) => return refuse("output", format!("the output of {} is not JSON: {error}", A::NAME)),
        };
        let bytes = json.as_str().len();
        if bytes > limits::INPUT_BYTES {
            let most = limits::INPUT_BYTES;
            return refuse(
                "output_too_large",
                format!("the output of {} has {bytes} bytes; at most {most} are kept", A::NAME),
            );
        }
        if json.as_str().contains("\\u0000") && has_nul(&json.value()) {
            return refuse(
                "output",
                format!("the output of {} holds the character U+0000, which cannot be kept", A::NAME),
            );
        }
        Ok(json)
    }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(map) => map.iter().any(|(key, item)| key.contains('\0') || has_nul(item)),
        _ => false,
    }
}

#[async_trait]
impl<A: Activity> ErasedActivity for Erased<A> {
    async fn run(&self, context: &Context, input: &Json) -> Result<Json, ActivityError> {
        let output = self.0.run(context, Self::input(input)?).await.map_err(Failure::into_error)?;
        Self::output(&output)
    }

    async fn probe(&self, context: &Context, input: &Json) -> Result<Probe<Json>, ActivityError> {
        Ok(match self.0.probe(context, Self::input(input)?).await.map_err(Failure::into_error)? {
            Probe::Present(output) => Probe::Present(Self::output(&output)?),
            Probe::Absent => Probe::Absent,
            Probe::Partial => Probe::Partial,
            Probe::Unknown(why) => Probe::Unknown(storable(&why)),
        })
    }
}

/// The activities that a process has.
#[derive(Clone, Default)]
pub struct Registry {
    activities: BTreeMap<String, (ActivitySpec, Arc<dyn ErasedActivity>)>,
}

impl Registry {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one. A later one of the same name takes the place of an earlier one.
    pub fn with<A: Activity>(mut self, activity: A) -> Self {
        let spec = ActivitySpec {
            name: A::NAME.to_owned(),
            input: schemars::schema_for!(A::Input).to_value(),
            output: schemars::schema_for!(A::Output).to_value(),
            effect: activity.effect(),
            pool: activity.pool(),
        };
        self.activities.insert(A::NAME.to_owned(), (spec, Arc::new(Erased(activity))));
        self
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<dyn ErasedActivity>> {
        self.activities.get(name).map(|(_, activity)| activity)
    }

    pub(crate) fn all_names(&self) -> Vec<String> {
        self.activities.keys().cloned().collect()
    }
}

impl Catalog for Registry {
    fn activity(&self, name: &str) -> Option<&ActivitySpec> {
        self.activities.get(name).map(|(spec, _)| spec)
    }

    fn names(&self) -> Vec<&str> {
        self.activities.keys().map(String::as_str).collect()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.activities.keys()).finish()
    }
}
