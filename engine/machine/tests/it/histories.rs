//! Random plans in random worlds: every history is legal, loads after every event, and never falls silent.

use std::sync::Arc;

use backstay_machine::plan::{Effect, OnFailure, Retry, Span, StepSpec, UndoSpec};
use backstay_machine::*;
use chrono::TimeDelta;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::full_sweep;
use crate::support::sim::{Ending, Lands, difference, error};
use crate::support::{Dice, End, Sim, checked, spec, step};

fn config(cases: u32) -> ProptestConfig {
    let cases = if full_sweep() { cases * 50 } else { cases };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn span() -> impl Strategy<Value = Span> {
    prop_oneof![Just(Span::default()), (1u64..90_000).prop_map(Span::millis)]
}

fn retry() -> impl Strategy<Value = Retry> {
    (span(), 1.0f64..4.0, span(), 0.0f64..=1.0, 1u32..6, prop::option::of(span())).prop_map(
        |(first, factor, more, jitter, attempts, elapsed)| Retry {
            first,
            factor,
            ceiling: Span(first.0 + more.0),
            jitter,
            attempts: (attempts < 5 || elapsed.is_none()).then_some(attempts),
            elapsed,
        },
    )
}

fn effect() -> impl Strategy<Value = Effect> {
    (span(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.2)).prop_map(
        |(longest_delay, probed, refuses_duplicates, at_most_once)| Effect {
            longest_delay,
            probed,
            refuses_duplicates,
            at_most_once,
        },
    )
}

fn on_failure() -> impl Strategy<Value = OnFailure> {
    prop_oneof![3 => Just(OnFailure::RollBack), 1 => Just(OnFailure::Hold), 2 => Just(OnFailure::Continue)]
}

prop_compose! {
    fn any_step()(
        retry in prop::option::of(retry()),
        undo_retry in prop::option::of(retry()),
        effect in effect(),
        on_failure in on_failure(),
        undone in prop::bool::weighted(0.8),
        edges in any::<u16>(),
        rank in any::<u32>(),
    ) -> (StepSpec, u16, u32) {
        let mut step = StepSpec { retry, effect: Some(effect), on_failure, ..step("", &[]) };
        match (&mut step.undo, undone) {
            (Some(undo), true) => undo.retry = undo_retry,
            _ => {
                step.undo = None;
                step.nothing_to_undo = Some("it only looks".into());
            }
        }
        (step, edges, rank)
    }
}

/// A plan that is printed as it was written.
#[derive(Clone)]
struct Case(Arc<Plan>);

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.text().fmt(f)
    }
}

prop_compose! {
    /// The written order is a shuffle of an order of execution; each step reads what those before it gave.
    fn plan()(steps in prop::collection::vec(any_step(), 1..=12), settle in span()) -> Case {
        let mut built: Vec<(StepSpec, u32)> = Vec::new();
        for (n, (mut step, edges, rank)) in steps.into_iter().enumerate() {
            step.name = format!("s{n}");
            step.after = (0..n).filter(|m| edges >> m & 1 == 1 && edges >> (m + 1) & 1 == 0).map(|m| format!("s{m}")).collect();
            let mut input = serde_json::Map::new();
            for name in &step.after {
                input.insert(name.clone(), json!({ "$output": format!("{name}/made") }));
            }
            step.input = Value::Object(input);
            if let Some(UndoSpec { input, .. }) = &mut step.undo {
                *input = json!({ "it": { "$output": "/made" }, "kind": 1.5 });
            }
            built.push((step, rank));
        }
        built.sort_by_key(|(_, rank)| *rank);
        let mut spec = spec(built.into_iter().map(|(step, _)| step).collect());
        spec.settle_within = Some(settle);
        Case(checked(spec))
    }
}

/// How bad a world is, in per cent.
#[derive(Clone, Copy, Debug)]
struct Weather {
    fails: usize,
    dies: usize,
    meddles: usize,
}

fn weather() -> impl Strategy<Value = Weather> {
    (0usize..60, 0usize..15, 0usize..10).prop_map(|(fails, dies, meddles)| Weather { fails, dies, meddles })
}

fn any_ending(fails: usize, dice: &mut Dice) -> Ending {
    if !dice.chance(fails) {
        return Ending::Succeeds;
    }
    let applied = if dice.chance(50) { Applied::No } else { Applied::Maybe };
    let lands = match applied {
        Applied::No => Lands::No,
        Applied::Maybe => [Lands::No, Lands::Yes, Lands::Partly][dice.pick(3)],
    };
    let mut error = error(dice.chance(75), applied);
    error.retry_after = dice.chance(10).then(|| Span::secs(dice.pick(100) as u64));
    Ending::Fails { error, lands }
}

/// Lets the run meet everything, for so many moves; then the weather clears, and it must come to rest.
fn storm(plan: Arc<Plan>, weather: Weather, seed: u64) -> Sim {
    let mut dice = Dice::Random(seed);
    let mut sim = Sim::new(plan).scripted(move |_, _, _, dice| any_ending(weather.fails, dice));
    sim.blind = weather.fails;
    sim.room = [1, 2, 100][dice.pick(3)];
    for _ in 0..150 {
        if sim.state.status().is_end() {
            break;
        }
        sim.wakes_in_time();
        if dice.chance(weather.dies) {
            sim.crash();
        }
        if dice.chance(weather.meddles) {
            meddle(&mut sim, &mut dice);
        }
        if dice.chance(20) {
            let later = sim.now + TimeDelta::milliseconds(dice.pick(20_000) as i64);
            sim.pass(later);
        }
        if sim.step(&mut dice).is_none() && weather.meddles == 0 {
            break;
        }
    }
    sim
}

/// What an operator or a talkative activity does.
fn meddle(sim: &mut Sim, dice: &mut Dice) {
    let steps: Vec<_> = sim.plan().steps().map(|(ix, _)| ix).collect();
    let step = steps[dice.pick(steps.len())];
    let forward = CourseId::forward(step);
    let back = sim.state.phase() != Phase::Forward;
    let id = if back { CourseId::undo(step) } else { forward };
    let course = sim.state.course(id);
    let settled = sim.plan().step(step).on_failure == OnFailure::Continue;
    match &course.at {
        CourseAt::Running => {
            sim.report(id, StepEvent::Checkpointed { value: Json::of(&json!({ "job": 7 })) });
            sim.report(id, StepEvent::Progressed { percent: 33.3, note: "on".into() });
        }
        CourseAt::Failed { .. } if !back && settled => {}
        CourseAt::Failed { .. } | CourseAt::Held { .. } | CourseAt::BackingOff { .. } => {
            let generation = course.generation + 1;
            sim.append(Event::Step {
                course: id,
                generation,
                attempt: 0,
                what: StepEvent::Retried { input: None },
            });
        }
        _ if !back && dice.chance(10) => {
            sim.append(Event::RollingBack { because: "so be it".into(), how: Default::default() })
        }
        _ => {}
    }
}

fn rows(sim: &Sim) -> Vec<Row> {
    sim.journal.iter().map(|event| event.to_row(sim.plan())).collect()
}

fn loaded(plan: &Arc<Plan>, rows: &[Row], page: usize) -> State {
    let mut state = State::new(RunId(uuid::Uuid::nil()), Arc::clone(plan));
    for page in rows.chunks(page) {
        let events: Vec<_> = page.iter().map(|row| Journaled::from_row(row, plan).unwrap()).collect();
        for event in &events {
            state.apply(event).unwrap();
        }
    }
    state
}

proptest! {
    #![proptest_config(config(200))]

    /// `step` itself checks that a run never falls silent, and `audit` that its history is legal.
    #[test]
    fn a_run_in_any_weather_is_legal_and_never_silent(Case(plan) in plan(), weather in weather(), seed: u64) {
        let sim = storm(plan, weather, seed);
        sim.audit(&|| format!("{weather:?} {seed}"));
    }

    #[test]
    fn a_journal_reads_the_same_in_pages_of_any_size(Case(plan) in plan(), weather in weather(), seed: u64) {
        let sim = storm(plan, weather, seed);
        let stored = Plan::from_submitted(sim.plan().submitted()).unwrap();
        let rows = rows(&sim);
        for page in [1, 2, 7, 1000] {
            let read = loaded(&stored, &rows, page);
            prop_assert_eq!(difference(&read, &sim.state), None);
        }
        for (row, event) in rows.iter().zip(&sim.journal) {
            prop_assert_eq!(&Journaled::from_row(row, &stored).unwrap(), event);
        }
    }
}

proptest! {
    #![proptest_config(config(40))]

    #[test]
    fn a_run_cut_after_any_event_comes_to_rest_under_a_new_owner(Case(plan) in plan(), weather in weather(), seed: u64) {
        let sim = storm(plan, weather, seed);
        let rows = rows(&sim);
        for cut in 1..=rows.len() {
            let state = loaded(sim.plan(), &rows[..cut], 1000);
            poke(&state);
            if state.status().is_end() {
                continue;
            }
            let now = state.at().unwrap();
            let mut resumed = Sim::resumed(state, sim.journal[..cut].to_vec(), now);
            let end = resumed.run(&mut Dice::First);
            // Nothing fails any more, so an undo fails only if it had failed before.
            prop_assert!(end != End::Stuck || sim.story().contains("undo"));
            resumed.audit(&|| format!("cut after {cut}, {weather:?} {seed}"));
        }
    }
}

/// The properties above would hold of storms in which nothing happens.
#[test]
fn the_storms_meet_everything() {
    let effect = Effect { probed: true, longest_delay: Span::secs(5), ..Effect::default() };
    let mut steps = crate::support::diamond();
    steps[0].effect = Some(effect);
    steps[1].on_failure = OnFailure::Hold;
    steps[2].on_failure = OnFailure::Continue;
    let plan = checked(spec(steps));
    let mut met = std::collections::BTreeSet::new();
    for seed in 0..300 {
        let weather = Weather { fails: 40, dies: 10, meddles: 5 };
        let sim = storm(Arc::clone(&plan), weather, seed);
        met.extend(sim.end().map(|end| format!("{end:?}")));
        for row in rows(&sim) {
            let half = if row.undo { "undo " } else { "" };
            met.insert(format!("{half}{}", row.kind));
            if row.kind == "failed" && row.body.as_ref().unwrap().as_str().contains("abandoned") {
                met.insert("given up".into());
            }
            if row.kind == "probed" {
                met.insert(row.body.unwrap().value()["answer"].as_str().unwrap().to_owned());
            }
        }
    }
    let wanted = [
        "Held",
        "RolledBack",
        "Stuck",
        "Succeeded",
        "absent",
        "checkpointed",
        "claimed",
        "failed",
        "finished",
        "given up",
        "held",
        "partial",
        "present",
        "probed",
        "progressed",
        "retried",
        "rolling_back",
        "started",
        "stuck",
        "submitted",
        "succeeded",
        "undo failed",
        "undo retried",
        "undo started",
        "undo succeeded",
        "unknown",
    ];
    let missed: Vec<_> = wanted.iter().filter(|wanted| !met.contains(**wanted)).collect();
    assert!(missed.is_empty(), "never met: {missed:?}");
}

/// One change that no release would make.
fn mutate(rows: &mut Vec<Row>, dice: &mut Dice) {
    let n = dice.pick(rows.len());
    let m = dice.pick(rows.len());
    let numbers = [-1, 0, 1, 2, 7, i32::MAX, i32::MIN];
    let bodies = [
        None,
        Some("null"),
        Some("{}"),
        Some(
            r#"{"error":{"code":"x","message":"y","retryable":true,"applied":"maybe"},"retry_at":"+262000-01-01T00:00:00Z"}"#,
        ),
        Some(r#"{"error":{"code":"x","message":"y","retryable":true,"applied":"no"},"retry_at":null}"#),
        Some(r#"{"answer":"absent","ask_again_at":null}"#),
        Some(r#"{"answer":"unknown","why":"","ask_again_at":"-262000-01-01T00:00:00Z"}"#),
        Some(r#"{"outcome":"rolled_back"}"#),
        Some(r#"{"outcome":"succeeded"}"#),
        Some(r#"{"why":"?"}"#),
    ];
    let kinds = event::KINDS;
    match dice.pick(13) {
        0 => drop(rows.remove(n)),
        1 => {
            let row = rows[n].clone();
            rows.insert(m, row);
        }
        2 => rows.swap(n, m),
        3 => rows[n].kind = kinds[dice.pick(kinds.len())],
        4 => rows[n].kind = "of a later release",
        5 => rows[n].step = rows[m].step.clone(),
        6 => rows[n].step = Some("nobody".into()),
        7 => rows[n].undo ^= true,
        8 => rows[n].generation = numbers[dice.pick(numbers.len())],
        9 => rows[n].attempt = numbers[dice.pick(numbers.len())],
        10 => rows[n].body = bodies[dice.pick(bodies.len())].map(|text| Json::parse_text(text).unwrap()),
        11 => rows[n].key = rows[m].key,
        _ => rows[n].at = [Time::MIN_UTC, Time::MAX_UTC, rows[m].at][dice.pick(3)],
    }
    // Most mutants should be refused for what they say, not for their number.
    if dice.chance(80) {
        for (n, row) in rows.iter_mut().enumerate() {
            row.seq = n as i64 + 1;
        }
    }
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn no_journal_makes_the_machine_panic(Case(plan) in plan(), weather in weather(), seed: u64) {
        let sim = storm(plan, weather, seed);
        let original = rows(&sim);
        let mut dice = Dice::Random(seed);
        for _ in 0..20 {
            let mut rows = original.clone();
            for _ in 0..=dice.pick(3) {
                if rows.is_empty() {
                    break;
                }
                mutate(&mut rows, &mut dice);
            }
            let mut state = State::new(RunId(uuid::Uuid::nil()), Arc::clone(sim.plan()));
            for row in &rows {
                let Ok(event) = Journaled::from_row(row, sim.plan()) else { break };
                if state.apply(&event).is_err() {
                    break;
                }
                poke(&state);
            }
        }
    }
}

/// Asks a state everything, at every time.
fn poke(state: &State) {
    let (done, all) = state.progress();
    assert!(done <= all && state.running() <= 2 * all);
    let _ = (state.status(), state.failed_undos());
    for now in [Time::MIN_UTC, state.at().unwrap_or_default(), Time::MAX_UTC] {
        let decision = decide(state, now, 3);
        assert!(decision.wake_at.is_none_or(|at| at > now));
        for command in decision.commands {
            match command {
                // What is decided may be journaled.
                Command::Append(event) => {
                    let journaled = Journaled {
                        seq: state.seq() + 1,
                        claim: state.claim(),
                        epoch: Epoch(1),
                        at: state.at().unwrap_or(now).max(now),
                        event,
                    };
                    state.clone().apply(&journaled).unwrap();
                }
                Command::Probe(step) => {
                    for answer in [Answer::Present, Answer::Absent, Answer::Partial] {
                        judge_probe(state, step, answer, None, now, now);
                    }
                }
                Command::Cancel(course) => {
                    judge(state, course, error(true, Applied::Maybe), now);
                }
            }
        }
    }
}
