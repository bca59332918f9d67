//! Attempts that began and whose end nobody knows: probed, waited for, repeated, or left to an operator.

use std::sync::Arc;

use backstay_machine::plan::{Effect, Span, StepSpec};
use backstay_machine::{Answer, Applied, CourseAt, CourseId, Direction, Plan, StepEvent, judge_probe};

use crate::full_sweep;
use crate::support::sim::{Ending, Lands, error};
use crate::support::{Dice, End, Sim, checked, every_dag, spec, step};

/// Everything that a step can say of its effect.
fn effects() -> Vec<Effect> {
    let mut all = Vec::new();
    for bits in 0..16 {
        let has = |n: u32| bits >> n & 1 == 1;
        all.push(Effect {
            longest_delay: if has(0) { Span::secs(30) } else { Span::default() },
            probed: has(1),
            refuses_duplicates: has(2),
            at_most_once: has(3),
        });
    }
    all
}

fn with_effect(steps: Vec<StepSpec>, effect: Effect) -> Arc<Plan> {
    checked(spec(steps.into_iter().map(|step| StepSpec { effect: Some(effect), ..step }).collect()))
}

/// Crashes at each instant, and again; what a calm run came to is `wanted`.
fn cut(mut sim: Sim, mut dice: Dice, deaths: usize, judge: &mut dyn FnMut(&Sim)) {
    loop {
        if deaths > 0 && sim.end().is_none() {
            let mut crashed = sim.clone();
            crashed.crash();
            cut(crashed, dice.clone(), deaths - 1, judge);
        }
        if sim.step(&mut dice).is_none() {
            return judge(&sim);
        }
    }
}

#[test]
fn whatever_is_known_of_an_effect_a_crash_leaves_nothing_behind_and_repeats_nothing_too_early() {
    let most = if full_sweep() { 3 } else { 2 };
    let (mut ends, mut held) = (0, 0);
    for steps in (1..=most).flat_map(every_dag) {
        for effect in effects() {
            let plan = with_effect(steps.clone(), effect);
            let failing = std::iter::once(None).chain(plan.steps().map(|(_, s)| Some(s.name.to_string())));
            for failing in failing {
                for blind in [0, 100] {
                    let mut sim = Sim::new(Arc::clone(&plan));
                    if let Some(name) = &failing {
                        sim = sim.failing(name);
                    }
                    sim.blind = blind;
                    let calm = if failing.is_some() { End::RolledBack } else { End::Succeeded };
                    cut(sim, Dice::First, 2, &mut |sim| {
                        let end = sim.end().unwrap();
                        let may_hold = effect.at_most_once || (effect.probed && blind > 0);
                        let label = || format!("{:?} {effect:?} {failing:?} {blind}", plan.text());
                        // The answer was lost and the effect is there: then the step did not fail.
                        let found = effect.probed && end == End::Succeeded;
                        let allowed = end == calm || found || (end == End::Held && may_hold);
                        assert!(allowed, "{}\n{}", label(), sim.story());
                        sim.audit(&label);
                        ends += 1;
                        held += usize::from(end == End::Held);
                    });
                }
            }
        }
    }
    assert!(ends > 10_000 && held > 1_000, "{ends} {held}");
}

#[test]
fn a_failure_that_may_have_had_its_effect_is_settled_before_the_next_attempt() {
    let mut ends = 0;
    for effect in effects() {
        for lands in [Lands::No, Lands::Yes, Lands::Partly, Lands::Late] {
            let late = lands == Lands::Late && effect.longest_delay == Span::default();
            if late {
                continue;
            }
            let plan = with_effect(vec![step("a", &[]), step("b", &["a"])], effect);
            let sim = Sim::new(Arc::clone(&plan)).scripted(move |_, course, attempt, _| {
                if course.direction == Direction::Forward && attempt == 1 {
                    Ending::Fails { error: error(true, Applied::Maybe), lands }
                } else {
                    Ending::Succeeds
                }
            });
            cut(sim, Dice::First, 2, &mut |sim| {
                let end = sim.end().unwrap();
                let label = || format!("{effect:?} {lands:?}");
                // What may happen only once is not repeated: it is rolled back, or held after a crash.
                let wanted = if effect.at_most_once { end != End::Stuck } else { end == End::Succeeded };
                assert!(wanted, "{}\n{}", label(), sim.story());
                sim.audit(&label);
                ends += 1;
            });
        }
    }
    assert!(ends > 1_000, "{ends}");
}

fn crashed_in_flight(effect: Effect) -> Sim {
    let mut sim = Sim::new(with_effect(vec![step("a", &[])], effect));
    sim.step(&mut Dice::First);
    assert_eq!(sim.in_flight().len(), 1);
    sim.crash();
    sim
}

#[test]
fn a_lost_call_that_may_still_arrive_is_waited_for() {
    let mut sim = crashed_in_flight(Effect { longest_delay: Span::secs(30), ..Effect::default() });
    let claimed = sim.now;
    sim.step(&mut Dice::First);
    assert_eq!(sim.now, Span::secs(30).after(claimed));
    assert_eq!(sim.run(&mut Dice::First), End::Succeeded);
    sim.audit(&String::new);
}

#[test]
fn what_a_probe_finds_is_the_result() {
    let mut sim = Sim::new(with_effect(vec![step("a", &[])], Effect { probed: true, ..Effect::default() }));
    sim.step(&mut Dice::First);
    sim.step(&mut Dice::First);
    sim.crash();
    assert_eq!(sim.run(&mut Dice::First), End::Succeeded);
    insta::assert_snapshot!(sim.story(), @r"
    1 submitted
    2 claimed
    3 started a #1
    4 claimed
    5 probed a #1 present
    6 succeeded a #1
    7 finished succeeded
    ");
}

#[test]
fn absent_is_not_believed_while_the_lost_call_can_still_arrive() {
    let mut sim =
        crashed_in_flight(Effect { probed: true, longest_delay: Span::secs(30), ..Effect::default() });
    assert_eq!(sim.run(&mut Dice::First), End::Succeeded);
    insta::assert_snapshot!(sim.story(), @r"
    1 submitted
    2 claimed
    3 started a #1
    4 claimed
    5 probed a #1 absent
    6 probed a #1 present
    7 succeeded a #1
    8 finished succeeded
    ");
}

#[test]
fn what_counts_is_when_the_question_was_put_and_not_when_the_answer_came() {
    for answered in [Span::secs(31), Span::secs(500)] {
        let mut sim =
            crashed_in_flight(Effect { probed: true, longest_delay: Span::secs(30), ..Effect::default() });
        sim.step(&mut Dice::First);
        // While the answer "absent" is on its way, the lost call arrives.
        sim.pass(answered.after(sim.now));
        assert_eq!(sim.run(&mut Dice::First), End::Succeeded);
        assert!(!sim.story().contains("started a #2"), "{}", sim.story());
        sim.audit(&String::new);
    }
}

#[test]
fn a_step_that_happens_at_most_once_waits_for_an_operator() {
    let mut sim = crashed_in_flight(Effect { at_most_once: true, ..Effect::default() });
    assert_eq!(sim.run(&mut Dice::First), End::Held);
    let a = CourseId::forward(sim.plan().find("a").unwrap());
    let CourseAt::Held { why } = &sim.state.course(a).at else { panic!() };
    assert_eq!(
        why,
        "attempt 1 is in doubt, the step is declared to happen at most once, and its activity has no probe"
    );
}

#[test]
fn a_probe_that_finds_nothing_out_five_times_asks_an_operator() {
    let mut sim = crashed_in_flight(Effect { probed: true, ..Effect::default() });
    sim.blind = 100;
    assert_eq!(sim.run(&mut Dice::First), End::Held);
    assert_eq!(sim.story().matches("unknown").count(), 5);
}

#[test]
fn an_undo_waits_for_every_effect_that_may_still_arrive() {
    // The second attempt succeeded at once, as the target refuses duplicates; the first is still on its way.
    let effect = Effect { longest_delay: Span::secs(30), refuses_duplicates: true, ..Effect::default() };
    let mut steps = vec![step("a", &[]), step("b", &["a"])];
    steps[0].effect = Some(effect);
    let mut sim = Sim::new(checked(spec(steps))).failing("b");
    sim.step(&mut Dice::First);
    sim.crash();
    let claimed = sim.now;
    assert_eq!(sim.run(&mut Dice::First), End::RolledBack);
    assert!(sim.now >= Span::secs(30).after(claimed));
    sim.audit(&String::new);
}

#[test]
fn only_unknowns_in_a_row_are_counted() {
    let mut sim =
        crashed_in_flight(Effect { probed: true, longest_delay: Span::secs(30), ..Effect::default() });
    let a = sim.plan().find("a").unwrap();
    let claimed = sim.now;
    let unknown = || Answer::Unknown { why: "the line is dead".into() };
    for answer in [unknown(), unknown(), unknown(), unknown(), Answer::Absent, unknown()] {
        for what in judge_probe(&sim.state, a, answer, None, claimed, sim.now) {
            let StepEvent::Probed { ask_again_at, .. } = &what else { panic!("{what:?}") };
            assert!(ask_again_at.is_some(), "{what:?}");
            sim.report(CourseId::forward(a), what);
        }
    }
}
