//! The steps that the engine runs itself: they wait, and call nobody.
//!
//! ```text
//!   wait      until a time, for a while, for a signal, or for whichever comes first
//!   approve   until people with the right to say so have said yes
//!   run       until a run of its own has come to its end; its undo is that run's rollback
//! ```

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{ActivitySpec, Effect, Span};
use crate::Time;

/// How a step is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A node calls an activity.
    Call,
    /// The engine waits.
    Wait,
    /// The engine waits for people to agree.
    Approve,
    /// The engine waits for another run.
    Run,
}

/// The input of `wait`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WaitInput {
    /// So long.
    #[serde(rename = "for")]
    pub length: Option<Span>,
    /// Until then.
    pub until: Option<Time>,
    /// Until this signal comes.
    pub signal: Option<String>,
    /// What the signal has to bring.
    #[allow(dead_code, reason = "the plan has it, and judges signals by it")]
    pub schema: Option<Value>,
    /// It fails if neither has come by then.
    pub within: Option<Span>,
}

/// The input of `approve`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApproveInput {
    /// The right that it takes to say yes or no.
    pub right: String,
    /// How many different people have to say yes.
    #[serde(default = "one")]
    pub people: u32,
    /// What they are shown, with all bindings filled in.
    #[serde(default)]
    #[allow(dead_code, reason = "it is journaled for people to see")]
    pub show: Value,
    /// It fails if they have not by then.
    pub within: Option<Span>,
}

fn one() -> u32 {
    1
}

/// The inputs that a plan must state in words: they decide who may say what to a run.
pub(crate) const LITERAL: [&str; 4] = ["/signal", "/schema", "/right", "/people"];

/// The kind of an activity of this name.
pub(crate) fn kind(activity: &str) -> Kind {
    match activity {
        "wait" => Kind::Wait,
        "approve" => Kind::Approve,
        "run" => Kind::Run,
        _ => Kind::Call,
    }
}

/// What the engine itself can run.
pub fn builtin(activity: &str) -> Option<&'static ActivitySpec> {
    match kind(activity) {
        Kind::Call => None,
        Kind::Wait => Some(&WAIT),
        Kind::Approve => Some(&APPROVE),
        Kind::Run => Some(&RUN),
    }
}

static WAIT: LazyLock<ActivitySpec> = LazyLock::new(|| ActivitySpec {
    name: "wait".into(),
    input: json!({
        "type": "object",
        "properties": {
            "for": { "type": "string", "minLength": 1 },
            "until": { "type": "string", "minLength": 1 },
            "signal": { "type": "string", "minLength": 1, "maxLength": 100 },
            "schema": { "type": ["object", "boolean"], "additionalProperties": true },
            "within": { "type": "string", "minLength": 1 },
        },
        "anyOf": [{ "required": ["for"] }, { "required": ["until"] }, { "required": ["signal"] }],
        "additionalProperties": false,
    }),
    output: json!({
        "type": "object",
        "properties": {
            "by": { "enum": ["time", "signal"] },
            "signal": {
                "type": ["object", "null"],
                "properties": { "id": { "type": "string" }, "who": { "type": "string" }, "payload": {} },
                "required": ["id", "who", "payload"],
            },
        },
        "required": ["by", "signal"],
    }),
    effect: Effect::default(),
    pool: None,
});

static APPROVE: LazyLock<ActivitySpec> = LazyLock::new(|| ActivitySpec {
    name: "approve".into(),
    input: json!({
        "type": "object",
        "properties": {
            "right": { "type": "string", "minLength": 1, "maxLength": 100 },
            "people": { "type": "integer", "minimum": 1, "maximum": 10 },
            "show": {},
            "within": { "type": "string", "minLength": 1 },
        },
        "required": ["right"],
        "additionalProperties": false,
    }),
    output: json!({
        "type": "object",
        "properties": { "by": { "type": "array", "items": { "type": "string" } } },
        "required": ["by"],
    }),
    effect: Effect::default(),
    pool: None,
});

static RUN: LazyLock<ActivitySpec> = LazyLock::new(|| ActivitySpec {
    name: "run".into(),
    input: json!({ "type": "object", "additionalProperties": true }),
    output: json!({
        "type": "object",
        "properties": { "run": { "type": "string" }, "outcome": { "type": "string" } },
        "required": ["run", "outcome"],
    }),
    effect: Effect::default(),
    pool: None,
});
