//! What operators and clients ask of a run. Each asking is journaled: as `acted` with what follows from it, or as
//! `refused` with the reason.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::event::Outcome;
use crate::json::unfit;
use crate::names::{RunId, Seq};

/// What actions may not exceed.
pub mod limits {
    /// Bytes of one action in JSON: its input, output, payload or manifest.
    pub const BYTES: usize = 256 << 10;
    /// Nesting.
    pub const DEPTH: usize = 32;
    /// Characters of who asks, and why.
    pub const TEXT: usize = 1_000;
    /// Signals that wait to be read, of one run.
    pub const SIGNALS: usize = 10_000;
}

/// One asking. Asking again under the same id is the same asking.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// Made by whoever asks; unique.
    pub id: Uuid,
    /// Who.
    pub who: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// The last event that the asker saw: refused if what it is about has moved since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seq>,
    /// By which request; it stands in the logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// What.
    pub verb: Verb,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Verb {
    /// Try a step, or its undo, again: at once if it waits for its next attempt; from the start, with a new
    /// idempotency key, if it failed for good, is held, or gets another input.
    Retry {
        /// The step.
        step: String,
        /// Its undo.
        #[serde(default, skip_serializing_if = "is_false")]
        undo: bool,
        /// In place of the plan's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        input: Option<Value>,
        /// Although an earlier attempt may have had its effect, without asking the world first.
        #[serde(default, skip_serializing_if = "is_false")]
        in_doubt: bool,
    },
    /// Go on as if the step, or its undo, had come to this output: it was done by hand, or is not needed.
    Skip {
        /// The step.
        step: String,
        /// Its undo; `why` is the evidence.
        #[serde(default, skip_serializing_if = "is_false")]
        undo: bool,
        /// The output.
        output: Value,
    },
    /// Undo one step while the run goes forward; it is held then.
    UndoStep {
        /// The step.
        step: String,
        /// And those that come after it.
        #[serde(default, skip_serializing_if = "is_false")]
        cascade: bool,
    },
    /// Let a step start without the proof that it requires.
    Override {
        /// The step.
        step: String,
    },
    /// Say yes to a step that waits for it.
    Approve {
        /// The step.
        step: String,
        /// The right by which.
        right: String,
        /// The hash of the plan that was looked at.
        plan: String,
    },
    /// Say no.
    Reject {
        /// The step.
        step: String,
        /// The right by which.
        right: String,
    },
    /// Tell the run something that a step waits for, or will.
    Signal {
        /// The signal's name.
        name: String,
        /// What it brings.
        #[serde(default)]
        payload: Value,
    },
    /// Start nothing more.
    Pause,
    /// Go on; also with a run that was left alone.
    Resume,
    /// Undo everything that was started.
    RollBack(RollBack),
    /// Give up the possibility of a rollback, and run the finalizing steps.
    Commit,
    /// End a run that cannot be undone.
    Close {
        /// What is left, and who sees to it.
        manifest: Value,
    },
    /// A run that is a step of this one has come to an end. It says so itself.
    Ended {
        /// The step.
        step: String,
        /// The run.
        run: RunId,
        /// Which end.
        outcome: Outcome,
    },
    /// Say what became of a resource.
    Account {
        /// The step that it belongs to.
        step: String,
        /// Which kind.
        kind: String,
        /// Which.
        name: String,
        /// Gone, or kept; `why` is the evidence.
        became: Fate,
    },
}

/// How a run is rolled back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// Steps that are not undone; what they made is kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leave: Vec<String>,
    /// An undo that fails for good stops only itself. What is left is listed at the end.
    #[serde(default, skip_serializing_if = "is_false")]
    pub past_failures: bool,
    /// Although the run is past its point of no return.
    #[serde(default, skip_serializing_if = "is_false")]
    pub past_no_return: bool,
}

impl RollBack {
    pub(crate) fn is_plain(&self) -> bool {
        *self == Self::default()
    }
}

/// What became of something that a run was about to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It is about to be made.
    Planned,
    /// It is there.
    Present,
    /// It is gone, or never came to be.
    Gone,
    /// It is there and stays.
    Kept,
    /// Nobody knows.
    Unproven,
}

impl Fate {
    /// Whether a run that was rolled back may leave it so.
    pub fn is_settled(self) -> bool {
        matches!(self, Fate::Gone | Fate::Kept)
    }
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Fate::Planned => "planned",
            Fate::Present => "present",
            Fate::Gone => "gone",
            Fate::Kept => "kept",
            Fate::Unproven => "unproven",
        })
    }
}

impl Action {
    /// An asking with an id of its own.
    pub fn new(who: impl Into<String>, why: impl Into<String>, verb: Verb) -> Self {
        Self { id: Uuid::now_v7(), who: who.into(), why: why.into(), seen: None, via: None, verb }
    }

    /// What is wrong with it whatever the run.
    pub fn flaw(&self) -> Option<String> {
        let control = |c: char| c.is_control() && c != '\n' && c != '\t';
        for (what, text, needed) in [("who", &self.who, true), ("why", &self.why, self.verb.needs_reason())] {
            if needed && text.trim().is_empty() {
                return Some(format!("\"{what}\" is missing; it is kept with what is done"));
            }
            if text.chars().count() > limits::TEXT || text.chars().any(control) {
                let most = limits::TEXT;
                return Some(format!("\"{what}\" has more than {most} characters, or control characters"));
            }
        }
        let value = match serde_json::to_value(self) {
            Ok(value) => value,
            Err(error) => return Some(format!("it cannot be written as JSON: {error}")),
        };
        if value.to_string().len() > limits::BYTES {
            return Some(format!("it has more than {} bytes", limits::BYTES));
        }
        unfit(&value, limits::DEPTH).map(|(at, wrong)| format!("at \"{at}\" it {wrong}"))
    }
}

impl Verb {
    /// The step that it is about, and whether about its undo.
    pub fn step(&self) -> Option<(&str, bool)> {
        match self {
            Verb::Retry { step, undo, .. } | Verb::Skip { step, undo, .. } => Some((step, *undo)),
            Verb::UndoStep { step, .. }
            | Verb::Override { step }
            | Verb::Approve { step, .. }
            | Verb::Reject { step, .. }
            | Verb::Ended { step, .. }
            | Verb::Account { step, .. } => Some((step, false)),
            Verb::Signal { .. }
            | Verb::Pause
            | Verb::Resume
            | Verb::RollBack(_)
            | Verb::Commit
            | Verb::Close { .. } => None,
        }
    }

    /// What cannot be taken back, or stands in for a proof, says why.
    pub fn needs_reason(&self) -> bool {
        matches!(self, Verb::Skip { .. } | Verb::Override { .. } | Verb::Close { .. } | Verb::Account { .. })
    }

    /// For people.
    pub fn name(&self) -> &'static str {
        match self {
            Verb::Retry { .. } => "retry",
            Verb::Skip { .. } => "skip",
            Verb::UndoStep { .. } => "undo_step",
            Verb::Override { .. } => "override",
            Verb::Approve { .. } => "approve",
            Verb::Reject { .. } => "reject",
            Verb::Signal { .. } => "signal",
            Verb::Pause => "pause",
            Verb::Resume => "resume",
            Verb::RollBack(_) => "roll_back",
            Verb::Commit => "commit",
            Verb::Close { .. } => "close",
            Verb::Ended { .. } => "ended",
            Verb::Account { .. } => "account",
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands it so")]
fn is_false(value: &bool) -> bool {
    !*value
}
