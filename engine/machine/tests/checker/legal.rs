//! Histories that really happened are taken, whole and at every place where they can be cut; what was
//! scrambled at random is judged without a panic.

use std::collections::BTreeSet;

use backstay_machine::checker::{Case, Checker, RuleId, check_run};
use proptest::prelude::*;

use crate::plans;
use crate::sim::{Dice, Sim};

fn drawn(seed: u64, steps: u64, trouble: u64) -> Sim {
    let plan = plans::drawn(&mut Dice(seed ^ 0x5eed), steps);
    Sim::drawn(plan, seed, trouble)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_legal_history_is_taken(seed: u64, steps in 1u64..=6, trouble in 0u64..60) {
        let sim = drawn(seed, steps, trouble).work();
        let found = sim.violations();
        prop_assert!(found.is_empty(), "{:#?}\n{}", found, sim.story());
    }
}

#[test]
fn a_step_that_was_taken_back_may_be_let_go_without_its_proof() {
    let sim = drawn(5_855_818_074_435_683_592, 4, 30).work();
    let of_c = sim.rows().into_iter().filter(|row| row.step.as_deref() == Some("c") && !row.undo);
    let kinds: Vec<_> = of_c.map(|row| row.kind).filter(|kind| *kind != "acted").collect();
    assert!(
        kinds.windows(2).any(|two| two == ["recalled", "waived"]),
        "it is another history now: {kinds:?}"
    );
    assert!(sim.violations().is_empty(), "{:#?}\n{}", sim.violations(), sim.story());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_run_may_be_checked_while_it_lives(seed: u64, steps in 1u64..=6, trouble in 0u64..60) {
        let sim = drawn(seed, steps, trouble).watched().work();
        let rows = sim.rows();
        for end in 1..rows.len() {
            let found = check_run(&Case::of(sim.run, &rows[..end]));
            prop_assert!(found.is_empty(), "after {end}: {:#?}\n{}", found, sim.story());
        }
    }

    #[test]
    fn a_scrambled_history_is_judged_without_a_panic(
        seed: u64,
        edits in prop::collection::vec((any::<u8>(), any::<usize>(), any::<i64>()), 1..6),
    ) {
        let sim = drawn(seed, 1 + seed % 6, 30).work();
        let (mut rows, index, mut world) = (sim.rows(), sim.index(), sim.world());
        for (what, place, number) in edits {
            if rows.is_empty() {
                break;
            }
            let (n, m) = (place % rows.len(), number.unsigned_abs() as usize % rows.len());
            let other = rows[m].clone();
            let row = &mut rows[n];
            match what % 16 {
                0 => row.seq = number,
                1 => row.claim = number as i32,
                2 => row.epoch = number,
                3 => row.at = if number > 0 { chrono::DateTime::<chrono::Utc>::MAX_UTC } else { chrono::DateTime::<chrono::Utc>::MIN_UTC },
                4 => row.kind = other.kind,
                5 => row.step = other.step,
                6 => row.undo = !row.undo,
                7 => row.generation = number as i32,
                8 => row.attempt = number as i32,
                9 => row.key = other.key,
                10 => row.body = other.body,
                11 => row.body = None,
                12 => { rows.remove(n); }
                13 => rows.insert(n, other),
                14 => rows.swap(n, m),
                _ => {
                    for effect in &mut world.effects {
                        effect.begun_at = other.at;
                        effect.ended_at = (number > 0).then_some(other.at);
                    }
                }
            }
        }
        check_run(&Case { run: sim.run, rows: &rows, index: Some(&index), world: Some(&world) });
    }
}

/// A check of histories in which nothing happens proves nothing.
#[test]
fn the_drawn_histories_have_everything_in_them() {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for seed in 0..1_500 {
        let sim = drawn(seed, 1 + seed % 6, 10 + seed % 50).work();
        for row in sim.rows() {
            let body = row.body.as_ref().map(|body| body.value()).unwrap_or_default();
            let what = match row.kind {
                "claimed" => body["reason"].as_str(),
                "failed" if body["error"]["code"] != "broken" => body["error"]["code"].as_str(),
                "acted" => match &body["verb"] {
                    serde_json::Value::String(verb) => Some(verb.as_str()),
                    verb => verb.as_object().and_then(|verb| verb.keys().next()).map(String::as_str),
                },
                "succeeded" if body["by"] == "signal" => Some("by signal"),
                "succeeded" if body["by"] == "time" => Some("by time"),
                "failed" => body["error"]["applied"].as_str(),
                "probed" => body["answer"].as_str(),
                "finished" => body["outcome"].as_str(),
                _ => None,
            };
            let settled = match row.kind {
                "failed" if body["retry_at"].is_null() => " for good",
                "probed" if body["ask_again_at"].is_null() => " settled",
                _ => "",
            };
            let undo = if row.undo && row.kind != "acted" { " undo" } else { "" };
            let line = format!("{}{undo} {}{settled}", row.kind, what.unwrap_or_default());
            seen.insert(line.trim().into());
        }
    }
    for what in [
        "submitted",
        "claimed free",
        "claimed lost_lease",
        "started",
        "checkpointed",
        "progressed",
        "succeeded",
        "failed no",
        "failed maybe",
        "failed no for good",
        "failed maybe for good",
        "failed abandoned for good",
        "probed present settled",
        "probed absent settled",
        "probed absent",
        "probed partial settled",
        "probed partial",
        "probed unknown",
        "probed unknown settled",
        "held",
        "retried",
        "rolling_back",
        "started undo",
        "succeeded undo",
        "failed undo no",
        "failed undo maybe",
        "failed undo no for good",
        "failed undo maybe for good",
        "retried undo",
        "stuck",
        "quarantined",
        "finished succeeded",
        "finished rolled_back",
        "finished committed",
        "finished closed",
        "hastened",
        "hastened undo",
        "skipped",
        "skipped undo",
        "recalled",
        "waived",
        "resource",
        "resource undo",
        "committing",
        "acted retry",
        "acted skip",
        "acted undo_step",
        "acted override",
        "acted approve",
        "acted reject",
        "acted signal",
        "acted pause",
        "acted resume",
        "acted roll_back",
        "acted commit",
        "acted close",
        "acted account",
        "refused",
        "succeeded by signal",
        "succeeded by time",
        "failed expired for good",
        "failed rejected for good",
    ] {
        assert!(seen.contains(what), "no drawn history has {what}: {seen:#?}");
    }
}

#[test]
fn many_runs_add_up() {
    let mut checker = Checker::new();
    let mut events = 0;
    for seed in 0..20 {
        let sim = drawn(seed, 3, 0).work();
        let mut rows = sim.rows();
        if seed == 7 {
            rows.remove(1);
        }
        events += rows.len() as u64;
        let found = checker.run(&Case::of(sim.run, &rows));
        assert_eq!(found.is_empty(), seed != 7, "{found:#?}");
    }
    let (summary, more) = checker.finish();
    assert_eq!((summary.runs, summary.events, more.len()), (20, events, 0));
    assert_eq!(summary.violations.get(&RuleId::Sequence), Some(&1));
    let text = summary.to_string();
    assert!(text.starts_with(&format!("checked 20 runs, {events} events: ")), "{text}");
}

#[test]
fn every_rule_has_a_code_and_a_sentence() {
    let codes: BTreeSet<_> = RuleId::ALL.iter().map(|rule| rule.code()).collect();
    assert_eq!(codes.len(), RuleId::ALL.len());
    for rule in RuleId::ALL {
        assert!(rule.sentence().ends_with('.') && !rule.sentence().starts_with(' '), "{rule}");
    }
}
