//! Which event may follow where: a table of all of them.

use std::fmt::Write;
use std::sync::Arc;

use backstay_machine::plan::{Commit, Effect, OnFailure, PlanSpec, Proof, StepSpec};
use backstay_machine::*;
use chrono::TimeDelta;

use crate::support::sim::error;
use crate::support::{Dice, Sim, chain, checked, spec, step};

fn of(sim: &Sim, name: &str, direction: Direction) -> CourseId {
    CourseId { step: sim.plan().find(name).unwrap(), direction }
}

/// Everything that can be said of a course, each as its next event would be.
fn moves(state: &State, id: CourseId) -> Vec<(&'static str, Event)> {
    let course = state.course(id);
    let name = &state.plan().step(id.step).name;
    let key = idempotency_key(state.run(), name, id.direction, course.generation);
    let input = (course.attempts == 0).then(Json::null);
    let failed = |applied, retry_at| StepEvent::Failed { error: error(true, applied), retry_at };
    let probed = |answer| StepEvent::Probed { answer, ask_again_at: None };
    let later = Some(state.at().unwrap() + TimeDelta::seconds(5));
    let about = |what: StepEvent| {
        let attempt = course.attempts + u32::from(matches!(what, StepEvent::Started { .. }));
        let generation = course.generation + u32::from(what == StepEvent::Retried { input: None });
        Event::Step { course: id, generation, attempt, what }
    };
    vec![
        ("started", about(StepEvent::Started { key, input })),
        ("checkpointed", about(StepEvent::Checkpointed { value: Json::null() })),
        ("progressed", about(StepEvent::Progressed { percent: 1.0, note: String::new() })),
        ("succeeded", about(StepEvent::Succeeded { output: Json::null() })),
        ("failed, not applied", about(failed(Applied::No, later))),
        ("failed, maybe applied", about(failed(Applied::Maybe, later))),
        ("failed for good", about(failed(Applied::Maybe, None))),
        ("probed: absent", about(probed(Answer::Absent))),
        ("held", about(StepEvent::Held { why: String::new() })),
        ("retried", about(StepEvent::Retried { input: None })),
        ("hastened", about(StepEvent::Hastened)),
        ("skipped", about(StepEvent::Skipped { output: Json::null() })),
        ("recalled", about(StepEvent::Recalled)),
        ("waived", about(StepEvent::Waived)),
    ]
}

fn next(state: &State, event: Event) -> Journaled {
    Journaled {
        seq: state.seq() + 1,
        claim: state.claim() + i32::from(matches!(event, Event::Claimed { .. })),
        epoch: Epoch(1),
        at: state.at().unwrap(),
        event,
    }
}

fn verdict(state: &State, event: &Event) -> Result<(), String> {
    state.clone().apply(&next(state, event.clone())).map_err(|illegal| illegal.why)
}

fn told(sim: &mut Sim, id: CourseId, says: &str) {
    let (_, event) = moves(&sim.state, id).into_iter().find(|(name, _)| *name == says).unwrap();
    sim.append(event);
}

/// A chain a -> b whose a is brought somewhere.
fn forward(effect: Effect, on_failure: OnFailure, path: &[&str]) -> (Sim, CourseId) {
    let a = StepSpec { effect: Some(effect), on_failure, ..step("a", &[]) };
    let mut sim = Sim::new(checked(spec(vec![a, step("b", &["a"])])));
    let id = of(&sim, "a", Direction::Forward);
    for says in path {
        if *says == "claimed" { sim.crash() } else { told(&mut sim, id, says) }
    }
    (sim, id)
}

/// a -> b, where b requires that a gives what it does not give.
fn unproven(path: &[&str]) -> (Sim, CourseId) {
    let requires = vec![Proof { step: "a".into(), at: String::new(), equals: true.into() }];
    let b = StepSpec { requires, ..step("b", &["a"]) };
    let mut sim = Sim::new(checked(spec(vec![step("a", &[]), b])));
    let (a, b) = (of(&sim, "a", Direction::Forward), of(&sim, "b", Direction::Forward));
    told(&mut sim, a, "started");
    told(&mut sim, a, "succeeded");
    for says in path {
        told(&mut sim, b, says);
    }
    (sim, b)
}

/// A step that waits for a signal.
fn waiting() -> (Sim, CourseId) {
    let wait = StepSpec {
        activity: "wait".into(),
        input: serde_json::json!({ "signal": "go" }),
        undo: None,
        effect: None,
        ..step("a", &[])
    };
    let mut sim = Sim::new(checked(spec(vec![wait, step("b", &["a"])])));
    sim.step(&mut Dice::First);
    let a = of(&sim, "a", Direction::Forward);
    (sim, a)
}

/// A chain a -> b that is rolling back: b as told, then, if it is undone, the undo of a.
fn back(of_b: &[&str], undo_of_b: &[&str], undo_of_a: &[&str]) -> Sim {
    let mut sim = Sim::new(chain(&["a", "b"]));
    let (a, b) = (of(&sim, "a", Direction::Forward), of(&sim, "b", Direction::Forward));
    told(&mut sim, a, "started");
    told(&mut sim, a, "succeeded");
    for says in of_b {
        told(&mut sim, b, says);
    }
    sim.append(Event::RollingBack { because: "a test".into(), how: Default::default() });
    for (name, path) in [("b", undo_of_b), ("a", undo_of_a)] {
        let id = of(&sim, name, Direction::Undo);
        for says in path {
            if *says == "claimed" { sim.crash() } else { told(&mut sim, id, says) }
        }
    }
    sim
}

#[test]
fn every_move_of_a_course_is_legal_or_refused_as_this_table_says() {
    use OnFailure::{Continue, RollBack};
    let plain = Effect::default();
    let probed = Effect { probed: true, ..plain };
    let once = Effect { at_most_once: true, ..plain };
    let undone: &[&str] = &["started", "succeeded"];
    let mut table = String::new();
    let mut row = |place: &str, sim: &Sim, id: CourseId| {
        let legal: Vec<_> = moves(&sim.state, id)
            .into_iter()
            .filter(|(_, event)| verdict(&sim.state, event).is_ok())
            .map(|(name, _)| name)
            .collect();
        let _ =
            writeln!(table, "{place:<34} {}", if legal.is_empty() { "-".into() } else { legal.join(" | ") });
    };
    for (place, effect, on_failure, path) in [
        ("untouched", plain, RollBack, &[][..]),
        ("running", plain, RollBack, &["started"]),
        ("backing off", plain, RollBack, &["started", "failed, not applied"]),
        ("in doubt", plain, RollBack, &["started", "claimed"]),
        ("in doubt, to be probed", probed, RollBack, &["started", "claimed"]),
        ("in doubt, absent", probed, RollBack, &["started", "claimed", "probed: absent"]),
        ("in doubt, at most once", once, RollBack, &["started", "claimed"]),
        ("failed", plain, RollBack, &["started", "failed for good"]),
        ("failed, to be gone on from", plain, Continue, &["started", "failed for good"]),
        ("held", plain, RollBack, &["started", "failed for good", "held"]),
        ("held in doubt", plain, RollBack, &["started", "claimed", "held"]),
        ("succeeded", plain, RollBack, &["started", "succeeded"]),
        ("skipped before it began", plain, RollBack, &["skipped"]),
        ("skipped after it failed", plain, RollBack, &["started", "failed for good", "skipped"]),
        ("being undone alone", plain, RollBack, &["started", "succeeded", "recalled"]),
    ] {
        let (sim, id) = forward(effect, on_failure, path);
        row(place, &sim, id);
    }
    let (sim, a) = waiting();
    row("waiting", &sim, a);
    for (place, path) in [
        ("without its proof", &[][..]),
        ("held for its proof", &["held"]),
        ("let go without its proof", &["held", "waived"]),
    ] {
        let (sim, b) = unproven(path);
        row(place, &sim, b);
    }
    let (mut sim, a) = forward(plain, RollBack, &["started", "succeeded"]);
    let (b, undo) = (of(&sim, "b", Direction::Forward), of(&sim, "a", Direction::Undo));
    told(&mut sim, b, "started");
    row("done, and gone on from", &sim, a);
    let (mut gone_on, failed) = forward(plain, Continue, &["started", "failed for good"]);
    told(&mut gone_on, b, "started");
    row("failed, and gone on from", &gone_on, failed);
    told(&mut sim, b, "succeeded");
    told(&mut sim, b, "recalled");
    told(&mut sim, a, "recalled");
    row("undo alone: another's comes first", &sim, undo);
    row("undo alone: untouched", &sim, of(&sim, "b", Direction::Undo));
    for says in ["started", "succeeded"] {
        told(&mut sim, CourseId::undo(b.step), says);
    }
    row("undone alone", &sim, b);
    row("undo alone: its turn", &sim, undo);
    let (sim, _) = forward(plain, RollBack, &["started"]);
    row("behind one that runs", &sim, of(&sim, "b", Direction::Forward));
    row("undo before a rollback", &sim, of(&sim, "a", Direction::Undo));

    for (place, path) in [
        ("back: untouched", &[][..]),
        ("back: running", &["started"]),
        ("back: backing off", &["started", "failed, not applied"]),
        ("back: failed", &["started", "failed for good"]),
        ("back: succeeded", &["started", "succeeded"]),
    ] {
        let sim = back(path, &[], &[]);
        row(place, &sim, of(&sim, "b", Direction::Forward));
    }
    for (place, path) in [
        ("undo: untouched", &[][..]),
        ("undo: running", &["started"]),
        ("undo: backing off", &["started", "failed, maybe applied"]),
        ("undo: in doubt", &["started", "claimed"]),
        ("undo: failed", &["started", "failed for good"]),
        ("undo: succeeded", undone),
    ] {
        let sim = back(undone, path, &[]);
        row(place, &sim, of(&sim, "b", Direction::Undo));
    }
    let sim = back(&["started"], &[], &[]);
    row("undo: its step runs", &sim, of(&sim, "b", Direction::Undo));
    let sim = back(&["started", "failed, maybe applied", "started"], &[], &[]);
    row("undo: its step runs again", &sim, of(&sim, "b", Direction::Undo));
    let sim = back(&["started", "failed, not applied"], &[], &[]);
    row("undo: nothing to undo", &sim, of(&sim, "b", Direction::Undo));
    let sim = back(undone, &["started"], &[]);
    row("undo: another's comes first", &sim, of(&sim, "a", Direction::Undo));
    let sim = back(undone, undone, undone);
    row("undo: all undone", &sim, of(&sim, "a", Direction::Undo));
    insta::assert_snapshot!(table, @r"
    untouched                          started | skipped
    running                            checkpointed | progressed | succeeded | failed, not applied | failed, maybe applied | failed for good
    backing off                        started | retried | hastened | skipped
    in doubt                           started | succeeded | failed, not applied | failed, maybe applied | failed for good | probed: absent | held | retried | hastened | skipped
    in doubt, to be probed             succeeded | failed, not applied | failed, maybe applied | failed for good | probed: absent | held | retried | hastened | skipped
    in doubt, absent                   started | succeeded | failed, not applied | failed, maybe applied | failed for good | probed: absent | held | retried | hastened | skipped
    in doubt, at most once             succeeded | failed, not applied | failed, maybe applied | failed for good | probed: absent | held | retried | hastened | skipped
    failed                             held | retried | hastened | skipped | recalled
    failed, to be gone on from         retried | hastened | recalled
    held                               retried | hastened | skipped | recalled
    held in doubt                      retried | hastened | skipped | recalled
    succeeded                          retried | recalled
    skipped before it began            retried | recalled
    skipped after it failed            retried | recalled
    being undone alone                 -
    waiting                            succeeded | skipped
    without its proof                  held | skipped
    held for its proof                 retried | skipped | waived
    let go without its proof           started | skipped
    done, and gone on from             -
    failed, and gone on from           -
    undo alone: another's comes first  skipped
    undo alone: untouched              started | skipped
    undone alone                       retried | skipped
    undo alone: its turn               started | skipped
    behind one that runs               skipped
    undo before a rollback             -
    back: untouched                    -
    back: running                      checkpointed | progressed | succeeded | failed, not applied | failed, maybe applied | failed for good
    back: backing off                  -
    back: failed                       -
    back: succeeded                    -
    undo: untouched                    started | skipped
    undo: running                      checkpointed | progressed | succeeded | failed, not applied | failed, maybe applied | failed for good
    undo: backing off                  started | retried | hastened | skipped
    undo: in doubt                     started | succeeded | failed, not applied | failed, maybe applied | failed for good | skipped
    undo: failed                       retried | skipped
    undo: succeeded                    -
    undo: its step runs                -
    undo: its step runs again          -
    undo: nothing to undo              -
    undo: another's comes first        skipped
    undo: all undone                   -
    ");
}

#[test]
fn every_event_of_a_run_is_legal_or_refused_as_this_table_says() {
    let undone: &[&str] = &["started", "succeeded"];
    let effect = Effect::default();
    let new = Sim::new(chain(&["a"]));
    let (running, _) = forward(effect, OnFailure::RollBack, &["started"]);
    let mut done = Sim::new(chain(&["a"]));
    let a = of(&done, "a", Direction::Forward);
    told(&mut done, a, "started");
    told(&mut done, a, "succeeded");
    let mut over = done.clone();
    over.append(Event::Finished { outcome: Outcome::Succeeded });
    let confirmed = Commit { within: None, then: None, signal: None };
    let mut live = Sim::new(checked(PlanSpec { commit: Some(confirmed), ..spec(vec![step("a", &[])]) }));
    for says in ["started", "succeeded"] {
        told(&mut live, a, says);
    }
    live.append(Event::Finished { outcome: Outcome::Succeeded });
    let mut committing = live.clone();
    committing.append(Event::Committing { because: "a test".into() });
    let mut committed = committing.clone();
    committed.append(Event::Finished { outcome: Outcome::Committed });
    let mut left_alone = running.clone();
    left_alone.append(Event::Quarantined { why: "a test".into() });
    let jammed = back(undone, &["started", "failed for good"], &[]);
    let mut stuck = jammed.clone();
    stuck.append(Event::Stuck { steps: vec!["b".into()], resources: vec![] });
    let mut closed = stuck.clone();
    closed.append(Event::Finished { outcome: Outcome::Closed });
    let places = [
        ("unread", State::new(RunId(uuid::Uuid::nil()), chain(&["a"]))),
        ("new", new.state),
        ("running", running.state),
        ("all done", done.state),
        ("over", over.state),
        ("to be committed", live.state),
        ("committing", committing.state),
        ("committed", committed.state),
        ("left alone", left_alone.state),
        ("rolling back", back(undone, &[], &[]).state),
        ("an undo failed", jammed.state),
        ("stuck", stuck.state),
        ("closed", closed.state),
        ("all undone", back(undone, undone, undone).state),
    ];
    let events = [
        ("submitted", Event::Submitted { by: None }),
        ("claimed", Event::Claimed { node: "n".into(), reason: ClaimReason::LostLease }),
        ("rolling_back", Event::RollingBack { because: String::new(), how: Default::default() }),
        ("stuck", Event::Stuck { steps: vec![], resources: vec![] }),
        ("quarantined", Event::Quarantined { why: String::new() }),
        ("finished: succeeded", Event::Finished { outcome: Outcome::Succeeded }),
        ("finished: rolled back", Event::Finished { outcome: Outcome::RolledBack }),
        ("committing", Event::Committing { because: String::new() }),
        ("finished: committed", Event::Finished { outcome: Outcome::Committed }),
        ("finished: closed", Event::Finished { outcome: Outcome::Closed }),
        ("acted", Event::Acted(Box::new(Action::new("n", "", Verb::Pause)))),
        (
            "refused",
            Event::Refused { action: Box::new(Action::new("n", "", Verb::Pause)), because: String::new() },
        ),
    ];
    let mut table = String::new();
    for (place, state) in places {
        let legal: Vec<_> = events
            .iter()
            .filter(|(_, event)| {
                let mut next = Journaled {
                    seq: 1,
                    claim: 0,
                    epoch: Epoch(1),
                    at: Time::UNIX_EPOCH,
                    event: event.clone(),
                };
                if state.seq() > 0 {
                    next = self::next(&state, event.clone());
                }
                state.clone().apply(&next).is_ok()
            })
            .map(|(name, _)| *name)
            .collect();
        let _ = writeln!(table, "{place:<16} {:<14} {}", state.status().as_str(), legal.join(" | "));
    }
    insta::assert_snapshot!(table, @r"
    unread           pending        submitted
    new              running        claimed | rolling_back | quarantined | acted | refused
    running          running        claimed | rolling_back | quarantined | acted | refused
    all done         running        claimed | rolling_back | quarantined | finished: succeeded | acted | refused
    over             succeeded      claimed | rolling_back | committing | acted | refused
    to be committed  succeeded      claimed | rolling_back | quarantined | committing | acted | refused
    committing       committing     claimed | quarantined | finished: committed | acted | refused
    committed        committed      claimed | refused
    left alone       quarantined    claimed | quarantined | finished: closed | acted | refused
    rolling back     rolling_back   claimed | quarantined | acted | refused
    an undo failed   rolling_back   claimed | stuck | quarantined | acted | refused
    stuck            stuck          claimed | quarantined | finished: closed | acted | refused
    closed           closed         claimed | refused
    all undone       rolling_back   claimed | quarantined | finished: rolled back | acted | refused
    ");
}

#[test]
fn a_refusal_says_what_forbids_the_event() {
    let (sim, a) = forward(Effect::default(), OnFailure::RollBack, &["started"]);
    let state = &sim.state;
    let good = next(state, step_event(state, a, StepEvent::Succeeded { output: Json::null() }));
    let mut said = String::new();
    let mut refused = |change: &dyn Fn(&mut Journaled)| {
        let mut bad = good.clone();
        change(&mut bad);
        let _ = writeln!(said, "{}", state.clone().apply(&bad).unwrap_err());
    };
    refused(&|event| event.seq += 1);
    refused(&|event| event.seq -= 1);
    refused(&|event| event.claim += 1);
    refused(&|event| event.at -= TimeDelta::seconds(1));
    refused(&|event| {
        if let Event::Step { attempt, .. } = &mut event.event {
            *attempt += 1;
        }
    });
    refused(&|event| {
        if let Event::Step { generation, .. } = &mut event.event {
            *generation += 1;
        }
    });
    refused(&|event| {
        if let Event::Step { course, .. } = &mut event.event {
            course.direction = Direction::Undo;
        }
    });
    insta::assert_snapshot!(said, @r"
    event 5 cannot follow on what came before it: event 4 is expected here
    event 3 cannot follow on what came before it: event 4 is expected here
    event 4 cannot follow on what came before it: it is of claim 2, the run is at claim 1
    event 4 cannot follow on what came before it: it is older than the event before it
    event 4 cannot follow on what came before it: it is about attempt 2, the step is at 1
    event 4 cannot follow on what came before it: it is of generation 1, the step is at 0
    event 4 cannot follow on what came before it: it is about attempt 1, the step is at 0
    ");
    assert!(state.clone().apply(&good).is_ok());
}

#[test]
fn a_start_under_another_key_or_without_its_input_is_refused() {
    let sim = Sim::new(chain(&["a"]));
    let a = of(&sim, "a", Direction::Forward);
    let key = idempotency_key(sim.state.run(), "a", Direction::Forward, 0);
    let start = |key, input| Event::Step {
        course: a,
        generation: 0,
        attempt: 1,
        what: StepEvent::Started { key, input },
    };
    assert_eq!(verdict(&sim.state, &start(key, Some(Json::null()))), Ok(()));
    assert!(verdict(&sim.state, &start(key, None)).unwrap_err().contains("carries the input"));
    let other = idempotency_key(sim.state.run(), "a", Direction::Undo, 0);
    assert!(verdict(&sim.state, &start(other, Some(Json::null()))).unwrap_err().contains("idempotency key"));
}

#[test]
fn a_step_without_an_undo_has_no_undo_events() {
    let quiet = StepSpec { undo: None, nothing_to_undo: Some("it only looks".into()), ..step("a", &[]) };
    let sim = Sim::new(checked(spec(vec![quiet])));
    for (_, event) in moves(&sim.state, of(&sim, "a", Direction::Undo)) {
        assert_eq!(verdict(&sim.state, &event).unwrap_err(), "the step has no undo");
    }
}

#[test]
fn an_operator_can_retry_an_undo_until_the_run_is_rolled_back() {
    let mut sim = back(&["started", "succeeded"], &["started", "failed for good"], &[]);
    assert_eq!(sim.run(&mut Dice::First), crate::support::End::Stuck);
    let b = of(&sim, "b", Direction::Undo);
    told(&mut sim, b, "retried");
    assert_eq!(sim.state.status(), Status::RollingBack);
    assert_eq!(sim.run(&mut Dice::First), crate::support::End::RolledBack);
    let keys: Vec<_> = sim
        .journal
        .iter()
        .filter_map(|event| match &event.event {
            Event::Step { course, what: StepEvent::Started { key, .. }, .. } if *course == b => Some(*key),
            _ => None,
        })
        .collect();
    assert_eq!(keys.len(), 2);
    assert_ne!(keys[0], keys[1], "a new generation has a new key");
}

#[test]
fn what_is_settled_cannot_be_unsettled_under_those_that_went_on() {
    let (mut sim, a) = forward(Effect::default(), OnFailure::Continue, &["started", "failed for good"]);
    let b = of(&sim, "b", Direction::Forward);
    told(&mut sim, b, "started");
    told(&mut sim, b, "succeeded");
    let state = Arc::new(sim.state);
    for (name, event) in moves(&state, a) {
        assert!(verdict(&state, &event).is_err(), "{name}");
    }
}
