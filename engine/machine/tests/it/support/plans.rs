//! Small plans, and a catalog of activities that take anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use backstay_machine::plan::{Effect, OnFailure, PlanSpec, Retry, Span, StepSpec, UndoSpec, output};
use backstay_machine::*;
use serde_json::{Value, json};

/// Activities by name.
pub struct Activities(pub BTreeMap<String, ActivitySpec>);

impl Activities {
    /// `do` and `undo` take and give anything, and claim every virtue, so that a plan may declare any of them.
    pub fn anything() -> Self {
        let able = Effect { probed: true, refuses_duplicates: true, ..Effect::default() };
        Self(BTreeMap::new()).with("do", json!({}), json!({}), able).with(
            "undo",
            json!({}),
            json!({}),
            Effect::default(),
        )
    }

    pub fn with(mut self, name: &str, input: Value, output: Value, effect: Effect) -> Self {
        self.0.insert(name.into(), ActivitySpec { name: name.into(), input, output, effect, pool: None });
        self
    }
}

impl Catalog for Activities {
    fn activity(&self, name: &str) -> Option<&ActivitySpec> {
        self.0.get(name)
    }
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

/// A step of `do` with an undo that is told what there was.
pub fn step(name: impl Into<String>, after: &[&str]) -> StepSpec {
    StepSpec {
        name: name.into(),
        title: None,
        activity: "do".into(),
        pool: None,
        input: json!({}),
        plan: None,
        after: after.iter().map(|name| (*name).to_owned()).collect(),
        undo: Some(UndoSpec {
            activity: "undo".into(),
            pool: None,
            input: json!({ "it": output("") }),
            retry: None,
            timeout: None,
        }),
        nothing_to_undo: None,
        retry: None,
        timeout: None,
        on_failure: OnFailure::RollBack,
        requires: Vec::new(),
        point_of_no_return: false,
        finalize: false,
        effect: Some(Effect::default()),
    }
}

pub fn spec(steps: Vec<StepSpec>) -> PlanSpec {
    PlanSpec {
        workflow: "test".into(),
        title: None,
        retry: Some(steady(3)),
        undo_retry: Some(steady(3)),
        timeout: None,
        settle_within: Some(Span::secs(60)),
        commit: None,
        drift_after: None,
        parent: None,
        override_alone: false,
        steps,
    }
}

/// So many attempts, a second apart.
pub fn steady(attempts: u32) -> Retry {
    Retry::fixed(attempts, std::time::Duration::from_secs(1))
}

pub fn checked(spec: PlanSpec) -> Arc<Plan> {
    Plan::check(spec, &Activities::anything()).unwrap()
}

/// Steps one after another.
pub fn chain(names: &[&str]) -> Arc<Plan> {
    let after = |n: usize| n.checked_sub(1).map(|n| names[n]);
    let steps = names.iter().enumerate().map(|(n, name)| step(*name, after(n).as_slice())).collect();
    checked(spec(steps))
}

/// a, then b and c, then d.
pub fn diamond() -> Vec<StepSpec> {
    vec![step("a", &[]), step("b", &["a"]), step("c", &["a"]), step("d", &["b", "c"])]
}

/// Every DAG of n labelled steps: the written order need not be an order of execution.
pub fn every_dag(n: usize) -> Vec<Vec<StepSpec>> {
    let name = |i: usize| ["a", "b", "c", "d", "e"][i];
    let pairs: Vec<_> = (0..n).flat_map(|i| (0..n).map(move |j| (i, j))).filter(|(i, j)| i != j).collect();
    let mut found = Vec::new();
    for mask in 0u32..1 << pairs.len() {
        let edges: Vec<_> =
            pairs.iter().enumerate().filter(|(k, _)| mask >> k & 1 == 1).map(|(_, e)| *e).collect();
        if has_order(n, &edges) {
            let steps = (0..n).map(|j| {
                let after: Vec<_> =
                    edges.iter().filter(|(_, to)| *to == j).map(|(from, _)| name(*from)).collect();
                step(name(j), &after)
            });
            found.push(steps.collect());
        }
    }
    found
}

fn has_order(n: usize, edges: &[(usize, usize)]) -> bool {
    let mut left: Vec<usize> = (0..n).collect();
    while !left.is_empty() {
        let free = left.iter().position(|j| !edges.iter().any(|(i, to)| to == j && left.contains(i)));
        match free {
            Some(place) => left.swap_remove(place),
            None => return false,
        };
    }
    true
}
