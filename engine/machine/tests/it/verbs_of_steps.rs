//! What people do to single steps, as stories: try again, skip, undo, let go without a proof.

use backstay_machine::plan::{Effect, OnFailure, PlanSpec, Proof, Span, StepSpec};
use backstay_machine::*;
use serde_json::json;

use crate::support::people::*;
use crate::support::{Dice, End, Sim, chain, checked, spec, step};

fn held(step: StepSpec) -> StepSpec {
    StepSpec { on_failure: OnFailure::Hold, ..step }
}

fn reading(name: &str, from: &str) -> StepSpec {
    StepSpec { input: json!({ "it": { "$output": format!("{from}/made") } }), ..step(name, &[from]) }
}

#[test]
fn what_waits_for_its_next_attempt_is_tried_now_under_the_same_key() {
    let mut sim = Sim::new(chain(&["a"])).at_first("a", false, 1, fails(Applied::No, true));
    while !matches!(sim.at("a"), CourseAt::BackingOff { .. }) {
        sim.step(&mut Dice::First);
    }
    let CourseAt::BackingOff { until } = *sim.at("a") else { panic!() };
    sim.asks("ann", retry("a")).unwrap();
    sim.step(&mut Dice::First);
    assert_eq!(sim.at("a"), &CourseAt::Running);
    assert!(sim.now < until);
    assert_eq!(sim.rests(), End::Succeeded);
    let keys = sim.starts("a", false);
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0].0, keys[1].0);
}

#[test]
fn what_may_have_had_its_effect_is_looked_for_before_it_is_tried_again_under_its_key() {
    let effect = Some(Effect { probed: true, longest_delay: Span::secs(5), ..Effect::default() });
    let a = StepSpec { effect, ..held(step("a", &[])) };
    let mut sim = Sim::new(checked(spec(vec![a]))).at_first("a", false, 1, fails(Applied::Maybe, false));
    assert_eq!(sim.rests(), End::Held);
    let seq = sim.state.seq();
    sim.asks("ann", retry("a")).unwrap();
    assert_eq!(sim.rests(), End::Succeeded);
    insta::assert_snapshot!(sim.story_since(seq), @r"
    acted a by ann: retry
    hastened a #1
    probed a #1 present
    succeeded a #1
    finished succeeded
    ");
    assert_eq!(sim.starts("a", false).len(), 1, "it was there, and was not done again");
}

#[test]
fn whoever_says_in_doubt_begins_anew_under_a_new_key() {
    let effect = Some(Effect { probed: true, ..Effect::default() });
    let a = StepSpec { effect, ..held(step("a", &[])) };
    let mut sim = Sim::new(checked(spec(vec![a]))).at_first("a", false, 1, fails(Applied::Maybe, false));
    assert_eq!(sim.rests(), End::Held);
    sim.asks("ann", retry_in_doubt("a")).unwrap();
    assert_eq!(sim.rests(), End::Succeeded);
    let keys = sim.starts("a", false);
    assert_ne!(keys[0].0, keys[1].0);
}

#[test]
fn another_input_of_what_may_have_had_its_effect_needs_the_word_in_doubt() {
    let mut sim = Sim::new(checked(spec(vec![held(step("a", &[]))]))).at_first(
        "a",
        false,
        1,
        fails(Applied::Maybe, false),
    );
    assert_eq!(sim.rests(), End::Held);
    let edited =
        |in_doubt| Verb::Retry { step: "a".into(), undo: false, input: Some(json!({ "x": 1 })), in_doubt };
    let refused = sim.asks("ann", edited(false)).unwrap_err();
    insta::assert_snapshot!(refused, @r#"attempt 1 of a may have had its effect. Retry it as it is, and the world is asked first; or say "in_doubt": true"#);
    sim.asks("ann", edited(true)).unwrap();
    assert_eq!(sim.rests(), End::Succeeded);
    assert_eq!(sim.starts("a", false)[1].1, Some(json!({ "x": 1 })));
}

#[test]
fn an_edited_input_is_used_and_the_old_one_stays_in_the_journal() {
    let steps = vec![step("a", &[]), held(reading("b", "a")), reading("c", "b")];
    let mut sim = Sim::new(checked(spec(steps))).at_first("b", false, 1, fails(Applied::No, false));
    assert_eq!(sim.rests(), End::Held);
    let input = Some(json!({ "it": "something else" }));
    sim.asks("ann", Verb::Retry { step: "b".into(), undo: false, input: input.clone(), in_doubt: false })
        .unwrap();
    assert_eq!(sim.rests(), End::Succeeded);
    let starts = sim.starts("b", false);
    assert_eq!(starts[1].1, input);
    assert!(starts[0].1.as_ref().unwrap()["it"].is_string() && starts[0].1 != starts[1].1);
    assert_ne!(starts[0].0, starts[1].0, "other work has another key");
}

#[test]
fn an_undo_gets_another_input_too() {
    let mut sim = Sim::new(chain(&["a"])).at_first("a", true, 1, fails(Applied::No, false));
    assert_eq!(sim.rests(), End::Succeeded);
    sim.asks("ann", roll_back()).unwrap();
    assert_eq!(sim.rests(), End::Stuck);
    let input = Some(json!({ "it": "edited" }));
    sim.asks("ann", Verb::Retry { step: "a".into(), undo: true, input: input.clone(), in_doubt: false })
        .unwrap();
    assert_eq!(sim.rests(), End::RolledBack);
    assert_eq!(sim.starts("a", true)[1].1, input);
}

#[test]
fn what_is_skipped_has_the_output_that_was_given_and_its_undo_runs_if_it_may_be_there() {
    for (applied, undone) in [(Applied::No, false), (Applied::Maybe, true)] {
        let steps = vec![step("a", &[]), held(step("b", &["a"])), reading("c", "b")];
        let mut sim = Sim::new(checked(spec(steps))).at_first("b", false, 1, fails(applied, false));
        assert_eq!(sim.rests(), End::Held);
        sim.asks("ann", skip("b")).unwrap();
        assert_eq!(sim.rests(), End::Succeeded);
        assert_eq!(sim.starts("c", false)[0].1, Some(json!({ "it": "by hand" })));
        sim.asks("ann", roll_back()).unwrap();
        assert_eq!(sim.rests(), End::RolledBack);
        assert_eq!(!sim.starts("b", true).is_empty(), undone, "{applied:?}");
    }
}

#[test]
fn what_is_skipped_before_its_turn_lets_nobody_start_before_theirs() {
    let mut sim = Sim::new(checked(spec(vec![step("a", &[]), step("b", &["a"]), reading("c", "b")])));
    sim.step(&mut Dice::First);
    sim.asks("ann", skip("b")).unwrap();
    let early = decide(&sim.state, sim.now, 9);
    assert!(early.commands.is_empty(), "a is not done, and c stands on it: {early:?}");
    assert_eq!(sim.rests(), End::Succeeded);
    assert!(sim.starts("b", false).is_empty());
}

#[test]
fn a_skip_says_why_and_is_refused_where_it_makes_no_sense() {
    let mut sim = Sim::new(chain(&["a", "b"]));
    let silent = Action { why: " ".into(), ..Action::new("ann", "", skip("a")) };
    assert!(sim.act(silent).unwrap_err().contains("\"why\" is missing"));
    sim.step(&mut Dice::First);
    assert!(sim.asks("ann", skip("a")).unwrap_err().contains("an attempt of a is running"));
    assert!(sim.asks("ann", skip_undo("a")).unwrap_err().contains("nothing is being undone"));
    assert!(sim.asks("ann", skip("x")).unwrap_err().contains("no step \"x\""));
    assert_eq!(sim.rests(), End::Succeeded);
    assert!(sim.asks("ann", skip("a")).unwrap_err().contains("a is done"));
}

#[test]
fn an_undo_that_was_done_by_hand_lets_the_rollback_go_on() {
    let mut sim = Sim::new(chain(&["a", "b"])).at_first("b", true, 9, fails(Applied::Maybe, false));
    sim.rests();
    sim.asks("ann", roll_back()).unwrap();
    assert_eq!(sim.rests(), End::Stuck);
    assert!(sim.asks("ann", skip_undo("x")).is_err());
    sim.asks("ann", skip_undo("b")).unwrap();
    assert_eq!(sim.rests(), End::RolledBack);
    assert_eq!(sim.starts("a", true).len(), 1);
}

fn waits_at_the_end() -> Sim {
    let steps = vec![
        step("a", &[]),
        reading("b", "a"),
        quiet("look", &["a"]),
        wait("w", &["b"], json!({ "signal": "go" })),
    ];
    let mut sim = Sim::new(checked(spec(steps)));
    assert_eq!(sim.rests(), End::Waits);
    sim
}

#[test]
fn a_step_that_others_stand_on_is_not_undone_alone() {
    let mut sim = waits_at_the_end();
    assert!(sim.asks("ann", cascade("b")).unwrap_err().contains("w is under way"));
    sim.asks("ann", skip("w")).unwrap();
    let refused = sim.asks("ann", undo_step("a")).unwrap_err();
    insta::assert_snapshot!(refused, @r#"these came after it and would stand on nothing: b. Say "cascade": true to undo them too"#);
    assert!(sim.asks("ann", undo_step("look")).unwrap_err().contains("look has no undo"));
}

/// Undone with all that stands on it; each is held, tried again when its ground is there, and undone once more.
#[test]
fn a_cascade_undoes_in_reverse_and_all_can_be_done_and_undone_again() {
    let mut sim = waits_at_the_end();
    sim.asks("ann", skip("w")).unwrap();
    let seq = sim.state.seq();
    sim.asks("ann", cascade("a")).unwrap();
    assert_eq!(sim.rests(), End::Held);
    insta::assert_snapshot!(sim.story_since(seq), @r"
    acted a by ann: undo_step
    recalled w #1
    recalled look #1
    recalled b #1
    recalled a #1
    started undo b #1
    succeeded undo b #1
    started undo a #1
    succeeded undo a #1
    ");
    assert!(!sim.world.has(sim.ix("a")) && !sim.world.has(sim.ix("b")));

    // b is tried again before what it stands on: it waits for that.
    sim.asks("ann", retry("b")).unwrap();
    assert_eq!(sim.rests(), End::Held);
    assert_eq!(sim.at("b"), &CourseAt::Untouched);
    sim.asks("ben", retry("a")).unwrap();
    assert_eq!(sim.rests(), End::Waits);
    assert_eq!(sim.starts("look", false).len(), 2, "what it saw was seen on ground that went away");
    sim.asks("ann", signal("go", json!(null))).unwrap();
    assert_eq!(sim.rests(), End::Succeeded);

    sim.asks("ann", roll_back()).unwrap();
    assert_eq!(sim.rests(), End::RolledBack);
    for name in ["a", "b"] {
        let (undos, starts) = (sim.starts(name, true), sim.starts(name, false));
        assert_eq!((undos.len(), starts.len()), (2, 2));
        assert_ne!(undos[0].0, undos[1].0);
        assert_ne!(starts[0].0, starts[1].0);
    }
}

#[test]
fn the_undo_of_one_step_waits_for_that_of_another_two_behind_it() {
    let steps = vec![
        step("a", &[]),
        quiet("look", &["a"]),
        step("b", &["look"]),
        wait("w", &["b"], json!({ "signal": "go" })),
    ];
    let mut sim = Sim::new(checked(spec(steps)));
    sim.rests();
    sim.asks("ann", skip("w")).unwrap();
    sim.asks("ann", cascade("a")).unwrap();
    assert_eq!(sim.rests(), End::Held);
    assert_eq!(sim.world.undone, [sim.ix("b"), sim.ix("a")]);
}

#[test]
fn the_undo_of_one_step_waits_for_effects_that_may_come_late() {
    let effect = Some(Effect { longest_delay: Span::secs(30), ..Effect::default() });
    let a = StepSpec { effect, ..held(step("a", &[])) };
    let mut sim = Sim::new(checked(spec(vec![a]))).at_first("a", false, 1, fails(Applied::Maybe, false));
    assert_eq!(sim.rests(), End::Held);
    sim.asks("ann", undo_step("a")).unwrap();
    let now = decide(&sim.state, sim.now, 9);
    assert!(now.commands.is_empty() && now.wake_at.is_some());
    assert_eq!(sim.rests(), End::Held);
    assert!(sim.now - chrono::DateTime::UNIX_EPOCH >= Span::secs(30).delta());
}

#[test]
fn an_undo_of_one_step_that_fails_is_tried_again_or_done_by_hand() {
    for by_hand in [true, false] {
        let mut sim = Sim::new(chain(&["a", "b"])).at_first("a", true, 1, fails(Applied::Maybe, false));
        while sim.at("b") != &CourseAt::Running {
            sim.step(&mut Dice::First);
        }
        assert!(sim.asks("ann", undo_step("a")).unwrap_err().contains("b is under way"));
        sim.asks("ann", Verb::Pause).unwrap();
        assert_eq!(sim.rests(), End::Waits);
        sim.asks("ann", cascade("a")).unwrap();
        sim.asks("ann", Verb::Resume).unwrap();
        assert_eq!(sim.rests(), End::Held);
        insta::allow_duplicates! {
            insta::assert_snapshot!(sim.state.waits_for().unwrap(), @r"0 of 2 steps are done; an operator must decide about the undo of a, b");
        }
        assert!(sim.asks("ann", retry("a")).unwrap_err().contains("a is being undone"));
        sim.asks("ann", if by_hand { skip_undo("a") } else { retry_undo("a") }).unwrap();
        assert_eq!(sim.rests(), End::Held);
        for name in ["a", "b"] {
            sim.asks("ann", retry(name)).unwrap();
        }
        assert_eq!(sim.rests(), End::Succeeded);
    }
}

#[test]
fn a_rollback_finishes_what_was_begun_to_be_undone_alone() {
    let mut sim = waits_at_the_end();
    sim.asks("ann", skip("w")).unwrap();
    sim.asks("ann", cascade("a")).unwrap();
    sim.step(&mut Dice::First);
    assert_eq!(sim.undo_at("b"), &CourseAt::Running);
    let leave = vec!["b".to_owned()];
    sim.asks("ann", Verb::RollBack(RollBack { leave, ..RollBack::default() })).unwrap();
    let early = decide(&sim.state, sim.now, 9);
    assert!(early.commands.is_empty(), "an undo is in flight: {early:?}");
    assert_eq!(sim.rests(), End::RolledBack);
}

#[test]
fn what_is_done_can_be_done_again_until_somebody_has_gone_on_from_it() {
    let mut sim = Sim::new(chain(&["a", "b"]));
    sim.asks("ann", Verb::Pause).unwrap();
    sim.asks("ann", Verb::Resume).unwrap();
    while !sim.at("a").is_done() {
        sim.step(&mut Dice::First);
    }
    sim.asks("ann", retry("a")).unwrap();
    while sim.at("b") != &CourseAt::Running {
        sim.step(&mut Dice::First);
    }
    assert_eq!(sim.starts("a", false).len(), 2);
    let refused = sim.asks("ben", retry("a")).unwrap_err();
    insta::assert_snapshot!(refused, @r#"a is done, and others have gone on from it; ann asked for "retry" (event 7)"#);
    assert_eq!(sim.rests(), End::Succeeded);
}

#[test]
fn what_failed_and_was_gone_on_without_is_left_alone_once_others_have_begun() {
    let a = StepSpec { on_failure: OnFailure::Continue, ..step("a", &[]) };
    let mut sim = Sim::new(checked(spec(vec![a, step("b", &["a"])]))).at_first(
        "a",
        false,
        1,
        fails(Applied::No, false),
    );
    while !matches!(sim.at("a"), CourseAt::Failed { .. }) {
        sim.step(&mut Dice::First);
    }
    assert!(sim.asks("ann", skip("a")).unwrap_err().contains("the run went on without it"));
    let mut again = sim.clone();
    again.asks("ann", retry("a")).unwrap();
    assert_eq!(again.rests(), End::Succeeded);
    assert!(again.at("a").is_done());
    while sim.at("b") != &CourseAt::Running {
        sim.step(&mut Dice::First);
    }
    assert!(sim.asks("ann", retry("a")).unwrap_err().contains("others have gone on from it"));
    assert_eq!(sim.rests(), End::Succeeded);
}

fn guarded(alone: bool) -> Sim {
    let requires = vec![Proof { step: "a".into(), at: "/made".into(), equals: json!("off") }];
    let b = StepSpec { requires, ..step("b", &["a"]) };
    let mut sim = Sim::new(checked(PlanSpec { override_alone: alone, ..spec(vec![step("a", &[]), b]) }));
    assert_eq!(sim.rests(), End::Held);
    sim
}

fn overrides(sim: &mut Sim, who: &str) -> Result<(), String> {
    sim.asks(who, Verb::Override { step: "b".into() })
}

#[test]
fn what_lacks_its_proof_is_held_until_two_people_let_it_go() {
    let mut sim = guarded(false);
    insta::assert_snapshot!(sim.story_since(4), @r"held b #0");
    assert!(sim.asks("ann", retry("b")).is_ok(), "it may be tried again");
    assert_eq!(sim.rests(), End::Held, "and lacks its proof as before");
    overrides(&mut sim, "ann").unwrap();
    assert_eq!(sim.rests(), End::Held);
    assert!(overrides(&mut sim, "ann").unwrap_err().contains("it takes a second person"));
    overrides(&mut sim, "ben").unwrap();
    assert_eq!(sim.rests(), End::Succeeded);
    assert!(overrides(&mut sim, "cem").is_err());
}

#[test]
fn one_person_is_enough_where_the_plan_says_so() {
    let mut sim = guarded(true);
    overrides(&mut sim, "ann").unwrap();
    assert_eq!(sim.rests(), End::Succeeded);
}

#[test]
fn a_word_about_the_last_beginning_does_not_count_for_the_next() {
    let mut sim = guarded(false);
    overrides(&mut sim, "ann").unwrap();
    sim.asks("ann", retry("b")).unwrap();
    assert_eq!(sim.rests(), End::Held);
    overrides(&mut sim, "ben").unwrap();
    assert_eq!(sim.rests(), End::Held, "ann spoke of another beginning");
    overrides(&mut sim, "ann").unwrap();
    assert_eq!(sim.rests(), End::Succeeded);
}

#[test]
fn that_a_step_was_skipped_is_no_proof_whatever_output_was_given() {
    let requires = vec![Proof { step: "a".into(), at: "/made".into(), equals: json!("by hand") }];
    let b = StepSpec { requires, ..step("b", &["a"]) };
    let mut sim = Sim::new(checked(spec(vec![held(step("a", &[])), b]))).at_first(
        "a",
        false,
        1,
        fails(Applied::No, false),
    );
    assert_eq!(sim.rests(), End::Held);
    sim.asks("ann", skip("a")).unwrap();
    assert_eq!(sim.rests(), End::Held);
    let CourseAt::Held { why } = sim.at("b") else { panic!() };
    insta::assert_snapshot!(why, @r#"it requires that "a/made" is "by hand"; the step was skipped, and that is no proof"#);
}

/// The source is switched on again by an undo: what was seen while it was off is no proof any more.
#[test]
fn a_proof_goes_with_the_ground_it_was_found_on() {
    let requires = vec![Proof { step: "look".into(), at: "/made".into(), equals: json!("off") }];
    let look = StepSpec { input: json!({}), ..quiet("look", &["off"]) };
    let start = StepSpec { requires, ..step("start", &["look"]) };
    let mut sim = Sim::new(checked(spec(vec![step("off", &[]), look, start])));
    while sim.at("look") != &CourseAt::Running {
        sim.step(&mut Dice::First);
    }
    sim.report(
        CourseId::forward(sim.ix("look")),
        StepEvent::Succeeded { output: Json::of(&json!({ "made": "off" })) },
    );
    sim.asks("ann", Verb::Pause).unwrap();
    sim.asks("ann", undo_step("off")).unwrap();
    sim.asks("ann", Verb::Resume).unwrap();
    assert_eq!(sim.rests(), End::Held);
    sim.asks("ann", skip("off")).unwrap();
    assert_eq!(sim.rests(), End::Held);
    assert!(sim.starts("start", false).is_empty(), "{}", sim.story());
    assert_eq!(sim.starts("look", false).len(), 2);
}

/// Somebody has paused the run, so it has not turned round yet.
#[test]
fn a_step_is_not_undone_under_one_that_failed_for_good() {
    let mut sim = Sim::new(chain(&["a", "b"])).at_first("b", false, 9, fails(Applied::No, false));
    while !sim.story().ends_with("started b #1") {
        sim.step(&mut Dice::First).unwrap();
    }
    sim.asks("ann", Verb::Pause).unwrap();
    while !sim.story().contains("failed b") {
        sim.step(&mut Dice::First).unwrap();
    }
    let because = sim.asks("ann", undo_step("a")).unwrap_err();
    assert_eq!(because, "b failed, which turns the run round; retry it or skip it first");
    sim.asks("ann", skip("b")).unwrap();
    sim.asks("ann", cascade("a")).unwrap();
    sim.asks("ann", Verb::Resume).unwrap();
    assert_eq!(sim.rests(), End::Held);
}
