//! Every small plan, every failing step, every crash.

use std::sync::Arc;

use backstay_machine::Plan;
use backstay_machine::plan::StepSpec;

use crate::full_sweep;
use crate::support::{Dice, End, Sim, checked, every_dag, spec};

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

/// Calls in the order in which they were made, or always the newest first: one step at a time.
const BOTH: [Dice; 2] = [Dice::First, Dice::Last];

#[test]
fn there_are_543_dags_of_four_labelled_steps() {
    let counts: Vec<_> = (1..=4).map(|n| every_dag(n).len()).collect();
    assert_eq!(counts, [1, 3, 25, 543]);
}

#[test]
fn a_run_of_up_to_three_steps_ends_the_same_wherever_its_node_dies() {
    let runs: usize = (1..=3).map(|n| sweep(&every_dag(n), &BOTH, 1)).sum();
    assert!(runs > 3_000, "{runs}");
}

#[test]
fn a_run_ends_the_same_wherever_two_nodes_die_one_after_the_other() {
    let most = if full_sweep() { 3 } else { 2 };
    let runs: usize = (1..=most).map(|n| sweep(&every_dag(n), &BOTH, 2)).sum();
    assert!(runs > 1_500, "{runs}");
}

/// Every second plan with all steps at once, the others with one step at a time; in the full sweep all with both.
fn four_steps(first: usize) {
    let dags = every_dag(4);
    let some: Vec<_> = dags.iter().skip(first).step_by(2).cloned().collect();
    let runs = if full_sweep() { sweep(&some, &BOTH, 1) } else { sweep(&some, &BOTH[first..=first], 1) };
    assert!(runs > 20_000, "{runs}");
}

#[test]
fn a_run_of_four_steps_ends_the_same_wherever_its_node_dies() {
    four_steps(0);
}

#[test]
fn a_run_of_four_steps_one_at_a_time_ends_the_same_wherever_its_node_dies() {
    four_steps(1);
}

/// Runs every order of events there is, each time from the start.
fn every_order(plan: &Arc<Plan>, failing: Option<&str>, deaths: usize) -> usize {
    let mut dice = Some(Dice::all());
    let mut orders = 0;
    while let Some(mut now) = dice {
        let mut sim = begun(plan, failing);
        sim.instant = true;
        let mut left = deaths;
        loop {
            if left > 0 && sim.end().is_none() && now.pick(2) == 1 {
                sim.crash();
                left -= 1;
            }
            if sim.step(&mut now).is_none() {
                break;
            }
        }
        let wanted = if failing.is_some() { End::RolledBack } else { End::Succeeded };
        assert_eq!(sim.end(), Some(wanted), "{}", sim.story());
        sim.audit(&|| format!("{:?}, failing {failing:?}", plan.text()));
        orders += 1;
        dice = now.next();
    }
    orders
}

#[test]
fn the_order_of_outcomes_does_not_matter() {
    let mut orders = 0;
    for n in 1..=3 {
        for steps in every_dag(n) {
            let plan = checked(spec(steps));
            // Three steps side by side have a million orders forward and back.
            let wide =
                n == 3 && plan.order().iter().filter(|ix| plan.step(**ix).after.is_empty()).count() == 3;
            for failing in names(&plan) {
                if failing.is_none() || !wide || full_sweep() {
                    orders += every_order(&plan, failing.as_deref(), 0);
                }
            }
        }
    }
    assert!(orders > 2_000, "{orders}");
}

#[test]
fn the_order_of_outcomes_does_not_matter_wherever_a_node_dies() {
    let mut orders = 0;
    for n in 1..=2 {
        for steps in every_dag(n) {
            let plan = checked(spec(steps));
            for failing in names(&plan) {
                orders += every_order(&plan, failing.as_deref(), 1);
            }
        }
    }
    assert!(orders > 1_000, "{orders}");
}
