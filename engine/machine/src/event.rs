//! The facts of a run, and their form as rows of its journal.
//!
//! ```text
//!   submitted     the plan; always the first
//!   claimed       a node took the run over: attempts without an outcome are in doubt from here on
//!   started       an attempt is about to call its activity (intent, before the effect)
//!   checkpointed  the activity saved something to find its work again
//!   progressed    the activity said how far it is
//!   succeeded     the step has its output, or the undo is done
//!   failed        an attempt failed; with the time of the next, or for good
//!   probed        the world was asked whether an attempt in doubt had its effect
//!   held          a step waits for an operator's decision
//!   retried       a step begins anew: a new generation with a new idempotency key
//!   hastened      what a step waits for is not waited for any longer
//!   skipped       a step counts as done, with an output that an operator gave
//!   recalled      a step is undone while the run goes forward
//!   waived        a step may start without its proof
//!   resource      something outside is about to be made, is there, is gone, or stays
//!   acted         somebody asked for something, and what follows from it comes next
//!   refused       somebody asked for something that cannot be
//!   checking      the world is looked at before the run goes on: it has been a long time
//!   compared      whether what a step did is still as it was
//!   checked       it is, and the run goes on
//!   drifted       it is not, and somebody must decide
//!   committing    from here on nothing can be undone; the finalizing steps run
//!   rolling_back  from here on everything that was started is undone
//!   stuck         an undo failed for good and nothing else can move
//!   quarantined   the run is left alone: it cannot be read, or it kills its nodes
//!   finished      the end
//! ```

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::Time;
use crate::action::{Action, Fate, RollBack};
use crate::json::Json;
use crate::names::{ClaimNo, Epoch, RunId, Seq, StepIx};
use crate::plan::{Plan, Span};

/// An event with its place in the journal.
#[derive(Clone, Debug, PartialEq)]
pub struct Journaled {
    /// Its position.
    pub seq: Seq,
    /// The owner's claim.
    pub claim: ClaimNo,
    /// The owner's life. 0 for a run that was submitted by a process that runs no node.
    pub epoch: Epoch,
    /// When, by the database's clock as its owner knew it.
    pub at: Time,
    /// What happened.
    pub event: Event,
}

/// Who submitted a run: for those who ask later, and for the traces of its activities.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Sender {
    /// Who.
    pub who: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// By which request; it stands in the logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// The caller's trace (a W3C traceparent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// One fact.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The run is there.
    Submitted {
        /// By whom, where somebody said so.
        by: Option<Box<Sender>>,
    },
    /// A node took it over.
    Claimed {
        /// The node's name.
        node: String,
        /// Why it was free.
        reason: ClaimReason,
    },
    /// Something about a step or its undo.
    Step {
        /// Which half of which step.
        course: CourseId,
        /// Attempts since the submission or the last operator's retry.
        generation: u32,
        /// The attempt; 0 where it is not about one.
        attempt: u32,
        /// What.
        what: StepEvent,
    },
    /// Somebody asked for this, and it was granted.
    Acted(Box<Action>),
    /// Somebody asked for this, and it could not be.
    Refused {
        /// What was asked.
        action: Box<Action>,
        /// Why not.
        because: String,
    },
    /// The world is looked at before the run goes on.
    Checking {
        /// The rollback that comes then; `None`: it goes on.
        then: Option<RollBack>,
        /// Why.
        because: String,
    },
    /// The world is as it was left.
    Checked,
    /// The world has changed.
    Drifted {
        /// In a sentence for each step.
        differences: Vec<String>,
    },
    /// The run is made final.
    Committing {
        /// Why.
        because: String,
    },
    /// The run turned round.
    RollingBack {
        /// Why.
        because: String,
        /// Which way.
        how: RollBack,
    },
    /// Nothing can move, and this is left.
    Stuck {
        /// The steps whose undo failed.
        steps: Vec<String>,
        /// What the run made and nobody has accounted for: "step: kind name".
        resources: Vec<String>,
    },
    /// The run is left alone.
    Quarantined {
        /// Why.
        why: String,
    },
    /// The end.
    Finished {
        /// Which.
        outcome: Outcome,
    },
}

/// Something about a step or its undo.
#[derive(Clone, Debug, PartialEq)]
pub enum StepEvent {
    /// An attempt is about to call the activity.
    Started {
        /// The same for all attempts of a generation.
        key: Uuid,
        /// The resolved input, with the first attempt of a generation; the others have the same.
        input: Option<Json>,
    },
    /// The activity saved this.
    Checkpointed {
        /// What it reads back after a crash.
        value: Json,
    },
    /// The activity is so far.
    Progressed {
        /// From 0 to 100.
        percent: f64,
        /// What it is doing.
        note: String,
    },
    /// The result.
    Succeeded {
        /// The output.
        output: Json,
    },
    /// An attempt failed.
    Failed {
        /// How.
        error: ActivityError,
        /// When it is tried again; `None`: never.
        retry_at: Option<Time>,
    },
    /// The world was asked.
    Probed {
        /// What it said.
        answer: Answer,
        /// When it is asked again; `None`: the answer settles it.
        ask_again_at: Option<Time>,
    },
    /// An operator must decide.
    Held {
        /// Why.
        why: String,
    },
    /// A new generation begins.
    Retried {
        /// In place of the plan's input.
        input: Option<Json>,
    },
    /// The wait for the next attempt is over; an attempt in doubt is looked into again.
    Hastened,
    /// An operator says that it is done, with this output.
    Skipped {
        /// The output.
        output: Json,
    },
    /// It is undone while the run goes forward, and held then.
    Recalled,
    /// It may start without its proof.
    Waived,
    /// What it did was looked at again.
    Compared {
        /// How it is now, if it is not as it was.
        difference: Option<String>,
    },
    /// Something that it makes, moves or removes.
    Resource {
        /// Which kind.
        kind: String,
        /// Which; as the run knows it before it is made.
        name: String,
        /// What became of it.
        fate: Fate,
        /// Its id out there, and whatever else helps to find it.
        details: Option<Value>,
    },
}

/// Forward, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The step.
    Forward,
    /// Its undo.
    Undo,
}

/// One half of one step: what attempts, retries and outcomes belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CourseId {
    /// The step.
    pub step: StepIx,
    /// Which half.
    pub direction: Direction,
}

impl CourseId {
    /// The step itself.
    pub fn forward(step: StepIx) -> Self {
        Self { step, direction: Direction::Forward }
    }

    /// The step's undo.
    pub fn undo(step: StepIx) -> Self {
        Self { step, direction: Direction::Undo }
    }
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every step came to its end.
    Succeeded,
    /// It succeeded and was made final.
    Committed,
    /// Everything that was started is undone.
    RolledBack,
    /// Somebody took what is left upon himself.
    Closed,
}

/// Why a run could be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimReason {
    /// Nobody had it: it is new, or its time has come, or its node handed it over.
    Free,
    /// Its node lost its lease.
    LostLease,
}

/// What the world said about an attempt in doubt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// The effect is there; the output follows as the result.
    Present,
    /// It is not there.
    Absent,
    /// Some of it is there.
    Partial,
    /// It could not be found out.
    Unknown {
        /// Why.
        why: String,
    },
}

/// The code of a failure that says that the target as a whole does not answer.
pub const TARGET_DOWN: &str = "target_down";

/// The code of a failure that only people can mend: credentials, permissions, quotas. A step that fails so for good is held
/// where another failure would roll the run back: to undo it takes the same credentials.
pub const NEEDS_OPERATOR: &str = "needs_operator";

/// A failure as data: it outlives the process that saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActivityError {
    /// Stable, for programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// Trying again can help.
    pub retryable: bool,
    /// The target asked to be left alone for so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Span>,
    /// Whether the effect may have happened.
    pub applied: Applied,
    /// More, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
}

/// Whether a failed attempt may have had its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Applied {
    /// It has not, and will not.
    No,
    /// Nobody knows.
    Maybe,
}

/// The idempotency key of a course's generation: the same on every node and after every crash.
pub fn idempotency_key(run: RunId, step: &str, direction: Direction, generation: u32) -> Uuid {
    let half = match direction {
        Direction::Forward => "do",
        Direction::Undo => "undo",
    };
    Uuid::new_v5(&run.0, format!("{step}/{half}/{generation}").as_bytes())
}

/// An event as a row of the table `journal`.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its position.
    pub seq: Seq,
    /// The owner's claim.
    pub claim: ClaimNo,
    /// The owner's life.
    pub epoch: i64,
    /// When.
    pub at: Time,
    /// Which event.
    pub kind: &'static str,
    /// The step, where it is about one.
    pub step: Option<Arc<str>>,
    /// About the step's undo.
    pub undo: bool,
    /// The generation; 0 where it is not about a step.
    pub generation: i32,
    /// The attempt.
    pub attempt: i32,
    /// The idempotency key; of an action its id.
    pub key: Option<Uuid>,
    /// The rest: the plan, an input, an output, an error.
    pub body: Option<Json>,
    /// What the chain over the run's rows has come to with this one, on some of them.
    pub seal: Option<[u8; 32]>,
}

/// Every kind there is. A row of another kind comes from a newer release, or from a hand.
pub const KINDS: [&str; 26] = [
    "submitted",
    "claimed",
    "started",
    "checkpointed",
    "progressed",
    "succeeded",
    "failed",
    "probed",
    "held",
    "retried",
    "hastened",
    "skipped",
    "recalled",
    "waived",
    "resource",
    "acted",
    "refused",
    "checking",
    "compared",
    "checked",
    "drifted",
    "committing",
    "rolling_back",
    "stuck",
    "quarantined",
    "finished",
];

/// The kind of that name.
pub fn kind(name: &str) -> Option<&'static str> {
    KINDS.into_iter().find(|kind| *kind == name)
}

/// A row that no event of this release can be read from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {seq} ({kind}) cannot be read: {why}")]
pub struct Undecodable {
    /// The position.
    pub seq: Seq,
    /// Its kind.
    pub kind: String,
    /// What is wrong with it.
    pub why: String,
}

/// The plan is read apart, before anything else of a run is.
#[derive(Deserialize)]
struct SubmittedBody {
    #[serde(default)]
    by: Option<Box<Sender>>,
}

#[derive(Serialize, Deserialize)]
struct ClaimedBody {
    node: String,
    reason: ClaimReason,
}
#[derive(Serialize, Deserialize)]
struct ProgressBody {
    percent: f64,
    note: String,
}
#[derive(Serialize, Deserialize)]
struct FailedBody {
    error: ActivityError,
    retry_at: Option<Time>,
}
#[derive(Serialize, Deserialize)]
struct ProbedBody {
    #[serde(flatten)]
    answer: Answer,
    ask_again_at: Option<Time>,
}
#[derive(Serialize, Deserialize)]
struct WhyBody {
    why: String,
}
#[derive(Serialize, Deserialize)]
struct RollingBackBody {
    why: String,
    #[serde(default, skip_serializing_if = "RollBack::is_plain")]
    how: RollBack,
}
#[derive(Serialize, Deserialize)]
struct CheckingBody {
    why: String,
    then: Option<RollBack>,
}
#[derive(Serialize, Deserialize)]
struct DriftedBody {
    differences: Vec<String>,
}
#[derive(Serialize, Deserialize)]
struct ComparedBody {
    difference: Option<String>,
}
#[derive(Serialize, Deserialize)]
struct RetriedBody {
    input: Json,
}
#[derive(Serialize, Deserialize)]
struct ResourceBody {
    kind: String,
    name: String,
    fate: Fate,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    details: Option<Value>,
}
#[derive(Serialize, Deserialize)]
struct RefusedBody {
    because: String,
    action: Action,
}
#[derive(Serialize, Deserialize)]
struct StuckBody {
    steps: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    resources: Vec<String>,
}
#[derive(Serialize, Deserialize)]
struct FinishedBody {
    outcome: Outcome,
}

/// None of these bodies can fail to serialize; if one ever did, a null body is refused when it is read.
fn body<T: Serialize>(value: &T) -> Option<Json> {
    Some(Json::from_serialize(value).unwrap_or_else(|_| Json::null()))
}

impl Row {
    /// An action's id stands where the idempotency key of an attempt does.
    fn about(&mut self, action: &Action, plan: &Plan) {
        self.key = Some(action.id);
        if let Some((name, undo)) = action.verb.step()
            && let Some(ix) = plan.find(name)
        {
            self.step = Some(plan.step(ix).name.clone());
            self.undo = undo;
        }
    }
}

impl Journaled {
    /// The event as a row.
    pub fn to_row(&self, plan: &Plan) -> Row {
        let mut row = Row {
            seq: self.seq,
            claim: self.claim,
            epoch: self.epoch.0,
            at: self.at,
            kind: "",
            step: None,
            undo: false,
            generation: 0,
            attempt: 0,
            key: None,
            body: None,
            seal: None,
        };
        (row.kind, row.body) = match &self.event {
            Event::Submitted { by: None } => ("submitted", Some(plan.submitted().clone())),
            Event::Submitted { by: Some(by) } => ("submitted", plan.submitted_by(by)),
            Event::Claimed { node, reason } => {
                ("claimed", body(&ClaimedBody { node: node.clone(), reason: *reason }))
            }
            Event::Acted(action) => {
                row.about(action, plan);
                ("acted", body(action))
            }
            Event::Refused { action, because } => {
                row.about(action, plan);
                let refused = RefusedBody { because: because.clone(), action: Action::clone(action) };
                ("refused", body(&refused))
            }
            Event::Checking { then, because } => {
                ("checking", body(&CheckingBody { why: because.clone(), then: then.clone() }))
            }
            Event::Checked => ("checked", None),
            Event::Drifted { differences } => {
                ("drifted", body(&DriftedBody { differences: differences.clone() }))
            }
            Event::Committing { because } => ("committing", body(&WhyBody { why: because.clone() })),
            Event::RollingBack { because, how } => {
                ("rolling_back", body(&RollingBackBody { why: because.clone(), how: how.clone() }))
            }
            Event::Stuck { steps, resources } => {
                ("stuck", body(&StuckBody { steps: steps.clone(), resources: resources.clone() }))
            }
            Event::Quarantined { why } => ("quarantined", body(&WhyBody { why: why.clone() })),
            Event::Finished { outcome } => ("finished", body(&FinishedBody { outcome: *outcome })),
            Event::Step { course, generation, attempt, what } => {
                row.step = Some(plan.step(course.step).name.clone());
                row.undo = course.direction == Direction::Undo;
                row.generation = *generation as i32;
                row.attempt = *attempt as i32;
                match what {
                    StepEvent::Started { key, input } => {
                        row.key = Some(*key);
                        ("started", input.clone())
                    }
                    StepEvent::Checkpointed { value } => ("checkpointed", Some(value.clone())),
                    StepEvent::Progressed { percent, note } => {
                        // JSON has no NaN: it would be written as null, and the journal could not be read again.
                        let percent = if percent.is_finite() { percent.clamp(0.0, 100.0) } else { 0.0 };
                        ("progressed", body(&ProgressBody { percent, note: note.clone() }))
                    }
                    StepEvent::Succeeded { output } => ("succeeded", Some(output.clone())),
                    StepEvent::Failed { error, retry_at } => {
                        ("failed", body(&FailedBody { error: error.clone(), retry_at: *retry_at }))
                    }
                    StepEvent::Probed { answer, ask_again_at } => {
                        ("probed", body(&ProbedBody { answer: answer.clone(), ask_again_at: *ask_again_at }))
                    }
                    StepEvent::Held { why } => ("held", body(&WhyBody { why: why.clone() })),
                    StepEvent::Retried { input: None } => ("retried", None),
                    StepEvent::Retried { input: Some(input) } => {
                        ("retried", body(&RetriedBody { input: input.clone() }))
                    }
                    StepEvent::Hastened => ("hastened", None),
                    StepEvent::Skipped { output } => ("skipped", Some(output.clone())),
                    StepEvent::Recalled => ("recalled", None),
                    StepEvent::Waived => ("waived", None),
                    StepEvent::Compared { difference } => {
                        ("compared", body(&ComparedBody { difference: difference.clone() }))
                    }
                    StepEvent::Resource { kind, name, fate, details } => {
                        let (kind, name, details) = (kind.clone(), name.clone(), details.clone());
                        ("resource", body(&ResourceBody { kind, name, fate: *fate, details }))
                    }
                }
            }
        };
        row
    }

    /// Reads a row. The plan comes from the run's first row.
    pub fn from_row(row: &Row, plan: &Plan) -> Result<Journaled, Undecodable> {
        let event =
            read(row, plan).map_err(|why| Undecodable { seq: row.seq, kind: row.kind.to_owned(), why })?;
        Ok(Journaled { seq: row.seq, claim: row.claim, epoch: Epoch(row.epoch), at: row.at, event })
    }
}

fn read(row: &Row, plan: &Plan) -> Result<Event, String> {
    let what = match row.kind {
        "submitted" => return parsed(row).map(|SubmittedBody { by }| Event::Submitted { by }),
        "claimed" => {
            let ClaimedBody { node, reason } = parsed(row)?;
            return Ok(Event::Claimed { node, reason });
        }
        "acted" => return parsed(row).map(|action| Event::Acted(Box::new(action))),
        "refused" => {
            let RefusedBody { because, action } = parsed(row)?;
            return Ok(Event::Refused { action: Box::new(action), because });
        }
        "checking" => {
            let CheckingBody { why, then } = parsed(row)?;
            return Ok(Event::Checking { then, because: why });
        }
        "checked" => return Ok(Event::Checked),
        "drifted" => {
            return parsed(row).map(|DriftedBody { differences }| Event::Drifted { differences });
        }
        "committing" => return parsed(row).map(|WhyBody { why }| Event::Committing { because: why }),
        "rolling_back" => {
            let RollingBackBody { why, how } = parsed(row)?;
            return Ok(Event::RollingBack { because: why, how });
        }
        "stuck" => {
            return parsed(row).map(|StuckBody { steps, resources }| Event::Stuck { steps, resources });
        }
        "quarantined" => return parsed(row).map(|WhyBody { why }| Event::Quarantined { why }),
        "finished" => return parsed(row).map(|FinishedBody { outcome }| Event::Finished { outcome }),
        "started" => {
            StepEvent::Started { key: row.key.ok_or("it has no idempotency key")?, input: row.body.clone() }
        }
        "checkpointed" => StepEvent::Checkpointed { value: whole(row)? },
        "progressed" => {
            let ProgressBody { percent, note } = parsed(row)?;
            // As it is written: whoever draws it counts on that.
            StepEvent::Progressed { percent: percent.clamp(0.0, 100.0), note }
        }
        "succeeded" => StepEvent::Succeeded { output: whole(row)? },
        "failed" => {
            let FailedBody { error, retry_at } = parsed(row)?;
            StepEvent::Failed { error, retry_at }
        }
        "probed" => {
            let ProbedBody { answer, ask_again_at } = parsed(row)?;
            StepEvent::Probed { answer, ask_again_at }
        }
        "held" => StepEvent::Held { why: parsed::<WhyBody>(row)?.why },
        "retried" if row.body.is_none() => StepEvent::Retried { input: None },
        "retried" => StepEvent::Retried { input: Some(parsed::<RetriedBody>(row)?.input) },
        "hastened" => StepEvent::Hastened,
        "skipped" => StepEvent::Skipped { output: whole(row)? },
        "recalled" => StepEvent::Recalled,
        "waived" => StepEvent::Waived,
        "compared" => StepEvent::Compared { difference: parsed::<ComparedBody>(row)?.difference },
        "resource" => {
            let ResourceBody { kind, name, fate, details } = parsed(row)?;
            StepEvent::Resource { kind, name, fate, details }
        }
        _ => return Err("this release knows no such event; it was written by a newer one, or by hand".into()),
    };
    let name = row.step.as_deref().ok_or("it names no step")?;
    let step = plan.find(name).ok_or_else(|| format!("the plan has no step \"{name}\""))?;
    let number = |n: i32, what| u32::try_from(n).map_err(|_| format!("its {what} is {n}"));
    Ok(Event::Step {
        course: CourseId { step, direction: if row.undo { Direction::Undo } else { Direction::Forward } },
        generation: number(row.generation, "generation")?,
        attempt: number(row.attempt, "attempt")?,
        what,
    })
}

fn whole(row: &Row) -> Result<Json, String> {
    row.body.clone().ok_or_else(|| "it has no body".into())
}

fn parsed<'a, T: Deserialize<'a>>(row: &'a Row) -> Result<T, String> {
    row.body
        .as_ref()
        .ok_or("it has no body")?
        .read()
        .map_err(|error| format!("its body is not understood: {error}"))
}
