//! Before a run goes on after a long time, the world is looked at: it may not be as it was left.

use backstay_machine::plan::{Commit, Effect, PlanBuilder};
use backstay_machine::*;
use chrono::TimeDelta;
use serde_json::json;

use crate::support::people::{retry, roll_back, skip, undo_step};
use crate::support::{Activities, Dice, End, Sim};

/// `a -> b`, which can be looked at, and an hour after which that is done; and c, that finalizes, if there is a commit.
fn watched(commits: bool) -> Sim {
    let mut plan = PlanBuilder::new("watched");
    plan.drift_after(std::time::Duration::from_secs(3600));
    let effect = Effect { probed: true, ..Effect::default() };
    let a = plan.step("a", "do").effect(effect).undone_by("undo", json!({})).done();
    plan.step("b", "do").effect(effect).after([&a]).undone_by("undo", json!({}));
    if commits {
        plan.commit(Commit { within: None, then: None, signal: None });
        plan.step("c", "do").finalize().nothing_to_undo("it only tidies up");
    }
    Sim::new(plan.check(&Activities::anything()).unwrap())
}

/// It is done, and two hours have passed.
fn long_done() -> Sim {
    let mut sim = watched(false);
    assert_eq!(sim.run(&mut Dice::First), End::Succeeded);
    sim.pass(sim.now + TimeDelta::hours(2));
    sim
}

/// Until an event of this kind.
fn until(sim: &mut Sim, what: &str) {
    while !sim.story().ends_with(what) {
        sim.step(&mut Dice::First).unwrap_or_else(|| panic!("it never comes to {what}\n{}", sim.story()));
    }
}

#[test]
fn a_rollback_that_comes_soon_asks_nobody() {
    let mut sim = watched(false);
    assert_eq!(sim.run(&mut Dice::First), End::Succeeded);
    sim.asks("ann", roll_back()).unwrap();
    assert_eq!(sim.run(&mut Dice::First), End::RolledBack);
    assert!(!sim.story().contains("checking"), "{}", sim.story());
}

#[test]
fn a_late_rollback_looks_at_the_world_first() {
    let mut sim = long_done();
    sim.asks("ann", roll_back()).unwrap();
    assert!(sim.story().ends_with("checking"), "{}", sim.story());
    // The look survives a crash.
    sim.crash();
    assert_eq!(sim.run(&mut Dice::First), End::RolledBack);
    assert_eq!(sim.story().matches("compared").count(), 2, "{}", sim.story());
    sim.sound();
}

#[test]
fn where_the_world_has_changed_somebody_must_look_and_ask_again() {
    let mut sim = long_done();
    sim.asks("ann", roll_back()).unwrap();
    let a = sim.ix("a");
    for (step, answer) in [(a, Answer::Absent), (sim.ix("b"), Answer::Unknown { why: "no line".into() })] {
        for what in judge_probe(&sim.state, step, answer, None, sim.now, sim.now) {
            sim.report(CourseId::forward(step), what);
        }
    }
    for command in decide(&sim.state, sim.now, 9usize).commands {
        let Command::Append(event) = command else { panic!("{command:?}") };
        sim.append(event);
    }
    let says = sim.state.waits_for().unwrap();
    assert!(says.contains("a is not there any more; b cannot be looked at: no line"), "{says}");
    assert!(decide(&sim.state, sim.now, 9usize).commands.is_empty(), "nothing starts by itself");
    // Whoever asks again has seen it.
    sim.asks("ann", roll_back()).unwrap();
    assert_eq!(sim.run(&mut Dice::First), End::RolledBack);
    sim.sound();
}

#[test]
fn what_is_undone_already_is_not_looked_for() {
    let mut sim = watched(false);
    assert_eq!(sim.run(&mut Dice::First), End::Succeeded);
    sim.asks("ann", roll_back()).unwrap();
    until(&mut sim, "succeeded undo b #1");
    sim.asks("ann", Verb::Pause).unwrap();
    sim.pass(sim.now + TimeDelta::hours(2));
    sim.asks("ann", Verb::Resume).unwrap();
    assert_eq!(sim.rests(), End::RolledBack);
    let story = sim.story();
    assert!(story.contains("compared a") && !story.contains("compared b"), "{story}");
    assert!(!story.contains("drifted"), "{story}");
}

#[test]
fn what_is_about_to_be_undone_is_not_looked_at() {
    let mut sim = watched(false);
    until(&mut sim, "succeeded b #1");
    sim.asks("ann", Verb::Pause).unwrap();
    sim.asks("ann", undo_step("b")).unwrap();
    sim.pass(sim.now + TimeDelta::hours(2));
    sim.asks("ann", Verb::Resume).unwrap();
    assert_eq!(sim.rests(), End::Held);
    let story = sim.story();
    assert!(story.contains("compared a") && !story.contains("compared b"), "{story}");
}

#[test]
fn what_is_being_made_final_is_not_looked_at() {
    let mut sim = watched(true);
    until(&mut sim, "finished succeeded");
    sim.asks("ann", Verb::Commit).unwrap();
    sim.asks("ann", Verb::Pause).unwrap();
    sim.pass(sim.now + TimeDelta::hours(2));
    sim.asks("ann", Verb::Resume).unwrap();
    assert_eq!(sim.rests(), End::Committed);
    assert!(!sim.story().contains("checking"), "{}", sim.story());
}

#[test]
fn what_is_looked_at_stays_as_it_is_meanwhile() {
    let mut sim = watched(true);
    until(&mut sim, "finished succeeded");
    sim.pass(sim.now + TimeDelta::hours(2));
    sim.asks("ann", roll_back()).unwrap();
    for verb in [Verb::Commit, roll_back(), retry("a"), skip("a"), undo_step("b")] {
        let because = sim.asks("eve", verb).unwrap_err();
        assert!(because.contains("the world is being looked at"), "{because}");
    }
    assert_eq!(sim.rests(), End::RolledBack);
}

/// The look was on its way when the run was given up.
#[test]
fn a_look_at_a_run_that_is_left_alone_is_journaled_and_goes_no_further() {
    let mut sim = long_done();
    sim.asks("ann", roll_back()).unwrap();
    sim.step(&mut Dice::First).unwrap();
    sim.append(Event::Quarantined { why: "it kills its nodes".into() });
    sim.report(CourseId::forward(sim.ix("a")), StepEvent::Compared { difference: None });
    sim.asks("ann", Verb::Close { manifest: json!({}) }).unwrap();
    assert_eq!(sim.rests(), End::Closed);
    assert!(decide(&sim.state, sim.now, 9).commands.is_empty(), "{}", sim.story());
}
