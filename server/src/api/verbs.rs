//! What people do to a run: each an operation of its own, with a right of its own. The run's journal keeps who and why,
//! and answers; whichever node is asked.

use axum::http::{Method, header};
use backstay_engine::machine::{Action, Fate, RollBack, Verb};
use backstay_engine::{Answer, EngineError, RunId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::gate::Permit;
use super::operation::{Ask, Content, InJson, Operation, Reply, operation};
use super::problem::{BAD_REQUEST, KEY_REUSED, Kind, NOT_FOUND, Problem, REFUSED};
use super::rights::Right;
use super::runs::OfRun;

pub(super) fn operations() -> Vec<Operation> {
    const FAILS: &[&Kind] = &[&NOT_FOUND, &REFUSED, &KEY_REUSED, &super::problem::MOVED];
    let run = |path, id, right, make: fn(OfRun, Plain) -> Verb| {
        operation(
            Method::POST,
            path,
            id,
            right,
            move |permit, ask: Ask<OfRun, (), InJson<Plain>>| async move {
                let Ask { path, body: InJson(body), key, if_match, .. } = ask;
                let (run, why) = (path.run, body.why.clone());
                act(permit, run, make(path, body), why, key, if_match).await
            },
        )
        .fails(FAILS)
    };
    let step = |path, id, right, make: fn(&str) -> Verb| {
        operation(
            Method::POST,
            path,
            id,
            right,
            move |permit, ask: Ask<OfStep, (), InJson<Plain>>| async move {
                let Ask { path, body: InJson(body), key, if_match, .. } = ask;
                act(permit, path.run, make(&path.step), body.why, key, if_match).await
            },
        )
        .fails(FAILS)
    };
    vec![
        run("/runs/{run}/pause", "pauseRun", Right::Steer, |_, _| Verb::Pause)
            .about("verbs", "Starts nothing more in a run. What is in flight comes to its end."),
        run("/runs/{run}/resume", "resumeRun", Right::Steer, |_, _| Verb::Resume)
            .about("verbs", "Lets a run go on that is paused, or was left alone."),
        run("/runs/{run}/commit", "commitRun", Right::Commit, |_, _| Verb::Commit)
            .about("verbs", "Makes a run final. It cannot be rolled back afterwards, and its finalizing steps run."),
        wide("/runs/{run}/rollback", "rollBackRun", Right::RollBack, |_: &OfRun, body: Rolled| {
            (Verb::RollBack(RollBack { leave: body.leave, past_failures: body.past_failures, past_no_return: body.past_no_return }), body.why)
        })
        .about("verbs", "Undoes what a run has started, in reverse order: while it runs, or after it has succeeded."),
        wide("/runs/{run}/close", "closeRun", Right::Close, |_: &OfRun, body: Closed| {
            (Verb::Close { manifest: body.manifest }, body.why)
        })
        .about("verbs", "Closes a run that is stuck or left alone, with a list of what is left and who sees to it. Nothing is undone."),
        wide("/runs/{run}/signals", "signalRun", Right::Signal, |_: &OfRun, body: Signalled| {
            (Verb::Signal { name: body.name, payload: body.payload }, body.why)
        })
        .about("verbs", "Tells a run something that one of its steps waits for, or will. It is kept until then."),
        wide("/runs/{run}/steps/{step}/retry", "retryStep", Right::Steer, |at: &OfStep, body: Retried| {
            (Verb::Retry { step: at.step.clone(), undo: body.undo, input: body.input, in_doubt: body.in_doubt }, body.why)
        })
        .about("verbs", "Tries a step, or its undo, again: at once if it waits for its next attempt, from the start if it failed or is held. Another input needs the right `edit` as well."),
        wide("/runs/{run}/steps/{step}/skip", "skipStep", Right::Edit, |at: &OfStep, body: Skipped| {
            (Verb::Skip { step: at.step.clone(), undo: body.undo, output: body.output }, body.why)
        })
        .about("verbs", "Goes on as if a step, or its undo, had come to this output: it was done by hand, or is not needed."),
        wide("/runs/{run}/steps/{step}/undo", "undoStep", Right::RollBack, |at: &OfStep, body: Undone| {
            (Verb::UndoStep { step: at.step.clone(), cascade: body.cascade }, body.why)
        })
        .about("verbs", "Undoes one step while the run goes forward; it is held then. Refused while steps that come after it are done, unless they are undone with it."),
        wide("/runs/{run}/steps/{step}/account", "accountForResource", Right::Edit, |at: &OfStep, body: Accounted| {
            let became = match body.became { Became::Gone => Fate::Gone, Became::Kept => Fate::Kept };
            (Verb::Account { step: at.step.clone(), kind: body.kind, name: body.name, became }, body.why)
        })
        .about("verbs", "Says what became of a resource that nothing else accounts for. The reason is the evidence."),
        step("/runs/{run}/steps/{step}/override", "overrideProof", Right::Override, |step| Verb::Override { step: step.to_owned() })
            .about("verbs", "Lets a step start without the proof that it requires. Unless the plan says otherwise it takes two people."),
        wide("/runs/{run}/steps/{step}/approve", "approveStep", Right::Approve, |at: &OfStep, body: Approved| {
            (Verb::Approve { step: at.step.clone(), right: body.right, plan: body.plan_hash }, body.why)
        })
        .about("verbs", "Says yes to a step that waits for it. The plan's hash says what the yes is for."),
        wide("/runs/{run}/steps/{step}/reject", "rejectStep", Right::Approve, |at: &OfStep, body: Rejected| {
            (Verb::Reject { step: at.step.clone(), right: body.right }, body.why)
        })
        .about("verbs", "Says no to a step that waits for a yes: it fails."),
        operation(Method::GET, "/runs/{run}/actions/{id}", "getAction", Right::View, one)
            .about("verbs", "What became of something that was asked of a run.")
            .fails(&[&NOT_FOUND]),
    ]
}

/// A verb with a body of its own.
fn wide<P, B>(
    path: &'static str,
    id: &'static str,
    right: Right,
    make: fn(&P, B) -> (Verb, String),
) -> Operation
where
    P: Place + serde::de::DeserializeOwned + JsonSchema + Send + Sync + 'static,
    B: serde::de::DeserializeOwned + JsonSchema + Send + 'static,
    InJson<B>: Content,
{
    operation(Method::POST, path, id, right, move |permit: Permit, ask: Ask<P, (), InJson<B>>| async move {
        let (verb, why) = make(&ask.path, ask.body.0);
        if matches!(verb, Verb::Retry { input: Some(_), .. } | Verb::Retry { in_doubt: true, .. }) {
            permit.also(Right::Edit).await?;
        }
        if let Verb::Retry { step, undo, input: Some(input), .. } = &verb {
            let run = permit.run(ask.path.run()).await?.run;
            let state = permit.engine().state(run).await?;
            let written = state.plan().spec().steps.iter().find(|one| one.name == *step);
            permit.may_give(input, written, *undo).await?;
        }
        act(permit, ask.path.run(), verb, why, ask.key, ask.if_match).await
    })
    .fails(&[&NOT_FOUND, &REFUSED, &KEY_REUSED, &super::problem::MOVED])
}

trait Place {
    fn run(&self) -> RunId;
}

impl Place for OfRun {
    fn run(&self) -> RunId {
        self.run
    }
}

impl Place for OfStep {
    fn run(&self) -> RunId {
        self.run
    }
}

/// A step of a run, in the path.
#[derive(Deserialize, JsonSchema)]
pub(super) struct OfStep {
    /// The run's id.
    pub run: RunId,
    /// The step's name.
    pub step: String,
}

/// Why.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Plain {
    /// Why; it is kept with what is done.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    why: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rolled {
    /// Steps that are not undone; what they made is kept.
    #[serde(default)]
    leave: Vec<String>,
    /// An undo that fails for good stops only itself. What is left is listed at the end.
    #[serde(default)]
    past_failures: bool,
    /// Although the run is past its point of no return.
    #[serde(default)]
    past_no_return: bool,
    /// Why; it is kept with what is done.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    why: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Closed {
    /// What is left, and who sees to it.
    manifest: Value,
    /// Why.
    #[schemars(length(min = 1, max = 1000))]
    why: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Signalled {
    /// The signal's name.
    name: String,
    /// What it brings.
    #[serde(default)]
    payload: Value,
    /// Why.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    why: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Retried {
    /// Its undo.
    #[serde(default)]
    undo: bool,
    /// In place of the plan's; the old one is kept in the journal.
    #[serde(default)]
    input: Option<Value>,
    /// Although an earlier attempt may have had its effect, without asking the world first.
    #[serde(default)]
    in_doubt: bool,
    /// Why.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    why: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Skipped {
    /// Its undo; `why` is the evidence.
    #[serde(default)]
    undo: bool,
    /// What the steps that come after it are given.
    output: Value,
    /// Why.
    #[schemars(length(min = 1, max = 1000))]
    why: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Undone {
    /// And the steps that come after it.
    #[serde(default)]
    cascade: bool,
    /// Why.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    why: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Accounted {
    /// Which kind.
    kind: String,
    /// Which.
    name: String,
    /// What became of it.
    became: Became,
    /// The evidence.
    #[schemars(length(min = 1, max = 1000))]
    why: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Became {
    /// It is not there any more.
    Gone,
    /// It is there, and stays.
    Kept,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Approved {
    /// The right that the plan asks for.
    right: String,
    /// The hash of the plan that was looked at.
    plan_hash: String,
    /// Why.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    why: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rejected {
    /// The right that the plan asks for.
    right: String,
    /// Why.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    why: String,
}

/// What became of something that was asked.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Acted {
    /// The id of the asking.
    pub id: Uuid,
    /// The run.
    pub run: RunId,
    /// The event of the journal that says that it was done; none while it waits for its answer.
    pub seq: Option<i64>,
    /// It is durable and will be answered; nobody has yet. Ask again for it.
    pub waiting: bool,
}

pub(super) async fn act(
    permit: Permit,
    run: RunId,
    verb: Verb,
    why: String,
    key: Option<String>,
    seen: Option<i64>,
) -> Result<Reply<Acted>, Problem> {
    permit.run(run).await?;
    let id = permit.id_for(key.as_deref());
    let via = Some(permit.asked().id.clone());
    let action = Action { id, who: permit.who().to_owned(), why, seen, via, verb };
    let answer = match permit.engine().act(run, &action).await {
        Err(EngineError::Action(why)) => return Err(Problem::at(&BAD_REQUEST, "body", why)),
        Err(EngineError::ActionReused { run, .. }) => {
            return Err(Problem::new(
                &KEY_REUSED,
                format!("something else was asked of run {run} under this key"),
            ));
        }
        other => other?,
    };
    acted(run, id, answer)
}

fn acted(run: RunId, id: Uuid, answer: Answer) -> Result<Reply<Acted>, Problem> {
    let place = format!("{}/runs/{run}/actions/{id}", super::BASE);
    let (seq, waiting) = match answer {
        Answer::Accepted { seq } => (Some(seq), false),
        Answer::Waiting => (None, true),
        // It can only be so if the asker said what it saw.
        Answer::Refused { because } if because.ends_with(backstay_engine::machine::MOVED) => {
            return Err(Problem::new(&super::problem::MOVED, because).with("run", run.to_string()));
        }
        Answer::Refused { because } => {
            return Err(Problem::new(&REFUSED, because)
                .with("run", run.to_string())
                .with("action", id.to_string()));
        }
    };
    Ok(Reply::new(Acted { id, run, seq, waiting }).with(header::LOCATION, place))
}

#[derive(Deserialize, JsonSchema)]
struct OfAction {
    /// The run's id.
    run: RunId,
    /// The id of the asking.
    id: Uuid,
}

async fn one(permit: Permit, ask: Ask<OfAction, (), ()>) -> Result<Reply<Acted>, Problem> {
    let OfAction { run, id } = ask.path;
    permit.run(run).await?;
    match permit.engine().answer(run, id).await? {
        Some(answer) => acted(run, id, answer),
        None => Err(Problem::new(&NOT_FOUND, format!("nothing was asked of run {run} under the id {id}"))),
    }
}
