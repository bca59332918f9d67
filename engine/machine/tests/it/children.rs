//! Steps that are runs of their own.

use std::sync::Arc;

use backstay_machine::plan::{Parent, PlanBuilder, Rule};
use backstay_machine::*;
use serde_json::{Value, json};

use crate::support::{Activities, Dice, End, Sim, steady};

/// A parent with a step before its run and one behind it.
fn with_child() -> Arc<Plan> {
    let mut child = PlanBuilder::new("child");
    child.step("inner", "do").input(json!({ "disk": { "$given": "/disk" } })).undone_by("undo", json!({}));
    let mut plan = PlanBuilder::new("parent");
    plan.retry(steady(2)).undo_retry(steady(2));
    let a = plan.step("a", "do").undone_by("undo", json!({})).done();
    let run = plan.run("run", child).input(json!({ "disk": a.output("/made") })).after([&a]).done();
    plan.step("b", "do").after([&run]).undone_by("undo", json!({}));
    plan.check(&Activities::anything()).unwrap()
}

fn ix(state: &State, name: &str) -> StepIx {
    state.plan().find(name).unwrap()
}

fn act(sim: &mut Sim, verb: Verb) -> Result<(), String> {
    let action = Action {
        id: uuid::Uuid::new_v4(),
        who: "anna".into(),
        why: "so".into(),
        seen: None,
        via: None,
        verb,
    };
    for event in judge_action(&sim.state, &action, sim.now)? {
        sim.append(event);
    }
    Ok(())
}

fn ended(sim: &mut Sim, outcome: Outcome) -> Result<(), String> {
    let run = sim.state.run_of(ix(&sim.state, "run")).unwrap();
    act(sim, Verb::Ended { step: "run".into(), run, outcome })
}

/// Until nothing moves but what comes from outside.
fn until_it_waits(sim: &mut Sim) {
    for _ in 0..1_000 {
        let waits = sim.state.waits_for().is_some() && sim.in_flight().is_empty();
        if waits || sim.step(&mut Dice::First).is_none() {
            return;
        }
    }
    panic!("it never waits\n{}", sim.story());
}

#[test]
fn a_run_within_a_run_is_a_step_that_waits_for_it() {
    let mut sim = Sim::new(with_child());
    until_it_waits(&mut sim);
    let run = sim.state.run_of(ix(&sim.state, "run")).unwrap();
    assert_eq!(sim.state.waits_for().unwrap(), format!("run waits for its run {run}"));
    let course = sim.state.course(CourseId::forward(ix(&sim.state, "run"))).clone();
    assert!(course.input.unwrap().value()["disk"].is_string(), "it is given what a made");
    // A crash of the parent's node changes nothing of it.
    sim.crash();
    assert_eq!(sim.state.run_of(ix(&sim.state, "run")), Some(run));
    ended(&mut sim, Outcome::Succeeded).unwrap();
    assert!(ended(&mut sim, Outcome::Succeeded).unwrap_err().contains("does not wait"));
    assert_eq!(sim.run(&mut Dice::First), End::Succeeded);
}

#[test]
fn the_end_of_another_run_is_not_taken_for_its_end() {
    let mut sim = Sim::new(with_child());
    until_it_waits(&mut sim);
    let other = Verb::Ended { step: "run".into(), run: RunId::fresh(), outcome: Outcome::Succeeded };
    assert!(act(&mut sim, other).unwrap_err().contains("is not, or no longer, the run of run"));
}

#[test]
fn a_run_that_is_rolled_back_by_itself_fails_its_step_and_needs_no_undo() {
    let mut sim = Sim::new(with_child());
    until_it_waits(&mut sim);
    ended(&mut sim, Outcome::RolledBack).unwrap();
    assert_eq!(sim.run(&mut Dice::First), End::RolledBack);
    assert!(!sim.story().contains("undo run"), "{}", sim.story());
    assert!(sim.story().contains("succeeded undo a"), "{}", sim.story());
}

#[test]
fn the_undo_of_a_run_is_its_rollback() {
    let mut sim = Sim::new(with_child());
    until_it_waits(&mut sim);
    ended(&mut sim, Outcome::Succeeded).unwrap();
    assert_eq!(sim.run(&mut Dice::First), End::Succeeded);
    act(&mut sim, Verb::RollBack(RollBack::default())).unwrap();
    for _ in 0..20 {
        let undo = sim.state.course(CourseId::undo(ix(&sim.state, "run"))).at.clone();
        if matches!(undo, CourseAt::Waiting(_)) {
            break;
        }
        sim.step(&mut Dice::First).unwrap();
    }
    assert!(!sim.story().contains("started undo a"), "what it stands on waits\n{}", sim.story());
    let wake = decide(&sim.state, sim.now, 9usize).wake_at.expect("a rollback never sleeps for good");
    assert!(wake > sim.now);
    ended(&mut sim, Outcome::RolledBack).unwrap();
    assert_eq!(sim.run(&mut Dice::First), End::RolledBack);
}

#[test]
fn a_rollback_while_the_run_is_under_way_waits_for_its_end() {
    let mut sim = Sim::new(with_child());
    until_it_waits(&mut sim);
    act(&mut sim, Verb::RollBack(RollBack::default())).unwrap();
    sim.step(&mut Dice::First).unwrap();
    assert!(matches!(sim.state.course(CourseId::undo(ix(&sim.state, "run"))).at, CourseAt::Waiting(_)));
    // It came to its end just before it was told to turn round: that is not what is waited for.
    assert!(ended(&mut sim, Outcome::Succeeded).is_err());
    ended(&mut sim, Outcome::RolledBack).unwrap();
    assert_eq!(sim.run(&mut Dice::First), End::RolledBack);
}

#[test]
fn a_run_that_somebody_closed_leaves_its_parent_stuck() {
    let mut sim = Sim::new(with_child());
    until_it_waits(&mut sim);
    act(&mut sim, Verb::RollBack(RollBack::default())).unwrap();
    sim.step(&mut Dice::First).unwrap();
    ended(&mut sim, Outcome::Closed).unwrap();
    assert_eq!(sim.run(&mut Dice::First), End::Stuck);
    assert!(sim.state.failed_undos().contains(&"run".to_owned()));
}

#[test]
fn a_run_under_way_is_not_skipped() {
    let mut sim = Sim::new(with_child());
    until_it_waits(&mut sim);
    let skip = Verb::Skip { step: "run".into(), undo: false, output: Value::Null };
    assert!(act(&mut sim, skip).unwrap_err().contains("act on that run"));
}

#[test]
fn the_plan_of_a_step_is_checked_with_the_plan_it_stands_in() {
    let mut child = PlanBuilder::new("child");
    child.step("inner", "nothing_such");
    let mut plan = PlanBuilder::new("parent");
    plan.run("run", child);
    let problems = plan.check(&Activities::anything()).unwrap_err().problems;
    let said: Vec<_> = problems.iter().map(|p| (p.rule, p.message.as_str())).collect();
    assert!(
        said.iter().any(|(rule, text)| *rule == Rule::Undo && text.starts_with("in its run: step \"inner\"")),
        "{said:?}"
    );
    let mut plan = PlanBuilder::new("parent");
    plan.step("a", "do").input(json!({ "x": { "$given": "/y" } })).undone_by("undo", json!({}));
    let problems = plan.check(&Activities::anything()).unwrap_err().problems;
    assert!(problems[0].message.contains("in the plan of a step that is a run"), "{problems:?}");
}

#[test]
fn runs_within_runs_are_not_nested_without_end() {
    let mut inner = PlanBuilder::new("w");
    inner.step("x", "do").undone_by("undo", json!({}));
    for _ in 0..4 {
        let mut outer = PlanBuilder::new("w");
        outer.run("run", inner);
        inner = outer;
    }
    let error = inner.check(&Activities::anything()).unwrap_err().to_string();
    assert!(error.contains("a run within runs"), "{error}");
}

#[test]
fn a_run_of_a_step_gets_what_the_step_is_given_and_knows_its_parent() {
    let parent = with_child();
    let step = parent.step(parent.find("run").unwrap());
    let above = Parent { run: RunId::fresh(), step: "run".into() };
    let given = Json::of(&json!({ "disk": "d-7" }));
    let plan = Plan::of_step(step, &given, above.clone(), &Activities::anything()).unwrap();
    assert_eq!(plan.spec().steps[0].input, json!({ "disk": "d-7" }));
    assert_eq!(plan.spec().parent, Some(above));
    // It survives its journal.
    assert_eq!(Plan::from_submitted(plan.submitted()).unwrap().hash(), plan.hash());
    let forged = plan.spec().clone();
    assert!(Plan::check(forged, &Activities::anything()).unwrap_err().to_string().contains("parent"));
}

/// What a target said is data where it said it, and stays data when it is passed on to a run within.
#[test]
fn what_another_step_gave_never_becomes_the_name_of_a_secret_in_a_run_within() {
    let begun = |inner: Value, given: Value, said: Value| {
        let mut child = PlanBuilder::new("child");
        child.step("inner", "do").input(inner.clone()).undone_by("undo", inner);
        let mut plan = PlanBuilder::new("parent");
        let ask = plan.step("ask", "do").undone_by("undo", json!({})).done();
        plan.run("run", child).input(given).after([&ask]).done();
        let plan = plan.check(&Activities::anything()).unwrap();
        let step = plan.step(plan.find("run").unwrap());
        let given = step
            .forward
            .input
            .resolve(|_| Some(&said).map(|said| Box::leak(Box::new(Json::of(said))) as &Json));
        let parent = Parent { run: RunId::fresh(), step: "run".into() };
        Plan::of_step(step, &given, parent, &Activities::anything())
    };
    let said = json!({ "note": { "secret": "token" }, "name": "token", "more": { "secret": "s", "id": 7 } });
    let passes = json!({ "text": { "$given": "/x" } });
    for (inner, given) in [
        (passes.clone(), json!({ "x": { "$output": "ask/note" } })),
        (passes.clone(), json!({ "x": [{ "$output": "ask" }] })),
        (passes.clone(), json!({ "x": { "deep": [{ "$output": "ask/note" }] } })),
        // A part of it is enough.
        (passes.clone(), json!({ "x": { "secret": { "$output": "ask/name" } } })),
        (passes.clone(), json!({ "x": { "secret": "token", "prefix": { "$output": "ask/name" } } })),
        (json!({ "text": { "secret": { "$given": "/x" } } }), json!({ "x": { "$output": "ask/name" } })),
        (json!({ "text": { "$given": "/x/note" } }), json!({ "x": { "$output": "ask" } })),
        (json!({ "text": { "$given": "" } }), json!({ "x": { "$output": "ask/note" } })),
    ] {
        let wrong = begun(inner.clone(), given.clone(), said.clone()).map(drop).unwrap_err().to_string();
        assert!(
            wrong.contains("what another step gave would name a secret at \"/text"),
            "{inner} {given}: {wrong}"
        );
    }
    for (inner, given) in [
        // The plan's own words name it, and what came from a step is beside them.
        (passes.clone(), json!({ "x": { "secret": "token" }, "y": { "$output": "ask/note" } })),
        (passes.clone(), json!({ "x": [{ "secret": "token" }, { "$output": "ask/name" }] })),
        (json!({ "text": { "secret": { "$given": "/x" } } }), json!({ "x": "token" })),
        // It names none.
        (passes.clone(), json!({ "x": { "$output": "ask/more" } })),
        (passes, json!({ "x": { "secret": "token", "id": { "$output": "ask/name" } } })),
    ] {
        begun(inner, given, said.clone()).unwrap();
    }
}

/// A run within a run within a run: what the outermost is given passes through the plan of the one between, where it looks
/// like that plan's own words.
#[test]
fn what_another_step_gave_names_no_secret_however_deep_it_is_passed_on() {
    let begun = |passed: Value, inner: Value, given: Value| {
        let mut innermost = PlanBuilder::new("innermost");
        innermost.step("inner", "do").input(inner).undone_by("undo", json!({}));
        let mut between = PlanBuilder::new("between");
        between.run("deeper", innermost).input(passed);
        let mut plan = PlanBuilder::new("outermost");
        let ask = plan.step("ask", "do").undone_by("undo", json!({})).done();
        plan.run("run", between).input(given).after([&ask]);
        let plan = plan.check(&Activities::anything()).unwrap();
        let step = plan.step(plan.find("run").unwrap());
        let said = Json::of(&json!({ "name": "token", "note": { "secret": "token" } }));
        let given = step.forward.input.resolve(|_| Some(&said));
        let parent = Parent { run: RunId::fresh(), step: "run".into() };
        Plan::of_step(step, &given, parent, &Activities::anything())
    };
    let (passes, names) =
        (json!({ "y": { "$given": "/x" } }), json!({ "text": { "secret": { "$given": "/y" } } }));
    let asked = json!({ "x": { "$output": "ask/name" } });
    for (passed, inner, given) in [
        (passes.clone(), names.clone(), asked.clone()),
        (json!({ "y": { "$given": "" } }), json!({ "text": { "secret": { "$given": "/y/x" } } }), asked),
        (passes.clone(), json!({ "text": { "$given": "" } }), json!({ "x": { "$output": "ask/note" } })),
    ] {
        let wrong = begun(passed, inner, given).map(drop).unwrap_err().to_string();
        assert!(wrong.contains("what another step gave would name a secret"), "{wrong}");
    }
    // The plan's own words are that at any depth.
    begun(passes.clone(), names, json!({ "x": "token", "z": { "$output": "ask/name" } })).unwrap();
    begun(passes, json!({ "text": { "$given": "/y" } }), json!({ "x": { "$output": "ask/name" } })).unwrap();
}
