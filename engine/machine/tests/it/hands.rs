//! Calls that there are no hands for, and targets that are down.

use std::collections::BTreeMap;
use std::sync::Arc;

use backstay_machine::plan::{Plan, StepSpec, Work};
use backstay_machine::{
    ActivityError, Applied, Command, CourseId, Direction, Epoch, Event, Hands, Journaled, RunId, State,
    StepEvent, TARGET_DOWN, Time, decide, judge, step_event,
};
use chrono::TimeDelta;

use crate::support::plans::{Activities, checked, spec, steady, step};

/// So many of each pool; of what has no pool as many as are wanted. It counts how often it was asked.
#[derive(Clone, Debug, Default)]
struct Pools {
    left: BTreeMap<&'static str, usize>,
    asked: usize,
}

impl Hands for &mut Pools {
    fn take(&mut self, work: &Work, _: Direction) -> bool {
        self.asked += 1;
        let Some(pool) = &work.pool else { return true };
        let Some(left) = self.left.get_mut(pool.as_str()).filter(|left| **left > 0) else { return false };
        *left -= 1;
        true
    }
}

fn pooled(name: &str, pool: &str, after: &[&str]) -> StepSpec {
    StepSpec { pool: Some(pool.into()), ..step(name, after) }
}

fn begun(plan: Arc<Plan>) -> State {
    let mut state = State::new(RunId::fresh(), plan);
    append(&mut state, Event::Submitted { by: None });
    state
}

fn append(state: &mut State, event: Event) {
    let at = now(state.seq());
    state.apply(&Journaled { seq: state.seq() + 1, claim: 0, epoch: Epoch(1), at, event }).expect("legal");
}

fn now(seconds: i64) -> Time {
    Time::UNIX_EPOCH + TimeDelta::seconds(seconds)
}

fn started(state: &State, hands: &mut Pools) -> Vec<String> {
    let commands = decide(state, now(100), hands).commands;
    let started = commands.iter().filter_map(|command| match command {
        Command::Append(Event::Step { course, what: StepEvent::Started { .. }, .. }) => {
            Some(state.plan().step(course.step).name.to_string())
        }
        _ => None,
    });
    started.collect()
}

#[test]
fn a_step_is_not_begun_without_a_hand_and_others_are() {
    let steps =
        vec![pooled("a", "small", &[]), pooled("b", "small", &[]), pooled("c", "large", &[]), step("d", &[])];
    let state = begun(checked(spec(steps)));
    let mut hands = Pools { left: [("small", 1), ("large", 5)].into(), asked: 0 };
    assert_eq!(started(&state, &mut hands), ["a", "c", "d"]);
    let mut none = Pools::default();
    assert_eq!(started(&state, &mut none), ["d"]);
}

#[test]
fn an_undo_takes_a_hand_of_its_own_pool() {
    let mut a = pooled("a", "forward", &[]);
    if let Some(undo) = &mut a.undo {
        undo.pool = Some("back".into());
    }
    let mut state = begun(checked(spec(vec![a])));
    let start = |state: &State, hands: &mut Pools| match decide(state, now(100), hands).commands.pop() {
        Some(Command::Append(event)) => Some(event),
        _ => None,
    };
    let mut forward = Pools { left: [("forward", 1)].into(), asked: 0 };
    let event = start(&state, &mut forward).expect("it starts");
    append(&mut state, event);
    let error = ActivityError { applied: Applied::Maybe, ..error("broken", false) };
    let a = CourseId::forward(state.plan().find("a").unwrap());
    let event = step_event(&state, a, StepEvent::Failed { error, retry_at: None });
    append(&mut state, event);
    let turn = start(&state, &mut forward).expect("it turns round");
    append(&mut state, turn);
    let mut forward = Pools { left: [("forward", 9)].into(), asked: 0 };
    assert_eq!(start(&state, &mut forward), None, "a hand for the step is none for its undo");
    let mut back = Pools { left: [("back", 1)].into(), asked: 0 };
    assert!(start(&state, &mut back).is_some());
}

#[test]
fn a_fan_of_ten_thousand_with_few_hands_is_not_looked_at_as_a_whole_each_time() {
    let steps = (0..10_000).map(|n| pooled(&format!("s{n}"), "p", &[])).collect();
    let state = begun(checked(spec(steps)));
    let mut hands = Pools { left: [("p", 50)].into(), asked: 0 };
    assert_eq!(started(&state, &mut hands).len(), 50);
    assert!(hands.asked < 1_000, "it was asked {} times", hands.asked);
}

#[test]
fn the_plan_keeps_the_pool_that_an_activity_names_and_refuses_what_is_none() {
    let mut activities = Activities::anything();
    activities.0.get_mut("do").unwrap().pool = Some("target".into());
    activities.0.get_mut("undo").unwrap().pool = Some("other".into());
    let plan = Plan::check(spec(vec![step("a", &[]), pooled("b", "own", &[])]), &activities).unwrap();
    let pools: Vec<_> = plan
        .steps()
        .map(|(_, step)| {
            (step.forward.pool.clone().unwrap(), step.undo.as_ref().unwrap().pool.clone().unwrap())
        })
        .collect();
    assert_eq!(pools, [("target".into(), "other".into()), ("own".into(), "other".into())]);
    let again = Plan::from_submitted(plan.submitted()).unwrap();
    assert_eq!(again.step(again.find("a").unwrap()).forward.pool.as_deref(), Some("target"));

    let bad = Plan::check(spec(vec![pooled("a", "no good", &[])]), &activities).unwrap_err();
    assert!(bad.to_string().contains("its pool has the name \"no good\""), "{bad}");
    let wait = StepSpec {
        activity: "wait".into(),
        input: serde_json::json!({ "for": "1s" }),
        undo: None,
        effect: None,
        ..pooled("w", "p", &[])
    };
    let bad = Plan::check(spec(vec![wait]), &activities).unwrap_err();
    assert!(bad.to_string().contains("calls nobody"), "{bad}");
}

fn error(code: &str, retryable: bool) -> ActivityError {
    ActivityError {
        code: code.into(),
        message: "it did not work".into(),
        retryable,
        retry_after: None,
        applied: Applied::No,
        details: None,
    }
}

/// How often an attempt may fail so before it is given up; at most twenty are tried.
fn tries(step: StepSpec, code: &str) -> usize {
    let step = StepSpec { retry: Some(steady(3)), ..step };
    let mut state = begun(checked(spec(vec![step])));
    let a = CourseId::forward(state.plan().find("a").unwrap());
    for nth in 1..=20 {
        let Some(Command::Append(start)) = decide(&state, now(10_000), 1).commands.pop() else {
            return nth - 1;
        };
        append(&mut state, start);
        let what = judge(&state, a, error(code, true), now(state.seq()));
        let over = matches!(what, StepEvent::Failed { retry_at: None, .. });
        let event = step_event(&state, a, what);
        append(&mut state, event);
        if over {
            return nth;
        }
    }
    20
}

#[test]
fn that_a_target_is_down_uses_up_no_attempts_of_steps_that_share_its_pool() {
    assert_eq!(tries(step("a", &[]), "busy"), 3);
    assert_eq!(tries(pooled("a", "p", &[]), "busy"), 3);
    assert_eq!(tries(step("a", &[]), TARGET_DOWN), 3, "without a pool nobody would ever end it");
    assert_eq!(tries(pooled("a", "p", &[]), TARGET_DOWN), 20);
}
