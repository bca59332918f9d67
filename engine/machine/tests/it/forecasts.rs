//! How long the rest of a run takes, in words: what was timed is added up, what others take is named.

use std::time::Duration;

use backstay_machine::plan::{OnFailure, PlanBuilder, Span, StepSpec};
use backstay_machine::*;
use serde_json::json;

use crate::support::people::*;
use crate::support::sim::Ending;
use crate::support::{Activities, Dice, End, Sim, checked, spec, step};

/// Every step took three seconds before, and every undo five.
fn left(sim: &Sim) -> String {
    left_if(sim, |id| Some(Span::secs(if id.direction == Direction::Undo { 5 } else { 3 })))
}

fn left_if(sim: &Sim, took: impl Fn(CourseId) -> Option<Span>) -> String {
    forecast(&sim.state, sim.now, took).unwrap().to_string()
}

/// a, then something, then b.
fn around(middle: StepSpec) -> Sim {
    Sim::new(checked(spec(vec![
        step("a", &[]),
        StepSpec { after: vec!["a".into()], ..middle },
        step("b", &["m"]),
    ])))
}

#[test]
fn what_waits_for_a_signal_has_no_length() {
    let mut sim = around(wait("m", &[], json!({ "signal": "go" })));
    assert_eq!(left(&sim), "as long as others take: the signal \"go\" (m); beside that about 6s: a, b");
    assert_eq!(sim.run(&mut Dice::First), End::Waits);
    assert_eq!(left(&sim), "as long as others take: the signal \"go\" (m); beside that about 3s: b");

    let mut last = Sim::new(checked(spec(vec![wait("w", &[], json!({ "signal": "go" }))])));
    assert_eq!(last.run(&mut Dice::First), End::Waits);
    assert_eq!(left(&last), "as long as others take: the signal \"go\" (w)");
}

#[test]
fn what_people_must_agree_to_or_decide_has_no_length() {
    let mut sim = around(approve("m", &[], json!({ "right": "release" })));
    assert_eq!(sim.run(&mut Dice::First), End::Waits);
    assert_eq!(left(&sim), "as long as others take: people's yes to m; beside that about 3s: b");

    let held = StepSpec { on_failure: OnFailure::Hold, ..step("m", &[]) };
    let mut sim = around(held).failing("m");
    assert_eq!(sim.run(&mut Dice::First), End::Held);
    assert_eq!(left(&sim), "as long as others take: a decision about m; beside that about 3s: b");
}

#[test]
fn a_paused_run_takes_as_long_as_nobody_resumes_it() {
    let mut sim = around(quiet("m", &[]));
    sim.asks("ann", Verb::Pause).unwrap();
    assert_eq!(left(&sim), "as long as others take: whoever resumes it; beside that about 9s: a, m, b");
}

#[test]
fn a_failed_undo_takes_as_long_as_nobody_decides() {
    let mut sim =
        around(quiet("m", &[])).scripted(|plan, course, _, _| match *plan.step(course.step).name == *"b" {
            true => fails(Applied::Maybe, false),
            false => Ending::Succeeds,
        });
    assert_eq!(sim.run(&mut Dice::First), End::Stuck);
    assert_eq!(left(&sim), "as long as others take: a decision about the undo of b; beside that about 5s: a");
}

#[test]
fn a_time_that_is_waited_for_counts_before_it_begins_as_well() {
    let mut sim = around(wait("m", &[], json!({ "for": "1h", "signal": "go" })));
    assert_eq!(left(&sim), "about 1h 6s: a, m, b");
    while !sim.story().ends_with("started m #1") {
        sim.step(&mut Dice::First).unwrap();
    }
    assert_eq!(left(&sim), "about 1h 3s: m, b");
}

#[test]
fn what_nobody_timed_is_said_to_be_so() {
    let sim = around(quiet("m", &[]));
    assert_eq!(left_if(&sim, |_| None), "3 steps that were never timed: a, m, b");
    let only_a = |id: CourseId| (id.step == sim.ix("a")).then(|| Span::secs(2));
    assert_eq!(left_if(&sim, only_a), "about 2s, and 2 steps that were never timed: a, m, b");
    let mut plan = PlanBuilder::new("bound");
    let a = plan.step("a", "do").undone_by("undo", json!({})).done();
    plan.wait("w", json!({ "for": a.output("/long") })).after([&a]);
    let sim = Sim::new(plan.check(&Activities::anything()).unwrap());
    let said = left_if(&sim, |_| Some(Span::from(Duration::from_millis(300))));
    assert_eq!(said, "about 1s, and 1 step that was never timed: a, w", "how long is for a to say");
}
