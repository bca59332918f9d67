//! Plans of activities that take and give anything.

use std::sync::Arc;

use backstay_machine::plan::{Effect, OnFailure, Output, PlanBuilder, Retry, Span, output};
use backstay_machine::{ActivitySpec, Catalog, Plan};
use serde_json::json;

use crate::sim::Dice;

struct Anything([ActivitySpec; 2]);

impl Catalog for Anything {
    fn activity(&self, name: &str) -> Option<&ActivitySpec> {
        self.0.iter().find(|spec| spec.name == name)
    }
    fn names(&self) -> Vec<&str> {
        vec!["do", "undo"]
    }
}

fn check(plan: PlanBuilder) -> Arc<Plan> {
    let effect = Effect { probed: true, refuses_duplicates: true, ..Effect::default() };
    let spec = |name: &str| ActivitySpec { name: name.into(), input: json!({}), output: json!({}), effect };
    plan.check(&Anything([spec("do"), spec("undo")])).unwrap()
}

/// One step of a plan for a test.
#[derive(Clone)]
pub struct Is {
    pub name: &'static str,
    pub after: &'static [&'static str],
    pub on_failure: OnFailure,
    pub effect: Effect,
    pub retry: Retry,
    pub undo: Option<Retry>,
}

pub fn step(name: &'static str, after: &'static [&'static str]) -> Is {
    let retry = Retry { jitter: 0.1, ..Retry::fixed(3, std::time::Duration::from_secs(10)) };
    let effect = Effect { longest_delay: Span::secs(30), ..Effect::default() };
    Is { name, after, on_failure: OnFailure::RollBack, effect, retry, undo: Some(retry) }
}

impl Is {
    pub fn probed(mut self) -> Self {
        self.effect.probed = true;
        self
    }
    pub fn at_most_once(mut self) -> Self {
        self.effect.at_most_once = true;
        self
    }
    pub fn on_failure(mut self, on_failure: OnFailure) -> Self {
        self.on_failure = on_failure;
        self
    }
    pub fn nothing_to_undo(mut self) -> Self {
        self.undo = None;
        self
    }
}

pub fn plan(steps: &[Is]) -> Arc<Plan> {
    let mut plan = PlanBuilder::new("test");
    plan.settle_within(Span::secs(1));
    let mut made = Vec::new();
    for is in steps {
        let after: Vec<_> = made.iter().filter(|o: &&Output| is.after.contains(&o.name())).collect();
        let reads: Vec<_> = after.iter().map(|other| other.output("/made")).collect();
        let new = plan
            .step(is.name, "do")
            .input(json!({ "reads": reads }))
            .after(after)
            .retry(is.retry)
            .on_failure(is.on_failure)
            .effect(is.effect);
        made.push(match is.undo {
            Some(retry) => {
                let undo = json!({ "it": output("/made"), "name": is.name });
                new.undone_by("undo", undo).undo_retry(retry).done()
            }
            None => new.nothing_to_undo("it only looks"),
        });
    }
    check(plan)
}

/// Any plan of so many steps.
pub fn drawn(dice: &mut Dice, steps: u64) -> Arc<Plan> {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let retry = |dice: &mut Dice| Retry {
        first: Span::millis(1 + dice.below(5_000)),
        factor: 1.0 + dice.below(3) as f64 / 2.0,
        ceiling: Span::secs(6),
        jitter: dice.below(6) as f64 / 5.0,
        attempts: Some(1 + dice.below(4) as u32),
        elapsed: dice.chance(20).then(|| Span::secs(1 + dice.below(20))),
    };
    let mut all = Vec::new();
    for name in NAMES.iter().take(steps as usize) {
        let after: Vec<&'static str> =
            all.iter().map(|is: &Is| is.name).filter(|_| dice.chance(40)).collect();
        all.push(Is {
            name,
            after: after.leak(),
            on_failure: match dice.below(5) {
                0..=2 => OnFailure::RollBack,
                3 => OnFailure::Hold,
                _ => OnFailure::Continue,
            },
            effect: Effect {
                longest_delay: Span::millis(dice.below(2) * dice.below(20_000)),
                probed: dice.chance(50),
                refuses_duplicates: dice.chance(40),
                at_most_once: dice.chance(20),
            },
            retry: retry(dice),
            undo: dice.chance(80).then(|| retry(dice)),
        });
    }
    plan(&all)
}
