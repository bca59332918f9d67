//! What would run: plans before they are submitted, and those of runs.

use axum::http::Method;
use backstay_engine::machine::plan::Certainty;
use backstay_engine::machine::{Plan, PlanSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::gate::Permit;
use super::operation::{Ask, InJson, Operation, Reply, Text, operation};
use super::problem::{BAD_PLAN, BAD_REQUEST, NOT_FOUND, Problem};
use super::rights::Right;
use super::runs::OfRun;

pub(super) fn operations() -> Vec<Operation> {
    vec![
        operation(Method::POST, "/plans/check", "checkPlan", Right::View, check)
            .about("plans", "Checks a plan without submitting it. The answer has its hash, and what each failure would undo.")
            .fails(&[&BAD_PLAN]),
        operation(Method::POST, "/plans/picture", "drawPlan", Right::View, draw)
            .about("plans", "Draws a plan without submitting it.")
            .fails(&[&BAD_PLAN]),
        operation(Method::GET, "/runs/{run}/plan", "getPlan", Right::View, of_run)
            .about("plans", "The plan of a run, with everything written out, and what each failure would undo.")
            .fails(&[&NOT_FOUND]),
        operation(Method::GET, "/runs/{run}/picture", "drawRun", Right::View, draw_run)
            .about("plans", "Draws the plan of a run.")
            .fails(&[&NOT_FOUND]),
        operation(Method::GET, "/activities", "listActivities", Right::View, activities)
            .about("plans", "The activities that plans can name, with the schemas of their inputs and outputs."),
    ]
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Checked {
    /// The plan.
    plan: PlanSpec,
}

/// What a failure would undo, of all steps or of one.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Failing {
    /// Only if this step fails. A plan of very many steps shows it of some only, unless one is named.
    #[serde(default)]
    pub failing: Option<String>,
}

/// What is shown of failures in one answer: of ten thousand steps each could undo all others, and the answer would have
/// gigabytes. First what is shown, then what is looked at for it.
const SHOWN: (usize, usize) = (20_000, 1_000_000);

/// A plan that was taken.
#[derive(Serialize, JsonSchema)]
pub(crate) struct PlanView {
    /// What an approval is for.
    hash: String,
    /// With everything written out.
    plan: PlanSpec,
    /// For each step: what is undone, in this order, if it fails for good.
    if_fails: Vec<IfFails>,
    /// There are more steps than it is shown of: ask with `failing` for one of them.
    if_fails_cut: bool,
}

#[derive(Serialize, JsonSchema)]
struct IfFails {
    /// The step that fails.
    step: String,
    /// What is undone then.
    undone: Vec<Undo>,
}

#[derive(Serialize, JsonSchema)]
struct Undo {
    /// The step.
    step: String,
    /// By which activity.
    activity: String,
    /// It may not have begun by then.
    if_begun: bool,
}

impl PlanView {
    pub(crate) fn of(plan: &Plan, asked: &Failing) -> Result<Self, Problem> {
        let only = match &asked.failing {
            None => None,
            Some(name) => Some(plan.find(name).ok_or_else(|| {
                Problem::at(&BAD_REQUEST, "query/failing", "the plan has no step of that name")
            })?),
        };
        let mut if_fails = Vec::new();
        let (mut shown, mut looked_at, mut if_fails_cut) = (0, 0, false);
        for (ix, step) in plan.steps().filter(|(ix, _)| only.is_none_or(|only| only == *ix)) {
            if shown > SHOWN.0 || looked_at > SHOWN.1 {
                if_fails_cut = true;
                break;
            }
            let undone = plan.if_fails(ix).into_iter().map(|undoing| Undo {
                step: undoing.step,
                activity: undoing.activity,
                if_begun: undoing.certainty != Certainty::Certain,
            });
            let undone: Vec<_> = undone.collect();
            shown += undone.len();
            looked_at += plan.len();
            if_fails.push(IfFails { step: step.name.to_string(), undone });
        }
        Ok(Self { hash: plan.hash().to_owned(), plan: plan.spec().clone(), if_fails, if_fails_cut })
    }
}

async fn check(permit: Permit, ask: Ask<(), Failing, InJson<Checked>>) -> Result<Reply<PlanView>, Problem> {
    let plan = Plan::check(ask.body.0.plan, permit.engine().registry())?;
    PlanView::of(&plan, &ask.query).map(Reply::new)
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Drawing {
    /// In which language.
    #[serde(rename = "as")]
    pub form: Form,
}

/// How a plan is drawn.
#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Form {
    /// For Graphviz.
    Dot,
    /// For Mermaid.
    Mermaid,
    /// A picture.
    Svg,
}

pub(super) fn drawn(plan: &Plan, form: Form) -> Text {
    match form {
        Form::Dot => Text("text/vnd.graphviz; charset=utf-8", plan.to_dot()),
        Form::Mermaid => Text("text/vnd.mermaid; charset=utf-8", plan.to_mermaid()),
        Form::Svg => Text("image/svg+xml", plan.to_svg()),
    }
}

async fn draw(permit: Permit, ask: Ask<(), Drawing, InJson<Checked>>) -> Result<Text, Problem> {
    let plan = Plan::check(ask.body.0.plan, permit.engine().registry())?;
    Ok(drawn(&plan, ask.query.form))
}

async fn of_run(permit: Permit, ask: Ask<OfRun, Failing, ()>) -> Result<Reply<PlanView>, Problem> {
    let run = permit.run(ask.path.run).await?.run;
    let state = permit.engine().state(run).await?;
    PlanView::of(state.plan(), &ask.query).map(Reply::new)
}

async fn draw_run(permit: Permit, ask: Ask<OfRun, Drawing, ()>) -> Result<Text, Problem> {
    let run = permit.run(ask.path.run).await?.run;
    let state = permit.engine().state(run).await?;
    Ok(drawn(state.plan(), ask.query.form))
}

#[derive(Serialize, JsonSchema)]
struct ActivityView {
    /// The name that plans use.
    name: String,
    /// The schema of its input.
    input: Value,
    /// The schema of its output.
    output: Value,
    /// It can look whether its effect is there.
    probed: bool,
}

async fn activities(permit: Permit, _: Ask<(), (), ()>) -> Result<Reply<Vec<ActivityView>>, Problem> {
    use backstay_engine::machine::Catalog;
    let registry = permit.engine().registry();
    let mut all: Vec<_> = registry
        .names()
        .into_iter()
        .filter_map(|name| registry.activity(name))
        .map(|one| ActivityView {
            name: one.name.clone(),
            input: one.input.clone(),
            output: one.output.clone(),
            probed: one.effect.probed,
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Reply::new(all))
}
