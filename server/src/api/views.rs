//! Runs as callers see them.

use backstay_engine::machine::{Course, CourseAt, CourseId, Fate, Resource, Row, State, Status, Time};
use backstay_engine::{Child, RunId, RunInfo};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

/// A run, as the index knows it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Run {
    /// Its id; ids are ordered by time.
    pub run: RunId,
    /// The workflow's name.
    pub workflow: String,
    /// Where it is.
    pub status: Status,
    /// The plan's hash: what an approval is for.
    pub plan_hash: String,
    /// 0 low, 1 normal, 2 high.
    pub priority: i16,
    /// What the client stuck on it.
    pub labels: Value,
    /// What no other live run holds.
    pub exclusive_key: Option<String>,
    /// When it goes on, if it waits for a time.
    pub due_at: Option<Time>,
    /// Why it waits for people.
    pub note: Option<String>,
    /// When it was submitted.
    pub submitted_at: Time,
    /// When it ended.
    pub finished_at: Option<Time>,
    /// Messages to it that nobody has answered yet.
    pub unanswered: i32,
    /// The steps that failed or are held, or whose undo did: each until it succeeds, or somebody sees to it.
    pub failing: Vec<String>,
}

impl From<RunInfo> for Run {
    fn from(info: RunInfo) -> Self {
        Self {
            run: info.run,
            workflow: info.workflow,
            status: info.status,
            plan_hash: info.plan_hash,
            priority: info.priority,
            labels: info.labels,
            exclusive_key: info.exclusive_key,
            due_at: info.due_at,
            note: info.note,
            submitted_at: info.submitted_at,
            finished_at: info.finished_at,
            unanswered: info.unanswered,
            failing: info.failing,
        }
    }
}

/// One event of a run's journal.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EventView {
    /// Its position, from 1.
    pub seq: i64,
    /// Counts the nodes that took the run over.
    pub claim: i32,
    /// When, by the database's clock.
    pub at: Time,
    /// Which event.
    pub kind: String,
    /// The step, where it is about one.
    pub step: Option<String>,
    /// About the step's undo.
    pub undo: bool,
    /// Counts the operators' retries from the start.
    pub generation: i32,
    /// The attempt.
    pub attempt: i32,
    /// The idempotency key of the attempt; of an action its id.
    pub key: Option<uuid::Uuid>,
    /// The rest: the plan, an input, an output, an error, an action.
    pub body: Option<Value>,
}

impl From<Row> for EventView {
    fn from(row: Row) -> Self {
        Self {
            seq: row.seq,
            claim: row.claim,
            at: row.at,
            kind: row.kind.to_owned(),
            step: row.step.as_deref().map(str::to_owned),
            undo: row.undo,
            generation: row.generation,
            attempt: row.attempt,
            key: row.key,
            body: row.body.map(|body| body.value()),
        }
    }
}

/// A step of a run.
#[derive(Debug, Serialize, JsonSchema)]
pub struct StepView {
    /// Its name.
    pub step: String,
    /// What people read.
    pub title: Option<String>,
    /// The activity.
    pub activity: String,
    /// The steps that it comes after.
    pub after: Vec<String>,
    /// The run that this step is, and how far it is.
    pub child: Option<ChildView>,
    /// Forward.
    pub forward: CourseView,
    /// Its undo; none if there is nothing to undo.
    pub undo: Option<CourseView>,
}

/// A run that is a step of another one.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChildView {
    /// The run.
    pub run: RunId,
    /// Where it is.
    pub status: Status,
    /// Its steps that are settled, in the direction it goes.
    pub done: usize,
    /// All its steps.
    pub steps: usize,
}

/// One half of a step.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CourseView {
    /// Where it is: `untouched`, `running`, `in_doubt`, `backing_off`, `waiting`, `succeeded`, `skipped`, `failed` or `held`.
    pub state: &'static str,
    /// Why, where there is a reason.
    pub why: Option<String>,
    /// When it goes on, if it waits for a time.
    pub until: Option<Time>,
    /// Counts the operators' retries from the start.
    pub generation: u32,
    /// Attempts of this generation.
    pub attempts: u32,
    /// When the first of them started.
    pub started_at: Option<Time>,
    /// Its effect may be there.
    pub may_be_applied: bool,
    /// With the values of other steps' outputs put in.
    pub input: Option<Value>,
    /// The result.
    pub output: Option<Value>,
    /// What the activity saved last.
    pub checkpoint: Option<Value>,
}

impl CourseView {
    fn of(course: &Course) -> Self {
        let (state, why, until) = match &course.at {
            CourseAt::Untouched => ("untouched", None, None),
            CourseAt::Running => ("running", None, None),
            CourseAt::InDoubt { not_before, .. } => {
                let why = "an attempt began, and whether it had its effect is not known";
                ("in_doubt", Some(why.to_owned()), *not_before)
            }
            CourseAt::BackingOff { until } => ("backing_off", None, Some(*until)),
            CourseAt::Waiting(wait) => {
                let why = wait
                    .signal
                    .as_ref()
                    .map(|signal| format!("for the signal \"{signal}\""))
                    .or_else(|| {
                        let (right, people) = wait.approval.as_ref()?;
                        Some(format!("for a yes of {people} with the right \"{right}\""))
                    })
                    .or_else(|| Some(format!("for run {}", wait.run?)));
                ("waiting", why, wait.until.or(wait.expires))
            }
            CourseAt::Succeeded { .. } => ("succeeded", None, None),
            CourseAt::Skipped { .. } => ("skipped", None, None),
            CourseAt::Failed { error } => {
                ("failed", Some(format!("{}: {}", error.code, error.message)), None)
            }
            CourseAt::Held { why } => ("held", Some(why.clone()), None),
        };
        Self {
            state,
            why,
            until,
            generation: course.generation,
            attempts: course.attempts,
            started_at: course.first_started,
            may_be_applied: course.may_be_applied,
            input: course.input.as_ref().map(|json| json.value()),
            output: course.output().map(|json| json.value()),
            checkpoint: course.checkpoint.as_ref().map(|json| json.value()),
        }
    }
}

/// All steps of a run, in an order in which they could run one after the other.
pub fn steps(state: &State, children: &[Child]) -> Vec<StepView> {
    let child = |step: &str| {
        let child = children.iter().find(|child| child.step == step)?;
        Some(ChildView { run: child.run, status: child.status, done: child.done, steps: child.steps })
    };
    let plan = state.plan();
    let name = |ix| plan.step(ix).name.to_string();
    plan.steps()
        .map(|(ix, step)| StepView {
            step: step.name.to_string(),
            title: step.title.clone(),
            activity: step.forward.activity.clone(),
            after: step.after.iter().copied().map(name).collect(),
            child: child(&step.name),
            forward: CourseView::of(state.course(CourseId::forward(ix))),
            undo: step.undo.as_ref().map(|_| CourseView::of(state.course(CourseId::undo(ix)))),
        })
        .collect()
}

/// Something outside that a run made, moved, or was about to.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ResourceView {
    /// The step that it belongs to.
    pub step: String,
    /// Which kind.
    pub kind: String,
    /// Which.
    pub name: String,
    /// What became of it.
    pub fate: Fate,
    /// What helps to find it.
    pub details: Option<Value>,
}

impl From<&Resource> for ResourceView {
    fn from(one: &Resource) -> Self {
        Self {
            step: one.step.to_string(),
            kind: one.kind.clone(),
            name: one.name.clone(),
            fate: one.fate,
            details: one.details.clone(),
        }
    }
}

/// A page of a list.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the next one begins; none on the last page.
    pub next: Option<String>,
}
