//! The workflows that this server has, and what they would do with an input.

use std::sync::Arc;

use axum::http::Method;
use backstay_engine::machine::Plan;
use backstay_workflows::{Prepared, Workflow};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::gate::Permit;
use super::operation::{Ask, InJson, Operation, Reply, Text, operation};
use super::plans::{Drawing, Failing, PlanView, drawn};
use super::problem::{BAD_PLAN, NOT_FOUND, Problem};
use super::rights::Right;

pub(super) fn operations() -> Vec<Operation> {
    vec![
        operation(Method::GET, "/workflows", "listWorkflows", Right::View, list)
            .about("workflows", "Lists the workflows that runs can be submitted of."),
        operation(Method::GET, "/workflows/{name}", "getWorkflow", Right::View, one)
            .about("workflows", "Describes a workflow: what it is for, and the schema of its input.")
            .fails(&[&NOT_FOUND]),
        operation(Method::POST, "/workflows/{name}/plan", "planWorkflow", Right::View, plan)
            .about("workflows", "The plan that a workflow makes of an input, with its hash, and what each failure would undo. Nothing is submitted.")
            .fails(&[&NOT_FOUND, &BAD_PLAN]),
        operation(Method::POST, "/workflows/{name}/picture", "drawWorkflow", Right::View, draw)
            .about("workflows", "Draws the plan that a workflow makes of an input.")
            .fails(&[&NOT_FOUND, &BAD_PLAN]),
    ]
}

#[derive(Deserialize, JsonSchema)]
struct Named {
    /// The workflow's name.
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct Line {
    /// Its name.
    name: String,
    /// A line for people.
    title: Option<String>,
    /// What it is now; another version may make another plan of the same input.
    version: String,
}

#[derive(Serialize, JsonSchema)]
struct Description {
    /// Its name.
    name: String,
    /// A line for people.
    title: Option<String>,
    /// What it is for.
    description: Option<String>,
    /// What it is now; another version may make another plan of the same input.
    version: String,
    /// JSON Schema of its input.
    input: Value,
    /// The text that it was read from, if it was.
    source: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Given {
    /// The input.
    #[serde(default = "nothing")]
    input: Value,
}

fn nothing() -> Value {
    json!({})
}

/// A plan, and what its run would be submitted with.
#[derive(Serialize, JsonSchema)]
struct Planned {
    /// The version of the workflow that made it.
    version: String,
    /// The key that no two live runs share.
    exclusive: Option<String>,
    /// What the run would be found by.
    labels: Value,
    /// The plan.
    #[serde(flatten)]
    plan: PlanView,
}

async fn list(permit: Permit, _: Ask<(), (), ()>) -> Result<Reply<Vec<Line>>, Problem> {
    let all = permit.settings().workflows.list().filter(|one| permit.covers(one.name()));
    let line = |one: &Arc<dyn Workflow>| Line {
        name: one.name().to_owned(),
        title: one.title().map(str::to_owned),
        version: one.version().to_owned(),
    };
    Ok(Reply::new(all.map(line).collect()))
}

/// A workflow that this caller may know of.
pub(super) fn named(permit: &Permit, name: &str) -> Result<Arc<dyn Workflow>, Problem> {
    let found = permit.settings().workflows.get(name).filter(|_| permit.covers(name));
    found.cloned().ok_or_else(|| {
        let name: String = name.chars().take(100).collect();
        Problem::new(&NOT_FOUND, format!("there is no workflow \"{}\"", name.escape_debug()))
    })
}

/// What it makes of an input: all problems at once.
pub(super) fn prepared(workflow: &dyn Workflow, input: &Value) -> Result<Prepared, Problem> {
    workflow.prepare(input).map_err(|problems| {
        let first = problems.first().map(ToString::to_string).unwrap_or_default();
        let errors: Vec<_> = problems
            .iter()
            .map(|one| json!({ "at": one.place, "rule": one.rule, "message": one.message }))
            .collect();
        Problem::new(&BAD_PLAN, first).with("errors", errors)
    })
}

async fn one(permit: Permit, ask: Ask<Named, (), ()>) -> Result<Reply<Description>, Problem> {
    let one = named(&permit, &ask.path.name)?;
    Ok(Reply::new(Description {
        name: one.name().to_owned(),
        title: one.title().map(str::to_owned),
        description: one.description().map(str::to_owned),
        version: one.version().to_owned(),
        input: one.input_schema(),
        source: one.source().map(str::to_owned),
    }))
}

async fn plan(permit: Permit, ask: Ask<Named, Failing, InJson<Given>>) -> Result<Reply<Planned>, Problem> {
    let workflow = named(&permit, &ask.path.name)?;
    let made = prepared(&*workflow, &ask.body.0.input)?;
    let plan = Plan::check(made.plan, permit.engine().registry())?;
    Ok(Reply::new(Planned {
        version: made.version,
        exclusive: made.exclusive,
        labels: json!(made.labels),
        plan: PlanView::of(&plan, &ask.query)?,
    }))
}

async fn draw(permit: Permit, ask: Ask<Named, Drawing, InJson<Given>>) -> Result<Text, Problem> {
    let workflow = named(&permit, &ask.path.name)?;
    let made = prepared(&*workflow, &ask.body.0.input)?;
    Ok(drawn(&*Plan::check(made.plan, permit.engine().registry())?, ask.query.form))
}
