//! Submitting runs, and looking at them.

use std::time::Duration;

use axum::http::{Method, header};
use backstay_engine::machine::{Explanation, Plan, PlanSpec, Status, Time};
use backstay_engine::{RunFilter, RunId, SubmitOptions};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::gate::Permit;
use super::operation::{Ask, InJson, Operation, Reply, Taken, Text, operation};
use super::problem::{
    AWAY, BAD_PLAN, BAD_REQUEST, EXCLUSIVE, FORBIDDEN, KEY_REUSED, NOT_FOUND, Problem, REMOVED,
};
use super::rights::Right;
use super::views::{EventView, Page, ResourceView, Run, StepView, steps};
use super::workflows;

/// Whoever submits is told to come again after so long.
const LONGEST_SUBMIT: Duration = Duration::from_secs(5);

pub(super) fn operations() -> Vec<Operation> {
    vec![
        operation(Method::POST, "/runs", "submitRun", Right::Submit, submit)
            .about("runs", "Submits a run. It is durable once this is answered, and goes on whatever becomes of the caller.")
            .fails(&[&BAD_PLAN, &KEY_REUSED, &EXCLUSIVE, &REMOVED]),
        operation(Method::GET, "/runs", "listRuns", Right::View, list)
            .about("runs", "Lists runs, the newest first. Filters are combined."),
        operation(Method::GET, "/runs/{run}", "getRun", Right::View, one)
            .about("runs", "One run. Its ETag is the position of its last event.")
            .fails(&[&NOT_FOUND]),
        operation(Method::GET, "/runs/{run}/journal", "getJournal", Right::View, journal)
            .about("runs", "The events of a run, in the order they happened.")
            .fails(&[&NOT_FOUND]),
        operation(Method::GET, "/runs/{run}/steps", "listSteps", Right::View, list_steps)
            .about("runs", "The steps of a run and their undos, as they are now.")
            .fails(&[&NOT_FOUND]),
        operation(Method::GET, "/runs/{run}/resources", "listResources", Right::View, resources)
            .about("runs", "What exists outside because of a run, or did.")
            .fails(&[&NOT_FOUND]),
        operation(Method::GET, "/runs/{run}/explanation", "explainRun", Right::View, explain)
            .about("runs", "Why a run does not move, since when, what will unblock it, and how long the rest is likely to take.")
            .fails(&[&NOT_FOUND]),
        operation(Method::GET, "/runs/{run}/runbook", "exportRun", Right::View, runbook)
            .about("runs", "A run as a page (Markdown) from which a person can finish it by hand, or undo it.")
            .fails(&[&NOT_FOUND]),
    ]
}

/// A run, in the path.
#[derive(Deserialize, JsonSchema)]
pub(super) struct OfRun {
    /// The run's id.
    pub run: RunId,
}

/// What is submitted.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Submit {
    /// The workflow, by its name. Either this or `plan`.
    #[serde(default)]
    workflow: Option<String>,
    /// The workflow's input.
    #[serde(default)]
    input: Option<Value>,
    /// A plan of one's own; it needs the right `define` as well.
    #[serde(default)]
    plan: Option<PlanSpec>,
    /// At most one live run holds it: one failover for each machine. Left out: what the workflow says.
    #[serde(default)]
    #[schemars(length(min = 1, max = 200))]
    exclusive: Option<String>,
    /// If another run holds the exclusive key, it stands in line for it. Otherwise it is refused.
    #[serde(default)]
    queue: bool,
    /// For finding it again: short texts.
    #[serde(default)]
    labels: Map<String, Value>,
    /// 0 low, 1 normal, 2 high.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2))]
    priority: Option<i16>,
    /// Why it is submitted; it is kept with it.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    why: String,
}

async fn submit(permit: Permit, ask: Ask<(), (), InJson<Submit>>) -> Result<Taken<Run>, Problem> {
    let InJson(mut asked) = ask.body;
    let spec = match (asked.workflow, asked.input, asked.plan) {
        (Some(name), input, None) => {
            let workflow = workflows::named(&permit, &name)?;
            let input = input.unwrap_or_else(|| Value::Object(Map::new()));
            permit.may_name(&input).await?;
            let made = workflows::prepared(&*workflow, &input)?;
            asked.exclusive = asked.exclusive.or(made.exclusive);
            let version = [("workflow_version".to_owned(), made.version)];
            let labels =
                made.labels.into_iter().chain(version).map(|(name, value)| (name, Value::from(value)));
            // What the caller says wins over what the workflow says.
            asked.labels = labels.chain(asked.labels).collect();
            made.plan
        }
        (None, None, Some(spec)) => {
            permit.also(Right::Define).await?;
            spec
        }
        _ => {
            let what = "it needs a workflow, perhaps with an input, or a plan";
            return Err(Problem::at(&BAD_REQUEST, "body", what));
        }
    };
    if !permit.covers(&spec.workflow) {
        return Err(Problem::new(&FORBIDDEN, format!("the token is not about \"{}\"", spec.workflow)));
    }
    if spec.parent.is_some() {
        return Err(Problem::at(
            &BAD_REQUEST,
            "body/plan/parent",
            "only the engine begins runs that are steps of others",
        ));
    }
    let plan = Plan::check(spec, permit.engine().registry())?;
    let options = SubmitOptions {
        // Two callers who think of the same key mean two runs.
        asked: ask.key.is_some().then(|| ask.digest.iter().map(|byte| format!("{byte:02x}")).collect()),
        key: ask.key.map(|key| format!("{}/{key}", permit.who())),
        exclusive: asked.exclusive,
        queue: asked.queue,
        labels: Value::Object(asked.labels),
        priority: asked.priority,
        by: Some(permit.sender(asked.why)),
    };
    // The node writes it together with what else it has to write, however long the database is away.
    let submitted = tokio::time::timeout(LONGEST_SUBMIT, permit.engine().submit(&plan, options)).await;
    let submitted = submitted.map_err(|_| {
        let detail = format!(
            "the database has not taken the run within {} s; whether it will is not known: ask again with the same \
             Idempotency-Key",
            LONGEST_SUBMIT.as_secs()
        );
        Problem::new(&AWAY, detail).retry_after(2)
    })??;
    tracing::Span::current().record("run", submitted.run.to_string());
    // What was written just now need not be read.
    let info = match submitted.first {
        Some(first) => Some(first),
        None => permit.store().get(submitted.run).await?,
    };
    let Some(info) = info else {
        let detail =
            format!("run {} was submitted under this key; it is over, and was removed", submitted.run);
        return Err(Problem::new(&REMOVED, detail).with("run", submitted.run.to_string()));
    };
    Ok(Taken::new(info.into()).with(header::LOCATION, format!("{}/runs/{}", super::BASE, submitted.run)))
}

/// Which runs.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    /// Only in this status.
    #[serde(default)]
    pub status: Option<Status>,
    /// Only of this workflow.
    #[serde(default)]
    pub workflow: Option<String>,
    /// Only with these labels, as in `site:west,tier:1`.
    #[serde(default)]
    #[schemars(regex(pattern = r"^[^:,]+:[^,]*(,[^:,]+:[^,]*)*$"))]
    pub labels: Option<String>,
    /// Only the one that holds, or held, this exclusive key.
    #[serde(default)]
    pub exclusive: Option<String>,
    /// Only those in which this step, or its undo, has failed or is held, and has not succeeded since.
    #[serde(default)]
    pub failing: Option<String>,
    /// Only those that are not over.
    #[serde(default)]
    pub live: bool,
    /// Only those submitted at this time or later.
    #[serde(default)]
    pub since: Option<Time>,
    /// Only those submitted before this time.
    #[serde(default)]
    pub until: Option<Time>,
    /// At most so many: 1 to 500.
    #[serde(default)]
    #[schemars(range(min = 1, max = 500))]
    pub limit: Option<u32>,
    /// Only those that come after this one: `next` of the page before.
    #[serde(default)]
    pub cursor: Option<RunId>,
}

impl Which {
    /// For the engine; never more than the token is about.
    pub(super) fn filter(self, permit: &Permit) -> Result<RunFilter, Problem> {
        let labels = labels(self.labels.as_deref())?;
        let any_text = [&self.workflow, &self.labels, &self.exclusive, &self.failing];
        if any_text.iter().any(|text| text.as_ref().is_some_and(|text| text.contains('\0'))) {
            return Err(Problem::at(
                &BAD_REQUEST,
                "query",
                "it holds the character U+0000, which nothing here has",
            ));
        }
        Ok(RunFilter {
            status: self.status,
            workflow: self.workflow,
            workflows: permit.workflows().map(<[String]>::to_vec),
            live: self.live,
            labels: if labels.is_empty() { Value::Null } else { Value::Object(labels) },
            exclusive: self.exclusive,
            failing: self.failing,
            since: self.since,
            until: self.until,
            before: self.cursor,
            limit: 0,
        })
    }
}

/// As they stand in a query.
pub(crate) fn labels(text: Option<&str>) -> Result<Map<String, Value>, Problem> {
    let mut labels = Map::new();
    for pair in text.iter().flat_map(|text| text.split(',')) {
        let Some((name, value)) = pair.split_once(':') else {
            return Err(Problem::at(&BAD_REQUEST, "query/labels", "it looks like site:west,tier:1"));
        };
        labels.insert(name.trim().to_owned(), Value::from(value.trim()));
    }
    Ok(labels)
}

async fn list(permit: Permit, ask: Ask<(), Which, ()>) -> Result<Reply<Page<Run>>, Problem> {
    let limit = limited(ask.query.limit)?;
    // One more than asked for shows whether there is another page.
    let filter = RunFilter { limit: limit + 1, ..ask.query.filter(&permit)? };
    let mut found = permit.engine().list(&filter).await?;
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next = more.then(|| found.last().map(|run| run.run.to_string())).flatten();
    Ok(Reply::new(Page { items: found.into_iter().map(Run::from).collect(), next }))
}

/// How long a page is.
pub(super) fn limited(limit: Option<u32>) -> Result<u32, Problem> {
    match limit {
        None => Ok(100),
        Some(limit @ 1..=500) => Ok(limit),
        Some(_) => Err(Problem::at(&BAD_REQUEST, "query/limit", "it is 1 to 500")),
    }
}

async fn one(permit: Permit, ask: Ask<OfRun, (), ()>) -> Result<Reply<Run>, Problem> {
    let info = permit.run(ask.path.run).await?;
    let seq = permit.store().last_seq(info.run).await?;
    Ok(Reply::new(Run::from(info)).version(seq))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Part {
    /// Only events after this one.
    #[serde(default)]
    #[schemars(range(min = 0))]
    after: i64,
    /// At most so many: 1 to 500.
    #[serde(default)]
    #[schemars(range(min = 1, max = 500))]
    limit: Option<u32>,
}

async fn journal(permit: Permit, ask: Ask<OfRun, Part, ()>) -> Result<Reply<Page<EventView>>, Problem> {
    let limit = limited(ask.query.limit)?;
    let run = permit.run(ask.path.run).await?.run;
    let mut rows = permit.store().journal(run, ask.query.after, i64::from(limit) + 1).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next = more.then(|| rows.last().map(|row| row.seq.to_string())).flatten();
    Ok(Reply::new(Page { items: rows.into_iter().map(EventView::from).collect(), next }))
}

async fn list_steps(permit: Permit, ask: Ask<OfRun, (), ()>) -> Result<Reply<Vec<StepView>>, Problem> {
    let run = permit.run(ask.path.run).await?.run;
    let state = permit.engine().state(run).await?;
    let children = permit.engine().children(&state).await?;
    Ok(Reply::new(steps(&state, &children)).version(state.seq()))
}

async fn resources(permit: Permit, ask: Ask<OfRun, (), ()>) -> Result<Reply<Vec<ResourceView>>, Problem> {
    let run = permit.run(ask.path.run).await?.run;
    let state = permit.engine().state(run).await?;
    Ok(Reply::new(state.resources().map(ResourceView::from).collect::<Vec<_>>()).version(state.seq()))
}

async fn explain(permit: Permit, ask: Ask<OfRun, (), ()>) -> Result<Reply<Explanation>, Problem> {
    let run = permit.run(ask.path.run).await?.run;
    Ok(Reply::new(permit.engine().explain(run).await?))
}

async fn runbook(permit: Permit, ask: Ask<OfRun, (), ()>) -> Result<Text, Problem> {
    let run = permit.run(ask.path.run).await?.run;
    Ok(Text("text/markdown; charset=utf-8", permit.engine().runbook(run).await?))
}
