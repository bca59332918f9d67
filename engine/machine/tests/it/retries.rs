//! When a failed attempt is tried again, and when not.

use backstay_machine::plan::{Effect, Retry, Span, StepSpec};
use backstay_machine::*;
use chrono::TimeDelta;

use crate::support::sim::{Ending, Lands, error};
use crate::support::{Dice, End, Sim, checked, spec, step};

/// The delays between the attempts of a step that always fails without effect.
fn delays(retry: Retry) -> Vec<f64> {
    let a = StepSpec { retry: Some(retry), ..step("a", &[]) };
    let mut sim = Sim::new(checked(spec(vec![a]))).scripted(|_, course, _, _| match course.direction {
        Direction::Forward => Ending::Fails { error: error(true, Applied::No), lands: Lands::No },
        Direction::Undo => Ending::Succeeds,
    });
    assert_eq!(sim.run(&mut Dice::First), End::RolledBack);
    sim.audit(&String::new);
    sim.journal
        .iter()
        .filter_map(|event| match &event.event {
            Event::Step { what: StepEvent::Failed { retry_at: Some(at), .. }, .. } => {
                Some((*at - event.at + TimeDelta::milliseconds(1)).as_seconds_f64())
            }
            _ => None,
        })
        .collect()
}

#[test]
fn delays_grow_to_their_ceiling_and_end_after_so_many_attempts() {
    let retry = Retry { jitter: 0.0, ceiling: Span::secs(5), attempts: Some(6), ..Retry::default() };
    assert_eq!(delays(retry), [1.0, 2.0, 4.0, 5.0, 5.0]);
}

#[test]
fn jitter_stays_within_its_bounds_and_never_passes_the_ceiling() {
    let retry = Retry { jitter: 0.5, factor: 1.0, attempts: Some(40), ..Retry::default() };
    let around = delays(Retry { ceiling: Span::secs(9), ..retry });
    assert!(around.iter().all(|delay| (0.5..=1.5).contains(delay)), "{around:?}");
    assert!(around.iter().any(|delay| *delay < 0.8) && around.iter().any(|delay| *delay > 1.2));
    let below = delays(Retry { ceiling: Span::secs(1), ..retry });
    assert!(below.iter().all(|delay| (0.5..=1.0).contains(delay)), "{below:?}");
}

#[test]
fn a_first_delay_of_zero_stays_zero() {
    let retry = Retry { first: Span::default(), factor: 100.0, attempts: Some(300), ..Retry::default() };
    assert!(delays(retry).iter().all(|delay| *delay == 0.0));
}

#[test]
fn elapsed_time_ends_retries_too() {
    let retry = Retry { jitter: 0.0, attempts: None, elapsed: Some(Span::secs(8)), ..Retry::default() };
    assert_eq!(delays(retry), [1.0, 2.0, 4.0]);
}

#[test]
fn once_means_once() {
    assert_eq!(delays(Retry::never()), [0.0; 0]);
}

fn judged(effect: Effect, error: ActivityError) -> Option<f64> {
    let a = StepSpec { effect: Some(effect), ..step("a", &[]) };
    let mut sim = Sim::new(checked(spec(vec![a])));
    sim.step(&mut Dice::First);
    let a = CourseId::forward(sim.plan().find("a").unwrap());
    match judge(&sim.state, a, error, sim.now) {
        StepEvent::Failed { retry_at, .. } => retry_at.map(|at| (at - sim.now).as_seconds_f64()),
        _ => panic!(),
    }
}

#[test]
fn what_the_error_says_decides_first() {
    let effect = Effect::default();
    let asked = ActivityError { retry_after: Some(Span::secs(77)), ..error(true, Applied::No) };
    let hasty = ActivityError { retry_after: Some(Span::millis(1)), ..error(true, Applied::No) };
    assert_eq!(judged(effect, error(false, Applied::No)), None);
    assert_eq!(judged(effect, error(true, Applied::Maybe)), Some(1.0));
    assert_eq!(judged(effect, asked), Some(77.0));
    assert_eq!(judged(effect, hasty), Some(1.0));
    let once = Effect { at_most_once: true, ..effect };
    assert_eq!(judged(once, error(true, Applied::No)), Some(1.0));
    assert_eq!(judged(once, error(true, Applied::Maybe)), None);
}

#[test]
fn no_time_is_too_late_to_be_reckoned_with() {
    let mut sim = Sim::new(checked(spec(vec![step("a", &[])])));
    sim.step(&mut Dice::First);
    let a = CourseId::forward(sim.plan().find("a").unwrap());
    let StepEvent::Failed { retry_at, .. } = judge(&sim.state, a, error(true, Applied::No), Time::MAX_UTC)
    else {
        panic!()
    };
    assert_eq!(retry_at, Some(Time::MAX_UTC));
}

#[test]
fn nothing_is_tried_again_once_the_run_has_turned_round() {
    let mut sim = Sim::new(checked(spec(vec![step("a", &[])])));
    sim.step(&mut Dice::First);
    sim.append(Event::RollingBack { because: "a test".into(), how: Default::default() });
    let a = CourseId::forward(sim.plan().find("a").unwrap());
    let judged = judge(&sim.state, a, error(true, Applied::No), sim.now);
    assert!(matches!(judged, StepEvent::Failed { retry_at: None, .. }));
}

#[test]
fn a_rollback_gives_up_an_attempt_that_does_not_end_and_no_sooner() {
    let mut sim = Sim::new(checked(spec(vec![step("a", &[])])));
    sim.step(&mut Dice::First);
    sim.append(Event::RollingBack { because: "a test".into(), how: Default::default() });
    let turned = sim.now;
    let a = CourseId::forward(sim.plan().find("a").unwrap());
    let early = decide(&sim.state, turned + TimeDelta::seconds(59), 9);
    assert_eq!(early.commands, [Command::Cancel(a)]);
    assert_eq!(early.wake_at, Some(turned + TimeDelta::seconds(60)));
    let late = decide(&sim.state, turned + TimeDelta::seconds(60), 9);
    assert!(matches!(
        &late.commands[..],
        [Command::Append(Event::Step { what: StepEvent::Failed { error, retry_at: None }, .. })]
            if error.code == "abandoned" && error.applied == Applied::Maybe
    ));
}

#[test]
fn what_only_people_can_mend_is_held_and_not_rolled_back() {
    let refused = || ActivityError { code: NEEDS_OPERATOR.into(), ..error(false, Applied::No) };
    let plan = || checked(spec(vec![step("a", &[]), step("b", &["a"])]));
    let b = plan().find("b");
    let mut sim = Sim::new(plan()).scripted(move |_, course, _, _| match course.direction {
        Direction::Forward if Some(course.step) == b => Ending::Fails { error: refused(), lands: Lands::No },
        _ => Ending::Succeeds,
    });
    assert_eq!(sim.run(&mut Dice::First), End::Held);
    sim.audit(&String::new);
}
