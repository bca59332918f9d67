//! The plans that tests play.

use std::sync::Arc;
use std::time::Duration;

use backstay_engine::{Engine, Plan, PlanBuilder, Retry, output};
use serde_json::{Value, json};

/// Retries that a test can wait for.
pub fn quick() -> Retry {
    Retry::fixed(4, Duration::from_millis(5))
}

/// `a -> (b, c) -> d -> e`; what each step is like is given by name.
pub fn diamond(engine: &Engine, like: &[(&str, Value)]) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("diamond");
    plan.retry(quick()).undo_retry(quick()).settle_within(Duration::from_millis(300));
    let input = |name: &str| {
        like.iter().find(|(step, _)| *step == name).map_or(json!({}), |(_, input)| input.clone())
    };
    let undo = |name: &str| {
        let mut undo = json!({ "id": output("/id") });
        if let Some((_, more)) = like.iter().find(|(step, _)| step.strip_prefix("undo ") == Some(name))
            && let (Some(undo), Some(more)) = (undo.as_object_mut(), more.as_object())
        {
            undo.extend(more.clone());
        }
        undo
    };
    let a = plan.step("a", "make").input(input("a")).undone_by("unmake", undo("a")).done();
    let b = plan.step("b", "make").input(input("b")).after([&a]).undone_by("unmake", undo("b")).done();
    let c = plan.step("c", "make").input(input("c")).after([&a]).undone_by("unmake", undo("c")).done();
    let mut of_d = input("d");
    if let Some(map) = of_d.as_object_mut() {
        map.insert("from".into(), b.output("/id"));
    }
    let d = plan.step("d", "make").input(of_d).after([&b, &c]).undone_by("unmake", undo("d")).done();
    plan.step("e", "make").input(input("e")).after([&d]).undone_by("unmake", undo("e"));
    Ok(plan.check(engine.registry())?)
}

/// One step.
pub fn single(engine: &Engine, input: Value) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("single");
    plan.retry(quick()).undo_retry(quick());
    plan.step("only", "make").input(input).undone_by("unmake", json!({}));
    Ok(plan.check(engine.registry())?)
}

/// Steps one after the other, each named after the run: many runs of one world can be told apart. The last one is
/// like this.
pub fn chain(engine: &Engine, name: &str, length: usize, last: Value) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("chain");
    plan.retry(quick()).undo_retry(quick());
    let mut before = None;
    for at in 1..=length {
        let input = if at == length { last.clone() } else { json!({ "millis": 5 }) };
        let mut step = plan.step(format!("{name}-{at}"), "make").input(input).undone_by("unmake", json!({}));
        if let Some(before) = &before {
            step = step.after([before]);
        }
        before = Some(step.done());
    }
    Ok(plan.check(engine.registry())?)
}
