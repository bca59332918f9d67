//! Plans of activities that take and give anything.

use std::sync::Arc;

use backstay_machine::plan::{Commit, Effect, Ending, OnFailure, Output, PlanBuilder, Retry, Span, output};
use backstay_machine::{ActivitySpec, Catalog, Plan};
use serde_json::{Value, json};

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
    let spec = |name: &str| ActivitySpec {
        name: name.into(),
        input: json!({}),
        output: json!({}),
        effect,
        pool: None,
    };
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
    /// The input of a step that waits, in place of all that calls an activity.
    pub waits: Option<Value>,
    /// Of which step, and what it has to have made.
    pub requires: Option<(&'static str, &'static str)>,
    pub no_return: bool,
    pub finalize: bool,
}

pub fn step(name: &'static str, after: &'static [&'static str]) -> Is {
    let retry = Retry { jitter: 0.1, ..Retry::fixed(3, std::time::Duration::from_secs(10)) };
    let effect = Effect { longest_delay: Span::secs(30), ..Effect::default() };
    Is {
        name,
        after,
        on_failure: OnFailure::RollBack,
        effect,
        retry,
        undo: Some(retry),
        waits: None,
        requires: None,
        no_return: false,
        finalize: false,
    }
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
    pub fn waits(mut self, input: Value) -> Self {
        self.waits = Some(input);
        self
    }
    pub fn requires(mut self, step: &'static str, made: &'static str) -> Self {
        self.requires = Some((step, made));
        self
    }
    pub fn no_return(mut self) -> Self {
        self.no_return = true;
        self
    }
    pub fn finalize(mut self) -> Self {
        self.finalize = true;
        self
    }
}

pub fn plan(steps: &[Is]) -> Arc<Plan> {
    plan_of(steps, None)
}

pub fn plan_of(steps: &[Is], commit: Option<Commit>) -> Arc<Plan> {
    let mut plan = PlanBuilder::new("test");
    plan.settle_within(Span::secs(1));
    if let Some(commit) = commit {
        plan.commit(commit);
    }
    let mut made = Vec::new();
    for is in steps {
        let after: Vec<_> = made.iter().filter(|o: &&Output| is.after.contains(&o.name())).collect();
        let calls = |name: &str| steps.iter().any(|is| is.name == name && is.waits.is_none());
        let reads: Vec<_> =
            after.iter().filter(|o| calls(o.name())).map(|other| other.output("/made")).collect();
        let activity = match &is.waits {
            Some(input) if input.get("right").is_some() => "approve",
            Some(_) => "wait",
            None => "do",
        };
        let mut new = plan.step(is.name, activity).after(after).retry(is.retry).on_failure(is.on_failure);
        if let Some((step, equals)) = is.requires {
            let proof = made.iter().find(|o: &&Output| o.name() == step).unwrap();
            new = new.requires(proof, "/made", json!(equals));
        }
        if is.no_return {
            new = new.point_of_no_return();
        }
        if is.finalize {
            new = new.finalize();
        }
        made.push(match (&is.waits, is.undo) {
            (Some(input), _) => new.input(input.clone()).done(),
            (None, Some(retry)) if !is.finalize => {
                let undo = json!({ "it": output("/made"), "name": is.name });
                let new = new.input(json!({ "reads": reads })).effect(is.effect);
                new.undone_by("undo", undo).undo_retry(retry).done()
            }
            _ => new.input(json!({ "reads": reads })).effect(is.effect).nothing_to_undo("it only looks"),
        });
    }
    check(plan)
}

/// What a step may wait for.
fn waits(dice: &mut Dice) -> Value {
    match dice.below(8) {
        0 => json!({ "for": "3s" }),
        1 => json!({ "until": "2024-10-04T00:00:05Z" }),
        2 => json!({ "signal": "go" }),
        3 => json!({ "signal": "go", "within": "20s" }),
        4 => json!({ "signal": "stay", "for": "10s" }),
        _ => json!({ "right": "release", "people": 1 + dice.below(2), "within": "1m" }),
    }
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
    let commits = dice.chance(30);
    let last = dice.below(5);
    let mut all = Vec::new();
    for (n, name) in NAMES.iter().take(steps as usize).enumerate() {
        let finalize = commits && n as u64 > last;
        let after: Vec<&'static str> =
            all.iter().map(|is: &Is| is.name).filter(|_| dice.chance(40)).collect();
        let shows = all.iter().filter(|is| is.waits.is_none() && after.contains(&is.name)).map(|is| is.name);
        let shows: Vec<_> = shows.collect();
        let requires = (!shows.is_empty() && dice.chance(25)).then(|| {
            let made = shows[dice.below(shows.len() as u64) as usize];
            (made, if dice.chance(50) { made } else { "nothing" })
        });
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
            waits: dice.chance(20).then(|| waits(dice)),
            requires,
            no_return: dice.chance(8),
            finalize,
        });
    }
    let returns = all.iter().all(|is| !is.no_return);
    let commit = commits.then(|| {
        let then = [Some(Ending::Commit), Some(Ending::RollBack).filter(|_| returns), None];
        let then = then[dice.below(3) as usize];
        let signal = dice.chance(50).then(|| "commit".into());
        Commit { within: then.map(|_| Span::secs(30)), then, signal }
    });
    plan_of(&all, commit)
}
