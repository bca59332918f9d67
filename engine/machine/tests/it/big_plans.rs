//! Ten thousand steps: nothing recurses, and no decision looks at all of them.

use std::sync::Arc;

use backstay_machine::plan::StepSpec;
use backstay_machine::*;

use crate::support::{End, Sim, checked, spec, step};

const N: usize = 10_000;

fn chain() -> Vec<StepSpec> {
    (0..N)
        .map(|n| match n {
            0 => step("s0", &[]),
            n => step(format!("s{n}"), &[&format!("s{}", n - 1)]),
        })
        .collect()
}

/// One, then all but two side by side, then one.
fn fan() -> Vec<StepSpec> {
    let name = |n: usize| format!("s{n}");
    let mut steps = vec![step("s0", &[])];
    steps.extend((1..N - 1).map(|n| step(name(n), &["s0"])));
    let all: Vec<_> = (1..N - 1).map(name).collect();
    steps.push(step(name(N - 1), &all.iter().map(String::as_str).collect::<Vec<_>>()));
    steps
}

fn there_and_back(steps: Vec<StepSpec>, room: usize) {
    let plan = checked(spec(steps));
    for (failing, end) in [("nobody", End::Succeeded), ("s9999", End::RolledBack)] {
        let mut sim = Sim::new(Arc::clone(&plan)).failing(failing);
        sim.room = room;
        assert_eq!(sim.rush(), end);
        sim.audit(&String::new);
    }
}

#[test]
fn a_chain_runs_to_its_end_and_back_from_its_last_step() {
    there_and_back(chain(), usize::MAX);
}

#[test]
fn a_fan_runs_to_its_end_and_back_all_at_once() {
    there_and_back(fan(), usize::MAX);
}

#[test]
fn a_fan_runs_to_its_end_and_back_with_a_single_hand() {
    there_and_back(fan(), 1);
}

#[test]
fn a_decision_looks_only_at_what_can_be_done() {
    let plan = checked(spec(fan()));
    let mut sim = Sim::new(plan);
    sim.room = 1;
    sim.rush_for(3);
    assert_eq!(decide(&sim.state, sim.now, 1).commands.len(), 1);
    assert_eq!(decide(&sim.state, sim.now, 0), Decision::default());
}

#[test]
fn a_rollback_that_finds_nothing_started_ends_without_recursion() {
    let plan = checked(spec(chain()));
    let mut sim = Sim::new(plan);
    sim.append(Event::RollingBack { because: "a test".into(), how: Default::default() });
    assert_eq!(sim.rush(), End::RolledBack);
    assert_eq!(sim.journal.len(), 4);
}

#[test]
fn a_crash_of_ten_thousand_attempts_is_taken_over_at_once() {
    let mut sim = Sim::new(checked(spec(fan())));
    sim.rush_for(1);
    for command in decide(&sim.state, sim.now, usize::MAX).commands {
        let Command::Append(event) = command else { continue };
        sim.perform(event, &mut crate::support::Dice::First);
    }
    assert_eq!(sim.state.running(), N - 2);
    sim.crash();
    assert_eq!(sim.state.running(), 0);
    assert_eq!(sim.rush(), End::Succeeded);
}

/// 10,000 runs of ten steps are a hundred thousand of these, and of the undos only those that were begun.
#[test]
fn a_state_is_small() {
    assert!(size_of::<Course>() <= 192, "{}", size_of::<Course>());
}
