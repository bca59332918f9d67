//! Random plans with everything in them, in random worlds, with people who ask for anything: what is granted or decided
//! can always be journaled, every beginning of every history folds, and people can bring every run to an end.

use std::sync::Arc;

use backstay_machine::plan::{Commit, Effect, Ending, OnFailure, PlanSpec, Proof, Span, StepSpec};
use backstay_machine::*;
use chrono::TimeDelta;
use proptest::prelude::*;
use serde_json::json;

use crate::full_sweep;
use crate::support::people::*;
use crate::support::sim::{Ending as CallEnding, Lands, error};
use crate::support::{Dice, Sim, checked, spec, step};

fn config(cases: u32) -> ProptestConfig {
    let cases = if full_sweep() { cases * 50 } else { cases };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Any plan of up to six steps.
fn any_plan(dice: &mut Dice) -> Arc<Plan> {
    let mut steps: Vec<StepSpec> = Vec::new();
    let commits = dice.chance(40);
    let count = 1 + dice.pick(6);
    for n in 0..count {
        let before: Vec<String> =
            steps.iter().map(|step| step.name.clone()).filter(|_| dice.chance(40)).collect();
        let after: Vec<&str> = before.iter().map(String::as_str).collect();
        let name = format!("s{n}");
        let mut new = match dice.pick(10) {
            0 => wait(&name, &after, json!({ "signal": "go" })),
            1 => wait(&name, &after, json!({ "signal": "go", "within": "20s", "for": "15s" })),
            2 => approve(
                &name,
                &after,
                json!({ "right": "release", "people": 1 + dice.pick(2), "within": "1m" }),
            ),
            3 => quiet(&name, &after),
            _ => step(&name, &after),
        };
        new.on_failure =
            [OnFailure::RollBack, OnFailure::RollBack, OnFailure::Hold, OnFailure::Continue][dice.pick(4)];
        if new.activity == "do" {
            new.effect = Some(Effect {
                longest_delay: [Span::default(), Span::secs(7)][dice.pick(2)],
                probed: dice.chance(50),
                refuses_duplicates: dice.chance(30),
                at_most_once: dice.chance(20),
            });
            new.point_of_no_return = dice.chance(10);
        }
        new.finalize = commits && n + 2 > count;
        if new.finalize && new.undo.is_some() {
            new = StepSpec { undo: None, nothing_to_undo: Some("it only tidies up".into()), ..new };
        }
        let shows: Vec<_> =
            steps.iter().filter(|s| s.activity == "do" && new.after.contains(&s.name)).collect();
        if !shows.is_empty() && dice.chance(25) {
            let of = shows[dice.pick(shows.len())].name.clone();
            new.requires = vec![Proof { step: of, at: String::new(), equals: json!("nothing") }];
        }
        steps.push(new);
    }
    let returns = steps.iter().all(|step| !step.point_of_no_return);
    let commit = commits.then(|| {
        let then = [None, Some(Ending::Commit), Some(Ending::RollBack).filter(|_| returns)][dice.pick(3)];
        Commit { within: then.map(|_| Span::secs(30)), then, signal: dice.chance(50).then(|| "done".into()) }
    });
    let drift_after = dice.chance(40).then(|| Span::secs(2));
    checked(PlanSpec { commit, drift_after, override_alone: dice.chance(20), ..spec(steps) })
}

fn any_ending(fails: usize, dice: &mut Dice) -> CallEnding {
    if !dice.chance(fails) {
        return CallEnding::Succeeds;
    }
    let applied = if dice.chance(50) { Applied::No } else { Applied::Maybe };
    let lands = if applied == Applied::No { Lands::No } else { [Lands::No, Lands::Yes][dice.pick(2)] };
    CallEnding::Fails { error: error(dice.chance(60), applied), lands }
}

fn who(dice: &mut Dice) -> &'static str {
    ["ann", "ben", "cem"][dice.pick(3)]
}

/// A run in which everything happens.
fn storm(seed: u64) -> Sim {
    let mut dice = Dice::Random(seed);
    let fails = dice.pick(50);
    let mut sim = Sim::new(any_plan(&mut dice)).scripted(move |_, _, _, dice| any_ending(fails, dice));
    sim.blind = fails / 2;
    sim.room = [1, 2, 100][dice.pick(3)];
    for _ in 0..150 {
        sim.wakes_in_time();
        if dice.chance(4) {
            sim.crash();
        }
        if dice.chance(3) && !sim.state.is_over() && !sim.state.quarantined() {
            sim.append(Event::Quarantined { why: "it kills its nodes".into() });
        }
        if dice.chance(12) {
            let verbs = every_verb(sim.plan());
            let mut verb = verbs[dice.pick(verbs.len())].clone();
            let by = who(&mut dice);
            for _ in 0..20 {
                if judge_action(&sim.state, &Action::new(by, "because", verb.clone()), sim.now).is_ok() {
                    break;
                }
                verb = verbs[dice.pick(verbs.len())].clone();
            }
            let seen = dice.chance(20).then(|| 1 + dice.pick(sim.state.seq() as usize) as i64);
            let action = Action { seen, ..Action::new(by, "because", verb) };
            if sim.state.is_over() && matches!(sim.state.phase(), Phase::Over(_)) {
                break;
            }
            let _ = sim.act(action);
        }
        if let Some(id) = sim.in_flight().first().copied()
            && sim.state.course(id).at == CourseAt::Running
            && dice.chance(10)
        {
            let fate = [Fate::Planned, Fate::Present, Fate::Gone, Fate::Kept, Fate::Unproven][dice.pick(5)];
            sim.report(
                id,
                StepEvent::Resource { kind: "disk".into(), name: "one".into(), fate, details: None },
            );
            sim.report(id, StepEvent::Checkpointed { value: Json::of(&json!({ "job": 7 })) });
            sim.report(id, StepEvent::Progressed { percent: 33.3, note: "on".into() });
        }
        if dice.chance(10) {
            let later = sim.now + TimeDelta::milliseconds(dice.pick(20_000) as i64);
            sim.pass(later);
        }
        // Somebody comes back to it after a while: the world is looked at first.
        if sim.plan().spec().drift_after.is_some()
            && (sim.state.paused().is_some() || sim.state.phase() == Phase::Succeeded)
            && dice.chance(20)
        {
            sim.pass(sim.now + TimeDelta::seconds(3));
            let _ = sim.asks(who(&mut dice), if dice.chance(60) { Verb::Resume } else { roll_back() });
        }
        sim.step(&mut dice);
    }
    sim
}

/// Asks a state for everything: whatever is granted, and whatever is decided, can be journaled in its order.
fn poke(state: &State) {
    let at = state.at().unwrap_or_default();
    let journal = |state: &mut State, event: Event, now: Time| {
        let claim = state.claim();
        let at = state.at().unwrap_or(now).max(now);
        state.apply(&Journaled { seq: state.seq() + 1, claim, epoch: Epoch(1), at, event }).unwrap();
    };
    for now in [at, at + TimeDelta::seconds(8), at + TimeDelta::days(1)] {
        for room in [1, 9] {
            let mut next = state.clone();
            for command in decide(state, now, room).commands {
                if let Command::Append(event) = command {
                    journal(&mut next, event, now);
                }
            }
        }
    }
    for verb in every_verb(state.plan()) {
        let action = Action::new("dan", "because", verb);
        let mut next = state.clone();
        let events = judge_action(state, &action, at)
            .unwrap_or_else(|because| vec![Event::Refused { action: Box::new(action), because }]);
        for event in events {
            journal(&mut next, event, at);
        }
        let mut after = next.clone();
        for command in decide(&next, at, 9).commands {
            if let Command::Append(event) = command {
                journal(&mut after, event, at);
            }
        }
    }
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn a_run_with_people_in_it_is_legal_and_can_be_ended(seed: u64) {
        let mut sim = storm(seed);
        sim.sound();
        if !sim.state.is_over() {
            sim = sim.scripted(|_, _, _, _| CallEnding::Succeeds);
            sim.blind = 0;
            sim.with_help();
            sim.sound();
        }
    }
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn cut_after_any_event_such_a_run_folds_and_goes_on_under_a_new_owner(seed: u64) {
        let sim = storm(seed);
        let stored = Plan::from_submitted(sim.plan().submitted()).unwrap();
        let rows: Vec<_> = sim.journal.iter().map(|event| event.to_row(sim.plan())).collect();
        let mut state = State::new(sim.state.run(), stored.clone());
        for (n, row) in rows.iter().enumerate() {
            state.apply(&Journaled::from_row(row, &stored).unwrap()).unwrap();
            poke(&state);
            if n % 5 == 0 && !state.is_over() {
                let mut resumed = Sim::resumed(state.clone(), sim.journal[..=n].to_vec(), state.at().unwrap());
                resumed.with_help();
            }
        }
    }
}

/// The properties above would hold of storms in which nothing happens.
#[test]
fn the_storms_have_every_event_in_them() {
    let mut met = std::collections::BTreeSet::new();
    for seed in 0..400 {
        let sim = storm(seed);
        met.extend(sim.journal.iter().map(|event| event.to_row(sim.plan()).kind));
    }
    let missed: Vec<_> = event::KINDS.iter().filter(|kind| !met.contains(**kind)).collect();
    assert!(missed.is_empty(), "never met: {missed:?}");
}
