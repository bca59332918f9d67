//! Steps that wait for time, for signals and for people, as stories; and a run that stands still because somebody says so.

use backstay_machine::plan::{OnFailure, Span, StepSpec};
use backstay_machine::*;
use serde_json::json;
use uuid::Uuid;

use crate::support::people::*;
use crate::support::{Dice, End, Sim, chain, checked, spec, step};

fn waits(input: serde_json::Value) -> Sim {
    Sim::new(checked(spec(vec![wait("w", &[], input), step("b", &["w"])])))
}

/// How long after its start the wait was over.
fn took(sim: &Sim) -> chrono::TimeDelta {
    let of = |kinds: &[&str]| {
        let is_it = |row: &&Row| row.step.as_deref() == Some("w") && kinds.contains(&row.kind);
        let rows: Vec<_> = sim.journal.iter().map(|event| event.to_row(sim.plan())).collect();
        rows.iter().find(is_it).unwrap().at
    };
    of(&["succeeded", "failed"]) - of(&["started"])
}

fn output(sim: &Sim) -> serde_json::Value {
    sim.state.course(CourseId::forward(sim.ix("w"))).output().unwrap().value()
}

#[test]
fn a_wait_for_a_while_is_over_then_and_no_sooner() {
    let mut sim = waits(json!({ "for": "10s" }));
    sim.step(&mut Dice::First);
    let decision = decide(&sim.state, sim.now, 9);
    assert_eq!((decision.commands.len(), decision.wake_at), (0, Some(sim.now + Span::secs(10).delta())));
    sim.wakes_in_time();
    assert_eq!(sim.rests(), End::Succeeded);
    assert_eq!(took(&sim), Span::secs(10).delta() + Span::millis(1).delta());
    assert_eq!(output(&sim), json!({ "by": "time", "signal": null }));
}

#[test]
fn a_wait_until_a_date_that_is_past_is_over_at_once() {
    let mut sim = waits(json!({ "until": "1969-12-31T00:00:00Z" }));
    assert_eq!(sim.rests(), End::Succeeded);
    assert!(took(&sim) < Span::secs(1).delta());
}

#[test]
fn a_timer_fires_once_after_a_crash_and_a_long_outage_too() {
    let mut sim = waits(json!({ "for": "10s" }));
    sim.step(&mut Dice::First);
    sim.crash();
    sim.pass(sim.now + chrono::TimeDelta::days(3));
    sim.crash();
    assert_eq!(sim.rests(), End::Succeeded);
    assert_eq!(sim.starts("w", false).len(), 1, "a wait is not in doubt");
}

#[test]
fn of_a_signal_and_a_time_whichever_comes_first_ends_the_wait() {
    let input = json!({ "for": "10s", "signal": "go" });
    let mut late = waits(input.clone());
    assert_eq!(late.rests(), End::Succeeded);
    assert_eq!(output(&late)["by"], "time");
    let mut soon = waits(input);
    soon.step(&mut Dice::First);
    soon.asks("ann", signal("go", json!(7))).unwrap();
    assert_eq!(soon.rests(), End::Succeeded);
    assert_eq!(output(&soon)["by"], "signal");
    assert_eq!(
        (&output(&soon)["signal"]["payload"], &output(&soon)["signal"]["who"]),
        (&json!(7), &json!("ann"))
    );
    assert!(took(&soon) < Span::secs(1).delta());
}

#[test]
fn a_signal_that_comes_early_is_kept_and_each_is_read_once_in_order() {
    let input = json!({ "signal": "go" });
    let steps = vec![wait("v", &[], input.clone()), wait("w", &["v"], input), step("b", &["w"])];
    let mut sim = Sim::new(checked(spec(steps)));
    for n in [1, 2, 3] {
        sim.asks("ann", signal("go", json!(n))).unwrap();
    }
    assert_eq!(sim.rests(), End::Succeeded);
    let read = |name| sim.state.course(CourseId::forward(sim.ix(name))).output().unwrap().value();
    assert_eq!((&read("v")["signal"]["payload"], &read("w")["signal"]["payload"]), (&json!(1), &json!(2)));
    assert_eq!(sim.state.signals().count(), 1, "the third is kept");
}

#[test]
fn two_waits_side_by_side_never_read_one_signal() {
    let input = json!({ "signal": "go" });
    let mut sim = Sim::new(checked(spec(vec![wait("v", &[], input.clone()), wait("w", &[], input)])));
    sim.rests();
    sim.asks("ann", signal("go", json!(1))).unwrap();
    let decision = decide(&sim.state, sim.now, 9);
    assert_eq!(decision.commands.len(), 1, "{decision:?}");
    assert_eq!(sim.rests(), End::Waits);
    sim.asks("ann", signal("go", json!(2))).unwrap();
    assert_eq!(sim.rests(), End::Succeeded);
}

#[test]
fn a_signal_is_refused_where_nothing_reads_it() {
    let schema = json!({ "type": "object", "required": ["n"] });
    let mut sim = waits(json!({ "signal": "go", "schema": schema }));
    sim.rests();
    let mut said = Vec::new();
    said.push(sim.asks("ann", signal("stop", json!(1))).unwrap_err());
    said.push(sim.asks("ann", signal("go", json!(1))).unwrap_err());
    let long = "x".repeat(action::limits::BYTES);
    said.push(sim.asks("ann", signal("go", json!({ "n": long }))).unwrap_err());
    let mut deep = json!(1);
    for _ in 0..40 {
        deep = json!([deep]);
    }
    said.push(
        sim.asks("ann", signal("go", json!({ "n": deep }))).unwrap_err().split(" it ").last().unwrap().into(),
    );
    let mut back = sim.clone();
    back.asks("ann", roll_back()).unwrap();
    said.push(back.asks("ann", signal("go", json!({ "n": 1 }))).unwrap_err());
    sim.asks("ann", signal("go", json!({ "n": 1 }))).unwrap();
    assert_eq!(sim.rests(), End::Succeeded);
    said.push(sim.asks("ann", signal("go", json!({ "n": 1 }))).unwrap_err());
    insta::assert_snapshot!(said.join("\n"), @r#"
    nothing in this run waits for a signal "stop"; it knows: go
    w takes no such payload: at "" 1 is not of type "object"
    it has more than 262144 bytes
    is nested more than 32 deep
    the run does not go forward any more: nothing reads this signal
    the run is over: it succeeded
    "#);
}

#[test]
fn no_more_signals_are_kept_than_the_limit() {
    let mut sim = waits(json!({ "signal": "go", "within": "1m" }));
    let mut state = sim.state.clone();
    for n in 0..action::limits::SIGNALS as i64 {
        let action = Action::new("ann", "", signal("go", json!(n)));
        let event = Event::Acted(Box::new(action));
        let (at, epoch) = (state.at().unwrap(), Epoch(1));
        state.apply(&Journaled { seq: state.seq() + 1, claim: state.claim(), epoch, at, event }).unwrap();
    }
    sim.state = state;
    assert!(sim.asks("ann", signal("go", json!(0))).unwrap_err().contains("10000 signals wait"));
}

#[test]
fn what_expires_is_held_gone_on_from_or_rolled_back_as_declared() {
    for (on_failure, end) in [
        (OnFailure::Hold, End::Held),
        (OnFailure::Continue, End::Succeeded),
        (OnFailure::RollBack, End::RolledBack),
    ] {
        let w = StepSpec { on_failure, ..wait("w", &["a"], json!({ "signal": "go", "within": "10s" })) };
        let mut sim = Sim::new(checked(spec(vec![step("a", &[]), w, step("b", &["w"])])));
        assert_eq!(sim.rests(), end, "{on_failure:?}");
        assert_eq!(took(&sim), Span::secs(10).delta() + Span::millis(1).delta());
        if end == End::Held {
            sim.asks("ann", retry("w")).unwrap();
            sim.asks("ann", signal("go", json!(1))).unwrap();
            assert_eq!(sim.rests(), End::Succeeded);
        }
    }
}

#[test]
fn a_wait_that_fails_begins_nothing_beside_it() {
    let w = wait("w", &[], json!({ "signal": "go", "within": "10s" }));
    let mut sim =
        Sim::new(checked(spec(vec![w, wait("v", &[], json!({ "for": "10s" })), step("b", &["v"])])));
    sim.rests();
    assert!(sim.starts("b", false).is_empty(), "{}", sim.story());
}

#[test]
fn a_run_that_waits_says_for_what() {
    let steps = vec![
        wait("v", &[], json!({ "signal": "go" })),
        approve("w", &[], json!({ "right": "release", "people": 2 })),
        wait("x", &[], json!({ "until": "2070-01-01T00:00:00Z" })),
    ];
    let mut sim = Sim::new(checked(spec(steps)));
    for _ in 0..3 {
        sim.step(&mut Dice::First);
    }
    insta::assert_snapshot!(sim.state.waits_for().unwrap(), @r#"v waits for the signal "go"; w waits for 2 to say yes by the right "release"; 0 have; x waits until 2070-01-01 00:00:00 UTC"#);
}

fn approval(people: u32) -> Sim {
    let input =
        json!({ "right": "release", "people": people, "within": "1h", "show": { "$output": "a/made" } });
    let w = StepSpec { on_failure: OnFailure::Hold, ..approve("w", &["a"], input) };
    let mut sim = Sim::new(checked(spec(vec![step("a", &[]), w, step("b", &["w"])])));
    while !matches!(sim.at("w"), CourseAt::Waiting(_)) {
        sim.step(&mut Dice::First);
    }
    sim
}

fn yes(sim: &Sim, right: &str) -> Verb {
    Verb::Approve { step: "w".into(), right: right.into(), plan: sim.plan().hash().into() }
}

#[test]
fn an_approval_is_of_this_plan_by_that_right_and_of_so_many_people() {
    let mut sim = approval(2);
    assert!(sim.starts("w", false)[0].1.as_ref().unwrap()["show"].is_string(), "people see what it is about");
    let right = yes(&sim, "release");
    let mut said = Vec::new();
    let other = Verb::Approve { step: "w".into(), right: "release".into(), plan: "abc".into() };
    said.push(sim.asks("ann", other).unwrap_err().split(" has the hash").next().unwrap().into());
    said.push(sim.asks("ann", yes(&sim, "view")).unwrap_err());
    sim.asks("ann", right.clone()).unwrap();
    said.push(sim.asks("ann", right.clone()).unwrap_err());
    said.push(
        sim.asks(
            "ann",
            Verb::Approve { step: "a".into(), right: "release".into(), plan: sim.plan().hash().into() },
        )
        .unwrap_err(),
    );
    let decision = decide(&sim.state, sim.now, 9);
    assert!(decision.commands.is_empty(), "one is not two");
    sim.asks("ben", right.clone()).unwrap();
    assert_eq!(sim.rests(), End::Succeeded);
    assert_eq!(output(&sim), json!({ "by": ["ann", "ben"] }));
    said.push(sim.asks("cem", right).unwrap_err());
    insta::assert_snapshot!(said.join("\n"), @r#"
    what was looked at
    it takes the right "release", not "view"
    ann said yes already
    a does not wait for anybody to say yes
    the run does not go forward
    "#);
}

#[test]
fn a_no_ends_an_approval_and_what_was_said_is_forgotten_when_it_begins_anew() {
    let mut sim = approval(2);
    let right = yes(&sim, "release");
    sim.asks("ann", right.clone()).unwrap();
    sim.asks("ben", Verb::Reject { step: "w".into(), right: "release".into() }).unwrap();
    assert!(sim.asks("cem", right.clone()).unwrap_err().contains("ben said no already"));
    assert_eq!(sim.rests(), End::Held);
    sim.asks("ann", retry("w")).unwrap();
    sim.step(&mut Dice::First);
    sim.asks("ben", right.clone()).unwrap();
    assert!(decide(&sim.state, sim.now, 9).commands.is_empty(), "ann's yes was to the last asking");
    sim.asks("ann", right).unwrap();
    assert_eq!(sim.rests(), End::Succeeded);
}

#[test]
fn an_approval_that_nobody_gives_expires() {
    let mut sim = approval(1);
    assert_eq!(sim.rests(), End::Held);
    assert_eq!(took(&sim), Span::secs(3600).delta() + Span::millis(1).delta());
}

#[test]
fn nobody_can_give_himself_the_right_by_a_retry() {
    let mut sim = approval(2);
    assert_eq!(sim.rests(), End::Held);
    let edited = |input| Verb::Retry { step: "w".into(), undo: false, input: Some(input), in_doubt: false };
    for input in [
        json!({ "right": "release", "people": 1 }),
        json!({ "right": "view", "people": 2 }),
        json!({ "people": 2 }),
        json!("release"),
    ] {
        let refused = sim.asks("ann", edited(input)).unwrap_err();
        assert!(refused.contains("stands in the plan"), "{refused}");
    }
    sim.asks("ann", edited(json!({ "right": "release", "people": 2, "within": "2h" }))).unwrap();
    assert_eq!(sim.rests(), End::Held);
}

#[test]
fn in_a_paused_run_nothing_starts_and_nothing_fires_but_what_ends_is_journaled() {
    let steps = vec![step("a", &[]), step("b", &["a"]), wait("w", &[], json!({ "for": "10s" }))];
    let mut sim = Sim::new(checked(spec(steps)));
    while !(sim.at("a") == &CourseAt::Running && matches!(sim.at("w"), CourseAt::Waiting(_))) {
        sim.step(&mut Dice::First);
    }
    sim.asks("ann", Verb::Pause).unwrap();
    assert_eq!(sim.state.status(), Status::Running, "a call is in flight yet");
    let decision = decide(&sim.state, sim.now, 9);
    assert_eq!((decision.commands.len(), decision.wake_at), (0, None));
    assert_eq!(sim.rests(), End::Waits);
    assert!(sim.at("a").is_done());
    assert_eq!(sim.state.status(), Status::Paused);
    insta::assert_snapshot!(sim.state.waits_for().unwrap(), @r"ann paused it; somebody must resume it");
    sim.pass(sim.now + chrono::TimeDelta::days(1));
    assert_eq!(decide(&sim.state, sim.now, 9), Decision::default());
    assert!(sim.asks("ben", Verb::Pause).unwrap_err().contains("ann has paused it already"));
    sim.asks("ben", Verb::Resume).unwrap();
    assert!(sim.asks("ben", Verb::Resume).unwrap_err().contains("nobody has paused it"));
    assert_eq!(sim.rests(), End::Succeeded);
}

#[test]
fn a_rollback_can_be_paused_too_and_a_crash_does_not_wake_it() {
    let mut sim = Sim::new(chain(&["a", "b"]));
    sim.rests();
    sim.asks("ann", roll_back()).unwrap();
    sim.step(&mut Dice::First);
    assert_eq!(sim.undo_at("b"), &CourseAt::Running);
    sim.asks("ann", Verb::Pause).unwrap();
    sim.crash();
    assert_eq!(sim.rests(), End::Waits);
    assert_eq!(sim.state.status(), Status::Paused);
    assert!(sim.starts("a", true).is_empty());
    sim.asks("ann", Verb::Resume).unwrap();
    assert_eq!(sim.rests(), End::RolledBack);
}

#[test]
fn a_failure_in_a_paused_run_waits_for_its_consequences_and_can_be_mended() {
    let mut sim = Sim::new(chain(&["a", "b"])).at_first("a", false, 1, fails(Applied::No, false));
    sim.step(&mut Dice::First);
    sim.asks("ann", Verb::Pause).unwrap();
    assert_eq!(sim.rests(), End::Waits);
    sim.asks("ann", retry("a")).unwrap();
    sim.asks("ann", Verb::Resume).unwrap();
    assert_eq!(sim.rests(), End::Succeeded);
}

#[test]
fn an_action_is_answered_once_and_its_id_is_illegal_a_second_time() {
    let mut sim = waits(json!({ "signal": "go" }));
    let action = Action { id: Uuid::from_u128(7), ..Action::new("ann", "", signal("go", json!(1))) };
    sim.act(action.clone()).unwrap();
    assert!(sim.state.knows(action.id));
    assert!(sim.act(action.clone()).unwrap_err().contains("before"));
    let next = |event| Journaled {
        seq: sim.state.seq() + 1,
        claim: sim.state.claim(),
        epoch: Epoch(1),
        at: sim.now,
        event,
    };
    let acted = next(Event::Acted(Box::new(action.clone())));
    let refused = next(Event::Refused { action: Box::new(action), because: "no".into() });
    for again in [acted, refused] {
        assert!(sim.state.clone().apply(&again).unwrap_err().why.contains("before"));
    }
    // Refused, it is known too.
    let silly = Action { id: Uuid::from_u128(8), ..Action::new("ann", "", Verb::Resume) };
    assert!(sim.act(silly.clone()).unwrap_err().contains("nobody has paused it"));
    assert!(sim.act(silly).unwrap_err().contains("before"));
}
