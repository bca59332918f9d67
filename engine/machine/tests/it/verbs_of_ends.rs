//! How runs end by the hand of people, as stories: rolled back, made final, closed, left alone; and what they leave.

use backstay_machine::plan::{Commit, Ending, OnFailure, PlanSpec, Span, StepSpec};
use backstay_machine::*;
use serde_json::json;

use crate::support::people::*;
use crate::support::{Dice, End, Sim, chain, checked, spec, step};

fn how(leave: &[&str], past_failures: bool, past_no_return: bool) -> Verb {
    let leave = leave.iter().map(|name| (*name).to_owned()).collect();
    Verb::RollBack(RollBack { leave, past_failures, past_no_return })
}

#[test]
fn to_cancel_a_run_is_to_roll_it_back_and_that_is_done_once() {
    let mut sim = Sim::new(chain(&["a", "b", "c"]));
    while sim.at("b") != &CourseAt::Running {
        sim.step(&mut Dice::First);
    }
    sim.asks("ann", roll_back()).unwrap();
    assert!(sim.asks("ben", roll_back()).unwrap_err().contains("rolling back already"));
    assert!(sim.asks("ben", retry("a")).unwrap_err().contains("a rollback begins no step anew"));
    assert_eq!(sim.rests(), End::RolledBack);
    assert!(sim.asks("ben", roll_back()).unwrap_err().contains("the run is over: it is rolled back"));
}

#[test]
fn a_run_that_succeeded_is_rolled_back_later_and_leaves_what_it_is_told_to() {
    let mut sim = Sim::new(chain(&["a", "b", "c"]));
    assert_eq!(sim.rests(), End::Succeeded);
    sim.crash();
    assert!(sim.asks("ann", how(&["x"], false, false)).unwrap_err().contains("no step \"x\""));
    sim.asks("ann", how(&["b"], false, false)).unwrap();
    assert_eq!(sim.rests(), End::RolledBack);
    assert!(sim.world.has(sim.ix("b")));
    assert_eq!(sim.world.undone, [sim.ix("c"), sim.ix("a")]);
}

#[test]
fn a_rollback_past_failures_undoes_what_it_can_and_lists_the_rest() {
    let undo_b = |sim: Sim, n| sim.at_first("b", true, n, fails(Applied::Maybe, false));
    let mut sim = undo_b(Sim::new(chain(&["a", "b", "c"])), 1);
    sim.rests();
    sim.asks("ann", how(&[], true, false)).unwrap();
    assert_eq!(sim.rests(), End::Stuck);
    assert_eq!(sim.starts("a", true).len(), 1, "it went on past b");
    insta::assert_snapshot!(sim.state.waits_for().unwrap(), @r"these undos failed for good: b");

    let mut retried = sim.clone();
    retried.asks("ann", retry_undo("b")).unwrap();
    assert_eq!(retried.rests(), End::RolledBack);

    let close = || Verb::Close { manifest: json!({ "b": "left to the storage team" }) };
    sim.asks("ann", close()).unwrap();
    assert_eq!(sim.rests(), End::Closed);
    assert!(sim.asks("ann", close()).unwrap_err().contains("somebody closed it"));
}

#[test]
fn an_undo_that_is_tried_again_past_failures_stands_in_the_way_again() {
    let mut sim = Sim::new(chain(&["a", "b"])).at_first("b", true, 1, fails(Applied::Maybe, false));
    sim.rests();
    sim.asks("ann", how(&[], true, false)).unwrap();
    sim.step(&mut Dice::First);
    while !matches!(sim.undo_at("b"), CourseAt::Failed { .. }) {
        sim.step(&mut Dice::First);
    }
    sim.asks("ann", retry_undo("b")).unwrap();
    sim.step(&mut Dice::First);
    assert!(sim.starts("a", true).is_empty(), "b is being undone after all");
    assert_eq!(sim.rests(), End::RolledBack);
}

#[test]
fn only_what_is_stuck_or_left_alone_is_closed() {
    let mut sim = Sim::new(chain(&["a"]));
    let close = || Verb::Close { manifest: json!({}) };
    assert!(sim.asks("ann", close()).unwrap_err().contains("only a run that is stuck or left alone"));
    sim.step(&mut Dice::First);
    sim.append(Event::Quarantined { why: "it kills its nodes".into() });
    assert!(sim.asks("ann", close()).unwrap_err().contains("an attempt is in flight"));
    sim.crash();
    assert_eq!(decide(&sim.state, sim.now, 9), Decision::default());
    assert!(sim.asks("ann", roll_back()).unwrap_err().contains("the run is left alone"));
    let mut resumed = sim.clone();
    resumed.asks("ann", Verb::Resume).unwrap();
    assert_eq!(resumed.rests(), End::Succeeded);
    sim.asks("ann", close()).unwrap();
    assert_eq!(sim.rests(), End::Closed);
}

fn no_return(b: StepSpec) -> Sim {
    let a = StepSpec { point_of_no_return: true, ..step("a", &[]) };
    Sim::new(checked(spec(vec![a, b, step("c", &["b"])])))
}

#[test]
fn behind_the_point_of_no_return_a_failure_holds() {
    let mut sim = no_return(step("b", &["a"])).at_first("b", false, 1, fails(Applied::No, false));
    assert_eq!(sim.rests(), End::Held);
    insta::assert_snapshot!(sim.state.waits_for().unwrap(), @r"1 of 3 steps are done; an operator must decide about b");
    let refused = sim.asks("ann", roll_back()).unwrap_err();
    insta::assert_snapshot!(refused, @r#"the run is past its point of no return. Say "past_no_return": true if it is to be undone all the same"#);
    let mut back = sim.clone();
    back.asks("ann", how(&[], false, true)).unwrap();
    assert_eq!(back.rests(), End::RolledBack);
    sim.asks("ann", retry("b")).unwrap();
    assert_eq!(sim.rests(), End::Succeeded);
}

#[test]
fn a_doubt_about_the_point_of_no_return_holds_too() {
    let mut sim = no_return(step("b", &["a"])).at_first("a", false, 9, fails(Applied::No, false));
    sim.step(&mut Dice::First);
    sim.crash();
    assert!(sim.state.past_no_return());
    assert_eq!(sim.rests(), End::Held, "{}", sim.story());
}

#[test]
fn a_point_of_no_return_that_certainly_was_not_passed_does_not_hold() {
    let mut sim = no_return(step("b", &["a"])).at_first("a", false, 9, fails(Applied::No, false));
    assert_eq!(sim.rests(), End::RolledBack);
}

/// b fails while the attempt at the point of no return is in flight: its end decides.
#[test]
fn a_failure_beside_the_point_of_no_return_waits_for_its_end() {
    for (applied, end) in [(Applied::No, End::RolledBack), (Applied::Maybe, End::Held)] {
        let mut sim = no_return(step("b", &[])).scripted(move |plan, course, _, _| {
            match &*plan.step(course.step).name {
                "b" if course.direction == Direction::Forward => fails(Applied::No, false),
                "a" if course.direction == Direction::Forward => fails(applied, false),
                _ => crate::support::sim::Ending::Succeeds,
            }
        });
        sim.step(&mut Dice::First);
        sim.step(&mut Dice::First);
        while !matches!(sim.at("b"), CourseAt::Failed { .. }) {
            sim.step(&mut Dice::Last);
        }
        assert_eq!(sim.at("a"), &CourseAt::Running);
        assert!(sim.asks("ann", roll_back()).unwrap_err().contains("point of no return"));
        assert_eq!(decide(&sim.state, sim.now, 9), Decision::default());
        assert_eq!(sim.rests(), end, "{}", sim.story());
    }
}

fn commits(within: Option<u64>, then: Option<Ending>, signal: Option<&str>, steps: Vec<StepSpec>) -> Sim {
    let within = within.map(Span::secs);
    let commit = Some(Commit { within, then, signal: signal.map(str::to_owned) });
    let mut all = vec![step("a", &[])];
    all.extend(steps);
    Sim::new(checked(PlanSpec { commit, ..spec(all) }))
}

fn finalizing(name: &str, after: &[&str]) -> StepSpec {
    StepSpec { finalize: true, ..quiet(name, after) }
}

#[test]
fn what_finalizes_runs_after_the_commit_and_then_nothing_is_undone_any_more() {
    let mut sim = commits(None, None, None, vec![finalizing("f", &["a"]), finalizing("g", &["f"])]);
    assert!(sim.asks("ann", Verb::Commit).unwrap_err().contains("not all its steps are done"));
    assert_eq!(sim.rests(), End::Waits);
    assert_eq!((sim.state.status(), sim.state.progress()), (Status::Succeeded, (1, 1)));
    assert!(sim.starts("f", false).is_empty());
    assert!(sim.asks("ann", retry("f")).unwrap_err().contains("does not go forward"));
    sim.asks("ann", Verb::Commit).unwrap();
    assert_eq!(sim.state.progress(), (1, 3));
    assert!(sim.asks("ann", Verb::Commit).unwrap_err().contains("being committed already"));
    assert!(sim.asks("ann", roll_back()).unwrap_err().contains("nothing can be undone any more"));
    assert_eq!(sim.rests(), End::Committed);
    assert!(sim.asks("ann", roll_back()).unwrap_err().contains("it is committed"));
}

#[test]
fn a_finalizing_step_is_tried_again_and_held_in_the_end() {
    let steps = || vec![finalizing("f", &["a"])];
    let mut sim = commits(None, None, None, steps()).at_first("f", false, 2, fails(Applied::No, true));
    sim.rests();
    sim.asks("ann", Verb::Commit).unwrap();
    assert_eq!(sim.rests(), End::Committed, "three attempts are declared");
    let mut sim = commits(None, None, None, steps()).at_first("f", false, 3, fails(Applied::No, true));
    sim.rests();
    sim.asks("ann", Verb::Commit).unwrap();
    assert_eq!(sim.rests(), End::Held);
    let mut skipped = sim.clone();
    skipped.asks("ann", skip("f")).unwrap();
    assert_eq!(skipped.rests(), End::Committed);
    sim.asks("ann", retry("f")).unwrap();
    assert_eq!(sim.rests(), End::Committed);
}

#[test]
fn a_commit_comes_by_a_signal_early_or_late() {
    for early in [true, false] {
        let mut sim = commits(None, None, Some("done"), vec![]);
        if !early {
            assert_eq!(sim.rests(), End::Waits);
        }
        sim.asks("ann", signal("done", json!(null))).unwrap();
        assert_eq!(sim.rests(), End::Committed);
        assert_eq!(sim.state.signals().count(), 0, "it is read");
    }
}

#[test]
fn after_the_last_step_only_the_commit_reads_signals_and_what_comes_after_it() {
    let w = StepSpec { finalize: true, ..wait("w", &["a"], json!({ "signal": "late" })) };
    let steps = vec![wait("v", &["a"], json!({ "signal": "go" })), w];
    let mut sim = commits(None, None, Some("done"), steps);
    sim.asks("ann", signal("go", json!(1))).unwrap();
    assert_eq!(sim.rests(), End::Waits);
    assert!(sim.asks("ann", signal("go", json!(2))).unwrap_err().contains("it succeeded"));
    sim.asks("ann", signal("done", json!(1))).unwrap();
    assert_eq!(sim.rests(), End::Waits);
    assert!(sim.asks("ann", signal("done", json!(2))).is_err());
    sim.asks("ann", signal("late", json!(3))).unwrap();
    assert_eq!(sim.rests(), End::Committed);
}

#[test]
fn a_window_ends_in_a_commit_or_in_a_rollback_and_no_sooner() {
    for (then, end) in [(Ending::Commit, End::Committed), (Ending::RollBack, End::RolledBack)] {
        let mut sim = commits(Some(600), Some(then), None, vec![]);
        while sim.state.status() != Status::Succeeded {
            sim.step(&mut Dice::First);
        }
        let since = sim.now;
        let decision = decide(&sim.state, sim.now, 9);
        assert_eq!((decision.commands.len(), decision.wake_at), (0, Some(since + Span::secs(600).delta())));
        sim.wakes_in_time();
        assert_eq!(sim.rests(), end);
        assert!(sim.now >= since + Span::secs(600).delta());
        // Somebody is faster.
        let mut sim = commits(Some(600), Some(then), None, vec![]);
        while sim.state.status() != Status::Succeeded {
            sim.step(&mut Dice::First);
        }
        sim.asks("ann", if then == Ending::Commit { roll_back() } else { Verb::Commit }).unwrap();
        let other = if then == Ending::Commit { End::RolledBack } else { End::Committed };
        assert_eq!(sim.rests(), other);
        assert!(sim.now < since + Span::secs(600).delta());
    }
}

#[test]
fn a_run_that_waits_for_its_commit_can_be_left_alone_and_says_so() {
    let mut sim = commits(Some(600), Some(Ending::Commit), None, vec![]);
    while sim.state.status() != Status::Succeeded {
        sim.step(&mut Dice::First);
    }
    sim.append(Event::Quarantined { why: "it kills its nodes".into() });
    assert_eq!(sim.state.status(), Status::Quarantined);
    assert_eq!(sim.rests(), End::Waits);
    assert!(sim.asks("ann", Verb::Commit).unwrap_err().contains("left alone"));
    sim.asks("ann", Verb::Resume).unwrap();
    assert_eq!(sim.rests(), End::Committed);
}

fn told(sim: &mut Sim, id: CourseId, name: &str, fate: Fate) {
    sim.report(id, StepEvent::Resource { kind: "disk".into(), name: name.into(), fate, details: None });
}

fn account(name: &str, became: Fate) -> Verb {
    Verb::Account { step: "a".into(), kind: "disk".into(), name: name.into(), became }
}

#[test]
fn a_run_is_rolled_back_only_when_all_that_it_made_is_accounted_for() {
    let mut sim = Sim::new(chain(&["a", "b"]));
    sim.step(&mut Dice::First);
    let a = CourseId::forward(sim.ix("a"));
    for (name, fate) in
        [("one", Fate::Planned), ("two", Fate::Planned), ("one", Fate::Present), ("kept", Fate::Kept)]
    {
        told(&mut sim, a, name, fate);
    }
    sim.rests();
    assert!(sim.asks("ann", account("one", Fate::Gone)).unwrap_err().contains("roll it back first"));
    sim.asks("ann", roll_back()).unwrap();
    while sim.undo_at("a") != &CourseAt::Running {
        sim.step(&mut Dice::First);
    }
    told(&mut sim, CourseId::undo(a.step), "one", Fate::Gone);
    assert_eq!(sim.rests(), End::Stuck);
    insta::assert_snapshot!(sim.state.waits_for().unwrap(), @r"nobody knows what became of disk two of a");
    let Some(Event::Stuck { steps, resources }) = sim.journal.last().map(|last| &last.event) else {
        panic!()
    };
    assert_eq!((steps.len(), resources.as_slice()), (0, &["a: disk two".to_owned()][..]));
    assert!(sim.asks("ann", account("three", Fate::Gone)).unwrap_err().contains("has no disk"));
    assert!(sim.asks("ann", account("two", Fate::Present)).unwrap_err().contains("gone, or that it is kept"));
    sim.asks("ann", account("two", Fate::Kept)).unwrap();
    assert_eq!(sim.rests(), End::RolledBack);
}

#[test]
fn what_was_announced_by_a_step_that_did_nothing_never_was() {
    for (applied, end) in [(Applied::No, End::RolledBack), (Applied::Maybe, End::Stuck)] {
        let mut sim = Sim::new(chain(&["a"])).at_first("a", false, 1, fails(applied, false));
        sim.step(&mut Dice::First);
        let a = CourseId::forward(sim.ix("a"));
        told(&mut sim, a, "one", Fate::Planned);
        assert_eq!(sim.rests(), end, "{applied:?}");
    }
}

#[test]
fn what_a_step_made_that_is_left_is_kept() {
    let mut sim = Sim::new(chain(&["a", "b"]));
    sim.step(&mut Dice::First);
    let a = CourseId::forward(sim.ix("a"));
    told(&mut sim, a, "one", Fate::Present);
    sim.rests();
    sim.asks("ann", how(&["a"], false, false)).unwrap();
    assert_eq!(sim.rests(), End::RolledBack);
}

#[test]
fn of_two_people_who_act_on_the_same_sight_one_wins_and_the_other_is_told_by_whom() {
    let a = StepSpec { on_failure: OnFailure::Hold, ..step("a", &[]) };
    let mut sim = Sim::new(checked(spec(vec![a, step("b", &["a"])]))).at_first(
        "a",
        false,
        1,
        fails(Applied::No, false),
    );
    assert_eq!(sim.rests(), End::Held);
    let seen = sim.state.seq();
    sim.asks_seeing(seen, "ann", retry("a")).unwrap();
    let refused = sim.asks_seeing(seen, "ben", skip("a")).unwrap_err();
    insta::assert_snapshot!(refused, @r#"ann has asked for "retry" of a since (event 6); look again"#);
    sim.rests();
    assert_eq!(sim.end(), Some(End::Succeeded));

    let seen = sim.state.seq();
    sim.asks_seeing(seen, "ann", roll_back()).unwrap();
    insta::assert_snapshot!(sim.asks_seeing(seen, "ben", Verb::Commit).unwrap_err(), @r#"ann has asked for "roll_back" of the run since (event 14); look again"#);
}

#[test]
fn what_moved_by_itself_since_it_was_seen_is_looked_at_again() {
    let mut sim = Sim::new(chain(&["a", "b"]));
    sim.step(&mut Dice::First);
    let seen = sim.state.seq();
    assert_eq!(sim.rests(), End::Succeeded);
    insta::assert_snapshot!(sim.asks_seeing(seen, "ann", skip("a")).unwrap_err(), @r"a has moved on since (event 4); look again");
    insta::assert_snapshot!(sim.asks_seeing(seen, "ann", roll_back()).unwrap_err(), @r"the run has moved on since (event 7); look again");
    let seen = sim.state.seq();
    sim.asks_seeing(seen, "ann", roll_back()).unwrap();
}
