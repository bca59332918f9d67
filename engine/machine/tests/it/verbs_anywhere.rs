//! Every verb at every instant of every small run, and every crash after it.

use std::collections::BTreeMap;

use backstay_machine::plan::{Commit, Effect, OnFailure, PlanSpec, Proof, StepSpec};
use backstay_machine::*;
use serde_json::json;

use crate::full_sweep;
use crate::support::people::*;
use crate::support::{Dice, End, Sim, checked, every_dag, spec};

/// How many runs came to which end, and which verbs were granted.
#[derive(Default)]
struct Tally {
    runs: usize,
    ends: BTreeMap<String, usize>,
    granted: BTreeMap<&'static str, usize>,
}

/// One of a plan's steps fails at first; how, and what then.
type Failing = Option<(Applied, OnFailure)>;

fn begun(steps: &[StepSpec], change: fn(&mut PlanSpec), failing: Failing) -> Sim {
    let mut all = spec(steps.to_vec());
    change(&mut all);
    // A plan of one step that waits has none that could fail.
    let last = all.steps.iter().rposition(|step| step.activity == "do").unwrap_or(0);
    let name = all.steps[last].name.clone();
    if let Some((_, on_failure)) = failing {
        all.steps[last].on_failure = on_failure;
    }
    let sim = Sim::new(checked(all));
    match failing {
        Some((applied, _)) => sim.at_first(&name, false, 1, fails(applied, false)),
        None => sim,
    }
}

/// Asks for everything at every instant, and, where it is granted, once more with a crash at every later one.
fn ask_everywhere(sim: &Sim, crashes: bool, tally: &mut Tally) {
    let mut sim = sim.clone();
    loop {
        for verb in every_verb(sim.plan()) {
            let mut asked = sim.clone();
            let name = verb.name();
            if asked.asks("ann", verb).is_err() {
                continue;
            }
            *tally.granted.entry(name).or_default() += 1;
            if crashes {
                crash_everywhere(&asked, tally);
            }
            finish(asked, tally);
        }
        if sim.step(&mut Dice::First).is_none() {
            return;
        }
    }
}

fn crash_everywhere(asked: &Sim, tally: &mut Tally) {
    let mut asked = asked.clone();
    loop {
        let mut crashed = asked.clone();
        crashed.crash();
        finish(crashed, tally);
        if asked.step(&mut Dice::First).is_none() {
            return;
        }
    }
}

/// It comes to rest, and says what it waits for; and people can bring it to an end.
fn finish(mut sim: Sim, tally: &mut Tally) {
    let rest = sim.run(&mut Dice::First);
    *tally.ends.entry(format!("{rest:?}")).or_default() += 1;
    tally.runs += 1;
    if !sim.state.is_over() {
        assert!(sim.state.waits_for().is_some(), "{}", sim.story());
        sim.with_help();
    }
    sim.sound();
}

/// The plans that a few steps make: plain; with a proof that is not there; with a wait; final only by a commit; with
/// effects that come late and can be looked for.
const KINDS: [fn(&mut PlanSpec); 5] = [
    |_| {},
    |plan| {
        if let [.., a, b] = &mut plan.steps[..] {
            if b.after.contains(&a.name) {
                b.requires =
                    vec![Proof { step: a.name.clone(), at: "/made".into(), equals: json!("nothing") }];
            } else if a.after.contains(&b.name) {
                a.requires =
                    vec![Proof { step: b.name.clone(), at: "/made".into(), equals: json!("nothing") }];
            }
        }
    },
    |plan| {
        let first = plan.steps[0].clone();
        plan.steps[0] = wait(&first.name, &[], json!({ "signal": "go", "for": "10s", "within": "1m" }));
        plan.steps[0].after = first.after;
        plan.steps[0].on_failure = OnFailure::Hold;
        let all: Vec<_> = plan.steps.iter().map(|step| step.name.as_str()).collect();
        let input = json!({ "right": "release", "people": 2 });
        let last = approve("yes", &all, input);
        plan.steps.push(last);
    },
    |plan| {
        plan.commit = Some(Commit { within: None, then: None, signal: Some("done".into()) });
        let all: Vec<_> = plan.steps.iter().map(|step| step.name.as_str()).collect();
        let last = StepSpec { finalize: true, ..quiet("last", &all) };
        plan.steps[0].point_of_no_return = true;
        plan.steps.push(last);
    },
    |plan| {
        for step in &mut plan.steps {
            let longest_delay = plan::Span::secs(5);
            step.effect = Some(Effect { longest_delay, probed: true, ..Effect::default() });
        }
    },
];

const FAILING: [Failing; 4] = [
    None,
    Some((Applied::No, OnFailure::Hold)),
    Some((Applied::Maybe, OnFailure::Hold)),
    Some((Applied::Maybe, OnFailure::RollBack)),
];

fn sweep(dags: &[Vec<StepSpec>], crashes: bool) -> Tally {
    let mut tally = Tally::default();
    for steps in dags {
        for change in KINDS {
            for failing in FAILING {
                ask_everywhere(&begun(steps, change, failing), crashes, &mut tally);
            }
        }
    }
    tally
}

#[test]
fn whatever_is_asked_whenever_of_a_small_run_and_wherever_its_node_dies_then_it_comes_to_rest_and_can_be_ended()
 {
    let most = if full_sweep() { 3 } else { 2 };
    let dags: Vec<_> = (1..=most).flat_map(every_dag).collect();
    let tally = sweep(&dags, true);
    assert!(tally.runs > 10_000, "{} {:?}", tally.runs, tally.ends);
    for verb in [
        "retry",
        "skip",
        "undo_step",
        "override",
        "approve",
        "reject",
        "signal",
        "pause",
        "roll_back",
        "commit",
    ] {
        assert!(tally.granted.contains_key(verb), "{verb} was never granted: {:?}", tally.granted);
    }
    for end in [End::Succeeded, End::RolledBack, End::Held, End::Waits, End::Committed] {
        assert!(tally.ends.contains_key(&format!("{end:?}")), "{end:?}: {:?}", tally.ends);
    }
}

#[test]
fn whatever_is_asked_whenever_of_a_run_of_three_steps_it_comes_to_rest_and_can_be_ended() {
    let all = every_dag(3);
    let some: Vec<_> = all.iter().step_by(if full_sweep() { 1 } else { 7 }).cloned().collect();
    let tally = sweep(&some, false);
    assert!(tally.runs > 5_000, "{}", tally.runs);
}

/// What follows on an asking goes into the same commit as the asking: no crash comes between.
#[test]
fn what_is_granted_comes_in_one_piece() {
    let sim = begun(&every_dag(2)[1], KINDS[0], None);
    let action = Action::new("ann", "because", roll_back());
    let events = judge_action(&sim.state, &action, sim.now).unwrap();
    assert!(matches!(&events[..], [Event::Acted(_), Event::RollingBack { .. }]));
}
