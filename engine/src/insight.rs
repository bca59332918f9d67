//! What people want to know of runs: why one does not move, how to finish it by hand, and whether a new release could
//! go on with all of them.

use std::collections::HashMap;

use backstay_machine::plan::{Fit, Source, Span, Work};
use backstay_machine::{
    Catalog, CourseId, Direction, Driven, Explanation, Json, RunId, State, Status, StepIx, Time, explain,
    forecast, runbook,
};
use serde::Serialize;

use crate::engine::{Engine, EngineError};
use crate::store::{Outage, RunFilter};

/// What a new release would make of a live run.
#[derive(Clone, Debug, Serialize)]
pub struct Continuation {
    /// The run.
    pub run: RunId,
    /// Its workflow.
    pub workflow: String,
    /// Where it is.
    pub status: Status,
    /// Activities that it needs and the release has not.
    pub missing: Vec<String>,
    /// Outputs in its journal that no longer fit, and why.
    pub misfits: Vec<String>,
    /// Its journal cannot be read by this release.
    pub unreadable: Option<String>,
}

impl Continuation {
    /// Whether the release could go on with it.
    pub fn goes_on(&self) -> bool {
        self.missing.is_empty() && self.misfits.is_empty() && self.unreadable.is_none()
    }
}

/// A run that is a step of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Child {
    /// The step that it is.
    pub step: String,
    /// The run.
    pub run: RunId,
    /// Where it is.
    pub status: Status,
    /// Its steps that are settled, in the direction it goes.
    pub done: usize,
    /// All its steps.
    pub steps: usize,
}

impl Engine {
    /// How far the runs are that are steps of this one. One that has not begun, or was removed, is not in it.
    pub async fn children(&self, state: &State) -> Result<Vec<Child>, EngineError> {
        let mut children = Vec::new();
        for (ix, step) in state.plan().steps() {
            let Some(run) = state.run_of(ix) else { continue };
            let child = match self.state(run).await {
                Err(EngineError::NoSuchRun(_)) => continue,
                other => other?,
            };
            let (done, steps) = child.progress();
            let status = self.get(run).await?.status;
            children.push(Child { step: step.name.to_string(), run, status, done, steps });
        }
        Ok(children)
    }

    /// A run's state, folded from its whole journal.
    pub async fn state(&self, run: RunId) -> Result<State, EngineError> {
        let rows = self.journal(run).await?;
        State::from_rows(run, &rows).map_err(|why| EngineError::Unreadable { run, why })
    }

    /// Why a run does not move, since when, what will unblock it, and how long the rest is likely to take.
    pub async fn explain(&self, run: RunId) -> Result<Explanation, EngineError> {
        // Who has it first: what the journal says is then at least as new.
        let (driven, now) = self.driven(run).await?;
        let state = self.state(run).await?;
        let took: HashMap<(String, bool), f64> = self
            .store()
            .durations(state.plan().workflow())
            .await?
            .into_iter()
            .map(|(step, undo, seconds)| ((step, undo), seconds))
            .collect();
        let rest = forecast(&state, now, |id: CourseId| {
            let name = state.plan().step(id.step).name.to_string();
            let seconds = took.get(&(name, id.direction == Direction::Undo))?;
            std::time::Duration::try_from_secs_f64(*seconds).ok().map(Span)
        });
        let mut explanation = explain(&state, &driven, now, rest);
        if let Some(pool) = &explanation.pool
            && let Some(outage) = self.store().pools(Some(pool)).await?.pop().and_then(|pool| pool.outage)
        {
            let Outage { since, why, declarer, next_try, .. } = outage;
            explanation.why += &format!("; that target is down since {since}: {why}");
            explanation.unblocked_by = match (declarer, next_try) {
                (Some(who), _) => format!("an operator: {who} declared the outage, and a person ends it"),
                (None, Some(at)) => format!("the end of the outage: the target is tried again at {at}"),
                (None, None) => "the end of the outage".into(),
            };
        }
        Ok(explanation)
    }

    /// A run as a page from which a person can finish it by hand, or undo it.
    pub async fn runbook(&self, run: RunId) -> Result<String, EngineError> {
        let (_, now) = self.driven(run).await?;
        Ok(runbook(&self.state(run).await?, now))
    }

    /// What a release with these activities would make of every live run: who goes on, who needs an activity that is
    /// missing, whose outputs no longer fit. Reads only.
    pub async fn preview(&self, activities: &dyn Catalog) -> Result<Vec<Continuation>, EngineError> {
        let mut found = Vec::new();
        let mut filter = RunFilter { limit: 500, live: true, ..RunFilter::default() };
        loop {
            let page = self.list(&filter).await?;
            let Some(last) = page.last() else { return Ok(found) };
            filter.before = Some(last.run);
            for info in page {
                let mut continuation = Continuation {
                    run: info.run,
                    workflow: info.workflow,
                    status: info.status,
                    missing: Vec::new(),
                    misfits: Vec::new(),
                    unreadable: None,
                };
                match self.state(info.run).await {
                    Ok(state) => judge(&state, activities, &mut continuation),
                    Err(EngineError::Unreadable { why, .. }) => continuation.unreadable = Some(why),
                    Err(error) => return Err(error),
                }
                found.push(continuation);
            }
        }
    }

    /// Live runs that nothing will move, and why. There must be none: a figure for alarms.
    pub async fn silent(&self) -> Result<Vec<(RunId, String)>, EngineError> {
        Ok(self.store().silent(1_000).await?)
    }

    async fn driven(&self, run: RunId) -> Result<(Driven, Time), EngineError> {
        self.store().driven(run).await?.ok_or(EngineError::NoSuchRun(run))
    }
}

fn judge(state: &State, activities: &dyn Catalog, found: &mut Continuation) {
    let plan = state.plan();
    let has = |name: &&String| activities.activity(name).is_none();
    found.missing = plan.activities().iter().filter(has).cloned().collect();
    let mut schemas: HashMap<&str, Option<Fit>> = HashMap::new();
    let outputs = plan.steps().filter_map(|(ix, step)| {
        let output: &Json = state.course(CourseId::forward(ix)).output()?;
        Some((ix, step, output))
    });
    for (ix, step, output) in outputs {
        let Some(activity) = activities.activity(&step.forward.activity) else { continue };
        let schema =
            schemas.entry(&step.forward.activity).or_insert_with(|| Fit::to(&activity.output)).as_ref();
        if is_read(state, ix)
            && let Some(wrong) = schema.and_then(|schema| schema.misfit(&output.value()))
        {
            found.misfits.push(format!("{}: {wrong}", step.name));
        }
    }
}

/// Whether something that is still to come reads a step's output: what nobody reads any more need not fit.
fn is_read(state: &State, ix: StepIx) -> bool {
    let plan = state.plan();
    plan.steps().any(|(reader, step)| {
        let reads = |work: &Work, own: bool| {
            work.input.bound().iter().any(|bound| match bound.source {
                Source::Step(of) => of == ix,
                Source::Own => own && reader == ix,
            })
        };
        let forward = !state.course(CourseId::forward(reader)).at.is_done() && reads(&step.forward, false);
        let undo = step.undo.as_ref().is_some_and(|undo| reads(undo, true))
            && !state.course(CourseId::undo(reader)).at.is_done();
        forward || undo
    })
}
