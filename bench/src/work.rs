//! The activities and plans that are measured.

use std::sync::Arc;
use std::time::Duration;

use backstay_engine::machine::plan::Output;
use backstay_engine::{Activity, Context, Engine, Failure, Plan, PlanBuilder, Registry, Retry, async_trait};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Deserialize, JsonSchema)]
pub(crate) struct Nothing {}

#[derive(Serialize, JsonSchema)]
pub(crate) struct Done {
    ok: bool,
}

/// Does nothing.
pub(crate) struct Noop;

#[async_trait]
impl Activity for Noop {
    const NAME: &'static str = "noop";
    type Input = Nothing;
    type Output = Done;
    async fn run(&self, _: &Context, _: Nothing) -> Result<Done, Failure> {
        Ok(Done { ok: true })
    }
}

#[derive(Deserialize, JsonSchema)]
pub(crate) struct Sleep {
    millis: u64,
}

/// Takes its time.
pub(crate) struct Nap;

#[async_trait]
impl Activity for Nap {
    const NAME: &'static str = "nap";
    type Input = Sleep;
    type Output = Done;
    async fn run(&self, _: &Context, input: Sleep) -> Result<Done, Failure> {
        tokio::time::sleep(Duration::from_millis(input.millis)).await;
        Ok(Done { ok: true })
    }
}

/// Fails at first, to be tried again much later.
pub(crate) struct Busy;

#[async_trait]
impl Activity for Busy {
    const NAME: &'static str = "busy";
    type Input = Nothing;
    type Output = Done;
    async fn run(&self, _: &Context, _: Nothing) -> Result<Done, Failure> {
        Err(Failure::retryable("busy", "come back later").not_applied())
    }
}

pub(crate) async fn engine(url: &str) -> anyhow::Result<Engine> {
    Ok(Engine::connect(url, Registry::new().with(Noop).with(Nap).with(Busy)).await?)
}

pub(crate) fn chain(engine: &Engine, steps: usize) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("sequential");
    let mut before: Option<Output> = None;
    for n in 0..steps {
        let step = plan.step(format!("step-{n}"), "noop").undone_by("noop", json!({}));
        before = Some(match &before {
            Some(before) => step.after([before]).done(),
            None => step.done(),
        });
    }
    Ok(plan.check(engine.registry())?)
}

pub(crate) fn fan(engine: &Engine, steps: usize) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("fanout");
    for n in 0..steps {
        plan.step(format!("step-{n}"), "noop").undone_by("noop", json!({}));
    }
    Ok(plan.check(engine.registry())?)
}

/// A step, a nap, a step: what the peers are measured with.
pub(crate) fn with_nap(engine: &Engine, millis: u64) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("recovery");
    let before = plan.step("before", "noop").undone_by("noop", json!({})).done();
    let nap = plan
        .step("nap", "nap")
        .input(json!({ "millis": millis }))
        .after([&before])
        .nothing_to_undo("it sleeps");
    plan.step("after", "noop").after([&nap]).undone_by("noop", json!({}));
    Ok(plan.check(engine.registry())?)
}

pub(crate) fn waiting(engine: &Engine) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("idle");
    let busy = plan.step("busy", "busy").retry(Retry::fixed(100, Duration::from_secs(3600)));
    busy.nothing_to_undo("it never does anything");
    Ok(plan.check(engine.registry())?)
}

/// One call to a target whose calls are limited.
pub(crate) fn pooled(engine: &Engine, millis: u64) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("storm");
    let call = plan.step("call", "nap").pool("target").input(json!({ "millis": millis }));
    call.nothing_to_undo("it sleeps");
    Ok(plan.check(engine.registry())?)
}

/// Fails at its second step; the undo of the first goes to that target.
pub(crate) fn turning(engine: &Engine, millis: u64) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("turning");
    let first = plan.step("first", "noop").undone_by("nap", json!({ "millis": millis })).undo_pool("target");
    let first = first.done();
    let second = plan.step("second", "busy").after([&first]).retry(Retry::fixed(1, Duration::ZERO));
    second.nothing_to_undo("it never does anything");
    Ok(plan.check(engine.registry())?)
}
