//! The plans that the model runs, checked by the crate like any other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backstay_machine::plan::{Effect, OnFailure, PlanBuilder, Retry, Span, StepBuilder};
use backstay_machine::{ActivitySpec, Catalog, Plan};
use serde_json::json;

/// One tick of the model's clock.
const TICK: Duration = Duration::from_secs(1);

struct Activities(BTreeMap<&'static str, ActivitySpec>);

impl Catalog for Activities {
    fn activity(&self, name: &str) -> Option<&ActivitySpec> {
        self.0.get(name)
    }
    fn names(&self) -> Vec<&str> {
        self.0.keys().copied().collect()
    }
}

fn activities() -> Activities {
    let spec = |name: &'static str, effect| {
        let spec =
            ActivitySpec { name: name.into(), input: json!({}), output: json!({}), effect, pool: None };
        (name, spec)
    };
    let late = Effect { longest_delay: Span(TICK), ..Effect::default() };
    Activities(BTreeMap::from([
        spec("plain", Effect::default()),
        spec("late", late),
        spec("keyed", Effect { refuses_duplicates: true, ..late }),
        spec("probed", Effect { probed: true, ..late }),
        spec("undo", Effect::default()),
    ]))
}

fn undone(step: StepBuilder<'_>) -> StepBuilder<'_> {
    step.undone_by("undo", json!({})).undo_retry(Retry::fixed(2, TICK))
}

/// A -> B, C -> D. Nothing is tried twice.
pub fn diamond() -> Arc<Plan> {
    diamond_with("plain", Retry::never())
}

/// The same, but B is tried twice, and its effect may come a tick late.
pub fn late_diamond() -> Arc<Plan> {
    diamond_with("late", Retry::fixed(2, TICK))
}

fn diamond_with(activity: &str, retry: Retry) -> Arc<Plan> {
    let mut plan = PlanBuilder::new("diamond");
    plan.retry(Retry::never()).settle_within(TICK);
    let a = undone(plan.step("a", "plain")).done();
    let b = undone(plan.step("b", activity).after([&a])).retry(retry).done();
    let c = undone(plan.step("c", "plain").after([&a])).done();
    undone(plan.step("d", "plain").after([&b, &c])).done();
    plan.check(&activities()).unwrap()
}

/// X -> Y. The effect of X may come a tick late, but its target refuses duplicates, so X is repeated at once.
pub fn keyed() -> Arc<Plan> {
    let mut plan = PlanBuilder::new("keyed");
    plan.retry(Retry::never()).settle_within(TICK);
    let x = undone(plan.step("x", "keyed").retry(Retry::fixed(2, TICK))).done();
    undone(plan.step("y", "plain").after([&x])).done();
    plan.check(&activities()).unwrap()
}

/// X -> Y. The effect of X must not come about twice; nothing but a probe prevents it.
pub fn probed() -> Arc<Plan> {
    let mut plan = PlanBuilder::new("probed");
    plan.retry(Retry::never()).settle_within(TICK);
    let x = undone(plan.step("x", "probed").retry(Retry::fixed(2, TICK))).done();
    undone(plan.step("y", "plain").after([&x])).done();
    plan.check(&activities()).unwrap()
}

/// X -> Y. A failure of X waits for an operator; its effect may come a tick late.
pub fn held() -> Arc<Plan> {
    let mut plan = PlanBuilder::new("held");
    plan.retry(Retry::never()).settle_within(TICK);
    let x = undone(plan.step("x", "late").on_failure(OnFailure::Hold)).done();
    undone(plan.step("y", "plain").after([&x])).done();
    plan.check(&activities()).unwrap()
}
