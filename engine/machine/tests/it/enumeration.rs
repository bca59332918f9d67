//! Every small plan, every failing step, every crash.

use std::sync::Arc;

use backstay_machine::plan::{Effect, Span, StepSpec};
use backstay_machine::{CourseId, Plan};

use crate::full_sweep;
use crate::support::{Dice, End, Sim, checked, every_dag, spec};

/// The plans of so many steps, in two halves, so that two tests share the work.
fn plans(n: usize) -> Vec<Vec<StepSpec>> {
    every_dag(n)
}

fn names(plan: &Plan) -> Vec<Option<String>> {
    std::iter::once(None).chain(plan.steps().map(|(_, step)| Some(step.name.to_string()))).collect()
}

fn begun(plan: &Arc<Plan>, failing: Option<&str>) -> Sim {
    let sim = Sim::new(Arc::clone(plan));
    match failing {
        Some(name) => sim.failing(name),
        None => sim,
    }
}

/// Runs calmly, and once more from each instant with a crash there. All must end as the calm run did.
fn crash_everywhere(plan: &Arc<Plan>, failing: Option<&str>, dice: &Dice, deaths: usize) -> usize {
    let calm = begun(plan, failing);
    let mut end = None;
    let mut runs = 0;
    cut(calm, dice.clone(), deaths, &mut end, &mut runs, &|| {
        let graph: Vec<_> = plan.spec().steps.iter().map(|s| format!("{}{:?}", s.name, s.after)).collect();
        format!("{graph:?}, failing {failing:?}, {dice:?}, {} crashes", deaths)
    });
    let wanted = if failing.is_some() { End::RolledBack } else { End::Succeeded };
    assert_eq!(end, Some(wanted));
    runs
}

fn cut(
    mut sim: Sim,
    mut dice: Dice,
    deaths: usize,
    end: &mut Option<End>,
    runs: &mut usize,
    label: &dyn Fn() -> String,
) {
    loop {
        if deaths > 0 && sim.end().is_none() {
            let mut crashed = sim.clone();
            crashed.crash();
            cut(crashed, dice.clone(), deaths - 1, end, runs, label);
        }
        if sim.step(&mut dice).is_none() {
            break;
        }
    }
    let ended = sim.end();
    assert_eq!(*end.get_or_insert(ended.unwrap()), ended.unwrap(), "{}\n{}", label(), sim.story());
    sim.audit(label);
    *runs += 1;
}

fn sweep(plans: &[Vec<StepSpec>], dice: &[Dice], deaths: usize) -> usize {
    let mut runs = 0;
    for steps in plans {
        let plan = checked(spec(steps.clone()));
        for failing in names(&plan) {
            for dice in dice {
                runs += crash_everywhere(&plan, failing.as_deref(), dice, deaths);
            }
        }
    }
    runs
}

#[test]
fn there_are_543_dags_of_four_labelled_steps() {
    let counts: Vec<_> = (1..=4).map(|n| every_dag(n).len()).collect();
    assert_eq!(counts, [1, 3, 25, 543]);
}

#[test]
fn a_run_of_up_to_three_steps_ends_the_same_wherever_its_node_dies() {
    for n in 1..=3 {
        let runs = sweep(&plans(n), &[Dice::First, Dice::Last], 1);
        println!("{n} steps: {runs} runs");
    }
}

#[test]
fn a_run_of_up_to_three_steps_ends_the_same_wherever_two_nodes_die() {
    for n in 1..=if full_sweep() { 3 } else { 2 } {
        let runs = sweep(&plans(n), &[Dice::First, Dice::Last], 2);
        println!("{n} steps: {runs} runs");
    }
}

#[test]
fn a_run_of_four_steps_ends_the_same_wherever_its_node_dies_all_steps_at_once() {
    println!("{} runs", sweep(&plans(4), &[Dice::First], 1));
}

#[test]
fn a_run_of_four_steps_ends_the_same_wherever_its_node_dies_one_step_at_a_time() {
    println!("{} runs", sweep(&plans(4), &[Dice::Last], 1));
}
