//! The plan as people write it and as it is stored: the same JSON both times, fuller the second time.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::binding;
use crate::names::RunId;

/// A plan as it is written. What is left out is filled in when the plan is checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanSpec {
    /// The name of the procedure.
    pub workflow: String,
    /// What people read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// For steps that do not state their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// For undos that do not state their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo_retry: Option<Retry>,
    /// For attempts whose step or undo does not state its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// How long a rollback waits for attempts that are still in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settle_within: Option<Span>,
    /// What comes after the last step. Left out: nothing, and whoever wants to can roll the run back while it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<Commit>,
    /// Before a rollback or a resumption that comes so long after the last event, the steps that are done and can be
    /// probed are: where the world has changed, the run is held and the difference shown. Left out: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift_after: Option<Span>,
    /// The run of which this one is a step. The engine writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// One person alone may override a proof that a step requires.
    #[serde(default, skip_serializing_if = "is_default")]
    pub override_alone: bool,
    /// The steps.
    pub steps: Vec<StepSpec>,
}

/// One step as it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepSpec {
    /// Unique in the plan.
    pub name: String,
    /// What people read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The activity that it runs.
    pub activity: String,
    /// The target that its calls go to, if calls to it are limited over all nodes: the name of a pool. Left out: what
    /// the activity says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The activity's input; `{"$output": "step/pointer"}` stands for a value that another step gives.
    #[serde(
        default = "empty_object",
        skip_serializing_if = "is_empty_object",
        deserialize_with = "crate::json::strict"
    )]
    pub input: Value,
    /// The plan of a step that is a run of its own; `{"$given": "/pointer"}` in its inputs stands for a value of this
    /// step's input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Box<PlanSpec>>,
    /// The steps that it comes after.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// The activity that undoes it. Either this or `nothing_to_undo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<UndoSpec>,
    /// Why nothing has to be undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nothing_to_undo: Option<String>,
    /// When to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// How long one attempt may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// What its final failure does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_failure: OnFailure,
    /// What other steps' outputs have to say before it starts. That a step was skipped, or has no output, is no proof.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<Proof>,
    /// Once it may have had its effect, nothing is rolled back by itself: what fails is held.
    #[serde(default, skip_serializing_if = "is_default")]
    pub point_of_no_return: bool,
    /// It runs when the run is committed, and is never undone. If it fails for good it is held.
    #[serde(default, skip_serializing_if = "is_default")]
    pub finalize: bool,
    /// What is known of the effect. Left out: what the activity says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
}

impl StepSpec {
    /// Of a step that is a run: its plan, if the step is given this.
    pub fn plan_given(&self, input: &Value) -> Option<PlanSpec> {
        binding::give(self.plan.as_ref()?, input, &[]).ok()
    }
}

/// The run of which another one is a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// The run.
    pub run: RunId,
    /// Its step.
    pub step: String,
}

/// What a step's output has to say before another one starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// Whose output.
    pub step: String,
    /// Where in it, as a JSON pointer; empty for all of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub at: String,
    /// What has to stand there.
    pub equals: Value,
}

/// How a run that has succeeded becomes final. Until then it holds its exclusive key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Commit {
    /// How long somebody has to decide. Left out: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<Span>,
    /// What happens if nobody has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub then: Option<Ending>,
    /// The signal that commits it; an operator can at any time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
}

/// What happens to a run that nobody decided about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It is made final.
    Commit,
    /// It is undone.
    RollBack,
}

/// The undo of a step as it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UndoSpec {
    /// The activity.
    pub activity: String,
    /// The pool of its target. Left out: what the activity says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Its input; `{"$output": "/pointer"}` stands for the output of the step that is undone, or null if it
    /// never came to one.
    #[serde(
        default = "empty_object",
        skip_serializing_if = "is_empty_object",
        deserialize_with = "crate::json::strict"
    )]
    pub input: Value,
    /// When to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// How long one attempt may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
}

/// What is left out of a stored plan means the same for ever: no release may change these defaults.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_empty_object(value: &Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty)
}

fn empty_object() -> Value {
    Value::Object(serde_json::Map::new())
}

/// What a step's final failure does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// Undo everything that was started, in reverse.
    #[default]
    RollBack,
    /// Wait for an operator's decision.
    Hold,
    /// Go on as if it had succeeded; what reads its output reads null.
    Continue,
}

/// What is known of an activity's effect on the world; it decides how an attempt in doubt is settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Effect {
    /// The longest time after the end of a call at which its effect may still appear.
    #[serde(skip_serializing_if = "is_default")]
    pub longest_delay: Span,
    /// The activity can look whether its effect is there.
    #[serde(skip_serializing_if = "is_default")]
    pub probed: bool,
    /// The target refuses a second effect under the same idempotency key.
    #[serde(skip_serializing_if = "is_default")]
    pub refuses_duplicates: bool,
    /// Never tried again by itself once an attempt may have had its effect.
    #[serde(skip_serializing_if = "is_default")]
    pub at_most_once: bool,
}

/// When to try again. The delays grow by `factor` from `first` to `ceiling`; each is longer or shorter by up
/// to `jitter` of itself. It ends after `attempts` failures or once `elapsed` has passed, whichever first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// The delay after the first failure.
    pub first: Span,
    /// Each further delay is this much longer.
    pub factor: f64,
    /// No delay is longer.
    pub ceiling: Span,
    /// From 0 (none) to 1.
    pub jitter: f64,
    /// How many failures end it; 1 means: never again; `null`: only `elapsed` ends it. Always written out: what is
    /// left out means the default, not "no end".
    pub attempts: Option<u32>,
    /// How long after the first attempt the last may start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elapsed: Option<Span>,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: Some(5), ..Self::patient(Span::secs(1), Span::secs(60)) }
    }
}

impl Retry {
    /// Never again.
    pub fn never() -> Self {
        Self { attempts: Some(1), ..Self::default() }
    }

    /// What an undo gets if the plan does not say: longer than forward, as nobody waits for it and giving up
    /// leaves something behind.
    pub fn of_undos() -> Self {
        Self { attempts: Some(20), ..Self::patient(Span::secs(1), Span::secs(300)) }
    }

    /// So many attempts, with a fixed delay.
    pub fn fixed(attempts: u32, delay: Duration) -> Self {
        let delay = Span(delay);
        Self { factor: 1.0, jitter: 0.0, attempts: Some(attempts), ..Self::patient(delay, delay) }
    }

    fn patient(first: Span, ceiling: Span) -> Self {
        Self { first, factor: 2.0, ceiling, jitter: 0.1, attempts: None, elapsed: None }
    }
}

/// A length of time, written as `30s`, `5m`, `1h 30m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

impl Span {
    /// So many seconds.
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// So many milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// For arithmetic with times; longer than a century counts as a century.
    pub fn delta(self) -> chrono::TimeDelta {
        const CENTURY: chrono::TimeDelta = chrono::TimeDelta::days(36_525);
        chrono::TimeDelta::from_std(self.0).unwrap_or(CENTURY).min(CENTURY)
    }

    /// The time so much later; the end of all times if there is none. Journals can hold any time.
    pub fn after(self, at: crate::Time) -> crate::Time {
        at.checked_add_signed(self.delta()).unwrap_or(crate::Time::MAX_UTC)
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl schemars::JsonSchema for Span {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A length of time.",
            "examples": ["30s", "5m", "1h 30m"],
        })
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(|error| {
            let text: String = text.chars().take(40).collect();
            serde::de::Error::custom(format!(
                "\"{text}\" is not a length of time such as \"30s\" or \"5m\": {error}"
            ))
        })
    }
}
